//! Locks between the processes of one host, on bytes of `app.db-gcs/lock`.
//!
//! They are open-file-description locks: the kernel lets go of them when the process ends, however it ends,
//! and closing some other descriptor of the file does not. They do not exclude threads that share the
//! descriptor, so each exclusive lock carries a mutex for the threads of this process.
//!
//! Order, outermost first: `Follow`, SQLite's locks, `Lease`, `Upload`, `Capture`, `State`. Nobody waits for the network under
//! `Capture` or `State`.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};

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

/// Opens the lock file, which every lock of this process and database shares.
pub(crate) fn open(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
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
    file: File,
    byte: LockByte,
    inner: Mutex<T>,
}

/// The lock, held; it is let go when this is dropped.
pub(crate) struct HostGuard<'a, T> {
    owner: &'a HostMutex<T>,
    value: MutexGuard<'a, T>,
}

impl<T> HostMutex<T> {
    /// Over `value`, with a descriptor of the lock file of its own.
    pub(crate) fn new(path: &Path, byte: LockByte, value: T) -> Result<HostMutex<T>> {
        Ok(HostMutex { file: open(path)?, byte, inner: Mutex::new(value) })
    }

    /// Takes the lock if it is free now.
    pub(crate) fn try_lock(&self) -> Result<Option<HostGuard<'_, T>>> {
        let Some(value) = self.inner.try_lock() else { return Ok(None) };
        let held = set(&self.file, self.byte, Mode::Exclusive)?;
        Ok(held.then_some(HostGuard { owner: self, value }))
    }

    /// Takes the lock, waiting `limit` at most; `what` names it in the error.
    pub(crate) fn lock_within(&self, limit: Duration, what: &str) -> Result<HostGuard<'_, T>> {
        let started = Instant::now();
        let busy = || Error::new(ErrorKind::Busy, format!("{what}: held for more than {} ms", limit.as_millis()));
        let value = self.inner.try_lock_for(limit).ok_or_else(busy)?;
        if !set_within(&self.file, self.byte, Mode::Exclusive, limit.saturating_sub(started.elapsed()))? {
            return Err(busy());
        }
        Ok(HostGuard { owner: self, value })
    }
}

impl<T> std::ops::Deref for HostGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> std::ops::DerefMut for HostGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for HostGuard<'_, T> {
    fn drop(&mut self) {
        // Unlocking a lock that is held cannot be refused; the file's close would let go of it too.
        let _ = set(&self.owner.file, self.owner.byte, Mode::Free);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_descriptors_exclude_each_other_and_a_dropped_guard_lets_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let one = HostMutex::new(&path, LockByte::Capture, ()).expect("a lock");
        let two = HostMutex::new(&path, LockByte::Capture, ()).expect("a lock");
        let held = one.try_lock().expect("no error").expect("free");
        assert!(two.try_lock().expect("no error").is_none());
        let error = two.lock_within(Duration::from_millis(5), "the capture lock").err().expect("a refusal");
        assert_eq!(error.kind(), ErrorKind::Busy);
        drop(held);
        assert!(two.try_lock().expect("no error").is_some());
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
