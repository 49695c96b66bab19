//! Where each page of the database lies in the bucket: one 64-bit word per page in `app.db-gcs/map`.
//!
//! A word holds a slot of the [object table](super::object_table), an offset in that object, and the length of the
//! page's frame, so an entry is read and written by one atomic operation: **there is no torn entry**, and a lookup takes
//! no lock. To fit, the length is rounded up to one of 127 classes (37 bytes apart at pages of 4096), which is all
//! that a ranged read needs: the frame says its own length, and frames of one object lie back to back.
//!
//! | bits | what |
//! |---|---|
//! | 0 .. 6 | length class, from 1; the word 0 means "in no object": a page of zeros |
//! | 7 .. 43 | offset in bytes (objects up to 128 GiB) |
//! | 44 .. 63 | slot in the object table |
//!
//! A page of zeros is one that the database grew over without ever writing it; that is told from a damaged replica by
//! the check that a snapshot holds every page ([`super::index_fetch`]).
//!
//! **Who may change it.** Several processes share the two files. One builds them under the setup lock and gives them
//! their names; the others open them. Later changes ([`PageMap::apply`], [`PageMap::rebuild`], [`PageMap::truncate`],
//! [`PageMap::uploaded`]) are made by one process at a time, under a host-wide lock that the engine holds; lookups go on
//! meanwhile, in every process. What it describes is the state that the main file shows: a delta is applied only
//! after the checkpoint that wrote its pages there.
//!
//! **Crash.** A process that dies within a change leaves some pages pointing at the newer object and
//! [`PageMap::txid`] at the older transaction; applying the same delta again mends it. The file is not synced: after an
//! unclean boot it is distrusted with the rest of the cache. A 100 GB database of 4096-byte pages has a map of 200 MB, of
//! which a point query touches a page or two.
//!
//! Header words: 2 = format of the entries and page size, 3 = pair number of the object table, 4 = size of the database in
//! pages, 5 = transaction.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageCount, PageSize, Pgno, TxId};
use crate::replica::index_fetch::ObjectIndex;
use crate::replica::names::ObjectName;
use crate::replica::object_table::{ObjectRef, ObjectTable};
use crate::store::Generation;
use crate::words::{DATA, NotUsable, Words};

/// "gcsmap" and the format's version.
const MAGIC: u64 = u64::from_be_bytes(*b"gcsmap\x00\x01");
const PAGE_SIZE: u64 = 2;
const PAIR: u64 = 3;
const PAGES: u64 = 4;
const TXID: u64 = 5;

const MAP_FILE: &str = "map";
const OBJECTS_FILE: &str = "objects";

const LEN_BITS: u32 = 7;
const OFFSET_BITS: u32 = 37;
const LEN_CLASSES: u32 = (1 << LEN_BITS) - 1;

/// Where a page's frame lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// Slot of the object in the table.
    pub object: u32,
    /// Where the frame begins in the object, in bytes.
    pub offset: u64,
    /// The frame is at most this many bytes long, and longer than this less [`PageMap::len_step`].
    pub len: u32,
}

/// The map and its object table.
#[derive(Debug)]
pub struct PageMap {
    words: Words,
    objects: ObjectTable,
    page_size: PageSize,
}

impl PageMap {
    /// Makes a map of a database with no pages in `dir`, under temporary names until [`PageMap::publish`].
    ///
    /// # Errors
    /// The local disk's.
    pub fn create(dir: &Path, page_size: PageSize) -> Result<PageMap> {
        let pair = fastrand::u64(1..);
        let objects = ObjectTable::create(&dir.join(OBJECTS_FILE), pair)?;
        let words = Words::create(&dir.join(MAP_FILE), MAGIC, DATA)?;
        words.header(PAGE_SIZE).store(page_size.bytes().into(), Ordering::Release);
        words.header(PAIR).store(pair, Ordering::Release);
        Ok(PageMap { words, objects, page_size })
    }

    /// Gives the files their names, in place of those that had them.
    ///
    /// # Errors
    /// The local disk's.
    pub fn publish(&self) -> Result<()> {
        // A crash in between leaves an old map with a table of another pair, which is not opened.
        self.objects.publish()?;
        self.words.publish()
    }

