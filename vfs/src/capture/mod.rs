//! From the WAL file to frozen deltas.
//!
//! Capture reads the WAL *file*, up to the frame count that the wal-index publishes as committed, so it sees the commits
//! of every process and needs no memory of its own. Two things can become of captured frames:
//! - **saved**: copied to `outbox/saved`, because the WAL is about to be reset and it is too early for an upload;
//! - **frozen**: together with all that was saved before, the newest image of each page becomes one delta.
//!
//! What must hold, and after a crash at any point still does:
//! 1. Every committed frame is in the WAL, in a saved record, or in a frozen delta (or in the bucket).
//!    A reset of the WAL is allowed only after the frames are saved and synced ([`Capture::save`]).
//! 2. A frame is in at most one frozen delta's range: `position.serial` orders captures. Frozen deltas carry the position
//!    they reach; saved records up to that serial are skipped, so a crash between the freeze and the emptying of
//!    the saved file does no harm.
//! 3. Frames up to mxFrame do not change while the capture lock is held: whoever resets the WAL passes it.
//! 4. Frames that came from the bucket are stepped over, also when whoever applied them died before he could say so in
//!    the shared memory: every capture asks `applied.rs` first ([`Capture::catch_up`]).
//!
//! Everything here runs under the host's capture lock; nothing here waits for the network.

pub(crate) mod applied;
pub(crate) mod frames;
pub(crate) mod index;
pub(crate) mod position;
pub(crate) mod saved;
pub(crate) mod wal;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use self::applied::{Applied, AppliedFile};
use self::frames::{Frames, HeldHeader};
use self::index::Committed;
use self::position::Position;
use self::saved::Saved;
use self::wal::{Checksum, FRAME_HEADER, HEADER, WalHeader};
use crate::delta::{EncodeError, Encoder, Header};
use crate::error::{Error, ErrorKind, Result};
use crate::local::Layout;
use crate::local::locks::{self, HostMutex, LockByte};
use crate::local::shared::Shared;
use crate::local::state::State;
use crate::outbox::{Envelope, Outbox};
use crate::page::{PageCount, Pgno, TxId};

/// What the capture lock guards in this process.
pub(crate) struct Capture {
    layout: Layout,
    outbox: Outbox,
    saved: Saved,
    applied: AppliedFile,
    state_lock: HostMutex<()>,
}

/// How long a capture waits for another process to have changed the state file.
const STATE_WAIT: Duration = Duration::from_secs(10);

/// Reads a page that no captured frame holds, as the database file has it; `false` if the file does not have it.
pub(crate) type BasePage<'a> = &'a dyn Fn(Pgno, &mut [u8]) -> Result<bool>;

/// What goes into a frozen delta beside the frames.
pub(crate) struct Freeze<'a> {
    /// The TXID that the delta gets.
    pub(crate) txid: TxId,
    /// Size of the database as of the TXID before; pages beyond it that no frame holds are filled in.
    pub(crate) former_pages: PageCount,
    /// Who freezes.
    pub(crate) nonce: u64,
    /// The timestamp for the header, Unix milliseconds.
    pub(crate) timestamp_ms: i64,
    /// Where pages come from that no frame holds.
    pub(crate) base: BasePage<'a>,
}

impl Capture {
    /// Of one database.
    pub(crate) fn open(layout: &Layout, outbox: &Outbox) -> Result<Capture> {
        Ok(Capture {
            layout: layout.clone(),
            outbox: outbox.clone(),
            saved: Saved::open(outbox.dir())?,
            applied: AppliedFile::open(outbox.dir())?,
            state_lock: HostMutex::new(&locks::open(&layout.lock())?, LockByte::State, ()),
        })
    }

    /// Whether something is committed that no frozen delta holds.
    pub(crate) fn is_behind(shared: &Shared, committed: Option<&Committed>) -> bool {
        let Some(position) = shared.position() else { return true };
        let wal_ahead =
            committed.is_some_and(|c| c.frames > 0 && (c.salts != position.salts || c.frames > position.frames));
        wal_ahead || shared.saved_bytes() > 0
    }

    /// The serial that a capture of everything committed has, or will have.
    pub(crate) fn serial_of(&self, shared: &Shared, committed: Option<&Committed>) -> Result<u64> {
        let position = self.catch_up(shared, committed)?;
        Ok(position.serial + u64::from(is_ahead(&position, committed)))
    }

