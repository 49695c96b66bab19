//! Where a database's objects lie: `gs://bucket[/prefix]` or `file:///dir`.
//!
//! The text is taken literally: nothing in it is percent-decoded, and what looks percent-encoded is refused,
//! because other tools would read it differently. Parsing touches neither the network nor the disk.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

const ACCEPTED: &str = "accepted are gs://bucket, gs://bucket/prefix and file:///absolute/directory";

/// A place that keeps objects: a bucket, and the folder in it below which every name lies.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BucketUrl {
    bucket: Bucket,
    /// Segments joined with `/`, without a slash at either end; empty for the bucket itself.
    folder: String,
}

/// What stands for the bucket.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Bucket {
    /// A Cloud Storage bucket, by its name.
    Cloud(String),
    /// A directory of the local machine (or one mounted there), by its absolute path.
    Directory(PathBuf),
}

impl BucketUrl {
    /// What stands for the bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// The folder below which every name lies, without a slash at either end; empty for the bucket itself.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// The place one folder further down, as the objects of the database of this file name have it.
    ///
    /// # Errors
    /// A name that is empty, `.` or `..`, or has a `/` or a control character in it.
    pub fn join(&self, name: &str) -> Result<BucketUrl> {
        if name.contains('/') {
            return Err(refused(&format!("{self}: {name:?} cannot be a folder in it: it contains '/'")));
        }
        segment(name).map_err(|why| refused(&format!("{self}: {name:?} cannot be a folder in it: {why}")))?;
        let folder = if self.folder.is_empty() { name.to_owned() } else { format!("{}/{name}", self.folder) };
        Ok(BucketUrl { bucket: self.bucket.clone(), folder })
    }
}

impl FromStr for BucketUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<BucketUrl> {
        let bad = |why: &str| refused(&format!("bucket URL {text:?}: {why}; {ACCEPTED}"));
        let encoded = |w: &[u8]| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit();
        if text.as_bytes().windows(3).any(encoded) {
            return Err(bad("write the characters themselves, percent-encoding is not read"));
        }
        if text.contains(['?', '#']) {
            return Err(bad("'?' and '#' have no meaning in it"));
        }
        if let Some(rest) = text.strip_prefix("gs://") {
            let (name, folder) = rest.split_once('/').unwrap_or((rest, ""));
            cloud_name(name).map_err(|why| bad(&why))?;
            let folder = path(folder).map_err(|why| bad(&why))?;
            return Ok(BucketUrl { bucket: Bucket::Cloud(name.to_owned()), folder });
        }
        if let Some(rest) = text.strip_prefix("file://") {
            let Some(rest) = rest.strip_prefix('/') else {
                return Err(bad("the directory must be absolute, with three slashes in front"));
            };
            let directory = path(rest).map_err(|why| bad(&why))?;
            if directory.is_empty() {
                return Err(bad("it names no directory"));
            }
            let directory = PathBuf::from(format!("/{directory}"));
            return Ok(BucketUrl { bucket: Bucket::Directory(directory), folder: String::new() });
        }
        Err(bad(if text.contains("://") { "this kind of place is not known" } else { "it does not say which kind" }))
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bucket {
            Bucket::Cloud(name) => write!(f, "gs://{name}")?,
            Bucket::Directory(path) => write!(f, "file://{}", path.display())?,
        }
        if self.folder.is_empty() { Ok(()) } else { write!(f, "/{}", self.folder) }
    }
}

fn refused(message: &str) -> Error {
    Error::new(ErrorKind::Configuration, message)
}

/// Cloud Storage: 3 to 222 of these characters, a letter or digit at both ends.
fn cloud_name(name: &str) -> Result<(), String> {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    if name.is_empty() {
        return Err("it names no bucket".to_owned());
    }
    let fits = (3..=222).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(b) || b"-_.".contains(b))
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric);
    if fits { Ok(()) } else { Err(format!("{name:?} cannot be the name of a bucket")) }
}

/// Checks every segment, and drops a slash at the end.
fn path(text: &str) -> Result<String, String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    if !text.is_empty() {
        for part in text.split('/') {
            segment(part).map_err(|why| format!("{part:?} cannot be a part of it: {why}"))?;
        }
    }
    Ok(text.to_owned())
}

fn segment(part: &str) -> Result<(), &'static str> {
    match part {
        "" => Err("it is empty"),
        "." | ".." => Err("it leads elsewhere"),
        _ if part.chars().any(char::is_control) => Err("it contains a control character"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        let error = text.parse::<BucketUrl>().expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Configuration);
        error.to_string()
    }

    #[test]
    fn both_kinds_of_place_are_read_and_written_alike() {
        for text in ["gs://abc", "gs://abc/x/y z", "file:///srv/ä b"] {
            assert_eq!(text.parse::<BucketUrl>().expect(text).to_string(), text);
        }
        let url: BucketUrl = "gs://my-bucket.example/tenants/".parse().expect("a trailing slash");
        assert_eq!(url.bucket(), &Bucket::Cloud("my-bucket.example".to_owned()));
        assert_eq!(url.folder(), "tenants");
        assert_eq!(url.join("app.db").expect("a name").to_string(), "gs://my-bucket.example/tenants/app.db");
        let url: BucketUrl = "file:///srv/b".parse().expect("a directory");
        assert_eq!(url.join("app.db").expect("a name").to_string(), "file:///srv/b/app.db");
        assert_eq!(url.bucket(), &Bucket::Directory("/srv/b".into()));
    }

    #[test]
    fn what_is_refused_is_told_with_what_is_accepted() {
        for (text, why) in [
            ("", "does not say which kind"),
            ("bucket", "does not say which kind"),
            ("s3://bucket", "not known"),
            ("GS://bucket", "not known"),
            ("gs://", "names no bucket"),
            ("gs:///x", "names no bucket"),
            ("gs://ab", "name of a bucket"),
            ("gs://-abc", "name of a bucket"),
            ("gs://Abc", "name of a bucket"),
            ("gs://abc//x", "is empty"),
            ("gs://abc/../x", "leads elsewhere"),
            ("gs://abc/a%20b", "percent"),
            ("gs://abc/x?y=1", "no meaning"),
            ("file://srv/b", "absolute"),
            ("file://./b", "absolute"),
            ("file:/srv/b", "which kind"),
            ("file:///", "no directory"),
            ("file:///srv/../b", "leads elsewhere"),
            ("file:///srv/./b", "leads elsewhere"),
            ("file:///srv\n/b", "control"),
        ] {
            let said = message(text);
            assert!(said.contains(why) && said.contains("gs://bucket/prefix"), "{text:?}: {said}");
        }
    }

    #[test]
    fn a_database_name_cannot_escape_its_place() {
        let url: BucketUrl = "gs://abc/x".parse().expect("a URL");
        for name in ["", ".", "..", "a/b", "../b", "a\0b", "a\n"] {
            assert_eq!(url.join(name).expect_err(name).kind(), ErrorKind::Configuration);
        }
    }
}
