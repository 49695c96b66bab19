<<<<<<< HEAD
//! One machine with one bucket: databases opened in this process, and what is left of them when the machine is lost.
//!
//! A [`Host`] owns its local files and its bucket, a directory. The bucket's state is judged by `litestream restore`
//! and by looking at the objects' names, never by this project's own reader.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::litestream;
use crate::shell::Scratch;

/// How long anything that ends by itself may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A machine and its bucket; both go when it is dropped.
#[derive(Debug)]
pub struct Host {
    scratch: Scratch,
    bucket: String,
=======
//! Hosts: a directory each, and an application that runs there as a process of its own.
//!
//! The application is Debian's Python with the loadable extension, told what to do line by line (`host.py`), so that a
//! test can stop it, freeze it and kill it at any moment. [`Judge`] then says what the bucket holds.

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
>>>>>>> tests3
    endpoint: Option<String>,
}

impl Host {
<<<<<<< HEAD
    /// With a local directory as the bucket.
    pub fn new() -> Host {
        let scratch = Scratch::new();
        let bucket = scratch.bucket();
        Host::with(scratch, bucket, None)
    }

    /// With a bucket of the emulator that `STORAGE_EMULATOR_HOST` of this process names.
    ///
    /// # Panics
    /// If that is not set.
    pub fn on_emulator(bucket: &str) -> Host {
        let endpoint = std::env::var("STORAGE_EMULATOR_HOST").expect("STORAGE_EMULATOR_HOST");
        Host::with(Scratch::new(), bucket.to_owned(), Some(endpoint))
    }

    fn with(scratch: Scratch, bucket: String, endpoint: Option<String>) -> Host {
        sqlite_gcs::register().expect("the VFS");
        Host { scratch, bucket, endpoint }
    }

    /// The path of something on the machine.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.scratch.join(name)
    }

    /// The bucket's URL.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The URL of a database's replica, as `litestream` takes it.
    pub fn replica(&self, name: &str) -> String {
        format!("{}/{name}", self.bucket)
    }

    /// The URI of a database; `more` is `&name=value` for each further parameter.
    pub fn uri(&self, name: &str, more: &str) -> String {
        format!("file:{}?vfs=gcs&bucket={}{more}", self.path(name).display(), self.bucket)
    }

    /// Opens a database with further parameters.
    ///
    /// # Errors
    /// SQLite's.
    pub fn try_open(&self, name: &str, more: &str) -> rusqlite::Result<Connection> {
        let db = Connection::open_with_flags(self.uri(name, more), OpenFlags::default())?;
        db.busy_timeout(LIMIT)?;
        Ok(db)
    }

    /// Opens a database with further parameters.
    #[track_caller]
    pub fn open(&self, name: &str, more: &str) -> Connection {
        self.try_open(name, more).unwrap_or_else(|error| panic!("{}: {error}", self.uri(name, more)))
    }

    /// Removes all local files of a database, which nobody has open.
    pub fn lose(&self, name: &str) {
        for entry in std::fs::read_dir(self.scratch.path()).expect("the machine's folder").flatten() {
            if entry.file_name().to_string_lossy().starts_with(name) {
                let path = entry.path();
                if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
                    .expect("removed");
            }
        }
    }

    /// What `litestream restore` makes of the bucket.
    #[track_caller]
    pub fn restored(&self, name: &str) -> Vec<u8> {
        let endpoint = self.endpoint.as_deref();
        litestream::restore(&self.replica(name), endpoint).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The folder of a database in the bucket, which is a directory.
    pub fn objects(&self, name: &str) -> PathBuf {
        self.path("bucket").join(name)
    }

    /// The names of the deltas (level 0) that are in the bucket, in order.
    pub fn deltas(&self, name: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.objects(name).join("ltx/0")) else { return Vec::new() };
        let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.ends_with(".ltx"));
        names.sort();
        names
    }
}

impl Default for Host {
    fn default() -> Self {
        Host::new()
    }
}

/// One value of the first row.
#[track_caller]
pub fn one<T: rusqlite::types::FromSql>(db: &Connection, sql: &str) -> T {
    db.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The database's status.
#[track_caller]
pub fn status(db: &Connection) -> Value {
    serde_json::from_str(&one::<String>(db, "PRAGMA gcs_status")).expect("one JSON object")
}

/// The requests of all kinds since the open.
#[track_caller]
pub fn requests(db: &Connection) -> u64 {
    let status = status(db);
    ["get", "put", "list", "delete"].iter().map(|kind| status["requests"][kind].as_u64().expect("a number")).sum()
}

/// All pages of the database as SQLite reads them, one after the other.
#[track_caller]
pub fn pages(db: &mut Connection) -> Vec<u8> {
    db.serialize("main").expect("a database that can be read").to_vec()
}

/// Says where two databases differ, `None` if they are the same page for page.
pub fn difference(a: &[u8], b: &[u8]) -> Option<String> {
    if a.len() != b.len() {
        return Some(format!("{} bytes and {} bytes", a.len(), b.len()));
    }
    let page_size = match a.get(16..18)? {
        [0, 1] => 65536,
        size => usize::from(u16::from_be_bytes([size[0], size[1]])),
    };
    let at = a.iter().zip(b).position(|(a, b)| a != b)?;
    Some(format!("page {} differs first, at its byte {}", at / page_size.max(1) + 1, at % page_size.max(1)))
}

/// Waits until the condition holds.
///
/// # Panics
/// If it does not within half a minute.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "not within {} s: {what}", LIMIT.as_secs());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until everything that was committed before is in the bucket, without asking for it.
#[track_caller]
pub fn wait_until_durable(db: &Connection) {
    wait_until("everything committed is durable", || {
        let status = status(db);
        status["committed_txid"] == status["durable_txid"]
    });
=======
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
        let mut command = Program::python(include_str!("host.py")).into_command();
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
        let Load { threads, first, seconds, most, timeout, pause } = *load;
        let command = json!({
            "do": "write", "uri": self.uri, "threads": threads, "first": first, "seconds": seconds, "most": most,
            "timeout": timeout, "pause": pause,
        });
        self.send(&command);
    }

    /// Waits for the end of what [`Session::begin_write`] began, or of the process.
    pub fn end_write(&mut self, load: &Load) -> Written {
        let limit = PATIENCE + Duration::from_secs_f64(load.seconds + load.timeout);
        let begun = Instant::now();
        let mut written = Written::default();
        while let Some(line) = self.next(limit.saturating_sub(begun.elapsed())) {
            if let Some(id) = line["ack"].as_i64() {
                written.acknowledged.push(id);
            } else if let Some(id) = line["failed"].as_i64() {
                written.failed.push((id, judge(line).expect_err("an error")));
            } else if line["done"] == true {
                written.seconds = line["seconds"].as_f64().unwrap_or_default();
                written.done = true;
                break;
            }
        }
        written
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
}

impl Default for Load {
    fn default() -> Load {
        Load { threads: 1, first: 0, seconds: 30.0, most: u32::MAX, timeout: 20.0, pause: 0.0 }
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
>>>>>>> tests3
}
