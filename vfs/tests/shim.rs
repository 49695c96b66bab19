//! SQL through `file:...?vfs=gcs` in one process, and what a plain SQLite makes of the files.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::{Arc, Barrier};

use rusqlite::{Connection, OpenFlags, ffi};
use tempfile::TempDir;

/// A folder with a bucket of its own.
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

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self, name: &str, more: &str) -> String {
        let (file, bucket) = (self.path(name), self.path("bucket"));
        format!("file:{}?vfs=gcs&bucket=file://{}{more}", file.display(), bucket.display())
    }

    fn open(&self, name: &str) -> Connection {
        self.try_open(&self.uri(name, "")).expect("opened")
    }

    fn try_open(&self, uri: &str) -> rusqlite::Result<Connection> {
        let db = Connection::open_with_flags(uri, OpenFlags::default())?;
        db.busy_timeout(std::time::Duration::from_secs(20))?;
        Ok(db)
    }
}

fn text(db: &Connection, sql: &str) -> String {
    db.query_row(sql, [], |row| row.get(0)).expect(sql)
}

fn number(db: &Connection, sql: &str) -> i64 {
    db.query_row(sql, [], |row| row.get(0)).expect(sql)
}

fn code(error: &rusqlite::Error) -> i32 {
    error.sqlite_error().expect("an error of SQLite's").extended_code
}

fn plain(path: &Path) -> rusqlite::Result<i64> {
    Connection::open(path)?.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

#[test]
fn what_is_written_is_read_by_this_and_later_connections() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1), (2)").unwrap();
    let other = place.open("a.db");
    assert_eq!(number(&other, "SELECT sum(a) FROM t"), 3);
    other.execute("INSERT INTO t VALUES (4)", []).unwrap();
    assert_eq!(number(&db, "SELECT sum(a) FROM t"), 7);
    assert_eq!(text(&db, "PRAGMA journal_mode"), "wal");
    assert_eq!(text(&db, "PRAGMA integrity_check"), "ok");
    assert!(place.path("a.db-gcswal").exists());
    assert!(!place.path("a.db-wal").exists());
    drop((db, other));
    assert!(!place.path("a.db-gcswal").exists(), "the last close checkpoints and deletes the WAL");
    assert_eq!(number(&place.open("a.db"), "SELECT sum(a) FROM t"), 7);
}

#[test]
fn a_plain_sqlite_is_refused_at_any_moment_and_harms_nothing() {
    let place = Place::new();
    let path = place.path("a.db");
    let refused = || {
        assert_eq!(code(&plain(&path).expect_err("refused")), ffi::SQLITE_NOTADB);
        let db = Connection::open(&path).unwrap();
        assert!(db.execute_batch("CREATE TABLE harm(a)").is_err());
        assert!(db.execute_batch("PRAGMA journal_mode=delete; PRAGMA wal_checkpoint(truncate); VACUUM").is_err());
    };
    let db = place.open("a.db");
    refused();
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
    refused();
    db.execute_batch("PRAGMA wal_checkpoint").unwrap();
    refused();
    db.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    refused();
    assert_eq!(number(&db, "SELECT sum(a) FROM t"), 3);
    drop(db);
    refused();
    let db = place.open("a.db");
    assert_eq!(number(&db, "SELECT sum(a) FROM t"), 3);
    assert_eq!(text(&db, "PRAGMA integrity_check"), "ok");
}

#[test]
fn the_magic_is_masked_on_disk_and_real_for_sqlite() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a); PRAGMA wal_checkpoint(truncate)").unwrap();
    let copy = place.path("copy.db");
    db.execute("VACUUM INTO ?1", [format!("file:{}?vfs=unix", copy.display())]).unwrap();
    drop(db);
    assert_eq!(&std::fs::read(place.path("a.db")).unwrap()[..16], b"sqlite-gcs cache");
    assert_eq!(&std::fs::read(&copy).unwrap()[..16], b"SQLite format 3\0");
    assert_eq!(plain(&copy).unwrap(), 1);
}

