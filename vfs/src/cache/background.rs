//! Fetches that no read waits for: they run on the process's runtime and put their pages into the file like any other.
//!
//! - **Ordering.** None among themselves; each page is under way once ([`super::flights`]).
//! - **Retries.** None here: a page that did not come is missing, and whoever reads it asks again and gets the error.
//! - **Stop.** [`Background::stop`] gives up what waits for the network and waits for what is writing to the file.
//! - **Crash.** A page counts as present only once it is written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::cache::flights::Departed;
use crate::cache::pages::{Pages, Stamps};
use crate::error::{Error, ErrorKind};
use crate::log;
use crate::replica::fetch::PageSource;
use crate::replica::index_fetch::ReadError;
use crate::replica::read_ahead::Run;
use crate::sync::{Condvar, Mutex};

/// Requests under way at a time, of one database in one process.
pub(crate) const PARALLEL: usize = 24;
/// How long a stop waits for pages that are being written to the local disk.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// The background fetches of one cache file.
#[derive(Debug)]
pub(crate) struct Background {
    pid: u32,
    requests: Arc<Semaphore>,
    tasks: Mutex<Vec<AbortHandle>>,
    running: Arc<Running>,
}

#[derive(Debug, Default)]
struct Running {
    count: Mutex<usize>,
    changed: Condvar,
}

/// One fetch: while it lives, the file must stay open.
struct Fetching(Arc<Running>);

impl Fetching {
    fn begin(running: &Arc<Running>) -> Fetching {
        *running.count.lock() += 1;
        Fetching(Arc::clone(running))
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.changed.notify_all();
    }
}

impl Background {
    pub(crate) fn new() -> Background {
        Background {
            pid: std::process::id(),
            requests: Arc::new(Semaphore::new(PARALLEL)),
            tasks: Mutex::default(),
            running: Arc::default(),
        }
    }

    /// Fetches a run, for which `flight` has departed. Where that cannot be begun, the flight ends and nothing is fetched.
    pub(crate) fn fetch(
        &self,
        pages: &Arc<Pages>,
        source: &PageSource,
        flight: Departed,
        run: Run,
        stamps: Arc<Stamps>,
    ) {
        let runtime = match crate::runtime::handle() {
            Ok(runtime) => runtime,
            Err(e) => return log::debug!("{e}"),
        };
        // Declared in this order so that the file is let go before it counts as let go.
        let fetching = Fetching::begin(&self.running);
        let (pages, source, requests) = (Arc::clone(pages), source.clone(), Arc::clone(&self.requests));
        let blocking = runtime.clone();
        let task = runtime.spawn(async move {
            let _request = requests.acquire_owned().await;
            let bytes = match source.local_bytes(&run) {
                Some(bytes) => bytes,
                None => tokio::time::timeout(source.limit(), source.bytes(&run)).await.unwrap_or_else(|_| {
                    let why = format!("no answer within {} ms", source.limit().as_millis());
                    Err(ReadError::Other(Error::new(ErrorKind::Unavailable, why)))
                }),
            };
            blocking.spawn_blocking(move || {
                let outcome = bytes.and_then(|bytes| {
                    source.unpack(&run, &bytes, pages.page_size, |some| pages.store_all(some, &stamps))
                });
                if let Err(error) = outcome {
                    log::debug!("reading ahead: {}", Error::from(error));
                }
                // Whoever waits looks for itself, and asks itself where the page is still missing.
                let _ = flight.land(Ok(()));
                drop(pages);
                drop(fetching);
            });
        });
        let mut tasks = self.tasks.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
    }

    /// Gives up what can be given up and waits for the rest. Returns whether none is left that uses the file.
    pub(crate) fn stop(&self) -> bool {
        if self.pid != std::process::id() {
            // The parent's: nothing of it runs in this forked child.
            return true;
        }
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        let until = Instant::now() + STOP_WAIT;
        let mut count = self.running.count.lock();
        while *count > 0 {
            if Instant::now() >= until {
                return false;
            }
            count = self.running.changed.wait_until(count, until);
        }
        true
    }
}
