//! `durability=commit` and `durability=strict`: what a COMMIT that returned means, what one that failed means, and how
//! many commits share an upload.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, Instant};

use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::judge::assert_kept;
use sqlite_gcs_tests::machine::{BUSY, Host, Load, UNAVAILABLE};
use sqlite_gcs_tests::poll;
use sqlite_gcs_tests::proxy::{Class, Fault, Request};

fn is_upload(request: &Request) -> bool {
    request.class == Class::Put && request.path.contains("ltx")
}

fn wal_bytes(host: &Host) -> u64 {
    std::fs::metadata(host.file().with_file_name("app.db-gcswal")).map_or(0, |meta| meta.len())
}

#[test]
fn a_commit_returns_only_when_the_bucket_has_it() {
    for durability in ["commit", "strict"] {
        let bed = Bed::new();
        let mut a = bed.with_table("a", &format!("durability={durability}"));
        let head = bed.judge.head();
        bed.proxy.rule(|request| is_upload(request).then_some(Fault::Stall));
        a.later("commit", "db", "INSERT INTO t VALUES (1, 'x')");
        assert!(bed.proxy.wait_for_stalled(1));
        // The upload is on its way and cannot arrive: no answer to the COMMIT, whenever one looks.
        assert!(!poll(Duration::from_millis(500), || a.has_finished("commit")), "{durability}: acknowledged too early");
        assert_eq!(bed.judge.head(), head);
        bed.proxy.heal();
        bed.proxy.release();
        a.finished("commit").1.unwrap();
        assert_eq!(bed.judge.head(), head + 1);
    }
}

#[test]
fn the_pragma_changes_the_durability_and_gcs_flush_waits_for_what_was_committed_before() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "flush_interval=1h");
    a.sql("INSERT INTO t VALUES (1, 'x')").unwrap();
    let flushed = a.sql("PRAGMA gcs_flush").unwrap();
    assert_eq!(flushed, [[format!("{:016x}", bed.judge.head())]]);
    assert_eq!(bed.judge.rows().len(), 1);
    a.sql("INSERT INTO t VALUES (2, 'x')").unwrap();
    assert_eq!(bed.judge.rows().len(), 1, "in the background nothing waits for it");
    a.sql("PRAGMA gcs_durability='commit'").unwrap();
    a.sql("INSERT INTO t VALUES (3, 'x')").unwrap();
    assert_eq!(bed.judge.rows().len(), 3);
    let head = bed.judge.head();
    a.sql("PRAGMA gcs_flush").unwrap();
    assert_eq!(bed.judge.head(), head, "with nothing new it sends nothing");
}

#[test]
fn waiting_commits_share_an_upload() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "durability=commit");
    bed.proxy.set_delay(Duration::from_millis(25));
    let uploads = bed.judge.head();
    let wrote = a.write(&Load { threads: 8, most: 20, ..Load::default() });
    let uploads = bed.judge.head() - uploads;
    eprintln!("{} commits in {uploads} uploads, {:.1} per second", wrote.acknowledged.len(), 160.0 / wrote.seconds);
    assert_eq!(wrote.acknowledged.len(), 160, "{:?}", wrote.failed);
    assert!(uploads <= 60, "{uploads} uploads for 160 commits of 8 threads");
    assert_kept(&bed.judge.rows(), [&wrote]);
}

#[test]
fn a_commit_is_durable_when_another_process_uploads_it() {
    let bed = Bed::new();
    let host = bed.host("a", "durability=commit");
    let mut one = bed.with_table("a", "durability=commit");
    let mut two = host.open();
    bed.proxy.set_delay(Duration::from_millis(25));
    let uploads = bed.judge.head();
    let load = Load { threads: 4, most: 20, ..Load::default() };
    let other = Load { first: 1000, ..load };
    one.begin_write(&load);
    two.begin_write(&other);
    let (of_one, of_two) = (one.end_write(&load), two.end_write(&other));
    let uploads = bed.judge.head() - uploads;
    let all = of_one.acknowledged.len() + of_two.acknowledged.len();
    eprintln!("{all} commits of two processes in {uploads} uploads");
    assert_eq!(all, 160, "{:?} {:?}", of_one.failed, of_two.failed);
    assert!(uploads <= 80, "{uploads} uploads for 160 commits");
    // One of them goes; the other's commits still get there.
    two.kill();
    one.sql("INSERT INTO t VALUES (-1, 'x')").unwrap();
    assert_eq!(one.quit(), Some(0));
    let rows = bed.judge.rows();
    assert_kept(&rows, [&of_one, &of_two]);
    assert_eq!(rows.get(&-1), Some(&1));
}

