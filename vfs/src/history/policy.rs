//! What to merge and what to delete, from a listing alone.
//!
//! # Which states can be opened
//!
//! | age of the state | kept, with the default retention of 24 h |
//! |---|---|
//! | up to 10 minutes | every transaction |
//! | up to 1 hour | for each moment a state at most 2 minutes or 128 transactions older than it |
//! | up to the retention | for each moment a state at most 20 minutes or 2,560 transactions older than it |
//! | older | what is needed for the above, and what has not been merged yet |
//!
//! (Of minutes and transactions the finer one counts.) "Older than it" speaks of changes: in a quiet hour one state is exact for
//! the whole hour. A retention below an hour cuts the table off there; every transaction of the last 10 minutes is kept always.
//!
//! # When something is merged
//! By count and size, never because time has passed: a database that is not written asks for nothing. The chain of the newest
//! state is
//! ```text
//! base    the newest snapshot
//! large   level 3                                                  at most 4
//! middle  level 2: up to 20 objects within 10 minutes               fewer than 10
//! small   level 1: up to 64 deltas within a minute                 fewer than 20
//! tail    deltas as they were written                              fewer than 64
//! ```
//! and whatever is too far apart in time to be merged stays as it is on the way up. A tail of 64 deltas becomes objects of
//! level 1; 20 small ones become objects of level 2; 10 middle ones one of level 3; of the large ones the last are merged such that
//! each is smaller than those before it. Where nothing can be merged within the time of its level, the next level takes it. Once
//! the chain's objects outweigh half of its base, a snapshot takes their place: at once if they are a megabyte, else when the
//! tail is full. Three quarters of the way there only what the bound below needs is merged, since the snapshot rewrites it all.
//! What a snapshot leaves unmerged before it, and an older state still needs, is merged when its age allows ([`Policy::thinning`]),
//! in a step that is made anyway.
//!
//! # Bounds
//! **Objects.** After a step that had nothing to do, any listing made by this policy has at most
//! ```text
//! 100 + S + R + G + Z + M
//! S  seals (empty deltas, and the first delta): never deleted
//! R  for older states: what the plans of the states in the table need beside the newest state's
//! G  merged already, but what covers them is younger than 10 minutes (as of the last step)
//! Z  objects of stalled writers that no single object covers yet; the next snapshot covers them
//! M  objects newer than the last checkpoint of the host that makes the steps: it may yet read pages of that state
//! ```
//! The 100 are the chain: the base, 34 objects, and a tail of 63. The states in the table are the deltas of the last 10
//! minutes, about one per minute or 64 deltas in the hour, and about one per 10 minutes or 1,280 deltas in the retention. Counted
//! against these states, and not the objects of their plans, 124 objects too many were the most in 50 random histories.
//!
//! **Bytes.** A delta of a random-update load is written once, then merged into level 1, most of the way to a snapshot also
//! into level 2 (or when it is thinned), and a snapshot costs at most two bytes for each byte of deltas since the last. So merges
//! write at most 4 bytes for each byte of deltas while there are at most 12,000 deltas between two snapshots, and about one
//! more beyond. Pages that are written over and over cost less, because a merge keeps one image of each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use crate::error::Result;
use crate::history::listing::{self, Row};
use crate::history::points::{Point, points};
use crate::page::TxId;
use crate::protocol;
use crate::protocol::deletes::{GRACE_MS, deletable_for};
use crate::replica::names::{ObjectName, SNAPSHOT_LEVEL};
use crate::store::BucketTime;

/// A tail of so many deltas is merged, and no merge into level 1 takes more.
pub const TAIL: usize = 64;
/// So many small objects are merged into level 2, and no merge there takes more (but the bound's last resort).
const SMALL: usize = 20;
/// So many middle objects are merged into one of level 3.
const MIDDLE: usize = 10;
/// So many objects of level 3 stand beside each other.
const LARGE: usize = 4;
/// So many objects between base and tail are the most that are left alone in any case.
const SETTLED: usize = 34;
/// No merge takes more objects than this: each needs its share of the memory.
const INPUTS: usize = 64;
/// Deltas of so many bytes that outweigh half of the base are merged with it at once.
const AT_ONCE: u64 = 1 << 20;

