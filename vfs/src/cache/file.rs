//! The main database file as a sparse cache: what SQLite's reads, writes and truncations of it mean.
//!
//! A [`CacheFile`] ties together the file, the bits that say what it holds (`presence.rs`), the map that says
//! where the rest is ([`crate::replica::page_map`]) and the source of pages ([`crate::replica::fetch`]).
//!
//! It must not be dropped while SQLite of this process has the file open (`pages.rs`).
//! What SQLite itself reads and writes goes through its own descriptor, in `base`.
//!
//! **Reading** is check, read, check again: bits, then `base`, then whether anything of the units was cleared meanwhile.
//! Nothing is locked unless a page is missing. **Filling** is: note the unit's stamp, look the page up, fetch it with no
//! lock held, then under the unit's lock write it and set its bit, unless the unit was cleared since or the page has come from
//! elsewhere. Why this is safe against kills and against the other processes stands in `presence.rs`.
//!
//! **On disk** the first 16 bytes of page 1 are [`MASK`], so that no other SQLite takes the sparse file for a database. The
//! shim restores them for its reader.
//!
//! Left to others: when a delta's pages may enter the map, which pages may be evicted, what is done about an
//! object that is gone ([`CacheFile::on_moved`]), and whether the cache survives an unclean boot.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::cache::background::Background;
use crate::cache::flights::{Flight, Flights, Planned, Turn};
use crate::cache::pages::{Pages, Stamps, identity};
use crate::cache::presence::Presence;
use crate::cache::room::{Others, Room};
use crate::cache::streams::Streams;
use crate::cache::trees::Trees;
use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageCount, PageSize, Pgno};
use crate::replica::btree;
use crate::replica::fetch::{PageSource, Unpacked};
use crate::replica::index_fetch::ReadError;
use crate::replica::page_map::PageMap;
use crate::replica::read_ahead::{ReadAhead, Run};
use crate::words::NotUsable;

/// What stands on disk where a database has SQLite's magic.
pub const MASK: [u8; 16] = *b"sqlite-gcs cache";
/// SQLite's magic.
pub const MAGIC: [u8; 16] = *b"SQLite format 3\0";

/// How far ahead of a scan pages are fetched, in bytes of pages: what a line of 100 MB/s brings in 40 ms.
const WINDOW_BYTES: u32 = 4 << 20;
/// Requests that one look ahead begins.
const RUNS: usize = 16;
/// Pages of a B-tree's that may come in one request lie within so many.
const NEARBY: u32 = 32;
/// What hydration asks for at a time, in bytes of pages.
const BATCH_BYTES: u32 = 16 << 20;
/// How often hydration looks whether it may go on.
const YIELD: Duration = Duration::from_millis(10);
/// How often a page is looked up again whose object is not where the map says: a few times at once, then while an uploader that
/// moves its deltas may be at work, for 5 s.
const STALE_AT_ONCE: u32 = 3;
const STALE_MOST: u32 = 1000;
const STALE_PAUSE: Duration = Duration::from_millis(5);
/// How often a read starts over because pages are taken away under it, before it gives up.
const TRIES: usize = 1000;

type OnMoved = Box<dyn Fn(&Error) -> Result<()> + Send + Sync>;

/// What came of one batch of [`CacheFile::fill_ahead`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Batch {
    /// Every page is present.
    Whole,
    /// The bound leaves no room for more.
    NoRoom,
    /// Pages came; go on with this one.
    Fetched(Pgno),
    /// None came.
    Nothing,
}

/// What a plan keeps with each of its flights.
type Fetch = (Run, Arc<Stamps>);

/// The cache file of one database, as this process has it open.
pub struct CacheFile {
    pages: Arc<Pages>,
    map: PageMap,
    source: PageSource,
    read_ahead: ReadAhead,
    streams: Streams,
    trees: Trees,
    flights: Arc<Flights>,
    background: Background,
    on_moved: OnceLock<OnMoved>,
    /// Reads of SQLite's that wait for the bucket.
    waiting: AtomicU32,
}

impl std::fmt::Debug for CacheFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheFile")
            .field("path", &self.pages.path)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Drop for CacheFile {
    fn drop(&mut self) {
        if !self.background.stop() {
            // A fetch hangs in a write to the disk: the file stays open for good, rather than be closed under a later
            // opening of it by this process, whose locks that would drop.
            std::mem::forget(Arc::clone(&self.pages));
        }
    }
}

