//! Moving in, from a Litestream replica or from a plain file, and moving out again.
//!
//! A refusal leaves both sides byte for byte as they were, and says what to do.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::host::{Host, difference, one, pages, wait_until};
use sqlite_gcs_tests::litestream::{self, Sidecar};
use sqlite_gcs_tests::proxy::{Class, Fault};
use sqlite_gcs_tests::shell::{Finished, Program};

const NAME: &str = "app.db";

#[track_caller]
fn run(db: &Connection, sql: &str) {
    db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A plain database with some rows in `t(a, b)`.
fn plain(path: &Path, settings: &str) -> Connection {
    let db = Connection::open(path).expect("a plain database");
    run(&db, settings);
    run(&db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b)");
    run(
        &db,
        "INSERT INTO t WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 2000) \
         SELECT i, printf('%0100d', i) FROM s",
    );
    db
}

/// What lies below a folder: the content by path.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(path.display().to_string(), std::fs::read(&path).expect("a file"));
            }
        }
    }
    all
}

/// Opens in the sqlite3 shell, where what is logged can be seen.
fn shell(host: &Host, script: &str) -> Finished {
    Program::sqlite3_on(&host.uri(NAME, ""), script).run()
}

#[test]
fn a_replica_that_litestream_wrote_opens_in_place_and_is_written_on() {
    let host = Host::new();
    let (file, replica) = (host.path("old.db"), host.replica(NAME));
    let old = plain(&file, "PRAGMA journal_mode=WAL");
    let sidecar = Sidecar::start(&file, &replica, None, Some(Duration::from_millis(300)));
    let level = |level: u8| host.objects(NAME).join(format!("ltx/{level}"));
    let mut n = 2000;
    wait_until("litestream wrote three levels", || {
        n += 1;
        run(&old, &format!("INSERT INTO t VALUES ({n}, 'one by one')"));
        std::thread::sleep(Duration::from_millis(20));
        level(2).is_dir()
    });
    sidecar.stop().expect("a clean end");
    litestream::replicate(&file, &replica, None, true).expect("a snapshot");
    run(&old, "UPDATE t SET b = 'last' WHERE a = 1; DELETE FROM t WHERE a = 2");
    litestream::replicate(&file, &replica, None, false).expect("the last delta");
    for written in [0, 1, 2, 9] {
        assert!(level(written).is_dir(), "level {written}");
    }
    let rows = |db: &Connection| one::<String>(db, "SELECT count(*) || ' ' || sum(a) || ' ' || min(b) FROM t");
    let expected = rows(&old);

    let mut db = host.open(NAME, "");
    assert_eq!(rows(&db), expected);
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    assert_eq!(difference(&pages(&mut db), &host.restored(NAME)), None, "as litestream has it");
    run(
        &db,
        "INSERT INTO t VALUES (-1, 'ours'); CREATE TABLE u AS SELECT * FROM t WHERE a < 50; DELETE FROM t WHERE a % 2 = 0",
    );
    let live = pages(&mut db);
    drop(db);
    assert_eq!(difference(&host.restored(NAME), &live), None, "written on");
    host.lose(NAME);
    assert_eq!(difference(&pages(&mut host.open(NAME, "")), &live), None, "cold");
}

#[test]
fn a_plain_file_is_adopted_whatever_its_journal_mode_and_page_size() {
    for (settings, mode) in [
        ("PRAGMA journal_mode=DELETE", "rollback journal"),
        ("PRAGMA journal_mode=WAL", "WAL"),
        ("PRAGMA page_size=512", "small pages"),
        ("PRAGMA page_size=65536; PRAGMA auto_vacuum=FULL; PRAGMA journal_mode=WAL", "large pages"),
    ] {
        let host = Host::new();
        let file = host.path(NAME);
        drop(plain(&file, settings));
        let before = std::fs::read(&file).expect("the plain file");
        let mut db = host.open(NAME, "");
        let adopted = pages(&mut db);
        let mut expected = before.clone();
        expected[18..20].copy_from_slice(&[2, 2]);
        assert_eq!(difference(&adopted, &expected), None, "{mode}");
        run(&db, "INSERT INTO t VALUES (0, 'after'); PRAGMA integrity_check");
        let live = pages(&mut db);
        drop(db);
        assert_eq!(difference(&host.restored(NAME), &live), None, "{mode}");
        assert!(Connection::open(&file).and_then(|db| db.execute_batch("SELECT * FROM t")).is_err(), "a cache now");
        host.lose(NAME);
        let mut cold = host.open(NAME, "");
        assert_eq!(difference(&pages(&mut cold), &live), None, "{mode}");
        assert_eq!(one::<i64>(&cold, "SELECT count(*) FROM t"), 2001);
    }
}

