//! Readers and writers beside the applier.

use std::io::{BufRead as _, BufReader};

use super::bed::{Bed, check_same, create, read_state};
use super::child;
use crate::apply::Outcome;
use crate::page::TxId;

#[test]
fn readers_in_other_processes_see_one_state_at_a_time_and_the_wal_stays_short() {
    deltas_beside_readers(800, |follower| follower);
}

#[test]
fn the_same_holds_with_backfills_of_our_own() {
    deltas_beside_readers(800, Bed::backfilling);
}

#[test]
#[ignore = "minutes"]
fn the_same_holds_for_long() {
    deltas_beside_readers(20_000, Bed::backfilling);
}

fn deltas_beside_readers(deltas: u64, how: impl FnOnce(Bed) -> Bed) {
    let dir = tempfile::tempdir().expect("a directory");
    let origin = Bed::prepare(&dir.path().join("origin.db"), 4096);
    let follower = Bed::prepare(&dir.path().join("follower.db"), 4096);
    create(&origin.db, 1500);
    follower.apply(&origin.send(dir.path()));
    let follower = how(follower);

    let stop = dir.path().join("stop");
    let role = format!("read {} {}", follower.layout.main().display(), stop.display());
    let mut readers: Vec<_> = (0..2).map(|_| child::spawn(&role, None)).collect();
    let mut outputs: Vec<_> =
        readers.iter_mut().map(|reader| BufReader::new(reader.stdout.take().expect("piped")).lines()).collect();
    for output in &mut outputs {
        assert!(output.any(|line| line.expect("a line") == "reading"), "a reader did not start");
    }

    let (mut longest, mut restarts, mut frames) = (0, 0, 0);
    for k in 2..=deltas {
        origin.write(k);
        let progress = follower.apply(&origin.send(dir.path()));
        frames += u64::from(progress.frames);
        restarts += u32::from(progress.restarted);
        longest = longest.max(follower.wal_bytes());
    }
    std::fs::write(&stop, "").expect("written");
    for (reader, output) in readers.into_iter().zip(outputs) {
        let lines: Vec<String> = output.map(|line| line.expect("a line")).collect();
        let end = reader.wait_with_output().expect("an end");
        assert!(end.status.success(), "{lines:?} {}", String::from_utf8_lossy(&end.stderr));
        let counts = lines.iter().find_map(|line| line.strip_prefix("read ")).expect("counts");
        let states: u64 = counts.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
        assert!(states > 20, "it saw too few states to prove anything: {counts}");
        println!("transactions and states of a reader: {counts}");
    }
    println!("{frames} frames, longest WAL {longest} bytes, {restarts} restarts");
    assert_eq!(read_state(&follower.db).expect("a state"), deltas);
    assert!(frames * 4120 > 3 * longest && restarts > 1, "the WAL does not start again");
    assert!(longest < 24 << 20, "the WAL grew to {longest} bytes");
    check_same(&origin, &follower);
}

#[test]
fn two_hosts_take_turns_and_neither_loses_or_repeats_a_commit() {
    let dir = tempfile::tempdir().expect("a directory");
    let hosts = [Bed::prepare(&dir.path().join("a.db"), 4096), Bed::prepare(&dir.path().join("b.db"), 4096)];
    create(&hosts[0].db, 300);
    hosts[1].apply(&hosts[0].send(dir.path()));
    let mut k = 1;
    for turn in 0..60 {
        let (writer, other) = (&hosts[turn % 2], &hosts[1 - turn % 2]);
        for _ in 0..=turn % 3 {
            assert_eq!(read_state(&writer.db).expect("a state"), k);
            k += 1;
            // BEGIN IMMEDIATE on a connection whose header is an older one.
            writer.write(k);
            let delta = writer.send(dir.path());
            assert_eq!(delta.id.txid, TxId(k), "every commit is sent once");
            let checkpoint = turn % 7 == 3;
            other.apply(&delta);
            assert_eq!(other.try_apply(&delta).expect("an outcome"), Outcome::Known);
            assert!(other.freeze().is_none(), "what came from the other host goes back to it");
            assert_eq!(other.shared.frozen(), TxId(k));
            if checkpoint {
                other.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).expect("a checkpoint");
            }
        }
    }
    check_same(&hosts[0], &hosts[1]);
}

#[test]
fn a_local_commit_that_was_not_sent_is_a_conflict_and_an_open_write_transaction_is_busy() {
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (Bed::prepare(&dir.path().join("a.db"), 4096), Bed::prepare(&dir.path().join("b.db"), 4096));
    create(&a.db, 50);
    b.apply(&a.send(dir.path()));
    a.write(2);
    let delta = a.send(dir.path());

    let writer = super::bed::connect(b.layout.main(), 4096);
    writer.execute_batch("BEGIN IMMEDIATE; UPDATE t SET n = n").expect("begun");
    assert_eq!(b.try_apply(&delta).expect("an outcome"), Outcome::Busy);
    writer.execute_batch("ROLLBACK").expect("rolled back");

    let held = b.capture.try_lock().expect("no error").expect("free");
    assert_eq!(b.try_apply(&delta).expect("an outcome"), Outcome::Busy);
    drop(held);

    writer.execute_batch("BEGIN; SELECT * FROM t").expect("begun");
    b.write(2);
    assert_eq!(b.try_apply(&delta).expect("an outcome"), Outcome::Conflict, "in the WAL");
    b.freeze().expect("a local delta");
    assert_eq!(b.try_apply(&delta).expect("an outcome"), Outcome::Conflict, "in the outbox");
    assert_eq!(read_state(&b.db).expect("a state"), 2);
}

