//! The main file of a state of the past (`at=`): read-only and immutable, with no file of the base VFS below it.
//!
//! An immutable file is SQLite's own way to read a database that cannot change: no locks, no WAL, no journal.

use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

use super::api;
use super::codes::{Callback, report};
use super::ffi::{self, IoMethods, RawFile};
use super::functions;
use super::guard::guard;
use super::header::unmask;
use super::pragma;
use super::vfs::ShimFile;
use crate::database::past::Past;

pub(super) static METHODS: IoMethods = IoMethods {
    version: 1,
    close: Some(close),
    read: Some(read),
    write: Some(write),
    truncate: Some(truncate),
    sync: Some(sync),
    file_size: Some(file_size),
    lock: Some(lock),
    unlock: Some(lock),
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
/// `file` was opened by our xOpen as a state of the past and is not closed yet.
unsafe fn past<'a>(file: *mut RawFile) -> &'a Arc<Past> {
    // SAFETY: the caller's promise: the state is a boxed `Arc<Past>` until `close`.
    unsafe { &*ShimFile::state(file).cast::<Arc<Past>>() }
}

unsafe extern "C" fn close(file: *mut RawFile) -> c_int {
    guard("xClose", ffi::IOERR_CLOSE, || {
        // SAFETY: SQLite closes a file once and does not use it afterwards; the box was made in xOpen.
        drop(unsafe { Box::from_raw(ShimFile::take_state(file).cast::<Arc<Past>>()) });
        ffi::OK
    })
}

unsafe extern "C" fn read(file: *mut RawFile, into: *mut c_void, bytes: c_int, offset: i64) -> c_int {
    guard("xRead", ffi::IOERR_READ, || {
        // SAFETY: called by SQLite with an open main file and room for `bytes` bytes.
        let (past, into) = unsafe { (past(file), std::slice::from_raw_parts_mut(into.cast::<u8>(), bytes as usize)) };
        match past.read(into, offset as u64) {
            Ok(read) => {
                into[read..].fill(0);
                if offset < 16 && read > 0 {
                    unmask(into, offset as u64);
                }
                if read == into.len() { ffi::OK } else { ffi::IOERR_SHORT_READ }
            }
            Err(error) => report(Callback::Read, past.path(), &error),
        }
    })
}

unsafe extern "C" fn write(_file: *mut RawFile, _from: *const c_void, _bytes: c_int, _offset: i64) -> c_int {
    ffi::READONLY
}

unsafe extern "C" fn truncate(_file: *mut RawFile, _size: i64) -> c_int {
    ffi::READONLY
}

unsafe extern "C" fn sync(_file: *mut RawFile, _flags: c_int) -> c_int {
    ffi::OK
}

unsafe extern "C" fn file_size(file: *mut RawFile, size: *mut i64) -> c_int {
    guard("xFileSize", ffi::IOERR_FSTAT, || {
        // SAFETY: called by SQLite with an open main file and a place for the size.
        unsafe { *size = past(file).size_bytes() as i64 };
        ffi::OK
    })
}

unsafe extern "C" fn lock(_file: *mut RawFile, _level: c_int) -> c_int {
    ffi::OK
}

unsafe extern "C" fn check_reserved_lock(_file: *mut RawFile, result: *mut c_int) -> c_int {
    // SAFETY: called by SQLite with a place for the answer.
    unsafe { *result = 0 };
    ffi::OK
}

unsafe extern "C" fn file_control(file: *mut RawFile, operation: c_int, argument: *mut c_void) -> c_int {
    guard("xFileControl", ffi::NOTFOUND, || {
        // SAFETY: called by SQLite with an open main file and the operation's argument, of the type that it documents.
        unsafe {
            let past = past(file);
            match operation {
                ffi::FCNTL_PRAGMA => match api::get() {
                    Some(api) => {
                        let engine = |name: &str, value: Option<&str>| past.pragma(name, value);
                        pragma::file_control(api, engine, argument.cast::<*mut c_char>())
                    }
                    None => ffi::NOTFOUND,
                },
                ffi::FCNTL_VFSNAME => match api::get() {
                    Some(api) => {
                        *argument.cast::<*mut c_char>() = api.text("gcs");
                        ffi::OK
                    }
                    None => ffi::NOTFOUND,
                },
                functions::FCNTL_DATABASE => {
                    let past = Arc::clone(past);
                    functions::answer(argument, move || Box::new(move |name: &str| past.pragma(name, None)))
                }
                _ => ffi::NOTFOUND,
            }
        }
    })
}

unsafe extern "C" fn sector_size(_file: *mut RawFile) -> c_int {
    4096
}

unsafe extern "C" fn device_characteristics(_file: *mut RawFile) -> c_int {
    ffi::IOCAP_IMMUTABLE | ffi::IOCAP_POWERSAFE_OVERWRITE
}
