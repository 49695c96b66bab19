//! A plain sqlite3 or Python opens, writes and closes the file at any moment: it is told that this is no database, and harms
//! nothing. Page 1 in the WAL is the case that a masked magic alone does not cover.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use sqlite_gcs_tests::host::{Host, difference, one, pages};
use sqlite_gcs_tests::peer::Peer;
use sqlite_gcs_tests::shell::{PYTHON, Program, SQLITE3};

/// Everything that a curious person might do to it. Each has to be refused, and none may change or delete a file.
fn meddle(file: &Path) {
    let listing = || {
        let mut names: Vec<_> = std::fs::read_dir(file.parent().unwrap())
            .unwrap()
            .flatten()
            .map(|entry| (entry.file_name(), entry.metadata().map_or(0, |meta| meta.len())))
            .filter(|(name, _)| name.to_string_lossy().starts_with("app.db"))
            .collect();
        names.sort();
        names
    };
    let before = (listing(), std::fs::read(file).unwrap_or_default());
    for sql in [
        "SELECT count(*) FROM sqlite_schema;",
        "CREATE TABLE harm(a);",
        "PRAGMA journal_mode=DELETE;",
        "PRAGMA wal_checkpoint(TRUNCATE);",
        "VACUUM;",
        "PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE;",
    ] {
        let done = Program::new(SQLITE3).args(["-batch"]).args([file]).input(sql).run();
        assert!(done.stderr.contains("file is not a database"), "{sql}: {done}");
    }
    let script = "import sqlite3, sys\n\
                  for sql in 'SELECT * FROM sqlite_schema', 'CREATE TABLE harm(a)', 'PRAGMA journal_mode=wal':\n    \
                  db = sqlite3.connect(sys.argv[1])\n    \
                  try:\n        db.execute(sql); db.commit()\n    \
                  except sqlite3.DatabaseError as error: print(error)\n    \
                  db.close()\n";
    let done = Program::new(PYTHON).args(["-c", script]).args([file]).run();
    assert_eq!(done.expect_success().matches("file is not a database").count(), 3, "{done}");
    // Nobody else works on it just now, so not a byte may differ.
    assert!(before == (listing(), std::fs::read(file).unwrap_or_default()), "{:?}, then {:?}", before.0, listing());
}

#[test]
fn plain_clients_harm_nothing_while_a_database_is_open_idle_or_in_a_transaction() {
    let host = Host::new();
    let file = host.path("app.db");
    let mut peer = Peer::start(&host, "db = database('app.db', '&flush_interval=1h')");
    peer.run("db.execute('CREATE TABLE t(a)')");
    meddle(&file);
    peer.run("db.execute('BEGIN IMMEDIATE'); db.execute('CREATE TABLE u(a)'); db.execute('INSERT INTO t VALUES (1)')");
    meddle(&file);
    peer.run("db.execute('COMMIT')");
    meddle(&file);
    peer.run("db.execute('PRAGMA wal_checkpoint(TRUNCATE)')");
    meddle(&file);
    peer.run("db.execute('CREATE TABLE v(a)'); db.execute('INSERT INTO t VALUES (2)')");
    meddle(&file);
    assert_eq!(peer.run("one(db, 'SELECT sum(a) FROM t')"), "3");
    peer.run("db.close()");
    peer.end();
    meddle(&file);
    let mut db = host.open("app.db", "");
    assert_eq!(one::<i64>(&db, "SELECT sum(a) + (SELECT count(*) FROM sqlite_schema) FROM t"), 3 + 3);
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    assert_eq!(difference(&pages(&mut db), &host.restored("app.db")), None);
}

#[test]
fn plain_clients_harm_nothing_after_a_kill_with_page_one_in_the_wal() {
    let host = Host::new();
    let file = host.path("app.db");
    for round in 1..=4 {
        let mut peer = Peer::start(&host, "db = database('app.db', '&flush_interval=1h')");
        if round == 1 {
            peer.run("db.execute('CREATE TABLE t(a)')");
        }
        if round % 2 == 0 {
            peer.run("db.execute('PRAGMA wal_checkpoint(TRUNCATE)')");
        }
        // A change of the schema puts page 1 into the WAL.
        peer.run(&format!("db.execute('CREATE TABLE x{round}(a)'); db.execute('INSERT INTO t VALUES ({round})')"));
        if round == 4 {
            peer.run("db.execute('BEGIN'); db.execute('DELETE FROM t')");
        }
        peer.kill();
        meddle(&file);
    }
    let mut db = host.open("app.db", "");
    assert_eq!(one::<i64>(&db, "SELECT sum(a) FROM t"), 10);
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM sqlite_schema"), 5);
    one::<String>(&db, "PRAGMA gcs_flush");
    assert_eq!(difference(&pages(&mut db), &host.restored("app.db")), None);
}
