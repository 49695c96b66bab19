//! Following the log while another host writes it: what is appended there becomes commits of the local WAL, one per delta.
//!
//! - **When.** While this host has no right to write, and somebody reads: each read transaction leaves a mark. A look asks for
//!   the next delta by its name (`poll_interval` apart; a quarter of it while deltas come, then slower again); a listing is asked for
//!   only where the last look is so old that the delta may have come and gone. An interval without a read
//!   is the last one; the next read wakes the follower, and where others are known to write it waits for that look, for
//!   [`WAKE_WAIT`] at the most.
//! - **Ordering.** One process of the host at a time (the follow lock) looks and applies, for all of them. Every published state
//!   is that of one TXID, in order (`apply/`). Applied under both lanes of the protocol, so nothing is appended, captured or
//!   acquired beside it; the network is waited for under neither, nor with the database in hand: a close does not wait for
//!   the bucket.
//! - **Retries.** A look that failed is repeated after the interval, then after twice that, up to [`BACKOFF_MOST`]. A delta
//!   that cannot be applied now, because a local connection holds the WRITE lock, is tried again soon, then less so.
//! - **Stop.** [`Follower::stop`] waits for what is being done to the local files, and nothing is done after it.
//! - **Crash.** Each delta is in the WAL whole or not at all (`apply/`); what was remembered of it for the page map can be
//!   looked up again (`map.rs`); a backfill can be repeated (`apply/backfill.rs`).
//!
//! **The WAL** is kept short by backfills: after [`Progress::checkpoint`](crate::apply::Progress), after [`BACKFILL_AFTER`]
//! (the page map follows them, and must not name objects that others have deleted), and before a rest.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::STORE_WAIT;
use super::driver::{known, now};
use super::fetched::{Fetched, Fetcher};
use super::pump::{self, Line, Turn};
use crate::apply::backfill::DatabaseFile;
use crate::apply::{Checkpoint, Outcome};
use crate::cache::file::CacheFile;
use crate::config::Role;
use crate::database::Database;
use crate::delta::Decoder;
use crate::error::{Error, ErrorKind, Result};
use crate::local::locks::HostMutex;
use crate::local::shared::BootTime;
use crate::log;
use crate::page::{PageCount, Pgno, TxId};
use crate::protocol::{self, Answer, Follow, Followed, ObjectId, Operation, Request, Step};
use crate::replica::chain;
use crate::replica::names::{Listed, Replica};
use crate::runtime;
use crate::sync::{Condvar, Mutex};

/// How long the read that wakes a follower waits for its look.
const WAKE_WAIT: Duration = Duration::from_secs(1);
/// How long after a delta whoever asks for WRITE without a snapshot is taken for a reader that is to try again.
const JUST_APPLIED: Duration = Duration::from_secs(2);
/// How soon it is tried again when another process or thread holds a lock.
const BUSY: Duration = Duration::from_millis(20);
/// How long the protocol's lanes are waited for.
const LANE_WAIT: Duration = Duration::from_millis(500);
/// How long a failing bucket is left alone.
const BACKOFF_MOST: Duration = Duration::from_secs(30);
/// While deltas come, the interval is divided by this.
const FASTER: u32 = 4;
/// So many deltas are asked for side by side at the most, when one came and more may be there.
const SIDE_BY_SIDE: u64 = 16;
/// How often a listing with a gap is repeated.
const GAPS: u32 = 5;
/// After this time what is in the WAL is backfilled, however little it is.
const BACKFILL_AFTER: Duration = Duration::from_secs(30);
/// How long the follower waits for the readers of a long WAL, and how often it looks.
const RESTART_WAIT: Duration = Duration::from_millis(500);
const RESTART_PAUSE: Duration = Duration::from_millis(2);

/// The follower of one database in one process.
pub(crate) struct Follower {
    /// Between two looks, at the most; zero: there are none.
    interval: Duration,
    /// It never writes, so whatever is new comes from others.
    only_reads: bool,
    of: OnceLock<Weak<Database>>,
    /// One process of the host is enough.
    host: HostMutex<()>,
    /// Held while the database is in hand.
    busy: Mutex<()>,
    stopped: AtomicBool,
    /// Somebody has read since the last look.
    read: AtomicBool,
    /// No look is planned.
    resting: AtomicBool,
    state: Mutex<Pace>,
    looked: Condvar,
    /// Looks in a row that failed, and that met somebody who holds a lock.
    failures: AtomicU32,
    busies: AtomicU32,
}

