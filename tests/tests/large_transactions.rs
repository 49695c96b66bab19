//! Transactions that are larger than the memory they may take: captured, sent as one object while they are read, seen whole or not
//! at all, and sent anew after a kill.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::host::{Host, difference};
use sqlite_gcs_tests::litestream::{self, Point};
use sqlite_gcs_tests::peer::Peer;
use sqlite_gcs_tests::poll;
use sqlite_gcs_tests::proxy::{Class, Fault};

/// What a process may take on top of what it took before, in KB.
const MOST_KB: u64 = 64 << 10;

/// `big(db, mebibytes)` commits that many of noise in one transaction; `memory()` is the most that the process ever took, `now()` what
/// it takes now, in KB, after `forget()` has let the most begin anew.
const LOAD: &str = r#"
def big(db, mebibytes):
    db.execute('BEGIN IMMEDIATE')
    db.execute('CREATE TABLE IF NOT EXISTS big(id INTEGER PRIMARY KEY, noise)')
    for _ in range(mebibytes):
        db.execute('INSERT INTO big(noise) VALUES (randomblob(1 << 20))')
    db.execute('COMMIT')
def line(name):
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(name))
def memory():
    return line('VmHWM:')
def forget():
    open('/proc/self/clear_refs', 'w').write('5')
    return line('VmRSS:')
"#;

const OPEN: &str = r#"
db = database('app.db', '&commit_timeout=10m&flush_interval=200ms')
db.execute('CREATE TABLE t(a)')
first = int(one(db, 'PRAGMA gcs_flush'), 16)
"#;

/// Commits so much at once, has it uploaded, checkpoints and merges it, and checks memory and result.
fn one_large_transaction(host: &Host, mebibytes: u64) -> u64 {
    let mut peer = Peer::start(host, &format!("{LOAD}{OPEN}"));
    let before: u64 = peer.run("forget()").parse().unwrap();
    peer.begin(&format!("big(db, {mebibytes})\nint(one(db, 'PRAGMA gcs_flush'), 16) - first"));
    let flushed = peer.answer_within(Duration::from_secs(600));
    assert_eq!(flushed.as_deref(), Ok("1"), "one delta");
    let sent: u64 = peer.run("memory()").parse().unwrap();
    peer.begin("one(db, 'PRAGMA wal_checkpoint(TRUNCATE)')\ndb.execute('INSERT INTO t VALUES (1)')\nint(one(db, 'PRAGMA gcs_flush'), 16) - first");
    assert_eq!(peer.answer_within(Duration::from_secs(600)).as_deref(), Ok("2"));
    let most: u64 = peer.run("memory()").parse().unwrap();
    println!("{mebibytes} MiB: {before} KB before, at most {sent} KB until it was sent, {most} KB in all");
    assert!(most - before < MOST_KB, "{before} KB before, {sent} KB sent, {most} KB in all");
    peer.run("db.close()");
    peer.end();
    most - before
}

#[test]
fn a_large_transaction_takes_little_memory_and_is_one_object() {
    let host = Host::new();
    one_large_transaction(&host, 160);
    let restored = host.restored("app.db");
    assert!(restored.len() > 160 << 20);
    let rows = |db: &rusqlite::Connection| {
        db.query_row("SELECT count(*), sum(length(noise)) FROM big", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })
    };
    let path = host.path("restored");
    std::fs::write(&path, restored).unwrap();
    let restored = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(rows(&restored), Ok((160, 160 << 20)));
    assert_eq!(restored.query_row("PRAGMA quick_check", [], |row| row.get(0)), Ok("ok".to_owned()));
}

#[test]
#[ignore = "minutes"]
fn a_transaction_of_two_gibibytes_takes_no_more_memory() {
    let host = Host::new();
    let begun = std::time::Instant::now();
    let took = one_large_transaction(&host, 2 << 10);
    println!("2 GiB: {} s, {took} KB", begun.elapsed().as_secs());
    let path = host.path("restored");
    litestream::restore_into(&host.replica("app.db"), None, Point::Newest, &path).expect("a valid replica");
    let restored = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(restored.query_row("SELECT count(*) FROM big", [], |row| row.get(0)), Ok(2 << 10));
}

