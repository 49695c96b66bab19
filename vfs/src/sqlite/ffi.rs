//! SQLite's structures and numbers as its header `sqlite3.h` lays them out: only what a VFS needs.
//!
//! Written by hand instead of generated, because the same source has to serve the SQLite linked into a program and
//! whichever one loads the extension. The layouts have not changed since SQLite 3.8.3 and cannot: they are its ABI.

use std::ffi::{c_char, c_int, c_void};

/// `sqlite3_file`: what every open file begins with.
#[repr(C)]
pub(super) struct RawFile {
    /// Null while the file is not open; xClose is called exactly when it is not null.
    pub(super) methods: *const IoMethods,
}

/// A connection, `sqlite3`: never looked into.
#[repr(C)]
pub(super) struct Sqlite {
    _opaque: [u8; 0],
}

/// `sqlite3_context` of an SQL function's call: never looked into.
#[repr(C)]
pub(super) struct Context {
    _opaque: [u8; 0],
}

/// `sqlite3_value`: never looked into.
#[repr(C)]
pub(super) struct Value {
    _opaque: [u8; 0],
}

type File = *mut RawFile;

/// `sqlite3_io_methods`, version 3.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IoMethods {
    pub(super) version: c_int,
    pub(super) close: Option<unsafe extern "C" fn(File) -> c_int>,
    pub(super) read: Option<unsafe extern "C" fn(File, *mut c_void, c_int, i64) -> c_int>,
    pub(super) write: Option<unsafe extern "C" fn(File, *const c_void, c_int, i64) -> c_int>,
    pub(super) truncate: Option<unsafe extern "C" fn(File, i64) -> c_int>,
    pub(super) sync: Option<unsafe extern "C" fn(File, c_int) -> c_int>,
    pub(super) file_size: Option<unsafe extern "C" fn(File, *mut i64) -> c_int>,
    pub(super) lock: Option<unsafe extern "C" fn(File, c_int) -> c_int>,
    pub(super) unlock: Option<unsafe extern "C" fn(File, c_int) -> c_int>,
    pub(super) check_reserved_lock: Option<unsafe extern "C" fn(File, *mut c_int) -> c_int>,
    pub(super) file_control: Option<unsafe extern "C" fn(File, c_int, *mut c_void) -> c_int>,
    pub(super) sector_size: Option<unsafe extern "C" fn(File) -> c_int>,
    pub(super) device_characteristics: Option<unsafe extern "C" fn(File) -> c_int>,
    // Version 2.
    pub(super) shm_map: Option<unsafe extern "C" fn(File, c_int, c_int, c_int, *mut *mut c_void) -> c_int>,
    pub(super) shm_lock: Option<unsafe extern "C" fn(File, c_int, c_int, c_int) -> c_int>,
    pub(super) shm_barrier: Option<unsafe extern "C" fn(File)>,
    pub(super) shm_unmap: Option<unsafe extern "C" fn(File, c_int) -> c_int>,
    // Version 3.
    pub(super) fetch: Option<unsafe extern "C" fn(File, i64, c_int, *mut *mut c_void) -> c_int>,
    pub(super) unfetch: Option<unsafe extern "C" fn(File, i64, *mut c_void) -> c_int>,
}

/// A system call of the base VFS, as the three `*SystemCall` methods exchange it.
pub(super) type SystemCall = Option<unsafe extern "C" fn()>;

/// A symbol of a shared library, as `xDlSym` returns it.
pub(super) type Symbol = Option<unsafe extern "C" fn(*mut Vfs, *mut c_void, *const c_char)>;

/// `sqlite3_vfs`, version 3.
#[repr(C)]
pub(super) struct Vfs {
    pub(super) version: c_int,
    pub(super) os_file_size: c_int,
    pub(super) max_pathname: c_int,
    pub(super) next: *mut Vfs,
    pub(super) name: *const c_char,
    pub(super) app_data: *mut c_void,
    pub(super) open: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, File, c_int, *mut c_int) -> c_int>,
    pub(super) delete: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int) -> c_int>,
    pub(super) access: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_int) -> c_int>,
    pub(super) full_pathname: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_char) -> c_int>,
    pub(super) dl_open: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> *mut c_void>,
    pub(super) dl_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char)>,
    pub(super) dl_sym: Option<unsafe extern "C" fn(*mut Vfs, *mut c_void, *const c_char) -> Symbol>,
    pub(super) dl_close: Option<unsafe extern "C" fn(*mut Vfs, *mut c_void)>,
    pub(super) randomness: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int>,
    pub(super) sleep: Option<unsafe extern "C" fn(*mut Vfs, c_int) -> c_int>,
    pub(super) current_time: Option<unsafe extern "C" fn(*mut Vfs, *mut f64) -> c_int>,
    pub(super) last_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int>,
    // Version 2.
    pub(super) current_time_int64: Option<unsafe extern "C" fn(*mut Vfs, *mut i64) -> c_int>,
    // Version 3.
    pub(super) set_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, SystemCall) -> c_int>,
    pub(super) get_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> SystemCall>,
    pub(super) next_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> *const c_char>,
}

