//! The databases that this process has open, by canonical path.
//!
//! Owns when a database begins and ends: [`Database::open`] before the first base xOpen of its main file,
//! [`Database::close`] after the last base xClose. Both may wait for the network, so each path has a gate of its own and
//! the map is locked only for look-ups: opening another database never waits.
//!
//! A forked child starts with an empty registry. The parent's entries stay with the connections that the child inherited
//! and must not use; closing one there does nothing to the parent's database.

use std::collections::HashMap;
use std::ffi::{OsStr, c_char};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::connection::Connection;
use super::own_handle::OwnHandle;
use super::sigterm;
use super::write_queue::WriteQueue;
use crate::database::{Database, OpenRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Mutex, MutexGuard};

struct Map {
    entries: Mutex<HashMap<PathBuf, Arc<Entry>>>,
    /// The map of the process that this one was forked from.
    inherited: *const Map,
}

/// The map of this process. Replaced as a whole in a forked child, where the old one's lock may be held for ever.
static MAP: AtomicPtr<Map> = AtomicPtr::new(ptr::null_mut());
/// The map that the next process after a fork inherits.
static INHERITED: AtomicPtr<Map> = AtomicPtr::new(ptr::null_mut());

fn map() -> &'static Map {
    let mut current = MAP.load(Ordering::Acquire);
    if current.is_null() {
        let fresh =
            Box::into_raw(Box::new(Map { entries: Mutex::default(), inherited: INHERITED.load(Ordering::Acquire) }));
        match MAP.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => current = fresh,
            Err(theirs) => {
                // SAFETY: made above and never published.
                drop(unsafe { Box::from_raw(fresh) });
                current = theirs;
            }
        }
    }
    // SAFETY: a published map is never freed.
    unsafe { &*current }
}

impl Map {
    /// Before a forked child opens a database of its parent's: see `Connection::let_go_in_child`. What another thread of the
    /// parent had locked when it forked is left as it is.
    fn let_go_of_inherited(&self, path: &Path) {
        let mut next = self.inherited;
        // SAFETY: a map that was published once is never freed.
        while let Some(map) = unsafe { next.as_ref() } {
            next = map.inherited;
            let Some(entry) = map.entries.try_lock().and_then(|mut entries| entries.remove(path)) else { continue };
            let Some(members) = entry.members.try_lock() else { continue };
            for connection in &members.connections {
                connection.let_go_in_child();
            }
        }
    }
}

/// In a forked child: begins with an empty registry. Takes no lock.
pub(super) fn forget_in_child() {
    let parents = MAP.swap(ptr::null_mut(), Ordering::AcqRel);
    if !parents.is_null() {
        INHERITED.store(parents, Ordering::Release);
    }
}

/// One path and what is open under it.
pub(super) struct Entry {
    path: PathBuf,
    /// Who made it; see the module's header on fork.
    pid: u32,
    /// Held while the database is opened or closed.
    gate: Mutex<()>,
    pub(super) writers: Arc<WriteQueue>,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    open: Option<Open>,
    connections: Vec<Arc<Connection>>,
}

/// What the connections to one database share.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) database: Arc<Database>,
    pub(super) own: Arc<OwnHandle>,
}

/// The right to open or close under one path.
pub(super) struct Gate<'a> {
    entry: &'a Arc<Entry>,
    _held: MutexGuard<'a, ()>,
}

impl Entry {
    /// The entry of a path, made if there is none.
    pub(super) fn of(path: &Path) -> Arc<Entry> {
        let map = map();
        let mut entries = map.entries.lock();
        if !entries.contains_key(path) {
            map.let_go_of_inherited(path);
        }
        let entry = entries.entry(path.to_owned()).or_insert_with(|| {
            Arc::new(Entry {
                path: path.to_owned(),
                pid: std::process::id(),
                gate: Mutex::new(()),
                writers: Arc::default(),
                members: Mutex::default(),
            })
        });
        Arc::clone(entry)
    }

