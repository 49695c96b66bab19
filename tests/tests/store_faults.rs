//! What the Cloud Storage store says when the network or the service fails, through the fault proxy.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlite_gcs::store::{self, Condition, Config, Meta, SharedStore, Store, StoreError};
use sqlite_gcs_tests::emulator::{BUCKET, Emulator};
use sqlite_gcs_tests::proxy::{Class, Fault, Proxy};

fn config(endpoint: String) -> Config {
    Config {
        attempt_timeout: Duration::from_millis(400),
        deadline: Duration::from_secs(2),
        first_pause: Duration::from_millis(5),
        endpoint: Some(endpoint),
        ..Config::default()
    }
}

fn start() -> (Emulator, Proxy, SharedStore) {
    let emulator = Emulator::start();
    let proxy = Proxy::start(&emulator.host());
    let store = store::open(&format!("{}/app.db", emulator.url()).parse().unwrap(), config(proxy.endpoint()));
    (emulator, proxy, store)
}

async fn put(store: &dyn Store, name: &str, body: &'static str) -> Result<Meta, StoreError> {
    store.put(name, Bytes::from_static(body.as_bytes()), &BTreeMap::new(), Condition::Absent).await
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_the_same_bytes_again_settle_it() {
    let (_emulator, proxy, store) = start();
    for (fault, landed) in [(Fault::DropAfter, true), (Fault::DropBefore, false)] {
        let name = format!("ltx/0/{landed}.ltx");
        proxy.heal();
        proxy.fail(Class::Put, 1..=1, fault);
        let before = proxy.count(Class::Put);
        let error = put(&*store, &name, "delta").await.unwrap_err();
        assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
        assert_eq!(proxy.count(Class::Put) - before, 1, "nothing was sent again behind the caller's back");
        let again = put(&*store, &name, "delta").await;
        assert_eq!(matches!(again, Err(StoreError::Precondition(_))), landed, "{again:?}");
        assert_eq!(store.get(&name, None).await.unwrap().bytes, "delta");
    }
}

#[tokio::test]
async fn an_upload_that_lands_late_meets_the_name_taken() {
    let (_emulator, proxy, store) = start();
    proxy.fail(Class::Put, 1..=1, Fault::Stall);
    let begun = Instant::now();
    let error = put(&*store, "ltx/0/1.ltx", "late").await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15), "an attempt has its time: {:?}", begun.elapsed());
    put(&*store, "ltx/0/1.ltx", "in time").await.unwrap();
    let answers = proxy.answers();
    proxy.release();
    assert!(proxy.wait_for_answers(answers + 1), "the late one was never judged");
    assert_eq!(store.get("ltx/0/1.ltx", None).await.unwrap().bytes, "in time");
}

#[tokio::test]
async fn a_service_that_is_busy_for_a_moment_goes_unnoticed() {
    let (_emulator, proxy, store) = start();
    for status in [408, 429, 500, 503] {
        for class in [Class::Put, Class::Get, Class::List, Class::Stat, Class::Delete] {
            proxy.fail(class, 1..=2, Fault::Status(status));
        }
        let before = store.traffic().snapshot();
        let meta = put(&*store, "ltx/0/1.ltx", "delta").await.unwrap();
        assert_eq!(store.get("ltx/0/1.ltx", Some(1..3)).await.unwrap().bytes, "el");
        assert_eq!(store.list("ltx/", None).await.unwrap().len(), 1);
        store.delete("ltx/0/1.ltx", meta.generation).await.unwrap();
        let after = store.traffic().snapshot();
        let counted: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        assert_eq!(counted, [3, 3, 3, 3, 2, 15], "each attempt counts");
        proxy.heal();
    }
    let [gets, puts, lists, deletes, ..] = store.traffic().snapshot();
    let passed = [Class::Get, Class::Put, Class::List, Class::Delete].map(|class| proxy.count(class));
    assert_eq!(passed, [gets, puts, lists, deletes], "and is what the bucket saw");
}

#[tokio::test]
async fn a_write_that_the_service_did_and_denied_meets_itself() {
    let (_emulator, proxy, store) = start();
    proxy.fail(Class::Put, 1..=1, Fault::StatusAfter(503));
    let error = put(&*store, "ltx/0/1.ltx", "delta").await.unwrap_err();
    assert!(matches!(error, StoreError::Precondition(_)), "{error}");
    assert_eq!(store.get("ltx/0/1.ltx", None).await.unwrap().bytes, "delta");
}

