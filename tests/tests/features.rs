//! What SQLite can do, done through this VFS: afterwards a cold open and `litestream restore` show the pages that were there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use sqlite_gcs_tests::host::{Host, difference, one, pages, status};
use sqlite_gcs_tests::litestream::{Point, restore_at};

const NAME: &str = "app.db";

#[track_caller]
fn run(db: &Connection, sql: &str) {
    db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A statement that fills a table `t(a, b)` with rows of so many bytes.
fn fill(from: u32, rows: u32, bytes: u32) -> String {
    format!(
        "INSERT INTO t(a, b) WITH RECURSIVE s(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM s WHERE i < {}) \
         SELECT i, printf('%0*d', {bytes}, i) FROM s",
        from + rows - 1
    )
}

/// Closes the database, loses the machine, and finds the same pages on a new one and by litestream.
#[track_caller]
fn survives(host: &Host, name: &str, mut db: Connection) -> Connection {
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    let live = pages(&mut db);
    drop(db);
    host.lose(name);
    let mut cold = host.open(name, "");
    assert_eq!(difference(&pages(&mut cold), &live), None, "cold open");
    assert_eq!(difference(&host.restored(name), &live), None, "litestream restore");
    cold
}

#[test]
fn what_is_rolled_back_is_nowhere_and_what_is_released_is_kept() {
    let host = Host::new();
    let db = host.open(NAME, "");
    run(&db, "CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 'kept')");
    run(&db, "BEGIN; INSERT INTO t VALUES (2, 'gone'); ROLLBACK");
    run(
        &db,
        "BEGIN; INSERT INTO t VALUES (3, 'kept'); SAVEPOINT s; INSERT INTO t VALUES (4, 'gone'); SAVEPOINT r; \
         INSERT INTO t VALUES (5, 'gone'); RELEASE r; ROLLBACK TO s; INSERT INTO t VALUES (6, 'kept'); RELEASE s; COMMIT",
    );
    let cold = survives(&host, NAME, db);
    assert_eq!(one::<String>(&cold, "SELECT group_concat(a || b) FROM t"), "1kept,3kept,6kept");
}

#[test]
fn spilled_transactions_are_taken_whole_or_not_at_all() {
    let host = Host::new();
    let db = host.open(NAME, "&flush_interval=0");
    run(&db, "PRAGMA cache_size=5; CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b)");
    let wal = host.path("app.db-gcswal");
    let size = || std::fs::metadata(&wal).expect("the WAL").len();
    let before = size();
    run(&db, "BEGIN");
    run(&db, &fill(1, 3000, 700));
    assert!(size() > before + 1_000_000, "it was to spill");
    run(
        &db,
        "UPDATE t SET b = b || 'x' WHERE a % 3 = 0; SAVEPOINT s; DELETE FROM t WHERE a % 2 = 0; ROLLBACK TO s; COMMIT",
    );
    // Its frames stay in the WAL, and the next commit is written over them.
    run(&db, "BEGIN");
    run(&db, &fill(5000, 2000, 700));
    run(&db, "ROLLBACK; UPDATE t SET b = 'small' WHERE a = 77");
    let cold = survives(&host, NAME, db);
    assert_eq!(one::<i64>(&cold, "SELECT count(*) FROM t"), 3000);
    assert_eq!(one::<i64>(&cold, "SELECT a FROM t WHERE b = 'small'"), 77);
}

#[test]
fn a_transaction_much_larger_than_the_wal_limit_survives() {
    let host = Host::new();
    let db = host.open(NAME, "&flush_interval=0");
    run(&db, "PRAGMA wal_autocheckpoint=50; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    for part in 0..4 {
        run(&db, "BEGIN");
        run(&db, &fill(1 + part * 1000, 1000, 3000));
        run(&db, "COMMIT; UPDATE t SET b = 'small' WHERE a % 100 = 0");
    }
    let cold = survives(&host, NAME, db);
    assert_eq!(one::<i64>(&cold, "SELECT count(*) FROM t WHERE b = 'small'"), 40);
}

#[test]
fn every_page_size_holds_blobs_over_many_pages() {
    let host = Host::new();
    for power in 9..=16 {
        let (name, page_size) = (format!("p{power}.db"), 1u32 << power);
        let mut db = host.open(&name, &format!("&page_size={page_size}"));
        assert_eq!(one::<u32>(&db, "PRAGMA page_size"), page_size);
        run(
            &db,
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, hex(randomblob(350000))), (2, 'x')",
        );
        run(&db, "UPDATE t SET b = substr(b, 1, 300000) || hex(randomblob(100000)) WHERE a = 1");
        assert!(pages(&mut db).len() > 500_000);
        let cold = survives(&host, &name, db);
        assert_eq!(one::<u32>(&cold, "PRAGMA page_size"), page_size);
        assert_eq!(one::<i64>(&cold, "SELECT length(b) FROM t WHERE a = 1"), 500_000);
    }
}

