//! Sending the first delta of the outbox until it is settled (steps 8 to 10).
//!
//! The delta's bytes are frozen: every attempt sends the same. 200 means durable if the right still stands; 412 means that
//! the name is taken, and its object id says whether by us. No answer means neither: send again.

use super::object_id::ObjectId;
use super::state::State;
use super::{Answer, Operation, Request, Step, Turn};

/// How the sending of a delta ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Appended {
    /// This delta is in the log, and its commits are durable.
    Durable(ObjectId),
    /// There is nothing to send.
    Nothing,
    /// A late seal had taken the name; the outbox is frozen anew behind it. Append again.
    SteppedOver,
    /// There is no right to send or to acknowledge now. Renew (or acquire), then append again: it goes on where it was.
    /// No error yet.
    Lapsed,
    /// Somebody else writes the log. Settle what became of the outbox; acknowledge nothing.
    Fenced,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Begin,
    Sending(ObjectId),
    ReadingBack(ObjectId),
    /// The name of the first is taken by the second, an empty delta: is the lease still ours?
    Proving(ObjectId, ObjectId),
    Refreezing(ObjectId),
}

/// Sends the first delta of the outbox.
#[derive(Debug, Default)]
pub struct Append {
    phase: Phase,
}

impl Operation for Append {
    type Outcome = Appended;

    fn step(&mut self, state: &mut State, turn: Turn) -> Step<Appended> {
        let Some(&first) = state.outbox.first() else {
            return Step::Done(Appended::Nothing);
        };
        let may = state.may_commit(turn.now).is_ok();
        let phase = std::mem::take(&mut self.phase);
        if let Phase::Refreezing(seal) = phase {
            return match turn.answer {
                Answer::Refrozen(ids) => {
                    state.durable = Some(seal);
                    state.outbox = ids;
                    if let Some(hold) = &mut state.hold {
                        hold.head = Some(seal);
                    }
                    Step::Done(Appended::SteppedOver)
                }
                _ => self.ask(Phase::Refreezing(seal), Request::Refreeze(seal.txid.next())),
            };
        }
        // Every other step needs the right: to send, and to call an answer durable.
        if !may {
            return Step::Done(Appended::Lapsed);
        }
        match (phase, turn.answer) {
            (Phase::Sending(sent), Answer::Written(_)) if sent == first => durable(state, first),
            (Phase::Sending(sent), Answer::Refused) if sent == first => {
                self.ask(Phase::ReadingBack(first), Request::GetDelta(first.txid))
            }
            (Phase::ReadingBack(sent), Answer::Delta(there)) if sent == first => match there {
                Some(there) if there == first => durable(state, first),
                Some(there) if there.is_empty_delta() => self.ask(Phase::Proving(first, there), Request::GetLease),
                _ => fenced(state),
            },
            (Phase::ReadingBack(sent), _) if sent == first => {
                self.ask(Phase::ReadingBack(first), Request::GetDelta(first.txid))
            }
            (Phase::Proving(sent, seal), Answer::Lease(lease)) if sent == first => {
                match lease.is_some_and(|lease| state.is_mine(&lease)) {
                    true => self.ask(Phase::Refreezing(seal), Request::Refreeze(seal.txid.next())),
                    false => fenced(state),
                }
            }
            (Phase::Proving(sent, seal), _) if sent == first => {
                self.ask(Phase::Proving(first, seal), Request::GetLease)
            }
            _ => self.ask(Phase::Sending(first), Request::PutDelta(first)),
        }
    }
}

impl Append {
    fn ask(&mut self, phase: Phase, request: Request) -> Step<Appended> {
        self.phase = phase;
        Step::Ask(request)
    }
}

fn durable(state: &mut State, delta: ObjectId) -> Step<Appended> {
    state.outbox.remove(0);
    state.durable = Some(delta);
    if let Some(hold) = &mut state.hold {
        hold.head = Some(delta);
    }
    Step::Done(Appended::Durable(delta))
}

fn fenced(state: &mut State) -> Step<Appended> {
    state.hold = None;
    Step::Done(Appended::Fenced)
}
