//! `cache_size`: a database much larger than what may lie on the local disk.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Child, Command};

use rusqlite::Connection;
use tempfile::TempDir;

const CACHE: u64 = 3 << 20;
const ROWS: i64 = 15_000;
/// About 4000 bytes, so about a page each: 60 MB in all, 20 times the cache.
const ROW_BYTES: i64 = 3800;

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        sqlite_gcs::register().expect("registered");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("bucket")).expect("a bucket");
        Place { dir }
    }

    fn uri(&self, more: &str) -> String {
        let (file, bucket) = (self.dir.path().join("app.db"), self.dir.path().join("bucket"));
        format!("file:{}?vfs=gcs&bucket=file://{}{more}", file.display(), bucket.display())
    }
}

fn open(uri: &str) -> Connection {
    let db = Connection::open(uri).expect("opened");
    db.busy_timeout(std::time::Duration::from_secs(60)).expect("a timeout");
    // A checkpoint each 400 KB: what is committed and not checkpointed has to fit beside the rest.
    db.execute_batch("PRAGMA wal_autocheckpoint=100; PRAGMA cache_size=50").expect("settings");
    db
}

fn number(db: &Connection, sql: &str) -> i64 {
    db.query_row(sql, [], |row| row.get(0)).expect(sql)
}

fn status(db: &Connection, key: &str) -> i64 {
    number(db, &format!("SELECT json_extract(gcs_status(), '$.{key}')"))
}

/// What the database takes of the disk: the main file and all that lies beside it, the bucket left out.
fn on_disk(place: &Place) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fn of(path: &std::path::Path) -> u64 {
        let Ok(meta) = std::fs::metadata(path) else { return 0 };
        let inside =
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| of(&entry.path())).sum::<u64>();
        meta.blocks() * 512 + inside
    }
    let entries = std::fs::read_dir(place.dir.path()).expect("the folder").flatten();
    entries.filter(|entry| entry.file_name() != "bucket").map(|entry| of(&entry.path())).sum()
}

fn build(place: &Place, db: &Connection) -> u64 {
    db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, body BLOB); CREATE INDEX of_n ON t(n)")
        .expect("a table");
    let mut most = 0;
    for chunk in 0..ROWS / 50 {
        let insert = format!(
            "INSERT INTO t(id, n, body) WITH RECURSIVE i(x) AS (SELECT {0} UNION ALL SELECT x + 1 FROM i WHERE x < {0} + 49)
             SELECT x, x * 7919 % 1000003, randomblob({ROW_BYTES}) FROM i",
            chunk * 50 + 1
        );
        db.execute_batch(&insert).expect("a chunk of rows");
        if chunk % 8 == 0 {
            most = most.max(on_disk(place));
        }
    }
    most
}

/// A reader of its own process: sums up what the others write to keep in balance, until it is told to stop.
#[test]
#[ignore = "run by another test as a process of its own"]
fn child_reader() {
    let Ok(uri) = std::env::var("BOUNDED_URI") else { return };
    sqlite_gcs::register().expect("registered");
    let db = open(&uri);
    let stop = std::path::PathBuf::from(std::env::var("BOUNDED_STOP").expect("a file to wait for"));
    let mut random = fastrand::Rng::new();
    let mut rounds = 0;
    while rounds < 3 || !stop.exists() {
        let from = random.i64(1..ROWS - 100);
        let (rows, sum) = db
            .query_row("SELECT count(*), sum(length(body)) FROM t WHERE id BETWEEN ? AND ?", [from, from + 99], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
            .expect("a range");
        assert_eq!((rows, sum), (100, 100 * ROW_BYTES), "from {from}");
        // Every writer leaves this sum as it was.
        assert_eq!(number(&db, "SELECT sum(n) FROM balance"), 1000);
        let id = random.i64(1..=ROWS);
        assert_eq!(number(&db, &format!("SELECT n FROM t WHERE id = {id}")), id * 7919 % 1000003);
        rounds += 1;
        assert!(rounds < 1_000_000, "never told to stop");
    }
}

/// Readers in processes of their own; told to stop, and waited for, also when the test fails.
struct Readers {
    stop: std::path::PathBuf,
    children: Vec<Child>,
}

impl Readers {
    fn start(place: &Place) -> Readers {
        let stop = place.dir.path().join("stop");
        Readers { children: (0..3).map(|_| reader(place, &stop)).collect(), stop }
    }

    fn all_well(&mut self) -> bool {
        std::fs::write(&self.stop, "").expect("a file");
        self.children.drain(..).all(|mut child| child.wait().expect("a reader's end").success())
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.all_well();
    }
}

fn reader(place: &Place, stop: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "child_reader", "--ignored", "--nocapture"])
        .env("BOUNDED_URI", place.uri(&format!("&cache_size={CACHE}")))
        .env("BOUNDED_STOP", stop)
        .spawn()
        .expect("a reader")
}

