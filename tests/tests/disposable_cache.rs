//! The local files are damaged, deleted, moved or of another boot: the cache costs requests, never data, and what was
//! not sent yet is sent or kept aside, never dropped.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};
use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::host::{Host, difference, one, pages, status};
use sqlite_gcs_tests::peer::Peer;
use sqlite_gcs_tests::poll;
use sqlite_gcs_tests::proxy::Class;

/// A killed process has left 20 rows in the bucket, and 30 that only the WAL of this disk has.
fn killed_with_unsent_commits() -> Host {
    let host = Host::new();
    let mut peer = Peer::start(&host, "db = database('app.db', '&flush_interval=1h&lease_ttl=5s')");
    peer.run("db.execute('CREATE TABLE t(a, b)'); db.execute('CREATE INDEX t_b ON t(b)')");
    peer.run("for n in range(20): db.execute('INSERT INTO t VALUES (?, randomblob(2000))', (n,))");
    peer.run("one(db, 'PRAGMA gcs_flush'); db.execute('PRAGMA wal_checkpoint(TRUNCATE)')");
    peer.run("for n in range(30): db.execute('INSERT INTO t VALUES (?, randomblob(2000))', (n,))");
    peer.kill();
    host
}

#[track_caller]
fn assert_rows(host: &Host, rows: i64) {
    let mut db = host.open("app.db", "");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), rows);
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    db.execute_batch("INSERT INTO t VALUES (-1, 'on')").unwrap();
    one::<String>(&db, "PRAGMA gcs_flush");
    assert_eq!(difference(&pages(&mut db), &host.restored("app.db")), None);
}

/// The folders that caches and commits were put aside in.
fn aside(host: &Host) -> Vec<PathBuf> {
    let entries = fs::read_dir(host.path("app.db-gcs")).unwrap().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("aside"))
        .collect()
}

#[test]
fn a_killed_process_alone_needs_nothing_more_than_an_open() {
    assert_rows(&killed_with_unsent_commits(), 50);
}

#[test]
fn a_deleted_cache_file_with_the_wal_kept_is_salvaged() {
    let host = killed_with_unsent_commits();
    fs::remove_file(host.path("app.db")).unwrap();
    assert_rows(&host, 50);
}

#[test]
fn an_emptied_cache_file_with_the_wal_kept_is_salvaged() {
    let host = killed_with_unsent_commits();
    fs::write(host.path("app.db"), "").unwrap();
    assert_rows(&host, 50);
}

#[test]
fn a_deleted_cache_file_of_a_database_that_was_closed_is_fetched_anew() {
    let host = killed_with_unsent_commits();
    assert_rows(&host, 50);
    fs::remove_file(host.path("app.db")).unwrap();
    assert_rows(&host, 51);
    fs::write(host.path("app.db"), "").unwrap();
    assert_rows(&host, 52);
}

#[test]
fn lost_presence_and_map_files_cost_requests_only() {
    for name in ["presence", "map", "objects", "shared", "lock"] {
        let host = killed_with_unsent_commits();
        let path = host.path("app.db-gcs").join(name);
        let _ = fs::remove_file(&path);
        assert_rows(&host, 50);
        // And cut in half.
        if let Ok(bytes) = fs::read(&path) {
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
        assert_rows(&host, 51);
    }
}

/// The story: the page map was built with the unsent delta under its old name, and the seal of the killed process's log took that.
#[test]
fn pages_of_an_unsent_delta_are_found_after_it_moved_behind_a_seal() {
    let host = killed_with_unsent_commits();
    fs::remove_file(host.path("app.db-gcs/map")).unwrap();
    let db = host.open("app.db", "");
    one::<String>(&db, "PRAGMA gcs_flush");
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), 50);
}

#[test]
fn a_copied_cache_is_told_from_the_original() {
    let host = killed_with_unsent_commits();
    // Another inode under the same name, as `cp` and many backup tools leave it; what is in the file is old.
    let bytes = fs::read(host.path("app.db")).unwrap();
    fs::write(host.path("copy"), &bytes).unwrap();
    fs::rename(host.path("copy"), host.path("app.db")).unwrap();
    let mut db = host.open("app.db", "");
    assert!(status(&db)["open"]["cold"].as_bool().unwrap(), "a copy's pages are not to be trusted");
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    assert_eq!(difference(&pages(&mut db), &host.restored("app.db")), None);
    // Another disk's commits are not sent as this one's; they are kept.
    let kept: Vec<_> =
        aside(&host).iter().map(|folder| folder.join("app.db-gcswal")).filter(|wal| wal.exists()).collect();
    let rows: i64 = one(&db, "SELECT count(*) FROM t");
    assert!(rows == 50 || (rows == 20 && kept.len() == 1), "{rows} rows, kept: {kept:?}");
}

#[test]
fn a_renamed_cache_is_another_database() {
    let host = killed_with_unsent_commits();
    fs::rename(host.path("app.db"), host.path("other.db")).unwrap();
    // Its name says where it lies in the bucket, and there is nothing.
    let refused = host.try_open("other.db", "").map(|db| one::<i64>(&db, "SELECT count(*) FROM sqlite_schema"));
    assert!(matches!(refused, Err(_) | Ok(0)), "{refused:?}");
    assert_rows(&host, 50);
}

