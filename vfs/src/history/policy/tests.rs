//! Long random histories by sizes alone: what a policy promises must hold after each of them.
#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::*;
use crate::page::TxId;
use crate::protocol::object_id::EMPTY_DELTA_BYTES;
use crate::store::{Generation, Meta};

const DAY_MS: i64 = 24 * HOUR_MS;

/// A replica of which only names, sizes and times exist.
struct Simulated {
    policy: Policy,
    rng: Rng,
    now: i64,
    rows: BTreeMap<ObjectName, Row>,
    /// Which pages each object holds, a bit each.
    pages: BTreeMap<ObjectName, Vec<u64>>,
    database_pages: u64,
    /// When each transaction was committed, from TXID 1 on.
    log: Vec<i64>,
    outlook: (u64, u64),
    delta_bytes: u64,
    merged_bytes: u64,
    merges: u64,
    /// What was over the formula's other parts, at most.
    most: usize,
    most_rows: usize,
}

const PAGE_BYTES: u64 = 2000;

impl Simulated {
    fn new(seed: u64, retention_ms: i64, database_pages: u64) -> Simulated {
        let policy = Policy { retention_ms, largest_bytes: u64::MAX };
        let now = 1_800_000_000_000;
        let mut new = Simulated {
            policy,
            rng: Rng::with_seed(seed),
            now,
            rows: BTreeMap::new(),
            pages: BTreeMap::new(),
            database_pages,
            log: Vec::new(),
            outlook: (0, 0),
            delta_bytes: 0,
            merged_bytes: 0,
            merges: 0,
            most: 0,
            most_rows: 0,
        };
        new.put(0, 1, 1, now, vec![u64::MAX; database_pages.div_ceil(64) as usize]);
        new.log.push(now);
        new
    }

    fn put(&mut self, level: u8, min: u64, max: u64, timestamp_ms: i64, pages: Vec<u64>) -> u64 {
        let count: u64 = pages.iter().map(|word| u64::from(word.count_ones())).sum();
        let size = EMPTY_DELTA_BYTES + count * PAGE_BYTES;
        let meta = Meta { generation: Generation(1), size, created: Some(BucketTime(self.now)), crc32c: None };
        let name = ObjectName { level, min: TxId(min), max: TxId(max) };
        assert!(self.rows.insert(name, Row { name, meta, timestamp_ms }).is_none(), "{name} was written twice");
        self.pages.insert(name, pages);
        size
    }

    fn head(&self) -> u64 {
        self.log.len() as u64
    }

    /// One more transaction that changes so many random pages, and what the holder of the lease does then.
    fn commit(&mut self, pages: u64) {
        let mut bits = vec![0; self.database_pages.div_ceil(64) as usize];
        for _ in 0..pages {
            let page = self.rng.u64(0..self.database_pages);
            bits[(page / 64) as usize] |= 1 << (page % 64);
        }
        self.log.push(self.now);
        let head = self.head();
        let size = self.put(0, head, head, self.now, bits);
        self.delta_bytes += size;
        self.outlook.0 = self.outlook.0.saturating_sub(1);
        self.outlook.1 = self.outlook.1.saturating_sub(size);
        if self.outlook.0 == 0 || self.outlook.1 == 0 {
            self.step();
        }
    }

    fn rows(&self) -> Vec<Row> {
        self.rows.values().cloned().collect()
    }

    fn step(&mut self) {
        for round in 0.. {
            assert!(round < 100, "the merges never end");
            let rows = self.rows();
            let outlook = self.policy.outlook(&rows, TxId(self.head())).unwrap();
            if outlook.merges.is_empty() {
                self.outlook = (outlook.deltas_left, outlook.bytes_left);
                break;
            }
            for merge in &outlook.merges {
                self.merge(merge);
            }
        }
        for merge in self.policy.thinning(&self.rows(), BucketTime(self.now)).unwrap() {
            self.merge(&merge);
        }
        for deletion in self.policy.deletions(&self.rows(), BucketTime(self.now)).unwrap() {
            self.rows.remove(&deletion.row.name).unwrap();
            self.pages.remove(&deletion.row.name).unwrap();
        }
        self.count();
    }

    fn merge(&mut self, merge: &Merge) {
        assert!(merge.inputs.len() > 1 && merge.inputs.len() <= 2 * INPUTS);
        let mut pages = vec![0; self.database_pages.div_ceil(64) as usize];
        for input in &merge.inputs {
            pages.iter_mut().zip(&self.pages[&input.name]).for_each(|(all, one)| *all |= one);
        }
        let name = merge.name();
        let newest = merge.inputs.last().unwrap().timestamp_ms;
        self.merged_bytes += self.put(name.level, name.min.0, name.max.0, newest, pages);
        self.merges += 1;
    }

