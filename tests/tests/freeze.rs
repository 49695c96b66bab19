//! SIGSTOP for longer than the lease, as Cloud Run does to the CPU between requests: before, inside and after an upload, with
//! and without another host that takes over meanwhile.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::machine::FENCED;
use sqlite_gcs_tests::proxy::{Class, Fault};

/// Longer than a lease of 5 s and its slack.
const LONG: Duration = Duration::from_millis(7_500);

/// When the host freezes: before its upload arrives, after it arrived and before the answer, or with nothing under way.
fn a_frozen_writer(durability: &str, fault: Option<Fault>, taken_over: bool) {
    let bed = Bed::new();
    let settings = format!("durability={durability}&lease_ttl=5s&flush_interval=0");
    let one = bed.host("a", &settings);
    let mut a = bed.with_table("a", &settings);
    a.sql("PRAGMA gcs_flush").unwrap();
    let mut b = bed.host("b", "durability=commit&lease_ttl=5s").open();
    let lands = fault == Some(Fault::StallAfter);
    let is_stalled = fault.is_some();
    let head = bed.judge.head();
    if let Some(fault) = fault {
        bed.proxy
            .rule(move |request| (request.class == Class::Put && request.path.contains("ltx")).then(|| fault.clone()));
    }
    a.later("commit", "db", "INSERT INTO t VALUES (1, 'a')");
    if is_stalled {
        assert!(bed.proxy.wait_for_stalled(1));
    } else {
        a.finished("commit").1.unwrap();
    }
    a.signal(Signal::SIGSTOP);
    if lands {
        assert_eq!(bed.judge.head(), head + 1);
    }
    bed.proxy.heal();
    if taken_over {
        b.sql("INSERT INTO t VALUES (2, 'b')").unwrap();
    } else {
        thread::sleep(LONG);
    }
    bed.proxy.release();
    a.signal(Signal::SIGCONT);
    let outcome = if is_stalled { a.finished("commit").1.map(drop) } else { Ok(()) };
    if durability != "background" {
        // The log decides, and the answer says what the log decided.
        let is_there = bed.judge.rows().contains_key(&1);
        match &outcome {
            Ok(()) => assert!(is_there, "acknowledged"),
            Err(error) => assert!(
                !is_there && [FENCED, 10 | (104 << 8)].contains(&error.code),
                "{error}, there: {is_there}\n{}",
                one.log()
            ),
        }
    }
    // It goes on, on what there is now; after a fence when it is opened anew.
    if a.sql("INSERT INTO t VALUES (3, 'a')").is_err() {
        a.quit();
        a = one.open();
        a.sql("INSERT INTO t VALUES (3, 'a')").unwrap();
    }
    assert_eq!((a.quit(), b.quit()), (Some(0), Some(0)));
    let rows = bed.judge.rows();
    assert!(rows.values().all(|count| *count == 1), "{rows:?}");
    assert_eq!(rows.get(&3), Some(&1));
    assert_eq!(rows.contains_key(&2), taken_over);
    if !rows.contains_key(&1) {
        assert!(taken_over, "nobody was between: nothing may be lost");
        if durability != "strict" {
            let kept = bed.judge.rows_kept(&one.conflicts()[0]);
            assert!(kept.contains_key(&1), "{kept:?}");
        }
    }
}

#[test]
fn a_freeze_with_nothing_under_way_harms_nothing() {
    for taken_over in [false, true] {
        a_frozen_writer("commit", None, taken_over);
    }
}

#[test]
fn a_freeze_inside_an_upload_that_arrives_late_is_told_by_the_log() {
    for taken_over in [false, true] {
        a_frozen_writer("commit", Some(Fault::Stall), taken_over);
    }
}

#[test]
fn a_freeze_between_an_upload_and_its_answer_is_told_by_the_log() {
    for taken_over in [false, true] {
        a_frozen_writer("commit", Some(Fault::StallAfter), taken_over);
    }
}

#[test]
fn a_strict_commit_is_told_by_the_log_as_well() {
    for fault in [Fault::Stall, Fault::StallAfter] {
        a_frozen_writer("strict", Some(fault), true);
    }
}

#[test]
fn in_the_background_a_frozen_commit_is_there_or_kept_aside() {
    for fault in [Fault::Stall, Fault::StallAfter] {
        a_frozen_writer("background", Some(fault), true);
    }
}
