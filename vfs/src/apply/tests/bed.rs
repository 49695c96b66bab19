//! One host with a database and everything local that goes with it, and what it writes.

use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::apply::backfill::DatabaseFile;
use crate::apply::index::IndexHeader;
use crate::apply::{Applier, Checkpoint, Outcome, Progress};
use crate::capture::index::{self, Committed};
use crate::capture::{Capture, Freeze};
use crate::database::WalIndex;
use crate::delta::Decoder;
use crate::local::Layout;
use crate::local::locks::{self, HostMutex, LockByte};
use crate::local::shared::Shared;
use crate::local::state::{FORMAT, State};
use crate::outbox::Outbox;
use crate::page::{PageCount, PageSize, Pgno, TxId};
use crate::protocol::{self, Nonce, ObjectId};
use crate::sqlite::index_writer::plain_index;

/// One process of a host, with a connection.
pub(super) struct Bed {
    pub(super) db: Connection,
    pub(super) layout: Layout,
    pub(super) shared: Shared,
    pub(super) capture: HostMutex<Capture>,
    pub(super) index: Arc<dyn WalIndex>,
    page_size: PageSize,
    outbox: Outbox,
    /// The database file, for backfills of our own instead of SQLite's checkpoints.
    file: Option<PlainFile>,
}

/// A database file under a descriptor that is never closed, which would drop SQLite's locks on the file.
pub(super) struct PlainFile {
    file: &'static File,
    page_size: PageSize,
}

impl DatabaseFile for PlainFile {
    fn put(&self, pgno: Pgno, page: &[u8]) -> crate::Result<()> {
        self.file.write_all_at(page, pgno.offset(self.page_size)).map_err(|e| crate::Error::local("a page", &e))
    }

    fn cut(&self, pages: PageCount) -> crate::Result<()> {
        self.file.set_len(pages.bytes(self.page_size)).map_err(|e| crate::Error::local("the size", &e))
    }
}

/// A delta as it would come from the bucket.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    pub(super) id: ObjectId,
    pub(super) path: PathBuf,
}

impl Bed {
    /// The first process of a host: finds out from the disk where the database stands.
    pub(super) fn prepare(path: &Path, page_size: u32) -> Bed {
        Bed::start(path, page_size, true)
    }

    /// A process beside others.
    pub(super) fn join(path: &Path, page_size: u32) -> Bed {
        Bed::start(path, page_size, false)
    }

    fn start(path: &Path, page_size: u32, first: bool) -> Bed {
        let layout = Layout::of_plain(path);
        layout.create().expect("directories");
        let outbox = Outbox::new(layout.outbox());
        let shared = Shared::open(&layout.shared()).expect("shared memory");
        let capture = Capture::open(&layout, &outbox).expect("a capture");
        if first {
            shared.reset();
            let committed = capture.committed_in_file().expect("a WAL or none");
            let state = State::load(&layout.state()).expect("a state or none");
            let applied = capture.applied(committed.as_ref()).expect("records");
            let position = capture.recover(&shared, committed.as_ref()).expect("a position");
            let durable = state.map_or(TxId::NONE, |state| state.durable_txid());
            let durable = durable.max(applied.map_or(TxId::NONE, |applied| applied.txid()));
            shared.set_durable(durable);
            shared.set_frozen(durable);
            shared.set_frozen_pages(position.pages);
        }
        let db = connect(path, page_size);
        let index = plain_index(path);
        assert!(index.bytes().is_some(), "the wal-index is not mapped");
        let capture = HostMutex::new(&locks::open(&layout.lock()).expect("a file"), LockByte::Capture, capture);
        let page_size = PageSize::new(page_size).expect("a legal size");
        Bed { db, layout, shared, capture, index, page_size, outbox, file: None }
    }

