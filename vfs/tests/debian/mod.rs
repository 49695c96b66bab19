//! Debian's SQLite, loaded at run time, with a VFS of the test's own below ours.
//!
//! That VFS, `stops`, is the unix VFS with two methods of the main file replaced: it runs the test's code when a checkpoint
//! calls `xUnfetch(0, NULL)` and when a writer asks for READ1 to READ4 exclusively. `stops-tested` also has the guard that is not
//! enough: it tests whether CKPT is free before those locks are taken, and lets go of it again.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock};

const LIBRARY: &CStr = c"/usr/lib/x86_64-linux-gnu/libsqlite3.so.0";

/// `sqlite3_vfs`, as far as it is used here.
#[repr(C)]
#[derive(Clone, Copy)]
struct Vfs {
    version: c_int,
    os_file_size: c_int,
    max_pathname: c_int,
    next: *mut Vfs,
    name: *const c_char,
    app_data: *mut c_void,
    open: unsafe extern "C" fn(*mut Vfs, *const c_char, *mut File, c_int, *mut c_int) -> c_int,
    others: [*const c_void; 15],
}

#[repr(C)]
struct File {
    methods: *const Methods,
}

/// `sqlite3_io_methods`, version 3.
#[repr(C)]
#[derive(Clone, Copy)]
struct Methods {
    version: c_int,
    before: [*const c_void; 13],
    shm_lock: unsafe extern "C" fn(*mut File, c_int, c_int, c_int) -> c_int,
    between: [*const c_void; 3],
    unfetch: unsafe extern "C" fn(*mut File, i64, *mut c_void) -> c_int,
}

type Step = unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;

/// The routines that the test itself calls.
struct Sqlite {
    open: unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, *const c_char) -> c_int,
    close: unsafe extern "C" fn(*mut c_void) -> c_int,
    exec: unsafe extern "C" fn(*mut c_void, *const c_char, Option<Step>, *mut c_void, *mut *mut c_char) -> c_int,
    errmsg: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    version: unsafe extern "C" fn() -> c_int,
    vfs_register: unsafe extern "C" fn(*mut Vfs, c_int) -> c_int,
}

static SQLITE: OnceLock<Sqlite> = OnceLock::new();
static UNIX: OnceLock<(usize, Methods)> = OnceLock::new();
// SAFETY: pointers to functions of a library that is never unloaded.
unsafe impl Send for Methods {}
unsafe impl Sync for Methods {}

fn sqlite() -> &'static Sqlite {
    SQLITE.get().unwrap()
}

/// Which guard stands between a writer and the reset.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Guard {
    /// SQLite alone.
    None,
    /// The checkpointer's lock is tested, and not held.
    OnlyTested,
    /// The VFS gcs.
    Ours,
}

pub fn uri(dir: &Path, guard: Guard) -> String {
    let dir = dir.display();
    match guard {
        Guard::None => format!("file:{dir}/a.db?vfs=stops"),
        Guard::OnlyTested => format!("file:{dir}/a.db?vfs=stops-tested"),
        Guard::Ours => format!("file:{dir}/a.db?vfs=gcs&bucket=file://{dir}/bucket"),
    }
}

