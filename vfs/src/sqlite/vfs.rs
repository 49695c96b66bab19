//! The VFS `gcs`: a shim over the platform's default VFS.
//!
//! It wraps the main file and the WAL of managed databases and nothing else: every other file is opened by the base VFS
//! in SQLite's own structure, and never comes by here again. A managed database's WAL has another name on disk than
//! SQLite believes (see `filename.rs`), so xOpen, xDelete and xAccess translate it.
//!
//! It is registered as `gcs`, for databases that are opened with it, and, where `SQLITE_GCS_PATHS` is set, a second time as the
//! default VFS: then the patterns say which databases are managed (see `paths.rs`).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::api::{self, Api};
use super::base::{BaseFile, BaseVfs};
use super::codes::{self, Callback, report};
use super::connection::Connection;
use super::ffi::{self, RawFile, Symbol, SystemCall, Vfs};
use super::filename::{Filename, database_of_wal, wal_on_disk};
use super::guard::guard;
use super::main_file;
use super::own_handle::OwnHandle;
use super::past_file;
use super::paths::Paths;
use super::process;
use super::registry::{self, Entry};
use super::wal_file::{self, WalFile};
use super::write_queue;
use crate::database::OpenRequest;
use crate::database::past::Past;
use crate::error::{Error, ErrorKind, Result};
use crate::log;

/// The VFS that an application asks for: every named database opened with it is managed.
const NAME: &CStr = c"gcs";
/// The same as the process's default VFS, where `SQLITE_GCS_PATHS` is set: it manages the databases that the patterns name.
const BY_PATH: &CStr = c"gcs-paths";

/// Our part of an open file; the base's file follows it.
#[repr(C)]
pub(super) struct ShimFile {
    raw: RawFile,
    /// `Arc<Connection>` or `WalFile`, boxed, as the methods say.
    state: *mut c_void,
}

/// Where the base's file begins: at a multiple of 16, so that it is as aligned as ours.
const BASE_OFFSET: usize = size_of::<ShimFile>().next_multiple_of(16);

impl ShimFile {
    /// # Safety
    /// `file` was opened by our xOpen as one that we wrap.
    pub(super) unsafe fn state(file: *mut RawFile) -> *mut c_void {
        // SAFETY: the caller's promise.
        unsafe { (*file.cast::<ShimFile>()).state }
    }

    /// The state, which the file then has no more.
    ///
    /// # Safety
    /// As for `state`; called once per file.
    pub(super) unsafe fn take_state(file: *mut RawFile) -> *mut c_void {
        // SAFETY: the caller's promise.
        unsafe {
            let file = file.cast::<ShimFile>();
            (*file).raw.methods = ptr::null();
            std::mem::replace(&mut (*file).state, ptr::null_mut())
        }
    }
}

/// Our VFS and what it stands on; made once and never freed.
struct Shim {
    vfs: *mut Vfs,
    by_path: *mut Vfs,
    paths: Paths,
    base: BaseVfs,
}

// SAFETY: the pointers lead to leaked structures of which only SQLite, under its own mutex, changes the `next` field.
unsafe impl Send for Shim {}
// SAFETY: as above.
unsafe impl Sync for Shim {}

static SHIM: OnceLock<Shim> = OnceLock::new();

/// Registers the VFS, unless SQLite has it registered. The default stays what it is, unless there are `paths`, whose
/// databases are then managed without being asked for. The first call's `paths` hold for the process.
pub(super) fn register(api: &Api, paths: Paths) -> Result<()> {
    if SHIM.get().is_none() {
        // SAFETY: null asks for the default VFS; SQLite initialises itself first.
        let base = unsafe { (api.vfs_find)(ptr::null()) };
        if base.is_null() {
            return Err(Error::new(ErrorKind::Configuration, "this SQLite has no VFS of its own to stand on"));
        }
        // SAFETY: the default VFS is a static structure of SQLite or of the application, which registered it for good.
        let base = unsafe { BaseVfs::new(base) };
        let new = |name| Box::into_raw(Box::new(structure(base, name)));
        SHIM.get_or_init(|| Shim { vfs: new(NAME), by_path: new(BY_PATH), paths, base });
    }
    let Some(shim) = SHIM.get() else { return Ok(()) };
    register_as(api, NAME, shim.vfs, false)?;
    if shim.paths.is_empty() { Ok(()) } else { register_as(api, BY_PATH, shim.by_path, true) }
}

