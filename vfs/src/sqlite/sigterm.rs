//! `sigterm=flush`: at SIGTERM, what is committed goes to the bucket before the process ends.
//!
//! The handler only writes a byte into a pipe; a thread of ours reads it, and uploads for 8 s at the most (Cloud Run kills after
//! 10 s). What could not be sent is logged; it is kept on disk, where there is one that lasts. What the application had
//! installed before is chained:
//!
//! | before | what happens |
//! |---|---|
//! | the default | upload, then the process ends by SIGTERM as it would have |
//! | a handler | it runs at once, as it would have, beside the upload; when the process ends is up to the application |
//! | ignored | upload |
//!
//! A handler that the application installs later replaces this one. A forked child has the handler but not the thread: until it
//! opens a database of its own, SIGTERM does there what it did before.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use super::guard::guard;
use crate::database;
use crate::log;
use crate::sync::Mutex;

/// How long the upload may take in all.
const LIMIT: Duration = Duration::from_secs(8);

/// The process that the pipe and the thread belong to; 0 before the first installation.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// The pipe's end that the handler writes to; never closed.
static PIPE: AtomicI32 = AtomicI32::new(-1);
/// What was installed before; leaked, because a handler may be reading it.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
static INSTALLING: Mutex<()> = Mutex::new(());

/// Installs the handler, once per process.
pub(super) fn install() {
    let _one = INSTALLING.lock();
    if OWNER.load(Ordering::Acquire) == std::process::id() {
        return;
    }
    if let Err(error) = try_install() {
        log::error!("sigterm=flush: installing the handler failed: {error}; SIGTERM does what it did before");
    }
}

fn try_install() -> std::io::Result<()> {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the pipe was just made, and nobody else has these descriptors.
    let (reader, writer) = unsafe { (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    std::thread::Builder::new().name("sqlite-gcs-sigterm".to_owned()).spawn(move || serve(reader))?;
    PIPE.store(writer.as_raw_fd(), Ordering::Release);
    // The handler may write to it until the process ends.
    std::mem::forget(writer);
    let inherited = OWNER.swap(std::process::id(), Ordering::AcqRel) != 0;
    if inherited {
        // The parent's handler is there already, and what was before it too.
        return Ok(());
    }
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    let action: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigterm;
    // SAFETY: an all-zero sigaction is valid; the handler is a function of this library, which is never unloaded, and does only
    // what is allowed in a signal handler.
    let code = unsafe {
        libc::sigaction(libc::SIGTERM, std::ptr::null(), before.as_mut_ptr());
        BEFORE.store(Box::into_raw(Box::new(before.assume_init())), Ordering::Release);
        let mut ours = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        ours.sa_sigaction = action as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(libc::SIGTERM, &raw const ours, std::ptr::null_mut())
    };
    if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The old action: the address of its handler, and its flags.
fn before() -> (usize, c_int) {
    let before = BEFORE.load(Ordering::Acquire);
    // SAFETY: null, or leaked at the installation and never changed.
    unsafe { before.as_ref() }.map_or((libc::SIG_DFL, 0), |before| (before.sa_sigaction, before.sa_flags))
}

/// Runs in a signal handler: no locks, no allocation, no panic, and `errno` as it was.
extern "C" fn on_sigterm(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: getpid, write, sigaction, raise and errno are allowed in a signal handler; the old handler is called as the
    // system would have called it.
    unsafe {
        let errno = *libc::__errno_location();
        let is_ours = OWNER.load(Ordering::Acquire) == libc::getpid() as u32;
        if is_ours {
            libc::write(PIPE.load(Ordering::Acquire), [1u8].as_ptr().cast(), 1);
        }
        match before() {
            (libc::SIG_IGN, _) => {}
            (libc::SIG_DFL, _) if is_ours => {}
            (libc::SIG_DFL, _) => end_as_before(),
            (handler, flags) if flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = std::mem::transmute(handler);
                handler(signal, info, context);
            }
            (handler, _) => {
                let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
        *libc::__errno_location() = errno;
    }
}

/// Lets the default action of SIGTERM end the process.
fn end_as_before() {
    // SAFETY: an all-zero sigaction is the default action; the set of one signal is unblocked for this thread only.
    unsafe {
        let default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        libc::sigaction(libc::SIGTERM, &raw const default, std::ptr::null_mut());
        libc::raise(libc::SIGTERM);
    }
}

fn serve(mut pipe: File) {
    let mut byte = [0];
    while pipe.read_exact(&mut byte).is_ok() {
        guard("sigterm=flush", (), || database::flush_all(LIMIT));
        if before().0 == libc::SIG_DFL {
            end_as_before();
        }
    }
}
