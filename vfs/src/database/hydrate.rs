//! `hydrate`: fills the cache with what is missing, in the background or before the open returns.
//!
//! - **When.** By itself ([`Hydrate::Auto`]) only a database that is small, also measured by the bound of its cache, and
//!   [`LATER`] after the open: who asks one question and goes does not pay for it, and the first questions have the line to themselves.
//! - **Ordering.** From the first page to the last, so that long runs of an object come in one request each.
//! - **Yields.** While a read of SQLite's waits for the bucket, nothing new is begun.
//! - **Retries.** A batch that brought nothing is tried again after a pause, a few times; then it is given up and said so.
//! - **Stop.** At the close of the database, which waits for it, and where the bound of the cache leaves no room.
//! - **Crash.** A page counts as present only once it is written; the next process goes on with what is missing.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::Database;
use crate::cache::file::Batch;
use crate::config::Hydrate;
use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::sync::Mutex;
use crate::upload::pump::{self, Line, Turn};

/// A database of so many bytes at the most is hydrated by itself, and at most this part of what its cache may take.
const SMALL: u64 = 64 << 20;
const PART: u64 = 8;
/// How long after the open that begins.
const LATER: Duration = Duration::from_secs(1);
/// Batches in a row that may bring nothing.
const TRIES: u32 = 5;
/// The pause before the next one then.
const PAUSE: Duration = Duration::from_millis(500);

/// The hydration of one database in one process.
#[derive(Debug, Default)]
pub(super) struct Hydration {
    of: OnceLock<Weak<Database>>,
    stop: AtomicBool,
    state: Mutex<Option<&'static str>>,
    /// Held while the database is in hand.
    busy: Mutex<()>,
}

impl Hydration {
    /// What `gcs_status` says.
    pub(super) fn state(&self) -> &'static str {
        self.state.lock().unwrap_or("off")
    }

    /// Ends it, and waits for what it is doing.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.busy.lock());
    }
}

impl Turn for Hydration {
    fn turn(&self) -> Option<Instant> {
        let _busy = self.busy.lock();
        if self.stop.load(Ordering::SeqCst) {
            return None;
        }
        // Not kept open by this, and never dropped here after its close has returned.
        let database = self.of.get()?.upgrade()?;
        if let Err(e) = database.hydrate(&self.stop, false) {
            log::info!("{}: {e}", database.replica.place());
        }
        None
    }
}

impl Database {
    /// Begins what the configuration asks for; `now` is done when this returns.
    pub(super) fn begin_hydration(&self, me: Weak<Database>) -> Result<()> {
        let due = match self.config.hydrate {
            Hydrate::Off => return Ok(()),
            Hydrate::Now => return self.hydrate(&AtomicBool::new(false), std::io::stderr().is_terminal()),
            Hydrate::Background => Instant::now(),
            Hydrate::Auto if self.is_small() && self.cache.present() < self.cache.total().0 => Instant::now() + LATER,
            Hydrate::Auto => return Ok(()),
        };
        // Once, when the database is made.
        let _ = self.hydration.of.set(me);
        *self.hydration.state.lock() = Some("planned");
        pump::call_in(Line::Hydrate, &(Arc::clone(&self.hydration) as Arc<dyn Turn>), due)
    }

    /// Whether all of it can be there without being noticed.
    fn is_small(&self) -> bool {
        let bytes = self.cache.total().bytes(self.cache.page_size());
        bytes <= SMALL && self.cache.limit().is_none_or(|limit| bytes <= limit / PART)
    }

    fn hydrate(&self, stop: &AtomicBool, shows: bool) -> Result<()> {
        let say = |state| *self.hydration.state.lock() = Some(state);
        say("running");
        let mut at = crate::page::Pgno::ONE;
        let mut under_way = VecDeque::new();
        let mut in_vain = 0;
        let outcome = loop {
            if stop.load(Ordering::SeqCst) {
                break Ok("stopped");
            }
            match self.cache.fill_ahead(at, &mut under_way, stop) {
                Err(e) => break Err(e),
                Ok(Batch::Whole) => break Ok("done"),
                Ok(Batch::NoRoom) => break Ok("full"),
                Ok(Batch::Fetched(next)) => (at, in_vain) = (next, 0),
                Ok(Batch::Nothing) if in_vain == TRIES => {
                    let why = format!("hydration: no page came in {TRIES} tries; reads go on by themselves");
                    break Err(Error::new(ErrorKind::Unavailable, why));
                }
                Ok(Batch::Nothing) => {
                    in_vain += 1;
                    std::thread::sleep(PAUSE);
                }
            }
            if shows {
                let (present, total) = (self.cache.present(), self.cache.total().0.max(1));
                let percent = u64::from(present) * 100 / u64::from(total);
                // Nobody is told where the terminal is gone.
                let _ = write!(std::io::stderr(), "\r{}: {percent} % of {total} pages ", self.replica.place());
            }
        };
        if shows {
            let _ = writeln!(std::io::stderr());
        }
        say(*outcome.as_ref().unwrap_or(&"failed"));
        outcome.map(drop)
    }
}