#[test]
fn threads_with_connections_of_their_own_lose_no_increment() {
    let place = Place::new();
    place.open("a.db").execute_batch("CREATE TABLE n(n); INSERT INTO n VALUES (0)").unwrap();
    let place = Arc::new(place);
    let start = Arc::new(Barrier::new(4));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (place, start) = (Arc::clone(&place), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                for round in 0..5 {
                    // Opening and closing at different times: handles come and go under the others.
                    let db = place.open("a.db");
                    for _ in 0..50 {
                        db.execute("UPDATE n SET n = n + 1", []).unwrap();
                    }
                    if round % 2 == 0 {
                        db.query_row("PRAGMA wal_checkpoint(passive)", [], |_| Ok(())).unwrap();
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let db = place.open("a.db");
    assert_eq!(number(&db, "SELECT n FROM n"), 4 * 5 * 50);
    assert_eq!(text(&db, "PRAGMA integrity_check"), "ok");
}

#[test]
fn another_journal_mode_is_refused_with_what_to_do() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    for mode in ["delete", "TRUNCATE", "memory", "off"] {
        let error = db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(())).expect_err("refused");
        assert!(error.to_string().contains("VACUUM INTO"), "{error}");
    }
    assert_eq!(text(&db, "PRAGMA journal_mode=wal"), "wal");
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
}

#[test]
fn a_journal_mode_that_reaches_an_attached_database_is_refused_too() {
    let place = Place::new();
    place.open("a.db").execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
    for mode in ["delete", "memory", "off"] {
        let db = Connection::open_in_memory().unwrap();
        db.execute("ATTACH ?1 AS a", [place.uri("a.db", "")]).unwrap();
        assert_eq!(number(&db, "SELECT a FROM a.t"), 1);
        // Given to `main`, which is plain; SQLite applies it to every attached database without asking their VFSs.
        let _ = db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(()));
        let _ = db.execute_batch("INSERT INTO a.t VALUES (2)");
        drop(db);
        let db = place.open("a.db");
        assert_eq!(text(&db, "PRAGMA journal_mode"), "wal", "{mode}");
        assert_eq!(text(&db, "PRAGMA integrity_check"), "ok", "{mode}");
    }
}

#[test]
fn an_unknown_pragma_of_ours_names_those_there_are() {
    let place = Place::new();
    let db = place.open("a.db");
    let error = db.query_row("PRAGMA gcs_flsh", [], |_| Ok(())).expect_err("refused").to_string();
    assert!(error.contains("gcs_flsh") && error.contains("gcs_flush"), "{error}");
}

#[test]
fn the_functions_say_so_on_another_database() {
    let place = Place::new();
    let plain = Connection::open_in_memory().unwrap();
    for sql in ["SELECT gcs_status()", "SELECT gcs_flush()", "SELECT gcs_status('temp')"] {
        let error = plain.query_row(sql, [], |_| Ok(())).expect_err("refused").to_string();
        assert!(error.contains("vfs=gcs"), "{error}");
    }
    drop(place);
}

#[test]
fn parameters_that_would_break_sharing_are_refused() {
    let place = Place::new();
    drop(place.open("a.db"));
    for more in ["&immutable=1", "&nolock=1"] {
        let error = place.try_open(&place.uri("a.db", more)).expect_err("refused");
        assert_eq!(code(&error) & 0xff, ffi::SQLITE_CANTOPEN, "{error}");
    }
    std::fs::hard_link(place.path("a.db"), place.path("b.db")).unwrap();
    assert!(place.try_open(&place.uri("a.db", "")).is_err());
    std::fs::remove_file(place.path("b.db")).unwrap();
    place.open("a.db");
}

#[test]
fn a_symbolic_link_leads_to_the_same_database() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    std::os::unix::fs::symlink(place.path("a.db"), place.path("link.db")).unwrap();
    let link = place.open("link.db");
    link.execute("INSERT INTO t VALUES (1)", []).unwrap();
    assert_eq!(number(&db, "SELECT count(*) FROM t"), 1);
    assert!(!place.path("link.db-gcswal").exists());
}

#[test]
fn rollback_and_savepoints_leave_what_they_should() {
    let place = Place::new();
    let db = place.open("a.db");
    // A small page cache spills an open transaction into the WAL.
    db.execute_batch("PRAGMA cache_size=5; CREATE TABLE t(a INTEGER PRIMARY KEY, b)").unwrap();
    let fill = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500) INSERT INTO t(b) SELECT randomblob(900) FROM n";
    db.execute_batch(&format!("BEGIN; {fill}; ROLLBACK")).unwrap();
    assert_eq!(number(&db, "SELECT count(*) FROM t"), 0);
    db.execute_batch(&format!(
        "BEGIN; {fill}; SAVEPOINT s; {fill}; DELETE FROM t WHERE a%2; ROLLBACK TO s; RELEASE s; COMMIT"
    ))
    .unwrap();
    assert_eq!(number(&db, "SELECT count(*) FROM t"), 500);
    assert_eq!(text(&db, "PRAGMA integrity_check"), "ok");
    drop(db);
    assert_eq!(number(&place.open("a.db"), "SELECT count(*) FROM t"), 500);
}

