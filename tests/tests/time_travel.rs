//! `at=` and `gcs_history()`: states of the past, opened beside the live database, against what Litestream restores.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::Duration;

use serde_json::Value;
use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::content::{content, content_at};
use sqlite_gcs_tests::litestream::Point;
use sqlite_gcs_tests::machine::{Host, Session};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A host whose database has a history of so many transactions, one object each.
fn with_history(bed: &Bed, settings: &str, transactions: i64) -> (Host, Session) {
    let host = bed.host("a", settings);
    let mut session = host.open();
    session.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT)").unwrap();
    session.sql("PRAGMA gcs_flush").unwrap();
    for n in 0..transactions {
        let id = n % 17;
        session.sql(&format!("INSERT OR REPLACE INTO t VALUES ({id}, '{n}-' || hex(randomblob({})))", n * 40)).unwrap();
        session.sql("PRAGMA gcs_flush").unwrap();
    }
    (host, session)
}

fn history(session: &mut Session) -> Vec<(String, String)> {
    let rows = session
        .sql("SELECT json_extract(value, '$.txid'), json_extract(value, '$.time') FROM json_each(gcs_history())")
        .unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.iter().map(|row| (text(&row[0]), text(&row[1]))).collect()
}

fn files(host: &Host) -> Vec<String> {
    let folder = std::fs::read_dir(host.file().parent().unwrap()).unwrap().flatten();
    let mut names: Vec<String> = folder.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_a_killed_process_left_unsent_gets_its_time_from_the_log() {
    let bed = Bed::new();
    let (host, mut session) = with_history(&bed, "flush_interval=60s", 1);
    session.sql("INSERT INTO t VALUES (100, 'unsent')").unwrap();
    session.kill();
    // Behind a seal, whose time is that of the takeover.
    let mut session = host.open();
    session.sql("PRAGMA gcs_flush").unwrap();
    // Litestream knows no time after the last.
    session.sql("INSERT INTO t VALUES (101, 'after it')").unwrap();
    session.sql("PRAGMA gcs_flush").unwrap();
    let points = history(&mut session);
    let times: Vec<_> = points.iter().map(|(_, time)| OffsetDateTime::parse(time, &Rfc3339).unwrap()).collect();
    assert!(times.is_sorted(), "{points:?}");
    let (txid, time) = &points[points.len() - 2];
    let expected = bed.restored(Point::TxId(txid));
    assert!(expected.contains("unsent"), "{expected}");
    let after = (OffsetDateTime::parse(time, &Rfc3339).unwrap() + Duration::from_millis(1)).format(&Rfc3339).unwrap();
    assert_eq!(bed.restored(Point::Timestamp(&after)), expected, "litestream before {after}");
    assert_eq!(session.quit(), Some(0));
}

#[test]
fn every_point_opens_as_litestream_restores_it() {
    let bed = Bed::new();
    let (host, mut session) = with_history(&bed, "flush_interval=0", 90);
    let points = history(&mut session);
    assert_eq!(points.len(), 92, "the first page, the table, and each row");
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..5 {
        let (txid, time) = &points[rng.usize(2..points.len() - 1)];
        let expected = bed.restored(Point::TxId(txid));
        assert_eq!(content_at(&mut session, &host, txid), expected, "as of {txid}");
        // A time means the newest state not after it; Litestream's `-timestamp` the newest before it.
        assert_eq!(content_at(&mut session, &host, time), expected, "as of {time}");
        let after = OffsetDateTime::parse(time, &Rfc3339).unwrap() + Duration::from_millis(1);
        let after = after.format(&Rfc3339).unwrap();
        assert_eq!(bed.restored(Point::Timestamp(&after)), expected, "litestream before {after}");
    }
    let now = content(&mut session);
    assert_eq!(content_at(&mut session, &host, "-0s"), now);
}

#[test]
fn a_state_of_the_past_is_lazy_read_only_and_nothing_to_the_live_database() {
    let bed = Bed::new();
    let (host, mut session) = with_history(&bed, "flush_interval=0", 60);
    let points = history(&mut session);
    let before = files(&host);
    let (txid, _) = &points[40];
    let uri = format!("{}&at={txid}", host.uri());
    session.sql(&format!("ATTACH '{uri}' AS past")).unwrap();
    let status = session.sql("SELECT gcs_status('past')").unwrap();
    let status: Value = serde_json::from_str(status[0][0].as_str().unwrap()).unwrap();
    assert_eq!((&status["role"], &status["txid"]), (&"past".into(), &txid.as_str().into()));
    assert!(status["pages_present"].as_u64() < status["pages_total"].as_u64(), "{status}");
    // A diff, and the rescue of a row, while the live database goes on.
    assert!(session.number("SELECT count(*) FROM t JOIN past.t AS old USING (id) WHERE t.text <> old.text") > 0);
    session.sql("DELETE FROM t WHERE id = 3").unwrap();
    session.sql("INSERT INTO t SELECT * FROM past.t WHERE id = 3").unwrap();
    session.sql("PRAGMA gcs_flush").unwrap();
    assert_eq!(session.number("SELECT count(*) FROM t JOIN past.t AS old USING (id, text) WHERE id = 3"), 1);
    for write in ["DELETE FROM past.t", "CREATE TABLE past.u(a)", "PRAGMA past.gcs_flush"] {
        let error = session.sql(write).unwrap_err();
        assert!(error.text.contains("read-only") || error.text.contains("readonly"), "{write}: {error}");
    }
    assert_eq!(files(&host), before, "it left files behind");
    session.sql("DETACH past").unwrap();
    let now = content(&mut session);
    assert_eq!(session.quit(), Some(0));
    assert_eq!(bed.restored(Point::Newest), now);
    // Without a live database it makes none.
    let other = bed.host("b", "");
    let mut session = other.boot();
    session.connect_to("past", &format!("{}&at={txid}", other.uri()), Duration::from_secs(1)).unwrap();
    assert_eq!(session.sql_on("past", "SELECT count(*) > 0 FROM t").unwrap(), [[1]]);
    assert_eq!(files(&other), ["log"]);
}

#[test]
fn what_cannot_be_opened_is_refused_with_what_can() {
    let bed = Bed::new();
    let (host, mut session) = with_history(&bed, "flush_interval=0", 2);
    for (at, why) in [
        ("yesterday", "a TXID of 16 lowercase hexadecimal digits"),
        ("-3y", "such as -15m"),
        ("2020-01-01T00:00:00Z", "nothing is kept from as early"),
        ("-9h", "nothing is kept from as early"),
        ("2199-01-01T00:00:00Z", "lies in the future"),
        ("00000000000000ff", "there is no state as of transaction 00000000000000ff"),
    ] {
        let opened = session.connect_to("past", &format!("{}&at={at}", host.uri()), Duration::from_secs(1));
        // Python opens at the first statement.
        let error = opened.and_then(|()| session.sql_on("past", "SELECT 1 FROM t").map(drop)).unwrap_err();
        assert_eq!(error.code & 0xff, 14, "{at}: {error}");
        assert!(host.log().contains(why), "{at}: {}", host.log());
    }
}

#[test]
fn a_state_that_is_not_kept_any_more_gives_an_error_and_no_wrong_answer() {
    let bed = Bed::new();
    let (host, mut session) = with_history(&bed, "flush_interval=0&retention=0", 60);
    session.sql("CREATE TABLE large(text)").unwrap();
    session.sql("INSERT INTO large VALUES (hex(randomblob(200000)))").unwrap();
    session.sql("PRAGMA gcs_flush").unwrap();
    let points = history(&mut session);
    let (txid, _) = points.last().unwrap();
    let expected = session.sql("SELECT text FROM large").unwrap();
    let mut reader = host.boot();
    let uri = format!("{}&at={txid}", host.uri());
    reader.connect_to("past", &uri, Duration::from_secs(1)).unwrap();
    reader.connect_to("kept", &uri, Duration::from_secs(1)).unwrap();
    assert_eq!(reader.sql_on("past", "SELECT count(*) FROM t").unwrap(), [[17]]);
    bed.proxy.set_clock_ahead(Duration::from_secs(3 * 3600));
    for _ in 0..3 {
        session.sql("UPDATE large SET text = hex(randomblob(200000))").unwrap();
        for n in 0..70 {
            session.sql(&format!("UPDATE t SET text = {n} WHERE id = 1")).unwrap();
            session.sql("PRAGMA gcs_flush").unwrap();
        }
        session.sql("PRAGMA wal_checkpoint").unwrap();
    }
    let is_gone = sqlite_gcs_tests::poll(Duration::from_secs(10), || {
        session.sql("UPDATE t SET text = 'x' WHERE id = 1").unwrap();
        !history(&mut session).iter().any(|(kept, _)| kept == txid)
    });
    assert!(is_gone, "{txid} is still kept");
    match reader.sql_on("past", "SELECT text FROM large") {
        Ok(rows) => assert_eq!(rows, expected),
        Err(error) => assert_eq!(error.code & 0xff, 10, "{error}"),
    }
    assert!(host.log().contains("is not kept any more"), "{}", host.log());
    assert_eq!(session.sql("SELECT length(text) FROM large").unwrap(), [[400_000]]);
}
