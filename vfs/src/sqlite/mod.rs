//! The border to SQLite: a shim VFS named `gcs` over the platform's default VFS.
//!
//! All `unsafe` code of the crate is here. The rest of the crate sees no pointer and no SQLite code; SQLite sees no panic
//! and no code that its caller could not cope with. What the shim tells SQLite is what the base VFS said, or weaker.
//!
//! ```text
//! SQLite -> vfs.rs ---- xOpen ----> registry.rs -> Database::open (once per process and path)
//!             |                        |
//!             |        main_file.rs, wal_file.rs -> connection.rs -> Database (hooks) -> codes.rs
//!             |                        |
//!             +---- all other ----> base.rs -> the base VFS          own_handle.rs -> the wal-index, for capture
//! ```
#![allow(unsafe_code, reason = "this module is the border to C")]

mod api;
mod base;
mod codes;
mod connection;
mod ffi;
mod filename;
mod functions;
mod guard;
pub(crate) mod header;
pub(crate) mod index_writer;
mod kept_mark;
mod main_file;
mod own_handle;
mod past_file;
mod paths;
mod pragma;
mod process;
mod registry;
mod rewind;
mod sigterm;
mod vfs;
mod wal_file;
mod write_queue;

use std::ffi::{c_char, c_int, c_void};

use api::Api;

use crate::error::Result;

/// Registers the VFS `gcs` with the SQLite that is linked into this program.
///
/// Call it before the first connection that uses it; again at any time, which does nothing, or registers it anew after
/// `sqlite3_shutdown`. The SQL functions `gcs_status()` and `gcs_flush()` are there on connections opened afterwards.
///
/// Where the variable `SQLITE_GCS_PATHS` names files, the VFS also becomes the default, and manages those files; all others
/// are opened by the VFS that was the default before.
///
/// # Errors
/// SQLite is older than 3.31, was built without threads, or has no default VFS; `SQLITE_GCS_PATHS` has a pattern that is no
/// absolute path.
///
/// ```
/// sqlite_gcs::register()?;
/// sqlite_gcs::register()?;
/// # Ok::<(), sqlite_gcs::Error>(())
/// ```
#[cfg(feature = "static")]
pub fn register() -> Result<()> {
    register_with(api::linked())
}

fn register_with(routines: Api) -> Result<()> {
    let api = api::install(routines)?;
    vfs::log_through();
    let paths = paths::Paths::parse(&std::env::var_os("SQLITE_GCS_PATHS").unwrap_or_default())?;
    vfs::register(api, paths)?;
    process::install_handlers();
    // SAFETY: a function with the signature of an entry point, in a library that is never unloaded.
    let code = unsafe { (api.auto_extension)(functions::on_new_connection) };
    if code != ffi::OK {
        log_no_functions(code);
    }
    Ok(())
}

/// The functions are a convenience (the PRAGMAs do the same), so this is no reason to refuse the VFS.
fn log_no_functions(code: c_int) {
    crate::log::error!("SQLite refused the SQL functions gcs_status and gcs_flush with code {code}");
}

/// What the entry points of the loadable extension do: registers the VFS with the SQLite that loads it, and the SQL functions
/// on the connection `db`.
///
/// Returns the code that the entry point returns, and sets `*message` with an error's.
///
/// # Safety
/// The arguments are those that SQLite gave to the extension's entry point.
#[doc(hidden)]
pub unsafe fn load_extension(db: *mut c_void, message: *mut *mut c_char, routines: *const *const c_void) -> c_int {
    guard::guard("loading", ffi::ERROR, || {
        // SAFETY: the caller's promise.
        let table = unsafe { api::from_routines(routines) };
        let result = table.as_ref().map_err(crate::Error::clone).and_then(|table| register_with(*table));
        match result.map_err(|error| error.context("loading sqlite-gcs")) {
            Ok(()) => {
                if let Some(api) = api::get()
                    && !db.is_null()
                {
                    let code = functions::register(api, db.cast());
                    if code != ffi::OK {
                        log_no_functions(code);
                    }
                }
                ffi::OK_LOAD_PERMANENTLY
            }
            Err(error) => {
                if let (Ok(api), false) = (table, message.is_null()) {
                    // SAFETY: the caller's promise; SQLite frees the message.
                    unsafe { *message = api.text(&error.to_string()) };
                } else {
                    crate::log::error!("{error}");
                }
                ffi::ERROR
            }
        }
    })
}
