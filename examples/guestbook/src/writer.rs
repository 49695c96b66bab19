//! The one connection that writes, on its own thread.
//!
//! Entries that arrive while a commit is on its way share the next one: one transaction, one wait for the bucket, however
//! many clients there are. Each is answered after that wait.
//!
//! Ordering: entries are stored in the order in which they arrived.
//! Waiting: `BEGIN IMMEDIATE` is tried until it succeeds or an entry has waited as long as the settings allow; that
//! entry is then refused, and nothing of it was stored.
//! Taken over: a database whose log went on elsewhere refuses to be written until it is opened anew; that is done here, and the
//! entries wait meanwhile.
//! Failure: what fails before COMMIT was not stored. When COMMIT or the flush itself fails, the outcome is not known; the
//! connections are opened anew, and the entry's token makes it safe to send it again.
//! Stop: [`Writer::stop`] takes its place in the queue. What stands before it is stored, what comes after it is refused;
//! then the thread flushes, closes, and ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::entries::{self, Draft};
use crate::log::{self, Severity};
use crate::metrics::Metrics;
use crate::readers::{self, Readers};
use crate::settings::{Answer, Settings};

/// Entries that may wait for the writer; more are refused at once.
const QUEUE: usize = 1024;
/// Entries that share one transaction at most.
const BATCH: usize = 256;
/// How long one attempt to begin may take: after it the deadlines of the waiting entries are looked at.
const ATTEMPT: Duration = Duration::from_millis(200);
/// After opening anew.
const PAUSE: Duration = Duration::from_millis(20);

/// An entry that is stored as the settings promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// Its number.
    pub id: i64,
    /// From its arrival to the end of the commit (and of the flush).
    pub took: Duration,
}

/// An entry that is not, or not surely, stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Another instance may write just now, or too many entries wait: not stored, try again.
    Busy,
    /// The app is stopping: not stored, another instance takes it.
    Stopping,
    /// The database could not be written: not stored.
    Failed(String),
    /// The commit or the flush failed: perhaps stored.
    Unknown(String),
}

/// The way to the writer's thread. Clones share it.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Asked>,
    waiting: Arc<AtomicBool>,
}

enum Asked {
    Store(Job),
    Stop,
}

struct Job {
    draft: Draft,
    arrived: Instant,
    reply: oneshot::Sender<Result<Saved, Refused>>,
}

impl Writer {
    /// Starts the thread. The connection is opened by the first entry. `changed` is told of each commit.
    ///
    /// Call it on a thread of the runtime.
    pub fn start(
        settings: &Settings,
        readers: Readers,
        metrics: Arc<Metrics>,
        stopping: Arc<AtomicBool>,
        changed: Arc<Notify>,
    ) -> std::io::Result<(Writer, JoinHandle<()>)> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let waiting = Arc::new(AtomicBool::new(false));
        let desk = Desk {
            settings: settings.clone(),
            connection: None,
            readers,
            metrics,
            stopping,
            waiting: waiting.clone(),
            changed,
            runtime: Handle::current(),
            stopped: false,
        };
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || desk.run(jobs))?;
        Ok((Writer { queue, waiting }, thread))
    }

    /// Stores an entry; returns when it is as durable as the settings ask, or refused.
    pub async fn store(&self, draft: Draft) -> Result<Saved, Refused> {
        let (reply, answer) = oneshot::channel();
        let job = Job { draft, arrived: Instant::now(), reply };
        match self.queue.try_send(Asked::Store(job)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(Refused::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Refused::Stopping),
        }
        // Dropped unanswered only when it stood behind a stop.
        answer.await.unwrap_or(Err(Refused::Stopping))
    }

    /// Asks the thread to end after what is queued; blocks while the queue is full.
    pub fn stop(&self) {
        // Fails only if the thread has ended already.
        let _ = self.queue.blocking_send(Asked::Stop);
    }

    /// Whether an entry is waiting for its turn because somebody else holds the right to write.
    pub fn waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }
}

struct Desk {
    settings: Settings,
    connection: Option<Connection>,
    readers: Readers,
    metrics: Arc<Metrics>,
    stopping: Arc<AtomicBool>,
    waiting: Arc<AtomicBool>,
    changed: Arc<Notify>,
    runtime: Handle,
    stopped: bool,
}

/// What came of one attempt to begin.
enum Begun {
    Yes,
    NotYet,
    Failed(String),
}

impl Desk {
    fn run(mut self, mut jobs: mpsc::Receiver<Asked>) {
        while !self.stopped {
            let mut batch = match jobs.blocking_recv() {
                Some(Asked::Store(first)) => vec![first],
                Some(Asked::Stop) | None => break,
            };
            loop {
                self.gather(&mut batch, &mut jobs);
                match self.begin() {
                    Begun::Yes => {
                        self.wait_is_over();
                        self.gather(&mut batch, &mut jobs);
                        self.write(batch);
                        break;
                    }
                    Begun::NotYet => {
                        self.waiting.store(true, Ordering::Relaxed);
                        self.refuse_the_late(&mut batch);
                        if batch.is_empty() {
                            self.wait_is_over();
                            break;
                        }
                    }
                    Begun::Failed(why) => {
                        self.wait_is_over();
                        log::event(Severity::Error, &format!("could not begin to write: {why}"));
                        self.start_anew();
                        answer(batch, &Err(Refused::Failed(why)));
                        break;
                    }
                }
            }
        }
        // From here on every request is answered at once: the queue is closed.
        drop(jobs);
        self.close();
    }

