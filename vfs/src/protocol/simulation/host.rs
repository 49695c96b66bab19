//! A simulated host: the driver of the core as the shipped one is to be, with a database that is a list of rows.
//!
//! The state is saved by every step (a crash between a step and its saving is a crash before the answer came). The lanes are the
//! driver's rule of what may run together: a lease operation beside a log operation, but acquire and release alone.

use std::collections::VecDeque;
use std::rc::Rc;

use fastrand::Rng;

use super::super::*;
use super::broken::Broken;
use super::bucket::{Content, Row};
use super::chores::{Compaction, Reading};
use super::plan::Plan;
use super::world::{Event, World, say};

pub(super) const LEASE: usize = 0;
pub(super) const LOG: usize = 1;
pub(super) const READ: usize = 2;
pub(super) const CHORE: usize = 3;

/// Everybody has the same name, as on Cloud Run.
pub(super) const NAME: &str = "localhost";

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
    pub(super) deadline: i64,
}

#[derive(Debug)]
pub(super) struct Host {
    // On the disk.
    pub(super) state: State,
    /// The frozen bytes of the outbox.
    pub(super) files: Vec<(ObjectId, Rc<Content>)>,
    /// The database at `state.durable`.
    pub(super) base: u64,
    pub(super) wal: Vec<Row>,
    /// Broken: what a release did not see.
    pub(super) hidden: Vec<ObjectId>,
    // In memory.
    pub(super) alive: bool,
    pub(super) life: u32,
    pub(super) frozen_until: i64,
    pub(super) lanes: [Lane; 4],
    pub(super) jobs: VecDeque<(Row, bool, u32)>,
    pub(super) writing: Option<(Row, bool, u32)>,
    pub(super) draining: bool,
    pub(super) needs_settle: bool,
    pub(super) wake_at: Option<i64>,
    pub(super) last_write: i64,
    pub(super) last_look: i64,
    pub(super) retry_at: i64,
    pub(super) seal: Option<Rc<Content>>,
    pub(super) confirmed: Option<BootTime>,
    pub(super) listed_from: BootTime,
    pub(super) released_epoch: Option<u64>,
    pub(super) early_seal: bool,
    // Of the machine.
    pub(super) suspended: i64,
    pub(super) booted: i64,
    pub(super) clock_offset: i64,
    pub(super) drift: i64,
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

    pub(super) fn idle(&self, lane: usize) -> bool {
        self.lanes[lane].op.is_none()
    }

    pub(super) fn has_work(&self) -> bool {
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
    pub(super) fn may_commit(&self, host: usize) -> Result<(), Stop> {
        let of = &self.hosts[host];
        let taken = |hold: &Hold| hold.right_until > BootTime(0);
        if self.is(Broken::NoSelfExpiry) && of.state.hold.as_ref().is_some_and(taken) {
            return of.state.may_commit(BootTime(1));
        }
        of.state.may_commit(self.clock(host))
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
    pub(super) fn write(&mut self, host: usize) {
        let may = self.may_commit(host);
        let (now, clock) = (self.now, self.clock(host));
        let of = &mut self.hosts[host];
        if may.is_ok() && of.writing.is_none() && !of.draining && !of.needs_settle && !of.jobs.is_empty() {
            of.writing = of.jobs.pop_front();
            let pause = if of.rng.u8(0..20) == 0 { of.rng.i64(50..4_000) } else { of.rng.i64(0..20) };
            let life = of.life;
            return self.at(now + pause, Event::FinishCommit { host, life });
        }
        // The right as it is, also where a broken driver does not look at it.
        let may = of.state.may_commit(clock);
        if may.is_ok() || !of.has_work() || now < of.retry_at {
            return;
        }
        if of.needs_settle {
            if of.idle(LOG) && of.idle(LEASE) {
                self.freeze(host);
                self.begin(host, LOG, Op::Settle(Settle::default()));
            }
            return;
        }
        match may {
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

    pub(super) fn keep_lease(&mut self, host: usize) {
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

    pub(super) fn upload(&mut self, host: usize) {
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
    pub(super) fn let_go(&mut self, host: usize) {
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
}