    /// Opens the map in `dir`, as far as it is one of ours and whole.
    ///
    /// # Errors
    /// Why it has to be built anew.
    pub fn open(dir: &Path) -> Result<PageMap, NotUsable> {
        let words = Words::open(&dir.join(MAP_FILE), MAGIC)?;
        let raw = words.header(PAGE_SIZE).load(Ordering::Acquire);
        let page_size = u32::try_from(raw).ok().and_then(PageSize::new);
        let page_size = page_size.ok_or_else(|| NotUsable(format!("the page map's page size is {raw}")))?;
        let objects = ObjectTable::open(&dir.join(OBJECTS_FILE), words.header(PAIR).load(Ordering::Acquire))?;
        let map = PageMap { words, objects, page_size };
        let pages = map.pages();
        if DATA + u64::from(pages.0) > map.words.len() {
            return Err(NotUsable(format!("the page map has no room for its {} pages", pages.0)));
        }
        Ok(map)
    }

    /// Makes the map survive a power loss.
    ///
    /// # Errors
    /// The local disk's.
    pub fn sync(&self) -> Result<()> {
        self.objects.sync()?;
        self.words.sync()
    }

    /// The size of the database's pages.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The size of the database in pages, as of [`PageMap::txid`].
    pub fn pages(&self) -> PageCount {
        PageCount(self.words.header(PAGES).load(Ordering::Acquire) as u32)
    }

    /// The last transaction whose pages it has.
    pub fn txid(&self) -> TxId {
        TxId(self.words.header(TXID).load(Ordering::Acquire))
    }

    /// The distance of the length classes in bytes.
    pub fn len_step(&self) -> u32 {
        // What the worst page can take: LZ4's own bound is a tenth and 20 bytes over the page, plus the frame's head.
        let longest = self.page_size.bytes() + self.page_size.bytes() / 8 + 64;
        longest.div_ceil(LEN_CLASSES)
    }

    /// Where a page lies; `None` for a page of zeros, and beyond the end.
    pub fn location(&self, pgno: Pgno) -> Option<Location> {
        self.unpack(self.entry(pgno)?.load(Ordering::Acquire))
    }

    /// Where a page lies, with the object.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where the object table is damaged.
    pub fn find(&self, pgno: Pgno) -> Result<Option<(Location, ObjectRef)>> {
        // The slot may be given to another object between the two looks; then the entry has changed too.
        for _ in 0..1000 {
            let Some(location) = self.location(pgno) else { return Ok(None) };
            let object = self.objects.record(location.object);
            if self.location(pgno) == Some(location) {
                return object
                    .map(|object| Some((location, object)))
                    .ok_or_else(|| self.objects.damaged(location.object));
            }
            std::hint::spin_loop();
        }
        Err(Error::new(ErrorKind::Busy, format!("page {pgno}: its place in the bucket keeps changing")))
    }

    /// Applies newer objects, oldest first: what they hold replaces what was known, and pages beyond the last one's
    /// size are dropped. Idempotent.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for an object that does not fit, [`ErrorKind::Full`] for want of room. Some pages may have
    /// changed then; the transaction has not.
    pub fn apply(&self, newer: &[ObjectIndex]) -> Result<()> {
        self.set(newer, false)
    }

    /// Makes the map that of a whole chain, oldest object first: as [`PageMap::apply`], and a page that no
    /// object has becomes one of zeros. Lookups see each page at its old place or its new one, never at an older one.
    ///
    /// # Errors
    /// As [`PageMap::apply`].
    pub fn rebuild(&self, chain: &[ObjectIndex]) -> Result<()> {
        self.set(chain, true)
    }