const MINUTE_MS: i64 = 60_000;
/// The longest time from the state before an object of level 1 to the state after it.
const LEVEL_1_MS: i64 = MINUTE_MS;
/// The same for level 2.
const LEVEL_2_MS: i64 = 10 * MINUTE_MS;
/// Up to this age states are a minute apart.
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// Up to this age every transaction is kept: the grace before deletes, which a merge starts at the earliest.
const EVERY_MS: i64 = GRACE_MS as i64;

/// How far apart kept states may be, in time and in transactions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Spacing {
    ms: i64,
    transactions: u64,
}

/// Twice what an object may span: from any state on, a whole object lies within reach.
const FINE: Spacing = Spacing { ms: 2 * LEVEL_1_MS, transactions: 2 * TAIL as u64 };
const COARSE: Spacing = Spacing { ms: 2 * LEVEL_2_MS, transactions: 2 * (TAIL * SMALL) as u64 };

/// Objects to merge into one, oldest first; each begins at or before the transaction after the last one's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge {
    /// The level of the result; 9 for a snapshot.
    pub level: u8,
    /// What is merged, at least two.
    pub inputs: Vec<Row>,
}

impl Merge {
    /// What the inputs weigh together: the result is no larger, in bytes.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|row| row.meta.size).sum()
    }

    /// The name of the result.
    pub fn name(&self) -> ObjectName {
        let end = |row: Option<&Row>, of: fn(&ObjectName) -> TxId| row.map_or(TxId::NONE, |row| of(&row.name));
        ObjectName {
            level: self.level,
            min: end(self.inputs.first(), |name| name.min),
            max: end(self.inputs.last(), |name| name.max),
        }
    }
}

/// What the newest state's chain wants next, and how far it is from wanting something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outlook {
    /// The merges to make now, in this order; one that fails does no harm to the others.
    pub merges: Vec<Merge>,
    /// So many more deltas, or
    pub deltas_left: u64,
    /// so many more bytes of deltas, until there may be something to merge. Of no meaning while there is.
    pub bytes_left: u64,
}

/// An object that may go, and the one that holds all of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deletion {
    /// What is to be deleted.
    pub row: Row,
    /// Which object it goes for: old enough already, but to be verified by the caller.
    pub cover: Row,
}

/// Decides for one replica. Pure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    retention_ms: i64,
    largest_bytes: u64,
}

impl Policy {
    /// Keeps states of this age openable, at the spacing of the table above.
    pub fn new(retention: Duration) -> Policy {
        let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        Policy { retention_ms, largest_bytes: u64::MAX }
    }

    /// Makes no merge whose inputs together are larger than this, in bytes: there is no room for the result. Without snapshots
    /// the bounds do not hold.
    pub fn up_to(self, largest_bytes: u64) -> Policy {
        Policy { largest_bytes, ..self }
    }

    /// What to merge in the chain of the state as of `durable`; what is beyond it is not looked at.
    ///
    /// # Errors
    /// There is a hole in the log, or no way to `durable`.
    pub fn outlook(&self, rows: &[Row], durable: TxId) -> Result<Outlook> {
        let chain = listing::chain(rows, Some(durable))?;
        let Some((base, rest)) = chain.split_first() else {
            return Ok(Outlook { merges: Vec::new(), deltas_left: TAIL as u64, bytes_left: AT_ONCE });
        };
        let tail = chain.len() - start_of_suffix(&chain, |level| level == 0);
        let bytes: u64 = rest.iter().map(|row| row.meta.size).sum();
        let half = base.meta.size / 2 + 1;
        let wanted = half.max(AT_ONCE);
        let has_room = bytes.saturating_add(base.meta.size) <= self.largest_bytes;
        let mut merges = if has_room && (bytes >= wanted || (bytes >= half && tail >= TAIL)) {
            snapshot(&chain)
        } else {
            levels(&chain, has_room && bytes / 3 >= base.meta.size / 8)
        };
        self.keep_those_with_room(&mut merges);
        let deltas_left = TAIL.saturating_sub(tail).max(1) as u64;
        let bytes_left = if has_room { wanted.saturating_sub(bytes) } else { AT_ONCE };
        Ok(Outlook { merges, deltas_left, bytes_left })
    }