/// The entry point of an extension, as `sqlite3_auto_extension` keeps it.
pub(super) type EntryPoint = unsafe extern "C" fn(*mut Sqlite, *mut *mut c_char, *const *const c_void) -> c_int;

/// The body of an SQL function.
pub(super) type Function = unsafe extern "C" fn(*mut Context, c_int, *mut *mut Value);

pub(super) const OK: c_int = 0;
pub(super) const ERROR: c_int = 1;
pub(super) const BUSY: c_int = 5;
pub(super) const READONLY: c_int = 8;
pub(super) const IOERR: c_int = 10;
pub(super) const CORRUPT: c_int = 11;
pub(super) const NOTFOUND: c_int = 12;
pub(super) const FULL: c_int = 13;
pub(super) const CANTOPEN: c_int = 14;
pub(super) const IOERR_READ: c_int = IOERR | (1 << 8);
pub(super) const IOERR_SHORT_READ: c_int = IOERR | (2 << 8);
pub(super) const IOERR_WRITE: c_int = IOERR | (3 << 8);
pub(super) const IOERR_FSYNC: c_int = IOERR | (4 << 8);
pub(super) const IOERR_TRUNCATE: c_int = IOERR | (6 << 8);
pub(super) const IOERR_FSTAT: c_int = IOERR | (7 << 8);
pub(super) const IOERR_UNLOCK: c_int = IOERR | (8 << 8);
pub(super) const IOERR_DELETE: c_int = IOERR | (10 << 8);
pub(super) const IOERR_ACCESS: c_int = IOERR | (13 << 8);
pub(super) const IOERR_CHECKRESERVEDLOCK: c_int = IOERR | (14 << 8);
pub(super) const IOERR_LOCK: c_int = IOERR | (15 << 8);
pub(super) const IOERR_CLOSE: c_int = IOERR | (16 << 8);
pub(super) const IOERR_SHMLOCK: c_int = IOERR | (20 << 8);
pub(super) const IOERR_SHMMAP: c_int = IOERR | (21 << 8);
/// The extension stays in the process after the connection that loaded it is closed.
pub(super) const OK_LOAD_PERMANENTLY: c_int = 256;

pub(super) const OPEN_READONLY: c_int = 0x1;
pub(super) const OPEN_READWRITE: c_int = 0x2;
pub(super) const OPEN_CREATE: c_int = 0x4;
pub(super) const OPEN_URI: c_int = 0x40;
pub(super) const OPEN_MAIN_DB: c_int = 0x100;
pub(super) const OPEN_MAIN_JOURNAL: c_int = 0x800;
pub(super) const OPEN_WAL: c_int = 0x80000;

pub(super) const ACCESS_EXISTS: c_int = 0;

pub(super) const LOCK_NONE: c_int = 0;
pub(super) const LOCK_SHARED: c_int = 1;
pub(super) const LOCK_EXCLUSIVE: c_int = 4;

pub(super) const SHM_UNLOCK: c_int = 1;
pub(super) const SHM_LOCK: c_int = 2;
pub(super) const SHM_SHARED: c_int = 4;
pub(super) const SHM_EXCLUSIVE: c_int = 8;

/// The byte ranges of the wal-index that stand for locks: WRITE, CKPT, RECOVER, then READ0 to READ4.
pub(super) const SHM_WRITE: c_int = 0;
pub(super) const SHM_CKPT: c_int = 1;
pub(super) const SHM_RECOVER: c_int = 2;
pub(super) const SHM_READ0: c_int = 3;
pub(super) const SHM_READ1: c_int = 4;
/// How many read locks there are beside READ0.
pub(super) const SHM_READS_BESIDE_0: c_int = 4;
/// How many there are in all.
pub(super) const SHM_NLOCK: c_int = 8;
/// Bytes of one region of the wal-index.
pub(super) const SHM_REGION_BYTES: c_int = 32768;

pub(super) const FCNTL_CHUNK_SIZE: c_int = 6;
pub(super) const FCNTL_VFSNAME: c_int = 12;
pub(super) const FCNTL_POWERSAFE_OVERWRITE: c_int = 13;
pub(super) const FCNTL_PRAGMA: c_int = 14;
pub(super) const FCNTL_MMAP_SIZE: c_int = 18;
pub(super) const FCNTL_COMMIT_PHASETWO: c_int = 22;

pub(super) const IOCAP_POWERSAFE_OVERWRITE: c_int = 0x1000;
pub(super) const IOCAP_IMMUTABLE: c_int = 0x2000;
pub(super) const IOCAP_BATCH_ATOMIC: c_int = 0x4000;

pub(super) const UTF8: c_int = 1;
/// The function may not be used in triggers, views and other parts of a schema.
pub(super) const DIRECTONLY: c_int = 0x80000;
