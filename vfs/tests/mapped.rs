//! `PRAGMA mmap_size`: with `cache_size=0` SQLite reads through a mapping of the cache file, and its answers are the same.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use rusqlite::Connection;
use tempfile::TempDir;

fn number(db: &Connection, sql: &str) -> i64 {
    db.query_row(sql, [], |row| row.get(0)).expect(sql)
}

fn open(dir: &TempDir, machine: &str, more: &str) -> Connection {
    sqlite_gcs::register().expect("registered");
    let folder = dir.path().join(machine);
    std::fs::create_dir_all(&folder).expect("a folder");
    let bucket = dir.path().join("bucket");
    std::fs::create_dir_all(&bucket).expect("a bucket");
    let uri = format!("file:{}/app.db?vfs=gcs&bucket=file://{}{more}", folder.display(), bucket.display());
    let db = Connection::open(uri).expect("opened");
    db.busy_timeout(std::time::Duration::from_secs(20)).expect("a timeout");
    // Nothing is kept from one query to the next that would hide what the file says.
    db.execute_batch("PRAGMA cache_size=10").expect("settings");
    db
}

/// Whether this process has the cache file of a machine mapped.
fn is_mapped(dir: &TempDir, machine: &str) -> bool {
    let name = format!("{}/app.db", dir.path().join(machine).display());
    std::fs::read_to_string("/proc/self/maps").expect("the mappings").lines().any(|line| line.ends_with(&name))
}

fn answers(db: &Connection) -> (i64, i64, String) {
    let whole = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    (number(db, "SELECT sum(n) + sum(length(body)) FROM t"), number(db, "SELECT count(*) FROM t WHERE n > 500"), whole)
}

#[test]
fn answers_through_a_mapping_are_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let writer = open(&dir, "one", "&cache_size=0");
    writer
        .execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, body BLOB); CREATE INDEX of_n ON t(n);
             INSERT INTO t WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 5000)
             SELECT x, x * 7919 % 1003, randomblob(400) FROM i; PRAGMA wal_checkpoint",
        )
        .expect("rows");
    let reader = open(&dir, "one", "&cache_size=0");
    assert_eq!(number(&reader, "PRAGMA mmap_size"), 0, "off where nobody asks for it");
    assert!(!is_mapped(&dir, "one"));
    let size = 256 << 20;
    assert_eq!(number(&reader, &format!("PRAGMA mmap_size={size}")), size);
    assert_eq!(answers(&reader), answers(&writer));
    assert!(is_mapped(&dir, "one"));
    // While the other one writes, checkpoints, makes it longer and shorter.
    let mut random = fastrand::Rng::with_seed(11);
    for round in 0..30 {
        let (from, n) = (random.i64(1..4900), random.i64(0..1000));
        let change = match round % 3 {
            0 => format!("UPDATE t SET n = {n}, body = randomblob(500) WHERE id BETWEEN {from} AND {from} + 90"),
            1 => format!("INSERT INTO t(n, body) SELECT {n}, randomblob(900) FROM t LIMIT 300"),
            _ => "DELETE FROM t WHERE id > 5000; PRAGMA incremental_vacuum".to_owned(),
        };
        writer.execute_batch(&change).expect("a change");
        if round % 4 == 0 {
            writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("a checkpoint");
        }
        if round % 10 == 5 {
            writer.execute_batch("VACUUM; PRAGMA wal_checkpoint").expect("smaller");
        }
        assert_eq!(answers(&reader), answers(&writer), "round {round}");
    }
    writer.query_row("PRAGMA gcs_flush", [], |row| row.get::<_, String>(0)).expect("flushed");

    // Cold: what is not there yet is read, what is there is mapped.
    let cold = open(&dir, "two", "&cache_size=0");
    assert_eq!(number(&cold, &format!("PRAGMA mmap_size={size}")), size);
    assert_eq!(answers(&cold), answers(&writer));
    assert_eq!(answers(&cold), answers(&writer));
    assert!(is_mapped(&dir, "two"));

    // With a bound, nothing is mapped.
    let bounded = open(&dir, "three", "&cache_size=4MB");
    assert_eq!(number(&bounded, &format!("PRAGMA mmap_size={size}")), 0);
    assert_eq!(answers(&bounded), answers(&writer));
    assert!(!is_mapped(&dir, "three"));
}
