//! One measurement, in a process of its own: opens a database, puts the load on it, prints the numbers.
//!
//! The loads know nothing of who is measured: the URI decides.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};

use crate::Failure;
use crate::sample::Sample;
use crate::writers;

/// The first argument that makes this program a worker. The others: load, URI, and seconds (rows for the section `cold`).
pub const MARK: &str = "--worker";

const ROWS: i64 = 100_000;

/// Runs the load that the arguments name.
pub fn run(arguments: &[String]) -> Result<(), Failure> {
    let [load, uri, seconds] = arguments else { return Err("a worker gets a load, a URI and seconds".into()) };
    if load.starts_with("cold-") {
        return crate::cold::work(load, uri, seconds.parse()?);
    }
    sqlite_gcs::register()?;
    let duration = Duration::from_secs_f64(seconds.parse()?);
    if load == "cost" {
        return crate::cost::work(uri, duration);
    }
    let db = Connection::open(uri)?;
    db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")?;
    db.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT)")?;
    let (each, all) = match load.as_str() {
        "insert" => insert(&db, duration)?,
        "select" => select(&db, duration)?,
        load if load.starts_with("commit-") => writers::commit(uri, load["commit-".len()..].parse()?, duration)?,
        load if load.starts_with("read-beside-") => {
            writers::read_beside(uri, load["read-beside-".len()..].parse()?, duration)?
        }
        other => return Err(format!("no load {other}").into()),
    };
    // Outside of what was timed: everything reaches the bucket before the counters are read.
    ask(&db, "gcs_flush")?;
    let puts = ask(&db, "SELECT json_extract(gcs_status(), '$.requests.put')").unwrap_or_default();
    println!("{}", Sample::of(each, all, puts.and_then(|text| text.parse().ok()).unwrap_or(0)));
    db.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// One transaction with one row of about 200 bytes, again and again.
fn insert(db: &Connection, duration: Duration) -> rusqlite::Result<(Vec<Duration>, Duration)> {
    let text = "x".repeat(180);
    let mut statement = db.prepare("INSERT INTO t(a, b) VALUES (?, ?)")?;
    timed(duration, |n| statement.execute((n, &text)).map(drop))
}

/// One row by its key, at random, from a table of 20 MB that was checkpointed and read once.
fn select(db: &Connection, duration: Duration) -> rusqlite::Result<(Vec<Duration>, Duration)> {
    db.execute(
        "INSERT INTO t(a, b) WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?)
         SELECT i, printf('%.180c', 'x') FROM n",
        [ROWS],
    )?;
    ask(db, "gcs_flush")?;
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    db.query_row("SELECT sum(length(b)) FROM t", [], |_| Ok(()))?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut statement = db.prepare("SELECT a, b FROM t WHERE id = ?")?;
    timed(duration, |_| {
        let row = statement.query_row([random.i64(1..=ROWS)], |row| row.get::<_, i64>(0))?;
        std::hint::black_box(row);
        Ok(())
    })
}

fn timed(
    duration: Duration,
    mut operation: impl FnMut(i64) -> rusqlite::Result<()>,
) -> rusqlite::Result<(Vec<Duration>, Duration)> {
    let mut each = Vec::with_capacity(1 << 20);
    let started = Instant::now();
    let mut last = started;
    for n in 0.. {
        operation(n)?;
        let now = Instant::now();
        each.push(now - last);
        last = now;
        if now - started >= duration {
            break;
        }
    }
    Ok((each, last - started))
}

/// A PRAGMA's or a query's one value as text; `None` where nobody answers.
fn ask(db: &Connection, sql: &str) -> rusqlite::Result<Option<String>> {
    let sql = if sql.contains(' ') { sql.to_owned() } else { format!("PRAGMA {sql}") };
    let value = db.query_row(&sql, [], |row| row.get::<_, rusqlite::types::Value>(0)).optional()?;
    Ok(value.map(|value| match value {
        rusqlite::types::Value::Integer(number) => number.to_string(),
        rusqlite::types::Value::Text(text) => text,
        other => format!("{other:?}"),
    }))
}
