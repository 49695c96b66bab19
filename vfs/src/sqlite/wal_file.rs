//! The WAL of a managed database: the base VFS's file, with the engine asked before anything in it is lost.
//!
//! A write of its header ends the generation that the file holds, truncating it to nothing ends it too; both are passed only
//! when the engine has captured what is committed. Its frames pass through untouched.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use super::base::BaseFile;
use super::codes::{Callback, report};
use super::connection::Connection;
use super::ffi::{self, IoMethods, RawFile};
use super::filename::Filename;
use super::guard::guard;
use super::vfs::ShimFile;
use crate::database::Database;

pub(super) struct WalFile {
    pub(super) base: BaseFile,
    pub(super) database: Arc<Database>,
    /// Whose WAL handle this is; `None` if another VFS between SQLite and us changed the name on the way.
    pub(super) connection: Option<Arc<Connection>>,
    /// The base VFS keeps a pointer into this for as long as the file is open.
    pub(super) _name: Arc<Filename>,
}

/// A WAL needs neither shared memory nor mapping, whatever the base offers.
pub(super) static METHODS: IoMethods = IoMethods {
    version: 1,
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
    shm_map: None,
    shm_lock: None,
    shm_barrier: None,
    shm_unmap: None,
    fetch: None,
    unfetch: None,
};

/// # Safety
/// `file` was opened as a WAL by our xOpen and is not closed yet.
unsafe fn wal<'a>(file: *mut RawFile) -> &'a WalFile {
    // SAFETY: the caller's promise: the state is a boxed `WalFile` until `close`.
    unsafe { &*ShimFile::state(file).cast::<WalFile>() }
}

unsafe extern "C" fn close(file: *mut RawFile) -> c_int {
    guard("WAL xClose", ffi::IOERR_CLOSE, || {
        // SAFETY: SQLite closes a file once and does not use it afterwards; the box was made in xOpen.
        let wal = unsafe { Box::from_raw(ShimFile::take_state(file).cast::<WalFile>()) };
        wal.base.close()
    })
}

unsafe extern "C" fn read(file: *mut RawFile, into: *mut c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: called by SQLite with an open WAL and room for `bytes` bytes.
    guard("WAL xRead", ffi::IOERR_READ, || unsafe {
        if wal(file).connection.as_ref().is_some_and(|c| c.snapshot_is_gone()) {
            return ffi::IOERR_READ;
        }
        let code = wal(file).base.read(into, bytes, offset);
        if code == ffi::OK {
            let into = std::slice::from_raw_parts_mut(into.cast::<u8>(), bytes as usize);
            wal(file).database.after_wal_read(offset as u64, into);
        }
        code
    })
}

unsafe extern "C" fn write(file: *mut RawFile, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
    guard("WAL xWrite", ffi::IOERR_WRITE, || {
        // SAFETY: called by SQLite with an open WAL and `bytes` readable bytes.
        let (wal, from) = unsafe { (wal(file), std::slice::from_raw_parts(from.cast::<u8>(), bytes as usize)) };
        let exclusive = wal.connection.as_ref().is_some_and(|c| c.is_exclusive());
        let mut base = |bytes: &[u8], offset: u64| wal.base.write(bytes, offset as i64);
        match wal.database.wal_write(offset as u64, from, exclusive, &mut base) {
            Ok(code) => code,
            Err(error) => report(Callback::WalWrite, wal.database.path(), &error),
        }
    })
}

unsafe extern "C" fn truncate(file: *mut RawFile, size: i64) -> c_int {
    guard("WAL xTruncate", ffi::IOERR_TRUNCATE, || {
        // SAFETY: called by SQLite with an open WAL.
        let wal = unsafe { wal(file) };
        // Cut to more than nothing (journal_size_limit), it loses only what was captured before the last reset.
        if size == 0
            && let Err(error) = wal.database.before_wal_removed()
        {
            return report(Callback::WalRemoved, wal.database.path(), &error);
        }
        wal.base.truncate(size)
    })
}

unsafe extern "C" fn sync(file: *mut RawFile, flags: c_int) -> c_int {
    // SAFETY: called by SQLite with an open WAL.
    guard("WAL xSync", ffi::IOERR_FSYNC, || unsafe { wal(file) }.base.sync(flags))
}

unsafe extern "C" fn file_size(file: *mut RawFile, size: *mut i64) -> c_int {
    // SAFETY: called by SQLite with an open WAL and a place for the size.
    guard("WAL xFileSize", ffi::IOERR_FSTAT, || unsafe { wal(file).base.file_size(size) })
}

unsafe extern "C" fn lock(file: *mut RawFile, level: c_int) -> c_int {
    // SAFETY: called by SQLite with an open WAL.
    guard("WAL xLock", ffi::IOERR_LOCK, || unsafe { wal(file) }.base.lock(level))
}

unsafe extern "C" fn unlock(file: *mut RawFile, level: c_int) -> c_int {
    // SAFETY: called by SQLite with an open WAL.
    guard("WAL xUnlock", ffi::IOERR_UNLOCK, || unsafe { wal(file) }.base.unlock(level))
}

unsafe extern "C" fn check_reserved_lock(file: *mut RawFile, result: *mut c_int) -> c_int {
    // SAFETY: called by SQLite with an open WAL and a place for the answer.
    guard("WAL xCheckReservedLock", ffi::IOERR_CHECKRESERVEDLOCK, || unsafe {
        wal(file).base.check_reserved_lock(result)
    })
}

unsafe extern "C" fn file_control(file: *mut RawFile, operation: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: called by SQLite with an open WAL and the operation's argument.
    guard("WAL xFileControl", ffi::IOERR, || unsafe { wal(file).base.file_control(operation, argument) })
}

unsafe extern "C" fn sector_size(file: *mut RawFile) -> c_int {
    // SAFETY: called by SQLite with an open WAL.
    guard("WAL xSectorSize", 4096, || unsafe { wal(file) }.base.sector_size())
}

unsafe extern "C" fn device_characteristics(file: *mut RawFile) -> c_int {
    // SAFETY: called by SQLite with an open WAL.
    guard("WAL xDeviceCharacteristics", 0, || unsafe { wal(file) }.base.device_characteristics())
}
