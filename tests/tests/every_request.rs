//! The Nth request fails, for N = 1, 2, 3 and so on, once or from then on, until a run passes without meeting the fault: open,
//! write, flush, takeover and close.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::judge::Rows;
use sqlite_gcs_tests::machine::{Host, SqlError};
use sqlite_gcs_tests::proxy::Fault;

/// What one run left behind.
#[derive(Default)]
struct Run {
    acknowledged: Vec<i64>,
    errors: Vec<SqlError>,
    slowest: Duration,
}

impl Run {
    fn note(&mut self, begun: Instant, outcome: Result<(), SqlError>, id: Option<i64>) {
        self.slowest = self.slowest.max(begun.elapsed());
        match (outcome, id) {
            (Ok(()), Some(id)) => self.acknowledged.push(id),
            (Ok(()), None) => {}
            (Err(error), _) => self.errors.push(error),
        }
    }
}

/// Opens, writes, flushes and closes on one host, then takes over on another with the same fault about.
fn run(one: &Host, two: &Host, base: i64) -> Run {
    let mut run = Run::default();
    for (host, id) in [(one, base), (two, base + 10)] {
        let mut session = host.boot();
        let begun = Instant::now();
        let opened = session.connect("db", Duration::from_secs(1));
        let is_open = opened.is_ok();
        run.note(begun, opened, None);
        if is_open {
            for id in [id, id + 1] {
                let begun = Instant::now();
                let wrote = session.sql(&format!("INSERT INTO t VALUES ({id}, 'x')")).map(drop);
                run.note(begun, wrote, Some(id));
            }
            let begun = Instant::now();
            let flushed = session.sql("PRAGMA gcs_flush").map(drop);
            run.note(begun, flushed, None);
        }
        let begun = Instant::now();
        assert_eq!(session.quit(), Some(0), "it ends by itself");
        run.slowest = run.slowest.max(begun.elapsed());
    }
    run
}

/// Nobody holds the lease any more, and nothing is left to send.
fn settle(hosts: &[&Host]) {
    let begun = Instant::now();
    let mut left: Vec<&Host> = hosts.to_vec();
    while !left.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", left[0].log());
        left.retain(|host| {
            let mut session = host.open();
            let wrote =
                session.sql("INSERT INTO t VALUES (-1, 'x')").and_then(|_| session.sql("DELETE FROM t WHERE id < 0"));
            let is_free = wrote.and_then(|_| session.sql("PRAGMA gcs_flush")).is_ok();
            session.quit();
            !is_free
        });
    }
}

fn every_request(durability: &str, fault: Fault, for_good: bool) {
    let bed = Bed::new();
    let settings = format!("durability={durability}&lease_ttl=5s&request_timeout=500ms&commit_timeout=1s");
    let (one, two) = (bed.host("a", &settings), bed.host("b", &settings));
    let mut first = bed.with_table("a", &settings);
    first.sql("PRAGMA gcs_flush").unwrap();
    first.quit();
    let mut acknowledged = Vec::new();
    // A bucket that is gone for good costs every operation its whole time: every fifth request will do.
    for n in (1..).step_by(if for_good { 5 } else { 1 }) {
        assert!(n < 80, "no run passed without meeting the fault");
        let met = Arc::new(AtomicBool::new(false));
        let (seen, meets, fault) = (AtomicU64::new(0), Arc::clone(&met), fault.clone());
        bed.proxy.heal();
        bed.proxy.rule(move |_| {
            let this = seen.fetch_add(1, Ordering::SeqCst) + 1;
            let hit = this == n || for_good && this > n;
            meets.fetch_or(hit, Ordering::SeqCst);
            hit.then(|| fault.clone())
        });
        let of_run = run(&one, &two, n as i64 * 100);
        bed.proxy.heal();
        bed.proxy.release();
        assert!(of_run.slowest < Duration::from_secs(25), "request {n}: {:?}", of_run.slowest);
        for error in &of_run.errors {
            // Never an error that tells nothing; 1 comes from gcs_flush, with our own text.
            assert!([1, 5, 8, 10, 14].contains(&(error.code & 0xff)), "request {n}: {error}");
            assert_ne!(error.code, 10, "request {n}: an I/O error of nobody's");
        }
        acknowledged.extend(of_run.acknowledged);
        if for_good || !of_run.errors.is_empty() {
            settle(&[&one, &two]);
        }
        if !met.load(Ordering::SeqCst) {
            assert!(of_run.errors.is_empty(), "{:?}", of_run.errors);
            eprintln!(
                "{durability}, {fault_name}: {n} runs, {} rows",
                acknowledged.len(),
                fault_name = if for_good { "from then on" } else { "once" }
            );
            break;
        }
    }
    // What the hosts still hold goes up, or was kept aside in background mode.
    let mut kept = Rows::new();
    for host in [&one, &two] {
        let mut session = host.open();
        session.sql("PRAGMA gcs_flush").unwrap();
        assert_eq!(session.quit(), Some(0));
        for folder in host.conflicts() {
            kept.extend(bed.judge.rows_kept(&folder));
        }
    }
    let rows = bed.judge.rows();
    for id in &acknowledged {
        let there = rows.get(id) == Some(&1);
        assert!(there || durability == "background" && kept.contains_key(id), "row {id} was acknowledged");
    }
    assert!(rows.values().all(|count| *count == 1), "{rows:?}");
}

#[test]
fn any_one_answer_may_be_lost() {
    every_request("commit", Fault::DropAfter, false);
}

#[test]
fn any_one_answer_may_be_lost_in_the_background() {
    every_request("background", Fault::DropAfter, false);
}

#[test]
fn any_one_answer_may_be_lost_to_a_strict_commit() {
    every_request("strict", Fault::DropAfter, false);
}

#[test]
fn the_bucket_may_be_gone_from_any_request_on() {
    every_request("commit", Fault::DropBefore, true);
}

#[test]
#[ignore = "minutes"]
fn the_bucket_may_be_gone_from_any_request_on_in_every_mode() {
    for durability in ["background", "commit", "strict"] {
        for fault in [
            Fault::DropBefore,
            Fault::DropAfter,
            Fault::Status(503),
            Fault::StatusAfter(500),
            Fault::CutBody(3),
            Fault::Stall,
        ] {
            every_request(durability, fault.clone(), false);
            every_request(durability, fault, true);
        }
    }
}
