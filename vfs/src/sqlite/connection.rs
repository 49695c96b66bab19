//! One open main file as the shim sees it: the locks it holds, and what is asked of the engine when they change.
//!
//! SQLite's locks are the base VFS's. What is added here:
//! - Before a writer takes WRITE, the engine is asked (it may have to get the lease). Not for a checkpoint and not for
//!   recovery: refusing that would lock readers out.
//! - Before READ1 to READ4 are handed out exclusively, which is the step before the WAL is reset, the engine captures the rest
//!   of it. Refused as BUSY, this is harmless: the commit goes to the end of the WAL instead.
//! - The reset guard, for SQLite 3.7.0 to 3.51.2. There a checkpoint that starts at once after another one may read the
//!   WAL's old length, have a writer reset the WAL under it, and record the old length as copied; the frames written
//!   afterwards are then never copied. A writer that holds CKPT (shared) from before the reset until after it has no
//!   checkpoint beside it. Only testing CKPT is not enough: the checkpoint may start after the test.
//! - Around EXCLUSIVE our own handle lets go of its lock.
//! - A commit that waits for the bucket in COMMIT_PHASETWO still holds its read mark, and a steady stream of such commits would
//!   keep the WAL from ever starting again. When the WAL is long the mark is let go for the time of the wait. SQLite gives it
//!   up right afterwards anyway, unless another statement of the connection is being read; that one goes on only if its
//!   snapshot was left alone meanwhile, else its reads fail. Many writers need more than that (`database/long_wal.rs`).
//!
//! A connection is used by one thread at a time (SQLite's mutex sees to it); atomics carry its state between threads.

use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use super::base::BaseFile;
use super::codes::{Callback, report};
use super::ffi;
use super::filename::Filename;
use super::own_handle::{OwnHandle, copy_head, header_is_valid};
use super::registry::{Entry, Open};
use crate::capture::index;
use crate::database::{Database, WalEnd};
use crate::log;
use crate::sync::Mutex;

const CKPT: u32 = 1 << ffi::SHM_CKPT;
/// From this many frames on a commit that waits lets go of its read mark. SQLite's own checkpoints begin at 1000.
pub(super) const LONG_WAL: u32 = 1000;
/// How often a read mark that was let go is asked for again, a millisecond apart, while somebody resets the WAL.
const RETAKES: u32 = 50;
const RETAKE_PAUSE: Duration = Duration::from_millis(1);
/// From this many frames on writers are held back until the WAL can start again.
const TOO_LONG_WAL: u32 = 2000;
/// The five read locks.
const READS: u32 = 0b11111 << ffi::SHM_READ0;

pub(super) struct Connection {
    pub(super) database: Arc<Database>,
    pub(super) entry: Arc<Entry>,
    pub(super) base: BaseFile,
    /// Names to open the WAL under; its base file keeps a pointer into this.
    pub(super) filename: Arc<Filename>,
    own: Arc<OwnHandle>,
    /// The pointer that xOpen got as the name: SQLite's WAL names lead back to it. Only ever compared.
    name: AtomicPtr<c_char>,
    /// The level of the main file's lock.
    level: AtomicI32,
    /// Our own handle was told to let go for this connection.
    suspends: AtomicBool,
    /// The wal-index locks that this file holds, as bits: shared, and exclusively.
    shared: AtomicU32,
    exclusive: AtomicU32,
    /// Reads since one of them saw a read mark kept.
    reads: AtomicU32,
    /// CKPT is held shared by the reset guard, not by SQLite.
    guarding: AtomicBool,
    /// WRITE is held by a writer that the engine let pass.
    writing: AtomicBool,
    /// The first region of the wal-index as this file mapped it.
    region: AtomicPtr<u32>,
    /// The snapshot that the read mark stood for is gone: nothing may be read until the mark is given up.
    snapshot_gone: AtomicBool,
    /// What was committed when WRITE was taken, and what COMMIT_PHASETWO will wait for.
    began: Mutex<Option<WalEnd>>,
    end: Mutex<Option<WalEnd>>,
}