/// Loads the library, registers the VFSs, and ours on top through the extension's entry point.
pub fn load() {
    unsafe {
        let library = libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!library.is_null(), "{LIBRARY:?} is not there: apt-get install libsqlite3-0");
        let find = |name: &str| {
            let symbol = CString::new(format!("sqlite3_{name}")).unwrap();
            let found = libc::dlsym(library, symbol.as_ptr());
            assert!(!found.is_null(), "{symbol:?}");
            found.cast_const()
        };
        let vfs_find: unsafe extern "C" fn(*const c_char) -> *mut Vfs = std::mem::transmute(find("vfs_find"));
        let _ = SQLITE.set(Sqlite {
            open: std::mem::transmute_copy(&find("open_v2")),
            close: std::mem::transmute_copy(&find("close")),
            exec: std::mem::transmute_copy(&find("exec")),
            errmsg: std::mem::transmute_copy(&find("errmsg")),
            version: std::mem::transmute_copy(&find("libversion_number")),
            vfs_register: std::mem::transmute_copy(&find("vfs_register")),
        });
        let unix = vfs_find(ptr::null());
        for (name, tested, default) in [(c"stops-tested", 1usize, 0), (c"stops", 0, 1)] {
            let mut vfs = *unix;
            vfs.name = name.as_ptr();
            vfs.next = ptr::null_mut();
            vfs.open = open;
            // The application data stays the unix VFS's, which finds its methods by it.
            let boxed = Box::leak(Box::new(Stopping { vfs, unix, tested: tested == 1 }));
            assert_eq!((sqlite().vfs_register)(&raw mut boxed.vfs, default), 0);
        }
        // The places of the routines that the extension uses, as sqlite3ext.h numbers them.
        let mut routines = vec![ptr::null::<c_void>(); 279];
        for (slot, name) in [
            (16, "close"),
            (55, "exec"),
            (58, "free"),
            (67, "libversion_number"),
            (69, "mprintf"),
            (80, "result_error"),
            (85, "result_text"),
            (101, "user_data"),
            (109, "value_text"),
            (127, "file_control"),
            (135, "open_v2"),
            (141, "vfs_find"),
            (142, "vfs_register"),
            (144, "threadsafe"),
            (149, "context_db_handle"),
            (162, "create_function_v2"),
            (167, "log"),
            (189, "uri_parameter"),
            (192, "auto_extension"),
            (245, "uri_key"),
            (246, "filename_database"),
        ] {
            routines[slot] = find(name);
        }
        let mut message = ptr::null_mut();
        let code = sqlite_gcs::sqlite::load_extension(ptr::null_mut(), &mut message, routines.as_ptr());
        assert_eq!(code, 256, "{:?}", (!message.is_null()).then(|| CStr::from_ptr(message)));
    }
}

pub fn version() -> c_int {
    unsafe { (sqlite().version)() }
}

#[repr(C)]
struct Stopping {
    vfs: Vfs,
    unix: *mut Vfs,
    tested: bool,
}

unsafe extern "C" fn open(vfs: *mut Vfs, name: *const c_char, file: *mut File, flags: c_int, out: *mut c_int) -> c_int {
    const MAIN_DB: c_int = 0x100;
    unsafe {
        let stopping = vfs.cast::<Stopping>();
        let unix = (*stopping).unix;
        let code = ((*unix).open)(unix, name, file, flags, out);
        if code == 0 && flags & MAIN_DB != 0 {
            let (_, original) = UNIX.get_or_init(|| ((*file).methods as usize, *(*file).methods));
            let shm_lock = if (*stopping).tested { shm_lock_tested } else { shm_lock };
            let methods = Methods { shm_lock, unfetch, ..*original };
            (*file).methods = Box::leak(Box::new(methods));
        }
        code
    }
}

fn unix() -> &'static Methods {
    &UNIX.get().unwrap().1
}

const LOCK_EXCLUSIVE: c_int = 2 | 8;
const LOCK_SHARED: c_int = 2 | 4;
const UNLOCK_SHARED: c_int = 1 | 4;

unsafe extern "C" fn shm_lock(file: *mut File, offset: c_int, n: c_int, flags: c_int) -> c_int {
    if (offset, n, flags) == (4, 4, LOCK_EXCLUSIVE) {
        Stops::at(Stop::BeforeReset);
    }
    unsafe { (unix().shm_lock)(file, offset, n, flags) }
}

unsafe extern "C" fn shm_lock_tested(file: *mut File, offset: c_int, n: c_int, flags: c_int) -> c_int {
    if (offset, n, flags) == (4, 4, LOCK_EXCLUSIVE) {
        unsafe {
            let code = (unix().shm_lock)(file, 1, 1, LOCK_SHARED);
            if code != 0 {
                return code;
            }
            (unix().shm_lock)(file, 1, 1, UNLOCK_SHARED);
        }
    }
    unsafe { shm_lock(file, offset, n, flags) }
}