    pub(super) fn applier(&self) -> Applier<'_> {
        Applier {
            index: &*self.index,
            layout: &self.layout,
            capture: &self.capture,
            shared: &self.shared,
            page_size: self.page_size,
        }
    }

    pub(super) fn try_apply(&self, delta: &Delta) -> crate::Result<Outcome> {
        let decoder = Decoder::new(BufReader::new(File::open(&delta.path).expect("a delta"))).expect("a header");
        self.applier().apply(decoder, delta.id)
    }

    /// Applies, trying again while somebody is busy for a moment, and runs the checkpoint that is asked for.
    pub(super) fn apply(&self, delta: &Delta) -> Progress {
        let started = Instant::now();
        loop {
            match self.try_apply(delta).expect("an outcome") {
                Outcome::Applied(progress) => {
                    if let Some(checkpoint) = progress.checkpoint {
                        self.checkpoint(checkpoint);
                    }
                    return progress;
                }
                Outcome::Busy => assert!(started.elapsed() < Duration::from_secs(20), "busy for ever"),
                other => panic!("{other:?} for {delta:?}"),
            }
        }
    }

    /// Backfills by itself from now on.
    pub(super) fn backfilling(mut self) -> Bed {
        let file = File::options().write(true).open(self.layout.main()).expect("the database file");
        self.file = Some(PlainFile { file: Box::leak(Box::new(file)), page_size: self.page_size });
        self
    }

    /// A checkpoint that waits for nobody: its own, or SQLite's.
    pub(super) fn backfill(&self) {
        self.checkpoint(Checkpoint::Passive);
    }

    fn checkpoint(&self, kind: Checkpoint) {
        if let Some(file) = &self.file {
            let begun = Instant::now();
            loop {
                let reached = self.applier().backfill(file).expect("a backfill");
                let is_done = reached.is_some_and(|reached| reached.done == reached.frames);
                if is_done || kind == Checkpoint::Passive && reached.is_some() {
                    return;
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "readers do not leave: {reached:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let sql = match kind {
            Checkpoint::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
            Checkpoint::Restart => "PRAGMA wal_checkpoint(RESTART)",
        };
        self.db.query_row(sql, [], |_| Ok(())).expect("a checkpoint");
    }

    pub(super) fn committed(&self) -> Option<Committed> {
        index::parse(&self.index.bytes().expect("a wal-index"))
    }

    /// What the next delta to the bucket would be, as the uploader makes it; `None` if there is nothing.
    pub(super) fn freeze(&self) -> Option<Delta> {
        let mut capture = self.capture.lock_within(Duration::from_secs(9), "the capture lock").expect("locked");
        let committed = self.committed();
        capture.catch_up(&self.shared, committed.as_ref()).expect("a position");
        let how = Freeze {
            txid: self.shared.frozen().next(),
            former_pages: self.shared.frozen_pages(),
            nonce: 1,
            timestamp_ms: 1 + self.shared.last_timestamp_ms(),
            base: &|_, _| Ok(false),
        };
        let envelope = capture.freeze(&self.shared, committed.as_ref(), None, &how).expect("a freeze")?;
        Some(Delta { id: envelope.id, path: self.outbox.path(envelope.id.txid) })
    }

    /// Freezes what is committed, puts it where both hosts can read it, and notes it as uploaded.
    pub(super) fn send(&self, bucket: &Path) -> Delta {
        let frozen = self.freeze().expect("something to send");
        let envelope = *self.outbox.list().expect("a list").last().expect("the frozen delta");
        let path = bucket.join(format!("{}.ltx", frozen.id.txid));
        fs::write(&path, self.outbox.read(&frozen.id).expect("its bytes")).expect("written");
        self.shared.set_durable(frozen.id.txid);
        let state = State {
            format: FORMAT,
            replica: String::new(),
            boot: String::new(),
            file: (0, 0),
            page_size: self.page_size.bytes(),
            protocol: protocol::State { durable: Some(frozen.id), ..protocol::State::new(Nonce(1), "test", 40_000) },
            durable_generation: None,
            position: envelope.position,
            rebuild: false,
            clean: false,
        };
        state.save(&self.layout.state()).expect("saved");
        self.outbox.remove(frozen.id.txid).expect("removed");
        Delta { id: frozen.id, path }
    }

    /// One transaction, as [`step`] makes it, with what the shim does before a writer restarts the WAL.
    pub(super) fn write(&self, k: u64) {
        self.before_reset();
        step(&self.db, k);
    }

    pub(super) fn before_reset(&self) {
        let mut capture = self.capture.lock_within(Duration::from_secs(9), "the capture lock").expect("locked");
        capture.save(&self.shared, self.committed().as_ref()).expect("saved");
    }

    /// Checks what SQLite's expensive assertions do: each committed frame has its entry in the hash tables, and nothing else has.
    pub(super) fn check_index(&self) {
        use std::sync::atomic::Ordering::SeqCst;
        let index = self.index.writer().expect("no error").expect("free");
        let header = IndexHeader::read(index.region(0).expect("mapped")).expect("a header");
        let (mut frames, mut number) = (header.frames() as usize, 0);
        while frames > 0 {
            let region = index.region(number).expect("mapped");
            let first = if number == 0 { 34 } else { 0 };
            let here = frames.min(4096 - first);
            let mut entries: Vec<u16> = region.slots.iter().map(|s| s.load(SeqCst)).filter(|s| *s != 0).collect();
            entries.sort_unstable();
            assert!(entries.iter().copied().eq(1..=here as u16), "region {number}: {} entries", entries.len());
            for entry in 1..=here {
                let pgno = region.words[first + entry - 1].load(SeqCst) as usize;
                let chain = (0..).map(|i| region.slots[(pgno * 383 + i) % 8192].load(SeqCst)).take_while(|s| *s != 0);
                assert!(
                    { chain }.any(|slot| usize::from(slot) == entry),
                    "region {number}: frame {entry} is not found"
                );
            }
            frames -= here;
            number += 1;
        }
    }

    pub(super) fn wal_bytes(&self) -> u64 {
        self.layout.wal().metadata().expect("a WAL").len()
    }
}

pub(super) fn connect(path: &Path, page_size: u32) -> Connection {
    let db = Connection::open(path).expect("opened");
    db.busy_timeout(Duration::from_secs(20)).expect("set");
    let sql = format!("PRAGMA page_size={page_size}; PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0");
    db.execute_batch(&sql).expect("a WAL");
    db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).expect("a first read");
    db
}

