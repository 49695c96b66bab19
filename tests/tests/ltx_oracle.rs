//! Deltas of ours, judged by Litestream: what `litestream restore` makes of them is the database they came from.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::PathBuf;

use rusqlite::Connection;
use sqlite_gcs::delta::{Decoder, Encoder, Header, merge};
use sqlite_gcs::{PageCount, PageSize, Pgno, TxId};
use sqlite_gcs_tests::litestream;

/// A replica directory, and the database as the last delta left it.
struct Replica {
    dir: tempfile::TempDir,
    page_size: PageSize,
    database: Vec<u8>,
}

impl Replica {
    fn new(page_size: u32) -> Replica {
        let dir = tempfile::tempdir().unwrap();
        Replica { dir, page_size: PageSize::new(page_size).unwrap(), database: Vec::new() }
    }

    fn file(&self, level: u8, min: u64, max: u64) -> PathBuf {
        let folder = self.dir.path().join(format!("replica/ltx/{level}"));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join(format!("{}-{}.ltx", TxId(min), TxId(max)))
    }

    /// Runs SQL on a plain database file and writes the pages that it changed as one delta at level 0.
    fn commit(&mut self, txid: u64, sql: &str) {
        let path = self.dir.path().join("plain.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(&format!("PRAGMA page_size = {}; {sql}", self.page_size)).unwrap();
        connection.close().unwrap();
        let now = std::fs::read(&path).unwrap();

        let step = self.page_size.bytes() as usize;
        let commit = PageCount((now.len() / step) as u32);
        let header = Header::level_0(self.page_size, commit, TxId(txid), 1_700_000_000_000 + txid as i64);
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (number, page) in (1..).zip(now.chunks(step)) {
            if self.database.chunks(step).nth(number as usize - 1) != Some(page) {
                encoder.page(Pgno(number), page).unwrap();
            }
        }
        std::fs::write(self.file(0, txid, txid), encoder.finish().unwrap().0).unwrap();
        self.database = now;
    }

    fn restore(&self) -> Result<Vec<u8>, litestream::Failure> {
        litestream::restore(&format!("file://{}", self.dir.path().join("replica").display()), None)
    }
}

const GROW: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
    INSERT INTO t SELECT i, hex(randomblob(100)) FROM n;";

fn chain(page_size: u32) -> Replica {
    let mut replica = Replica::new(page_size);
    replica.commit(1, GROW);
    replica.commit(2, "UPDATE t SET b = 'short' WHERE a % 50 = 0;");
    replica.commit(3, "");
    replica.commit(4, "DELETE FROM t WHERE a > 100; VACUUM;");
    replica.commit(5, "INSERT INTO t SELECT a + 100, b || b FROM t; CREATE INDEX tb ON t(b);");
    replica
}

#[test]
fn litestream_restores_what_we_encoded() {
    for page_size in [512, 4096, 65536] {
        let replica = chain(page_size);
        assert!(replica.restore().unwrap() == replica.database, "page size {page_size}");
    }
}

#[test]
fn litestream_restores_what_we_merged() {
    let replica = chain(1024);
    let inputs: Vec<Vec<u8>> = (1..=5).map(|txid| std::fs::read(replica.file(0, txid, txid)).unwrap()).collect();
    let write = |level, range: std::ops::RangeInclusive<usize>| {
        let inputs = &inputs[*range.start() - 1..*range.end()];
        let decoders: Vec<Decoder<&[u8]>> = inputs.iter().map(|bytes| Decoder::new(&bytes[..]).unwrap()).collect();
        let last = *decoders.last().unwrap().header();
        let (min, max) = (*range.start() as u64, *range.end() as u64);
        let header = Header::compacted(last.page_size, last.commit, TxId(min), TxId(max), last.timestamp_ms);
        std::fs::write(replica.file(level, min, max), merge(decoders, Vec::new(), header).unwrap().0).unwrap();
        (min..=max).for_each(|txid| std::fs::remove_file(replica.file(0, txid, txid)).unwrap());
    };
    write(9, 1..=2);
    write(1, 3..=4);
    assert!(replica.restore().unwrap() == replica.database, "a snapshot, a merge across a shrink, and a delta");
}

#[test]
fn litestream_refuses_a_damaged_delta() {
    let replica = chain(1024);
    let path = replica.file(0, 2, 2);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let said = replica.restore().expect_err("the judge does not look").to_string();
    assert!(said.contains("checksum"), "{said}");
}