#[test]
fn vacuum_shrinks_the_file() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (randomblob(2000000)); PRAGMA wal_checkpoint(truncate)")
        .unwrap();
    let before = std::fs::metadata(place.path("a.db")).unwrap().len();
    db.execute_batch("DELETE FROM t; VACUUM; PRAGMA wal_checkpoint(truncate)").unwrap();
    let after = std::fs::metadata(place.path("a.db")).unwrap().len();
    assert!(before > 2_000_000 && after < 100_000, "{before} {after}");
    assert_eq!(text(&db, "PRAGMA integrity_check"), "ok");
}

#[test]
fn a_transaction_over_two_attached_databases_reaches_both() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute("ATTACH ?1 AS b", [place.uri("b.db", "")]).unwrap();
    db.execute_batch("CREATE TABLE main.t(a); CREATE TABLE b.t(a)").unwrap();
    db.execute_batch("BEGIN; INSERT INTO main.t VALUES (1); INSERT INTO b.t VALUES (2); COMMIT").unwrap();
    db.execute_batch("BEGIN; INSERT INTO main.t VALUES (3); INSERT INTO b.t VALUES (4); ROLLBACK").unwrap();
    drop(db);
    assert_eq!(number(&place.open("a.db"), "SELECT sum(a) FROM t"), 1);
    assert_eq!(number(&place.open("b.db"), "SELECT sum(a) FROM t"), 2);
}

#[test]
fn locking_mode_exclusive_works_and_shuts_others_out() {
    let place = Place::new();
    for from_the_start in [true, false] {
        let db = place.open("a.db");
        if !from_the_start {
            // The wal-index is shared memory by now, and our own handle is attached to it.
            db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        }
        db.execute_batch("PRAGMA locking_mode=EXCLUSIVE; CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES (1)")
            .unwrap();
        let other = place.open("a.db");
        other.busy_timeout(std::time::Duration::ZERO).unwrap();
        let error = other.query_row("SELECT count(*) FROM t", [], |_| Ok(())).expect_err("shut out");
        assert_eq!(code(&error) & 0xff, ffi::SQLITE_BUSY);
        db.execute_batch("INSERT INTO t VALUES (1); PRAGMA wal_checkpoint(truncate); INSERT INTO t VALUES (1)")
            .unwrap();
        drop(db);
        assert_eq!(text(&other, "PRAGMA integrity_check"), "ok");
    }
    assert_eq!(number(&place.open("a.db"), "SELECT count(*) FROM t"), 3 + 4);
}

#[test]
fn exclusive_mode_can_be_left_again() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a); PRAGMA locking_mode=EXCLUSIVE; INSERT INTO t VALUES (1)").unwrap();
    db.execute_batch("PRAGMA locking_mode=NORMAL; INSERT INTO t VALUES (2)").unwrap();
    assert_eq!(number(&db, "SELECT sum(a) FROM t"), 3);
    let other = place.open("a.db");
    assert_eq!(number(&other, "SELECT sum(a) FROM t"), 3);
    other.execute("INSERT INTO t VALUES (3)", []).unwrap();
    assert_eq!(number(&db, "SELECT sum(a) FROM t"), 6);
}

#[test]
fn every_checkpoint_mode_completes() {
    let place = Place::new();
    let db = place.open("a.db");
    let other = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    for mode in ["passive", "full", "restart", "truncate"] {
        db.execute("INSERT INTO t VALUES (randomblob(50000))", []).unwrap();
        assert!(number(&other, "SELECT count(*) FROM t") > 0);
        let (busy, log, done) = db
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })
            .unwrap();
        assert_eq!((busy, log), (0, done), "{mode}");
    }
    assert_eq!(std::fs::metadata(place.path("a.db-gcswal")).unwrap().len(), 0, "truncated");
    assert_eq!(text(&other, "PRAGMA integrity_check"), "ok");
}

#[test]
fn the_wal_starts_over_when_everything_is_checkpointed() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a); PRAGMA wal_autocheckpoint=20").unwrap();
    for _ in 0..400 {
        db.execute("INSERT INTO t VALUES (randomblob(3000))", []).unwrap();
    }
    let wal = std::fs::metadata(place.path("a.db-gcswal")).unwrap().len();
    assert!(wal < 60 * 4120, "{wal} bytes: no reset of the WAL came through");
    assert_eq!(text(&db, "PRAGMA integrity_check"), "ok");
}

#[test]
fn a_checkpoint_does_not_wait_for_our_own_handle_at_the_last_close() {
    let place = Place::new();
    for _ in 0..3 {
        let (a, b) = (place.open("a.db"), place.open("a.db"));
        a.execute_batch("CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES (1)").unwrap();
        number(&b, "SELECT count(*) FROM t");
        drop(a);
        assert!(place.path("a.db-gcswal").exists());
        drop(b);
        assert!(!place.path("a.db-gcswal").exists());
        assert!(!place.path("a.db-shm").exists());
    }
}

