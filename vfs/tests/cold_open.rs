//! A cold open with and without the hot index: the same answers, and how many requests each takes.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tempfile::TempDir;

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

    /// Opens the replica from another machine: a folder of its own.
    fn open_on(&self, machine: &str) -> Connection {
        let folder = self.dir.path().join(machine);
        std::fs::create_dir_all(&folder).expect("a folder");
        let (file, bucket) = (folder.join("app.db"), self.dir.path().join("bucket"));
        let db = Connection::open(format!("file:{}?vfs=gcs&bucket=file://{}", file.display(), bucket.display()));
        let db = db.expect("opened");
        db.busy_timeout(std::time::Duration::from_secs(20)).expect("a timeout");
        db
    }

    /// The files in the bucket's directory that stand for the hot index, its metadata or generations among them.
    fn hot_files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, found);
                } else if path.to_string_lossy().contains("/gcs/") && path.to_string_lossy().contains("hot") {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.dir.path().join("bucket"), &mut found);
        found
    }
}

fn number(db: &Connection, sql: &str) -> i64 {
    db.query_row(sql, [], |row| row.get(0)).expect(sql)
}

fn status(db: &Connection, key: &str) -> i64 {
    number(db, &format!("SELECT json_extract(gcs_status(), '$.{key}')"))
}

const ROWS: i64 = 20_000;

/// About 9 MB in a table and an index, in one commit, then closed.
fn filled(place: &Place) {
    let db = place.open_on("first");
    db.execute_batch(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, body BLOB); CREATE INDEX of_n ON t(n);
         INSERT INTO t WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 20000)
         SELECT x, x * 7919 % 1000003, randomblob(400) FROM i",
    )
    .expect("rows");
}

/// One row, and every aggregate that touches every page.
fn answers(db: &Connection) -> (i64, i64, i64, String) {
    let row = number(db, "SELECT n FROM t WHERE id = 4711");
    let whole: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    (row, number(db, "SELECT sum(n) + sum(length(body)) FROM t"), number(db, "SELECT count(*) FROM t"), whole)
}

#[test]
fn the_first_row_costs_a_listing_the_hot_index_and_one_page() {
    let place = Place::new();
    filled(&place);
    let db = place.open_on("second");
    assert_eq!(number(&db, "SELECT n FROM t WHERE id = 4711"), 4711 * 7919 % 1000003);
    let (lists, gets) = (status(&db, "requests.list"), status(&db, "requests.get"));
    assert_eq!((lists, gets), (1, 2), "listing beside hot index, then the leaf");
    assert_eq!(answers(&db), (4711 * 7919 % 1000003, answers(&db).1, ROWS, "ok".to_owned()));
}

#[test]
fn what_is_newer_than_the_hot_index_is_read_too() {
    let place = Place::new();
    filled(&place);
    // A writer that does not close in good order leaves the hot index as it was.
    let writer = place.open_on("second");
    writer
        .execute_batch("UPDATE t SET n = 5 WHERE id = 4711; CREATE TABLE later(a); INSERT INTO later VALUES (1)")
        .expect("written");
    let durable: String = writer.query_row("PRAGMA gcs_flush", [], |row| row.get(0)).expect("flushed");
    assert!(!durable.is_empty());
    let db = place.open_on("third");
    assert_eq!(number(&db, "SELECT n FROM t WHERE id = 4711"), 5);
    assert_eq!(number(&db, "SELECT count(*) FROM later"), 1);
    assert_eq!(answers(&db), answers(&writer));
}

#[test]
fn a_missing_damaged_or_foreign_hot_index_costs_time_and_nothing_else() {
    let place = Place::new();
    filled(&place);
    let expected = answers(&place.open_on("judge"));
    let files = place.hot_files();
    assert!(!files.is_empty(), "a clean close wrote one");
    let good: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("bytes")).collect();
    let put_back = || files.iter().zip(&good).for_each(|(file, bytes)| std::fs::write(file, bytes).expect("written"));

    // Damaged, anywhere.
    for at in [0.0, 0.1, 0.5, 0.999] {
        for (file, bytes) in files.iter().zip(&good) {
            let mut bad = bytes.clone();
            let at = (bad.len() as f64 * at) as usize;
            bad[at] ^= 0x10;
            std::fs::write(file, bad).expect("written");
        }
        assert_eq!(answers(&place.open_on(&format!("damaged-{at}"))), expected);
    }
    // Cut short.
    for (file, bytes) in files.iter().zip(&good) {
        std::fs::write(file, &bytes[..bytes.len() / 2]).expect("written");
    }
    assert_eq!(answers(&place.open_on("cut")), expected);
    // Of another database of the same shape.
    let other = Place::new();
    filled(&other);
    for (file, theirs) in files.iter().zip(other.hot_files()) {
        std::fs::copy(theirs, file).expect("copied");
    }
    assert_eq!(answers(&place.open_on("foreign")), expected);
    // None at all.
    files.iter().for_each(|file| std::fs::remove_file(file).expect("removed"));
    assert_eq!(answers(&place.open_on("missing")), expected);
    put_back();
    assert_eq!(answers(&place.open_on("back")), expected);
}

#[test]
fn hydration_brings_every_page_before_the_open_returns_or_behind_it() {
    let place = Place::new();
    filled(&place);
    let expected = answers(&place.open_on("judge"));
    let open = |machine: &str, more: &str| {
        let folder = place.dir.path().join(machine);
        std::fs::create_dir_all(&folder).expect("a folder");
        let (file, bucket) = (folder.join("app.db"), place.dir.path().join("bucket"));
        Connection::open(format!("file:{}?vfs=gcs&bucket=file://{}{more}", file.display(), bucket.display()))
            .expect("opened")
    };
    let db = open("now", "&hydrate=now");
    assert_eq!(status(&db, "pages_present"), status(&db, "pages_total"));
    let gets = status(&db, "requests.get");
    assert_eq!(answers(&db), expected);
    assert_eq!(status(&db, "requests.get"), gets, "nothing is fetched after it");
    // Reads beside it are right, and it comes to an end.
    let db = open("background", "&hydrate=background");
    assert_eq!(answers(&db), expected);
    let state = |db: &Connection| -> String {
        db.query_row("SELECT json_extract(gcs_status(), '$.hydrate')", [], |row| row.get(0)).expect("a state")
    };
    for _ in 0..2000 {
        if state(&db) == "done" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(state(&db), "done");
    assert_eq!(status(&db, "pages_present"), status(&db, "pages_total"));
    // By itself a small database is filled a moment after its open; not one that is large for its bound.
    let db = open("auto", "&hydrate=auto");
    assert_ne!(state(&db), "off");
    for _ in 0..2000 {
        if state(&db) == "done" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(state(&db), "done");
    assert_eq!(status(&db, "pages_present"), status(&db, "pages_total"));
    let bound = status(&db, "pages_total") * 4096 * 7;
    assert_eq!(state(&open("auto-large", &format!("&hydrate=auto&cache_size={bound}"))), "off");
    let db = open("auto-closed", "&hydrate=auto");
    drop(db);
    // A bound that leaves no room ends it.
    let db = open("bounded", "&hydrate=now&cache_size=4MB");
    assert_eq!(state(&db), "full");
    assert_eq!(answers(&db), expected);
    assert!(status(&db, "local_bytes") <= 4 << 20);
    // A close in the middle of it waits for it, and loses nothing.
    let db = open("closed", "&hydrate=background");
    drop(db);
    assert_eq!(answers(&open("closed", "")), expected);
}
