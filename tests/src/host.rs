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
    endpoint: Option<String>,
}

impl Host {
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

    /// The newest file of a database's lease in the bucket, which is a directory.
    #[track_caller]
    pub fn lease(&self, name: &str) -> PathBuf {
        let files = std::fs::read_dir(self.objects(name).join("gcs")).expect("the folder").flatten();
        let leases = files.map(|entry| entry.path()).filter(|path| path.display().to_string().contains("/lease@"));
        leases.max().expect("a lease")
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

/// All pages of the database as SQLite reads them, one after the other. A page that cannot be read is all zeros.
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
}
