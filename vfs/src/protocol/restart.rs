//! What became of the outbox (steps 19 and 20): after a fence, after a restart on the same disk, after an acquisition.
//!
//! The bucket is asked by one listing. A delta of the outbox is found by its object id and is durable; its name taken by
//! another delta means that it never can be. A name that is gone by compaction is told by the seals, which are never
//! deleted: whoever took the log over from this host sealed the first name that was free.

use super::chain::{Chain, Gap};
use super::object_id::ObjectId;
use super::state::State;
use super::{Answer, Operation, Request, Step, Turn};
use crate::page::TxId;

/// What a listing says about this host's local deltas. What was found in the bucket has become durable in the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The database at the head is the one that the outbox stands on: nothing but empty deltas came between. Acquire the
    /// lease to send what is left.
    Continues,
    /// Nothing is left to send, and the log went on: bring the local database up to this head.
    Behind(ObjectId),
    /// Somebody else's commits came first. The outbox from this TXID on, and all that is in the WAL beyond it, goes into the
    /// conflict folder; the cache is to be built anew. (Also with an empty outbox: then the cache alone is not of this log.)
    Conflict(TxId),
    /// Compaction and deletion took the evidence: what is in the outbox from here on is kept aside, and said so.
    Unclear(TxId),
    /// The bucket ends before what this host knows to be durable: it is older than this disk, or another one. Refuse, keep all.
    Older(Option<ObjectId>),
}

/// Compares the state with the log: moves what is found in the bucket from the outbox to durable, and judges the rest.
pub fn reconcile(state: &mut State, chain: &Chain) -> Verdict {
    let head = chain.head_txid();
    if let Some(durable) = state.durable {
        if head < durable.txid {
            return Verdict::Older(chain.head());
        }
        if chain.delta(durable.txid).is_some_and(|there| there != durable) {
            return Verdict::Conflict(durable.txid);
        }
    }
    while let Some(&first) = state.outbox.first() {
        match chain.delta(first.txid) {
            Some(there) if there == first => {}
            Some(_) => break,
            None if first.txid > head => break,
            // Compacted. A seal in its place would still be there, so ours was, if the next seal stands behind it.
            None if chain.seal_after(first.txid).is_some() => {}
            None => return Verdict::Unclear(first.txid),
        }
        state.durable = Some(first);
        state.outbox.remove(0);
    }
    let mine = state.durable.map_or(TxId::NONE, |id| id.txid);
    match (chain.head(), state.outbox.first()) {
        _ if chain.only_empty_after(mine) => Verdict::Continues,
        (Some(head), None) => Verdict::Behind(head),
        (_, first) => Verdict::Conflict(first.map_or(mine, |id| id.txid)),
    }
}

/// Finds out what became of the outbox, without the lease: after a fence, and at an open on a disk that has an outbox.
///
/// What is in the WAL is captured into the outbox before it begins.
#[derive(Debug, Default)]
pub struct Settle {
    /// The last listing had this gap; it is listed again. The driver's deadline ends it.
    pub gap: Option<Gap>,
}

impl Operation for Settle {
    type Outcome = Verdict;

    fn step(&mut self, state: &mut State, turn: Turn) -> Step<Verdict> {
        let Answer::Listing(listing) = turn.answer else {
            return Step::Ask(Request::List);
        };
        match Chain::of(&listing) {
            Ok(chain) => Step::Done(reconcile(state, &chain)),
            Err(gap) => {
                self.gap = Some(gap);
                Step::Ask(Request::List)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Nonce;
    use super::super::chain::tests::{listed, seal};
    use super::*;

    fn state(durable: u64, outbox: &[u64]) -> State {
        let mut state = State::new(Nonce(1), "a", 40_000);
        state.durable = Some(listed(0, durable, durable).id());
        state.outbox = outbox.iter().map(|txid| ObjectId { crc32c: 77, ..listed(0, *txid, *txid).id() }).collect();
        state
    }

    fn ours(txid: u64) -> super::super::Listed {
        super::super::Listed { crc32c: 77, ..listed(0, txid, txid) }
    }

    fn judge(state: &mut State, listing: &[super::super::Listed]) -> Verdict {
        reconcile(state, &Chain::of(listing).expect("no gap"))
    }

    #[test]
    fn what_is_found_by_its_bytes_is_durable() {
        let mut s = state(2, &[3, 4]);
        assert_eq!(judge(&mut s, &[listed(9, 1, 2), ours(3)]), Verdict::Continues);
        assert_eq!((s.durable, s.outbox.len()), (Some(ours(3).id()), 1));
    }

    #[test]
    fn the_first_foreign_delta_makes_the_rest_a_conflict() {
        let mut s = state(2, &[3, 4]);
        assert_eq!(judge(&mut s, &[listed(9, 1, 2), ours(3), listed(0, 4, 4)]), Verdict::Conflict(TxId(4)));
        let mut s = state(2, &[3]);
        assert_eq!(judge(&mut s, &[listed(9, 1, 2), seal(3), listed(0, 4, 4)]), Verdict::Conflict(TxId(3)));
        let mut s = state(2, &[]);
        assert_eq!(judge(&mut s, &[listed(9, 1, 1), seal(2)]), Verdict::Conflict(TxId(2)), "same number, other bytes");
    }

    #[test]
    fn a_seal_in_the_place_of_ours_is_no_conflict_while_nothing_follows_it() {
        let mut s = state(2, &[3]);
        assert_eq!(judge(&mut s, &[listed(9, 1, 2), seal(3), seal(4)]), Verdict::Continues);
        assert_eq!(s.outbox.len(), 1);
    }

    #[test]
    fn a_compacted_name_is_told_by_the_next_seal() {
        let mut s = state(2, &[3, 4]);
        assert_eq!(judge(&mut s, &[listed(9, 1, 6), seal(4), listed(0, 6, 6)]), Verdict::Conflict(TxId(4)));
        assert_eq!(s.durable.map(|id| id.txid), Some(TxId(3)));
        let mut s = state(2, &[3]);
        assert_eq!(judge(&mut s, &[listed(9, 1, 6), listed(0, 6, 6)]), Verdict::Unclear(TxId(3)));
    }

    #[test]
    fn a_shorter_log_is_refused() {
        let mut s = state(5, &[]);
        assert_eq!(judge(&mut s, &[listed(0, 1, 1)]), Verdict::Older(Some(listed(0, 1, 1).id())));
    }
}
