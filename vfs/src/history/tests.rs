//! Histories of real objects in a bucket in memory, against a model of every state.
#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use fastrand::Rng;

use super::points::points;
use super::*;
use crate::delta::{Decoder, Encoder, Header, merge};
use crate::page::{PageCount, PageSize, Pgno};
use crate::replica::chain::plan;
use crate::replica::fetch::ReadAt;
use crate::replica::names::Listed;
use crate::runtime;
use crate::store::memory::{Fault, MemoryBucket, MemoryStore, Mode, Operation};
use crate::store::{Condition, Entry, Generation, Meta, Object, Store, StoreError, Traffic};

const PAGE: u32 = 512;
const MINUTE_MS: i64 = 60_000;

/// What the bucket held after one change of it.
#[derive(Clone, Debug)]
enum Change {
    Put(String, Bytes),
    Delete(String),
}

/// A store that writes down every change that took effect through it.
#[derive(Debug)]
struct Recorded {
    store: Arc<MemoryStore>,
    changes: Mutex<Vec<Change>>,
}

#[async_trait]
impl Store for Recorded {
    fn place(&self) -> String {
        self.store.place()
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        self.store.get(name, range).await
    }

    async fn put(
        &self,
        name: &str,
        body: Bytes,
        metadata: &BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Meta, StoreError> {
        let answer = self.store.put(name, body.clone(), metadata, condition).await;
        // What landed although its answer was lost is found by looking.
        let there = self.store.bucket().names().iter().any(|other| other == name);
        if answer.is_ok() || (matches!(answer, Err(StoreError::Unknown { .. })) && there) {
            self.changes.lock().push(Change::Put(name.to_owned(), body));
        }
        answer
    }

    async fn list(&self, prefix: &str, start: Option<&str>) -> Result<Vec<Entry>, StoreError> {
        self.store.list(prefix, start).await
    }

    async fn delete(&self, name: &str, generation: Generation) -> Result<(), StoreError> {
        let answer = self.store.delete(name, generation).await;
        if !self.store.bucket().names().iter().any(|other| other == name) {
            self.changes.lock().push(Change::Delete(name.to_owned()));
        }
        answer
    }

    fn traffic(&self) -> &Traffic {
        self.store.traffic()
    }
}

/// The pages of a database.
type State = Vec<Vec<u8>>;

struct Log {
    bucket: MemoryBucket,
    recorded: Arc<Recorded>,
    replica: Replica,
    scratch: tempfile::TempDir,
    rng: Rng,
    now: i64,
    /// The state as of each transaction, from TXID 1 on.
    states: Vec<State>,
    times: Vec<i64>,
    durable: ObjectId,
}

impl Log {
    fn new(seed: u64, pages: usize) -> Log {
        let bucket = MemoryBucket::new();
        let recorded = Arc::new(Recorded { store: bucket.store(), changes: Mutex::default() });
        let replica = Replica::new(recorded.clone(), "app.db");
        let durable = ObjectId { txid: TxId(0), size: 0, crc32c: 0 };
        let scratch = tempfile::tempdir().unwrap();
        let now = 1_800_000_000_000;
        let (states, times) = (Vec::new(), Vec::new());
        let mut log =
            Log { bucket, recorded, replica, scratch, rng: Rng::with_seed(seed), now, states, times, durable };
        let mut state = vec![vec![0; PAGE as usize]; pages];
        state.iter_mut().for_each(|page| log.rng.fill(page));
        log.append(state, &(1..=pages as u32).collect::<Vec<_>>());
        log
    }

    fn historian(&self, retention: Duration) -> Historian {
        Historian::new(self.replica.clone(), self.scratch.path().to_owned(), retention)
    }

    fn head(&self) -> u64 {
        self.states.len() as u64
    }

