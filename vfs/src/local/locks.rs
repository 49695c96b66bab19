//! Locks between the processes of one host, on bytes of `app.db-gcs/lock`.
//!
//! They are open-file-description locks: the kernel lets go of them when the process ends, however it ends,
//! and closing some other descriptor of the file does not. Locks of different bytes share one descriptor and know nothing of each
//! other. They do not exclude threads that share the descriptor, so each exclusive lock carries a mutex for the threads of this
//! process, and two locks of one byte need a descriptor each.
//!
//! Order, outermost first: `Follow`, SQLite's locks, `Lease`, `Upload`, `Capture`, `State`. Nobody waits for the network under
//! `Capture` or `State`.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The byte of the lock file that a lock stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LockByte {
    /// Shared by every process that has the database open; exclusive while one prepares or abandons the directory.
    Members = 0,
    /// The one process that captures from the WAL.
    Capture = 1,
    /// The one process that appends to the log: the protocol's log lane.
    Upload = 2,
    /// The one process that acts on the lease: the protocol's lease lane.
    Lease = 3,
    /// Reading and changing the state file.
    State = 4,
    /// The one process that tends the history.
    History = 5,
    /// The one process that follows the log.
    Follow = 6,
}

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Beside other shared holders.
    Shared,
    /// Alone.
    Exclusive,
    /// Not at all.
    Free,
}

/// How often a waiter looks again; the kernel's own waiting has no deadline.
const POLL: Duration = Duration::from_millis(2);

/// Opens the lock file, for locks of different bytes.
pub(crate) fn open(path: &Path) -> Result<Arc<File>> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map(Arc::new)
        .map_err(|e| Error::local(format_args!("opening {}", path.display()), &e))
}

/// Sets the lock of one byte; `false` when somebody else's lock stands against it. A change between shared and
/// exclusive keeps the old lock until it has the new one.
pub(crate) fn set(file: &File, byte: LockByte, mode: Mode) -> Result<bool> {
    let kind = match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
        Mode::Free => libc::F_UNLCK,
    };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte as libc::off_t,
        l_len: 1,
        l_pid: 0,
    };
    loop {
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(e) => return Err(Error::local("locking app.db-gcs/lock", &e.into())),
        }
    }
}

/// Sets the lock of one byte, looking again until `limit` has passed; `false` when it never was to be had.
pub(crate) fn set_within(file: &File, byte: LockByte, mode: Mode, limit: Duration) -> Result<bool> {
    let started = Instant::now();
    while !set(file, byte, mode)? {
        if started.elapsed() >= limit {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
    Ok(true)
}

/// An exclusive lock between the threads of this process and the processes of this host, over what it guards.
pub(crate) struct HostMutex<T> {
    file: Arc<File>,
    byte: LockByte,
    inner: Mutex<T>,
    /// Threads of this process that wait for `inner`.
    waiting: AtomicU32,
    freed: (Mutex<()>, Condvar),
}

/// The lock, held; it is let go when this is dropped, in this order: for other processes, for other threads, who are told.
pub(crate) struct HostGuard<'a, T> {
    _host: Host<'a>,
    threads: Threads<'a, T>,
}

/// The lock over the processes of the host.
struct Host<'a> {
    file: &'a File,
    byte: LockByte,
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        // Unlocking a lock that is held cannot be refused; the file's close would let go of it too.
        let _ = set(self.file, self.byte, Mode::Free);
    }
}

/// The lock over the threads of this process.
struct Threads<'a, T> {
    value: MutexGuard<'a, T>,
    _tells: Tells<'a>,
}

/// Tells a thread that waits that there is one holder less.
struct Tells<'a> {
    waiting: &'a AtomicU32,
    freed: &'a (Mutex<()>, Condvar),
}

impl Drop for Tells<'_> {
    fn drop(&mut self) {
        // Either this sees who waits, or he sees that the lock is free.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.freed.0.lock());
            self.freed.1.notify_one();
        }
    }
}

impl<T> HostMutex<T> {
    /// Over `value`, with a descriptor of the lock file that no other lock uses for this byte.
    pub(crate) fn new(file: &Arc<File>, byte: LockByte, value: T) -> HostMutex<T> {
        let freed = (Mutex::new(()), Condvar::new());
        HostMutex { file: Arc::clone(file), byte, inner: Mutex::new(value), waiting: 0.into(), freed }
    }

