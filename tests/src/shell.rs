//! Other programs that open the database: the sqlite3 shell and Debian's Python, and where they work.
//!
//! A [`Program`] gets a script, ends within its limit or is killed with everything it started, and hands back what
//! it printed. It inherits no setting of this project's and cannot look up credentials outside the machine.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Debian's sqlite3 shell, whose SQLite is the oldest that is supported.
pub const SQLITE3: &str = "/usr/bin/sqlite3";
/// Debian's Python: others (pyenv's) cannot load extensions.
pub const PYTHON: &str = "/usr/bin/python3";

/// A directory of the test's own, removed at the end unless `SQLITE_GCS_TEST_KEEP` is set.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// Makes an empty one below the system's directory for temporary files.
    pub fn new() -> Scratch {
        let mut folder = tempfile::Builder::new().prefix("sqlite-gcs-").tempdir().expect("a scratch directory");
        folder.disable_cleanup(std::env::var_os("SQLITE_GCS_TEST_KEEP").is_some());
        Scratch(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of something in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// The URL of a bucket in it, as `SQLITE_GCS_BUCKET` takes it; its directory is made.
    pub fn bucket(&self) -> String {
        let folder = self.join("bucket");
        std::fs::create_dir_all(&folder).expect("a bucket directory");
        format!("file://{}", folder.display())
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

/// The root of the work tree.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests' folder lies in the work tree")
}

/// Where cargo put this program, and so the others too: the target directory of the running test.
pub fn target_directory() -> PathBuf {
    let program = std::env::current_exe().expect("the path of the running program");
    let tagged = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    tagged.expect("a program that cargo built lies in a target directory").to_owned()
}

/// The loadable extension: the file that `SQLITE_GCS_TEST_EXTENSION` names, else built now (once per process).
///
/// # Panics
/// If there is no such file, or it does not build.
pub fn extension() -> PathBuf {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| match std::env::var_os("SQLITE_GCS_TEST_EXTENSION").map(PathBuf::from) {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(format!("SQLITE_GCS_TEST_EXTENSION: there is no {}", path.display())),
        None => build_extension(),
    });
    found.clone().unwrap_or_else(|why| panic!("the loadable extension: {why}"))
}

fn build_extension() -> Result<PathBuf, String> {
    let target = target_directory();
    // On its own: together with packages that use its `static` feature it would get their SQLite.
    let built = Program::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--package", "sqlite-gcs-loadable", "--target-dir"])
        .args([&target])
        .directory(workspace())
        .limit(Duration::from_secs(900))
        .run();
    if built.succeeded() { Ok(target.join("debug/libsqlite_gcs.so")) } else { Err(built.to_string()) }
}

/// The folder with what is handed out (see `packages/build`): the one that `SQLITE_GCS_TEST_PACKAGES` names, else made now.
///
/// # Panics
/// If there is no such folder, or it cannot be made.
pub fn packages() -> PathBuf {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| match std::env::var_os("SQLITE_GCS_TEST_PACKAGES").map(PathBuf::from) {
        Some(path) if path.is_dir() => Ok(path),
        Some(path) => Err(format!("SQLITE_GCS_TEST_PACKAGES: there is no {}", path.display())),
        None => {
            let target = target_directory();
            let built = Program::new(workspace().join("packages/build"))
                .args(["dev"])
                .env("CARGO_TARGET_DIR", &target)
                .limit(Duration::from_secs(900))
                .run();
            if built.succeeded() { Ok(target.join("debug/packages")) } else { Err(built.to_string()) }
        }
    });
    found.clone().unwrap_or_else(|why| panic!("the packages: {why}"))
}

/// A program to run, with its script and settings.
#[derive(Debug)]
pub struct Program {
    command: Command,
    input: String,
    limit: Duration,
}

impl Program {
    /// Any program by its path or name; it ends within 60 s unless told otherwise.
    pub fn new(program: impl AsRef<OsStr>) -> Program {
        let mut command = Command::new(&program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SQLITE_GCS_") {
                command.env_remove(name);
            }
        }
        command.env_remove("STORAGE_EMULATOR_HOST").env_remove("GOOGLE_APPLICATION_CREDENTIALS");
        // A port that nobody listens on, so that a look-up of credentials fails at once and on this machine.
        for name in ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"] {
            command.env(name, "127.0.0.1:1");
        }
        // Many tests count requests: nothing is fetched unasked, unless a test says so.
        command.env("SQLITE_GCS_HYDRATE", "off");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        Program { command, input: String::new(), limit: Duration::from_secs(60) }
    }

    /// The sqlite3 shell with a script of SQL and dot commands; it stops at the first error.
    pub fn sqlite3(script: &str) -> Program {
        require(SQLITE3);
        Program::new(SQLITE3).args(["-batch", "-bail", ":memory:"]).input(script)
    }

    /// The same with the extension loaded and `database` (a path or a URI) open when the script begins.
    pub fn sqlite3_on(database: &str, script: &str) -> Program {
        let extension = extension();
        Program::sqlite3(&format!(".load {}\n.open {database}\n{script}", extension.display()))
    }

    /// Debian's Python with a script. In it, `connect(uri)` opens a connection after the extension was loaded.
    pub fn python(script: &str) -> Program {
        require(PYTHON);
        let extension = extension();
        let preamble = format!(
            "import sqlite3, sys\n\
             _first = sqlite3.connect(':memory:')\n\
             _first.enable_load_extension(True)\n\
             _first.load_extension({:?})\n\
             def connect(uri, **settings):\n    return sqlite3.connect(uri, uri=True, **settings)\n",
            extension.display().to_string()
        );
        Program::new(PYTHON).args(["-c", &format!("{preamble}{script}")])
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Program {
        self.command.env(name, value);
        self
    }

    /// Sets its working directory.
    pub fn directory(mut self, folder: &Path) -> Program {
        self.command.current_dir(folder);
        self
    }

    /// What it reads from its standard input.
    pub fn input(mut self, text: &str) -> Program {
        self.input = text.to_owned();
        self
    }

    /// How long it may take before it is killed.
    pub fn limit(mut self, limit: Duration) -> Program {
        self.limit = limit;
        self
    }

    /// The command with its settings, for whoever talks to the program while it runs.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end.
    pub fn run(self) -> Finished {
        self.start().finish()
    }

    /// Starts it; what is returned kills it when dropped.
    pub fn start(mut self) -> Running {
        let name = self.command.get_program().to_string_lossy().into_owned();
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("starting {name}: {error}"));
        let group = Pid::from_raw(child.id() as i32);
        let stdin = child.stdin.take();
        let input = self.input;
        // A thread each, so that a program that reads nothing or prints much cannot stop the test.
        thread::spawn(move || {
            if let Some(mut stdin) = stdin {
                // A program that ended before it read everything is judged by its exit code.
                let _ = stdin.write_all(input.as_bytes());
            }
        });
        let (ended, end) = mpsc::channel();
        thread::spawn(move || {
            let _ = ended.send(wait(child));
        });
        Running { name, group, end: Mutex::new(Some(end)), limit: self.limit }
    }
}