    fn put(&self, name: &ObjectName, bytes: Vec<u8>, timestamp_ms: i64) -> Row {
        self.bucket.set_clock(BucketTime(self.now));
        let (store, full, metadata) = (self.recorded.clone(), self.replica.ltx(name), listing::metadata(timestamp_ms));
        let put = async move { store.put(&full, bytes.into(), &metadata, Condition::Absent).await };
        let meta = runtime::wait("a put", Duration::from_secs(10), put).unwrap().unwrap();
        Row { name: *name, meta, timestamp_ms }
    }

    /// A transaction that leaves this state and holds these pages of it.
    fn append(&mut self, state: State, changed: &[u32]) -> Row {
        let txid = TxId(self.head() + 1);
        let header = Header::level_0(PageSize::new(PAGE).unwrap(), PageCount(state.len() as u32), txid, self.now);
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for &pgno in changed {
            encoder.page(Pgno(pgno), &state[pgno as usize - 1]).unwrap();
        }
        let row = self.put(&ObjectName::delta(txid), encoder.finish().unwrap().0, self.now);
        self.durable = ObjectId { txid, size: row.meta.size, crc32c: row.meta.crc32c.unwrap() };
        self.states.push(state);
        self.times.push(self.now);
        row
    }

    /// A random transaction: changes, growth, a shrink, or nothing at all (as a seal after a takeover).
    fn commit(&mut self) -> Row {
        let mut state = self.states.last().unwrap().clone();
        let mut changed = std::collections::BTreeSet::new();
        match self.rng.u8(0..20) {
            0 => {}
            1 => state.truncate(self.rng.usize(1..=state.len())),
            2 | 3 => {
                let pages = state.len() + self.rng.usize(1..4);
                changed.extend(state.len() as u32 + 1..=pages as u32);
                state.resize(pages, vec![0; PAGE as usize]);
            }
            _ => changed.extend((0..self.rng.usize(1..5)).map(|_| self.rng.u32(1..=state.len() as u32))),
        }
        for &pgno in &changed {
            self.rng.fill(&mut state[pgno as usize - 1]);
        }
        self.append(state, &changed.into_iter().collect::<Vec<_>>())
    }

    fn listed(&self) -> Vec<Row> {
        let store = self.bucket.store();
        let replica = Replica::new(store, "app.db");
        listing::list(&replica).unwrap()
    }

    fn step(&self, historian: &Historian) -> Result<Progress> {
        self.bucket.set_clock(BucketTime(self.now));
        historian.run_step(&|| true, self.durable, BucketTime(self.now))
    }

    fn settle(&self, historian: &Historian) {
        for _ in 0..300 {
            if self.step(historian).unwrap() == Progress::Nothing {
                return;
            }
        }
        panic!("the steps never end");
    }
}

/// The bucket's objects as they stand at some moment.
#[derive(Default)]
struct Replayed {
    objects: BTreeMap<ObjectName, Bytes>,
}

impl Replayed {
    fn apply(&mut self, replica: &Replica, change: &Change) {
        match change {
            Change::Put(name, bytes) => drop(self.objects.insert(replica.parse(name).unwrap(), bytes.clone())),
            Change::Delete(name) => drop(self.objects.remove(&replica.parse(name).unwrap())),
        }
    }

    fn listed(&self) -> Vec<Listed> {
        let meta =
            |bytes: &Bytes| Meta { generation: Generation(1), size: bytes.len() as u64, created: None, crc32c: None };
        self.objects.iter().map(|(name, bytes)| Listed { name: *name, meta: meta(bytes) }).collect()
    }

    /// Opens a state as any reader does: the plan, then every object of it to its end.
    fn open(&self, target: Option<TxId>) -> (TxId, State) {
        let chain = plan(&self.listed(), target).unwrap().unwrap();
        let mut state = State::new();
        for object in &chain.objects {
            let mut decoder = Decoder::new(&self.objects[&object.name][..]).unwrap();
            let mut page = Vec::new();
            state.resize(decoder.header().commit.0 as usize, vec![0; PAGE as usize]);
            while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
                state[pgno.0 as usize - 1].clone_from(&page);
            }
            decoder.finish().unwrap();
        }
        (chain.txid(), state)
    }
}

