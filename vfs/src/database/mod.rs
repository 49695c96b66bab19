//! One open database: what the shim asks at the points where SQLite calls it.
//!
//! The shim under `sqlite/` owns every pointer and every SQLite code; this module owns what they mean for
//! the replica. Each hook says when it is called and which locks SQLite holds then. A hook's error is
//! turned into the one code that its callback may return (`sqlite/codes.rs`).

mod adopt;
mod exclusive;
pub(crate) mod forked;
mod history;
mod hot;
mod hot_writer;
mod hydrate;
mod long_wal;
mod open;
pub(crate) mod past;
mod rewind;
mod save_ahead;
mod status;
mod strict;
mod waiting;

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use self::exclusive::ExclusiveWal;
use crate::apply::index::IndexWriter;
use crate::apply::{Applier, Outcome};
use crate::cache::file::CacheFile;
use crate::cache::pending::PendingDeltas;
use crate::capture::index::{self, Committed, Seen};
use crate::capture::{self, Capture};
use crate::config::{Config, Durability, Role};
use crate::delta::Decoder;
use crate::error::{Error, ErrorKind, Result};
use crate::local::Layout;
use crate::local::locks::{self, HostMutex, LockByte, Mode};
use crate::local::shared::{BootTime, Shared};
use crate::log;
use crate::outbox::Outbox;
use crate::page::{PageSize, TxId};
use crate::per_process;
use crate::protocol::ObjectId;
use crate::replica::names::Replica;
use crate::store;
use crate::sync::{Condvar, Mutex, RwLock};
use crate::upload::budget::Pace;
use crate::upload::follow::Follower;
use crate::upload::group::Group;
use crate::upload::history::Keeper;
use crate::upload::lease_watch::LeaseWatch;
use crate::upload::making_up::{Due, MakingUp};
use crate::upload::pump::{self, Turn};

/// How long a reset of the WAL waits for the capture lock before it is put off.
const RESET_WAIT: Duration = Duration::from_millis(100);
/// How long everything else waits for the capture lock.
pub(crate) const CAPTURE_WAIT: Duration = Duration::from_secs(30);
/// How long a close tries to give the lease back, before it is left to expire.
const LEAVE_WAIT: Duration = Duration::from_secs(5);
/// How long a half-written header of the wal-index is waited for before its writer is taken for dead.
const TORN_FOR_GOOD: Duration = Duration::from_millis(500);
/// How long the first commit after a quiet time waits for others to share its upload.
const GATHER: Duration = Duration::from_millis(5);

/// Reads the shared wal-index through a handle of our own; `None` while there is none to be had
/// (no WAL yet, an exclusive lock elsewhere, a heap index).
pub(crate) trait WalIndex: Send + Sync {
    /// The first 136 bytes of the wal-index: both header copies and the checkpoint information, as they
    /// stood at some moment (copies may disagree: the caller checks).
    fn bytes(&self) -> Option<[u8; 136]>;

    /// Takes the WAL's WRITE lock if it is free now, and where the WAL was not recovered yet also the lock that says to
    /// readers that somebody is at it: they wait for as long as their busy handler says, else 10 s and end with SQLITE_PROTOCOL.
    fn lock_write(&self) -> bool;

    /// Lets go of the WRITE lock that [`WalIndex::lock_write`] took.
    fn unlock_write(&self);

    /// Takes the WAL's WRITE lock to write the wal-index; `None` if somebody else has it, or while there is none to be
    /// had. Nothing else is to be had through this handle until the result is dropped.
    fn writer(&self) -> Result<Option<Box<dyn IndexWriter + '_>>>;
}

/// The WAL's WRITE lock, held by our own handle.
pub(crate) struct WritersOut(Arc<dyn WalIndex>);

impl Drop for WritersOut {
    fn drop(&mut self) {
        self.0.unlock_write();
    }
}

/// A commit boundary in the WAL: what a committer waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WalEnd {
    /// The two salts of the WAL's generation, as they stand in the file.
    pub(crate) salts: [u8; 8],
    /// Number of frames up to and with the commit frame.
    pub(crate) frames: u32,
}

