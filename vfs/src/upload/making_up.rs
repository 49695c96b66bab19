//! Requests that a host makes for its own sake, made up for by uploads that are shared.
//!
//! Who commits all the time uploads once per `flush_interval`. Renewals of the lease, merges and the hot index come on top, and cost as
//! much as an upload each. So after each of them one upload that is due waits for one commit more to go with it, [`MOST`] intervals
//! at the most: with commits as far apart as the interval that is one upload less, and all class A requests together are one
//! per interval. A commit after a quiet time goes at once, and nothing waits where somebody waits for the bucket.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::local::shared::BootTime;
use crate::sync::Mutex;

/// How many intervals an upload waits for a commit more, at the most: so many that one a little late is still met.
const MOST: f64 = 1.25;
/// After so many intervals without an upload nothing is made up for.
const QUIET: f64 = 1.5;

/// What one process has made up for, for one database.
#[derive(Default)]
pub(crate) struct MakingUp {
    uploads: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// So many requests are made up for, or forgotten.
    made_up: u64,
    /// Since when an upload that is due waits.
    waits: Option<BootTime>,
}

/// What there is to know when an upload is due.
pub(crate) struct Due {
    pub(crate) now: BootTime,
    pub(crate) interval: Duration,
    /// When the last upload began.
    pub(crate) last_put: BootTime,
    pub(crate) last_commit: BootTime,
    /// Class A requests so far, uploads included.
    pub(crate) class_a: u64,
}

impl MakingUp {
    /// A delta was uploaded.
    pub(crate) fn uploaded(&self) {
        self.uploads.fetch_add(1, Ordering::Relaxed);
    }

    /// How long an upload that is due waits for one commit more; zero: it begins now.
    pub(crate) fn wait(&self, due: &Due) -> Duration {
        let own = due.class_a.saturating_sub(self.uploads.load(Ordering::Relaxed));
        let most = due.interval.mul_f64(MOST);
        let mut state = self.state.lock();
        if let Some(since) = state.waits {
            let left = most.saturating_sub(due.now.since(since));
            if due.last_commit <= since && left > Duration::ZERO {
                return left;
            }
            state.waits = None;
            state.made_up += 1;
            return Duration::ZERO;
        }
        if due.now.since(due.last_put) > due.interval.mul_f64(QUIET) {
            state.made_up = own;
        }
        if own <= state.made_up {
            return Duration::ZERO;
        }
        state.waits = Some(due.now);
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Commits so far apart, and now and then a request of the host's own: class A requests in so many seconds, and the longest time
    /// that a commit waited.
    fn run(apart: Duration, seconds: u32, own_every: Duration) -> (u64, Duration) {
        let (making_up, begun) = (MakingUp::default(), BootTime::now());
        let (mut class_a, mut now, mut last_put, mut oldest) = (0, begun, BootTime::default(), None);
        let (mut next_commit, mut next_own, mut last_commit) = (begun, begun.plus(own_every), begun);
        let mut longest = Duration::ZERO;
        while now.since(begun) < SECOND * seconds {
            if now >= next_own {
                next_own = next_own.plus(own_every);
                class_a += 1;
            }
            if now >= next_commit {
                next_commit = next_commit.plus(apart);
                last_commit = now;
                oldest.get_or_insert(now);
            }
            let is_due = oldest.is_some() && now.since(last_put) >= SECOND;
            if is_due
                && making_up.wait(&Due { now, interval: SECOND, last_put, last_commit, class_a }) == Duration::ZERO
            {
                longest = longest.max(oldest.take().map_or(Duration::ZERO, |since| now.since(since)));
                last_put = now;
                class_a += 1;
                making_up.uploaded();
            }
            now = now.plus(Duration::from_millis(1));
        }
        (class_a, longest)
    }

    #[test]
    fn a_writer_of_one_commit_a_second_costs_one_request_a_second_whatever_the_host_does() {
        for late in [0, 1, 5, 20] {
            let (class_a, longest) = run(SECOND + Duration::from_millis(late), 600, Duration::from_secs(12));
            assert!(class_a <= 601, "{class_a}");
            assert!(longest <= SECOND.mul_f64(MOST), "{longest:?}");
        }
    }

    #[test]
    fn who_commits_all_the_time_waits_hardly_longer() {
        let (_, longest) = run(Duration::from_millis(50), 600, Duration::from_secs(12));
        assert!(longest <= SECOND + Duration::from_millis(100), "{longest:?}");
    }

    #[test]
    fn a_commit_after_a_quiet_time_goes_at_once() {
        let (class_a, longest) = run(2 * SECOND, 600, Duration::from_secs(12));
        assert_eq!((class_a, longest), (349, Duration::ZERO));
    }
}
