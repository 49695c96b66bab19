//! The lease between hosts: who writes, who waits, who is next, and what that costs.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::judge::assert_kept;
use sqlite_gcs_tests::machine::{BUSY, Load};
use sqlite_gcs_tests::proxy::Class;

#[test]
fn an_idle_writer_gives_the_lease_back_and_then_asks_nothing() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "durability=commit");
    let begun = Instant::now();
    assert!(bed.lease_is("held"));
    assert!(bed.wait_for_release(), "{:?}", bed.judge.lease());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let before = bed.proxy.requests();
    thread::sleep(Duration::from_secs(4));
    assert_eq!(bed.proxy.requests(), before, "an idle database makes no requests");
    assert_eq!(a.number("SELECT count(*) FROM t"), 0);
    a.sql("INSERT INTO t VALUES (1, 'x')").unwrap();
    assert!(bed.lease_is("held"));
    assert_eq!(a.quit(), Some(0));
    assert!(bed.lease_is("released"), "a close gives it back at once");
}

#[test]
fn a_burst_of_writes_costs_two_lease_requests() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "durability=commit");
    for _ in 0..2 {
        assert!(bed.wait_for_release());
        let (class_a, head) = (bed.class_a(), bed.judge.head());
        let direct = bed.class_a() - class_a;
        assert_eq!(direct, 0, "the judge asks the emulator itself");
        for id in 0..10 {
            a.sql(&format!("INSERT INTO t VALUES ({id}, 'x')")).unwrap();
        }
        assert!(bed.wait_for_release());
        let deltas = bed.judge.head() - head;
        assert_eq!(deltas, 10);
        assert_eq!(bed.class_a() - class_a - deltas, 2, "one to take it, one to give it back");
    }
}

#[test]
fn while_another_host_writes_a_writer_is_busy_and_told_who_it_is() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "durability=commit");
    let mut b = bed.host("b", "durability=commit").open();
    b.connect("hasty", Duration::ZERO).unwrap();
    a.sql("INSERT INTO t VALUES (1, 'x')").unwrap();
    let busy = b.sql_on("hasty", "INSERT INTO t VALUES (2, 'x')").unwrap_err();
    assert_eq!(busy.code & 0xff, BUSY, "{busy}");
    let status = b.status();
    assert_eq!(status["lease"]["state"], "elsewhere", "{status}");
    let holder = status["lease"]["holder"].as_str().unwrap().to_owned();
    assert_eq!(bed.judge.lease().unwrap()["who"], holder.as_str());
    // It reads meanwhile, and with a busy timeout it gets its turn once the other is idle.
    assert_eq!(b.number("SELECT count(*) FROM t"), 0);
    let begun = Instant::now();
    b.sql("INSERT INTO t VALUES (3, 'x')").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(b.number("SELECT sum(id) FROM t"), 4);
    assert_eq!(b.status()["lease"]["state"], "held");
    assert_eq!((a.quit(), b.quit()), (Some(0), Some(0)));
    assert_eq!(bed.judge.rows().keys().copied().collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn from_a_host_gone_idle_the_first_commit_takes_five_round_trips() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "durability=commit");
    // The check for conditions is made of stand-ins only.
    let mut b = bed.host("b", "durability=commit&probe=off").open();
    b.number("SELECT count(*) FROM sqlite_schema");
    a.sql("INSERT INTO t VALUES (1, 'x')").unwrap();
    assert!(bed.wait_for_release());
    let trip = Duration::from_millis(300);
    bed.proxy.set_delay(trip);
    let (begun, seen) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let sees = Arc::clone(&seen);
    bed.proxy.rule(move |request| {
        sees.lock().unwrap().push(format!("{:.1} {} {}", begun.elapsed().as_secs_f64(), request.method, request.path));
        None
    });
    b.sql("INSERT INTO t VALUES (2, 'x')").unwrap();
    let trips = begun.elapsed().as_secs_f64() / trip.as_secs_f64();
    eprintln!("handoff from an idle host: {trips:.1} round trips");
    assert!(trips < 5.9, "{trips:.1} round trips: {:#?}", seen.lock().unwrap());
    bed.proxy.set_delay(Duration::ZERO);
    assert_eq!(b.number("SELECT sum(id) FROM t"), 3);
}

