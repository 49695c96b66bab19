//! Our own handle on a database: how the engine sees the wal-index, and what keeps the WAL from being deleted under it.
//!
//! Before it maps the wal-index it takes a SHARED lock on the main file, and keeps it. Without that lock another process's
//! last close would delete the WAL and the wal-index while we still look at the old ones. The same lock would keep every
//! application from ever getting EXCLUSIVE, which closing the last connection and `locking_mode=EXCLUSIVE` need; so the
//! shim lets go of it around xLock(EXCLUSIVE).
//!
//! It is opened through the base VFS, whose bookkeeping makes several handles of one process safe (a file descriptor of
//! our own would drop SQLite's POSIX locks when it is closed), and lives only while the process has an application
//! connection to the database.

use std::ffi::{CStr, OsStr, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::base::{BaseFile, BaseVfs};
use super::ffi;
use super::filename::Filename;
use super::index_writer::WriteLocked;
use super::kept_mark::KeptMark;
use crate::apply::index::IndexWriter;
use crate::database::WalIndex;
use crate::error::Result;
use crate::log;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How long a connection that wants EXCLUSIVE waits for the engine to let writers in again.
const SUSPEND_WAIT: Duration = Duration::from_secs(2);
/// How long the last close waits for it.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// Words in the part of the wal-index that is of interest: two copies of the header, and the checkpoint information.
const WORDS: usize = 136 / 4;

pub(super) struct OwnHandle {
    base: BaseVfs,
    name: Arc<Filename>,
    flags: c_int,
    pub(super) state: Mutex<State>,
    write_released: Condvar,
    /// Mirrors `state.region.is_some()`, so that asking costs nothing.
    attached: AtomicBool,
    pub(super) kept: KeptMark,
}

#[derive(Default)]
pub(super) struct State {
    file: Option<OpenFile>,
    region: Option<Region>,
    /// How many connections of this process hold EXCLUSIVE or are about to ask for it.
    suspended: u32,
    /// The engine keeps writers out through this handle (see [`WalIndex::lock_write`]).
    holds_write: bool,
    /// And whoever would recover the WAL.
    holds_recover: bool,
}

impl State {
    /// The open file, and where its wal-index is mapped, while it is.
    pub(super) fn attached(&self) -> Option<(BaseFile, *const u32)> {
        let (OpenFile { file, .. }, Region(start)) = (self.file.as_ref()?, self.region?);
        Some((*file, start.as_ptr()))
    }
}

/// Where the base VFS mapped the first region of the wal-index.
#[derive(Clone, Copy)]
struct Region(NonNull<u32>);

// SAFETY: shared memory, read with atomic loads only, and only under the lock that also guards its unmapping.
unsafe impl Send for Region {}

/// The memory of an open base file.
struct OpenFile {
    file: BaseFile,
    // u64, because SQLite promises its VFSs memory aligned to 8 bytes.
    _memory: Box<[u64]>,
}

impl OwnHandle {
    /// A handle that is not open yet. `flags` are the application's, without CREATE.
    pub(super) fn new(base: BaseVfs, name: Arc<Filename>, flags: c_int) -> OwnHandle {
        OwnHandle {
            base,
            name,
            flags,
            state: Mutex::new(State::default()),
            write_released: Condvar::new(),
            attached: AtomicBool::new(false),
            kept: KeptMark::default(),
        }
    }

    /// Attaches to the wal-index unless somebody has or wants EXCLUSIVE. Costs one load when attached. The caller has it
    /// mapped itself, so this never makes the file.
    pub(super) fn attach(&self) {
        if !self.attached.load(Ordering::Acquire) {
            self.attach_locked(&mut self.state.lock(), false);
        }
    }

    /// `make` makes the wal-index, empty, if there is none: the first reader recovers it from the WAL.
    fn attach_locked(&self, state: &mut State, make: bool) {
        if state.region.is_some() || state.suspended > 0 {
            return;
        }
        if state.file.is_none() {
            state.file = self.open();
        }
        let Some(OpenFile { file, .. }) = &state.file else { return };
        if !file.has_shm() || file.lock(ffi::LOCK_SHARED) != ffi::OK {
            return;
        }
        let mut region = std::ptr::null_mut();
        // SAFETY: `region` is a variable of this function.
        let code = unsafe { file.shm_map(0, ffi::SHM_REGION_BYTES, make.into(), &mut region) };
        // READONLY: mapped, but not for writing, which suits us.
        if code & 0xff == ffi::OK || code == ffi::READONLY {
            state.region = NonNull::new(region.cast()).map(Region);
        }
        if state.region.is_none() {
            file.shm_unmap(0);
            file.unlock(ffi::LOCK_NONE);
        }
        self.attached.store(state.region.is_some(), Ordering::Release);
    }

    /// Whether there is a WAL, and so a wal-index that attaching does not make anew.
    fn wal_has_content(&self) -> bool {
        // SAFETY: a name that `Filename` ends with a zero.
        let name = unsafe { CStr::from_ptr(self.name.wal()) };
        std::fs::metadata(OsStr::from_bytes(name.to_bytes())).is_ok_and(|meta| meta.len() > 0)
    }

    fn open(&self) -> Option<OpenFile> {
        let mut memory = vec![0u64; (self.base.os_file_size() as usize).div_ceil(8)].into_boxed_slice();
        let raw = memory.as_mut_ptr().cast();
        let flags = self.flags & !ffi::OPEN_CREATE | ffi::OPEN_MAIN_DB;
        let mut out = 0;
        // SAFETY: the memory is large enough and moves with the value that owns it; the name lives as long as `self`.
        let code = unsafe { self.base.open(self.name.database(), raw, flags, &mut out) };
        if code != ffi::OK {
            log::error!("opening a handle of our own on the database failed with code {code}");
            return None;
        }
        // SAFETY: just opened; closed only by `Drop` of the value that owns it.
        Some(OpenFile { file: unsafe { BaseFile::new(raw) }, _memory: memory })
    }

    /// Lets go of every lock until `resume`: a connection of this process wants EXCLUSIVE. False, with nothing changed, if the
    /// engine keeps writers out for longer than a moment: whoever gets EXCLUSIVE could write.
    pub(super) fn suspend(&self) -> bool {
        let mut state = self.without_write(SUSPEND_WAIT);
        if state.holds_write {
            return false;
        }
        state.suspended += 1;
        self.detach(&mut state);
        true
    }

    /// The state, as soon as the engine lets writers in again, after `limit` in any case.
    fn without_write(&self, limit: Duration) -> MutexGuard<'_, State> {
        // A time-out shows in the state.
        self.write_released.wait_while_for(self.state.lock(), |state| state.holds_write, limit)
    }

    /// Ends one `suspend`. Attaching again is left to the next connection that uses the wal-index: the one that ends its
    /// EXCLUSIVE has often just deleted it, and attaching would make it anew.
    pub(super) fn resume(&self) {
        let mut state = self.state.lock();
        state.suspended = state.suspended.saturating_sub(1);
    }

    /// Lets go of everything; only called when the last connection of the process goes.
    pub(super) fn close(&self) {
        let mut state = self.without_write(CLOSE_WAIT);
        if state.holds_write {
            log::error!("closing while the lease is being given back: a writer of another process may come in between");
        }
        self.detach(&mut state);
        state.file = None;
    }

    /// In a forked child: lets go of the lock that only the parent has; see `Connection::let_go_in_child`.
    pub(super) fn let_go_in_child(&self) {
        self.kept.let_go();
        // Held by another thread of the parent when it forked, it stays so for ever.
        if let Some(state) = self.state.try_lock()
            && let Some(OpenFile { file, .. }) = &state.file
        {
            file.unlock(ffi::LOCK_NONE);
        }
    }

    fn detach(&self, state: &mut State) {
        self.attached.store(false, Ordering::Release);
        self.kept.let_go();
        if state.region.take().is_some()
            && let Some(OpenFile { file, .. }) = &state.file
        {
            file.shm_unmap(0);
            file.unlock(ffi::LOCK_NONE);
        }
    }
}

