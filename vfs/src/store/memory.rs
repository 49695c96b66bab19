//! A bucket in memory that fails on request: what the tests of everything above the store stand on.
//!
//! A [`MemoryBucket`] holds the objects and the bucket's clock; each [`MemoryStore`] made from it is one host's
//! way to it, with its own faults and its own counts. Faults are met in a fixed order, so that a test that ran
//! once runs the same way again. Nothing here retries: each fault is what is left after a real store's retries.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use super::{BucketTime, Condition, Entry, Generation, Meta, Object, Store, StoreError, Traffic, check_name, clip};
use crate::sync::Mutex;

/// No call waits longer than this, also not at a [`Gate`] that nobody opens.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The objects and the clock, shared by all stores made from it.
#[derive(Clone, Default)]
pub struct MemoryBucket {
    state: Arc<Mutex<State>>,
    careless: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    last_generation: u64,
    /// The clock as the test set it; the machine's own while `None`.
    clock: Option<i64>,
    late: VecDeque<Write>,
}

#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    meta: Meta,
    metadata: BTreeMap<String, String>,
}

#[derive(Clone)]
struct Write {
    name: String,
    body: Bytes,
    metadata: BTreeMap<String, String>,
    condition: Condition,
}

impl MemoryBucket {
    /// An empty bucket with the machine's clock.
    pub fn new() -> MemoryBucket {
        MemoryBucket::default()
    }

    /// One more way to the bucket, as another host would have it.
    pub fn store(&self) -> Arc<MemoryStore> {
        Arc::new(MemoryStore { bucket: self.clone(), faults: Mutex::default(), traffic: Traffic::default() })
    }

    /// Stops the bucket's clock and sets it; from here on only the test moves it.
    pub fn set_clock(&self, time: BucketTime) {
        self.state.lock().clock = Some(time.0);
    }

    /// Moves the bucket's clock forward; one that was still running is stopped first.
    pub fn advance_clock(&self, by: Duration) {
        let mut state = self.state.lock();
        let now = state.now().0;
        state.clock = Some(now + i64::try_from(by.as_millis()).unwrap_or(i64::MAX - now));
    }

    /// Makes the bucket ignore every condition of a write or delete, as some imitations of Cloud Storage do.
    pub fn ignore_conditions(&self) {
        self.careless.store(true, Ordering::SeqCst);
    }

    /// Number of writes that are under way by [`Mode::Late`] and have not landed.
    pub fn late(&self) -> usize {
        self.state.lock().late.len()
    }

    /// Lets the oldest late write land, with its condition judged now. `None` when there is none.
    pub fn land_late(&self) -> Option<Result<Meta, StoreError>> {
        let write = self.state.lock().late.pop_front()?;
        Some(self.write(write))
    }

    /// Forgets the oldest late write: it never lands. False when there is none.
    pub fn lose_late(&self) -> bool {
        self.state.lock().late.pop_front().is_some()
    }

    /// Takes an object away without a trace, or changes it with no new generation, behind everybody's back.
    pub fn tamper(&self, name: &str, change: impl FnOnce(Bytes) -> Option<Bytes>) {
        let mut state = self.state.lock();
        if let Some(mut stored) = state.objects.remove(name)
            && let Some(bytes) = change(stored.bytes.clone())
        {
            stored.meta.size = bytes.len() as u64;
            stored.meta.crc32c = Some(crc32c::crc32c(&bytes));
            stored.bytes = bytes;
            state.objects.insert(name.to_owned(), stored);
        }
    }

    /// The names of all objects, in order.
    pub fn names(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }

    fn write(&self, write: Write) -> Result<Meta, StoreError> {
        let mut state = self.state.lock();
        let found = state.objects.get(&write.name).map(|stored| stored.meta.generation);
        let holds = match write.condition {
            Condition::Absent => found.is_none(),
            Condition::Generation(wanted) => found == Some(wanted),
        };
        if !holds && !self.careless.load(Ordering::SeqCst) {
            return Err(StoreError::Precondition(write.name));
        }
        state.last_generation += 1;
        let meta = Meta {
            generation: Generation(state.last_generation),
            size: write.body.len() as u64,
            created: Some(state.now()),
            crc32c: Some(crc32c::crc32c(&write.body)),
        };
        let stored = Stored { bytes: write.body, meta: meta.clone(), metadata: write.metadata };
        state.objects.insert(write.name, stored);
        Ok(meta)
    }
}

impl State {
    fn now(&self) -> BucketTime {
        BucketTime(self.clock.unwrap_or_else(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        }))
    }
}