    /// Whether the frames up to a commit that is not published yet continue the checksum: while SQLite still has headers to
    /// rewrite, they do not.
    pub(crate) fn verifies(&self, shared: &Shared, commit: &Committed, held: HeldHeader) -> Result<bool> {
        let position = self.catch_up(shared, Some(commit))?;
        let Some(file) = self.wal_file()? else { return Ok(false) };
        let name = self.name();
        let Some(span) = span(&file, &position, Some(commit), &name)? else { return Ok(false) };
        let frames = Frames { held: Some(held), ..span.frames(&file, &name) };
        match frames.walk(|_, _| ()) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Copies everything committed out of the WAL, so that it may be reset, and marks its generation as closed.
    /// After an error nothing has changed and the WAL must not be reset.
    pub(crate) fn save(&mut self, shared: &Shared, committed: Option<&Committed>) -> Result<()> {
        let before = self.catch_up(shared, committed)?;
        let mut position = before;
        let wal = self.wal_file()?;
        if let Some(file) = &wal
            && let Some(span) = span(file, &position, committed, &self.name())?
        {
            let serial = position.serial + 1;
            let end = shared.saved_bytes();
            let last_frame = span.first - 1 + span.count;
            let (end, checksum) =
                self.saved.append(end, &span.frames(file, &self.name()), last_frame, serial, span.pages)?;
            position = span.reached(checksum, serial);
            shared.set_saved_bytes(end);
        }
        position.closed = true;
        let lacks = |c: &Committed| c.salts == before.salts && c.frames < before.frames;
        if !before.closed && committed.is_some_and(lacks) {
            // A strict commit was frozen, and its frames never became one: the log is ahead of what goes into the cache.
            self.note_behind()?;
        }
        self.close_generation(&before, &position, committed, wal.as_ref())?;
        shared.set_position(&position);
        Ok(())
    }

    /// Says on the disk, before the WAL that would show it is gone, that the cache lacks what was frozen.
    fn note_behind(&self) -> Result<()> {
        let path = self.layout.state();
        let _held = self.state_lock.lock_within(STATE_WAIT, "the state lock")?;
        match State::load(&path)? {
            Some(state) if !state.rebuild => State { rebuild: true, ..state }.save(&path),
            _ => Ok(()),
        }
    }

    /// Makes it survive a crash that the generation is captured to its end, and that what was applied to it counts.
    fn close_generation(
        &self,
        before: &Position,
        position: &Position,
        committed: Option<&Committed>,
        wal: Option<&File>,
    ) -> Result<()> {
        let applied = self.applied.in_effect(committed, wal)?;
        let saved_anew = position.serial > before.serial;
        let record = match applied {
            // The saved frames say where the generation ends; the record keeps saying what came from the bucket.
            Some(applied) if saved_anew && !applied.settled => {
                let position = Position { closed: true, ..applied.position };
                Applied { position, settled: true, ..applied }
            }
            _ if saved_anew => return Ok(()),
            Some(applied) if !before.closed || !applied.settled => {
                Applied { position: *position, settled: true, ..applied }
            }
            None if !before.closed => Applied { id: None, position: *position, timestamp_ms: 0, settled: true },
            _ => return Ok(()),
        };
        self.applied.write(&record, committed, wal)
    }

    /// Makes one delta of everything committed that is not frozen yet; `None` if there is nothing.
    /// After an error nothing has changed.
    pub(crate) fn freeze(
        &mut self,
        shared: &Shared,
        committed: Option<&Committed>,
        held: Option<HeldHeader>,
        how: &Freeze<'_>,
    ) -> Result<Option<Envelope>> {
        let wal = self.wal_file()?;
        if committed.is_none()
            && let Some(applied) = self.applied.unsettled()?
            && shared.position().is_none_or(|position| applied.is_beyond(&position))
        {
            let why = "what is committed cannot be told just now; whether a delta was applied hangs on it";
            return Err(Error::new(ErrorKind::Busy, why));
        }
        let position = self.catch_up(shared, committed)?;
        let name = self.name();
        let span = match &wal {
            Some(file) => span(file, &position, committed, &name)?,
            None => None,
        };
        let frozen_serial = self.outbox.list()?.last().map_or(0, |newest| newest.position.serial);
        let records: Vec<_> = self.saved.records(shared.saved_bytes())?;
        let records: Vec<_> = records.iter().filter(|record| !record.is_within(frozen_serial)).collect();

        // Where the newest image of each page lies: the saved records in order, then the WAL.
        let mut newest: BTreeMap<Pgno, (bool, u64)> = BTreeMap::new();
        let mut pages = None;
        let mut page_size = None;
        for record in &records {
            newest.extend(self.saved.pages(record)?.into_iter().map(|(pgno, at)| (pgno, (true, at))));
            pages = Some(record.pages());
            page_size = Some(record.page_size());
        }
        let mut reached = position;
        if let (Some(file), Some(span)) = (&wal, &span) {
            let frames = Frames { held, ..span.frames(file, &name) };
            let walked = frames.walk(|pgno, at| _ = newest.insert(pgno, (false, at)))?;
            reached = span.reached(walked.checksum, position.serial + 1);
            pages = Some(span.pages);
            page_size = Some(span.wal.page_size);
        }
        let (Some(pages), Some(page_size)) = (pages, page_size) else {
            self.forget_saved(shared)?;
            return Ok(None);
        };
        if let Some(applied) = self.applied.in_effect(committed, wal.as_ref())?
            && !applied.settled
        {
            self.applied.write(&Applied { settled: true, ..applied }, committed, wal.as_ref())?;
        }

        let first_filled = if how.txid == TxId(1) { 0 } else { how.former_pages.0 };
        let header = Header { node_id: how.nonce, ..Header::level_0(page_size, pages, how.txid, how.timestamp_ms) };
        let saved_file = File::open(self.saved.path())
            .map_err(|e| Error::local(format_args!("opening {}", self.saved.path().display()), &e))?;
        let envelope = self.outbox.freeze(how.txid, reached, how.timestamp_ms, |out| {
            let refused = |e: EncodeError| Error::from(e).context(format_args!("freezing delta {}", how.txid));
            let mut encoder = Encoder::new(out, header).map_err(refused)?;
            let mut page = vec![0; page_size.bytes() as usize];
            let filled = (first_filled + 1..=pages.0).map(Pgno).filter(|p| !newest.contains_key(p));
            let mut filled = filled.filter(|p| *p != page_size.lock_page()).peekable();
            let mut captured =
                newest.iter().filter(|(p, _)| pages.contains(**p) && **p != page_size.lock_page()).peekable();
            loop {
                let next_captured = captured.peek().map(|(pgno, _)| **pgno);
                let next_filled = filled.peek().copied();
                let pgno = match (next_captured, next_filled) {
                    (None, None) => break,
                    (Some(c), Some(f)) if f < c => f,
                    (None, Some(f)) => f,
                    (Some(c), _) => c,
                };
                if next_captured == Some(pgno) {
                    if let Some((_, (is_saved, at))) = captured.next() {
                        let file = if *is_saved { &saved_file } else { wal.as_ref().unwrap_or(&saved_file) };
                        file.read_exact_at(&mut page, *at)
                            .map_err(|e| Error::local(format_args!("reading page {pgno} of the WAL"), &e))?;
                    }
                } else {
                    filled.next();
                    if !(how.base)(pgno, &mut page)? {
                        page.fill(0);
                    }
                }
                encoder.page(pgno, &page).map_err(refused)?;
            }
            encoder.finish().map_err(refused)?;
            Ok(())
        })?;
        shared.set_frozen(how.txid);
        shared.set_frozen_pages(pages);
        shared.set_position(&reached);
        self.forget_saved(shared)?;
        Ok(Some(envelope))
    }

    /// After a crash: finds how far the WAL is captured, from the newest of what the state file, the frozen deltas and the
    /// saved frames say, and puts it into the shared memory. `committed` is what the wal-index says, or the file, if nobody
    /// has the database open: what was applied from the bucket counts as far as it is committed.
    pub(crate) fn recover(&self, shared: &Shared, committed: Option<&Committed>) -> Result<Position> {
        let mut position = State::load(&self.layout.state())?.map(|state| state.position).unwrap_or_default();
        if let Some(newest) = self.outbox.list()?.last()
            && newest.position.serial >= position.serial
        {
            position = newest.position;
        }
        let (end, saved) = self.saved.recover()?;
        match saved {
            Some(saved) if saved.serial > position.serial => {
                shared.set_saved_bytes(end);
                position = saved;
            }
            _ => self.forget_saved(shared)?,
        }
        if let Some(applied) = self.applied.in_effect(committed, self.wal_file()?.as_ref())? {
            let at = &applied.position;
            let same = (at.salts, at.frames) == (position.salts, position.frames);
            if applied.is_beyond(&position)
                || applied.settled && (at.serial > position.serial || same && at.serial == position.serial)
            {
                position = Position { closed: at.closed || same && position.closed, ..*at };
            }
        }
        shared.set_position(&position);
        Ok(position)
    }

    /// The position, with what another process or an earlier one applied from the bucket and did not live to note here.
    /// A position that a killed process left half-written is found again from the disk.
    pub(crate) fn catch_up(&self, shared: &Shared, committed: Option<&Committed>) -> Result<Position> {
        let mut position = match shared.position() {
            Some(position) => position,
            None => self.recover(shared, committed)?,
        };
        if let Some(applied) = self.applied(committed)? {
            if applied.is_beyond(&position) {
                position = applied.position;
            }
            if applied.txid() > shared.frozen() {
                self.note_applied(shared, &position, &applied)?;
            } else {
                shared.set_position(&position);
            }
        }
        Ok(position)
    }

    /// What was applied from the bucket, as far as it is in effect.
    pub(crate) fn applied(&self, committed: Option<&Committed>) -> Result<Option<Applied>> {
        self.applied.in_effect(committed, self.wal_file()?.as_ref())
    }

    /// Says, before they can be committed, which frames are about to come from the bucket.
    pub(crate) fn announce(&self, applied: &Applied, committed: Option<&Committed>) -> Result<()> {
        self.applied.write(applied, committed, self.wal_file()?.as_ref())
    }

    /// Notes that a delta was applied: in the state file, and then for the processes of this host.
    pub(crate) fn note_applied(&self, shared: &Shared, position: &Position, applied: &Applied) -> Result<()> {
        let path = self.layout.state();
        let held = self.state_lock.lock_within(STATE_WAIT, "the state lock")?;
        if let Some(mut state) = State::load(&path)?
            && applied.note_in(&mut state)
        {
            state.save(&path)?;
        }
        shared.set_position(position);
        shared.set_frozen_pages(applied.position.pages);
        shared.set_last_timestamp_ms(shared.last_timestamp_ms().max(applied.timestamp_ms));
        shared.set_frozen(applied.txid());
        shared.set_durable(applied.txid());
        shared.set_durable_serial(applied.position.serial);
        drop(held);
        Ok(())
    }

    /// Forgets what was applied: the WAL is gone and the state file says how far the cache goes.
    pub(crate) fn forget_applied(&self) -> Result<()> {
        self.applied.clear()
    }

    /// What is committed in a WAL that no process has open: its frames up to the last commit, as recovery will find them.
    pub(crate) fn committed_in_file(&self) -> Result<Option<Committed>> {
        committed_in_file(&self.layout)
    }

    /// The pages that frames of the WAL hold, whoever captured them.
    pub(crate) fn pages_in_file(&self, committed: &Committed) -> Result<Vec<Pgno>> {
        let mut pages = Vec::new();
        if let Some(file) = self.wal_file()?
            && let Some(span) = span(&file, &Position::default(), Some(committed), &self.name())?
        {
            span.frames(&file, &self.name()).walk(|pgno, _| pages.push(pgno))?;
        }
        Ok(pages)
    }

    /// The pages that are committed in the WAL and not captured.
    pub(crate) fn ahead(&self, shared: &Shared, committed: Option<&Committed>) -> Result<HashSet<Pgno>> {
        let position = self.catch_up(shared, committed)?;
        let mut pages = HashSet::new();
        if let Some(file) = self.wal_file()?
            && let Some(span) = span(&file, &position, committed, &self.name())?
        {
            span.frames(&file, &self.name()).walk(|pgno, _| pages.extend([pgno]))?;
        }
        Ok(pages)
    }

    fn forget_saved(&self, shared: &Shared) -> Result<()> {
        if shared.saved_bytes() > 0 || self.saved.path().metadata().is_ok_and(|m| m.len() > 0) {
            shared.set_saved_bytes(0);
            self.saved.clear()?;
        }
        Ok(())
    }

    /// The WAL as it is now; it comes and goes with SQLite's connections, so it is opened for each capture.
    fn wal_file(&self) -> Result<Option<File>> {
        wal_file(&self.layout)
    }

    fn name(&self) -> String {
        self.layout.wal().display().to_string()
    }
}

/// The WAL as it is now.
fn wal_file(layout: &Layout) -> Result<Option<File>> {
    let path = layout.wal();
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::local(format_args!("opening {}", path.display()), &e)),
    }
}

