//! The loadable extension as a stranger meets it: what the file exports and links, and how Debian's sqlite3 shell
//! and Python use it.

use std::collections::BTreeSet;
use std::path::Path;

use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::litestream::{self, Point};
use sqlite_gcs_tests::shell::{Program, Scratch, extension};

fn symbols(flag: &str) -> BTreeSet<String> {
    let listed = Program::new("nm").args(["-D", flag]).args([extension()]).run();
    listed.expect_success().lines().filter_map(|line| Some(line.split_whitespace().last()?.to_owned())).collect()
}

#[test]
fn it_exports_its_two_entry_points_and_nothing_else() {
    let expected = ["sqlite3_extension_init", "sqlite3_sqlitegcs_init"].map(str::to_owned);
    assert_eq!(symbols("--defined-only"), BTreeSet::from(expected));
}

#[test]
fn it_takes_every_sqlite_routine_from_its_host() {
    let wanted: Vec<_> = symbols("--undefined-only").into_iter().filter(|name| name.starts_with("sqlite3")).collect();
    assert!(wanted.is_empty(), "asks the dynamic linker for {wanted:?}");
    let linked = Program::new("ldd").args([extension()]).run();
    assert!(!linked.expect_success().contains("sqlite"), "{linked}");
    // A SQLite that was linked in statically shows by its own texts.
    let searched = Program::new("grep").args(["-caF", "database disk image is malformed"]).args([extension()]).run();
    assert_eq!(searched.expect_failure(), "", "{searched}");
    assert_eq!(searched.stdout.trim_end(), "0", "carries a SQLite of its own");
}

/// Removes the local files of a database: only the bucket is left.
fn lose_the_machine(database: &Path) {
    let name = database.file_name().expect("a file name").to_string_lossy().into_owned();
    for entry in std::fs::read_dir(database.parent().expect("a folder")).expect("the folder").flatten() {
        if entry.file_name().to_string_lossy().starts_with(&name) {
            let path = entry.path();
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.expect("removed");
        }
    }
    assert!(!database.exists());
}

#[test]
fn the_shell_writes_quits_and_finds_its_rows_on_another_machine() {
    let scratch = Scratch::new();
    let (bucket, file) = (scratch.bucket(), scratch.join("app.db"));
    let uri = format!("file:{}?vfs=gcs", file.display());
    let wrote = Program::sqlite3_on(&uri, "CREATE TABLE t(a);\nINSERT INTO t VALUES (42);\n.quit\n")
        .env("SQLITE_GCS_BUCKET", &bucket)
        .run();
    wrote.expect_success();
    lose_the_machine(&file);
    let read = Program::sqlite3_on(&uri, "SELECT a FROM t;\nPRAGMA integrity_check;\n")
        .env("SQLITE_GCS_BUCKET", &bucket)
        .run();
    assert_eq!(read.expect_success(), "42\nok");
}

#[test]
fn python_writes_exits_and_finds_its_rows_on_another_machine() {
    let scratch = Scratch::new();
    let (bucket, file) = (scratch.bucket(), scratch.join("app.db"));
    let uri = format!("file:{}?vfs=gcs&bucket={bucket}", file.display());
    let write = format!(
        "db = connect({uri:?})\n\
         db.execute('CREATE TABLE t(a)')\n\
         with db: db.executemany('INSERT INTO t VALUES (?)', [(n,) for n in range(1000)])\n\
         sys.exit(0)\n"
    );
    Program::python(&write).run().expect_success();
    lose_the_machine(&file);
    let read = format!("print(connect({uri:?}).execute('SELECT count(*), sum(a) FROM t').fetchone())");
    assert_eq!(Program::python(&read).run().expect_success(), "(1000, 499500)");
}

