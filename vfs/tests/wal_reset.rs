//! The WAL-reset bug of SQLite 3.7.0 to 3.51.2, step by step, on Debian 12's SQLite 3.40.1.
//!
//! The story. The WAL is checkpointed to its end. A second checkpoint takes its lock, reads the WAL's length, and is delayed.
//! A writer finds everything checkpointed and starts the WAL over. The checkpoint goes on: it copies what now stands in the
//! frames that it remembers, and records the *old* length as copied. What is committed after that, up to the old length, no
//! checkpoint ever copies; when the WAL starts over once more, it is gone.
//!
//! The delay is made without any timing: SQLite calls `xUnfetch(0, NULL)` inside a checkpoint, after it took the lock and
//! before it looks at anything, when another connection has written since. A VFS of the test's own lies between SQLite and
//! the unix VFS, stops there, and lets the writer run.
//!
//! A guard that only *tests* the checkpointer's lock before the reset is passed by a checkpoint that starts between the test
//! and the reset. The second interleaving does exactly that.
//!
//! SQLite is loaded at run time (`/usr/lib/x86_64-linux-gnu/libsqlite3.so.0`, package libsqlite3-0), so the extension's
//! entry point is called with a table of its routines. One SQLite serves one process, hence a test file of its own.
#![allow(unsafe_code, reason = "a VFS in a SQLite that is loaded at run time")]
#![allow(clippy::unwrap_used, clippy::undocumented_unsafe_blocks, reason = "a test fails by panicking")]

mod debian;

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use debian::{Db, Guard, Stop, Stops};

/// In which order the checkpoint and the writer run.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Order {
    /// The checkpoint stops inside; the writer's commit runs whole; the checkpoint goes on.
    WriterInsideCheckpoint,
    /// The writer stops before it takes the reset's locks; the checkpoint begins and stops inside; the writer goes on to its
    /// end; the checkpoint goes on.
    CheckpointBetweenTestAndReset,
}

const ROWS: i64 = 40;

/// Runs one order and tells whether the database is whole afterwards.
fn is_whole_after(order: Order, guard: Guard, dir: &Path) -> bool {
    let uri = debian::uri(dir, guard);
    let writer = Db::open(&uri);
    writer.run("PRAGMA page_size=4096; PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0");
    writer.run("CREATE TABLE t(id INTEGER PRIMARY KEY, filler)");
    let insert = |n: i64| format!("INSERT INTO t VALUES ({n}, randomblob(3000))");
    let checkpointer = Db::open(&uri);
    checkpointer.number("SELECT count(*) FROM t");
    // The checkpointer's view of the WAL is older than these commits, so that its checkpoint passes by xUnfetch.
    for n in 0..20 {
        writer.run(&insert(n));
    }
    writer.run("PRAGMA wal_checkpoint(passive)");

    let mut next = 20;
    match order {
        Order::WriterInsideCheckpoint => {
            let commit = insert(next);
            next += 1;
            // The same thread: another connection may well be used inside a callback of this one.
            let writer = writer.clone();
            let once = Mutex::new(Some(move || writer.run(&commit)));
            let stops = Stops::new(move |stop| {
                if stop == Stop::InsideCheckpoint
                    && let Some(commit) = once.lock().unwrap().take()
                {
                    commit();
                }
            });
            let reached = stops.during(|| checkpointer.run("PRAGMA wal_checkpoint(passive)"));
            assert_eq!(reached[0], Stop::InsideCheckpoint, "the checkpoint was not stopped");
        }
        Order::CheckpointBetweenTestAndReset => {
            let commit = insert(next);
            next += 1;
            let (begin, begun) = channel::<()>();
            let (stopped, is_stopped) = channel::<()>();
            let (go_on, may_go_on) = channel::<()>();
            let told = Mutex::new(Some(begin));
            let waits = Mutex::new(is_stopped);
            let inside = Mutex::new(Some((stopped.clone(), may_go_on)));
            let stops = Stops::new(move |stop| match stop {
                Stop::BeforeReset => {
                    if let Some(begin) = told.lock().unwrap().take() {
                        begin.send(()).unwrap();
                        // Until the checkpoint is inside, or was turned away.
                        waits.lock().unwrap().recv().unwrap();
                    }
                }
                Stop::InsideCheckpoint => {
                    if let Some((stopped, may_go_on)) = inside.lock().unwrap().take() {
                        stopped.send(()).unwrap();
                        may_go_on.recv().unwrap();
                    }
                }
            });
            let reached = stops.during(|| {
                std::thread::scope(|scope| {
                    let checkpointer = &checkpointer;
                    scope.spawn(move || {
                        // No reset is attempted if the sender is gone without a word.
                        if begun.recv().is_ok() {
                            checkpointer.run("PRAGMA wal_checkpoint(passive)");
                        }
                        // Turned away without stopping inside.
                        let _ = stopped.send(());
                    });
                    writer.run(&commit);
                    let _ = go_on.send(());
                });
            });
            assert_eq!(reached[0], Stop::BeforeReset, "no reset was tried");
            let turned_away = !reached.contains(&Stop::InsideCheckpoint);
            assert_eq!(turned_away, guard == Guard::Ours, "{reached:?}");
        }
    }

    // Work that goes on as if nothing had happened: fewer frames than the old length, a checkpoint, a fresh start.
    for _ in 0..3 {
        let until = (next + 5).min(ROWS);
        while next < until {
            writer.run(&insert(next));
            next += 1;
        }
        writer.run("PRAGMA wal_checkpoint(passive)");
    }
    while next < ROWS {
        writer.run(&insert(next));
        next += 1;
    }
    drop((writer, checkpointer));
    let after = Db::open(&uri);
    after.try_number("SELECT count(*) FROM t") == Ok(ROWS)
        && after.try_text("PRAGMA integrity_check") == Ok("ok".into())
}

#[test]
fn the_guard_closes_the_bug_and_a_mere_test_of_the_lock_does_not() {
    debian::load();
    assert_eq!(debian::version(), 3_040_001, "this test is about Debian 12's SQLite");
    use Order::*;
    for (order, guard, whole) in [
        (WriterInsideCheckpoint, Guard::None, false),
        (CheckpointBetweenTestAndReset, Guard::None, false),
        (WriterInsideCheckpoint, Guard::OnlyTested, true),
        (CheckpointBetweenTestAndReset, Guard::OnlyTested, false),
        (WriterInsideCheckpoint, Guard::Ours, true),
        (CheckpointBetweenTestAndReset, Guard::Ours, true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bucket")).unwrap();
        assert_eq!(is_whole_after(order, guard, dir.path()), whole, "{order:?} with the guard {guard:?}");
    }
}
