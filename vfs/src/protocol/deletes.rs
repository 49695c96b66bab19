//! What compaction may read and what may be deleted (steps 16 to 18).
//!
//! Deletes are **monotone**: an object goes only for one object that holds all of it and more (a larger range or a
//! higher level). "Several smaller ones cover it" is never a reason: two deleters with different views would each find the
//! other's. A stale holder that compacts or deletes by these rules is harmless; what it leaves goes by them later.

use super::chain::{Chain, Listed};
use super::object_id::ObjectId;
use crate::page::TxId;
use crate::store::BucketTime;

/// How old a cover must be before what it covers may go: a reader that planned with the old objects is done by then.
pub const GRACE_MS: u64 = 600_000;

/// Whether all of `min..=max` may be compacted: it lies within what this host knows to be durable, and the listing shows the
/// very delta that this host knows.
pub fn may_compact(chain: &Chain, durable: ObjectId, max: TxId) -> bool {
    max <= durable.txid && chain.delta(durable.txid) == Some(durable)
}

/// The objects of a listing that may be deleted at `now` (on the bucket's clock, as of the listing's answer).
///
/// A retention rule may keep more of them. An order within the batch is not needed: whatever is left after a crash is covered
/// by an object that stays.
pub fn deletable(listing: &[Listed], now: BucketTime, grace_ms: u64) -> Vec<&Listed> {
    deletable_for(listing, now, grace_ms).into_iter().map(|(listed, _)| listed).collect()
}

/// The same objects, each with the smallest object that it may go for.
pub fn deletable_for(listing: &[Listed], now: BucketTime, grace_ms: u64) -> Vec<(&Listed, &Listed)> {
    let newest_delta = listing.iter().filter(|listed| listed.level == 0).map(|listed| listed.max).max();
    let old_enough =
        |cover: &Listed| u64::try_from(now.0.saturating_sub(cover.created.0)).is_ok_and(|age| age >= grace_ms);
    let covers: Vec<&Listed> =
        listing.iter().filter(|listed| (listed.level > 0 || listed.min < listed.max) && old_enough(listed)).collect();
    listing
        .iter()
        .filter(|listed| !(listed.is_seal() || listed.level == 0 && Some(listed.max) == newest_delta))
        .filter_map(|listed| {
            let cover = covers.iter().filter(|cover| is_covered(listed, cover)).min_by_key(|cover| cover.size)?;
            Some((listed, *cover))
        })
        .collect()
}

/// Whether one object holds all of another, and has a larger range or a higher level.
fn is_covered(listed: &Listed, cover: &Listed) -> bool {
    let wider = cover.min < listed.min || listed.max < cover.max;
    cover.min <= listed.min
        && listed.max <= cover.max
        && cover.level >= listed.level
        && (wider || cover.level > listed.level)
}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::{listed, seal};
    use super::*;

    fn names(listing: &[Listed], now: i64) -> Vec<(u8, u64, u64)> {
        deletable(listing, BucketTime(now), GRACE_MS).iter().map(|l| (l.level, l.min.0, l.max.0)).collect()
    }

    #[test]
    fn one_older_cover_is_needed() {
        let log = [listed(0, 2, 2), listed(0, 3, 3), listed(1, 2, 3), listed(0, 4, 4)];
        assert_eq!(names(&log, 599_999), []);
        assert_eq!(names(&log, 600_000), [(0, 2, 2), (0, 3, 3)]);
    }

    #[test]
    fn smaller_ones_never_replace_a_larger_one() {
        assert_eq!(names(&[listed(1, 1, 2), listed(1, 3, 4), listed(1, 1, 4)], 600_000), [(1, 1, 2), (1, 3, 4)]);
        assert_eq!(names(&[listed(1, 1, 2), listed(1, 3, 4), listed(2, 2, 3)], 600_000), []);
        assert_eq!(names(&[listed(1, 1, 4), listed(9, 1, 4)], 600_000), [(1, 1, 4)]);
        assert_eq!(names(&[listed(0, 2, 4), listed(1, 2, 3)], 600_000), []);
    }

    #[test]
    fn seals_the_first_and_the_newest_delta_stay() {
        let log = [listed(0, 1, 1), listed(0, 2, 2), seal(3), listed(0, 4, 4), listed(1, 1, 4), listed(9, 1, 4)];
        assert_eq!(names(&log, 600_000), [(0, 2, 2), (1, 1, 4)]);
    }
}
