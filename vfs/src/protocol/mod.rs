//! The append protocol: who may append to the log, when a commit is durable, and what a crash leaves.
//!
//! Everything here decides and nothing here acts: no I/O, no clock, no randomness. A driver executes the
//! [`Request`]s that an operation asks for and feeds back the [`Answer`]s with the time, so the shipped
//! code and the simulation of it run the very same decisions.
//!
//! ```text
//! acquire.rs  steps 1-7    take the lease, find the head, seal        -> commits may be acknowledged
//! append.rs   steps 8-10   send the outbox's front until it is settled -> durable, or fenced
//! renew.rs    step 11      extend or resume the right, notice a want
//! release.rs  steps 13-15  give the lease back, sealed and with its head
//! restart.rs  steps 19-20  what became of the outbox: durable, still to send, or in conflict
//! deletes.rs  steps 16-18  what a compaction may take and what may be deleted
//! follow.rs   step 24      what a follower may apply
//! state.rs    what one host remembers, and step 12: may a commit be acknowledged now?
//! swap.rs     one compare-and-swap of the lease, settled      chain.rs  what one listing shows
//! lease.rs    the lease object and its age                    object_id.rs  "the same delta"
//! ```
//!
//! # Words
//! - **nonce**: a random number of one disk. Never a host name: every container is called "localhost".
//! - **object id**: (TXID, size, CRC-32C). "The same delta" means the same object id, nothing less.
//! - **right**: until when this host may acknowledge, on its own boot clock (which counts suspended time): the time
//!   before the first attempt of the last confirmed compare-and-swap, plus the lease's time to live.
//! - **seal**: an empty delta that takes the next name of the log after a takeover, so that a late PUT of the old
//!   holder meets a 412 there. (In an empty log: TXID 1, the one-page database.) Never deleted.
//! - **unknown**: a write without an answer. It may still happen. Only the same bytes sent again, answered with 200
//!   or 412, settle it; reading back "absent" proves nothing.
//!
//! # How an operation is driven
//! ```text
//! let mut answer = Answer::Start;
//! loop {
//!     lock the host's state; load it
//!     let step = operation.step(&mut state, Turn { now, random, answer });
//!     if the state changed: save it (write, fsync, rename)      <- before the request is sent
//!     unlock
//!     match step { Step::Ask(request) => answer = execute(request), Step::Done(outcome) => return outcome }
//! }
//! ```
//! - `now` is read after the answer came and before the step; `random` is fresh in every turn.
//! - A request without a usable answer (timeout, reset, 408, 429, 5xx) is answered with [`Answer::Unknown`]; the
//!   operation then asks again. The driver waits (backoff) *before* it hands this answer in, so that the right is looked at
//!   after the wait. It may **drop an operation at any point**: the state alone carries all that matters, and a new
//!   operation of the same kind takes up from it.
//! - [`State`] is shared by the processes of a host. One *lease operation* (acquire, renew, look, release) runs at a time
//!   and one *log operation* (append, settle) runs at a time. A renewal and an append may be under way together: each
//!   looks at the state afresh in every turn. Acquire and release need both lanes to themselves.
//! - Before acquire and settle, what is committed in the WAL is captured into the outbox.
//!
//! # What the driver does when
//! | what | then |
//! |---|---|
//! | a write begins, and [`State::may_commit`] says NoLease | [`Acquire`] (after [`Settle`], if the outbox is not empty) |
//! | ... says Lapsed | [`Renew`]: resumes, or says Lost |
//! | ... says Behind | fast-forward to exactly [`Hold::head`], then [`State::caught_up`] |
//! | the outbox is not empty and may_commit is Ok | [`Append`], again and again |
//! | an append ends with Lapsed | [`Renew`], then [`Append`] |
//! | Fenced, or a renewal or look ends with Lost, or an open finds an outbox | [`Settle`] before anything else |
//! | a verdict (of settle, or in [`Acquired::Refused`]) is Conflict or Unclear | outbox and WAL into the conflict folder, then [`State::set_aside`], the cache anew, [`State::caught_up`] |
//! | [`State::renewal_due`] with the outbox, the WAL or a write transaction open | [`Renew`] |
//! | writing, once a second | [`Look`]; when [`State::should_hand_over`]: no new commits, drain, [`Release`] |
//! | idle for about 2 s, or closing | [`Release`] |
//! | commits of an outbox entry are acknowledged as durable | when a step took the entry from [`State::outbox`] and the state is saved (not in the turn that answers [`Request::Refreeze`]) |
//!
//! `simulation/host.rs` is such a driver in small.
//!
//! # What holds after a crash at each step
//! | crash | on the disk | what the next open does |
//! |---|---|---|
//! | a swap of the lease sent | [`State::swap`] with its random `req` | sends it again; 412 and our `req` in the lease = it was done |
//! | a delta sent | its bytes in the outbox, its object id in [`State::outbox`] | finds it by its id, or it is settled by the seal and frozen anew after it |
//! | a seal sent | nothing | an older seal of ours is one more empty delta; the listing finds it |
//! | outbox being frozen anew | old ids in the state until the new ones are saved | the old delta's name is taken by the seal, so it is frozen anew again |
//! | release sent | the swap says "released": no right any more | as the first row |
//! | disk lost | nothing; a new nonce | the lease runs out, somebody seals; deltas never acknowledged as durable are gone |

