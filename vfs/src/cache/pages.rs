//! The main file and the bits that say what it holds: every way in which pages come into it and leave it.
//!
//! Guarantees the rules of `presence.rs`: data before bit, clear before punch, each under the unit's lock. It waits for
//! locks and for the local disk, never for the network; who asks the bucket is `file.rs`.
//!
//! **One descriptor.** It opens the main file once and keeps it until it is dropped. It must not be dropped while SQLite of
//! this process has the file open, since closing *any* descriptor of a file drops the process's POSIX locks on it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;

use crate::cache::file::{MAGIC, MASK};
use crate::cache::presence::{Presence, Stamp, UNIT_BYTES};
use crate::cache::room::Room;
use crate::error::{Error, Result};
use crate::page::{PageCount, PageSize, Pgno};
use crate::replica::fetch::Unpacked;

/// By unit, in ascending order: its stamp as it was before the places of its pages were looked up.
pub(crate) type Stamps = Vec<(u64, Stamp)>;

/// The main file with its presence.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) page_size: PageSize,
    pub(super) presence: Presence,
    pub(super) room: OnceLock<Room>,
}

impl Pages {
    /// Writes a page of the caller's and counts it as present: the first page of a database that is new or adopted.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn put_page(&self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.presence.reserve(PageCount(pgno.0))?;
        let unit = self.presence.lock(self.presence.unit_of(pgno))?;
        unit.count_write();
        self.write_masked(pgno, page)?;
        unit.set(pgno);
        self.presence.raise_pages(PageCount(pgno.0))
    }

    /// Reads a page if the file has it, and says whether it does; never asks the bucket.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn read_present(&self, pgno: Pgno, page: &mut [u8]) -> Result<bool> {
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

    /// Runs `base`, which cuts the main file off at `size_bytes` (or extends it), and forgets the pages beyond, also
    /// by `cut_off`.
    /// Under the locks that a checkpoint holds.
    ///
    /// # Errors
    /// The local disk's; `base` did not run then.
    pub(crate) fn truncate(
        &self,
        size_bytes: u64,
        base: &mut dyn FnMut() -> i32,
        cut_off: impl FnOnce(PageCount),
    ) -> Result<i32> {
        let pages = PageCount(size_bytes.div_ceil(u64::from(self.page_size.bytes())) as u32);
        self.presence.reserve(pages)?;
        let tail = self.presence.lock_from(Pgno(pages.0 + 1))?;
        tail.cut();
        let code = base();
        if code == 0 {
            cut_off(pages);
            self.presence.raise_pages(pages)?;
        }
        Ok(code)
    }

    /// Extends the file to a database of so many pages. It never gets smaller by this.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn set_size(&self, pages: PageCount) -> Result<()> {
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
    pub(crate) fn forget(&self, pages: impl IntoIterator<Item = Pgno>) -> Result<()> {
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
    pub(crate) fn clear_all(&self) -> Result<()> {
        let tail = self.presence.lock_from(Pgno::ONE)?;
        tail.clear();
        let size = self.file.metadata().map_err(|e| self.failed("measuring", &e))?.len();
        self.punch(0..size)
    }

    /// Frees a unit, if it is clean and nothing happened to it since it had this stamp. Returns whether it did.
    ///
    /// # Errors
    /// The local disk's.
    pub(crate) fn evict(&self, unit: u64, seen: Stamp) -> Result<bool> {
        let held = self.presence.lock(unit)?;
        if held.stamp() != seen || !held.is_clean() {
            return Ok(false);
        }
        if !held.clear_to_evict() {
            return Ok(false);
        }
        self.punch(unit * UNIT_BYTES..(unit + 1) * UNIT_BYTES)?;
        Ok(true)
    }

    /// The stamp of the unit that a page lies in, with the unit's number.
    pub(crate) fn unit(&self, pgno: Pgno) -> (u64, Stamp) {
        let unit = self.presence.unit_of(pgno);
        (unit, self.presence.stamp(unit))
    }

    /// Gives the blocks of cleared bytes back.
    pub(super) fn punch(&self, range: Range<u64>) -> Result<()> {
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
    pub(super) fn pages(&self, range: &Range<u64>) -> Option<(Pgno, Pgno)> {
        let total = self.presence.pages();
        if range.is_empty() || range.start >= total.bytes(self.page_size) {
            return None;
        }
        let last = self.page_size.page_at((range.end - 1).min(total.bytes(self.page_size) - 1));
        Some((self.page_size.page_at(range.start), last))
    }

    pub(super) fn missing(&self, first: Pgno, last: Pgno) -> Option<Pgno> {
        let lock_page = self.page_size.lock_page();
        (first.0..=last.0).map(Pgno).find(|&pgno| pgno != lock_page && !self.presence.has(pgno))
    }

    /// How often pages of these units were cleared so far.
    pub(super) fn clears(&self, first: Pgno, last: Pgno) -> u64 {
        let units = self.presence.unit_of(first)..=self.presence.unit_of(last);
        units.map(|unit| u64::from(self.presence.stamp(unit).clears())).sum()
    }

    pub(super) fn write_masked(&self, pgno: Pgno, page: &[u8]) -> Result<()> {
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

    pub(super) fn failed(&self, doing: &str, error: &io::Error) -> Error {
        Error::local(format!("{doing} {}", self.path.display()), error)
    }

    /// Writes fetched pages as far as they are still wanted.
    pub(super) fn store_all(&self, pages: &Unpacked, stamps: &Stamps) -> Result<()> {
        let unit_of = |pgno: &Pgno| self.presence.unit_of(*pgno);
        let mut place = 0;
        for of_unit in pages.pgnos().chunk_by(|a, b| unit_of(a) == unit_of(b)) {
            self.store(pages, place..place + of_unit.len(), stamps)?;
            place += of_unit.len();
        }
        let mut units: Vec<u64> = pages.pgnos().iter().map(unit_of).collect();
        units.dedup();
        self.keep_within_bounds(&units)
    }

    /// Writes fetched pages of one unit, those at these places, as far as they are still wanted; those that lie side by side in one go.
    fn store(&self, pages: &Unpacked, places: Range<usize>, stamps: &Stamps) -> Result<()> {
        let Some(first) = pages.pgnos().get(places.start) else { return Ok(()) };
        let unit = self.presence.unit_of(*first);
        let before = stamps.binary_search_by_key(&unit, |&(noted, _)| noted).ok().map(|at| stamps[at].1.clears());
        let held = self.presence.lock(unit)?;
        if before != Some(held.stamp().clears()) {
            return Ok(());
        }
        let total = self.presence.pages();
        let pgno = |place: usize| pages.pgnos()[place];
        let is_wanted = |&place: &usize| !self.presence.has(pgno(place)) && total.contains(pgno(place));
        let wanted: Vec<usize> = places.filter(is_wanted).collect();
        let follows = |a: &usize, b: &usize| a + 1 == *b && pgno(*a).0 + 1 == pgno(*b).0;
        for side_by_side in wanted.chunk_by(follows) {
            let places = side_by_side[0]..side_by_side[0] + side_by_side.len();
            self.write_masked(pgno(places.start), pages.bytes(places))?;
            side_by_side.iter().for_each(|&place| held.set(pgno(place)));
        }
        // Else what is fetched ahead would be the first to go.
        self.presence.use_unit(unit);
        Ok(())
    }
}

/// Device and inode: which file this is, whatever its name.
pub(super) fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}
