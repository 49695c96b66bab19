//! The VFS below ours and its open files, as values with methods: the one place that calls through their pointers.
//!
//! The base is the platform's default VFS, found once at the first registration and kept for the life of the process.
//! Its files live in memory that somebody else owns (SQLite's, behind our own structure, or a buffer of
//! `own_handle.rs`); a [`BaseFile`] is a pointer to one and is only ever made for memory that outlives it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use super::ffi::{self, IoMethods, RawFile, Symbol, SystemCall, Vfs};

/// The VFS below ours.
#[derive(Clone, Copy)]
pub(super) struct BaseVfs(*mut Vfs);

// SAFETY: SQLite's VFS objects are registered once, never change while they are registered, and are called from every
// thread; that SQLite was built for threads is checked when the table of routines is installed.
unsafe impl Send for BaseVfs {}
// SAFETY: as above.
unsafe impl Sync for BaseVfs {}

impl BaseVfs {
    /// # Safety
    /// `vfs` is registered with SQLite and stays in place for the life of the process.
    pub(super) unsafe fn new(vfs: *mut Vfs) -> BaseVfs {
        BaseVfs(vfs)
    }

    fn get(&self) -> &Vfs {
        // SAFETY: `new`'s promise. SQLite changes only the `next` pointer, which is never read here.
        unsafe { &*self.0 }
    }

    pub(super) fn version(self) -> c_int {
        self.get().version
    }

    /// How many bytes an open file of it takes.
    pub(super) fn os_file_size(self) -> c_int {
        self.get().os_file_size
    }

    pub(super) fn max_pathname(self) -> c_int {
        self.get().max_pathname
    }

    /// # Safety
    /// As SQLite calls xOpen: `name` lives as long as the file and is followed by what SQLite puts behind names; `file` has
    /// room for `os_file_size` bytes.
    pub(super) unsafe fn open(self, name: *const c_char, file: *mut RawFile, flags: c_int, out: *mut c_int) -> c_int {
        let Some(open) = self.get().open else { return ffi::CANTOPEN };
        // SAFETY: the caller's promise.
        unsafe {
            (*file).methods = ptr::null();
            let code = open(self.0, name, file, flags, out);
            if code != ffi::OK && !(*file).methods.is_null() {
                // A VFS that leaves its methods behind after a failure asks for xClose.
                BaseFile::new(file).close();
            }
            code
        }
    }

    pub(super) fn delete(self, name: &CStr, sync_dir: c_int) -> c_int {
        let Some(delete) = self.get().delete else { return ffi::IOERR_DELETE };
        // SAFETY: a name that ends with a zero is all that xDelete reads.
        unsafe { delete(self.0, name.as_ptr(), sync_dir) }
    }

    /// # Safety
    /// `result` may be written to.
    pub(super) unsafe fn access(self, name: &CStr, flags: c_int, result: *mut c_int) -> c_int {
        let Some(access) = self.get().access else { return ffi::IOERR_ACCESS };
        // SAFETY: as for `delete`, and the caller's promise.
        unsafe { access(self.0, name.as_ptr(), flags, result) }
    }

    // What follows is handed through with the base's own pointer in place of ours, and with the arguments as SQLite
    // gave them: each has the contract of the method it is named after.

    /// # Safety
    /// As for xFullPathname.
    pub(super) unsafe fn full_pathname(self, name: *const c_char, size: c_int, out: *mut c_char) -> c_int {
        // SAFETY: the caller's promise.
        self.get().full_pathname.map_or(ffi::CANTOPEN, |f| unsafe { f(self.0, name, size, out) })
    }

    /// # Safety
    /// As for xDlOpen.
    pub(super) unsafe fn dl_open(self, name: *const c_char) -> *mut c_void {
        // SAFETY: the caller's promise.
        self.get().dl_open.map_or(ptr::null_mut(), |f| unsafe { f(self.0, name) })
    }

    /// # Safety
    /// As for xDlError.
    pub(super) unsafe fn dl_error(self, size: c_int, out: *mut c_char) {
        if let Some(f) = self.get().dl_error {
            // SAFETY: the caller's promise.
            unsafe { f(self.0, size, out) }
        }
    }

    /// # Safety
    /// As for xDlSym.
    pub(super) unsafe fn dl_sym(self, library: *mut c_void, name: *const c_char) -> Symbol {
        // SAFETY: the caller's promise.
        self.get().dl_sym.and_then(|f| unsafe { f(self.0, library, name) })
    }

