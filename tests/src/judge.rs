//! What a bucket of the emulator's holds, found out without the code that wrote it where that can be: the names of the log,
//! `litestream restore`, and SQLite's own `integrity_check`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::Connection;
use serde_json::Value;
use sqlite_gcs::delta::{self, Decoder};
use sqlite_gcs::store::{self, Config, SharedStore, StoreError};

use crate::emulator::Emulator;
use crate::litestream::{self, Point};
use crate::machine::{Host, Written};
use crate::shell::Scratch;

/// How often each id is in table `t`.
pub type Rows = BTreeMap<i64, u32>;

/// Looks at the replica of `app.db` in an emulator's bucket.
pub struct Judge {
    store: SharedStore,
    replica: String,
    bucket: String,
    host: String,
    runtime: tokio::runtime::Runtime,
}

/// One object of the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Logged {
    /// First TXID.
    pub min: u64,
    /// Last TXID.
    pub max: u64,
    /// Level.
    pub level: u8,
    /// Pages in it; none: a seal.
    pub pages: usize,
}

impl Judge {
    /// For the bucket of an emulator, which is asked directly.
    pub fn of(emulator: &Emulator) -> Judge {
        let bucket = emulator.url();
        let config = Config { endpoint: Some(emulator.endpoint()), ..Config::default() };
        Judge {
            store: store::open(&bucket.parse().expect("a URL"), config),
            replica: format!("{bucket}/app.db"),
            bucket,
            host: emulator.host(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
        }
    }

    /// Whether the delta of a TXID is there.
    pub fn has_delta(&self, txid: u64) -> bool {
        let name = format!("app.db/ltx/0/{txid:016x}-{txid:016x}.ltx");
        self.runtime.block_on(self.store.list(&name, None)).expect("a listing").len() == 1
    }

    /// The log, every object checked to be whole and to hold what its name says, and without a gap from 1 on.
    #[track_caller]
    pub fn log(&self) -> Vec<Logged> {
        let entries = self.runtime.block_on(self.store.list("app.db/ltx/", None)).expect("a listing");
        let mut log: Vec<Logged> = entries
            .iter()
            .map(|entry| {
                let object = self.runtime.block_on(self.store.get(&entry.name, None)).expect("an object");
                let header = delta::verify(&object.bytes).unwrap_or_else(|error| panic!("{}: {error}", entry.name));
                let name = format!("app.db/ltx/{{}}/{}-{}.ltx", header.min, header.max);
                let level = entry.name.split('/').nth(2).unwrap_or_default();
                assert_eq!(entry.name, name.replace("{}", level), "a name says what is in the object");
                let mut decoder = Decoder::new(&object.bytes[..]).expect("a header");
                let (mut page, mut pages) = (Vec::new(), 0);
                while decoder.next_page(&mut page).expect("a page").is_some() {
                    pages += 1;
                }
                Logged { min: header.min.0, max: header.max.0, level: level.parse().expect("a level"), pages }
            })
            .collect();
        log.sort();
        let mut covered = 0;
        for object in &log {
            assert!(object.min <= covered + 1, "{} is missing: {log:?}", covered + 1);
            covered = covered.max(object.max);
        }
        log
    }

    /// The newest TXID.
    #[track_caller]
    pub fn head(&self) -> u64 {
        self.log().iter().map(|object| object.max).max().unwrap_or(0)
    }

    /// The lease object.
    #[track_caller]
    pub fn lease(&self) -> Option<Value> {
        match self.runtime.block_on(self.store.get("app.db/gcs/lease", None)) {
            Ok(object) => Some(serde_json::from_slice(&object.bytes).expect("JSON")),
            Err(StoreError::NotFound(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The rows of `t`, as Litestream restores them from a sound log, and as a new host reads them.
    #[track_caller]
    pub fn rows(&self) -> Rows {
        self.log();
        let scratch = Scratch::new();
        let file = scratch.join("restored.db");
        litestream::restore_into(&self.replica, Some(&self.host), Point::Newest, &file).expect("a valid replica");
        let restored = rows_of(&file);
        let host = Host::new(scratch.join("new"), &self.bucket, Some(self.host.clone()), "");
        let mut session = host.open();
        let check = session.sql("PRAGMA integrity_check").expect("a check");
        assert_eq!(check, [["ok"]], "of a cold open");
        let read = session.sql("SELECT id, count(*) FROM t GROUP BY id").expect("rows");
        let number = |value: &Value| value.as_i64().expect("a number");
        let read: Rows = read.iter().map(|row| (number(&row[0]), number(&row[1]) as u32)).collect();
        assert_eq!(read, restored, "a cold open and litestream");
        assert_eq!(session.quit(), Some(0));
        restored
    }

    /// The rows as they were on the disk whose lost commits lie in a conflict folder: its base and what it kept.
    #[track_caller]
    pub fn rows_kept(&self, folder: &Path) -> Rows {
        let note = std::fs::read(folder.join("note.json")).expect("a note");
        let note: Value = serde_json::from_slice(&note).expect("JSON");
        let base = note["base_txid"].as_str().expect("a TXID").to_owned();
        let scratch = Scratch::new();
        let path = scratch.join("kept.db");
        if base != "0000000000000000" {
            litestream::restore_into(&self.replica, Some(&self.host), Point::TxId(&base), &path).expect("the base");
        }
        let file = File::options().create(true).truncate(false).write(true).open(&path).expect("a copy");
        for delta in note["deltas"].as_array().expect("a list") {
            let name = format!("{}.ltx", delta["txid"].as_str().expect("a TXID"));
            let bytes = std::fs::read(folder.join(name)).expect("a delta that the note names");
            let mut decoder = Decoder::new(&bytes[..]).expect("a header");
            let header = *decoder.header();
            let mut page = Vec::new();
            while let Some(pgno) = decoder.next_page(&mut page).expect("a page") {
                file.write_all_at(&page, pgno.offset(header.page_size)).expect("written");
            }
            let size = u64::from(header.commit.0) * u64::from(header.page_size.bytes());
            file.set_len(size).expect("its size");
        }
        drop(file);
        rows_of(&path)
    }
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").field("replica", &self.replica).finish()
    }
}

fn rows_of(file: &Path) -> Rows {
    let db = Connection::open(file).expect("a database");
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    assert_eq!(check, "ok", "{}", file.display());
    let mut statement = db.prepare("SELECT id, count(*) FROM t GROUP BY id").expect("table t");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
    rows.map(|row| row.expect("a row")).collect()
}

/// Every acknowledged row is there exactly once, and no other more than once.
#[track_caller]
pub fn assert_kept<'a>(rows: &Rows, written: impl IntoIterator<Item = &'a Written>) {
    for written in written {
        for id in &written.acknowledged {
            assert_eq!(rows.get(id), Some(&1), "row {id} was acknowledged");
        }
    }
    let twice: Vec<_> = rows.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "written twice: {twice:?}");
}