#[test]
fn a_read_only_connection_reads_and_refuses_to_write() {
    let place = Place::new();
    place.open("a.db").execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
    let db = place.try_open(&place.uri("a.db", "&mode=ro")).unwrap();
    assert_eq!(number(&db, "SELECT count(*) FROM t"), 1);
    assert_eq!(code(&db.execute("INSERT INTO t VALUES (2)", []).expect_err("read only")) & 0xff, ffi::SQLITE_READONLY);
}

#[test]
fn mapping_and_chunks_are_declined() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (randomblob(100000)); PRAGMA wal_checkpoint(truncate)")
        .unwrap();
    assert_eq!(number(&db, "PRAGMA mmap_size=100000000"), 0);
    let chunk: std::ffi::c_int = 1 << 20;
    // SAFETY: an operation with an int for its argument, on an open connection.
    let code = unsafe {
        ffi::sqlite3_file_control(
            db.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_CHUNK_SIZE,
            (&raw const chunk).cast_mut().cast(),
        )
    };
    assert_eq!(code, ffi::SQLITE_OK);
    db.execute_batch("INSERT INTO t VALUES (randomblob(100000)); PRAGMA wal_checkpoint(truncate)").unwrap();
    let pages = number(&db, "PRAGMA page_count") as u64;
    assert_eq!(std::fs::metadata(place.path("a.db")).unwrap().len(), pages * 4096);
}

#[test]
fn temporary_tables_and_other_vfs_files_go_to_the_base() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("PRAGMA temp_store=file; CREATE TEMP TABLE x(a); INSERT INTO x VALUES (randomblob(5000000))")
        .unwrap();
    db.execute("ATTACH ?1 AS p", [format!("file:{}?vfs=unix", place.path("plain.db").display())]).unwrap();
    db.execute_batch("CREATE TABLE p.t(a); INSERT INTO p.t VALUES (1)").unwrap();
    drop(db);
    assert_eq!(plain(&place.path("plain.db")).unwrap(), 1);
}

#[test]
fn registering_again_changes_nothing_for_open_connections() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    sqlite_gcs::register().unwrap();
    sqlite_gcs::register().unwrap();
    db.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(number(&place.open("a.db"), "SELECT count(*) FROM t"), 1);
}

#[test]
fn a_new_database_has_the_page_size_of_its_uri() {
    let place = Place::new();
    for power in 9..=16 {
        let (name, size) = (format!("{power}.db"), 1i64 << power);
        let db = place.try_open(&place.uri(&name, &format!("&page_size={size}"))).unwrap();
        assert_eq!(number(&db, "PRAGMA page_size"), size);
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (randomblob(300000))").unwrap();
        drop(db);
        let db = place.open(&name);
        assert_eq!((number(&db, "PRAGMA page_size"), text(&db, "PRAGMA integrity_check").as_str()), (size, "ok"));
    }
}

#[test]
fn the_status_and_the_flush_are_there_as_pragma_and_as_function() {
    let place = Place::new();
    let db = place.open("a.db");
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    let durable = text(&db, "PRAGMA gcs_flush");
    assert!(durable.len() == 16 && durable.bytes().all(|b| b.is_ascii_hexdigit()), "{durable}");
    assert_eq!(text(&db, "SELECT gcs_flush()"), durable);
    for sql in ["PRAGMA gcs_status", "SELECT gcs_status()", "SELECT gcs_status('main')"] {
        let status = text(&db, sql);
        assert!(status.starts_with('{') && status.contains(&durable), "{sql}: {status}");
    }
    let plain = Connection::open_in_memory().unwrap();
    plain.execute("ATTACH ?1 AS a", [place.uri("a.db", "")]).unwrap();
    assert!(text(&plain, "SELECT gcs_status('a')").contains(&durable));
    assert!(text(&plain, "PRAGMA a.gcs_status").contains(&durable));
    let error = plain.query_row("SELECT gcs_status()", [], |_| Ok(())).expect_err("main is not ours").to_string();
    assert!(error.contains("vfs=gcs"), "{error}");
}

#[test]
fn a_parameter_that_nobody_knows_is_refused_by_every_connection() {
    let place = Place::new();
    assert!(place.try_open(&place.uri("a.db", "&flush_intervall=1s")).is_err());
    let _db = place.open("a.db");
    assert!(place.try_open(&place.uri("a.db", "&flush_intervall=1s")).is_err());
}
