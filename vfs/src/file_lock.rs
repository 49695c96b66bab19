//! Locks on ranges of our own files, between processes: Linux open-file-description locks.
//!
//! Unlike POSIX locks they belong to the opening of the file and not to the process: closing another opening of the same
//! file does not drop them. Never used on SQLite's files. They do **not** exclude two threads that share the opening (the
//! owner adds a mutex), and a forked child shares its parent's.
//!
//! The kernel drops them with the last copy of the descriptor, so a killed holder blocks nobody.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// A range of a file's bytes, which need not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    start: u64,
    /// Zero: to the end, wherever that is.
    len: u64,
}

impl Span {
    /// One byte.
    pub(crate) fn one(at: u64) -> Span {
        Span { start: at, len: 1 }
    }

    /// From a byte on.
    pub(crate) fn from(start: u64) -> Span {
        Span { start, len: 0 }
    }

    fn flock(self, kind: libc::c_int) -> libc::flock {
        libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: self.start as libc::off_t,
            l_len: self.len as libc::off_t,
            l_pid: 0,
        }
    }
}

/// An exclusive lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct FileLock<'a> {
    file: &'a File,
    span: Span,
}

impl<'a> FileLock<'a> {
    /// Waits until the range is free and takes it.
    pub(crate) fn hold(file: &'a File, span: Span) -> io::Result<FileLock<'a>> {
        loop {
            match fcntl(file, FcntlArg::F_OFD_SETLKW(&span.flock(libc::F_WRLCK))) {
                Ok(_) => return Ok(FileLock { file, span }),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Drop for FileLock<'_> {
    fn drop(&mut self) {
        // Letting go of a range of one's own open file has no way to fail.
        let _ = fcntl(self.file, FcntlArg::F_OFD_SETLK(&self.span.flock(libc::F_UNLCK)));
    }
}
