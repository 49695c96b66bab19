//! What one host remembers of its part in the protocol, on disk, shared by its processes.
//!
//! # Crash
//! The driver saves the state whenever a step changed it, before it acts on the step. That is what makes
//! any operation safe to abandon: a swap under way stands in `swap`, a delta that may have been sent is the
//! first of `outbox`. Deltas after the first were never sent.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lease::{Contender, Lease, LeaseState, SeenLease};
use super::object_id::{Nonce, ObjectId};
use super::swap::Swap;
use super::{BootTime, TxId};
use crate::store::Generation;

/// A lease is renewed when so much of it is left: time for a request that gets no answer within the default of 10 s, and for another.
const RENEW_MS: u64 = 12_000;

/// What one host remembers, shared by its processes. Saved as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// This disk's random number.
    pub nonce: Nonce,
    /// This host's name, for people only.
    pub who: String,
    /// Time to live of the leases that this host writes.
    pub ttl_ms: u64,
    /// The newest delta that is known to be in the bucket and that the local database contains. The local
    /// database is the log up to here, and the outbox, and what is not captured yet.
    pub durable: Option<ObjectId>,
    /// The frozen deltas that are not known to be in the bucket, in order, the first one after `durable`. Only the first may
    /// have been sent.
    pub outbox: Vec<ObjectId>,
    /// The lease, as long as it is this host's for all it knows; [`State::may_commit`] says whether that is enough.
    pub hold: Option<Hold>,
    /// A swap of the lease that was (perhaps) sent and is not settled.
    pub swap: Option<Swap>,
    /// This host's last release, as long as nobody else is known to have swapped the lease since.
    pub released: Option<OwnRelease>,
    /// A lease that is watched on this host's own clock, because answers came without a usable date.
    pub watch: Option<Watch>,
}

/// The lease while it is this host's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hold {
    /// Its content, as last written by this host, with the newest `want` that was seen.
    pub lease: Lease,
    /// The generation that holds it.
    #[serde(with = "generation")]
    pub generation: Generation,
    /// Until when commits may be acknowledged.
    pub right_until: BootTime,
    /// The newest delta of the log; `None` until it was found after the acquisition.
    pub head: Option<ObjectId>,
    /// When this host's turn began.
    pub turn_began: BootTime,
}

/// A release of this host's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OwnRelease {
    /// The generation that it wrote.
    #[serde(with = "generation")]
    pub generation: Generation,
    /// What it wrote.
    pub lease: Lease,
    /// When it was first sent.
    pub sent: BootTime,
}

/// Since when a lease was seen unchanged, on this host's own clock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Watch {
    /// The lease's epoch and `req`: they change with every write of the holder's, and with nobody else's.
    pub seen: (u64, Nonce),
    /// When it was first seen like this.
    pub since: BootTime,
}

/// Why a commit may not be acknowledged now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// No lease, or one that is not sealed yet: acquire.
    NoLease,
    /// The right has lapsed: renew, which resumes it if nobody else took the lease.
    Lapsed,
    /// The log has deltas that the local database lacks: bring it up to the head first.
    Behind,
}

impl State {
    /// The state of a new disk.
    pub fn new(nonce: Nonce, who: impl Into<String>, ttl_ms: u64) -> State {
        State {
            nonce,
            who: who.into(),
            ttl_ms,
            durable: None,
            outbox: Vec::new(),
            hold: None,
            swap: None,
            released: None,
            watch: None,
        }
    }

    /// Step 12. Whether a local commit may be acknowledged (in background mode), or a delta be sent. To be asked
    /// when the WAL's WRITE lock is taken, before the commit frame is written, and in COMMIT_PHASETWO.
    ///
    /// # Errors
    /// What to do first.
    pub fn may_commit(&self, now: BootTime) -> Result<(), Stop> {
        let hold = self.hold.as_ref().filter(|hold| hold.lease.sealed && hold.head.is_some()).ok_or(Stop::NoLease)?;
        if now >= hold.right_until {
            return Err(Stop::Lapsed);
        }
        if hold.head != self.durable {
            return Err(Stop::Behind);
        }
        Ok(())
    }

    /// The TXID of the next delta that is frozen. (Never 1: that is the seal of an empty log.)
    pub fn next_txid(&self) -> TxId {
        self.outbox.last().or(self.durable.as_ref()).map_or(TxId::NONE, |id| id.txid).next()
    }

    /// Takes in a delta whose frozen bytes lie in the outbox, safe against a crash.
    ///
    /// # Panics
    /// If its TXID is not [`State::next_txid`].
    pub fn frozen(&mut self, id: ObjectId) {
        assert_eq!(id.txid, self.next_txid(), "deltas are frozen in the order of the log");
        self.outbox.push(id);
    }