    /// # Safety
    /// As for xDlClose.
    pub(super) unsafe fn dl_close(self, library: *mut c_void) {
        if let Some(f) = self.get().dl_close {
            // SAFETY: the caller's promise.
            unsafe { f(self.0, library) }
        }
    }

    /// # Safety
    /// As for xRandomness.
    pub(super) unsafe fn randomness(self, size: c_int, out: *mut c_char) -> c_int {
        // SAFETY: the caller's promise.
        self.get().randomness.map_or(0, |f| unsafe { f(self.0, size, out) })
    }

    pub(super) fn sleep(self, microseconds: c_int) -> c_int {
        // SAFETY: a number is all that it takes.
        self.get().sleep.map_or(0, |f| unsafe { f(self.0, microseconds) })
    }

    /// # Safety
    /// `out` may be written to.
    pub(super) unsafe fn current_time(self, out: *mut f64) -> c_int {
        // SAFETY: the caller's promise.
        self.get().current_time.map_or(ffi::ERROR, |f| unsafe { f(self.0, out) })
    }

    /// # Safety
    /// `out` may be written to; the version is at least 2.
    pub(super) unsafe fn current_time_int64(self, out: *mut i64) -> c_int {
        // SAFETY: the caller's promise.
        self.get().current_time_int64.map_or(ffi::ERROR, |f| unsafe { f(self.0, out) })
    }

    /// # Safety
    /// As for xGetLastError.
    pub(super) unsafe fn last_error(self, size: c_int, out: *mut c_char) -> c_int {
        // SAFETY: the caller's promise.
        self.get().last_error.map_or(0, |f| unsafe { f(self.0, size, out) })
    }

    /// # Safety
    /// As for xSetSystemCall; the version is at least 3.
    pub(super) unsafe fn set_system_call(self, name: *const c_char, call: SystemCall) -> c_int {
        // SAFETY: the caller's promise.
        self.get().set_system_call.map_or(ffi::NOTFOUND, |f| unsafe { f(self.0, name, call) })
    }

    /// # Safety
    /// As for xGetSystemCall; the version is at least 3.
    pub(super) unsafe fn get_system_call(self, name: *const c_char) -> SystemCall {
        // SAFETY: the caller's promise.
        self.get().get_system_call.and_then(|f| unsafe { f(self.0, name) })
    }

    /// # Safety
    /// As for xNextSystemCall; the version is at least 3.
    pub(super) unsafe fn next_system_call(self, name: *const c_char) -> *const c_char {
        // SAFETY: the caller's promise.
        self.get().next_system_call.map_or(ptr::null(), |f| unsafe { f(self.0, name) })
    }
}

/// An open file of the base VFS.
#[derive(Clone, Copy)]
pub(super) struct BaseFile(*mut RawFile);

// SAFETY: a file of a VFS may be used from any thread as long as no two use it at once. SQLite sees to that for
// its own (the connection's mutex), `own_handle.rs` for ours (its lock).
unsafe impl Send for BaseFile {}
// SAFETY: as above.
unsafe impl Sync for BaseFile {}

impl BaseFile {
    /// # Safety
    /// `file` is open, and this value is not used after its `close`.
    pub(super) unsafe fn new(file: *mut RawFile) -> BaseFile {
        BaseFile(file)
    }

    /// The pointer that `new` was given.
    pub(super) fn raw(self) -> *mut RawFile {
        self.0
    }

    fn methods(&self) -> &IoMethods {
        // SAFETY: an open file's methods are a structure that outlives it.
        unsafe { &*(*self.0).methods }
    }

    pub(super) fn version(self) -> c_int {
        self.methods().version
    }

    /// Whether it can share memory between processes.
    pub(super) fn has_shm(self) -> bool {
        self.version() >= 2 && self.methods().shm_map.is_some()
    }

    pub(super) fn close(self) -> c_int {
        // SAFETY: the file is open, and is not used any more.
        self.methods().close.map_or(ffi::OK, |f| unsafe { f(self.0) })
    }

    /// # Safety
    /// `into` has room for `bytes` bytes.
    pub(super) unsafe fn read(self, into: *mut c_void, bytes: c_int, offset: i64) -> c_int {
        // SAFETY: the caller's promise.
        self.methods().read.map_or(ffi::IOERR_READ, |f| unsafe { f(self.0, into, bytes, offset) })
    }