/// After each change of the bucket, in their order: the newest state and a random point of the past are those of the model.
fn every_cut_is_a_valid_replica(log: &mut Log) {
    let mut replayed = Replayed::default();
    let mut appended = 0;
    for change in &*log.recorded.changes.lock() {
        replayed.apply(&log.replica, change);
        if let Change::Put(name, _) = change
            && let Some(name) = log.replica.parse(name)
            && name.level == 0
            && name.max.0 > appended
        {
            appended = name.max.0;
            continue;
        }
        let (txid, state) = replayed.open(None);
        assert_eq!(txid.0, appended, "after {change:?}");
        assert!(state == log.states[appended as usize - 1], "the newest state differs after {change:?}");
        let targets: Vec<TxId> = (1..=appended).map(TxId).collect();
        let target = targets[log.rng.usize(0..targets.len())];
        if plan(&replayed.listed(), Some(target)).is_ok() {
            let (txid, state) = replayed.open(Some(target));
            assert!(txid == target && state == log.states[target.0 as usize - 1], "{target} after {change:?}");
        }
    }
}

#[test]
fn a_history_cut_anywhere_is_a_valid_replica_whatever_fails() {
    for seed in 0..6 {
        let mut rng = Rng::with_seed(seed);
        let mut log = Log::new(seed, [3, 40, 400][rng.usize(0..3)]);
        let retention = Duration::from_secs([0, 3600, 86_400][rng.usize(0..3)]);
        let mut holder = log.historian(retention);
        // One that lost the lease and does not know it: it works on from what it knew.
        let mut stalled = log.historian(retention);
        let pause = [1_000, 20_000, 90_000][rng.usize(0..3)];
        for _ in 0..rng.usize(200..700) {
            log.now += rng.i64(1..2 * pause);
            let row = log.commit();
            if rng.u8(0..10) != 0 {
                holder.appended(row);
            }
            match rng.u16(0..400) {
                0 => log.now += 3_600_000,
                1 => (holder, stalled) = (log.historian(retention), holder),
                2 => odd_range(&mut log, &mut rng),
                3 => drop(log.step(&stalled)),
                4 => holder.forget(),
                5 => holder.observe(log.listed(), log.durable.txid),
                _ => {}
            }
            while holder.due(log.durable.txid) {
                if rng.u8(0..8) == 0 {
                    let modes = [Mode::Fail, Mode::LoseAnswer, Mode::Late, Mode::Damage, Mode::Refuse];
                    let mode = modes[rng.usize(0..modes.len())].clone();
                    log.recorded.store.inject(Fault::next(mode).nth(rng.u64(1..20)));
                }
                let done = log.step(&holder);
                log.recorded.store.heal();
                if matches!(done, Ok(Progress::Nothing) | Err(_)) {
                    break;
                }
                while log.bucket.land_late().is_some() {
                    // It landed behind the recorder's back; what it is, the next listing shows.
                    let name = log.bucket.names();
                    missed_put(&log, &name);
                }
            }
        }
        log.settle(&log.historian(retention));
        every_cut_is_a_valid_replica(&mut log);
        let rows = log.listed();
        let deltas = rows.iter().filter(|row| row.name.level == 0).count();
        println!("seed {seed}: {} transactions, {} objects, {deltas} of them deltas", log.head(), rows.len());
    }
}

/// Records the objects that are in the bucket and not yet recorded.
fn missed_put(log: &Log, names: &[String]) {
    let mut there = Replayed::default();
    let mut changes = log.recorded.changes.lock();
    changes.iter().for_each(|change| there.apply(&log.replica, change));
    for name in names.iter().filter(|name| !there.objects.contains_key(&log.replica.parse(name).unwrap())) {
        let (store, name) = (log.recorded.store.clone(), name.clone());
        let full = name.clone();
        let get = async move { store.get(&full, None).await };
        let bytes = runtime::wait("a get", Duration::from_secs(10), get).unwrap().unwrap().bytes;
        changes.push(Change::Put(name, bytes));
    }
}

