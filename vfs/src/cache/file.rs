//! The main database file as a sparse cache: what SQLite's reads, writes and truncations of it mean.
//!
//! A [`CacheFile`] ties together the file, the bits that say what it holds (`presence.rs`), the map that says
//! where the rest is ([`crate::replica::page_map`]) and the source of pages ([`crate::replica::fetch`]).
//!
//! **One descriptor.** It opens the main file once and keeps it until it is dropped. It must not be dropped while SQLite of
//! this process has the file open, since closing *any* descriptor of a file drops the process's POSIX locks on it.
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

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;

use crate::cache::flights::{Flights, Turn};
use crate::cache::presence::{Presence, Stamp, UNIT_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageCount, PageSize, Pgno};
use crate::replica::fetch::PageSource;
use crate::replica::index_fetch::ReadError;
use crate::replica::page_map::PageMap;
use crate::replica::read_ahead::{ReadAhead, Run};
use crate::words::NotUsable;

/// What stands on disk where a database has SQLite's magic.
pub const MASK: [u8; 16] = *b"sqlite-gcs cache";
/// SQLite's magic.
pub const MAGIC: [u8; 16] = *b"SQLite format 3\0";

/// How often a read starts over because pages are taken away under it, before it gives up.
const TRIES: usize = 1000;

type OnMoved = Box<dyn Fn(&Error) -> Result<()> + Send + Sync>;

/// The cache file of one database, as this process has it open.
pub struct CacheFile {
    path: PathBuf,
    file: File,
    page_size: PageSize,
    presence: Presence,
    map: PageMap,
    source: PageSource,
    read_ahead: ReadAhead,
    flights: Flights,
    on_moved: OnceLock<OnMoved>,
}

