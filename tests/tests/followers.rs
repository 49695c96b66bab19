//! Hosts that read while another one writes: every transaction sees exactly one state of the log, a later one than before,
//! and not long after it was there.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::machine::{Host, Session};
use sqlite_gcs_tests::poll;
use sqlite_gcs_tests::proxy::Class;

const POLL: Duration = Duration::from_millis(300);
const FOLLOWER: &str = "role=follower&poll_interval=300ms";
/// What a delta may take from the bucket into a reader's next transaction, on a machine that has other things to do.
const GENEROUS: f64 = 2.5;

const TABLES: [&str; 4] = [
    "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, b BLOB)",
    "CREATE TABLE state(k INTEGER, total INTEGER, bytes INTEGER)",
    "WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < 400)
     INSERT INTO t SELECT id, 1, randomblob(200) FROM ids",
    "INSERT INTO state SELECT 1, sum(n), sum(length(b)) FROM t",
];

/// A writer whose database has what `change` and `watch` go by.
fn writer(bed: &Bed, settings: &str) -> Session {
    let mut writer = bed.host("writer", &format!("durability=commit&{settings}")).open();
    for sql in TABLES {
        writer.sql(sql).unwrap();
    }
    writer
}

fn begin_changes(writer: &mut Session, seconds: f64, pause: f64, bytes: u32) {
    writer.send(&json!({ "do": "change", "db": "db", "seconds": seconds, "pause": pause, "rows": 61, "bytes": bytes }));
}

fn begin_watch(reader: &mut Session, seconds: f64) {
    reader.send(&json!({ "do": "watch", "db": "db", "seconds": seconds }));
}

/// The answer to what was begun.
#[track_caller]
fn end(session: &mut Session, seconds: f64) -> Value {
    let answer = session.next(Duration::from_secs_f64(seconds + 30.0)).expect("an answer");
    assert!(answer.get("error").is_none(), "{answer}");
    answer
}

fn pairs(answer: &Value, name: &str) -> Vec<(i64, f64)> {
    let pairs = answer[name].as_array().expect("pairs").iter();
    pairs.map(|pair| (pair[0].as_i64().unwrap(), pair[1].as_f64().unwrap())).collect()
}

/// Checks what a reader saw, and returns the longest time from a commit until it saw it.
#[track_caller]
fn check(watched: &Value, commits: &BTreeMap<i64, f64>, name: &str) -> f64 {
    assert_eq!(watched["wrong"], json!([]), "{name}");
    let seen = pairs(watched, "seen");
    let until = seen.last().map_or(0.0, |(_, at)| *at);
    let lag = |(k, at): (&i64, &f64)| {
        // A commit while nobody watched any more says nothing.
        let shown = seen.iter().find(|(seen, _)| seen >= k).map_or(until, |(_, at)| *at);
        shown - at
    };
    let worst = commits.iter().filter(|(_, at)| **at < until).map(lag).fold(0.0, f64::max);
    eprintln!(
        "{name}: {} reads, {} states of {}, slowest {:.0} ms, {worst:.2} s behind at most",
        watched["reads"],
        seen.len(),
        commits.len(),
        watched["slowest_ms"].as_f64().unwrap()
    );
    worst
}

fn listings(session: &mut Session) -> u64 {
    session.status()["requests"]["list"].as_u64().expect("a number")
}

fn wal_bytes(host: &Host) -> u64 {
    let wal = PathBuf::from(format!("{}-gcswal", host.file().display()));
    wal.metadata().map_or(0, |wal| wal.len())
}

