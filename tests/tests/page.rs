//! The guestbook's page in headless Chromium, driven by `examples/guestbook/browser/page.js`: without JavaScript, by keyboard, on a
//! phone, on a lost machine, with two instances. Its pictures are left in the target directory.

use std::time::Duration;

use sqlite_gcs_tests::shell::{Program, target_directory, workspace};
use sqlite_gcs_tests::web::guestbook;

#[test]
fn people_can_use_the_page_and_see_what_the_database_does() {
    let folder = workspace().join("examples/guestbook/browser");
    if !folder.join("node_modules/axe-core").is_dir() {
        let installed = Program::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
            .directory(&folder)
            .limit(Duration::from_secs(300))
            .run();
        installed.expect_success();
    }
    let driven = Program::new("node")
        .args(["page.js"])
        .args([guestbook("debug"), target_directory()])
        .directory(&folder)
        .limit(Duration::from_secs(120))
        .run();
    let said = driven.expect_success();
    assert!(said.contains("readable at the width of a phone"), "{driven}");
}