#[derive(Debug, Default)]
struct Pace {
    /// Until the next look; the whole interval when zero.
    interval: Duration,
    /// Since when frames wait for their backfill.
    unfilled_since: Option<Instant>,
    /// The last error that was logged.
    said: Option<String>,
}

/// What a turn does.
enum Begin {
    /// Nothing, until somebody reads.
    Rest,
    Wait(Instant),
    /// At this replica, with a folder for what is on its way.
    Look(Replica, PathBuf),
}

impl Follower {
    /// For a database that is to look every `interval`.
    pub(crate) fn new(role: Role, interval: Duration, host: HostMutex<()>) -> Follower {
        Follower {
            interval: if role == Role::Writer { Duration::ZERO } else { interval },
            only_reads: role == Role::Follower,
            of: OnceLock::new(),
            host,
            busy: Mutex::new(()),
            stopped: AtomicBool::new(false),
            read: AtomicBool::new(false),
            resting: AtomicBool::new(true),
            state: Mutex::default(),
            looked: Condvar::new(),
            failures: AtomicU32::new(0),
            busies: AtomicU32::new(0),
        }
    }

    /// Says whose follower it is.
    pub(crate) fn belongs_to(&self, database: Weak<Database>) {
        // Called once, when the database is made.
        let _ = self.of.set(database);
    }

