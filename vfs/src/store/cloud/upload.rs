//! What an upload sends: bytes in memory, or a file piece by piece, as the official client asks for them.

use std::io;

use bytes::Bytes;
use google_cloud_storage::streaming_source::{Seek, SizeHint, StreamingSource};

use crate::store::FileBody;

/// The content of one attempt.
pub(super) struct Body {
    content: Content,
    crc32c: u32,
    sent: u64,
}

enum Content {
    Memory(Bytes),
    File(FileBody),
}

impl Body {
    pub(super) fn of_bytes(bytes: &Bytes) -> Body {
        Body { crc32c: crc32c::crc32c(bytes), content: Content::Memory(bytes.clone()), sent: 0 }
    }

    pub(super) fn of_file(file: &FileBody) -> Body {
        Body { crc32c: file.crc32c(), content: Content::File(file.clone()), sent: 0 }
    }

    pub(super) fn size(&self) -> u64 {
        match &self.content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(file) => file.size(),
        }
    }

    pub(super) fn crc32c(&self) -> u32 {
        self.crc32c
    }
}

impl StreamingSource for Body {
    type Error = io::Error;

    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        if self.sent >= self.size() {
            return None;
        }
        let piece = match &self.content {
            Content::Memory(bytes) => Ok(bytes.slice(self.sent as usize..)),
            Content::File(file) => {
                let (file, at) = (file.clone(), self.sent);
                // A disk that is slow must not stop the requests of others.
                let read = tokio::task::spawn_blocking(move || file.piece(at));
                read.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
            }
        };
        if let Ok(piece) = &piece {
            self.sent += piece.len() as u64;
        }
        Some(piece)
    }

    async fn size_hint(&self) -> Result<SizeHint, io::Error> {
        Ok(SizeHint::with_exact(self.size()))
    }
}

impl Seek for Body {
    type Error = io::Error;

    async fn seek(&mut self, offset: u64) -> Result<(), io::Error> {
        self.sent = offset;
        Ok(())
    }
}
