//! PRAGMAs on a managed database: our own go to the engine, a change of the journal mode is refused, the rest is SQLite's.
//!
//! FCNTL_PRAGMA exchanges an array of C strings: `[0]` the answer, `[1]` the name, `[2]` the argument or null.

use std::ffi::{CStr, c_char, c_int};

use super::api::Api;
use super::ffi;

/// What `PRAGMA gcs_*` there is, as one types it.
const OURS: &str = "gcs_status, gcs_flush, gcs_durability, gcs_history, gcs_rewind";

/// What to do with a PRAGMA.
#[derive(PartialEq, Eq, Debug)]
enum Answer {
    /// Not ours: SQLite's own handling follows.
    Pass,
    /// One row with this text.
    Row(String),
    /// An error with this text.
    Refuse(String),
}

/// FCNTL_PRAGMA.
///
/// # Safety
/// `argument` is what SQLite passes with this operation.
pub(super) unsafe fn file_control(
    api: &Api,
    engine: impl FnOnce(&str, Option<&str>) -> Option<crate::Result<String>>,
    argument: *mut *mut c_char,
) -> c_int {
    // SAFETY: the caller's promise: three pointers, the name a string, the argument a string or null.
    let (name, value) = unsafe {
        let (name, value) = (*argument.add(1), *argument.add(2));
        if name.is_null() {
            return ffi::NOTFOUND;
        }
        let value = (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy());
        (CStr::from_ptr(name).to_string_lossy().to_ascii_lowercase(), value)
    };
    let (text, code) = match answer(&name, value.as_deref(), engine) {
        Answer::Pass => return ffi::NOTFOUND,
        Answer::Row(text) => (text, ffi::OK),
        Answer::Refuse(text) => (text, ffi::ERROR),
    };
    // SAFETY: as above. SQLite frees the answer. Never null with OK, or CPython takes it for a lack of memory.
    unsafe { *argument = api.text(&text) };
    code
}

fn answer(
    name: &str,
    value: Option<&str>,
    engine: impl FnOnce(&str, Option<&str>) -> Option<crate::Result<String>>,
) -> Answer {
    if name == "journal_mode" {
        return match value {
            Some(mode) if !mode.eq_ignore_ascii_case("wal") => Answer::Refuse(format!(
                "journal_mode={mode}: a database of the VFS gcs is always in WAL mode, because its WAL is what goes to the \
                 bucket. For a plain copy in any mode: VACUUM INTO 'file:copy.db?vfs=unix'"
            )),
            _ => Answer::Pass,
        };
    }
    if !name.starts_with("gcs_") {
        return Answer::Pass;
    }
    match engine(name, value) {
        Some(Ok(text)) => Answer::Row(text),
        Some(Err(error)) => Answer::Refuse(error.to_string()),
        None => Answer::Refuse(format!("no such PRAGMA: {name}. There are: {OURS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    #[test]
    fn only_the_wal_mode_can_be_asked_for() {
        let unasked = |_: &str, _: Option<&str>| panic!("not the engine's");
        assert_eq!(answer("journal_mode", None, unasked), Answer::Pass);
        assert_eq!(answer("journal_mode", Some("WAL"), unasked), Answer::Pass);
        let Answer::Refuse(text) = answer("journal_mode", Some("delete"), unasked) else { panic!("passed") };
        assert!(text.contains("VACUUM INTO"), "{text}");
    }

    #[test]
    fn an_unknown_pragma_of_ours_names_those_there_are() {
        let Answer::Refuse(text) = answer("gcs_flsh", None, |_, _| None) else { panic!("passed") };
        assert!(text.contains("gcs_flsh") && text.contains("gcs_flush"), "{text}");
        assert_eq!(answer("cache_size", Some("1"), |_, _| None), Answer::Pass);
    }

    #[test]
    fn the_engines_answer_and_its_error_reach_the_application() {
        assert_eq!(answer("gcs_flush", None, |_, _| Some(Ok("1f".into()))), Answer::Row("1f".into()));
        let failed = answer("gcs_flush", None, |_, _| Some(Err(Error::new(ErrorKind::Unavailable, "100%s"))));
        assert_eq!(failed, Answer::Refuse("100%s".into()));
    }
}
