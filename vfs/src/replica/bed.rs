//! What the tests of reading stand on: a bucket in memory that counts and can be held up, and random histories of a
//! database with the model that says what each of its states is.
#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use fastrand::Rng;

use crate::delta::{Encoder, Header};
use crate::page::{PageCount, PageSize, Pgno, TxId};
use crate::replica::chain::plan;
use crate::replica::index_fetch::ObjectIndex;
use crate::replica::names::{Listed, ObjectName, Replica};
use crate::store::{Condition, Entry, Generation, Meta, Object, Store, StoreError, Traffic};
use crate::sync::Mutex;

pub(crate) const PAGE: PageSize = PageSize::DEFAULT;

/// Holds a request up until it is opened.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    permits: Arc<tokio::sync::Semaphore>,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.permits.add_permits(10_000);
    }
}

/// One read of an object as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Get {
    pub(crate) name: String,
    pub(crate) range: Option<Range<u64>>,
}

#[derive(Debug, Default)]
pub(crate) struct Bucket {
    objects: Mutex<BTreeMap<String, (Bytes, u64)>>,
    last: Mutex<u64>,
    gets: Mutex<Vec<Get>>,
    gate: Mutex<Option<Gate>>,
    under_way: Mutex<(usize, usize)>,
    traffic: Traffic,
}

impl Bucket {
    pub(crate) fn new() -> Arc<Bucket> {
        Arc::default()
    }

    pub(crate) fn set(&self, name: &str, bytes: impl Into<Bytes>) -> Generation {
        let mut last = self.last.lock();
        *last += 1;
        self.objects.lock().insert(name.into(), (bytes.into(), *last));
        Generation(*last)
    }

    pub(crate) fn remove(&self, name: &str) {
        self.objects.lock().remove(name).unwrap();
    }

    /// Changes an object's bytes behind everybody's back, in the same generation.
    pub(crate) fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut objects = self.objects.lock();
        let object = objects.get_mut(name).unwrap();
        let mut bytes = object.0.to_vec();
        change(&mut bytes);
        object.0 = bytes.into();
    }

    /// From now on every read waits at the gate.
    pub(crate) fn hold(&self) -> Gate {
        let gate = Gate { permits: Arc::new(tokio::sync::Semaphore::new(0)) };
        *self.gate.lock() = Some(gate.clone());
        gate
    }

    /// The reads since the last call.
    pub(crate) fn take_gets(&self) -> Vec<Get> {
        std::mem::take(&mut self.gets.lock())
    }

    /// How many reads are under way, and the most that were at any time.
    pub(crate) fn under_way(&self) -> (usize, usize) {
        *self.under_way.lock()
    }
}

#[async_trait]
impl Store for Bucket {
    fn place(&self) -> String {
        "memory://bucket".into()
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        self.traffic.gets.fetch_add(1, Ordering::Relaxed);
        self.gets.lock().push(Get { name: name.into(), range: range.clone() });
        let found = self.objects.lock().get(name).cloned();
        {
            let mut under_way = self.under_way.lock();
            under_way.0 += 1;
            under_way.1 = under_way.1.max(under_way.0);
        }
        let gate = self.gate.lock().clone();
        if let Some(gate) = gate {
            gate.permits.acquire().await.unwrap().forget();
        } else {
            tokio::task::yield_now().await;
        }
        self.under_way.lock().0 -= 1;
        let (bytes, generation) = found.ok_or_else(|| StoreError::NotFound(name.into()))?;
        let meta = Meta { generation: Generation(generation), size: bytes.len() as u64, created: None, crc32c: None };
        let bytes = match range {
            Some(range) if range.start >= bytes.len() as u64 => return Err(StoreError::Range(name.into())),
            Some(range) => bytes.slice(range.start as usize..bytes.len().min(range.end as usize)),
            None => bytes,
        };
        Ok(Object { bytes, meta, date: None })
    }

    async fn put(
        &self,
        name: &str,
        body: Bytes,
        _: &BTreeMap<String, String>,
        _: Condition,
    ) -> Result<Meta, StoreError> {
        let size = body.len() as u64;
        Ok(Meta { generation: self.set(name, body), size, created: None, crc32c: None })
    }

    async fn list(&self, prefix: &str, _: Option<&str>) -> Result<Vec<Entry>, StoreError> {
        let objects = self.objects.lock();
        let row = |(name, (bytes, generation)): (&String, &(Bytes, u64))| Entry {
            name: name.clone(),
            meta: Meta { generation: Generation(*generation), size: bytes.len() as u64, created: None, crc32c: None },
            metadata: BTreeMap::new(),
        };
        Ok(objects.iter().filter(|(name, _)| name.starts_with(prefix)).map(row).collect())
    }

    async fn delete(&self, name: &str, _: Generation) -> Result<(), StoreError> {
        self.remove(name);
        Ok(())
    }

    fn traffic(&self) -> &Traffic {
        &self.traffic
    }
}

/// Runs a future of the code under test.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

pub(crate) fn name(level: u8, min: u64, max: u64) -> ObjectName {
    ObjectName { level, min: TxId(min), max: TxId(max) }
}