#[test]
fn a_transaction_over_two_attached_databases_reaches_both_buckets() {
    let host = Host::new();
    let db = host.open(NAME, "");
    db.execute("ATTACH ? AS other", [host.uri("other.db", "")]).expect("attached");
    run(&db, "CREATE TABLE t(a, b); CREATE TABLE other.u(a)");
    run(&db, "BEGIN; INSERT INTO t VALUES (1, 'kept'); INSERT INTO other.u VALUES (10); COMMIT");
    run(&db, "BEGIN; INSERT INTO t VALUES (2, 'gone'); INSERT INTO other.u VALUES (20); ROLLBACK");
    assert_eq!(one::<String>(&db, "SELECT json_extract(gcs_status('other'), '$.replica')"), host.replica("other.db"));
    run(&db, "DETACH other");
    let cold = survives(&host, NAME, db);
    assert_eq!(one::<String>(&cold, "SELECT group_concat(a || b) FROM t"), "1kept");
    let cold = survives(&host, "other.db", host.open("other.db", ""));
    assert_eq!(one::<i64>(&cold, "SELECT sum(a) FROM u"), 10);
}

#[test]
fn attached_to_a_database_in_memory_and_beside_a_plain_file_it_works_too() {
    let host = Host::new();
    let db = Connection::open_in_memory().expect("a database in memory");
    db.execute("ATTACH ? AS app", [host.uri(NAME, "")]).expect("attached");
    db.execute("ATTACH ? AS plain", [host.path("plain").to_string_lossy()]).expect("attached");
    run(&db, "CREATE TABLE app.t(a, b); CREATE TABLE plain.t(a, b); CREATE TABLE main.t(a, b)");
    run(&db, "BEGIN; INSERT INTO app.t VALUES (1, 2); INSERT INTO plain.t SELECT * FROM app.t; COMMIT");
    assert_eq!(one::<String>(&db, "PRAGMA plain.journal_mode"), "delete");
    run(&db, "DETACH app; DETACH plain");
    let cold = survives(&host, NAME, host.open(NAME, ""));
    assert_eq!(one::<i64>(&cold, "SELECT sum(a + b) FROM t"), 3);
}

#[test]
fn checkpoints_of_every_mode_lose_nothing_with_and_without_a_reader() {
    let host = Host::new();
    let db = host.open(NAME, "&flush_interval=1h");
    run(&db, "PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a, b)");
    let mut rows = 0;
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        for with_reader in [false, true] {
            db.busy_timeout(std::time::Duration::ZERO).expect("no waiting");
            let reader = host.open(NAME, "");
            if with_reader {
                run(&reader, "BEGIN; SELECT count(*) FROM t");
            }
            run(&db, &fill(rows, 50, 300));
            let seen = one::<i64>(&reader, "SELECT count(*) FROM t");
            assert_eq!(seen, i64::from(if with_reader { rows } else { rows + 50 }), "{mode}");
            let busy = one::<i64>(&db, &format!("PRAGMA wal_checkpoint({mode})"));
            let waits_for_readers = mode != "PASSIVE";
            assert_eq!(busy == 1, with_reader && waits_for_readers, "{mode}");
            run(&db, &fill(rows + 50, 50, 300));
            rows += 100;
        }
    }
    let cold = survives(&host, NAME, db);
    assert_eq!(one::<i64>(&cold, "SELECT count(DISTINCT a) FROM t"), i64::from(rows));
}

