//! kill -9 at any moment of a write load, on the same disk: what the application was told is committed is there after the
//! reopen, and what the bucket has is at every moment a state that the database once had.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use rusqlite::Connection;
use sqlite_gcs_tests::host::{Host, difference, one, pages};
use sqlite_gcs_tests::litestream::{self, Point};
use sqlite_gcs_tests::peer::Peer;

/// Transaction `n` follows from `n` alone: a row in, two rows changed, every fifth time rows out; the indexes of two
/// tables and a counter with it. Sometimes it is large, and spills; the WAL is reset often.
const LOAD: &str = r#"
def transaction(db, n):
    db.execute('BEGIN IMMEDIATE')
    assert one(db, 'SELECT n FROM state') == n - 1, (n, one(db, 'SELECT n FROM state'))
    db.execute('INSERT INTO t VALUES (?, ?, ?)', (n, f'{n * 7919 % 1000:04}', b'x' * (n * 37 % 1500)))
    db.execute('UPDATE t SET b = b || b WHERE a IN (?, ?)', (n // 2, n // 3))
    db.execute('INSERT OR REPLACE INTO u VALUES (?, ?)', (n % 50, n))
    if n % 5 == 0:
        db.execute('DELETE FROM t WHERE a = ?', (n // 5,))
    if n % 60 == 0:
        db.execute("UPDATE t SET c = zeroblob(length(c) + 700) WHERE a > ?", (n - 150,))
    db.execute('UPDATE state SET n = ?', (n,))
    db.execute('COMMIT')
    told(n)
def load(db, seed):
    db.execute('PRAGMA synchronous=NORMAL'); db.execute(f'PRAGMA wal_autocheckpoint={[1000, 30, 8][seed % 3]}')
    db.execute(f'PRAGMA cache_size={[100, 8][seed % 2]}')
    db.execute('BEGIN IMMEDIATE')
    db.execute('CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b, c)')
    db.execute('CREATE INDEX IF NOT EXISTS t_b ON t(b)'); db.execute('CREATE INDEX IF NOT EXISTS t_c ON t(length(c), b)')
    db.execute('CREATE TABLE IF NOT EXISTS u(a UNIQUE, b UNIQUE)'); db.execute('CREATE TABLE IF NOT EXISTS state(n)')
    if one(db, 'SELECT n FROM state') is None:
        db.execute('INSERT INTO state VALUES (0)')
    db.execute('COMMIT')
    first = one(db, 'SELECT n FROM state')
    told(first)
    for n in range(first + 1, first + 100000):
        if n % 97 == 0:
            db.execute(['PRAGMA wal_checkpoint(TRUNCATE)', 'PRAGMA wal_checkpoint', 'VACUUM'][n // 97 % 3])
        transaction(db, n)
"#;

/// The number of the transaction that a database stands after; it has to be a state that the load went through.
#[track_caller]
fn state(db: &Connection) -> i64 {
    if one::<i64>(db, "SELECT count(*) FROM sqlite_schema") == 0 {
        return -1;
    }
    let n: i64 = one(db, "SELECT n FROM state");
    assert_eq!(one::<String>(db, "PRAGMA integrity_check"), "ok");
    let rows: i64 = one(db, "SELECT count(*) FROM t");
    // Every fifth transaction takes out row n/5, which is there unless it is row 1's own turn: no row leaves twice.
    assert_eq!(rows, n - n / 5, "after transaction {n}");
    assert_eq!(one::<Option<i64>>(db, "SELECT max(a) FROM t").unwrap_or(0), n);
    assert_eq!(one::<Option<i64>>(db, "SELECT max(b) FROM u").unwrap_or(0), n);
    n
}

/// What `litestream` makes of the bucket; `None` while there is nothing in it.
fn restored_state(host: &Host) -> Option<i64> {
    if host.deltas("app.db").is_empty() {
        return None;
    }
    let path = host.path("restored");
    let _ = std::fs::remove_file(&path);
    litestream::restore_into(&host.replica("app.db"), None, Point::Newest, &path).expect("a valid replica");
    Some(state(&Connection::open(&path).unwrap()))
}

/// What a machine that has nothing but the bucket reads.
fn cold_state(host: &Host, round: usize) -> i64 {
    let elsewhere = host.path(format!("cold{round}"));
    std::fs::create_dir(&elsewhere).unwrap();
    let uri = format!("file:{}/app.db?vfs=gcs&bucket={}", elsewhere.display(), host.bucket());
    let cold = state(&Connection::open(uri).unwrap());
    std::fs::remove_dir_all(elsewhere).unwrap();
    cold
}

fn rounds(rounds: usize, budget: Duration) -> usize {
    let begun = Instant::now();
    let host = Host::new();
    let (mut told, mut in_bucket) = (0, -1);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..rounds {
        if begun.elapsed() > budget {
            return round;
        }
        let interval = ["0", "3ms", "30ms", "1h"][round % 4];
        let mut peer = Peer::start(&host, LOAD);
        peer.begin(&format!("load(database('app.db', '&flush_interval={interval}'), {})", random.u8(..)));
        // Sometimes in the open, most often among the transactions.
        if round % 10 != 9 {
            let first: i64 = peer.wait_for_told().parse().unwrap();
            assert!(first == told || first == told + 1, "round {round}: {told} were acknowledged, {first} are there");
        }
        let until = Instant::now() + Duration::from_micros(random.u64(0..120_000));
        while Instant::now() < until {
            std::thread::yield_now();
            std::thread::sleep(Duration::from_micros(200));
        }
        let told_now = peer.kill();
        if let Some(last) = told_now.iter().filter_map(|what| what.parse::<i64>().ok()).next_back() {
            assert!(last >= told, "round {round}: {last} after {told}");
            told = last;
        }
        if round % 7 == 3 {
            if let Some(restored) = restored_state(&host) {
                assert!((in_bucket..=told + 1).contains(&restored), "round {round}: {in_bucket}, {restored}, {told}");
                in_bucket = restored;
            }
        } else if round % 4 == 2 && !host.deltas("app.db").is_empty() {
            let cold = cold_state(&host, round);
            assert!((in_bucket..=told + 1).contains(&cold), "round {round}: {in_bucket}, {cold}, {told}");
            in_bucket = cold;
        }
        if round % 12 == 11 || round + 1 == rounds {
            let mut db = host.open("app.db", "");
            one::<String>(&db, "PRAGMA gcs_flush");
            let local = state(&db);
            assert!(local == told || local == told + 1, "round {round}: {told} were acknowledged, {local} are there");
            assert_eq!(difference(&pages(&mut db), &host.restored("app.db")), None, "round {round}");
            (told, in_bucket) = (local, local);
        }
    }
    rounds
}

#[test]
fn two_hundred_kills_lose_nothing_that_was_acknowledged_and_never_leave_a_state_that_was_not() {
    // As many as a slow machine manages; `make soak` makes the rest.
    let done = rounds(200, Duration::from_secs(900));
    println!("{done} rounds");
    assert_eq!(done, 200);
}

#[test]
#[ignore = "soak"]
fn two_thousand_kills_lose_nothing() {
    assert_eq!(rounds(2000, Duration::from_secs(3600)), 2000);
}