/// See [`Capture::committed_in_file`].
pub(crate) fn committed_in_file(layout: &Layout) -> Result<Option<Committed>> {
    let name = layout.wal().display().to_string();
    let Some(file) = wal_file(layout)? else { return Ok(None) };
    let Some(wal) = wal_header(&file, &name)? else { return Ok(None) };
    let frame_bytes = FRAME_HEADER as u64 + u64::from(wal.page_size.bytes());
    let size = file.metadata().map_err(|e| Error::local(format_args!("looking at {name}"), &e))?.len();
    let count = ((size - HEADER as u64) / frame_bytes) as u32;
    let mut running = wal.checksum;
    let mut committed = None;
    let mut frame = vec![0; frame_bytes as usize];
    for number in 1..=count {
        let at = WalHeader::frame_offset(wal.page_size, number);
        file.read_exact_at(&mut frame, at)
            .map_err(|e| Error::local(format_args!("reading frame {number} of {name}"), &e))?;
        let Some(header) = wal::FrameHeader::verify(&frame, &wal, &mut running) else { break };
        if let Some(pages) = header.commit {
            committed = Some(Committed { salts: wal.salts, frames: number, pages, page_size: wal.page_size });
        }
    }
    Ok(committed)
}

/// Whether the WAL holds committed frames behind a position.
fn is_ahead(position: &Position, committed: Option<&Committed>) -> bool {
    committed.is_some_and(|c| c.frames > 0 && (c.salts != position.salts || c.frames > position.frames))
}

