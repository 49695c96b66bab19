//! Taking deltas from the bucket into a live database: each is appended to the local WAL as a commit of another
//! connection would be.
//!
//! Readers of every process keep their snapshots and see the new state from their next transaction on. A writer whose
//! transaction began before gets SQLITE_BUSY, as always when somebody else has committed. Pages that the delta
//! lacks stay as they are; pages that the database grows over without the delta holding them read as zeros.
//!
//! # What a crash leaves
//! Everything happens under the WAL's WRITE lock and the capture lock:
//! 1. All frames but the last are written. None ends a commit, so a recovery ignores them and the next writer overwrites them.
//! 2. `outbox/applied` says which frames are to be which delta, with their final checksum, and is synced.
//! 3. The last frame is written: from here on a recovery from the file finds the new state, everybody else the old one.
//! 4. The frames are entered into the hash tables. What is beyond mxFrame there is nobody's; the next writer clears it.
//! 5. The header is published: copy 2, barrier, copy 1. A crash between the two makes the next connection recover from
//!    the file, so it is the new state from the first word of copy 2 on.
//! 6. The state file, and then the shared memory, say how far the WAL is captured and which TXID that is.
//!
//! So it is the old or the new state at every point, and the two are told apart by what SQLite holds to be committed: capture takes
//! the frames for the delta exactly when they are (`capture/applied.rs`). Nothing has to be undone, and nothing is sent twice.
//!
//! # Keeping the WAL short
//! SQLite restarts a WAL from its start in the next writer's transaction; a follower has none, so this does it when
//! everything is backfilled and no reader uses the WAL. [`Progress::checkpoint`] says when a backfill is due: an ordinary
//! connection's checkpoint, or `backfill.rs` where there is none to run it. `Restart` means that readers are waited for until
//! they have left the WAL; those that come after it read the database file alone, until the next delta, which then finds
//! the WAL free.
//!
//! Left to the caller: that the delta's bytes are the object's, the page map (merge the delta once `nBackfill` has reached
//! [`Progress::end`], or at the next [`Progress::restarted`]), and what becomes of local commits in a conflict.

pub(crate) mod backfill;
mod frames;
pub(crate) mod index;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use self::frames::FrameWriter;
use self::index::{IndexHeader, IndexWriter};
use crate::capture::Capture;
use crate::capture::applied::Applied;
use crate::capture::index::Committed;
use crate::capture::position::Position;
use crate::capture::wal::{FRAME_HEADER, HEADER, WalHeader};
use crate::database::{WalEnd, WalIndex};
use crate::delta::{DecodeError, Decoder};
use crate::error::{Error, ErrorKind, Result};
use crate::local::Layout;
use crate::local::locks::HostMutex;
use crate::local::shared::Shared;
use crate::page::{PageCount, PageSize, TxId};
use crate::protocol::ObjectId;

/// How long an apply waits for the capture lock while it holds the WRITE lock.
const CAPTURE_WAIT: Duration = Duration::from_millis(100);
/// From this many bytes on that are not backfilled, a checkpoint is asked for; SQLite's own default is 1000 pages.
const PASSIVE_BYTES: u64 = 4 << 20;
/// From this many bytes on in the WAL, readers are waited for, so that it can start again.
const RESTART_BYTES: u64 = 16 << 20;

/// What taking in deltas needs of a database.
pub(crate) struct Applier<'a> {
    /// The wal-index.
    pub(crate) index: &'a dyn WalIndex,
    /// Where the WAL is.
    pub(crate) layout: &'a Layout,
    /// The capture lock.
    pub(crate) capture: &'a HostMutex<Capture>,
    /// What the processes of this host share.
    pub(crate) shared: &'a Shared,
    /// The database's page size.
    pub(crate) page_size: PageSize,
}

/// What became of a delta.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Somebody writes, captures, or has to recover the wal-index first: try again. Nothing was changed.
    Busy,
    /// Local commits are not in the bucket; the delta would go on top of them. Nothing was changed.
    Conflict,
    /// The database has this TXID, or a later one, already.
    Known,
    /// It is the database's newest commit.
    Applied(Progress),
}

/// Where the WAL stands after a delta.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    /// Frames that were appended; zero for an empty delta.
    pub(crate) frames: u32,
    /// Size of the database.
    pub(crate) pages: PageCount,
    /// The delta is in the database file once this much is backfilled.
    pub(crate) end: WalEnd,
    /// The WAL started again: all that was in it is in the database file.
    pub(crate) restarted: bool,
    /// The checkpoint that a connection should run before the next delta.
    pub(crate) checkpoint: Option<Checkpoint>,
}

/// A mode of `sqlite3_wal_checkpoint_v2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checkpoint {
    /// Backfills what no reader needs.
    Passive,
    /// Backfills everything and waits, with the connection's busy timeout, until no reader uses the WAL.
    Restart,
}

