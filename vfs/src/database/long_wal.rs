//! Keeping the WAL short while commits wait for the bucket.
//!
//! SQLite starts the WAL again when a writer begins with all of it in the database file, which its own checkpoints reach where nobody
//! commits while one runs. Many threads whose commits wait for the bucket leave no such moment, least of all where syncing takes the
//! disk long: a checkpoint ends with frames behind it, and whoever comes back meanwhile finds CKPT taken and makes none.
//!
//! So once the WAL is too long, a writer that could only append to it is told BUSY, and copies what is left of the WAL into the
//! database file itself (`apply/backfill.rs`: WRITE is held, nothing is synced). Its next attempt reads nothing from the WAL, and starts
//! it again. In every process the same length says when, so nobody appends in between.
//!
//! Nobody is held back for good. A reader that stays in an old snapshot, or a checkpoint of somebody else that does not come to its end,
//! has the WAL grow after a while, and it is tried again later and later.
//!
//! **Crash.** As with a backfill: the WAL holds what was copied until it starts again, and that is captured and on disk first.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Database;
use crate::apply::backfill::Backfilled;
use crate::log;
use crate::sync::Mutex;

/// How long writers are held back for readers of old snapshots.
const FOR_READERS: Duration = Duration::from_secs(1);
/// How long for somebody who checkpoints or writes; a sync takes a slow disk that long.
const FOR_OTHERS: Duration = Duration::from_secs(4);
/// How long for both in turn.
const AT_MOST: Duration = Duration::from_secs(10);
/// How often the pauses until the next time double.
const DOUBLINGS: u32 = 6;

/// What is done about one database's WAL.
#[derive(Default)]
pub(super) struct LongWal(Mutex<State>);

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// Until when writers are let be.
    resting: Option<Instant>,
    /// How often they were held back for nothing.
    in_vain: u32,
}

/// Writers are held back.
struct Held {
    since: Instant,
    /// Whether readers are in the way, and not somebody who checkpoints or writes.
    by_readers: bool,
    by_them_since: Instant,
}

impl State {
    /// Whether the writer has to try again, after an attempt that reached so far (`None`: somebody checkpoints or writes).
    fn goes_on(&mut self, reached: Option<Backfilled>, now: Instant) -> bool {
        let by_readers = reached.is_some();
        let held = self.held.get_or_insert(Held { since: now, by_readers, by_them_since: now });
        if held.by_readers != by_readers {
            (held.by_readers, held.by_them_since) = (by_readers, now);
        }
        let limit = if by_readers { FOR_READERS } else { FOR_OTHERS };
        if now.duration_since(held.by_them_since) < limit && now.duration_since(held.since) < AT_MOST {
            return true;
        }
        self.held = None;
        self.resting = Some(now + FOR_READERS * 2u32.pow(self.in_vain));
        self.in_vain = DOUBLINGS.min(self.in_vain + 1);
        false
    }
}

impl Database {
    /// Whether a writer that can only make a long WAL longer has to try again. Not without commits that wait for the bucket: SQLite's
    /// own checkpoints are enough then. Called with nothing held but the writer's read mark.
    pub(crate) fn holds_writers_back(&self) -> bool {
        // Another thread that is at it is waited for like any other writer.
        let Some(mut state) = self.long_wal.0.try_lock() else { return true };
        let now = Instant::now();
        let begins = state.held.is_none() && self.urgent.load(Ordering::SeqCst) > 0;
        if state.resting.is_some_and(|end| now < end) || state.held.is_none() && !begins {
            return false;
        }
        let reached = self.wal_index().map_or(Ok(None), |index| self.applier(&*index).backfill(&self.cache));
        let reached = reached.unwrap_or_else(|e| {
            log::debug!("{}: the WAL stays long: {e}", self.layout.main().display());
            None
        });
        state.goes_on(reached, Instant::now())
    }

    /// The WAL started again, or never grew long.
    pub(crate) fn wal_is_short(&self) {
        if let Some(mut state) = self.long_wal.0.try_lock() {
            *state = State::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Backfilled = Backfilled { frames: 2000, done: 10 };
    const DONE: Backfilled = Backfilled { frames: 2000, done: 2000 };

    /// How long a writer is held back from `now` on, and then let be.
    fn round(state: &mut State, reached: Option<Backfilled>, now: &mut Instant) -> (u128, u128) {
        let begun = *now;
        while state.goes_on(reached, *now) {
            *now += Duration::from_millis(100);
        }
        let held = now.duration_since(begun).as_millis();
        let rests = state.resting.expect("a pause").duration_since(*now).as_millis();
        (held, rests)
    }

    #[test]
    fn readers_of_old_snapshots_hold_writers_up_for_a_second_less_and_less_often() {
        let (mut state, mut now) = (State::default(), Instant::now());
        let rounds: Vec<_> = (0..9).map(|_| round(&mut state, Some(PART), &mut now)).collect();
        let expected = [1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 64_000, 64_000].map(|rests| (1000, rests));
        assert_eq!(rounds, expected);
    }

    #[test]
    fn a_checkpoint_that_waits_for_the_disk_is_waited_for_longer() {
        let (mut state, mut now) = (State::default(), Instant::now());
        assert_eq!(round(&mut state, None, &mut now), (4000, 1000));
    }

    #[test]
    fn one_checkpoint_after_the_other_is_waited_for_longer_still_and_not_for_good() {
        let (mut state, begun) = (State::default(), Instant::now());
        let each = (0..).map(|n| (n % 4 == 3, begun + Duration::from_secs(n)));
        let ends = each.into_iter().find(|(over, now)| !state.goes_on(over.then_some(DONE), *now)).expect("an end");
        assert_eq!(ends.1.duration_since(begun), AT_MOST);
    }
}
