//! One compare-and-swap of the lease by its holder (or holder to be), until it is known to be done or to be impossible.
//!
//! It is on disk before it is sent, with its random `req`. A lost answer is settled by sending the very same swap
//! again: 200 says done; 412 says that the generation moved, and then the lease itself says by whom: our `req`
//! in it means us. When it shows another, this swap can never happen any more.

use serde::{Deserialize, Serialize};

use super::lease::{Lease, LeaseState, SeenLease};
use super::object_id::Nonce;
use super::state::{Hold, OwnRelease, State, generation_or_absent};
use super::{Answer, BootTime, Request};
use crate::store::Generation;

/// A swap of the lease that may have been sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Swap {
    /// The generation that it replaces; `None` for an absent lease.
    #[serde(with = "generation_or_absent")]
    pub expect: Option<Generation>,
    /// What it writes.
    pub lease: Lease,
    /// The boot clock before its first attempt: the right that it confers counts from here.
    pub first_sent: BootTime,
    /// The host restarted since: it confers no right, and what it says about the seal is not relied on.
    pub stale: bool,
}

/// Where a swap stands.
pub(super) enum Progress {
    /// Not settled: ask this.
    Ask(Request),
    /// Done, and taken into the state.
    Won,
    /// It did not happen and never will; this is what the lease is instead. The state has taken it in.
    Lost(Option<SeenLease>),
}

impl Swap {
    /// Notes a new swap in the state and gives the request for it.
    pub(super) fn begin(
        state: &mut State,
        now: BootTime,
        random: u64,
        expect: Option<Generation>,
        lease: Lease,
    ) -> Request {
        let lease = Lease { req: Nonce(random), ..lease };
        let swap = Swap { expect, lease, first_sent: now, stale: false };
        let request = swap.request();
        state.swap = Some(swap);
        request
    }

    /// The request of a swap, the same every time.
    pub(super) fn request(&self) -> Request {
        Request::SwapLease { expect: self.expect, lease: self.lease.clone() }
    }

    /// Takes in an answer to the request of the state's swap, or to the reading of the lease after it was refused.
    pub(super) fn advance(state: &mut State, answer: Answer) -> Progress {
        let Some(swap) = state.swap.clone() else {
            return Progress::Ask(Request::GetLease);
        };
        match answer {
            Answer::Written(generation) => {
                swap.done(state, generation);
                Progress::Won
            }
            Answer::Refused => Progress::Ask(Request::GetLease),
            Answer::Lease(Some(seen)) if (seen.lease.holder, seen.lease.req) == (state.nonce, swap.lease.req) => {
                let want = seen.lease.want.clone();
                Swap { lease: Lease { want, ..swap.lease }, ..swap }.done(state, seen.generation);
                Progress::Won
            }
            Answer::Lease(seen) if seen.as_ref().map(|seen| seen.generation) != swap.expect => {
                state.swap = None;
                state.observe(seen.as_ref());
                Progress::Lost(seen)
            }
            _ => Progress::Ask(swap.request()),
        }
    }

    /// Takes the written lease into the state.
    fn done(self, state: &mut State, generation: Generation) {
        let before = state.hold.take().filter(|hold| Some(hold.generation) == self.expect);
        state.swap = None;
        state.watch = None;
        state.released = None;
        match self.lease.state {
            LeaseState::Held => {
                let ends = self.first_sent.plus(self.lease.ttl_ms);
                state.hold = Some(Hold {
                    generation,
                    right_until: if self.stale { BootTime(0) } else { ends },
                    // The generation that was replaced was this host's own: nobody was between.
                    head: before.as_ref().and_then(|hold| hold.head),
                    turn_began: before.map_or(self.first_sent, |hold| hold.turn_began),
                    lease: Lease { sealed: self.lease.sealed && !self.stale, ..self.lease },
                });
            }
            LeaseState::Released => {
                state.released = Some(OwnRelease { generation, lease: self.lease, sent: self.first_sent });
            }
        }
    }
}
