//! Group commit: how many commits that wait for the bucket share one upload.
//!
//! When an upload is done, all commits that waited for it return at once, and a moment later their threads are back with the next
//! ones. An upload that began with the first of these would carry one commit, and the others would wait for the one after: small
//! and large groups in turn, at half the speed. So an upload waits until as many have come as there are writers, by the last
//! upload's measure, for a fifth of what an upload takes at the most.

use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

/// The longest wait for others, by default.
const MOST: Duration = Duration::from_millis(10);

/// Who comes and goes.
#[derive(Debug)]
pub(crate) struct Group {
    state: Mutex<State>,
    came: Condvar,
    /// The longest wait for others.
    most: Duration,
}

impl Default for Group {
    fn default() -> Group {
        Group { state: Mutex::default(), came: Condvar::new(), most: MOST }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Commits that began to wait, ever.
    arrivals: u64,
    /// The same when the last upload began, and when it was answered.
    at_begin: u64,
    at_answer: u64,
    begun: Option<Instant>,
    /// Writers, by the last upload's measure.
    expected: u32,
    /// What the last upload took.
    took: Duration,
}

impl Group {
    /// A commit begins to wait.
    pub(crate) fn arrived(&self) {
        self.state.lock().arrivals += 1;
        self.came.notify_all();
    }

    /// Before an upload: waits for those that are expected, and returns how many are there. `waiting` counts them.
    pub(crate) fn gather(&self, waiting: impl Fn() -> u32) -> u32 {
        let mut state = self.state.lock();
        let end = Instant::now() + self.most.min(state.took / 5);
        while (1..state.expected).contains(&waiting()) && Instant::now() < end {
            state = self.came.wait_until(state, end);
        }
        state.at_begin = state.arrivals;
        state.begun = Some(Instant::now());
        waiting()
    }

    /// The bucket has answered, and nobody was told yet: who comes from now on may have been here before.
    pub(crate) fn answered(&self) {
        let mut state = self.state.lock();
        state.at_answer = state.arrivals;
    }

    /// After an upload for which `joined` waited.
    pub(crate) fn settled(&self, joined: u32) {
        let mut state = self.state.lock();
        let late = u32::try_from(state.at_answer.saturating_sub(state.at_begin)).unwrap_or(u32::MAX);
        // Those who came meanwhile, and those who will be back in a moment.
        state.expected = joined.saturating_add(late);
        state.took = state.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn an_upload_waits_for_as_many_as_there_are_writers() {
        let (group, waiting) = (Group { most: Duration::from_secs(60), ..Group::default() }, AtomicU32::new(0));
        let come = || {
            waiting.fetch_add(1, Ordering::SeqCst);
            group.arrived();
        };
        let count = || waiting.load(Ordering::SeqCst);
        come();
        assert_eq!(group.gather(count), 1, "nobody else is expected");
        come();
        come();
        group.state.lock().begun = Instant::now().checked_sub(Duration::from_secs(300));
        group.answered();
        waiting.fetch_sub(1, Ordering::SeqCst);
        group.settled(1);
        std::thread::scope(|scope| {
            scope.spawn(come);
            assert_eq!(group.gather(count), 3, "two came meanwhile, one was expected back");
        });
    }

    #[test]
    fn a_writer_that_is_back_before_the_upload_is_settled_is_not_taken_for_two() {
        let group = Group { most: Duration::from_secs(3600), ..Group::default() };
        group.arrived();
        assert_eq!(group.gather(|| 1), 1);
        group.answered();
        group.arrived();
        group.settled(1);
        group.state.lock().took = Duration::from_secs(3600);
        assert_eq!(group.gather(|| 1), 1, "this would wait for an hour");
    }

    #[test]
    fn nobody_is_waited_for_long_or_when_nobody_waits() {
        let group = Group::default();
        group.settled(9);
        group.state.lock().took = Duration::from_secs(9);
        let begun = Instant::now();
        assert_eq!(group.gather(|| 0), 0);
        assert_eq!((group.gather(|| 1), begun.elapsed() < Duration::from_secs(1)), (1, true));
    }
}
