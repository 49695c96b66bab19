//! What is handed out, as a stranger's machine gets it: the drop-in libsqlite3.so.0 in Debian's Python, the wheel in a clean
//! environment, the npm package in a clean folder, and which glibc all of them ask for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlite_gcs_tests::shell::{PYTHON, Program, Scratch, packages, workspace};

/// The oldest glibc that the README promises: Debian 10's.
const FLOOR: [u32; 2] = [2, 28];

fn symbols(library: &Path, flag: &str) -> BTreeSet<String> {
    let listed = Program::new("nm").args(["-D", "--without-symbol-versions", flag]).args([library]).run();
    listed.expect_success().lines().filter_map(|line| Some(line.split_whitespace().last()?.to_owned())).collect()
}

#[test]
fn the_libraries_ask_for_no_newer_glibc_than_the_readme_says() {
    let readme = std::fs::read_to_string(workspace().join("README.md")).expect("README.md");
    assert!(readme.contains(&format!("glibc {}.{} or newer", FLOOR[0], FLOOR[1])), "the README states another floor");
    for name in ["libsqlite_gcs.so", "libsqlite3.so.0"] {
        let listed = Program::new("objdump").args(["-T"]).args([packages().join(name)]).run();
        let mut asked = BTreeSet::new();
        for version in listed.expect_success().split("GLIBC_").skip(1) {
            let version = version.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
            let numbers: Vec<u32> = version.split('.').filter_map(|number| number.parse().ok()).collect();
            asked.insert(numbers);
        }
        let newest = asked.last().expect("a library that uses glibc");
        assert!(newest[..2] <= FLOOR[..], "{name} asks for {newest:?}");
        // Nothing but glibc's parts and the unwinder, which every C++ program has as well.
        let needed = Program::new("readelf").args(["-d"]).args([packages().join(name)]).run();
        let needed: BTreeSet<_> = needed
            .expect_success()
            .lines()
            .filter(|line| line.contains("(NEEDED)"))
            .filter_map(|line| line.split(['[', ']']).nth(1).map(str::to_owned))
            .filter(|name| !name.starts_with("ld-linux"))
            .collect();
        let known = ["libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "libgcc_s.so.1"].map(str::to_owned);
        assert!(needed.is_subset(&known.into()), "{name} needs {needed:?}");
    }
}

#[test]
fn the_drop_in_exports_all_of_sqlites_interface_and_no_entry_point() {
    let ours = symbols(&packages().join("libsqlite3.so.0"), "--defined-only");
    let debians = Program::new(PYTHON)
        .args([
            "-c",
            "import _sqlite3, os\nprint(*{l.split()[-1] for l in open('/proc/self/maps') if 'libsqlite3' in l})",
        ])
        .run();
    let debians = symbols(Path::new(debians.expect_success()), "--defined-only");
    let interface: BTreeSet<_> = debians.into_iter().filter(|name| name.starts_with("sqlite3_")).collect();
    assert!(interface.len() > 250, "Debian's library exports only {}", interface.len());
    // Written by tools of its build, not in its documentation.
    let missing: Vec<_> = interface.difference(&ours).filter(|name| !name.ends_with("_init")).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    assert!(ours.iter().all(|name| name.starts_with("sqlite3")), "{ours:?}");
    assert!(!ours.contains("sqlite3_extension_init") && !ours.contains("sqlite3_sqlitegcs_init"));
}

#[test]
fn the_loadable_extension_for_old_machines_exports_its_two_entry_points() {
    let expected = ["sqlite3_extension_init", "sqlite3_sqlitegcs_init"].map(str::to_owned);
    assert_eq!(symbols(&packages().join("libsqlite_gcs.so"), "--defined-only"), BTreeSet::from(expected));
}

/// Debian's Python on the drop-in, without a change to the script; `how` is the variable that puts it in front.
fn unchanged(scratch: &Scratch, how: &str, script: &str) -> Program {
    let library = match how {
        "LD_PRELOAD" => packages().join("libsqlite3.so.0"),
        _ => packages(),
    };
    Program::new(PYTHON)
        .args(["-c", &format!("import sqlite3\n{script}")])
        .directory(scratch.path())
        .env(how, library)
        .env("SQLITE_GCS_BUCKET", scratch.bucket())
        .env("SQLITE_GCS_PATHS", format!("{}/disk/*.db", scratch.path().display()))
}

/// The databases that a bucket holds objects of. (What a local folder keeps for itself is hidden.)
fn databases(bucket: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(bucket).expect("the bucket").flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect()
}

#[test]
fn an_unchanged_program_keeps_the_named_files_in_the_bucket_and_all_others_as_they_were() {
    for how in ["LD_LIBRARY_PATH", "LD_PRELOAD"] {
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.join("disk")).expect("a disk");
        let write = "for name in 'disk/a.db', 'disk/b.sqlite', 'c.db':\n    \
                     db = sqlite3.connect(name)\n    \
                     db.execute('CREATE TABLE t(a)')\n    \
                     db.execute('INSERT INTO t VALUES (?)', [name])\n    \
                     db.commit()\n    \
                     print(db.execute('PRAGMA journal_mode').fetchone()[0])\n    db.close()";
        // A managed database is in WAL mode; what is not managed is what SQLite makes by itself.
        assert_eq!(unchanged(&scratch, how, write).run().expect_success(), "wal\ndelete\ndelete", "{how}");
        assert_eq!(databases(&scratch.join("bucket")), ["a.db"], "{how}");
        for plain in ["disk/b.sqlite", "c.db"] {
            let file = scratch.join(plain).display().to_string();
            let read = Program::sqlite3(&format!(".open {file}\nSELECT a FROM t;\n")).run();
            assert_eq!(read.expect_success(), plain, "{how}");
        }
        assert!(!scratch.join("disk/b.sqlite-gcs").exists(), "{how}");
        std::fs::remove_dir_all(scratch.join("disk")).expect("the disk is lost");
        std::fs::create_dir(scratch.join("disk")).expect("an empty disk");
        let read = "print(sqlite3.connect('disk/a.db').execute('SELECT a FROM t').fetchone()[0])";
        assert_eq!(unchanged(&scratch, how, read).run().expect_success(), "disk/a.db", "{how}");
    }
}