#[test]
fn the_cache_of_another_bucket_is_put_aside_with_all_that_is_unsent() {
    let host = killed_with_unsent_commits();
    let second = host.path("second");
    fs::create_dir(&second).unwrap();
    let uri = format!("file:{}?vfs=gcs&bucket=file://{}", host.path("app.db").display(), second.display());
    let db = Connection::open(uri).unwrap();
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM sqlite_schema"), 0, "the other bucket has no such database");
    db.execute_batch("CREATE TABLE of_the_second(a)").unwrap();
    drop(db);
    let kept = aside(&host);
    assert_eq!(kept.len(), 1);
    for name in ["app.db", "app.db-gcswal", "state"] {
        assert!(kept[0].join(name).exists(), "{name} is kept in {}", kept[0].display());
    }
    // Back on the first bucket its log goes on where it was, without the rows that are aside.
    assert_rows(&host, 20);
}

#[test]
fn a_damaged_state_file_is_put_aside_and_rebuilt() {
    for damage in ["{", "{\"format\":99}"] {
        let host = killed_with_unsent_commits();
        fs::write(host.path("app.db-gcs/state"), damage).unwrap();
        let db = host.open("app.db", "");
        let rows: i64 = one(&db, "SELECT count(*) FROM t");
        assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
        drop(db);
        let kept = aside(&host);
        assert_eq!(kept.len(), 1, "{damage:?}");
        assert!(kept[0].join("state").exists());
        let wal = fs::metadata(kept[0].join("app.db-gcswal")).map_or(0, |meta| meta.len());
        assert!(rows == 50 || (rows == 20 && wal > 30 * 2000), "{damage:?}: {rows} rows, {wal} bytes of WAL kept");
        assert_rows(&host, rows);
    }
}

fn edit_state(host: &Host, edit: impl Fn(&mut Value)) {
    let path = host.path("app.db-gcs/state");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut state);
    fs::write(&path, state.to_string()).unwrap();
}

#[test]
fn after_an_unclean_boot_the_cache_is_distrusted_and_nothing_unsent_is_lost() {
    let host = killed_with_unsent_commits();
    edit_state(&host, |state| state["boot"] = json!("another boot"));
    // What the kernel had not written: the checkpointed pages.
    let size = fs::metadata(host.path("app.db")).unwrap().len() as usize;
    let mut bytes = fs::read(host.path("app.db")).unwrap();
    bytes[4096..size].fill(0x55);
    let file = fs::File::options().write(true).open(host.path("app.db")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    assert_rows(&host, 50);
}

#[test]
fn after_a_clean_close_another_boot_finds_the_cache_whole() {
    let host = killed_with_unsent_commits();
    assert_rows(&host, 50);
    edit_state(&host, |state| {
        assert_eq!(state["clean"], true);
        state["boot"] = json!("another boot");
    });
    let db = host.open("app.db", "");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t WHERE length(b) > 0"), 51);
    assert!(!status(&db)["open"]["cold"].as_bool().unwrap());
    assert_eq!(status(&db)["requests"]["get"], 0, "every page is here");
    drop(db);
    assert_rows(&host, 51);
}

/// After a kill the page map is brought up to the log at once, and the cache file only by the next checkpoint.
#[test]
fn a_machine_without_a_cache_reads_no_page_of_before_that_a_reopened_cache_still_has() {
    let bed = Bed::new();
    let mut session = bed.host("a", "flush_interval=0").open();
    session.sql("PRAGMA wal_autocheckpoint=0").unwrap();
    session.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT)").unwrap();
    session.sql("CREATE INDEX i ON t(text)").unwrap();
    let rows = |from: u32, count: u32| {
        format!(
            "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {}) \
             SELECT i, hex(randomblob(50)) FROM n",
            from + count
        )
    };
    session.sql(&rows(0, 2000)).unwrap();
    session.sql("PRAGMA gcs_flush").unwrap();
    session.sql("PRAGMA wal_checkpoint").unwrap();
    // The upper pages of the index change, in the WAL only.
    for n in 0..60 {
        session.sql(&rows(2000 + n * 20, 20)).unwrap();
        session.sql("PRAGMA gcs_flush").unwrap();
    }
    session.kill();
    let hot = Arc::new(AtomicU32::new(0));
    let counting = Arc::clone(&hot);
    bed.proxy.rule(move |request| {
        let is_one = request.class == Class::Put && request.path.contains("gcs%2Fhot");
        counting.fetch_add(is_one.into(), Ordering::SeqCst);
        None
    });
    let mut session = bed.host("a", "flush_interval=0").open();
    session.sql("PRAGMA wal_autocheckpoint=0").unwrap();
    for n in 0..20 {
        session.sql(&format!("UPDATE t SET id = -{n} - 1 WHERE id = {n}")).unwrap();
        session.sql("PRAGMA gcs_flush").unwrap();
    }
    session.sql("PRAGMA wal_checkpoint").unwrap();
    let written = poll(Duration::from_secs(10), || {
        session.sql("UPDATE t SET text = hex(randomblob(50)) WHERE id = 1000").unwrap();
        session.sql("PRAGMA gcs_flush").unwrap();
        hot.load(Ordering::SeqCst) > 0
    });
    assert!(written, "no hot index was written");
    session.kill();
    let mut cold = bed.host("b", "").open();
    assert_eq!(cold.sql("PRAGMA integrity_check").unwrap(), [["ok"]]);
    assert_eq!(cold.number("SELECT count(*) FROM t"), 3200);
}
