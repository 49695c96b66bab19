//! What is wrong with a delta's bytes, or with what a caller wanted to write as one.

use std::fmt;
use std::io;

use crate::error::{Error, ErrorKind};

/// The field of a delta that could not be read, where it begins, and why.
#[derive(Debug)]
pub struct DecodeError {
    field: &'static str,
    offset: u64,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// The bytes end before the field does.
    Truncated,
    /// The field's value breaks a rule of the format.
    Invalid(String),
    /// The reader failed; this says nothing about the bytes.
    Read(io::Error),
}

impl DecodeError {
    pub(super) fn truncated(field: &'static str, offset: u64) -> DecodeError {
        DecodeError { field, offset, why: Why::Truncated }
    }

    pub(super) fn invalid(field: &'static str, offset: u64, why: impl Into<String>) -> DecodeError {
        DecodeError { field, offset, why: Why::Invalid(why.into()) }
    }

    pub(super) fn read(field: &'static str, offset: u64, error: io::Error) -> DecodeError {
        DecodeError { field, offset, why: Why::Read(error) }
    }

    /// The name of the field that is wrong.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// Where the field begins, in bytes from the start of what was being decoded: the file, or the single
    /// page frame.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the bytes are wrong, as opposed to a reader that failed to deliver them.
    pub fn is_malformed(&self) -> bool {
        !matches!(self.why, Why::Read(_))
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: ", self.field, self.offset)?;
        match &self.why {
            Why::Truncated => f.write_str("the data ends here"),
            Why::Invalid(why) => f.write_str(why),
            Why::Read(error) => write!(f, "reading failed: {error}"),
        }
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.why {
            Why::Read(error) => Some(error),
            _ => None,
        }
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Error {
        match &error.why {
            Why::Read(cause) => {
                Error::local(format_args!("reading a delta's {} at byte {}", error.field, error.offset), cause)
            }
            _ => Error::new(ErrorKind::Corrupt, error.to_string()),
        }
    }
}

/// Why a delta was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The writer failed. What it took so far is not a delta.
    #[error("writing failed: {0}")]
    Write(#[from] io::Error),
    /// What was asked for would break a rule of the format; nothing of it was written.
    #[error("{field}: {why}")]
    Refused {
        /// The field that would be wrong.
        field: &'static str,
        /// Which rule it breaks.
        why: String,
    },
}

impl EncodeError {
    pub(super) fn refused(field: &'static str, why: impl Into<String>) -> EncodeError {
        EncodeError::Refused { field, why: why.into() }
    }

    /// The same finding about a value that was about to be written.
    pub(super) fn from_rule(error: DecodeError) -> EncodeError {
        let why = match error.why {
            Why::Invalid(why) => why,
            other => format!("{other:?}"),
        };
        EncodeError::Refused { field: error.field, why }
    }
}

impl From<EncodeError> for Error {
    fn from(error: EncodeError) -> Error {
        match &error {
            EncodeError::Write(cause) => Error::local("writing a delta", cause),
            EncodeError::Refused { .. } => Error::new(ErrorKind::Corrupt, format!("encoding a delta: {error}")),
        }
    }
}

/// Why deltas could not be merged into one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// One of the inputs could not be read.
    #[error("input {index} of the merge: {source}")]
    Input {
        /// Its position among the inputs, from 0.
        index: usize,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The output could not be written, or the inputs together do not make what its header promises.
    #[error("output of the merge: {0}")]
    Output(#[from] EncodeError),
}

impl From<MergeError> for Error {
    fn from(error: MergeError) -> Error {
        match error {
            MergeError::Input { index, source } => {
                Error::from(source).context(format_args!("input {index} of the merge"))
            }
            MergeError::Output(source) => Error::from(source).context("output of the merge"),
        }
    }
}
