//! Hosts that overlap: killed, frozen, restarted with and without their disks, over a network that breaks.
//!
//! What holds in the end: every row that was acknowledged as durable is there exactly once, in a log without a gap that
//! Litestream restores; and in background mode what is missing is what an error or a conflict folder named.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::judge::assert_kept;
use sqlite_gcs_tests::machine::{BUSY, FENCED, Host, Load, UNAVAILABLE, Written};
use sqlite_gcs_tests::proxy::Fault;

/// What becomes of a host at the end of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Closed,
    Killed,
    KilledAndWiped,
    /// Stopped for shorter or longer than its lease, then goes on.
    Frozen,
}

struct Plan {
    hosts: u32,
    rounds: u32,
    durability: &'static str,
    ends: &'static [End],
    faults: bool,
}

/// Says at its end that all is over.
struct OverAtLast<'a>(&'a AtomicBool);

impl Drop for OverAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs the plan and returns, per host, what it wrote.
fn run(bed: &Bed, plan: &Plan, seed: u64) -> Vec<(Host, Vec<Written>)> {
    eprintln!("seed {seed}");
    let settings = format!("durability={}&lease_ttl=5s&flush_interval=1s&request_timeout=2s", plan.durability);
    let mut first = bed.with_table("h0", &settings);
    first.sql("PRAGMA gcs_flush").unwrap();
    first.quit();
    let (rounds, next, over) = (AtomicU32::new(0), AtomicI64::new(0), AtomicBool::new(false));
    let written = thread::scope(|scope| {
        // Also when a host's thread panics.
        let _over = OverAtLast(&over);
        if plan.faults {
            scope.spawn(|| break_things(bed, seed, &over));
        }
        let hosts: Vec<_> = (0..plan.hosts)
            .map(|n| {
                let host = bed.host(&format!("h{n}"), &settings);
                let random = fastrand::Rng::with_seed(seed + u64::from(n));
                let (rounds, next) = (&rounds, &next);
                scope.spawn(move || (host.clone(), live(&host, plan, random, rounds, next)))
            })
            .collect();
        hosts.into_iter().map(|host| host.join().unwrap()).collect::<Vec<_>>()
    });
    bed.proxy.heal();
    bed.proxy.release();
    // What a killed host left on its disk goes up, or aside.
    for (host, _) in &written {
        let mut session = host.open();
        session.sql("SELECT count(*) FROM t").unwrap_or_else(|error| panic!("{error}: {}", host.log()));
        session.sql("PRAGMA gcs_flush").unwrap_or_else(|error| panic!("{error}: {}", host.log()));
        assert_eq!(session.quit(), Some(0));
    }
    written
}

fn live(host: &Host, plan: &Plan, mut random: fastrand::Rng, rounds: &AtomicU32, next: &AtomicI64) -> Vec<Written> {
    let mut all = Vec::new();
    while rounds.fetch_add(1, Ordering::SeqCst) < plan.rounds {
        let end = random.choice(plan.ends).copied().unwrap();
        let load = Load {
            first: next.fetch_add(100_000, Ordering::SeqCst),
            seconds: 1.0 + random.f64() * 9.0,
            timeout: 10.0,
            pause: 0.01,
            ..Load::default()
        };
        let mut session = host.boot();
        session.begin_write(&load);
        let written = match end {
            End::Closed => session.end_write(&load),
            End::Frozen => {
                let mut written =
                    session.follow_write(random.usize(..40), Duration::from_secs_f64(random.f64() * 12.0));
                session.signal(Signal::SIGSTOP);
                thread::sleep(Duration::from_secs_f64(if random.bool() { 0.3 } else { 8.0 }));
                session.signal(Signal::SIGCONT);
                session.end_write_after(&mut written, &load);
                written
            }
            End::Killed | End::KilledAndWiped => {
                // In the middle of its turn, or before it got one.
                let mut written =
                    session.follow_write(random.usize(..40), Duration::from_secs_f64(random.f64() * 12.0));
                session.signal(Signal::SIGKILL);
                session.end_write_after(&mut written, &load);
                assert!(session.wait(Duration::from_secs(10)).is_none());
                written
            }
        };
        let errors: BTreeSet<i64> = written.failed.iter().map(|(_, error)| error.code).collect();
        eprintln!("{} {end:?}: {} rows, errors {errors:?}", load.first, written.acknowledged.len());
        for (id, error) in &written.failed {
            let ours = [BUSY, FENCED & 0xff, UNAVAILABLE & 0xff, 14].contains(&(error.code & 0xff));
            assert!(ours, "row {id}: {error}\n{}", host.log());
        }
        if matches!(end, End::Closed | End::Frozen) {
            assert!(written.done, "it hangs: {}", host.log());
            session.quit();
        }
        all.push(written);
        if end == End::KilledAndWiped {
            host.lose_disk();
        }
    }
    all
}

