//! The past of a database in the bucket: kept small, kept openable, and found again.
//!
//! ```text
//! listing   what is there, with times        points    which states can be opened, and which an `at=` means (pure)
//! policy    what to merge and to delete (pure)
//! compact   makes one merge                   source    the bytes of an object as a stream
//! retain    deletes what may go
//! ```
//! [`Historian`] ties them together for the holder of the lease. It works off the commit path, one step at a time.
//!
//! - **Ordering.** A step is one merge, or the deletes that are due. Deletes come only when there is nothing to merge, at least
//!   ten minutes after what replaces the deleted was put, and after that was verified.
//! - **Retries.** A step that failed is forgotten; a later one starts from a new listing.
//! - **Stop.** A step asks for the right before every write. Two historians at once, or one of a stalled holder, do no harm.
//! - **Crash.** Every cut leaves a valid replica: what was put is a true copy, and what was deleted is covered. What a crash left
//!   undone is seen in the next listing.
//! - **Requests.** None while nothing is written. A merge per 64 deltas or so; a listing per 1,024, where the caller tells
//!   of what it has sent ([`Historian::appended`]), else one per step.

mod compact;
pub mod listing;
pub mod points;
pub mod policy;
mod retain;
mod source;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::page::TxId;
use crate::protocol::ObjectId;
use crate::protocol::chain::Chain;
use crate::protocol::deletes::may_compact;
use crate::replica::fetch::{LocalObjects, NoLocalObjects};
use crate::replica::names::{ObjectName, Replica};
use crate::store::BucketTime;
use crate::sync::Mutex;

use self::compact::Compactor;
use self::listing::Row;
use self::policy::{Merge, Policy, TAIL};
use self::retain::Verified;

/// A listing is used again until so many transactions later, where it was kept up by [`Historian::appended`].
const LISTING_LASTS: u64 = 16 * TAIL as u64;
/// After an error nothing is tried until so many transactions later.
const AFTER_ERROR: u64 = 16;

/// What this host itself reads from the bucket while its database is open.
pub trait InUse: Send + Sync {
    /// The state whose pages it reads. That one and all later ones are kept.
    fn state(&self) -> TxId;

    /// Some objects are about to be deleted. When this returns, nothing is read from them any more, but from what is left.
    ///
    /// # Errors
    /// Whatever hinders that; nothing is deleted then.
    fn leave(&self, going: &BTreeSet<ObjectName>, left: &[Row]) -> Result<()>;

    /// The largest result of a merge that the local disk should hold, in bytes.
    fn largest_bytes(&self) -> u64;

    /// Makes room for the result of a merge, and says whether it could.
    ///
    /// # Errors
    /// The disk's.
    fn make_room(&self, bytes: u64) -> Result<bool>;
}

/// What came of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// There is nothing to do for now.
    Nothing,
    /// One object was made from several.
    Merged {
        /// Its name; level 9 is a snapshot.
        name: ObjectName,
        /// Its size in bytes.
        bytes: u64,
        /// How many objects it was made from.
        inputs: usize,
    },
    /// Objects were deleted.
    Deleted {
        /// How many.
        objects: usize,
        /// Their sizes together, in bytes.
        bytes: u64,
    },
    /// The right was lost before the step wrote anything (more).
    Stopped,
}

#[derive(Debug, Default)]
struct Known {
    /// What is in the bucket, as far as it was listed and told.
    rows: Option<Vec<Row>>,
    /// The head when it was listed.
    listed_at: TxId,
    /// Merges that were decided on and not made yet.
    planned: VecDeque<Merge>,
    /// There may be something to do now.
    pending: bool,
    /// No step before this transaction.
    not_before: TxId,
    /// The next merge is due at this transaction, or when so many bytes were appended.
    next_at: Option<TxId>,
    bytes_left: u64,
    /// The first head that was asked about, while nothing was listed.
    first_asked: Option<TxId>,
    thinned_at: TxId,
    verified: Verified,
}

/// Keeps the history of one replica small, for the holder of its lease.
pub struct Historian {
    replica: Replica,
    scratch: PathBuf,
    policy: Policy,
    local: Arc<dyn LocalObjects>,
    in_use: Option<Arc<dyn InUse>>,
    known: Mutex<Known>,
    /// Held during a step.
    stepping: Mutex<()>,
}

