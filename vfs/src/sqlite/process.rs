//! The life of the process around the databases: its normal exit, and its forked children.
//!
//! An application that exits without closing its connections still gets its commits uploaded: a handler runs at exit.
//! `_exit` and signals that kill run no handlers. A forked child inherits the handlers but none of the threads, so the exit
//! handler works only in the process that registered it, and the child is told that it is one.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::guard::guard;
use super::registry;
use crate::database::{self, forked};
use crate::log;

/// The process whose databases are closed at exit; 0 before the first registration.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Whether the process is in its normal exit.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether the application may be called no more: its main function is over, and what its callbacks point to is gone.
pub(super) fn is_ending() -> bool {
    ENDING.load(Ordering::Acquire)
}

/// Installs both handlers, once per process.
pub(super) fn install_handlers() {
    if OWNER.compare_exchange(0, std::process::id(), Ordering::AcqRel, Ordering::Acquire).is_err() {
        return;
    }
    // SAFETY: both handlers are functions of this library, which is never unloaded (the loadable extension returns
    // SQLITE_OK_LOAD_PERMANENTLY).
    let (exit, fork) = unsafe { (libc::atexit(at_exit), libc::pthread_atfork(None, None, Some(in_child))) };
    if exit != 0 || fork != 0 {
        log::error!("installing the handlers for exit and fork failed: close connections before the process ends");
    }
}

extern "C" fn at_exit() {
    guard("atexit", (), || {
        ENDING.store(true, Ordering::Release);
        if OWNER.load(Ordering::Acquire) == std::process::id() {
            database::close_all_at_exit();
        }
    });
}

/// Runs in the child between fork and anything else: only what needs no lock that another thread may have held.
unsafe extern "C" fn in_child() {
    guard("atfork", (), || {
        // From now on the child's databases are its own to close.
        OWNER.store(std::process::id(), Ordering::Release);
        registry::forget_in_child();
        database::after_fork_in_child();
        let_go();
    });
}

/// Puts nothing in the place of every descriptor of the databases' own files: a child shares the locks of its parent's
/// descriptors, and would keep them when the parent is gone.
fn let_go() {
    if !forked::EVER_OPENED.load(Ordering::Relaxed) {
        return;
    }
    let nothing = File::options().read(true).write(true).open("/dev/null");
    let (Ok(nothing), Ok(open)) = (nothing, fs::read_dir("/proc/self/fd")) else {
        log::error!("this forked child keeps its parent's locks: there is no /proc or no /dev/null");
        return;
    };
    for entry in open.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some(number), Ok(path)) = (number, fs::read_link(entry.path()))
            && forked::is_ours(&path)
        {
            // SAFETY: the number stays open and keeps its owner, a database that refuses to work in this process.
            unsafe { libc::dup3(nothing.as_raw_fd(), number, libc::O_CLOEXEC) };
        }
    }
}