    fn set(&self, objects: &[ObjectIndex], whole: bool) -> Result<()> {
        let Some(last) = objects.last() else { return Ok(()) };
        let commit = last.commit;
        self.words.grow(DATA + u64::from(commit.0))?;
        // Before the entries, so that whoever comes after a death in the middle knows up to where to clear.
        self.words.header(PAGES).fetch_max(commit.0.into(), Ordering::AcqRel);
        let lock_page = self.page_size.lock_page();
        // Newest first, so that each entry is written once. Alone, an object has no page twice.
        let mut seen = Seen::new(if whole || objects.len() > 1 { commit } else { PageCount(0) });
        let mut kept = commit;
        for object in objects.iter().rev() {
            if object.page_size != self.page_size {
                let why = format!("{}: page size is {}, not {}", object.name, object.page_size, self.page_size);
                return Err(Error::new(ErrorKind::Corrupt, why));
            }
            // A page beyond the end of a newer state was dropped then, and has come back as zeros if at all.
            kept = kept.min(object.commit);
            let counts = |pgno: Pgno| kept.contains(pgno) && pgno != lock_page;
            let fresh: Vec<_> = object.pages.iter().filter(|page| counts(page.pgno) && seen.first(page.pgno)).collect();
            if fresh.is_empty() {
                continue;
            }
            let words = fresh.iter().map(|page| self.pack(page.offset, page.len)).collect::<Option<Vec<u64>>>();
            let words = words.ok_or_else(|| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("{}: index: a frame's place or length is out of bounds", object.name),
                )
            })?;
            let known = ObjectRef { name: object.name, generation: object.generation, size: object.size };
            let slot = self.objects.add(&known, fresh.len() as u64)?;
            for (page, word) in fresh.into_iter().zip(words) {
                self.replace(page.pgno, word | u64::from(slot) << (LEN_BITS + OFFSET_BITS));
            }
        }
        if whole {
            for pgno in (1..=commit.0).map(Pgno).filter(|&pgno| !seen.has(pgno)) {
                self.replace(pgno, 0);
            }
        }
        self.truncate(commit);
        self.words.header(TXID).store(last.name.max.0, Ordering::Release);
        Ok(())
    }

    /// Notes that nothing after [`PageMap::txid`] and up to here changed a page: empty deltas.
    pub fn reached(&self, txid: TxId) {
        self.words.header(TXID).fetch_max(txid.0, Ordering::AcqRel);
    }

    /// Drops the pages beyond `pages`.
    pub fn truncate(&self, pages: PageCount) {
        let had = self.words.header(PAGES).fetch_min(pages.0.into(), Ordering::AcqRel);
        for pgno in u64::from(pages.0) + 1..=had {
            self.replace(Pgno(pgno as u32), 0);
        }
    }

    /// Notes that an object is in the bucket now, in this generation. To be called before it leaves the outbox.
    pub fn uploaded(&self, name: &ObjectName, generation: Generation) {
        self.objects.uploaded(name, generation);
    }

    /// The objects that pages are read from.
    pub fn objects(&self) -> Vec<ObjectRef> {
        self.objects.live()
    }

    fn entry(&self, pgno: Pgno) -> Option<&AtomicU64> {
        self.words.word(DATA + u64::from(pgno.0.checked_sub(1)?))
    }

    fn replace(&self, pgno: Pgno, word: u64) {
        let Some(entry) = self.entry(pgno) else { return };
        if let Some(old) = self.unpack(entry.swap(word, Ordering::AcqRel)) {
            self.objects.release(old.object, 1);
        }
    }

    /// The lower bits of an entry; `None` where a number is too large.
    fn pack(&self, offset: u64, len: u32) -> Option<u64> {
        let class = len.div_ceil(self.len_step());
        let fits = offset < 1 << OFFSET_BITS && (1..=LEN_CLASSES).contains(&class);
        fits.then_some(offset << LEN_BITS | u64::from(class))
    }

    fn unpack(&self, word: u64) -> Option<Location> {
        let class = (word & u64::from(LEN_CLASSES)) as u32;
        (class != 0).then(|| Location {
            object: (word >> (LEN_BITS + OFFSET_BITS)) as u32,
            offset: (word >> LEN_BITS) & ((1 << OFFSET_BITS) - 1),
            len: class * self.len_step(),
        })
    }
}

/// Which pages were met; of no pages at all it keeps nothing and calls each the first.
struct Seen(Vec<u64>);

impl Seen {
    fn new(pages: PageCount) -> Seen {
        Seen(vec![0; pages.0.div_ceil(64) as usize])
    }

    fn place(pgno: Pgno) -> (usize, u64) {
        ((pgno.0 - 1) as usize / 64, 1 << ((pgno.0 - 1) % 64))
    }

    fn first(&mut self, pgno: Pgno) -> bool {
        let (at, bit) = Seen::place(pgno);
        let Some(word) = self.0.get_mut(at) else { return true };
        let first = *word & bit == 0;
        *word |= bit;
        first
    }

    fn has(&self, pgno: Pgno) -> bool {
        let (at, bit) = Seen::place(pgno);
        self.0.get(at).is_some_and(|word| word & bit != 0)
    }
}

#[cfg(test)]
#[path = "page_map/tests.rs"]
mod tests;