    fn keep_those_with_room(&self, merges: &mut Vec<Merge>) {
        merges.retain(|merge| merge.bytes() <= self.largest_bytes);
    }

    /// Merges of what only older states need, from before the newest snapshot: what had not been merged when that was written is
    /// merged once its age allows for coarser steps. To be asked for only when there is something else to do.
    ///
    /// # Errors
    /// There is a hole in the log.
    pub fn thinning(&self, rows: &[Row], now: BucketTime) -> Result<Vec<Merge>> {
        let mut ends: Vec<TxId> =
            rows.iter().filter(|row| row.name.level == SNAPSHOT_LEVEL).map(|row| row.name.max).collect();
        ends.sort_unstable();
        let mut merges = Vec::new();
        if ends.is_empty() {
            return Ok(merges);
        }
        let kept = self.kept(rows, now)?;
        let mut start = TxId::NONE;
        for end in ends {
            let is_inside = |row: &&Row| {
                let begins = row.name.level == SNAPSHOT_LEVEL && row.name.max == start;
                begins || (row.name.level != SNAPSHOT_LEVEL && start <= row.name.max && row.name.max <= end)
            };
            let inside: Vec<Row> = rows.iter().filter(is_inside).cloned().collect();
            start = end;
            // What is beyond a hole can only be opened from a later snapshot.
            let Some(last) = points(&inside).last().map(|point| point.txid) else { continue };
            let inside: Vec<Row> = inside.into_iter().filter(|row| row.name.max <= last).collect();
            let chain = listing::chain(&inside, Some(last))?;
            let by_age = [(1, LEVEL_1_MS, TAIL, EVERY_MS..HOUR_MS), (2, LEVEL_2_MS, SMALL, HOUR_MS..self.retention_ms)];
            for (level, span_ms, most, ages) in by_age {
                let is_open = |row: &Row| {
                    let age = now.0.saturating_sub(row.timestamp_ms);
                    row.name.level < level && ages.contains(&age) && kept.contains(&row.name)
                };
                let mut from = 1;
                while from < chain.len() {
                    let count = chain[from..].iter().take_while(|row| is_open(row)).count();
                    merges.extend(all_runs(&chain, from..from + count, level, span_ms, most));
                    from += count + 1;
                }
            }
        }
        self.keep_those_with_room(&mut merges);
        Ok(merges)
    }

    /// What may be deleted at `now`, in the order in which to do it. `now` may lie behind the bucket's clock, never before it.
    ///
    /// Nothing goes that the table above, a seal, or a reader's grace needs; and nothing at all while there is a hole in the log.
    ///
    /// # Errors
    /// There is a hole in the log.
    pub fn deletions(&self, rows: &[Row], now: BucketTime) -> Result<Vec<Deletion>> {
        let in_protocol: Vec<protocol::Listed> = rows.iter().map(Row::in_protocol).collect();
        let allowed = deletable_for(&in_protocol, now, GRACE_MS);
        if allowed.is_empty() {
            return Ok(Vec::new());
        }
        let kept = self.kept(rows, now)?;
        let by_name: BTreeMap<ObjectName, &Row> = rows.iter().map(|row| (row.name, row)).collect();
        let find = |listed: &protocol::Listed| {
            let name = ObjectName { level: listed.level, min: listed.min, max: listed.max };
            by_name.get(&name).map(|row| (*row).clone())
        };
        let free = allowed.into_iter().filter_map(|(listed, cover)| {
            let row = find(listed).filter(|row| !kept.contains(&row.name))?;
            Some(Deletion { row, cover: find(cover)? })
        });
        let mut deletions: Vec<Deletion> = free.collect();
        deletions.sort_by_key(|deletion| deletion.row.name);
        Ok(deletions)
    }

