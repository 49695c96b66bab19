//! The header of the wal-index: what is committed, as SQLite itself publishes it. Pure.
//!
//! Two copies of 48 bytes, native byte order, then the checkpoint information (`src/wal.c`, `WalIndexHdr`):
//!
//! | offset | field |
//! |---|---|
//! | 0 | version, 3007000 |
//! | 8 | change counter |
//! | 12 | is-initialised flag (1 byte) |
//! | 14 | page size (2 bytes; 1 stands for 65536) |
//! | 16 | mxFrame: frames that are committed |
//! | 20 | database size in pages |
//! | 24 | running checksum of the last committed frame |
//! | 32 | salts, as in the WAL's header |
//! | 40 | checksum of the 40 bytes before |
//! | 96 | frames that are backfilled into the database file |
//!
//! It is written at a commit, a restart of the WAL, and a recovery; so mxFrame is 0 or a commit boundary.

use super::wal::{ByteOrder, Checksum};
use crate::page::{PageCount, PageSize};

/// The committed state of the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Committed {
    /// Salts of the generation.
    pub(crate) salts: [u8; 8],
    /// Committed frames; zero right after a reset.
    pub(crate) frames: u32,
    /// Size of the database; meaningless while `frames` is zero.
    pub(crate) pages: PageCount,
    /// Page size.
    pub(crate) page_size: PageSize,
}

const HEADER: usize = 48;
const VERSION: u32 = 3_007_000;

/// Whether neither copy was ever initialised: the WAL, if there is one, is yet to be recovered. (SQLite leaves the first
/// three bytes when it empties the file.)
pub(crate) fn is_empty(bytes: &[u8; 136]) -> bool {
    bytes[3..].iter().all(|byte| *byte == 0)
}

/// Reads the header; `None` when it is not initialised, in the middle of an update, or damaged.
pub(crate) fn parse(bytes: &[u8; 136]) -> Option<Committed> {
    let (first, second) = (&bytes[..HEADER], &bytes[HEADER..2 * HEADER]);
    let u32_at = |at: usize| u32::from_ne_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
    if first != second || first[12] == 0 || u32_at(0) != VERSION {
        return None;
    }
    let mut checksum = Checksum::default();
    checksum.update(ByteOrder::NATIVE, &first[..40]);
    if checksum != Checksum([u32_at(40), u32_at(44)]) {
        return None;
    }
    let size = u16::from_ne_bytes([first[14], first[15]]);
    let page_size = PageSize::new(if size == 1 { 65536 } else { size.into() })?;
    let mut salts = [0; 8];
    salts.copy_from_slice(&first[32..40]);
    Some(Committed { salts, frames: u32_at(16), pages: PageCount(u32_at(20)), page_size })
}
