//! `sqlite3_shutdown` makes SQLite forget its VFSs. Alone in its process, because it may have no connection open.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use rusqlite::{Connection, ffi};

#[test]
fn the_vfs_can_be_registered_again_after_a_shutdown() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("bucket")).unwrap();
    let uri = format!("file:{0}/a.db?vfs=gcs&bucket=file://{0}/bucket", dir.path().display());
    sqlite_gcs::register().unwrap();
    Connection::open(&uri).unwrap().execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
    // SAFETY: no connection is open, and this is the only thread that uses SQLite.
    unsafe {
        assert_eq!(ffi::sqlite3_shutdown(), ffi::SQLITE_OK);
        assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
    }
    assert!(Connection::open(&uri).is_err(), "SQLite forgot the VFS");
    sqlite_gcs::register().unwrap();
    let db = Connection::open(&uri).unwrap();
    assert_eq!(db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    let error =
        db.query_row("SELECT gcs_status('temp')", [], |_| Ok(())).expect_err("the function is back").to_string();
    assert!(error.contains("vfs=gcs"), "{error}");
}
