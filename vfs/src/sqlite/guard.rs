//! The wall between Rust's panics and SQLite: every callback's body runs inside [`guard`].
//!
//! A panic must not unwind into C. It is logged, and the callback answers with the code that does the least harm there:
//! an I/O error, or "busy" where that leaves things as they are.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs the body of a callback; `safe` is its answer after a panic.
pub(super) fn guard<T>(callback: &'static str, safe: T, body: impl FnOnce() -> T) -> T {
    // What a panic left half changed is behind locks that do not poison, and each is used again only through code
    // that checks what it finds; SQLite itself sees a failed call.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        // Reporting must not panic across the border either.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            crate::log::error!("a defect in sqlite-gcs: {callback} panicked: {}", message(&*panic));
        }));
        safe
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "(no message)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_the_safe_answer() {
        assert_eq!(guard("xTest", 10, || panic!("on purpose")), 10);
        assert_eq!(guard("xTest", 10, || 0), 0);
    }
}
