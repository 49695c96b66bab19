//! Finding or building the local side of a database, before SQLite opens it.
//!
//! The first process of a host does this alone, under the exclusive members lock; later ones join what it made.
//!
//! | what is there | what happens |
//! |---|---|
//! | nothing here, nothing in the bucket | a new database: one pre-written page |
//! | nothing here | cold open: the page map from the bucket, no pages |
//! | our cache, the bucket where we left it | warm open: nothing is fetched |
//! | our cache, the bucket further on, nothing unsent here | only the pages that changed are forgotten |
//! | our cache after an unclean boot | what the WAL holds is frozen, the rest of the cache is distrusted |
//! | unsent commits here, the bucket written by somebody else | what is unsent goes to `conflict-<time>`; cold open |
//! | a plain SQLite file, nothing in the bucket | adopted: frozen as the first delta |
//! | a cache of another replica, format or file | put aside; cold open |
//!
//! Crash: every step can be repeated. Unsent deltas leave the outbox only for a conflict folder, by rename, or after
//! the state file says that the bucket has them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::long_wal::LongWal;
use super::{Database, OpenRequest, hot, hot_writer};
use crate::cache::default_size::default_size;
use crate::cache::file::{CacheFile, MAGIC, MASK};
use crate::cache::pending::PendingDeltas;
use crate::capture::index::Committed;
use crate::capture::position::Position;
use crate::capture::{Capture, Freeze};
use crate::config::{Config, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::local::locks::{self, HostMutex, LockByte, Mode};
use crate::local::shared::{BootTime, Shared};
use crate::local::state::{FORMAT, State, boot_id};
use crate::local::{Layout, conflict, remove};
use crate::log;
use crate::outbox::Outbox;
use crate::page::{PageCount, PageSize, Pgno, TxId};
use crate::protocol::restart::{self, Verdict};
use crate::protocol::{self, Nonce, ObjectId};
use crate::replica::chain::{self, Chain};
use crate::replica::fetch::PageSource;
use crate::replica::hot_index::HotIndex;
use crate::replica::index_fetch::{ObjectIndex, Short};
use crate::replica::names::{Listed, ObjectName, Replica};
use crate::replica::page_map::PageMap;
use crate::runtime;
use crate::store;
use crate::store::url::BucketUrl;
use crate::sync::{Condvar, Mutex, RwLock};
use crate::upload::budget::{Budget, Pace};
use crate::upload::driver;
use crate::upload::follow::Follower;
use crate::upload::group::Group;
use crate::upload::history::Keeper;
use crate::upload::making_up::MakingUp;
use crate::words::NotUsable;

/// How long an open waits for another process that is preparing the same database.
const PREPARE_WAIT: Duration = Duration::from_secs(60);
/// How long an open waits for one answer of the bucket.
pub(super) const OPEN_WAIT: Duration = Duration::from_secs(60);
/// How long a read of SQLite's waits for the bucket.
pub(super) const READ_WAIT: Duration = Duration::from_secs(30);

/// What the open cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// No usable cache was there.
    pub(super) cold: bool,
    /// When it was done.
    pub(super) at: BootTime,
    /// Milliseconds.
    pub(super) ms: u64,
    /// Requests of all kinds.
    pub(super) requests: u64,
    /// Requests that followed one another.
    pub(super) round_trips: u64,
    /// The durable transaction.
    pub(super) txid: TxId,
}

/// The parts that every way of opening needs.
pub(super) struct Opening<'a> {
    request: &'a OpenRequest,
    config: Config,
    pub(super) layout: Layout,
    pub(super) replica: Replica,
    pub(super) outbox: Outbox,
    shared: Shared,
}

/// What a way of opening ends with.
pub(super) struct Ready {
    pub(super) cache: CacheFile,
    state: State,
    cold: bool,
    /// What the hot index that it was opened with is as of.
    hot: TxId,
}

/// What the main file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MainFile {
    Missing,
    Empty,
    Cache,
    PlainDatabase,
    Foreign,
}

