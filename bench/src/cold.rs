//! Section `cold`: a new instance with an empty disk meets a database that lies in the bucket 25 ms away.
//!
//! The bucket is fake-gcs-server behind the proxy of the tests, which holds every request for 25 ms and lets bytes pass as fast
//! as the machine can: latency 25 ms, bandwidth without a cap. Each measurement is a new process with an empty folder. The replica is made
//! once, by this VFS, and read by all: by this VFS with a bound of 256 MB and by Litestream's VFS page by page, by this VFS with
//! `hydrate=now`, by `litestream restore` and by a bare download whole, before the query.
#![allow(unsafe_code)] // Loading a library of somebody else's, in `litestream_vfs`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use sqlite_gcs::store::{self, BucketUrl};
use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::litestream::{self, Point};
use sqlite_gcs_tests::proxy::Proxy;
use sqlite_gcs_tests::shell::{Program, Scratch, workspace};

use crate::worker::MARK;
use crate::{Failure, Settings, chart};

const DELAY: Duration = Duration::from_millis(25);
const FILE: &str = "app.db";
/// The variable that names Litestream's VFS extension; else it is where `tests/setup bench` puts it.
const LITESTREAM_VFS: &str = "SQLITE_GCS_BENCH_LITESTREAM_VFS";
/// What a worker does after it has opened the database.
const LOADS: [&str; 4] = ["cold-first", "cold-points", "cold-range", "cold-scan"];
/// Litestream's VFS has no read-ahead: of more rows than this, a full scan at a round trip per page is not waited for.
const PATIENCE: i64 = 100_000;
/// Bytes of one row with its index entry, about.
const ROW_BYTES: u64 = 216;

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Gcs,
    Hydrated,
    LitestreamVfs,
    Restore,
    Download,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Gcs => "sqlite-gcs, cache_size=256MB",
            Peer::Hydrated => "sqlite-gcs, hydrate=now",
            Peer::LitestreamVfs => "Litestream's VFS",
            Peer::Restore => "litestream restore",
            Peer::Download => "bare download, one GET per object",
        }
    }
}

struct Row {
    name: String,
    first_ms: f64,
    requests: u64,
    mebibytes: f64,
    /// Of [`LOADS`] but the first, milliseconds.
    others_ms: Vec<f64>,
    points_kib: f64,
    rss_mib: f64,
}

struct Bench {
    emulator: Emulator,
    proxy: Proxy,
}

/// Measures every peer on a database of each size and prints the tables; charts go to the folder of the settings.
pub fn run(settings: &Settings) -> Result<(), Failure> {
    for &mebibytes in &settings.sizes {
        let bench = Bench::new()?;
        let scratch = Scratch::new();
        let rows = build(&bench, &scratch.join(FILE), mebibytes)?;
        bench.proxy.set_delay(DELAY);
        let mut table = Vec::new();
        for peer in [Peer::Gcs, Peer::Hydrated, Peer::LitestreamVfs, Peer::Restore, Peer::Download] {
            table.push(bench.measure(peer, rows)?);
        }
        let title = format!("cold start, {mebibytes} MB, {rows} rows, 25 ms to the bucket");
        println!("{}", markdown(&title, &table));
        println!("{}\n", ratios(&table));
        let bars: Vec<_> = table.iter().map(|row| (row.name.clone(), row.first_ms)).collect();
        let svg = chart::bars(&format!("ms to the first row: {title}"), &bars);
        let path = settings.out.join(format!("cold-{mebibytes}.svg"));
        std::fs::write(&path, svg)?;
        println!("chart: {}\n", path.display());
    }
    Ok(())
}

impl Bench {
    fn new() -> Result<Bench, Failure> {
        let emulator = Emulator::start();
        let proxy = Proxy::start(&emulator.host());
        Ok(Bench { emulator, proxy })
    }

    fn worker(&self, load: &str, uri: &str, rows: i64) -> Program {
        let program = Program::new(std::env::current_exe().unwrap_or_default()).limit(Duration::from_secs(1200));
        program
            .env("SQLITE_GCS_BUCKET", self.emulator.url())
            .env("STORAGE_EMULATOR_HOST", self.proxy.host())
            .env(LITESTREAM_VFS, litestream_library())
            .env("LITESTREAM_REPLICA_URL", format!("{}/{FILE}", self.emulator.url()))
            .args([MARK, load, uri, &rows.to_string()])
    }