    /// Takes the lock if it is free now.
    pub(crate) fn try_lock(&self) -> Result<Option<HostGuard<'_, T>>> {
        let Some(threads) = self.try_threads() else { return Ok(None) };
        let held = set(&self.file, self.byte, Mode::Exclusive)?;
        Ok(held.then(|| HostGuard { _host: self.host(), threads }))
    }

    fn host(&self) -> Host<'_> {
        Host { file: &self.file, byte: self.byte }
    }

    fn try_threads(&self) -> Option<Threads<'_, T>> {
        let value = self.inner.try_lock()?;
        Some(Threads { value, _tells: Tells { waiting: &self.waiting, freed: &self.freed } })
    }

    fn threads_within(&self, limit: Duration) -> Option<Threads<'_, T>> {
        if let Some(threads) = self.try_threads() {
            return Some(threads);
        }
        let end = Instant::now() + limit;
        self.waiting.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let mut gate = self.freed.0.lock();
        let threads = loop {
            let threads = self.try_threads();
            if threads.is_some() || Instant::now() >= end {
                break threads;
            }
            gate = self.freed.1.wait_until(gate, end);
        };
        drop(gate);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        threads
    }

    /// Takes the lock, waiting `limit` at most; `what` names it in the error.
    pub(crate) fn lock_within(&self, limit: Duration, what: &str) -> Result<HostGuard<'_, T>> {
        let started = Instant::now();
        let busy = || Error::new(ErrorKind::Busy, format!("{what}: held for more than {} ms", limit.as_millis()));
        let threads = self.threads_within(limit).ok_or_else(busy)?;
        if !set_within(&self.file, self.byte, Mode::Exclusive, limit.saturating_sub(started.elapsed()))? {
            return Err(busy());
        }
        Ok(HostGuard { _host: self.host(), threads })
    }
}

impl<T> std::ops::Deref for HostGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.threads.value
    }
}

impl<T> std::ops::DerefMut for HostGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.threads.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_that_waits_gets_its_turn_and_one_in_vain_ends_in_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let mutex = HostMutex::new(&open(&dir.path().join("lock")).expect("a file"), LockByte::Capture, 0);
        let held = mutex.try_lock().expect("no error").expect("free");
        assert!(mutex.lock_within(Duration::from_millis(10), "the lock").is_err());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..200 {
                            *mutex.lock_within(Duration::from_secs(3600), "the lock").expect("a turn") += 1;
                        }
                    })
                })
                .collect();
            drop(held);
            threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        });
        assert_eq!(*mutex.try_lock().expect("no error").expect("free"), 1600);
        assert_eq!(mutex.waiting.into_inner(), 0);
    }

    #[test]
    fn two_descriptors_exclude_each_other_and_a_dropped_guard_lets_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let one = HostMutex::new(&open(&path).expect("a file"), LockByte::Capture, ());
        let two = HostMutex::new(&open(&path).expect("a file"), LockByte::Capture, ());
        let held = one.try_lock().expect("no error").expect("free");
        assert!(two.try_lock().expect("no error").is_none());
        let error = two.lock_within(Duration::from_millis(5), "the capture lock").err().expect("a refusal");
        assert_eq!(error.kind(), ErrorKind::Busy);
        drop(held);
        assert!(two.try_lock().expect("no error").is_some());
    }

    #[test]
    fn locks_of_different_bytes_share_a_descriptor_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let file = open(&path).expect("a file");
        let [upload, lease] = [LockByte::Upload, LockByte::Lease].map(|byte| HostMutex::new(&file, byte, ()));
        let others = HostMutex::new(&open(&path).expect("a file"), LockByte::Lease, ());
        let held = lease.try_lock().expect("no error").expect("free");
        drop(upload.try_lock().expect("no error").expect("free beside it"));
        assert!(others.try_lock().expect("no error").is_none(), "still held");
        drop(held);
        assert!(others.try_lock().expect("no error").is_some());
    }

    #[test]
    fn a_member_alone_can_become_exclusive_and_shared_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let (one, two) = (open(&path).expect("a file"), open(&path).expect("a file"));
        assert!(set(&one, LockByte::Members, Mode::Exclusive).expect("no error"));
        assert!(!set(&two, LockByte::Members, Mode::Shared).expect("no error"));
        assert!(set(&one, LockByte::Members, Mode::Shared).expect("no error"));
        assert!(set(&two, LockByte::Members, Mode::Shared).expect("no error"));
        assert!(!set(&one, LockByte::Members, Mode::Exclusive).expect("no error"));
    }
}