/// What a stalled holder with another view may put: a true copy of some odd range, at some level.
fn odd_range(log: &mut Log, rng: &mut Rng) {
    let mut replayed = Replayed::default();
    log.recorded.changes.lock().iter().for_each(|change| replayed.apply(&log.replica, change));
    let deltas: Vec<ObjectName> = replayed.objects.keys().filter(|name| name.level == 0).copied().collect();
    let from = rng.usize(0..deltas.len());
    let mut run: Vec<ObjectName> = Vec::new();
    for name in deltas[from..].iter().take(rng.usize(2..9)) {
        if name.min.0 > 1 && run.last().is_none_or(|last| last.max.next() == name.min) {
            run.push(*name);
        }
    }
    if run.len() < 2 {
        return;
    }
    let (first, last) = (run[0], run[run.len() - 1]);
    let inputs: Vec<_> = run.iter().map(|name| Decoder::new(&replayed.objects[name][..]).unwrap()).collect();
    let commit = inputs[inputs.len() - 1].header().commit;
    let time = log.times[last.max.0 as usize - 1];
    let header = Header::compacted(PageSize::new(PAGE).unwrap(), commit, first.min, last.max, time);
    let (bytes, _) = merge(inputs, Vec::new(), header).unwrap();
    let name = ObjectName { level: rng.u8(1..4), min: first.min, max: last.max };
    if !replayed.objects.contains_key(&name) {
        log.put(&name, bytes, time);
    }
}

/// A log of 130 deltas a second apart, whose base is large enough that nothing wants a snapshot.
fn dense(seed: u64) -> Log {
    let mut log = Log::new(seed, 6000);
    for _ in 0..130 {
        log.now += 900;
        log.commit();
    }
    log
}

#[test]
fn deltas_go_only_after_the_grace_and_only_those_that_are_covered() {
    let log = &mut dense(1);
    let historian = log.historian(Duration::ZERO);
    log.settle(&historian);
    let level = |log: &Log, level| log.listed().iter().filter(|row| row.name.level == level).count();
    assert_eq!((level(log, 0), level(log, 1)), (131, 2), "66 fit into a minute, and 64 are the most for one");
    log.now += 10 * MINUTE_MS - 1;
    log.settle(&log.historian(Duration::ZERO));
    assert_eq!(level(log, 0), 131);
    log.now += 1;
    log.settle(&log.historian(Duration::ZERO));
    let left = log.listed();
    let left = left.iter().filter(|row| row.name.level == 0 && !row.in_protocol().is_seal());
    assert_eq!(left.map(|row| row.name.max.0).collect::<Vec<_>>(), [130, 131], "the tail");
    assert!(log.listed().iter().any(|row| row.name == ObjectName::delta(TxId(1))), "the first delta is kept for ever");
    every_cut_is_a_valid_replica(log);
}

#[test]
fn a_reader_in_the_middle_of_an_open_finds_what_it_planned() {
    let mut log = Log::new(3, 200);
    let historian = log.historian(Duration::from_secs(3600));
    let mut planned: VecDeque<(i64, Vec<ObjectName>)> = VecDeque::new();
    let mut deleted = 0;
    for _ in 0..900 {
        log.now += 5_000;
        let row = log.commit();
        historian.appended(row);
        while historian.due(log.durable.txid) {
            match log.step(&historian).unwrap() {
                Progress::Nothing => break,
                Progress::Deleted { objects, .. } => deleted += objects,
                _ => {}
            }
            let there: std::collections::BTreeSet<ObjectName> = log.listed().iter().map(|row| row.name).collect();
            planned.retain(|(at, _)| log.now - at < 10 * MINUTE_MS);
            for (at, objects) in &planned {
                let gone = objects.iter().find(|name| !there.contains(name));
                assert_eq!(gone, None, "planned {} s ago", (log.now - at) / 1000);
            }
        }
        let chain = listing::chain(&log.listed(), None).unwrap();
        planned.push_back((log.now, chain.iter().map(|row| row.name).collect()));
    }
    assert!(deleted > 500, "{deleted}");
}

