//! A simulated host: the driver of the core as the shipped one is to be, with a database that is a list of rows.
//!
//! The state is saved by every step (a crash between a step and its saving is a crash before the answer came). The lanes are the
//! driver's rule of what may run together: a lease operation beside a log operation, but acquire and release alone.

use std::collections::VecDeque;
use std::rc::Rc;

use fastrand::Rng;

use super::super::*;
use super::broken::Broken;
use super::bucket::{Content, Net, Reply, Row};
use super::chores::{Compaction, Reading};
use super::plan::Plan;
use super::world::{Event, World, say};

pub(super) const LEASE: usize = 0;
pub(super) const LOG: usize = 1;
pub(super) const READ: usize = 2;
pub(super) const CHORE: usize = 3;

/// Everybody has the same name, as on Cloud Run.
const NAME: &str = "localhost";

#[derive(Debug)]
pub(super) enum Op {
    Acquire(Acquire),
    Renew(Renew),
    Look(Look),
    Release(Release),
    Append(Append),
    Settle(Settle),
    Follow(Follow, i64),
    /// Broken: a seal before the swap.
    EarlySeal,
    Read(Reading),
    Compact(Compaction),
    Sweep,
}

/// Where one operation at a time is under way; a ticket of 0 waits for nothing.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) op: Option<Op>,
    pub(super) ticket: u64,
    deadline: i64,
}

#[derive(Debug)]
pub(super) struct Host {
    // On the disk.
    pub(super) state: State,
    /// The frozen bytes of the outbox.
    files: Vec<(ObjectId, Rc<Content>)>,
    /// The database at `state.durable`.
    pub(super) base: u64,
    pub(super) wal: Vec<Row>,
    /// Broken: what a release did not see.
    hidden: Vec<ObjectId>,
    // In memory.
    pub(super) alive: bool,
    pub(super) life: u32,
    pub(super) frozen_until: i64,
    pub(super) lanes: [Lane; 4],
    pub(super) jobs: VecDeque<(Row, bool, u32)>,
    writing: Option<(Row, bool, u32)>,
    pub(super) draining: bool,
    needs_settle: bool,
    pub(super) wake_at: Option<i64>,
    last_write: i64,
    last_look: i64,
    retry_at: i64,
    seal: Option<Rc<Content>>,
    pub(super) confirmed: Option<BootTime>,
    listed_from: BootTime,
    pub(super) released_epoch: Option<u64>,
    early_seal: bool,
    // Of the machine.
    pub(super) suspended: i64,
    booted: i64,
    clock_offset: i64,
    drift: i64,
    pub(super) rng: Rng,
}

impl Host {
    pub(super) fn new(plan: &Plan, index: usize) -> Host {
        let (drift, ttl_ms) = plan.clocks[index];
        let mut rng = Rng::with_seed(plan.seed.rotate_left(7) ^ (index as u64 + 1));
        Host {
            state: State::new(Nonce(rng.u64(..)), NAME, ttl_ms),
            files: Vec::new(),
            base: 0,
            wal: Vec::new(),
            hidden: Vec::new(),
            alive: true,
            life: 0,
            frozen_until: 0,
            lanes: Default::default(),
            jobs: VecDeque::new(),
            writing: None,
            draining: false,
            needs_settle: false,
            wake_at: None,
            last_write: 0,
            last_look: 0,
            retry_at: 0,
            seal: None,
            confirmed: None,
            listed_from: BootTime(0),
            released_epoch: None,
            early_seal: false,
            suspended: 0,
            booted: 0,
            clock_offset: rng.i64(1_000..1_000_000),
            drift,
            rng,
        }
    }

    fn idle(&self, lane: usize) -> bool {
        self.lanes[lane].op.is_none()
    }

    fn has_work(&self) -> bool {
        !self.jobs.is_empty() || self.writing.is_some() || !self.wal.is_empty() || !self.state.outbox.is_empty()
    }
}

