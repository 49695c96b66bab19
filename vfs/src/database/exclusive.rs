//! The committed end of the WAL as a connection with locking_mode=EXCLUSIVE writes it.
//!
//! Such a connection keeps its wal-index to itself. It is alone, so the frames that it writes, with the commits that
//! SQLite confirms, tell the same: a commit frame counts once COMMIT_PHASETWO follows.

use crate::capture::index::Committed;
use crate::capture::wal::{FRAME_HEADER, FrameHeader, HEADER};
use crate::page::PageSize;

/// What an exclusive connection has written.
#[derive(Debug, Default)]
pub(crate) struct ExclusiveWal {
    written: Option<Committed>,
    committed: Option<Committed>,
}

impl ExclusiveWal {
    /// Notes a write into the WAL.
    pub(crate) fn wrote(&mut self, offset: u64, bytes: &[u8], page_size: PageSize) {
        if offset == 0 {
            *self = ExclusiveWal::default();
            return;
        }
        if let Some(commit) = commit_in(offset, bytes, page_size) {
            self.written = Some(commit);
        }
    }

    /// Notes that the commit whose frames were written is done.
    pub(crate) fn committed(&mut self) {
        self.committed = self.written;
    }

    /// The committed end; `None` before the first commit.
    pub(crate) fn end(&self) -> Option<Committed> {
        self.committed
    }
}

/// The commit that a write into the WAL completes, if it writes a commit frame's header.
pub(super) fn commit_in(offset: u64, bytes: &[u8], page_size: PageSize) -> Option<Committed> {
    let frame_bytes = FRAME_HEADER as u64 + u64::from(page_size.bytes());
    let at = offset.checked_sub(HEADER as u64)?;
    if !at.is_multiple_of(frame_bytes) {
        return None;
    }
    let header = FrameHeader::parse(bytes)?;
    let frames = (at / frame_bytes) as u32 + 1;
    header.commit.map(|pages| Committed { salts: header.salts, frames, pages, page_size })
}