impl std::fmt::Debug for CacheFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheFile").field("path", &self.path).field("source", &self.source).finish_non_exhaustive()
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
            cache.presence.lock(cache.presence.unit_of(pgno))?.set(pgno);
        }
        cache.map.publish()?;
        cache.presence.publish()?;
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
        CacheFile {
            path: main.into(),
            file,
            page_size: map.page_size(),
            presence,
            map,
            source,
            read_ahead: ReadAhead::default(),
            flights: Flights::default(),
            on_moved: OnceLock::new(),
        }
    }

    /// Sets what is done, once per read, when an object of the map is gone or has changed in the bucket: it should plan
    /// anew to the same transaction, [`PageMap::rebuild`], and return Ok for the read to be tried again.
    pub fn on_moved(&self, plan_anew: impl Fn(&Error) -> Result<()> + Send + Sync + 'static) {
        // Set once by the engine; a second one is not used.
        let _ = self.on_moved.set(Box::new(plan_anew));
    }

    /// The page map.
    pub fn map(&self) -> &PageMap {
        &self.map
    }

    /// The page size.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// How many pages are present.
    pub fn present(&self) -> u32 {
        self.presence.present()
    }

    /// How many pages the file has.
    pub fn total(&self) -> PageCount {
        self.presence.pages()
    }

    /// Counts the present pages anew; for the process that takes the cache over while no other has it.
    pub fn recount(&self) {
        self.presence.recount();
    }

    /// Runs `base`, which reads these bytes of the main file, with every page of them present before and still there
    /// after. `base` may run more than once; the result is that of the last run. Bytes beyond the file's end are left to `base`.
    ///
    /// # Errors
    /// Why a missing page could not be had.
    pub fn read(&self, range: Range<u64>, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        let Some((first, last)) = self.pages(&range) else { return Ok(base()) };
        for _ in 0..TRIES {
            let before = self.clears(first, last);
            if let Some(missing) = self.missing(first, last) {
                self.fill(missing)?;
                continue;
            }
            let code = base();
            if self.clears(first, last) == before {
                return Ok(code);
            }
        }
        Err(self.restless(first))
    }

    /// Sees to it that a page is present.
    ///
    /// # Errors
    /// Why it could not be had.
    pub fn prefetch(&self, pgno: Pgno) -> Result<()> {
        for _ in 0..TRIES {
            if self.presence.has(pgno) || !self.presence.pages().contains(pgno) {
                return Ok(());
            }
            self.fill(pgno)?;
        }
        Err(self.restless(pgno))
    }

    /// Writes a page of the caller's and counts it as present: the first page of a database that is new or adopted.
    ///
    /// # Errors
    /// The local disk's.
    pub fn put_page(&self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.presence.reserve(PageCount(pgno.0))?;
        let unit = self.presence.lock(self.presence.unit_of(pgno))?;
        self.write_masked(pgno, page)?;
        unit.count_write();
        unit.set(pgno);
        self.presence.raise_pages(PageCount(pgno.0))
    }

    /// Reads a page if the file has it, and says whether it does; never asks the bucket.
    ///
    /// # Errors
    /// The local disk's.
    pub fn read_present(&self, pgno: Pgno, page: &mut [u8]) -> Result<bool> {
        let clears = self.clears(pgno, pgno);
        if !self.presence.pages().contains(pgno) || !self.presence.has(pgno) {
            return Ok(false);
        }
        self.file.read_exact_at(page, pgno.offset(self.page_size)).map_err(|e| self.failed("reading", &e))?;
        if pgno == Pgno::ONE {
            page[..MAGIC.len()].copy_from_slice(&MAGIC);
        }
        Ok(self.clears(pgno, pgno) == clears)
    }

    /// Makes the file survive a power loss as it is.
    ///
    /// # Errors
    /// The local disk's.
    pub fn sync(&self) -> Result<()> {
        self.map.sync()?;
        self.presence.sync()?;
        self.file.sync_data().map_err(|e| self.failed("syncing", &e))
    }

    /// Reads a page through this descriptor, with SQLite's magic in its place. Not what a reader in a transaction sees: the
    /// WAL may have a newer one.
    ///
    /// # Errors
    /// Why it could not be had; [`ErrorKind::Local`] beyond the end of the file.
    pub fn page(&self, pgno: Pgno) -> Result<Vec<u8>> {
        let mut page = vec![0; self.page_size.bytes() as usize];
        let start = pgno.offset(self.page_size);
        let mut outcome = Ok(());
        self.read(start..start + page.len() as u64, &mut || {
            outcome = self.file.read_exact_at(&mut page, start);
            0
        })?;
        outcome.map_err(|e| Error::local(format!("reading page {pgno} of {}", self.path.display()), &e))?;
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
        let (first, last) = (self.page_size.page_at(range.start), self.page_size.page_at(range.end - 1));
        let page_bytes = u64::from(self.page_size.bytes());
        if !range.start.is_multiple_of(page_bytes) {
            self.prefetch(first)?;
        }
        if !range.end.is_multiple_of(page_bytes) {
            self.prefetch(last)?;
        }
        self.presence.reserve(PageCount(last.0))?;
        let (first_unit, last_unit) = (self.presence.unit_of(first), self.presence.unit_of(last));
        if first_unit != last_unit {
            // Never by SQLite, whose writes are of one page.
            let tail = self.presence.lock_from(first)?;
            let code = base();
            if code == 0 {
                (first.0..=last.0).for_each(|pgno| tail.set(Pgno(pgno)));
                self.presence.raise_pages(PageCount(last.0))?;
            }
            return Ok(code);
        }
        let unit = self.presence.lock(first_unit)?;
        let code = base();
        if code == 0 {
            unit.count_write();
            (first.0..=last.0).for_each(|pgno| unit.set(Pgno(pgno)));
            self.presence.raise_pages(PageCount(last.0))?;
        }
        Ok(code)
    }

    /// Runs `base`, which cuts the main file off at `size_bytes` (or extends it), and forgets the pages beyond, also in the map.
    /// Under the locks that a checkpoint holds.
    ///
    /// # Errors
    /// The local disk's; `base` did not run then.
    pub fn truncate(&self, size_bytes: u64, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        let pages = PageCount(size_bytes.div_ceil(u64::from(self.page_size.bytes())) as u32);
        self.presence.reserve(pages)?;
        let tail = self.presence.lock_from(Pgno(pages.0 + 1))?;
        tail.cut();
        let code = base();
        if code == 0 {
            self.map.truncate(pages);
            self.presence.raise_pages(pages)?;
        }
        Ok(code)
    }

    /// Extends the file to a database of so many pages. It never gets smaller by this.
    ///
    /// # Errors
    /// The local disk's.
    pub fn set_size(&self, pages: PageCount) -> Result<()> {
        let failed = |e: &io::Error| Error::local(format!("extending {}", self.path.display()), e);
        self.presence.reserve(pages)?;
        let _held = self.presence.lock_from(Pgno(self.presence.pages().0 + 1))?;
        if self.file.metadata().map_err(|e| failed(&e))?.len() < pages.bytes(self.page_size) {
            self.file.set_len(pages.bytes(self.page_size)).map_err(|e| failed(&e))?;
        }
        self.presence.raise_pages(pages)
    }

    /// Forgets pages, so that their next reader takes them from where the map says.
    ///
    /// # Errors
    /// The local disk's.
    pub fn forget(&self, pages: impl IntoIterator<Item = Pgno>) -> Result<()> {
        for pgno in pages {
            self.presence.lock(self.presence.unit_of(pgno))?.clear(pgno);
        }
        Ok(())
    }

    /// Distrusts all that the file holds: every page is fetched anew when it is read. Only when everything in it is in the
    /// bucket, in the outbox, or in the WAL.
    ///
    /// # Errors
    /// The local disk's.
    pub fn clear_all(&self) -> Result<()> {
        let tail = self.presence.lock_from(Pgno::ONE)?;
        tail.clear();
        let size = self.file.metadata().map_err(|e| self.failed("measuring", &e))?.len();
        self.punch(0..size)
    }

    /// Frees a unit, if nothing happened to it since it had this stamp. Returns whether it did. The pages have to be in the
    /// bucket and in the map as they are in the file.
    ///
    /// # Errors
    /// The local disk's.
    #[allow(dead_code, reason = "the place that a bounded cache is built on; its protocol is tested")]
    pub(crate) fn evict(&self, unit: u64, seen: Stamp) -> Result<bool> {
        let held = self.presence.lock(unit)?;
        if held.stamp() != seen {
            return Ok(false);
        }
        held.clear_all();
        self.punch(unit * UNIT_BYTES..(unit + 1) * UNIT_BYTES)?;
        Ok(true)
    }

    /// The stamp of the unit that a page lies in, with the unit's number.
    pub(crate) fn unit(&self, pgno: Pgno) -> (u64, Stamp) {
        let unit = self.presence.unit_of(pgno);
        (unit, self.presence.stamp(unit))
    }

    /// Gives the blocks of cleared bytes back.
    fn punch(&self, range: Range<u64>) -> Result<()> {
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if range.is_empty() {
            return Ok(());
        }
        match nix::fcntl::fallocate(&self.file, how, range.start as i64, (range.end - range.start) as i64) {
            // Where a filesystem has no holes the bytes stay, and count as absent all the same.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(e) => Err(self.failed("punching a hole into", &e.into())),
        }
    }

    /// The pages of a range that the file has; `None` where it has none of them.
    fn pages(&self, range: &Range<u64>) -> Option<(Pgno, Pgno)> {
        let total = self.presence.pages();
        if range.is_empty() || range.start >= total.bytes(self.page_size) {
            return None;
        }
        let last = self.page_size.page_at((range.end - 1).min(total.bytes(self.page_size) - 1));
        Some((self.page_size.page_at(range.start), last))
    }

    fn missing(&self, first: Pgno, last: Pgno) -> Option<Pgno> {
        let lock_page = self.page_size.lock_page();
        (first.0..=last.0).map(Pgno).find(|&pgno| pgno != lock_page && !self.presence.has(pgno))
    }

    /// How often pages of these units were cleared so far.
    fn clears(&self, first: Pgno, last: Pgno) -> u64 {
        let units = self.presence.unit_of(first)..=self.presence.unit_of(last);
        units.map(|unit| u64::from(self.presence.stamp(unit).clears())).sum()
    }

    /// Fetches a missing page with its neighbours, or waits for the thread that does. The page may be missing again, or still,
    /// when this returns Ok: the caller looks again.
    fn fill(&self, missing: Pgno) -> Result<()> {
        let mut stale = 0;
        let mut planned_anew = false;
        loop {
            // By unit, as it was before the places of its pages were looked up.
            let mut stamps: Vec<(u64, Stamp)> = Vec::new();
            let plan = |free: &dyn Fn(Pgno) -> bool| {
                let total = self.presence.pages();
                let mut stamp = |pgno: Pgno| {
                    let (unit, stamp) = self.unit(pgno);
                    if stamps.last().is_none_or(|&(last, _)| last != unit) {
                        stamps.push((unit, stamp));
                    }
                };
                stamp(missing);
                let wanted = |pgno: Pgno| {
                    let wanted = total.contains(pgno) && free(pgno);
                    if wanted {
                        stamp(pgno);
                    }
                    wanted
                };
                let run = self.read_ahead.run(&self.map, missing, wanted)?;
                Ok((run.pages.iter().map(|&(pgno, _)| pgno).collect(), run))
            };
            let turn = self.flights.turn(missing, |pgno| self.presence.has(pgno), plan)?;
            let (departed, run) = match turn {
                Turn::Present => return Ok(()),
                Turn::Wait(flight) => return flight.wait(self.source.limit()),
                Turn::Fetch(departed, run) => (departed, run),
            };
            let outcome = self.fetch(&run, &stamps);
            match outcome {
                Err(ReadError::Stale(error)) if stale < 3 => {
                    stale += 1;
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

    fn fetch(&self, run: &Run, stamps: &[(u64, Stamp)]) -> Result<(), ReadError> {
        let pages = self.source.pages(run, self.page_size)?;
        let unit_of = |page: &(Pgno, Vec<u8>)| self.presence.unit_of(page.0);
        for pages in pages.chunk_by(|a, b| unit_of(a) == unit_of(b)) {
            self.store(pages, stamps).map_err(ReadError::Other)?;
        }
        Ok(())
    }

    /// Writes fetched pages of one unit, as far as they are still wanted.
    fn store(&self, pages: &[(Pgno, Vec<u8>)], stamps: &[(u64, Stamp)]) -> Result<()> {
        let Some((first, _)) = pages.first() else { return Ok(()) };
        let unit = self.presence.unit_of(*first);
        let before = stamps.iter().find(|(noted, _)| *noted == unit).map(|(_, stamp)| stamp.clears());
        let held = self.presence.lock(unit)?;
        if before != Some(held.stamp().clears()) {
            return Ok(());
        }
        for (pgno, page) in pages {
            if self.presence.has(*pgno) || !self.presence.pages().contains(*pgno) {
                continue;
            }
            self.write_masked(*pgno, page)?;
            held.set(*pgno);
        }
        Ok(())
    }

    fn write_masked(&self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let write = || {
            if pgno != Pgno::ONE {
                return self.file.write_all_at(page, pgno.offset(self.page_size));
            }
            let mut masked = page.to_vec();
            masked[..MASK.len()].copy_from_slice(&MASK);
            self.file.write_all_at(&masked, 0)
        };
        write().map_err(|e| self.failed(&format!("writing page {pgno} to"), &e))
    }

    fn failed(&self, doing: &str, error: &io::Error) -> Error {
        Error::local(format!("{doing} {}", self.path.display()), error)
    }

    fn restless(&self, pgno: Pgno) -> Error {
        let why = format!("page {pgno} of {}: taken away each time it was fetched", self.path.display());
        Error::new(ErrorKind::Unavailable, why)
    }
}

/// Device and inode: which file this is, whatever its name.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
#[path = "file/tests.rs"]
mod tests;
