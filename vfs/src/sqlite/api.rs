//! The few routines of SQLite that we call, as a table: filled once per process, either from the routines that SQLite
//! hands to a loadable extension, or from the SQLite linked into the program (feature `static`).
//!
//! `sqlite3_api_routines` is a structure of pointers that only ever grows, so a routine's place in it is fixed:
//!
//! | slot | routine | slot | routine | slot | routine |
//! |---|---|---|---|---|---|
//! | 16 | close | 55 | exec | 135 | open_v2 |
//! | 58 | free | 127 | file_control | 162 | create_function_v2 |
//! | 67 | libversion_number | 141 | vfs_find | 167 | log |
//! | 69 | mprintf | 142 | vfs_register | 189 | uri_parameter |
//! | 80 | result_error | 144 | threadsafe | 192 | auto_extension |
//! | 85 | result_text | 149 | context_db_handle | 245 | uri_key (3.31) |
//! | 101 | user_data | 109 | value_text | 246 | filename_database (3.31) |

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::ffi::{Context, EntryPoint, Function, Sqlite, Value, Vfs};
use crate::error::{Error, ErrorKind, Result};

/// The oldest SQLite that has every routine of the table.
const OLDEST: c_int = 3_031_000;

type Destructor = Option<unsafe extern "C" fn(*mut c_void)>;
type RowCallback = unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;
type Exec =
    unsafe extern "C" fn(*mut Sqlite, *const c_char, Option<RowCallback>, *mut c_void, *mut *mut c_char) -> c_int;
type CreateFunction = unsafe extern "C" fn(
    *mut Sqlite,
    *const c_char,
    c_int,
    c_int,
    *mut c_void,
    Option<Function>,
    Option<Function>,
    Option<unsafe extern "C" fn(*mut Context)>,
    Destructor,
) -> c_int;

/// SQLite's routines.
#[derive(Clone, Copy)]
pub(super) struct Api {
    pub(super) libversion_number: unsafe extern "C" fn() -> c_int,
    pub(super) threadsafe: unsafe extern "C" fn() -> c_int,
    pub(super) free: unsafe extern "C" fn(*mut c_void),
    pub(super) mprintf: unsafe extern "C" fn(*const c_char, ...) -> *mut c_char,
    pub(super) log: unsafe extern "C" fn(c_int, *const c_char, ...),
    pub(super) vfs_find: unsafe extern "C" fn(*const c_char) -> *mut Vfs,
    pub(super) vfs_register: unsafe extern "C" fn(*mut Vfs, c_int) -> c_int,
    pub(super) uri_parameter: unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char,
    pub(super) uri_key: unsafe extern "C" fn(*const c_char, c_int) -> *const c_char,
    pub(super) filename_database: unsafe extern "C" fn(*const c_char) -> *const c_char,
    pub(super) file_control: unsafe extern "C" fn(*mut Sqlite, *const c_char, c_int, *mut c_void) -> c_int,
    pub(super) auto_extension: unsafe extern "C" fn(EntryPoint) -> c_int,
    pub(super) create_function: CreateFunction,
    pub(super) user_data: unsafe extern "C" fn(*mut Context) -> *mut c_void,
    pub(super) context_db_handle: unsafe extern "C" fn(*mut Context) -> *mut Sqlite,
    pub(super) value_text: unsafe extern "C" fn(*mut Value) -> *const c_char,
    pub(super) result_text: unsafe extern "C" fn(*mut Context, *const c_char, c_int, isize),
    pub(super) result_error: unsafe extern "C" fn(*mut Context, *const c_char, c_int),
    pub(super) open_v2: unsafe extern "C" fn(*const c_char, *mut *mut Sqlite, c_int, *const c_char) -> c_int,
    pub(super) exec: Exec,
    pub(super) close: unsafe extern "C" fn(*mut Sqlite) -> c_int,
}

static API: OnceLock<Api> = OnceLock::new();

/// The table; `None` before the first registration.
pub(super) fn get() -> Option<&'static Api> {
    API.get()
}

/// Sets the table. One process serves one SQLite: another one is refused, the same one again is fine.
pub(super) fn install(api: Api) -> Result<&'static Api> {
    // SAFETY: both routines take nothing and may be called at any time.
    let (version, threadsafe) = unsafe { ((api.libversion_number)(), (api.threadsafe)()) };
    if version < OLDEST {
        return Err(Error::new(
            ErrorKind::Configuration,
            format!("this is SQLite {}; sqlite-gcs needs 3.31.0 or newer", dotted(version)),
        ));
    }
    if threadsafe == 0 {
        return Err(Error::new(
            ErrorKind::Configuration,
            "this SQLite was built without threads (SQLITE_THREADSAFE=0); sqlite-gcs uploads from a thread",
        ));
    }
    let installed = API.get_or_init(|| api);
    if !std::ptr::fn_addr_eq(installed.vfs_register, api.vfs_register) {
        return Err(Error::new(
            ErrorKind::Configuration,
            "two different SQLite libraries of this process loaded sqlite-gcs; it can serve the first one only",
        ));
    }
    Ok(installed)
}