/// Opens a database.
pub(super) fn open(request: &OpenRequest) -> Result<Database> {
    let started = Instant::now();
    let config = Config::parse(&request.parameters, |name| std::env::var(name).ok())?;
    let replica = replica_of(&config, &request.path)?;
    let layout = Layout::of(&request.path);
    let had_directory = layout.dir().exists();
    layout.create()?;
    let opening = Opening {
        request,
        outbox: Outbox::new(layout.outbox()),
        shared: Shared::open(&layout.shared())?,
        config,
        layout,
        replica,
    };
    // Closed with the database: who still tends its history or follows the log then is no member.
    let members = locks::open(&opening.layout.lock())?;
    let lock = locks::open(&opening.layout.lock())?;
    let result = opening.prepare_or_join(&members);
    if result.is_err() && !had_directory {
        // Nothing of value can be in a directory that this failed open has made.
        let _ = fs::remove_dir_all(opening.layout.dir());
    }
    let Ready { cache, state, cold, hot } = result?;
    let [gets, puts, lists, deletes, ..] = opening.replica.store().traffic().snapshot();
    let opened = Cost {
        cold,
        at: BootTime::now(),
        ms: started.elapsed().as_millis() as u64,
        requests: gets + puts + lists + deletes,
        round_trips: opening.replica.store().traffic().round_trips.load(Ordering::Relaxed),
        txid: state.durable_txid(),
    };
    log::info!(
        "{}: open at {} of {} in {} ms with {} requests in {} round trips",
        opening.layout.main().display(),
        state.durable_txid(),
        opening.replica.place(),
        opened.ms,
        opened.requests,
        opened.round_trips
    );
    opening.bound(&cache);
    Ok(Database {
        durability: RwLock::new(opening.config.durability),
        page_size: cache.page_size(),
        cache,
        capture: HostMutex::new(&lock, LockByte::Capture, Capture::open(&opening.layout, &opening.outbox)?),
        nonce: state.protocol.nonce.0,
        generation: crate::per_process::generation(),
        pending: PendingDeltas::of(opening.layout.dir()),
        epochs: Mutex::default(),
        hydration: Default::default(),
        sending: Mutex::default(),
        hot: hot_writer::HotWriter::of(hot),
        uploader: HostMutex::new(&lock, LockByte::Upload, ()),
        lease_lane: HostMutex::new(&lock, LockByte::Lease, ()),
        state_lock: HostMutex::new(&lock, LockByte::State, ()),
        members,
        keeper: Arc::new(Keeper::new(
            opening.replica.clone(),
            opening.layout.dir().to_owned(),
            opening.config.retention,
            HostMutex::new(&lock, LockByte::History, ()),
        )),
        follower: Arc::new(Follower::new(
            opening.config.role,
            opening.config.poll_interval,
            HostMutex::new(&lock, LockByte::Follow, ()),
        )),
        index: Mutex::new(None),
        exclusive: Mutex::default(),
        opened,
        pace: match opening.config.flush_interval {
            Some(interval) => Pace::Fixed(interval),
            None => Pace::Auto(Budget::new(opening.config.class_a_budget, opened.at)),
        },
        last_error: Mutex::new(None),
        held: Mutex::new(None),
        holder: Mutex::new(None),
        unreachable: Mutex::new(None),
        conflict: Mutex::new(None),
        poison: Mutex::new(None),
        urgent: 0.into(),
        settled: (Mutex::new(()), Condvar::new()),
        group: Group::default(),
        watch: Arc::default(),
        making_up: MakingUp::default(),
        ahead: Arc::default(),
        long_wal: LongWal::default(),
        failures: 0.into(),
        me: std::sync::OnceLock::new(),
        layout: opening.layout,
        config: opening.config,
        replica: opening.replica,
        shared: opening.shared,
        outbox: opening.outbox,
    })
}

