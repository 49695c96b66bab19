//! Driving the append protocol: the decisions of [`crate::protocol`], carried out against the bucket and the disk.
//!
//! An operation is stepped under the state lock, its changes are saved before what it asks for is done, and the lock is free
//! while the network is waited for. The protocol's two lanes are two locks of the host: `Lease` and `Upload`.
//!
//! - **Retries.** A request without a usable answer is answered `Unknown`; the operation then asks again, after a pause.
//! - **Stop.** Every drive has a deadline; an operation that is dropped there is taken up by the next one of its kind.
//! - **Crash.** See the table in [`crate::protocol`]; the state file and the outbox carry all of it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{STORE_WAIT, now_ms};
use crate::database::Database;
use crate::delta::{EncodeError, Encoder, Header};
use crate::error::{Error, ErrorKind, Result};
use crate::history::listing::metadata;
use crate::local::shared::{BootTime, Shared};
use crate::local::state::State;
use crate::log;
use crate::outbox::Outbox;
use crate::page::{PageCount, PageSize, Pgno, TxId};
use crate::protocol::{self, Answer, Lease, ObjectId, Operation, Request, SeenLease, Step, Turn};
use crate::replica::names::{Listed, ObjectName, Replica};
use crate::runtime;
use crate::sqlite::header::new_database_header;
use crate::store::{BucketTime, Condition, Generation, Meta, Store, StoreError};

/// The pause before a request is repeated, doubled each time up to the second one.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MOST: Duration = Duration::from_secs(1);
/// What a request gets, however near the deadline is.
const LEAST_WAIT: Duration = Duration::from_millis(200);
/// How often it is seen to while an upload takes its time that the lease does not end meanwhile.
const BESIDE: Duration = Duration::from_secs(1);
/// The slowest upload that is waited for.
const SLOWEST_BYTES_PER_SECOND: u64 = 256 * 1024;
/// A longer delta is not held in memory to be sent, and no more than this of one to be compared, in bytes.
const LONG: u64 = 4 << 20;

/// The bucket, as one operation of the protocol talks to it.
pub(crate) struct Remote<'a> {
    database: &'a Database,
    replica: &'a Replica,
    outbox: &'a Outbox,
    page_size: PageSize,
    nonce: u64,
    durable: Option<(ObjectId, Generation)>,
    /// The newest delta that this operation has written.
    written: Option<(ObjectId, Generation)>,
    /// Of the seal that the operation made, and its time.
    seal: Bytes,
    seal_ms: i64,
    /// That seal, once it is in the bucket.
    sealed: Option<(ObjectId, Generation)>,
    listing: Vec<Listed>,
    deadline: Instant,
    /// The newest time that the bucket's clock showed.
    clock: &'a AtomicI64,
    /// Why the last request had no usable answer.
    why: Cell<Option<Error>>,
}

