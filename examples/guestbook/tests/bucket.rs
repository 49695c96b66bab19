//! The app on a database in a bucket (a local directory): lost disks, kill -9, two instances.
#![allow(clippy::unwrap_used, missing_docs)] // tests

mod app;

use std::path::Path;
use std::time::{Duration, Instant};

use app::App;
use nix::sys::signal::Signal;
use serde_json::Value;

fn stored(app: &App) -> Vec<String> {
    let json: Value = serde_json::from_str(&app.get("/entries.json?limit=1000").body).unwrap();
    let entries = json["entries"].as_array().unwrap();
    entries.iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
}

fn wipe(disk: &Path) {
    std::fs::remove_dir_all(disk).unwrap();
}

#[test]
fn an_answered_entry_survives_kill_9_and_the_loss_of_the_disk() {
    let bucket = tempfile::tempdir().unwrap();
    for (parameters, answer) in [
        ("durability=commit&lease_ttl=5s", "commit"),
        ("durability=background&flush_interval=60s&lease_ttl=5s", "flush"),
    ] {
        let disk = bucket.path().join("disk");
        let settings = [("GUESTBOOK_ANSWER", answer)];
        let place = bucket.path().join(answer);
        std::fs::create_dir(&place).unwrap();
        for round in 0..3 {
            let mut app = App::start_in(&place, &disk, parameters, &settings);
            assert_eq!(stored(&app).len(), round, "{answer}");
            // A killed writer leaves its lease behind: the next one waits until it has expired.
            app.until_signed("Ada", &format!("round+{round}"), Duration::from_secs(60));
            app.signal(Signal::SIGKILL);
            app.ended(Duration::from_secs(5));
            wipe(&disk);
        }
    }
}

#[test]
fn a_stopped_writer_hands_over_and_its_successor_writes_at_once() {
    let bucket = tempfile::tempdir().unwrap();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut old = App::start_in(bucket.path(), first.path(), "durability=commit", &[]);
    assert_eq!(old.sign("Ada", "from+the+old").status, 303);
    old.signal(Signal::SIGTERM);
    assert!(old.ended(Duration::from_secs(8)).success());
    let new = App::start_in(bucket.path(), second.path(), "durability=commit", &[]);
    assert_eq!(stored(&new), ["from the old"]);
    let started = Instant::now();
    assert_eq!(new.sign("Ada", "from+the+new").status, 303);
    assert!(started.elapsed() < Duration::from_secs(4), "the write took {:?}", started.elapsed());
    new.until("/health", "writer");
}

#[test]
fn two_instances_write_by_turns_and_lose_nothing() {
    let bucket = tempfile::tempdir().unwrap();
    let disks = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let settings = [("GUESTBOOK_WAIT", "20s")];
    let apps = disks.each_ref().map(|disk| App::start_in(bucket.path(), disk.path(), "durability=commit", &settings));
    let mut expected = Vec::new();
    for turn in 0..4 {
        let message = format!("turn{turn}");
        assert_eq!(apps[turn % 2].sign("Ada", &message).status, 303, "{message}");
        expected.insert(0, message);
        assert_eq!(stored(&apps[turn % 2]), expected);
    }
}

#[test]
fn the_panel_and_the_metrics_show_what_the_database_says() {
    let (bucket, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let app = App::start_in(bucket.path(), disk.path(), "durability=commit", &[]);
    assert_eq!(app.sign("Ada", "hello").status, 303);
    app.until("/metrics", "role=\"writer\"");
    let metrics = app.get("/metrics").body;
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    };
    assert!(value("sqlite_gcs_committed_txid") > 0.0);
    assert_eq!(value("sqlite_gcs_committed_txid"), value("sqlite_gcs_durable_txid"));
    assert!(metrics.contains("sqlite_gcs_requests_total{kind=\"put\"}"));
    let page = app.get("/").body;
    for part in ["all of it in the bucket", "Cold open", "Bucket requests", "Local cache", "Upload lag"] {
        assert!(page.contains(part), "no {part}");
    }
}
