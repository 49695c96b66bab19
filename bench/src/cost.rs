//! Section `cost`: what a month of requests costs. One write a second for ten minutes, then two minutes without any, by this VFS
//! with its defaults and by plain SQLite with `litestream replicate` and its defaults beside it, at the same time and on the same
//! fake-gcs-server, each behind a proxy of its own that counts. Counts, not speed: the machine need not be quiet.
//!
//! Writing is counted from the first write until five seconds after the last, so that the last upload and the release of the
//! lease are in it; what each side does to begin (the table, the first snapshot) is not.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Child;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::proxy::{Class, Proxy};
use sqlite_gcs_tests::shell::{Program, Scratch};

use crate::contender::beside;
use crate::worker::MARK;
use crate::{Failure, Settings, chart};

/// How long is written where nothing else is asked for.
pub const DURATION: Duration = Duration::from_secs(600);
const TAIL: Duration = Duration::from_secs(5);
/// Dollars per request, list prices of a region in the USA.
const CLASS_A: f64 = 0.005 / 1000.0;
const CLASS_B: f64 = 0.0004 / 1000.0;
const MONTH_MINUTES: f64 = 30.0 * 24.0 * 60.0;

/// Requests and bytes so far.
#[derive(Clone, Copy)]
struct Count {
    class_a: u64,
    class_b: u64,
    free: u64,
    up: u64,
    down: u64,
}

/// Requests per minute by class, kilobytes per minute.
struct Rate {
    class_a: f64,
    class_b: f64,
    free: f64,
    up: f64,
    down: f64,
}

struct Row {
    name: &'static str,
    writing: Rate,
    idle: Rate,
}

/// Measures both and prints the table; the chart goes to the folder of the settings.
pub fn run(settings: &Settings) -> Result<(), Failure> {
    let (writing, idle) = (settings.cost, (settings.cost / 5).max(Duration::from_secs(10)));
    let emulator = Emulator::start();
    let rows = std::thread::scope(|scope| {
        let own = scope.spawn(|| measure("sqlite-gcs", &emulator, true, writing, idle).map_err(|e| e.to_string()));
        let other = measure("plain SQLite + Litestream", &emulator, false, writing, idle);
        let own = own.join().map_err(|_| "a measurement panicked".to_owned()).and_then(|row| row);
        Ok::<_, Failure>([own?, other?])
    })?;
    println!("{}", markdown(&rows, writing, idle));
    let bars: Vec<_> = rows
        .iter()
        .flat_map(|row| {
            [("writing", &row.writing), ("idle", &row.idle)]
                .map(|(what, rate)| (format!("{}, {what}", row.name), rate.class_a))
        })
        .collect();
    let path = settings.out.join("cost.svg");
    std::fs::write(&path, chart::bars("class A requests per minute at one write a second, and idle", &bars))?;
    println!("chart: {}\n", path.display());
    Ok(())
}

fn measure(
    name: &'static str,
    emulator: &Emulator,
    own: bool,
    writing: Duration,
    idle: Duration,
) -> Result<Row, Failure> {
    let (scratch, proxy) = (Scratch::new(), Proxy::start(&emulator.host()));
    // One folder for each in the shared bucket.
    let bucket = format!("{}/{}", emulator.url(), if own { "own" } else { "other" });
    let file = scratch.join("app.db");
    let mut uri = format!("file:{}", file.display());
    let mut program = Program::new(std::env::current_exe()?).env("SQLITE_GCS_BUCKET", &bucket);
    let mut sidecar = None;
    if own {
        uri += "?vfs=gcs";
        program = program.env("STORAGE_EMULATOR_HOST", proxy.host());
    } else {
        sidecar = Some(beside(&file, &format!("{bucket}/app.db"), Some(&proxy.host()))?);
    }
    let mut worker = Worker::start(program.args([MARK, "cost", &uri, &writing.as_secs_f64().to_string()]))?;
    worker.wait_for("ready")?;
    std::thread::sleep(TAIL);
    let begin = Count::of(&proxy);
    worker.go_on()?;
    worker.wait_for("written")?;
    std::thread::sleep(TAIL);
    let written = Count::of(&proxy);
    std::thread::sleep(idle);
    let end = Count::of(&proxy);
    worker.go_on()?;
    worker.end()?;
    if let Some(sidecar) = sidecar {
        sidecar.stop()?;
    }
    Ok(Row { name, writing: written.since(begin).per_minute(writing), idle: end.since(written).per_minute(idle) })
}

