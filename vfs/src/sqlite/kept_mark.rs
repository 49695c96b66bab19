//! Keeping a read mark for a moment longer than SQLite does, where one short read follows another.
//!
//! Two of the three system calls of a point query on pages that are there take and give back its read mark. The base VFS counts the
//! holders of a lock within the process and asks the kernel for the first and the last only. So when a connection has read
//! [`OFTEN`] times since, our own handle takes the mark that it has just taken as well, for [`MOMENT`], and until then the locks of all
//! reads of the process are counting.
//!
//! It is what one more reader would hold, so nothing can be wrong that was right without it. Nobody is to wait for it either:
//!
//! - Whoever wants a read lock exclusively, in this process, has it let go first: a checkpoint, a writer that starts the WAL again, a
//!   reader that moves a mark, the engine's own handle.
//! - Other processes have [`MOMENT`] to wait, and the next [`OFTEN`] reads to come in between. Of a WAL that SQLite's own checkpoints would
//!   begin with, no mark is kept at all.
//! - Around EXCLUSIVE, before the wal-index is unmapped, and in a forked child, where the count would say what is not so.
//!
//! A process that is stopped (SIGSTOP) within the moment is a reader that is stopped within its read: the WAL may not start again until it
//! goes on.

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::base::BaseFile;
use super::connection::{LONG_WAL, frames};
use super::ffi::{self, RawFile};
use super::own_handle::{OwnHandle, copy_head};
use crate::log;
use crate::upload::pump::{self, Line, Turn};

/// So many reads of a connection, since it last saw a mark kept, make it worth while.
const OFTEN: u32 = 64;
/// For how long.
const MOMENT: Duration = Duration::from_millis(5);

/// The read lock that our own handle holds, if any. Changed under the handle's lock only, and set before the lock is asked for: what a
/// forked child reads here is all that there can be.
#[derive(Default)]
pub(super) struct KeptMark {
    /// The lock's number in the wal-index; 0: none (that is WRITE's).
    lock: AtomicI32,
    file: AtomicPtr<RawFile>,
}

impl KeptMark {
    fn is_there(&self) -> bool {
        self.lock.load(Ordering::SeqCst) != 0
    }

    fn take(&self, file: BaseFile, lock: c_int) -> bool {
        self.file.store(file.raw(), Ordering::SeqCst);
        self.lock.store(lock, Ordering::SeqCst);
        let taken = file.shm_lock(lock, 1, ffi::SHM_LOCK | ffi::SHM_SHARED) == ffi::OK;
        if !taken {
            self.lock.store(0, Ordering::SeqCst);
        }
        taken
    }

    /// Lets go of it, under the handle's lock, with its file open; or in a forked child.
    pub(super) fn let_go(&self) {
        let (file, lock) = (self.file.load(Ordering::SeqCst), self.lock.load(Ordering::SeqCst));
        if lock == 0 || file.is_null() {
            return;
        }
        // SAFETY: the handle's file, which is open as long as its lock is held; what a forked child has of it is never closed.
        let file = unsafe { BaseFile::new(file) };
        file.shm_lock(lock, 1, ffi::SHM_UNLOCK | ffi::SHM_SHARED);
        self.file.store(ptr::null_mut(), Ordering::SeqCst);
        self.lock.store(0, Ordering::SeqCst);
    }
}

impl OwnHandle {
    /// A connection has taken the read lock `lock`; `reads` counts for it.
    pub(super) fn has_read(self: &Arc<Self>, reads: &AtomicU32, lock: c_int) {
        if self.kept.is_there() {
            return;
        }
        let count = reads.load(Ordering::Relaxed) + 1;
        reads.store(count % OFTEN, Ordering::Relaxed);
        if count >= OFTEN {
            self.keep(lock);
        }
    }