#[test]
fn an_exclusive_connection_writes_resets_the_wal_and_becomes_a_normal_one_again() {
    let host = Host::new();
    // Set before the first access: then the wal-index is never shared.
    for (name, before) in [("early.db", true), ("late.db", false)] {
        let mut db = host.open(name, "&flush_interval=20ms");
        let exclusive = |db: &Connection| assert_eq!(one::<String>(db, "PRAGMA locking_mode=EXCLUSIVE"), "exclusive");
        if before {
            exclusive(&db);
        }
        run(&db, "PRAGMA wal_autocheckpoint=10; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
        if !before {
            exclusive(&db);
        }
        for commit in 0..60 {
            run(&db, &fill(commit * 10, 10, 500));
        }
        run(
            &db,
            "BEGIN; DELETE FROM t WHERE a < 100; ROLLBACK; PRAGMA wal_checkpoint(TRUNCATE); DELETE FROM t WHERE a % 7 = 0",
        );
        let flushed = one::<String>(&db, "PRAGMA gcs_flush");
        assert_eq!(status(&db)["committed_txid"], flushed.as_str(), "{name}");
        let live = pages(&mut db);
        assert_eq!(difference(&host.restored(name), &live), None, "{name}: in the bucket while it is open");
        // Without a wal-index to share, SQLite keeps a connection exclusive until it is closed.
        let mode = if before { "exclusive" } else { "normal" };
        assert_eq!(one::<String>(&db, "PRAGMA locking_mode=NORMAL"), mode);
        if before {
            db = survives(&host, name, db);
        }
        run(&db, "INSERT INTO t VALUES (100000, 'shared')");
        let other = host.open(name, "");
        run(&other, "INSERT INTO t VALUES (100001, 'other')");
        drop(other);
        let cold = survives(&host, name, db);
        assert_eq!(one::<i64>(&cold, "SELECT count(*) FROM t WHERE a >= 100000"), 2);
    }
}

#[test]
fn without_rowid_full_text_rtree_triggers_and_generated_columns_survive() {
    let host = Host::new();
    let db = host.open(NAME, "");
    run(
        &db,
        "CREATE TABLE w(k TEXT, n INT, v, PRIMARY KEY (k, n)) WITHOUT ROWID;
         CREATE VIRTUAL TABLE f USING fts5(x, tokenize='porter');
         CREATE VIRTUAL TABLE r USING rtree(id, x0, x1);
         CREATE TABLE g(a INT, b INT GENERATED ALWAYS AS (a * 2) STORED, c INT AS (a * 3), CHECK (a >= 0)) STRICT;
         CREATE INDEX g_c ON g(c) WHERE a > 10;
         CREATE TABLE log(n);
         CREATE TRIGGER tr AFTER INSERT ON g BEGIN INSERT INTO log VALUES (new.b); END;
         CREATE VIEW v AS SELECT sum(n) AS s FROM log;
         PRAGMA user_version=42; PRAGMA application_id=77;",
    );
    let numbers = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 500)";
    run(&db, &format!("INSERT INTO w {numbers} SELECT 'k' || (i % 9), i, printf('%0200d', i) FROM s"));
    run(&db, &format!("INSERT INTO f {numbers} SELECT 'running number ' || i FROM s"));
    run(&db, &format!("INSERT INTO r {numbers} SELECT i, i, i + 0.5 FROM s"));
    run(&db, &format!("INSERT INTO g {numbers} SELECT i FROM s"));
    run(&db, "INSERT INTO f(f) VALUES ('optimize'); DELETE FROM w WHERE k = 'k3'; REINDEX; ANALYZE");
    let cold = survives(&host, NAME, db);
    assert_eq!(one::<i64>(&cold, "SELECT count(*) FROM f WHERE f MATCH 'run AND 250'"), 1);
    assert_eq!(one::<i64>(&cold, "SELECT count(*) FROM r WHERE x0 > 100 AND x1 < 110"), 9);
    assert_eq!(one::<i64>(&cold, "SELECT s FROM v"), 250_500);
    assert_eq!(one::<i64>(&cold, "SELECT count(*) FROM w"), 444);
    assert_eq!(one::<i64>(&cold, "SELECT count(*) FROM g WHERE a > 10 AND c = 1500"), 1);
    assert_eq!((one::<i64>(&cold, "PRAGMA user_version"), one::<i64>(&cold, "PRAGMA application_id")), (42, 77));
}

#[test]
fn a_utf16_database_survives() {
    let host = Host::new();
    let db = host.open(NAME, "");
    run(&db, "PRAGMA encoding='UTF-16le'; CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 'zwölf Boxkämpfer')");
    let cold = survives(&host, NAME, db);
    assert_eq!(one::<String>(&cold, "PRAGMA encoding"), "UTF-16le");
    assert_eq!(one::<String>(&cold, "SELECT b FROM t"), "zwölf Boxkämpfer");
}