unsafe extern "C" fn unfetch(file: *mut File, offset: i64, page: *mut c_void) -> c_int {
    if offset == 0 && page.is_null() {
        Stops::at(Stop::InsideCheckpoint);
    }
    unsafe { (unix().unfetch)(file, offset, page) }
}

/// Where the test's code runs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Stop {
    /// A checkpoint has its lock and has read the header.
    InsideCheckpoint,
    /// A writer is about to take the locks for a reset, below every guard.
    BeforeReset,
}

type Action = Arc<dyn Fn(Stop) + Send + Sync>;
static ACTION: Mutex<Option<Action>> = Mutex::new(None);

/// Code to run at the stops.
pub struct Stops(Action);

/// Whether the stops that were asked about came up.
static REACHED: Mutex<Vec<Stop>> = Mutex::new(Vec::new());

impl Stops {
    pub fn new(action: impl Fn(Stop) + Send + Sync + 'static) -> Stops {
        Stops(Arc::new(action))
    }

    /// Runs `work` with the stops in force, and tells which of them came up, in order.
    pub fn during(self, work: impl FnOnce()) -> Vec<Stop> {
        REACHED.lock().unwrap().clear();
        *ACTION.lock().unwrap() = Some(self.0);
        work();
        *ACTION.lock().unwrap() = None;
        REACHED.lock().unwrap().clone()
    }

    fn at(stop: Stop) {
        let action = ACTION.lock().unwrap().clone();
        if let Some(action) = action {
            REACHED.lock().unwrap().push(stop);
            action(stop);
        }
    }
}

/// A connection.
#[derive(Clone)]
pub struct Db(Arc<Handle>);

struct Handle(*mut c_void);
// SAFETY: SQLite's default is to serialise the use of a connection.
unsafe impl Send for Handle {}
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        assert_eq!(unsafe { (sqlite().close)(self.0) }, 0);
    }
}

impl Db {
    pub fn open(uri: &str) -> Db {
        const READWRITE_CREATE_URI: c_int = 2 | 4 | 0x40;
        let uri = CString::new(uri).unwrap();
        let mut db = ptr::null_mut();
        let code = unsafe { (sqlite().open)(uri.as_ptr(), &mut db, READWRITE_CREATE_URI, ptr::null()) };
        assert_eq!(code, 0, "opening {uri:?}");
        Db(Arc::new(Handle(db)))
    }

    pub fn run(&self, sql: &str) {
        self.rows(sql).unwrap();
    }

    pub fn number(&self, sql: &str) -> i64 {
        self.try_number(sql).unwrap()
    }

    pub fn try_number(&self, sql: &str) -> Result<i64, String> {
        self.try_text(sql)?.parse().map_err(|_| "not a number".to_owned())
    }

    pub fn try_text(&self, sql: &str) -> Result<String, String> {
        self.rows(sql)?.into_iter().next().ok_or_else(|| "no row".to_owned())
    }

    /// The first column of every row.
    fn rows(&self, sql: &str) -> Result<Vec<String>, String> {
        unsafe extern "C" fn step(rows: *mut c_void, n: c_int, values: *mut *mut c_char, _: *mut *mut c_char) -> c_int {
            unsafe {
                if n > 0 && !(*values).is_null() {
                    let text = CStr::from_ptr(*values).to_string_lossy().into_owned();
                    (*rows.cast::<Vec<String>>()).push(text);
                }
            }
            0
        }
        let text = CString::new(sql).unwrap();
        let mut rows = Vec::<String>::new();
        unsafe {
            let rows = (&raw mut rows).cast();
            let code = (sqlite().exec)(self.0.0, text.as_ptr(), Some(step), rows, ptr::null_mut());
            if code != 0 {
                return Err(format!(
                    "{sql}: {code}: {}",
                    CStr::from_ptr((sqlite().errmsg)(self.0.0)).to_string_lossy()
                ));
            }
        }
        Ok(rows)
    }
}