    /// Ends it; waits for what it is doing to local files.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        drop(self.busy.lock());
    }

    /// Does something with the database; `None` when it is closed. It is not kept open by this, and never dropped here after
    /// its close has returned.
    fn with<T>(&self, work: impl FnOnce(&Database) -> T) -> Option<T> {
        let _busy = self.busy.lock();
        if self.stopped.load(Ordering::SeqCst) {
            return None;
        }
        let database = self.of.get()?.upgrade()?;
        Some(work(&database))
    }

    fn begin(&self) -> Option<Begin> {
        self.with(|database| {
            let read = self.read.swap(false, Ordering::SeqCst);
            let may = !database.has_right() && !database.is_pending() && database.check_poison().is_ok();
            let waits = self.state.lock().unfilled_since;
            if !read || !may {
                let left = if may && waits.is_some() { self.backfill(database, false) } else { Ok(()) };
                self.say(left.err());
                self.resting.store(true, Ordering::SeqCst);
                // Who read meanwhile saw it awake.
                if may && self.read.load(Ordering::SeqCst) {
                    self.resting.store(false, Ordering::SeqCst);
                    return Begin::Wait(Instant::now());
                }
                return Begin::Rest;
            }
            let since = BootTime::now().since(database.shared.log_looked());
            match self.pace().checked_sub(since) {
                Some(left) if left > Duration::ZERO => {
                    self.read.store(true, Ordering::SeqCst);
                    Begin::Wait(Instant::now() + left)
                }
                _ => Begin::Look(database.replica.clone(), database.layout.dir().to_owned()),
            }
        })
    }

    /// How long after the last look the next one is due.
    fn pace(&self) -> Duration {
        let failures = self.failures.load(Ordering::SeqCst);
        if failures > 0 {
            return (self.interval * 2u32.pow(failures.min(10))).min(BACKOFF_MOST.max(self.interval));
        }
        match self.state.lock().interval {
            Duration::ZERO => self.interval,
            pace => pace,
        }
    }

    /// Looks until there is nothing new, and takes in what there is. `None`: the database is closed.
    fn look(&self, from: &Fetcher) -> Option<Result<bool>> {
        let mut found = 0u32;
        let mut ahead = VecDeque::new();
        loop {
            let asked = BootTime::now();
            self.with(|database| database.shared.set_log_looked(asked))?;
            // The one that is expected mostly comes alone; behind two there may be many.
            let more = (1 << found.saturating_sub(1).min(10)).min(SIDE_BY_SIDE);
            let took = match self.next(from, &mut ahead, more) {
                Ok(Some(next)) => self.take(next, from),
                Ok(None) => return None,
                Err(e) => return Some(Err(e)),
            };
            match took? {
                Ok(true) => found += 1,
                Ok(false) => return Some(Ok(found > 0)),
                Err(e) => return Some(Err(e)),
            }
        }
    }

    /// Asks what follows the local database.
    fn next(&self, from: &Fetcher, ahead: &mut VecDeque<Fetched>, more: u64) -> Result<Option<Next>> {
        let begun = self.with(|database| {
            let confirmed = database.shared.log_confirmed();
            let held = database.change_state(|state| state.protocol.durable)?;
            Ok::<_, Error>((held, (confirmed != BootTime::default()).then(|| in_ms(confirmed))))
        });
        let Some(begun) = begun else { return Ok(None) };
        let (held, confirmed) = begun?;
        let mut follow = Follow::new(confirmed);
        let (mut answer, mut fetched, mut listing, mut gaps) = (Answer::Start, None, Vec::new(), 0);
        if held.is_none() {
            // An empty log: its first delta is never deleted, so that one name tells.
            let asked = now();
            return Ok(Some(match from.delta(TxId(1), 1, ahead)? {
                Some(delta) => Next::Delta(delta, asked),
                None => Next::Nothing(asked),
            }));
        }
        loop {
            let turn = protocol::Turn { now: now(), random: fastrand::u64(1..), answer };
            let Some(step) =
                self.with(|database| database.change_state(|state| follow.step(&mut state.protocol, turn)))
            else {
                return Ok(None);
            };
            match step? {
                Step::Ask(Request::GetDelta(txid)) => {
                    let found = from.delta(txid, more, ahead)?;
                    answer = Answer::Delta(found.as_ref().map(|found| found.id));
                    fetched = found;
                }
                Step::Ask(Request::List) if gaps < GAPS => {
                    gaps += 1;
                    let (asked, what) = (from.replica.clone(), format!("listing {}", from.replica.place()));
                    listing = runtime::wait(&what, STORE_WAIT, async move { asked.list().await })??;
                    let ids = self.with(|database| {
                        let durable = database.change_state(|state| state.durable())?;
                        known(&database.replica, &listing, database.outbox(), durable)
                    });
                    let Some(ids) = ids else { return Ok(None) };
                    answer = Answer::Listing(ids?);
                }
                Step::Ask(_) => {
                    let missing = follow.gap.map_or(TxId::NONE, |gap| gap.missing);
                    let message =
                        format!("{}: {missing} is missing, although later ones are there", from.replica.place());
                    return Err(Error::new(ErrorKind::Corrupt, message));
                }
                Step::Done(Followed::Current { confirmed }) => return Ok(Some(Next::Nothing(confirmed))),
                Step::Done(Followed::Next { confirmed, .. }) => {
                    return Ok(fetched.map(|delta| Next::Delta(delta, confirmed)));
                }
                Step::Done(Followed::Replan { head, confirmed }) => {
                    return Ok(Some(Next::Listed { listing, head, confirmed }));
                }
                Step::Done(Followed::Diverged) => {
                    let message =
                        format!("{}: the log is not the one that this disk knows; open it anew", from.replica.place());
                    return Err(Error::new(ErrorKind::Corrupt, message));
                }
            }
        }
    }

    /// Takes in what was found; whether it was anything.
    fn take(&self, next: Next, from: &Fetcher) -> Option<Result<bool>> {
        match next {
            Next::Nothing(confirmed) => {
                self.with(|database| database.shared.set_log_caught_up(from_ms(confirmed)))?;
                Some(Ok(false))
            }
            Next::Delta(delta, confirmed) => {
                let took = self.with(|database| {
                    database.shared.note_head(delta.id.txid, from_ms(confirmed));
                    self.apply(database, &delta, delta.id)?;
                    // What comes after it was not there when it was asked for, or is asked for next.
                    database.shared.set_log_confirmed(from_ms(confirmed));
                    Ok(true)
                })?;
                Some(took)
            }
            Next::Listed { listing, head, confirmed } => {
                let plan = self.with(|database| {
                    database.shared.note_head(head.txid, from_ms(confirmed));
                    let held = database.shared.durable();
                    log::info!("{}: following from {held} to {} by a listing", from.replica.place(), head.txid);
                    chain::plan_onto(&listing, held, head.txid).map_err(|e| e.context(from.replica.place()))
                })?;
                let plan = match plan {
                    Ok(plan) => plan,
                    Err(e) => return Some(Err(e)),
                };
                for object in plan {
                    let found = match from.object(&object) {
                        Ok(found) => found,
                        Err(e) => return Some(Err(e)),
                    };
                    // The log knows its head by the delta, also where a compacted object ends at the same TXID.
                    let id = if found.id.txid == head.txid { head } else { found.id };
                    if let Err(e) = self.with(|database| self.apply(database, &found, id))? {
                        return Some(Err(e));
                    }
                }
                self.with(|database| database.shared.set_log_confirmed(from_ms(confirmed)))?;
                Some(Ok(true))
            }
        }
    }

    /// Makes an object a commit of the local WAL.
    fn apply(&self, database: &Database, found: &Fetched, id: ObjectId) -> Result<()> {
        let progress = {
            let _lease = database.lease_lane.lock_within(LANE_WAIT, "the lease lock")?;
            let _upload = database.uploader.lock_within(LANE_WAIT, "the upload lock")?;
            let busy = |why| Err(Error::new(ErrorKind::Busy, format!("{}: {why}", database.path().display())));
            if database.has_right() || database.is_pending() {
                return busy("this host writes now");
            }
            database.check_poison()?;
            // By eviction; where that is not enough, the next backfill makes room.
            database.cache.make_room(found.id.size + found.spooled())?;
            database.shared.set_others_write(true);
            database.shared.set_applying(BootTime::now());
            match database.apply(Decoder::new(found.reader())?, id)? {
                Outcome::Known => return Ok(()),
                Outcome::Busy => return busy("a local connection holds the WRITE lock"),
                Outcome::Conflict => return busy("local commits came in between"),
                Outcome::Applied(progress) => {
                    database.remember_applied(found, progress.end)?;
                    database.keeper.forget();
                    progress
                }
            }
        };
        let mut state = self.state.lock();
        state.interval = self.interval / FASTER;
        if progress.frames > 0 {
            state.unfilled_since.get_or_insert_with(Instant::now);
        }
        let is_old = state.unfilled_since.is_some_and(|since| since.elapsed() > BACKFILL_AFTER);
        drop(state);
        match progress.checkpoint {
            None if !is_old => Ok(()),
            how => self.backfill(database, how == Some(Checkpoint::Restart)),
        }
    }

    /// Backfills what readers allow; with `restart`, waits for a moment for those that do not.
    fn backfill(&self, database: &Database, restart: bool) -> Result<()> {
        let Some(index) = database.wal_index() else { return Ok(()) };
        let end = Instant::now() + if restart { RESTART_WAIT } else { Duration::ZERO };
        loop {
            let reached = database.applier(&*index).backfill(&database.cache)?;
            let is_done = reached.is_some_and(|reached| reached.done == reached.frames);
            if is_done {
                self.state.lock().unfilled_since = None;
            }
            if is_done || Instant::now() >= end {
                break;
            }
            std::thread::sleep(RESTART_PAUSE);
        }
        database.update_map_when_idle()
    }

    /// Logs an error once.
    fn say(&self, error: Option<Error>) {
        let mut state = self.state.lock();
        let text = error.filter(|e| e.kind() != ErrorKind::Busy).map(|e| e.to_string());
        if let Some(text) = text.as_deref().filter(|text| state.said.as_deref() != Some(text)) {
            log::error!("following: {text}");
        }
        state.said = text;
    }

    /// What keeps it from following.
    pub(crate) fn error(&self) -> Option<String> {
        self.state.lock().said.clone()
    }

    /// Whether looks are planned.
    pub(crate) fn is_awake(&self) -> bool {
        self.interval > Duration::ZERO && !self.resting.load(Ordering::SeqCst)
    }
}

