//! Three processes do whatever they like to one bounded database, and the same to a plain one beside it: reads, writes, checkpoints,
//! uploads, reopenings with hydration, all while units of the cache are evicted. Every answer has to be the plain database's.
//!
//! Writes take an exclusive lock on a file beside the databases, and readers that compare a shared one, so that both are in the same
//! state. Other readers take none: they check what every transaction leaves true.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use fastrand::Rng;
use rusqlite::types::Value;
use rusqlite::{Connection, Transaction, TransactionBehavior};

/// About 20 MB, three times the cache.
const ROWS: i64 = 8_000;
const ROW_BYTES: i64 = 2_000;

struct Place {
    folder: PathBuf,
}

impl Place {
    fn managed(&self, machine: &str, more: &str) -> Connection {
        sqlite_gcs::register().expect("registered");
        let (file, bucket) = (self.folder.join(machine).join("app.db"), self.folder.join("bucket"));
        std::fs::create_dir_all(self.folder.join(machine)).expect("a folder");
        let uri = format!("file:{}?vfs=gcs&bucket=file://{}&cache_size=6MB{more}", file.display(), bucket.display());
        settled(Connection::open(uri).expect("opened"))
    }

    fn plain(&self) -> Connection {
        let db = Connection::open(self.folder.join("plain.db")).expect("opened");
        db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF").expect("settings");
        settled(db)
    }

    fn turn(&self) -> File {
        File::options().create(true).truncate(false).write(true).open(self.folder.join("turn")).expect("a lock file")
    }
}

fn settled(db: Connection) -> Connection {
    db.busy_timeout(std::time::Duration::from_secs(60)).expect("a timeout");
    db.execute_batch("PRAGMA wal_autocheckpoint=60; PRAGMA cache_size=20").expect("settings");
    db
}

/// Every value that a query returns.
fn rows(db: &Connection, sql: &str) -> Vec<Value> {
    let mut statement = db.prepare(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let columns = statement.column_count();
    let mut found = statement.query([]).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut values = Vec::new();
    while let Some(row) = found.next().unwrap_or_else(|e| panic!("{sql}: {e}")) {
        values.extend((0..columns).map(|at| row.get::<_, Value>(at).expect("a value")));
    }
    values
}

/// What one transaction does; it leaves `sum(n) = total`.
fn change(random: &mut Rng) -> String {
    let from = random.i64(1..ROWS);
    let (to, n) = (from + random.i64(0..25), random.i64(-100..100));
    let body = format!("printf('%.{}c', '{}')", random.i64(1..ROW_BYTES * 2), random.alphanumeric());
    let what = match random.u8(..5) {
        0 => format!("DELETE FROM t WHERE id BETWEEN {from} AND {to}"),
        1 => format!(
            "INSERT OR REPLACE INTO t WITH RECURSIVE i(x) AS (SELECT {from} UNION ALL SELECT x + 1 FROM i WHERE x < {to})
             SELECT x, x * {n}, {body} FROM i"
        ),
        2 => format!("UPDATE t SET n = n + {n} WHERE n BETWEEN {n} AND {n} + 12"),
        _ => format!("UPDATE t SET n = n + {n}, body = {body} WHERE id BETWEEN {from} AND {to}"),
    };
    format!("{what}; UPDATE total SET n = (SELECT sum(n) FROM t);")
}

fn question(random: &mut Rng) -> String {
    let from = random.i64(1..ROWS);
    match random.u8(..4) {
        0 => format!("SELECT * FROM t WHERE id = {from}"),
        1 => format!("SELECT id, n, length(body) FROM t WHERE id BETWEEN {from} AND {from} + 200"),
        2 => format!("SELECT count(*), sum(id) FROM t INDEXED BY of_n WHERE n >= {from}"),
        _ => format!("SELECT id FROM t INDEXED BY of_n ORDER BY n DESC, id LIMIT 50 OFFSET {}", from / 4),
    }
}

/// One process: so many random actions.
fn act(place: &Place, seed: u64, actions: usize) {
    let mut random = Rng::with_seed(seed);
    let (mut db, mut plain, turn) = (place.managed("host", ""), place.plain(), place.turn());
    for action in 0..actions {
        let what = || format!("seed {seed}, action {action}");
        match random.u8(..20) {
            0..6 => {
                turn.lock().expect("the turn");
                let sql = change(&mut random);
                for db in [&mut db, &mut plain] {
                    let transaction = Transaction::new(db, TransactionBehavior::Immediate)
                        .unwrap_or_else(|e| panic!("{}: {e}", what()));
                    transaction.execute_batch(&sql).unwrap_or_else(|e| panic!("{}: {sql}: {e}", what()));
                    transaction.commit().unwrap_or_else(|e| panic!("{}: {e}", what()));
                }
                turn.unlock().expect("unlocked");
            }
            6..13 => {
                turn.lock_shared().expect("the turn");
                let sql = question(&mut random);
                assert!(rows(&db, &sql) == rows(&plain, &sql), "{}: {sql}", what());
                turn.unlock().expect("unlocked");
            }
            13..17 => {
                let between = rows(&db, "SELECT (SELECT sum(n) FROM t) - (SELECT n FROM total)");
                assert_eq!(between, [Value::Integer(0)], "{}", what());
            }
            17 => {
                let how = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.usize(..4)];
                rows(&db, &format!("PRAGMA wal_checkpoint({how})"));
            }
            18 => drop(rows(&db, "PRAGMA gcs_flush")),
            _ => {
                drop(db);
                let hydrate = ["&hydrate=background", "&hydrate=now", ""][random.usize(..3)];
                db = place.managed("host", hydrate);
            }
        }
    }
}