/// How an application opens a database.
#[derive(Clone, Debug)]
pub(crate) struct OpenRequest {
    /// Canonical path of the main file.
    pub(crate) path: PathBuf,
    /// Parameters of the URI that are not SQLite's own, in order.
    pub(crate) parameters: Vec<(String, String)>,
    /// SQLITE_OPEN_CREATE was given.
    pub(crate) create: bool,
}

impl OpenRequest {
    /// Whether a state of the past is asked for.
    pub(crate) fn wants_the_past(&self) -> bool {
        self.parameters.iter().any(|(name, value)| name == "at" && !value.is_empty())
    }
}

/// One database of this process, shared by its connections.
pub(crate) struct Database {
    pub(crate) layout: Layout,
    config: Config,
    durability: RwLock<Durability>,
    pub(crate) replica: Replica,
    pub(crate) page_size: PageSize,
    pub(crate) cache: CacheFile,
    pub(crate) shared: Shared,
    pub(crate) outbox: Outbox,
    pub(crate) capture: HostMutex<Capture>,
    /// The protocol's log lane, and its lease lane.
    pub(crate) uploader: HostMutex<()>,
    pub(crate) lease_lane: HostMutex<()>,
    pub(crate) state_lock: HostMutex<()>,
    nonce: u64,
    /// Which process made it, counted in forks.
    generation: u32,
    /// Deltas that are in the bucket and not in the page map yet, and the epochs of checkpoints that wait for them.
    pub(crate) pending: PendingDeltas,
    hydration: Arc<hydrate::Hydration>,
    hot: hot_writer::HotWriter,
    pub(crate) epochs: Mutex<VecDeque<(u64, TxId)>>,
    /// Held for the whole life: shared with the other processes that have the database open.
    members: Arc<std::fs::File>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) follower: Arc<Follower>,
    index: Mutex<Option<Arc<dyn WalIndex>>>,
    exclusive: Mutex<ExclusiveWal>,
    opened: open::Cost,
    pace: Pace,
    pub(crate) last_error: Mutex<Option<String>>,
    /// A commit whose last header is not in the WAL yet.
    held: Mutex<Option<strict::HeldCommit>>,
    /// The delta that this process sends now, and since when.
    pub(crate) sending: Mutex<Option<(ObjectId, Instant)>>,
    /// Who held the lease when it was last refused.
    pub(crate) holder: Mutex<Option<String>>,
    /// When and why the lease could last not be asked for.
    pub(crate) unreachable: Mutex<Option<(Instant, Error)>>,
    /// Where commits that lost the log were put.
    pub(crate) conflict: Mutex<Option<PathBuf>>,
    /// Why this process's connections get no further; holds until the database is opened anew.
    poison: Mutex<Option<Error>>,
    /// Threads that wait for the bucket; while there are any, uploads do not wait for their interval.
    pub(crate) urgent: AtomicU32,
    pub(crate) settled: (Mutex<()>, Condvar),
    pub(crate) group: Group,
    pub(crate) watch: Arc<LeaseWatch>,
    pub(crate) making_up: MakingUp,
    ahead: Arc<save_ahead::SaveAhead>,
    long_wal: long_wal::LongWal,
    pub(crate) failures: AtomicU32,
    me: OnceLock<std::sync::Weak<Database>>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("path", &self.layout.main()).field("replica", &self.replica.place()).finish()
    }
}

impl Database {
    /// Opens the database: checks the settings, finds or builds the local cache, and makes the main file on
    /// disk ready for the base VFS to open. Called once per process and database, under the registry's lock
    /// of that path, before the base VFS opens the file.
    pub(crate) fn open(request: OpenRequest) -> Result<Arc<Database>> {
        let database = Arc::new(open::open(&request)?);
        // The cell is new, so this is the one time that it is set.
        let _ = database.me.set(Arc::downgrade(&database));
        database.ahead.belongs_to(&database);
        database.watch.belongs_to(Arc::downgrade(&database));
        database.keeper.serve(Arc::downgrade(&database));
        database.follower.belongs_to(Arc::downgrade(&database));
        forked::EVER_OPENED.store(true, Ordering::Relaxed);
        let me = Arc::downgrade(&database);
        database.cache.on_moved(move |why| me.upgrade().map_or(Ok(()), |database| database.plan_anew(why)));
        database.begin_hydration(Arc::downgrade(&database))?;
        waiting::remember(&database);
        // What an earlier process left is sent without waiting for a commit.
        database.call_uploader(Instant::now());
        Ok(database)
    }

