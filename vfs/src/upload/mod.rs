//! Sending deltas to the bucket, in order, each under its own name, each settled before the next.
//!
//! - **Ordering.** TXID N+1 is sent only after N is known to be in the bucket. One process of the host sends at a time
//!   (the upload lock); any process may be that one, for the length of one turn.
//! - **Retries.** An upload whose outcome is unknown is repeated with the same bytes, which are frozen on disk before the
//!   first attempt, until it is settled: done, already there with these very bytes, or taken by another writer.
//! - **Stop.** A turn ends after the deltas that were there when it began. [`Database::close`] waits for what is committed.
//! - **Crash.** After the freeze: the delta is in the outbox and sent again at the next open. After the PUT and before the
//!   state file: the same, and the bucket answers that these bytes are there. After the state file and before the removal:
//!   the file is removed at the next open.

pub(crate) mod pump;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::capture::{Capture, Freeze};
use crate::database::{DURABLE_WAIT, Database};
use crate::error::{ErrorKind, Result};
use crate::local::shared::BootTime;
use crate::local::state::{ObjectId, State};
use crate::log;
use crate::outbox::Envelope;
use crate::page::{Pgno, TxId};
use crate::replica::names::ObjectName;
use crate::runtime;
use crate::store::{Condition, StoreError};

/// How often an idle process looks for commits whose own process did not live to send them.
const LOOK: Duration = Duration::from_secs(1);
/// How soon a turn looks again when another process is sending: while somebody waits for it, and otherwise.
const BUSY_URGENT: Duration = Duration::from_millis(1);
const BUSY: Duration = Duration::from_millis(20);
/// After failures in a row the next attempt waits this long, doubled each time, at most `BACKOFF_MOST`.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(5);

/// What the upload lock guards in this process.
#[derive(Debug)]
pub(crate) struct Uploader {
    /// The state file's content, as this process last read or wrote it.
    pub(crate) state: State,
}

impl pump::Turn for Database {
    fn turn(&self) -> Option<Instant> {
        match self.send_what_is_due() {
            Ok(next) => {
                self.failures.store(0, Ordering::SeqCst);
                Some(next)
            }
            Err(e) if e.kind() == ErrorKind::Fenced => {
                self.note_error(&e);
                self.settled.1.notify_all();
                None
            }
            Err(e) => {
                self.note_error(&e);
                let failures = self.failures.fetch_add(1, Ordering::SeqCst).min(10);
                Some(Instant::now() + BACKOFF_MOST.min(BACKOFF * 2u32.pow(failures)))
            }
        }
    }
}

impl Database {
    /// One turn: freezes what is committed and sends what is frozen, if it is due. Returns when to come again.
    fn send_what_is_due(&self) -> Result<Instant> {
        let behind = Capture::is_behind(&self.shared, self.committed().as_ref());
        if !behind && self.shared.frozen() == self.shared.durable() {
            return Ok(Instant::now() + LOOK);
        }
        let wait = self.until_due(BootTime::now());
        if wait > Duration::ZERO {
            return Ok(Instant::now() + wait);
        }
        let Some(mut uploader) = self.uploader.try_lock()? else {
            let urgent = self.urgent.load(Ordering::SeqCst) > 0;
            return Ok(Instant::now() + if urgent { BUSY_URGENT } else { BUSY });
        };
        if self.shared.fenced() {
            return Err(self.fenced());
        }
        // Another process may have sent in the meantime.
        if let Some(state) = State::load(&self.layout.state())? {
            uploader.state = state;
        }
        self.shared.set_last_put(BootTime::now());
        self.freeze_committed()?;
        for envelope in self.outbox().list()? {
            if envelope.id.txid > uploader.state.durable_txid() {
                self.send(&envelope)?;
                self.note_durable(&mut uploader, &envelope)?;
            }
            self.outbox().remove(envelope.id.txid)?;
        }
        drop(uploader);
        // A commit that came during the turn is due when the interval is over.
        let behind = Capture::is_behind(&self.shared, self.committed().as_ref());
        Ok(Instant::now() + if behind { self.until_due(BootTime::now()) } else { LOOK })
    }