/// One of the processes; the values come from `run`.
#[test]
#[ignore = "run by another test as a process of its own"]
fn child() {
    let Ok(folder) = std::env::var("THREE_FOLDER") else { return };
    let number = |name| std::env::var(name).expect(name).parse::<u64>().expect("a number");
    act(&Place { folder: folder.into() }, number("THREE_SEED"), number("THREE_ACTIONS") as usize);
}

fn fill(place: &Place) {
    for db in [place.managed("host", ""), place.plain()] {
        db.execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, body); CREATE INDEX of_n ON t(n); CREATE TABLE total(n)",
        )
        .expect("tables");
        for chunk in 0..ROWS / 100 {
            db.execute_batch(&format!(
                "INSERT INTO t WITH RECURSIVE i(x) AS (SELECT {0} UNION ALL SELECT x + 1 FROM i WHERE x < {0} + 99)
                 SELECT x, x * 7919 % 1009, printf('%.{ROW_BYTES}c', 'x') FROM i",
                chunk * 100 + 1
            ))
            .expect("rows");
        }
        db.execute_batch("INSERT INTO total SELECT sum(n) FROM t").expect("a total");
    }
}

fn same(place: &Place, machine: &str) {
    let (db, plain) = (place.managed(machine, ""), place.plain());
    for sql in ["SELECT * FROM t", "SELECT id FROM t INDEXED BY of_n ORDER BY n, id", "SELECT * FROM total"] {
        assert!(rows(&db, sql) == rows(&plain, sql), "{machine}: {sql}");
    }
    assert_eq!(rows(&db, "PRAGMA integrity_check"), [Value::Text("ok".to_owned())], "{machine}");
}

fn run(seed: u64, actions: usize) {
    println!("seed {seed}");
    let dir = tempfile::tempdir().expect("a directory");
    let place = Place { folder: dir.path().to_owned() };
    std::fs::create_dir(dir.path().join("bucket")).expect("a bucket");
    fill(&place);
    let start = |at: u64| {
        Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("THREE_FOLDER", Path::new(dir.path()))
            .env("THREE_SEED", (seed * 3 + at).to_string())
            .env("THREE_ACTIONS", actions.to_string())
            .spawn()
            .expect("a process")
    };
    let children: Vec<_> = (0..3).map(start).collect();
    let ends: Vec<_> = children.into_iter().map(|mut child| child.wait().expect("its end").success()).collect();
    assert_eq!(ends, [true; 3], "seed {seed}");
    same(&place, "host");
    // And what is in the bucket.
    same(&place, "another");
}

#[test]
fn three_processes_get_the_answers_of_a_plain_database() {
    run(fastrand::u64(..1 << 32), 40);
}

#[test]
#[ignore = "minutes"]
fn three_processes_get_the_answers_of_a_plain_database_for_long() {
    for _ in 0..10 {
        run(fastrand::u64(..1 << 32), 300);
    }
}