/// The first transaction: `rows` rows that the later ones change.
pub(super) fn create(db: &Connection, rows: u32) {
    db.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, b BLOB);
         CREATE TABLE state(k INTEGER, total INTEGER, bytes INTEGER);
         WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < {rows})
         INSERT INTO t SELECT id, 1, randomblob(200) FROM ids;
         INSERT INTO state SELECT 1, sum(n), sum(length(b)) FROM t;
         COMMIT"
    ))
    .expect("created");
}

/// One transaction that moves the database from state `k - 1` to state `k`.
pub(super) fn step(db: &Connection, k: u64) {
    let k = i64::try_from(k).expect("a small number");
    db.execute_batch("BEGIN IMMEDIATE").expect("begun");
    db.execute("UPDATE t SET n = n + ?1, b = randomblob(100 + ?1 % 150) WHERE id % 61 = ?1 % 61", [k])
        .expect("updated");
    db.execute("INSERT INTO t(n, b) VALUES(?1, randomblob(300))", [k]).expect("inserted");
    db.execute("DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY id LIMIT ?1 % 3)", [k]).expect("deleted");
    db.execute("UPDATE state SET k = ?1, (total, bytes) = (SELECT sum(n), sum(length(b)) FROM t)", [k]).expect("noted");
    db.execute_batch("COMMIT").expect("committed");
}

/// Reads everything in one transaction and checks that it is one state; returns which.
pub(super) fn read_state(db: &Connection) -> rusqlite::Result<u64> {
    db.execute_batch("BEGIN")?;
    let result = db.query_row("SELECT k, total, bytes FROM state", [], |row| {
        Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    });
    let sums = db.query_row("SELECT sum(n), sum(length(b)) FROM t", [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    });
    db.execute_batch("COMMIT")?;
    let ((k, total, bytes), sums) = (result?, sums?);
    assert_eq!((total, bytes), sums, "state {k} is mixed with another");
    Ok(k)
}

pub(super) fn check_integrity(db: &Connection) {
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a verdict");
    assert_eq!(verdict, "ok");
}

/// Checks that two databases are the same, page by page. A file is read by another process, because closing it here would
/// drop SQLite's locks.
pub(super) fn check_same(one: &Bed, two: &Bed) {
    for bed in [one, two] {
        check_integrity(&bed.db);
        let busy: i64 = bed.db.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| row.get(0)).expect("a checkpoint");
        assert_eq!(busy, 0, "not everything is backfilled");
    }
    let cmp = std::process::Command::new("cmp").arg(one.layout.main()).arg(two.layout.main()).output().expect("cmp");
    assert!(cmp.status.success(), "{}", String::from_utf8_lossy(&cmp.stdout));
}
