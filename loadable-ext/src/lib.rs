//! The VFS `gcs` as a loadable extension: `SELECT load_extension('libsqlite_gcs')`, or `.load libsqlite_gcs` in the shell.
//!
//! Both entry points are the same: SQLite derives the first name from the file's name and falls back to the second. The
//! extension stays in the process when the connection that loaded it is closed.
#![allow(unsafe_code, reason = "entry points are C functions")]

use std::ffi::{c_char, c_int, c_void};

/// The entry point by the file's name.
///
/// # Safety
/// Called by SQLite only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_sqlitegcs_init(
    db: *mut c_void,
    message: *mut *mut c_char,
    routines: *const *const c_void,
) -> c_int {
    // SAFETY: SQLite's own arguments, passed on.
    unsafe { vfs::sqlite::load_extension(db, message, routines) }
}

/// The entry point by the name that every extension may have.
///
/// # Safety
/// Called by SQLite only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_extension_init(
    db: *mut c_void,
    message: *mut *mut c_char,
    routines: *const *const c_void,
) -> c_int {
    // SAFETY: SQLite's own arguments, passed on.
    unsafe { vfs::sqlite::load_extension(db, message, routines) }
}
