//! When something is uploaded, and how many requests it costs: the first commit after a quiet time at once, then one delta
//! per interval, and nothing when idle.
//!
//! No test measures time. An interval of an hour makes "not yet" certain once something that was begun later is done.

use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;
use sqlite_gcs_tests::host::{Host, difference, one, pages, requests, status, wait_until, wait_until_durable};

const NAME: &str = "app.db";
/// No second upload within the test.
const LONG: &str = "&flush_interval=1h";

#[track_caller]
fn run(db: &Connection, sql: &str) {
    db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Returns when the uploads that were due before this call have been made: another database's first commit is in the bucket.
fn let_uploads_pass(host: &Host, n: u32) {
    let other = host.open(&format!("other-{n}.db"), LONG);
    run(&other, "CREATE TABLE t(a)");
    wait_until_durable(&other);
}

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {status}"))
}

#[test]
fn the_first_commit_is_uploaded_at_once_and_those_of_one_interval_share_a_delta() {
    let host = Host::new();
    let mut db = host.open(NAME, LONG);
    run(&db, "CREATE TABLE t(a)");
    wait_until_durable(&db);
    let first = host.deltas(NAME);
    for n in 0..4 {
        for row in 0..50 {
            run(&db, &format!("INSERT INTO t VALUES ({row})"));
        }
        let_uploads_pass(&host, n);
        assert_eq!(host.deltas(NAME), first, "not before the interval is over");
    }
    let before = status(&db);
    assert_ne!(before["committed_txid"], before["durable_txid"]);
    one::<String>(&db, "PRAGMA gcs_flush");
    let after = status(&db);
    assert_eq!(host.deltas(NAME).len(), first.len() + 1, "200 commits, one delta");
    assert_eq!(number(&after, "/requests/put"), number(&before, "/requests/put") + 1, "one PUT per delta");
    for kind in ["get", "list", "delete"] {
        let path = format!("/requests/{kind}");
        assert_eq!(number(&after, &path), number(&before, &path), "and nothing else");
    }
    assert_eq!(difference(&host.restored(NAME), &pages(&mut db)), None);
}

#[test]
fn a_load_over_several_intervals_makes_at_most_one_delta_in_each() {
    let host = Host::new();
    let interval = Duration::from_millis(200);
    let db = host.open(NAME, "&flush_interval=200ms");
    run(&db, "CREATE TABLE t(a)");
    wait_until_durable(&db);
    let (first, begun) = (host.deltas(NAME).len(), std::time::Instant::now());
    let mut commits = 0u32;
    while commits < 200 || host.deltas(NAME).len() < first + 3 {
        run(&db, "INSERT INTO t VALUES (1)");
        commits += 1;
        assert!(commits < 1_000_000, "nothing is uploaded");
    }
    // However slow this machine is: a longer load has had more intervals.
    let intervals = begun.elapsed().as_millis() / interval.as_millis() + 2;
    let deltas = host.deltas(NAME).len() - first;
    assert!(deltas as u128 <= intervals, "{deltas} deltas in {intervals} intervals");
    assert!(deltas < commits as usize);
}

#[test]
fn a_flush_interval_of_zero_sends_every_commit_by_itself() {
    let host = Host::new();
    let db = host.open(NAME, "&flush_interval=0");
    run(&db, "CREATE TABLE t(a)");
    wait_until_durable(&db);
    let first = host.deltas(NAME).len();
    for n in 1..6 {
        run(&db, "INSERT INTO t VALUES (1)");
        wait_until_durable(&db);
        assert_eq!(host.deltas(NAME).len(), first + n);
    }
}