impl<'a> Remote<'a> {
    /// For one operation.
    fn new(database: &'a Database, durable: Option<(ObjectId, Generation)>, deadline: Instant) -> Remote<'a> {
        Remote {
            database,
            replica: &database.replica,
            outbox: &database.outbox,
            page_size: database.page_size,
            nonce: database.nonce(),
            durable,
            written: None,
            seal: Bytes::new(),
            seal_ms: 0,
            sealed: None,
            listing: Vec::new(),
            deadline,
            clock: database.keeper.clock(),
            why: Cell::new(None),
        }
    }

    /// Does what an operation asks for. An error is one that repeating does not mend.
    fn execute(&mut self, request: Request) -> Result<Answer> {
        log::debug!("{}: {request:?}", self.replica.place());
        match request {
            Request::GetLease => self.get_lease(),
            Request::SwapLease { expect, lease } => {
                let body = lease.to_bytes().map_err(|e| Error::new(ErrorKind::Local, format!("the lease: {e}")))?;
                let condition = expect.map_or(Condition::Absent, Condition::Generation);
                self.put(self.replica.lease(), body.into(), BTreeMap::new(), condition)
            }
            Request::List => self.list(),
            Request::PutDelta(id) => {
                let timestamp = self.outbox.envelope(id.txid)?.timestamp_ms;
                let name = self.replica.ltx(&ObjectName::delta(id.txid));
                *self.database.sending.lock() = Some((id, Instant::now()));
                let answer = self.send(&id, name, metadata(timestamp));
                *self.database.sending.lock() = None;
                self.database.group.answered();
                self.note_written(id, answer.as_ref().unwrap_or(&Answer::Unknown));
                answer
            }
            Request::GetDelta(txid) => self.get_delta(txid),
            Request::MakeSeal(txid) => self.make_seal(txid),
            Request::PutSeal(id) => {
                let name = self.replica.ltx(&ObjectName::delta(id.txid));
                let answer = self.put(name, self.seal.clone(), metadata(self.seal_ms), Condition::Absent)?;
                self.note_written(id, &answer);
                if let Answer::Written(generation) = answer {
                    self.sealed = Some((id, generation));
                }
                Ok(answer)
            }
            Request::Refreeze(first) => self.refreeze(first),
        }
    }

    /// How long one request may take that moves so many bytes: the operation's time, and the bytes' own.
    fn limit(&self, bytes: u64) -> Duration {
        let time = self.deadline.saturating_duration_since(Instant::now()).clamp(LEAST_WAIT, STORE_WAIT);
        time + Duration::from_millis(bytes * 1000 / SLOWEST_BYTES_PER_SECOND)
    }

    fn note_clock(&self, shown: Option<BucketTime>) {
        if let Some(BucketTime(ms)) = shown {
            self.clock.fetch_max(ms, Ordering::SeqCst);
        }
    }

    fn note_written(&mut self, id: ObjectId, answer: &Answer) {
        if let Answer::Written(generation) = answer {
            self.written = Some((id, *generation));
        }
    }

    fn get_lease(&self) -> Result<Answer> {
        let name = self.replica.lease();
        let store = self.replica.store().clone();
        let get = {
            let name = name.clone();
            async move { store.get_dated(&name).await }
        };
        match in_time(runtime::wait(&format!("reading {name}"), self.limit(0), get), &name)? {
            Ok(object) => {
                let lease = Lease::parse(&object.bytes)
                    .map_err(|e| Error::new(ErrorKind::Corrupt, format!("{}/{name}: {e}", self.replica.place())))?;
                let meta = object.meta;
                self.note_clock(object.date.or(meta.created));
                Ok(Answer::Lease(Some(SeenLease {
                    lease,
                    generation: meta.generation,
                    created: meta.created,
                    date: object.date,
                })))
            }
            Err(StoreError::NotFound(_)) => Ok(Answer::Lease(None)),
            Err(e) => self.unanswered(e),
        }
    }

    fn put(
        &self,
        name: String,
        body: Bytes,
        metadata: BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Answer> {
        let store = self.replica.store().clone();
        let what = format!("writing {name}");
        let limit = self.limit(body.len() as u64);
        let put = async move { store.put(&name, body, &metadata, condition).await };
        self.written(self.wait_with_lease(&what, limit, put))
    }

    /// Sends a delta of the outbox: a long one is read from there as it is sent.
    fn send(&self, id: &ObjectId, name: String, metadata: BTreeMap<String, String>) -> Result<Answer> {
        if id.size <= LONG {
            return self.put(name, self.outbox.read(id)?, metadata, Condition::Absent);
        }
        let (body, store) = (self.outbox.body(id)?, self.replica.store().clone());
        let what = format!("writing {name}");
        let put = async move { store.put_file(&name, &body, &metadata, Condition::Absent).await };
        self.written(self.wait_with_lease(&what, self.limit(id.size), put))
    }

    /// Waits for a request that takes as long as its bytes do; the lease is kept meanwhile.
    fn wait_with_lease<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        request: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let mut renew = || self.database.renew_beside_an_upload();
        runtime::wait_beside(what, limit, BESIDE, &mut renew, request)
    }

    fn written(&self, outcome: Result<Result<Meta, StoreError>>) -> Result<Answer> {
        match outcome {
            Ok(Ok(meta)) => {
                self.note_clock(meta.created);
                Ok(Answer::Written(meta.generation))
            }
            Ok(Err(StoreError::Precondition(_))) => Ok(Answer::Refused),
            Ok(Err(e)) => self.unanswered(e),
            // No answer in time: it may be done, and may still be.
            Err(e) if e.kind() == ErrorKind::Unavailable => {
                self.why.set(Some(e));
                Ok(Answer::Unknown)
            }
            Err(e) => Err(e),
        }
    }

    fn list(&mut self) -> Result<Answer> {
        let replica = self.replica.clone();
        let what = format!("listing {}", self.replica.place());
        match runtime::wait(&what, self.limit(0), async move { replica.list().await }).and_then(|listed| listed) {
            Ok(listing) => {
                self.listing = listing;
                Ok(Answer::Listing(known(self.replica, &self.listing, self.outbox, self.durable)?))
            }
            Err(e) if e.kind() == ErrorKind::Unavailable => {
                self.why.set(Some(e));
                Ok(Answer::Unknown)
            }
            Err(e) => Err(e),
        }
    }

    fn get_delta(&self, txid: TxId) -> Result<Answer> {
        let name = self.replica.ltx(&ObjectName::delta(txid));
        let store = self.replica.store().clone();
        // It is ours, or it does not matter what it is.
        let size = self.outbox.envelope(txid).map_or(0, |envelope| envelope.id.size);
        let read = {
            let name = name.clone();
            async move { checksum(&*store, &name, size).await }
        };
        let limit = self.limit(size);
        let read = self.wait_with_lease(&format!("reading {name}"), limit, read);
        match in_time(read, &name)? {
            Ok((size, crc32c)) => Ok(Answer::Delta(Some(ObjectId { txid, size, crc32c }))),
            Err(StoreError::NotFound(_)) => Ok(Answer::Delta(None)),
            Err(e) => self.unanswered(e),
        }
    }

    /// An empty delta on top of the head; in an empty log the one-page database.
    fn make_seal(&mut self, txid: TxId) -> Result<Answer> {
        let refused = |e: EncodeError| Error::from(e).context(format_args!("making seal {txid}"));
        let (page_size, pages, before_ms) = match self.listing.iter().find(|object| object.name.max.next() == txid) {
            Some(head) => match self.header_of(head)? {
                Some(header) => (header.page_size, header.commit, header.timestamp_ms),
                None => return Ok(Answer::Unknown),
            },
            None => (self.page_size, PageCount(1), 0),
        };
        let last_ms = self.database.shared.last_timestamp_ms().max(before_ms);
        self.seal_ms = now_ms().max(last_ms + 1);
        self.database.shared.set_last_timestamp_ms(self.seal_ms);
        let header = Header { node_id: self.nonce, ..Header::level_0(page_size, pages, txid, self.seal_ms) };
        let mut encoder = Encoder::new(Vec::new(), header).map_err(refused)?;
        if txid == TxId(1) {
            encoder.page(Pgno::ONE, &new_database_header(page_size)).map_err(refused)?;
        }
        let (bytes, size) = encoder.finish().map_err(refused)?;
        let id = ObjectId { txid, size, crc32c: crc32c::crc32c(&bytes) };
        self.seal = bytes.into();
        Ok(Answer::Made(id))
    }

    /// Freezes the outbox anew behind the head, also in time: what is opened by time goes by the order of the log.
    fn refreeze(&mut self, first: TxId) -> Result<Answer> {
        let mut last_ms = self.database.shared.last_timestamp_ms();
        if let Some(head) = self.listing.iter().find(|object| object.name.max.next() == first) {
            match self.header_of(head)? {
                Some(header) => last_ms = last_ms.max(header.timestamp_ms),
                None => return Ok(Answer::Unknown),
            }
        }
        let (ids, last_ms) = self.outbox.refreeze(first, last_ms)?;
        self.database.shared.set_last_timestamp_ms(last_ms);
        Ok(Answer::Refrozen(ids))
    }

    fn header_of(&self, object: &Listed) -> Result<Option<Header>> {
        let name = self.replica.ltx(&object.name);
        let store = self.replica.store().clone();
        let get = {
            let name = name.clone();
            async move { store.get(&name, Some(0..Header::LEN as u64)).await }
        };
        match in_time(runtime::wait(&format!("reading {name}"), self.limit(0), get), &name)? {
            Ok(object) => Header::decode(&object.bytes).map(Some).map_err(|e| Error::from(e).context(name)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(e) => self.unanswered(e).map(|_| None),
        }
    }

    /// What a failed request means to the protocol: no answer, or an error that has to be mended first.
    fn unanswered(&self, error: StoreError) -> Result<Answer> {
        match error {
            StoreError::Refused { .. } => Err(error.into()),
            _ => {
                log::debug!("{error}");
                self.why.set(Some(error.into()));
                Ok(Answer::Unknown)
            }
        }
    }
}

/// A listing with the ids that the protocol goes by.
///
/// A store that does not list checksums is asked for those that decide something: the objects that may be ours, and the head.
pub(crate) fn known(
    replica: &Replica,
    listing: &[Listed],
    outbox: &Outbox,
    durable: Option<(ObjectId, Generation)>,
) -> Result<Vec<protocol::Listed>> {
    let head = listing.iter().map(|object| object.name.max).max();
    let mine: Vec<TxId> = outbox.list()?.iter().map(|envelope| envelope.id.txid).collect();
    let mut known = Vec::with_capacity(listing.len());
    for object in listing {
        let (name, meta) = (object.name, &object.meta);
        let is_durable = durable.is_some_and(|(id, generation)| {
            name == ObjectName::delta(id.txid) && (meta.size, meta.generation) == (id.size, generation)
        });
        let at_durable = durable.is_some_and(|(id, _)| name.max == id.txid);
        let decides = name.level == 0 && (Some(name.max) == head || at_durable || mine.contains(&name.max));
        let crc32c = match (meta.crc32c, durable) {
            (Some(crc32c), _) => crc32c,
            (None, Some((id, _))) if is_durable => id.crc32c,
            (None, _) if decides => {
                let (store, full) = (replica.store().clone(), replica.ltx(&name));
                let (what, size) = (format!("reading {full}"), meta.size);
                let limit = STORE_WAIT + Duration::from_millis(size * 1000 / SLOWEST_BYTES_PER_SECOND);
                runtime::wait(&what, limit, async move { checksum(&*store, &full, size).await })??.1
            }
            (None, _) => 0,
        };
        known.push(protocol::Listed {
            level: name.level,
            min: name.min,
            max: name.max,
            size: meta.size,
            crc32c,
            generation: meta.generation,
            created: meta.created.unwrap_or(crate::store::BucketTime(0)),
        });
    }
    Ok(known)
}

/// Size and CRC-32C of an object, piece by piece; of one that is longer than `ours`, only of as much as shows that.
async fn checksum(store: &dyn Store, name: &str, ours: u64) -> Result<(u64, u32), StoreError> {
    let (mut size, mut crc32c, mut first, mut told) = (0, 0, None, None);
    loop {
        let object = match store.get(name, Some(size..size + LONG)).await {
            Ok(object) => object,
            Err(StoreError::Range(_)) if size > 0 => break,
            Err(e) => return Err(e),
        };
        let generation = object.meta.generation;
        if *first.get_or_insert(generation) != generation {
            return Err(StoreError::Damaged { name: name.to_owned(), why: "it was replaced meanwhile".to_owned() });
        }
        size += object.bytes.len() as u64;
        crc32c = crc32c::crc32c_append(crc32c, &object.bytes);
        told = object.meta.crc32c;
        if (object.bytes.len() as u64) < LONG {
            break;
        }
        if size > ours {
            return Ok((size, crc32c));
        }
    }
    // The client checks no range by itself; what the bucket says of the whole object does.
    match told.is_some_and(|told| told != crc32c) {
        true => Err(StoreError::Damaged { name: name.to_owned(), why: "CRC-32C".to_owned() }),
        false => Ok((size, crc32c)),
    }
}

/// A read that did not end in time, as the store would have said it.
fn in_time<T>(outcome: Result<Result<T, StoreError>>, name: &str) -> Result<Result<T, StoreError>> {
    match outcome {
        Err(e) if e.kind() == ErrorKind::Unavailable => {
            Ok(Err(StoreError::Unavailable { name: name.to_owned(), why: e.to_string() }))
        }
        other => other,
    }
}

impl Database {
    /// Drives an operation to its end; `None` when the deadline came first. The caller holds the operation's lanes.
    pub(crate) fn drive<O: Operation>(&self, mut operation: O, deadline: Instant) -> Result<Option<O::Outcome>> {
        let mut remote = Remote::new(self, self.change_state(|state| state.durable())?, deadline);
        let mut answer = Answer::Start;
        let mut pause = PAUSE;
        let mut moved = None;
        loop {
            let unanswered = answer == Answer::Unknown;
            let written = remote.written;
            let step = self.change_state(|state| {
                let turn = Turn { now: now(), random: fastrand::u64(1..), answer };
                let step = operation.step(&mut state.protocol, turn);
                let known = [written, state.durable()].into_iter().flatten();
                let durable = known.into_iter().find(|(id, _)| Some(*id) == state.protocol.durable);
                state.durable_generation = durable.map(|(_, generation)| generation.0);
                step
            })?;
            match step {
                Step::Done(outcome) => {
                    if let Some((from, to)) = moved {
                        self.move_unsent(from, to)?;
                    }
                    if let Some((id, generation)) = remote.sealed {
                        self.remember_seal(id, generation, remote.seal_ms, &remote.seal);
                    }
                    return Ok(Some(outcome));
                }
                Step::Ask(request) => {
                    if Instant::now() >= deadline {
                        let late = || Error::new(ErrorKind::Unavailable, "no time was left to ask the bucket");
                        self.note_error(&remote.why.take().unwrap_or_else(late));
                        return Ok(None);
                    }
                    if unanswered {
                        std::thread::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0));
                        pause = PAUSE_MOST.min(pause * 2);
                    } else {
                        pause = PAUSE;
                    }
                    if let Request::Refreeze(to) = request {
                        moved = self.outbox.list()?.first().map(|oldest| (oldest.id.txid, to));
                    }
                    answer = remote.execute(request)?;
                    if answer == Answer::Unknown {
                        // Shown in the status while it is tried again; logged if time runs out.
                        let why = remote.why.take();
                        *self.last_error.lock() = why.as_ref().map(ToString::to_string);
                        remote.why.set(why);
                    }
                }
            }
        }
    }

