//! Taking the lease at the first write (steps 1 to 7): swap, find the head, seal.
//!
//! Order is everything here: the swap first, then the listing, then the look at the right, then the seal. A
//! commit may be acknowledged when all of it is done and the local database is the log up to its head.

use super::chain::{Chain, Gap};
use super::lease::{Contender, Lease, LeaseState, NEXT_MS, SeenLease, ttl_with_slack_ms};
use super::object_id::{Nonce, ObjectId};
use super::restart::{Verdict, reconcile};
use super::state::State;
use super::swap::{Progress, Swap};
use super::{Answer, BootTime, Operation, Request, Step, Turn};
use crate::store::Generation;

/// How an acquisition ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Acquired {
    /// Commits may be acknowledged.
    Ready,
    /// The lease is held and the log sealed, but it has deltas up to this one that the local database lacks. Bring it up
    /// to date ([`State::caught_up`]); commits may be acknowledged then.
    Behind(ObjectId),
    /// Somebody else may write now. SQLITE_BUSY, and try again.
    Busy(Contender),
    /// The right ended before the log was sealed. Acquire again.
    Lapsed,
    /// The lease is held, but local deltas have no place in the log any more; never [`Verdict::Continues`] or
    /// [`Verdict::Behind`]. After they are set aside, release the lease or acquire again.
    Refused(Verdict),
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Begin,
    /// A swap of an earlier operation is being settled.
    Settling,
    Looking,
    /// The lease is being swapped; a clean release says where the log ends.
    Taking {
        clean_head: Option<ObjectId>,
    },
    /// Our `want` is being written; whatever comes of it.
    Marking(Contender),
    Listing,
    MakingSeal,
    Sealing(ObjectId),
    ReadingBack(ObjectId),
    /// The outbox is being frozen anew on top of this head.
    Refreezing(ObjectId),
    /// `sealed` is being written into the lease.
    Confirming,
}

/// Takes the lease. What is in the WAL is captured into the outbox before it begins.
#[derive(Debug, Default)]
pub struct Acquire {
    phase: Phase,
    /// Whether the local database with its outbox fits the head of the log.
    fits: bool,
    /// The last listing had this gap; it is listed again. The driver's deadline ends it.
    pub gap: Option<Gap>,
}

impl Operation for Acquire {
    type Outcome = Acquired;

    fn step(&mut self, state: &mut State, turn: Turn) -> Step<Acquired> {
        let Turn { now, random, answer } = turn;
        match std::mem::take(&mut self.phase) {
            Phase::Begin => match &state.swap {
                Some(swap) => {
                    let request = swap.request();
                    self.ask(Phase::Settling, request)
                }
                None => self.open(state, now, random),
            },
            Phase::Settling => match Swap::advance(state, answer) {
                Progress::Ask(request) => self.ask(Phase::Settling, request),
                Progress::Won | Progress::Lost(_) => self.open(state, now, random),
            },
            Phase::Looking => match answer {
                Answer::Lease(seen) => {
                    state.observe(seen.as_ref());
                    self.judge(state, now, random, seen)
                }
                _ => self.ask(Phase::Looking, Request::GetLease),
            },
            Phase::Taking { clean_head } => match Swap::advance(state, answer) {
                Progress::Ask(request) => self.ask(Phase::Taking { clean_head }, request),
                Progress::Lost(seen) => self.judge(state, now, random, seen),
                Progress::Won => self.taken(state, now, clean_head),
            },
            Phase::Marking(holder) => Step::Done(Acquired::Busy(holder)),
            Phase::Listing => match answer {
                Answer::Listing(listing) => match Chain::of(&listing) {
                    Ok(chain) => self.listed(state, now, random, &chain),
                    Err(gap) => {
                        self.gap = Some(gap);
                        self.ask(Phase::Listing, Request::List)
                    }
                },
                _ => self.ask(Phase::Listing, Request::List),
            },
            Phase::MakingSeal => match answer {
                Answer::Made(seal) => self.send_seal(state, now, seal),
                _ => self.ask(Phase::Listing, Request::List),
            },
            Phase::Sealing(seal) => match answer {
                Answer::Written(_) => self.head_is(state, now, random, seal),
                Answer::Refused => self.ask(Phase::ReadingBack(seal), Request::GetDelta(seal.txid)),
                _ => self.send_seal(state, now, seal),
            },
            Phase::ReadingBack(seal) => match answer {
                Answer::Delta(Some(there)) if there == seal => self.head_is(state, now, random, seal),
                Answer::Delta(_) => self.ask(Phase::Listing, Request::List),
                _ => self.ask(Phase::ReadingBack(seal), Request::GetDelta(seal.txid)),
            },
            Phase::Refreezing(head) => match answer {
                Answer::Refrozen(ids) => {
                    state.durable = Some(head);
                    state.outbox = ids;
                    self.confirm(state, now, random)
                }
                _ => self.ask(Phase::Refreezing(head), Request::Refreeze(head.txid.next())),
            },
            Phase::Confirming => match Swap::advance(state, answer) {
                Progress::Ask(request) => self.ask(Phase::Confirming, request),
                Progress::Won => self.finish(state, now),
                // A contender added its want, or somebody took the lease.
                Progress::Lost(_) if state.hold.is_some() => self.confirm(state, now, random),
                Progress::Lost(_) => Step::Done(Acquired::Lapsed),
            },
        }
    }
}