impl Connection {
    pub(super) fn new(
        open: Open,
        entry: Arc<Entry>,
        base: BaseFile,
        filename: Arc<Filename>,
        name: *const c_char,
    ) -> Self {
        Connection {
            database: open.database,
            entry,
            base,
            filename,
            own: open.own,
            name: AtomicPtr::new(name.cast_mut()),
            level: AtomicI32::new(ffi::LOCK_NONE),
            suspends: AtomicBool::new(false),
            shared: AtomicU32::new(0),
            exclusive: AtomicU32::new(0),
            reads: AtomicU32::new(0),
            guarding: AtomicBool::new(false),
            writing: AtomicBool::new(false),
            region: AtomicPtr::new(ptr::null_mut()),
            snapshot_gone: AtomicBool::new(false),
            began: Mutex::new(None),
            end: Mutex::new(None),
        }
    }

    /// Whether the main file was opened with exactly this pointer as its name.
    pub(super) fn is_named(&self, name: *const c_char) -> bool {
        ptr::eq(self.name.load(Ordering::Relaxed), name)
    }

    /// Whether this connection makes no xShmLock calls, because nobody else can be there (`locking_mode=EXCLUSIVE`).
    pub(super) fn is_exclusive(&self) -> bool {
        self.level.load(Ordering::Relaxed) >= ffi::LOCK_EXCLUSIVE
    }

    /// Turns an error of the engine into the callback's code.
    pub(super) fn refuse(&self, callback: Callback, error: &crate::Error) -> c_int {
        report(callback, self.database.path(), error)
    }

    /// xLock.
    pub(super) fn lock(&self, level: c_int) -> c_int {
        if self.database.is_inherited() {
            return ffi::BUSY;
        }
        if level < ffi::LOCK_EXCLUSIVE || self.is_exclusive() {
            let code = self.base.lock(level);
            if code == ffi::OK {
                self.level.fetch_max(level, Ordering::Relaxed);
            }
            return code;
        }
        if let Err(error) = self.database.before_exclusive() {
            return self.refuse(Callback::Exclusive, &error);
        }
        if !self.own.suspend() {
            return ffi::BUSY;
        }
        let code = self.base.lock(level);
        if code == ffi::OK {
            self.level.store(level, Ordering::Relaxed);
            self.suspends.store(true, Ordering::Relaxed);
        } else {
            self.resume();
        }
        code
    }

    fn resume(&self) {
        self.own.resume();
        if !self.region.load(Ordering::Acquire).is_null() {
            self.own.attach();
        }
    }

    /// xUnlock.
    pub(super) fn unlock(&self, level: c_int) -> c_int {
        if self.database.is_inherited() {
            return ffi::OK;
        }
        let code = self.base.unlock(level);
        if code == ffi::OK {
            self.level.fetch_min(level, Ordering::Relaxed);
            if self.suspends.swap(false, Ordering::Relaxed) {
                self.resume();
            }
        }
        code
    }

    /// xShmMap, after the base VFS mapped a region.
    pub(super) fn mapped(&self, region: c_int, memory: *mut u32) {
        if region == 0 && !memory.is_null() && !self.database.is_inherited() {
            self.region.store(memory, Ordering::Release);
            self.own.attach();
        }
    }

    /// xShmUnmap, before the base VFS does it; `false` if it must not.
    pub(super) fn unmapping(&self) -> bool {
        if self.database.is_inherited() {
            return false;
        }
        self.region.store(ptr::null_mut(), Ordering::Release);
        self.shared.store(0, Ordering::Relaxed);
        self.exclusive.store(0, Ordering::Relaxed);
        self.guarding.store(false, Ordering::Relaxed);
        self.snapshot_gone.store(false, Ordering::Relaxed);
        self.writing.store(false, Ordering::Relaxed);
        true
    }

