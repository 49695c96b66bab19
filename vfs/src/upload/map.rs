//! Keeping the page map up with what is uploaded: a delta enters it once its frames are in the main file.
//!
//! - **Ordering.** Under the upload lane, lowest transaction first, without a gap: what this host does not remember
//!   (a seal whose answer was lost, the work of a process that died) is looked up in the bucket.
//! - **Retries.** What is not backfilled yet is looked at again at the next turn.
//! - **Crash.** Applying a delta twice is harmless; one that is forgotten shows as a gap.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::STORE_WAIT;
use crate::cache::pending::Pending;
use crate::capture::index::{self, Committed};
use crate::database::Database;
use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::outbox::Envelope;
use crate::page::TxId;
use crate::protocol::ObjectId;
use crate::replica::chain::{self, Chain};
use crate::replica::index_fetch::ObjectIndex;
use crate::replica::names::ObjectName;
use crate::runtime;
use crate::store::Generation;

/// How long a writer waits for room before its transaction is refused.
const ROOM_WAIT: Duration = Duration::from_secs(20);
/// How long once everything is sent: then only a checkpoint could still help.
const SETTLED_WAIT: Duration = Duration::from_millis(300);
/// The share of the limit that is to be free when a transaction begins.
const RESERVE: u64 = 4;
/// How often it looks.
const ROOM_POLL: Duration = Duration::from_millis(5);
/// Epochs that wait for their checkpoint at a time; a later one covers all before it.
const EPOCHS: usize = 64;
/// How long a reader that met a deleted object waits for whoever is uploading.
const MAP_WAIT: Duration = Duration::from_secs(20);

/// The committed state of the WAL, and the frames of it that are backfilled.
pub(crate) type Wal = Option<(Committed, u32)>;

impl Database {
    /// A delta of this host's outbox is durable: remembers where its pages lie, then lets go of its file.
    pub(super) fn remember_uploaded(&self, id: ObjectId) -> Result<()> {
        let envelope = self.outbox.envelope(id.txid)?;
        let generation = match self.change_state(|state| state.durable())? {
            Some((durable, generation)) if durable == id => generation,
            _ => self.generation_of(id.txid)?,
        };
        let (start, end) = self.outbox.ends(&id)?;
        self.pending.add(&pending(&envelope, generation), &start, &end)?;
        drop((start, end));
        self.keeper.appended(id, generation, envelope.timestamp_ms);
        // Where the map was built with it before it was sent: from here on its pages are read from the bucket.
        self.cache.map().uploaded(&ObjectName::delta(id.txid), generation);
        self.note_appended(id);
        self.outbox.remove(id.txid)
    }

    /// What the bucket turned out to have when the lease was taken: a process was killed after its upload.
    pub(super) fn remember_settled(&self) -> Result<()> {
        let durable = self.shared.durable();
        for settled in self.outbox.list()?.iter().filter(|envelope| envelope.id.txid <= durable) {
            self.remember_uploaded(settled.id)?;
        }
        Ok(())
    }

    /// The unsent deltas from `from` on are those from `to` on now, behind seals: so are those that the page map was built with. Until
    /// then it names files that are gone, and whoever reads such a page looks it up again. Under the upload lane.
    pub(super) fn move_unsent(&self, from: TxId, to: TxId) -> Result<()> {
        let map = self.cache.map();
        let Some(built_with) = (map.txid().0 + 1).checked_sub(from.0).filter(|&deltas| deltas > 0) else {
            return Ok(());
        };
        let mut indexes = self.read_indexes(self.chain_to(TxId(to.0 - 1))?)?;
        for unsent in self.outbox.list()?.iter().filter(|unsent| unsent.id.txid.0 < to.0 + built_with) {
            indexes.push(self.outbox.index(&unsent.id)?);
        }
        map.rebuild(&indexes)
    }

    /// A seal of this host's is in the log: it changes no page. What is not remembered is looked up in the bucket.
    pub(super) fn remember_seal(&self, id: ObjectId, generation: Generation, timestamp_ms: i64, bytes: &[u8]) {
        let (max, generation, size) = (id.txid.0, generation.0, id.size);
        self.keeper.appended(id, Generation(generation), timestamp_ms);
        let seal = Pending { min: max, max, generation, size, ..Pending::default() };
        if let Err(e) = self.pending.add(&seal, bytes, bytes) {
            log::debug!("{e}");
        }
    }

