//! Hosts: a directory each, and an application that runs there as a process of its own.
//!
//! The application is Debian's Python with the loadable extension, told what to do line by line (`machine.py`), so that a
//! test can stop it, freeze it and kill it at any moment. [`Judge`](crate::judge::Judge) then says what the bucket holds.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::shell::{PYTHON, Program};

/// How long an answer is waited for unless told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// SQLITE_BUSY.
pub const BUSY: i64 = 5;
/// SQLITE_READONLY with the extension's code for a writer that lost the log.
pub const FENCED: i64 = 8 | (104 << 8);
/// SQLITE_IOERR with the extension's code for a bucket that does not answer.
pub const UNAVAILABLE: i64 = 10 | (103 << 8);

/// A machine with a disk: a directory, and how its application reaches the bucket.
#[derive(Clone, Debug)]
pub struct Host {
    folder: PathBuf,
    uri: String,
    endpoint: Option<String>,
}

impl Host {
    /// Makes one in `folder`. `settings` go into the URI, as `durability=commit&lease_ttl=5s`. `endpoint` is host and port
    /// of a stand-in for Cloud Storage.
    pub fn new(folder: PathBuf, bucket: &str, endpoint: Option<String>, settings: &str) -> Host {
        std::fs::create_dir_all(&folder).expect("a host's directory");
        let file = folder.join("app.db");
        let uri = format!("file:{}?vfs=gcs&bucket={bucket}&{settings}", file.display());
        Host { folder, uri: uri.trim_end_matches('&').to_owned(), endpoint }
    }

    /// The URI of its database.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The path of its database.
    pub fn file(&self) -> PathBuf {
        self.folder.join("app.db")
    }

    /// Starts its application, with no database open.
    pub fn boot(&self) -> Session {
        self.boot_with(&[])
    }

    /// The same with variables of the environment.
    pub fn boot_with(&self, environment: &[(&str, &str)]) -> Session {
        let mut command = Program::python(include_str!("machine.py")).into_command();
        if let Some(endpoint) = &self.endpoint {
            command.env("STORAGE_EMULATOR_HOST", endpoint);
        }
        command.envs(environment.iter().copied());
        Session::start(command, self.uri.clone(), self.folder.join("log"))
    }

    /// Starts its application and opens the database as `db`.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn open(&self) -> Session {
        let mut session = self.boot();
        session.connect("db", Duration::from_secs(20)).expect("the database opens");
        session
    }

    /// Its disk is lost: nothing is left but what the bucket has. No process of it may run.
    pub fn lose_disk(&self) {
        std::fs::remove_dir_all(&self.folder).expect("the host's directory");
        std::fs::create_dir_all(&self.folder).expect("the host's directory");
    }

    /// The folders in which it kept commits that lost the log, oldest first.
    pub fn conflicts(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).expect("the host's directory").flatten();
        let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_conflict(path)).collect();
        found.sort();
        found
    }

    /// What its applications wrote to their standard errors so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

fn is_conflict(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("conflict-"))
}

/// An error as the application sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SqlError {
    /// SQLite's extended result code; -1 where it is another exception.
    pub code: i64,
    /// Its text.
    pub text: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.text, self.code & 0xff, self.code >> 8)
    }
}

/// A host's running application. Killed when dropped.
#[derive(Debug)]
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    uri: String,
    /// Answers of `later` that came while something else was waited for.
    finished: BTreeMap<String, Value>,
}