impl CacheFile {
    /// Empties the main file (or makes it), gives it the size that the map says, with no page present, and
    /// the map and the presence their names in `dir`. Only under the setup lock, with the database open nowhere.
    ///
    /// # Errors
    /// The local disk's. What is left then is not taken over by [`CacheFile::open`].
    pub fn create(dir: &Path, main: &Path, map: PageMap, source: PageSource) -> Result<CacheFile> {
        let failed = |e: &io::Error| Error::local(format!("making the cache file {}", main.display()), e);
        let page_size = map.page_size();
        // From here to the end nobody finds a usable cache: the bits of the old file must not meet the emptied one.
        Presence::disown(dir).map_err(|e| failed(&e))?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(main);
        let file = file.map_err(|e| failed(&e))?;
        file.set_len(map.pages().bytes(page_size)).map_err(|e| failed(&e))?;
        let presence = Presence::create(dir, page_size, map.pages(), identity(&file).map_err(|e| failed(&e))?)?;
        map.publish()?;
        presence.publish()?;
        Ok(CacheFile::of(main, file, presence, map, source))
    }

    /// Takes the main file as it is, a whole database, for a cache that has every page. Only under the setup lock, with the
    /// database open nowhere. The caller masks the magic by [`CacheFile::put_page`] when everything else is on disk.
    ///
    /// # Errors
    /// The local disk's.
    pub fn adopt(dir: &Path, main: &Path, map: PageMap, source: PageSource) -> Result<CacheFile> {
        let failed = |e: &io::Error| Error::local(format!("taking over {}", main.display()), e);
        Presence::disown(dir).map_err(|e| failed(&e))?;
        let file = OpenOptions::new().read(true).write(true).open(main).map_err(|e| failed(&e))?;
        let identity = identity(&file).map_err(|e| failed(&e))?;
        let presence = Presence::create(dir, map.page_size(), map.pages(), identity)?;
        let cache = CacheFile::of(main, file, presence, map, source);
        for pgno in (1..=cache.total().0).map(Pgno) {
            let unit = cache.pages.presence.lock(cache.pages.presence.unit_of(pgno))?;
            // It is in no bucket yet.
            unit.count_write();
            unit.set(pgno);
        }
        cache.map.publish()?;
        cache.pages.presence.publish()?;
        Ok(cache)
    }

    /// Takes over the cache that another process, or an earlier one, has made.
    ///
    /// # Errors
    /// Why it cannot be used and has to be made anew.
    pub fn open(dir: &Path, main: &Path, map: PageMap, source: PageSource) -> Result<CacheFile, NotUsable> {
        let not = |e: &dyn std::fmt::Display| NotUsable(format!("{}: {e}", main.display()));
        let file = OpenOptions::new().read(true).write(true).open(main).map_err(|e| not(&e))?;
        let presence = Presence::open(dir, map.page_size(), identity(&file).map_err(|e| not(&e))?)?;
        let size = file.metadata().map_err(|e| not(&e))?.len();
        let needed = presence.pages().bytes(map.page_size());
        if size < needed {
            return Err(not(&format!("{size} bytes long, but {needed} were there")));
        }
        if presence.has(Pgno::ONE) {
            let mut magic = [0; MASK.len()];
            file.read_exact_at(&mut magic, 0).map_err(|e| not(&e))?;
            if magic != MASK {
                return Err(not(&"its first bytes are not those of a cache file of ours"));
            }
        }
        Ok(CacheFile::of(main, file, presence, map, source))
    }

    fn of(main: &Path, file: File, presence: Presence, map: PageMap, source: PageSource) -> CacheFile {
        let page_size = map.page_size();
        CacheFile {
            pages: Arc::new(Pages { path: main.into(), file, page_size, presence, room: OnceLock::new() }),
            map,
            source,
            read_ahead: ReadAhead::default(),
            streams: Streams::new(WINDOW_BYTES / page_size.bytes()),
            trees: Trees::default(),
            flights: Arc::default(),
            background: Background::new(),
            on_moved: OnceLock::new(),
            waiting: AtomicU32::new(0),
        }
    }

