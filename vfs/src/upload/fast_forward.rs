//! Bringing a live database up to the log's head: what another writer appended becomes commits of the local WAL.
//!
//! Only when nothing local is unsent; whether that is so is checked again under the WAL's WRITE lock (`apply/`). Connections
//! keep their snapshots. A transaction that had begun to read before and wants to write meets SQLITE_BUSY, like after
//! any commit of somebody else.
//!
//! - **Ordering.** Under both lanes of the protocol, so nothing is appended or captured beside it.
//! - **Retries.** While a local connection holds the WRITE lock: until the deadline, then Busy. An object that is gone: the
//!   listing is planned anew.
//! - **Crash.** Each delta is in the WAL whole or not at all, and the state file follows (`apply/`).

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::STORE_WAIT;
use crate::apply::Outcome;
use crate::cache::pending::Pending;
use crate::database::{Database, WalEnd};
use crate::delta::Decoder;
use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::page::TxId;
use crate::protocol::ObjectId;
use crate::replica::chain;
use crate::replica::names::{Listed, ObjectName};
use crate::runtime;
use crate::store::StoreError;

/// The pause before the WRITE lock is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// So many deltas are fetched by their names, side by side; more are planned from a listing, which finds compacted ones.
const FEW: u64 = 16;

impl Database {
    /// Takes in all deltas up to `head`.
    ///
    /// # Errors
    /// Busy when a local connection writes until the deadline; the bucket's and the disk's.
    pub(super) fn fast_forward(&self, head: ObjectId, deadline: Instant) -> Result<()> {
        let from = self.shared.durable();
        match self.fetch_few(from, head)? {
            Some(deltas) => {
                for (object, id, bytes) in deltas {
                    if let Some(end) = self.apply_within(&bytes, id, deadline)? {
                        self.remember_applied(&object, end, &bytes)?;
                    }
                }
            }
            None => self.apply_planned(from, head, deadline)?,
        }
        // Where the delta itself is compacted away, the database is at its TXID all the same.
        self.change_state(|state| {
            if state.durable_txid() == head.txid {
                state.protocol.durable = Some(head);
            }
        })?;
        if self.shared.durable() < head.txid {
            let message = format!("{}: {} is not to be had", self.replica.place(), head.txid);
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        log::info!("{}: caught up from {from} to {}", self.replica.place(), head.txid);
        Ok(())
    }

    /// The deltas after `from`, without asking for a listing; `None` when they are many, or one of them is gone by compaction.
    fn fetch_few(&self, from: TxId, head: ObjectId) -> Result<Option<Vec<(Listed, ObjectId, Bytes)>>> {
        if head.txid <= from || head.txid.0 - from.0 > FEW {
            return Ok(None);
        }
        let (replica, store) = (self.replica.clone(), self.replica.store().clone());
        let gets = async move {
            let get = |txid| {
                let (name, store) = (replica.ltx(&ObjectName::delta(TxId(txid))), store.clone());
                async move { store.get(&name, None).await }
            };
            futures::future::join_all((from.0 + 1..=head.txid.0).map(get)).await
        };
        let mut deltas = Vec::new();
        for (object, txid) in
            runtime::wait("reading the newest deltas", STORE_WAIT, gets)?.into_iter().zip(from.0 + 1..)
        {
            let object = match object {
                Ok(object) => object,
                Err(StoreError::NotFound(_)) => return Ok(None),
                Err(e) => return Err(Error::from(e).context("reading the newest deltas")),
            };
            let bytes = object.bytes;
            let id = ObjectId { txid: TxId(txid), size: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) };
            deltas.push((Listed { name: ObjectName::delta(TxId(txid)), meta: object.meta }, id, bytes));
        }
        Ok(deltas.last().is_some_and(|(_, id, _)| *id == head).then_some(deltas))
    }

    /// The same along the plan of a listing.
    fn apply_planned(&self, from: TxId, head: ObjectId, deadline: Instant) -> Result<()> {
        let replica = self.replica.clone();
        let what = format!("listing {}", self.replica.place());
        let listed = runtime::wait(&what, STORE_WAIT, async move { replica.list().await })??;
        for object in &chain::plan_onto(&listed, from, head.txid)? {
            let bytes = self.fetch(object)?;
            let found = ObjectId { txid: object.name.max, size: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) };
            // The log knows its head by the delta, also where a compacted object ends at the same TXID.
            let id = if found.txid == head.txid { head } else { found };
            if let Some(end) = self.apply_within(&bytes, id, deadline)? {
                self.remember_applied(object, end, &bytes)?;
            }
        }
        Ok(())
    }

    /// Remembers where the pages lie of an object that is in the WAL now.
    pub(super) fn remember_applied(&self, object: &Listed, end: WalEnd, bytes: &[u8]) -> Result<()> {
        let pending = Pending {
            level: object.name.level,
            min: object.name.min.0,
            max: object.name.max.0,
            generation: object.meta.generation.0,
            size: bytes.len() as u64,
            salts: end.salts,
            frames: end.frames,
        };
        self.pending.add(&pending, bytes, bytes)
    }

    /// Returns where the WAL ends with it, if it was not known already.
    fn apply_within(&self, bytes: &[u8], id: ObjectId, deadline: Instant) -> Result<Option<WalEnd>> {
        let busy =
            || Error::new(ErrorKind::Busy, format!("{}: a local transaction writes", self.layout.main().display()));
        loop {
            match self.apply(Decoder::new(bytes)?, id)? {
                Outcome::Applied(progress) => return Ok(Some(progress.end)),
                Outcome::Known => return Ok(None),
                // Local commits that came in meanwhile are judged by the next acquisition.
                Outcome::Conflict => return Err(busy()),
                Outcome::Busy if Instant::now() >= deadline => return Err(busy()),
                Outcome::Busy => std::thread::sleep(PAUSE),
            }
        }
    }

    fn fetch(&self, object: &Listed) -> Result<Bytes> {
        let name = self.replica.ltx(&object.name);
        let store = self.replica.store().clone();
        let what = format!("reading {name}");
        let get = async move { store.get(&name, None).await };
        let object = runtime::wait(&what, STORE_WAIT, get)?;
        Ok(object.map_err(|e| Error::from(e).context(what))?.bytes)
    }
}