    /// xShmLock.
    pub(super) fn shm_lock(&self, offset: c_int, n: c_int, flags: c_int) -> c_int {
        if offset < 0 || n < 1 || offset + n > ffi::SHM_NLOCK {
            return ffi::IOERR_SHMLOCK;
        }
        if self.database.is_inherited() {
            if flags & ffi::SHM_UNLOCK != 0 {
                return ffi::OK;
            }
            log::error!("{}: a connection that was opened before fork is used", self.database.path().display());
            return ffi::IOERR_SHMLOCK;
        }
        if flags & ffi::SHM_UNLOCK != 0 {
            return self.shm_unlock(offset, n, flags);
        }
        self.own.attach();
        if flags & ffi::SHM_EXCLUSIVE == 0 {
            if bits(offset, n) & READS != 0 {
                self.database.before_read();
            }
            let code = self.take(offset, n, flags);
            if code == ffi::OK && bits(offset, n) & READS != 0 {
                self.own.has_read(&self.reads, offset);
            }
            return code;
        }
        if bits(offset, n) & READS != 0 {
            self.own.let_go_of_mark();
        }
        match (offset, n) {
            (ffi::SHM_WRITE, 1) => self.take_write(flags),
            (ffi::SHM_READ1, ffi::SHM_READS_BESIDE_0) => self.take_reads_for_reset(flags),
            (ffi::SHM_CKPT, 1) => {
                let code = self.take(offset, n, flags);
                if code == ffi::OK {
                    self.database.checkpoint_begins();
                }
                code
            }
            _ => self.take(offset, n, flags),
        }
    }

    fn take_write(&self, flags: c_int) -> c_int {
        let writer = self.is_for_a_writer();
        if writer && self.reads_a_wal_that_is_too_long() && self.database.holds_writers_back() {
            return ffi::BUSY;
        }
        if writer && self.shared.load(Ordering::Relaxed) & READS == 0 && self.database.has_just_applied() {
            return ffi::BUSY;
        }
        if writer && let Err(error) = self.database.before_write_lock() {
            return self.refuse(Callback::WriteLock, &error);
        }
        let before = self.entry.writers.count();
        let code = self.take(ffi::SHM_WRITE, 1, flags);
        match code {
            ffi::OK => {
                self.entry.writers.taken();
                self.writing.store(writer, Ordering::Relaxed);
                *self.began.lock() = self.committed_end();
            }
            ffi::BUSY if writer => self.entry.writers.refused(before),
            _ => {}
        }
        code
    }

    /// Who asks for WRITE, told by what else this file holds:
    ///
    /// | holds | who | a writer? |
    /// |---|---|---|
    /// | READ, shared | a writer | yes |
    /// | CKPT, exclusively | a FULL, RESTART or TRUNCATE checkpoint | no |
    /// | nothing, and the header is not valid | recovery | no |
    /// | nothing, and the header is valid | a writer of a build with SQLITE_ENABLE_SETLK_TIMEOUT | yes |
    /// | the same, just after a delta of others was applied | perhaps a reader that met the header half-written | told BUSY: both try again |
    fn is_for_a_writer(&self) -> bool {
        if self.exclusive.load(Ordering::Relaxed) & CKPT != 0 {
            return false;
        }
        if self.shared.load(Ordering::Relaxed) & READS != 0 {
            return true;
        }
        let region = self.region.load(Ordering::Acquire);
        // SAFETY: set by xShmMap of this file and cleared before its xShmUnmap.
        !region.is_null() && header_is_valid(&unsafe { copy_head(region) })
    }

    /// Whether this file holds a read mark of a WAL that should start again. Its writer can only append; one that began after
    /// all was copied into the database file reads nothing from the WAL (READ0), and starts it again.
    fn reads_a_wal_that_is_too_long(&self) -> bool {
        if self.shared.load(Ordering::Relaxed) & (1 << ffi::SHM_READ0) != 0 {
            return false;
        }
        let region = self.region.load(Ordering::Acquire);
        // SAFETY: set by xShmMap of this file and cleared before its xShmUnmap.
        let too_long = !region.is_null() && frames(&unsafe { copy_head(region) }) >= TOO_LONG_WAL;
        if !too_long {
            self.database.wal_is_short();
        }
        too_long
    }

