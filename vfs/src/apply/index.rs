//! The wal-index as a writer of the WAL changes it: the hash tables that lead from pages to frames, the header, the restart.
//!
//! The layout is that of SQLite's `src/wal.c`; everything is in the machine's byte order. Regions are 32 KiB each:
//!
//! | region | page numbers of frames (u32) | slots (u16) |
//! |---|---|---|
//! | 0 | words 34 to 4095: frames 1 to 4062; before them the header | 8192 |
//! | n | words 0 to 4095: frames 4063 + 4096 (n-1) and on | 8192 |
//!
//! A page's slot is found by its hash and linear probing; it holds the number of the frame within the region, from 1; 0 is free.
//!
//! | word of region 0 | field |
//! |---|---|
//! | 0 - 11, 12 - 23 | the header, twice (`capture/index.rs` has its fields) |
//! | 24 | nBackfill: frames that are in the database file |
//! | 25 - 29 | read marks |
//! | 30, 31 | bytes that stand for locks; never touched |
//! | 32 | nBackfillAttempted |
//!
//! Readers look at all this while it is changed. They trust entries up to the mxFrame of their own header only, so what is
//! written for frames beyond may be unfinished; the order header copy 2, barrier, copy 1 makes new frames visible at once.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use crate::capture::wal::{ByteOrder, Checksum, WalHeader};
use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageCount, PageSize, Pgno};

/// Words in the first half of a region.
pub(crate) const WORDS: usize = 4096;
/// Slots in the second half.
pub(crate) const SLOTS: usize = 8192;

const HEADER_WORDS: usize = 12;
pub(super) const BACKFILLED: usize = 24;
pub(super) const READ_MARKS: std::ops::Range<usize> = 25..30;
pub(super) const BACKFILL_ATTEMPTED: usize = 32;
const FIRST_PAGE_WORD: usize = 34;
const FRAMES_IN_REGION_0: u32 = (WORDS - FIRST_PAGE_WORD) as u32;
pub(super) const READ_MARK_UNUSED: u32 = u32::MAX;
const VERSION: u32 = 3_007_000;

/// One region of the wal-index, in shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Region<'a> {
    /// Its first half.
    pub(crate) words: &'a [AtomicU32; WORDS],
    /// Its second half.
    pub(crate) slots: &'a [AtomicU16; SLOTS],
}

/// The wal-index of a live database, for whoever holds the WAL's WRITE lock. Dropping it lets go of the lock.
pub(crate) trait IndexWriter {
    /// A region, made if there is none of that number yet.
    fn region(&self, number: u32) -> Result<Region<'_>>;

    /// Orders what was written before it against what is written after it, for every process.
    fn barrier(&self);

    /// Takes CKPT shared and READ1 to READ4 exclusive if that needs no waiting: then no reader uses the WAL and no
    /// checkpoint runs. CKPT, because SQLite before 3.51.3 loses frames when a checkpoint meets a restart.
    fn try_lock_readers(&self) -> Result<bool>;

    /// Lets go of what `try_lock_readers` took.
    fn unlock_readers(&self);

    /// Takes CKPT exclusive if that needs no waiting: then no checkpoint runs, and nobody restarts the WAL.
    fn try_lock_checkpoint(&self) -> Result<bool>;

    /// Lets go of what `try_lock_checkpoint` took.
    fn unlock_checkpoint(&self);

    /// Takes one of READ0 to READ4 exclusive if that needs no waiting: then no reader goes by that mark.
    fn try_lock_reader(&self, number: usize) -> Result<bool>;

    /// Lets go of what `try_lock_reader` took.
    fn unlock_reader(&self, number: usize);
}

/// The header, as it stands in the wal-index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IndexHeader([u32; HEADER_WORDS]);

impl IndexHeader {
    /// Reads it; `None` when it is not initialised or damaged, so that SQLite would recover it from the WAL.
    pub(crate) fn read(first: Region<'_>) -> Option<IndexHeader> {
        let copy = |number: usize| {
            let words = &first.words[number * HEADER_WORDS..][..HEADER_WORDS];
            IndexHeader(std::array::from_fn(|i| words[i].load(Ordering::Acquire)))
        };
        let header = copy(0);
        let [is_init, ..] = header.flags();
        let whole = header == copy(1) && is_init != 0 && header.0[0] == VERSION && header.sum() == header.0[10..];
        whole.then_some(header)
    }

