//! Which databases live in the bucket although nobody asked for the VFS: the patterns of `SQLITE_GCS_PATHS`.
//!
//! | in a pattern | stands for |
//! | --- | --- |
//! | `*` | any characters within one name of the path |
//! | `**` | any characters, `/` too |
//! | `?` | one character but `/` |
//! | `:` | the end of one pattern and the begin of the next |
//!
//! Every pattern begins with `/`. It is compared with the whole canonical path of a database; the folders before its
//! first wildcard are made canonical as well, so that a symbolic link in them does not silently leave a database out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// The patterns; empty where the variable is not set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Paths {
    patterns: Vec<Vec<u8>>,
}

impl Paths {
    /// Parses the variable's value.
    pub(super) fn parse(text: &OsStr) -> Result<Paths> {
        let patterns: Vec<_> =
            text.as_bytes().split(|&byte| byte == b':').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect();
        match patterns.iter().find(|pattern| !pattern.starts_with(b"/")) {
            None => Ok(Paths { patterns }),
            Some(pattern) => Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "SQLITE_GCS_PATHS: {:?} does not begin with /; accepted are absolute paths with *, ** and ?, \
                     such as /data/*.db, separated by colons",
                    String::from_utf8_lossy(pattern)
                ),
            )),
        }
    }

    /// Whether there is no pattern at all.
    pub(super) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern stands for this canonical path.
    pub(super) fn contains(&self, path: &Path) -> bool {
        let path = path.as_os_str().as_bytes();
        self.patterns.iter().any(|pattern| matches(pattern, path) || matches(&through_links(pattern), path))
    }
}

/// The pattern with the folders before its first wildcard made canonical; as it is where they do not exist.
fn through_links(pattern: &[u8]) -> Vec<u8> {
    let plain = pattern.iter().position(|byte| b"*?".contains(byte)).unwrap_or(pattern.len());
    let Some(slash) = pattern[..plain].iter().rposition(|&byte| byte == b'/') else { return pattern.to_vec() };
    let folder = if slash == 0 { &pattern[..1] } else { &pattern[..slash] };
    let Ok(folder) = Path::new(OsStr::from_bytes(folder)).canonicalize() else { return pattern.to_vec() };
    let folder = folder.as_os_str().as_bytes();
    [folder.strip_suffix(b"/").unwrap_or(folder), &pattern[slash..]].concat()
}

/// The place in the pattern after a wildcard, and where in the path that begins which it did not take yet.
type Taken = Option<(usize, usize)>;

/// Compares, taking back the choice of the latest `*` or else of the latest `**` only: earlier ones need not take more, because
/// what follows them was found already. This bounds the time.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // Where to go on when nothing fits.
    let (mut star, mut stars): (Taken, Taken) = (None, None);
    loop {
        if pattern[at..].starts_with(b"**") {
            at += 2;
            (star, stars) = (None, Some((at, read)));
            continue;
        }
        match (pattern.get(at), path.get(read)) {
            (Some(b'*'), _) => {
                at += 1;
                star = Some((at, read));
            }
            (None, None) => return true,
            (Some(b'?'), Some(byte)) if *byte != b'/' => (at, read) = (at + 1, read + 1),
            (Some(wanted), Some(byte)) if *wanted != b'?' && wanted == byte => (at, read) = (at + 1, read + 1),
            _ => {
                if let Some((after, taken)) = star
                    && path.get(taken).is_some_and(|&byte| byte != b'/')
                {
                    (star, at, read) = (Some((after, taken + 1)), after, taken + 1);
                } else if let Some((after, taken)) = stars
                    && taken < path.len()
                {
                    (star, stars, at, read) = (None, Some((after, taken + 1)), after, taken + 1);
                } else {
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(patterns: &str, path: &str) -> bool {
        Paths::parse(OsStr::new(patterns)).expect("patterns").contains(Path::new(path))
    }

    #[test]
    fn a_pattern_stands_for_whole_paths() {
        for (pattern, path) in [
            ("/no/a.db", "/no/a.db"),
            ("/no/*.db", "/no/a.db"),
            ("/no/*.db", "/no/.db"),
            ("/no/*.d*", "/no/a.d.db"),
            ("/no/*/a?.db", "/no/x/a1.db"),
            ("/no/**.db", "/no/x/y/a.db"),
            ("/no/**/b*.db", "/no/x/a/b/bad.db"),
            ("/**", "/a"),
            ("/no/x:/no/y", "/no/y"),
            (":/no/a.db:", "/no/a.db"),
        ] {
            assert!(contains(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("", "/no/a.db"),
            ("/no/a.db", "/no/a.db2"),
            ("/no/a.db", "/no/no/a.db"),
            ("/no/*.db", "/no/x/a.db"),
            ("/no/?.db", "/no/ab.db"),
            ("/no?a.db", "/no/a.db"),
            ("/no/*/*.db", "/no/x/y/a.db"),
            ("/no/**/b*.db", "/no/x/b/a.db"),
            ("/no/a?", "/no/a"),
        ] {
            assert!(!contains(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn a_long_row_of_wildcards_is_decided_at_once() {
        let path = format!("/{}", "a".repeat(4000));
        assert!(!contains(&format!("/{}b", "*a".repeat(60)), &path));
        assert!(!contains(&format!("/{}b", "**a".repeat(60)), &path));
    }

    #[test]
    fn a_pattern_that_leads_through_a_link_stands_for_what_is_behind_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().canonicalize().expect("a directory");
        std::fs::create_dir(dir.join("real")).expect("made");
        std::os::unix::fs::symlink(dir.join("real"), dir.join("link")).expect("linked");
        let pattern = format!("{}/link/*.db", dir.display());
        assert!(contains(&pattern, &format!("{}/real/a.db", dir.display())));
    }

    #[test]
    fn a_relative_pattern_is_refused_by_name() {
        let error = Paths::parse(OsStr::new("/a/*.db:b.db")).expect_err("refused").to_string();
        assert!(error.contains("\"b.db\"") && error.contains("SQLITE_GCS_PATHS"), "{error}");
    }
}
