//! Several processes on one database: every commit is captured whoever made it, and somebody uploads it.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use sqlite_gcs_tests::host::{Host, difference, one, pages, status, wait_until};
use sqlite_gcs_tests::peer::Peer;

/// One value of the newest state in the bucket, as `litestream` restores it.
fn in_bucket<T: rusqlite::types::FromSql>(host: &Host, name: &str, sql: &str) -> T {
    let path = host.path("restored.db");
    std::fs::write(&path, host.restored(name)).unwrap();
    let db = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    one(&db, sql)
}

/// After everybody has closed: the bucket equals what a connection on this disk reads.
fn assert_bucket_is_local(host: &Host, name: &str) {
    let mut db = host.open(name, "");
    one::<String>(&db, "PRAGMA gcs_flush");
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    assert_eq!(difference(&pages(&mut db), &host.restored(name)), None);
}

#[test]
fn four_processes_lose_no_increment_here_or_in_the_bucket() {
    let host = Host::new();
    host.open("app.db", "").execute_batch("CREATE TABLE n(n); INSERT INTO n VALUES (0)").unwrap();
    let mut peers: Vec<_> =
        (0..4).map(|_| Peer::start(&host, "db = database('app.db', '&flush_interval=20ms')")).collect();
    for peer in &mut peers {
        peer.begin("for _ in range(3000): db.execute('UPDATE n SET n = n + 1')");
    }
    for peer in &mut peers {
        peer.answer().expect("3,000 increments");
    }
    for mut peer in peers {
        peer.run("db.close()");
        peer.end();
    }
    assert_eq!(in_bucket::<i64>(&host, "app.db", "SELECT n FROM n"), 12_000, "in the bucket, before anybody reopens");
    assert_eq!(one::<i64>(&host.open("app.db", ""), "SELECT n FROM n"), 12_000);
    assert_bucket_is_local(&host, "app.db");
}

#[test]
fn a_killed_process_leaves_its_unsent_commits_to_another_one() {
    let host = Host::new();
    host.open("app.db", "").execute_batch("CREATE TABLE n(n); INSERT INTO n VALUES (0)").unwrap();
    let mut idle = Peer::start(&host, "db = database('app.db', '&flush_interval=20ms')");
    assert_eq!(idle.run("one(db, 'SELECT n FROM n')"), "0");
    // The busy one itself would wait for an hour.
    let mut busy = Peer::start(&host, "db = database('app.db', '&flush_interval=1h')");
    busy.begin("for i in range(1000000):\n    db.execute('UPDATE n SET n = n + 1')\n    told(i + 1)");
    for _ in 0..300 {
        busy.wait_for_told();
    }
    let told: i64 = busy.kill().last().expect("acknowledged commits").parse().unwrap();
    // Nobody writes now; the idle process looks for itself.
    wait_until("the idle process uploads what the killed one committed", || {
        let status: serde_json::Value = serde_json::from_str(&idle.run("json.dumps(status(db))")).unwrap();
        status["committed_txid"] == status["durable_txid"]
    });
    let durable: i64 = in_bucket(&host, "app.db", "SELECT n FROM n");
    assert!(durable == told || durable == told + 1, "{told} were acknowledged, the bucket has {durable}");
    assert_eq!(idle.run("one(db, 'SELECT n FROM n')"), durable.to_string());
    idle.run("db.execute('UPDATE n SET n = n + 1'); one(db, 'PRAGMA gcs_flush')");
    assert_eq!(in_bucket::<i64>(&host, "app.db", "SELECT n FROM n"), durable + 1);
    idle.run("db.close()");
    idle.end();
    assert_bucket_is_local(&host, "app.db");
}

