//! The main file of a managed database: the base VFS's file, with the engine between it and SQLite.
//!
//! What is weaker or different than what the base says: the magic is masked on disk; reads, checkpoint writes and truncations
//! go through the engine; the file is mapped (`PRAGMA mmap_size`) only where nothing is ever evicted from it (`cache_size=0`), and then
//! only pages that are there, never the first (else `mmap_size` is 0: the pages of a sparse cache come and go); preallocation by
//! chunks is swallowed (the file's size is the database's); overwrites are powersafe by promise, because SQLite then
//! writes each commit frame once; the file is never immutable and has no batch-atomic writes (they bypass the WAL); a checkpoint does not
//! sync it: after a power loss nothing of it is believed, and what is not in the bucket is in the WAL, which is synced, or was saved
//! from there and synced before the WAL starts again (`database/`, `before_reset`).
//! Locks are `connection.rs`'s.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use super::api;
use super::base::BaseFile;
use super::codes::Callback;
use super::connection::Connection;
use super::ffi::{self, IoMethods, RawFile};
use super::functions;
use super::guard::guard;
use super::header::{mask, unmask};
use super::pragma;
use super::rewind;
use super::vfs::ShimFile;
use crate::error::{Error, ErrorKind};

const V3: IoMethods = IoMethods {
    version: 3,
    close: Some(close),
    read: Some(read),
    write: Some(write),
    truncate: Some(truncate),
    sync: Some(sync),
    file_size: Some(file_size),
    lock: Some(lock),
    unlock: Some(unlock),
    check_reserved_lock: Some(check_reserved_lock),
    file_control: Some(file_control),
    sector_size: Some(sector_size),
    device_characteristics: Some(device_characteristics),
    shm_map: Some(shm_map),
    shm_lock: Some(shm_lock),
    shm_barrier: Some(shm_barrier),
    shm_unmap: Some(shm_unmap),
    fetch: Some(fetch),
    unfetch: Some(unfetch),
};
const NO_SHM: IoMethods = IoMethods { shm_map: None, shm_lock: None, shm_barrier: None, shm_unmap: None, ..V3 };

static METHODS_3: IoMethods = V3;
static METHODS_3_NO_SHM: IoMethods = NO_SHM;
static METHODS_2: IoMethods = IoMethods { version: 2, fetch: None, unfetch: None, ..V3 };
static METHODS_2_NO_SHM: IoMethods = IoMethods { version: 2, fetch: None, unfetch: None, ..NO_SHM };
static METHODS_1: IoMethods = IoMethods { version: 1, fetch: None, unfetch: None, ..NO_SHM };

/// The methods for a file on top of `base`: SQLite concludes from them what the file can do, so they offer no more than it.
pub(super) fn methods(base: BaseFile) -> &'static IoMethods {
    match (base.version(), base.has_shm()) {
        (..=1, _) => &METHODS_1,
        (2, true) => &METHODS_2,
        (2, false) => &METHODS_2_NO_SHM,
        (3.., true) => &METHODS_3,
        (3.., false) => &METHODS_3_NO_SHM,
    }
}

/// # Safety
/// `file` was opened as a main file by our xOpen and is not closed yet.
unsafe fn connection<'a>(file: *mut RawFile) -> &'a Arc<Connection> {
    // SAFETY: the caller's promise: the state is a boxed `Arc<Connection>` until `close`.
    unsafe { &*ShimFile::state(file).cast::<Arc<Connection>>() }
}

unsafe extern "C" fn close(file: *mut RawFile) -> c_int {
    guard("xClose", ffi::IOERR_CLOSE, || {
        // SAFETY: SQLite closes a file once and does not use it afterwards; the box was made in xOpen.
        let connection = unsafe { Box::from_raw(ShimFile::take_state(file).cast::<Arc<Connection>>()) };
        connection.close()
    })
}

unsafe extern "C" fn read(file: *mut RawFile, into: *mut c_void, bytes: c_int, offset: i64) -> c_int {
    guard("xRead", ffi::IOERR_READ, || {
        // SAFETY: called by SQLite with an open main file.
        let c = unsafe { connection(file) };
        if c.snapshot_is_gone() {
            return ffi::IOERR_READ;
        }
        let range = offset as u64..offset as u64 + bytes as u64;
        // SAFETY: SQLite's buffer has room for `bytes` bytes.
        match c.database.read(range, &mut || unsafe { c.base.read(into, bytes, offset) }) {
            Ok(code) => {
                if offset < 16 && (code == ffi::OK || code == ffi::IOERR_SHORT_READ) {
                    // SAFETY: the read filled the buffer, with zeros where the file ended.
                    unmask(unsafe { std::slice::from_raw_parts_mut(into.cast(), bytes as usize) }, offset as u64);
                }
                if code == ffi::OK {
                    // SAFETY: the read filled the buffer.
                    c.database
                        .has_read(offset as u64, unsafe { std::slice::from_raw_parts(into.cast(), bytes as usize) });
                }
                code
            }
            Err(error) => c.refuse(Callback::Read, &error),
        }
    })
}