impl fmt::Debug for MemoryBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBucket").field("names", &self.names()).finish()
    }
}

/// A kind of request that a fault can pick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A read of an object.
    Get,
    /// A write of an object.
    Put,
    /// A listing.
    List,
    /// A delete.
    Delete,
}

/// What a fault does to the request that meets it.
#[derive(Clone, Debug)]
pub enum Mode {
    /// [`StoreError::Unavailable`]; nothing was done.
    Fail,
    /// [`StoreError::Refused`]; nothing was done.
    Refuse,
    /// [`StoreError::Damaged`]; nothing was done.
    Damage,
    /// The request takes effect; a write or delete then answers [`StoreError::Unknown`], a read
    /// [`StoreError::Unavailable`].
    LoseAnswer,
    /// A write answers [`StoreError::Unknown`] at once and lands when the test calls [`MemoryBucket::land_late`].
    /// Other requests answer [`StoreError::Unavailable`].
    Late,
    /// The request waits until the gate is opened, then goes on as if nothing had been.
    StallBefore(Gate),
    /// The request takes effect, and its answer waits until the gate is opened.
    StallAfter(Gate),
}

/// Which requests of one store meet which fault.
#[derive(Clone, Debug)]
pub struct Fault {
    operation: Option<Operation>,
    name_part: String,
    /// Matching requests that pass before the first one that meets the fault.
    skip: u64,
    /// Matching requests that meet the fault.
    times: u64,
    mode: Mode,
}

impl Fault {
    /// The next request of any kind meets this, once.
    pub fn next(mode: Mode) -> Fault {
        Fault { operation: None, name_part: String::new(), skip: 0, times: 1, mode }
    }

    /// The next request of this kind meets this, once.
    pub fn on(operation: Operation, mode: Mode) -> Fault {
        Fault { operation: Some(operation), ..Fault::next(mode) }
    }

    /// Only requests whose name (for a listing: prefix) contains this count.
    pub fn named(self, part: &str) -> Fault {
        Fault { name_part: part.to_owned(), ..self }
    }

    /// The `n`th matching request, counted from 1, is the first to meet it.
    pub fn nth(self, n: u64) -> Fault {
        Fault { skip: n.saturating_sub(1), ..self }
    }

    /// This many matching requests in a row meet it.
    pub fn times(self, times: u64) -> Fault {
        Fault { times, ..self }
    }

    /// Every matching request from the first one on meets it, until [`MemoryStore::heal`].
    pub fn lasting(self) -> Fault {
        self.times(u64::MAX)
    }
}

/// Holds requests back until it is opened; clones are the same gate.
#[derive(Clone, Default, Debug)]
pub struct Gate {
    inner: Arc<(AtomicBool, Notify, Notify)>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Lets everybody pass, now and later.
    pub fn open(&self) {
        self.inner.0.store(true, Ordering::SeqCst);
        self.inner.1.notify_waiters();
    }

    /// Waits until a request stands at the gate; each request is reported once.
    pub async fn reached(&self) {
        self.inner.2.notified().await;
    }

    async fn pass(&self) {
        self.inner.2.notify_one();
        loop {
            let opened = self.inner.1.notified();
            if self.inner.0.load(Ordering::SeqCst) {
                return;
            }
            opened.await;
        }
    }
}

/// One host's way to a [`MemoryBucket`].
pub struct MemoryStore {
    bucket: MemoryBucket,
    faults: Mutex<Vec<Fault>>,
    traffic: Traffic,
}

impl MemoryStore {
    /// A store of a new bucket of its own.
    pub fn new() -> Arc<MemoryStore> {
        MemoryBucket::new().store()
    }

    /// The bucket behind it.
    pub fn bucket(&self) -> &MemoryBucket {
        &self.bucket
    }

    /// Adds a fault. Of several that match a request the oldest one that is due is met; all of them count it.
    pub fn inject(&self, fault: Fault) {
        self.faults.lock().push(fault);
    }

    /// Removes every fault.
    pub fn heal(&self) {
        self.faults.lock().clear();
    }

    fn meet(&self, operation: Operation, name: &str) -> Option<Mode> {
        let mut met = None;
        let mut faults = self.faults.lock();
        for fault in faults.iter_mut() {
            if fault.operation.is_some_and(|wanted| wanted != operation) || !name.contains(&fault.name_part) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if met.is_none() {
                fault.times -= 1;
                met = Some(fault.mode.clone());
            }
        }
        faults.retain(|fault| fault.times > 0);
        met
    }