/// Reads the table out of the routines that SQLite hands to an extension.
///
/// # Safety
/// `routines` is the pointer that SQLite gave to the extension's entry point.
pub(super) unsafe fn from_routines(routines: *const *const c_void) -> Result<Api> {
    /// # Safety
    /// The table reaches to `slot`, and `T` is the type of the routine there.
    unsafe fn slot<T: Copy>(routines: *const *const c_void, slot: usize, name: &str) -> Result<T> {
        const { assert!(size_of::<T>() == size_of::<*const c_void>()) };
        // SAFETY: the caller's promise.
        let pointer = unsafe { *routines.add(slot) };
        if pointer.is_null() {
            return Err(Error::new(ErrorKind::Configuration, format!("this SQLite was built without sqlite3_{name}")));
        }
        // SAFETY: a non-null pointer to a function, of the type that the caller promises, and of the same size.
        Ok(unsafe { std::mem::transmute_copy::<*const c_void, T>(&pointer) })
    }
    // SAFETY: every version of the structure has the slots up to 67 with these types.
    let libversion_number: unsafe extern "C" fn() -> c_int = unsafe { slot(routines, 67, "libversion_number")? };
    // SAFETY: it takes nothing and may be called at any time.
    let version = unsafe { libversion_number() };
    if version < OLDEST {
        return Err(Error::new(
            ErrorKind::Configuration,
            format!("this is SQLite {}; sqlite-gcs needs 3.31.0 or newer", dotted(version)),
        ));
    }
    // SAFETY: SQLite 3.31 and newer have every slot used here; places and types are those of sqlite3ext.h.
    unsafe {
        Ok(Api {
            libversion_number,
            threadsafe: slot(routines, 144, "threadsafe")?,
            free: slot(routines, 58, "free")?,
            mprintf: slot(routines, 69, "mprintf")?,
            log: slot(routines, 167, "log")?,
            vfs_find: slot(routines, 141, "vfs_find")?,
            vfs_register: slot(routines, 142, "vfs_register")?,
            uri_parameter: slot(routines, 189, "uri_parameter")?,
            uri_key: slot(routines, 245, "uri_key")?,
            filename_database: slot(routines, 246, "filename_database")?,
            file_control: slot(routines, 127, "file_control")?,
            auto_extension: slot(routines, 192, "auto_extension")?,
            create_function: slot(routines, 162, "create_function_v2")?,
            user_data: slot(routines, 101, "user_data")?,
            context_db_handle: slot(routines, 149, "context_db_handle")?,
            value_text: slot(routines, 109, "value_text")?,
            result_text: slot(routines, 85, "result_text")?,
            result_error: slot(routines, 80, "result_error")?,
            open_v2: slot(routines, 135, "open_v2")?,
            exec: slot(routines, 55, "exec")?,
            close: slot(routines, 16, "close")?,
        })
    }
}