    /// Another connection of this process opens the database: checks that its settings agree with those in force.
    /// Called under the registry's lock of that path; must not wait for the network.
    pub(crate) fn join(&self, request: &OpenRequest) -> Result<()> {
        let config = Config::parse(&request.parameters, |name| std::env::var(name).ok())?;
        if config.bucket != self.config.bucket {
            let message = format!(
                "{}: this process has it open with bucket={}, not {}",
                self.layout.main().display(),
                self.config.bucket,
                config.bucket
            );
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        Ok(())
    }

    /// The canonical path of the main file.
    pub(crate) fn path(&self) -> &Path {
        self.layout.main()
    }

    /// Gives the engine a way to read the wal-index (`Some`), or takes it away (`None`).
    pub(crate) fn attach_index(&self, index: Option<Arc<dyn WalIndex>>) {
        *self.index.lock() = index;
    }

    /// xRead(main): runs `base`, which reads these bytes of the main file through the base VFS, with every page
    /// of the range present before and still valid after. `base` may run more than once. Returns the code of the last run.
    pub(crate) fn read(&self, range: Range<u64>, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        self.check_process()?;
        self.cache.read(range, base).inspect_err(|e| self.note_error(e))
    }

    /// FCNTL_MMAP_SIZE: whether the file may be mapped.
    pub(crate) fn may_map(&self) -> bool {
        !self.is_inherited() && self.cache.may_map()
    }

    /// xFetch(main): whether these bytes may be read through a mapping.
    pub(crate) fn may_map_bytes(&self, range: &Range<u64>) -> bool {
        !self.is_inherited() && self.cache.may_map_bytes(range)
    }

    /// After a read: the bytes that SQLite has got, with the magic in its place.
    pub(crate) fn has_read(&self, offset: u64, bytes: &[u8]) {
        let page_bytes = u64::from(self.page_size.bytes());
        if bytes.len() as u64 == page_bytes && offset.is_multiple_of(page_bytes) {
            self.cache.note_page(self.page_size.page_at(offset), bytes);
        }
    }

    /// xWrite(main), only ever called by a checkpoint: runs `base`, which writes these bytes, and marks the pages as present.
    pub(crate) fn write(&self, range: Range<u64>, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        self.check_process()?;
        self.cache.write(range, base)
    }

    /// xTruncate(main): runs `base` and forgets the pages beyond `size_bytes`.
    pub(crate) fn truncate(&self, size_bytes: u64, base: &mut dyn FnMut() -> i32) -> Result<i32> {
        self.check_process()?;
        self.cache.truncate(size_bytes, base)
    }

    /// Before a writer takes the WAL's WRITE lock (READ lock held, no other). Refuses with Busy or Fenced.
    pub(crate) fn before_write_lock(&self) -> Result<()> {
        self.check_process()?;
        self.check_role()?;
        self.wait_to_begin()?;
        self.ensure_right()?;
        self.shared.note_lease_used(BootTime::now());
        *self.exclusive.lock() = ExclusiveWal::default();
        Ok(())
    }

    /// Before a reset of the WAL: READ1..4 are held exclusively (and WRITE, or CKPT by a RESTART or TRUNCATE
    /// checkpoint). Everything committed is captured and on disk when this returns Ok; else the lock is refused with BUSY.
    pub(crate) fn before_reset(&self) -> Result<()> {
        self.save_captured(RESET_WAIT)
    }

    /// Before a write into the WAL file. A header (offset 0) ends the generation that the file holds; a frame header is
    /// remembered for connections that have no shared wal-index. `exclusive`: this connection makes no xShmLock calls.
    fn before_wal_write(&self, offset: u64, bytes: &[u8], exclusive: bool) -> Result<()> {
        self.check_process()?;
        self.wait_to_write(bytes.len() as u64)?;
        if exclusive {
            self.check_role()?;
            self.ensure_right()?;
        } else if exclusive::commit_in(offset, bytes, self.page_size).is_some() && !self.has_right() {
            self.resume_right()?;
        }
        if !exclusive {
            return Ok(());
        }
        if offset == 0 {
            self.save_captured(CAPTURE_WAIT)?;
        }
        self.exclusive.lock().wrote(offset, bytes, self.page_size);
        Ok(())
    }

    /// Before the WAL file is truncated or deleted: everything committed in it is captured and on disk when this returns Ok.
    pub(crate) fn before_wal_removed(&self) -> Result<()> {
        self.save_captured(CAPTURE_WAIT)
    }

    /// FCNTL_COMMIT_PHASETWO: `end` is what was committed at the WRITE unlock of this connection, `None` where the
    /// connection holds no shared index (locking_mode=EXCLUSIVE: the end is the last commit frame it wrote) or
    /// committed nothing. Waits as the durability asks.
    pub(crate) fn commit_phase_two(&self, end: Option<WalEnd>, exclusive: bool) -> Result<()> {
        self.check_process()?;
        if exclusive {
            self.exclusive.lock().committed();
        } else if end.is_none() {
            return Ok(());
        }
        let now = BootTime::now();
        self.shared.note_commit(now);
        let durability = *self.durability.read();
        if durability == Durability::Strict {
            // The bucket had it before SQLite published it, whoever has the lease by now.
            return Ok(());
        }
        if !self.has_right() {
            // The commit is in the WAL; whether it has a place in the log is known once the lease is. In the background whoever
            // takes the lease next finds it out.
            self.resume_right().inspect_err(|e| {
                if durability == Durability::Commit || e.kind() == ErrorKind::Fenced {
                    self.poison(e);
                }
            })?;
        }
        if durability == Durability::Background {
            self.call_uploader(Instant::now() + self.until_due(now).max(GATHER));
            return Ok(());
        }
        self.wait_until_durable(self.commit_timeout()).inspect_err(|e| {
            self.note_error(e);
            self.poison(e);
        })
    }

    /// Whether COMMIT_PHASETWO may wait for the bucket.
    pub(crate) fn waits_in_phase_two(&self) -> bool {
        *self.durability.read() == Durability::Commit
    }

    /// Before xLock(EXCLUSIVE) goes to the base VFS: captures what is committed. The shim lets go of its own handle after this.
    ///
    /// # Errors
    /// Busy when another process has the database open, whether or not it holds a lock of SQLite's: a connection that a forked
    /// child has opened beside an inherited one holds none, and the WAL must not be deleted under it.
    pub(crate) fn before_exclusive(&self) -> Result<()> {
        self.save_captured(CAPTURE_WAIT)?;
        if !locks::set(&self.members, LockByte::Members, Mode::Exclusive)? {
            let message = format!("{}: another process has it open", self.layout.main().display());
            return Err(Error::new(ErrorKind::Busy, message));
        }
        locks::set(&self.members, LockByte::Members, Mode::Shared)?;
        Ok(())
    }

    /// After the last connection of this process closed the main file: uploads what is committed, with a deadline,
    /// and lets go of every lock and file. What could not be sent is logged and kept on disk.
    pub(crate) fn close(&self) {
        if self.is_inherited() {
            return;
        }
        self.hydration.stop();
        self.keeper.stop();
        self.follower.stop();
        waiting::forget(self);
        match self.flush(self.commit_timeout()) {
            Err(e) => self.report_unsent("closed", &e),
            Ok(_) => {
                if let Err(e) = self.leave() {
                    self.note_error(&e);
                }
            }
        }
        self.ahead.finish();
        pump::forget(&(Arc::clone(&self.ahead) as Arc<dyn Turn>));
        pump::forget(&(Arc::clone(&self.watch) as Arc<dyn Turn>));
        if let Some(turn) = self.as_turn() {
            pump::forget(&turn);
        }
        pump::forget(&(Arc::clone(&self.keeper) as Arc<dyn Turn>));
        pump::forget(&(Arc::clone(&self.follower) as Arc<dyn Turn>));
    }

    /// Our own handle's view of the wal-index.
    pub(crate) fn wal_index(&self) -> Option<Arc<dyn WalIndex>> {
        self.index.lock().clone()
    }

    /// Keeps the writers of all processes out while the result lives; `None` if one is writing, or where that cannot be known.
    pub(crate) fn keep_writers_out(&self) -> Option<WritersOut> {
        let index = self.index.lock().clone()?;
        index.lock_write().then(|| WritersOut(index))
    }

    /// Takes one delta of another writer's into this database, for its readers to see; `id` is that of the newest
    /// object in it. Not to be called from a callback of SQLite's that holds WRITE or READ1 to READ4 exclusively.
    pub(crate) fn apply<R: std::io::Read>(&self, delta: Decoder<R>, id: ObjectId) -> Result<Outcome> {
        let Some(index) = self.index.lock().clone() else { return Ok(Outcome::Busy) };
        self.applier(&*index).apply(delta, id)
    }

    pub(crate) fn applier<'a>(&'a self, index: &'a dyn WalIndex) -> Applier<'a> {
        let (layout, capture, shared) = (&self.layout, &self.capture, &self.shared);
        Applier { index, layout, capture, shared, page_size: self.page_size }
    }

    /// What is committed in the WAL now, as the wal-index or, without one, the exclusive connection or the file says.
    pub(crate) fn committed(&self) -> Option<Committed> {
        if let Some(index) = self.wal_index() {
            match index::look(|| index.bytes(), TORN_FOR_GOOD) {
                Seen::Committed(committed) => return Some(committed),
                Seen::Unrecovered => return self.committed_unrecovered(&*index),
                Seen::Nothing | Seen::Hidden => {}
            }
        }
        self.exclusive.lock().end()
    }

    /// What is committed in a WAL that was left by killed processes, and that nobody has read since: the wal-index is empty, or
    /// its header half written. It is what recovery will find. Recovery is not kept out: it would take as long as the WAL is, and
    /// SQLite's readers give up on WRITE after 10 s. If one came in between, the wal-index says what holds now. Only a
    /// connection that gets EXCLUSIVE could write without that, and it waits for the capture lock.
    fn committed_unrecovered(&self, index: &dyn WalIndex) -> Option<Committed> {
        let committed = capture::committed_in_file(&self.layout).inspect_err(|e| self.note_error(e)).ok().flatten();
        let bytes = index.bytes()?;
        index::parse(&bytes).or(committed)
    }

    /// Saves everything committed, so that the WAL may go.
    fn save_captured(&self, limit: Duration) -> Result<()> {
        self.check_process()?;
        self.ahead.finish();
        let mut capture = self.capture.lock_within(limit, "the capture lock")?;
        let committed = match self.committed() {
            Some(committed) => Some(committed),
            None => capture.committed_in_file()?,
        };
        capture.save(&self.shared, committed.as_ref()).inspect_err(|e| self.note_error(e))
    }

    /// How long until the next upload may begin.
    pub(crate) fn until_due(&self, now: BootTime) -> Duration {
        if self.urgent.load(Ordering::SeqCst) > 0 {
            return Duration::ZERO;
        }
        self.interval(now).saturating_sub(now.since(self.shared.last_put()))
    }

    /// The same for an upload whose commits are there.
    pub(crate) fn until_it_begins(&self, now: BootTime) -> Duration {
        let wait = self.until_due(now);
        let Pace::Fixed(interval) = self.pace else { return wait };
        if wait > Duration::ZERO || interval.is_zero() || self.urgent.load(Ordering::SeqCst) > 0 {
            return wait;
        }
        let (last_put, last_commit) = (self.shared.last_put(), self.shared.last_commit());
        self.making_up.wait(&Due { now, interval, last_put, last_commit, class_a: self.class_a() })
    }

    /// Class A requests of this process for the database so far.
    fn class_a(&self) -> u64 {
        let [_, puts, lists, ..] = self.replica.store().traffic().snapshot();
        puts + lists
    }

    /// The least time between two uploads, as of now.
    fn interval(&self, now: BootTime) -> Duration {
        self.pace.interval(now, self.class_a())
    }

    /// The bucket, as it is configured.
    pub(crate) fn bucket(&self) -> &str {
        &self.config.bucket
    }

    /// Whether the bucket has to show that it honours conditions. The real service does, and so do directories.
    pub(crate) fn probes(&self) -> bool {
        self.config.probe.unwrap_or_else(|| {
            self.config.bucket.starts_with("gs://") && store::Config::from_environment().endpoint.is_some()
        })
    }

    /// Whether SIGTERM uploads what is committed.
    pub(crate) fn flushes_at_sigterm(&self) -> bool {
        self.config.sigterm_flush
    }

    /// How long a close, a COMMIT that waits, and `gcs_flush` wait for the bucket.
    pub(crate) fn commit_timeout(&self) -> Duration {
        self.config.commit_timeout
    }

    /// How long a writer waits for the lease to be taken, before it is told to try again.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.config.request_timeout
    }

