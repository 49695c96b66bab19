//! What is wrong from outside - settings, names, objects, files, statements - is refused with a text that names it, and
//! harms nothing: put right, everything is there.
//!
//! The texts are seen as an application's owner sees them: on the standard error of Debian's Python.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use sqlite_gcs::delta::PageIndex;
use sqlite_gcs_tests::host::{Host, difference, one, pages, status, wait_until_durable};
use sqlite_gcs_tests::shell::{Finished, Program};

const NAME: &str = "app.db";

#[track_caller]
fn run(db: &Connection, sql: &str) {
    db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Runs one statement on a URI and prints its rows or the error. Ends with code 0 unless it crashes.
fn python(uri: &str, sql: &str) -> Program {
    Program::python(&format!(
        "try:\n    db = connect({uri:?}, timeout=1)\n    print(db.execute({sql:?}).fetchall())\n    db.commit()\n\
         except sqlite3.Error as error:\n    print('error:', error)\n"
    ))
}

/// An error that does not name these is none that one could act on. A panic is one in any case.
#[track_caller]
fn refused(done: &Finished, names: &[&str]) {
    assert!(done.expect_success().starts_with("error: "), "{done}");
    for name in names {
        assert!(done.stderr.contains(name), "{name}: {done}");
    }
    assert!(!done.stderr.contains("panicked"), "{done}");
}

/// A database of five deltas; the pages as they are at the end.
fn five_deltas(host: &Host) -> Vec<u8> {
    let mut db = host.open(NAME, "&flush_interval=1h");
    run(&db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    for n in 0..4 {
        run(&db, &format!("INSERT INTO t VALUES ({n}, printf('%09000d', {n}))"));
        one::<String>(&db, "PRAGMA gcs_flush");
    }
    assert!(host.deltas(NAME).len() >= 5);
    let live = pages(&mut db);
    drop(db);
    host.lose(NAME);
    live
}

#[test]
fn a_bad_value_of_a_setting_is_refused_by_name_from_the_uri_and_from_the_environment() {
    let host = Host::new();
    for (setting, value, accepted) in [
        ("durability", "maybe", "strict"),
        ("flush_interval", "fast", "500ms"),
        ("flush_interval", "-1s", "500ms"),
        ("page_size", "1000", "512 to 65536"),
        ("page_size", "131072", "512 to 65536"),
        ("lease_ttl", "1s", "5s to 10m"),
        ("lease_ttl", "11m", "5s to 10m"),
        ("sigterm", "yes", "flush"),
    ] {
        let uri = host.uri(NAME, "");
        let wrong = python(&format!("{uri}&{setting}={value}"), "CREATE TABLE t(a)").run();
        refused(&wrong, &[setting, accepted]);
        let variable = format!("SQLITE_GCS_{}", setting.to_uppercase());
        refused(&python(&uri, "CREATE TABLE t(a)").env(&variable, value).run(), &[setting, accepted]);
    }
    refused(&python(&host.uri(NAME, "&flush_intervall=1s"), "SELECT 1").run(), &["flush_intervall", "flush_interval"]);
    assert!(!host.path(NAME).exists() && !host.path("app.db-gcs").exists(), "nothing is made by a refused open");
}

#[test]
fn a_bad_bucket_url_is_refused_with_the_accepted_forms() {
    let host = Host::new();
    let file = host.path(NAME);
    for bucket in [
        "tbkt",
        "s3://tbkt",
        "gs://",
        "gs://UPPER",
        "gs://a/../b",
        "gs://abc//d",
        "file://relative/dir",
        "file:///",
        "gs://abc/%252e%252e",
        "file:///tmp/../etc",
    ] {
        let uri = format!("file:{}?vfs=gcs&bucket={bucket}", file.display());
        refused(&python(&uri, "CREATE TABLE t(a)").run(), &["bucket URL", "accepted are gs://bucket"]);
    }
    assert!(!file.exists() && !host.path("app.db-gcs").exists(), "nothing is made by a refused open");
}

#[test]
fn a_bucket_directory_that_is_not_there_is_named_and_not_made() {
    let host = Host::new();
    let missing = host.path("not-mounted");
    let uri = format!("file:{}?vfs=gcs&bucket=file://{}", host.path(NAME).display(), missing.display());
    refused(&python(&uri, "CREATE TABLE t(a)").run(), &["not-mounted"]);
    assert!(!missing.exists() && !host.path(NAME).exists());
    std::fs::create_dir(&missing).expect("mounted now");
    assert_eq!(python(&uri, "CREATE TABLE t(a)").run().expect_success(), "[]");
}

#[test]
fn unusual_names_of_databases_stay_within_their_own_folder_of_the_bucket() {
    let host = Host::new();
    for (in_uri, name) in [
        ("a%20b.db", "a b.db"),
        ("%C3%A4%E2%82%AC.db", "ä€.db"),
        ("a%3Fb%23c.db", "a?b#c.db"),
        ("..db", "..db"),
        ("100%25.db", "100%.db"),
        ("a@0000000000000001", "a@0000000000000001"),
        ("x.ltx", "x.ltx"),
        ("ltx", "ltx"),
    ] {
        let uri = format!("file:{}?vfs=gcs&bucket={}", host.path(in_uri).display(), host.bucket());
        let mut db = Connection::open(&uri).unwrap_or_else(|error| panic!("{name}: {error}"));
        run(&db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
        let live = pages(&mut db);
        drop(db);
        assert!(host.objects(name).join("ltx/0").is_dir(), "{name}");
        // Litestream looks for other names in their percent-encoded form.
        if name.chars().all(|c| c.is_ascii_alphanumeric() || ".@".contains(c)) {
            assert_eq!(difference(&host.restored(name), &live), None, "{name}");
        }
        host.lose(name);
        let mut cold = Connection::open(&uri).expect("a cold open");
        assert_eq!(difference(&pages(&mut cold), &live), None, "{name}");
    }
}

#[test]
fn names_that_would_leave_the_folder_or_hide_in_it_are_refused() {
    let host = Host::new();
    for name in ["a%0Ab.db", "a%01.db"] {
        let uri = format!("file:{}?vfs=gcs&bucket={}", host.path(name).display(), host.bucket());
        refused(&python(&uri, "CREATE TABLE t(a)").run(), &["opening"]);
    }
    // The folder of a directory bucket's own.
    refused(&python(&host.uri(".sqlite-gcs", ""), "CREATE TABLE t(a)").run(), &["not free for objects"]);
    host.lose(".sqlite-gcs");
    // A folder, whatever it is called.
    std::fs::create_dir(host.path("folder")).expect("a folder");
    for name in ["folder", "folder/..", "."] {
        let uri = format!("file:{}?vfs=gcs&bucket={}", host.path(name).display(), host.bucket());
        refused(&python(&uri, "CREATE TABLE t(a)").run(), &[]);
    }
    assert_eq!(std::fs::read_dir(host.path("bucket")).expect("the bucket").count(), 0, "no object is made");
}

#[test]
fn a_path_with_dots_and_links_leads_to_the_one_database() {
    let host = Host::new();
    std::fs::create_dir(host.path("folder")).expect("a folder");
    run(&host.open(NAME, ""), "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
    std::os::unix::fs::symlink(host.path(NAME), host.path("link.db")).expect("a link");
    for name in ["folder/../app.db", "./app.db", "link.db"] {
        let db = host.open(name, "");
        assert_eq!(one::<i64>(&db, "SELECT sum(a) FROM t"), 1, "{name}");
        assert_eq!(status(&db)["replica"], host.replica(NAME).as_str(), "{name}");
    }
}

/// The delta that holds the newest image of most pages.
fn some_delta(host: &Host) -> PathBuf {
    let deltas = host.deltas(NAME);
    host.objects(NAME).join("ltx/0").join(&deltas[deltas.len() - 2])
}

#[test]
fn a_corrupt_object_is_named_with_its_field_and_the_rest_is_unharmed() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, &str, Damage); 10] = [
        ("magic", "magic", |b| b[0] = b'X'),
        ("flags", "flags", |b| b[7] = 0xff),
        ("page size", "page size", |b| b[10] = 3),
        ("first transaction", "transaction", |b| b[23] ^= 0x40),
        ("last transaction", "transaction", |b| b[31] ^= 0x40),
        ("size of the database", "page number", |b| b[12..16].copy_from_slice(&1u32.to_be_bytes())),
        ("index length", "index", |b| {
            let at = b.len() - 24;
            b[at..at + 8].fill(0xff);
        }),
        ("index", "index", |b| {
            let at = b.len() - 28;
            b[at..at + 4].fill(0xff);
        }),
        ("truncated", "", |b| b.truncate(b.len() / 2)),
        ("empty", "", Vec::clear),
    ];
    let host = Host::new();
    let live = five_deltas(&host);
    let delta = some_delta(&host);
    let name = delta.file_name().expect("a name").to_string_lossy().into_owned();
    let whole = std::fs::read(&delta).expect("the delta");
    for (what, field, damage) in cases {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        assert_ne!(bytes, whole, "{what}");
        std::fs::write(&delta, &bytes).expect("damaged");
        let done = python(&host.uri(NAME, ""), "SELECT sum(length(b)) FROM t").run();
        refused(&done, &[&name, field]);
        host.lose(NAME);
    }
    std::fs::write(&delta, &whole).expect("put right");
    assert_eq!(difference(&pages(&mut host.open(NAME, "")), &live), None);
}

#[test]
fn a_corrupt_page_in_an_object_is_an_error_of_the_read_that_needs_it() {
    let host = Host::new();
    let live = five_deltas(&host);
    let delta = some_delta(&host);
    let name = delta.file_name().expect("a name").to_string_lossy().into_owned();
    let whole = std::fs::read(&delta).expect("the delta");
    // With its times as they were it is the same object, that was damaged where it lies.
    let modified = delta.metadata().and_then(|meta| meta.modified()).expect("its time");
    let write = |bytes: &[u8]| {
        std::fs::write(&delta, bytes).expect("written");
        std::fs::File::options().write(true).open(&delta).and_then(|f| f.set_modified(modified)).expect("its time");
    };
    // The last page, which no later delta has: page number, flags, length, then LZ4.
    let index = PageIndex::decode(&whole, whole.len() as u64).expect("an index").into_entries();
    let frame = index.last().expect("a page").offset as usize;
    for (what, at, field) in
        [("page number", 1, "page number"), ("flags", 5, "flags"), ("length", 6, "length"), ("page", 14, "page")]
    {
        let at = frame + at;
        let mut bytes = whole.clone();
        bytes[at..at + 3].fill(0xee);
        write(&bytes);
        let done = python(&host.uri(NAME, ""), "SELECT sum(length(b)) FROM t").run();
        refused(&done, &[&name, field]);
        assert!(done.stdout.contains("error") && !done.stdout.contains("[("), "{what}: {done}");
        // The application has been told; nothing of it may have come into the cache.
        write(&whole);
        assert_eq!(difference(&pages(&mut host.open(NAME, "")), &live), None, "{what}");
        host.lose(NAME);
    }
}

#[test]
fn a_gap_in_the_log_is_refused_and_named_and_healed_by_the_missing_object() {
    let host = Host::new();
    let live = five_deltas(&host);
    let delta = some_delta(&host);
    let (name, aside) = (delta.file_name().expect("a name").to_owned(), host.path("aside"));
    let txid = name.to_string_lossy()[..16].to_owned();
    std::fs::rename(&delta, &aside).expect("moved away");
    let bucket = host.deltas(NAME);
    for sql in ["SELECT count(*) FROM t", "CREATE TABLE u(a)"] {
        refused(&python(&host.uri(NAME, ""), sql).run(), &[&txid, "gap"]);
    }
    assert_eq!(host.deltas(NAME), bucket, "nothing is appended after a gap");
    std::fs::rename(&aside, &delta).expect("back");
    assert_eq!(difference(&pages(&mut host.open(NAME, "")), &live), None);
}

#[test]
fn a_log_without_its_beginning_is_refused() {
    let host = Host::new();
    let live = five_deltas(&host);
    let first = host.objects(NAME).join("ltx/0").join(&host.deltas(NAME)[0]);
    std::fs::rename(&first, host.path("aside")).expect("moved away");
    refused(&python(&host.uri(NAME, ""), "CREATE TABLE u(a)").run(), &["0000000000000001"]);
    std::fs::rename(host.path("aside"), &first).expect("back");
    assert_eq!(difference(&pages(&mut host.open(NAME, "")), &live), None);
}

#[test]
fn stray_objects_in_the_replica_are_nobodys() {
    let host = Host::new();
    let live = five_deltas(&host);
    for stray in
        ["README", "ltx/0/notes.txt", "ltx/x/0000000000000001-0000000000000001.ltx", "ltx/0/0-1.ltx", "gcs/else@x"]
    {
        let path = host.objects(NAME).join(stray);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, "not ours").expect("written");
    }
    let mut db = host.open(NAME, "");
    assert_eq!(difference(&pages(&mut db), &live), None);
    run(&db, "INSERT INTO t VALUES (100, 'more')");
    drop(db);
    host.lose(NAME);
    assert_eq!(one::<i64>(&host.open(NAME, ""), "SELECT count(*) FROM t"), 5);
}

