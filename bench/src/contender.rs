//! Who is measured: plain SQLite, this VFS on each kind of bucket, and Litestream beside plain SQLite.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use sqlite_gcs_tests::litestream::Sidecar;
use sqlite_gcs_tests::shell::{Program, Scratch};

use crate::Failure;
use crate::sample::Sample;
use crate::worker::MARK;

/// One column of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contender {
    /// SQLite's own VFS, WAL, nothing beside it: what the others are compared with.
    Plain,
    /// This VFS with a directory as its bucket.
    Directory,
    /// Plain SQLite with `litestream replicate` beside it, to a directory.
    Litestream,
}

impl Contender {
    /// Its name in tables and charts.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Plain => "plain SQLite, WAL",
            Contender::Directory => "sqlite-gcs, directory",
            Contender::Litestream => "plain + Litestream, directory",
        }
    }

    /// Runs a load once on a new database in a directory of its own.
    pub fn measure(self, load: &str, duration: Duration) -> Result<Sample, Failure> {
        let scratch = Scratch::new();
        let file = scratch.join("app.db");
        let bucket = scratch.bucket();
        let mut uri = format!("file:{}", file.display());
        let mut worker = Program::new(std::env::current_exe()?).limit(duration * 4 + Duration::from_secs(120));
        let mut sidecar = None;
        match self {
            Contender::Plain => (),
            Contender::Directory => {
                uri += "?vfs=gcs";
                worker = worker.env("SQLITE_GCS_BUCKET", &bucket);
            }
            Contender::Litestream => sidecar = Some(beside(&file, &scratch, &bucket)?),
        }
        let seconds = duration.as_secs_f64().to_string();
        let done = worker.args([MARK, load, &uri, &seconds]).run();
        if let Some(sidecar) = sidecar {
            sidecar.stop()?;
        }
        if !done.succeeded() {
            return Err(format!("{}: {done}", self.name()).into());
        }
        Ok(done.stdout.trim().parse()?)
    }
}

/// Starts Litestream on a new database and waits until its first upload.
fn beside(file: &Path, scratch: &Scratch, bucket: &str) -> Result<Sidecar, Failure> {
    Connection::open(file)?.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE first(a);")?;
    let sidecar = Sidecar::start(file, &format!("{bucket}/app.db"), None, None);
    let started = Instant::now();
    while !scratch.join("bucket/app.db/ltx/0").is_dir() {
        if started.elapsed() > Duration::from_secs(30) {
            return Err("litestream uploaded nothing within 30 s".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(sidecar)
}

/// Measures every contender in turn, `repeats` rounds, and returns each one's medians.
pub fn compare(
    contenders: &[Contender],
    load: &str,
    duration: Duration,
    repeats: usize,
) -> Result<Vec<(String, Sample)>, Failure> {
    let mut samples = vec![Vec::new(); contenders.len()];
    for round in 1..=repeats {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            eprintln!("{load} {round}/{repeats}: {}", contender.name());
            samples.push(contender.measure(load, duration)?);
        }
    }
    Ok(contenders.iter().map(|c| c.name().to_owned()).zip(samples.iter().map(|s| Sample::median(s))).collect())
}