    /// The formula of the number of objects, right after a step.
    fn count(&mut self) {
        let rows = self.rows();
        let listed: Vec<_> = rows.iter().map(Row::in_protocol).collect();
        let seals = listed.iter().filter(|listed| listed.is_seal()).count();
        let kept = self.policy.kept(&rows, BucketTime(self.now)).unwrap();
        let chain = listing::chain(&rows, None).unwrap();
        let chain: BTreeSet<ObjectName> = chain.iter().map(|row| row.name).collect();
        let covered = deletable_for(&listed, BucketTime(i64::MAX - 1), 0);
        let grace = covered.iter().filter(|(listed, _)| {
            let name = ObjectName { level: listed.level, min: listed.min, max: listed.max };
            !kept.contains(&name) && !chain.contains(&name)
        });
        let grace = grace.count();
        let others = kept.difference(&chain).count();
        assert!(chain.len() <= 99, "{} objects in the chain: {chain:?}", chain.len());
        let over = rows.len().saturating_sub(seals + grace + others);
        assert!(
            over <= 100,
            "{over} of {} are neither seals ({seals}), in grace ({grace}) nor kept ({others})",
            rows.len()
        );

        let beyond = rows.len().saturating_sub(seals + grace + self.asked());
        self.most = self.most.max(beyond);
        self.most_rows = self.most_rows.max(rows.len());
    }

    /// The number of states that retention asks for: one per span of an object, which is half of what the table allows.
    fn asked(&self) -> usize {
        let (mut count, mut last) = (0, None::<(i64, usize)>);
        for (at, &time) in self.log.iter().enumerate().skip(1) {
            let age = self.now - time;
            if age > self.policy.retention_ms {
                continue;
            }
            let far = |most: Spacing| {
                last.is_none_or(|(ms, tx)| time - ms > most.ms / 2 || (at - tx) as u64 > most.transactions / 2)
            };
            if age <= EVERY_MS || far(if age <= HOUR_MS { FINE } else { COARSE }) {
                (count, last) = (count + 1, Some((time, at)));
            }
        }
        count
    }

    /// The table: what opening a random moment gives, against what was there at that moment.
    fn check_table(&mut self) {
        let points = points(&self.rows());
        for _ in 0..40 {
            let oldest = self.policy.retention_ms.min(self.now - self.log[0]);
            let age = match self.rng.u8(0..3) {
                0 => self.rng.i64(0..=oldest.min(EVERY_MS)),
                1 => self.rng.i64(0..=oldest.min(HOUR_MS)),
                _ => self.rng.i64(0..=oldest),
            };
            let moment = self.now - age;
            let truth = self.log.partition_point(|time| *time <= moment) as u64;
            let opened = points.iter().rev().find(|point| point.timestamp_ms <= moment).unwrap().txid.0;
            let missing = truth - opened;
            let most = match age {
                age if age <= EVERY_MS => Spacing { ms: 0, transactions: 0 },
                age if age <= HOUR_MS => FINE,
                _ => COARSE,
            };
            assert!(missing <= most.transactions, "{missing} transactions are missing, {} s back", age / 1000);
            if missing > 0 {
                let late = moment - self.log[opened as usize];
                assert!(late <= most.ms, "what came {late} ms before is missing, {} s back", age / 1000);
            }
        }
    }

    /// A stretch of writes of one kind.
    fn stretch(&mut self) {
        let pauses = [40, 200, 1_000, 1_000, 5_000, 14_000, 31_000, 70_000, 130_000, 700_000, HOUR_MS, DAY_MS];
        let pause = pauses[self.rng.usize(0..pauses.len())];
        let (uneven, pages) = (self.rng.bool(), self.rng.u64(1..20));
        for _ in 0..self.rng.usize(1..900) {
            self.now += if uneven { self.rng.i64(1..2 * pause) } else { pause };
            let seal = self.rng.u16(0..400) == 0;
            let large = self.rng.u16(0..600) == 0;
            self.commit(if seal {
                0
            } else if large {
                self.database_pages / 3
            } else {
                pages
            });
            if self.rng.u16(0..100) == 0 {
                self.check_table();
            }
        }
        if self.rng.bool() {
            self.now += self.rng.i64(0..2 * DAY_MS);
        }
    }
}