#[test]
fn a_lost_answer_is_settled_by_the_same_bytes() {
    for durability in ["commit", "strict"] {
        let bed = Bed::new();
        let mut a = bed.with_table("a", &format!("durability={durability}"));
        for (id, fault) in
            [(1, Fault::DropAfter), (2, Fault::StatusAfter(503)), (3, Fault::DropBefore), (4, Fault::CutBody(3))]
        {
            let head = bed.judge.head();
            let before = bed.proxy.count(Class::Put);
            bed.proxy.fail(Class::Put, 1..=1, fault.clone());
            a.sql(&format!("INSERT INTO t VALUES ({id}, 'x')")).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            bed.proxy.heal();
            assert_eq!(bed.judge.head(), head + 1, "{fault:?}");
            assert!(bed.proxy.count(Class::Put) - before >= 2, "{fault:?}: it was sent again");
        }
        assert_eq!(a.quit(), Some(0));
        assert!(bed.judge.rows().keys().eq(&[1, 2, 3, 4]));
    }
}

#[test]
fn an_outcome_that_stays_unknown_stops_the_database_until_the_reopen_finds_out() {
    std::thread::scope(|scope| {
        for durability in ["commit", "strict"] {
            for landed in [false, true] {
                scope.spawn(move || an_outcome_that_stays_unknown(durability, landed));
            }
        }
    });
}

fn an_outcome_that_stays_unknown(durability: &str, landed: bool) {
    let bed = Bed::new();
    let host = bed.host("a", &format!("durability={durability}&commit_timeout=2s"));
    let mut a = bed.with_table("a", &format!("durability={durability}&commit_timeout=2s"));
    let fault = if landed { Fault::DropAfter } else { Fault::DropBefore };
    bed.proxy.rule(move |request| is_upload(request).then(|| fault.clone()));
    let begun = Instant::now();
    let error = a.sql("INSERT INTO t VALUES (1, 'x')").unwrap_err();
    assert_eq!(error.code, UNAVAILABLE, "{durability}: {error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let refused = a.sql("INSERT INTO t VALUES (2, 'x')").unwrap_err();
    assert_ne!(refused.code & 0xff, 0, "{refused}");
    let why = a.status()["last_error"].to_string();
    assert!(why.contains("durable") || why.contains("answer"), "{why}");
    assert!(host.log().contains("until it is opened anew") || why.contains("anew"), "{why}\n{}", host.log());
    bed.proxy.heal();
    // Another connection of the process does not get past it either.
    assert!(
        a.connect("other", Duration::ZERO)
            .and_then(|()| a.sql_on("other", "INSERT INTO t VALUES (3, 'x')").map(drop))
            .is_err()
    );
    a.quit();
    let mut a = host.open();
    let count = a.number("SELECT count(*) FROM t");
    if durability == "commit" || landed {
        assert_eq!(count, 1, "{durability}, landed: {landed}");
    }
    a.sql("INSERT INTO t VALUES (4, 'x')").unwrap();
    assert_eq!(a.quit(), Some(0));
    let rows = bed.judge.rows();
    assert_eq!(rows.len() as i64, count + 1, "{durability}, landed: {landed}");
    assert_eq!(rows.get(&4), Some(&1));
}

#[test]
fn a_strict_commit_is_seen_by_nobody_before_it_is_durable_and_rolled_back_on_error() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "durability=strict");
    a.connect("reader", Duration::from_secs(5)).unwrap();
    let mut other = bed.host("a", "durability=strict").open();
    bed.proxy.rule(|request| is_upload(request).then_some(Fault::Stall));
    a.later("commit", "db", "INSERT INTO t VALUES (1, 'x')");
    assert!(bed.proxy.wait_for_stalled(1));
    assert_eq!(a.sql_on("reader", "SELECT count(*) FROM t").unwrap(), [[0]]);
    assert_eq!(other.number("SELECT count(*) FROM t"), 0);
    bed.proxy.heal();
    bed.proxy.release();
    a.finished("commit").1.unwrap();
    assert_eq!(a.sql_on("reader", "SELECT count(*) FROM t").unwrap(), [[1]]);
    assert_eq!(other.number("SELECT count(*) FROM t"), 1);
}

