//! One exclusive lock per unit of the cache file, between all threads of all processes of the host.
//!
//! A unit's lock is a byte-range lock at the unit's number in a lock file of ours (never in a file of SQLite's), and under it,
//! because such locks do not exclude threads that share the opening, one of a fixed number of mutexes.
//!
//! Order: mutex, then the range. A thread holds one unit, or one tail, and asks for nothing more meanwhile, so nobody waits
//! in a circle. Held for a local write at most, never while waiting for the network.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::file_lock::{FileLock, Span};
use crate::sync::{Mutex, MutexGuard};

const STRIPES: usize = 64;

/// The locks of one cache file.
#[derive(Debug)]
pub(crate) struct UnitLocks {
    path: PathBuf,
    file: File,
    stripes: [Mutex<()>; STRIPES],
}

/// One unit, or all from one on.
#[derive(Debug)]
pub(crate) struct UnitLock<'a> {
    // Dropped in this order: the range before the mutexes.
    _range: FileLock<'a>,
    _threads: Vec<MutexGuard<'a, ()>>,
}

impl UnitLocks {
    /// Opens the lock file, and makes it if there is none.
    pub(crate) fn open(path: &Path) -> Result<UnitLocks> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|e| Error::local(format!("opening {}", path.display()), &e))?;
        Ok(UnitLocks { path: path.into(), file, stripes: [const { Mutex::new(()) }; STRIPES] })
    }

    /// Waits for one unit.
    pub(crate) fn unit(&self, unit: u64) -> Result<UnitLock<'_>> {
        let threads = vec![self.stripes[unit as usize % STRIPES].lock()];
        self.hold(Span::one(unit), threads)
    }

    /// Waits for all units from this one on.
    pub(crate) fn from(&self, unit: u64) -> Result<UnitLock<'_>> {
        self.hold(Span::from(unit), self.stripes.iter().map(|stripe| stripe.lock()).collect())
    }

    fn hold<'a>(&'a self, span: Span, threads: Vec<MutexGuard<'a, ()>>) -> Result<UnitLock<'a>> {
        let range = FileLock::hold(&self.file, span)
            .map_err(|e| Error::local(format!("locking {}", self.path.display()), &e))?;
        Ok(UnitLock { _range: range, _threads: threads })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Threads of one opening and of another count up under the lock, by two steps that would lose counts without it.
    #[test]
    fn a_unit_has_one_holder_among_threads_and_openings() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("units.lock");
        let openings = [UnitLocks::open(&path).expect("one"), UnitLocks::open(&path).expect("two")];
        let count = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (locks, count) = (&openings[thread % 2], &count);
                scope.spawn(move || {
                    for round in 0..500 {
                        let _held = if round % 10 == 0 { locks.from(3) } else { locks.unit(7) }.expect("the lock");
                        let seen = count.load(Ordering::Relaxed);
                        std::thread::yield_now();
                        count.store(seen + 1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 2000);
    }
}
