//! The local disk fails at every call in turn, in the middle of a transaction over several indexes: SQLite gets an error that
//! ends the transaction, and never one after which a COMMIT stores half of it.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::c_int;
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::{Connection, ffi};
use sqlite_gcs_tests::faulty_vfs::{self, Call, Kind};
use sqlite_gcs_tests::host::{Host, difference, one, pages};

/// One test at a time: the plan of faults is the process's.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> std::sync::MutexGuard<'static, ()> {
    faulty_vfs::register();
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Every code that a read of the main file or a write of the WAL may answer: the disk's own, and all of ours.
fn codes() -> Vec<c_int> {
    let mut codes =
        vec![ffi::SQLITE_FULL, ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_SHORT_READ];
    codes.extend((0..7).map(|kind| ffi::SQLITE_IOERR | (103 + kind) << 8));
    codes.retain(|code| *code != ffi::SQLITE_IOERR_SHORT_READ);
    codes
}

/// Several indexes, and more pages than the page cache has room for.
fn database(host: &Host, name: &str) -> Connection {
    let db = host.open(name, "&flush_interval=1h");
    db.execute_batch(
        "PRAGMA cache_size=6; PRAGMA wal_autocheckpoint=0;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE, c, d);
         CREATE INDEX t_c ON t(c); CREATE INDEX t_cd ON t(d, c);
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
         INSERT INTO t SELECT i, i * 7919 % 1000003, i * 31 % 97, hex(zeroblob(150)) || i FROM n;
         PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
    db
}

const STATEMENTS: [&str; 4] = [
    "UPDATE t SET b = -b, c = c + 1 WHERE a % 40 = 3",
    "INSERT OR REPLACE INTO t SELECT a + 1000, b + 2000003, c, d FROM t WHERE a < 1000 AND a % 60 = 1",
    "DELETE FROM t WHERE a % 70 = 5",
    "UPDATE t SET d = d || 'x' WHERE c BETWEEN 10 AND 14",
];

/// What the table says of which transactions it went through.
fn fingerprint(db: &Connection) -> String {
    one(db, "SELECT count(*) || ' ' || total(b) || ' ' || total(c) || ' ' || total(length(d)) FROM t")
}

/// An application that ignores the error of a statement and commits all the same.
fn transaction(db: &Connection) -> bool {
    let result = db.execute_batch("BEGIN").and_then(|()| STATEMENTS.iter().try_for_each(|sql| db.execute_batch(sql)));
    let commit = db.execute_batch("COMMIT");
    if !db.is_autocommit() {
        let _ = db.execute_batch("ROLLBACK");
    }
    result.and(commit).is_ok()
}

/// Fails the first, second, third ... such call of a transaction, until there are no more; the number of failures.
fn fail_at_every_one(db: &Connection, kind: Kind, call: Call, code: c_int) -> u32 {
    for n in 1.. {
        db.execute_batch("PRAGMA shrink_memory").unwrap();
        let before = fingerprint(db);
        faulty_vfs::fail(kind, call, n, code, false);
        let done = transaction(db);
        let met = faulty_vfs::heal();
        let check: String = one(db, "PRAGMA integrity_check");
        assert_eq!(check, "ok", "{kind:?} {call:?} {n} with code {code}");
        let after = fingerprint(db);
        // FULL may end a statement alone, and leave those before it to the COMMIT; all else ends the transaction.
        let whole = code == ffi::SQLITE_FULL || done == (before != after);
        assert!(whole, "{kind:?} {call:?} {n} with code {code}: half a transaction");
        if !met {
            assert!(done);
            return n - 1;
        }
        // A failed write into the WAL cannot be overlooked; a failed read may have been tried again.
        assert!(!done || call == Call::Read, "{kind:?} {call:?} {n} with code {code}: acknowledged");
        assert!(n < 2000);
    }
    unreachable!("the loop ends by returning")
}

#[test]
fn a_failed_read_or_wal_write_at_every_point_ends_the_transaction_whole() {
    let _turn = turn();
    let host = Host::new();
    for (kind, call, at_least) in
        [(Kind::Wal, Call::Write, 30), (Kind::Main, Call::Read, 10), (Kind::Wal, Call::Read, 3)]
    {
        let mut db = database(&host, "app.db");
        let mut fewest = u32::MAX;
        for code in codes() {
            let failures = fail_at_every_one(&db, kind, call, code);
            fewest = fewest.min(failures);
            if kind == Kind::Main {
                db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            }
        }
        assert!(fewest >= at_least, "{kind:?} {call:?}: only {fewest} calls of a transaction were made to fail");
        one::<String>(&db, "PRAGMA gcs_flush");
        assert_eq!(difference(&pages(&mut db), &host.restored("app.db")), None);
        drop(db);
        host.lose("app.db");
        let db = host.open("app.db", "");
        assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
        db.execute_batch("DROP TABLE t").unwrap();
    }
}

/// What the test above guards against, and the proof that it would see it.
#[test]
fn busy_from_a_read_or_a_wal_write_would_store_half_a_transaction() {
    let _turn = turn();
    let host = Host::new();
    let db = database(&host, "app.db");
    let seen =
        (1..200).flat_map(|n| [(n, Kind::Main, Call::Read), (n, Kind::Wal, Call::Write)]).any(|(n, kind, call)| {
            db.execute_batch("PRAGMA shrink_memory").unwrap();
            let before = fingerprint(&db);
            faulty_vfs::fail(kind, call, n, ffi::SQLITE_BUSY, false);
            let done = transaction(&db);
            faulty_vfs::heal();
            if kind == Kind::Main {
                db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            }
            one::<String>(&db, "PRAGMA integrity_check") != "ok" || (!done && fingerprint(&db) != before)
        });
    assert!(seen, "the code does not matter any more, or the test looks away");
}

#[test]
fn a_checkpoint_that_fails_at_every_write_and_sync_loses_nothing() {
    let _turn = turn();
    let host = Host::new();
    let mut db = database(&host, "app.db");
    for (kind, call) in
        [(Kind::Main, Call::Write), (Kind::Wal, Call::Sync), (Kind::Wal, Call::Truncate), (Kind::Main, Call::Truncate)]
    {
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE] {
            for n in 1..200 {
                assert!(transaction(&db));
                let before = fingerprint(&db);
                faulty_vfs::fail(kind, call, n, code, false);
                let checkpoint = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
                let met = faulty_vfs::heal();
                db.execute_batch("PRAGMA shrink_memory").unwrap();
                assert_eq!(fingerprint(&db), before, "{kind:?} {call:?} {n}");
                assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok", "{kind:?} {call:?} {n}");
                if !met {
                    checkpoint.unwrap();
                    break;
                }
            }
        }
    }
    one::<String>(&db, "PRAGMA gcs_flush");
    assert_eq!(difference(&pages(&mut db), &host.restored("app.db")), None);
}

