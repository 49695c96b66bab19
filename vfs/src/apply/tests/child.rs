//! Other processes: this test program again, told by its environment what to be.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::bed::{self, Bed, Delta};
use crate::page::TxId;
use crate::protocol::ObjectId;

const ROLE: &str = "GCS_TEST_APPLY_ROLE";
const CRASH: &str = "GCS_TEST_APPLY_CRASH";

/// Starts this program as `role`, a line of words that [`be_a_child`] reads.
pub(super) fn spawn(role: &str, crash: Option<(u32, u32)>) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "apply::tests::child::be_a_child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some((point, occurrence)) = crash {
        command.env(CRASH, format!("{point} {occurrence}"));
    }
    command.spawn().expect("a child")
}

/// Kills this process when it comes to the point and the occurrence that its environment names.
pub(in crate::apply) fn crash_point(number: u32) {
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(asked) = std::env::var(CRASH) else { return };
    if asked.split(' ').next() == Some(&number.to_string()) {
        let passed = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
        if asked.split(' ').nth(1) == Some(&passed.to_string()) {
            kill_myself();
        }
    }
}

fn kill_myself() -> ! {
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    unreachable!("survived SIGKILL")
}

/// Deltas `first..=last` of a bucket directory.
pub(super) fn deltas(bucket: &Path, first: u64, last: u64) -> Vec<Delta> {
    let delta = |n| {
        let path = bucket.join(format!("{}.ltx", TxId(n)));
        let bytes = std::fs::read(&path).expect("a delta");
        Delta { id: ObjectId { txid: TxId(n), size: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) }, path }
    };
    (first..=last).map(delta).collect()
}

#[test]
#[ignore = "not a test: what the tests start as another process"]
fn be_a_child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        ["read", database, stop] => read_until(Path::new(database), Path::new(stop)),
        ["apply", how, database, bucket, first, last, page_size] => {
            let (path, page_size) = (Path::new(database), page_size.parse().expect("a number"));
            let bed = if how == "alone" { Bed::prepare(path, page_size) } else { Bed::join(path, page_size) };
            let (first, last) = (first.parse().expect("a number"), last.parse().expect("a number"));
            for delta in deltas(Path::new(bucket), first, last) {
                bed.apply(&delta);
            }
            // Not to be survived by anything that a tidy close would do.
            kill_myself();
        }
        ["spill", database] => {
            let db = bed::connect(Path::new(database), 4096);
            db.execute_batch("PRAGMA cache_size=5; BEGIN IMMEDIATE; UPDATE t SET b = randomblob(900)")
                .expect("spilled");
            kill_myself();
        }
        ["backfill", database] => {
            let bed = Bed::prepare(Path::new(database), 4096);
            bed.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).expect("a checkpoint");
            kill_myself();
        }
        ["write", database] => {
            let db = bed::connect(Path::new(database), 4096);
            let k = bed::read_state(&db).expect("a state");
            bed::step(&db, k + 1);
            kill_myself();
        }
        _ => panic!("{role}"),
    }
}

/// Reads until the stop file is there; each transaction is one state, and none is older than the one before.
fn read_until(database: &Path, stop: &Path) {
    let db = rusqlite::Connection::open(database).expect("opened");
    db.busy_timeout(Duration::from_secs(20)).expect("set");
    let (mut last, mut transactions, mut states) = (0, 0u64, 0u64);
    let started = Instant::now();
    println!("\nreading");
    while !stop.exists() {
        // The long form takes minutes, and more beside other work.
        assert!(started.elapsed() < Duration::from_secs(1800), "nobody says stop");
        let k = bed::read_state(&db).expect("a read transaction");
        assert!(k >= last, "{k} after {last}");
        states += u64::from(k > last);
        last = k;
        transactions += 1;
    }
    println!("\nread {transactions} {states}");
}