fn register_as(api: &Api, name: &'static CStr, vfs: *mut Vfs, as_default: bool) -> Result<()> {
    // SAFETY: a static name, and a structure that is never freed. Registering it again (after sqlite3_shutdown forgot it)
    // is what SQLite expects; while it is in the list there is nothing to do.
    let code = unsafe {
        if (api.vfs_find)(name.as_ptr()) == vfs { ffi::OK } else { (api.vfs_register)(vfs, c_int::from(as_default)) }
    };
    if code == ffi::OK {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Configuration, format!("SQLite refused the VFS {name:?} with code {code}")))
    }
}

fn structure(base: BaseVfs, name: &'static CStr) -> Vfs {
    Vfs {
        version: base.version().min(3),
        os_file_size: BASE_OFFSET as c_int + base.os_file_size(),
        // Room for the longer WAL name.
        max_pathname: base.max_pathname(),
        next: ptr::null_mut(),
        name: name.as_ptr(),
        app_data: ptr::null_mut(),
        open: Some(open),
        delete: Some(delete),
        access: Some(access),
        full_pathname: Some(full_pathname),
        dl_open: Some(dl_open),
        dl_error: Some(dl_error),
        dl_sym: Some(dl_sym),
        dl_close: Some(dl_close),
        randomness: Some(randomness),
        sleep: Some(sleep),
        current_time: Some(current_time),
        last_error: Some(last_error),
        current_time_int64: Some(current_time_int64),
        set_system_call: Some(set_system_call),
        get_system_call: Some(get_system_call),
        next_system_call: Some(next_system_call),
    }
}

/// The VFS below. Our methods run only after `register`.
fn base() -> Option<BaseVfs> {
    SHIM.get().map(|shim| shim.base)
}

/// Whether a main file is ours to manage: every named one that is opened with the VFS `gcs`, and what the patterns name.
///
/// # Safety
/// The arguments of xOpen.
unsafe fn is_managed(vfs: *mut Vfs, name: *const c_char, flags: c_int) -> bool {
    if flags & ffi::OPEN_MAIN_DB == 0 || name.is_null() {
        return false;
    }
    let Some(shim) = SHIM.get() else { return false };
    if vfs != shim.by_path {
        return true;
    }
    // SAFETY: the caller's promise; not null.
    let name = unsafe { CStr::from_ptr(name) };
    // A path that has no folder is no pattern's either; the base VFS says what is wrong with it.
    registry::canonical(name.to_bytes()).is_ok_and(|path| shim.paths.contains(&path))
}

unsafe extern "C" fn open(
    vfs: *mut Vfs,
    name: *const c_char,
    file: *mut RawFile,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: called by SQLite with room for our file. Null methods: nothing to close until we say otherwise.
    unsafe { (*file).methods = ptr::null() };
    guard("xOpen", ffi::CANTOPEN, || {
        let (Some(base), Some(api)) = (base(), api::get()) else { return ffi::CANTOPEN };
        // SAFETY: called by SQLite: the arguments have the meanings of xOpen.
        unsafe {
            if is_managed(vfs, name, flags) {
                return open_main(api, base, name, file, flags, out);
            }
            if flags & (ffi::OPEN_WAL | ffi::OPEN_MAIN_JOURNAL) != 0 && !name.is_null() {
                let as_text = CStr::from_ptr(name);
                if flags & ffi::OPEN_WAL != 0
                    && let Some(database) = database_of_wal(as_text)
                    && let Some(database) = registry::find(database).map(|d| (database, d))
                {
                    return open_wal(api, base, database, name, file, flags, out);
                }
                if flags & ffi::OPEN_MAIN_JOURNAL != 0
                    && let Some(database) = as_text.to_bytes().strip_suffix(b"-journal")
                    && let Some(database) = registry::find(database)
                {
                    let error = Error::new(
                        ErrorKind::Configuration,
                        "a rollback journal, which a database of the VFS gcs never has: its journal mode is always WAL",
                    );
                    return report(Callback::Open, database.path(), &error);
                }
            }
            base.open(name, file, flags, out)
        }
    })
}