#[test]
fn a_lease_that_cannot_be_read_stops_writers_only_and_is_named() {
    let host = Host::new();
    let live = five_deltas(&host);
    let lease = host.lease(NAME);
    // A frame of 24 bytes, no metadata, the JSON.
    let whole = std::fs::read(&lease).expect("the lease");
    let mut bytes = whole.clone();
    let json = 24 + u32::from_be_bytes([whole[20], whole[21], whole[22], whole[23]]) as usize;
    bytes[json] = b'?';
    let crc = crc32c::crc32c(&bytes[json..]);
    bytes[16..20].copy_from_slice(&crc.to_be_bytes());
    std::fs::write(&lease, &bytes).expect("damaged");
    assert_eq!(difference(&pages(&mut host.open(NAME, "")), &live), None, "reading needs no lease");
    host.lose(NAME);
    refused(&python(&host.uri(NAME, ""), "INSERT INTO t VALUES (100, 'more')").run(), &["gcs/lease"]);
    std::fs::write(&lease, whole).expect("put right");
    host.lose(NAME);
    run(&host.open(NAME, ""), "INSERT INTO t VALUES (100, 'more')");
    host.lose(NAME);
    assert_eq!(one::<i64>(&host.open(NAME, ""), "SELECT count(*) FROM t"), 5);
}