    fn measure(&self, peer: Peer, rows: i64) -> Result<Row, Failure> {
        let mut row = Row {
            name: peer.name().to_owned(),
            first_ms: 0.0,
            requests: 0,
            mebibytes: 0.0,
            others_ms: Vec::new(),
            points_kib: 0.0,
            rss_mib: 0.0,
        };
        for load in LOADS {
            if peer == Peer::LitestreamVfs && load == "cold-scan" && rows > PATIENCE {
                row.others_ms.push(f64::NAN);
                continue;
            }
            let scratch = Scratch::new();
            let file = scratch.join(FILE);
            let (requests, bytes) = (self.proxy.requests(), self.proxy.bytes().1);
            let started = Instant::now();
            let uri = match peer {
                Peer::Gcs => format!("file:{}?vfs=gcs&cache_size=256MB", file.display()),
                Peer::Hydrated => format!("file:{}?vfs=gcs&hydrate=now&cache_size=0", file.display()),
                Peer::LitestreamVfs => format!("file:{}?vfs=litestream", file.display()),
                Peer::Restore => {
                    let replica = format!("{}/{FILE}", self.emulator.url());
                    litestream::restore_into(&replica, Some(&self.proxy.host()), Point::Newest, &file)?;
                    format!("file:{}", file.display())
                }
                Peer::Download => {
                    self.worker("cold-download", &file.display().to_string(), rows).run().expect_success();
                    row.first_ms = millis(started);
                    row.requests = self.proxy.requests() - requests;
                    row.mebibytes = (self.proxy.bytes().1 - bytes) as f64 / f64::from(1 << 20);
                    return Ok(row);
                }
            };
            let before = millis(started);
            let done = self.worker(load, &uri, rows).run();
            let numbers = done.expect_success().split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
            let [took_ms, rss_mib] = numbers[..] else { return Err(format!("{load}: {done}").into()) };
            let down = self.proxy.bytes().1 - bytes;
            row.rss_mib = row.rss_mib.max(rss_mib);
            match load {
                "cold-first" => {
                    row.first_ms = before + took_ms;
                    row.requests = self.proxy.requests() - requests;
                    row.mebibytes = down as f64 / f64::from(1 << 20);
                }
                _ => row.others_ms.push(before + took_ms),
            }
            if load == "cold-points" {
                row.points_kib = down as f64 / 1024.0 / 100.0;
            }
        }
        Ok(row)
    }
}

/// Makes the database with plain SQLite and lets this VFS adopt and upload it. Returns its rows.
fn build(bench: &Bench, file: &Path, mebibytes: u64) -> Result<i64, Failure> {
    let rows = (mebibytes * (1 << 20) / ROW_BYTES) as i64;
    let db = Connection::open(file)?;
    db.execute_batch(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;
         CREATE TABLE orders(id INTEGER PRIMARY KEY, customer INTEGER, placed TEXT, amount REAL, note TEXT);
         CREATE INDEX of_customer ON orders(customer); BEGIN;",
    )?;
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut random = fastrand::Rng::with_seed(4);
    let mut insert = db.prepare("INSERT INTO orders(customer, placed, amount, note) VALUES (?, ?, ?, ?)")?;
    for row in 0..rows {
        let mut note = String::new();
        while note.len() < 130 {
            note += words[random.usize(..words.len())];
            note.push(' ');
        }
        let placed = format!("2026-{:02}-{:02}T{:02}:{:02}:00Z", 1 + row % 12, 1 + row % 28, row % 24, row % 60);
        insert.execute((random.i64(0..rows / 8 + 1), placed, random.f64() * 500.0, note))?;
    }
    drop(insert);
    db.execute_batch("COMMIT")?;
    db.close().map_err(|(_, e)| e)?;
    let uri = format!("file:{}?vfs=gcs&commit_timeout=10min", file.display());
    bench.worker("cold-adopt", &uri, rows).run().expect_success();
    Ok(rows)
}