    /// The objects that the table needs at `now`.
    pub(crate) fn kept(&self, rows: &[Row], now: BucketTime) -> Result<BTreeSet<ObjectName>> {
        let mut kept: BTreeSet<ObjectName> = listing::chain(rows, None)?.iter().map(|row| row.name).collect();
        let chosen = self.chosen(rows, now);
        // Everything from the first young state on is kept, and with it whatever the plans of young states need
        // beside that one's.
        let young = chosen.iter().find(|(_, every)| *every).map(|(txid, _)| *txid);
        if let Some(young) = young {
            kept.extend(rows.iter().filter(|row| row.name.max >= young).map(|row| row.name));
        }
        for txid in chosen.iter().filter(|(_, every)| !every).map(|(txid, _)| *txid).chain(young) {
            // What lies before the snapshot that the plan begins with takes no part in it.
            let snapshot = rows.iter().filter(|row| row.name.level == SNAPSHOT_LEVEL && row.name.is_snapshot());
            let from = snapshot.map(|row| row.name.max).filter(|max| *max <= txid).max().unwrap_or(TxId::NONE);
            let near = rows.iter().filter(|row| from <= row.name.max && row.name.max <= txid);
            let near: Vec<Row> = near.cloned().collect();
            kept.extend(listing::chain(&near, Some(txid))?.iter().map(|row| row.name));
        }
        Ok(kept)
    }

    /// The states to keep, oldest first; true where from there on every state is.
    fn chosen(&self, rows: &[Row], now: BucketTime) -> Vec<(TxId, bool)> {
        let points = points(rows);
        // A state is no older than its delta, whatever the writer's clock said.
        let deltas = rows.iter().filter(|row| row.name.level == 0);
        let written: BTreeMap<TxId, i64> = deltas.filter_map(|row| Some((row.name.max, row.meta.created?.0))).collect();
        let age = |at: usize| {
            let Point { txid, timestamp_ms, .. } = points[at];
            now.0.saturating_sub(written.get(&txid).map_or(timestamp_ms, |&written| timestamp_ms.max(written)))
        };
        let is_young = |at: usize| age(at) <= EVERY_MS;
        let within = |spacing: Spacing, from: usize, to: usize| {
            points[to].timestamp_ms.saturating_sub(points[from].timestamp_ms) <= spacing.ms
                && points[to].txid.0 - points[from].txid.0 <= spacing.transactions
        };
        // Objects of a high level need few others beside them.
        let best = |among: std::ops::Range<usize>| among.max_by_key(|&at| (points[at].level, at));

        let mut chosen = Vec::new();
        if points.is_empty() {
            return chosen;
        }
        // Of what is older than the retention, one state is kept: it stands for the oldest moment inside.
        let mut at = match (0..points.len()).rev().find(|&at| age(at) > self.retention_ms.max(EVERY_MS)) {
            Some(old) => best((0..=old).find(|&at| within(COARSE, at, old)).unwrap_or(old)..old + 1).unwrap_or(old),
            None => 0,
        };
        // Each step goes from a kept state, so what was given up once is not given up again on top.
        while !is_young(at) {
            chosen.push((points[at].txid, false));
            let fits = |to: &usize| {
                let spacing = if age(*to) <= HOUR_MS { FINE } else { COARSE };
                !is_young(*to) && within(spacing, at, *to)
            };
            let reached = (at + 1..points.len()).take_while(fits).count();
            at = best(at + 1..at + 1 + reached).unwrap_or(at + 1);
            if at == points.len() {
                return chosen;
            }
        }
        chosen.push((points[at].txid, true));
        chosen
    }
}