impl Applier<'_> {
    /// Appends one delta; `id` is that of the object which it, or the newest part of it, comes from.
    ///
    /// # Errors
    /// Corrupt: the delta is malformed, has another page size, or does not follow what the database has; or the WAL is
    /// not what its index says. Local or Full: the disk. Another try is harmless: the delta is applied then, or Known.
    pub(crate) fn apply<R: Read>(&self, delta: Decoder<R>, id: ObjectId) -> Result<Outcome> {
        let Some(index) = self.index.writer()? else { return Ok(Outcome::Busy) };
        let Some(header) = IndexHeader::read(index.region(0)?) else { return Ok(Outcome::Busy) };
        let mut capture = match self.capture.lock_within(CAPTURE_WAIT, "the capture lock") {
            Err(e) if e.kind() == ErrorKind::Busy => return Ok(Outcome::Busy),
            result => result?,
        };
        let committed = self.committed(&header)?;
        let position = capture.catch_up(self.shared, committed.as_ref())?;
        if self.has_local_commits(&header, &position) {
            return Ok(Outcome::Conflict);
        }
        if id.txid <= self.shared.durable() {
            return Ok(Outcome::Known);
        }
        let told = delta.header();
        if told.page_size != self.page_size || told.min > self.shared.durable().next() || told.max != id.txid {
            let message = format!(
                "delta {}-{} with pages of {} bytes does not follow {} with pages of {}",
                told.min,
                told.max,
                told.page_size,
                self.shared.durable(),
                self.page_size
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let apply = Apply { applier: self, index: &*index, header, committed, position, id: Some(id) };
        apply.run(delta, &mut capture).map(Outcome::Applied)
    }

    /// Appends a delta as a commit of this host's own, which nothing local may stand before: it is captured and uploaded like
    /// any other.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub(crate) fn commit<R: Read>(&self, delta: Decoder<R>) -> Result<Outcome> {
        let Some(index) = self.index.writer()? else { return Ok(Outcome::Busy) };
        let Some(header) = IndexHeader::read(index.region(0)?) else { return Ok(Outcome::Busy) };
        let mut capture = match self.capture.lock_within(CAPTURE_WAIT, "the capture lock") {
            Err(e) if e.kind() == ErrorKind::Busy => return Ok(Outcome::Busy),
            result => result?,
        };
        let committed = self.committed(&header)?;
        let position = capture.catch_up(self.shared, committed.as_ref())?;
        if self.has_local_commits(&header, &position) || delta.header().min != self.shared.durable().next() {
            return Ok(Outcome::Conflict);
        }
        Apply { applier: self, index: &*index, header, committed, position, id: None }
            .run(delta, &mut capture)
            .map(Outcome::Applied)
    }

    /// The committed frames; `None` if there are none.
    fn committed(&self, header: &IndexHeader) -> Result<Option<Committed>> {
        let (salts, frames, pages) = (header.salts(), header.frames(), header.pages());
        let Some(page_size) = header.page_size() else { return Ok(None) };
        if page_size != self.page_size {
            return Err(self.corrupt(&format!("its pages have {page_size} bytes, the database's {}", self.page_size)));
        }
        Ok(Some(Committed { salts, frames, pages, page_size }))
    }

    /// Whether anything is committed, saved or frozen that the bucket does not have.
    fn has_local_commits(&self, header: &IndexHeader, position: &Position) -> bool {
        let captured = (header.salts(), header.frames(), header.checksum().0);
        let in_wal = header.frames() > 0 && captured != (position.salts, position.frames, position.cksum);
        in_wal || self.shared.saved_bytes() > 0 || self.shared.frozen() > self.shared.durable()
    }

    fn corrupt(&self, why: &str) -> Error {
        Error::new(ErrorKind::Corrupt, format!("{}: {why}", self.layout.wal().display()))
    }
}

/// One delta on its way into the WAL, with the locks held.
struct Apply<'a> {
    applier: &'a Applier<'a>,
    index: &'a dyn IndexWriter,
    header: IndexHeader,
    committed: Option<Committed>,
    position: Position,
    /// Of the newest object in it; `None` for a commit of this host's own.
    id: Option<ObjectId>,
}

