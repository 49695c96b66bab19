//! A reader that knows how far it has come, so that every error can say where.

use std::io::{self, Read};

use super::error::DecodeError;

/// A reader and the number of bytes taken from it.
pub(super) struct Input<R> {
    reader: R,
    offset: u64,
}

impl<R: Read> Input<R> {
    pub(super) fn new(reader: R) -> Input<R> {
        Input { reader, offset: 0 }
    }

    /// Bytes taken so far: where the next field begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Fills `buf`, which is the field of this name.
    pub(super) fn fill(&mut self, field: &'static str, buf: &mut [u8]) -> Result<(), DecodeError> {
        self.reader.read_exact(buf).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => DecodeError::truncated(field, self.offset),
            _ => DecodeError::read(field, self.offset, error),
        })?;
        self.offset += buf.len() as u64;
        Ok(())
    }

    /// Takes a field of known size.
    pub(super) fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut buf = [0; N];
        self.fill(field, &mut buf)?;
        Ok(buf)
    }

    /// Checks that nothing follows.
    pub(super) fn end(&mut self) -> Result<(), DecodeError> {
        let field = "end of the file";
        match self.reader.read_exact(&mut [0]) {
            Ok(()) => Err(DecodeError::invalid(field, self.offset, "more bytes follow the trailer")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(DecodeError::read(field, self.offset, error)),
        }
    }
}
