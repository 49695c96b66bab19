//! A bucket that was compacted and thinned, judged by Litestream: whatever `at=` can open, `litestream restore` restores.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sqlite_gcs::delta::{Encoder, Header};
use sqlite_gcs::history::points::{At, Point, points};
use sqlite_gcs::history::{Historian, Progress, listing};
use sqlite_gcs::protocol::ObjectId;
use sqlite_gcs::replica::names::{ObjectName, Replica};
use sqlite_gcs::store::memory::MemoryBucket;
use sqlite_gcs::store::{BucketTime, Condition, Store};
use sqlite_gcs::{PageCount, PageSize, Pgno, TxId};
use sqlite_gcs_tests::litestream::{self, Point as As};
use sqlite_gcs_tests::shell::Scratch;

const PAGE: usize = 512;

/// A database's log in a bucket in memory, with what each of its states is.
struct Log {
    runtime: tokio::runtime::Runtime,
    bucket: MemoryBucket,
    replica: Replica,
    scratch: Scratch,
    rng: fastrand::Rng,
    now: i64,
    states: Vec<Vec<Vec<u8>>>,
    durable: ObjectId,
}

impl Log {
    fn new(seed: u64, pages: usize) -> Log {
        let bucket = MemoryBucket::new();
        let replica = Replica::new(bucket.store(), "app.db");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut state = vec![vec![0; PAGE]; pages];
        state.iter_mut().for_each(|page| rng.fill(page));
        let durable = ObjectId { txid: TxId(0), size: 0, crc32c: 0 };
        let (scratch, now) = (Scratch::new(), 1_800_000_000_000);
        let mut log = Log { runtime, bucket, replica, scratch, rng, now, states: Vec::new(), durable };
        log.append(state, &(1..=pages as u32).collect::<Vec<_>>());
        log
    }

    fn append(&mut self, state: Vec<Vec<u8>>, changed: &[u32]) {
        let txid = TxId(self.states.len() as u64 + 1);
        let size = PageSize::new(PAGE as u32).unwrap();
        let header = Header::level_0(size, PageCount(state.len() as u32), txid, self.now);
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for &pgno in changed {
            encoder.page(Pgno(pgno), &state[pgno as usize - 1]).unwrap();
        }
        let bytes = encoder.finish().unwrap().0;
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(self.now as u64);
        let metadata = BTreeMap::from([("litestream-timestamp".to_owned(), rfc3339(time))]);
        self.bucket.set_clock(BucketTime(self.now));
        let name = self.replica.ltx(&ObjectName::delta(txid));
        let put = self.replica.store().put(&name, bytes.into(), &metadata, Condition::Absent);
        let meta = self.runtime.block_on(put).unwrap();
        self.durable = ObjectId { txid, size: meta.size, crc32c: meta.crc32c.unwrap() };
        self.states.push(state);
    }

    fn commit(&mut self) {
        let mut state = self.states.last().unwrap().clone();
        let mut changed: Vec<u32> = Vec::new();
        match self.rng.u8(0..12) {
            0 => {}
            1 => state.truncate(self.rng.usize(state.len() / 2 + 1..=state.len())),
            2 => {
                changed.push(state.len() as u32 + 1);
                state.push(vec![1; PAGE]);
            }
            _ => changed.push(self.rng.u32(1..=state.len() as u32)),
        }
        changed.iter().for_each(|pgno| self.rng.fill(&mut state[*pgno as usize - 1]));
        self.append(state, &changed);
    }

    /// Everything that the historian wants to do now.
    fn settle(&self, historian: &Historian) {
        self.bucket.set_clock(BucketTime(self.now));
        while historian.due(self.durable.txid) {
            if historian.run_step(&|| true, self.durable, BucketTime(self.now)).unwrap() == Progress::Nothing {
                break;
            }
        }
    }

    /// Copies the bucket to a folder, as Litestream keeps a replica there: a file's time is the object's.
    fn copy(&self) -> String {
        let folder = self.scratch.join(format!("copy-{}", self.rng.clone().u64(..)));
        let _ = std::fs::remove_dir_all(&folder);
        let store: Arc<dyn Store> = self.bucket.store();
        let rows = listing::list(&self.replica).unwrap();
        for entry in self.runtime.block_on(store.list("app.db/ltx/", None)).unwrap() {
            let path = folder.join(&entry.name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, self.runtime.block_on(store.get(&entry.name, None)).unwrap().bytes).unwrap();
            let name = self.replica.parse(&entry.name).unwrap();
            let ms = rows.iter().find(|row| row.name == name).unwrap().timestamp_ms;
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(ms as u64);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
        format!("file://{}/app.db", folder.display())
    }

    fn judge(&mut self) {
        let replica = self.copy();
        let restored = |point: As<'_>| litestream::restore_at(&replica, None, point).unwrap();
        assert!(restored(As::Newest) == self.states.last().unwrap().concat(), "the newest state");
        let there = points(&listing::list(&self.replica).unwrap());
        for _ in 0..3 {
            let Point { txid, timestamp_ms, .. } = there[self.rng.usize(0..there.len())];
            let expected = self.states[txid.0 as usize - 1].concat();
            assert!(restored(As::TxId(&txid.to_string())) == expected, "as of {txid}");
            // Litestream takes what is before the moment, not at it; and no moment after the newest state.
            let moment = timestamp_ms + 1;
            if txid == self.durable.txid {
                continue;
            }
            assert_eq!(At::Time(moment).resolve(&there, self.now).unwrap(), txid);
            let moment = rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(moment as u64));
            assert!(restored(As::Timestamp(&moment)) == expected, "as of {moment}, which is {txid}");
        }
    }
}

fn rfc3339(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    time.format(&time::format_description::well_known::Rfc3339).unwrap()
}

#[test]
fn litestream_restores_every_point_that_is_kept() {
    for (seed, pages, pause) in [(1, 20, 2_000), (2, 400, 20_000), (3, 4000, 1_000)] {
        let mut log = Log::new(seed, pages);
        let scratch = log.scratch.path().to_owned();
        let historian = Historian::new(log.replica.clone(), scratch, Duration::from_secs(86_400));
        for round in 0..500 {
            log.now += log.rng.i64(1..2 * pause);
            if log.rng.u16(0..300) == 0 {
                log.now += 3_600_000;
            }
            log.commit();
            log.settle(&historian);
            if round % 166 == 165 {
                log.judge();
            }
        }
    }
}
