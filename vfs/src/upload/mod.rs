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

pub(crate) mod budget;
mod conditions;
pub(crate) mod driver;
mod fast_forward;
mod fetched;
pub(crate) mod follow;
pub(crate) mod group;
pub(crate) mod history;
mod lease;
pub(crate) mod lease_watch;
pub(crate) mod making_up;
mod map;
pub(crate) mod pump;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::capture::frames::HeldHeader;
use crate::capture::index::Committed;
use crate::capture::{Capture, Freeze};
use crate::database::{CAPTURE_WAIT, Database};
use crate::error::{Error, ErrorKind, Result};
use crate::local::shared::BootTime;
use crate::log;
use crate::outbox::Envelope;
use crate::page::Pgno;
use crate::protocol::{Append, Appended, Renew, Renewed};

/// How soon a turn looks again when another process is sending: while somebody waits for it, and otherwise.
const BUSY_URGENT: Duration = Duration::from_millis(1);
const BUSY: Duration = Duration::from_millis(20);
/// How soon a turn asks again for a lease that somebody else holds.
const BUSY_ELSEWHERE: Duration = Duration::from_millis(300);
/// How long one turn keeps sending a delta whose outcome is unknown, before it lets others at the locks.
const APPEND_WAIT: Duration = Duration::from_secs(10);
/// After failures in a row the next attempt waits this long, doubled each time, at most `BACKOFF_MOST`.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(5);

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
            // Somebody else's turn is no fault.
            Err(e) if e.kind() == ErrorKind::Busy => Some(Instant::now() + BUSY_ELSEWHERE),
            Err(e) => {
                self.note_error(&e);
                let failures = self.failures.fetch_add(1, Ordering::SeqCst).min(10);
                Some(Instant::now() + BACKOFF_MOST.min(BACKOFF * 2u32.pow(failures)))
            }
        }
    }
}

impl Database {
    /// One turn: freezes what is committed and sends what is frozen, if it is due, and tends the lease. Returns when to
    /// come again.
    fn send_what_is_due(&self) -> Result<Instant> {
        let mut next = Instant::now() + pump::look();
        if self.is_pending() {
            let wait = self.until_it_begins(BootTime::now());
            if wait > Duration::ZERO {
                next = next.min(Instant::now() + wait);
            } else {
                if !self.has_right() {
                    // A delta of others that is just becoming a commit looks like a local one; it is applied under this lane.
                    let Some(_lease) = self.lease_lane.try_lock()? else { return Ok(Instant::now() + BUSY) };
                    if !self.is_pending() {
                        return Ok(next);
                    }
                }
                // What an earlier process left needs the lease like any commit.
                self.ensure_right()?;
                let Some(_uploader) = self.uploader.try_lock()? else {
                    let urgent = self.urgent.load(Ordering::SeqCst) > 0;
                    return Ok(Instant::now() + if urgent { BUSY_URGENT } else { BUSY });
                };
                self.shared.set_last_put(BootTime::now());
                self.group.gather();
                let epoch = self.end_epoch();
                self.freeze_committed()?;
                self.note_epoch(epoch);
                self.append_all(Instant::now() + APPEND_WAIT)?;
                self.group.settled();
                self.update_map()?;
                self.tend_history()?;
                self.refresh_hot_index();
            }
        }
        let is_pending = self.is_pending();
        if !is_pending {
            self.update_map_when_idle()?;
        }
        if is_pending {
            // It came during the turn, and is due when the interval is over.
            next = next.min(Instant::now() + self.until_it_begins(BootTime::now()));
        }
        self.call_watch()?;
        match self.tend_lease(!is_pending)? {
            Some(tend) => Ok(next.min(tend)),
            None => Ok(next),
        }
    }

    /// Whether something committed is not in the bucket.
    pub(crate) fn is_pending(&self) -> bool {
        Capture::is_behind(&self.shared, self.committed().as_ref()) || self.shared.frozen() > self.shared.durable()
    }

    /// Sends what the outbox holds, in order, each delta until it is settled. Under the upload lane.
    pub(crate) fn append_all(&self, deadline: Instant) -> Result<()> {
        loop {
            match self.drive(Append::default(), deadline)? {
                Some(Appended::Durable(id)) => {
                    *self.last_error.lock() = None;
                    log::debug!("{}: {} is durable", self.replica.place(), id.txid);
                    self.making_up.uploaded();
                    self.remember_uploaded(id)?;
                }
                Some(Appended::Nothing) => return self.remember_settled(),
                Some(Appended::SteppedOver) => {}
                Some(Appended::Lapsed) => {
                    // Whoever holds the lease lane just now renews as well.
                    let renewed = match self.lease_lane.try_lock()? {
                        Some(_lane) => self.drive(Renew::default(), deadline)?,
                        None => None,
                    };
                    match renewed {
                        Some(Renewed::Held) => {}
                        Some(Renewed::Lost) => return self.settle_fenced(deadline),
                        None => return Err(self.not_settled()),
                    }
                }
                Some(Appended::Fenced) => return self.settle_fenced(deadline),
                None => return Err(self.not_settled()),
            }
        }
    }

    fn not_settled(&self) -> Error {
        let place = self.replica.place();
        let message =
            format!("{place}: the bucket does not answer; {} is kept and sent again", self.shared.durable().next());
        Error::new(ErrorKind::Unavailable, message)
    }

    /// Freezes everything committed into one delta.
    pub(crate) fn freeze_committed(&self) -> Result<Option<Envelope>> {
        self.freeze(None, None)
    }

    /// Freezes everything up to a commit, by default the last one that is published, into one delta.
    pub(crate) fn freeze(&self, commit: Option<Committed>, held: Option<HeldHeader>) -> Result<Option<Envelope>> {
        let mut capture = self.capture.lock_within(CAPTURE_WAIT, "the capture lock")?;
        let waiting = self.shared.waiting_since();
        let committed = commit.or_else(|| self.committed());
        capture.catch_up(&self.shared, committed.as_ref())?;
        let how = Freeze {
            txid: self.shared.frozen().next(),
            former_pages: self.shared.frozen_pages(),
            nonce: self.nonce(),
            timestamp_ms: now_ms().max(self.shared.last_timestamp_ms() + 1),
            base: &|pgno: Pgno, page: &mut [u8]| self.cache.read_present(pgno, page),
        };
        self.shared.set_waiting_since(BootTime::default());
        match capture.freeze(&self.shared, committed.as_ref(), held, &how) {
            Ok(frozen) => {
                if frozen.is_some() {
                    self.shared.set_last_timestamp_ms(how.timestamp_ms);
                }
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
}

/// How long one operation of the store may take in all; the store's own deadline is shorter.
pub(crate) const STORE_WAIT: Duration = Duration::from_secs(90);

/// The time for a delta's header, Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    (OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64
}
