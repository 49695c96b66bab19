//! Keeping the lease and looking who waits for it, beside the uploads: neither holds a commit up for a round trip.
//!
//! - **Ordering.** Under the lease lock only, in the line of the followers: the host that writes follows nobody. Giving the lease back is
//!   left to the turns of the uploads, which know when nothing is under way; one is called for when somebody waits.
//! - **Retries.** A request that fails is made again a second later; the protocol's own come before that.
//! - **Stop.** When the lease is gone, until the next upload calls. A database that is closed is not watched.
//! - **Crash.** The lease expires.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use super::driver::now;
use super::lease::{BUSY, IDLE, LOOK, TURN_MS};
use super::pump::{self, Line, Turn};
use crate::database::Database;
use crate::error::{ErrorKind, Result};
use crate::local::shared::BootTime;
use crate::protocol::{Look, Renew};

/// The watch over one database's lease.
#[derive(Default)]
pub(crate) struct LeaseWatch {
    of: OnceLock<Weak<Database>>,
    /// A turn is planned or under way.
    planned: AtomicBool,
}

impl LeaseWatch {
    /// Says whose watch it is.
    pub(crate) fn belongs_to(&self, database: Weak<Database>) {
        // Called once, when the database is made.
        let _ = self.of.set(database);
    }
}

impl Turn for LeaseWatch {
    fn turn(&self) -> Option<Instant> {
        let database = self.of.get().and_then(Weak::upgrade)?;
        let next = database.watch_lease().unwrap_or_else(|e| {
            if e.kind() != ErrorKind::Busy {
                database.note_error(&e);
            }
            Some(Instant::now() + LOOK)
        });
        if next.is_none() {
            self.planned.store(false, Ordering::SeqCst);
            // Whoever took the lease meanwhile may have seen the turn planned.
            if database.shared.right() != BootTime::default() && !self.planned.swap(true, Ordering::SeqCst) {
                return Some(Instant::now() + LOOK);
            }
        }
        next
    }
}

impl Database {
    /// Sees to it that the lease is watched while it is held.
    pub(super) fn call_watch(&self) -> Result<()> {
        if self.shared.right() == BootTime::default() || self.watch.planned.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let watch: Arc<dyn Turn> = Arc::clone(&self.watch) as _;
        pump::call_in(Line::Follow, &watch, Instant::now()).inspect_err(|_| {
            self.watch.planned.store(false, Ordering::SeqCst);
        })
    }

    /// Renews the lease or looks for contenders, if it is time. Returns when to come again; `None` without a lease.
    fn watch_lease(&self) -> Result<Option<Instant>> {
        if self.shared.right() == BootTime::default() {
            return Ok(None);
        }
        let Some(_lease) = self.lease_lane.try_lock()? else { return Ok(Some(Instant::now() + BUSY)) };
        let deadline = Instant::now() + self.request_timeout();
        if self.change_state(|state| state.protocol.renewal_due(now()))? {
            // A lost lease shows in the state; the next write or append finds out what follows from it.
            self.drive(Renew::default(), deadline)?;
        } else if self.is_at_work() && BootTime::now().since(self.shared.last_look()) >= LOOK {
            self.shared.set_last_look(BootTime::now());
            self.drive(Look, deadline)?;
            if self.change_state(|state| state.protocol.should_hand_over(now(), TURN_MS))? {
                self.call_uploader(Instant::now());
            }
        }
        let left = LOOK.saturating_sub(BootTime::now().since(self.shared.last_look()));
        // An idle host gives it back, in a turn of the uploads.
        Ok(Some(Instant::now() + if self.is_at_work() { left.max(BUSY) } else { IDLE }))
    }
}