#[test]
fn a_delta_that_does_not_follow_or_is_damaged_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (Bed::prepare(&dir.path().join("a.db"), 4096), Bed::prepare(&dir.path().join("b.db"), 4096));
    create(&a.db, 200);
    b.apply(&a.send(dir.path()));
    a.write(2);
    let second = a.send(dir.path());
    a.write(3);
    let third = a.send(dir.path());
    assert_eq!(b.try_apply(&third).expect_err("a gap").kind(), crate::ErrorKind::Corrupt);

    let good = std::fs::read(&second.path).expect("bytes");
    let before = b.committed();
    for at in [good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&second.path, &bad).expect("written");
        assert_eq!(b.try_apply(&second).expect_err("damage").kind(), crate::ErrorKind::Corrupt);
        assert_eq!(b.committed(), before);
        assert_eq!(read_state(&b.db).expect("a state"), 1);
        assert!(b.freeze().is_none());
    }
    std::fs::write(&second.path, &good).expect("written");
    b.apply(&second);
    b.apply(&third);
    check_same(&a, &b);
}

#[test]
fn an_empty_delta_moves_the_txid_alone() {
    use crate::delta::{Encoder, Header};
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (Bed::prepare(&dir.path().join("a.db"), 4096), Bed::prepare(&dir.path().join("b.db"), 4096));
    create(&a.db, 50);
    b.apply(&a.send(dir.path()));
    let before = b.committed().expect("a commit");
    let seal = |pages| {
        let header = Header::level_0(before.page_size, pages, TxId(2), 5);
        let (bytes, _) = Encoder::new(Vec::new(), header).and_then(Encoder::finish).expect("a seal");
        std::fs::write(dir.path().join("0000000000000002.ltx"), bytes).expect("written");
        child::deltas(dir.path(), 2, 2).remove(0)
    };
    let wrong = seal(crate::PageCount(before.pages.0 + 1));
    assert_eq!(b.try_apply(&wrong).expect_err("a size").kind(), crate::ErrorKind::Corrupt);
    assert_eq!(b.apply(&seal(before.pages)).frames, 0);
    assert_eq!(b.committed(), Some(before));
    b.write(2);
    assert_eq!(b.freeze().expect("a delta").id.txid, TxId(3));

    let path = b.layout.main().to_owned();
    drop(b);
    assert_eq!(Bed::prepare(&path, 4096).shared.durable(), TxId(2), "the seal is forgotten at the next open");
}

#[test]
fn the_wal_does_not_start_again_under_a_reader_that_uses_it() {
    deltas_under_a_long_reader(|b| b);
    deltas_under_a_long_reader(Bed::backfilling);
}

fn deltas_under_a_long_reader(how: impl FnOnce(Bed) -> Bed) {
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (Bed::prepare(&dir.path().join("a.db"), 4096), Bed::prepare(&dir.path().join("b.db"), 4096));
    create(&a.db, 300);
    b.apply(&a.send(dir.path()));
    let b = how(b);
    let reader = super::bed::connect(b.layout.main(), 4096);
    let total = || -> i64 { reader.query_row("SELECT sum(n) FROM t", [], |row| row.get(0)).expect("a read") };
    reader.execute_batch("BEGIN; PRAGMA cache_size=2").expect("begun");
    let before = total();
    for k in 2..6 {
        // The first time everything is backfilled, and the reader still reads it from the WAL.
        b.backfill();
        a.write(k);
        assert!(!b.apply(&a.send(dir.path())).restarted);
        assert_eq!(total(), before, "its snapshot changed");
    }
    reader.execute_batch("COMMIT").expect("ended");
    b.backfill();
    a.write(6);
    assert!(b.apply(&a.send(dir.path())).restarted);
    assert_eq!(read_state(&reader).expect("a state"), 6);
    check_same(&a, &b);
}

#[test]
fn a_backfill_leaves_alone_what_a_reader_takes_from_the_database_file() {
    // Everything it reads is in the file (READ0), or in part newer and in the WAL (a mark).
    for deltas_in_wal in 0..2 {
        let dir = tempfile::tempdir().expect("a directory");
        let (a, b) = (Bed::prepare(&dir.path().join("a.db"), 4096), Bed::prepare(&dir.path().join("b.db"), 4096));
        create(&a.db, 300);
        b.apply(&a.send(dir.path()));
        let b = b.backfilling();
        b.backfill();
        let mut k = 2;
        for _ in 0..deltas_in_wal {
            a.write(k);
            b.apply(&a.send(dir.path()));
            k += 1;
        }
        let reader = super::bed::connect(b.layout.main(), 4096);
        reader.execute_batch("PRAGMA cache_size=2; BEGIN; SELECT k FROM state").expect("begun");
        let total = || -> i64 { reader.query_row("SELECT sum(n) FROM t", [], |row| row.get(0)).expect("a read") };
        let before = total();
        for k in k..k + 3 {
            a.write(k);
            b.apply(&a.send(dir.path()));
            b.backfill();
            assert_eq!(total(), before, "its snapshot changed, {deltas_in_wal} in the WAL");
        }
        reader.execute_batch("COMMIT").expect("ended");
        assert_eq!(read_state(&reader).expect("a state"), k + 2);
        b.backfill();
        check_same(&a, &b);
    }
}
