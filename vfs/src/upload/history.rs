//! Keeping the history small while this host writes: merges, snapshots and deletes, off the commit path.
//!
//! - **Ordering.** After uploads, when enough of them came together ([`Historian::due`]). One step at a time per host (the
//!   history lock), in a thread that no upload waits for; it takes no other lock but, shortly, the upload lock to bring the page
//!   map up: what the map reads from is never deleted before the map reads from elsewhere.
//! - **Retries.** The historian's: a step that failed is tried again some transactions later.
//! - **Stop.** A step ends before its next write when the right ends, the lease is given back or the database closes. Nobody
//!   waits for it, and it does not keep the database open. While there is something to do and nobody else wants
//!   the lease, it is not given back.
//! - **Crash.** Every cut leaves a valid replica; the next lease holder sees in its listing what is left to do.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::STORE_WAIT;
use super::pump::{self, Line, Turn};
use crate::database::Database;
use crate::error::{Error, ErrorKind, Result};
use crate::history::listing::Row;
use crate::history::{Historian, InUse, Progress};
use crate::local::locks::HostMutex;
use crate::log;
use crate::page::TxId;
use crate::protocol::ObjectId;
use crate::replica::chain::Chain;
use crate::replica::names::{ObjectName, Replica};
use crate::runtime;
use crate::store::{BucketTime, Generation, Meta};
use crate::sync::Mutex;

/// How long the page map's change waits for whoever is uploading.
const MAP_WAIT: Duration = Duration::from_secs(20);
/// The share of `cache_size` that the result of a merge may take for the time of its upload.
const ROOM_SHARE: u64 = 2;
/// So often the map is read for anew when it changed meanwhile, before the deletes are put off.
const MAP_TRIES: u32 = 3;

/// The historian of one database in one process.
pub(crate) struct Keeper {
    historian: Historian,
    in_use: Arc<MapInUse>,
    /// One historian per host is enough.
    host: HostMutex<()>,
    /// The newest time that the bucket's clock is known to have reached.
    clock: AtomicI64,
    stopped: AtomicBool,
    busy: AtomicBool,
    /// The newest delta that [`Keeper::appended`] told of. The state file may be a delta ahead of it, which would cost a listing.
    told: Mutex<Option<ObjectId>>,
    /// The last error that was logged.
    said: Mutex<Option<String>>,
}

impl Keeper {
    /// For a replica; `scratch` is a folder for the result of a merge.
    pub(crate) fn new(replica: Replica, scratch: PathBuf, retention: Duration, host: HostMutex<()>) -> Keeper {
        let in_use = Arc::new(MapInUse { replica: replica.clone(), database: OnceLock::new() });
        Keeper {
            historian: Historian::new(replica, scratch, retention).with_reader(Arc::clone(&in_use) as Arc<dyn InUse>),
            in_use,
            host,
            clock: AtomicI64::new(0),
            stopped: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            told: Mutex::new(None),
            said: Mutex::new(None),
        }
    }

    /// Says whose right it works under.
    pub(crate) fn serve(&self, database: Weak<Database>) {
        // Called once, when the database is made.
        let _ = self.in_use.database.set(database);
    }

    /// Ends its work before the next write to the bucket. Does not wait.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Whether there is work at hand for which the lease is kept.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst) && !self.stopped.load(Ordering::SeqCst)
    }

    /// The clock that an answer of the bucket showed.
    pub(super) fn clock(&self) -> &AtomicI64 {
        &self.clock
    }

    /// Takes in a delta of this host's that is durable now.
    pub(super) fn appended(&self, id: ObjectId, generation: Generation, timestamp_ms: i64) {
        let meta = Meta { generation, size: id.size, created: None, crc32c: Some(id.crc32c) };
        self.historian.appended(Row { name: ObjectName::delta(id.txid), meta, timestamp_ms });
        *self.told.lock() = Some(id);
    }

    /// Others have written: what is known of the bucket is old.
    pub(super) fn forget(&self) {
        *self.told.lock() = None;
        self.historian.forget();
    }

    fn right(&self) -> bool {
        !self.stopped.load(Ordering::SeqCst)
            && self.in_use.database().is_some_and(|database| database.has_right() && database.check_poison().is_ok())
    }

    /// Logs an error that the operator may have to mend, once. A later turn of the uploader begins anew.
    fn say(&self, error: &Error) {
        let text = error.to_string();
        let mut said = self.said.lock();
        if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Busy) || said.as_deref() == Some(&text) {
            return;
        }
        log::error!("{}: the history is not tended to: {text}", self.in_use.replica.place());
        *said = Some(text);
    }

    fn step(&self) -> Result<Progress> {
        let Some(_host) = self.host.try_lock()? else { return Ok(Progress::Nothing) };
        let Some(database) = self.in_use.database() else { return Ok(Progress::Stopped) };
        let durable = database.change_state(|state| state.durable())?;
        drop(database);
        let told = *self.told.lock();
        let Some(durable) = told.or(durable.map(|(durable, _)| durable)) else { return Ok(Progress::Nothing) };
        self.historian.run_step(&|| self.right(), durable, BucketTime(self.clock.load(Ordering::SeqCst)))
    }
}