impl World<'_> {
    /// The host's boot clock.
    pub(super) fn clock(&self, host: usize) -> BootTime {
        let of = &self.hosts[host];
        let mut elapsed = self.now - of.booted;
        if self.is(Broken::ClockStep) {
            elapsed -= of.suspended;
        }
        BootTime((of.clock_offset + elapsed + elapsed * of.drift / 1_000_000) as u64)
    }

    /// Step 12, as the driver asks it.
    fn may_commit(&self, host: usize) -> Result<(), Stop> {
        let mut state = self.hosts[host].state.clone();
        if self.is(Broken::NoSelfExpiry)
            && let Some(hold) = &mut state.hold
            && hold.right_until > BootTime(0)
        {
            hold.right_until = BootTime(u64::MAX);
        }
        state.may_commit(self.clock(host))
    }

    /// Looks around: what is there to do?
    pub(super) fn wake(&mut self, host: usize) {
        if host >= self.plan.writers || !self.hosts[host].alive || self.hosts[host].frozen_until > self.now {
            return;
        }
        for lane in [LEASE, LOG, READ] {
            let of = &mut self.hosts[host];
            if of.lanes[lane].op.is_some() && of.lanes[lane].deadline < self.now && of.rng.bool() {
                of.lanes[lane] = Lane::default();
                say!(self, "{}: gives up an operation at its deadline", self.name(host));
                self.unhide(host);
            }
        }
        self.write(host);
        self.keep_lease(host);
        self.upload(host);
        self.let_go(host);
        let of = &self.hosts[host];
        if of.has_work() || of.state.hold.is_some() || of.needs_settle {
            let soon = self.now + self.hosts[host].rng.i64(300..1_000);
            self.wake_at(host, soon);
        }
    }

    /// Begins the next commit, or the way to the right to do it.
    fn write(&mut self, host: usize) {
        let may = self.may_commit(host);
        let (now, clock) = (self.now, self.clock(host));
        let of = &mut self.hosts[host];
        if may.is_ok() {
            if of.writing.is_none() && !of.draining && !of.needs_settle {
                of.writing = of.jobs.pop_front();
                if of.writing.is_some() {
                    let pause = if of.rng.u8(0..20) == 0 { of.rng.i64(50..4_000) } else { of.rng.i64(0..20) };
                    let life = of.life;
                    self.at(now + pause, Event::FinishCommit { host, life });
                    return;
                }
            }
        }
        // The right as it is, also where a broken driver does not look at it.
        let may = of.state.may_commit(clock);
        if may.is_ok() || !of.has_work() || now < of.retry_at {
            return;
        }
        match may {
            Err(_) if of.needs_settle => {
                if of.idle(LOG) && of.idle(LEASE) {
                    self.freeze(host);
                    self.begin(host, LOG, Op::Settle(Settle::default()));
                }
            }
            Err(Stop::Lapsed) if of.idle(LEASE) => self.begin(host, LEASE, Op::Renew(Renew::default())),
            Err(Stop::NoLease) if of.idle(LEASE) && of.idle(LOG) => {
                self.freeze(host);
                let early = self.is(Broken::SealBeforeSwap) && !self.log.is_empty() && !self.hosts[host].early_seal;
                self.begin(host, LEASE, if early { Op::EarlySeal } else { Op::Acquire(Acquire::default()) });
            }
            Err(Stop::Behind) if of.idle(READ) && of.state.outbox.is_empty() && of.wal.is_empty() => {
                let to = of.state.hold.as_ref().and_then(|hold| hold.head).map(|head| head.txid.0);
                self.begin(host, READ, Op::Read(Reading::catch_up(to)));
            }
            _ => {}
        }
    }

    /// The commit frame is about to be written: the right is looked at again, then the commit is there.
    pub(super) fn finish_commit(&mut self, host: usize) {
        let may = self.may_commit(host).is_ok() || self.is(Broken::ReleaseDuringCommit);
        let now = self.now;
        let of = &mut self.hosts[host];
        let Some((row, durable, tries)) = of.writing.take() else { return };
        if !may {
            return of.jobs.push_front((row, durable, tries));
        }
        of.wal.push(row);
        of.last_write = now;
        say!(self, "{}: row {row} committed{}", self.name(host), if durable { ", waits for the bucket" } else { "" });
        if !durable {
            self.tell_local(host, row);
        }
    }

    fn keep_lease(&mut self, host: usize) {
        let clock = self.clock(host);
        let now = self.now;
        let of = &mut self.hosts[host];
        if of.state.hold.is_none() || !of.idle(LEASE) || of.state.may_commit(clock).is_err() || !of.has_work() {
            return;
        }
        if of.state.renewal_due(clock) {
            self.begin(host, LEASE, Op::Renew(Renew::default()));
        } else if now - of.last_look > 1_000 {
            of.last_look = now;
            self.begin(host, LEASE, Op::Look(Look));
        }
    }

    fn upload(&mut self, host: usize) {
        let clock = self.clock(host);
        let of = &mut self.hosts[host];
        let lease_free = !matches!(of.lanes[LEASE].op, Some(Op::Acquire(_) | Op::Release(_) | Op::EarlySeal));
        if !of.idle(LOG) || !lease_free || of.needs_settle || of.state.may_commit(clock).is_err() {
            return;
        }
        if !of.wal.is_empty() && (of.state.outbox.is_empty() || of.rng.u8(0..4) == 0) {
            self.freeze(host);
        }
        if !self.hosts[host].state.outbox.is_empty() {
            self.begin(host, LOG, Op::Append(Append::default()));
        }
    }

    /// Hands over to a contender, or releases a lease that idles.
    fn let_go(&mut self, host: usize) {
        let clock = self.clock(host);
        let unknown_too = self.is(Broken::ReleaseWithUnknownPut);
        let during_commit = self.is(Broken::ReleaseDuringCommit);
        let of = &mut self.hosts[host];
        if of.state.hold.is_none() {
            of.draining = false;
            return;
        }
        let idle = !of.has_work() && self.now - of.last_write > 2_000;
        of.draining |= idle || of.state.should_hand_over(clock, 3_000);
        let settled = of.state.outbox.is_empty() && of.idle(LOG) || unknown_too;
        let unwritten = of.writing.is_none() || during_commit;
        if of.draining && of.idle(LEASE) && settled && of.wal.is_empty() && unwritten {
            if unknown_too {
                of.hidden = std::mem::take(&mut of.state.outbox);
                of.lanes[LOG] = Lane::default();
            }
            self.begin(host, LEASE, Op::Release(Release::default()));
        }
    }

    /// Captures what is in the WAL into a delta of its own.
    fn freeze(&mut self, host: usize) {
        if self.hosts[host].wal.is_empty() {
            return;
        }
        let rows = std::mem::take(&mut self.hosts[host].wal);
        let txid = self.hosts[host].state.next_txid();
        let parent = self.tip(host);
        let content = self.build(host, txid.0, &rows, parent);
        let of = &mut self.hosts[host];
        of.state.frozen(content.id());
        of.files.push((content.id(), content));
    }

    fn build(&mut self, host: usize, txid: u64, rows: &[Row], parent: u64) -> Rc<Content> {
        let of = &mut self.hosts[host];
        Rc::new(Content::delta(txid, rows, parent, of.state.nonce.0, of.rng.u64(..)))
    }

    fn file(&self, host: usize, id: ObjectId) -> Rc<Content> {
        let files = &self.hosts[host].files;
        files
            .iter()
            .find(|(of, _)| *of == id)
            .map(|(_, content)| content.clone())
            .expect("what is in the outbox has bytes")
    }

    /// The database with the outbox.
    fn tip(&self, host: usize) -> u64 {
        let of = &self.hosts[host];
        of.state.outbox.last().map_or(of.base, |id| self.file(host, *id).after)
    }

    pub(super) fn rows_of_outbox(&self, host: usize) -> Vec<Row> {
        let outbox = self.hosts[host].state.outbox.iter().chain(&self.hosts[host].hidden);
        outbox.flat_map(|id| self.file(host, *id).rows.clone()).map(|(_, row)| row).collect()
    }

    /// Broken: the first delta of the outbox is built again with what was committed since.
    pub(super) fn grow(&mut self, host: usize, first: ObjectId) {
        let newer = std::mem::take(&mut self.hosts[host].wal);
        let old = self.file(host, first);
        let rows: Vec<Row> = old.rows.iter().map(|(_, row)| *row).chain(newer).collect();
        let content = self.build(host, first.txid.0, &rows, old.parent);
        let of = &mut self.hosts[host];
        of.state.outbox[0] = content.id();
        of.files.push((content.id(), content));
    }

    fn refreeze(&mut self, host: usize, first: u64) -> Vec<ObjectId> {
        let outbox = self.hosts[host].state.outbox.clone();
        let mut ids = Vec::new();
        for (n, id) in outbox.iter().enumerate() {
            let old = self.file(host, *id);
            let rows: Vec<Row> = old.rows.iter().map(|(_, row)| *row).collect();
            let content = self.build(host, first + n as u64, &rows, old.parent);
            ids.push(content.id());
            self.hosts[host].files.push((content.id(), content));
        }
        ids
    }

    pub(super) fn begin(&mut self, host: usize, lane: usize, op: Op) {
        let deadline = self.now + self.hosts[host].rng.i64(15_000..60_000);
        self.hosts[host].lanes[lane] = Lane { op: Some(op), ticket: 0, deadline };
        if matches!(self.hosts[host].lanes[lane].op, Some(Op::EarlySeal | Op::Sweep)) {
            return self.send(host, lane, Net::List);
        }
        self.answered(host, lane, Reply::Core(Answer::Start));
    }

    /// Feeds an answer to the operation of a lane.
    pub(super) fn answered(&mut self, host: usize, lane: usize, reply: Reply) {
        let Some(op) = self.hosts[host].lanes[lane].op.take() else { return };
        match op {
            Op::Acquire(op) => self.drive(host, lane, reply, op, Op::Acquire, Self::acquired),
            Op::Renew(op) => self.drive(host, lane, reply, op, Op::Renew, Self::renewed),
            Op::Look(op) => self.drive(host, lane, reply, op, Op::Look, Self::renewed),
            Op::Release(op) => self.drive(host, lane, reply, op, Op::Release, Self::released),
            Op::Append(op) => self.drive(host, lane, reply, op, Op::Append, Self::appended),
            Op::Settle(op) => self.drive(host, lane, reply, op, Op::Settle, Self::judged),
            Op::Follow(op, asked) => {
                self.drive(host, lane, reply, op, |op| Op::Follow(op, asked), |w, h, o| w.followed(h, o, asked));
            }
            Op::EarlySeal => self.sealed_early(host, lane, reply),
            Op::Read(op) => self.read_on(host, lane, op, reply),
            Op::Compact(op) => self.compact_on(host, lane, op, reply),
            Op::Sweep => self.sweep_on(host, reply),
        }
    }

    /// Steps an operation until it waits for the bucket or ends.
    fn drive<O: Operation>(
        &mut self,
        host: usize,
        lane: usize,
        reply: Reply,
        mut op: O,
        wrap: impl FnOnce(O) -> Op,
        end: impl FnOnce(&mut Self, usize, O::Outcome),
    ) {
        let mut answer = match reply {
            Reply::Core(answer) => answer,
            Reply::Listing(listing, _) => Answer::Listing(listing),
            Reply::Contents(_) | Reply::Unknown => Answer::Unknown,
        };
        let acquiring = std::any::type_name::<O>() == std::any::type_name::<Acquire>();
        let appending = std::any::type_name::<O>() == std::any::type_name::<Append>();
        if self.broken.is_some() {
            match self.forge(host, acquiring, appending, answer) {
                Some(forged) => answer = forged,
                // The broken driver took the matter into its own hands.
                None => return,
            }
        }
        if acquiring && matches!(answer, Answer::Listing(_)) && self.gives_up(host) {
            return;
        }
        loop {
            let mut now = self.clock(host);
            if self.is(Broken::RightBeforeList) && acquiring {
                now = match &answer {
                    Answer::Listing(_) | Answer::Made(_) => self.hosts[host].listed_from,
                    _ => now,
                };
            }
            let of = &mut self.hosts[host];
            let before = of.state.outbox.clone();
            let refrozen = matches!(answer, Answer::Refrozen(_));
            let turn = Turn { now, random: of.rng.u64(..), answer };
            let step = op.step(&mut of.state, turn);
            if !refrozen {
                self.became_durable(host, &before);
            }
            if acquiring
                && (self.is(Broken::NoSeal) || self.is(Broken::SealBeforeSwap) && self.hosts[host].early_seal)
                && !self.log.is_empty()
                && let Some(hold) = &mut self.hosts[host].state.hold
            {
                hold.lease.sealed = true;
            }
            answer = match step {
                Step::Done(outcome) => return end(self, host, outcome),
                Step::Ask(Request::MakeSeal(txid)) => {
                    let nonce = self.hosts[host].state.nonce.0;
                    let seal = Rc::new(Content::delta(txid.0, &[], 0, nonce, self.hosts[host].rng.u64(..)));
                    self.hosts[host].seal = Some(seal.clone());
                    Answer::Made(seal.id())
                }
                Step::Ask(Request::Refreeze(first)) => Answer::Refrozen(self.refreeze(host, first.0)),
                Step::Ask(request) => {
                    self.hosts[host].lanes[lane].op = Some(wrap(op));
                    let request = self.on_the_wire(host, request);
                    return self.send(host, lane, request);
                }
            };
        }
    }

    fn on_the_wire(&mut self, host: usize, request: Request) -> Net {
        match request {
            Request::GetLease => Net::GetLease,
            Request::SwapLease { expect, mut lease } => {
                if lease.state == LeaseState::Released && lease.holder == self.hosts[host].state.nonce {
                    self.hosts[host].released_epoch = Some(lease.epoch);
                }
                if self.is(Broken::WantRefreshesAge) && lease.holder != self.hosts[host].state.nonce {
                    lease.since = None;
                }
                Net::SwapLease(expect.map(|generation| generation.0), lease)
            }
            Request::List => {
                self.hosts[host].listed_from = self.clock(host);
                Net::List
            }
            Request::PutDelta(id) => Net::Put((0, id.txid.0, id.txid.0), self.file(host, id), true),
            Request::PutSeal(id) => {
                let right = self.hosts[host].state.hold.as_ref().map(|hold| hold.right_until);
                if right.is_none_or(|until| self.clock(host) >= until) {
                    self.violate(format!("{} sent a seal past its right", self.name(host)));
                }
                let seal = self.hosts[host].seal.clone().expect("a seal is made before it is sent");
                Net::Put((0, id.txid.0, id.txid.0), seal, true)
            }
            Request::GetDelta(txid) => Net::GetId(txid.0),
            Request::MakeSeal(_) | Request::Refreeze(_) => unreachable!("answered at once"),
        }
    }

    /// What a step took from the front of the outbox is durable: the waiting commits are told.
    fn became_durable(&mut self, host: usize, before: &[ObjectId]) {
        let taken = before.len() - self.hosts[host].state.outbox.len().min(before.len());
        for id in &before[..taken] {
            let content = self.file(host, *id);
            self.hosts[host].base = content.after;
            say!(self, "{}: delta {} is durable", self.name(host), id.txid);
            for (_, row) in &content.rows {
                self.tell_durable(host, *row, id.txid.0);
            }
        }
    }

    /// The application changes its mind after the swap and before the seal: the lease goes back unsealed.
    fn gives_up(&mut self, host: usize) -> bool {
        let sealed_anyway = self.is(Broken::ReleaseWithoutSeal);
        let calm = self.calm;
        let of = &mut self.hosts[host];
        let Some(hold) = &mut of.state.hold else { return false };
        if calm || hold.lease.sealed || !of.state.outbox.is_empty() || of.rng.u8(0..4) != 0 {
            return false;
        }
        hold.lease.sealed = sealed_anyway;
        say!(self, "{}: gives the lease back before it sealed", self.name(host));
        self.hosts[host].retry_at = self.now + 3_000;
        self.begin(host, LEASE, Op::Release(Release::default()));
        true
    }

    fn acquired(&mut self, host: usize, outcome: Acquired) {
        say!(self, "{}: acquire: {outcome:?}", self.name(host));
        match outcome {
            Acquired::Ready | Acquired::Behind(_) => {
                self.hosts[host].early_seal = false;
                self.count("leases acquired");
            }
            Acquired::Lapsed => {}
            Acquired::Busy(_) => {
                let calm = self.calm;
                let of = &mut self.hosts[host];
                of.retry_at = self.now + of.rng.i64(300..2_000);
                if let Some(job) = of.jobs.front_mut() {
                    job.2 += 1;
                    if job.2 > 100 && !calm {
                        of.jobs.pop_front();
                    }
                }
            }
            Acquired::Refused(verdict) => self.judged(host, verdict),
        }
    }

    fn renewed(&mut self, host: usize, outcome: Renewed) {
        if outcome == Renewed::Lost {
            say!(self, "{}: the lease is lost", self.name(host));
            self.count("leases lost");
            self.hosts[host].needs_settle = true;
        }
    }

    fn released(&mut self, host: usize, outcome: Released) {
        say!(self, "{}: release: {outcome:?}", self.name(host));
        self.count("releases");
        self.hosts[host].draining = false;
        self.unhide(host);
    }

    fn unhide(&mut self, host: usize) {
        let of = &mut self.hosts[host];
        if !of.hidden.is_empty() && of.idle(LEASE) {
            of.state.outbox = std::mem::take(&mut of.hidden);
        }
    }

    fn appended(&mut self, host: usize, outcome: Appended) {
        say!(self, "{}: append: {outcome:?}", self.name(host));
        match outcome {
            Appended::SteppedOver => self.count("late seals stepped over"),
            Appended::Fenced => {
                self.count("fences met");
                let of = &mut self.hosts[host];
                of.needs_settle = true;
                let valid = self
                    .bucket
                    .lease
                    .as_ref()
                    .is_some_and(|(lease, _, _)| lease.state == LeaseState::Held && lease.holder == of.state.nonce);
                let foreign = of.state.outbox.first().and_then(|id| self.log.get(id.txid.0 as usize - 1));
                if valid && foreign.is_some_and(|(content, _, _)| !content.rows.is_empty()) {
                    self.violate(format!("{} holds the lease, and was fenced", self.name(host)));
                }
            }
            Appended::Durable(_) | Appended::Nothing | Appended::Lapsed => {}
        }
    }

    fn judged(&mut self, host: usize, verdict: Verdict) {
        say!(self, "{}: verdict: {verdict:?}", self.name(host));
        self.hosts[host].needs_settle = false;
        match verdict {
            Verdict::Continues | Verdict::Behind(_) => {}
            Verdict::Conflict(_) | Verdict::Unclear(_) => {
                let mut rows = self.rows_of_outbox(host);
                rows.append(&mut self.hosts[host].wal);
                for row in rows {
                    match verdict {
                        Verdict::Unclear(_) => self.fates[row].excused = true,
                        _ => self.set_aside(host, row),
                    }
                }
                self.count(if matches!(verdict, Verdict::Unclear(_)) { "unclear" } else { "conflicts" });
                let of = &mut self.hosts[host];
                of.hidden.clear();
                of.state.set_aside();
                of.base = 0;
            }
            Verdict::Older(head) => self.violate(format!("{} finds the bucket at {head:?}, older", self.name(host))),
        }
    }

    pub(super) fn crash(&mut self, host: usize, wipe: bool, power: bool, down_ms: i64) {
        if !self.hosts[host].alive {
            return;
        }
        let lost = match (wipe, power) {
            (true, _) => [self.rows_of_outbox(host), self.hosts[host].wal.clone()].concat(),
            // The tail of the WAL was not synced.
            (false, true) => {
                let of = &mut self.hosts[host];
                of.wal.split_off(of.rng.usize(0..=of.wal.len()))
            }
            (false, false) => Vec::new(),
        };
        for row in lost {
            self.fates[row].excused = true;
        }
        if !wipe {
            self.unhide(host);
            self.forget_outbox(host, power);
        }
        let now = self.now;
        let of = &mut self.hosts[host];
        (of.alive, of.life) = (false, of.life + 1);
        of.lanes = Default::default();
        of.jobs.clear();
        (of.writing, of.draining, of.wake_at, of.confirmed, of.retry_at) = (None, false, None, None, 0);
        let mut hidden = std::mem::take(&mut of.hidden);
        of.state.outbox.append(&mut hidden);
        if wipe {
            of.state = State::new(Nonce(of.rng.u64(..)), NAME, of.state.ttl_ms);
            (of.base, of.wal, of.files) = (0, Vec::new(), Vec::new());
        }
        if power {
            (of.booted, of.clock_offset, of.suspended) = (now, of.rng.i64(1_000..60_000), 0);
            of.frozen_until = 0;
        }
        let life = of.life;
        self.at(now.saturating_add(down_ms), Event::Boot { host, life });
    }

    /// The broken outboxes: what was frozen is built again from the WAL.
    fn forget_outbox(&mut self, host: usize, power: bool) {
        let rows = self.rows_of_outbox(host);
        if rows.is_empty() {
            return;
        }
        if self.is(Broken::OutboxInMemory) || self.is(Broken::CompareByNonce) {
            let of = &mut self.hosts[host];
            of.state.outbox.clear();
            of.wal.splice(0..0, rows);
        } else if self.is(Broken::RecaptureAfterBoot) && power {
            let (lost, kept) = rows.split_last().map(|(last, kept)| (*last, kept.to_vec())).unwrap_or_default();
            self.fates[lost].excused = true;
            let of = &mut self.hosts[host];
            of.state.outbox.clear();
            of.wal.splice(0..0, kept);
        }
    }

    pub(super) fn boot(&mut self, host: usize) {
        say!(self, "{}: starts", self.name(host));
        let of = &mut self.hosts[host];
        of.alive = true;
        of.life += 1;
        of.wake_at = None;
        of.state.restarted();
        of.needs_settle = !of.state.outbox.is_empty();
        let kept: Vec<ObjectId> = of.state.outbox.clone();
        of.files.retain(|(id, _)| kept.contains(id));
        self.wake_at(host, self.now);
    }

    /// The broken seal before the swap, once for every wait: list and put until it is there, then acquire as if the log were
    /// sealed.
    fn sealed_early(&mut self, host: usize, lane: usize, reply: Reply) {
        let request = match reply {
            Reply::Core(Answer::Written(_)) => {
                self.hosts[host].early_seal = true;
                return self.begin(host, lane, Op::Acquire(Acquire::default()));
            }
            Reply::Listing(listing, _) => {
                let txid = listing.iter().map(|l| l.max.0).max().unwrap_or(0) + 1;
                let nonce = self.hosts[host].state.nonce.0;
                let seal = Rc::new(Content::delta(txid, &[], 0, nonce, self.hosts[host].rng.u64(..)));
                Net::Put((0, txid, txid), seal, true)
            }
            _ => Net::List,
        };
        self.hosts[host].lanes[lane].op = Some(Op::EarlySeal);
        self.send(host, lane, request);
    }
}