/// # Safety
/// The arguments of xOpen for a named main file.
unsafe fn open_main(
    api: &Api,
    base: BaseVfs,
    name: *const c_char,
    file: *mut RawFile,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let (bytes, parameters) = unsafe {
        let parameters = if flags & ffi::OPEN_URI != 0 { api.parameters(name) } else { Vec::new() };
        (CStr::from_ptr(name).to_bytes(), parameters)
    };
    let shown = || std::path::PathBuf::from(String::from_utf8_lossy(bytes).into_owned());
    let request = match request(bytes, &parameters, flags) {
        Ok(request) => request,
        Err(error) => return report(Callback::Open, &shown(), &error),
    };
    if request.wants_the_past() {
        // SAFETY: the caller's promise.
        return unsafe { open_past(&request, file, flags, out) };
    }
    let entry = Entry::of(&request.path);
    let gate = entry.gate();
    let filename = Arc::new(Filename::new(bytes, &parameters));
    let own = || OwnHandle::new(base, Arc::clone(&filename), flags);
    let open = match gate.open(request, own) {
        Ok(open) => open,
        Err(error) => {
            let code = report(Callback::Open, entry.path(), &error);
            gate.end_if_unused(|| ());
            return code;
        }
    };
    // SAFETY: SQLite gave us room for our part and the base's file behind it; the name is passed on unchanged, because the
    // base reads its own parameters behind it.
    unsafe {
        let below = file.byte_add(BASE_OFFSET);
        let code = base.open(name, below, flags, out);
        if code != ffi::OK {
            gate.end_if_unused(|| ());
            return code;
        }
        let below = BaseFile::new(below);
        let connection = Arc::new(Connection::new(open, Arc::clone(&entry), below, filename, name));
        gate.add(Arc::clone(&connection));
        become_open(file, main_file::methods(below), Box::into_raw(Box::new(connection)).cast());
    }
    ffi::OK
}

/// # Safety
/// The arguments of xOpen for a named main file.
unsafe fn open_past(request: &OpenRequest, file: *mut RawFile, flags: c_int, out: *mut c_int) -> c_int {
    match Past::open(request) {
        Ok(past) => {
            // SAFETY: SQLite gave us room for our part, and a place for the flags or none.
            unsafe {
                become_open(file, &past_file::METHODS, Box::into_raw(Box::new(past)).cast());
                if !out.is_null() {
                    *out = flags & !(ffi::OPEN_READWRITE | ffi::OPEN_CREATE) | ffi::OPEN_READONLY;
                }
            }
            ffi::OK
        }
        Err(error) => report(Callback::Open, &request.path, &error),
    }
}

/// # Safety
/// The arguments of xOpen for a WAL; `database` is the name and the value of its database, which is open.
unsafe fn open_wal(
    api: &Api,
    base: BaseVfs,
    (database_name, database): (&[u8], Arc<crate::database::Database>),
    name: *const c_char,
    file: *mut RawFile,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's WAL names lead back to the name that their main file was opened with.
    let connection = unsafe { registry::find_connection(database_name, (api.filename_database)(name)) };
    let filename = match &connection {
        Some(connection) => Arc::clone(&connection.filename),
        None => Arc::new(Filename::new(database_name, &[])),
    };
    // SAFETY: as in `open_main`; the name lives in `filename`, which the file's state keeps.
    unsafe {
        let below = file.byte_add(BASE_OFFSET);
        let code = base.open(filename.wal(), below, flags, out);
        if code == ffi::OK {
            let state = WalFile { base: BaseFile::new(below), database, connection, _name: filename };
            become_open(file, &wal_file::METHODS, Box::into_raw(Box::new(state)).cast());
        }
        code
    }
}

/// # Safety
/// `file` has room for a `ShimFile`; `state` is what `methods` expect.
unsafe fn become_open(file: *mut RawFile, methods: &'static ffi::IoMethods, state: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { file.cast::<ShimFile>().write(ShimFile { raw: RawFile { methods }, state }) }
}

/// Parameters of a file name's URI that are SQLite's own.
const SQLITES_OWN: [&str; 9] =
    ["vfs", "mode", "cache", "psow", "nolock", "immutable", "modeof", "readonly_shm", "8_3_names"];

/// What the engine is asked to open.
fn request(name: &[u8], parameters: &[(Vec<u8>, Vec<u8>)], flags: c_int) -> Result<OpenRequest> {
    let mut ours = Vec::new();
    for (key, value) in parameters {
        let (key, value) = match (std::str::from_utf8(key), std::str::from_utf8(value)) {
            (Ok(key), Ok(value)) => (key, value),
            _ => {
                let key = String::from_utf8_lossy(key);
                return Err(Error::new(ErrorKind::Configuration, format!("the URI parameter {key}= is not UTF-8")));
            }
        };
        let why = match key {
            "immutable" => "the cache file changes while it is read",
            "nolock" => "other processes and the uploader rely on SQLite's locks",
            _ if SQLITES_OWN.contains(&key) => continue,
            _ => {
                ours.push((key.to_owned(), value.to_owned()));
                continue;
            }
        };
        if is_true(value) {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!("{key}=1 cannot be used with the VFS gcs: {why}. Leave the parameter out"),
            ));
        }
    }
    Ok(OpenRequest { path: registry::canonical(name)?, parameters: ours, create: flags & ffi::OPEN_CREATE != 0 })
}