/// The committed frames behind a position.
struct Span {
    wal: WalHeader,
    first: u32,
    count: u32,
    seed: Checksum,
    pages: PageCount,
}

impl Span {
    fn frames<'a>(&self, file: &'a File, name: &'a str) -> Frames<'a> {
        let offset = WalHeader::frame_offset(self.wal.page_size, self.first);
        Frames { file, name, wal: self.wal, offset, count: self.count, seed: self.seed, held: None }
    }

    fn reached(&self, checksum: Checksum, serial: u64) -> Position {
        Position {
            salts: self.wal.salts,
            frames: self.first - 1 + self.count,
            cksum: checksum.0,
            pages: self.pages,
            closed: false,
            serial,
        }
    }
}

/// Finds what of the WAL is committed and lies behind `position`; `None` if nothing does.
fn span(file: &File, position: &Position, committed: Option<&Committed>, name: &str) -> Result<Option<Span>> {
    let Some(committed) = committed.filter(|c| c.frames > 0) else { return Ok(None) };
    let same = committed.salts == position.salts;
    // A strict commit is captured before it is published, so the position may be ahead for a moment.
    if same && committed.frames <= position.frames {
        return Ok(None);
    }
    let corrupt = |why: &str| Err(Error::new(ErrorKind::Corrupt, format!("{name}: {why}")));
    if !same && position.frames > 0 && !position.closed {
        return corrupt("it was reset without this VFS: commits may be missing in the bucket");
    }
    let Some(wal) = wal_header(file, name)? else { return corrupt("its header is damaged") };
    if wal.salts != committed.salts || wal.page_size != committed.page_size {
        return corrupt("its header is not that of the wal-index");
    }
    let (first, seed) = if same { (position.frames + 1, Checksum(position.cksum)) } else { (1, wal.checksum) };
    Ok(Some(Span { wal, first, count: committed.frames + 1 - first, seed, pages: committed.pages }))
}

/// The WAL's header; `None` if there is none that is whole.
fn wal_header(file: &File, name: &str) -> Result<Option<WalHeader>> {
    let mut bytes = [0; HEADER];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(WalHeader::parse(&bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(Error::local(format_args!("reading {name}"), &e)),
    }
}
