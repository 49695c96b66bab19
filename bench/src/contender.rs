//! Who is measured: plain SQLite, this VFS on each kind of bucket, and Litestream beside plain SQLite.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use sqlite_gcs_tests::emulator::Emulator;
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
    /// This VFS with fake-gcs-server as its bucket.
    Emulator,
    /// Plain SQLite with `litestream replicate` beside it, to a directory.
    LitestreamDirectory,
    /// The same, to fake-gcs-server.
    LitestreamEmulator,
}

/// Plain SQLite first, because the others are compared with the first.
pub const ALL: [Contender; 5] = [
    Contender::Plain,
    Contender::Directory,
    Contender::Emulator,
    Contender::LitestreamDirectory,
    Contender::LitestreamEmulator,
];

impl Contender {
    /// Its name in tables and charts.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Plain => "plain SQLite, WAL",
            Contender::Directory => "sqlite-gcs, directory",
            Contender::Emulator => "sqlite-gcs, fake-gcs-server",
            Contender::LitestreamDirectory => "plain + Litestream, directory",
            Contender::LitestreamEmulator => "plain + Litestream, fake-gcs-server",
        }
    }

    /// Runs a load once on a new database in a directory of its own.
    pub fn measure(self, load: &str, duration: Duration) -> Result<Sample, Failure> {
        let scratch = Scratch::new();
        let file = scratch.join("app.db");
        let emulator = matches!(self, Contender::Emulator | Contender::LitestreamEmulator).then(Emulator::start);
        let bucket = emulator.as_ref().map_or_else(|| scratch.bucket(), Emulator::url);
        let endpoint = emulator.as_ref().map(Emulator::host);
        let mut uri = format!("file:{}", file.display());
        let mut worker = Program::new(std::env::current_exe()?).limit(duration * 4 + Duration::from_secs(120));
        let mut sidecar = None;
        match self {
            Contender::Plain => (),
            Contender::Directory | Contender::Emulator => {
                uri += "?vfs=gcs";
                worker = worker.env("SQLITE_GCS_BUCKET", &bucket);
                if let Some(endpoint) = &endpoint {
                    worker = worker.env("STORAGE_EMULATOR_HOST", endpoint);
                }
            }
            Contender::LitestreamDirectory | Contender::LitestreamEmulator => {
                let replica = format!("{bucket}/app.db");
                sidecar = Some(beside(&file, &replica, endpoint.as_deref())?);
            }
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

/// Starts Litestream beside a new database and waits until it has set up its shadow of it.
pub fn beside(file: &Path, replica: &str, endpoint: Option<&str>) -> Result<Sidecar, Failure> {
    Connection::open(file)?.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE first(a);")?;
    let sidecar = Sidecar::start(file, replica, endpoint, None);
    let shadow = file.with_file_name(".app.db-litestream").join("ltx/0");
    let started = Instant::now();
    while !shadow.is_dir() {
        if started.elapsed() > Duration::from_secs(30) {
            return Err("litestream did not begin within 30 s".into());
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