/// Breaks a tenth of the requests for a while, then none for a while, and so on.
fn break_things(bed: &Bed, seed: u64, over: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(!seed);
    while !over.load(Ordering::SeqCst) {
        let fault = match random.u8(..9) {
            0 => Fault::DropBefore,
            1 => Fault::DropAfter,
            2 => Fault::Status(429),
            3 => Fault::Status(500),
            4 => Fault::StatusAfter(503),
            5 => Fault::Status(503),
            6 => Fault::CutBody(5),
            7 => Fault::Stall,
            _ => Fault::StallAfter,
        };
        let dice = Mutex::new(random.fork());
        bed.proxy.set_delay(Duration::from_millis(random.u64(..30)));
        bed.proxy.rule(move |_| (dice.lock().unwrap().u8(..10) == 0).then(|| fault.clone()));
        rest(Duration::from_millis(random.u64(200..1500)), over);
        bed.proxy.heal();
        bed.proxy.release();
        rest(Duration::from_millis(random.u64(200..1500)), over);
    }
}

fn rest(time: Duration, over: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !over.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(10));
    }
}

const ALL: &[End] = &[End::Closed, End::Killed, End::Frozen, End::KilledAndWiped, End::Closed, End::Killed];
const KEPT: &[End] = &[End::Closed, End::Killed, End::Frozen];

fn nothing_acknowledged_is_lost(plan: &Plan, seed: u64) {
    let bed = Bed::new();
    let written = run(&bed, plan, seed);
    let rows = bed.judge.rows();
    assert_kept(&rows, written.iter().flat_map(|(_, written)| written));
    let acknowledged: usize = written.iter().flat_map(|(_, all)| all).map(|written| written.acknowledged.len()).sum();
    eprintln!("{acknowledged} rows acknowledged, {} in the bucket, {} deltas", rows.len(), bed.judge.head());
    assert!(acknowledged > 0);
}

fn what_is_missing_was_named(plan: &Plan, seed: u64) {
    let bed = Bed::new();
    let written = run(&bed, plan, seed);
    let rows = bed.judge.rows();
    let mut missing_in_all = 0;
    for (host, written) in &written {
        let mut kept = BTreeSet::new();
        for folder in host.conflicts() {
            kept.extend(bed.judge.rows_kept(&folder).into_keys());
            let named = folder.display().to_string();
            assert!(host.log().contains(&named), "{named} is not in the log: {}", host.log());
        }
        for id in written.iter().flat_map(|written| &written.acknowledged) {
            if rows.get(id) != Some(&1) {
                missing_in_all += 1;
                assert!(kept.contains(id), "row {id} is neither in the bucket nor kept aside:\n{}", host.log());
            }
        }
    }
    assert!(rows.values().all(|count| *count == 1));
    eprintln!("{} rows in the bucket, {missing_in_all} kept aside", rows.len());
}

fn seed() -> u64 {
    std::env::var("SQLITE_GCS_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..1 << 32))
}

#[test]
fn two_overlapping_hosts_lose_and_double_nothing() {
    let plan = Plan { hosts: 2, rounds: 10, durability: "commit", ends: ALL, faults: true };
    nothing_acknowledged_is_lost(&plan, seed());
}

#[test]
fn two_overlapping_strict_hosts_lose_and_double_nothing() {
    let plan = Plan { hosts: 2, rounds: 6, durability: "strict", ends: ALL, faults: true };
    nothing_acknowledged_is_lost(&plan, seed());
}

#[test]
fn in_the_background_what_is_missing_was_kept_aside_and_named() {
    let plan = Plan { hosts: 2, rounds: 8, durability: "background", ends: KEPT, faults: true };
    what_is_missing_was_named(&plan, seed());
}

#[test]
#[ignore = "ten minutes and more"]
fn a_hundred_rounds_of_two_and_of_four_hosts_lose_and_double_nothing() {
    for (hosts, durability) in [(2, "commit"), (4, "commit"), (2, "strict"), (4, "strict")] {
        nothing_acknowledged_is_lost(&Plan { hosts, rounds: 100, durability, ends: ALL, faults: true }, seed());
    }
}

#[test]
#[ignore = "ten minutes and more"]
fn a_hundred_rounds_in_the_background_name_what_is_missing() {
    for hosts in [2, 4] {
        what_is_missing_was_named(
            &Plan { hosts, rounds: 100, durability: "background", ends: KEPT, faults: true },
            seed(),
        );
    }
}
