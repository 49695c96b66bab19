//! The built extension in the programs of Debian 12: the sqlite3 shell and Python, both on SQLite 3.40.1.
//!
//! A missing program is a failure: `apt-get install sqlite3 python3`.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// The extension as it ships, built once: cargo does not build a `cdylib` for a package's tests by itself.
fn library() -> &'static Path {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", env!("CARGO_PKG_NAME"), "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(status.expect("cargo runs").success(), "building the extension failed");
        target.join("debug/libsqlite_gcs.so")
    });
    &BUILT
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("bucket")).expect("a bucket");
        Place { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn uri(&self) -> String {
        format!("file:{}/a.db?vfs=gcs", self.path().display())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("SQLITE_GCS_BUCKET", format!("file://{}/bucket", self.path().display()))
            .env("GCE_METADATA_HOST", "127.0.0.1:1")
            .current_dir(self.path());
        command
    }

    fn shell(&self, lines: &[&str]) -> Output {
        let mut command = self.command("/usr/bin/sqlite3");
        command.arg("-batch").arg("-cmd").arg(format!(".load {}", library().display()));
        for line in lines {
            command.arg("-cmd").arg(line);
        }
        command.arg(":memory:").arg("SELECT 'end'").output().expect("sqlite3 runs")
    }

    fn python(&self, script: &str) -> Output {
        let prelude = format!(
            "import sqlite3\nl = sqlite3.connect(':memory:')\nl.enable_load_extension(True)\n\
             l.load_extension({:?})\nl.close()\nURI = {:?}\n",
            library().to_str().expect("UTF-8"),
            self.uri()
        );
        self.command("/usr/bin/python3").arg("-c").arg(prelude + script).output().expect("python3 runs")
    }
}

fn stdout(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn the_shell_of_debian_loads_it_and_writes_and_reads() {
    let place = Place::new();
    let open = format!(".open {}", place.uri());
    let first = stdout(&place.shell(&[&open, "CREATE TABLE t(a); INSERT INTO t VALUES (42);", "PRAGMA journal_mode;"]));
    assert!(first.contains("wal"), "{first}");
    let second = stdout(&place.shell(&[&open, "SELECT 'sum ' || sum(a) FROM t;", "PRAGMA integrity_check;"]));
    assert!(second.contains("sum 42") && second.contains("ok"), "{second}");
    assert_eq!(&std::fs::read(place.path().join("a.db")).unwrap()[..16], b"sqlite-gcs cache");
    let plain = place.command("/usr/bin/sqlite3").arg("a.db").arg("SELECT * FROM t").output().unwrap();
    assert!(String::from_utf8_lossy(&plain.stderr).contains("file is not a database"));
    let again = stdout(&place.shell(&[&open, "SELECT 'sum ' || sum(a) FROM t;"]));
    assert!(again.contains("sum 42"), "{again}");
}

#[test]
fn the_shell_loads_it_twice_and_by_either_entry_point() {
    let place = Place::new();
    let library = library();
    for entry in ["", " sqlite3_extension_init", " sqlite3_sqlitegcs_init"] {
        let load = format!(".load {}{entry}", library.display());
        let output = place.shell(&[&load, ".vfslist"]);
        let text = stdout(&output);
        assert_eq!(text.matches("\"gcs\"").count(), 1, "{text}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_functions_are_there_on_the_loading_and_on_later_connections() {
    let place = Place::new();
    for lines in [vec!["SELECT gcs_status();"], vec![".open :memory:", "SELECT gcs_status();"]] {
        let output = place.shell(&lines);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("not one of the VFS gcs"), "{errors}");
    }
}

#[test]
fn a_refused_open_says_why_on_stderr() {
    let place = Place::new();
    let output = place.shell(&[&format!(".open {}&nolock=1", place.uri()), "SELECT 1 FROM sqlite_schema;"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("nolock=1 cannot be used"), "{errors}");
}

#[test]
fn python_of_debian_works_through_it_also_after_the_loading_connection_is_closed() {
    let place = Place::new();
    let script = "
import threading
db = sqlite3.connect(URI, uri=True)
db.execute('CREATE TABLE t(a)')
db.commit()
def work():
    c = sqlite3.connect(URI, uri=True, timeout=30)
    for i in range(50):
        with c:
            c.execute('INSERT INTO t VALUES (?)', (i,))
    c.close()
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
print('rows', db.execute('SELECT count(*) FROM t').fetchone()[0])
for bad in ('PRAGMA journal_mode=delete', 'PRAGMA gcs_nonsense'):
    try:
        db.execute(bad)
    except sqlite3.OperationalError as e:
        print(e)
print(db.execute('PRAGMA integrity_check').fetchone()[0])
";
    let text = stdout(&place.python(script));
    assert!(text.contains("rows 150") && text.contains("VACUUM INTO") && text.contains("gcs_nonsense"), "{text}");
    assert!(text.ends_with("ok\n"), "{text}");
}

#[test]
fn an_interpreter_that_exits_without_closing_loses_nothing() {
    let place = Place::new();
    stdout(&place.python("db = sqlite3.connect(URI, uri=True)\ndb.execute('CREATE TABLE t(a)')\ndb.execute('INSERT INTO t VALUES (7)')\ndb.commit()\nimport sys\nsys.exit(0)"));
    let text =
        stdout(&place.python("print(sqlite3.connect(URI, uri=True).execute('SELECT sum(a) FROM t').fetchone()[0])"));
    assert_eq!(text, "7\n");
}

#[test]
fn a_forked_child_opens_the_database_anew() {
    let place = Place::new();
    let script = "
import os
db = sqlite3.connect(URI, uri=True)
db.execute('CREATE TABLE t(a)')
db.close()
children = []
for i in range(3):
    pid = os.fork()
    if pid == 0:
        c = sqlite3.connect(URI, uri=True, timeout=30)
        for _ in range(20):
            with c:
                c.execute('INSERT INTO t VALUES (1)')
        c.close()
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
print(sqlite3.connect(URI, uri=True).execute('SELECT count(*) FROM t').fetchone()[0])
";
    assert_eq!(stdout(&place.python(script)), "60\n");
}
