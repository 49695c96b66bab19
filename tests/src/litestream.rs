//! The real `litestream`: the independent judge of a bucket (`restore`), and the writer of replicas to move in from.
//!
//! The binary is the file that `SQLITE_GCS_TEST_LITESTREAM` names, else `.venv/bin/litestream` as `make setup` makes it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::shell::{Finished, Program, Running, Scratch, workspace};

const LIMIT: Duration = Duration::from_secs(120);

/// Which state of the database to restore.
#[derive(Clone, Copy, Debug)]
pub enum Point<'a> {
    /// The newest.
    Newest,
    /// As of a TXID, 16 hexadecimal digits.
    TxId(&'a str),
    /// As of a time, RFC 3339.
    Timestamp(&'a str),
}

/// Litestream did not do what it was asked to; holds everything it printed.
#[derive(Debug)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// The binary's path.
///
/// # Panics
/// If there is none.
pub fn binary() -> PathBuf {
    let path = match std::env::var_os("SQLITE_GCS_TEST_LITESTREAM") {
        Some(path) => PathBuf::from(path),
        None => workspace().join(".venv/bin/litestream"),
    };
    assert!(path.is_file(), "there is no litestream at {}: run `make setup`", path.display());
    path
}

/// Restores the newest state of a replica (`gs://bucket/path` or `file:///dir/path`) and returns the database file's bytes.
/// `endpoint` is the emulator's address for a `gs://` replica.
pub fn restore(replica: &str, endpoint: Option<&str>) -> Result<Vec<u8>, Failure> {
    restore_at(replica, endpoint, Point::Newest)
}

/// Restores a replica as of a point and returns the database file's bytes.
pub fn restore_at(replica: &str, endpoint: Option<&str>, point: Point<'_>) -> Result<Vec<u8>, Failure> {
    let scratch = Scratch::new();
    let file = scratch.join("restored.db");
    restore_into(replica, endpoint, point, &file)?;
    std::fs::read(&file).map_err(|error| Failure(format!("litestream said it restored {replica}, but: {error}")))
}

/// Restores a replica as of a point into a new file.
pub fn restore_into(replica: &str, endpoint: Option<&str>, point: Point<'_>, file: &Path) -> Result<(), Failure> {
    let mut program = litestream(endpoint).args(["restore", "-o"]).args([file]);
    program = match point {
        Point::Newest => program,
        Point::TxId(txid) => program.args(["-txid", txid]),
        Point::Timestamp(time) => program.args(["-timestamp", time]),
    };
    check(program.args([replica]).run())
}

/// Replicates a plain database once, as it stands, and returns when all of it is in the replica. A snapshot (level 9)
/// is written too where `snapshot` asks for it.
pub fn replicate(database: &Path, replica: &str, endpoint: Option<&str>, snapshot: bool) -> Result<(), Failure> {
    let flags: &[&str] = if snapshot { &["-once", "-force-snapshot"] } else { &["-once"] };
    check(litestream(endpoint).args(["replicate"]).args(flags).args([database]).args([replica]).run())
}

/// A `litestream replicate` that runs beside a database, as a sidecar does; killed when dropped.
#[derive(Debug)]
pub struct Sidecar {
    running: Running,
    // Holds the configuration while the program runs.
    _scratch: Scratch,
}

impl Sidecar {
    /// Starts one that compacts level 0 into 1, 2 and 3 every `compaction`; `None` keeps Litestream's own intervals.
    pub fn start(database: &Path, replica: &str, endpoint: Option<&str>, compaction: Option<Duration>) -> Sidecar {
        let scratch = Scratch::new();
        let config = scratch.join("litestream.yml");
        let levels = match compaction {
            Some(every) => {
                let ms = every.as_millis();
                format!("levels:\n  - interval: {ms}ms\n  - interval: {}ms\n  - interval: {}ms\n", 2 * ms, 4 * ms)
            }
            None => String::new(),
        };
        let text = format!("{levels}dbs:\n  - path: {}\n    replica:\n      url: {replica}\n", database.display());
        std::fs::write(&config, text).expect("litestream's configuration");
        let program = litestream(endpoint).args(["replicate", "-config"]).args([&config]).limit(LIMIT);
        Sidecar { running: program.start(), _scratch: scratch }
    }

    /// Ends it as a service manager does, so that it syncs a last time, and waits until it is gone.
    pub fn stop(self) -> Result<(), Failure> {
        self.running.signal(Signal::SIGINT);
        check(self.running.finish())
    }
}

fn litestream(endpoint: Option<&str>) -> Program {
    let program = Program::new(binary()).limit(LIMIT);
    match endpoint {
        // Google's Go client wants the bare host and port here.
        Some(endpoint) => program.env("STORAGE_EMULATOR_HOST", endpoint.trim_start_matches("http://")),
        None => program,
    }
}

fn check(done: Finished) -> Result<(), Failure> {
    if done.succeeded() { Ok(()) } else { Err(Failure(done.to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn database(path: &Path, rows: i64) -> Connection {
        let db = Connection::open(path).expect("a plain database");
        db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(a);").expect("a table");
        for row in 0..rows {
            db.execute("INSERT INTO t VALUES (?)", [row]).expect("a row");
        }
        db
    }

    fn count(bytes: &[u8]) -> i64 {
        let scratch = Scratch::new();
        std::fs::write(scratch.join("copy.db"), bytes).expect("a copy");
        let db = Connection::open(scratch.join("copy.db")).expect("the copy");
        db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("a count")
    }

    #[test]
    fn what_it_replicates_it_restores_newest_and_as_of_a_txid() {
        let scratch = Scratch::new();
        let (file, replica) = (scratch.join("app.db"), format!("{}/app.db", scratch.bucket()));
        let db = database(&file, 3);
        replicate(&file, &replica, None, false).expect("the first sync");
        drop(db);
        let db = database(&file, 4);
        replicate(&file, &replica, None, true).expect("the second sync");
        drop(db);
        assert_eq!(count(&restore(&replica, None).expect("the newest state")), 7);
        let first = restore_at(&replica, None, Point::TxId("0000000000000001")).expect("the first state");
        assert_eq!(count(&first), 3);
        assert!(scratch.join("bucket/app.db/ltx/9").is_dir(), "a snapshot was asked for");
    }

    #[test]
    fn a_failed_restore_says_why() {
        let scratch = Scratch::new();
        let error = restore(&format!("{}/none.db", scratch.bucket()), None).expect_err("there is no replica");
        assert!(error.to_string().contains("no matching backup files"), "{error}");
    }

    #[test]
    fn a_sidecar_syncs_a_last_time_when_it_is_stopped() {
        let scratch = Scratch::new();
        let (file, replica) = (scratch.join("app.db"), format!("{}/app.db", scratch.bucket()));
        let _db = database(&file, 1);
        let sidecar = Sidecar::start(&file, &replica, None, Some(Duration::from_secs(1)));
        // Its signal handler stands once it has begun to work.
        let begun = std::time::Instant::now();
        while !scratch.join("bucket/app.db/ltx/0").is_dir() && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _db = database(&file, 20);
        sidecar.stop().expect("a clean end");
        assert_eq!(count(&restore(&replica, None).expect("the newest state")), 21);
    }
}