    /// Changes the state file under its lock; it is written only if something changed. What other threads and processes go
    /// by is published before this returns.
    pub(crate) fn change_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T> {
        let _held = self.state_lock.lock_within(STORE_WAIT, "the state lock")?;
        let path = self.layout.state();
        let mut state = State::load(&path)?
            .ok_or_else(|| Error::new(ErrorKind::Local, format!("{}: gone while in use", path.display())))?;
        let outbox = self.outbox.list()?;
        state.protocol.outbox = unsettled(&state.protocol, outbox.iter().map(|envelope| envelope.id));
        let before = state.clone();
        let result = change(&mut state);
        if state != before {
            if state.protocol.durable != before.protocol.durable
                && let Some(settled) = outbox.iter().find(|envelope| Some(envelope.id) == state.protocol.durable)
            {
                state.position = settled.position;
            }
            state.save(&path)?;
            self.outbox.adopt_refrozen(&state.protocol.outbox)?;
        }
        publish(&self.shared, &state);
        self.settled.1.notify_all();
        Ok(result)
    }
}

/// The frozen deltas that come after the durable one, without a gap.
pub(crate) fn unsettled(state: &protocol::State, frozen: impl Iterator<Item = ObjectId>) -> Vec<ObjectId> {
    let mut next = state.durable.map_or(TxId::NONE, |id| id.txid).next();
    let mut outbox = Vec::new();
    for id in frozen {
        if id.txid == next {
            outbox.push(id);
            next = next.next();
        }
    }
    outbox
}

/// Lets the other threads and processes of the host know what the state says.
pub(crate) fn publish(shared: &Shared, state: &State) {
    let protocol = &state.protocol;
    shared.set_durable(state.durable_txid());
    shared.set_durable_serial(state.position.serial);
    shared.set_frozen(protocol.outbox.last().or(protocol.durable.as_ref()).map_or(TxId::NONE, |id| id.txid));
    let may = protocol.may_commit(protocol::BootTime(0)).is_ok();
    let right = protocol.hold.as_ref().filter(|_| may).map_or(0, |hold| hold.right_until.0);
    shared.set_right(BootTime(right * 1_000_000));
}

/// Now, as the protocol counts.
pub(crate) fn now() -> protocol::BootTime {
    protocol::BootTime(BootTime::now().0 / 1_000_000)
}