    /// Takes what has arrived meanwhile into the batch, up to a stop.
    fn gather(&mut self, batch: &mut Vec<Job>, jobs: &mut mpsc::Receiver<Asked>) {
        while batch.len() < BATCH && !self.stopped {
            match jobs.try_recv() {
                Ok(Asked::Store(job)) => batch.push(job),
                Ok(Asked::Stop) => self.stopped = true,
                Err(_) => break,
            }
        }
    }

    fn wait_is_over(&self) {
        self.waiting.store(false, Ordering::Relaxed);
    }

    fn begin(&mut self) -> Begun {
        if self.connection.is_none() {
            match open(&self.settings.database) {
                Ok(db) => self.connection = Some(db),
                Err(error) if is_busy(&error) => return Begun::NotYet,
                Err(error) => return Begun::Failed(format!("opening the database: {error}")),
            }
        }
        let Some(db) = &self.connection else { return Begun::NotYet };
        match db.execute_batch("BEGIN IMMEDIATE") {
            Ok(()) => Begun::Yes,
            Err(error) if is_busy(&error) => Begun::NotYet,
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => {
                log::event(
                    Severity::Info,
                    &format!("another instance has written ({error}); opening the database anew"),
                );
                self.start_anew();
                // Somebody else is writing just now; asking again at once would only be refused again.
                std::thread::sleep(PAUSE);
                Begun::NotYet
            }
            Err(error) => Begun::Failed(format!("BEGIN IMMEDIATE: {error}")),
        }
    }

    /// Refuses the entries that have waited long enough; all of them when the app is stopping.
    fn refuse_the_late(&self, batch: &mut Vec<Job>) {
        let stopping = self.stopping.load(Ordering::Relaxed);
        let (late, waiting): (Vec<Job>, Vec<Job>) =
            batch.drain(..).partition(|job| stopping || job.arrived.elapsed() >= self.settings.wait);
        *batch = waiting;
        answer(late, &Err(if stopping { Refused::Stopping } else { Refused::Busy }));
    }

    /// Stores a batch in the transaction that was begun, and answers it.
    fn write(&mut self, batch: Vec<Job>) {
        let Some(db) = &self.connection else { return };
        let started = Instant::now();
        let ids = match insert(db, &batch, &self.settings.instance) {
            Ok(ids) => ids,
            Err(error) => {
                let why = format!("storing {} entries: {error}", batch.len());
                log::event(Severity::Error, &why);
                // Closing the connection rolls the transaction back, also where ROLLBACK itself would fail.
                self.start_anew();
                return answer(batch, &Err(Refused::Failed(why)));
            }
        };
        if let Err(error) = commit(db, self.settings.answer) {
            let why = format!("committing {} entries: {error}", batch.len());
            log::event(Severity::Error, &why);
            self.start_anew();
            return answer(batch, &Err(Refused::Unknown(why)));
        }
        self.metrics.committed(batch.len(), started.elapsed());
        self.changed.notify_one();
        for (job, id) in batch.into_iter().zip(ids) {
            // A client that went away does not wait for its answer.
            let _ = job.reply.send(Ok(Saved { id, took: job.arrived.elapsed() }));
        }
    }

    /// Closes every connection of the process and opens this one again: a database that refused a commit, or whose log
    /// went on elsewhere, serves again only after that.
    fn start_anew(&mut self) {
        self.connection = None;
        let database = &self.settings.database;
        self.connection = self.readers.renew(&self.runtime, || open(database).ok());
    }

    /// The last flush, and the close that gives the lease back. An app that never wrote has nothing to do.
    fn close(mut self) {
        let Some(db) = self.connection.take() else { return };
        let started = Instant::now();
        match flush(&db) {
            Ok(Some(txid)) => {
                let ms = started.elapsed().as_millis();
                log::event(Severity::Info, &format!("flushed: durable up to TXID {txid} after {ms} ms"));
            }
            Ok(None) => {}
            Err(error) => log::event(Severity::Error, &format!("the last flush failed: {error}")),
        }
        if let Err((_, error)) = db.close() {
            log::event(Severity::Error, &format!("closing the writing connection: {error}"));
        }
    }
}

fn open(database: &str) -> rusqlite::Result<Connection> {
    let db = readers::open(database)?;
    db.busy_timeout(ATTEMPT)?;
    Ok(db)
}

fn answer(jobs: Vec<Job>, result: &Result<Saved, Refused>) {
    for job in jobs {
        // A client that went away does not wait for its answer.
        let _ = job.reply.send(result.clone());
    }
}

fn insert(db: &Connection, batch: &[Job], instance: &str) -> rusqlite::Result<Vec<i64>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    entries::prepare(db)?;
    batch.iter().map(|job| entries::store(db, &job.draft, instance, now)).collect()
}

fn commit(db: &Connection, answer: Answer) -> Result<(), String> {
    db.execute_batch("COMMIT").map_err(|error| error.to_string())?;
    if answer == Answer::Flush {
        // On a plain file there is no such PRAGMA, and no row: then nothing was promised, and nothing may be claimed.
        flush(db)?.ok_or("PRAGMA gcs_flush gave no answer: is this database opened with vfs=gcs?")?;
    }
    Ok(())
}

/// Waits until everything committed is in the bucket; the durable TXID, `None` on a database without a bucket.
pub fn flush(db: &Connection) -> Result<Option<String>, String> {
    match db.query_row("PRAGMA gcs_flush", [], |row| row.get(0)) {
        Ok(txid) => Ok(Some(txid)),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}