/// Merges of runs in `chain[part]`, each within `span_ms` of the state before it and of no more than `most` objects. An object
/// that comes after a long pause stays alone, so that the state after the pause can be told from the state before it.
fn all_runs(chain: &[Row], part: Range<usize>, level: u8, span_ms: i64, most: usize) -> Vec<Merge> {
    let all = split(chain, part, span_ms, most);
    all.iter().filter(|run| run.len() > 1).map(|run| Merge { level, inputs: run.to_vec() }).collect()
}

/// The same at the end of a log that goes on: the last run is left alone while there are others, since it may still grow.
fn runs(chain: &[Row], part: Range<usize>, level: u8, span_ms: i64, most: usize) -> Vec<Merge> {
    let last = split(chain, part.clone(), span_ms, most).last().map_or(0, |run| run.len());
    let merges = all_runs(chain, part.start..part.end - last, level, span_ms, most);
    if merges.is_empty() { all_runs(chain, part, level, span_ms, most) } else { merges }
}

fn split(chain: &[Row], part: Range<usize>, span_ms: i64, most: usize) -> Vec<&[Row]> {
    let mut runs: Vec<&[Row]> = Vec::new();
    let mut from = part.start;
    while from < part.end {
        let before = chain[from.saturating_sub(1)].timestamp_ms;
        let within = |row: &&Row| row.timestamp_ms.saturating_sub(before) <= span_ms;
        let count = chain[from..part.end].iter().take(most).take_while(within).count().max(1);
        runs.push(&chain[from..from + count]);
        from += count;
    }
    runs
}

/// The whole chain as one snapshot; where it has too many objects, what comes after the base is merged before.
fn snapshot(chain: &[Row]) -> Vec<Merge> {
    if chain.len() <= 2 * INPUTS {
        return vec![Merge { level: SNAPSHOT_LEVEL, inputs: chain.to_vec() }];
    }
    runs(chain, 1..chain.len(), 3, i64::MAX, INPUTS)
}

/// Merges into levels 1 to 3. A chain is `base, large.., middle.., small.., tail..`.
fn levels(chain: &[Row], near_snapshot: bool) -> Vec<Merge> {
    let end = chain.len();
    let tail = start_of_suffix(chain, |level| level == 0);
    let small = start_of_suffix(&chain[..tail], |level| level < 2);
    let middle = start_of_suffix(&chain[..small], |level| level < 3);
    let settled = tail - 1;
    let full = settled >= SETTLED;

    if end - tail >= TAIL {
        for (level, span_ms, most) in [(1, LEVEL_1_MS, TAIL), (2, LEVEL_2_MS, SMALL), (3, i64::MAX, INPUTS)] {
            let from = if level == 3 { middle } else { tail };
            let merges = runs(chain, from..end, level, span_ms, most);
            if !merges.is_empty() {
                return merges;
            }
        }
    }
    if near_snapshot && !full {
        return Vec::new();
    }
    if tail - small >= SMALL {
        let merges = runs(chain, small..tail, 2, LEVEL_2_MS, SMALL);
        if !merges.is_empty() {
            return merges;
        }
    }
    if small - middle >= MIDDLE {
        return runs(chain, middle..small, 3, i64::MAX, INPUTS);
    }
    if middle - 1 > LARGE {
        return vec![Merge { level: 3, inputs: chain[heap_start(chain, 1..middle)..middle].to_vec() }];
    }
    // What lies too far apart in time for level 2.
    if full || tail - small >= SMALL { runs(chain, middle..tail, 3, i64::MAX, INPUTS) } else { Vec::new() }
}

/// Where the objects at the end begin whose level is such; never the base.
fn start_of_suffix(chain: &[Row], is: impl Fn(u8) -> bool) -> usize {
    (chain.len() - chain.iter().skip(1).rev().take_while(|row| is(row.name.level)).count()).max(1)
}

/// From where on to merge: the first object that is not larger than all later ones together, at most the last but one.
fn heap_start(chain: &[Row], part: Range<usize>) -> usize {
    let later = |at: usize| chain[at + 1..part.end].iter().map(|row| row.meta.size).sum::<u64>();
    part.clone().find(|&at| chain[at].meta.size <= later(at)).unwrap_or(part.end).min(part.end - 2)
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
