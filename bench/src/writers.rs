//! Loads with writers in many threads, for the section `commit`.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

type Timed = rusqlite::Result<(Vec<Duration>, Duration)>;

/// Inserts a row per transaction from so many threads, and returns what each took.
pub fn commit(uri: &str, writers: u32, duration: Duration) -> Timed {
    let (over, ready) = (AtomicBool::new(false), Barrier::new(writers as usize + 1));
    thread::scope(|scope| {
        let writing = start(scope, uri, writers, &over, &ready);
        ready.wait();
        let begun = Instant::now();
        thread::sleep(duration);
        over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for writer in writing {
            all.extend(writer.join().expect("a writer does not panic")?);
        }
        Ok((all, begun.elapsed()))
    })
}

/// Reads a row by its key again and again, while so many threads insert.
pub fn read_beside(uri: &str, writers: u32, duration: Duration) -> Timed {
    let db = connect(uri)?;
    db.execute("INSERT INTO t(a, b) WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT i, 'x' FROM n", [])?;
    let (over, ready) = (AtomicBool::new(false), Barrier::new(writers as usize + 1));
    thread::scope(|scope| {
        let writing = start(scope, uri, writers, &over, &ready);
        ready.wait();
        let mut each = Vec::new();
        let begun = Instant::now();
        let mut read = db.prepare("SELECT b FROM t WHERE id = ?")?;
        while begun.elapsed() < duration {
            let before = Instant::now();
            let row: String = read.query_row([fastrand::i64(1..=1000)], |row| row.get(0))?;
            std::hint::black_box(row);
            each.push(before.elapsed());
            // A reader that never rests would measure the two cores, not the database.
            thread::sleep(Duration::from_micros(500));
        }
        let took = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        for writer in writing {
            writer.join().expect("a writer does not panic")?;
        }
        Ok((each, took))
    })
}

fn connect(uri: &str) -> rusqlite::Result<Connection> {
    let db = Connection::open(uri)?;
    db.busy_timeout(Duration::from_secs(30))?;
    Ok(db)
}

fn start<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    uri: &'scope str,
    writers: u32,
    over: &'scope AtomicBool,
    ready: &'scope Barrier,
) -> Vec<thread::ScopedJoinHandle<'scope, rusqlite::Result<Vec<Duration>>>> {
    let write = move || {
        let db = connect(uri)?;
        let text = "x".repeat(180);
        let mut each = Vec::new();
        let mut insert = db.prepare("INSERT INTO t(a, b) VALUES (?, ?)")?;
        // The lease is taken, and the page cache is warm, before the time runs.
        insert.execute((0, &text))?;
        ready.wait();
        while !over.load(Ordering::Relaxed) {
            let before = Instant::now();
            insert.execute((each.len() as i64, &text))?;
            each.push(before.elapsed());
        }
        Ok(each)
    };
    (0..writers).map(|_| scope.spawn(write)).collect()
}