    /// The outbox.
    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The random number that tells this disk from every other.
    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }

    /// Everything is in the bucket: if no other process of the host has the database open, gives the lease back and says on
    /// disk that the cache is whole.
    fn leave(&self) -> Result<()> {
        let _lease = self.lease_lane.lock_within(LEAVE_WAIT, "the lease lock")?;
        let _upload = self.uploader.lock_within(LEAVE_WAIT, "the upload lock")?;
        if !locks::set(&self.members, LockByte::Members, Mode::Exclusive)? {
            return Ok(());
        }
        if self.shared.right() != BootTime::default() {
            self.release(Instant::now() + LEAVE_WAIT.min(self.commit_timeout()))?;
        }
        if let Err(e) = self.write_hot_index() {
            // The next cold open takes longer; nothing else hangs on it.
            log::info!("{}: no hot index was written: {e}", self.replica.place());
        }
        self.cache.sync()?;
        self.change_state(|state| state.clean = true)
    }

    fn as_turn(&self) -> Option<Arc<dyn Turn>> {
        self.me.get().and_then(std::sync::Weak::upgrade).map(|me| me as Arc<dyn Turn>)
    }

    pub(crate) fn call_uploader(&self, due: Instant) {
        if let Some(turn) = self.as_turn()
            && let Err(e) = pump::call(&turn, due)
        {
            self.note_error(&e);
        }
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        if let Some(error) = &*self.poison.lock() {
            return Err(error.clone());
        }
        if self.shared.fenced() {
            return Err(self.fenced());
        }
        Ok(())
    }

    /// Refuses to write where that is not this host's part.
    fn check_role(&self) -> Result<()> {
        if self.config.role != Role::Follower {
            return Ok(());
        }
        let path = self.layout.main().display();
        let message =
            format!("{path}: it is open with role=follower, which only reads; to write, open it with role=auto");
        Err(Error::new(ErrorKind::Configuration, message)).inspect_err(|e| self.note_error(e))
    }

    pub(crate) fn fenced(&self) -> Error {
        let place = self.replica.place();
        Error::new(
            ErrorKind::Fenced,
            format!("{place}: another writer has appended to the log; open the database anew"),
        )
    }

    pub(crate) fn poison(&self, error: &Error) {
        let mut poison = self.poison.lock();
        if poison.is_none() {
            let message = format!("this database refuses work until it is opened anew: {error}");
            *poison = Some(Error::new(error.kind(), message));
        }
    }

    pub(crate) fn note_error(&self, error: &Error) {
        let text = error.to_string();
        let mut last = self.last_error.lock();
        // An error that keeps coming is logged once.
        if last.as_deref() != Some(&text) {
            log::error!("{}: {text}", self.layout.main().display());
        }
        *last = Some(text);
    }
}

/// At SIGTERM: uploads what is committed everywhere and gives the leases back, within the limit. What could not be sent is logged.
pub(crate) fn flush_all(limit: Duration) {
    let end = Instant::now() + limit;
    std::thread::scope(|scope| {
        for database in waiting::all_open() {
            scope.spawn(move || match database.flush(end.saturating_duration_since(Instant::now())) {
                Ok(txid) => {
                    log::info!("{}: SIGTERM: the bucket has everything, up to {txid}", database.path().display());
                    if let Err(e) = database.give_back_now(end) {
                        database.note_error(&e);
                    }
                }
                Err(e) => database.report_unsent("SIGTERM", &e),
            });
        }
    });
}

/// At normal process exit: closes every database that is still open, each as [`Database::close`] does.
pub(crate) fn close_all_at_exit() {
    for database in waiting::all_open() {
        database.close();
    }
}

/// In a forked child, before anything else there: begins with no databases and no threads. Takes no lock, because another
/// thread of the parent may have held it.
pub(crate) fn after_fork_in_child() {
    per_process::begin_in_child();
}