#[test]
fn processes_that_are_killed_in_the_middle_of_others_cost_no_increment_of_anybody() {
    let host = Host::new();
    host.open("app.db", "").execute_batch("CREATE TABLE n(who PRIMARY KEY, n)").unwrap();
    let step = |who: usize, times: usize| {
        format!(
            "db.execute('INSERT OR IGNORE INTO n VALUES ({who}, 0)')\n\
             for i in range({times}):\n    db.execute('UPDATE n SET n = n + 1 WHERE who = {who}')\n    told(i + 1)"
        )
    };
    let mut steady: Vec<_> = (0..2)
        .map(|_| {
            Peer::start(
                &host,
                "db = database('app.db', '&flush_interval=20ms')\ndb.execute('PRAGMA wal_autocheckpoint=20')",
            )
        })
        .collect();
    for (who, peer) in steady.iter_mut().enumerate() {
        peer.begin(&step(who, 1500));
    }
    let mut told = Vec::new();
    for who in 2..8 {
        let mut victim = Peer::start(&host, "db = database('app.db', '&flush_interval=10ms')");
        victim.begin(&step(who, 1_000_000));
        for _ in 0..30 * who {
            victim.wait_for_told();
        }
        let n: i64 = victim.kill().last().expect("acknowledged commits").parse().unwrap();
        told.push((who, n));
    }
    for peer in &mut steady {
        peer.answer().expect("1,500 increments");
    }
    for mut peer in steady {
        peer.run("db.close()");
        peer.end();
    }
    for who in 0..2 {
        assert_eq!(in_bucket::<i64>(&host, "app.db", &format!("SELECT n FROM n WHERE who = {who}")), 1500);
    }
    for (who, told) in told {
        let n: i64 = in_bucket(&host, "app.db", &format!("SELECT n FROM n WHERE who = {who}"));
        assert!(n == told || n == told + 1, "process {who}: {told} were acknowledged, the bucket has {n}");
    }
    assert_bucket_is_local(&host, "app.db");
}

/// The story: a process held no SQLite lock, since its one connection had closed and its other had not read yet; another
/// process's last close deleted the WAL under its uploader, which then looked at a wal-index that nobody else used.
#[test]
fn an_uploader_in_another_process_follows_across_last_close_and_reopen() {
    let host = Host::new();
    host.open("app.db", "").execute_batch("CREATE TABLE n(n); INSERT INTO n VALUES (0)").unwrap();
    let mut uploader = Peer::start(&host, "first = database('app.db', '&flush_interval=10ms')");
    assert_eq!(uploader.run("one(first, 'SELECT n FROM n')"), "0");
    let mut writer = Peer::start(&host, "db = database('app.db', '&flush_interval=1h')");
    writer.run("db.execute('UPDATE n SET n = n + 1')");
    uploader.run("second = database('app.db', '&flush_interval=10ms')\nfirst.close()");
    for round in 2..=6 {
        writer.run("db.close()");
        writer.run("db = database('app.db', '&flush_interval=1h')\ndb.execute('UPDATE n SET n = n + 1')");
        wait_until("the other process uploads it", || in_bucket::<i64>(&host, "app.db", "SELECT n FROM n") == round);
    }
    writer.kill();
    assert_eq!(uploader.run("one(second, 'SELECT n FROM n')"), "6");
    uploader.run("second.execute('UPDATE n SET n = n + 1'); second.close()");
    uploader.end();
    assert_eq!(in_bucket::<i64>(&host, "app.db", "SELECT n FROM n"), 7);
    assert_bucket_is_local(&host, "app.db");
}

#[test]
fn a_process_that_only_opened_the_database_uploads_for_a_killed_one_too() {
    let host = Host::new();
    host.open("app.db", "").execute_batch("CREATE TABLE n(n); INSERT INTO n VALUES (0)").unwrap();
    // No statement, so SQLite has not looked at the database yet.
    let mut idle = Peer::start(&host, "db = database('app.db')\ntold('open')");
    assert_eq!(idle.wait_for_told(), "open");
    let mut writer = Peer::start(&host, "db = database('app.db', '&flush_interval=1h')");
    writer.run("db.execute('UPDATE n SET n = n + 1')");
    writer.kill();
    wait_until("the idle process uploads it", || in_bucket::<i64>(&host, "app.db", "SELECT n FROM n") == 1);
    idle.run("db.close()");
    idle.end();
    assert_bucket_is_local(&host, "app.db");
}