fn wait(child: Child) -> Output {
    child.wait_with_output().expect("the output of a child process")
}

fn require(path: &str) {
    assert!(Path::new(path).is_file(), "there is no {path}: run `make setup`");
}

/// A program that was started.
#[derive(Debug)]
pub struct Running {
    name: String,
    group: Pid,
    end: Mutex<Option<Receiver<Output>>>,
    limit: Duration,
}

impl Running {
    /// Its process id (and that of its process group).
    pub fn pid(&self) -> Pid {
        self.group
    }

    /// Sends a signal to it and to what it started.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself just now; `finish` tells how.
        let _ = killpg(self.group, signal);
    }

    /// Waits for its end, kills it at its limit, and returns what it printed.
    pub fn finish(self) -> Finished {
        let end = self.end.lock().ok().and_then(|mut end| end.take()).expect("a program is waited for once");
        let (output, in_time) = match end.recv_timeout(self.limit) {
            Ok(output) => (output, true),
            Err(_) => {
                self.signal(Signal::SIGKILL);
                (end.recv().expect("a killed program ends"), false)
            }
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished {
            name: self.name.clone(),
            status: output.status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            in_time,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let waiting = self.end.lock().ok().and_then(|mut end| end.take());
        if let Some(end) = waiting {
            self.signal(Signal::SIGKILL);
            let _ = end.recv();
        }
    }
}

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// The program, as it was started.
    pub name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
    /// Whether it ended by itself within its limit.
    pub in_time: bool,
}

impl Finished {
    /// Whether it ended by itself with code 0.
    pub fn succeeded(&self) -> bool {
        self.in_time && self.status.success()
    }

    /// Its standard output without the last line end.
    ///
    /// # Panics
    /// Unless it ended by itself with code 0.
    #[track_caller]
    pub fn expect_success(&self) -> &str {
        assert!(self.succeeded(), "{self}");
        self.stdout.trim_end()
    }

    /// Its standard error.
    ///
    /// # Panics
    /// If it ended with code 0, or had to be killed.
    #[track_caller]
    pub fn expect_failure(&self) -> &str {
        assert!(self.in_time && !self.status.success(), "{self}");
        self.stderr.trim_end()
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late = if self.in_time { "" } else { ", killed at its time limit" };
        write!(f, "{}: {}{late}\nstdout: {}\nstderr: {}", self.name, self.status, self.stdout, self.stderr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let scratch = Scratch::new();
        let done = Program::new("/bin/sh")
            .args(["-c", "sleep 600 & echo $! > child; wait"])
            .directory(scratch.path())
            .limit(Duration::from_millis(300))
            .run();
        assert!(!done.in_time && !done.succeeded(), "{done}");
        let child = std::fs::read_to_string(scratch.join("child")).expect("the child's id");
        let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        // Gone, or dead and not yet collected by its new parent.
        assert!(state.is_err() || state.is_ok_and(|text| text.contains(") Z ")), "the child lives on");
    }

    #[test]
    fn a_program_inherits_no_setting_of_ours_and_pins_the_metadata_server() {
        let done = Program::new("/usr/bin/env").run();
        assert!(done.expect_success().contains("GCE_METADATA_HOST=127.0.0.1:1"));
        let settings: Vec<&str> = done.stdout.lines().filter(|line| line.starts_with("SQLITE_GCS_")).collect();
        assert_eq!(settings, ["SQLITE_GCS_HYDRATE=off"]);
    }

    #[test]
    fn the_shell_runs_a_script_and_stops_at_an_error() {
        assert_eq!(Program::sqlite3("SELECT 40 + 2;\n").run().expect_success(), "42");
        let failed = Program::sqlite3("SELECT missing;\nSELECT 1;\n").run();
        assert!(failed.expect_failure().contains("no such column"), "{failed}");
        assert!(failed.stdout.is_empty(), "{failed}");
    }
}