impl WalIndex for OwnHandle {
    fn bytes(&self) -> Option<[u8; 136]> {
        let mut state = self.state.lock();
        if state.region.is_none() && self.wal_has_content() {
            // No connection of this process has read yet, but another process has written, and may not live to upload it.
            self.attach_locked(&mut state, true);
        }
        let Region(start) = state.region?;
        // SAFETY: mapped until `detach`, which needs the lock held here.
        Some(unsafe { copy_head(start.as_ptr()) })
    }

    fn lock_write(&self) -> bool {
        let mut state = self.state.lock();
        // Asked by the handle that has it, the base VFS grants it again.
        if state.holds_write {
            return false;
        }
        let (Some(OpenFile { file, .. }), Some(Region(start))) = (&state.file, state.region) else { return false };
        let lock = |at| file.shm_lock(at, 1, ffi::SHM_LOCK | ffi::SHM_EXCLUSIVE) == ffi::OK;
        if !lock(ffi::SHM_WRITE) {
            return false;
        }
        // SAFETY: mapped until `detach`, which needs the lock held here.
        let recovered = header_is_valid(&unsafe { copy_head(start.as_ptr()) });
        let recover = !recovered && lock(ffi::SHM_RECOVER);
        (state.holds_write, state.holds_recover) = (true, recover);
        true
    }

