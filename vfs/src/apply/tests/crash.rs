//! The applying process is killed at every step; others live on, or nobody does.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

use super::bed::{Bed, check_integrity, check_same, create, read_state};
use super::child;
use crate::page::TxId;

/// Every crash point, and how often the deltas pass it: the WAL's start and restart come once each.
const POINTS: [(u32, u32); 12] =
    [(1, 3), (2, 3), (3, 3), (4, 3), (5, 3), (6, 3), (7, 3), (8, 1), (9, 1), (10, 1), (10, 2), (11, 4)];
/// Deltas there are; the follower restarts its WAL before the fifth.
const LAST: u64 = 7;

struct Scene {
    dir: tempfile::TempDir,
    origin: Bed,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().expect("a directory");
        let origin = Bed::prepare(&dir.path().join("origin.db"), 4096);
        create(&origin.db, 200);
        origin.send(dir.path());
        for k in 2..=LAST {
            origin.write(k);
            origin.send(dir.path());
        }
        Scene { dir, origin }
    }

    fn follower(&self) -> PathBuf {
        self.dir.path().join("follower.db")
    }

    /// Applies in another process, which is killed at the point or after the last delta.
    fn apply_and_die(&self, how: &str, first: u64, last: u64, crash: Option<(u32, u32)>) {
        let (database, bucket) = (self.follower(), self.dir.path());
        let role = format!("apply {how} {} {} {first} {last} 4096", database.display(), bucket.display());
        die(&role, crash);
    }

    /// Applies what the follower lacks, commits there, and checks that the origin gets that commit and no other.
    fn go_on(&self, follower: &Bed) {
        let durable = follower.shared.durable().0;
        assert_eq!(read_state(&follower.db).expect("a state"), durable, "the TXID is that of the state");
        assert!(follower.freeze().is_none(), "an applied delta would be sent again");
        for delta in child::deltas(self.dir.path(), durable + 1, LAST) {
            follower.apply(&delta);
        }
        follower.write(LAST + 1);
        let sent = follower.send(self.dir.path());
        assert_eq!(sent.id.txid, TxId(LAST + 1));
        self.origin.apply(&sent);
        assert_eq!(read_state(&self.origin.db).expect("a state"), LAST + 1);
        check_same(&self.origin, follower);
    }
}

fn die(role: &str, crash: Option<(u32, u32)>) {
    let end = child::spawn(role, crash).wait_with_output().expect("an end");
    let (out, err) = (String::from_utf8_lossy(&end.stdout), String::from_utf8_lossy(&end.stderr));
    assert_eq!(end.status.signal(), Some(9), "{crash:?}: {out} {err}");
}

#[test]
fn a_kill_at_any_step_leaves_the_old_or_the_new_state_to_the_next_open() {
    for (point, occurrence) in POINTS {
        println!("point {point}, occurrence {occurrence}");
        let scene = Scene::new();
        // The first process makes the database and the WAL; the second one restarts that.
        let crash_in_first = matches!((point, occurrence), (10, 1));
        scene.apply_and_die("alone", 1, 2, crash_in_first.then_some((point, occurrence)));
        if !crash_in_first {
            die_backfilling(&scene);
            let again = if point == 10 { 1 } else { occurrence };
            scene.apply_and_die("alone", 3, LAST, Some((point, again)));
        }
        let follower = Bed::prepare(&scene.follower(), 4096);
        if crash_in_first {
            assert_eq!(follower.shared.durable(), TxId::NONE);
            assert!(follower.freeze().is_none());
            for delta in child::deltas(scene.dir.path(), 1, 1) {
                follower.apply(&delta);
            }
        }
        check_integrity(&follower.db);
        scene.go_on(&follower);
    }
}

fn die_backfilling(scene: &Scene) {
    die(&format!("backfill {}", scene.follower().display()), None);
}

#[test]
fn a_kill_at_any_step_leaves_the_old_or_the_new_state_to_those_who_live_on() {
    for (point, occurrence) in POINTS {
        if (point, occurrence) == (10, 2) {
            continue;
        }
        println!("point {point}, occurrence {occurrence}");
        let scene = Scene::new();
        let follower = Bed::prepare(&scene.follower(), 4096);
        for delta in child::deltas(scene.dir.path(), 1, 2) {
            follower.apply(&delta);
        }
        follower.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).expect("a checkpoint");
        scene.apply_and_die("beside", 3, LAST, Some((point, occurrence)));
        read_state(&follower.db).expect("a state");
        assert!(follower.freeze().is_none(), "an applied delta would be sent again");
        scene.go_on(&follower);
    }
}