#[test]
fn a_process_that_exits_without_closing_uploads_what_it_committed() {
    let host = Host::new();
    let mut peer = Peer::start(&host, "import ctypes\ndb = database('app.db', '&flush_interval=1h')");
    peer.run("db.execute('CREATE TABLE t(a)'); db.execute('PRAGMA gcs_flush'); db.execute('INSERT INTO t VALUES (1)')");
    // libc's exit: Python does not get to close its connections.
    peer.begin("ctypes.CDLL(None).exit(0)");
    wait_until("it ends", || {
        std::fs::read_to_string(format!("/proc/{}/stat", peer.pid())).is_ok_and(|s| s.contains(") Z "))
    });
    assert_eq!(in_bucket::<i64>(&host, "app.db", "SELECT count(*) FROM t"), 1);
    assert_eq!(one::<i64>(&host.open("app.db", ""), "SELECT count(*) FROM t"), 1);
}

#[test]
fn a_process_that_ends_without_any_handler_leaves_its_commits_to_the_next_open() {
    let host = Host::new();
    let mut peer = Peer::start(&host, "db = database('app.db', '&flush_interval=1h')");
    peer.run("db.execute('CREATE TABLE t(a)'); db.execute('PRAGMA gcs_flush'); db.execute('INSERT INTO t VALUES (1)')");
    peer.begin("os._exit(0)");
    wait_until("it ends", || {
        std::fs::read_to_string(format!("/proc/{}/stat", peer.pid())).is_ok_and(|s| s.contains(") Z "))
    });
    assert_eq!(in_bucket::<i64>(&host, "app.db", "SELECT count(*) FROM t"), 0, "the upload was an hour away");
    // Opening and closing is enough, without a single statement.
    drop(host.open("app.db", ""));
    assert_eq!(in_bucket::<i64>(&host, "app.db", "SELECT count(*) FROM t"), 1);
    assert_bucket_is_local(&host, "app.db");
}

#[test]
fn several_databases_in_one_process_go_their_own_ways() {
    let host = Host::new();
    let names: Vec<_> = (0..12).map(|n| format!("app{n}.db")).collect();
    let connections: Vec<_> = names.iter().map(|name| host.open(name, "&flush_interval=10ms")).collect();
    for db in &connections {
        db.execute_batch("CREATE TABLE t(a)").unwrap();
    }
    for round in 0..20 {
        for (n, db) in connections.iter().enumerate() {
            db.execute("INSERT INTO t VALUES (?)", [round * 100 + n as i64]).unwrap();
        }
    }
    for db in &connections[..6] {
        one::<String>(db, "PRAGMA gcs_flush");
        let status = status(db);
        assert_eq!(status["committed_txid"], status["durable_txid"]);
    }
    drop(connections);
    for (n, name) in names.iter().enumerate() {
        let sum: i64 = in_bucket(&host, name, "SELECT sum(a) FROM t");
        assert_eq!(sum, (0..20).map(|round| round * 100 + n as i64).sum::<i64>(), "{name}");
    }
    assert_bucket_is_local(&host, "app3.db");
}

/// Their read marks are kept for a moment; not so long that a checkpoint that waits, in any process, would wait in vain.
#[test]
fn processes_that_read_all_the_time_let_the_wal_be_truncated() {
    let host = Host::new();
    host.open("app.db", "").execute_batch("CREATE TABLE n(n); INSERT INTO n VALUES (0)").unwrap();
    let reader = r#"
import threading
db = database('app.db')
going = True
def read():
    own = database('app.db')
    while going: one(own, 'SELECT n FROM n')
    own.close()
thread = threading.Thread(target=read)
thread.start()"#;
    let mut peers = [Peer::start(&host, reader), Peer::start(&host, reader)];
    for _ in 0..10 {
        for peer in &mut peers {
            peer.run("db.execute('UPDATE n SET n = n + 1')");
            assert_eq!(peer.run("one(db, 'PRAGMA wal_checkpoint(TRUNCATE)')"), "0");
        }
    }
    for peer in &mut peers {
        peer.run("going = False\nthread.join(); db.close()");
    }
    assert_eq!(one::<i64>(&host.open("app.db", ""), "SELECT n FROM n"), 20);
}