impl Session {
    fn start(mut command: Command, uri: String, log: PathBuf) -> Session {
        let log = std::fs::File::options().create(true).append(true).open(log).expect("the host's log");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {PYTHON}: {error}"));
        let (send, lines) = mpsc::channel();
        let stdout = child.stdout.take().expect("a pipe");
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "text": line }));
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        Session { stdin: child.stdin.take(), child, lines, uri, finished: BTreeMap::new() }
    }

    /// Sends a command without waiting for its answer; a dead application does not mind.
    pub fn send(&mut self, command: &Value) {
        if let Some(stdin) = &mut self.stdin {
            // A killed application reads nothing; whoever waits for its answer learns that.
            let _ = writeln!(stdin, "{command}");
        }
    }

    /// The next line that it says; `None` when it ended, or at the limit.
    pub fn next(&mut self, limit: Duration) -> Option<Value> {
        let line = self.lines.recv_timeout(limit).ok()?;
        if let Some(tag) = line["tag"].as_str().map(str::to_owned) {
            self.finished.insert(tag, line.clone());
        }
        Some(line)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn ask(&mut self, command: &Value) -> Result<Value, SqlError> {
        self.send(command);
        let begun = Instant::now();
        while let Some(answer) = self.next(PATIENCE.saturating_sub(begun.elapsed())) {
            if answer.get("tag").is_none() {
                return judge(answer);
            }
        }
        panic!("no answer to {command} within {PATIENCE:?}");
    }

    /// Opens the host's database under a name of this process's.
    #[track_caller]
    pub fn connect(&mut self, name: &str, busy_timeout: Duration) -> Result<(), SqlError> {
        let uri = self.uri.clone();
        self.connect_to(name, &uri, busy_timeout)
    }

    /// Opens another database.
    #[track_caller]
    pub fn connect_to(&mut self, name: &str, uri: &str, busy_timeout: Duration) -> Result<(), SqlError> {
        self.ask(&json!({ "do": "open", "db": name, "uri": uri, "timeout": busy_timeout.as_secs_f64() })).map(drop)
    }

    /// Runs one statement on the connection `db` and returns its rows.
    #[track_caller]
    pub fn sql(&mut self, sql: &str) -> Result<Vec<Vec<Value>>, SqlError> {
        self.sql_on("db", sql)
    }

    /// Runs one statement on a connection and returns its rows.
    #[track_caller]
    pub fn sql_on(&mut self, name: &str, sql: &str) -> Result<Vec<Vec<Value>>, SqlError> {
        let answer = self.ask(&json!({ "do": "sql", "db": name, "sql": sql, "args": [] }))?;
        Ok(serde_json::from_value(answer["rows"].clone()).expect("rows"))
    }

    /// One statement's one value, as a number.
    #[track_caller]
    pub fn number(&mut self, sql: &str) -> i64 {
        let rows = self.sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows[0][0].as_i64().unwrap_or_else(|| panic!("{sql}: {rows:?}"))
    }

    /// Begins a statement in a thread of the application's own.
    pub fn later(&mut self, tag: &str, name: &str, sql: &str) {
        let begun = self.ask(&json!({ "do": "later", "tag": tag, "db": name, "sql": sql, "args": [] }));
        begun.expect("a thread");
    }

    /// Waits for the end of such a statement: milliseconds that it took, and how it ended.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn finished(&mut self, tag: &str) -> (f64, Result<Value, SqlError>) {
        let begun = Instant::now();
        loop {
            if let Some(answer) = self.finished.remove(tag) {
                return (answer["ms"].as_f64().expect("milliseconds"), judge(answer));
            }
            assert!(self.next(PATIENCE.saturating_sub(begun.elapsed())).is_some(), "{tag} does not end");
        }
    }

    /// Whether such a statement has ended.
    pub fn has_finished(&mut self, tag: &str) -> bool {
        while self.next(Duration::ZERO).is_some() {}
        self.finished.contains_key(tag)
    }

    /// `PRAGMA gcs_status`.
    #[track_caller]
    pub fn status(&mut self) -> Value {
        let rows = self.sql("SELECT gcs_status()").expect("a status");
        serde_json::from_str(rows[0][0].as_str().expect("text")).expect("JSON")
    }

    /// Waits until the status shows something, `limit` at most; whether it came true.
    #[track_caller]
    pub fn wait_for_status(&mut self, limit: Duration, what: impl Fn(&Value) -> bool) -> bool {
        crate::poll(limit, || what(&self.status()))
    }

    /// Inserts rows into `t` from `threads` connections and returns what was acknowledged and what failed.
    #[track_caller]
    pub fn write(&mut self, load: &Load) -> Written {
        self.begin_write(load);
        self.end_write(load)
    }

    /// Begins to insert.
    pub fn begin_write(&mut self, load: &Load) {
        let Load { threads, first, seconds, most, timeout, pause, bytes } = *load;
        let command = json!({
            "do": "write", "uri": self.uri, "threads": threads, "first": first, "seconds": seconds, "most": most,
            "timeout": timeout, "pause": pause, "bytes": bytes,
        });
        self.send(&command);
    }

    /// Waits until so many rows of what [`Session::begin_write`] began are acknowledged, `limit` at most.
    pub fn follow_write(&mut self, rows: usize, limit: Duration) -> Written {
        let begun = Instant::now();
        let mut written = Written::default();
        while written.acknowledged.len() < rows
            && !written.done
            && let Some(line) = self.next(limit.saturating_sub(begun.elapsed()))
        {
            written.note(line);
        }
        written
    }

    /// Waits for the end of what [`Session::begin_write`] began, or of the process.
    pub fn end_write(&mut self, load: &Load) -> Written {
        let mut written = Written::default();
        self.end_write_after(&mut written, load);
        written
    }

    /// The same after [`Session::follow_write`], whose answer it adds to.
    pub fn end_write_after(&mut self, written: &mut Written, load: &Load) {
        let limit = PATIENCE + Duration::from_secs_f64(load.seconds + load.timeout);
        let begun = Instant::now();
        while !written.done
            && let Some(line) = self.next(limit.saturating_sub(begun.elapsed()))
        {
            written.note(line);
        }
    }

    /// Sends a signal to the application.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Lets it close its databases and end, and returns its exit code (`None`: ended by a signal, or not in time).
    pub fn quit(mut self) -> Option<i32> {
        drop(self.stdin.take());
        self.wait(PATIENCE)
    }

    /// Waits for its end; its exit code, `None` when it was ended by a signal or did not end in time.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code();
            }
            if begun.elapsed() > limit {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

fn judge(answer: Value) -> Result<Value, SqlError> {
    match answer["error"].as_str() {
        Some(text) => Err(SqlError { code: answer["code"].as_i64().unwrap_or(-1), text: text.to_owned() }),
        None => Ok(answer),
    }
}

/// Rows to insert.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Connections, each in a thread.
    pub threads: u32,
    /// The first id.
    pub first: i64,
    /// When to stop.
    pub seconds: f64,
    /// Rows per thread at the most.
    pub most: u32,
    /// The busy timeout, in seconds.
    pub timeout: f64,
    /// Seconds between the rows of a thread.
    pub pause: f64,
    /// Bytes of text in each row.
    pub bytes: u32,
}

impl Default for Load {
    fn default() -> Load {
        Load { threads: 1, first: 0, seconds: 30.0, most: u32::MAX, timeout: 20.0, pause: 0.0, bytes: 100 }
    }
}

/// What came of a [`Load`].
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Ids whose COMMIT returned success, in the order of the acknowledgements.
    pub acknowledged: Vec<i64>,
    /// The others that were tried.
    pub failed: Vec<(i64, SqlError)>,
    /// How long it took.
    pub seconds: f64,
    /// It came to its end (and was not killed).
    pub done: bool,
}

impl Written {
    fn note(&mut self, line: Value) {
        if let Some(id) = line["ack"].as_i64() {
            self.acknowledged.push(id);
        } else if let Some(id) = line["failed"].as_i64() {
            self.failed.push((id, judge(line).expect_err("an error")));
        } else if line["done"] == true {
            self.seconds = line["seconds"].as_f64().unwrap_or_default();
            self.done = true;
        }
    }
}