#[test]
fn the_drop_in_is_the_same_sqlite_with_foreign_keys_off_and_the_vfs_by_name() {
    let scratch = Scratch::new();
    let script = "db = sqlite3.connect(':memory:')\n\
                  print(db.execute('PRAGMA foreign_keys').fetchone()[0])\n\
                  gcs = sqlite3.connect('file:e.db?vfs=gcs', uri=True)\n\
                  gcs.execute('CREATE TABLE t(a)')\n\
                  print(len(gcs.execute('PRAGMA gcs_flush').fetchone()[0]))\n\
                  print(sqlite3.connect('file:disk.db?vfs=unix', uri=True).execute('PRAGMA journal_mode').fetchone()[0])";
    let answers = unchanged(&scratch, "LD_LIBRARY_PATH", script).env("SQLITE_GCS_PATHS", "").run();
    assert_eq!(answers.expect_success(), "0\n16\ndelete");
}

#[test]
fn a_relative_pattern_opens_nothing_and_says_so() {
    let scratch = Scratch::new();
    let refused =
        unchanged(&scratch, "LD_LIBRARY_PATH", "sqlite3.connect('a.db')").env("SQLITE_GCS_PATHS", "a.db").run();
    let said = refused.expect_failure();
    assert!(said.contains("SQLITE_GCS_PATHS") && said.contains("does not begin with /"), "{refused}");
    assert!(!scratch.join("a.db").exists());
}

#[test]
fn the_patterns_hold_for_the_loadable_extension_too() {
    let scratch = Scratch::new();
    let script = format!(
        "first = sqlite3.connect(':memory:')\nfirst.enable_load_extension(True)\nfirst.load_extension({:?})\n\
         for name in 'disk/a.db', 'c.db': print(sqlite3.connect(name).execute('PRAGMA journal_mode').fetchone()[0])",
        packages().join("libsqlite_gcs.so").display().to_string()
    );
    std::fs::create_dir(scratch.join("disk")).expect("a disk");
    let answers = unchanged(&scratch, "PYTHONNOUSERSITE", &script).run();
    assert_eq!(answers.expect_success(), "wal\ndelete");
    let load = format!(".load {}\n", packages().join("libsqlite_gcs.so").display());
    let open = |name| format!(".open {}/{name}\nPRAGMA journal_mode;\n", scratch.path().display());
    let shell = Program::sqlite3(&(load + &open("disk/a.db") + &open("c.db")))
        .env("SQLITE_GCS_BUCKET", scratch.bucket())
        .env("SQLITE_GCS_PATHS", format!("{}/disk/*.db", scratch.path().display()))
        .run();
    assert_eq!(shell.expect_success(), "wal\ndelete");
}

