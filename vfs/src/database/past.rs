//! `at=`: a state of the past, read-only, beside the live database or without it.
//!
//! It is a cache file like the live one, as of one transaction, in files that have no names: they are made in a folder beside the
//! database, and the folder is gone before the open returns. So whatever ends the process leaves nothing, and the live
//! database, its locks and its cache have no part in it. SQLite is told that the file is immutable: it takes no
//! locks on it, looks for no WAL, and does not write. The state is one of the bucket: what is not uploaded is not in it.
//!
//! Connections of a process that open the same state share the cache.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use serde_json::json;

use super::open::{OPEN_WAIT, READ_WAIT, replica_of};
use super::{OpenRequest, history};
use crate::cache::default_size::default_size;
use crate::cache::file::CacheFile;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::history::listing::{self, Row, format_time};
use crate::history::points::{At, Point, points};
use crate::local::suffixed;
use crate::log;
use crate::page::{PageCount, Pgno, TxId};
use crate::per_process::{self, PerProcess};
use crate::replica::chain::Chain;
use crate::replica::fetch::{NoLocalObjects, PageSource};
use crate::replica::index_fetch::ObjectIndex;
use crate::replica::names::Replica;
use crate::replica::page_map::PageMap;
use crate::runtime;
use crate::sync::Mutex;
use crate::upload::now_ms;

/// Path, replica and transaction.
type Key = (PathBuf, String, TxId);

/// The states that are open.
static OPEN: PerProcess<Mutex<HashMap<Key, Weak<Past>>>> = PerProcess::new();

/// A state of the past, open for reading.
pub(crate) struct Past {
    path: PathBuf,
    replica: Replica,
    point: Point,
    cache: Arc<CacheFile>,
    file: File,
    generation: u32,
}

impl Past {
    /// Opens the state that `at=` means.
    ///
    /// # Errors
    /// Configuration: a bad value, or a state that is not kept, with those that are. The bucket's and the disk's.
    pub(crate) fn open(request: &OpenRequest) -> Result<Arc<Past>> {
        let config = Config::parse(&request.parameters, |name| std::env::var(name).ok())?;
        let at = At::parse(config.at.as_deref().unwrap_or_default())?;
        let replica = replica_of(&config, &request.path)?;
        let rows = listing::list(&replica)?;
        let there = points(&rows);
        let txid = at.resolve(&there, now_ms()).map_err(|e| e.context(replica.place()))?;
        let key = (request.path.clone(), replica.place(), txid);
        let mut open = OPEN.here().lock();
        open.retain(|_, past| past.strong_count() > 0);
        if let Some(past) = open.get(&key).and_then(Weak::upgrade) {
            return Ok(past);
        }
        drop(open);
        let past = Arc::new(Past::of_point(&request.path, &replica, &rows, txid, &config)?);
        OPEN.here().lock().insert(key, Arc::downgrade(&past));
        Ok(past)
    }

    /// A state of a replica that is known to have it, for somebody who has listed it.
    ///
    /// # Errors
    /// The bucket's and the disk's.
    pub(super) fn of_point(path: &Path, replica: &Replica, rows: &[Row], txid: TxId, config: &Config) -> Result<Past> {
        let there = points(rows);
        let point = there.iter().find(|point| point.txid == txid).copied();
        let point = point.ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{txid} is no point")))?;
        Past::build(path.to_owned(), replica.clone(), point, rows, config)
    }

