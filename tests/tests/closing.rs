//! The end of a connection, of a process, and of the bucket: what was committed is in the bucket, or it is said where it is.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::host::{Host, difference, one, pages, status};
use sqlite_gcs_tests::litestream::{self, Point};
use sqlite_gcs_tests::peer::Peer;
use sqlite_gcs_tests::shell::{Program, Scratch};

const NAME: &str = "app.db";
/// Only the end uploads more than the first commit.
const LONG: &str = "&flush_interval=1h";

#[track_caller]
fn run(db: &Connection, sql: &str) {
    db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// How many rows the bucket's `t` has, as litestream restores it.
fn rows(host: &Host) -> i64 {
    let file = host.path("judge");
    std::fs::write(&file, host.restored(NAME)).expect("written");
    one(&Connection::open(&file).expect("restored"), "SELECT count(*) FROM t")
}

#[test]
fn closing_the_last_connection_uploads_what_is_committed_and_not_what_is_not() {
    let host = Host::new();
    let (first, second) = (host.open(NAME, LONG), host.open(NAME, LONG));
    run(&first, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
    run(&second, "INSERT INTO t VALUES (2)");
    drop(first);
    run(&second, "INSERT INTO t VALUES (3)");
    let mut live = host.open(NAME, LONG);
    let committed = pages(&mut live);
    drop(live);
    run(&second, "BEGIN; INSERT INTO t VALUES (4)");
    drop(second);
    assert_eq!(difference(&host.restored(NAME), &committed), None);
    assert_eq!(rows(&host), 3);
}

#[test]
fn a_close_leaves_no_wal_no_outbox_and_no_lease() {
    let host = Host::new();
    let db = host.open(NAME, LONG);
    run(&db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
    drop(db);
    assert!(!host.path("app.db-gcswal").exists() && !host.path("app.db-shm").exists());
    let outbox = host.path("app.db-gcs/outbox");
    let deltas = |folder: &Path| {
        let names = std::fs::read_dir(folder).expect("the outbox").flatten();
        names.filter(|entry| entry.path().extension().is_some_and(|e| e == "ltx")).count()
    };
    assert_eq!(deltas(&outbox), 0);
    // Another machine writes at once: it waits for nobody's lease.
    host.lose(NAME);
    let db = host.open(NAME, LONG);
    db.busy_timeout(Duration::ZERO).expect("no waiting");
    run(&db, "INSERT INTO t VALUES (2)");
}

/// How a process ends that has committed three rows, the last one just now.
#[track_caller]
fn python_ends(end: &str) -> i64 {
    let host = Host::new();
    let script = format!(
        "db = connect({:?})\n\
         db.execute('CREATE TABLE t(a)')\n\
         for n in range(3):\n    with db: db.execute('INSERT INTO t VALUES (?)', (n,))\n\
         {end}\n",
        host.uri(NAME, LONG)
    );
    let done = Program::python(&script).run();
    assert!(done.in_time && !done.stderr.contains("panicked"), "{done}");
    rows(&host)
}

#[test]
fn a_process_that_ends_without_closing_uploads_what_it_committed() {
    assert_eq!(python_ends(""), 3, "the script's end");
    assert_eq!(python_ends("sys.exit(3)"), 3, "sys.exit");
    assert_eq!(python_ends("raise RuntimeError('an error that nobody catches')"), 3, "an exception");
    assert_eq!(python_ends("db.execute('INSERT INTO t VALUES (9)')"), 3, "an open transaction");
    // Nobody closes these connections, not even the interpreter at its end.
    let leaked = "import ctypes\nctypes.pythonapi.Py_IncRef(ctypes.py_object(db))";
    assert_eq!(python_ends(leaked), 3, "a connection that is never freed");
    assert_eq!(python_ends("import ctypes\nctypes.CDLL(None).exit(0)"), 3, "the C library's exit");
}

#[test]
fn the_shell_quits_exits_and_ends_its_input_with_everything_uploaded() {
    for end in [".quit\n", ".exit\n", ""] {
        let host = Host::new();
        let script = format!("CREATE TABLE t(a);\nINSERT INTO t VALUES (1);\nINSERT INTO t VALUES (2);\n{end}");
        Program::sqlite3_on(&host.uri(NAME, LONG), &script).run().expect_success();
        assert_eq!(rows(&host), 2, "{end:?}");
    }
}

#[test]
fn a_shell_that_opens_another_database_uploads_the_one_it_leaves() {
    let host = Host::new();
    let script =
        "CREATE TABLE t(a);\nINSERT INTO t VALUES (1);\nINSERT INTO t VALUES (2);\n.open :memory:\nSELECT 1;\n";
    Program::sqlite3_on(&host.uri(NAME, LONG), script).run().expect_success();
    assert_eq!(rows(&host), 2);
}

#[test]
fn a_killed_process_leaves_its_commits_to_the_next_open() {
    let host = Host::new();
    let script = format!(
        "import os, signal\n\
         db = connect({:?}, isolation_level=None)\n\
         db.execute('CREATE TABLE t(a)')\n\
         db.execute('PRAGMA gcs_flush').fetchall()\n\
         for n in range(3): db.execute('INSERT INTO t VALUES (?)', (n,))\n\
         os.kill(os.getpid(), signal.SIGKILL)\n",
        host.uri(NAME, LONG)
    );
    let killed = Program::python(&script).run();
    assert!(!killed.succeeded(), "{killed}");
    assert_eq!(rows(&host), 0);
    let db = host.open(NAME, LONG);
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), 3);
    drop(db);
    assert_eq!(rows(&host), 3);
}

#[test]
fn with_the_bucket_gone_a_close_says_how_much_is_kept_and_where_and_the_next_open_sends_it() {
    let mut emulator = Emulator::start_on_disk();
    let scratch = Scratch::new();
    let uri = format!("file:{}?vfs=gcs&bucket={}{LONG}", scratch.join(NAME).display(), emulator.url());
    let endpoint = emulator.host();
    let python = |script: &str| {
        Program::python(&format!("db = connect({uri:?}, isolation_level=None)\n{script}"))
            .env("STORAGE_EMULATOR_HOST", &endpoint)
            .limit(Duration::from_secs(120))
    };
    // It stops in the middle of the process's life, when the process says so.
    let writing = python(
        "db.execute('CREATE TABLE t(a)')\n\
         db.execute('PRAGMA gcs_flush').fetchall()\n\
         open('flushed', 'w').close()\n\
         import os, time\n\
         begun = time.monotonic()\n\
         while not os.path.exists('stopped') and time.monotonic() < begun + 30: time.sleep(0.01)\n\
         for n in range(3): db.execute('INSERT INTO t VALUES (?)', (n,))\n\
         db.close()\n",
    )
    .directory(scratch.path())
    .start();
    sqlite_gcs_tests::host::wait_until("the first flush", || scratch.join("flushed").exists());
    emulator.stop();
    std::fs::write(scratch.join("stopped"), "").expect("written");
    let done = writing.finish();
    done.expect_success();
    let outbox = scratch.join("app.db-gcs/outbox");
    for said in ["bytes of commits not uploaded", &outbox.display().to_string()] {
        assert!(done.stderr.contains(said), "{said}: {done}");
    }
    assert!(!done.stderr.contains("closed with 0 bytes"), "{done}");
    assert_eq!(
        done.stderr.matches("not uploaded").count(),
        1,
        "a close that failed is not tried again at exit: {done}"
    );
    emulator.restart();
    let again = python("print(db.execute('SELECT count(*) FROM t').fetchone()[0])\ndb.close()\n").run();
    assert_eq!(again.expect_success(), "3");
    let restored = scratch.join("restored.db");
    let replica = format!("{}/{NAME}", emulator.url());
    litestream::restore_into(&replica, Some(&emulator.host()), Point::Newest, &restored).expect("a valid replica");
    assert_eq!(one::<i64>(&Connection::open(&restored).expect("restored"), "SELECT count(*) FROM t"), 3);
}

#[test]
fn a_status_before_and_after_a_flush_tells_what_is_not_uploaded() {
    let host = Host::new();
    let db = host.open(NAME, LONG);
    run(&db, "CREATE TABLE t(a)");
    one::<String>(&db, "PRAGMA gcs_flush");
    run(&db, "INSERT INTO t VALUES (1)");
    let before = status(&db);
    assert!(before["committed_txid"].as_str() > before["durable_txid"].as_str(), "{before}");
    let durable = one::<String>(&db, "SELECT gcs_flush()");
    let after = status(&db);
    assert_eq!(after["committed_txid"], durable.as_str());
    assert_eq!(after["durable_txid"], durable.as_str());
    assert_eq!(after["outbox_deltas"], 0);
    assert_eq!(after["outbox_bytes"], 0);
    assert_eq!(after["last_error"], serde_json::Value::Null);
}

/// A connection that closes asks for EXCLUSIVE, and for that moment the engine has no view of the wal-index.
#[test]
fn a_commit_waits_for_the_bucket_also_while_other_connections_close() {
    let host = Host::new();
    run(&host.open("app.db", ""), "CREATE TABLE t(a)");
    let mut peer = Peer::start(&host, "import threading\ndb = database('app.db', '&durability=commit')");
    peer.run(
        r#"
over = threading.Event()
def come_and_go():
    while not over.is_set():
        other = database('app.db')
        one(other, 'SELECT count(*) FROM t')
        other.close()
others = [threading.Thread(target=come_and_go) for _ in range(2)]
for other in others: other.start()
def durable(): return int(status(db)['durable_txid'], 16)
def commits(n):
    missing = []
    for a in range(n):
        before = durable()
        db.execute('INSERT INTO t VALUES (?)', (a,))
        if durable() == before: missing.append(a)
    return missing"#,
    );
    assert_eq!(peer.run("commits(100)"), "[]", "acknowledged and not in the bucket");
    peer.run("over.set()\nfor other in others: other.join()\ndb.close()");
    peer.end();
    assert_eq!(one::<i64>(&host.open("app.db", ""), "SELECT count(*) FROM t"), 100);
}