/// The table of the SQLite that is linked into this program.
#[cfg(feature = "static")]
pub(super) fn linked() -> Api {
    // Named so that its native library is linked.
    use libsqlite3_sys as _;
    unsafe extern "C" {
        fn sqlite3_libversion_number() -> c_int;
        fn sqlite3_threadsafe() -> c_int;
        fn sqlite3_free(memory: *mut c_void);
        fn sqlite3_mprintf(format: *const c_char, ...) -> *mut c_char;
        fn sqlite3_log(code: c_int, format: *const c_char, ...);
        fn sqlite3_vfs_find(name: *const c_char) -> *mut Vfs;
        fn sqlite3_vfs_register(vfs: *mut Vfs, make_default: c_int) -> c_int;
        fn sqlite3_uri_parameter(name: *const c_char, key: *const c_char) -> *const c_char;
        fn sqlite3_uri_key(name: *const c_char, n: c_int) -> *const c_char;
        fn sqlite3_filename_database(name: *const c_char) -> *const c_char;
        fn sqlite3_file_control(db: *mut Sqlite, schema: *const c_char, op: c_int, arg: *mut c_void) -> c_int;
        fn sqlite3_auto_extension(entry: EntryPoint) -> c_int;
        fn sqlite3_create_function_v2(
            db: *mut Sqlite,
            name: *const c_char,
            arguments: c_int,
            flags: c_int,
            data: *mut c_void,
            function: Option<Function>,
            step: Option<Function>,
            last: Option<unsafe extern "C" fn(*mut Context)>,
            destructor: Destructor,
        ) -> c_int;
        fn sqlite3_user_data(context: *mut Context) -> *mut c_void;
        fn sqlite3_context_db_handle(context: *mut Context) -> *mut Sqlite;
        fn sqlite3_value_text(value: *mut Value) -> *const c_char;
        fn sqlite3_result_text(context: *mut Context, text: *const c_char, bytes: c_int, destructor: isize);
        fn sqlite3_result_error(context: *mut Context, text: *const c_char, bytes: c_int);
        fn sqlite3_open_v2(name: *const c_char, db: *mut *mut Sqlite, flags: c_int, vfs: *const c_char) -> c_int;
        fn sqlite3_exec(
            db: *mut Sqlite,
            sql: *const c_char,
            row: Option<RowCallback>,
            data: *mut c_void,
            message: *mut *mut c_char,
        ) -> c_int;
        fn sqlite3_close(db: *mut Sqlite) -> c_int;
    }
    Api {
        libversion_number: sqlite3_libversion_number,
        threadsafe: sqlite3_threadsafe,
        free: sqlite3_free,
        mprintf: sqlite3_mprintf,
        log: sqlite3_log,
        vfs_find: sqlite3_vfs_find,
        vfs_register: sqlite3_vfs_register,
        uri_parameter: sqlite3_uri_parameter,
        uri_key: sqlite3_uri_key,
        filename_database: sqlite3_filename_database,
        file_control: sqlite3_file_control,
        auto_extension: sqlite3_auto_extension,
        create_function: sqlite3_create_function_v2,
        user_data: sqlite3_user_data,
        context_db_handle: sqlite3_context_db_handle,
        value_text: sqlite3_value_text,
        result_text: sqlite3_result_text,
        result_error: sqlite3_result_error,
        open_v2: sqlite3_open_v2,
        exec: sqlite3_exec,
        close: sqlite3_close,
    }
}

impl Api {
    /// A copy of `text` in SQLite's memory, for SQLite to free; null when there is no memory.
    pub(super) fn text(&self, text: &str) -> *mut c_char {
        let text = c_text(text);
        // SAFETY: the format takes one string, and `text` ends with a zero. Never `text` as the format itself.
        unsafe { (self.mprintf)(c"%s".as_ptr(), text.as_ptr()) }
    }

    /// Writes a line to SQLite's own log.
    pub(super) fn write_log(&self, code: c_int, text: &str) {
        let text = c_text(text);
        // SAFETY: as in `text`.
        unsafe { (self.log)(code, c"%s".as_ptr(), text.as_ptr()) }
    }

    /// The parameters of a database's URI, in order; for a key given twice SQLite's choice, the first.
    ///
    /// # Safety
    /// `name` came to xOpen with OPEN_MAIN_DB and OPEN_URI.
    pub(super) unsafe fn parameters(&self, name: *const c_char) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        for n in 0.. {
            // SAFETY: the caller's promise.
            let key = unsafe { (self.uri_key)(name, n) };
            if key.is_null() {
                break;
            }
            // SAFETY: as above; a key that was found has a value, and both end with a zero.
            let pair = unsafe {
                let value = (self.uri_parameter)(name, key);
                let value = if value.is_null() { c"" } else { CStr::from_ptr(value) };
                (CStr::from_ptr(key).to_bytes().to_vec(), value.to_bytes().to_vec())
            };
            found.push(pair);
        }
        found
    }
}

/// `text` as a C string; a zero inside ends it.
pub(super) fn c_text(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

fn dotted(version: c_int) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn old() -> c_int {
        3_030_001
    }

    #[test]
    fn an_older_sqlite_is_refused_before_its_newer_slots_are_read() {
        let mut routines = [std::ptr::null::<c_void>(); 68];
        routines[67] = old as *const c_void;
        // SAFETY: a table that ends at slot 67, which is all that may be read of an older SQLite.
        let Err(error) = (unsafe { from_routines(routines.as_ptr()) }) else { panic!("accepted") };
        assert!(error.to_string().contains("3.30.1"), "{error}");
    }

    #[test]
    fn a_zero_inside_a_text_ends_it() {
        assert_eq!(c_text("a\0b").as_c_str(), c"a");
    }
}