#[tokio::test]
async fn a_service_that_stays_busy_is_unavailable_to_readers_and_unknown_to_writers() {
    let (_emulator, proxy, store) = start();
    proxy.rule(|_| Some(Fault::Status(503)));
    let begun = Instant::now();
    let error = store.get("a", None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    let error = put(&*store, "a", "x").await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }) && error.to_string().contains("503"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert!(proxy.requests() < 200, "pauses grow: {} requests", proxy.requests());
}

#[tokio::test]
async fn a_stalled_read_is_cut_off_and_made_again() {
    let (_emulator, proxy, store) = start();
    put(&*store, "a", "content").await.unwrap();
    for fault in [Fault::Stall, Fault::StallAfter] {
        for class in [Class::Get, Class::Stat, Class::List] {
            proxy.fail(class, 1..=1, fault.clone());
        }
        let begun = Instant::now();
        assert_eq!(store.get("a", None).await.unwrap().bytes, "content");
        assert_eq!(store.list("", None).await.unwrap().len(), 1);
        assert_eq!(store.get_dated("a").await.unwrap().bytes, "content");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        proxy.heal();
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_asked_for_again() {
    let (_emulator, proxy, store) = start();
    put(&*store, "a", "0123456789").await.unwrap();
    for range in [None, Some(2..8)] {
        proxy.fail(Class::Get, 1..=2, Fault::CutBody(3));
        let before = proxy.count(Class::Get);
        let object = store.get("a", range.clone()).await.unwrap();
        assert_eq!(object.bytes, if range.is_none() { "0123456789" } else { "234567" });
        assert_eq!(proxy.count(Class::Get) - before, 3);
        proxy.heal();
    }
    proxy.fail(Class::List, 1..=1, Fault::CutBody(20));
    assert_eq!(store.list("", None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_refused_by_name() {
    let (_emulator, proxy, _) = start();
    let store = store::open(&"gs://other-bucket/app.db".parse().unwrap(), config(proxy.endpoint()));
    for error in [put(&*store, "a", "x").await.unwrap_err(), store.list("", None).await.unwrap_err()] {
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("other-bucket"), "{error}");
    }
    assert_eq!(proxy.requests(), 2, "and not asked again");
}

#[tokio::test]
async fn what_was_written_is_there_when_the_bucket_comes_back() {
    let mut emulator = Emulator::start_on_disk();
    let url = format!("gs://{BUCKET}/app.db").parse().unwrap();
    let store = store::open(&url, config(emulator.endpoint()));
    let meta = put(&*store, "ltx/0/1.ltx", "delta").await.unwrap();
    emulator.stop();
    // The first one may go out on a connection that only then turns out to be dead.
    let error = put(&*store, "ltx/0/2.ltx", "delta").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let error = put(&*store, "ltx/0/2.ltx", "delta").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "nothing could be sent: {error}");
    assert!(matches!(store.get("ltx/0/1.ltx", None).await, Err(StoreError::Unavailable { .. })));
    emulator.restart();
    let object = store.get("ltx/0/1.ltx", None).await.unwrap();
    assert_eq!((object.bytes, object.meta.generation), (Bytes::from("delta"), meta.generation));
    put(&*store, "ltx/0/2.ltx", "delta").await.unwrap();
    assert!(matches!(put(&*store, "ltx/0/1.ltx", "other").await, Err(StoreError::Precondition(_))));
}

/// In a process of its own, where no credentials can be found and none are looked for outside of the machine.
#[tokio::test]
async fn without_credentials_nothing_is_sent() {
    if std::env::var("GCE_METADATA_HOST").as_deref() != Ok("127.0.0.1:1") {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "without_credentials_nothing_is_sent", "--nocapture"])
            .env("GCE_METADATA_HOST", "127.0.0.1:1")
            .env("GCE_METADATA_IP", "127.0.0.1:1")
            .env("GCE_METADATA_ROOT", "127.0.0.1:1")
            .env("HOME", "/nonexistent")
            .env_remove("GOOGLE_APPLICATION_CREDENTIALS")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let store = store::open(&"gs://some-bucket".parse().unwrap(), Config { endpoint: None, ..config(String::new()) });
    let begun = Instant::now();
    let errors = [
        put(&*store, "a", "x").await.map(|_| ()).unwrap_err(),
        store.get("a", None).await.map(|_| ()).unwrap_err(),
        store.list("", None).await.map(|_| ()).unwrap_err(),
    ];
    for error in errors {
        // Never unknown: without a token nothing can have been written.
        assert!(matches!(error, StoreError::Unavailable { .. } | StoreError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("failed to fetch token"), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
