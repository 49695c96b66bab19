//! `sqlite3_shutdown` makes SQLite forget what is registered for new connections. Alone in its process, because no other
//! connection may be open then.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rusqlite::{Connection, ffi};

/// What `gcs_status()` says on a database that is not ours.
fn complaint(db: &Connection) -> String {
    db.query_row("SELECT gcs_status('temp')", [], |_| Ok(())).expect_err("refused, or not there").to_string()
}

#[test]
fn everything_can_be_registered_again_after_a_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bucket")).unwrap();
    let uri = format!("file:{0}/a.db?vfs=gcs&bucket=file://{0}/bucket", dir.path().display());
    sqlite_gcs::register().unwrap();
    Connection::open(&uri).unwrap().execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
    // SAFETY: no connection is open, and this is the only thread that uses SQLite.
    unsafe {
        assert_eq!(ffi::sqlite3_shutdown(), ffi::SQLITE_OK);
        assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
    }
    let forgotten = complaint(&Connection::open_in_memory().unwrap());
    assert!(forgotten.contains("no such function"), "{forgotten}");
    sqlite_gcs::register().unwrap();
    let db = Connection::open(&uri).unwrap();
    assert_eq!(db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    assert!(complaint(&db).contains("vfs=gcs"), "{}", complaint(&db));
}