    fn keep(self: &Arc<Self>, lock: c_int) {
        let Some(state) = self.state.try_lock() else { return };
        let Some((file, head)) = state.attached() else { return };
        // SAFETY: mapped until `detach`, which needs the lock held here.
        let is_long = frames(&unsafe { copy_head(head) }) >= LONG_WAL;
        if is_long || self.kept.is_there() || !self.kept.take(file, lock) {
            return;
        }
        drop(state);
        let turn: Arc<dyn Turn> = Arc::clone(self) as _;
        if let Err(e) = pump::call_in(Line::Marks, &turn, Instant::now() + MOMENT) {
            log::debug!("no read mark is kept: {e}");
            self.let_go_of_mark();
        }
    }

    /// Lets go of the read mark that is kept, if one is.
    pub(super) fn let_go_of_mark(&self) {
        if self.kept.is_there() {
            let _state = self.state.lock();
            self.kept.let_go();
        }
    }
}

impl Turn for OwnHandle {
    fn turn(&self) -> Option<Instant> {
        self.let_go_of_mark();
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::super::base::BaseVfs;
    use super::super::filename::Filename;
    use super::*;

    const CHECKPOINT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

    /// A plain database with a connection, and a handle of our own.
    fn attached() -> (tempfile::TempDir, rusqlite::Connection, Arc<OwnHandle>) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("plain.db");
        let db = rusqlite::Connection::open(&path).expect("opened");
        db.busy_timeout(Duration::ZERO).expect("set");
        db.execute_batch("PRAGMA journal_mode=wal; CREATE TABLE t(a)").expect("a WAL");
        let api = super::super::api::linked();
        // SAFETY: the default VFS of the linked SQLite, which stays.
        let base = unsafe { BaseVfs::new((api.vfs_find)(std::ptr::null())) };
        let own = Arc::new(OwnHandle::new(base, Arc::new(Filename::new(path.as_os_str().as_bytes(), &[])), 2));
        own.attach();
        (dir, db, own)
    }

    /// So many reads that ask for READ1.
    fn read(own: &Arc<OwnHandle>, times: u32) {
        let reads = AtomicU32::new(0);
        (0..times).for_each(|_| own.has_read(&reads, ffi::SHM_READ1));
    }

    fn is_busy(db: &rusqlite::Connection) -> bool {
        db.query_row(CHECKPOINT, [], |row| row.get(0)).expect("an answer")
    }

    #[test]
    fn a_mark_is_kept_after_many_reads_and_let_go_of_in_time() {
        let (_dir, db, own) = attached();
        read(&own, OFTEN - 1);
        assert!(!own.kept.is_there());
        read(&own, OFTEN);
        let begun = Instant::now();
        while own.kept.is_there() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is kept for ever");
            std::thread::yield_now();
        }
        assert!(!is_busy(&db));
    }

    #[test]
    fn a_mark_that_is_kept_is_a_lock_and_the_engine_lets_go_of_it_first() {
        let (_dir, db, own) = attached();
        let state = own.state.lock();
        let (file, _) = state.attached().expect("attached");
        assert!(own.kept.take(file, ffi::SHM_READ1));
        drop(state);
        assert!(is_busy(&db), "a checkpoint that this VFS does not see");
        drop(crate::database::WalIndex::writer(&*own).expect("no error").expect("WRITE"));
        assert!(!own.kept.is_there() && !is_busy(&db));
    }

    #[test]
    fn around_exclusive_none_is_kept() {
        let (_dir, db, own) = attached();
        let state = own.state.lock();
        let (file, _) = state.attached().expect("attached");
        assert!(own.kept.take(file, ffi::SHM_READ1));
        drop(state);
        assert!(own.suspend());
        assert!(!is_busy(&db));
        read(&own, 2 * OFTEN);
        assert!(!own.kept.is_there());
        own.resume();
    }

    #[test]
    fn none_is_kept_of_a_wal_that_is_to_start_again() {
        let (_dir, db, own) = attached();
        db.execute_batch("PRAGMA wal_autocheckpoint=0; BEGIN; INSERT INTO t VALUES (zeroblob(5000000)); COMMIT")
            .expect("frames");
        read(&own, 2 * OFTEN);
        assert!(!own.kept.is_there());
        assert!(!is_busy(&db));
        read(&own, OFTEN);
        assert!(own.kept.is_there() || !is_busy(&db), "and then again");
    }
}