impl Acquire {
    fn ask(&mut self, phase: Phase, request: Request) -> Step<Acquired> {
        self.phase = phase;
        Step::Ask(request)
    }

    /// Step 1: what this host knows may spare the reading of the lease.
    fn open(&mut self, state: &mut State, now: BootTime, random: u64) -> Step<Acquired> {
        if let Some(hold) = state.hold.as_ref().filter(|hold| now < hold.right_until) {
            return match hold.lease.sealed && hold.head.is_some() {
                true => self.finish(state, now),
                false => self.ask(Phase::Listing, Request::List),
            };
        }
        if let Some(mine) = state.released.clone()
            && (mine.lease.next.is_none() || now.since(mine.sent) >= NEXT_MS)
        {
            return self.take(state, now, random, Some(mine.generation), &mine.lease);
        }
        self.ask(Phase::Looking, Request::GetLease)
    }

    /// Step 2: whether the lease that was seen is free.
    fn judge(&mut self, state: &mut State, now: BootTime, random: u64, seen: Option<SeenLease>) -> Step<Acquired> {
        let Some(seen) = seen else {
            return self.swap(state, now, random, None, None, (1, false, None));
        };
        let lease = &seen.lease;
        let generation = Some(seen.generation);
        if state.is_mine(&seen) {
            let sealed = state.hold.as_ref().is_some_and(|hold| hold.lease.sealed);
            return self.swap(state, now, random, generation, None, (lease.epoch + 1, sealed, lease.want.clone()));
        }
        let age_ms = seen.age_ms().unwrap_or_else(|| state.watched_ms(lease, now));
        match (lease.state, &lease.next) {
            (LeaseState::Held, _) if age_ms > ttl_with_slack_ms(lease.ttl_ms) => {
                self.take(state, now, random, generation, lease)
            }
            (LeaseState::Held, _) => {
                let holder = Contender { nonce: lease.holder, who: lease.who.clone() };
                match lease.want {
                    Some(_) => Step::Done(Acquired::Busy(holder)),
                    None => {
                        let lease = seen.wanted_by(state.contender());
                        self.ask(Phase::Marking(holder), Request::SwapLease { expect: generation, lease })
                    }
                }
            }
            (LeaseState::Released, Some(next)) if next.nonce != state.nonce && age_ms < NEXT_MS => {
                Step::Done(Acquired::Busy(next.clone()))
            }
            (LeaseState::Released, _) => self.take(state, now, random, generation, lease),
        }
    }

    /// Step 3, from a lease that is free. A clean release passes its seal on: whoever could still have had a PUT under way
    /// was shut out before it.
    fn take(
        &mut self,
        state: &mut State,
        now: BootTime,
        random: u64,
        expect: Option<Generation>,
        free: &Lease,
    ) -> Step<Acquired> {
        let sealed = free.state == LeaseState::Released && free.sealed;
        let clean_head = if sealed { free.head } else { None };
        let want = free.want.clone().filter(|want| want.nonce != state.nonce);
        self.swap(state, now, random, expect, clean_head, (free.epoch + 1, sealed, want))
    }