    /// Makes it visible.
    fn publish(&self, index: &dyn IndexWriter) -> Result<()> {
        let first = index.region(0)?;
        let store = |number: usize| {
            for (word, value) in first.words[number * HEADER_WORDS..].iter().zip(self.0) {
                word.store(value, Ordering::Release);
            }
        };
        store(1);
        index.barrier();
        super::crash_point(11);
        store(0);
        Ok(())
    }

    /// Committed frames.
    pub(crate) fn frames(&self) -> u32 {
        self.0[4]
    }

    /// Database size; zero if nothing was ever committed to this WAL.
    pub(crate) fn pages(&self) -> PageCount {
        PageCount(self.0[5])
    }

    /// Page size; `None` if nothing was ever committed to this WAL.
    pub(crate) fn page_size(&self) -> Option<PageSize> {
        let [.., low, high] = self.flags();
        match u16::from_ne_bytes([low, high]) {
            1 => PageSize::new(65536),
            size => PageSize::new(size.into()),
        }
    }

    /// Running checksum of the last committed frame.
    pub(crate) fn checksum(&self) -> Checksum {
        Checksum([self.0[6], self.0[7]])
    }

    /// Byte order of the WAL's checksums.
    pub(crate) fn order(&self) -> ByteOrder {
        let [_, big_endian, ..] = self.flags();
        if big_endian == 0 { ByteOrder::Little } else { ByteOrder::Big }
    }

    /// Salts, as in the WAL's header.
    pub(crate) fn salts(&self) -> [u8; 8] {
        let (one, two) = (self.0[8].to_ne_bytes(), self.0[9].to_ne_bytes());
        std::array::from_fn(|i| if i < 4 { one[i] } else { two[i - 4] })
    }

    /// With more frames committed.
    pub(crate) fn committed(
        mut self,
        wal: &WalHeader,
        frames: u32,
        checksum: Checksum,
        pages: PageCount,
    ) -> IndexHeader {
        let bytes = wal.page_size.bytes();
        let [low, high] = ((bytes & 0xff00 | bytes >> 16) as u16).to_ne_bytes();
        self.0[0] = VERSION;
        self.0[2] = self.0[2].wrapping_add(1);
        self.0[3] = u32::from_ne_bytes([1, (wal.order == ByteOrder::Big).into(), low, high]);
        self.0[4] = frames;
        self.0[5] = pages.0;
        [self.0[6], self.0[7]] = checksum.0;
        self.set_salts(wal.salts);
        self.summed()
    }

    fn set_salts(&mut self, salts: [u8; 8]) {
        let [a, b, c, d, e, f, g, h] = salts;
        self.0[8] = u32::from_ne_bytes([a, b, c, d]);
        self.0[9] = u32::from_ne_bytes([e, f, g, h]);
    }

    /// The bytes at offset 12: is initialised, big-endian checksums, page size.
    fn flags(&self) -> [u8; 4] {
        self.0[3].to_ne_bytes()
    }

    fn sum(&self) -> [u32; 2] {
        let mut bytes = [0; 40];
        for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            *to = word.to_ne_bytes();
        }
        let mut sum = Checksum::default();
        sum.update(ByteOrder::NATIVE, &bytes);
        sum.0
    }

    fn summed(mut self) -> IndexHeader {
        let [one, two] = self.sum();
        self.0[10] = one;
        self.0[11] = two;
        self
    }
}

/// How many frames are in the database file.
pub(crate) fn backfilled(first: Region<'_>) -> u32 {
    first.words[BACKFILLED].load(Ordering::Acquire)
}

/// Where a frame's entry is: region and number within it, from 1.
fn place(frame: u32) -> (u32, u32) {
    match frame.checked_sub(FRAMES_IN_REGION_0 + 1) {
        None => (0, frame),
        Some(behind) => (behind / WORDS as u32 + 1, behind % WORDS as u32 + 1),
    }
}

/// Where the page numbers of a region begin.
fn first_word(region: u32) -> usize {
    if region == 0 { FIRST_PAGE_WORD } else { 0 }
}