/// One writer and three followers on disks of their own, the first of which has a second process; one is killed halfway.
fn one_writes_and_three_follow(seconds: f64) {
    let bed = Bed::new();
    let mut writer = writer(&bed, "");
    let hosts = [FOLLOWER, FOLLOWER, "role=auto&poll_interval=300ms"];
    let hosts: Vec<Host> = hosts.iter().enumerate().map(|(n, how)| bed.host(&format!("f{n}"), how)).collect();
    let mut readers: Vec<Session> = hosts.iter().map(Host::open).collect();
    let mut beside = hosts[0].open();
    let mut opened: Vec<u64> = readers.iter_mut().map(listings).collect();
    let mut all: Vec<&mut Session> = readers.iter_mut().chain([&mut beside]).collect();
    for reader in &mut all {
        reader.sql("SELECT count(*) FROM t").unwrap();
    }
    let gets = bed.proxy.count(Class::Get);
    let begun = Instant::now();
    begin_changes(&mut writer, seconds, 0.05, 100);
    for reader in &mut all {
        begin_watch(reader, seconds + 2.0);
    }
    // Killed with a transaction open or between two, and opened on what its disk has.
    thread::sleep(Duration::from_secs_f64(seconds / 2.0));
    let killed = readers.remove(1);
    killed.kill();
    let mut again = hosts[1].open();
    opened[1] = listings(&mut again);
    let left = (seconds + 2.0 - begun.elapsed().as_secs_f64()).max(1.0);
    begin_watch(&mut again, left);
    readers.insert(1, again);

    let commits: BTreeMap<i64, f64> = pairs(&end(&mut writer, seconds), "commits").into_iter().collect();
    assert!(commits.len() > 20, "{} commits", commits.len());
    let limit = POLL.as_secs_f64() + GENEROUS;
    let last = commits.keys().max().copied();
    for (n, reader) in readers.iter_mut().enumerate() {
        let watched = end(reader, seconds);
        let since = pairs(&watched, "seen")[0].1;
        let commits = commits.iter().filter(|(_, at)| **at > since).map(|(k, at)| (*k, *at)).collect();
        let worst = check(&watched, &commits, &format!("follower {n}"));
        assert!(worst < limit, "follower {n} was {worst:.2} s behind");
        assert!(pairs(&watched, "seen").len() > 5, "it does not follow closely");
        assert!(poll(Duration::from_secs(10), || Some(reader.number("SELECT k FROM state")) == last), "follower {n}");
        assert!(reader.wait_for_status(Duration::from_secs(5), |status| status["follower"]["lag_ms"] == 0));
        let status = reader.status();
        assert_eq!(status["role"], "follower", "{status}");
        assert_eq!(status["requests"]["put"], 0, "a follower asks for the lease: {status}");
        assert_eq!(status["requests"]["list"], opened[n], "it lists to follow: {status}");
        assert!(wal_bytes(&hosts[n]) < 24 << 20, "{} bytes of WAL", wal_bytes(&hosts[n]));
    }
    assert!(check(&end(&mut beside, seconds), &commits, "beside follower 0") < limit);
    let (gets, looks) = (bed.proxy.count(Class::Get) - gets, seconds * 3.0 / (POLL.as_secs_f64() / 4.0));
    assert!((gets as f64) < 2.0 * (looks + 4.0 * commits.len() as f64), "{gets} reads");
    assert_eq!(writer.quit(), Some(0));
    for reader in readers {
        assert_eq!(reader.quit(), Some(0));
    }
    assert_eq!(beside.quit(), Some(0));
}

#[test]
fn every_transaction_of_a_follower_sees_one_state_after_the_other() {
    one_writes_and_three_follow(10.0);
}

#[test]
#[ignore = "minutes"]
fn every_transaction_of_a_follower_sees_one_state_after_the_other_for_long() {
    one_writes_and_three_follow(600.0);
}

