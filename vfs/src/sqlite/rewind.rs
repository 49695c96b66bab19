//! `PRAGMA gcs_rewind='<point>'`: the engine does it (`database/rewind.rs`), beside a connection of our own that reads.
//!
//! The wal-index is SQLite's to make and to recover, and a PRAGMA may be the first statement of all. So a connection is opened that
//! reads the schema once, by an ordinary SELECT, and stays open meanwhile.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;

use super::api::{Api, c_text};
use super::ffi::{self, Sqlite};
use crate::database::Database;
use crate::error::{Error, ErrorKind, Result};

/// Rewinds a database that is open in this process.
pub(super) fn rewind(api: &Api, database: &Database, point: &str) -> Result<String> {
    let _reader = Reader::open(api, database)?;
    database.rewind(point)
}

/// A connection of our own.
struct Reader<'a> {
    api: &'a Api,
    db: *mut Sqlite,
}

impl Reader<'_> {
    fn open<'a>(api: &'a Api, database: &Database) -> Result<Reader<'a>> {
        let mut uri = "file:".to_owned();
        escape(database.path().as_os_str().as_bytes(), &mut uri);
        uri.push_str("?vfs=gcs&bucket=");
        escape(database.bucket().as_bytes(), &mut uri);
        let mut reader = Reader { api, db: ptr::null_mut() };
        let busy = |code| {
            let message = format!("{}: it cannot be read now (code {code})", database.path().display());
            Error::new(ErrorKind::Busy, message)
        };
        // SAFETY: the texts end with a zero; whatever comes of it, the handle is closed once, by Drop. The connection is new, so
        // running a statement on it interferes with nobody's.
        unsafe {
            let flags = ffi::OPEN_READWRITE | ffi::OPEN_URI;
            let code = (api.open_v2)(c_text(&uri).as_ptr(), &mut reader.db, flags, ptr::null());
            if code != ffi::OK {
                return Err(busy(code));
            }
            let sql = c"SELECT count(*) FROM sqlite_master";
            let code = (api.exec)(reader.db, sql.as_ptr(), None, ptr::null_mut(), ptr::null_mut());
            if code == ffi::OK { Ok(reader) } else { Err(busy(code)) }
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // SAFETY: ours, with no statement open; null is fine.
        unsafe { (self.api.close)(self.db) };
    }
}

/// Appends bytes in such a way that a URI means just them.
fn escape(bytes: &[u8], uri: &mut String) {
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b':' => uri.push(char::from(*byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(uri, "%{byte:02x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_meaning_in_a_uri_is_escaped() {
        let mut uri = String::new();
        escape("/a b?c#d%&=ü".as_bytes(), &mut uri);
        assert_eq!(uri, "/a%20b%3fc%23d%25%26%3d%c3%bc");
    }
}
