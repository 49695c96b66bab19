//! `hydrate`: fills the cache with what is missing, in the background or before the open returns.
//!
//! - **Ordering.** From the first page to the last, so that long runs of an object come in one request each.
//! - **Yields.** While a read of SQLite's waits for the bucket, nothing new is begun.
//! - **Retries.** A batch that brought nothing is tried again after a pause, a few times; then it is given up and said so.
//! - **Stop.** At the close of the database, and where the bound of the cache leaves no room. The thread is joined.
//! - **Crash.** A page counts as present only once it is written; the next process goes on with what is missing.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Database;
use crate::cache::file::Batch;
use crate::config::Hydrate;
use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::sync::Mutex;

/// Batches in a row that may bring nothing.
const TRIES: u32 = 5;
/// The pause before the next one then.
const PAUSE: Duration = Duration::from_millis(500);

/// The hydration of one database in one process.
#[derive(Debug, Default)]
pub(super) struct Hydration {
    stop: Arc<AtomicBool>,
    state: Mutex<Option<&'static str>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Hydration {
    /// What `gcs_status` says.
    pub(super) fn state(&self) -> &'static str {
        self.state.lock().unwrap_or("off")
    }

    /// Ends it, and waits for its thread.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

impl Database {
    /// Begins what the configuration asks for; `now` is done when this returns.
    pub(super) fn begin_hydration(&self, me: Weak<Database>) -> Result<()> {
        match self.config.hydrate {
            Hydrate::Off => Ok(()),
            Hydrate::Now => self.hydrate(&AtomicBool::new(false), std::io::stderr().is_terminal()),
            Hydrate::Background => {
                *self.hydration.state.lock() = Some("running");
                let stop = Arc::clone(&self.hydration.stop);
                let work = move || {
                    // The database is not kept open by this: its close joins the thread.
                    let Some(database) = me.upgrade() else { return };
                    if let Err(e) = database.hydrate(&stop, false) {
                        log::info!("{}: {e}", database.replica.place());
                    }
                };
                let thread = std::thread::Builder::new().name("sqlite-gcs-hydrate".to_owned()).spawn(work);
                *self.hydration.thread.lock() = Some(thread.map_err(|e| Error::local("starting a thread", &e))?);
                Ok(())
            }
        }
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
            match self.cache.fill_ahead(at, &mut under_way, stop)? {
                Batch::Whole => break Ok("done"),
                Batch::NoRoom => break Ok("full"),
                Batch::Fetched(next) => (at, in_vain) = (next, 0),
                Batch::Nothing if in_vain == TRIES => {
                    let why = format!("hydration: no page came in {TRIES} tries; reads go on by themselves");
                    break Err(Error::new(ErrorKind::Unavailable, why));
                }
                Batch::Nothing => {
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
