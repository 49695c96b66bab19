//! The right to append: taken at the first write, kept while there is work, given back soon after.
//!
//! - **Ordering.** One operation on the lease at a time per host (the lease lock). Taking it and giving it back also hold the
//!   upload lock. What is committed is frozen before the lease is taken, and given back only with everything settled and
//!   the WAL's WRITE lock held, so that no commit of any process is under way.
//! - **Retries.** The protocol's. A lease that is somebody else's is asked for again after a quarter of a second at the earliest.
//! - **Stop.** A close gives the lease back if no other process of the host has the database open; if that fails it expires.
//! - **Crash.** The lease expires; the next writer seals the log.

use std::time::{Duration, Instant};

use super::driver::now;
use crate::database::Database;
use crate::error::{Error, ErrorKind, Result};
use crate::local::conflict;
use crate::local::shared::BootTime;
use crate::log;
use crate::page::TxId;
use crate::protocol::{Acquire, Acquired, Release, Released, Renew, Renewed, Settle, Stop, Verdict};

/// How long a lease that was seen held counts as held without a request.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How soon a lease that could not be given back at once is tried again before the process ends.
const GIVE_BACK_PAUSE: Duration = Duration::from_millis(20);
/// How long after the last commit an idle host gives the lease back.
pub(super) const IDLE: Duration = Duration::from_secs(2);
/// How often a host that writes looks whether somebody waits for the lease.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How soon it is tried again when another thread or process acts on the lease.
pub(super) const BUSY: Duration = Duration::from_millis(20);
/// The shortest turn of a host whose lease is wanted, in milliseconds.
pub(super) const TURN_MS: u64 = 3_000;

impl Database {
    /// Makes sure that a commit that begins now may be acknowledged. Cheap while the right stands; else it takes the request timeout at
    /// the most, with whatever this host does with the lease just now.
    ///
    /// # Errors
    /// Busy while somebody else may write; Fenced when the local commits lost the log; Unavailable.
    pub(crate) fn ensure_right(&self) -> Result<()> {
        self.check_poison()?;
        if self.has_right() {
            return Ok(());
        }
        if BootTime::now() < self.shared.held_elsewhere() {
            return Err(self.held_elsewhere());
        }
        self.check_reachable()?;
        let deadline = Instant::now() + self.request_timeout();
        let left = || deadline.saturating_duration_since(Instant::now());
        let _lease = self.lease_lane.lock_within(left(), "the lease lock")?;
        let _upload = self.uploader.lock_within(left(), "the upload lock")?;
        self.check_poison()?;
        if self.has_right() {
            return Ok(());
        }
        self.check_reachable()?;
        let result = self.acquire(deadline);
        *self.unreachable.lock() = match &result {
            Err(e) if e.kind() == ErrorKind::Unavailable => Some((Instant::now(), e.clone())),
            _ => None,
        };
        result
    }