    /// Freezes everything committed into one delta.
    fn freeze_committed(&self) -> Result<Option<Envelope>> {
        let mut capture = self.capture.lock_within(DURABLE_WAIT, "the capture lock")?;
        let waiting = self.shared.waiting_since();
        let committed = self.committed();
        capture.catch_up(&self.shared, committed.as_ref())?;
        let how = Freeze {
            txid: self.shared.frozen().next(),
            former_pages: self.shared.frozen_pages(),
            nonce: self.nonce(),
            timestamp_ms: now_ms().max(self.shared.last_timestamp_ms() + 1),
            base: &|pgno: Pgno, page: &mut [u8]| self.cache.read_present(pgno, page),
        };
        self.shared.set_waiting_since(BootTime::default());
        match capture.freeze(&self.shared, committed.as_ref(), &how) {
            Ok(frozen) => {
                self.shared.set_last_timestamp_ms(how.timestamp_ms);
                if self.shared.frozen() > self.shared.durable() {
                    self.shared.set_waiting_since(waiting);
                }
                Ok(frozen)
            }
            Err(e) => {
                self.shared.set_waiting_since(waiting);
                Err(e)
            }
        }
    }

    /// Sends a delta until it is settled, or until the store gives up for now.
    fn send(&self, envelope: &Envelope) -> Result<()> {
        let id = envelope.id;
        let name = self.replica.ltx(&ObjectName::delta(id.txid));
        let bytes = self.outbox().read(&id)?;
        let store = self.replica.store().clone();
        let metadata = metadata(envelope.timestamp_ms);
        let put = {
            let name = name.clone();
            async move { store.put(&name, bytes, &metadata, Condition::Absent).await }
        };
        log::debug!("{name}: sending {} bytes", id.size);
        match runtime::wait(&format!("sending {name}"), STORE_WAIT, put)? {
            Ok(_) => Ok(()),
            Err(StoreError::Precondition(_)) => match self.stored_id(id.txid)? {
                Some(stored) if stored == id => Ok(()),
                _ => {
                    self.shared.set_fenced();
                    Err(self.fenced())
                }
            },
            Err(e) => Err(e.into()),
        }
    }

    /// The object id of the level-0 object of a TXID; `None` if there is no such object.
    fn stored_id(&self, txid: TxId) -> Result<Option<ObjectId>> {
        let name = self.replica.ltx(&ObjectName::delta(txid));
        let store = self.replica.store().clone();
        let get = {
            let name = name.clone();
            async move { store.get(&name, None).await }
        };
        match runtime::wait(&format!("reading {name}"), STORE_WAIT, get)? {
            Ok(object) => {
                let crc32c = crc32c::crc32c(&object.bytes);
                Ok(Some(ObjectId { txid, size: object.bytes.len() as u64, crc32c }))
            }
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Publishes that a delta is in the bucket: to those who wait first, then to the state file.
    fn note_durable(&self, uploader: &mut Uploader, envelope: &Envelope) -> Result<()> {
        self.shared.set_durable(envelope.id.txid);
        self.settled.1.notify_all();
        *self.last_error.lock() = None;
        log::debug!("{}: {} is durable", self.replica.place(), envelope.id.txid);
        uploader.state.durable = Some(envelope.id);
        uploader.state.position = envelope.position;
        uploader.state.save(&self.layout.state())
    }
}

/// How long one operation of the store may take in all; the store's own deadline is shorter.
const STORE_WAIT: Duration = Duration::from_secs(90);

/// The custom metadata of an LTX object: the time that Litestream's restore goes by.
pub(crate) fn metadata(timestamp_ms: i64) -> BTreeMap<String, String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(timestamp_ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let text = at.format(&Rfc3339).unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned());
    BTreeMap::from([("litestream-timestamp".to_owned(), text)])
}

/// The time for a delta's header, Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    (OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64
}
