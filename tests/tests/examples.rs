//! The examples in other languages, started, driven, robbed of their disk and killed by `examples/drive.py`. What they need
//! (Flask, Django, gunicorn, better-sqlite3) is installed into their own folders at the first run.

use std::time::Duration;

use sqlite_gcs_tests::shell::{Program, packages, workspace};

fn drive(example: &str) {
    let driven = Program::new(workspace().join("examples/drive.py"))
        .args([example, "--extension"])
        .args([packages().join("libsqlite_gcs.so")])
        .args(["--library"])
        .args([packages()])
        .limit(Duration::from_secs(600))
        .run();
    let said = driven.expect_success();
    assert!(said.contains("after kill -9 and the loss of the disk: 41 entries, none lost"), "{driven}");
}

#[test]
fn flask_under_gunicorn_loses_no_entry() {
    drive("python");
}

#[test]
fn node_with_better_sqlite3_loses_no_entry() {
    drive("node");
}

#[test]
fn unchanged_django_on_the_drop_in_loses_no_entry() {
    drive("django");
}