/// The loads of this section, in a worker's process.
pub fn work(load: &str, uri: &str, rows: i64) -> Result<(), Failure> {
    sqlite_gcs::register()?;
    if load == "cold-download" {
        return download(Path::new(uri));
    }
    let started = Instant::now();
    // It is loaded by whoever uses it, so its start counts as ours does.
    let _registers = uri.ends_with("?vfs=litestream").then(litestream_vfs).transpose()?;
    let db = Connection::open(uri)?;
    let mut random = fastrand::Rng::with_seed(11);
    let mut point = |db: &Connection| {
        let id = random.i64(1..=rows);
        db.query_row("SELECT note FROM orders WHERE id = ?", [id], |row| row.get::<_, String>(0))
    };
    match load {
        "cold-adopt" => db.query_row("PRAGMA gcs_flush", [], |row| row.get::<_, String>(0)).map(drop)?,
        "cold-first" => drop(point(&db)?),
        "cold-points" => {
            for _ in 0..100 {
                point(&db)?;
            }
        }
        "cold-range" => {
            let (from, to) = (rows / 2, rows / 2 + rows / 100);
            let sum = "SELECT sum(length(note)) FROM orders WHERE id BETWEEN ? AND ?";
            db.query_row(sum, [from, to], |row| row.get::<_, i64>(0))?;
        }
        "cold-scan" => drop(db.query_row("SELECT sum(length(note)) FROM orders", [], |row| row.get::<_, i64>(0))?),
        other => return Err(format!("no load {other}").into()),
    }
    let took = millis(started);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    println!("{took} {}", peak.unwrap_or(0.0) / 1024.0);
    if load == "cold-adopt" {
        db.close().map_err(|(_, e)| e)?;
    }
    Ok(())
}

fn litestream_library() -> PathBuf {
    std::env::var_os(LITESTREAM_VFS).map_or_else(|| workspace().join(".venv/bin/litestream-vfs.so"), PathBuf::from)
}

/// Registers Litestream's VFS for this process, for as long as the connection lives.
fn litestream_vfs() -> Result<Connection, Failure> {
    let file = litestream_library();
    if !file.exists() {
        return Err(format!("{} is missing: run tests/setup bench", file.display()).into());
    }
    let db = Connection::open_in_memory()?;
    // SAFETY: the library is the one that the settings name; it registers a VFS and stays loaded.
    unsafe {
        let _enabled = rusqlite::LoadExtensionGuard::new(&db)?;
        db.load_extension(file, Some("sqlite3_litestreamvfs_init"))?;
    }
    Ok(db)
}

/// Every object, one after the other, each in one GET: what the line and the emulator can do.
fn download(file: &Path) -> Result<(), Failure> {
    let bucket: BucketUrl = std::env::var("SQLITE_GCS_BUCKET")?.parse()?;
    let store = store::open(&bucket, store::Config::from_environment());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        for entry in store.list(&format!("{FILE}/ltx/"), None).await? {
            std::fs::write(file, store.get(&entry.name, None).await?.bytes)?;
        }
        Ok(())
    })
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// What the targets are about.
fn ratios(rows: &[Row]) -> String {
    let [own, hydrated, vfs, restore, ..] = rows else { return String::new() };
    let trips = 3.0 * DELAY.as_secs_f64() * 1e3;
    let scan = |row: &Row| row.others_ms.last().copied().unwrap_or(f64::NAN);
    format!(
        "First row: {:.2} of three round trips; Litestream's VFS takes {:.1} times as long. A restore takes {:.1} times as long as the full \
         scan, and {:.1} times as long as hydrate=now.",
        own.first_ms / trips,
        vfs.first_ms / own.first_ms,
        restore.first_ms / scan(own),
        restore.first_ms / hydrated.first_ms,
    )
}

fn markdown(title: &str, rows: &[Row]) -> String {
    let mut text = format!("### {title}\n\n");
    text += "Times in ms from the start of the process to the result; restore and download include it. Peak memory of the\n";
    text += "process that queries.\n\n";
    text += "| | first row | requests | MB | 100 points | KB per point | 1 % range | full scan | RSS MB |\n";
    text += "|---|---:|---:|---:|---:|---:|---:|---:|---:|\n";
    for row in rows {
        let cell = |at: usize| match row.others_ms.get(at) {
            Some(ms) if ms.is_nan() => "not waited for".to_owned(),
            Some(ms) => format!("{ms:.0}"),
            None => String::new(),
        };
        let (points, others) = (cell(0), format!(" {} | {} |", cell(1), cell(2)));
        // Formatting into a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {:.0} | {} | {:.2} | {points} | {:.1} |{others} {:.0} |",
            row.name, row.first_ms, row.requests, row.mebibytes, row.points_kib, row.rss_mib
        );
    }
    text
}

const WORDS: &str = "delivered parcel to the neighbour at number nine because nobody answered customer asked for \
    a refund after second attempt left behind garden gate fragile glass please call before arrival invoice sent by mail \
    payment pending since Monday urgent repeat order twelve boxes of green tea and one kettle returned unopened label damaged \
    warehouse Rotterdam Hamburg Lyon Bologna picked packed shipped tracking number missing weight corrected discount applied";
