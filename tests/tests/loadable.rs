//! The loadable extension as a stranger meets it: what the file exports and links, and how Debian's sqlite3 shell
//! and Python use it.

use std::collections::BTreeSet;
use std::path::Path;

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
    let file = std::fs::read(extension()).expect("the extension");
    let text = b"database disk image is malformed";
    assert!(!file.windows(text.len()).any(|window| window == text), "carries a SQLite of its own");
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
    assert!(refused.expect_failure().contains("durabilty"), "{refused}");
}

#[test]
fn a_missing_bucket_is_an_error_that_says_how_to_name_one() {
    let scratch = Scratch::new();
    let uri = format!("file:{}?vfs=gcs", scratch.join("app.db").display());
    let refused = Program::sqlite3_on(&uri, "CREATE TABLE t(a);\n").run();
    assert!(refused.expect_failure().contains("SQLITE_GCS_BUCKET"), "{refused}");
}
