//! A VFS below the one under test whose reads, writes and syncs fail, or take long, when they are told to.
//!
//! It is registered as SQLite's default before ours is, so ours finds it as its base. It passes everything on to SQLite's
//! own; one plan at a time, for the whole process, says which call meets which code.
#![allow(unsafe_code, reason = "implements SQLite's C interface")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every block is SQLite's documented calling convention, handed through"
)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

/// Which file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The main file of a database.
    Main,
    /// Its WAL.
    Wal,
    /// Anything else: never fails.
    Other,
}

/// Which call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// xRead
    Read,
    /// xWrite
    Write,
    /// xSync
    Sync,
    /// xTruncate
    Truncate,
}

struct Plan {
    kind: Kind,
    call: Call,
    /// Calls until the one that fails.
    left: u32,
    code: c_int,
    for_good: bool,
    met: bool,
}

static PLAN: Mutex<Option<Plan>> = Mutex::new(None);
static SLOW: Mutex<Option<(Kind, Call, Duration)>> = Mutex::new(None);

fn slow() -> std::sync::MutexGuard<'static, Option<(Kind, Call, Duration)>> {
    SLOW.lock().unwrap_or_else(PoisonError::into_inner)
}

fn plan() -> std::sync::MutexGuard<'static, Option<Plan>> {
    PLAN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The `n`th such call from now on answers `code`; with `for_good` all later ones too.
pub fn fail(kind: Kind, call: Call, n: u32, code: c_int, for_good: bool) {
    *plan() = Some(Plan { kind, call, left: n, code, for_good, met: false });
}

/// From now on such calls take so much longer; zero: none does.
pub fn slow_down(kind: Kind, call: Call, by: Duration) {
    *slow() = Some((kind, call, by)).filter(|_| !by.is_zero());
}

/// No call fails any more. Whether one did.
pub fn heal() -> bool {
    plan().take().is_some_and(|plan| plan.met)
}

fn fault(kind: Kind, call: Call) -> Option<c_int> {
    let delay = slow().filter(|(of, what, _)| *of == kind && *what == call);
    if let Some((_, _, by)) = delay {
        std::thread::sleep(by);
    }
    let mut plan = plan();
    let plan = plan.as_mut().filter(|plan| plan.kind == kind && plan.call == call)?;
    plan.left = plan.left.saturating_sub(1);
    if plan.left > 0 || plan.met && !plan.for_good {
        return None;
    }
    plan.met = true;
    Some(plan.code)
}

#[repr(C)]
struct File {
    methods: *const sqlite3_io_methods,
    kind: Kind,
}

const AHEAD: usize = size_of::<File>().next_multiple_of(16);

struct Base(*mut sqlite3_vfs);
unsafe impl Send for Base {}
unsafe impl Sync for Base {}
static BASE: OnceLock<Base> = OnceLock::new();

/// Registers it as the default, once per process, and ours above it.
///
/// # Panics
/// If SQLite refuses.
pub fn register() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| unsafe {
        let base = ffi::sqlite3_vfs_find(ptr::null());
        assert!(!base.is_null());
        let mut vfs: sqlite3_vfs = ptr::read(base);
        vfs.szOsFile += AHEAD as c_int;
        vfs.zName = c"faulty".as_ptr();
        vfs.pNext = ptr::null_mut();
        vfs.xOpen = Some(open);
        let _ = BASE.set(Base(base));
        assert_eq!(ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 1), ffi::SQLITE_OK);
        sqlite_gcs::register().expect("the VFS under test");
    });
}

unsafe extern "C" fn open(
    _vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    unsafe {
        let kind = match flags {
            f if f & ffi::SQLITE_OPEN_MAIN_DB != 0 => Kind::Main,
            f if f & ffi::SQLITE_OPEN_WAL != 0 => Kind::Wal,
            _ => Kind::Other,
        };
        let Some(Base(base)) = BASE.get() else { return ffi::SQLITE_CANTOPEN };
        let Some(open) = (**base).xOpen else { return ffi::SQLITE_CANTOPEN };
        let code = open(*base, name, below(file), flags, out);
        file.cast::<File>().write(File { methods: ptr::null(), kind });
        if !(*below(file)).pMethods.is_null() {
            (*file.cast::<File>()).methods = &METHODS;
        }
        code
    }
}

unsafe fn below(file: *mut sqlite3_file) -> *mut sqlite3_file {
    unsafe { file.byte_add(AHEAD) }
}

/// Calls the base's method; a file whose base lacks it never gets here, because SQLite's own has them all.
macro_rules! pass {
    ($name:ident($($arg:ident: $type:ty),*) -> $back:ty = $method:ident) => {
        unsafe extern "C" fn $name(file: *mut sqlite3_file $(, $arg: $type)*) -> $back {
            unsafe {
                let file = below(file);
                ((*(*file).pMethods).$method.expect("a method of SQLite's own VFS"))(file $(, $arg)*)
            }
        }
    };
    ($name:ident($($arg:ident: $type:ty),*) = $method:ident unless $call:expr) => {
        unsafe extern "C" fn $name(file: *mut sqlite3_file $(, $arg: $type)*) -> c_int {
            unsafe {
                if let Some(code) = fault((*file.cast::<File>()).kind, $call) {
                    return code;
                }
                let file = below(file);
                ((*(*file).pMethods).$method.expect("a method of SQLite's own VFS"))(file $(, $arg)*)
            }
        }
    };
}

pass!(close() -> c_int = xClose);
pass!(read(to: *mut c_void, n: c_int, at: sqlite3_int64) = xRead unless Call::Read);
pass!(write(from: *const c_void, n: c_int, at: sqlite3_int64) = xWrite unless Call::Write);
pass!(truncate(size: sqlite3_int64) = xTruncate unless Call::Truncate);
pass!(sync(flags: c_int) = xSync unless Call::Sync);
pass!(size(out: *mut sqlite3_int64) -> c_int = xFileSize);
pass!(lock(level: c_int) -> c_int = xLock);
pass!(unlock(level: c_int) -> c_int = xUnlock);
pass!(reserved(out: *mut c_int) -> c_int = xCheckReservedLock);
pass!(control(op: c_int, arg: *mut c_void) -> c_int = xFileControl);
pass!(sector() -> c_int = xSectorSize);
pass!(device() -> c_int = xDeviceCharacteristics);
pass!(shm_map(region: c_int, n: c_int, extend: c_int, out: *mut *mut c_void) -> c_int = xShmMap);
pass!(shm_lock(offset: c_int, n: c_int, flags: c_int) -> c_int = xShmLock);
pass!(shm_barrier() -> () = xShmBarrier);
pass!(shm_unmap(delete: c_int) -> c_int = xShmUnmap);

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector),
    xDeviceCharacteristics: Some(device),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