#[test]
fn a_follower_refuses_to_write_and_says_why() {
    let bed = Bed::new();
    let writer = writer(&bed, "");
    let host = bed.host("f", FOLLOWER);
    let mut follower = host.open();
    for sql in ["INSERT INTO t(n) VALUES (1)", "BEGIN IMMEDIATE", "CREATE TABLE u(a)"] {
        let error = follower.sql(sql).unwrap_err();
        assert_eq!(error.code & 0xff, 8, "{sql}: {error}");
    }
    let error = follower.sql("PRAGMA gcs_rewind='-1s'").unwrap_err();
    assert!(error.text.contains("role=follower"), "{error}");
    let status = follower.status();
    assert!(status["last_error"].as_str().unwrap().contains("role=auto"), "{status}");
    assert!(host.log().contains("role=follower, which only reads"), "{}", host.log());
    assert_eq!(follower.number("SELECT count(*) FROM t"), 400);
    assert!(!bed.lease_is("wanted"));
    // Nor does it make what is not there.
    let elsewhere =
        Host::new(bed.scratch.join("g"), &format!("{}/empty", bed.emulator.url()), Some(bed.proxy.host()), FOLLOWER);
    assert!(elsewhere.boot().connect("db", POLL).is_err());
    assert_eq!((writer.quit(), follower.quit()), (Some(0), Some(0)));
}

#[test]
fn nobody_who_does_not_read_is_asked_for_and_the_first_read_sees_the_newest_state() {
    let bed = Bed::new();
    let mut writer = writer(&bed, "");
    let mut follower = bed.host("f", FOLLOWER).open();
    assert_eq!(follower.number("SELECT k FROM state"), 1);
    // It follows while it reads, so that it knows that others write.
    writer.sql("UPDATE state SET k = 2").unwrap();
    assert!(poll(Duration::from_secs(10), || follower.number("SELECT k FROM state") == 2));
    assert!(poll(Duration::from_secs(5), || follower.status()["follower"]["awake"] == false), "it never rests");
    for k in 3..6 {
        writer.sql(&format!("UPDATE state SET k = {k}")).unwrap();
    }
    assert!(bed.wait_for_release());
    let before = bed.proxy.requests();
    thread::sleep(POLL * 6);
    assert_eq!(bed.proxy.requests(), before, "somebody asks for what nobody reads");
    assert_eq!(follower.number("SELECT k FROM state"), 5, "the read that wakes it waits for the look");
    assert_eq!((writer.quit(), follower.quit()), (Some(0), Some(0)));
}

#[test]
fn poll_interval_0_never_looks_and_a_writer_does_not_either() {
    let bed = Bed::new();
    let mut writer = writer(&bed, "role=writer&poll_interval=300ms");
    let mut still = bed.host("f", "role=follower&poll_interval=0").open();
    assert_eq!((still.number("SELECT k FROM state"), writer.number("SELECT k FROM state")), (1, 1));
    assert!(bed.wait_for_release());
    let before = bed.proxy.requests();
    assert!(!poll(POLL * 5, || still.number("SELECT k FROM state") + writer.number("SELECT k FROM state") > 2));
    assert_eq!(bed.proxy.requests(), before);
    assert_eq!((writer.quit(), still.quit()), (Some(0), Some(0)));
}

#[test]
fn a_follower_becomes_the_writer_and_the_writer_a_follower_without_reopening() {
    let bed = Bed::new();
    let settings = "role=auto&poll_interval=300ms";
    let mut a = writer(&bed, settings);
    let mut b = bed.host("b", &format!("durability=commit&{settings}")).open();
    for turn in 0..2 {
        let (one, other) = if turn == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
        let k = 10 * (turn + 1);
        one.sql(&format!("UPDATE state SET k = {k}")).unwrap();
        assert!(poll(Duration::from_secs(10), || other.number("SELECT k FROM state") == k), "turn {turn}");
        assert!(other.wait_for_status(Duration::from_secs(5), |status| status["role"] == "follower"));
        // It knows what was written, so its first write, which waits for the lease, begins on top of that.
        other.sql("BEGIN IMMEDIATE").unwrap();
        assert_eq!(other.number("SELECT k FROM state"), k);
        other.sql("UPDATE state SET k = k + 1").unwrap();
        other.sql("COMMIT").unwrap();
        assert_eq!(other.status()["role"], "writer");
        assert!(poll(Duration::from_secs(10), || one.number("SELECT k FROM state") == k + 1), "turn {turn}");
    }
    assert_eq!((a.quit(), b.quit()), (Some(0), Some(0)));
    bed.judge.log();
}

