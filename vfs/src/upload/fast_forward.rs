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

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::STORE_WAIT;
use super::fetched::{Fetched, Fetcher};
use crate::apply::Outcome;
use crate::cache::pending::Pending;
use crate::database::{Database, WalEnd};
use crate::delta::Decoder;
use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::page::TxId;
use crate::protocol::ObjectId;
use crate::replica::chain;
use crate::replica::names::Listed;
use crate::runtime;

/// The pause before the WRITE lock is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// So many deltas are fetched by their names, side by side; more are planned from a listing, which finds compacted ones.
const FEW: u64 = 16;
/// Who asks for the lease waits for what it brings.
static NEVER: AtomicBool = AtomicBool::new(false);

impl Database {
    /// Takes in all deltas up to `head`.
    ///
    /// # Errors
    /// Busy when a local connection writes until the deadline; the bucket's and the disk's.
    pub(super) fn fast_forward(&self, head: ObjectId, deadline: Instant) -> Result<()> {
        let from = self.shared.durable();
        match self.fetch_few(from, head)? {
            Some(deltas) => {
                for delta in &deltas {
                    self.apply_within(delta, delta.id, deadline)?;
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
    fn fetch_few(&self, from: TxId, head: ObjectId) -> Result<Option<Vec<Fetched>>> {
        if head.txid <= from || head.txid.0 - from.0 > FEW {
            return Ok(None);
        }
        let (mut deltas, mut ahead) = (Vec::new(), VecDeque::new());
        for txid in from.0 + 1..=head.txid.0 {
            match self.fetcher().delta(TxId(txid), head.txid.0 + 1 - txid, &mut ahead)? {
                Some(delta) => deltas.push(delta),
                None => return Ok(None),
            }
        }
        Ok(deltas.last().is_some_and(|delta| delta.id == head).then_some(deltas))
    }

    /// The same along the plan of a listing.
    fn apply_planned(&self, from: TxId, head: ObjectId, deadline: Instant) -> Result<()> {
        let replica = self.replica.clone();
        let what = format!("listing {}", self.replica.place());
        let listed = runtime::wait(&what, STORE_WAIT, async move { replica.list().await })??;
        for object in &chain::plan_onto(&listed, from, head.txid)? {
            let found = self.fetcher().object(object)?;
            // The log knows its head by the delta, also where a compacted object ends at the same TXID.
            let id = if found.id.txid == head.txid { head } else { found.id };
            self.apply_within(&found, id, deadline)?;
        }
        Ok(())
    }

    /// Remembers where the pages lie of an object that is in the WAL now, which ends with it.
    pub(super) fn remember_applied(&self, found: &Fetched, end: WalEnd) -> Result<()> {
        let Listed { name, meta } = &found.object;
        let pending = Pending {
            level: name.level,
            min: name.min.0,
            max: name.max.0,
            generation: meta.generation.0,
            size: meta.size,
            salts: end.salts,
            frames: end.frames,
        };
        let (start, end) = found.ends()?;
        self.pending.add(&pending, &start, &end)
    }

    /// Makes it a commit of the local WAL, if it is not known already.
    fn apply_within(&self, found: &Fetched, id: ObjectId, deadline: Instant) -> Result<()> {
        let busy =
            || Error::new(ErrorKind::Busy, format!("{}: a local transaction writes", self.layout.main().display()));
        loop {
            match self.apply(Decoder::new(found.reader())?, id)? {
                Outcome::Applied(progress) => return self.remember_applied(found, progress.end),
                Outcome::Known => return Ok(()),
                // Local commits that came in meanwhile are judged by the next acquisition.
                Outcome::Conflict => return Err(busy()),
                Outcome::Busy if Instant::now() >= deadline => return Err(busy()),
                Outcome::Busy => std::thread::sleep(PAUSE),
            }
        }
    }

    fn fetcher(&self) -> Fetcher<'_> {
        Fetcher { replica: &self.replica, scratch: self.layout.dir(), stopped: &NEVER }
    }
}