    /// Which write of its name a delta is.
    fn generation_of(&self, txid: TxId) -> Result<Generation> {
        let name = self.replica.ltx(&ObjectName::delta(txid));
        let store = self.replica.store().clone();
        let what = format!("reading {name}");
        let object = runtime::wait(&what, STORE_WAIT, async move { store.get(&name, Some(0..1)).await })?;
        Ok(object.map_err(|e| Error::from(e).context(what))?.meta.generation)
    }

    /// Before what is committed is frozen: ends the epoch of what checkpoints wrote, where that is worth it.
    pub(super) fn end_epoch(&self) -> Option<u64> {
        let is_due = self.cache.has_unclean() && self.epochs.lock().len() < EPOCHS;
        is_due.then(|| self.cache.end_epoch())
    }

    /// After that: what was written in the epoch is in the deltas up to the newest frozen one.
    pub(super) fn note_epoch(&self, epoch: Option<u64>) {
        if let Some(epoch) = epoch {
            self.epochs.lock().push_back((epoch, self.shared.frozen()));
        }
    }

    /// Applies what is durable and backfilled. Under the upload lane.
    pub(crate) fn update_map(&self) -> Result<()> {
        let map = self.cache.map();
        let Some(wal) = self.backfilled() else { return Ok(()) };
        for remembered in self.pending.list()? {
            let (pending, index) = remembered?;
            let (min, max) = (TxId(pending.min), TxId(pending.max));
            if max > map.txid() {
                if !pending.is_backfilled(wal) {
                    break;
                }
                if min > map.txid().next() {
                    self.fill_gap(max)?;
                } else {
                    map.apply(&[index])?;
                }
            }
            self.pending.remove(&pending)?;
        }
        let mut epochs = self.epochs.lock();
        while let Some((epoch, txid)) = epochs.front().copied() {
            if txid > map.txid() {
                break;
            }
            self.cache.set_clean(epoch);
            epochs.pop_front();
        }
        Ok(())
    }

    /// As [`Database::update_map`], when nothing is left to send: also what no file of ours remembers.
    pub(crate) fn update_map_when_idle(&self) -> Result<()> {
        let durable = self.shared.durable();
        if !self.cache.has_unclean() && self.cache.map().txid() >= durable {
            return Ok(());
        }
        let Some(_uploader) = self.uploader.try_lock()? else { return Ok(()) };
        let epoch = self.end_epoch();
        self.freeze_committed()?;
        self.note_epoch(epoch);
        self.update_map()?;
        let is_forgotten = self.cache.map().txid() < durable && self.pending.is_empty()?;
        if is_forgotten && let Some(wal) = self.backfilled() {
            let position = self.change_state(|state| state.position)?;
            let last = Pending { salts: position.salts, frames: position.frames, ..Pending::default() };
            if last.is_backfilled(wal) {
                self.fill_gap(durable)?;
                self.update_map()?;
            }
        }
        Ok(())
    }

    /// What is committed and backfilled; `None` where that cannot be known just now.
    pub(crate) fn backfilled(&self) -> Option<Wal> {
        let Some(index) = self.wal_index() else {
            let size = std::fs::metadata(self.layout.wal()).map_or(0, |wal| wal.len());
            return (size == 0).then_some(None);
        };
        let bytes = index.bytes()?;
        let committed = index::parse(&bytes)?;
        Some(Some((committed, u32::from_ne_bytes([bytes[96], bytes[97], bytes[98], bytes[99]]))))
    }

    /// Applies what the bucket has beyond the map, up to `to`.
    fn fill_gap(&self, to: TxId) -> Result<()> {
        let from = self.cache.map().txid();
        let chain = self.chain_to(to)?;
        let newer = chain.objects.into_iter().filter(|object| object.name.max > from).collect();
        log::debug!("{}: looking up {from} to {to} for the page map", self.replica.place());
        let indexes = self.read_indexes(Chain { objects: newer })?;
        self.cache.map().apply(&indexes)
    }

    /// An object of the map is gone, for another that covers more: plans anew to the same transaction.
    pub(crate) fn plan_anew(&self, why: &Error) -> Result<()> {
        let txid = self.cache.map().txid();
        log::info!("{}: planning anew to {txid}: {why}", self.replica.place());
        let _uploader = self.uploader.lock_within(MAP_WAIT, "the upload lock")?;
        let chain = self.chain_to(self.cache.map().txid())?;
        let indexes = self.read_indexes(chain)?;
        self.cache.map().rebuild(&indexes)
    }