#[test]
fn of_the_processes_of_a_host_one_asks_and_all_see() {
    let bed = Bed::new();
    let mut writer = writer(&bed, "");
    let host = bed.host("f", FOLLOWER);
    let mut many: Vec<Session> = (0..4).map(|_| host.open()).collect();
    assert!(bed.wait_for_release());
    // Each reads all pages once, so that what is counted are looks.
    for reader in &mut many {
        begin_watch(reader, 0.1);
        end(reader, 0.1);
    }
    let seconds = 4.0;
    // With nothing new there is one question an interval, however many ask.
    let gets = bed.proxy.count(Class::Get);
    many.iter_mut().for_each(|reader| begin_watch(reader, seconds));
    for reader in &mut many {
        assert_eq!(end(reader, seconds)["wrong"], json!([]));
    }
    let gets = bed.proxy.count(Class::Get) - gets;
    let looks = (seconds / POLL.as_secs_f64()) as u64;
    assert!((looks / 2..=looks + 3).contains(&gets), "{gets} reads in {looks} intervals");
    writer.sql("UPDATE state SET k = 2").unwrap();
    for reader in &mut many {
        assert!(poll(Duration::from_secs(10), || reader.number("SELECT k FROM state") == 2));
    }
    assert_eq!(writer.quit(), Some(0));
    for reader in many {
        assert_eq!(reader.quit(), Some(0));
    }
}

#[test]
fn a_follower_that_slept_while_the_deltas_after_it_were_merged_and_deleted_lists_and_goes_on() {
    let bed = Bed::new();
    // Deletes begin ten minutes after a merge, on the bucket's clock.
    bed.proxy.set_clock_ahead(Duration::from_secs(3 * 3600));
    let mut writer = writer(&bed, "retention=0");
    let host = bed.host("f", FOLLOWER);
    let mut follower = host.open();
    let txid = |session: &mut Session| session.status()["follower"]["txid"].as_str().unwrap().to_owned();
    assert_eq!(follower.number("SELECT k FROM state"), 1);
    assert!(poll(Duration::from_secs(5), || follower.status()["follower"]["awake"] == false));
    let slept_at = u64::from_str_radix(&txid(&mut follower), 16).unwrap();
    let mut commits = 0;
    while commits < 100 || bed.judge.has_delta(slept_at + 1) {
        commits += 1;
        assert!(commits < 1000, "nothing is deleted");
        writer.sql(&format!("UPDATE t SET n = n + 1 WHERE id % 61 = {commits} % 61")).unwrap();
        writer.sql("UPDATE state SET k = k + 1, total = (SELECT sum(n) FROM t)").unwrap();
    }
    // As if it had slept for as long as the bucket's clock says.
    put_back_the_last_look(&host);
    let lists = bed.proxy.count(Class::List);
    let sum = "SELECT k FROM state WHERE total = (SELECT sum(n) FROM t)";
    let newest = writer.number(sum);
    assert!(newest > 100);
    assert!(poll(Duration::from_secs(20), || follower.number(sum) == newest), "{}", follower.status());
    assert!(bed.proxy.count(Class::List) > lists, "it knew without a listing");
    assert_eq!(follower.sql("PRAGMA integrity_check").unwrap()[0][0], "ok");
    writer.sql("UPDATE state SET k = k + 1").unwrap();
    assert!(poll(Duration::from_secs(10), || follower.number("SELECT k FROM state") == newest + 1));
    assert_eq!((writer.quit(), follower.quit()), (Some(0), Some(0)));
}

/// Puts the time of the last look, which the processes of a host share, back to the start of the machine.
fn put_back_the_last_look(host: &Host) {
    use std::os::unix::fs::FileExt as _;
    let path = PathBuf::from(format!("{}-gcs/shared", host.file().display()));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&1u64.to_ne_bytes(), 192).unwrap();
}