/// What a look found.
enum Next {
    /// As of this time the local database is the head.
    Nothing(protocol::BootTime),
    Delta(Fetched, protocol::BootTime),
    Listed {
        listing: Vec<Listed>,
        head: ObjectId,
        confirmed: protocol::BootTime,
    },
}

impl Turn for Follower {
    fn turn(&self) -> Option<Instant> {
        let (replica, scratch) = match self.begin()? {
            Begin::Rest => return None,
            Begin::Wait(until) => return Some(until),
            Begin::Look(replica, scratch) => (replica, scratch),
        };
        let again = Instant::now() + BUSY;
        let held = match self.host.try_lock() {
            Ok(Some(held)) => held,
            // Another process looks, for this one as well.
            Ok(None) => {
                self.read.store(true, Ordering::SeqCst);
                return Some(again);
            }
            Err(e) => {
                self.say(Some(e));
                return Some(Instant::now() + self.interval);
            }
        };
        // Another process may have looked just before.
        let since = self.with(|database| BootTime::now().since(database.shared.log_looked()))?;
        if let Some(left) = self.pace().checked_sub(since).filter(|left| *left > Duration::ZERO) {
            self.read.store(true, Ordering::SeqCst);
            return Some(Instant::now() + left);
        }
        let from = Fetcher { replica: &replica, scratch: &scratch, stopped: &self.stopped };
        let outcome = self.look(&from)?;
        drop(held);
        let is_busy = matches!(&outcome, Err(e) if e.kind() == ErrorKind::Busy);
        match &outcome {
            Ok(new) => {
                self.failures.store(0, Ordering::SeqCst);
                let mut state = self.state.lock();
                if !new {
                    state.interval = (state.interval * 2).min(self.interval);
                }
            }
            Err(_) if is_busy => {}
            Err(_) => _ = self.failures.fetch_add(1, Ordering::SeqCst),
        }
        self.say(outcome.err());
        self.looked.notify_all();
        if is_busy {
            self.read.store(true, Ordering::SeqCst);
            let busies = self.busies.fetch_add(1, Ordering::SeqCst).min(10);
            return Some(Instant::now() + (BUSY * 2u32.pow(busies)).min(self.interval));
        }
        self.busies.store(0, Ordering::SeqCst);
        Some(Instant::now() + self.pace())
    }
}

