//! What a reader that follows the log may apply (step 24).
//!
//! It asks for the next name by GET. "Not there" means "not written yet" only while its last confirmation is young: later
//! the delta may have been written, compacted and deleted. Then only a listing tells.

use super::chain::{Chain, Gap};
use super::deletes::GRACE_MS;
use super::object_id::ObjectId;
use super::state::State;
use super::{Answer, BootTime, Operation, Request, Step, Turn};

/// What there is to follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Followed {
    /// The local database is the head of the log, as of `confirmed`.
    Current {
        /// When this was asked; to be given to the next look.
        confirmed: BootTime,
    },
    /// This delta is next. Apply its bytes only if they are of this id, then [`State::caught_up`].
    Next {
        /// The delta.
        delta: ObjectId,
        /// When this was asked; to be given to the next look.
        confirmed: BootTime,
    },
    /// Plan again from the listing, up to this head; the objects that are newer than what is held chain to it.
    Replan {
        /// The head as of the listing.
        head: ObjectId,
        /// When this was asked; to be given to the next look.
        confirmed: BootTime,
    },
    /// What is held is not of this log (any more): open anew.
    Diverged,
}

/// Looks whether the log went on from what the local database contains ([`State::durable`]).
#[derive(Debug)]
pub struct Follow {
    confirmed: Option<BootTime>,
    asked: Option<BootTime>,
    /// The last listing had this gap; it is listed again. The driver's deadline ends it.
    pub gap: Option<Gap>,
}

impl Follow {
    /// A look, given the time that the last one returned (`None`: there was none on this boot).
    pub fn new(confirmed: Option<BootTime>) -> Follow {
        Follow { confirmed, asked: None, gap: None }
    }

    fn is_young(&self, now: BootTime) -> bool {
        self.confirmed.is_some_and(|confirmed| now.since(confirmed) <= GRACE_MS / 2)
    }
}

impl Operation for Follow {
    type Outcome = Followed;

    fn step(&mut self, state: &mut State, turn: Turn) -> Step<Followed> {
        let (now, young) = (turn.now, self.is_young(turn.now));
        let confirmed = self.asked.replace(now).unwrap_or(now);
        match (turn.answer, state.durable) {
            (Answer::Delta(Some(delta)), _) if young => Step::Done(Followed::Next { delta, confirmed }),
            (Answer::Delta(None), _) if young => Step::Done(Followed::Current { confirmed }),
            (Answer::Listing(listing), held) => match Chain::of(&listing) {
                Ok(chain) => Step::Done(judge(&chain, held, confirmed)),
                Err(gap) => {
                    self.gap = Some(gap);
                    Step::Ask(Request::List)
                }
            },
            (_, Some(held)) if young => Step::Ask(Request::GetDelta(held.txid.next())),
            _ => Step::Ask(Request::List),
        }
    }
}

fn judge(chain: &Chain, held: Option<ObjectId>, confirmed: BootTime) -> Followed {
    let (Some(head), Some(held)) = (chain.head(), held) else {
        return match (chain.head(), held) {
            (Some(head), None) => Followed::Replan { head, confirmed },
            (None, None) => Followed::Current { confirmed },
            (_, Some(_)) => Followed::Diverged,
        };
    };
    if head.txid < held.txid || chain.delta(held.txid).is_some_and(|there| there != held) {
        return Followed::Diverged;
    }
    if head.txid == held.txid { Followed::Current { confirmed } } else { Followed::Replan { head, confirmed } }
}
