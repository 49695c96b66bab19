//! `PRAGMA gcs_rewind`: a state of the past becomes the newest one, as one more commit; nothing is erased, nobody is overrun.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::Duration;

use serde_json::Value;
use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::content::content_on;
use sqlite_gcs_tests::litestream::Point;
use sqlite_gcs_tests::machine::Session;

/// Runs statements, and returns the TXID that they are in the bucket as.
fn step(session: &mut Session, sql: &str) -> String {
    for sql in sql.split(';').filter(|sql| !sql.trim().is_empty()) {
        session.sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    session.sql("PRAGMA gcs_flush").unwrap()[0][0].as_str().unwrap().to_owned()
}

#[test]
fn any_state_comes_back_whole_and_those_in_between_stay() {
    let bed = Bed::new();
    let mut rng = fastrand::Rng::with_seed(11);
    let mut session = bed.host("a", "flush_interval=0").open();
    session.connect("other", Duration::from_secs(5)).unwrap();
    // Pages that are freed are not written then.
    session.sql("PRAGMA secure_delete=OFF").unwrap();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)";
    let fill = format!("{many} INSERT OR REPLACE INTO t SELECT i, hex(randomblob(300)) FROM n");
    let mut states: Vec<(String, String)> = Vec::new();
    let steps = [
        "CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT)",
        &fill,
        "UPDATE t SET text = 'x' WHERE id % 7 = 0",
        "DELETE FROM t WHERE id > 20; VACUUM",
        "CREATE TABLE u AS SELECT hex(randomblob(200000)) AS a",
        "CREATE INDEX i ON t(text); DROP TABLE u",
        &fill,
        "DELETE FROM t; DROP INDEX i",
        "VACUUM",
    ];
    for sql in steps {
        let txid = step(&mut session, sql);
        states.push((txid, content_on(&mut session, "db")));
    }
    for round in 0..10 {
        // First of all from a database that was cut off to one whose pages were not written again since.
        let at = if round == 0 { 6 } else { rng.usize(0..states.len()) };
        let (txid, expected) = states[at].clone();
        // A reader in the middle of a transaction keeps its snapshot.
        let before = content_on(&mut session, "other");
        session.sql_on("other", "BEGIN").unwrap();
        assert_eq!(content_on(&mut session, "other"), before);
        let now = session.sql(&format!("PRAGMA gcs_rewind='{txid}'")).unwrap();
        let now = now[0][0].as_str().unwrap().to_owned();
        assert_eq!(content_on(&mut session, "other"), before, "round {round}: its snapshot");
        session.sql_on("other", "COMMIT").unwrap();
        for name in ["db", "other"] {
            assert_eq!(content_on(&mut session, name), expected, "round {round}: {name} at {txid}");
            assert_eq!(session.sql_on(name, "PRAGMA integrity_check").unwrap(), [["ok"]]);
        }
        assert_eq!(bed.restored(Point::Newest), expected);
        assert_eq!(bed.restored(Point::TxId(&now)), expected);
        states.push((now, expected));
        if rng.bool() {
            session.sql("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
        if rng.bool() {
            let txid = step(&mut session, &fill);
            states.push((txid, content_on(&mut session, "db")));
        }
    }
    for (txid, expected) in states.iter().step_by(4) {
        assert_eq!(bed.restored(Point::TxId(txid)), *expected, "nothing is erased: {txid}");
    }
    let now = content_on(&mut session, "db");
    assert_eq!(session.quit(), Some(0));
    let mut session = bed.host("b", "").open();
    assert_eq!(content_on(&mut session, "db"), now, "a cold open");
}

#[test]
fn a_connection_that_knew_a_later_schema_reads_the_schema_anew() {
    let bed = Bed::new();
    let mut session = bed.with_table("a", "flush_interval=0");
    let first = step(&mut session, "INSERT INTO t VALUES (1, 'x')");
    step(&mut session, "CREATE TABLE u(a); INSERT INTO u VALUES (1)");
    session.connect("other", Duration::from_secs(5)).unwrap();
    assert_eq!(session.sql_on("other", "SELECT count(*) FROM u").unwrap(), [[1]]);
    session.sql(&format!("PRAGMA gcs_rewind='{first}'")).unwrap();
    // As many changes of the schema as `other` has seen.
    step(&mut session, "CREATE TABLE v(b, c); INSERT INTO v VALUES (2, 3)");
    let error = session.sql_on("other", "SELECT * FROM u").unwrap_err();
    assert!(error.text.contains("no such table"), "{error}");
    assert_eq!(session.sql_on("other", "SELECT * FROM v").unwrap(), [[2, 3]]);
}

#[test]
fn it_is_refused_while_somebody_writes_and_changes_nothing() {
    let bed = Bed::new();
    let mut session = bed.with_table("a", "flush_interval=0");
    let first = step(&mut session, "INSERT INTO t VALUES (1, 'x')");
    step(&mut session, "INSERT INTO t VALUES (2, 'x')");
    session.connect("other", Duration::ZERO).unwrap();
    session.sql_on("other", "BEGIN IMMEDIATE").unwrap();
    let error = session.sql(&format!("PRAGMA gcs_rewind='{first}'")).unwrap_err();
    assert!(error.text.contains("somebody writes"), "{error}");
    session.sql_on("other", "INSERT INTO t VALUES (3, 'x')").unwrap();
    session.sql_on("other", "COMMIT").unwrap();
    assert_eq!(session.number("SELECT count(*) FROM t"), 3);
    for (point, why) in [("tomorrow", "not understood"), ("00000000000000ff", "there is no state")] {
        let error = session.sql(&format!("PRAGMA gcs_rewind='{point}'")).unwrap_err();
        assert!(error.text.contains(why), "{error}");
    }
    // Another host has the lease.
    let mut elsewhere = bed.host("b", "lease_ttl=40s").open();
    let error = elsewhere.sql(&format!("PRAGMA gcs_rewind='{first}'")).unwrap_err();
    assert!(error.text.contains("writes now"), "{error}");
    assert_eq!(elsewhere.quit(), Some(0));
    assert_eq!(session.quit(), Some(0));
    // The first statement of a process.
    let mut session = bed.host("a", "").open();
    session.sql(&format!("PRAGMA gcs_rewind='{first}'")).unwrap();
    assert_eq!(session.number("SELECT count(*) FROM t"), 1);
    assert_eq!(session.status()["last_error"], Value::Null);
    assert_eq!(session.quit(), Some(0));
    assert_eq!(bed.judge.rows().len(), 1);
}