#[test]
fn the_pragmas_and_the_functions_answer_in_the_shell_and_in_python() {
    let scratch = Scratch::new();
    let uri = format!("file:{}?vfs=gcs&bucket={}", scratch.join("app.db").display(), scratch.bucket());
    let script = "CREATE TABLE t(a);\nPRAGMA gcs_flush;\nSELECT gcs_flush();\n\
                  SELECT json_extract(gcs_status(), '$.durable_txid');\n";
    let shell = Program::sqlite3_on(&uri, script).run();
    let answers: BTreeSet<&str> = shell.expect_success().lines().collect();
    assert_eq!(answers.len(), 1, "one durable TXID, however it is asked for: {shell}");
    let txid = answers.into_iter().next().unwrap_or_default();
    assert!(txid.len() == 16 && txid > "0000000000000000", "{shell}");
    let python = Program::python(&format!("print(connect({uri:?}).execute('PRAGMA gcs_flush').fetchone()[0])")).run();
    assert_eq!(python.expect_success(), txid);
}

#[test]
fn a_mistaken_parameter_is_refused_by_name() {
    let scratch = Scratch::new();
    let uri = format!("file:{}?vfs=gcs&bucket={}&durabilty=commit", scratch.join("app.db").display(), scratch.bucket());
    let refused = Program::sqlite3_on(&uri, "CREATE TABLE t(a);\n").run();
    // The shell goes on with a database in memory, so its exit code says nothing.
    assert!(refused.stderr.contains("durabilty") && refused.stderr.contains("unable to open"), "{refused}");
}

#[test]
fn a_missing_bucket_is_an_error_that_says_how_to_name_one() {
    let scratch = Scratch::new();
    let uri = format!("file:{}?vfs=gcs", scratch.join("app.db").display());
    let refused = Program::sqlite3_on(&uri, "CREATE TABLE t(a);\n").run();
    assert!(refused.stderr.contains("SQLITE_GCS_BUCKET") && refused.stderr.contains("unable to open"), "{refused}");
}

/// The shell returns from main without a close when its last SQL fails, and its log's listener points into main's stack: an error of
/// the flush at the exit was written there, and the shell crashed.
#[test]
fn an_error_at_the_exit_of_the_shell_does_not_reach_its_listener() {
    let scratch = Scratch::new();
    let (bucket, gone) = (scratch.bucket(), scratch.join("gone"));
    let uri = format!("file:{}?vfs=gcs&flush_interval=10m&commit_timeout=500ms", scratch.join("app.db").display());
    let load = format!(".load {}", extension().display());
    // A file in the place of the folder: nothing can be uploaded there.
    let take_away = format!(".shell mv {0} {1} && touch {0}", scratch.join("bucket").display(), gone.display());
    let ended = Program::new("/usr/bin/sqlite3")
        .args([":memory:", &load, &format!(".open {uri}"), "CREATE TABLE t(a); PRAGMA gcs_flush;", &take_away])
        .args(["INSERT INTO t VALUES (1);", "SELECT nonsense;"])
        .env("SQLITE_GCS_BUCKET", bucket)
        .run();
    let said = ended.expect_failure();
    assert_eq!(ended.status.code(), Some(1), "{ended}");
    assert!(said.contains("sqlite-gcs: error"), "nothing went wrong at the exit: {ended}");
}

#[test]
fn an_emulator_that_the_environment_names_is_the_bucket_and_litestream_restores_it() {
    let emulator = Emulator::start();
    let scratch = Scratch::new();
    let file = scratch.join("app.db");
    let uri = format!("file:{}?vfs=gcs&bucket={}", file.display(), emulator.url());
    let on_it = |script: &str| Program::sqlite3_on(&uri, script).env("STORAGE_EMULATOR_HOST", emulator.host()).run();
    on_it("CREATE TABLE t(a);\nINSERT INTO t VALUES (42);\n").expect_success();
    lose_the_machine(&file);
    assert_eq!(on_it("SELECT a FROM t;\n").expect_success(), "42");
    let replica = format!("{}/app.db", emulator.url());
    let restored = scratch.join("restored.db");
    litestream::restore_into(&replica, Some(&emulator.host()), Point::Newest, &restored).expect("a valid replica");
    let db = rusqlite::Connection::open(&restored).expect("the restored database");
    assert_eq!(db.query_row("SELECT a FROM t", [], |row| row.get(0)), Ok(42));
}