/// A boolean as `sqlite3_uri_boolean` reads it.
fn is_true(value: &str) -> bool {
    ["yes", "true", "on"].iter().any(|word| value.eq_ignore_ascii_case(word))
        || value.bytes().take_while(u8::is_ascii_digit).any(|digit| digit != b'0')
}

unsafe extern "C" fn delete(_vfs: *mut Vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    guard("xDelete", ffi::IOERR_DELETE, || {
        let Some(base) = base() else { return ffi::IOERR_DELETE };
        // SAFETY: called by SQLite with a name.
        let name = unsafe { CStr::from_ptr(name) };
        if let Some(database_name) = database_of_wal(name)
            && let Some(database) = registry::find(database_name)
        {
            if let Err(error) = database.before_wal_removed() {
                return report(Callback::WalRemoved, database.path(), &error);
            }
            return base.delete(&wal_on_disk(database_name), sync_dir);
        }
        base.delete(name, sync_dir)
    })
}

unsafe extern "C" fn access(_vfs: *mut Vfs, name: *const c_char, flags: c_int, result: *mut c_int) -> c_int {
    guard("xAccess", ffi::IOERR_ACCESS, || {
        let Some(base) = base() else { return ffi::IOERR_ACCESS };
        // SAFETY: called by SQLite with a name and a place for the answer.
        unsafe {
            let name = CStr::from_ptr(name);
            if let Some(database_name) = database_of_wal(name)
                && registry::find(database_name).is_some()
            {
                return base.access(&wal_on_disk(database_name), flags, result);
            }
            if flags == ffi::ACCESS_EXISTS
                && let Some(database_name) = name.to_bytes().strip_suffix(b"-journal")
                && registry::find(database_name).is_some()
            {
                // A WAL-mode database has none; one that lies there is no business of this database's recovery.
                *result = 0;
                return ffi::OK;
            }
            base.access(name, flags, result)
        }
    })
}

unsafe extern "C" fn last_error(_vfs: *mut Vfs, size: c_int, out: *mut c_char) -> c_int {
    guard("xGetLastError", 0, || {
        let Some(base) = base() else { return 0 };
        let text = codes::last_error();
        // SAFETY: called by SQLite or an application with room for `size` bytes, or none.
        unsafe {
            let code = base.last_error(size, out);
            if size > 0 && !out.is_null() && !text.is_empty() {
                let bytes = text.len().min(size as usize - 1);
                ptr::copy_nonoverlapping(text.as_ptr().cast(), out, bytes);
                *out.add(bytes) = 0;
            }
            code
        }
    })
}

unsafe extern "C" fn full_pathname(_vfs: *mut Vfs, name: *const c_char, size: c_int, out: *mut c_char) -> c_int {
    guard("xFullPathname", ffi::CANTOPEN, || {
        let Some(base) = base() else { return ffi::CANTOPEN };
        // SAFETY: called by SQLite; handed through as it came. The same holds for the methods that follow.
        unsafe { base.full_pathname(name, size, out) }
    })
}

unsafe extern "C" fn dl_open(_vfs: *mut Vfs, name: *const c_char) -> *mut c_void {
    // SAFETY: as for `full_pathname`.
    guard("xDlOpen", ptr::null_mut(), || base().map_or(ptr::null_mut(), |b| unsafe { b.dl_open(name) }))
}

unsafe extern "C" fn dl_error(_vfs: *mut Vfs, size: c_int, out: *mut c_char) {
    guard("xDlError", (), || {
        if let Some(b) = base() {
            // SAFETY: as for `full_pathname`.
            unsafe { b.dl_error(size, out) }
        }
    });
}

unsafe extern "C" fn dl_sym(_vfs: *mut Vfs, library: *mut c_void, name: *const c_char) -> Symbol {
    // SAFETY: as for `full_pathname`.
    guard("xDlSym", None, || base().and_then(|b| unsafe { b.dl_sym(library, name) }))
}

unsafe extern "C" fn dl_close(_vfs: *mut Vfs, library: *mut c_void) {
    guard("xDlClose", (), || {
        if let Some(b) = base() {
            // SAFETY: as for `full_pathname`.
            unsafe { b.dl_close(library) }
        }
    });
}

unsafe extern "C" fn randomness(_vfs: *mut Vfs, size: c_int, out: *mut c_char) -> c_int {
    // SAFETY: as for `full_pathname`.
    guard("xRandomness", 0, || base().map_or(0, |b| unsafe { b.randomness(size, out) }))
}