impl Opening<'_> {
    fn prepare_or_join(&self, members: &File) -> Result<Ready> {
        let started = Instant::now();
        loop {
            if locks::set(members, LockByte::Members, Mode::Exclusive)? {
                let asked = BootTime::now();
                let ready = self.prepare()?;
                self.shared.set_log_looked(asked);
                self.shared.set_log_caught_up(asked);
                locks::set(members, LockByte::Members, Mode::Shared)?;
                return Ok(ready);
            }
            if locks::set(members, LockByte::Members, Mode::Shared)? {
                return self.join();
            }
            if started.elapsed() > PREPARE_WAIT {
                let path = self.layout.main().display();
                return Err(Error::new(ErrorKind::Busy, format!("{path}: another process is still preparing it")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Beside processes that have the database open: what they made is good.
    fn join(&self) -> Result<Ready> {
        let path = self.layout.state();
        let state = State::load(&path)?
            .ok_or_else(|| Error::new(ErrorKind::Local, format!("{}: gone while in use", path.display())))?;
        if state.replica != self.replica.place() {
            let message = format!(
                "{}: other processes have it open with the replica {}, not {}",
                self.layout.main().display(),
                state.replica,
                self.replica.place()
            );
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        let cache = self
            .open_cache()
            .map_err(|why| Error::new(ErrorKind::Corrupt, format!("{}: {why}", self.layout.dir().display())))?;
        Ok(Ready { cache, state, cold: false, hot: TxId::NONE })
    }

    /// Alone on this host.
    fn prepare(&self) -> Result<Ready> {
        self.shared.reset();
        let main = self.look_at_main()?;
        let state = self.own_state(main)?;
        if main == MainFile::Foreign {
            let path = self.layout.main().display();
            let message = format!("{path}: neither a SQLite database nor a cache of this VFS; move it away");
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        let look = match main {
            MainFile::Missing | MainFile::Empty if state.is_none() => self.look()?,
            _ => hot::Look::of(self.list()?),
        };
        let listed = look.listed.clone();
        let chain = self.chain(listed.clone())?;
        match (state, chain) {
            (None, chain) if main == MainFile::PlainDatabase => self.adopt(chain.as_ref()),
            (None, Some(chain)) => {
                let state = self.fresh_state(PageSize::DEFAULT);
                let head = self.log(&listed, &state)?.head();
                self.cold_open(&chain, head, look, state)
            }
            (None, None) if !self.request.create || self.config.role == Role::Follower => {
                let path = self.layout.main().display();
                let message = format!("{path}: there is no such database, here or in {}", self.replica.place());
                Err(Error::new(ErrorKind::Configuration, message))
            }
            (None, None) => self.create(),
            (Some(state), chain) => self.reopen(state, main, &listed, chain),
        }
    }

    /// The state that goes with the main file on disk; what does not is put aside, and what is left without one too.
    fn own_state(&self, main: MainFile) -> Result<Option<State>> {
        let why = match State::load(&self.layout.state()) {
            Ok(Some(state)) if state.replica != self.replica.place() => {
                format!("it belongs to {}, not to {}", state.replica, self.replica.place())
            }
            Ok(Some(state)) => match self.identity() {
                Ok(file) if main == MainFile::Cache && file != state.file => {
                    "the main file is a copy, or another one has its name".to_owned()
                }
                _ if main == MainFile::PlainDatabase && state.protocol.durable.is_some() => {
                    "a plain SQLite database stands in the cache file's place".to_owned()
                }
                _ => return Ok(Some(state)),
            },
            Ok(None) if main == MainFile::Cache => "it has no state file".to_owned(),
            Ok(None) => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Corrupt => e.to_string(),
            Err(e) => return Err(e),
        };
        let to = conflict::put_aside(&self.layout, main == MainFile::Cache)?;
        log::error!("{}: the cache is put aside in {}: {why}", self.layout.main().display(), to.display());
        self.layout.create()?;
        Ok(None)
    }

    fn look_at_main(&self) -> Result<MainFile> {
        let failed = |e: &std::io::Error| Error::local(format_args!("reading {}", self.layout.main().display()), e);
        let file = match File::open(self.layout.main()) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(MainFile::Missing),
            Err(e) => return Err(failed(&e)),
        };
        let size = file.metadata().map_err(|e| failed(&e))?.len();
        let mut magic = [0; 16];
        match file.read_exact_at(&mut magic, 0) {
            Ok(()) if magic == MASK => Ok(MainFile::Cache),
            Ok(()) if magic == MAGIC => Ok(MainFile::PlainDatabase),
            // A cold cache whose first page was not fetched yet.
            Ok(()) if magic == [0; 16] && self.layout.state().exists() => Ok(MainFile::Cache),
            _ if size == 0 => Ok(MainFile::Empty),
            _ => Ok(MainFile::Foreign),
        }
    }

    /// A new database: one pre-written page, no object in the bucket until the first commit.
    fn create(&self) -> Result<Ready> {
        let page_size = self.config.page_size;
        PendingDeltas::of(self.layout.dir()).clear()?;
        let map = PageMap::create(self.layout.dir(), page_size)?;
        let cache = CacheFile::create(self.layout.dir(), self.layout.main(), map, self.source())?;
        cache.put_page(Pgno::ONE, &crate::sqlite::header::new_database_header(page_size))?;
        let state = self.fresh_state(page_size);
        let state = State { position: Position { pages: PageCount(1), ..state.position }, ..state };
        self.start(cache, state, true)
    }

    /// Nothing usable here: the page map from the bucket and from what is unsent, and no pages.
    fn cold_open(&self, chain: &Chain, head: Option<ObjectId>, look: hot::Look, mut state: State) -> Result<Ready> {
        let reached = look.hot.as_ref().map_or(TxId::NONE, |hot| hot.head.txid);
        let deltas = look.deltas(reached, chain.txid());
        let hot = look.hot.filter(|hot| hot.head.txid <= chain.txid());
        let as_of = hot.as_ref().map_or(TxId::NONE, |hot| hot.head.txid);
        let planned = || chain.objects.iter().filter(|object| object.name.max > as_of).cloned().collect();
        let newer = deltas.filter(|_| as_of == reached).unwrap_or_else(planned);
        let newer = self.indexes_and_short(&Chain { objects: newer }, look.short)?;
        let mut indexes = hot.as_ref().map(HotIndex::indexes).unwrap_or_default();
        let generation = hot.as_ref().filter(|hot| Some(hot.head) == head).map(|hot| hot.generation.0);
        let mut pages: HashMap<Pgno, Vec<u8>> = hot.map(|hot| hot.hot.into_iter().collect()).unwrap_or_default();
        for (index, short) in newer {
            // What is known of pages that changed since is old. Short deltas are here whole; no page is asked for that they have.
            pages.retain(|pgno, _| index.commit.contains(*pgno));
            index.pages.iter().for_each(|page| drop(pages.remove(&page.pgno)));
            if let Some(short) = short {
                // Damage is reported by whoever reads the page.
                pages.extend(hot_writer::images(&short).unwrap_or_default());
            }
            indexes.push(index);
        }
        let hot_pages = pages.into_iter().collect();
        let last = indexes.last().ok_or_else(|| Error::new(ErrorKind::Corrupt, "an empty chain".to_owned()))?;
        let (page_size, pages) = (last.page_size, last.commit);
        state.page_size = page_size.bytes();
        // What is unsent stands on the durable delta, and only empty deltas can have come after that.
        if state.protocol.outbox.is_empty() {
            state.protocol.caught_up(head);
            state.durable_generation = generation_of(chain, head).or(generation);
        }
        state.position = Position { pages, closed: true, serial: state.position.serial, ..Position::default() };
        Ok(Ready { hot: as_of, ..self.build_cold(indexes, hot_pages, page_size, state)? })
    }

    fn build_cold(
        &self,
        indexes: Vec<ObjectIndex>,
        hot_pages: Vec<(Pgno, Vec<u8>)>,
        page_size: PageSize,
        state: State,
    ) -> Result<Ready> {
        remove(&self.layout.wal())?;
        remove(&self.layout.shm())?;
        let mut indexes = indexes;
        for id in &state.protocol.outbox {
            indexes.push(self.outbox.index(id)?);
        }
        let hot_pages = if state.protocol.outbox.is_empty() { hot_pages } else { Vec::new() };
        PendingDeltas::of(self.layout.dir()).clear()?;
        let map = PageMap::create(self.layout.dir(), page_size)?;
        map.rebuild(&indexes)?;
        let cache = CacheFile::create(self.layout.dir(), self.layout.main(), map, self.source())?;
        cache.put_fetched(hot_pages)?;
        cache.prefetch(Pgno::ONE)?;
        self.start(cache, state, true)
    }

    /// A state of ours is here, with or without a usable cache, with or without unsent commits.
    fn reopen(&self, mut state: State, main: MainFile, listed: &[Listed], chain: Option<Chain>) -> Result<Ready> {
        if main == MainFile::PlainDatabase {
            // An adoption that a crash interrupted, before anything was sent.
            return self.adopt(chain.as_ref());
        }
        let is_whole = main == MainFile::Cache && (state.clean || state.boot == boot_id());
        let mut capture = Capture::open(&self.layout, &self.outbox)?;
        let committed = capture.committed_in_file()?;
        if let Some(applied) = capture.applied(committed.as_ref())?
            && applied.note_in(&mut state)
        {
            state.save(&self.layout.state())?;
        }
        self.outbox.adopt_refrozen(&state.protocol.outbox)?;
        state.protocol.restarted();
        if state.boot != boot_id() {
            // Another boot is another writer: nothing that was in flight then counts as ours by the number alone.
            state.protocol = protocol::State {
                durable: state.protocol.durable,
                ..protocol::State::new(Nonce(nonce()), who(), self.config.lease_ttl.as_millis() as u64)
            };
        }
        let position = capture.recover(&self.shared, committed.as_ref())?;
        // A delta that was frozen before its commit was written, or frames that are gone: the cache is behind the log.
        let is_behind =
            !position.closed && committed.is_none_or(|c| c.salts != position.salts || c.frames < position.frames);
        let is_whole = is_whole && !is_behind && !state.rebuild;
        self.freeze_wal(&mut capture, &state, position, committed, is_whole)?;
        let frozen = self.outbox.list()?;
        state.protocol.outbox = driver::unsettled(&state.protocol, frozen.iter().map(|envelope| envelope.id));

        let log = self.log(listed, &state)?;
        let verdict = restart::reconcile(&mut state.protocol, &log);
        if let Some(settled) = frozen.iter().rev().find(|envelope| Some(envelope.id) == state.protocol.durable) {
            state.position = settled.position;
        }
        match verdict {
            Verdict::Older(head) => {
                let message = format!(
                    "{}: the bucket ends at {}, older than this disk, which saw {}; nothing is changed",
                    self.replica.place(),
                    head.map_or(TxId::NONE, |id| id.txid),
                    state.durable_txid()
                );
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
            Verdict::Conflict(from) | Verdict::Unclear(from) => {
                if !state.protocol.outbox.is_empty() {
                    let to = conflict::keep(&self.layout, &self.outbox, &mut state, from)?;
                    log::error!(
                        "{}: another writer has {} from {from} on; the commits of this disk from there on are kept in {}",
                        self.layout.main().display(),
                        self.replica.place(),
                        to.display()
                    );
                }
                state.protocol.set_aside();
            }
            Verdict::Continues | Verdict::Behind(_) => {
                state.save(&self.layout.state())?;
                for settled in frozen.iter().filter(|envelope| envelope.id.txid <= state.durable_txid()) {
                    self.outbox.remove(settled.id.txid)?;
                }
                if is_whole
                    && let Ok(cache) = self.open_cache()
                    // Those may have moved since, or been sent.
                    && !cache.map().objects().iter().any(|object| object.generation.is_none())
                {
                    if !state.clean {
                        cache.recount();
                    }
                    if verdict == Verdict::Continues
                        && let Some(chain) = &chain
                    {
                        self.bring_map_up(&cache, state.durable_txid(), chain)?;
                    }
                    return match (verdict, chain) {
                        (Verdict::Behind(_), Some(chain)) => {
                            self.catch_up(cache, state, listed, &chain, log.head(), committed)
                        }
                        _ => self.start(cache, state, false),
                    };
                }
            }
        }
        match chain {
            Some(chain) => self.cold_open(&chain, log.head(), hot::Look::of(Vec::new()), state),
            None if state.protocol.outbox.is_empty() => self.create(),
            None => {
                let page_size = self.page_size(&state)?;
                self.build_cold(Vec::new(), Vec::new(), page_size, state)
            }
        }
    }

    /// Brings the page map up to the durable delta: what earlier processes remembered, else what the bucket says. Nobody reads an
    /// older state any more, so it does not matter what of it is backfilled.
    fn bring_map_up(&self, cache: &CacheFile, durable: TxId, chain: &Chain) -> Result<()> {
        let pending = PendingDeltas::of(self.layout.dir());
        let remembered = pending.list().and_then(|list| list.collect::<Result<Vec<_>>>());
        for (delta, index) in remembered.unwrap_or_default() {
            if delta.min <= cache.map().txid().0 + 1 && delta.max <= durable.0 {
                cache.map().apply(&[index])?;
            }
        }
        let known = cache.map().txid();
        if known < durable {
            let newer = chain.objects.iter().filter(|o| o.name.max > known).cloned().collect();
            cache.map().apply(&self.indexes(&Chain { objects: newer })?)?;
        }
        pending.clear()
    }

    /// Bounds what everything local takes.
    fn bound(&self, cache: &CacheFile) {
        let layout = self.layout.clone();
        let used = u64::from(cache.present()) * u64::from(cache.page_size().bytes());
        let folder = layout.main().parent().unwrap_or(Path::new("/")).to_owned();
        let size = self.config.cache_size.or_else(|| default_size(&folder, used + layout.beside_bytes()));
        if let Some(limit) = size.filter(|&limit| limit > 0) {
            cache.bound(limit, Box::new(move || layout.beside_bytes()));
        }
    }

    /// The log as the protocol sees it.
    fn log(&self, listed: &[Listed], state: &State) -> Result<protocol::Chain> {
        let known = driver::known(&self.replica, listed, &self.outbox, state.durable())?;
        protocol::Chain::of(&known).map_err(|gap| {
            let message =
                format!("{}: {} is missing, although {} is there", self.replica.place(), gap.missing, gap.head);
            Error::new(ErrorKind::Corrupt, message)
        })
    }

    /// Freezes what an earlier process left in the WAL.
    ///
    /// After an unclean boot only a WAL that continues the captured position is read: an older generation that came
    /// back with a power loss is not newer than the deltas.
    fn freeze_wal(
        &self,
        capture: &mut Capture,
        state: &State,
        position: Position,
        committed: Option<Committed>,
        is_whole: bool,
    ) -> Result<()> {
        let continues = committed.filter(|c| {
            let count = |salts: [u8; 8]| u32::from_be_bytes([salts[0], salts[1], salts[2], salts[3]]);
            is_whole
                || (c.salts == position.salts && c.frames >= position.frames)
                || position.salts == [0; 8]
                || (position.closed && count(c.salts) == count(position.salts).wrapping_add(1))
        });
        let newest = self.outbox.list()?.last().map_or(state.durable_txid(), |e| e.id.txid.max(state.durable_txid()));
        let how = Freeze {
            txid: newest.next(),
            former_pages: position.pages,
            nonce: state.protocol.nonce.0,
            timestamp_ms: crate::upload::now_ms(),
            base: &|_, _| Ok(false),
        };
        capture.freeze(&self.shared, continues.as_ref(), None, &how)?;
        Ok(())
    }

    /// The bucket went on without us and we have nothing unsent: forget what changed, keep the rest.
    fn catch_up(
        &self,
        cache: CacheFile,
        mut state: State,
        listed: &[Listed],
        chain: &Chain,
        head: Option<ObjectId>,
        committed: Option<Committed>,
    ) -> Result<Ready> {
        let from = state.durable_txid();
        let known = cache.map().txid();
        let known = known.min(from);
        let newer = chain::plan_onto(listed, known, chain.txid());
        let whole = |_| chain.objects.iter().filter(|object| object.name.max > known).cloned().collect();
        let newer = newer.unwrap_or_else(whole);
        let indexes = self.indexes(&Chain { objects: newer })?;
        let Some(last) = indexes.last() else { return self.start(cache, state, false) };
        let capture = Capture::open(&self.layout, &self.outbox)?;
        if let Some(committed) = committed {
            // What the WAL holds may be newer than the cache file, and the WAL goes.
            cache.forget(capture.pages_in_file(&committed)?)?;
        }
        let changed: Vec<_> = indexes
            .iter()
            .filter(|index| index.name.max > from)
            .flat_map(|index| index.pages.iter().map(|entry| entry.pgno))
            .collect();
        let pages = last.commit;
        cache.map().apply(&indexes)?;
        PendingDeltas::of(self.layout.dir()).clear()?;
        cache.forget(changed)?;
        // Larger or smaller: SQLite takes the size of a file without a WAL for that of the database.
        cache.set_size(pages)?;
        cache.cut(pages)?;
        remove(&self.layout.wal())?;
        remove(&self.layout.shm())?;
        state.protocol.caught_up(head);
        state.durable_generation = generation_of(chain, head);
        state.position = Position { pages, closed: true, serial: state.position.serial, ..Position::default() };
        cache.prefetch(Pgno::ONE)?;
        self.start(cache, state, false)
    }

    /// Writes the state and fills the shared memory: from here on the other processes may join.
    pub(super) fn start(&self, cache: CacheFile, mut state: State, cold: bool) -> Result<Ready> {
        cache.nothing_is_mapped();
        let frozen = self.outbox.list()?;
        state.protocol.outbox = driver::unsettled(&state.protocol, frozen.iter().map(|envelope| envelope.id));
        let without_wal = !self.layout.wal().exists() && state.protocol.outbox.is_empty();
        if without_wal {
            // Whatever WAL is found later is newer than everything captured.
            state.position = Position { salts: [0; 8], frames: 0, cksum: [0; 2], closed: true, ..state.position };
        }
        state.boot = boot_id();
        state.file = self.identity()?;
        state.clean = false;
        state.rebuild = false;
        state.protocol.ttl_ms = self.config.lease_ttl.as_millis() as u64;
        state.save(&self.layout.state())?;
        let mut capture = Capture::open(&self.layout, &self.outbox)?;
        if without_wal {
            capture.forget_applied()?;
        }
        let position = capture.recover(&self.shared, capture.committed_in_file()?.as_ref())?;
        if !self.layout.wal().exists() {
            // The generation of what is unsent went with it; the next one follows, and is not a WAL that somebody else reset.
            capture.save(&self.shared, None)?;
        }
        driver::publish(&self.shared, &state);
        self.shared.set_frozen_pages(position.pages);
        Ok(Ready { cache, state, cold, hot: TxId::NONE })
    }

    pub(super) fn fresh_state(&self, page_size: PageSize) -> State {
        State {
            format: FORMAT,
            replica: self.replica.place(),
            boot: boot_id(),
            file: (0, 0),
            durable_generation: None,
            page_size: page_size.bytes(),
            protocol: protocol::State::new(Nonce(nonce()), who(), self.config.lease_ttl.as_millis() as u64),
            position: Position { closed: true, ..Position::default() },
            rebuild: false,
            clean: false,
        }
    }

    fn page_size(&self, state: &State) -> Result<PageSize> {
        PageSize::new(state.page_size).ok_or_else(|| {
            let path = self.layout.state();
            Error::new(ErrorKind::Corrupt, format!("{}: page size {}", path.display(), state.page_size))
        })
    }

    fn identity(&self) -> Result<(u64, u64)> {
        let path = self.layout.main();
        let meta = fs::metadata(path).map_err(|e| Error::local(format_args!("looking at {}", path.display()), &e))?;
        Ok((meta.dev(), meta.ino()))
    }

    pub(super) fn source(&self) -> PageSource {
        PageSource::new(self.replica.clone(), Arc::new(self.outbox.clone()), READ_WAIT)
    }

    /// The cache that an earlier process made, or why it has to be made anew.
    fn open_cache(&self) -> Result<CacheFile, NotUsable> {
        let map = PageMap::open(self.layout.dir())?;
        CacheFile::open(self.layout.dir(), self.layout.main(), map, self.source())
    }

    fn look(&self) -> Result<hot::Look> {
        let replica = self.replica.clone();
        runtime::wait(&format!("listing {}", self.replica.place()), OPEN_WAIT, hot::look(replica))?
    }

    fn list(&self) -> Result<Vec<Listed>> {
        let replica = self.replica.clone();
        runtime::wait(&format!("listing {}", self.replica.place()), OPEN_WAIT, async move { replica.list().await })?
    }

    /// The plan to the head. A gap is believed only when a second listing shows it too: objects may just be replaced.
    fn chain(&self, listed: Vec<Listed>) -> Result<Option<Chain>> {
        chain::plan(&listed, None)
            .or_else(|_| chain::plan(&self.list()?, None))
            .map_err(|e| e.context(self.replica.place()))
    }

    fn indexes_and_short(&self, chain: &Chain, known: Short) -> Result<Vec<(ObjectIndex, Option<Bytes>)>> {
        let (replica, chain) = (self.replica.clone(), chain.clone());
        let what = format!("reading the page indexes of {}", self.replica.place());
        runtime::wait(&what, OPEN_WAIT, async move { replica.indexes_and_short(&chain, &known).await })?
    }

    fn indexes(&self, chain: &Chain) -> Result<Vec<ObjectIndex>> {
        let (replica, chain) = (self.replica.clone(), chain.clone());
        let what = format!("reading the page indexes of {}", self.replica.place());
        runtime::wait(&what, OPEN_WAIT, async move { replica.indexes(&chain).await })?
    }
}

/// The replica of the database at a path.
pub(super) fn replica_of(config: &Config, path: &Path) -> Result<Replica> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        let path = path.display();
        Error::new(ErrorKind::Configuration, format!("{path}: the file's name is not UTF-8, so no object can have it"))
    })?;
    let url: BucketUrl = config.bucket.parse()?;
    url.join(name)?;
    Ok(Replica::new(store::open_shared(&url, store_config(config)), name))
}

/// An attempt has the request timeout; failures are repeated for twice as long.
fn store_config(config: &Config) -> store::Config {
    store::Config {
        attempt_timeout: config.request_timeout,
        deadline: config.request_timeout * 2,
        ..store::Config::from_environment()
    }
}

/// Which write of its name the head is, if it is a delta of the chain.
fn generation_of(chain: &Chain, head: Option<ObjectId>) -> Option<u64> {
    let name = ObjectName::delta(head?.txid);
    chain.objects.iter().find(|object| object.name == name).map(|object| object.meta.generation.0)
}

fn nonce() -> u64 {
    getrandom::u64().unwrap_or_else(|_| fastrand::u64(..)).max(1)
}

/// This host's name, for people only: where it runs, and as which process.
fn who() -> String {
    let host = std::env::var("K_REVISION").ok().or_else(|| fs::read_to_string("/proc/sys/kernel/hostname").ok());
    format!("{}/{}", host.as_deref().map_or("unknown", str::trim), std::process::id())
}

/// Whether a file is there and has something in it.
pub(super) fn has_content(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() > 0)
}
