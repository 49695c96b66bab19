//! Which pages the cache file holds: a bit per page and a stamp per unit, in `app.db-gcs/presence`, shared by processes.
//!
//! A unit is 64 KiB of the file: 1 to 128 pages, the grain of eviction. Reading needs no lock; every change is made by
//! a method of [`Unit`] or [`Tail`], which exist only while the unit's lock is held. The rules that make it right, each
//! as one step under the lock:
//!
//! - **fill**: {the stamp's clears are as before the place of the page was looked up, its bit is clear} write the page, then set the bit;
//! - **clear** (eviction, distrust, truncation): clear the bit, count the clear, then punch the hole or truncate;
//! - **checkpoint**: write the page, count the write, set the bit.
//!
//! Data before bit, clear before punch: so a page whose bit is set is there, whoever is killed at whatever point. What the
//! kernel took in survives a killed process; after a crash of the machine the whole cache is distrusted.
//!
//! A reader reads the clears of the unit's stamp, the bits, the bytes, and the clears again: where they have changed, the
//! bytes may be those of a hole, and it starts over. A write by a checkpoint disturbs no reader, since SQLite
//! writes no page that a reader takes from the main file. A fill need not look at the writes either: a page that was
//! written since has its bit set, or was cleared after.
//!
//! Unit record: word 0 is the stamp (upper half: clears, lower half: writes), word 1 says whether it was used since the hand of
//! eviction came by (bit 0) and in which epoch a checkpoint last wrote to it (the rest; see `room.rs`), then one or two words of bits.
//! Header words: 2 = page size, 3 = size of the file in pages, 4 = pages present, 5, 6 = device and inode of the main file,
//! 7 = the hand, 8 = the epoch in force, 9 = the last epoch whose writes are clean, 10 = the last epoch in which something was written,
//! 11 = whether a process maps the main file, since all of them opened it: nothing is evicted then.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::cache::unit_lock::{UnitLock, UnitLocks};
use crate::error::Result;
use crate::page::{PageCount, PageSize, Pgno};
use crate::words::{DATA, NotUsable, Words};

/// "gcspre" and the format's version.
const MAGIC: u64 = u64::from_be_bytes(*b"gcspre\x00\x02");
const PAGE_SIZE: u64 = 2;
const PAGES: u64 = 3;
const PRESENT: u64 = 4;
const DEVICE: u64 = 5;
const INODE: u64 = 6;
const HAND: u64 = 7;
const EPOCH: u64 = 8;
const CLEAN: u64 = 9;
const WRITTEN: u64 = 10;
const MAPPED: u64 = 11;

/// Words of a record before its bits.
const BITS: u64 = 2;
const USED: u64 = 1;

const FILE: &str = "presence";
const LOCK_FILE: &str = "units.lock";

/// The grain of eviction in bytes: also the largest page.
pub(crate) const UNIT_BYTES: u64 = 64 * 1024;

const CLEAR: u64 = 1 << 32;
const WRITE: u64 = 1;

/// What happened to a unit so far, as two counts that wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp(u64);