    async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        self.traffic.gets.fetch_add(1, Ordering::Relaxed);
        let mode = self.meet(Operation::Get, name);
        let object = self
            .run(mode, Operation::Get, name, || {
                let state = self.bucket.state.lock();
                let stored = state.objects.get(name).ok_or_else(|| StoreError::NotFound(name.to_owned()))?;
                let range = clip(name, range, stored.meta.size)?;
                let bytes = stored.bytes.slice(range.start as usize..range.end as usize);
                Ok(Object { bytes, meta: stored.meta.clone(), date: Some(state.now()) })
            })
            .await?;
        self.traffic.bytes_in.fetch_add(object.bytes.len() as u64, Ordering::Relaxed);
        Ok(object)
    }

    /// Runs a request that met `mode`. `effect` runs at most once.
    async fn run<T>(
        &self,
        mode: Option<Mode>,
        operation: Operation,
        name: &str,
        effect: impl FnOnce() -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let why = || "injected".to_owned();
        let unavailable = || StoreError::Unavailable { name: name.to_owned(), why: why() };
        let lost = || match operation {
            Operation::Put | Operation::Delete => StoreError::Unknown { name: name.to_owned(), why: why() },
            Operation::Get | Operation::List => unavailable(),
        };
        let request = async {
            match mode {
                None => effect(),
                Some(Mode::Fail | Mode::Late) => Err(unavailable()),
                Some(Mode::Refuse) => Err(StoreError::Refused { name: name.to_owned(), why: why() }),
                Some(Mode::Damage) => Err(StoreError::Damaged { name: name.to_owned(), why: why() }),
                Some(Mode::LoseAnswer) => effect().and_then(|_| Err(lost())),
                Some(Mode::StallBefore(gate)) => match tokio::time::timeout(LONGEST_WAIT, gate.pass()).await {
                    Ok(()) => effect(),
                    Err(_) => Err(lost()),
                },
                Some(Mode::StallAfter(gate)) => {
                    let answer = effect();
                    match tokio::time::timeout(LONGEST_WAIT, gate.pass()).await {
                        Ok(()) => answer,
                        Err(_) => Err(lost()),
                    }
                }
            }
        };
        self.traffic.round_trip(request).await
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("bucket", &self.bucket).finish()
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn place(&self) -> String {
        "memory:".to_owned()
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        let object = self.read(name, range).await?;
        // As on Cloud Storage: who needs to know how old an object is asks for it.
        Ok(Object { meta: Meta { created: None, ..object.meta }, date: None, ..object })
    }

    async fn get_dated(&self, name: &str) -> Result<Object, StoreError> {
        self.read(name, None).await
    }

    async fn put(
        &self,
        name: &str,
        body: Bytes,
        metadata: &BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Meta, StoreError> {
        check_name(name)?;
        self.traffic.puts.fetch_add(1, Ordering::Relaxed);
        self.traffic.bytes_out.fetch_add(body.len() as u64, Ordering::Relaxed);
        let write = Write { name: name.to_owned(), body, metadata: metadata.clone(), condition };
        let mode = self.meet(Operation::Put, name);
        if matches!(mode, Some(Mode::Late)) {
            self.bucket.state.lock().late.push_back(write);
            return Err(StoreError::Unknown { name: name.to_owned(), why: "injected".to_owned() });
        }
        self.run(mode, Operation::Put, name, || self.bucket.write(write)).await
    }

    async fn list(&self, prefix: &str, start: Option<&str>) -> Result<Vec<Entry>, StoreError> {
        self.traffic.lists.fetch_add(1, Ordering::Relaxed);
        let mode = self.meet(Operation::List, prefix);
        self.run(mode, Operation::List, prefix, || {
            let state = self.bucket.state.lock();
            let from = start.map_or(prefix, |start| start.max(prefix)).to_owned();
            let rows = state.objects.range(from..).take_while(|(name, _)| name.starts_with(prefix));
            let entry = |(name, stored): (&String, &Stored)| Entry {
                name: name.clone(),
                meta: stored.meta.clone(),
                metadata: stored.metadata.clone(),
            };
            Ok(rows.map(entry).collect())
        })
        .await
    }

    async fn delete(&self, name: &str, generation: Generation) -> Result<(), StoreError> {
        self.traffic.deletes.fetch_add(1, Ordering::Relaxed);
        let mode = self.meet(Operation::Delete, name);
        self.run(mode, Operation::Delete, name, || {
            let mut state = self.bucket.state.lock();
            let stored = state.objects.get(name).ok_or_else(|| StoreError::NotFound(name.to_owned()))?;
            if stored.meta.generation != generation && !self.bucket.careless.load(Ordering::SeqCst) {
                return Err(StoreError::Precondition(name.to_owned()));
            }
            state.objects.remove(name);
            Ok(())
        })
        .await
    }

    fn traffic(&self) -> &Traffic {
        &self.traffic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(store: &MemoryStore, name: &str, body: &'static str) -> Result<Meta, StoreError> {
        store.put(name, Bytes::from_static(body.as_bytes()), &BTreeMap::new(), Condition::Absent).await
    }

    #[tokio::test]
    async fn the_nth_request_of_a_kind_fails_and_no_other() {
        let store = MemoryStore::new();
        store.inject(Fault::on(Operation::Put, Mode::Fail).named("b").nth(2));
        assert!(put(&store, "b1", "").await.is_ok());
        assert!(put(&store, "a", "").await.is_ok());
        assert!(store.get("b1", None).await.is_ok());
        assert!(matches!(put(&store, "b2", "").await, Err(StoreError::Unavailable { .. })));
        assert!(put(&store, "b2", "").await.is_ok());
        assert_eq!(store.traffic().snapshot()[..2], [1, 4]);
    }

    #[tokio::test]
    async fn a_lasting_fault_hits_one_host_only_until_it_is_healed() {
        let store = MemoryStore::new();
        let other = store.bucket().store();
        store.inject(Fault::next(Mode::Refuse).lasting());
        for _ in 0..3 {
            assert!(matches!(put(&store, "a", "").await, Err(StoreError::Refused { .. })));
        }
        assert!(put(&other, "a", "").await.is_ok());
        store.heal();
        assert!(store.get("a", None).await.is_ok());
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_object() {
        let store = MemoryStore::new();
        store.inject(Fault::on(Operation::Put, Mode::LoseAnswer));
        assert!(matches!(put(&store, "a", "x").await, Err(StoreError::Unknown { .. })));
        assert!(matches!(put(&store, "a", "x").await, Err(StoreError::Precondition(_))));
        assert_eq!(store.get("a", None).await.expect("it is there").bytes, "x");
    }

    #[tokio::test]
    async fn a_late_write_lands_when_the_test_says_so_and_is_judged_then() {
        let store = MemoryStore::new();
        store.inject(Fault::on(Operation::Put, Mode::Late).times(2));
        for name in ["a", "b"] {
            assert!(matches!(put(&store, name, "late").await, Err(StoreError::Unknown { .. })));
        }
        assert!(matches!(store.get("a", None).await, Err(StoreError::NotFound(_))));
        put(&store, "b", "in time").await.expect("nothing is there yet");
        assert!(matches!(store.bucket().land_late(), Some(Ok(_))));
        assert!(matches!(store.bucket().land_late(), Some(Err(StoreError::Precondition(_)))));
        assert!(store.bucket().land_late().is_none());
        assert_eq!(store.get("a", None).await.expect("landed").bytes, "late");
        assert_eq!(store.get("b", None).await.expect("kept").bytes, "in time");
    }

    #[tokio::test]
    async fn a_stalled_request_waits_for_the_gate() {
        let store = MemoryStore::new();
        for before in [true, false] {
            let gate = Gate::new();
            let mode = if before { Mode::StallBefore(gate.clone()) } else { Mode::StallAfter(gate.clone()) };
            store.inject(Fault::on(Operation::Put, mode));
            let (name, writer) = (format!("before {before}"), Arc::clone(&store));
            let stalled = tokio::spawn({
                let name = name.clone();
                async move { put(&writer, &name, "x").await }
            });
            gate.reached().await;
            assert_eq!(store.get(&name, None).await.is_err(), before);
            gate.open();
            assert!(stalled.await.expect("no panic").is_ok());
            assert!(store.get(&name, None).await.is_ok());
        }
    }

    #[tokio::test]
    async fn only_a_dated_read_tells_the_age() {
        let store = MemoryStore::new();
        store.bucket().set_clock(BucketTime(1000));
        put(&store, "a", "").await.expect("a put");
        store.bucket().advance_clock(Duration::from_secs(2));
        let object = store.get_dated("a").await.expect("a dated read");
        assert_eq!((object.meta.created, object.date), (Some(BucketTime(1000)), Some(BucketTime(3000))));
        let object = store.get("a", None).await.expect("a read");
        assert_eq!((object.meta.created, object.date), (None, None));
    }
}
