//! Threads of this process that want WRITE and were told BUSY: woken when it is let go.
//!
//! SQLite's busy handler sleeps 1, 2, 5, 10 ms and so on, through xSleep of the VFS, and tries again. Of a group of commits that
//! returned together, and whose threads come back together with the next ones, the last would be through after 8 ms and more,
//! where each holds WRITE for some ten microseconds. So what sleeps after a refusal of WRITE ends early:
//!
//! - when a connection of this process lets go of WRITE, for one that sleeps, the longest waiting first as a rule. It sleeps on if
//!   somebody else was faster;
//! - at once, if that happened between the refusal and the sleep, or if WRITE was had, but for a snapshot that was too old by then
//!   (BUSY_SNAPSHOT: the next attempt begins with a new one), and nobody has it now.
//!
//! **Ordering.** Who lets go counts first and then looks whether somebody waits; who waits says so first and then looks at the count.
//! One of them sees the other. Holders in other processes wake nobody, and the sleep lasts as long as SQLite asked.
//!
//! **The busy timeout.** SQLite counts the time that it asked for, not the time that passed. A thread may save [`AHEAD`] in all
//! until it has written, so a timeout ends at most that much too early, however often others are faster.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

/// How much of the sleeps that SQLite asks for between two writes a thread may save: the first three.
const AHEAD: Duration = Duration::from_millis(8);
/// A refusal this long ago belongs to an attempt that was given up.
const OVER: Duration = Duration::from_millis(500);

/// The threads of this process that wait for WRITE of one database.
#[derive(Default)]
pub(super) struct WriteQueue {
    /// How often WRITE was let go.
    let_go: AtomicU64,
    /// A connection of this process has it.
    held: AtomicBool,
    waiting: AtomicU32,
    gate: Mutex<()>,
    freed: Condvar,
}

/// A thread's attempts to write.
#[derive(Default)]
struct Attempts {
    /// Where WRITE was refused, and the count before; taken by the next sleep.
    refused: Option<(Arc<WriteQueue>, u64)>,
    last: Option<Instant>,
    saved: Duration,
}

thread_local! {
    static ATTEMPTS: RefCell<Attempts> = RefCell::default();
}

/// Does something with this thread's attempts. `None` in a thread that ends, and closes a connection at its very end.
fn attempts<T>(work: impl FnOnce(&mut Attempts) -> T) -> Option<T> {
    ATTEMPTS.try_with(|attempts| work(&mut attempts.borrow_mut())).ok()
}

impl WriteQueue {
    /// The count to remember before WRITE is asked for.
    pub(super) fn count(&self) -> u64 {
        self.let_go.load(Ordering::SeqCst)
    }

    /// A connection of this process has got WRITE.
    pub(super) fn taken(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    /// This thread was told BUSY; `before` is the count from before it asked.
    pub(super) fn refused(self: &Arc<WriteQueue>, before: u64) {
        attempts(|attempts| {
            let now = Instant::now();
            if attempts.last.replace(now).is_none_or(|last| now.duration_since(last) > OVER) {
                attempts.saved = Duration::ZERO;
            }
            attempts.refused = Some((Arc::clone(self), before));
        });
    }

    /// A connection of this process has let go of WRITE; with something written or not, in which case it may be told BUSY next.
    pub(super) fn let_go(self: &Arc<WriteQueue>, written: bool) {
        self.held.store(false, Ordering::SeqCst);
        let before = self.let_go.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.gate.lock());
            self.freed.notify_one();
        }
        if written {
            attempts(|attempts| *attempts = Attempts::default());
        } else {
            self.refused(before);
        }
    }

    /// Waits until WRITE was let go after `before` and nobody here has it, `limit` at the most.
    fn wait(&self, before: u64, limit: Duration) {
        let end = Instant::now() + limit;
        let mut gate = self.gate.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while (self.count() == before || self.held.load(Ordering::SeqCst)) && Instant::now() < end {
            gate = self.freed.wait_until(gate, end);
        }
        drop(gate);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// xSleep: sleeps `asked` by `sleep`, or shorter after a refusal of WRITE. Returns how long it took.
pub(super) fn sleep(asked: Duration, sleep: impl FnOnce(Duration)) -> Duration {
    let begun = Instant::now();
    let refused = attempts(|attempts| {
        let refused = attempts.refused.take()?;
        (attempts.saved + asked <= AHEAD).then_some(refused)
    });
    match refused.flatten() {
        None => sleep(asked),
        Some((queue, before)) => {
            queue.wait(before, asked);
            let saved = asked.saturating_sub(begun.elapsed());
            attempts(|attempts| attempts.saved += saved);
        }
    }
    begun.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(5);

    fn never(_: Duration) {
        panic!("slept to the end");
    }

    #[test]
    fn a_refusal_that_is_over_before_the_sleep_ends_it_at_once() {
        let queue = Arc::new(WriteQueue::default());
        let before = queue.count();
        std::thread::scope(|scope| scope.spawn(|| queue.let_go(true)).join()).expect("no panic");
        queue.refused(before);
        assert!(sleep(LONG, never) < LONG);
    }

    #[test]
    fn a_sleeper_is_woken_by_who_lets_go() {
        let queue = Arc::new(WriteQueue::default());
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                queue.refused(queue.count());
                queue.wait(queue.count(), Duration::from_secs(60));
            });
            let begun = Instant::now();
            while queue.waiting.load(Ordering::SeqCst) == 0 {
                assert!(begun.elapsed() < Duration::from_secs(60), "nobody sleeps");
                std::thread::yield_now();
            }
            queue.let_go(true);
            let begun = Instant::now();
            sleeper.join().expect("no panic");
            assert!(begun.elapsed() < Duration::from_secs(30), "it slept to the end");
        });
        assert_eq!(queue.waiting.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_sleeper_sleeps_on_while_somebody_else_was_faster() {
        let (queue, begun) = (WriteQueue::default(), Instant::now());
        let before = queue.count();
        queue.let_go.fetch_add(1, Ordering::SeqCst);
        queue.taken();
        queue.wait(before, LONG);
        assert!(begun.elapsed() >= LONG);
    }

    #[test]
    fn a_snapshot_that_was_too_old_is_not_slept_over() {
        let queue = Arc::new(WriteQueue::default());
        queue.let_go(false);
        assert!(sleep(LONG, never) < LONG);
        queue.let_go(true);
        let mut slept = false;
        sleep(Duration::ZERO, |_| slept = true);
        assert!(slept, "after a write there was no refusal");
    }

    #[test]
    fn a_busy_timeout_ends_early_by_the_first_sleeps_at_the_most() {
        let queue = Arc::new(WriteQueue::default());
        let mut full = 0;
        for _ in 0..20 {
            queue.let_go(false);
            sleep(LONG, |_| full += 1);
        }
        assert!(full >= 18, "only {full} of 20 sleeps were kept");
    }
}
