//! Names of files in the shape that SQLite gives them: not only a string, but one inside a block that the base VFS and
//! `sqlite3_uri_parameter` walk through.
//!
//! ```text
//! 00 00 00 00  database 00  {key 00 value 00}  00  database-journal 00  database-gcswal 00  00
//!              ^ database()                                            ^ wal()
//! ```
//!
//! `sqlite3_filename_database` walks back from any of the names to the four zeros, and the unix VFS cuts a WAL's name
//! at its last `-` to find the database whose permissions it copies. A base VFS keeps the pointer for as long as
//! the file is open: whoever opens a file under such a name keeps the block.

use std::ffi::{CStr, CString, c_char};

/// What the WAL of a managed database is called, after the database's own name.
///
/// Not `-wal`: a plain SQLite would find that one, take the pages in it for the database, and delete it.
pub(super) const WAL_SUFFIX: &[u8] = b"-gcswal";

/// What SQLite calls it.
pub(super) const SQLITE_WAL_SUFFIX: &[u8] = b"-wal";

/// A database's name with its URI parameters, and its WAL's.
pub(super) struct Filename {
    block: Box<[u8]>,
    wal_at: usize,
}

impl Filename {
    pub(super) fn new(database: &[u8], parameters: &[(Vec<u8>, Vec<u8>)]) -> Filename {
        let mut block = vec![0; 4];
        block.extend_from_slice(database);
        block.push(0);
        for (key, value) in parameters {
            block.extend_from_slice(key);
            block.push(0);
            block.extend_from_slice(value);
            block.push(0);
        }
        block.push(0);
        block.extend_from_slice(database);
        block.extend_from_slice(b"-journal\0");
        let wal_at = block.len();
        block.extend_from_slice(database);
        block.extend_from_slice(WAL_SUFFIX);
        block.extend_from_slice(&[0, 0]);
        Filename { block: block.into_boxed_slice(), wal_at }
    }

    /// The database's name; valid as long as this value.
    pub(super) fn database(&self) -> *const c_char {
        self.block[4..].as_ptr().cast()
    }

    /// The WAL's name; valid as long as this value.
    pub(super) fn wal(&self) -> *const c_char {
        self.block[self.wal_at..].as_ptr().cast()
    }
}

/// The name of the database whose WAL SQLite calls `name`.
pub(super) fn database_of_wal(name: &CStr) -> Option<&[u8]> {
    name.to_bytes().strip_suffix(SQLITE_WAL_SUFFIX)
}

/// The name on disk of the WAL of `database`, for calls that do not keep it.
pub(super) fn wal_on_disk(database: &[u8]) -> CString {
    // A name that came as a C string has no zero inside, so this cannot fail; an empty name would only miss the file.
    CString::new([database, WAL_SUFFIX].concat()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_finds_the_parameters_and_the_database_from_both_names() {
        let pair = |k: &str, v: &str| (k.as_bytes().to_vec(), v.as_bytes().to_vec());
        for parameters in [vec![], vec![pair("psow", "0"), pair("bucket", "")]] {
            let name = Filename::new(b"/tmp/a-b.db", &parameters);
            let api = super::super::api::linked();
            for from in [name.database(), name.wal()] {
                // SAFETY: the block has the shape that these routines walk; each result lies inside it.
                unsafe {
                    assert_eq!(CStr::from_ptr((api.filename_database)(from)), c"/tmp/a-b.db");
                    let psow = (api.uri_parameter)(from, c"psow".as_ptr());
                    assert_eq!(psow.is_null(), parameters.is_empty());
                    if !psow.is_null() {
                        assert_eq!(CStr::from_ptr(psow), c"0");
                    }
                    assert_eq!(api.parameters(name.database()), parameters);
                }
            }
            // SAFETY: it ends with a zero.
            assert_eq!(unsafe { CStr::from_ptr(name.wal()) }, c"/tmp/a-b.db-gcswal");
        }
    }
}
