//! Statics that a forked child begins anew.
//!
//! A forked child has one thread and a copy of everything else: locks that another thread of its parent held stay locked for
//! ever, threads that a static tells of are not there. So what such a static holds is made anew in the child, and the parent's is
//! left where it is, never touched or dropped. Nothing here takes a lock: each generation of processes has a place of
//! its own, which only that generation looks at.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// How many forks this process is away from the one that loaded the library. What was made under another number was inherited.
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// In a forked child, before anything else there.
pub(crate) fn begin_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// A value of this process.
pub(crate) struct PerProcess<T: 'static> {
    value: OnceLock<T>,
    child: OnceLock<&'static PerProcess<T>>,
}

impl<T: Default> PerProcess<T> {
    /// Nothing yet, in any process.
    pub(crate) const fn new() -> PerProcess<T> {
        PerProcess { value: OnceLock::new(), child: OnceLock::new() }
    }

    /// This process's value, made at the first use.
    pub(crate) fn here(&'static self) -> &'static T {
        let mut place = self;
        for _ in 0..generation() {
            place = place.child.get_or_init(|| Box::leak(Box::new(PerProcess::new())));
        }
        place.value.get_or_init(T::default)
    }
}
