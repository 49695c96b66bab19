//! The header of the wal-index: what is committed, as SQLite itself publishes it.
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

use std::time::{Duration, Instant};

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

/// What the header says about the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// This is committed.
    Committed(Committed),
    /// It is whole, and of a WAL without a frame.
    Nothing,
    /// Never initialised, or left half-written: what is committed is known once the WAL was recovered.
    Unrecovered,
    /// There is no wal-index to look at.
    Hidden,
}

/// So often a half-written header is looked at again at once, and then after pauses.
const LOOKS: u32 = 1000;
const PAUSE: Duration = Duration::from_micros(50);

/// Looks at the header that `read` copies. One in the middle of an update is whole again a moment later, or later than that where
/// its writer is not given the processor: it is waited for, `patience` at the most, because to take it for nothing would
/// acknowledge commits that are nowhere but here.
pub(crate) fn look(read: impl Fn() -> Option<[u8; 136]>, patience: Duration) -> Seen {
    let (mut looks, mut torn_since) = (0, None);
    loop {
        let Some(bytes) = read() else { return Seen::Hidden };
        if let Some(committed) = parse(&bytes) {
            return Seen::Committed(committed);
        }
        if is_empty(&bytes) {
            return Seen::Unrecovered;
        }
        if bytes[..HEADER] == bytes[HEADER..2 * HEADER] {
            return Seen::Nothing;
        }
        if torn_since.get_or_insert_with(Instant::now).elapsed() > patience {
            return Seen::Unrecovered;
        }
        looks += 1;
        if looks < LOOKS { std::hint::spin_loop() } else { std::thread::sleep(PAUSE) }
    }
}

/// Whether neither copy was ever initialised: the WAL, if there is one, is yet to be recovered. (SQLite leaves the first
/// three bytes when it empties the file.)
fn is_empty(bytes: &[u8; 136]) -> bool {
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    /// A header, twice, of so many committed frames.
    fn header(frames: u32) -> [u8; 136] {
        let mut bytes = [0; 136];
        bytes[..4].copy_from_slice(&VERSION.to_ne_bytes());
        bytes[12] = 1;
        bytes[14..16].copy_from_slice(&4096u16.to_ne_bytes());
        bytes[16..20].copy_from_slice(&frames.to_ne_bytes());
        let mut checksum = Checksum::default();
        checksum.update(ByteOrder::NATIVE, &bytes[..40]);
        let Checksum([first, second]) = checksum;
        bytes[40..44].copy_from_slice(&first.to_ne_bytes());
        bytes[44..48].copy_from_slice(&second.to_ne_bytes());
        bytes.copy_within(..HEADER, HEADER);
        bytes
    }

    /// In the middle of an update from one to the other: SQLite writes the second copy first.
    fn torn(before: u32, after: u32) -> [u8; 136] {
        let mut bytes = header(before);
        bytes[HEADER..].copy_from_slice(&header(after)[HEADER..]);
        bytes
    }

    fn frames(seen: Seen) -> Option<u32> {
        if let Seen::Committed(committed) = seen { Some(committed.frames) } else { None }
    }

    #[test]
    fn a_header_in_the_middle_of_an_update_is_waited_for() {
        let looks = Cell::new(0);
        let read = || {
            looks.set(looks.get() + 1);
            Some(if looks.get() < LOOKS + 5 { torn(3, 4) } else { header(4) })
        };
        assert_eq!(frames(look(read, LONG)), Some(4));
        assert_eq!(frames(look(|| Some(header(3)), LONG)), Some(3));
    }

    #[test]
    fn a_header_that_stays_torn_or_was_never_written_is_left_to_recovery() {
        assert_eq!(look(|| Some(torn(3, 4)), Duration::from_millis(1)), Seen::Unrecovered);
        assert_eq!(look(|| Some([0; 136]), LONG), Seen::Unrecovered);
        assert_eq!(look(|| None, LONG), Seen::Hidden);
    }

    #[test]
    fn a_whole_header_of_a_wal_without_a_frame_is_not_waited_for() {
        // SQLite knows no page size then.
        let mut bytes = [0; 136];
        bytes[..4].copy_from_slice(&VERSION.to_ne_bytes());
        bytes[12] = 1;
        bytes.copy_within(..HEADER, HEADER);
        assert_eq!(look(|| Some(bytes), LONG), Seen::Nothing);
    }
}