#[test]
fn two_hosts_that_write_all_the_time_take_turns() {
    let bed = Bed::new();
    let (one, two) = (bed.host("a", "durability=commit"), bed.host("b", "durability=commit"));
    bed.with_table("a", "durability=commit").quit();
    let (mut a, mut b) = (one.boot(), two.boot());
    let of_a = Load { seconds: 16.0, timeout: 20.0, pause: 0.02, ..Load::default() };
    let of_b = Load { first: 1_000_000, ..of_a };
    a.begin_write(&of_a);
    b.begin_write(&of_b);
    let mut turns = Vec::new();
    let mut reads = 0;
    let mut reader = two.open();
    let end = Instant::now() + Duration::from_secs(16);
    while Instant::now() < end {
        let lease = bed.judge.lease().unwrap();
        if lease["state"] == "held" && turns.last().is_none_or(|(who, _)| *who != lease["holder"]) {
            turns.push((lease["holder"].clone(), Instant::now()));
        }
        // Whoever waits serves reads.
        let begun = Instant::now();
        reader.number("SELECT count(*) FROM sqlite_schema");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        reads += 1;
        thread::sleep(Duration::from_millis(20));
    }
    let (a_wrote, b_wrote) = (a.end_write(&of_a), b.end_write(&of_b));
    eprintln!(
        "{} and {} rows in {} turns, {reads} reads",
        a_wrote.acknowledged.len(),
        b_wrote.acknowledged.len(),
        turns.len()
    );
    assert!(a_wrote.failed.is_empty() && b_wrote.failed.is_empty(), "{:?} {:?}", a_wrote.failed, b_wrote.failed);
    assert!(turns.len() >= 3, "{turns:?}");
    // Some are noticed late, so only the longest tells that a turn is left alone for a while.
    let longest = turns.windows(2).skip(1).map(|turn| turn[1].1 - turn[0].1).max();
    assert!(longest.is_some_and(|turn| turn >= Duration::from_millis(2800)), "{turns:?}");
    assert!(a_wrote.acknowledged.len() > 10 && b_wrote.acknowledged.len() > 10, "both make progress");
    assert_eq!((a.quit(), b.quit(), reader.quit()), (Some(0), Some(0), Some(0)));
    assert_kept(&bed.judge.rows(), [&a_wrote, &b_wrote]);
}

#[test]
fn a_minute_of_constant_writing_costs_four_renewals() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "durability=commit&lease_ttl=40s");
    let of_lease = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&of_lease);
    bed.proxy.rule(move |request| {
        let is_one = request.class == Class::Put && request.path.contains("gcs%2Flease");
        counting.fetch_add(is_one.into(), Ordering::SeqCst);
        None
    });
    // A third of a minute, and a third of it may be spent.
    let (class_a, head) = (bed.class_a(), bed.judge.head());
    let wrote = a.write(&Load { seconds: 21.0, pause: 0.05, ..Load::default() });
    let (lease, deltas) = (of_lease.load(Ordering::SeqCst), bed.judge.head() - head);
    let merges = bed.class_a() - class_a - deltas - lease;
    eprintln!("{} rows, {deltas} deltas, {lease} renewals, {merges} merges and listings", wrote.acknowledged.len());
    assert!(merges * 16 <= deltas, "{merges} merges and listings for {deltas} deltas");
    assert!(wrote.failed.is_empty(), "{:?}", wrote.failed);
    assert!(lease <= 1, "{lease} in 21 s: more than 4 a minute");
}