    fn build(path: PathBuf, replica: Replica, point: Point, rows: &[Row], config: &Config) -> Result<Past> {
        let indexes = indexes(&replica, rows, point.txid)?;
        let last = indexes.last().ok_or_else(|| Error::new(ErrorKind::Corrupt, "an empty chain".to_owned()))?;
        let folder = suffixed(&path, &format!("-at-{}-{:016x}", std::process::id(), fastrand::u64(..)));
        let failed = |what: &str, e: &std::io::Error| Error::local(format!("{what} {}", folder.display()), e);
        std::fs::create_dir(&folder).map_err(|e| failed("making", &e))?;
        let page_size = last.page_size;
        let made = || -> Result<(CacheFile, File)> {
            let map = PageMap::create(&folder, page_size)?;
            map.rebuild(&indexes)?;
            let source = PageSource::new(replica.clone(), Arc::new(NoLocalObjects), READ_WAIT);
            let main = folder.join("db");
            let cache = CacheFile::create(&folder, &main, map, source)?;
            Ok((cache, File::open(&main).map_err(|e| failed("opening a file in", &e))?))
        }();
        let removed = std::fs::remove_dir_all(&folder);
        let (cache, file) = made?;
        removed.map_err(|e| failed("removing", &e))?;
        let cache = Arc::new(cache);
        let beside = path.parent().unwrap_or(Path::new("/"));
        if let Some(limit) = config.cache_size.or_else(|| default_size(beside, 0)).filter(|&limit| limit > 0) {
            cache.bound(limit, Box::new(|| 0));
        }
        let (me, again) = (Arc::downgrade(&cache), replica.clone());
        cache.on_moved(move |why| {
            let Some(cache) = me.upgrade() else { return Ok(()) };
            log::info!("{}: planning anew to {}: {why}", again.place(), point.txid);
            let gone = |e: Error| e.context(format!("the state as of {} is not kept any more", point.txid));
            let rows = listing::list(&again)?;
            cache.map().rebuild(&indexes_of(&again, &rows, point.txid).map_err(gone)?)
        });
        cache.prefetch(Pgno::ONE)?;
        log::info!("{}: open as of {} of {}", path.display(), point.txid, replica.place());
        Ok(Past { path, replica, point, cache, file, generation: per_process::generation() })
    }

    /// The path that the live database has or would have.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the database, in pages.
    pub(super) fn pages(&self) -> PageCount {
        self.cache.total()
    }

    /// The size of the database, in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.cache.total().bytes(self.cache.page_size())
    }

    /// Reads from an offset; returns how many bytes there were.
    ///
    /// # Errors
    /// The bucket's and the disk's; Configuration in a forked child.
    pub(crate) fn read(&self, into: &mut [u8], offset: u64) -> Result<usize> {
        if self.generation != per_process::generation() {
            let message =
                format!("{}: this connection was opened before fork; open one in this process", self.path.display());
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        let range = offset..(offset + into.len() as u64).min(self.size_bytes());
        if range.is_empty() {
            return Ok(0);
        }
        let mut read = Ok(());
        let bytes = (range.end - range.start) as usize;
        self.cache.read(range, &mut || {
            read = self.file.read_exact_at(&mut into[..bytes], offset);
            0
        })?;
        read.map_err(|e| Error::local(format!("reading the cache of {}", self.path.display()), &e))?;
        Ok(bytes)
    }

    /// FCNTL_PRAGMA and the SQL functions.
    pub(crate) fn pragma(&self, name: &str, argument: Option<&str>) -> Option<Result<String>> {
        let name = name.to_ascii_lowercase();
        if !name.starts_with("gcs_") {
            return None;
        }
        let refuse = |why: String| Some(Err(Error::new(ErrorKind::Configuration, why)));
        match (name.as_str(), argument) {
            ("gcs_status", None) => Some(Ok(json!({
                "replica": self.replica.place(),
                "role": "past",
                "txid": self.point.txid.to_string(),
                "time": format_time(self.point.timestamp_ms),
                "page_size": self.cache.page_size().bytes(),
                "pages_present": self.cache.present(),
                "pages_total": self.cache.total().0,
            })
            .to_string())),
            ("gcs_history", None) => Some(history::points_as_json(&self.replica)),
            _ => refuse(format!("{name}: a state of the past is read-only; it has gcs_status and gcs_history")),
        }
    }
}

fn indexes(replica: &Replica, rows: &[Row], txid: TxId) -> Result<Vec<ObjectIndex>> {
    // What was listed a moment ago may be replaced by now, and then is there under another name.
    indexes_of(replica, rows, txid).or_else(|_| indexes_of(replica, &listing::list(replica)?, txid))
}

fn indexes_of(replica: &Replica, rows: &[Row], txid: TxId) -> Result<Vec<ObjectIndex>> {
    let chain = listing::chain(rows, Some(txid))?;
    let chain = Chain { objects: chain.iter().map(Row::listed).collect() };
    let (replica, what) = (replica.clone(), format!("reading page indexes of {}", replica.place()));
    runtime::wait(&what, OPEN_WAIT, async move { replica.indexes(&chain).await })?
}