#[test]
fn a_local_commit_over_a_delta_that_was_never_published_is_sent() {
    for point in [3, 4, 5] {
        let scene = Scene::new();
        let follower = Bed::prepare(&scene.follower(), 4096);
        for delta in child::deltas(scene.dir.path(), 1, 2) {
            follower.apply(&delta);
        }
        scene.apply_and_die("beside", 3, 3, Some((point, 1)));
        follower.write(3);
        // Neither by the processes that are there, nor by those that come when all are gone.
        let path = scene.follower();
        let frozen = follower.freeze().expect("the local commit");
        assert_eq!(frozen.id.txid, TxId(3));
        let pages = |delta: &super::bed::Delta| {
            let bytes = std::fs::read(&delta.path).expect("bytes");
            crate::delta::Decoder::new(&bytes[..delta.id.size as usize]).expect("a header").header().commit
        };
        assert_eq!(pages(&frozen), follower.committed().expect("a commit").pages);
        std::fs::remove_file(&frozen.path).expect("removed");
        std::mem::forget(follower);
        let again = Bed::prepare(&path, 4096);
        assert_eq!(again.shared.durable(), TxId(2));
        assert_eq!(again.freeze().expect("the local commit").id.txid, TxId(3), "point {point}");
    }
}

#[test]
fn what_a_killed_writer_left_in_the_wal_and_its_index_does_no_harm() {
    let scene = Scene::new();
    let follower = Bed::prepare(&scene.follower(), 4096);
    for delta in child::deltas(scene.dir.path(), 1, LAST) {
        die_if_there_is_something(&scene);
        follower.apply(&delta);
        follower.check_index();
        check_integrity(&follower.db);
        assert_eq!(read_state(&follower.db).expect("a state"), delta.id.txid.0);
    }
    scene.go_on(&follower);
}

fn die_if_there_is_something(scene: &Scene) {
    let db = super::bed::connect(&scene.follower(), 4096);
    if read_state(&db).is_ok() {
        die(&format!("spill {}", scene.follower().display()), None);
    }
}

#[test]
fn a_delta_that_a_killed_process_applied_is_stepped_over_when_the_others_capture() {
    let scene = Scene::new();
    let follower = Bed::prepare(&scene.follower(), 4096);
    for delta in child::deltas(scene.dir.path(), 1, 2) {
        follower.apply(&delta);
    }
    // Published, and not a word about it in the shared memory.
    scene.apply_and_die("beside", 3, LAST, Some((6, LAST as u32 - 2)));
    assert_eq!(follower.shared.durable(), TxId(LAST - 1));
    // A commit on top, by a process that does not capture; then everybody is gone.
    die(&format!("write {}", scene.follower().display()), None);
    let sent = follower.send(scene.dir.path());
    assert_eq!(sent.id.txid, TxId(LAST + 1));
    scene.origin.apply(&sent);
    check_same(&scene.origin, &follower);
}

/// A process that had sent everything, let its WAL start again and committed once more was killed; the next open took that
/// for a reset behind its back and refused to capture.
#[test]
fn a_commit_after_a_restart_of_the_wal_survives_a_kill() {
    for restarted_by_apply in [false, true] {
        let scene = Scene::new();
        let host = Bed::prepare(&scene.follower(), 4096);
        for delta in child::deltas(scene.dir.path(), 1, LAST - 1) {
            host.apply(&delta);
        }
        host.db.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(())).expect("a checkpoint");
        let k = if restarted_by_apply {
            // Killed between the restart and the first frame.
            scene.apply_and_die("beside", LAST, LAST, Some((9, 1)));
            LAST
        } else {
            assert!(host.apply(&child::deltas(scene.dir.path(), LAST, LAST)[0]).restarted);
            host.write(LAST + 1);
            host.send(scene.dir.path());
            host.db.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(())).expect("a checkpoint");
            LAST + 2
        };
        host.write(k);
        let path = scene.follower();
        std::mem::forget(host);
        let again = Bed::prepare(&path, 4096);
        assert_eq!(read_state(&again.db).expect("a state"), k);
        assert_eq!(again.freeze().expect("the commit").id.txid, TxId(k));
    }
}
