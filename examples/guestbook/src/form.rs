//! `application/x-www-form-urlencoded`, decoded strictly: bytes that are not UTF-8 are refused. The usual
//! decoders put replacement characters in their place, and the writer never learns that the text was changed.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// The fields of a form body or of a query string, in order.
#[derive(Debug)]
pub struct Form(Vec<(String, String)>);

impl Form {
    /// Decodes; `None` if a name or a value is not UTF-8.
    pub fn parse(bytes: &[u8]) -> Option<Form> {
        let pairs = bytes.split(|&b| b == b'&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| {
                let mut halves = pair.splitn(2, |&b| b == b'=');
                let name = decoded(halves.next().unwrap_or_default())?;
                Some((name, decoded(halves.next().unwrap_or_default())?))
            })
            .collect::<Option<_>>()
            .map(Form)
    }

    /// The first value of a field; empty if it was not sent.
    pub fn field(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// The first value of a field as a number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.field(name).parse().ok()
    }
}

fn decoded(bytes: &[u8]) -> Option<String> {
    let spaced: Cow<'_, [u8]> = if bytes.contains(&b'+') {
        bytes.iter().map(|&b| if b == b'+' { b' ' } else { b }).collect::<Vec<_>>().into()
    } else {
        bytes.into()
    };
    percent_decode(&spaced).decode_utf8().ok().map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_decoded_and_a_missing_one_is_empty() {
        let form = Form::parse(b"name=Ada+L%C3%B6&message=a%26b%3Dc%2B&n=-3&&x").expect("a form");
        assert_eq!(form.field("name"), "Ada L\u{f6}");
        assert_eq!(form.field("message"), "a&b=c+");
        assert_eq!((form.field("x"), form.field("nothing")), ("", ""));
        assert_eq!((form.number("n"), form.number("name")), (Some(-3), None));
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        assert!(Form::parse(b"name=%FF").is_none());
        assert!(Form::parse(b"name=\xc3").is_none());
        assert!(Form::parse(b"%C3=x").is_none());
    }
}