#[test]
fn an_adopted_file_is_uploaded_even_if_nothing_is_written() {
    let host = Host::new();
    drop(plain(&host.path(NAME), ""));
    let mut db = host.open(NAME, "");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), 2000);
    let live = pages(&mut db);
    drop(db);
    assert_eq!(difference(&host.restored(NAME), &live), None);
}

#[test]
fn an_adopted_file_is_read_and_written_while_its_upload_takes_longer_than_the_lease() {
    const TTL: Duration = Duration::from_secs(5);
    let bed = Bed::new();
    let host = bed.host("a", "lease_ttl=5s");
    std::fs::create_dir_all(host.file().parent().expect("a folder")).expect("a folder");
    plain(&host.file(), "PRAGMA page_size=4096").close().expect("a close");
    bed.proxy.rule(|request| {
        let is_adopted = request.class == Class::Put && request.path.contains("0000000000000002-0000000000000002");
        is_adopted.then_some(Fault::Stall)
    });
    let mut session = host.open();
    assert!(bed.proxy.wait_for_stalled(1));
    let sending = session.status()["sending"].clone();
    // The first object of a log is a seal.
    assert_eq!(sending["txid"], "0000000000000002");
    assert!(sending["bytes"].as_u64().is_some_and(|bytes| bytes > 10_000), "{sending}");
    let started = Instant::now();
    let mut rows = 2000;
    while started.elapsed() < TTL + Duration::from_secs(2) {
        session.sql("INSERT INTO t(b) VALUES ('more')").expect("a write beside the upload");
        rows += 1;
        assert_eq!(session.number("SELECT count(*) FROM t"), rows);
        // Any pause does that is short beside the lease.
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = session.status();
    assert_eq!(status["durable_txid"], "0000000000000001", "{status}");
    assert!(status["sending"]["ms"].as_u64().is_some_and(|ms| ms > 5000), "{status}");
    bed.proxy.heal();
    bed.proxy.release();
    session.sql("PRAGMA gcs_flush").expect("everything is sent");
    assert_eq!(session.status()["sending"], serde_json::Value::Null);
    assert_eq!(session.quit(), Some(0));
    host.lose_disk();
    assert_eq!(host.open().number("SELECT count(*) FROM t"), rows);
}

#[test]
fn a_plain_file_beside_a_replica_that_holds_something_is_refused() {
    let host = Host::new();
    run(&host.open(NAME, ""), "CREATE TABLE t(a)");
    host.lose(NAME);
    drop(plain(&host.path(NAME), ""));
    let (file, bucket) = (std::fs::read(host.path(NAME)).expect("the file"), tree(&host.objects(NAME)));
    let refused = shell(&host, "SELECT * FROM t;\n");
    assert!(refused.stderr.contains("move one of them away"), "{refused}");
    assert_eq!(std::fs::read(host.path(NAME)).expect("the file"), file);
    assert_eq!(tree(&host.objects(NAME)), bucket);
    // What it says to do helps.
    std::fs::rename(host.path(NAME), host.path("aside.db")).expect("moved away");
    assert_eq!(one::<i64>(&host.open(NAME, ""), "SELECT count(*) FROM t"), 0);
}

#[test]
fn a_plain_file_with_a_wal_that_holds_something_is_refused() {
    let host = Host::new();
    let file = host.path(NAME);
    let elsewhere = host.path("elsewhere");
    let db = plain(&elsewhere, "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
    std::fs::copy(&elsewhere, &file).expect("copied");
    std::fs::copy(host.path("elsewhere-wal"), host.path("app.db-wal")).expect("copied");
    drop(db);
    let before = std::fs::read(&file).expect("the file");
    let refused = shell(&host, "SELECT * FROM t;\n");
    assert!(refused.stderr.contains("wal_checkpoint(TRUNCATE)"), "{refused}");
    assert_eq!(std::fs::read(&file).expect("the file"), before);
    assert!(host.path("app.db-wal").exists() && tree(&host.path("bucket")).is_empty(), "nothing is changed");
    run(&Connection::open(&file).expect("plain"), "PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(one::<i64>(&host.open(NAME, ""), "SELECT count(*) FROM t"), 2000);
}

#[test]
fn a_plain_file_with_a_hot_journal_is_refused() {
    let host = Host::new();
    let elsewhere = host.path("elsewhere");
    let db = plain(&elsewhere, "PRAGMA cache_size=2");
    // A transaction in the middle, as a crash would leave it.
    run(&db, "PRAGMA synchronous=OFF; BEGIN; UPDATE t SET b = 'half done'");
    std::fs::copy(&elsewhere, host.path(NAME)).expect("copied");
    std::fs::copy(host.path("elsewhere-journal"), host.path("app.db-journal")).expect("copied");
    drop(db);
    let before = std::fs::read(host.path(NAME)).expect("the file");
    let refused = shell(&host, "SELECT * FROM t;\n");
    assert!(refused.stderr.contains("hot journal") && refused.stderr.contains("plain sqlite3"), "{refused}");
    assert_eq!(std::fs::read(host.path(NAME)).expect("the file"), before);
    assert!(host.path("app.db-journal").exists() && tree(&host.path("bucket")).is_empty(), "nothing is changed");
    // What it says to do helps, and the half transaction is nowhere.
    assert_eq!(one::<i64>(&Connection::open(host.path(NAME)).expect("plain"), "SELECT count(*) FROM t"), 2000);
    let db = host.open(NAME, "");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t WHERE b = 'half done'"), 0);
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), 2000);
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let host = Host::new();
    std::fs::write(host.path(NAME), "Dear diary, this is a text of more than sixteen bytes.").expect("written");
    let before = tree(&host.path(""));
    let refused = shell(&host, "CREATE TABLE t(a);\n");
    assert!(refused.stderr.contains("move it away"), "{refused}");
    assert_eq!(tree(&host.path("")), before);
}

#[test]
fn vacuum_into_makes_a_plain_database() {
    let host = Host::new();
    let db = host.open(NAME, "");
    run(&db, "CREATE TABLE t(a, b); INSERT INTO t VALUES (1, zeroblob(50000)); INSERT INTO t VALUES (2, 'two')");
    db.execute("VACUUM INTO ?", [format!("file:{}?vfs=unix", host.path("plain.db").display())]).expect("vacuumed");
    let out = Connection::open(host.path("plain.db")).expect("a plain database");
    assert_eq!(one::<i64>(&out, "SELECT sum(length(b)) FROM t"), 50003);
    assert_eq!(one::<String>(&out, "PRAGMA integrity_check"), "ok");
    // It is free of everything of ours: any journal mode will do.
    assert_eq!(one::<String>(&out, "PRAGMA journal_mode=DELETE"), "delete");
    assert!(!host.path("plain.db-gcs").exists());
    // And the same in Debian's shell.
    drop(db);
    let script = format!("VACUUM INTO 'file:{}?vfs=unix';\n", host.path("shell.db").display());
    shell(&host, &script).expect_success();
    let read = Program::new("/usr/bin/sqlite3").args([host.path("shell.db")]).args(["SELECT count(*) FROM t"]).run();
    assert_eq!(read.expect_success(), "2");
}

#[test]
fn vacuum_into_another_managed_database_is_refused_and_leaves_none() {
    let host = Host::new();
    let db = host.open(NAME, "");
    run(&db, "CREATE TABLE t(a, b); INSERT INTO t VALUES (1, zeroblob(50000))");
    // A new managed database has a first page from the beginning.
    let error = db.execute("VACUUM INTO ?", [host.uri("copy.db", "")]).expect_err("not empty").to_string();
    assert!(error.contains("already exists"), "{error}");
    assert!(!host.objects("copy.db").exists(), "nothing is in the bucket");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), 1);
}

#[test]
fn a_plain_file_moves_in_by_sql_too() {
    let host = Host::new();
    drop(plain(&host.path("old.db"), ""));
    let db = host.open(NAME, "");
    db.execute("ATTACH ? AS old", [format!("file:{}?vfs=unix", host.path("old.db").display())]).expect("attached");
    run(&db, "CREATE TABLE t AS SELECT * FROM old.t; DETACH old");
    drop(db);
    host.lose(NAME);
    assert_eq!(one::<i64>(&host.open(NAME, ""), "SELECT count(*) FROM t"), 2000);
}