impl Turn for Keeper {
    fn turn(&self) -> Option<Instant> {
        let goes_on = match self.step() {
            Ok(Progress::Merged { .. } | Progress::Deleted { .. }) => {
                if let Some(database) = self.in_use.database() {
                    database.follow_history();
                }
                !self.stopped.load(Ordering::SeqCst)
            }
            Ok(Progress::Nothing | Progress::Stopped) => false,
            Err(error) => {
                self.say(&error);
                false
            }
        };
        self.busy.store(goes_on, Ordering::SeqCst);
        goes_on.then(Instant::now)
    }
}

impl Database {
    /// Has the history tended to, if that is worth its requests.
    pub(super) fn tend_history(&self) -> Result<()> {
        if !self.has_right() || self.keeper.is_busy() || !self.keeper.historian.due(self.shared.durable()) {
            return Ok(());
        }
        self.keeper.busy.store(true, Ordering::SeqCst);
        pump::call_in(Line::History, &(Arc::clone(&self.keeper) as Arc<dyn Turn>), Instant::now())
            .inspect_err(|_| self.keeper.busy.store(false, Ordering::SeqCst))
    }
}

/// The page map of this host's database as a reader of the bucket.
struct MapInUse {
    replica: Replica,
    database: OnceLock<Weak<Database>>,
}

impl MapInUse {
    fn database(&self) -> Option<Arc<Database>> {
        self.database.get().and_then(Weak::upgrade)
    }
}

impl InUse for MapInUse {
    fn state(&self) -> TxId {
        self.database().map_or(TxId::NONE, |database| database.cache.map().txid())
    }

    fn largest_bytes(&self) -> u64 {
        let bounds = self.database().and_then(|database| database.cache.bounds());
        bounds.map_or(u64::MAX, |(limit, _)| limit / ROOM_SHARE)
    }

    fn make_room(&self, bytes: u64) -> Result<bool> {
        self.database().map_or(Ok(true), |database| database.cache.make_room(bytes))
    }

    fn leave(&self, going: &BTreeSet<ObjectName>, left: &[Row]) -> Result<()> {
        for _ in 0..MAP_TRIES {
            let Some(database) = self.database() else { break };
            let map = database.cache.map();
            let txid = map.txid();
            if !map.objects().iter().any(|object| going.contains(&object.name)) {
                return Ok(());
            }
            // The database may close while the bucket is waited for.
            drop(database);
            let chain = crate::history::listing::chain(left, Some(txid))?;
            let chain = Chain { objects: chain.iter().map(Row::listed).collect() };
            log::debug!("{}: {} objects for the page map as of {txid}", self.replica.place(), chain.objects.len());
            let (replica, what) = (self.replica.clone(), format!("reading page indexes of {}", self.replica.place()));
            let indexes = runtime::wait(&what, STORE_WAIT, async move { replica.indexes(&chain).await })??;
            let Some(database) = self.database() else { break };
            let _uploader = database.uploader.lock_within(MAP_WAIT, "the upload lock")?;
            let map = database.cache.map();
            if map.txid() == txid {
                database.hot_index_is_stale();
                return map.rebuild(&indexes);
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("{}: the page map keeps changing", self.replica.place())))
    }
}