/// Enters a frame behind the committed ones; it does not count before [`publish_commit`].
pub(crate) fn append(index: &dyn IndexWriter, committed: u32, frame: u32, pgno: Pgno) -> Result<()> {
    let (number, entry) = place(frame);
    let region = index.region(number)?;
    let first = first_word(number);
    let word = first + entry as usize - 1;
    if entry == 1 {
        clear(&region.words[first..]);
        region.slots.iter().for_each(|slot| slot.store(0, Ordering::Release));
    } else if region.words[word].load(Ordering::Acquire) != 0 {
        // What a writer left who died, or rolled back, after he had entered frames.
        forget_beyond(index, committed)?;
    }
    let mut slot = (pgno.0.wrapping_mul(383)) as usize % SLOTS;
    let mut others = entry;
    while region.slots[slot].load(Ordering::Acquire) != 0 {
        if others == 0 {
            return Err(Error::new(ErrorKind::Corrupt, "the wal-index: a hash table has more entries than frames"));
        }
        others -= 1;
        slot = (slot + 1) % SLOTS;
    }
    region.words[word].store(pgno.0, Ordering::Release);
    region.slots[slot].store(entry as u16, Ordering::Release);
    Ok(())
}

/// The page that a committed frame holds.
pub(super) fn page_of(index: &dyn IndexWriter, frame: u32) -> Result<Pgno> {
    let (number, entry) = place(frame);
    let word = first_word(number) + entry as usize - 1;
    Ok(Pgno(index.region(number)?.words[word].load(Ordering::Acquire)))
}

/// Removes the entries beyond the committed frames from the region of the last of those; later regions are emptied
/// when their first entry is made.
fn forget_beyond(index: &dyn IndexWriter, committed: u32) -> Result<()> {
    if committed == 0 {
        return Ok(());
    }
    let (number, last) = place(committed);
    let region = index.region(number)?;
    for slot in region.slots {
        if u32::from(slot.load(Ordering::Acquire)) > last {
            slot.store(0, Ordering::Release);
        }
    }
    clear(&region.words[first_word(number) + last as usize..]);
    Ok(())
}

fn clear(words: &[AtomicU32]) {
    words.iter().for_each(|word| word.store(0, Ordering::Release));
}

/// Makes the frames that were entered a commit: every transaction that begins from now on sees it.
pub(crate) fn publish_commit(index: &dyn IndexWriter, header: &IndexHeader) -> Result<()> {
    // The entries before the header, whatever the processor.
    index.barrier();
    header.publish(index)
}

/// Begins a new generation of the WAL: the next frame is the first. To be called with the locks of
/// [`IndexWriter::try_lock_readers`] held and all frames backfilled.
pub(crate) fn restart(index: &dyn IndexWriter, header: &IndexHeader, random: u32) -> Result<IndexHeader> {
    let [a, b, c, d, ..] = header.salts();
    let one = u32::from_be_bytes([a, b, c, d]).wrapping_add(1).to_be_bytes();
    let two = random.to_be_bytes();
    let mut fresh = *header;
    fresh.0[4] = 0;
    fresh.set_salts(std::array::from_fn(|i| if i < 4 { one[i] } else { two[i - 4] }));
    let fresh = fresh.summed();
    fresh.publish(index)?;
    let first = index.region(0)?;
    first.words[BACKFILLED].store(0, Ordering::Release);
    first.words[BACKFILL_ATTEMPTED].store(0, Ordering::Release);
    for (number, word) in READ_MARKS.enumerate().skip(1) {
        first.words[word].store(if number == 1 { 0 } else { READ_MARK_UNUSED }, Ordering::Release);
    }
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_lie_where_sqlite_looks_for_them() {
        assert_eq!([1, 4062].map(place), [(0, 1), (0, 4062)]);
        assert_eq!([4063, 8158].map(place), [(1, 1), (1, 4096)]);
        assert_eq!([8159, 12254, 12255].map(place), [(2, 1), (2, 4096), (3, 1)]);
    }

    #[test]
    fn a_header_says_what_was_committed_for_every_page_size() {
        for bytes in [512, 4096, 32768, 65536] {
            let page_size = PageSize::new(bytes).expect("a legal size");
            let salts = [1, 2, 3, 4, 5, 6, 7, 8];
            let wal = WalHeader { page_size, salts, order: ByteOrder::Big, checksum: Checksum::default() };
            let header = IndexHeader([0; HEADER_WORDS]).committed(&wal, 9, Checksum([10, 11]), PageCount(12));
            assert_eq!((header.page_size(), header.salts(), header.order()), (Some(page_size), salts, ByteOrder::Big));
            assert_eq!((header.frames(), header.checksum(), header.pages()), (9, Checksum([10, 11]), PageCount(12)));
        }
    }
}
