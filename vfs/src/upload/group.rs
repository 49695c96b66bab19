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
    /// So many of them are in the bucket. (To count the threads that wait would count those that were not woken yet.)
    served: u64,
    begun: Option<Instant>,
    /// Writers, by the last upload's measure.
    expected: u64,
    /// What the last upload took.
    took: Duration,
}

impl State {
    /// Commits that wait and are not in the bucket.
    fn there(&self) -> u64 {
        self.arrivals - self.served
    }
}

impl Group {
    /// A commit begins to wait.
    pub(crate) fn arrived(&self) {
        self.state.lock().arrivals += 1;
        self.came.notify_all();
    }

    /// Before an upload: waits for those that are expected.
    pub(crate) fn gather(&self) {
        let mut state = self.state.lock();
        let end = Instant::now() + self.most.min(state.took / 5);
        while (1..state.expected).contains(&state.there()) && Instant::now() < end {
            state = self.came.wait_until(state, end);
        }
        state.at_begin = state.arrivals;
        state.begun = Some(Instant::now());
    }

    /// The bucket has answered, and nobody was told yet: who comes from now on may have been here before.
    pub(crate) fn answered(&self) {
        let mut state = self.state.lock();
        state.at_answer = state.arrivals;
    }

    /// After an upload.
    pub(crate) fn settled(&self) {
        let mut state = self.state.lock();
        // Those who will be back in a moment, and those who came meanwhile.
        let late = state.at_answer.saturating_sub(state.at_begin);
        state.expected = state.at_begin - state.served + late;
        state.served = state.at_begin;
        state.took = state.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Of a bucket that takes hours.
    fn slow() -> Group {
        let group = Group { most: HOUR, ..Group::default() };
        group.state.lock().took = HOUR;
        group
    }

    /// An upload that takes an hour; `meanwhile` happens before its answer.
    fn upload(group: &Group, meanwhile: impl FnOnce()) {
        group.gather();
        meanwhile();
        group.answered();
        group.state.lock().begun = Instant::now().checked_sub(HOUR);
    }

    #[test]
    fn an_upload_waits_for_as_many_as_there_are_writers() {
        let group = slow();
        group.arrived();
        upload(&group, || {
            group.arrived();
            group.arrived();
        });
        group.settled();
        assert_eq!(group.state.lock().there(), 2, "who came meanwhile");
        std::thread::scope(|scope| {
            scope.spawn(|| group.arrived());
            group.gather();
        });
        assert_eq!(group.state.lock().at_begin, 4, "one was expected back");
    }

    #[test]
    fn who_was_answered_and_not_woken_yet_is_not_taken_for_one_who_is_back() {
        let group = slow();
        group.arrived();
        group.arrived();
        upload(&group, || ());
        group.settled();
        // One is back; the other may still sleep in the wait that is over.
        group.arrived();
        let state = group.state.lock();
        assert_eq!((state.there(), state.expected), (1, 2));
    }

    #[test]
    fn a_writer_that_is_back_before_the_upload_is_settled_is_not_taken_for_two() {
        let group = slow();
        group.arrived();
        upload(&group, || ());
        group.arrived();
        group.settled();
        // This would wait for an hour.
        group.gather();
        assert_eq!(group.state.lock().expected, 1);
    }

    #[test]
    fn nobody_is_waited_for_long_or_when_nobody_waits() {
        let group = Group::default();
        group.state.lock().expected = 9;
        group.state.lock().took = HOUR;
        let begun = Instant::now();
        group.gather();
        group.arrived();
        group.gather();
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}