    /// Sets what is done, once per read, when an object of the map is gone or has changed in the bucket: it should plan
    /// anew to the same transaction, [`PageMap::rebuild`], and return Ok for the read to be tried again.
    pub fn on_moved(&self, plan_anew: impl Fn(&Error) -> Result<()> + Send + Sync + 'static) {
        // Set once by the engine; a second one is not used.
        let _ = self.on_moved.set(Box::new(plan_anew));
    }

    /// Bounds what everything local takes to so many bytes; `others` says what the files take that are not this one. Once.
    pub(crate) fn bound(&self, limit: u64, others: Others) {
        // Set once by the engine; a second one is not used.
        let _ = self.pages.room.set(Room::new(limit, others));
        let most = (limit / 8 / u64::from(self.page_size().bytes())).min(u32::MAX.into()) as u32;
        self.streams.set_most(most);
    }

    /// Sees to it that `more` bytes have room, by eviction; false where only what must stay is left.
    pub(crate) fn make_room(&self, more: u64) -> Result<bool> {
        self.pages.room.get().map_or(Ok(true), |room| room.make(&self.pages, more))
    }

    /// The same for bytes that are about to be written.
    pub(crate) fn take_room(&self, bytes: u64) -> Result<bool> {
        self.pages.room.get().map_or(Ok(true), |room| room.take(&self.pages, bytes))
    }