    fn unlock_write(&self) {
        let mut state = self.state.lock();
        // Closing meanwhile has let go of the lock already.
        if let Some(OpenFile { file, .. }) = state.file.as_ref().filter(|_| state.region.is_some()) {
            for (held, at) in [(state.holds_recover, ffi::SHM_RECOVER), (state.holds_write, ffi::SHM_WRITE)] {
                if held {
                    file.shm_lock(at, 1, ffi::SHM_UNLOCK | ffi::SHM_EXCLUSIVE);
                }
            }
        }
        (state.holds_write, state.holds_recover) = (false, false);
        self.write_released.notify_all();
    }

    fn writer(&self) -> Result<Option<Box<dyn IndexWriter + '_>>> {
        let state = self.state.lock();
        if state.region.is_none() || state.holds_write {
            return Ok(None);
        }
        let Some(file) = state.file.as_ref().map(|open| open.file) else { return Ok(None) };
        self.kept.let_go();
        // SAFETY: the file is open and its wal-index mapped as long as the state is locked, which the guard does.
        let locked = unsafe { WriteLocked::try_lock(file, state)? };
        Ok(locked.map(|locked| Box::new(locked) as Box<dyn IndexWriter>))
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.file.close();
    }
}

/// Copies the head of the wal-index, while others may be changing it.
///
/// # Safety
/// `start` is the first region of a mapped wal-index.
pub(super) unsafe fn copy_head(start: *const u32) -> [u8; 136] {
    let mut head = [0; 136];
    for (word, bytes) in head.as_chunks_mut::<4>().0.iter_mut().enumerate().take(WORDS) {
        // SAFETY: the region is 32 KiB long and aligned to a page; other processes write to it, hence atomically.
        let value = unsafe { AtomicU32::from_ptr(start.add(word).cast_mut()) }.load(Ordering::Acquire);
        *bytes = value.to_ne_bytes();
    }
    head
}