    fn take_reads_for_reset(&self, flags: c_int) -> c_int {
        let (offset, n) = (ffi::SHM_READ1, ffi::SHM_READS_BESIDE_0);
        let guard = self.exclusive.load(Ordering::Relaxed) & CKPT == 0;
        if guard {
            let code = self.base.shm_lock(ffi::SHM_CKPT, 1, ffi::SHM_LOCK | ffi::SHM_SHARED);
            if code != ffi::OK {
                return code;
            }
            self.guarding.store(true, Ordering::Relaxed);
        }
        let code = self.take(offset, n, flags);
        if code != ffi::OK {
            self.end_guard();
            return code;
        }
        let Err(error) = self.database.before_reset() else { return ffi::OK };
        self.shm_unlock(offset, n, ffi::SHM_UNLOCK | ffi::SHM_EXCLUSIVE);
        self.refuse(Callback::Reset, &error)
    }

    fn end_guard(&self) {
        if self.guarding.swap(false, Ordering::Relaxed) {
            self.base.shm_lock(ffi::SHM_CKPT, 1, ffi::SHM_UNLOCK | ffi::SHM_SHARED);
        }
    }

    fn take(&self, offset: c_int, n: c_int, flags: c_int) -> c_int {
        let code = self.base.shm_lock(offset, n, flags);
        if code == ffi::OK {
            let held = if flags & ffi::SHM_EXCLUSIVE != 0 { &self.exclusive } else { &self.shared };
            held.fetch_or(bits(offset, n), Ordering::Relaxed);
        }
        code
    }

    fn shm_unlock(&self, offset: c_int, n: c_int, flags: c_int) -> c_int {
        let bits = bits(offset, n);
        let mut written = true;
        if bits & (1 << ffi::SHM_WRITE) != 0 && self.writing.swap(false, Ordering::Relaxed) {
            let end = self.committed_end();
            written = end != *self.began.lock();
            *self.end.lock() = end;
        }
        if bits & READS != 0 {
            self.snapshot_gone.store(false, Ordering::Relaxed);
        }
        if flags & ffi::SHM_SHARED != 0 && self.shared.load(Ordering::Relaxed) & bits == 0 {
            // A read mark that could not be taken back.
            return ffi::OK;
        }
        let code = self.base.shm_lock(offset, n, flags);
        self.shared.fetch_and(!bits, Ordering::Relaxed);
        self.exclusive.fetch_and(!bits, Ordering::Relaxed);
        if bits & (1 << ffi::SHM_WRITE) != 0 {
            self.entry.writers.let_go(written);
        }
        if (offset, n) == (ffi::SHM_READ1, ffi::SHM_READS_BESIDE_0) {
            self.end_guard();
        }
        code
    }

    /// What is committed at the end of a write, while WRITE is still held, so that nobody changes the header. By this connection's
    /// own mapping: our own handle has none while another connection of the process closes.
    fn committed_end(&self) -> Option<WalEnd> {
        let region = self.region.load(Ordering::Acquire);
        // SAFETY: set by xShmMap of this file and cleared before its xShmUnmap.
        let head = (!region.is_null()).then(|| unsafe { copy_head(region) })?;
        index::parse(&head).map(|committed| WalEnd { salts: committed.salts, frames: committed.frames })
    }

    /// FCNTL_COMMIT_PHASETWO.
    pub(super) fn commit_phase_two(&self) -> crate::Result<()> {
        let exclusive = self.is_exclusive();
        let end = self.end.lock().take().filter(|_| !exclusive);
        let lent = end.filter(|end| end.frames >= LONG_WAL && self.database.waits_in_phase_two());
        let lent = lent.and_then(|end| Some((end, self.let_go_of_mark()?)));
        let result = self.database.commit_phase_two(end, exclusive);
        if let Some((end, mark)) = lent {
            self.take_mark_back(mark, end);
        }
        result
    }