#[test]
fn a_database_at_rest_makes_no_requests_before_and_after_it_was_written_to() {
    // What is measured: long enough for everything that a second or a lease's looks would bring.
    let rest = Duration::from_millis(3500);
    let host = Host::new();
    run(&host.open("read.db", ""), "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
    let (written, read) = (host.open(NAME, ""), host.open("read.db", ""));
    run(&written, "CREATE TABLE t(a)");
    assert_eq!(one::<i64>(&read, "SELECT a FROM t"), 1);
    wait_until_durable(&written);
    assert_eq!(status(&written)["lease"]["state"], "held");
    wait_until("the lease is given back", || {
        let lease = std::fs::read(host.lease(NAME)).unwrap_or_default();
        String::from_utf8_lossy(&lease).contains("released")
    });
    let before = (requests(&written), requests(&read));
    std::thread::sleep(rest);
    assert_eq!((requests(&written), requests(&read)), before);
    // Reading what is there is rest, too.
    assert_eq!(one::<i64>(&read, "SELECT a FROM t"), 1);
    assert_eq!(requests(&read), before.1);
    // And after all that it can be written to again.
    run(&written, "INSERT INTO t VALUES (1)");
    wait_until_durable(&written);
}

#[test]
fn statements_that_change_nothing_upload_nothing() {
    let host = Host::new();
    let db = host.open(NAME, "&flush_interval=0");
    run(&db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
    wait_until_durable(&db);
    let before = host.deltas(NAME);
    run(&db, "BEGIN IMMEDIATE; COMMIT; DELETE FROM t WHERE a = 2; BEGIN; INSERT INTO t VALUES (5); ROLLBACK");
    run(&db, "PRAGMA wal_checkpoint(TRUNCATE); BEGIN; SELECT * FROM t; COMMIT");
    let_uploads_pass(&host, 0);
    one::<String>(&db, "PRAGMA gcs_flush");
    assert_eq!(host.deltas(NAME), before);
}

/// A database of a few hundred pages, with an index, in one delta.
fn larger(host: &Host) -> u64 {
    let db = host.open(NAME, LONG);
    run(
        &db,
        "BEGIN; CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b);
         INSERT INTO t WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 20000)
         SELECT i, printf('%0100d', i) FROM s; COMMIT",
    );
    one::<i64>(&db, "PRAGMA page_count") as u64
}

#[test]
fn a_warm_reopen_checks_the_head_and_fetches_nothing_else() {
    let host = Host::new();
    larger(&host);
    let db = host.open(NAME, "");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t WHERE b > ''"), 20000);
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    drop(db);
    // It does not look for what others write meanwhile.
    let db = host.open(NAME, "&poll_interval=0");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t WHERE b > ''"), 20000);
    let status = status(&db);
    assert_eq!(status["open"]["cold"], false);
    assert_eq!(number(&status, "/open/requests"), 1, "{status}");
    assert_eq!(requests(&db), 1, "{status}");
    assert_eq!(number(&status, "/requests/list"), 1, "{status}");
    // Another connection of this process needs not even that.
    drop(host.open(NAME, "&poll_interval=0"));
    assert_eq!(requests(&db), 1);
}

#[test]
fn a_cold_open_and_a_point_read_touch_a_small_part_of_the_database() {
    let host = Host::new();
    let total = larger(&host);
    host.lose(NAME);
    let db = host.open(NAME, "");
    let opened = status(&db);
    assert_eq!(opened["open"]["cold"], true);
    assert!(number(&opened, "/open/requests") <= 6, "{opened}");
    assert_eq!(one::<String>(&db, "SELECT b FROM t WHERE a = 12345"), format!("{:0100}", 12345));
    let read = status(&db);
    assert!(requests(&db) <= number(&opened, "/open/requests") + 5, "{read}");
    let present = number(&read, "/pages_present");
    assert!(present < total / 4, "{present} of {total} pages for one row");
}

#[test]
fn no_page_is_fetched_twice() {
    let host = Host::new();
    larger(&host);
    host.lose(NAME);
    // Nor is anything asked for that others may have written.
    let db = host.open(NAME, "&poll_interval=0");
    // The page cache of SQLite holds next to nothing, so each of these reads all pages from the VFS.
    run(&db, "PRAGMA cache_size=2");
    let scan = "SELECT count(*) FROM t NOT INDEXED WHERE b > ''";
    assert_eq!(one::<i64>(&db, scan), 20000);
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    let first = status(&db);
    assert_eq!(first["pages_present"], first["pages_total"], "all was read");
    let stored: u64 = host
        .deltas(NAME)
        .iter()
        .map(|name| host.objects(NAME).join("ltx/0").join(name).metadata().expect("a delta").len())
        .sum();
    // Each page once; headers, indexes and the first guess at a snapshot may come a second time.
    let fetched = number(&first, "/bytes/in");
    assert!(fetched < stored + stored / 4 + 200_000, "{fetched} of {stored} bytes");
    let before = requests(&db);
    assert_eq!(one::<i64>(&db, scan), 20000);
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    assert_eq!(requests(&db), before);
    // Nor after the pages were written, checkpointed and read again.
    run(&db, "UPDATE t SET b = b || 'x' WHERE a % 50 = 0; PRAGMA wal_checkpoint(TRUNCATE)");
    wait_until_durable(&db);
    let bytes = number(&status(&db), "/bytes/in");
    assert_eq!(one::<i64>(&db, scan), 20000);
    // The lease is looked at while the database is being written to; it is a few hundred bytes.
    assert!(number(&status(&db), "/bytes/in") < bytes + 4096);
}

#[test]
fn an_automatic_interval_begins_at_a_second_and_the_status_projects_the_cost() {
    let host = Host::new();
    let db = host.open(NAME, "&flush_interval=auto&class_a_budget=300000");
    run(&db, "CREATE TABLE t(a)");
    wait_until_durable(&db);
    let status = status(&db);
    let (interval, class_a) = (number(&status, "/flush_interval_ms"), number(&status, "/cost/class_a"));
    // An hour of the budget is saved up at the open, of which a few requests are spent.
    assert!((1000..1300).contains(&interval), "{interval} ms after {class_a} requests");
    let cost = |key: &str| status["cost"][key].as_f64().unwrap_or_else(|| panic!("{key} in {status}"));
    assert!(class_a > 2 && cost("usd") > 0.0);
    assert!(cost("usd_month") > cost("usd") * 1000.0, "{status}");
    assert_eq!(number(&status, "/cost/free"), number(&status, "/requests/delete"));
}