unsafe extern "C" fn write(file: *mut RawFile, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
    guard("xWrite", ffi::IOERR_WRITE, || {
        // SAFETY: called by SQLite with an open main file and `bytes` readable bytes.
        let (c, from) = unsafe { (connection(file), std::slice::from_raw_parts(from.cast::<u8>(), bytes as usize)) };
        if leaves_wal_mode(from, offset) {
            let error = Error::new(
                ErrorKind::Configuration,
                "a change of the journal mode away from WAL, which the VFS gcs does not allow",
            );
            return c.refuse(Callback::Write, &error);
        }
        let masked;
        let from = if offset < 16 {
            let mut copy = from.to_vec();
            mask(&mut copy, offset as u64);
            masked = copy;
            &masked[..]
        } else {
            from
        };
        let range = offset as u64..offset as u64 + bytes as u64;
        c.database
            .write(range, &mut || c.base.write(from, offset))
            .unwrap_or_else(|error| c.refuse(Callback::Write, &error))
    })
}

/// Whether these bytes would set the header's write or read version to something other than WAL (2). Behind the refused PRAGMA this
/// catches what does not pass by it: a PRAGMA that is given to another database first, or `sqlite3_deserialize`d pages.
fn leaves_wal_mode(bytes: &[u8], offset: i64) -> bool {
    (18..20).any(|at: i64| {
        usize::try_from(at - offset).ok().and_then(|i| bytes.get(i)).is_some_and(|version| *version != 2)
    })
}

unsafe extern "C" fn truncate(file: *mut RawFile, size: i64) -> c_int {
    guard("xTruncate", ffi::IOERR_TRUNCATE, || {
        // SAFETY: called by SQLite with an open main file.
        let c = unsafe { connection(file) };
        c.database
            .truncate(size as u64, &mut || c.base.truncate(size))
            .unwrap_or_else(|error| c.refuse(Callback::Truncate, &error))
    })
}

unsafe extern "C" fn sync(_: *mut RawFile, _: c_int) -> c_int {
    ffi::OK
}

unsafe extern "C" fn file_size(file: *mut RawFile, size: *mut i64) -> c_int {
    // SAFETY: called by SQLite with an open main file and a place for the size.
    guard("xFileSize", ffi::IOERR_FSTAT, || unsafe { connection(file).base.file_size(size) })
}

unsafe extern "C" fn lock(file: *mut RawFile, level: c_int) -> c_int {
    // SAFETY: called by SQLite with an open main file.
    guard("xLock", ffi::BUSY, || unsafe { connection(file) }.lock(level))
}

unsafe extern "C" fn unlock(file: *mut RawFile, level: c_int) -> c_int {
    // SAFETY: called by SQLite with an open main file.
    guard("xUnlock", ffi::IOERR_UNLOCK, || unsafe { connection(file) }.unlock(level))
}

unsafe extern "C" fn check_reserved_lock(file: *mut RawFile, result: *mut c_int) -> c_int {
    // SAFETY: called by SQLite with an open main file and a place for the answer.
    guard("xCheckReservedLock", ffi::IOERR_CHECKRESERVEDLOCK, || unsafe {
        connection(file).base.check_reserved_lock(result)
    })
}

unsafe extern "C" fn file_control(file: *mut RawFile, operation: c_int, argument: *mut c_void) -> c_int {
    let safe = if operation == ffi::FCNTL_COMMIT_PHASETWO { ffi::IOERR } else { ffi::NOTFOUND };
    guard("xFileControl", safe, || {
        // SAFETY: called by SQLite with an open main file and the operation's argument.
        unsafe { control(connection(file), operation, argument) }
    })
}

/// # Safety
/// `argument` is what the operation expects.
unsafe fn control(c: &Arc<Connection>, operation: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: each operation's argument has the type that SQLite documents for it, by the caller's promise.
    unsafe {
        match operation {
            ffi::FCNTL_COMMIT_PHASETWO => match c.commit_phase_two() {
                Ok(()) => c.base.file_control(operation, argument),
                Err(error) => c.refuse(Callback::PhaseTwo, &error),
            },
            ffi::FCNTL_PRAGMA => match api::get() {
                Some(api) => {
                    let engine = |name: &str, value: Option<&str>| match (name, value) {
                        ("gcs_rewind", Some(point)) => Some(rewind::rewind(api, &c.database, point)),
                        _ => c.database.pragma(name, value),
                    };
                    pragma::file_control(api, engine, argument.cast())
                }
                None => ffi::NOTFOUND,
            },
            ffi::FCNTL_CHUNK_SIZE => ffi::OK,
            ffi::FCNTL_MMAP_SIZE if c.database.may_map() => c.base.file_control(operation, argument),
            ffi::FCNTL_MMAP_SIZE => {
                let mut none = 0i64;
                // The base is told too, so that it never maps; its answer, the limit until now, is of no interest.
                c.base.file_control(operation, ptr::from_mut(&mut none).cast());
                *argument.cast::<i64>() = 0;
                ffi::OK
            }
            ffi::FCNTL_POWERSAFE_OVERWRITE => {
                *argument.cast::<c_int>() = 1;
                ffi::OK
            }
            ffi::FCNTL_VFSNAME => vfs_name(c, argument.cast()),
            functions::FCNTL_DATABASE => {
                let database = Arc::clone(&c.database);
                functions::answer(argument, move || Box::new(move |name: &str| database.pragma(name, None)))
            }
            _ => c.base.file_control(operation, argument),
        }
    }
}