    fn swap(
        &mut self,
        state: &mut State,
        now: BootTime,
        random: u64,
        expect: Option<Generation>,
        clean_head: Option<ObjectId>,
        (epoch, sealed, want): (u64, bool, Option<Contender>),
    ) -> Step<Acquired> {
        let lease = Lease {
            state: LeaseState::Held,
            sealed,
            holder: state.nonce,
            who: state.who.clone(),
            epoch,
            req: Nonce(random),
            ttl_ms: state.ttl_ms,
            head: clean_head,
            since: None,
            want,
            next: None,
        };
        let request = Swap::begin(state, now, random, expect, lease);
        self.ask(Phase::Taking { clean_head }, request)
    }

    /// Step 4: the lease is ours; where does the log end?
    fn taken(&mut self, state: &mut State, now: BootTime, clean_head: Option<ObjectId>) -> Step<Acquired> {
        let durable = state.durable;
        if let Some(hold) = &mut state.hold
            && hold.lease.sealed
        {
            if clean_head.is_some() && clean_head == durable {
                hold.head = clean_head;
            }
            if hold.head.is_some() {
                return self.finish(state, now);
            }
        }
        self.ask(Phase::Listing, Request::List)
    }

    /// Steps 5 and 6: the log as it is after the swap.
    fn listed(&mut self, state: &mut State, now: BootTime, random: u64, chain: &Chain) -> Step<Acquired> {
        self.fits = match reconcile(state, chain) {
            Verdict::Continues => true,
            Verdict::Behind(_) => false,
            refused => return Step::Done(Acquired::Refused(refused)),
        };
        let sealed = state.hold.as_ref().is_some_and(|hold| hold.lease.sealed);
        match chain.head() {
            Some(head) if sealed => self.head_is(state, now, random, head),
            _ if !state.has_right(now) => Step::Done(Acquired::Lapsed),
            _ => self.ask(Phase::MakingSeal, Request::MakeSeal(chain.head_txid().next())),
        }
    }

    fn send_seal(&mut self, state: &State, now: BootTime, seal: ObjectId) -> Step<Acquired> {
        if !state.has_right(now) {
            return Step::Done(Acquired::Lapsed);
        }
        self.ask(Phase::Sealing(seal), Request::PutSeal(seal))
    }

    /// The head stands: a seal of ours, or the one of a clean release. The outbox goes on top of it.
    fn head_is(&mut self, state: &mut State, now: BootTime, random: u64, head: ObjectId) -> Step<Acquired> {
        if let Some(hold) = &mut state.hold {
            hold.head = Some(head);
        }
        let first = state.outbox.first().map_or(head.txid.next(), |id| id.txid);
        if self.fits && first != head.txid.next() {
            return self.ask(Phase::Refreezing(head), Request::Refreeze(head.txid.next()));
        }
        if self.fits {
            state.durable = Some(head);
        }
        self.confirm(state, now, random)
    }

    /// The end of step 6: the lease says that the log is sealed.
    fn confirm(&mut self, state: &mut State, now: BootTime, random: u64) -> Step<Acquired> {
        let Some(hold) = state.hold.clone() else {
            return Step::Done(Acquired::Lapsed);
        };
        if hold.lease.sealed {
            return self.finish(state, now);
        }
        let lease = Lease { sealed: true, ..hold.lease };
        let request = Swap::begin(state, now, random, Some(hold.generation), lease);
        self.ask(Phase::Confirming, request)
    }

    /// Step 7.
    fn finish(&mut self, state: &State, now: BootTime) -> Step<Acquired> {
        let head = state.hold.as_ref().and_then(|hold| hold.head);
        Step::Done(match head {
            Some(_) if !state.has_right(now) => Acquired::Lapsed,
            Some(head) if state.durable != Some(head) => Acquired::Behind(head),
            Some(_) => Acquired::Ready,
            None => Acquired::Lapsed,
        })
    }
}