#[test]
fn the_objects_stay_few_and_the_table_holds_through_any_history() {
    let (mut most, mut most_rows) = (0, 0);
    for seed in 0..seeds(8) {
        let mut rng = Rng::with_seed(seed);
        let retention = [HOUR_MS / 4, 5 * HOUR_MS, DAY_MS, DAY_MS][rng.usize(0..4)];
        let pages = [20, 500, 20_000][rng.usize(0..3)];
        let mut simulated = Simulated::new(seed, retention, pages);
        for _ in 0..rng.usize(1..14) {
            simulated.stretch();
        }
        println!(
            "seed {seed}: {} transactions, {} merges, {} objects at most, {} beyond what is asked",
            simulated.head(),
            simulated.merges,
            simulated.most_rows,
            simulated.most
        );
        most = most.max(simulated.most);
        most_rows = most_rows.max(simulated.most_rows);
    }
    println!("objects at most: {most_rows}; beyond seals, grace and the states asked for: {most}");
    assert!(most <= 150, "{most}");
}

#[test]
fn compaction_of_random_updates_writes_at_most_four_times_the_deltas() {
    for (database_pages, pages, deltas) in [(50, 2, 2_000), (2_000, 4, 4_000), (20_000, 8, 6_000)] {
        let mut simulated = Simulated::new(1, DAY_MS, database_pages);
        for _ in 0..deltas {
            simulated.now += 1000;
            simulated.commit(pages);
        }
        let factor = simulated.merged_bytes as f64 / simulated.delta_bytes as f64;
        let merges = simulated.merges as f64 / deltas as f64;
        println!(
            "{database_pages} pages, {pages} changed in each of {deltas} deltas: merges wrote {factor:.2} x the deltas' bytes, \
             {merges:.3} PUTs each"
        );
        assert!(factor <= 4.0, "{factor}");
        assert!(merges <= 0.035, "{merges}");
    }
}

#[test]
fn a_snapshot_is_due_once_the_deltas_outweigh_half_of_the_last_one() {
    let due = |log: &Simulated| {
        let merges = log.policy.outlook(&log.rows(), TxId(log.head())).unwrap().merges;
        merges.first().is_some_and(|merge| merge.level == SNAPSHOT_LEVEL && merge.name().min == TxId(1))
    };
    let commit = |log: &mut Simulated, pages: u64| {
        log.now += 1;
        log.log.push(log.now);
        let (head, now) = (log.head(), log.now);
        log.put(0, head, head, now, vec![(1 << pages) - 1]);
    };
    // A base of 4 MB, and deltas of 100 KB: the 20th of them reaches half of it.
    let mut large = Simulated::new(1, DAY_MS, 1984);
    for number in 1..=20 {
        assert!(!due(&large), "{number}");
        commit(&mut large, 50);
    }
    assert!(due(&large));
    // A base of 128 KB: the deltas outweigh it soon, but the tail has to be full.
    let mut small = Simulated::new(1, DAY_MS, 64);
    for number in 1..=TAIL {
        assert!(!due(&small), "{number}");
        commit(&mut small, 2);
    }
    assert!(due(&small));
}

/// How many seeds to run; more through the environment in the long checks.
fn seeds(default: u64) -> u64 {
    std::env::var("SQLITE_GCS_TEST_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn without_room_for_a_snapshot_the_levels_go_on() {
    let row = |level, min: u64, max: u64, size| {
        let meta = Meta { generation: Generation(1), size, created: Some(BucketTime(0)), crc32c: None };
        Row { name: ObjectName { level, min: TxId(min), max: TxId(max) }, meta, timestamp_ms: 0 }
    };
    let mut rows = vec![row(9, 1, 1, 10_000_000)];
    rows.extend((2..=200).map(|txid| row(0, txid, txid, 30_000)));
    let policy = Policy::new(Duration::ZERO);
    let with_room = policy.outlook(&rows, TxId(200)).unwrap();
    assert!(!with_room.merges.is_empty());
    rows.extend((201..=400).map(|txid| row(0, txid, txid, 30_000)));
    let small = policy.up_to(5_000_000).outlook(&rows, TxId(400)).unwrap();
    assert!(
        !small.merges.is_empty() && small.merges.iter().all(|merge| merge.level == 1 && merge.bytes() <= 5_000_000)
    );
    assert!(small.bytes_left > 0);
    assert!(policy.up_to(1000).outlook(&rows, TxId(400)).unwrap().merges.is_empty());
}
