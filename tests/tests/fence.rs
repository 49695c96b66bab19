//! A writer that lost the log while it was away: what it is told, what it keeps, how it goes on.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::machine::{FENCED, Host, Load, Session};
use sqlite_gcs_tests::proxy::{Class, Fault};

const READONLY: i64 = 8;

/// Freezes `session` until `other` has written a row.
fn overtake(session: &Session, other: &mut Session, id: i64) {
    session.signal(Signal::SIGSTOP);
    other.sql(&format!("INSERT INTO t VALUES ({id}, 'other')")).unwrap();
    session.signal(Signal::SIGCONT);
}

fn ids(session: &mut Session) -> Vec<i64> {
    let rows = session.sql("SELECT id FROM t ORDER BY id").unwrap();
    rows.iter().map(|row| row[0].as_i64().unwrap()).collect()
}

#[test]
fn a_commit_after_a_freeze_that_cost_the_lease_goes_on_top_of_the_other_writer() {
    // Nothing local was unsent: there is nothing to lose, and nobody is fenced.
    let bed = Bed::new();
    let mut a = bed.with_table("a", "durability=commit&lease_ttl=5s");
    let mut b = bed.host("b", "durability=commit&lease_ttl=5s").open();
    a.sql("INSERT INTO t VALUES (1, 'a')").unwrap();
    overtake(&a, &mut b, 2);
    a.sql("INSERT INTO t VALUES (3, 'a')").unwrap();
    assert_eq!(ids(&mut a), [1, 2, 3]);
    assert_eq!((a.quit(), b.quit()), (Some(0), Some(0)));
    assert_eq!(bed.judge.rows().keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_transaction_that_was_open_during_the_freeze_is_refused_at_its_commit() {
    let bed = Bed::new();
    for durability in ["commit", "strict", "background"] {
        let (one, two) = (
            bed.host(&format!("a-{durability}"), &format!("durability={durability}&lease_ttl=5s")),
            bed.host(&format!("b-{durability}"), "durability=commit&lease_ttl=5s"),
        );
        let mut a = one.open();
        a.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER, text TEXT)").unwrap();
        a.sql("PRAGMA gcs_flush").unwrap();
        let before = ids(&mut a);
        let mut b = two.open();
        a.sql("BEGIN IMMEDIATE").unwrap();
        a.sql("INSERT INTO t VALUES (-1, 'lost')").unwrap();
        overtake(&a, &mut b, before.len() as i64 + 1);
        let error = a.sql("COMMIT").unwrap_err();
        eprintln!("{durability}: {error}");
        assert!([READONLY, 10].contains(&(error.code & 0xff)), "{durability}: {error}");
        // It goes on with the other's rows, and so does a fresh open.
        let _ = a.sql("ROLLBACK");
        assert_eq!(ids(&mut a), (1..=before.len() as i64).collect::<Vec<_>>(), "{durability}");
        a.kill();
        let mut a = one.open();
        assert_eq!(ids(&mut a), (1..=before.len() as i64 + 1).collect::<Vec<_>>(), "{durability}");
        assert_eq!((a.quit(), b.quit()), (Some(0), Some(0)));
    }
    bed.judge.rows();
}

/// A's delta is on its way, or waits for its interval, when A freezes; B takes over and writes.
fn lose_a_range(bed: &Bed, one: &Host, stall: bool) -> (Session, Session) {
    let mut a = one.open();
    a.sql("CREATE TABLE t(id INTEGER, text TEXT)").unwrap();
    a.sql("PRAGMA gcs_flush").unwrap();
    a.sql("INSERT INTO t VALUES (1, 'a')").unwrap();
    a.sql("PRAGMA gcs_flush").unwrap();
    let mut b = bed.host("b", "durability=commit&lease_ttl=5s").open();
    if stall {
        bed.proxy.rule(|request| (request.class == Class::Put && request.path.contains("ltx")).then_some(Fault::Stall));
    }
    a.sql("INSERT INTO t VALUES (2, 'lost')").unwrap();
    a.sql("INSERT INTO t VALUES (3, 'lost')").unwrap();
    if stall {
        assert!(bed.proxy.wait_for_stalled(1));
    }
    a.signal(Signal::SIGSTOP);
    bed.proxy.heal();
    b.sql("INSERT INTO t VALUES (4, 'b')").unwrap();
    bed.proxy.release();
    a.signal(Signal::SIGCONT);
    (a, b)
}

fn a_stale_background_writer(stall: bool, interval: &str) {
    let bed = Bed::new();
    let one = bed.host("a", &format!("lease_ttl=5s&flush_interval={interval}"));
    let (mut a, b) = lose_a_range(&bed, &one, stall);
    // It learns of it when it writes again, or when its upload is refused.
    let mut error = None;
    let told = sqlite_gcs_tests::poll(Duration::from_secs(30), || {
        error = a.sql("INSERT INTO t VALUES (5, 'lost')").err().filter(|error| error.code & 0xff != 5);
        error.is_some()
    });
    assert!(told, "never told");
    let error = error.unwrap();
    assert_eq!(error.code, FENCED, "{error}");
    assert_eq!(a.sql("INSERT INTO t VALUES (6, 'lost')").unwrap_err().code, FENCED, "and it stays so");
    // Reads go on, of what it has.
    assert!(a.number("SELECT count(*) FROM t") >= 3);
    let conflicts = one.conflicts();
    assert_eq!(conflicts.len(), 1, "{conflicts:?}");
    let status = a.status();
    assert_eq!(status["conflict"], conflicts[0].display().to_string(), "{status}");
    assert_eq!(status["role"], "fenced");
    assert!(one.log().contains(&conflicts[0].display().to_string()), "{}", one.log());
    let kept: BTreeSet<i64> = bed.judge.rows_kept(&conflicts[0]).into_keys().collect();
    assert!(kept.is_superset(&BTreeSet::from([1, 2, 3])), "{kept:?}");
    a.quit();
    let mut a = one.open();
    assert_eq!(ids(&mut a), [1, 4]);
    a.sql("INSERT INTO t VALUES (7, 'a')").unwrap();
    assert_eq!((a.quit(), b.quit()), (Some(0), Some(0)));
    assert_eq!(bed.judge.rows().keys().copied().collect::<Vec<_>>(), [1, 4, 7]);
    assert_eq!(one.conflicts(), conflicts, "nothing else was lost");
}

#[test]
fn a_stale_writer_with_unsent_commits_is_refused_and_keeps_them_aside() {
    a_stale_background_writer(false, "30s");
}

#[test]
fn a_stale_writer_whose_upload_lands_late_is_refused_and_keeps_its_commits_aside() {
    a_stale_background_writer(true, "0");
}

#[test]
fn a_commit_that_waits_through_a_freeze_is_an_error_and_kept_aside() {
    let bed = Bed::new();
    let one = bed.host("a", "durability=commit&lease_ttl=5s");
    let mut a = one.open();
    a.sql("CREATE TABLE t(id INTEGER, text TEXT)").unwrap();
    let mut b = bed.host("b", "durability=commit&lease_ttl=5s").open();
    bed.proxy.rule(|request| (request.class == Class::Put && request.path.contains("ltx")).then_some(Fault::Stall));
    a.later("commit", "db", "INSERT INTO t VALUES (1, 'lost')");
    assert!(bed.proxy.wait_for_stalled(1));
    a.signal(Signal::SIGSTOP);
    bed.proxy.heal();
    b.sql("INSERT INTO t VALUES (2, 'b')").unwrap();
    bed.proxy.release();
    a.signal(Signal::SIGCONT);
    let error = a.finished("commit").1.unwrap_err();
    assert_eq!(error.code, FENCED, "{error}");
    assert_eq!(one.conflicts().len(), 1);
    assert!(one.log().contains(&one.conflicts()[0].display().to_string()), "{}", one.log());
    let kept: Vec<i64> = bed.judge.rows_kept(&one.conflicts()[0]).into_keys().collect();
    assert_eq!(kept, [1]);
    a.quit();
    let mut a = one.open();
    assert_eq!(ids(&mut a), [2]);
    assert_eq!((a.quit(), b.quit()), (Some(0), Some(0)));
    assert_eq!(bed.judge.rows().keys().copied().collect::<Vec<_>>(), [2]);
}

#[test]
fn commits_of_a_killed_writer_that_somebody_overtook_are_kept_aside_at_its_next_open() {
    let bed = Bed::new();
    let one = bed.host("a", "lease_ttl=5s&flush_interval=1m");
    let mut a = one.open();
    a.sql("CREATE TABLE t(id INTEGER, text TEXT)").unwrap();
    a.sql("PRAGMA gcs_flush").unwrap();
    let wrote = a.write(&Load { first: 1, most: 5, ..Load::default() });
    a.kill();
    let mut b = bed.host("b", "durability=commit&lease_ttl=5s").open();
    b.sql("INSERT INTO t VALUES (100, 'b')").unwrap();
    let mut a = one.open();
    assert_eq!(ids(&mut a), [100]);
    assert_eq!(one.conflicts().len(), 1);
    let kept: BTreeSet<i64> = bed.judge.rows_kept(&one.conflicts()[0]).into_keys().collect();
    assert_eq!(kept, wrote.acknowledged.iter().copied().collect());
    assert!(one.log().contains(&one.conflicts()[0].display().to_string()));
    assert_eq!((a.quit(), b.quit()), (Some(0), Some(0)));
}

/// A host that took in what others wrote before it lost a range of its own: what it noted of the one must not make the other stay.
/// `end` writes the lost range from the WAL into the cache file, and ends the process.
fn a_range_is_lost_behind_what_was_taken_in(end: fn(Session)) {
    let bed = Bed::new();
    let mut b = bed.with_table("b", "durability=commit&lease_ttl=5s");
    b.sql("CREATE TABLE u(id INTEGER)").unwrap();
    let one = bed.host("a", "lease_ttl=5s&flush_interval=30s");
    let mut a = one.open();
    assert_eq!(a.number("SELECT count(*) FROM t"), 0);
    b.sql("INSERT INTO t VALUES (1, 'b')").unwrap();
    b.sql("INSERT INTO u VALUES (1)").unwrap();
    a.sql("INSERT INTO t VALUES (2, 'a')").unwrap();
    a.sql("PRAGMA gcs_flush").unwrap();
    let rows = "WITH n(i) AS (VALUES (3) UNION ALL SELECT i + 1 FROM n WHERE i < 40)";
    a.sql(&format!("INSERT INTO t {rows} SELECT i, hex(zeroblob(1000)) FROM n")).unwrap();
    a.signal(Signal::SIGSTOP);
    b.sql("INSERT INTO u VALUES (2)").unwrap();
    a.signal(Signal::SIGCONT);
    let told = sqlite_gcs_tests::poll(Duration::from_secs(30), || {
        a.sql("INSERT INTO t VALUES (100, 'lost')").err().is_some_and(|error| error.code == FENCED)
    });
    assert!(told, "never told");
    end(a);
    let mut a = one.open();
    assert_eq!(ids(&mut a), [1, 2]);
    assert_eq!(a.number("SELECT sum(id) FROM u"), 3);
    assert_eq!(a.sql("PRAGMA integrity_check").unwrap(), [["ok"]]);
    let kept = bed.judge.rows_kept(&one.conflicts()[0]);
    assert!((3..=40).all(|id| kept.contains_key(&id)), "{kept:?}");
    assert_eq!((a.quit(), b.quit()), (Some(0), Some(0)));
    assert_eq!(bed.judge.rows().keys().copied().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_range_that_is_lost_behind_what_was_taken_in_leaves_no_page_in_the_cache() {
    a_range_is_lost_behind_what_was_taken_in(|session| {
        session.quit();
    });
}

#[test]
fn a_range_that_is_lost_behind_what_was_taken_in_leaves_no_page_after_a_kill() {
    a_range_is_lost_behind_what_was_taken_in(|mut session| {
        session.sql("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        session.kill();
    });
}

#[test]
fn a_bucket_that_ignores_conditions_is_read_and_not_written() {
    let bed = Bed::new();
    bed.with_table("a", "").quit();
    bed.proxy.rule(|_| Some(Fault::Unconditional));
    let head = bed.judge.head();
    let host = bed.host("b", "durability=commit");
    let mut b = host.open();
    assert_eq!(b.number("SELECT count(*) FROM t"), 0);
    for _ in 0..2 {
        let error = b.sql("INSERT INTO t VALUES (1, 'x')").unwrap_err();
        assert_eq!(error.code, READONLY | (105 << 8), "{error}");
    }
    assert!(host.log().contains("ignores ifGenerationMatch"), "{}", host.log());
    b.quit();
    assert_eq!(bed.judge.head(), head);
    assert!(bed.lease_is("released"));
    let mut trusting = bed.host("c", "durability=commit&probe=off").open();
    trusting.sql("INSERT INTO t VALUES (1, 'x')").unwrap();
}

#[test]
fn the_check_for_conditions_is_made_once_per_process() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "durability=commit");
    let puts = bed.proxy.count(Class::Put);
    assert!(bed.wait_for_release());
    a.sql("INSERT INTO t VALUES (1, 'x')").unwrap();
    // One to give the lease back, one to take it, one for the row.
    assert_eq!(bed.proxy.count(Class::Put) - puts, 3);
}