#[test]
fn attached_databases_are_durable_each_and_no_commit_is_reported_busy() {
    let bed = Bed::new();
    for durability in ["commit", "strict"] {
        let host = bed.host(&format!("a-{durability}"), &format!("durability={durability}"));
        let folder = host.file().parent().unwrap().to_owned();
        let uri = |name: &str| host.uri().replace("app.db", name);
        let (first, second) = (format!("one-{durability}.db"), format!("two-{durability}.db"));
        let mut a = host.boot();
        a.connect_to("db", &uri(&first), Duration::from_secs(5)).unwrap();
        a.sql("CREATE TABLE t(id INTEGER)").unwrap();
        a.sql(&format!("ATTACH '{}' AS other", uri(&second))).unwrap();
        a.sql("CREATE TABLE other.u(id INTEGER)").unwrap();
        a.sql("BEGIN").unwrap();
        a.sql("INSERT INTO t VALUES (1)").unwrap();
        a.sql("INSERT INTO u VALUES (1)").unwrap();
        a.sql("COMMIT").unwrap();
        // On another machine both are there.
        a.kill();
        std::fs::remove_dir_all(&folder).unwrap();
        let mut b = bed.host(&format!("b-{durability}"), "").boot();
        let there = |name: &str| bed.host(&format!("b-{durability}"), "").uri().replace("app.db", name);
        b.connect_to("db", &there(&first), Duration::from_secs(5)).unwrap();
        b.connect_to("u", &there(&second), Duration::from_secs(5)).unwrap();
        assert_eq!(b.number("SELECT count(*) FROM t"), 1);
        assert_eq!(b.sql_on("u", "SELECT count(*) FROM u").unwrap(), [[1]]);
    }
}

#[test]
fn an_error_at_the_end_of_a_commit_is_never_busy_and_a_second_commit_does_not_pass_for_it() {
    let bed = Bed::new();
    let host = bed.host("a", "durability=commit&commit_timeout=1s");
    let mut a = bed.with_table("a", "durability=commit&commit_timeout=1s");
    a.sql(&format!("ATTACH '{}' AS other", host.uri().replace("app.db", "other.db"))).unwrap();
    a.sql("CREATE TABLE other.u(id INTEGER)").unwrap();
    bed.proxy.rule(|request| (is_upload(request) && request.path.contains("app.db")).then_some(Fault::DropBefore));
    a.sql("BEGIN").unwrap();
    a.sql("INSERT INTO t VALUES (1, 'x')").unwrap();
    a.sql("INSERT INTO u VALUES (1)").unwrap();
    let error = a.sql("COMMIT").err();
    eprintln!("a commit over two databases, one of them out of reach: {error:?}");
    if let Some(error) = error {
        assert_ne!(error.code & 0xff, BUSY, "{error}");
        // A second COMMIT has nothing to commit; it must not look like success.
        let again = a.sql("COMMIT");
        assert!(again.is_err(), "{again:?}");
    }
    // Whatever was said: the database that could not be reached takes no more work.
    assert!(a.sql("INSERT INTO t VALUES (2, 'x')").is_err());
    bed.proxy.heal();
    a.quit();
    let mut a = host.open();
    assert_eq!(a.number("SELECT count(*) FROM t"), 1);
    assert_eq!(a.quit(), Some(0));
    assert_eq!(bed.judge.rows().len(), 1);
}

