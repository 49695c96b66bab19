//! Which error may come from which callback: one table, and the codes of our own.
//!
//! SQLite gives a code a meaning that depends on who returns it. BUSY from a read leaves a transaction open half-done, and a
//! later COMMIT stores a corrupt index; BUSY from the end of a commit makes the second COMMIT succeed without having
//! done anything; BUSY from the reset of the WAL is harmless. So no code is chosen anywhere but here.
//!
//! | callback | class of the code | why |
//! |---|---|---|
//! | xOpen | any | nothing has begun |
//! | xRead, xWrite, xTruncate, xSync, WAL xWrite | IOERR or FULL | anything else leaves the transaction open |
//! | xLock(EXCLUSIVE), reset of the WAL | BUSY | the caller goes on without it |
//! | xShmLock(WRITE) | BUSY, READONLY, else IOERR or FULL | a transaction has not begun: BUSY runs the busy handler |
//! | COMMIT_PHASETWO | READONLY or IOERR | reaches the caller's COMMIT; never BUSY |
//! | WAL xDelete, xTruncate(0) | IOERR | the WAL stays, which is safe |

use std::cell::RefCell;
use std::ffi::c_int;

use super::ffi;
use crate::error::{Error, ErrorKind};
use crate::log;

/// Our extended codes count from here in each class; SQLite's own are far below.
const OURS: c_int = 103;

/// What an extended code of ours says; the same number in every class.
const fn extended(class: c_int, kind: ErrorKind) -> c_int {
    let n = match kind {
        ErrorKind::Unavailable => 0,
        ErrorKind::Fenced => 1,
        ErrorKind::Configuration => 2,
        ErrorKind::Corrupt => 3,
        ErrorKind::Local => 4,
        ErrorKind::Busy => 5,
        ErrorKind::Full => 6,
    };
    class | ((OURS + n) << 8)
}

/// Where in SQLite's protocol an error came up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Callback {
    /// xOpen of the main file.
    Open,
    /// xRead of the main file.
    Read,
    /// xWrite of the main file.
    Write,
    /// xTruncate of the main file.
    Truncate,
    /// xLock(EXCLUSIVE) of the main file.
    Exclusive,
    /// xShmLock of the WRITE lock.
    WriteLock,
    /// xShmLock of READ1 to READ4, exclusively: the WAL is about to be reset.
    Reset,
    /// xWrite of the WAL.
    WalWrite,
    /// xTruncate(0) of the WAL, or xDelete of it.
    WalRemoved,
    /// FCNTL_COMMIT_PHASETWO.
    PhaseTwo,
}

impl Callback {
    const fn doing(self) -> &'static str {
        match self {
            Callback::Open => "opening",
            Callback::Read => "reading",
            Callback::Write => "checkpointing into",
            Callback::Truncate => "truncating",
            Callback::Exclusive => "locking exclusively",
            Callback::WriteLock => "beginning to write to",
            Callback::Reset => "resetting the WAL of",
            Callback::WalWrite => "writing to the WAL of",
            Callback::WalRemoved => "removing the WAL of",
            Callback::PhaseTwo => "committing to",
        }
    }
}

/// The one code that stands for `kind` when it comes from `callback`.
pub(super) const fn code(callback: Callback, kind: ErrorKind) -> c_int {
    match callback {
        Callback::Open => match kind {
            ErrorKind::Busy => ffi::BUSY,
            ErrorKind::Full => ffi::FULL,
            ErrorKind::Corrupt => extended(ffi::CORRUPT, kind),
            _ => extended(ffi::CANTOPEN, kind),
        },
        Callback::Read | Callback::Write | Callback::Truncate | Callback::WalWrite => match kind {
            ErrorKind::Full => ffi::FULL,
            _ => extended(ffi::IOERR, kind),
        },
        Callback::Exclusive | Callback::Reset => ffi::BUSY,
        Callback::WriteLock => match kind {
            // The bucket may be back before the application's busy timeout is over.
            ErrorKind::Busy | ErrorKind::Unavailable => ffi::BUSY,
            ErrorKind::Full => ffi::FULL,
            ErrorKind::Fenced | ErrorKind::Configuration => extended(ffi::READONLY, kind),
            _ => extended(ffi::IOERR, kind),
        },
        Callback::WalRemoved => extended(ffi::IOERR, kind),
        Callback::PhaseTwo => match kind {
            ErrorKind::Fenced | ErrorKind::Configuration => extended(ffi::READONLY, kind),
            _ => extended(ffi::IOERR, kind),
        },
    }
}

thread_local! {
    /// What xGetLastError tells: the last error that a callback on this thread turned into a code.
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Turns an error into the callback's code. The text, for which the code has no room, goes to the log and to
/// xGetLastError. Being busy is ordinary: it is not logged as an error.
pub(super) fn report(callback: Callback, path: &std::path::Path, error: &Error) -> c_int {
    let text = format!("{} {}: {error}", callback.doing(), path.display());
    let code = code(callback, error.kind());
    if error.kind() == ErrorKind::Busy {
        log::debug!("{text}");
    } else {
        log::error!("{text}");
    }
    LAST.with_borrow_mut(|last| *last = text);
    code
}

/// The text of the last error on this thread; empty if there was none.
pub(super) fn last_error() -> String {
    LAST.with_borrow(String::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ErrorKind; 7] = [
        ErrorKind::Configuration,
        ErrorKind::Unavailable,
        ErrorKind::Busy,
        ErrorKind::Fenced,
        ErrorKind::Corrupt,
        ErrorKind::Local,
        ErrorKind::Full,
    ];

    #[test]
    fn every_callback_returns_only_what_sqlite_survives_there() {
        use Callback::*;
        for kind in KINDS {
            for callback in [Read, Write, Truncate, WalWrite] {
                let class = code(callback, kind) & 0xff;
                assert!([ffi::IOERR, ffi::FULL].contains(&class), "{callback:?} {kind:?}");
            }
            assert!([ffi::IOERR, ffi::READONLY].contains(&(code(PhaseTwo, kind) & 0xff)), "{kind:?}");
            assert_eq!(code(WalRemoved, kind) & 0xff, ffi::IOERR, "{kind:?}");
            assert_eq!(code(Exclusive, kind), ffi::BUSY);
            assert_eq!(code(Reset, kind), ffi::BUSY);
            for callback in [Open, WriteLock] {
                assert_ne!(code(callback, kind), ffi::OK);
            }
        }
    }

    #[test]
    fn a_fenced_writer_sees_a_readonly_code_of_ours() {
        assert_eq!(code(Callback::WriteLock, ErrorKind::Fenced), 8 | (104 << 8));
        assert_eq!(code(Callback::PhaseTwo, ErrorKind::Fenced), 8 | (104 << 8));
        assert_eq!(code(Callback::PhaseTwo, ErrorKind::Unavailable), 10 | (103 << 8));
    }
}