#[test]
fn a_damaged_cover_is_no_reason_to_delete() {
    let log = &mut dense(2);
    log.settle(&log.historian(Duration::ZERO));
    let cover = log.listed().into_iter().find(|row| row.name.level == 1).unwrap();
    log.bucket.tamper(&log.replica.ltx(&cover.name), |bytes| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(bytes.into())
    });
    log.now += 20 * MINUTE_MS;
    let before = log.bucket.names();
    let error = log.step(&log.historian(Duration::ZERO)).expect_err("a damaged cover");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(&cover.name.to_string()), "{error}");
    assert_eq!(log.bucket.names(), before);
}

#[test]
fn a_merge_whose_answer_was_lost_is_accepted_and_another_one_of_its_name_is_not() {
    let log = &mut dense(3);
    let (first, second) = (log.historian(Duration::ZERO), log.historian(Duration::ZERO));
    first.observe(log.listed(), log.durable.txid);
    second.observe(log.listed(), log.durable.txid);
    let Ok(Progress::Merged { name, .. }) = log.step(&first) else { panic!("no merge") };
    assert!(matches!(log.step(&second), Ok(Progress::Merged { name: same, .. }) if same == name));

    let again = |log: &Log| {
        let historian = log.historian(Duration::ZERO);
        let mut rows = log.listed();
        rows.retain(|row| row.name != name);
        historian.observe(rows, log.durable.txid);
        log.step(&historian)
    };
    // The same pages in other bytes, as another program would write them.
    log.bucket.tamper(&log.replica.ltx(&name), |bytes| {
        let input = Decoder::new(&bytes[..]).unwrap();
        let header = Header { timestamp_ms: 1, ..*input.header() };
        Some(merge(vec![input], Vec::new(), header).unwrap().0.into())
    });
    assert!(matches!(again(log), Ok(Progress::Merged { name: same, .. }) if same == name));
    log.bucket.tamper(&log.replica.ltx(&name), |bytes| {
        let header = *Decoder::new(&bytes[..]).unwrap().header();
        let (none, _) = Encoder::new(Vec::new(), header).unwrap().finish().unwrap();
        Some(none.into())
    });
    let error = again(log).expect_err("another object");
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("differs"), "{error}");
}

#[test]
fn nothing_is_written_without_the_right() {
    let log = &mut dense(4);
    let historian = log.historian(Duration::ZERO);
    let asked = AtomicBool::new(false);
    let before = log.bucket.names();
    // The right is lost while the merge is made.
    let right = || !asked.swap(true, Ordering::SeqCst);
    assert_eq!(historian.run_step(&right, log.durable, BucketTime(log.now)).unwrap(), Progress::Stopped);
    assert_eq!(log.bucket.names(), before);
}