/// FCNTL_VFSNAME: ours, a slash, and the base's, as SQLite's own shims answer.
///
/// # Safety
/// `out` may be written to.
unsafe fn vfs_name(c: &Connection, out: *mut *mut c_char) -> c_int {
    let Some(api) = api::get() else { return ffi::NOTFOUND };
    let mut below: *mut c_char = ptr::null_mut();
    // SAFETY: the base sets `below` to a string in SQLite's memory or leaves it; `out` is the caller's promise.
    unsafe {
        c.base.file_control(ffi::FCNTL_VFSNAME, ptr::from_mut(&mut below).cast());
        let name = if below.is_null() { c"" } else { CStr::from_ptr(below) };
        *out = api.text(&format!("gcs/{}", name.to_string_lossy()));
        (api.free)(below.cast());
    }
    ffi::OK
}

unsafe extern "C" fn sector_size(file: *mut RawFile) -> c_int {
    // SAFETY: called by SQLite with an open main file.
    guard("xSectorSize", 4096, || unsafe { connection(file) }.base.sector_size())
}

unsafe extern "C" fn device_characteristics(file: *mut RawFile) -> c_int {
    guard("xDeviceCharacteristics", ffi::IOCAP_POWERSAFE_OVERWRITE, || {
        // SAFETY: called by SQLite with an open main file.
        let base = unsafe { connection(file) }.base.device_characteristics();
        (base | ffi::IOCAP_POWERSAFE_OVERWRITE) & !(ffi::IOCAP_IMMUTABLE | ffi::IOCAP_BATCH_ATOMIC)
    })
}

unsafe extern "C" fn shm_map(
    file: *mut RawFile,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    guard("xShmMap", ffi::IOERR_SHMMAP, || {
        // SAFETY: called by SQLite with an open main file and a place for the address.
        unsafe {
            let c = connection(file);
            let code = c.base.shm_map(region, bytes, extend, out);
            if code == ffi::OK || code == ffi::READONLY {
                c.mapped(region, (*out).cast());
            }
            code
        }
    })
}

unsafe extern "C" fn shm_lock(file: *mut RawFile, offset: c_int, n: c_int, flags: c_int) -> c_int {
    // A panic before the lock is taken leaves it free, which BUSY says; one during an unlock is ignored by SQLite anyway.
    // SAFETY: called by SQLite with an open main file.
    guard("xShmLock", ffi::BUSY, || unsafe { connection(file) }.shm_lock(offset, n, flags))
}

unsafe extern "C" fn shm_barrier(file: *mut RawFile) {
    // SAFETY: called by SQLite with an open main file.
    guard("xShmBarrier", (), || unsafe { connection(file) }.base.shm_barrier());
}

unsafe extern "C" fn shm_unmap(file: *mut RawFile, delete: c_int) -> c_int {
    guard("xShmUnmap", ffi::OK, || {
        // SAFETY: called by SQLite with an open main file.
        let c = unsafe { connection(file) };
        if c.unmapping() { c.base.shm_unmap(delete) } else { ffi::OK }
    })
}

unsafe extern "C" fn fetch(file: *mut RawFile, offset: i64, bytes: c_int, out: *mut *mut c_void) -> c_int {
    guard("xFetch", ffi::OK, || {
        // SAFETY: called by SQLite with an open main file and a place for the address. Null: not mapped, read it instead.
        unsafe {
            *out = ptr::null_mut();
            let c = connection(file);
            if c.snapshot_is_gone() || !c.database.may_map_bytes(&(offset as u64..offset as u64 + bytes as u64)) {
                return ffi::OK;
            }
            c.base.fetch(offset, bytes, out)
        }
    })
}

unsafe extern "C" fn unfetch(file: *mut RawFile, offset: i64, page: *mut c_void) -> c_int {
    // SAFETY: called by SQLite with an open main file, and with what xFetch gave or null.
    guard("xUnfetch", ffi::OK, || unsafe { connection(file).base.unfetch(offset, page) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_header_that_says_wal_may_be_written() {
        let mut page = vec![0; 512];
        page[18..20].copy_from_slice(&[2, 2]);
        assert!(!leaves_wal_mode(&page, 0));
        assert!(!leaves_wal_mode(&[1; 512], 512));
        for at in [18, 19] {
            let mut page = page.clone();
            page[at] = 1;
            assert!(leaves_wal_mode(&page, 0));
            assert!(leaves_wal_mode(&page[at..], at as i64));
        }
    }
}
