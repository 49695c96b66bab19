//! Where messages go: to stderr as `SQLITE_GCS_LOG` asks, and to SQLite's own log.
//!
//! `SQLITE_GCS_LOG` is `error` (the default), `info` or `debug`; anything else counts as `error`.

use std::fmt;
use std::sync::{LazyLock, OnceLock};

/// How much a message matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Level {
    /// Something that a person has to know or mend.
    Error,
    /// What happened, once per event that a person may ask about.
    Info,
    /// Every request and every delta.
    Debug,
}

/// Takes a message to `sqlite3_log`; set once when the VFS is registered.
pub(crate) static SQLITE_LOG: OnceLock<fn(Level, &str)> = OnceLock::new();

static WANTED: LazyLock<Level> = LazyLock::new(|| match std::env::var("SQLITE_GCS_LOG").as_deref() {
    Ok("debug") => Level::Debug,
    Ok("info") => Level::Info,
    _ => Level::Error,
});

/// Whether a message of this level would go anywhere.
pub(crate) fn wanted(level: Level) -> bool {
    level <= *WANTED || level == Level::Error
}

/// Writes one line to stderr if its level is wanted, and errors to SQLite's log too.
pub(crate) fn write(level: Level, message: fmt::Arguments<'_>) {
    if !wanted(level) {
        return;
    }
    let text = message.to_string();
    if level <= *WANTED {
        use std::io::Write as _;
        let word = match level {
            Level::Error => "error",
            Level::Info => "info",
            Level::Debug => "debug",
        };
        // A closed stderr is the application's choice; there is nowhere left to report it.
        let _ = writeln!(std::io::stderr(), "sqlite-gcs: {word}: {text}");
    }
    if level == Level::Error
        && let Some(sink) = SQLITE_LOG.get()
    {
        sink(level, &text);
    }
}

macro_rules! error { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Error, format_args!($($t)*)) } }
macro_rules! info { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Info, format_args!($($t)*)) } }
macro_rules! debug { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Debug, format_args!($($t)*)) } }
pub(crate) use {debug, error, info};