pub mod acquire;
pub mod append;
pub mod chain;
pub mod deletes;
pub mod follow;
pub mod lease;
pub mod object_id;
pub mod release;
pub mod renew;
pub mod restart;
pub mod state;
pub mod swap;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use acquire::{Acquire, Acquired};
pub use append::{Append, Appended};
pub use chain::{Chain, Gap, Listed};
pub use follow::{Follow, Followed};
pub use lease::{Contender, Lease, LeaseState, SeenLease};
pub use object_id::{Nonce, ObjectId};
pub use release::{Release, Released};
pub use renew::{Look, Renew, Renewed};
pub use restart::{Settle, Verdict};
pub use state::{Hold, OwnRelease, State, Stop};
pub use swap::Swap;

use serde::{Deserialize, Serialize};

use crate::page::TxId;
use crate::store::Generation;

/// Milliseconds of this host's boot clock, which counts the time that the host was suspended (`CLOCK_BOOTTIME`).
/// It means nothing on another host or after another boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This time and `ms` more.
    pub fn plus(self, ms: u64) -> BootTime {
        BootTime(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` until this time; 0 where `earlier` is later.
    pub fn since(self, earlier: BootTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What a driver is to do for an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Read the lease object: [`Answer::Lease`].
    GetLease,
    /// Write the lease object if its generation is still `expect` (`None`: if it is absent): [`Answer::Written`],
    /// [`Answer::Refused`] or [`Answer::Unknown`].
    SwapLease {
        /// The generation that must still be the newest.
        expect: Option<Generation>,
        /// The new content.
        lease: Lease,
    },
    /// List `ltx/` of all levels: [`Answer::Listing`].
    List,
    /// Create the level-0 object of this id from its frozen bytes, if absent: [`Answer::Written`], [`Answer::Refused`] or
    /// [`Answer::Unknown`].
    PutDelta(ObjectId),
    /// Read the object id of the level-0 object of this TXID: [`Answer::Delta`].
    GetDelta(TxId),
    /// Make the bytes of a seal and keep them until the operation ends: an empty delta, or the one-page database
    /// when the TXID is 1. [`Answer::Made`].
    MakeSeal(TxId),
    /// Create the level-0 object from the bytes of [`Request::MakeSeal`], if absent. Answers as of `PutDelta`.
    PutSeal(ObjectId),
    /// Write the outbox's deltas anew, in their order, with TXIDs from this one on, each durably in a file of its own
    /// beside the old ones (which go only after the state is saved): [`Answer::Refrozen`].
    Refreeze(TxId),
}

/// What came of a request. An answer of a kind that the request does not have counts as [`Answer::Unknown`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nothing was asked yet: the first turn of every operation.
    Start,
    /// The lease object; `None` when there is none.
    Lease(Option<SeenLease>),
    /// The write was done (200); the object has this generation.
    Written(Generation),
    /// The condition did not hold (412). After an earlier attempt whose answer was lost, what is there may be ours.
    Refused,
    /// No usable answer: a write may have been done or may still happen, a read is to be repeated.
    Unknown,
    /// All LTX objects of the replica.
    Listing(Vec<Listed>),
    /// The object's id; `None` when there is no such object (404).
    Delta(Option<ObjectId>),
    /// The id of the seal that was made.
    Made(ObjectId),
    /// The ids of the outbox's deltas under their new TXIDs, in order.
    Refrozen(Vec<ObjectId>),
}

/// What one step of an operation is given.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The boot clock, read after the answer came.
    pub now: BootTime,
    /// A fresh random number; it marks the compare-and-swap that this step may start.
    pub random: u64,
    /// What came of the last request.
    pub answer: Answer,
}

/// What an operation wants next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step<Outcome> {
    /// Save the state if it changed, do this, and come back with the answer.
    Ask(Request),
    /// The operation is over. Save the state if it changed before acting on the outcome.
    Done(Outcome),
}

/// One operation of the protocol, advanced answer by answer.
pub trait Operation {
    /// How it can end.
    type Outcome;

    /// Takes in an answer and says what is next. Changes to `state` must be saved before the step is acted on.
    fn step(&mut self, state: &mut State, turn: Turn) -> Step<Self::Outcome>;
}