    fn chain_to(&self, to: TxId) -> Result<Chain> {
        let replica = self.replica.clone();
        let what = format!("listing {}", self.replica.place());
        let listed = runtime::wait(&what, STORE_WAIT, async move { replica.list().await })??;
        chain::plan(&listed, Some(to))?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("{}: {to} is not there any more", self.replica.place()))
        })
    }

    pub(crate) fn read_indexes(&self, chain: Chain) -> Result<Vec<ObjectIndex>> {
        let replica = self.replica.clone();
        let what = format!("reading page indexes of {}", self.replica.place());
        runtime::wait(&what, STORE_WAIT, async move { replica.indexes(&chain).await })?
    }

    /// Before a writer begins: waits until there is room for what it may write, which uploads and checkpoints make.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] when there is none at all in time.
    pub(crate) fn wait_to_begin(&self) -> Result<()> {
        let Some(limit) = self.cache.limit() else { return Ok(()) };
        if self.wait_for_room(limit / RESERVE)? || self.has_room(0)? { Ok(()) } else { Err(self.no_room()) }
    }

    /// Before so many bytes more are written: waits until they have room.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] when they have none in time.
    pub(crate) fn wait_to_write(&self, bytes: u64) -> Result<()> {
        if self.cache.take_room(bytes)? || self.wait_for_room(bytes)? { Ok(()) } else { Err(self.no_room()) }
    }

    /// Waits as long as anything is being sent, or may be checkpointed, that would make room. Returns whether there is.
    fn wait_for_room(&self, bytes: u64) -> Result<bool> {
        if self.has_room(bytes)? {
            return Ok(true);
        }
        let started = Instant::now();
        let mut settled_since = started;
        self.urgent.fetch_add(1, Ordering::SeqCst);
        let mut result = Ok(false);
        while matches!(result, Ok(false)) && started.elapsed() < ROOM_WAIT && settled_since.elapsed() < SETTLED_WAIT {
            self.call_uploader(Instant::now());
            drop(self.settled.1.wait_for(self.settled.0.lock(), ROOM_POLL));
            if self.is_pending() {
                settled_since = Instant::now();
            }
            result = self.has_room(bytes);
        }
        self.urgent.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Whether so many bytes more have room; makes it by eviction.
    fn has_room(&self, more: u64) -> Result<bool> {
        if self.cache.make_room(more)? {
            return Ok(true);
        }
        self.cut_wal()?;
        self.cache.make_room(more)
    }

    fn no_room(&self) -> Error {
        let (limit, used) = self.cache.bounds().unwrap_or_default();
        let why = self.last_error.lock().clone();
        let why = why.map_or_else(String::new, |why| format!("; the last upload failed: {why}"));
        let message = format!(
            "{}: cache_size={limit} is used up ({used} bytes) by what is not in the bucket and the database file yet; \
             commit smaller transactions, let checkpoints run, or raise cache_size{why}",
            self.layout.main().display()
        );
        Error::new(ErrorKind::Full, message)
    }

    /// Gives back what the WAL file has behind its committed end: the rest of a longer generation, or of a transaction
    /// that was rolled back.
    fn cut_wal(&self) -> Result<()> {
        let Some(_writers) = self.keep_writers_out() else { return Ok(()) };
        let Some(Some((committed, _))) = self.backfilled() else { return Ok(()) };
        let frame = 24 + u64::from(self.page_size.bytes());
        let end = 32 + u64::from(committed.frames) * frame;
        let path = self.layout.wal();
        let cut = || {
            let file = std::fs::File::options().write(true).open(&path)?;
            if file.metadata()?.len() > end { file.set_len(end) } else { Ok(()) }
        };
        cut().map_err(|e| Error::local(format!("cutting {}", path.display()), &e))
    }
}

/// What is remembered of a delta of the outbox.
fn pending(envelope: &Envelope, generation: Generation) -> Pending {
    Pending {
        level: 0,
        min: envelope.id.txid.0,
        max: envelope.id.txid.0,
        generation: generation.0,
        size: envelope.id.size,
        salts: envelope.position.salts,
        frames: envelope.position.frames,
    }
}
