//! The log: one JSON object per line on stdout, in the fields that Cloud Logging reads.
//!
//! | field | what Cloud Logging makes of it |
//! | --- | --- |
//! | `severity`, `message`, `time` | the entry's own |
//! | `httpRequest` | method, URL, status, size, latency (`"0.012s"`), user agent, address |
//! | `logging.googleapis.com/trace`, `/spanId`, `/trace_sampled` | join the lines of one request, from `X-Cloud-Trace-Context` |

use std::io::Write;

use axum::http::HeaderMap;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How much a line matters, in Cloud Logging's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// What happened.
    Info,
    /// A request that was refused for a passing reason.
    Warning,
    /// Something that a person has to look at.
    Error,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Info => "INFO",
            Severity::Warning => "WARNING",
            Severity::Error => "ERROR",
        }
    }
}

/// Writes a line about the app itself.
pub fn event(severity: Severity, message: &str) {
    line(severity, message, Map::new());
}

/// Writes a line with further fields.
pub fn line(severity: Severity, message: &str, fields: Map<String, Value>) {
    let mut text = Value::Object(entry(severity, message, fields)).to_string();
    text.push('\n');
    // A closed stdout leaves nowhere to report it.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn entry(severity: Severity, message: &str, mut fields: Map<String, Value>) -> Map<String, Value> {
    fields.insert("severity".to_owned(), json!(severity.word()));
    fields.insert("message".to_owned(), json!(message));
    if let Ok(now) = OffsetDateTime::now_utc().format(&Rfc3339) {
        fields.insert("time".to_owned(), json!(now));
    }
    fields
}

/// The trace that a request belongs to, as its front end named it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    id: String,
    span: Option<u64>,
    sampled: bool,
}

impl Trace {
    /// Reads `X-Cloud-Trace-Context: TRACE/SPAN;o=1`; a header that is not of that form counts as absent.
    pub fn of(headers: &HeaderMap) -> Option<Trace> {
        let text = headers.get("x-cloud-trace-context")?.to_str().ok()?;
        let (text, options) = text.split_once(';').unwrap_or((text, ""));
        let (id, span) = text.split_once('/').unwrap_or((text, ""));
        let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        is_id.then(|| Trace { id: id.to_owned(), span: span.parse().ok(), sampled: options.trim() == "o=1" })
    }

    /// Adds the fields that join a line to the trace. Without a project the bare id is given.
    pub fn add_to(&self, fields: &mut Map<String, Value>, project: Option<&str>) {
        let name = match project {
            Some(project) => format!("projects/{project}/traces/{}", self.id),
            None => self.id.clone(),
        };
        fields.insert("logging.googleapis.com/trace".to_owned(), json!(name));
        if let Some(span) = self.span {
            fields.insert("logging.googleapis.com/spanId".to_owned(), json!(format!("{span:016x}")));
        }
        fields.insert("logging.googleapis.com/trace_sampled".to_owned(), json!(self.sampled));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(header: &str) -> Option<Trace> {
        let mut headers = HeaderMap::new();
        headers.insert("x-cloud-trace-context", header.parse().expect("a header"));
        Trace::of(&headers)
    }

    #[test]
    fn a_trace_header_becomes_the_three_fields() {
        let trace = trace("105445aa7843bc8bf206b12000100000/255;o=1").expect("a trace");
        let mut fields = Map::new();
        trace.add_to(&mut fields, Some("mine"));
        assert_eq!(
            Value::Object(fields),
            json!({
                "logging.googleapis.com/trace": "projects/mine/traces/105445aa7843bc8bf206b12000100000",
                "logging.googleapis.com/spanId": "00000000000000ff",
                "logging.googleapis.com/trace_sampled": true,
            })
        );
    }

    #[test]
    fn a_header_of_another_form_counts_as_absent() {
        assert_eq!(trace("\"; drop table"), None);
        assert_eq!(trace("105445aa/1"), None);
        assert!(trace("105445aa7843bc8bf206b12000100000").is_some());
    }

    #[test]
    fn an_entry_is_one_object_with_severity_message_and_time() {
        let entry = entry(Severity::Warning, "a \"quoted\"\nline", Map::new());
        assert_eq!(entry["severity"], "WARNING");
        let text = Value::Object(entry.clone()).to_string();
        assert!(!text.contains('\n'), "{text}");
        assert!(entry["time"].as_str().is_some_and(|t| t.ends_with('Z')));
    }
}
