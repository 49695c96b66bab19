//! What one listing of `ltx/` shows: the head of the log, and whether all up to it is there.

use std::collections::BTreeMap;

use super::object_id::ObjectId;
use crate::page::TxId;
use crate::store::{BucketTime, Generation};

/// One LTX object of a listing: `ltx/<level>/<min>-<max>.ltx`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// 0 for deltas, 1 to 8 for compacted ones, 9 for snapshots.
    pub level: u8,
    /// First TXID that it holds.
    pub min: TxId,
    /// Last TXID that it holds.
    pub max: TxId,
    /// Size in bytes.
    pub size: u64,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
    /// Which write of the name it is.
    pub generation: Generation,
    /// When that was, on the bucket's clock.
    pub created: BucketTime,
}

impl Listed {
    /// Its identity; the TXID is the last one that it holds.
    pub fn id(&self) -> ObjectId {
        ObjectId { txid: self.max, size: self.size, crc32c: self.crc32c }
    }

    /// Whether it holds a name of the log against a late PUT: an empty delta, or the first delta of all.
    pub fn is_seal(&self) -> bool {
        self.level == 0 && self.min == self.max && (self.id().is_empty_delta() || self.max == TxId(1))
    }
}

/// A listing in which the objects up to the head are not all there: a deletion or a write crossed it. List again; never
/// take it for a shorter log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The first TXID that no object holds.
    pub missing: TxId,
    /// The largest TXID that some object holds.
    pub head: TxId,
}

/// A listing whose objects cover all TXIDs from 1 to the head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    head: Option<ObjectId>,
    level_zero: BTreeMap<TxId, ObjectId>,
}

impl Chain {
    /// Finds the head: the largest TXID over all levels, with everything below it covered.
    ///
    /// # Errors
    /// A [`Gap`] when some TXID up to the head is in no object.
    pub fn of(listing: &[Listed]) -> Result<Chain, Gap> {
        let mut by_min: Vec<&Listed> = listing.iter().collect();
        by_min.sort_by_key(|listed| (listed.min, listed.max, listed.level));
        let mut covered = TxId::NONE;
        let mut head = None;
        for listed in by_min {
            if listed.max <= covered {
                continue;
            }
            if listed.min > covered.next() {
                let head = listing.iter().map(|listed| listed.max).max().unwrap_or(covered);
                return Err(Gap { missing: covered.next(), head });
            }
            covered = listed.max;
            head = Some(listed.id());
        }
        let level_zero: BTreeMap<TxId, ObjectId> = listing
            .iter()
            .filter(|listed| listed.level == 0 && listed.min == listed.max)
            .map(|listed| (listed.max, listed.id()))
            .collect();
        // The delta of that TXID is its identity; an object that covers more stands in only where there is none.
        let head = level_zero.get(&covered).copied().or(head);
        Ok(Chain { head, level_zero })
    }

    /// The newest delta of the log; `None` for a log without any.
    pub fn head(&self) -> Option<ObjectId> {
        self.head
    }

    /// The TXID of the head; 0 for an empty log.
    pub fn head_txid(&self) -> TxId {
        self.head.map_or(TxId::NONE, |id| id.txid)
    }

    /// The level-0 object of a TXID, where it still stands.
    pub fn delta(&self, txid: TxId) -> Option<ObjectId> {
        self.level_zero.get(&txid).copied()
    }

    /// The first empty delta after `txid` that still stands.
    pub fn seal_after(&self, txid: TxId) -> Option<ObjectId> {
        self.level_zero.range(txid.next()..).map(|(_, id)| *id).find(|id| id.is_empty_delta())
    }

    /// Whether the database at the head is the database at `txid`: every delta between is there and empty.
    pub fn only_empty_after(&self, txid: TxId) -> bool {
        let between = self.level_zero.range(txid.next()..).map(|(_, id)| *id);
        self.head_txid() >= txid
            && between.clone().all(ObjectId::is_empty_delta)
            && between.count() as u64 == self.head_txid().0 - txid.0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::object_id::EMPTY_DELTA_BYTES;
    use super::*;

    pub(crate) fn listed(level: u8, min: u64, max: u64) -> Listed {
        Listed {
            level,
            min: TxId(min),
            max: TxId(max),
            size: 500,
            crc32c: max as u32,
            generation: Generation(1),
            created: BucketTime(0),
        }
    }

    pub(crate) fn seal(txid: u64) -> Listed {
        Listed { size: EMPTY_DELTA_BYTES, ..listed(0, txid, txid) }
    }

    #[test]
    fn the_head_is_found_over_all_levels() {
        let chain = Chain::of(&[listed(0, 1, 1), listed(1, 2, 6), listed(9, 1, 4)]).expect("no gap");
        assert_eq!(chain.head_txid(), TxId(6));
        let chain = Chain::of(&[listed(9, 1, 4), listed(0, 4, 4), listed(0, 5, 5)]).expect("no gap");
        assert_eq!(chain.head(), Some(listed(0, 5, 5).id()));
        assert_eq!(Chain::of(&[]).expect("an empty log").head(), None);
    }

    #[test]
    fn a_gap_is_never_a_shorter_log() {
        let gap = Chain::of(&[listed(0, 1, 1), listed(0, 3, 3), listed(0, 4, 4)]).expect_err("2 is missing");
        assert_eq!(gap, Gap { missing: TxId(2), head: TxId(4) });
        assert_eq!(Chain::of(&[listed(0, 2, 2)]).expect_err("1 is missing").missing, TxId(1));
    }

    #[test]
    fn only_whole_runs_of_seals_leave_the_database_as_it_was() {
        let chain = Chain::of(&[listed(0, 1, 1), listed(0, 2, 2), seal(3), seal(4)]).expect("no gap");
        assert!(chain.only_empty_after(TxId(2)) && chain.only_empty_after(TxId(4)));
        assert!(!chain.only_empty_after(TxId(1)));
        assert!(!chain.only_empty_after(TxId(5)), "the log is shorter than that");
        let chain = Chain::of(&[listed(1, 1, 3), seal(4)]).expect("no gap");
        assert!(!chain.only_empty_after(TxId(2)), "3 is compacted: nobody knows what it held");
    }
}
