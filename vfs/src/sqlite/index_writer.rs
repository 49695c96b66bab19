//! The wal-index through our own handle, for writing: the locks of a writer, and regions as memory that safe code can use.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU16, AtomicU32};

use super::base::BaseFile;
use super::ffi;
use crate::apply::index::{IndexWriter, Region, SLOTS, WORDS};
use crate::error::{Error, ErrorKind, Result};

const _: () = assert!(WORDS * 4 + SLOTS * 2 == ffi::SHM_REGION_BYTES as usize);

/// The WRITE lock, held through a file of the base VFS. `G` keeps that file open, its wal-index mapped, and everybody else
/// from calling it.
pub(super) struct WriteLocked<G> {
    file: BaseFile,
    _guard: G,
}

impl<G> WriteLocked<G> {
    /// Takes the lock if it is free now.
    ///
    /// # Safety
    /// While `guard` lives, the file is open, its wal-index is mapped for writing, and nobody else uses the file.
    pub(super) unsafe fn try_lock(file: BaseFile, guard: G) -> Result<Option<WriteLocked<G>>> {
        let held = lock(file, ffi::SHM_WRITE, 1, ffi::SHM_EXCLUSIVE)?;
        Ok(held.then_some(WriteLocked { file, _guard: guard }))
    }
}

impl<G> IndexWriter for WriteLocked<G> {
    fn region(&self, number: u32) -> Result<Region<'_>> {
        let mut start = std::ptr::null_mut();
        // SAFETY: `start` is a variable of this function. To make a region is for the holder of WRITE.
        let code = unsafe { self.file.shm_map(number as c_int, ffi::SHM_REGION_BYTES, 1, &mut start) };
        if code != ffi::OK || start.is_null() {
            return Err(refused(&format!("mapping region {number}"), code));
        }
        let words = start.cast::<[AtomicU32; WORDS]>();
        // SAFETY: a region is 32 KiB, aligned to a page, and stays mapped as long as `guard` lives, which `self` owns. Other
        // processes change it, hence atomics; each half is only ever accessed in the width of its type.
        unsafe { Ok(Region { words: &*words, slots: &*words.add(1).cast::<[AtomicU16; SLOTS]>() }) }
    }

    fn barrier(&self) {
        self.file.shm_barrier();
    }

    fn try_lock_readers(&self) -> Result<bool> {
        if !lock(self.file, ffi::SHM_CKPT, 1, ffi::SHM_SHARED)? {
            return Ok(false);
        }
        let readers = lock(self.file, ffi::SHM_READ1, ffi::SHM_READS_BESIDE_0, ffi::SHM_EXCLUSIVE);
        if !matches!(readers, Ok(true)) {
            unlock(self.file, ffi::SHM_CKPT, 1, ffi::SHM_SHARED);
        }
        readers
    }

    fn unlock_readers(&self) {
        unlock(self.file, ffi::SHM_READ1, ffi::SHM_READS_BESIDE_0, ffi::SHM_EXCLUSIVE);
        unlock(self.file, ffi::SHM_CKPT, 1, ffi::SHM_SHARED);
    }

    fn try_lock_checkpoint(&self) -> Result<bool> {
        lock(self.file, ffi::SHM_CKPT, 1, ffi::SHM_EXCLUSIVE)
    }

    fn unlock_checkpoint(&self) {
        unlock(self.file, ffi::SHM_CKPT, 1, ffi::SHM_EXCLUSIVE);
    }

    fn try_lock_reader(&self, number: usize) -> Result<bool> {
        lock(self.file, ffi::SHM_READ0 + number as c_int, 1, ffi::SHM_EXCLUSIVE)
    }

    fn unlock_reader(&self, number: usize) {
        unlock(self.file, ffi::SHM_READ0 + number as c_int, 1, ffi::SHM_EXCLUSIVE);
    }
}

impl<G> Drop for WriteLocked<G> {
    fn drop(&mut self) {
        unlock(self.file, ffi::SHM_WRITE, 1, ffi::SHM_EXCLUSIVE);
    }
}

fn lock(file: BaseFile, offset: c_int, n: c_int, kind: c_int) -> Result<bool> {
    match file.shm_lock(offset, n, ffi::SHM_LOCK | kind) {
        ffi::OK => Ok(true),
        code if code & 0xff == ffi::BUSY => Ok(false),
        code => Err(refused("locking", code)),
    }
}

fn unlock(file: BaseFile, offset: c_int, n: c_int, kind: c_int) {
    // SQLite itself ignores this code: a lock that is held can be let go of.
    file.shm_lock(offset, n, ffi::SHM_UNLOCK | kind);
}

fn refused(what: &str, code: c_int) -> Error {
    let kind = if code & 0xff == ffi::FULL { ErrorKind::Full } else { ErrorKind::Local };
    Error::new(kind, format!("{what} of the wal-index: the base VFS refused it with code {code}"))
}

/// A handle on a database that tests open through SQLite's own VFS; attached once a connection has mapped the wal-index.
#[cfg(test)]
pub(crate) fn plain_index(path: &std::path::Path) -> std::sync::Arc<dyn crate::database::WalIndex> {
    use std::os::unix::ffi::OsStrExt as _;
    let api = super::api::linked();
    // SAFETY: SQLite's default VFS is registered for the life of the process.
    let base = unsafe { super::base::BaseVfs::new((api.vfs_find)(std::ptr::null())) };
    let name = super::filename::Filename::new(path.as_os_str().as_bytes(), &[]);
    let read_write = 2;
    let handle = super::own_handle::OwnHandle::new(base, std::sync::Arc::new(name), read_write);
    handle.attach();
    std::sync::Arc::new(handle)
}