impl Stamp {
    /// How often pages of it were cleared.
    pub(crate) fn clears(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The bits and stamps of one cache file.
#[derive(Debug)]
pub(crate) struct Presence {
    words: Words,
    locks: UnitLocks,
    pages_per_unit: u32,
    record: u64,
}

impl Presence {
    /// Makes a file with no page present, under a temporary name until [`Presence::publish`].
    /// `identity` is the device and inode of the main file.
    pub(crate) fn create(dir: &Path, page_size: PageSize, pages: PageCount, identity: (u64, u64)) -> Result<Presence> {
        let words = Words::create(&dir.join(FILE), MAGIC, DATA)?;
        words.header(PAGE_SIZE).store(page_size.bytes().into(), Ordering::Release);
        words.header(DEVICE).store(identity.0, Ordering::Release);
        words.header(INODE).store(identity.1, Ordering::Release);
        words.header(EPOCH).store(1, Ordering::Release);
        let presence = Presence::of(words, UnitLocks::open(&dir.join(LOCK_FILE))?, page_size);
        presence.raise_pages(pages)?;
        Ok(presence)
    }

    pub(crate) fn publish(&self) -> Result<()> {
        self.words.publish()
    }

    /// Takes the file's name away, so that nobody takes a cache over that is about to be emptied.
    pub(crate) fn disown(dir: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(dir.join(FILE)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    pub(crate) fn open(dir: &Path, page_size: PageSize, identity: (u64, u64)) -> Result<Presence, NotUsable> {
        let words = Words::open(&dir.join(FILE), MAGIC)?;
        let header = |index| words.header(index).load(Ordering::Acquire);
        if header(PAGE_SIZE) != u64::from(page_size.bytes()) {
            let why = format!("the cache has pages of {} bytes, the page map {page_size}", header(PAGE_SIZE));
            return Err(NotUsable(why));
        }
        if (header(DEVICE), header(INODE)) != identity {
            return Err(NotUsable("the main file is not the one that the cache was made for".into()));
        }
        let locks = UnitLocks::open(&dir.join(LOCK_FILE)).map_err(|e| NotUsable(e.to_string()))?;
        let presence = Presence::of(words, locks, page_size);
        if presence.units(presence.pages()) * presence.record + DATA > presence.words.len() {
            return Err(NotUsable(format!("the presence file has no room for {} pages", presence.pages().0)));
        }
        Ok(presence)
    }

    fn of(words: Words, locks: UnitLocks, page_size: PageSize) -> Presence {
        let pages_per_unit = (UNIT_BYTES / u64::from(page_size.bytes())) as u32;
        Presence { words, locks, pages_per_unit, record: BITS + u64::from(pages_per_unit.div_ceil(64)) }
    }

    /// The size of the file in pages: never more than it really has.
    pub(crate) fn pages(&self) -> PageCount {
        PageCount(self.words.header(PAGES).load(Ordering::Acquire) as u32)
    }

    /// Makes room for a file of at least so many pages; [`Presence::pages`] is left as it is.
    pub(crate) fn reserve(&self, pages: PageCount) -> Result<()> {
        self.words.grow(DATA + self.units(pages) * self.record)
    }

    /// The file has at least so many pages now.
    pub(crate) fn raise_pages(&self, pages: PageCount) -> Result<()> {
        self.reserve(pages)?;
        self.words.header(PAGES).fetch_max(pages.0.into(), Ordering::AcqRel);
        Ok(())
    }

    /// How many pages are present.
    pub(crate) fn present(&self) -> u32 {
        self.words.header(PRESENT).load(Ordering::Acquire) as u32
    }

    /// Makes the bits survive a power loss.
    pub(crate) fn sync(&self) -> Result<()> {
        self.words.sync()
    }

    /// Counts the pages present anew: a process that died between a bit and the count left it wrong. Only while nobody
    /// else changes it.
    pub(crate) fn recount(&self) {
        let units = 0..self.units(self.pages());
        let bits = units.flat_map(|unit| (BITS..self.record).map(move |word| (unit, word)));
        let ones =
            bits.filter_map(|(unit, word)| self.word(unit, word)).map(|w| w.load(Ordering::Relaxed).count_ones());
        self.words.header(PRESENT).store(ones.map(u64::from).sum(), Ordering::Release);
    }

    /// The unit that a page lies in.
    pub(crate) fn unit_of(&self, pgno: Pgno) -> u64 {
        u64::from((pgno.0 - 1) / self.pages_per_unit)
    }

    fn units(&self, pages: PageCount) -> u64 {
        u64::from(pages.0.div_ceil(self.pages_per_unit))
    }

    fn word(&self, unit: u64, index: u64) -> Option<&AtomicU64> {
        self.words.word(DATA + unit * self.record + index)
    }

    fn bit(&self, pgno: Pgno) -> Option<(&AtomicU64, u64)> {
        let within = (pgno.0 - 1) % self.pages_per_unit;
        Some((self.word(self.unit_of(pgno), BITS + u64::from(within / 64))?, 1 << (within % 64)))
    }

    /// Whether a page is in the file.
    pub(crate) fn has(&self, pgno: Pgno) -> bool {
        self.bit(pgno).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Notes that a page was read.
    pub(crate) fn use_unit(&self, unit: u64) {
        if let Some(word) = self.word(unit, 1)
            && word.load(Ordering::Relaxed) & USED == 0
        {
            word.fetch_or(USED, Ordering::Relaxed);
        }
    }

    /// How many units the file has now.
    pub(crate) fn units_now(&self) -> u64 {
        self.units(self.pages())
    }

    /// Moves the hand on by one unit of `units` and returns the one it stood at.
    pub(crate) fn next_under_hand(&self, units: u64) -> u64 {
        self.words.header(HAND).fetch_add(1, Ordering::Relaxed) % units.max(1)
    }

    /// Whether a unit has pages, is clean, and was not used since the hand last came by; the hand has now.
    pub(crate) fn may_evict(&self, unit: u64) -> bool {
        let bits = (BITS..self.record).filter_map(|index| self.word(unit, index));
        if bits.map(|word| word.load(Ordering::Relaxed)).all(|bits| bits == 0) || !self.is_clean(unit) {
            return false;
        }
        self.word(unit, 1).is_some_and(|word| word.fetch_and(!USED, Ordering::Relaxed) & USED == 0)
    }

    /// Whether the map gives back what a unit holds. Under the unit's lock it stays so.
    pub(crate) fn is_clean(&self, unit: u64) -> bool {
        let written = self.word(unit, 1).map_or(u64::MAX, |word| word.load(Ordering::SeqCst) >> 1);
        written <= self.words.header(CLEAN).load(Ordering::SeqCst)
    }

    /// Ends the epoch and returns it: what a checkpoint writes from here on is of a later one.
    pub(crate) fn end_epoch(&self) -> u64 {
        self.words.header(EPOCH).fetch_add(1, Ordering::SeqCst)
    }

    /// What was written up to and in this epoch is clean.
    pub(crate) fn set_clean(&self, epoch: u64) {
        self.words.header(CLEAN).fetch_max(epoch, Ordering::SeqCst);
    }

    /// Whether anything was written that is not clean.
    pub(crate) fn has_unclean(&self) -> bool {
        self.words.header(WRITTEN).load(Ordering::SeqCst) > self.words.header(CLEAN).load(Ordering::SeqCst)
    }

    /// Whether these pages are in the file, and stay there for as long as any process has it open: nothing is evicted any more.
    pub(crate) fn keep_mapped(&self, first: Pgno, last: Pgno) -> bool {
        let mapped = self.words.header(MAPPED);
        if mapped.load(Ordering::Relaxed) == 0 {
            mapped.store(1, Ordering::SeqCst);
        }
        // Pairs with the fence of an eviction: it sees the word, or this sees the bits that it cleared.
        fence(Ordering::SeqCst);
        (first.0..=last.0).all(|pgno| self.has(Pgno(pgno)))
    }

    /// Nobody has the file open but this caller, who maps nothing.
    pub(crate) fn nothing_is_mapped(&self) {
        self.words.header(MAPPED).store(0, Ordering::SeqCst);
    }

    /// A checkpoint is about to write into a unit; under its lock, before the write.
    fn stamp_epoch(&self, unit: u64) {
        let epoch = self.words.header(EPOCH).load(Ordering::SeqCst);
        self.words.header(WRITTEN).fetch_max(epoch, Ordering::SeqCst);
        if let Some(word) = self.word(unit, 1) {
            word.store(epoch << 1 | USED, Ordering::SeqCst);
        }
    }

    /// The stamp of a unit. What this thread read before stays before it, what it reads later stays behind it: a reader that
    /// saw the bytes of a hole sees the clear that came before the hole.
    pub(crate) fn stamp(&self, unit: u64) -> Stamp {
        fence(Ordering::Acquire);
        Stamp(self.word(unit, 0).map_or(0, |word| word.load(Ordering::Acquire)))
    }

    /// Waits for a unit's lock.
    pub(crate) fn lock(&self, unit: u64) -> Result<Unit<'_>> {
        Ok(Unit { presence: self, unit, _lock: self.locks.unit(unit)? })
    }

    /// Waits for the locks of the unit that a page lies in and of all behind it.
    pub(crate) fn lock_from(&self, pgno: Pgno) -> Result<Tail<'_>> {
        let first = self.unit_of(pgno);
        Ok(Tail { presence: self, first: pgno, _lock: self.locks.from(first)? })
    }

    fn add_present(&self, more: u32, fewer: u32) {
        let count = self.words.header(PRESENT);
        let change = |n: u64| Some((n + u64::from(more)).saturating_sub(u64::from(fewer)));
        let _ = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }

    fn set_bit(&self, pgno: Pgno) {
        if let Some((word, bit)) = self.bit(pgno)
            && word.fetch_or(bit, Ordering::SeqCst) & bit == 0
        {
            self.add_present(1, 0);
        }
    }

    fn clear_bits(&self, unit: u64, index: u64, bits: u64) -> u32 {
        let Some(word) = self.word(unit, index) else { return 0 };
        let had = word.fetch_and(!bits, Ordering::SeqCst) & bits;
        self.add_present(0, had.count_ones());
        had.count_ones()
    }

    fn count(&self, unit: u64, what: u64) {
        if let Some(word) = self.word(unit, 0) {
            word.fetch_add(what, Ordering::SeqCst);
        }
    }
}

/// A unit whose lock is held.
#[derive(Debug)]
pub(crate) struct Unit<'a> {
    presence: &'a Presence,
    unit: u64,
    _lock: UnitLock<'a>,
}

impl Unit<'_> {
    /// Its stamp.
    pub(crate) fn stamp(&self) -> Stamp {
        self.presence.stamp(self.unit)
    }

    /// The page's bytes are in the file.
    pub(crate) fn set(&self, pgno: Pgno) {
        debug_assert_eq!(self.presence.unit_of(pgno), self.unit);
        self.presence.set_bit(pgno);
    }

    /// A checkpoint is about to write into the unit: until that is in the map, it is not evicted.
    pub(crate) fn count_write(&self) {
        self.presence.stamp_epoch(self.unit);
        self.presence.count(self.unit, WRITE);
    }

    /// Whether the map gives back what it holds.
    pub(crate) fn is_clean(&self) -> bool {
        self.presence.is_clean(self.unit)
    }

    /// The page does not count as present any more. Its bytes may be taken away after this.
    pub(crate) fn clear(&self, pgno: Pgno) {
        debug_assert_eq!(self.presence.unit_of(pgno), self.unit);
        let within = (pgno.0 - 1) % self.presence.pages_per_unit;
        self.presence.clear_bits(self.unit, BITS + u64::from(within / 64), 1 << (within % 64));
        self.presence.count(self.unit, CLEAR);
    }

    /// Clears all its pages to be punched out; false, and nothing happened, where a process maps the file.
    pub(crate) fn clear_to_evict(&self) -> bool {
        let presence = self.presence;
        let words = || (BITS..presence.record).filter_map(|index| presence.word(self.unit, index));
        let had: Vec<u64> = words().map(|word| word.load(Ordering::SeqCst)).collect();
        self.clear_all();
        fence(Ordering::SeqCst);
        if presence.words.header(MAPPED).load(Ordering::SeqCst) == 0 {
            return true;
        }
        for (word, had) in words().zip(had) {
            word.fetch_or(had, Ordering::SeqCst);
            presence.add_present(had.count_ones(), 0);
        }
        false
    }

    /// None of its pages counts as present any more. Returns how many did.
    pub(crate) fn clear_all(&self) -> u32 {
        let had = (BITS..self.presence.record).map(|index| self.presence.clear_bits(self.unit, index, u64::MAX)).sum();
        self.presence.count(self.unit, CLEAR);
        had
    }
}

/// A page and all behind it, with their units' locks held.
#[derive(Debug)]
pub(crate) struct Tail<'a> {
    presence: &'a Presence,
    first: Pgno,
    _lock: UnitLock<'a>,
}

