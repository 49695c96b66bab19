//! The history as the engine keeps it: merged and thinned while it is written, whole at every moment, killed anywhere.
//!
//! The bucket's clock is put ahead where deletes are to come, which else begin ten minutes after a merge.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::content::content;
use sqlite_gcs_tests::judge::Logged;
use sqlite_gcs_tests::litestream::Point;
use sqlite_gcs_tests::machine::Session;
use sqlite_gcs_tests::proxy::{Class, Fault, Request};

const HOURS: Duration = Duration::from_secs(3 * 3600);
const ROWS: u32 = 300;

/// One transaction that changes a random row, as one object of the log.
fn commit(session: &mut Session, rng: &mut fastrand::Rng) {
    let id = rng.u32(0..ROWS);
    let text = rng.u64(..);
    session
        .sql(&format!("INSERT OR REPLACE INTO t VALUES ({id}, '{text:x}' || hex(zeroblob({})))", rng.u32(0..300)))
        .unwrap();
    session.sql("PRAGMA gcs_flush").unwrap();
}

fn begin(bed: &Bed, name: &str, settings: &str) -> Session {
    let mut session = bed.host(name, settings).open();
    session.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, text TEXT)").unwrap();
    session
}

/// Has the history come to rest, and returns the log, which has to be small.
fn settled(bed: &Bed, session: &mut Session, rng: &mut fastrand::Rng) -> Vec<Logged> {
    commit(session, rng);
    session.sql("PRAGMA wal_checkpoint").unwrap();
    let checkpoint = bed.judge.head();
    for _ in 0..66 {
        commit(session, rng);
    }
    bed.rest();
    let log = bed.judge.log();
    let seals = log.iter().filter(|object| object.level == 0 && object.pages == 0).count();
    // Pages of the state that the last checkpoint reached may yet be read, so what is newer stays.
    let newer = log.iter().filter(|object| object.max > checkpoint).count();
    assert!(log.len() <= 100 + seals + newer, "{} objects, {seals} seals, {newer} newer", log.len());
    assert!(log.len() < 250, "{} objects", log.len());
    log
}

/// Whether a request is one of the historian's.
fn is_of_the_history(request: &Request) -> bool {
    let merged = (1..=9).any(|level| request.path.contains(&format!("ltx%2F{level}")));
    match request.class {
        Class::Put => merged,
        Class::Delete => request.path.contains("ltx%2F"),
        _ => false,
    }
}

#[test]
fn a_long_history_stays_small_and_every_copy_agrees() {
    let bed = Bed::new();
    let mut rng = fastrand::Rng::with_seed(5);
    bed.proxy.set_clock_ahead(HOURS);
    let settings = "flush_interval=0&retention=1h";
    let mut session = begin(&bed, "a", settings);
    for round in 0..4 {
        for _ in 0..80 {
            commit(&mut session, &mut rng);
        }
        let now = content(&mut session);
        assert_eq!(bed.restored(Point::Newest), now, "round {round}");
        let mut reader = bed.host("reader", settings).open();
        assert_eq!(content(&mut reader), now, "a cold open");
        assert_eq!(reader.quit(), Some(0));
        bed.host("reader", settings).lose_disk();
        if round == 1 {
            // A machine is lost in the middle of whatever it does; another one goes on.
            session.kill();
            session = begin(&bed, "b", settings);
            assert_eq!(content(&mut session), now);
        }
    }
    let log = settled(&bed, &mut session, &mut rng);
    assert!(bed.proxy.count(Class::Delete) > 200, "{} deletes", bed.proxy.count(Class::Delete));
    assert!(log.iter().any(|object| object.level == 9), "a snapshot");
    let status = session.status();
    assert_eq!(status["last_error"], Value::Null);
    assert_eq!(bed.restored(Point::Newest), content(&mut session));
    assert_eq!(session.quit(), Some(0));
}

#[test]
fn pages_never_read_are_found_when_the_objects_they_lay_in_are_gone() {
    let bed = Bed::new();
    let mut rng = fastrand::Rng::with_seed(6);
    let mut session = begin(&bed, "a", "flush_interval=0&retention=0");
    session.sql("CREATE TABLE old(id INTEGER PRIMARY KEY, text TEXT)").unwrap();
    for id in 0..40 {
        session.sql(&format!("INSERT INTO old VALUES ({id}, hex(randomblob(6000)))")).unwrap();
        session.sql("PRAGMA gcs_flush").unwrap();
    }
    let old = "SELECT group_concat(id || text) FROM old";
    let expected = session.sql(old).unwrap();
    assert_eq!(session.quit(), Some(0));
    bed.host("a", "").lose_disk();

    bed.proxy.set_clock_ahead(HOURS);
    let mut session = begin(&bed, "a", "flush_interval=0&retention=0");
    let mut reader = bed.host("reader", "hydrate=off").open();
    let before = bed.judge.log();
    for _ in 0..4 {
        for _ in 0..70 {
            commit(&mut session, &mut rng);
        }
        session.sql("PRAGMA wal_checkpoint").unwrap();
    }
    bed.rest();
    let after = bed.judge.log();
    let left = before.iter().filter(|object| object.pages > 0 && after.contains(object)).count();
    assert!(left <= 1, "{left} of {} are left, the first delta and what else?", before.len());
    assert_eq!(session.sql(old).unwrap(), expected);
    assert_eq!(session.quit(), Some(0));
    // A reader elsewhere, whose state is not kept any more, says so and gives no wrong answer.
    let error = reader.sql(old).unwrap_err();
    assert_eq!(error.code & 0xff, 10, "{error}");
    reader.kill();
    let mut reader = bed.host("reader", "").open();
    assert_eq!(reader.sql(old).unwrap(), expected);
}

#[test]
fn a_kill_at_any_request_of_the_history_leaves_a_whole_replica() {
    let bed = Bed::new();
    let mut rng = fastrand::Rng::with_seed(7);
    bed.proxy.set_clock_ahead(HOURS);
    let settings = "flush_interval=0&retention=0";
    let cuts = [
        (Class::Put, 1, Fault::Stall),
        (Class::Put, 1, Fault::StallAfter),
        (Class::Delete, 1, Fault::Stall),
        (Class::Delete, 2, Fault::StallAfter),
        (Class::Put, 1, Fault::StallAfter),
        (Class::Delete, 20, Fault::StallAfter),
    ];
    for (n, (class, at, fault)) in (1..).zip(cuts) {
        let mut session = begin(&bed, "a", settings);
        let seen = AtomicU64::new(0);
        bed.proxy.rule(move |request| {
            let counts = request.class == class && is_of_the_history(request);
            (counts && seen.fetch_add(1, Ordering::SeqCst) + 1 == at).then(|| fault.clone())
        });
        for _ in 0..70 {
            commit(&mut session, &mut rng);
        }
        bed.rest();
        let now = content(&mut session);
        assert!(bed.proxy.wait_for_stalled(n), "{n} met no request of the history");
        session.kill();
        bed.proxy.heal();
        assert_eq!(bed.restored(Point::Newest), now, "killed at {n}");
        bed.judge.log();
        // What was held may still arrive.
        bed.proxy.release();
        assert_eq!(bed.restored(Point::Newest), now, "killed at {n}, and late");
        bed.judge.log();
    }
    let mut session = begin(&bed, "b", settings);
    settled(&bed, &mut session, &mut rng);
    assert_eq!(session.quit(), Some(0));
}