impl Apply<'_> {
    fn run<R: Read>(mut self, mut delta: Decoder<R>, capture: &mut Capture) -> Result<Progress> {
        let txid = delta.header().max;
        let malformed = |e: DecodeError| Error::new(ErrorKind::Corrupt, format!("delta {txid}: {e}"));
        let (pages, timestamp_ms) = (delta.header().commit, delta.header().timestamp_ms);
        let mut page = Vec::new();
        let Some(mut pgno) = delta.next_page(&mut page).map_err(malformed)? else {
            delta.finish().map_err(malformed)?;
            return self.note_empty(pages, timestamp_ms, capture);
        };
        let restarted = self.restart_if_free(capture)?;
        let file = self.open_wal()?;
        let wal = self.wal_header(&file)?;
        let before = self.header.frames();
        let seed = if before == 0 { wal.checksum } else { self.header.checksum() };

        let mut frames = FrameWriter::behind(&file, wal, before, seed);
        let mut entries = Vec::new();
        let mut next = Vec::new();
        while let Some(following) = delta.next_page(&mut next).map_err(malformed)? {
            frames.push(pgno, &page, None)?;
            entries.push(pgno);
            pgno = following;
            std::mem::swap(&mut page, &mut next);
        }
        // Its checksum stands at its end: only now its pages are known to be the delta's.
        delta.finish().map_err(malformed)?;
        crash_point(1);
        frames.flush()?;
        frames.push(pgno, &page, Some(pages))?;
        entries.push(pgno);
        crash_point(2);

        let serial = self.position.serial + 1;
        let (last, checksum) = (frames.last(), frames.checksum());
        let position = Position { salts: wal.salts, frames: last, cksum: checksum.0, pages, closed: false, serial };
        let applied = self.id.map(|id| Applied { id: Some(id), position, timestamp_ms, settled: false });
        if let Some(applied) = &applied {
            capture.announce(applied, self.committed.as_ref())?;
        }
        crash_point(3);
        frames.flush()?;
        crash_point(4);
        for (frame, pgno) in (before + 1..).zip(&entries) {
            index::append(self.index, before, frame, *pgno)?;
        }
        crash_point(5);
        index::publish_commit(self.index, &self.header.committed(&wal, last, checksum, pages))?;
        crash_point(6);
        if let Some(applied) = &applied {
            capture.note_applied(self.applier.shared, &position, applied)?;
        }
        crash_point(7);
        Ok(self.progress(last - before, pages, WalEnd { salts: wal.salts, frames: last }, restarted))
    }

    /// A delta without pages moves the TXID alone, and no commit is made of it.
    fn note_empty(&self, pages: PageCount, timestamp_ms: i64, capture: &Capture) -> Result<Progress> {
        let known = self.header.pages();
        if known != pages && known != PageCount(0) {
            let message = format!(
                "delta {} is empty and changes the database's size from {} to {} pages",
                self.id.map_or(TxId::NONE, |id| id.txid),
                known.0,
                pages.0
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let position = Position { pages, ..self.position };
        let applied = Applied { id: self.id, position, timestamp_ms, settled: true };
        capture.announce(&applied, self.committed.as_ref())?;
        capture.note_applied(self.applier.shared, &position, &applied)?;
        let end = WalEnd { salts: self.header.salts(), frames: self.header.frames() };
        Ok(self.progress(0, pages, end, false))
    }

    /// Starts the WAL again if everything in it is backfilled and no reader uses it.
    fn restart_if_free(&mut self, capture: &mut Capture) -> Result<bool> {
        let frames = self.header.frames();
        if frames == 0 || index::backfilled(self.index.region(0)?) != frames || !self.index.try_lock_readers()? {
            return Ok(false);
        }
        // As before every reset: it is on disk that this generation is captured to its end.
        let result = capture.save(self.applier.shared, self.committed.as_ref()).and_then(|()| {
            crash_point(8);
            index::restart(self.index, &self.header, fastrand::u32(..))
        });
        self.index.unlock_readers();
        self.header = result?;
        self.committed = self.applier.committed(&self.header)?;
        if let Some(position) = self.applier.shared.position() {
            self.position = position;
        }
        crash_point(9);
        Ok(true)
    }

    fn open_wal(&self) -> Result<File> {
        let path = self.applier.layout.wal();
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::local(format_args!("opening {}", path.display()), &e))
    }

    /// The header of the WAL that the frames go to, written anew if they are the first.
    fn wal_header(&self, file: &File) -> Result<WalHeader> {
        let mut salts = self.header.salts();
        if self.header.frames() == 0 {
            if salts == [0; 8] {
                salts = fastrand::u64(1..).to_be_bytes();
            }
            let wal = frames::write_header(file, self.applier.page_size, salts)?;
            crash_point(10);
            return Ok(wal);
        }
        let mut bytes = [0; HEADER];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0)
            .map_err(|e| Error::local(format_args!("reading {}", self.applier.layout.wal().display()), &e))?;
        WalHeader::parse(&bytes)
            .filter(|wal| wal.salts == salts && wal.order == self.header.order())
            .ok_or_else(|| self.applier.corrupt("its header is not that of the wal-index"))
    }

    fn progress(&self, frames: u32, pages: PageCount, end: WalEnd, restarted: bool) -> Progress {
        let bytes = |frames: u32| u64::from(frames) * (FRAME_HEADER as u64 + u64::from(self.applier.page_size.bytes()));
        let backfilled = self.index.region(0).map_or(0, index::backfilled);
        let checkpoint = if bytes(end.frames) >= RESTART_BYTES {
            Some(Checkpoint::Restart)
        } else if bytes(end.frames - backfilled.min(end.frames)) >= PASSIVE_BYTES {
            Some(Checkpoint::Passive)
        } else {
            None
        };
        Progress { frames, pages, end, restarted, checkpoint }
    }
}

/// Where tests kill the process, in the order of `tests.rs`.
#[cfg(not(test))]
fn crash_point(_number: u32) {}
#[cfg(test)]
use tests::crash_point;