unsafe extern "C" fn sleep(_vfs: *mut Vfs, microseconds: c_int) -> c_int {
    guard("xSleep", 0, || {
        let asked = Duration::from_micros(microseconds.max(0) as u64);
        let slept = write_queue::sleep(asked, |_| _ = base().map(|b| b.sleep(microseconds)));
        slept.as_micros().min(c_int::MAX as u128) as c_int
    })
}

unsafe extern "C" fn current_time(_vfs: *mut Vfs, out: *mut f64) -> c_int {
    // SAFETY: as for `full_pathname`.
    guard("xCurrentTime", ffi::ERROR, || base().map_or(ffi::ERROR, |b| unsafe { b.current_time(out) }))
}

unsafe extern "C" fn current_time_int64(_vfs: *mut Vfs, out: *mut i64) -> c_int {
    // SAFETY: as for `full_pathname`; our version is not above the base's.
    guard("xCurrentTimeInt64", ffi::ERROR, || base().map_or(ffi::ERROR, |b| unsafe { b.current_time_int64(out) }))
}

unsafe extern "C" fn set_system_call(_vfs: *mut Vfs, name: *const c_char, call: SystemCall) -> c_int {
    guard("xSetSystemCall", ffi::NOTFOUND, || {
        let Some(base) = base() else { return ffi::NOTFOUND };
        // SAFETY: as for `current_time_int64`.
        unsafe { base.set_system_call(name, call) }
    })
}

unsafe extern "C" fn get_system_call(_vfs: *mut Vfs, name: *const c_char) -> SystemCall {
    // SAFETY: as for `current_time_int64`.
    guard("xGetSystemCall", None, || base().and_then(|b| unsafe { b.get_system_call(name) }))
}

unsafe extern "C" fn next_system_call(_vfs: *mut Vfs, name: *const c_char) -> *const c_char {
    // SAFETY: as for `current_time_int64`.
    guard("xNextSystemCall", ptr::null(), || base().map_or(ptr::null(), |b| unsafe { b.next_system_call(name) }))
}

/// Takes error messages to SQLite's log, where an application may listen (`SQLITE_CONFIG_LOG`). Not at its exit: the sqlite3
/// shell's listener keeps its state on the stack of a main function that has returned by then.
pub(super) fn log_through() {
    // A second registration finds it set, to the same.
    let _ = log::SQLITE_LOG.set(|_level, text| {
        if let Some(api) = api::get()
            && !process::is_ending()
        {
            api.write_log(ffi::ERROR, &format!("sqlite-gcs: {text}"));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        list.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect()
    }

    #[test]
    fn the_engine_sees_every_parameter_that_is_not_sqlites() {
        let dir = tempfile::tempdir().expect("a directory");
        let name = dir.path().join("a.db");
        let parameters = pairs(&[("vfs", "gcs"), ("bucket", "file:///x"), ("nolock", "0"), ("buckt", "y")]);
        let request = request(name.as_os_str().as_encoded_bytes(), &parameters, 1).expect("accepted");
        let expected = [("bucket", "file:///x"), ("buckt", "y")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(request.parameters, expected);
        assert!(!request.create);
    }

    #[test]
    fn immutable_and_nolock_are_refused_by_name() {
        for key in ["immutable", "nolock"] {
            for value in ["1", "yes", "ON", "2x"] {
                let error = request(b"/tmp/a.db", &pairs(&[(key, value)]), 0).expect_err("refused");
                assert!(error.to_string().contains(key), "{error}");
            }
            request(b"/tmp/a.db", &pairs(&[(key, "0")]), 0).expect("accepted");
        }
    }

    #[test]
    fn a_path_through_a_symbolic_link_is_the_same_database() {
        let dir = tempfile::tempdir().expect("a directory");
        let real = dir.path().join("real");
        std::fs::create_dir(&real).expect("made");
        std::os::unix::fs::symlink(&real, dir.path().join("link")).expect("linked");
        let canonical =
            |path: std::path::PathBuf| registry::canonical(path.as_os_str().as_encoded_bytes()).expect("a path");
        let before = canonical(dir.path().join("link/a.db"));
        assert_eq!(before, canonical(real.join("a.db")));
        std::fs::write(real.join("a.db"), "").expect("written");
        assert_eq!(before, canonical(dir.path().join("link/a.db")));
        std::os::unix::fs::symlink(real.join("a.db"), dir.path().join("b.db")).expect("linked");
        assert_eq!(before, canonical(dir.path().join("b.db")));
    }
}