    /// Refuses at once for a while after the bucket did not answer: SQLite's busy handler counts its own pauses only, and would
    /// wait for the bucket many times over.
    fn check_reachable(&self) -> Result<()> {
        match &*self.unreachable.lock() {
            Some((since, error)) if since.elapsed() < self.request_timeout() / 2 => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// A transaction that is open meets the end of the right: takes it up again if nobody else took the lease.
    ///
    /// # Errors
    /// Fenced when somebody did; Unavailable when that cannot be known in time.
    pub(crate) fn resume_right(&self) -> Result<()> {
        let deadline = Instant::now() + self.request_timeout();
        let _lease = self.lease_lane.lock_within(self.request_timeout(), "the lease lock")?;
        if self.has_right() {
            return Ok(());
        }
        match self.drive(Renew::default(), deadline)? {
            Some(Renewed::Held) if self.has_right() => Ok(()),
            Some(_) => Err(self.fenced()),
            None => Err(self.no_lease_in_time()),
        }
    }

    /// Whether the right to acknowledge commits stands now.
    pub(crate) fn has_right(&self) -> bool {
        BootTime::now() < self.shared.right()
    }

    /// Takes the lease, under both lanes.
    pub(super) fn acquire(&self, deadline: Instant) -> Result<()> {
        self.check_conditions()?;
        self.freeze_committed()?;
        loop {
            let stop = self.change_state(|state| state.protocol.may_commit(now()).err())?;
            match stop {
                None => return Ok(()),
                Some(Stop::Lapsed) => match self.drive(Renew::default(), deadline)? {
                    Some(Renewed::Held) => continue,
                    Some(Renewed::Lost) => {}
                    None => return Err(self.no_lease_in_time()),
                },
                Some(Stop::NoLease | Stop::Behind) => {}
            }
            match self.drive(Acquire::default(), deadline)? {
                None => return Err(self.no_lease_in_time()),
                Some(Acquired::Ready) => {
                    log::info!("{}: this host writes now", self.replica.place());
                    self.shared.note_lease_used(BootTime::now());
                    self.shared.set_others_write(false);
                    *self.holder.lock() = None;
                    return Ok(());
                }
                Some(Acquired::Lapsed) => {}
                Some(Acquired::Behind(head)) => {
                    self.keeper.forget();
                    self.fast_forward(head, deadline)?;
                }
                Some(Acquired::Busy(holder)) => {
                    *self.holder.lock() = Some(holder.who);
                    self.shared.set_held_elsewhere(BootTime::now().plus(ASK_AGAIN));
                    self.shared.set_others_write(true);
                    return Err(self.held_elsewhere());
                }
                Some(Acquired::Refused(verdict)) => return Err(self.refused(verdict)),
            }
        }
    }

    /// The deltas of the outbox have no place in the log: finds out which, and keeps them aside.
    pub(super) fn settle_fenced(&self, deadline: Instant) -> Result<()> {
        match self.drive(Settle::default(), deadline)? {
            None => Err(self.no_lease_in_time()),
            Some(Verdict::Continues | Verdict::Behind(_)) => Ok(()),
            Some(verdict) => Err(self.refused(verdict)),
        }
    }

    /// Whether somebody wrote just now, or the history is tended.
    pub(super) fn is_at_work(&self) -> bool {
        self.idle() < IDLE || self.keeper.is_busy()
    }

    /// For how long nobody has written.
    fn idle(&self) -> Duration {
        BootTime::now().since(self.shared.last_commit().max(self.shared.lease_used()))
    }

    /// Gives the lease back as the time asks for; the rest is the watch's. Returns when to come again.
    pub(super) fn tend_lease(&self, is_settled: bool) -> Result<Option<Instant>> {
        if self.shared.right() == BootTime::default() {
            return Ok(None);
        }
        let Some(_lease) = self.lease_lane.try_lock()? else { return Ok(Some(Instant::now() + BUSY)) };
        let deadline = Instant::now() + self.request_timeout();
        if is_settled && !self.is_at_work() && self.give_back(deadline)? {
            return Ok(None);
        }
        if self.change_state(|state| state.protocol.should_hand_over(now(), TURN_MS))? {
            self.give_back(deadline)?;
        }
        let soon = LOOK.min(IDLE.saturating_sub(self.idle()).max(Duration::from_millis(100)));
        Ok(Some(Instant::now() + soon))
    }

    /// While this thread waits for an upload, which takes minutes for a database that was just adopted: keeps the right, so that writers
    /// go on and no other host takes the lease. Whoever has the lease lane just now sees to it.
    pub(super) fn renew_beside_an_upload(&self) {
        let renew = || {
            if self.shared.right() == BootTime::default() {
                return Ok(());
            }
            let Some(_lease) = self.lease_lane.try_lock()? else { return Ok(()) };
            if self.change_state(|state| state.protocol.renewal_due(now()))? {
                // A lost lease shows in the state; the append finds out what follows from it.
                self.drive(Renew::default(), Instant::now() + self.request_timeout())?;
            }
            Ok::<_, Error>(())
        };
        if let Err(e) = renew() {
            self.note_error(&e);
        }
    }

    /// Gives the lease back before the process ends, if it is held; somebody who is just writing is waited for.
    pub(crate) fn give_back_now(&self, deadline: Instant) -> Result<()> {
        while self.shared.right() != BootTime::default() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let _lease = self.lease_lane.lock_within(left, "the lease lock")?;
            if self.give_back(deadline)? {
                break;
            }
            std::thread::sleep(GIVE_BACK_PAUSE);
        }
        Ok(())
    }

    /// Gives the lease back, if no write transaction is open. Under the lease lane.
    fn give_back(&self, deadline: Instant) -> Result<bool> {
        let Some(_upload) = self.uploader.try_lock()? else { return Ok(false) };
        let Some(_writers) = self.keep_writers_out() else { return Ok(false) };
        self.freeze_committed()?;
        self.append_all(deadline)?;
        self.release(deadline)
    }

    /// Gives the lease back, with everything settled and no writer about. Under both lanes.
    pub(crate) fn release(&self, deadline: Instant) -> Result<bool> {
        let asked = BootTime::now();
        match self.drive(Release::default(), deadline)? {
            Some(Released::Done(next)) => {
                let to = next.map_or_else(String::new, |next| format!(", {} is next", next.who));
                log::info!("{}: this host gives the lease back{to}", self.replica.place());
                // Until then nobody else could append.
                self.shared.set_log_caught_up(asked);
                Ok(true)
            }
            Some(Released::NotHeld) => Ok(true),
            Some(Released::Unsettled) | None => Ok(false),
        }
    }

    /// The log refuses the local commits: keeps them aside, and refuses further work until the database is opened anew.
    fn refused(&self, verdict: Verdict) -> Error {
        let place = self.replica.place();
        let error = match verdict {
            Verdict::Older(head) => {
                let head = head.map_or(TxId::NONE, |id| id.txid);
                let message = format!("{place}: the bucket ends at {head}, older than this disk; nothing is changed");
                Error::new(ErrorKind::Corrupt, message)
            }
            Verdict::Conflict(from) | Verdict::Unclear(from) => {
                // No writer begins after this, and what is committed in the WAL is kept with the rest.
                self.shared.set_fenced();
                let kept = self.freeze_committed().and_then(|_| self.keep_conflict(from));
                let kept = match kept {
                    Ok(folder) => format!("its own commits from there on are kept in {}", folder.display()),
                    Err(e) => format!("its own commits stay in {}: {e}", self.layout.outbox().display()),
                };
                Error::new(ErrorKind::Fenced, format!("{place}: another writer has the log from {from} on; {kept}"))
            }
            Verdict::Continues | Verdict::Behind(_) => self.fenced(),
        };
        self.shared.set_fenced();
        self.note_error(&error);
        self.poison(&error);
        self.settled.1.notify_all();
        error
    }

    fn keep_conflict(&self, from: TxId) -> Result<std::path::PathBuf> {
        let folder = self.change_state(|state| conflict::keep(&self.layout, &self.outbox, state, from))??;
        *self.conflict.lock() = Some(folder.clone());
        Ok(folder)
    }

    fn held_elsewhere(&self) -> Error {
        let who = self.holder.lock().clone().unwrap_or_else(|| "another host".to_owned());
        Error::new(ErrorKind::Busy, format!("{}: {who} writes now", self.replica.place()))
    }

    fn no_lease_in_time(&self) -> Error {
        let place = self.replica.place();
        let why = self.last_error.lock().as_ref().map_or_else(String::new, |why| format!(": {why}"));
        Error::new(ErrorKind::Unavailable, format!("{place}: the bucket did not answer in time{why}"))
    }
}