    /// Says that the local database now is the log up to `head` and nothing else: after a cold open, a fast-forward, or when
    /// what was in conflict has been set aside and the cache was built anew.
    ///
    /// # Panics
    /// If deltas are still in the outbox: they belong on top of the old state.
    pub fn caught_up(&mut self, head: Option<ObjectId>) {
        assert!(self.outbox.is_empty(), "what is in the outbox belongs on top of another state");
        self.durable = head;
    }

    /// Forgets the outbox, whose deltas now lie in the conflict folder, safe against a crash. The cache holds them
    /// still and must be built anew: [`State::caught_up`].
    pub fn set_aside(&mut self) {
        self.outbox.clear();
        self.durable = None;
    }

    /// To be called at an open, when no other process of this host has the database open. A lease from before counts for
    /// nothing but its generation: it has to be taken again, and the log to be sealed.
    pub fn restarted(&mut self) {
        if let Some(hold) = &mut self.hold {
            hold.right_until = BootTime(0);
            hold.turn_began = BootTime(0);
            hold.lease.sealed = false;
            hold.head = None;
        }
        if let Some(swap) = &mut self.swap {
            swap.stale = true;
        }
        if let Some(released) = &mut self.released {
            released.sent = BootTime(0);
        }
        self.watch = None;
    }

    /// Whether the right ends soon: time to renew, if there is work at hand. A quarter of its time to live is left then, or
    /// 12 s where that is more, but no more than half of it.
    pub fn renewal_due(&self, now: BootTime) -> bool {
        let soon = |ttl_ms: u64| (ttl_ms / 4).max(RENEW_MS.min(ttl_ms / 2));
        self.hold.as_ref().is_some_and(|hold| now.plus(soon(hold.lease.ttl_ms)) >= hold.right_until)
    }

    /// Whether a contender waits and this host has had its turn of at least `turn_ms`.
    pub fn should_hand_over(&self, now: BootTime, turn_ms: u64) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.lease.want.is_some() && now.since(hold.turn_began) >= turn_ms)
    }

    /// Whether the lease is this host's and its time is not over; sealed or not.
    pub(super) fn has_right(&self, now: BootTime) -> bool {
        self.hold.as_ref().is_some_and(|hold| now < hold.right_until)
    }

    /// This host as a contender.
    pub(super) fn contender(&self) -> Contender {
        Contender { nonce: self.nonce, who: self.who.clone() }
    }

    /// Whether a lease that was seen is this host's own: its generation is one that this host wrote, or its `req` is and a
    /// contender only added `want`. The holder's nonce alone is no proof.
    pub(super) fn is_mine(&self, seen: &SeenLease) -> bool {
        let mine = |lease: &Lease| {
            seen.lease.state == LeaseState::Held
                && (seen.lease.holder, seen.lease.epoch, seen.lease.req) == (self.nonce, lease.epoch, lease.req)
        };
        self.hold.as_ref().is_some_and(|hold| hold.generation == seen.generation || mine(&hold.lease))
            || self.swap.as_ref().is_some_and(|swap| mine(&swap.lease))
    }

    /// Takes in a lease that a lease operation read: a `want` is noted, and a lease that is somebody else's by now ends
    /// the hold. A swap of this host's that turns out to be done is the swap's own matter.
    pub(super) fn observe(&mut self, seen: Option<&SeenLease>) {
        match seen {
            Some(seen) if self.is_mine(seen) => {
                if let Some(hold) = &mut self.hold
                    && hold.lease.req == seen.lease.req
                {
                    hold.generation = seen.generation;
                    hold.lease.want = seen.lease.want.clone();
                }
            }
            _ => {
                self.hold = None;
                self.released = None;
            }
        }
    }

    /// For how long the holder's word was seen unchanged on this host's own clock.
    pub(super) fn watched_ms(&mut self, lease: &Lease, now: BootTime) -> u64 {
        let seen = (lease.epoch, lease.req);
        match &self.watch {
            Some(watch) if watch.seen == seen => now.since(watch.since),
            _ => {
                self.watch = Some(Watch { seen, since: now });
                0
            }
        }
    }
}

/// A generation as a number in JSON.
pub(super) mod generation {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(generation: &Generation, to: S) -> Result<S::Ok, S::Error> {
        generation.0.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Generation, D::Error> {
        u64::deserialize(from).map(Generation)
    }
}

/// A generation, or `null` for an object that is absent.
pub(super) mod generation_or_absent {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(generation: &Option<Generation>, to: S) -> Result<S::Ok, S::Error> {
        generation.map(|generation| generation.0).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Generation>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Generation))
    }
}