/// The README sends users of the shell to `.load`: the shell compares its own version with the library's.
#[test]
fn debians_shell_refuses_the_drop_in_because_of_its_version() {
    let refused = Program::sqlite3("SELECT 1;\n").env("LD_LIBRARY_PATH", packages()).run();
    assert!(refused.expect_failure().contains("version mismatch"), "{refused}");
}

fn only(suffix: &str) -> PathBuf {
    let found = std::fs::read_dir(packages()).expect("the packages").flatten().map(|entry| entry.path());
    let mut found: Vec<_> = found.filter(|path| path.to_string_lossy().ends_with(suffix)).collect();
    assert_eq!(found.len(), 1, "{suffix}: {found:?}");
    found.remove(0)
}

#[test]
fn the_wheel_installs_into_a_clean_environment_and_connects() {
    let scratch = Scratch::new();
    let venv = scratch.join("venv");
    Program::new(PYTHON).args(["-m", "venv"]).args([&venv]).run().expect_success();
    // --no-index: it needs nothing else.
    Program::new(venv.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-index"])
        .args([only(".whl")])
        .run()
        .expect_success();
    let script = "import sqlite3, sqlite_gcs\n\
                  db = sqlite_gcs.connect('a b?.db', durability='commit', timeout=1)\n\
                  with db: db.execute('CREATE TABLE t(a)')\n\
                  print(len(db.execute('PRAGMA gcs_flush').fetchone()[0]))\n\
                  db.close()\n\
                  again = sqlite_gcs.load(sqlite3.connect(':memory:'))\n\
                  print(sqlite3.connect('file:b.db?vfs=gcs', uri=True).execute('PRAGMA journal_mode').fetchone()[0])\n\
                  try: sqlite_gcs.connect('c.db', durabilty='commit')\n\
                  except sqlite3.OperationalError as error: print(error)";
    let ran = Program::new(venv.join("bin/python"))
        .args(["-c", script])
        .directory(scratch.path())
        .env("SQLITE_GCS_BUCKET", scratch.bucket())
        .run();
    assert_eq!(ran.expect_success(), "16\nwal\nunable to open database file");
    assert!(ran.stderr.contains("durabilty"), "{ran}");
    assert!(databases(&scratch.join("bucket")).contains(&"a b?.db".to_owned()));
}

#[test]
fn the_npm_package_installs_into_a_clean_folder_and_keeps_the_named_files_in_the_bucket() {
    let scratch = Scratch::new();
    std::fs::write(scratch.join("package.json"), r#"{ "private": true }"#).expect("written");
    Program::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--offline"])
        .args([only(".tgz")])
        .directory(scratch.path())
        .run()
        .expect_success();
    // better-sqlite3 is the example's, which is built from its sources once.
    let node = workspace().join("examples/node");
    Program::new(workspace().join("examples/drive.py"))
        .args(["node", "--install"])
        .limit(Duration::from_secs(600))
        .run()
        .expect_success();
    let script = "const Database = require(process.env.BETTER);\n\
                  const { load } = require('sqlite-gcs');\n\
                  load(new Database(':memory:'), { paths: `${process.cwd()}/*.db`, durability: 'commit' }).close();\n\
                  for (const name of ['a.db', 'b.sqlite']) {\n\
                    const db = new Database(name);\n\
                    db.exec('CREATE TABLE t(a)');\n\
                    console.log(db.pragma('journal_mode', { simple: true }));\n\
                    db.close();\n\
                  }";
    let ran = Program::new("node")
        .args(["-e", script])
        .directory(scratch.path())
        .env("BETTER", node.join("node_modules/better-sqlite3"))
        .env("SQLITE_GCS_BUCKET", scratch.bucket())
        .run();
    assert_eq!(ran.expect_success(), "wal\ndelete");
    assert_eq!(databases(&scratch.join("bucket")), ["a.db"]);
}
