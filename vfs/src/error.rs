//! The one error of this crate: what the caller can do about it, and a sentence that says what was tried.

use std::fmt;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting, a URL, a file name or a permission is wrong: mend it and open again.
    Configuration,
    /// The bucket could not be reached in time: try again.
    Unavailable,
    /// Somebody else may write just now: try again.
    Busy,
    /// Another writer has taken over the log: reopen the database.
    Fenced,
    /// Bytes in the bucket or on the local disk are not what their checksum or their format says.
    Corrupt,
    /// The local disk failed or is full.
    Local,
    /// The local disk has no room.
    Full,
}

/// What went wrong: a kind to act on, and a message that names what was tried, on which object or file.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// Makes an error of a kind with a sentence that says what was tried and what came of it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Puts `what: ` before the message.
    pub fn context(self, what: impl fmt::Display) -> Error {
        Error { message: format!("{what}: {}", self.message), ..self }
    }

    /// An I/O error of the local disk while doing `what`; a full disk is told apart.
    pub fn local(what: impl fmt::Display, error: &std::io::Error) -> Error {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            _ => ErrorKind::Local,
        };
        Error::new(kind, format!("{what}: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