impl Tail<'_> {
    /// None of the pages counts as present any more, and the file ends before them. They may be cut off after this.
    pub(crate) fn cut(&self) {
        self.presence.words.header(PAGES).fetch_min(u64::from(self.first.0 - 1), Ordering::AcqRel);
        self.clear();
    }

    /// The page is about to be written by this caller, as by a checkpoint.
    pub(crate) fn count_write(&self, pgno: Pgno) {
        self.presence.stamp_epoch(self.presence.unit_of(pgno));
        self.presence.count(self.presence.unit_of(pgno), WRITE);
    }

    /// The page's bytes were written to the file by this caller.
    pub(crate) fn set(&self, pgno: Pgno) {
        debug_assert!(pgno >= self.first);
        self.presence.set_bit(pgno);
    }

    /// None of the pages counts as present any more.
    pub(crate) fn clear(&self) {
        let presence = self.presence;
        let units = (presence.words.len() - DATA) / presence.record;
        let within = (self.first.0 - 1) % presence.pages_per_unit;
        for unit in presence.unit_of(self.first)..units {
            let keep = if unit == presence.unit_of(self.first) { u64::from(within) } else { 0 };
            for index in BITS..presence.record {
                let below = keep.saturating_sub((index - BITS) * 64).min(64) as u32;
                presence.clear_bits(unit, index, u64::MAX.checked_shl(below).unwrap_or(0));
            }
            presence.count(unit, CLEAR);
        }
    }
}