    /// Lets go of the one read mark beside READ0 that this file holds, and returns which.
    fn let_go_of_mark(&self) -> Option<c_int> {
        let held = self.shared.load(Ordering::Relaxed) & READS & !(1 << ffi::SHM_READ0);
        if held.count_ones() != 1 {
            return None;
        }
        let mark = held.trailing_zeros() as c_int;
        let code = self.base.shm_lock(mark, 1, ffi::SHM_UNLOCK | ffi::SHM_SHARED);
        self.own.let_go_of_mark();
        self.shared.fetch_and(!held, Ordering::Relaxed);
        (code == ffi::OK).then_some(mark)
    }

    /// Takes the read mark again, and finds out whether the snapshot at `end`, which it stood for, is still whole.
    fn take_mark_back(&self, mark: c_int, end: WalEnd) {
        for _ in 0..RETAKES {
            match self.take(mark, 1, ffi::SHM_LOCK | ffi::SHM_SHARED) {
                ffi::BUSY => std::thread::sleep(RETAKE_PAUSE),
                _ => break,
            }
        }
        let held = self.shared.load(Ordering::Relaxed) & bits(mark, 1) != 0;
        let region = self.region.load(Ordering::Acquire);
        // SAFETY: set by xShmMap of this file and cleared before its xShmUnmap.
        let stands = held && !region.is_null() && protects(&unsafe { copy_head(region) }, mark, end);
        self.snapshot_gone.store(!stands, Ordering::Relaxed);
    }

    /// Whether a read would see something else than the snapshot that the connection believes to read.
    pub(super) fn snapshot_is_gone(&self) -> bool {
        self.snapshot_gone.load(Ordering::Relaxed)
    }

    /// In a forked child, before it opens the database itself: lets go of the locks that SQLite takes for this process's, and
    /// that only the parent has. The parent keeps them.
    pub(super) fn let_go_in_child(&self) {
        for (held, kind) in [(&self.shared, ffi::SHM_SHARED), (&self.exclusive, ffi::SHM_EXCLUSIVE)] {
            let bits = held.swap(0, Ordering::Relaxed);
            for at in (0..ffi::SHM_NLOCK).filter(|at| bits & (1 << at) != 0) {
                self.base.shm_lock(at, 1, ffi::SHM_UNLOCK | kind);
            }
        }
        self.end_guard();
        self.base.unlock(ffi::LOCK_NONE);
        self.own.let_go_in_child();
    }

    /// xClose: counts the connection out and closes its file; the last one closes the database.
    pub(super) fn close(self: &Arc<Connection>) -> c_int {
        if self.database.is_inherited() {
            // Never closed or dropped: closing a descriptor of the main file would drop the locks of this process's own connections.
            std::mem::forget(Arc::clone(self));
            return ffi::OK;
        }
        let gate = self.entry.gate();
        if self.suspends.swap(false, Ordering::Relaxed) {
            self.own.resume();
        }
        gate.remove(self, || self.base.close())
    }
}

/// Whether a read mark that is held now keeps the snapshot of this end whole: the WAL did not start again, nothing behind the
/// end was or will be copied into the database file.
///
/// | offset in the wal-index | type | field |
/// |---|---|---|
/// | 32 | 8 bytes | salts |
/// | 96 | u32 | frames that were copied into the database file |
/// | 100 + 4 i | u32 | frames that a checkpoint may copy while READi is held |
/// | 128 | u32 | frames that a checkpoint may have begun to copy |
fn protects(head: &[u8; 136], mark: c_int, end: WalEnd) -> bool {
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let limit = word(100 + 4 * (mark - ffi::SHM_READ0) as usize);
    header_is_valid(head)
        && head[32..40] == end.salts
        && [limit, word(96), word(128)].iter().all(|frames| *frames <= end.frames)
}

/// Committed frames, by the first copy of the header.
pub(super) fn frames(head: &[u8; 136]) -> u32 {
    u32::from_ne_bytes([head[16], head[17], head[18], head[19]])
}

fn bits(offset: c_int, n: c_int) -> u32 {
    ((1 << n) - 1) << offset
}