impl std::fmt::Debug for Historian {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Historian")
            .field("replica", &self.replica)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Historian {
    /// For a replica, with a local folder that exists and has room for the result of a merge (at most the database's size), and the
    /// age up to which states are kept openable.
    pub fn new(replica: Replica, scratch: PathBuf, retention: Duration) -> Historian {
        Historian {
            replica,
            scratch,
            policy: Policy::new(retention),
            local: Arc::new(NoLocalObjects),
            in_use: None,
            known: Mutex::default(),
            stepping: Mutex::default(),
        }
    }

    /// Reads objects from the local disk where they are (still) there. Their bytes must be those in the bucket.
    pub fn with_local(self, local: Arc<dyn LocalObjects>) -> Historian {
        Historian { local, ..self }
    }

    /// Keeps what this host still reads.
    pub fn with_reader(self, in_use: Arc<dyn InUse>) -> Historian {
        Historian { in_use: Some(in_use), ..self }
    }

    /// Takes in a listing that was made anyway, as at a cold open, with the head it showed.
    pub fn observe(&self, rows: Vec<Row>, head: TxId) {
        let mut known = self.known.lock();
        known.planned.clear();
        known.pending = true;
        known.listed_at = head;
        known.rows = Some(rows);
    }

    /// Forgets what is in the bucket: the lease was acquired anew, so others may have written.
    pub fn forget(&self) {
        let mut known = self.known.lock();
        *known = Known { verified: std::mem::take(&mut known.verified), ..Known::default() };
    }

    /// Takes in a delta that is durable now: what the PUT answered. Saves listings; may be left out.
    pub fn appended(&self, row: Row) {
        let mut known = self.known.lock();
        known.bytes_left = known.bytes_left.saturating_sub(row.meta.size);
        if let Some(rows) = &mut known.rows
            && rows.iter().all(|other| other.name != row.name)
        {
            rows.push(row);
        }
    }

    /// Whether a step is worth its requests, with this head of the log. Makes none itself.
    ///
    /// A database whose log was not listed yet asks for a step at each 64th transaction.
    pub fn due(&self, durable: TxId) -> bool {
        let mut known = self.known.lock();
        let first = *known.first_asked.get_or_insert(durable);
        if durable < known.not_before {
            return false;
        }
        match known.next_at {
            _ if known.pending => true,
            Some(next) => durable >= next || known.bytes_left == 0,
            None => first.0 / TAIL as u64 != durable.0 / TAIL as u64,
        }
    }

    /// Makes one step: a merge, or the deletes that are due. To be called by the holder of the lease, off the commit path, until it
    /// answers [`Progress::Nothing`], and again when [`Historian::due`] says so. It waits for the bucket.
    ///
    /// `durable` is the newest delta that this host knows to be in the log; `now` a time that the bucket's clock has reached
    /// (from the `Date` of an answer; an older one only defers deletes); `right` says whether the lease is still held.
    ///
    /// # Errors
    /// The store's; [`ErrorKind::Corrupt`] for an object that is damaged, naming it; the disk's.
    pub fn run_step(&self, right: &dyn Fn() -> bool, durable: ObjectId, now: BucketTime) -> Result<Progress> {
        let Some(_stepping) = self.stepping.try_lock() else { return Ok(Progress::Nothing) };
        let done = self.step(right, durable, now);
        let mut known = self.known.lock();
        match &done {
            Ok(progress) => known.pending = !matches!(progress, Progress::Nothing | Progress::Stopped),
            Err(error) => {
                log::debug!("{}: history: {error}", self.replica.place());
                known.not_before = TxId(durable.txid.0 + AFTER_ERROR);
                (known.rows, known.pending) = (None, true);
                known.planned.clear();
            }
        }
        done
    }

    fn step(&self, right: &dyn Fn() -> bool, durable: ObjectId, now: BucketTime) -> Result<Progress> {
        if !right() {
            return Ok(Progress::Stopped);
        }
        let rows = self.rows(&durable)?;
        let planned = self.known.lock().planned.pop_front();
        let (merge, more) = match planned {
            Some(merge) => (Some(merge), VecDeque::new()),
            None => {
                let mut merges = VecDeque::from(self.decide(&rows, durable.txid, now)?);
                (merges.pop_front(), merges)
            }
        };
        if let Some(merge) = merge {
            self.known.lock().planned.extend(more);
            return self.merge(&merge, right);
        }
        let mut deletions = self.policy.deletions(&rows, now)?;
        if let Some(in_use) = &self.in_use {
            let state = in_use.state();
            let plan: BTreeSet<ObjectName> =
                listing::chain(&rows, Some(state)).unwrap_or_default().iter().map(|row| row.name).collect();
            deletions.retain(|deletion| deletion.row.name.max <= state && !plan.contains(&deletion.row.name));
        }
        if deletions.is_empty() {
            return Ok(Progress::Nothing);
        }
        if let Some(in_use) = &self.in_use {
            let going = deletions.iter().map(|deletion| deletion.row.name).collect();
            let left: Vec<Row> = rows.iter().filter(|row| !BTreeSet::contains(&going, &row.name)).cloned().collect();
            in_use.leave(&going, &left)?;
        }
        let mut verified = std::mem::take(&mut self.known.lock().verified);
        let deleted = retain::delete(&self.replica, &deletions, &mut verified, right);
        let mut known = self.known.lock();
        known.verified = verified;
        let deleted = deleted?;
        if let Some(rows) = &mut known.rows {
            rows.retain(|row| !deleted.gone.contains(row));
        }
        if deleted.surprised {
            known.rows = None;
        }
        let bytes = deleted.gone.iter().map(|row| row.meta.size).sum();
        match deleted.gone.len() {
            0 => Ok(Progress::Stopped),
            objects => Ok(Progress::Deleted { objects, bytes }),
        }
    }

    /// What is in the bucket up to the head, listed if it is not known.
    fn rows(&self, durable: &ObjectId) -> Result<Vec<Row>> {
        {
            let known = self.known.lock();
            let fresh = durable.txid.0 < known.listed_at.0 + LISTING_LASTS;
            if let Some(rows) = known.rows.as_ref().filter(|rows| fresh && self.is_log_up_to(rows, durable)) {
                return Ok(rows.clone());
            }
        }
        // A listing that crossed the deletes of another historian may show a hole: once more.
        let mut rows = listing::list(&self.replica)?;
        if !self.is_log_up_to(&rows, durable) {
            rows = listing::list(&self.replica)?;
        }
        if !self.is_log_up_to(&rows, durable) {
            listing::chain(&rows, Some(durable.txid))?;
            let why = format!("{}: the log does not show {durable}", self.replica.place());
            return Err(Error::new(ErrorKind::Fenced, why));
        }
        let mut known = self.known.lock();
        known.planned.clear();
        known.listed_at = durable.txid;
        known.rows = Some(rows.clone());
        Ok(rows)
    }

    /// Whether these objects are a log without a hole that has this very delta (rule 16 of the protocol). A directory lists no
    /// checksums: there the size has to do.
    fn is_log_up_to(&self, rows: &[Row], durable: &ObjectId) -> bool {
        let fill = |row: &Row| {
            let mut listed = row.in_protocol();
            if row.meta.crc32c.is_none() && row.name == ObjectName::delta(durable.txid) {
                listed.crc32c = durable.crc32c;
            }
            listed
        };
        let listed: Vec<_> = rows.iter().map(fill).collect();
        Chain::of(&listed).is_ok_and(|chain| may_compact(&chain, *durable, durable.txid))
    }

    /// The next merges; and when to look again.
    fn decide(&self, rows: &[Row], durable: TxId, now: BucketTime) -> Result<Vec<Merge>> {
        let policy = self.policy.up_to(self.in_use.as_ref().map_or(u64::MAX, |in_use| in_use.largest_bytes()));
        let outlook = policy.outlook(rows, durable)?;
        let mut known = self.known.lock();
        known.next_at = Some(TxId(durable.0 + outlook.deltas_left));
        known.bytes_left = outlook.bytes_left.max(1);
        if outlook.merges.is_empty() && known.thinned_at < durable {
            known.thinned_at = durable;
            return policy.thinning(rows, now);
        }
        Ok(outlook.merges)
    }

    fn merge(&self, merge: &Merge, right: &dyn Fn() -> bool) -> Result<Progress> {
        let bytes = merge.bytes();
        if let Some(in_use) = &self.in_use
            && !in_use.make_room(bytes)?
        {
            let why = format!("{}: no room for {bytes} bytes of a merge", self.replica.place());
            return Err(Error::new(ErrorKind::Full, why));
        }
        let compactor = Compactor { replica: &self.replica, scratch: &self.scratch, local: &self.local };
        let Some(row) = compactor.make(merge, right)? else {
            self.known.lock().planned.clear();
            return Ok(Progress::Stopped);
        };
        let (name, bytes, inputs) = (row.name, row.meta.size, merge.inputs.len());
        log::debug!("{}: {inputs} objects merged into {name}, {bytes} bytes", self.replica.place());
        let mut known = self.known.lock();
        known.verified.insert((name, row.meta.generation));
        if let Some(rows) = &mut known.rows {
            rows.retain(|other| other.name != name);
            rows.push(row);
        }
        Ok(Progress::Merged { name, bytes, inputs })
    }
}

#[cfg(test)]
mod tests;