/// Whether the head of a wal-index holds a header that SQLite would accept: both copies agree, it is initialised, and its
/// checksum is right. One that fails this is about to be rebuilt from the WAL.
///
/// | offset | type | field (in the machine's byte order) |
/// |---|---|---|
/// | 0 | 48 B | first copy of the header |
/// | 48 | 48 B | second copy |
/// | +12 | u8 | is initialised |
/// | +40 | 2 x u32 | checksum over the 40 bytes before |
pub(super) fn header_is_valid(head: &[u8; 136]) -> bool {
    let (first, second) = (&head[..48], &head[48..96]);
    if first != second || first[12] == 0 {
        return false;
    }
    let (mut s1, mut s2) = (0u32, 0u32);
    let word = |at: usize| u32::from_ne_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
    for at in (0..40).step_by(8) {
        s1 = s1.wrapping_add(word(at)).wrapping_add(s2);
        s2 = s2.wrapping_add(word(at + 4)).wrapping_add(s1);
    }
    (s1, s2) == (word(40), word(44))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain database in WAL mode with a connection to it, and a handle of our own on it.
    fn attached() -> (tempfile::TempDir, rusqlite::Connection, OwnHandle) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("plain.db");
        let db = rusqlite::Connection::open(&path).expect("opened");
        db.busy_timeout(Duration::ZERO).expect("set");
        db.execute_batch("PRAGMA journal_mode=wal; CREATE TABLE t(a)").expect("a WAL");
        let api = super::super::api::linked();
        // SAFETY: the default VFS of the linked SQLite, which stays.
        let base = unsafe { BaseVfs::new((api.vfs_find)(std::ptr::null())) };
        let name = Arc::new(Filename::new(path.as_os_str().as_encoded_bytes(), &[]));
        let own = OwnHandle::new(base, name, 2);
        own.attach();
        assert!(own.bytes().is_some_and(|head| header_is_valid(&head)));
        (dir, db, own)
    }

    #[test]
    fn nobody_gets_exclusive_while_we_are_attached_and_anybody_while_suspended() {
        let (_dir, db, own) = attached();
        let path = db.path().expect("a path").to_owned();
        db.execute_batch("PRAGMA locking_mode=exclusive").expect("asked for");
        assert!(db.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_err(), "our SHARED lock is not there");
        assert!(own.suspend());
        assert!(own.bytes().is_none());
        db.execute_batch("BEGIN IMMEDIATE; ROLLBACK").expect("exclusive");
        own.attach();
        assert!(own.bytes().is_none(), "attached while suspended");
        db.close().expect("closed");
        assert!(!std::path::Path::new(&format!("{path}-shm")).exists());
        own.resume();
        assert!(!std::path::Path::new(&format!("{path}-shm")).exists(), "resuming made the wal-index anew");
    }

    #[test]
    fn writers_are_out_while_the_engine_says_so_and_exclusive_waits() {
        let (_dir, db, own) = attached();
        assert!(own.lock_write());
        assert!(!own.lock_write(), "two threads of the engine keep writers out at once");
        assert!(own.state.lock().holds_write, "the second thread takes it from the first");
        assert!(db.execute_batch("INSERT INTO t VALUES (1)").is_err());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| own.suspend());
            own.unlock_write();
            assert!(waits.join().expect("no panic"));
        });
        db.execute_batch("INSERT INTO t VALUES (1)").expect("written");
    }

    #[test]
    fn whoever_would_recover_the_wal_is_told_busy_while_we_keep_writers_out() {
        let (dir, db, first) = attached();
        let left = dir.path().join("left.db");
        for (from, to) in [("plain.db", "left.db"), ("plain.db-wal", "left.db-wal")] {
            let status = std::process::Command::new("cp").arg(dir.path().join(from)).arg(dir.path().join(to)).status();
            assert!(status.expect("cp").success());
        }
        drop((first, db));
        let api = super::super::api::linked();
        // SAFETY: the default VFS of the linked SQLite, which stays.
        let base = unsafe { BaseVfs::new((api.vfs_find)(std::ptr::null())) };
        let own = OwnHandle::new(base, Arc::new(Filename::new(left.as_os_str().as_encoded_bytes(), &[])), 2);
        own.attach_locked(&mut own.state.lock(), true);
        assert!(own.lock_write());
        let db = rusqlite::Connection::open(&left).expect("opened");
        db.busy_timeout(Duration::ZERO).expect("set");
        let count = || db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
        let code = count().err().and_then(|e| e.sqlite_error().map(|e| e.extended_code));
        assert_eq!(code, Some(rusqlite::ffi::SQLITE_BUSY_RECOVERY), "not SQLITE_PROTOCOL, after 10 s");
        own.unlock_write();
        assert_eq!(count().expect("recovered"), 0);
        assert!(own.lock_write(), "with the wal-index recovered");
        assert_eq!(count().expect("read beside"), 0);
        own.unlock_write();
    }

    #[test]
    fn sqlites_own_wal_index_is_valid_and_any_changed_bit_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("plain.db");
        let db = rusqlite::Connection::open(&path).expect("opened");
        db.execute_batch("PRAGMA journal_mode=wal; CREATE TABLE t(a)").expect("a WAL");
        // Reading a copy of the -shm without taking locks of our own through this descriptor's file.
        let copy = dir.path().join("copy");
        let status = std::process::Command::new("cp").arg(dir.path().join("plain.db-shm")).arg(&copy).status();
        assert!(status.expect("cp").success());
        let bytes = std::fs::read(&copy).expect("read");
        let head: [u8; 136] = bytes[..136].try_into().expect("long enough");
        assert!(header_is_valid(&head));
        for bit in 0..96 * 8 {
            let mut broken = head;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(!header_is_valid(&broken), "bit {bit}");
        }
        let mut both = head;
        for at in [16, 64] {
            both[at] ^= 1;
        }
        assert!(!header_is_valid(&both), "the checksum is not looked at");
        assert!(!header_is_valid(&[0; 136]));
    }
}