/// The load, in a worker's process: a row each second. It waits for a line before it writes, and again before it closes.
pub fn work(uri: &str, duration: Duration) -> Result<(), Failure> {
    let db = Connection::open(uri)?;
    db.busy_timeout(Duration::from_secs(30))?;
    db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT)")?;
    let mut lines = std::io::stdin().lines();
    println!("ready");
    lines.next().ok_or("the bench ended")??;
    let (begin, text) = (Instant::now(), "x".repeat(180));
    for second in 0.. {
        let due = Duration::from_secs(second);
        if due >= duration {
            break;
        }
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        db.execute("INSERT INTO t(a, b) VALUES (?, ?)", (second as i64, &text))?;
    }
    println!("written");
    lines.next().ok_or("the bench ended")??;
    db.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// A worker that is talked to while it runs; killed when dropped.
struct Worker {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Worker {
    fn start(program: Program) -> Result<Worker, Failure> {
        let mut child = program.into_command().stderr(std::process::Stdio::inherit()).spawn()?;
        let output = child.stdout.take().ok_or("a worker without an output")?;
        Ok(Worker { child, lines: BufReader::new(output).lines() })
    }

    fn wait_for(&mut self, word: &str) -> Result<(), Failure> {
        match self.lines.next() {
            Some(Ok(line)) if line == word => Ok(()),
            other => Err(format!("a worker said {other:?} instead of {word}").into()),
        }
    }

    fn go_on(&mut self) -> Result<(), Failure> {
        Ok(self.child.stdin.as_mut().ok_or("a worker without an input")?.write_all(b"\n")?)
    }

    fn end(mut self) -> Result<(), Failure> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a worker ended with {status}").into()) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Count {
    fn of(proxy: &Proxy) -> Count {
        let sum = |classes: &[Class]| classes.iter().map(|class| proxy.count(*class)).sum();
        let (up, down) = proxy.bytes();
        // What is none of the known requests (a compose, say) is of the dear class until somebody looks.
        let class_a = sum(&[Class::Put, Class::List, Class::Other]);
        Count { class_a, class_b: sum(&[Class::Get, Class::Stat]), free: sum(&[Class::Delete]), up, down }
    }

    fn since(self, earlier: Count) -> Count {
        Count {
            class_a: self.class_a - earlier.class_a,
            class_b: self.class_b - earlier.class_b,
            free: self.free - earlier.free,
            up: self.up - earlier.up,
            down: self.down - earlier.down,
        }
    }

    fn per_minute(self, during: Duration) -> Rate {
        let of = |count: u64| count as f64 * 60.0 / during.as_secs_f64();
        Rate {
            class_a: of(self.class_a),
            class_b: of(self.class_b),
            free: of(self.free),
            up: of(self.up) / 1024.0,
            down: of(self.down) / 1024.0,
        }
    }
}

impl Rate {
    /// Dollars of a month at this rate.
    fn month(&self) -> f64 {
        (self.class_a * CLASS_A + self.class_b * CLASS_B) * MONTH_MINUTES
    }
}

fn markdown(rows: &[Row], writing: Duration, idle: Duration) -> String {
    let mut text = format!(
        "### Requests per minute and what a month of them costs\n\nOne write a second for {writing:?}, then {idle:?} idle; defaults of \
         both; one fake-gcs-server. Class A (write, list) $0.005 per 1,000, class B (read) $0.0004 per 1,000, deletes free.\n\n"
    );
    text += "| | class A | class B | free | KB up | KB down | $ a month |\n|---|---:|---:|---:|---:|---:|---:|\n";
    for row in rows {
        for (what, rate) in [("writing", &row.writing), ("idle", &row.idle)] {
            // Formatting into a String cannot fail.
            let _ = writeln!(
                text,
                "| {}, {what} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.2} |",
                row.name,
                rate.class_a,
                rate.class_b,
                rate.free,
                rate.up,
                rate.down,
                rate.month()
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_of_one_write_a_second_costs_thirteen_dollars() {
        let count = Count { class_a: 600, class_b: 0, free: 9, up: 10_240, down: 0 };
        let rate = count.per_minute(Duration::from_secs(600));
        assert!((rate.month() - 12.96).abs() < 0.001 && (rate.up - 1.0).abs() < 0.001, "{}", rate.month());
    }
}
