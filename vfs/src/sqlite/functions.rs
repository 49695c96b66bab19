//! The SQL functions `gcs_status([schema])`, `gcs_flush([schema])` and `gcs_history([schema])`: the PRAGMAs of the same names, where a PRAGMA cannot stand.
//!
//! They are registered on the connection that loads the extension and on every one opened later. A function has no
//! database of its own: it finds that of the schema (`main` unless named) by a file-control operation that only our files
//! know, so on any other database it is an error that says so.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use super::api::{self, Api, c_text};
use super::ffi::{self, Context, Sqlite, Value};
use super::guard::guard;

/// Asks a file for its database. SQLite leaves operations above 100 to VFSs; this one spells "gcs" and a number.
pub(super) const FCNTL_DATABASE: c_int = 0x6763_7301;

/// A database's PRAGMAs without arguments, by name.
pub(super) type Pragmas = Box<dyn FnOnce(&str) -> Option<crate::Result<String>>>;

/// What [`FCNTL_DATABASE`] exchanges. The token tells our question from anybody else's use of the number.
#[repr(C)]
pub(super) struct Question {
    token: [u8; 16],
    answer: Option<Pragmas>,
}

const TOKEN: [u8; 16] = *b"sqlite-gcs asks\0";

/// Answers [`FCNTL_DATABASE`].
///
/// # Safety
/// `argument` points to at least 16 readable bytes, or is null.
pub(super) unsafe fn answer(argument: *mut c_void, pragmas: impl FnOnce() -> Pragmas) -> c_int {
    let question = argument.cast::<Question>();
    // SAFETY: the caller's promise; behind the token lies our own structure.
    unsafe {
        if question.is_null() || (&raw const (*question).token).read_unaligned() != TOKEN {
            return ffi::NOTFOUND;
        }
        (*question).answer = Some(pragmas());
    }
    ffi::OK
}

/// Registers the functions on a connection.
pub(super) fn register(api: &Api, db: *mut Sqlite) -> c_int {
    for name in [c"gcs_status", c"gcs_flush", c"gcs_history"] {
        for arguments in [0, 1] {
            // SAFETY: `db` is a connection of SQLite's; the name is static, and serves as the function's data too.
            let code = unsafe {
                (api.create_function)(
                    db,
                    name.as_ptr(),
                    arguments,
                    ffi::UTF8 | ffi::DIRECTONLY,
                    name.as_ptr().cast_mut().cast(),
                    Some(call),
                    None,
                    None,
                    None,
                )
            };
            if code != ffi::OK {
                return code;
            }
        }
    }
    ffi::OK
}

/// What `sqlite3_auto_extension` runs on every new connection.
pub(super) unsafe extern "C" fn on_new_connection(
    db: *mut Sqlite,
    _message: *mut *mut c_char,
    _routines: *const *const c_void,
) -> c_int {
    guard("auto_extension", ffi::ERROR, || api::get().map_or(ffi::ERROR, |api| register(api, db)))
}

unsafe extern "C" fn call(context: *mut Context, count: c_int, values: *mut *mut Value) {
    guard("SQL function", (), || {
        let Some(api) = api::get() else { return };
        // SAFETY: called by SQLite: `values` holds `count` values, the data is the static name given in `register`.
        let result = unsafe {
            let name = CStr::from_ptr((api.user_data)(context).cast());
            let schema = if count == 0 { c"main".as_ptr() } else { (api.value_text)(*values) };
            run(api, (api.context_db_handle)(context), &name.to_string_lossy(), schema)
        };
        /// SQLITE_TRANSIENT: SQLite copies the text.
        const COPY: isize = -1;
        // SAFETY: both copy the text, which ends with a zero.
        unsafe {
            match result {
                Ok(text) => (api.result_text)(context, c_text(&text).as_ptr(), -1, COPY),
                Err(text) => (api.result_error)(context, c_text(&text).as_ptr(), -1),
            }
        }
    });
}

/// # Safety
/// `db` is the connection that called the function; `schema` is null or a string.
unsafe fn run(api: &Api, db: *mut Sqlite, name: &str, schema: *const c_char) -> Result<String, String> {
    if schema.is_null() {
        return Err(format!("{name}(): the schema's name is NULL"));
    }
    let mut question = Question { token: TOKEN, answer: None };
    // SAFETY: the caller's promise; a VFS that does not know the operation leaves the question alone.
    let code = unsafe { (api.file_control)(db, schema, FCNTL_DATABASE, ptr::from_mut(&mut question).cast()) };
    let Some(pragmas) = question.answer.filter(|_| code == ffi::OK) else {
        // SAFETY: not null, so a string by the caller's promise.
        let schema = unsafe { CStr::from_ptr(schema) }.to_string_lossy();
        return Err(format!(
            "{name}(): the database \"{schema}\" is not one of the VFS gcs; open it as file:NAME?vfs=gcs"
        ));
    };
    match pragmas(name) {
        Some(result) => result.map_err(|error| error.to_string()),
        None => Err(format!("{name}(): not available")),
    }
}