/// One host commits so much at once; another one follows it, and a third takes the log over to write.
fn others_take_it_in(mebibytes: u64) {
    let (a, b, c) = (Host::new(), Host::new(), Host::new());
    let on_the_bucket_of_a = |host: &Host, setup: &str| {
        Peer::start_with(host, &format!("{LOAD}{setup}"), |program| program.env("SQLITE_GCS_BUCKET", a.bucket()))
    };
    let mut writer = on_the_bucket_of_a(&a, OPEN);
    assert_eq!(writer.run("one(db, 'SELECT count(*) FROM t')"), "0");
    let mut follower = on_the_bucket_of_a(&b, "db = database('app.db', '&poll_interval=100ms')");
    let mut next = on_the_bucket_of_a(&c, "db = database('app.db', '&poll_interval=0&lease_ttl=5s')");
    assert_eq!(next.run("one(db, 'SELECT count(*) FROM t')"), "0");
    let before: u64 = follower.run("one(db, 'SELECT count(*) FROM t')\nforget()").parse().unwrap();
    writer.begin(&format!("big(db, {mebibytes})\nint(one(db, 'PRAGMA gcs_flush'), 16) - first"));
    assert_eq!(writer.answer_within(Duration::from_secs(600)).as_deref(), Ok("1"), "one delta");
    writer.run("db.close()");
    writer.end();

    let size = (mebibytes << 20).to_string();
    let seen = poll(Duration::from_secs(600), || {
        follower.run("one(db, \"SELECT count(*) FROM sqlite_schema WHERE name = 'big'\")") == "1"
    });
    assert!(seen, "the follower never saw it");
    assert_eq!(follower.run("one(db, 'SELECT sum(length(noise)) FROM big')"), size);
    let most: u64 = follower.run("memory()").parse().unwrap();
    println!("{mebibytes} MiB: the follower took {before} KB before, at most {most} KB");
    assert!(most - before < MOST_KB, "{before} KB before, {most} KB following");
    follower.run("db.close()");
    follower.end();

    let before: u64 = next.run("forget()").parse().unwrap();
    next.begin("db.execute('PRAGMA busy_timeout = 60000')\ndb.execute('INSERT INTO t VALUES (1)')\none(db, 'PRAGMA gcs_flush')");
    assert!(next.answer_within(Duration::from_secs(600)).is_ok());
    let most: u64 = next.run("memory()").parse().unwrap();
    println!("{mebibytes} MiB: who took over took {before} KB before, at most {most} KB");
    assert!(most - before < MOST_KB, "{before} KB before, {most} KB taking over");
    assert_eq!(next.run("one(db, 'SELECT sum(length(noise)) FROM big')"), size);
    next.run("db.close()");
    next.end();
    let path = a.path("restored");
    litestream::restore_into(&a.replica("app.db"), None, Point::Newest, &path).expect("a valid replica");
    let restored = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(restored.query_row("SELECT count(*) FROM big", [], |row| row.get(0)), Ok(mebibytes as i64));
    assert_eq!(restored.query_row("SELECT count(*) FROM t", [], |row| row.get(0)), Ok(1));
}

#[test]
fn other_hosts_take_a_large_transaction_in_with_little_memory() {
    others_take_it_in(100);
}

#[test]
#[ignore = "minutes"]
fn other_hosts_take_two_gibibytes_in_with_no_more_memory() {
    others_take_it_in(2 << 10);
}

#[test]
fn an_upload_that_is_killed_leaves_nothing_and_the_next_open_sends_it() {
    let (bed, host) = (Bed::new(), Host::new());
    let (bucket, proxy) = (bed.emulator.url(), bed.proxy.host());
    let start = |setup: &str| {
        Peer::start_with(&host, setup, |program| {
            program.env("STORAGE_EMULATOR_HOST", &proxy).env("SQLITE_GCS_BUCKET", &bucket)
        })
    };
    let restore =
        || litestream::restore(&format!("{bucket}/app.db"), Some(&bed.emulator.host())).expect("a valid replica");
    let mut peer = start(&format!("{LOAD}{OPEN}"));
    let before: u64 = peer.run("forget()").parse().unwrap();
    let first: u64 = peer.run("first").parse().unwrap();
    // 40 MB at 10 MB a second: the kill comes when a good part of it is on its way.
    bed.proxy.set_bandwidth(Some(10 << 20));
    let up = bed.proxy.bytes().0;
    peer.run("big(db, 40)");
    assert!(poll(Duration::from_secs(60), || bed.proxy.bytes().0 - up > 16 << 20), "it is being sent");
    let most: u64 = peer.run("memory()").parse().unwrap();
    peer.kill();
    assert!(bed.proxy.bytes().0 - up < 40 << 20, "it was not sent to its end");
    assert!(most - before < MOST_KB, "{before} KB, {most} KB");
    assert_eq!(bed.judge.head(), first, "nothing of it is visible");
    assert!(restore().len() < 1 << 20);

    // The same disk again. The answer to the upload is lost: the same bytes are sent, and found to be there.
    bed.proxy.set_bandwidth(None);
    let (lost, name) = (AtomicBool::new(false), format!("{:016x}-", first + 2));
    bed.proxy.rule(move |request| {
        let is_it = request.class == Class::Put && request.path.contains(&name);
        (is_it && !lost.swap(true, Ordering::SeqCst)).then_some(Fault::DropAfter)
    });
    let down = bed.proxy.bytes().1;
    let mut peer = start(&format!("{LOAD}db = database('app.db')"));
    assert_eq!(peer.run("one(db, 'SELECT count(*) FROM big')"), "40");
    let before: u64 = peer.run("forget()").parse().unwrap();
    assert_eq!(peer.run("one(db, 'PRAGMA gcs_flush')"), format!("{:016x}", first + 2));
    let most: u64 = peer.run("memory()").parse().unwrap();
    assert!(most - before < MOST_KB, "{before} KB, {most} KB");
    assert!(bed.proxy.bytes().1 - down > 40 << 20, "it was looked at whose bytes are there");
    let local = host.path("local");
    peer.run(&format!("open({:?}, 'wb').write(db.serialize()) and 1", local.display().to_string()));
    peer.run("db.close()");
    peer.end();
    let log = bed.judge.log();
    assert_eq!(
        log.iter().map(|object| object.max).max(),
        Some(first + 2),
        "the delta, behind the seal of the dead: {log:?}"
    );
    assert_eq!(difference(&restore(), &std::fs::read(local).unwrap()), None);
}