#[test]
fn a_writer_whose_bucket_gives_no_answer_is_told_why_and_does_not_wait_for_ever() {
    let host = Host::new();
    five_deltas(&host);
    let lease = host.lease(NAME);
    let whole = std::fs::read(&lease).expect("the lease");
    // To the store this may be a read that went wrong: it is tried again.
    std::fs::write(&lease, &whole[..whole.len() - 5]).expect("cut");
    let uri = host.uri(NAME, "");
    // Within the program's limit, although the busy handler asks a dozen times in this second.
    refused(&python(&uri, "INSERT INTO t VALUES (100, 'more')").run(), &["gcs/lease", "did not answer in time"]);
}

#[test]
fn wrong_pragmas_are_refused_with_a_text_and_change_nothing() {
    let host = Host::new();
    let db = host.open(NAME, "");
    run(&db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
    for (sql, names) in [
        ("PRAGMA gcs_flsh", ["gcs_flsh", "gcs_flush"]),
        ("PRAGMA gcs_durability='often'", ["often", "strict"]),
        ("PRAGMA gcs_flush=1", ["gcs_flush", "no value"]),
        ("PRAGMA gcs_status=1", ["gcs_status", "no value"]),
        ("PRAGMA journal_mode=DELETE", ["WAL", "VACUUM INTO"]),
        ("PRAGMA journal_mode=MEMORY", ["WAL", "VACUUM INTO"]),
        ("PRAGMA journal_mode=OFF", ["WAL", "VACUUM INTO"]),
        ("PRAGMA main.journal_mode=TRUNCATE", ["WAL", "VACUUM INTO"]),
        ("SELECT gcs_flush('nowhere')", ["nowhere", "vfs=gcs"]),
        ("SELECT gcs_status('temp')", ["temp", "vfs=gcs"]),
        ("SELECT gcs_flush(NULL)", ["gcs_flush", "NULL"]),
    ] {
        let error = db.query_row(sql, [], |_| Ok(())).expect_err(sql).to_string();
        assert!(names.iter().all(|name| error.contains(name)), "{sql}: {error}");
    }
    assert_eq!(one::<String>(&db, "PRAGMA journal_mode=wal"), "wal");
    assert_eq!(one::<String>(&db, "PRAGMA gcs_durability"), "background");
    run(&db, "INSERT INTO t VALUES (2)");
    wait_until_durable(&db);
    drop(db);
    host.lose(NAME);
    assert_eq!(one::<i64>(&host.open(NAME, ""), "SELECT sum(a) FROM t"), 3);
}

fn local_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("our folder").flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

#[test]
fn damaged_local_files_cost_requests_and_never_data() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("removed", |path| std::fs::remove_file(path).expect("removed")),
        ("emptied", |path| std::fs::write(path, "").expect("emptied")),
        ("cut", |path| {
            let bytes = std::fs::read(path).expect("read");
            std::fs::write(path, &bytes[..bytes.len() / 2]).expect("cut");
        }),
        ("overwritten", |path| {
            let bytes = std::fs::read(path).expect("read");
            std::fs::write(path, vec![0xa5; bytes.len().max(100)]).expect("overwritten");
        }),
    ];
    let host = Host::new();
    let mut live = five_deltas(&host);
    let folder = host.path("app.db-gcs");
    drop(pages(&mut host.open(NAME, "")));
    let names: Vec<_> = local_files(&folder).iter().map(|p| p.file_name().expect("a name").to_owned()).collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in &names {
        for (what, damage) in damages {
            host.lose(NAME);
            drop(pages(&mut host.open(NAME, "")));
            damage(&folder.join(name));
            let mut db = host.open(NAME, "");
            assert_eq!(difference(&pages(&mut db), &live), None, "{name:?} {what}");
            run(&db, "BEGIN; INSERT INTO t VALUES (-1, 1); DELETE FROM t WHERE a = -1; COMMIT");
            assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), 4, "{name:?} {what}");
            assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok", "{name:?} {what}");
            live = pages(&mut db);
            drop(db);
            assert_eq!(difference(&host.restored(NAME), &live), None, "{name:?} {what}");
        }
    }
}
