//! Keeping the lease while there is work (step 11 and RENEW), and looking whether somebody waits for it.

use super::lease::{Lease, SeenLease};
use super::state::State;
use super::swap::{Progress, Swap};
use super::{Answer, BootTime, Operation, Request, Step, Turn};

/// How a renewal or a look at the lease ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Renewed {
    /// The lease is this host's. Whether somebody waits for it: [`State::should_hand_over`].
    Held,
    /// It is not. If anything is in the outbox, settle it.
    Lost,
}

/// Renews the right, or resumes it after it lapsed: the swap of this host's last generation succeeds only if nobody was
/// between. Due when [`State::renewal_due`], while the outbox or a write transaction is open, even with nothing to send.
#[derive(Debug, Default)]
pub struct Renew {
    begun: bool,
}

impl Operation for Renew {
    type Outcome = Renewed;

    fn step(&mut self, state: &mut State, turn: Turn) -> Step<Renewed> {
        let Turn { now, random, answer } = turn;
        if !std::mem::replace(&mut self.begun, true) {
            return match &state.swap {
                Some(swap) => Step::Ask(swap.request()),
                None => again(state, now, random),
            };
        }
        match Swap::advance(state, answer) {
            Progress::Ask(request) => Step::Ask(request),
            Progress::Won if state.has_right(now) => Step::Done(Renewed::Held),
            // The answer took too long, or an older swap was settled, or a contender added its want.
            Progress::Won | Progress::Lost(_) => again(state, now, random),
        }
    }
}

fn again(state: &mut State, now: BootTime, random: u64) -> Step<Renewed> {
    let Some(hold) = &state.hold else {
        return Step::Done(Renewed::Lost);
    };
    let (expect, lease) = (Some(hold.generation), Lease { since: None, ..hold.lease.clone() });
    Step::Ask(Swap::begin(state, now, random, expect, lease))
}

/// Reads the lease, to notice a contender. About once a second while this host writes; an idle one has released.
#[derive(Debug, Default)]
pub struct Look;

impl Operation for Look {
    type Outcome = Renewed;

    fn step(&mut self, state: &mut State, turn: Turn) -> Step<Renewed> {
        if state.hold.is_none() {
            return Step::Done(Renewed::Lost);
        }
        let Answer::Lease(seen) = turn.answer else {
            return Step::Ask(Request::GetLease);
        };
        state.observe(seen.as_ref());
        Step::Done(if seen.is_some_and(|seen: SeenLease| state.is_mine(&seen)) { Renewed::Held } else { Renewed::Lost })
    }
}