    /// What everything local may take, in bytes; `None` where there is no bound.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.pages.room.get().map(|room| room.limit())
    }

    /// What everything local may take, and takes, in bytes; `None` where there is no bound.
    pub(crate) fn bounds(&self) -> Option<(u64, u64)> {
        self.pages.room.get().map(|room| (room.limit(), room.used(&self.pages)))
    }

    /// Ends an epoch of checkpoints: before looking at what is committed. See `room.rs`.
    pub(crate) fn end_epoch(&self) -> u64 {
        self.pages.presence.end_epoch()
    }

    /// What was committed when this epoch ended is in the bucket, checkpointed, and in the map.
    pub(crate) fn set_clean(&self, epoch: u64) {
        self.pages.presence.set_clean(epoch);
    }

    /// Whether a checkpoint wrote something that is not known to be in the map.
    pub(crate) fn has_unclean(&self) -> bool {
        self.pages.presence.has_unclean()
    }

    /// The page map.
    pub fn map(&self) -> &PageMap {
        &self.map
    }

    /// The page size.
    pub fn page_size(&self) -> PageSize {
        self.pages.page_size
    }

    /// How many pages are present.
    pub fn present(&self) -> u32 {
        self.pages.presence.present()
    }

    /// How many pages the file has.
    pub fn total(&self) -> PageCount {
        self.pages.presence.pages()
    }

    /// Counts the present pages anew; for the process that takes the cache over while no other has it.
    pub fn recount(&self) {
        self.pages.presence.recount();
    }

    /// Writes a page of the caller's and counts it as present: the first page of a database that is new or adopted.
    ///
    /// # Errors
    /// The local disk's.
    pub fn put_page(&self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.pages.put_page(pgno, page)
    }

    /// Puts pages in that came from the bucket in another way than by being missed, as far as they are not there.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn put_fetched(&self, pages: Vec<(Pgno, Vec<u8>)>) -> Result<()> {
        let pages = Unpacked::of(self.page_size(), pages);
        let mut stamps: Stamps = pages.pgnos().iter().map(|pgno| self.pages.unit(*pgno)).collect();
        stamps.dedup_by_key(|(unit, _)| *unit);
        self.pages.store_all(&pages, &stamps)
    }

    /// Reads a page if the file has it, and says whether it does; never asks the bucket.
    ///
    /// # Errors
    /// The local disk's.
    pub fn read_present(&self, pgno: Pgno, page: &mut [u8]) -> Result<bool> {
        self.pages.read_present(pgno, page)
    }

    /// Runs `base`, which cuts the main file off at `size_bytes` (or extends it), and forgets the pages beyond, also in the map.
    /// Under the locks that a checkpoint holds.
    ///
    /// # Errors
    /// The local disk's; `base` did not run then.
    pub fn truncate(&self, size_bytes: u64, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        self.pages.truncate(size_bytes, base, |pages| self.map.truncate(pages))
    }

    /// Gives the file the size of a database of so many pages, as [`CacheFile::truncate`] does, through this descriptor.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn cut(&self, pages: PageCount) -> Result<()> {
        let bytes = pages.bytes(self.pages.page_size);
        let mut outcome = Ok(());
        self.truncate(bytes, &mut || {
            outcome = self.pages.file.set_len(bytes);
            i32::from(outcome.is_err())
        })?;
        outcome.map_err(|e| self.pages.failed("resizing", &e))
    }

    /// Extends the file to a database of so many pages. It never gets smaller by this.
    ///
    /// # Errors
    /// The local disk's.
    pub fn set_size(&self, pages: PageCount) -> Result<()> {
        self.pages.set_size(pages)
    }

    /// Forgets pages, so that their next reader takes them from where the map says.
    ///
    /// # Errors
    /// The local disk's.
    pub fn forget(&self, pages: impl IntoIterator<Item = Pgno>) -> Result<()> {
        self.pages.forget(pages)
    }

    /// Distrusts all that the file holds: every page is fetched anew when it is read. Only when everything in it is in the
    /// bucket, in the outbox, or in the WAL.
    ///
    /// # Errors
    /// The local disk's.
    pub fn clear_all(&self) -> Result<()> {
        self.pages.clear_all()
    }

    /// Runs `base`, which reads these bytes of the main file, with every page of them present before and still there
    /// after. `base` may run more than once; the result is that of the last run. Bytes beyond the file's end are left to `base`.
    ///
    /// # Errors
    /// Why a missing page could not be had.
    pub fn read(&self, range: Range<u64>, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        let Some((first, last)) = self.pages.pages(&range) else { return Ok(base()) };
        if self.lacks_pages() {
            self.fetch_due(&self.trees.read(last));
        }
        for _ in 0..TRIES {
            let before = self.pages.clears(first, last);
            if let Some(missing) = self.pages.missing(first, last) {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let filled = self.fill(missing);
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                filled?;
                continue;
            }
            let code = base();
            if self.pages.clears(first, last) == before {
                self.pages.presence.use_unit(self.pages.presence.unit_of(last));
                self.look_ahead(last);
                return Ok(code);
            }
        }
        Err(self.restless(first))
    }

    /// Whether pages of it may be mapped at all: only where this process has no bound, and so evicts nothing.
    pub(crate) fn may_map(&self) -> bool {
        self.pages.room.get().is_none()
    }

    /// Whether these bytes may be read through a mapping of the file for as long as it is open. Never of page 1, whose first bytes
    /// are masked; from the first yes on no process evicts anything until all have closed the database.
    pub(crate) fn may_map_bytes(&self, range: &Range<u64>) -> bool {
        let Some((first, last)) = self.pages.pages(range) else { return false };
        let total = self.total().bytes(self.page_size());
        self.may_map() && first > Pgno::ONE && range.end <= total && self.pages.presence.keep_mapped(first, last)
    }

    /// For the process that has the database open alone.
    pub(crate) fn nothing_is_mapped(&self) {
        self.pages.presence.nothing_is_mapped();
    }

    /// Sees to it that a page is present.
    ///
    /// # Errors
    /// Why it could not be had.
    pub fn prefetch(&self, pgno: Pgno) -> Result<()> {
        for _ in 0..TRIES {
            if self.pages.presence.has(pgno) || !self.pages.presence.pages().contains(pgno) {
                return Ok(());
            }
            self.fill(pgno)?;
        }
        Err(self.restless(pgno))
    }

    /// Makes the file survive a power loss as it is.
    ///
    /// # Errors
    /// The local disk's.
    pub fn sync(&self) -> Result<()> {
        self.map.sync()?;
        self.pages.presence.sync()?;
        self.pages.file.sync_data().map_err(|e| self.pages.failed("syncing", &e))
    }

    /// Reads a page through this descriptor, with SQLite's magic in its place. Not what a reader in a transaction sees: the
    /// WAL may have a newer one.
    ///
    /// # Errors
    /// Why it could not be had; [`ErrorKind::Local`] beyond the end of the file.
    pub fn page(&self, pgno: Pgno) -> Result<Vec<u8>> {
        let mut page = vec![0; self.pages.page_size.bytes() as usize];
        let start = pgno.offset(self.pages.page_size);
        let mut outcome = Ok(());
        self.read(start..start + page.len() as u64, &mut || {
            outcome = self.pages.file.read_exact_at(&mut page, start);
            0
        })?;
        outcome.map_err(|e| Error::local(format!("reading page {pgno} of {}", self.pages.path.display()), &e))?;
        if pgno == Pgno::ONE {
            page[..MAGIC.len()].copy_from_slice(&MAGIC);
        }
        Ok(page)
    }

    /// Runs `base`, which writes these bytes of the main file (a checkpoint does, in whole pages), and counts the pages as present.
    /// A page that is covered in part is fetched before.
    ///
    /// # Errors
    /// The local disk's, and why a page covered in part could not be had. Nothing was written then.
    pub fn write(&self, range: Range<u64>, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        if range.is_empty() {
            return Ok(base());
        }
        let (first, last) = (self.pages.page_size.page_at(range.start), self.pages.page_size.page_at(range.end - 1));
        let page_bytes = u64::from(self.pages.page_size.bytes());
        if !range.start.is_multiple_of(page_bytes) {
            self.prefetch(first)?;
        }
        if !range.end.is_multiple_of(page_bytes) {
            self.prefetch(last)?;
        }
        self.pages.presence.reserve(PageCount(last.0))?;
        let (first_unit, last_unit) = (self.pages.presence.unit_of(first), self.pages.presence.unit_of(last));
        if first_unit != last_unit {
            // Never by SQLite, whose writes are of one page.
            let tail = self.pages.presence.lock_from(first)?;
            (first.0..=last.0).for_each(|pgno| tail.count_write(Pgno(pgno)));
            let code = base();
            if code == 0 {
                (first.0..=last.0).for_each(|pgno| tail.set(Pgno(pgno)));
                self.pages.presence.raise_pages(PageCount(last.0))?;
            }
            return Ok(code);
        }
        let unit = self.pages.presence.lock(first_unit)?;
        unit.count_write();
        let code = base();
        if code == 0 {
            (first.0..=last.0).for_each(|pgno| unit.set(Pgno(pgno)));
            self.pages.presence.raise_pages(PageCount(last.0))?;
        }
        Ok(code)
    }

    /// Fetches a missing page with its neighbours, or waits for the thread that does. The page may be missing again, or still,
    /// when this returns Ok: the caller looks again.
    fn fill(&self, missing: Pgno) -> Result<()> {
        let presence = &self.pages.presence;
        let mut stale = 0;
        let mut planned_anew = false;
        let mut window = None;
        loop {
            let plan = |free: &dyn Fn(Pgno) -> bool| {
                let pages = *window.get_or_insert_with(|| self.streams.missed(missing.0));
                self.plan(missing, Pgno(missing.0.saturating_add(pages)), free)
            };
            let mut fetches = match self.flights.turn(missing, |pgno| presence.has(pgno), plan)? {
                Turn::Present => return Ok(()),
                Turn::Wait(flight) => return flight.wait(self.source.limit()),
                Turn::Fetch(fetches) => fetches,
            };
            let rest = fetches.split_off(1);
            for (flight, (run, stamps)) in rest {
                self.background.fetch(&self.pages, &self.source, flight, run, stamps);
            }
            let Some((departed, (run, stamps))) = fetches.pop() else { return Err(self.restless(missing)) };
            match self.fetch(&run, &stamps) {
                Err(ReadError::Stale(error)) if stale < STALE_MOST => {
                    stale += 1;
                    if stale > STALE_AT_ONCE {
                        std::thread::sleep(STALE_PAUSE);
                    }
                    // Those who wait look again as well.
                    let _ = departed.land(Ok(()));
                    crate::log::debug!("page {missing}: {error}; looking it up again");
                }
                Err(ReadError::Moved(error)) if !planned_anew => {
                    planned_anew = true;
                    let outcome = match self.on_moved.get() {
                        Some(plan_anew) => plan_anew(&error).map_err(|e| e.context(&error)),
                        None => Err(error),
                    };
                    departed.land(outcome)?;
                }
                outcome => return departed.land(outcome.map_err(Error::from)),
            }
        }
    }

    /// Begins to fetch what is missing from `at` on, about [`BATCH_BYTES`] of it, in several requests at a time, behind those that are
    /// `under_way`; and waits until only one such batch is, or for all where nothing was left to begin. Until `stop` at the most.
    /// While reads of SQLite's wait for the bucket, it waits for them first.
    ///
    /// # Errors
    /// The map's.
    pub(crate) fn fill_ahead(
        &self,
        at: Pgno,
        under_way: &mut VecDeque<(Pgno, Arc<Flight>)>,
        stop: &AtomicBool,
    ) -> Result<Batch> {
        let presence = &self.pages.presence;
        let total = presence.pages();
        let lock_page = self.page_size().lock_page();
        let is_missing = |pgno: &Pgno| *pgno != lock_page && !presence.has(*pgno);
        let Some(first) = (at.0..=total.0).map(Pgno).find(is_missing) else {
            // Once more from the beginning: what was evicted or did not come.
            let left = (1..at.0.min(total.0 + 1)).map(Pgno).find(is_missing);
            return Ok(
                left.map_or(Batch::Whole, |_| if at == Pgno::ONE { Batch::Nothing } else { Batch::Fetched(Pgno::ONE) })
            );
        };
        let batch = BATCH_BYTES / self.page_size().bytes();
        if self.bounds().is_some_and(|(limit, used)| used + u64::from(BATCH_BYTES) > limit - limit / 8) {
            return Ok(Batch::NoRoom);
        }
        while self.waiting.load(Ordering::SeqCst) > 0 && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(YIELD);
        }
        let until = Pgno(first.0.saturating_add(batch));
        let large = ReadAhead { bytes: u64::from(BATCH_BYTES) / 16, ..self.read_ahead };
        let plan = |free: &dyn Fn(Pgno) -> bool| {
            let first = (first.0..until.0.min(total.0 + 1)).map(Pgno).find(|&pgno| pgno != lock_page && free(pgno));
            first.map_or(Ok(Vec::new()), |first| self.plan_with(large, first, until, free))
        };
        let fetches = self.flights.ahead(|pgno| presence.has(pgno), plan)?;
        let last = fetches.last().and_then(|(_, (run, _))| run.pages.last()).map_or(first, |(last, _)| *last);
        // So the line is never idle: the next batch is asked for before the last one is here.
        let has_begun = !fetches.is_empty();
        let behind = if has_begun { under_way.len().max(fetches.len()) } else { 0 };
        for (flight, (run, stamps)) in fetches {
            under_way.extend(run.pages.first().map(|(first, _)| (*first, flight.watch())));
            self.background.fetch(&self.pages, &self.source, flight, run, stamps);
        }
        let (mut ended, mut came) = (false, false);
        while under_way.len() > behind
            && let Some((first, flight)) = under_way.pop_front()
        {
            while !flight.ended_within(YIELD) && !stop.load(Ordering::SeqCst) {}
            ended = true;
            came |= presence.has(first);
        }
        let goes_on = if ended { came } else { has_begun };
        Ok(if goes_on { Batch::Fetched(Pgno(last.0 + 1)) } else { Batch::Nothing })
    }

    /// Plans the requests for the missing page `first` and those behind it that are free to be fetched, before `until`.
    fn plan(&self, first: Pgno, until: Pgno, free: &dyn Fn(Pgno) -> bool) -> Result<Vec<Planned<Fetch>>> {
        let planned = self.plan_with(self.read_ahead, first, until, free)?;
        let next = planned.last().and_then(|(pages, _)| pages.last()).map_or(first.0, |last| last.0);
        self.streams.ended(first.0, if planned.len() == RUNS { next + 1 } else { u32::MAX });
        Ok(planned)
    }

    fn plan_with(
        &self,
        limits: ReadAhead,
        first: Pgno,
        until: Pgno,
        free: &dyn Fn(Pgno) -> bool,
    ) -> Result<Vec<Planned<Fetch>>> {
        let total = self.pages.presence.pages();
        let until = until.min(Pgno(total.0.saturating_add(1)));
        let lock_page = self.page_size().lock_page();
        let mut stamps = Stamps::new();
        let stamp = |stamps: &mut Stamps, pgno: Pgno| {
            let (unit, stamp) = self.pages.unit(pgno);
            if stamps.last().is_none_or(|&(last, _)| last != unit) {
                stamps.push((unit, stamp));
            }
        };
        let mut runs: Vec<Run> = Vec::new();
        let mut next = first;
        while runs.len() < RUNS && (next < until || runs.is_empty()) {
            let is_wanted = |pgno: Pgno| pgno != lock_page && free(pgno);
            if next != first && !is_wanted(next) {
                next = Pgno(next.0 + 1);
                continue;
            }
            stamp(&mut stamps, next);
            let wanted = |pgno: Pgno| {
                let wanted = is_wanted(pgno);
                if wanted {
                    stamp(&mut stamps, pgno);
                }
                wanted
            };
            let (run, behind) = limits.run(&self.map, next, until, wanted)?;
            runs.push(run);
            next = behind;
        }
        let stamps = Arc::new(stamps);
        let planned = |run: Run| (run.pages.iter().map(|&(pgno, _)| pgno).collect(), (run, Arc::clone(&stamps)));
        Ok(runs.into_iter().map(planned).collect())
    }

    fn lacks_pages(&self) -> bool {
        self.pages.presence.present() < self.pages.presence.pages().0
    }

    /// SQLite has read this page, whole. An interior one of a B-tree says what a scan comes to.
    pub(crate) fn note_page(&self, pgno: Pgno, page: &[u8]) {
        if btree::is_interior(pgno, page) && self.lacks_pages() {
            self.fetch_due(&self.trees.note(pgno, page));
        }
    }

    /// Fetches pages that a scan of a B-tree comes to, as far as they are missing, without waiting for them.
    fn fetch_due(&self, due: &[Pgno]) {
        if due.is_empty() {
            return;
        }
        let presence = &self.pages.presence;
        let total = presence.pages();
        let plan = |free: &dyn Fn(Pgno) -> bool| {
            let mut wanted: BTreeSet<Pgno> =
                due.iter().copied().filter(|&pgno| total.contains(pgno) && free(pgno)).collect();
            let mut planned = Vec::new();
            while let Some(first) = wanted.pop_first() {
                let until = Pgno(first.0.saturating_add(NEARBY));
                let more = self.plan_with(self.read_ahead, first, until, &|pgno| wanted.contains(&pgno))?;
                // Of one call only the first run: it has the page, and those that lie beside it in the object.
                let Some((pages, fetch)) = more.into_iter().next() else { break };
                wanted.retain(|pgno| !pages.contains(pgno));
                planned.push((pages, fetch));
            }
            Ok(planned)
        };
        match self.flights.ahead(|pgno| presence.has(pgno), plan) {
            Ok(fetches) => {
                for (flight, (run, stamps)) in fetches {
                    self.background.fetch(&self.pages, &self.source, flight, run, stamps);
                }
            }
            Err(e) => crate::log::debug!("reading ahead in a B-tree: {e}"),
        }
    }

    /// After a read of a page that was there: fetches what a scan will come to, without waiting for it.
    fn look_ahead(&self, pgno: Pgno) {
        let presence = &self.pages.presence;
        if !self.lacks_pages() {
            return;
        }
        let Some((from, until)) = self.streams.hit(pgno.0) else { return };
        let total = presence.pages();
        let free_from = |free: &dyn Fn(Pgno) -> bool| {
            let lock_page = self.page_size().lock_page();
            (from..until.min(total.0.saturating_add(1))).map(Pgno).find(|&pgno| pgno != lock_page && free(pgno))
        };
        let plan = |free: &dyn Fn(Pgno) -> bool| match free_from(free) {
            Some(first) => self.plan(first, Pgno(until), free),
            None => Ok(Vec::new()),
        };
        match self.flights.ahead(|pgno| presence.has(pgno), plan) {
            Ok(fetches) => {
                for (flight, (run, stamps)) in fetches {
                    self.background.fetch(&self.pages, &self.source, flight, run, stamps);
                }
            }
            Err(e) => crate::log::debug!("reading ahead of page {pgno}: {e}"),
        }
    }

    fn fetch(&self, run: &Run, stamps: &Stamps) -> Result<(), ReadError> {
        self.source.pages(run, self.page_size(), |some| self.pages.store_all(some, stamps))
    }

    fn restless(&self, pgno: Pgno) -> Error {
        let why = format!("page {pgno} of {}: taken away each time it was fetched", self.pages.path.display());
        Error::new(ErrorKind::Unavailable, why)
    }
}

#[cfg(test)]
#[path = "file/tests.rs"]
mod tests;