    pub(super) fn write(self, from: &[u8], offset: i64) -> c_int {
        // SAFETY: the slice is readable for its length, which came from SQLite as an int.
        self.methods()
            .write
            .map_or(ffi::IOERR_WRITE, |f| unsafe { f(self.0, from.as_ptr().cast(), from.len() as c_int, offset) })
    }

    pub(super) fn truncate(self, size: i64) -> c_int {
        // SAFETY: a number is all that it takes.
        self.methods().truncate.map_or(ffi::IOERR_TRUNCATE, |f| unsafe { f(self.0, size) })
    }

    pub(super) fn sync(self, flags: c_int) -> c_int {
        // SAFETY: a number is all that it takes.
        self.methods().sync.map_or(ffi::IOERR_FSYNC, |f| unsafe { f(self.0, flags) })
    }

    /// # Safety
    /// `size` may be written to.
    pub(super) unsafe fn file_size(self, size: *mut i64) -> c_int {
        // SAFETY: the caller's promise.
        self.methods().file_size.map_or(ffi::IOERR_FSTAT, |f| unsafe { f(self.0, size) })
    }

    pub(super) fn lock(self, level: c_int) -> c_int {
        // SAFETY: a number is all that it takes.
        self.methods().lock.map_or(ffi::IOERR_LOCK, |f| unsafe { f(self.0, level) })
    }

    pub(super) fn unlock(self, level: c_int) -> c_int {
        // SAFETY: a number is all that it takes.
        self.methods().unlock.map_or(ffi::IOERR_UNLOCK, |f| unsafe { f(self.0, level) })
    }

    /// # Safety
    /// `result` may be written to.
    pub(super) unsafe fn check_reserved_lock(self, result: *mut c_int) -> c_int {
        // SAFETY: the caller's promise.
        self.methods().check_reserved_lock.map_or(ffi::IOERR_CHECKRESERVEDLOCK, |f| unsafe { f(self.0, result) })
    }

    /// # Safety
    /// `argument` is what the operation expects.
    pub(super) unsafe fn file_control(self, operation: c_int, argument: *mut c_void) -> c_int {
        // SAFETY: the caller's promise.
        self.methods().file_control.map_or(ffi::NOTFOUND, |f| unsafe { f(self.0, operation, argument) })
    }

    pub(super) fn sector_size(self) -> c_int {
        // SAFETY: it takes the file alone.
        self.methods().sector_size.map_or(4096, |f| unsafe { f(self.0) })
    }

    pub(super) fn device_characteristics(self) -> c_int {
        // SAFETY: it takes the file alone.
        self.methods().device_characteristics.map_or(0, |f| unsafe { f(self.0) })
    }

    /// # Safety
    /// `out` may be written to.
    pub(super) unsafe fn shm_map(self, region: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void) -> c_int {
        // SAFETY: the caller's promise.
        self.methods().shm_map.map_or(ffi::IOERR_SHMMAP, |f| unsafe { f(self.0, region, bytes, extend, out) })
    }

    pub(super) fn shm_lock(self, offset: c_int, n: c_int, flags: c_int) -> c_int {
        // SAFETY: numbers are all that it takes.
        self.methods().shm_lock.map_or(ffi::IOERR_SHMLOCK, |f| unsafe { f(self.0, offset, n, flags) })
    }

    pub(super) fn shm_barrier(self) {
        if let Some(f) = self.methods().shm_barrier {
            // SAFETY: it takes the file alone.
            unsafe { f(self.0) }
        }
    }

    pub(super) fn shm_unmap(self, delete: c_int) -> c_int {
        // SAFETY: a number is all that it takes.
        self.methods().shm_unmap.map_or(ffi::OK, |f| unsafe { f(self.0, delete) })
    }

    /// # Safety
    /// As for xFetch; null in `out` before.
    pub(super) unsafe fn fetch(self, offset: i64, bytes: c_int, out: *mut *mut c_void) -> c_int {
        // SAFETY: the caller's promise.
        self.methods().fetch.map_or(ffi::OK, |f| unsafe { f(self.0, offset, bytes, out) })
    }

    /// # Safety
    /// `page` is null or came from this file's xFetch.
    pub(super) unsafe fn unfetch(self, offset: i64, page: *mut c_void) -> c_int {
        // SAFETY: the caller's promise.
        self.methods().unfetch.map_or(ffi::OK, |f| unsafe { f(self.0, offset, page) })
    }
}