#[test]
fn a_head_that_is_not_ours_stops_everything() {
    let log = &mut dense(5);
    let other = ObjectId { crc32c: log.durable.crc32c ^ 1, ..log.durable };
    let error = log.historian(Duration::ZERO).run_step(&|| true, other, BucketTime(log.now)).expect_err("not ours");
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

#[test]
fn an_idle_database_asks_for_nothing_and_a_busy_one_for_little() {
    let mut log = Log::new(6, 6000);
    let historian = log.historian(Duration::from_secs(86_400));
    let before = log.recorded.traffic().snapshot();
    let mut steps = 0;
    for _ in 0..1200 {
        log.now += 1000;
        let row = log.commit();
        historian.appended(row);
        while historian.due(log.durable.txid) {
            steps += 1;
            if log.step(&historian).unwrap() == Progress::Nothing {
                break;
            }
        }
    }
    let after = log.recorded.traffic().snapshot();
    let (puts, lists) = (after[1] - before[1] - 1200, after[2] - before[2]);
    println!("20 minutes of a write a second: {puts} PUTs and {lists} listings for the history, {steps} steps");
    assert!(puts <= 24, "{puts}");
    assert!(lists <= 3, "{lists}");
    for _ in 0..1000 {
        log.now += 3_600_000;
        assert!(!historian.due(log.durable.txid));
    }
    assert_eq!(log.recorded.traffic().snapshot(), after);
}

#[test]
fn a_full_tail_is_noticed_by_whoever_reaches_the_64th_transaction() {
    let historian = Log::new(7, 1).historian(Duration::ZERO);
    assert!(!historian.due(TxId(61)));
    assert!(!historian.due(TxId(63)));
    assert!(historian.due(TxId(64)));
    assert!(historian.due(TxId(70)), "until it was looked at");
}

/// Objects that lie in memory here.
struct Here(BTreeMap<ObjectName, Bytes>);

struct HereBytes(Bytes);

impl ReadAt for HereBytes {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let rest = &self.0[self.0.len().min(offset as usize)..];
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

impl LocalObjects for Here {
    fn open(&self, name: &ObjectName) -> Option<Box<dyn ReadAt>> {
        self.0.get(name).map(|bytes| Box::new(HereBytes(bytes.clone())) as Box<dyn ReadAt>)
    }
}

#[test]
fn what_is_on_the_local_disk_is_not_asked_for() {
    let log = &mut dense(8);
    let mut replayed = Replayed::default();
    log.recorded.changes.lock().iter().for_each(|change| replayed.apply(&log.replica, change));
    let historian = log.historian(Duration::ZERO).with_local(Arc::new(Here(replayed.objects)));
    let before = log.recorded.traffic().snapshot();
    assert!(matches!(log.step(&historian), Ok(Progress::Merged { .. })));
    let after = log.recorded.traffic().snapshot();
    assert_eq!(after[0], before[0], "no object was read from the bucket");
    every_cut_is_a_valid_replica(log);
}

#[test]
fn large_objects_are_read_in_ranges() {
    let log = &mut Log::new(9, 6000);
    let mut state = log.states[0].clone();
    for round in 0..3 {
        state.iter_mut().for_each(|page| log.rng.fill(page));
        log.now += 1000 * round;
        log.append(state.clone(), &(1..=6000).collect::<Vec<_>>());
    }
    let reads = source::Reads::new(&log.replica, &(Arc::new(NoLocalObjects) as Arc<dyn LocalObjects>), 128);
    let rows = log.listed();
    let large = rows.iter().find(|row| row.name.max == TxId(2)).unwrap();
    assert!(large.meta.size > 40 * 64 * 1024);
    let before = log.recorded.traffic().snapshot();
    let mut decoder = reads.decoders(std::slice::from_ref(large)).unwrap().remove(0);
    let mut page = Vec::new();
    while decoder.next_page(&mut page).unwrap().is_some() {}
    decoder.finish().unwrap();
    let gets = log.recorded.traffic().snapshot()[0] - before[0];
    assert_eq!(gets, large.meta.size.div_ceil(64 * 1024));
    // The whole of it goes into a snapshot at the next step: three megabytes outweigh half of the base.
    assert!(matches!(log.step(&log.historian(Duration::ZERO)), Ok(Progress::Merged { name, .. }) if name.level == 9));
    every_cut_is_a_valid_replica(log);
    assert_eq!(points(&log.listed()).len(), 4);
}

#[test]
fn a_read_that_fails_is_reported_as_what_it_is() {
    let log = &mut dense(10);
    log.recorded.store.inject(Fault::on(Operation::Get, Mode::Fail).lasting());
    let error = log.step(&log.historian(Duration::ZERO)).expect_err("no reads");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