impl Database {
    /// Whether a delta of others has just become a commit here. A reader that met the header between its two copies asks for
    /// WRITE, to recover it, although it is whole by then.
    pub(crate) fn has_just_applied(&self) -> bool {
        !self.has_right() && BootTime::now().since(self.shared.applying()) < JUST_APPLIED
    }

    /// A read transaction begins: READ0 to READ4 is about to be locked, and the header is looked at again behind it, so what is
    /// taken in here is what it reads.
    pub(crate) fn before_read(&self) {
        let follower = &self.follower;
        if follower.interval.is_zero() || self.is_inherited() {
            return;
        }
        if !follower.read.load(Ordering::Relaxed) {
            follower.read.store(true, Ordering::SeqCst);
        }
        // A right that stands needs no clock to be seen.
        if !follower.resting.load(Ordering::SeqCst) || self.shared.right() != BootTime::default() {
            return;
        }
        follower.resting.store(false, Ordering::SeqCst);
        let begun = BootTime::now();
        let turn: Arc<dyn Turn> = Arc::clone(follower) as _;
        if let Err(e) = pump::call_in(Line::Follow, &turn, Instant::now()) {
            self.note_error(&e);
            return;
        }
        let is_old = || begun.since(self.shared.log_caught_up()) > follower.interval;
        if !(follower.only_reads || self.shared.others_write()) || follower.failures.load(Ordering::SeqCst) > 0 {
            return;
        }
        let end = Instant::now() + WAKE_WAIT;
        let mut state = follower.state.lock();
        while is_old() && Instant::now() < end && follower.failures.load(Ordering::SeqCst) == 0 {
            // Another process may be the one that looks.
            state = follower.looked.wait_for(state, BUSY);
        }
    }
}

impl DatabaseFile for CacheFile {
    fn put(&self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.put_page(pgno, page)
    }

    fn cut(&self, pages: PageCount) -> Result<()> {
        CacheFile::cut(self, pages)
    }
}

fn in_ms(time: BootTime) -> protocol::BootTime {
    protocol::BootTime(time.0 / 1_000_000)
}

fn from_ms(time: protocol::BootTime) -> BootTime {
    BootTime(time.0 * 1_000_000)
}