#[test]
fn the_wal_stays_bounded_while_writers_wait_for_the_bucket() {
    for threads in [2, 4, 16] {
        let bed = Bed::new();
        let host = bed.host("a", "durability=commit");
        let mut a = bed.with_table("a", "durability=commit");
        bed.proxy.set_delay(Duration::from_millis(25));
        let load = Load { threads, seconds: 8.0, bytes: 60_000, ..Load::default() };
        a.begin_write(&load);
        let mut most = 0;
        let end = Instant::now() + Duration::from_secs(8);
        while Instant::now() < end {
            most = most.max(wal_bytes(&host));
            std::thread::sleep(Duration::from_millis(20));
        }
        let wrote = a.end_write(&load);
        eprintln!("{threads} writers: {} commits, WAL at most {most} bytes", wrote.acknowledged.len());
        assert!(wrote.failed.is_empty(), "{:?}\n{}", wrote.failed, host.log());
        assert!(most <= 12 << 20, "{threads} writers: the WAL grew to {most} bytes");
    }
}

#[test]
fn sigterm_uploads_what_is_committed_and_ends_the_process_as_before() {
    let bed = Bed::new();
    let mut a = bed.with_table("a", "flush_interval=1h&sigterm=flush");
    a.sql("INSERT INTO t VALUES (1, 'x')").unwrap();
    a.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(a.wait(Duration::from_secs(10)), None, "ended by the signal, not by an exit");
    assert!(bed.lease_is("released"), "{:?}", bed.judge.lease());
    assert_eq!(bed.judge.rows().len(), 1);
}

#[test]
fn sigterm_ends_within_its_limit_and_says_what_it_could_not_send() {
    let bed = Bed::new();
    let host = bed.host("a", "flush_interval=1h&sigterm=flush");
    let mut a = bed.with_table("a", "flush_interval=1h&sigterm=flush");
    a.sql("PRAGMA gcs_flush").unwrap();
    a.sql("INSERT INTO t VALUES (1, 'x')").unwrap();
    bed.proxy.rule(|_| Some(Fault::DropBefore));
    let begun = Instant::now();
    a.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(a.wait(Duration::from_secs(40)), None);
    assert!((7..25).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let log = host.log();
    assert!(log.contains("SIGTERM with ") && log.contains(" bytes of commits not uploaded"), "{log}");
    assert!(!log.contains("SIGTERM with 0 bytes"), "{log}");
    bed.proxy.heal();
    assert_eq!(host.open().number("SELECT count(*) FROM t"), 1, "it is kept on the disk");
}

#[test]
fn a_handler_of_the_application_still_runs_at_sigterm() {
    let bed = Bed::new();
    let host = bed.host("a", "flush_interval=1h&sigterm=flush");
    let script = format!(
        "import signal, time\n\
         seen = []\n\
         signal.signal(signal.SIGTERM, lambda *_: seen.append(1))\n\
         db = connect({:?}, isolation_level=None)\n\
         db.execute('CREATE TABLE t(id INTEGER, text TEXT)')\n\
         signal.raise_signal(signal.SIGTERM)\n\
         end = time.monotonic() + 10\n\
         status = lambda: db.execute(\"SELECT json_extract(gcs_status(), '$.durable_txid')\").fetchone()[0]\n\
         while time.monotonic() < end and int(status(), 16) == 0: time.sleep(0.01)\n\
         print(len(seen), int(status(), 16))\n",
        host.uri()
    );
    let done = sqlite_gcs_tests::shell::Program::python(&script).env("STORAGE_EMULATOR_HOST", bed.proxy.host()).run();
    let seen: Vec<&str> = done.expect_success().split(' ').collect();
    assert!(seen[0] == "1" && seen[1] != "0", "{done}");
}
