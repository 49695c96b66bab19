//! Saving what a checkpoint is about to make superfluous in the WAL, while the checkpoint runs.
//!
//! The reset that follows a checkpoint needs everything captured and on disk, and the writer that resets waits for that. A
//! checkpoint waits for the disk several times itself; so the capture begins with it, in a thread of the uploader's, and
//! the reset finds it done. It is the same capture: begun ahead, it may be all that there is to do, a part, or for nothing.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use super::{Database, RESET_WAIT, WalEnd};
use crate::log;
use crate::sync::Mutex;
use crate::upload::pump::{self, Turn};

/// From this many uncaptured frames on it is worth another thread's while.
const WORTHWHILE: u32 = 100;

/// One database's saver.
#[derive(Default)]
pub(super) struct SaveAhead {
    of: OnceLock<Weak<Database>>,
    /// Up to where, if a save was asked for that has not begun.
    asked: Mutex<Option<WalEnd>>,
    /// Held while one is under way.
    under_way: Mutex<()>,
}

impl SaveAhead {
    /// Whose saver it is.
    pub(super) fn belongs_to(&self, database: &Arc<Database>) {
        // The database is new, so this is the one time that it is set.
        let _ = self.of.set(Arc::downgrade(database));
    }

    /// Withdraws what has not begun, and waits for the end of what has.
    pub(super) fn finish(&self) {
        *self.asked.lock() = None;
        drop(self.under_way.lock());
    }
}

impl Turn for SaveAhead {
    fn turn(&self) -> Option<Instant> {
        let _under_way = self.under_way.lock();
        if let Some(end) = self.asked.lock().take()
            && let Some(database) = self.of.get().and_then(Weak::upgrade)
        {
            database.save_up_to(end);
        }
        None
    }
}

impl Database {
    /// A checkpoint has begun: CKPT is held exclusively.
    pub(crate) fn checkpoint_begins(&self) {
        let Some(committed) = self.committed().filter(|_| !self.is_inherited()) else { return };
        let saved = self.shared.position().filter(|position| position.salts == committed.salts);
        if committed.frames - saved.map_or(0, |position| position.frames).min(committed.frames) < WORTHWHILE {
            return;
        }
        *self.ahead.asked.lock() = Some(WalEnd { salts: committed.salts, frames: committed.frames });
        let saver: Arc<dyn Turn> = Arc::clone(&self.ahead) as _;
        if let Err(e) = pump::call(&saver, Instant::now()) {
            log::debug!("{}: nothing is saved ahead: {e}", self.layout.main().display());
        }
    }

    /// Saves what is committed, if the WAL is still the one of `end`. An error is left to whoever has to have it saved.
    fn save_up_to(&self, end: WalEnd) {
        let saved = self.capture.lock_within(RESET_WAIT, "the capture lock").and_then(|mut capture| {
            match self.committed().filter(|now| now.salts == end.salts && now.frames >= end.frames) {
                Some(committed) => capture.save(&self.shared, Some(&committed)),
                None => Ok(()),
            }
        });
        if let Err(e) = saved {
            log::debug!("{}: nothing is saved ahead: {e}", self.layout.main().display());
        }
    }
}