    /// Waits until nobody else opens or closes this path.
    pub(super) fn gate(self: &Arc<Entry>) -> Gate<'_> {
        Gate { entry: self, _held: self.gate.lock() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn connection(&self, name: *const c_char) -> Option<Arc<Connection>> {
        self.members.lock().connections.iter().find(|c| c.is_named(name)).cloned()
    }
}

impl Gate<'_> {
    /// The open database for one more connection: opened if this is the first, else told of it. `own` makes the handle.
    pub(super) fn open(&self, request: OpenRequest, own: impl FnOnce() -> OwnHandle) -> Result<Open> {
        refuse_hard_links(&request.path)?;
        let already = self.entry.members.lock().open.clone();
        if let Some(open) = already {
            open.database.join(&request)?;
            return Ok(open);
        }
        // No lock but the gate is held here: this may wait for the bucket.
        let database = Database::open(request)?;
        if database.flushes_at_sigterm() {
            sigterm::install();
        }
        let own = Arc::new(own());
        database.attach_index(Some(own.clone()));
        let open = Open { database, own };
        self.entry.members.lock().open = Some(open.clone());
        Ok(open)
    }

    /// Counts a connection in, after the base VFS opened its file.
    pub(super) fn add(&self, connection: Arc<Connection>) {
        self.entry.members.lock().connections.push(connection);
    }

    /// Counts a connection out. `close_base` closes its file; it runs in any case, at the right moment.
    pub(super) fn remove<T>(&self, connection: &Arc<Connection>, close_base: impl FnOnce() -> T) -> T {
        if self.entry.pid != std::process::id() {
            return close_base();
        }
        self.entry.members.lock().connections.retain(|c| !Arc::ptr_eq(c, connection));
        self.end_if_unused(close_base)
    }

    /// Closes the database if no connection is left, around `close_base`.
    pub(super) fn end_if_unused<T>(&self, close_base: impl FnOnce() -> T) -> T {
        let last = {
            let mut members = self.entry.members.lock();
            if members.connections.is_empty() { members.open.take() } else { None }
        };
        let Some(Open { database, own }) = last else { return close_base() };
        database.attach_index(None);
        own.close();
        let result = close_base();
        database.close();
        let mut map = map().entries.lock();
        // Two: the map's own and the one behind this gate. More: somebody waits for this path.
        if Arc::strong_count(self.entry) == 2 && map.get(&self.entry.path).is_some_and(|e| Arc::ptr_eq(e, self.entry)) {
            map.remove(&self.entry.path);
        }
        result
    }
}

/// The canonical path of a database file: through symbolic links, whether or not the file exists yet.
pub(super) fn canonical(name: &[u8]) -> Result<PathBuf> {
    let path = Path::new(OsStr::from_bytes(name));
    let wrong = |e: &std::io::Error| {
        Error::new(ErrorKind::Configuration, format!("finding the folder of {}: {e}", path.display()))
    };
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let folder = match path.parent() {
                Some(folder) if folder != Path::new("") => folder,
                _ => Path::new("."),
            };
            let file = path.file_name().ok_or_else(|| wrong(&e))?;
            Ok(folder.canonicalize().map_err(|e| wrong(&e))?.join(file))
        }
        Err(e) => Err(wrong(&e)),
    }
}

/// The open database under a name, if this process has it open.
pub(super) fn find(name: &[u8]) -> Option<Arc<Database>> {
    // The default VFS is asked this about every file of the process, at each transaction of a plain database: resolving its links
    // would cost more than all else here.
    if map().entries.lock().is_empty() {
        return None;
    }
    let path = canonical(name).ok()?;
    let entry = map().entries.lock().get(&path).cloned()?;
    let members = entry.members.lock();
    members.open.as_ref().map(|open| open.database.clone())
}

/// The connection whose main file was opened with exactly this pointer as its name.
pub(super) fn find_connection(name: &[u8], pointer: *const c_char) -> Option<Arc<Connection>> {
    let path = canonical(name).ok()?;
    let entry = map().entries.lock().get(&path).cloned()?;
    entry.connection(pointer)
}

/// Two names of one file would be two databases with two WALs.
fn refuse_hard_links(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.nlink() > 1 => Err(Error::new(
            ErrorKind::Configuration,
            format!(
                "the file has {} hard links: SQLite would keep a separate WAL for each; remove all but one",
                meta.nlink()
            ),
        )),
        _ => Ok(()),
    }
}