#[test]
fn vacuum_and_auto_vacuum_shrink_the_database_in_the_bucket() {
    let host = Host::new();
    let db = host.open(NAME, "&flush_interval=0");
    run(&db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    run(&db, &fill(1, 2000, 1000));
    let full = one::<i64>(&db, "PRAGMA page_count");
    run(&db, "DELETE FROM t WHERE a > 100; PRAGMA auto_vacuum=INCREMENTAL; VACUUM");
    assert_eq!(one::<i64>(&db, "PRAGMA auto_vacuum"), 2);
    let small = one::<i64>(&db, "PRAGMA page_count");
    assert!(small < full / 10, "{small} of {full} pages");
    let db = survives(&host, NAME, db);
    assert_eq!(one::<i64>(&db, "PRAGMA page_count"), small);
    run(&db, &fill(5000, 500, 1000));
    run(&db, "DELETE FROM t WHERE a >= 5000");
    let free = one::<i64>(&db, "PRAGMA freelist_count");
    assert!(free > 100, "{free}");
    run(&db, "PRAGMA incremental_vacuum(50)");
    // The pragma is done step by step.
    db.prepare("PRAGMA incremental_vacuum(50)").and_then(|mut s| s.query([])?.next().map(|_| ())).expect("a step");
    assert!(one::<i64>(&db, "PRAGMA freelist_count") < free);
    run(&db, "PRAGMA auto_vacuum=FULL");
    run(&db, &fill(5000, 500, 1000));
    run(&db, "DELETE FROM t WHERE a >= 5000");
    assert_eq!(one::<i64>(&db, "PRAGMA freelist_count"), 0);
    survives(&host, NAME, db);
}

#[test]
fn every_delta_is_a_state_that_the_database_had() {
    let host = Host::new();
    let db = host.open(NAME, "&flush_interval=1h");
    run(&db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    let mut states = BTreeMap::new();
    let mut db = db;
    for sql in [
        fill(1, 800, 900),
        "DELETE FROM t WHERE a > 10".to_owned(),
        "VACUUM".to_owned(),
        fill(2000, 600, 900),
        "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
        "DROP TABLE t".to_owned(),
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, 1)".to_owned(),
        "PRAGMA auto_vacuum=FULL; VACUUM".to_owned(),
        fill(2, 300, 2000),
    ] {
        run(&db, &sql);
        states.insert(one::<String>(&db, "PRAGMA gcs_flush"), pages(&mut db));
    }
    assert_eq!(states.len(), 8, "the checkpoint is none");
    for (txid, state) in &states {
        let then = restore_at(&host.replica(NAME), None, Point::TxId(txid)).expect("a restore");
        assert_eq!(difference(&then, state), None, "TXID {txid}");
    }
}

#[test]
fn readers_keep_their_snapshot_while_others_write_checkpoint_and_upload() {
    let host = Host::new();
    let db = host.open(NAME, "&flush_interval=0");
    run(
        &db,
        "PRAGMA wal_autocheckpoint=20; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (0, 0), (1, 0)",
    );
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let reader = host.open(NAME, "");
                    let mut snapshots = 0;
                    while !done.load(Ordering::SeqCst) {
                        run(&reader, "BEGIN");
                        let first: (i64, i64) = both(&reader);
                        assert_eq!(first.0, first.1, "a torn commit");
                        for _ in 0..5 {
                            assert_eq!(both(&reader), first, "the snapshot moved");
                        }
                        run(&reader, "COMMIT");
                        snapshots += 1;
                    }
                    snapshots
                })
            })
            .collect();
        for n in 1..300 {
            run(&db, &format!("BEGIN; UPDATE t SET b = {n} WHERE a = 0; UPDATE t SET b = {n} WHERE a = 1; COMMIT"));
            run(&db, &format!("INSERT INTO t VALUES ({}, zeroblob(3000))", n + 1));
        }
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            assert!(reader.join().expect("a reader") > 0);
        }
    });
    let cold = survives(&host, NAME, db);
    assert_eq!(both(&cold), (299, 299));
}

fn both(db: &Connection) -> (i64, i64) {
    let sql = "SELECT (SELECT b FROM t WHERE a = 0), (SELECT b FROM t WHERE a = 1)";
    db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect(sql)
}

#[test]
fn with_durability_commit_the_bucket_has_each_commit_when_it_returns() {
    let host = Host::new();
    let mut db = host.open(NAME, "&durability=commit&flush_interval=1h");
    run(&db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    for n in 1..5 {
        run(&db, &fill(n * 10, 10, 100));
        let live = pages(&mut db);
        assert_eq!(difference(&host.restored(NAME), &live), None, "after commit {n}");
    }
    assert_eq!(one::<String>(&db, "PRAGMA gcs_durability=background"), "background");
    let before = host.deltas(NAME).len();
    run(&db, "INSERT INTO t VALUES (1000, 'later')");
    assert_eq!(host.deltas(NAME).len(), before, "nobody waits for it now");
    assert_eq!(one::<String>(&db, "PRAGMA gcs_durability='commit'"), "commit");
    run(&db, "INSERT INTO t VALUES (1001, 'now')");
    assert_eq!(difference(&host.restored(NAME), &pages(&mut db)), None);
}
