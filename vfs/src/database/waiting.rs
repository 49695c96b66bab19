//! Waiting until the bucket has what is committed, and what is said when it cannot be reached.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::{Database, RESET_WAIT};
use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::page::TxId;
use crate::per_process::PerProcess;
use crate::sync::Mutex;

/// How often a waiter looks whether another process has settled its upload.
const POLL: Duration = Duration::from_millis(1);

/// How long a waiter that was overtaken waits until its commits are kept aside.
const KEEP_WAIT: Duration = Duration::from_secs(5);

static OPEN: PerProcess<Mutex<Vec<Weak<Database>>>> = PerProcess::new();

/// Remembers a database for the exit of the process.
pub(super) fn remember(database: &Arc<Database>) {
    let mut open = OPEN.here().lock();
    open.retain(|other| other.strong_count() > 0);
    open.push(Arc::downgrade(database));
}

/// Forgets a database that is closed; the uploader may still hold it for a while.
pub(super) fn forget(database: &Database) {
    OPEN.here().lock().retain(|other| !std::ptr::eq(other.as_ptr(), database));
}

/// The databases that are open now.
pub(super) fn all_open() -> Vec<Arc<Database>> {
    OPEN.here().lock().iter().filter_map(Weak::upgrade).collect()
}

impl Database {
    /// Waits until everything committed so far is in the bucket, `limit` at most, and returns the durable TXID.
    pub(crate) fn flush(&self, limit: Duration) -> Result<TxId> {
        self.wait_until_durable(limit)?;
        Ok(self.shared.durable())
    }

    /// Waits until what this thread has committed is in the bucket.
    pub(super) fn wait_until_durable(&self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        self.urgent.fetch_add(1, Ordering::SeqCst);
        let result = self.awaited_serial(limit).and_then(|awaited| {
            self.group.arrived();
            self.call_uploader(Instant::now());
            let mut settled = self.settled.0.lock();
            loop {
                if self.shared.durable_serial() >= awaited {
                    return Ok(());
                }
                self.check_poison()?;
                if started.elapsed() >= limit {
                    return Err(self.not_durable(limit));
                }
                settled = self.settled.1.wait_for(settled, POLL);
            }
        });
        self.urgent.fetch_sub(1, Ordering::SeqCst);
        match result {
            Err(e) if e.kind() == ErrorKind::Fenced => Err(self.where_kept(e)),
            result => result,
        }
    }

    /// The error of a fenced database, once its commits are kept aside; whoever does that has the upload lock.
    fn where_kept(&self, error: Error) -> Error {
        match self.uploader.lock_within(KEEP_WAIT, "the upload lock") {
            Ok(_uploader) => self.check_poison().err().unwrap_or(error),
            Err(_) => error,
        }
    }

    /// The serial of the capture that will hold, or holds, what is committed now. (Not a TXID: a delta may be
    /// frozen anew under another one.)
    ///
    /// Under the capture lock, so that a freeze which began before the commit is not taken for one that contains it.
    /// To freeze a very large transaction takes a while.
    fn awaited_serial(&self, limit: Duration) -> Result<u64> {
        let capture = self.capture.lock_within(limit, "the capture lock")?;
        // Our own handle has no wal-index while a connection of this process closes or wants EXCLUSIVE.
        let committed = match self.committed() {
            Some(committed) => Some(committed),
            None => capture.committed_in_file()?,
        };
        capture.serial_of(&self.shared, committed.as_ref())
    }

    pub(super) fn not_durable(&self, limit: Duration) -> Error {
        let why = self.last_error.lock().clone().unwrap_or_else(|| "the upload is still under way".to_owned());
        let ms = limit.as_millis();
        Error::new(
            ErrorKind::Unavailable,
            format!("{}: not known to be durable after {ms} ms: {why}", self.replica.place()),
        )
    }

    /// Says at a close, or at SIGTERM, how much the bucket does not have, and where it is.
    pub(super) fn report_unsent(&self, when: &str, error: &Error) {
        // What only the WAL holds so far is counted, and kept, with the rest.
        let beside = match self.save_captured(RESET_WAIT) {
            Ok(()) => "",
            Err(e) => {
                self.note_error(&e);
                " and all that the WAL holds"
            }
        };
        let durable = self.shared.durable();
        let kept = self.outbox().list().unwrap_or_default();
        let deltas: u64 = kept.iter().filter(|kept| kept.id.txid > durable).map(|kept| kept.id.size).sum();
        let bytes = deltas + self.shared.saved_bytes();
        log::error!(
            "{}: {when} with {bytes} bytes of commits{beside} not uploaded; they are kept in {} and sent at the next open: {error}",
            self.layout.main().display(),
            self.layout.outbox().display(),
        );
    }
}