#[test]
fn a_database_twenty_times_its_cache_is_built_changed_scanned_and_whole() {
    let place = Place::new();
    let db = open(&place.uri(&format!("&cache_size={CACHE}")));
    let most = build(&place, &db);
    // A look between two steps may see a transaction, its checkpoint and its delta at a time, besides.
    assert!(most < CACHE + (2 << 20), "{most} bytes were on the local disk");
    assert_eq!(status(&db, "cache_size"), CACHE as i64);
    assert!(number(&db, "PRAGMA page_count") * 4096 > 19 * CACHE as i64);
    db.execute_batch("CREATE TABLE balance(id INTEGER PRIMARY KEY, n INTEGER, pad BLOB)").expect("a table");
    db.execute_batch("INSERT INTO balance VALUES (1, 600, zeroblob(3000)), (2, 400, zeroblob(3000))").expect("rows");

    let mut readers = Readers::start(&place);
    let mut random = fastrand::Rng::with_seed(3);
    for round in 0..15 {
        let by = random.i64(-50..50);
        let from = random.i64(1..ROWS - 40);
        db.execute_batch(&format!(
            "BEGIN; UPDATE balance SET n = n + ({by}) WHERE id = 1;
             UPDATE t SET body = randomblob({ROW_BYTES}) WHERE id BETWEEN {from} AND {from} + 39;
             UPDATE balance SET n = n - ({by}) WHERE id = 2; COMMIT"
        ))
        .unwrap_or_else(|e| panic!("round {round}: {e}"));
        if round % 3 == 0 {
            // Readers that follow each other without a pause keep a WAL from ever starting anew by itself.
            db.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).expect("a checkpoint");
        }
    }
    assert!(readers.all_well());
    assert_eq!(number(&db, "SELECT sum(length(body)) FROM t"), ROWS * ROW_BYTES);
    assert_eq!(number(&db, "SELECT count(*) FROM t INDEXED BY of_n WHERE n >= 0"), ROWS);
    let whole: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    assert_eq!(whole, "ok");
    let now = on_disk(&place);
    assert!(now < CACHE + (1 << 20), "{now} bytes are on the local disk");
    drop(db);

    // Warm, then cold: the same database.
    let sum = "SELECT sum(n) + count(*) FROM t";
    let warm = number(&open(&place.uri(&format!("&cache_size={CACHE}"))), sum);
    for name in ["app.db", "app.db-gcswal", "app.db-shm"] {
        let _ = std::fs::remove_file(place.dir.path().join(name));
    }
    std::fs::remove_dir_all(place.dir.path().join("app.db-gcs")).expect("removed");
    let db = open(&place.uri(&format!("&cache_size={CACHE}")));
    assert_eq!(number(&db, sum), warm);
    let whole: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    assert_eq!(whole, "ok");
}

#[test]
fn a_transaction_larger_than_the_cache_is_refused_and_nothing_is_lost() {
    let place = Place::new();
    let db = open(&place.uri("&cache_size=2MB"));
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (randomblob(100000))").expect("a row");
    let big = "INSERT INTO t WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 1000)
               SELECT randomblob(10000) FROM i";
    let error = db.execute_batch(big).expect_err("a refusal");
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull), "{error}");
    let small = "INSERT INTO t VALUES (randomblob(1000))";
    for _ in 0..20 {
        db.execute_batch(small).expect("what fits is written after it");
    }
    assert_eq!(number(&db, "SELECT count(*) FROM t"), 21);
    assert_eq!(number(&db, "SELECT length(a) FROM t LIMIT 1"), 100_000);
}