/// While a checkpoint syncs, commits go on, so it ends with frames behind it, and the next one begins late.
#[test]
fn the_wal_stays_bounded_while_checkpoints_wait_for_a_slow_disk() {
    const WRITERS: i64 = 4;
    const ROWS: i64 = 120;
    let _turn = turn();
    let host = Host::new();
    let wal = host.path("app.db-gcswal");
    let db = host.open("app.db", "&durability=commit");
    db.execute_batch("CREATE TABLE t(writer, text)").unwrap();
    faulty_vfs::slow_down(Kind::Wal, Call::Sync, Duration::from_millis(700));
    let most = std::thread::scope(|scope| {
        let writers = (0..WRITERS).map(|writer| {
            let host = &host;
            scope.spawn(move || {
                let db = host.open("app.db", "&durability=commit");
                db.execute_batch("PRAGMA synchronous=NORMAL").unwrap();
                for _ in 0..ROWS {
                    db.execute("INSERT INTO t VALUES (?, zeroblob(60000))", [writer]).unwrap();
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        let mut most = 0;
        while writers.iter().any(|writer| !writer.is_finished()) {
            most = most.max(std::fs::metadata(&wal).map_or(0, |meta| meta.len()));
            std::thread::sleep(Duration::from_millis(5));
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        most
    });
    faulty_vfs::slow_down(Kind::Wal, Call::Sync, Duration::ZERO);
    assert!(most <= 12 << 20, "the WAL grew to {most} bytes");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), WRITERS * ROWS);
}
