//! Giving the lease back (steps 13 to 15): everything settled, the mark on disk, then the swap.
//!
//! The right ends when the swap is first sent, whatever comes of it: a release may land late.

use super::lease::{Contender, Lease, LeaseState};
use super::state::State;
use super::swap::{Progress, Swap};
use super::{BootTime, Operation, Step, Turn};

/// How a release ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Released {
    /// The lease is free, kept for this contender for a short time.
    Done(Option<Contender>),
    /// It was not this host's (any more).
    NotHeld,
    /// The outbox is not empty, so a PUT may still be under way: nothing was sent. Drain it, or let the lease expire.
    Unsettled,
}

/// Releases the lease.
///
/// The driver holds the WAL's WRITE lock from before it begins until its first request is saved: no commit, of any process
/// of the host, is under way, and everything in the WAL has been captured.
#[derive(Debug, Default)]
pub struct Release {
    begun: bool,
}

impl Operation for Release {
    type Outcome = Released;

    fn step(&mut self, state: &mut State, turn: Turn) -> Step<Released> {
        let Turn { now, random, answer } = turn;
        if !std::mem::replace(&mut self.begun, true) {
            return match &state.swap {
                Some(swap) => Step::Ask(swap.request()),
                None => send(state, now, random),
            };
        }
        match Swap::advance(state, answer) {
            Progress::Ask(request) => Step::Ask(request),
            Progress::Won if state.hold.is_none() => {
                Step::Done(Released::Done(state.released.as_ref().and_then(|mine| mine.lease.next.clone())))
            }
            // An older swap was settled, or a contender added its want.
            Progress::Won | Progress::Lost(_) => send(state, now, random),
        }
    }
}

fn send(state: &mut State, now: BootTime, random: u64) -> Step<Released> {
    if !state.outbox.is_empty() {
        return Step::Done(Released::Unsettled);
    }
    let Some(hold) = &mut state.hold else {
        return Step::Done(Released::NotHeld);
    };
    hold.right_until = BootTime(0);
    let expect = Some(hold.generation);
    let lease = Lease {
        state: LeaseState::Released,
        head: hold.head,
        since: None,
        next: hold.lease.want.clone(),
        want: None,
        ..hold.lease.clone()
    };
    Step::Ask(Swap::begin(state, now, random, expect, lease))
}