/// A page whose bytes tell which one it is; random enough not to shrink to nothing.
pub(crate) fn content(pgno: u32, version: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(u64::from(pgno) << 32 | version);
    let mut page = vec![0; PAGE.bytes() as usize];
    let random = 200 + rng.usize(..3000);
    page[..random].fill_with(|| rng.u8(..));
    if pgno == 1 {
        page[..16].copy_from_slice(b"SQLite format 3\0");
    }
    page
}

/// The bytes of an LTX object.
pub(crate) fn ltx(name: ObjectName, page_size: PageSize, commit: u32, pages: &BTreeMap<u32, Vec<u8>>) -> Vec<u8> {
    let header = if name.level == 0 && name.min == name.max {
        Header::level_0(page_size, PageCount(commit), name.min, 1)
    } else {
        Header::compacted(page_size, PageCount(commit), name.min, name.max, 1)
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (pgno, page) in pages {
        encoder.page(Pgno(*pgno), page).unwrap();
    }
    encoder.finish().unwrap().0
}

/// A history: for each transaction (from 1) what it wrote, and the state after it, page 1 first.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) writes: Vec<BTreeMap<u32, Vec<u8>>>,
    pub(crate) states: Vec<Vec<Vec<u8>>>,
}

impl History {
    pub(crate) fn random(rng: &mut Rng, transactions: u64) -> History {
        let mut history = History::default();
        for version in 1..=transactions {
            let old = history.states.last().map_or(0, |state| state.len() as u32);
            let size = if old == 0 || rng.u8(..4) == 0 { 1 + rng.u32(..60) } else { old };
            let changed = |pgno: u32| pgno > old || rng.u8(..10) == 0;
            let mut pages: Vec<u32> = (1..=size).collect();
            let mut changed = changed;
            pages.retain(|&pgno| changed(pgno));
            history.commit(version, size, pages);
        }
        history
    }

    /// Adds a transaction that writes these pages and leaves the database with `size`.
    pub(crate) fn commit(&mut self, version: u64, size: u32, pages: impl IntoIterator<Item = u32>) {
        let writes: BTreeMap<u32, Vec<u8>> = pages.into_iter().map(|pgno| (pgno, content(pgno, version))).collect();
        let mut state = self.states.last().cloned().unwrap_or_default();
        state.resize(size as usize, vec![0; PAGE.bytes() as usize]);
        for (pgno, page) in &writes {
            state[*pgno as usize - 1].clone_from(page);
        }
        self.writes.push(writes);
        self.states.push(state);
    }

    pub(crate) fn head(&self) -> u64 {
        self.states.len() as u64
    }

    pub(crate) fn state(&self, txid: u64) -> &[Vec<u8>] {
        &self.states[txid as usize - 1]
    }

    /// The object that holds the transactions `min..=max`.
    pub(crate) fn object(&self, level: u8, min: u64, max: u64) -> Vec<u8> {
        let state = self.state(max);
        let touched = |pgno: &u32| {
            min == 1 || self.writes[min as usize - 1..max as usize].iter().any(|writes| writes.contains_key(pgno))
        };
        let pages = (1..=state.len() as u32).filter(touched).map(|pgno| (pgno, state[pgno as usize - 1].clone()));
        ltx(name(level, min, max), PAGE, state.len() as u32, &pages.collect())
    }

    /// Puts an object into the bucket.
    pub(crate) fn put(&self, bucket: &Bucket, replica: &Replica, level: u8, min: u64, max: u64) {
        bucket.set(&replica.ltx(&name(level, min, max)), self.object(level, min, max));
    }

    /// Puts a random covering into the bucket: all of level 0 from some transaction on, and compacted objects
    /// of several levels that overlap it and each other.
    pub(crate) fn put_randomly(&self, bucket: &Bucket, replica: &Replica, rng: &mut Rng) {
        let head = self.head();
        for txid in 1..=head {
            self.put(bucket, replica, 0, txid, txid);
        }
        for _ in 0..rng.u64(..head) {
            let min = rng.u64(1..=head);
            self.put(bucket, replica, rng.u8(1..9), min, rng.u64(min..=head));
        }
        for _ in 0..rng.u64(..3) {
            self.put(bucket, replica, 9, 1, rng.u64(1..=head));
        }
        // Some of the deltas are gone where something else reaches over them.
        for txid in 1..=head {
            let listed = run(replica.list()).unwrap();
            let without: Vec<Listed> = listed.into_iter().filter(|o| o.name != name(0, txid, txid)).collect();
            if rng.bool() && plan(&without, None).is_ok_and(|chain| chain.is_some_and(|c| c.txid().0 == head)) {
                bucket.remove(&replica.ltx(&name(0, txid, txid)));
            }
        }
        bucket.set("db/ltx/0/readme.txt", "not an object of ours");
    }
}

/// The indexes of the chain to `target`; `None` where no chain leads there.
pub(crate) fn indexes(replica: &Replica, target: Option<u64>) -> Option<Vec<ObjectIndex>> {
    let listed = run(replica.list()).unwrap();
    let chain = plan(&listed, target.map(TxId)).ok()?.unwrap();
    Some(run(replica.indexes(&chain)).unwrap())
}
