//! The world of a walk: time, the network, the bucket and the truth about the log, and the checks against it.
//!
//! Time is the bucket's; every host's clock runs on its own. A request lands at an instant of its own, perhaps long after its
//! sender gave up or died. The truth is what was first written under each level-0 name.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;

use fastrand::Rng;

use super::super::{Answer, LeaseState};
use super::broken::Broken;
use super::bucket::{Bucket, Content, Net, Reply, Row, apply, plan, with_row};
use super::host::Host;
use super::plan::{Action, Plan};

/// How long a host waits for one answer.
const TIMEOUT_MS: i64 = 10_000;

#[derive(Debug)]
pub(super) enum Event {
    Act(usize),
    Land { host: usize, life: u32, lane: usize, ticket: u64, request: Net, answered_by: Option<i64> },
    Answer { host: usize, life: u32, lane: usize, ticket: u64, reply: Reply },
    Wake { host: usize, life: u32 },
    FinishCommit { host: usize, life: u32 },
    Boot { host: usize, life: u32 },
    Calm,
}

/// What the application was told about a row, and what became of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Fate {
    /// Acknowledged in background mode.
    pub(super) told_local: bool,
    /// Acknowledged as durable.
    pub(super) told_durable: bool,
    /// Reported as not written.
    pub(super) told_failed: bool,
    /// In a conflict folder.
    pub(super) set_aside: bool,
    /// Lost with a disk or the unsynced tail of a WAL, or kept as unclear.
    pub(super) excused: bool,
    /// Under this TXID in the log.
    pub(super) txid: Option<u64>,
}

pub(super) struct World<'a> {
    pub(super) plan: &'a Plan,
    pub(super) broken: Option<Broken>,
    pub(super) now: i64,
    pub(super) bucket: Bucket,
    /// What was first written under each level-0 name, the database after it, and when.
    pub(super) log: Vec<(Rc<Content>, u64, i64)>,
    pub(super) fates: Vec<Fate>,
    pub(super) hosts: Vec<Host>,
    pub(super) calm: bool,
    pub(super) violation: Option<String>,
    pub(super) trace: Option<Vec<String>>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    queue: BinaryHeap<Reverse<(i64, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    rng: Rng,
}

macro_rules! say {
    ($world:expr, $($words:tt)*) => {
        if $world.trace.is_some() { let line = format!($($words)*); $world.say(line); }
    };
}
pub(super) use say;

impl<'a> World<'a> {
    pub(super) fn new(plan: &'a Plan, broken: Option<Broken>, tracing: bool) -> World<'a> {
        let hosts = (0..plan.writers + 2).map(|index| Host::new(plan, index)).collect();
        World {
            plan,
            broken,
            now: 0,
            bucket: Bucket { dateless: plan.dateless, ..Bucket::default() },
            log: Vec::new(),
            fates: Vec::new(),
            hosts,
            calm: false,
            violation: None,
            trace: tracing.then(Vec::new),
            counts: BTreeMap::new(),
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            rng: Rng::with_seed(plan.seed ^ 0x5EED),
        }
    }

    pub(super) fn say(&mut self, line: String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9}.{:03} s  {line}", now / 1000, now % 1000));
        }
    }

    pub(super) fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Notes the first violation; the walk ends with it.
    pub(super) fn violate(&mut self, what: String) {
        say!(self, "VIOLATION: {what}");
        self.violation.get_or_insert(what);
    }

    pub(super) fn at(&mut self, time: i64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((time.max(self.now), self.sequence)));
        self.events.insert(self.sequence, event);
    }

    /// Walks the plan to its end, and says what was violated.
    pub(super) fn walk(&mut self) -> Option<String> {
        for (index, planned) in self.plan.actions.iter().enumerate() {
            self.at(planned.at, Event::Act(index));
        }
        let end = self.plan.actions.last().map_or(0, |planned| planned.at) + 1_000;
        self.at(end, Event::Calm);
        self.run(end + 3_600_000);
        if self.violation.is_none() {
            self.check_rest();
        }
        if self.violation.is_none() && self.plan.takeover {
            self.check_takeover();
        }
        self.violation.clone()
    }

    fn run(&mut self, until: i64) {
        while let Some(Reverse((time, number))) = self.queue.pop() {
            if self.violation.is_some() {
                return;
            }
            if time > until {
                self.queue.push(Reverse((time, number)));
                return;
            }
            self.now = time;
            if let Some(event) = self.events.remove(&number) {
                self.happen(event);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let (host, life) = match &event {
            Event::Act(index) => return self.act(*index),
            Event::Calm => return self.become_calm(),
            Event::Land { .. } => return self.land(event),
            Event::Boot { host, life } => {
                if self.hosts[*host].life == *life {
                    self.boot(*host);
                }
                return;
            }
            Event::Answer { host, life, .. } | Event::Wake { host, life } | Event::FinishCommit { host, life } => {
                (*host, *life)
            }
        };
        let of = &self.hosts[host];
        if of.life != life || !of.alive {
            return;
        }
        if of.frozen_until > self.now {
            let thaw = of.frozen_until;
            return self.at(thaw, event);
        }
        match event {
            Event::Answer { lane, ticket, reply, .. } => {
                if self.hosts[host].lanes[lane].ticket == ticket {
                    self.hosts[host].lanes[lane].ticket = 0;
                    self.answered(host, lane, reply);
                    self.wake(host);
                }
            }
            Event::Wake { .. } => {
                if self.hosts[host].wake_at.is_some_and(|at| at <= self.now) {
                    self.hosts[host].wake_at = None;
                }
                self.wake(host);
            }
            Event::FinishCommit { .. } => {
                self.finish_commit(host);
                self.wake(host);
            }
            _ => {}
        }
    }

    fn act(&mut self, index: usize) {
        let planned = self.plan.actions[index].clone();
        let host = planned.host;
        if !self.hosts[host].alive && !matches!(planned.action, Action::Commit { .. }) {
            return;
        }
        say!(self, "{}: {:?}", self.name(host), planned.action);
        match planned.action {
            Action::Commit { durable } => {
                let row = self.new_row();
                self.hosts[host].jobs.push_back((row, durable, 0));
            }
            Action::Crash { wipe, power, down_ms } => return self.crash(host, wipe, power, down_ms),
            Action::Freeze { ms } => {
                let until = self.now + ms;
                let of = &mut self.hosts[host];
                of.suspended += (until - of.frozen_until.max(self.now)).max(0);
                of.frozen_until = of.frozen_until.max(until);
            }
            Action::Close => self.hosts[host].draining = true,
            Action::Compact { snapshot } => self.begin_compaction(host, snapshot),
            Action::Sweep => self.begin_sweep(host),
            Action::Read => self.begin_read(host),
            Action::Poll => self.begin_poll(host),
        }
        self.wake_at(host, self.now);
    }

    /// The row that a new commit writes.
    pub(super) fn new_row(&mut self) -> Row {
        self.fates.push(Fate::default());
        self.fates.len() - 1
    }

    fn become_calm(&mut self) {
        say!(self, "--- calm: no more faults, everybody awake ---");
        self.calm = true;
        for host in 0..self.hosts.len() {
            if !self.hosts[host].alive {
                self.boot(host);
            }
            let of = &mut self.hosts[host];
            of.suspended -= (of.frozen_until - self.now).max(0);
            of.frozen_until = of.frozen_until.min(self.now);
            // Whoever has commits of its own left behind gets the occasion to send them.
            self.wake_at(host, self.now);
        }
    }

    /// Sends a request of a host; its answer, or the lack of one, comes back to the lane.
    pub(super) fn send(&mut self, host: usize, lane: usize, request: Net) {
        self.sequence += 1;
        let ticket = self.sequence;
        let life = self.hosts[host].life;
        self.hosts[host].lanes[lane].ticket = ticket;
        let patience = self.now + TIMEOUT_MS;
        // The driver waits a little before it takes in that there was no answer.
        let pause = self.rng.i64(50..2_000);
        self.at(patience + pause, Event::Answer { host, life, lane, ticket, reply: Reply::Unknown });
        let Some((delay, answered)) = self.way() else {
            say!(self, "{}: {} -> lost", self.name(host), short(&request));
            return;
        };
        let answered_by = answered.then_some(patience);
        self.at(self.now + delay, Event::Land { host, life, lane, ticket, request, answered_by });
    }

    /// Sends a request for whose answer nobody waits.
    pub(super) fn send_off(&mut self, host: usize, request: Net) {
        if let Some((delay, _)) = self.way() {
            let life = self.hosts[host].life;
            self.at(self.now + delay, Event::Land { host, life, lane: 0, ticket: 0, request, answered_by: None });
        }
    }

    /// How long a request takes and whether its answer finds back; `None`: it is lost.
    fn way(&mut self) -> Option<(i64, bool)> {
        if self.calm {
            return Some((20, true));
        }
        let mut dice = self.rng.u64(0..1000);
        for (kind, of_all) in self.plan.faults.iter().enumerate() {
            if dice < *of_all {
                return match kind {
                    0 => None,
                    1 => Some((self.rng.i64(5..2_000), false)),
                    2 => Some((self.rng.i64(1_000..15_000), true)),
                    3 => Some((self.rng.i64(15_000..150_000), true)),
                    _ => Some((self.rng.i64(600_000..2_400_000), true)),
                };
            }
            dice -= of_all;
        }
        Some((self.rng.i64(5..40), true))
    }

    fn land(&mut self, event: Event) {
        let Event::Land { host, life, lane, ticket, request, answered_by } = event else { return };
        let reply = self.bucket.execute(self.now, &request);
        self.count(match &request {
            Net::GetLease => "requests: read lease",
            Net::SwapLease(..) => "requests: write lease",
            Net::List => "requests: list",
            Net::Put(..) => "requests: write object",
            Net::GetId(_) | Net::Fetch(_) => "requests: read object",
            Net::Delete(..) => "requests: delete",
        });
        say!(self, "    {}: {} lands: {}", self.name(host), short(&request), short_reply(&reply));
        if let Net::Put(_, content, _) = &request
            && matches!(reply, Reply::Core(Answer::Written(_)))
        {
            self.written(request_level(&request), content);
        }
        if let Net::Delete(..) = request {
            self.check_recoverable();
        }
        let back = self.now + self.rng.i64(5..40);
        if answered_by.is_some_and(|limit| back <= limit) {
            self.at(back, Event::Answer { host, life, lane, ticket, reply });
        }
    }

    /// Holds a new object against the truth.
    fn written(&mut self, level: u8, content: &Rc<Content>) {
        self.count("objects");
        if level > 0 {
            let truth: Vec<(u64, Row)> = (content.min..=content.max)
                .filter_map(|txid| self.log.get(txid as usize - 1))
                .flat_map(|(delta, _, _)| delta.rows.iter().copied())
                .collect();
            if truth != content.rows || content.max > self.log.len() as u64 {
                self.violate(format!("the level-{level} object {}-{} is not the log", content.min, content.max));
            }
            return self.check_recoverable();
        }
        let (txid, database) = (content.min, self.log.last().map_or(0, |(_, after, _)| *after));
        if let Some((first, _, _)) = self.log.get(txid as usize - 1) {
            if first.id() != content.id() {
                self.violate(format!("the name {txid} was written twice, with different bytes"));
            }
            return;
        }
        if txid != self.log.len() as u64 + 1 {
            return self.violate(format!("{txid} was written after {}: a gap", self.log.len()));
        }
        if !content.rows.is_empty() && content.parent != database {
            self.violate(format!("the delta {txid} was made on another state of the database"));
        }
        for (_, row) in &content.rows {
            let fate = &mut self.fates[*row];
            let before = fate.txid.replace(txid);
            let (failed, aside) = (fate.told_failed, fate.set_aside);
            if let Some(before) = before {
                self.violate(format!("row {row} is in the log twice, at {before} and {txid}"));
            } else if failed || aside {
                self.violate(format!("row {row} was reported as lost and is in the log at {txid}"));
            }
        }
        let after = content.rows.iter().fold(database, |database, (_, row)| with_row(database, *row));
        self.log.push((content.clone(), after, self.now));
    }

    /// A commit is acknowledged in background mode, at this instant.
    pub(super) fn tell_local(&mut self, host: usize, row: Row) {
        let of = &self.hosts[host];
        let lease = self.bucket.lease.as_ref().map(|(lease, _, _)| (lease.state, lease.holder));
        let epoch = of.state.hold.as_ref().map(|hold| hold.lease.epoch);
        if lease != Some((LeaseState::Held, of.state.nonce)) || of.released_epoch == epoch {
            self.violate(format!("{} acknowledged row {row} without the right to", self.name(host)));
        }
        self.count("rows acknowledged locally");
        self.fates[row].told_local = true;
    }

    /// A commit is known to be durable; the application is told if it waits.
    pub(super) fn tell_durable(&mut self, host: usize, row: Row, txid: u64) {
        let fate = &mut self.fates[row];
        fate.told_durable = true;
        if fate.txid != Some(txid) {
            let really = fate.txid;
            self.violate(format!("{} took row {row} for durable at {txid}; it is at {really:?}", self.name(host)));
        }
        self.count("rows acknowledged as durable");
    }

    pub(super) fn set_aside(&mut self, host: usize, row: Row) {
        say!(self, "{}: row {row} set aside", self.name(host));
        self.count("rows set aside");
        let fate = &mut self.fates[row];
        fate.set_aside = true;
        if fate.txid.is_some() {
            self.violate(format!("{} set row {row} aside, which is in the log", self.name(host)));
        }
    }

    pub(super) fn tell_failed(&mut self, row: Row) {
        let fate = &mut self.fates[row];
        fate.told_failed = true;
        if fate.txid.is_some() {
            self.violate(format!("row {row} was reported as failed, and is in the log"));
        }
    }

    /// The database at a TXID.
    pub(super) fn database_at(&self, txid: u64) -> u64 {
        if txid == 0 { 0 } else { self.log[txid as usize - 1].1 }
    }

    /// Whether a cold open at this instant finds the whole log.
    fn check_recoverable(&mut self) {
        let listing = self.bucket.listing();
        let Some((cover, head)) = plan(&listing, 1, None) else {
            return self.violate("the objects in the bucket do not make up a log".into());
        };
        let contents: Vec<Rc<Content>> = cover
            .iter()
            .filter_map(|l| self.bucket.objects.values().find(|object| object.generation == l.generation.0))
            .map(|object| object.content.clone())
            .collect();
        if head != self.log.len() as u64 || apply(0, 0, &contents) != Some(self.database_at(head)) {
            self.violate(format!("a cold open finds another log: {head} of {}", self.log.len()));
        }
    }

    /// After the calm: everything is settled and accounted for.
    fn check_rest(&mut self) {
        self.check_recoverable();
        for host in 0..self.plan.writers {
            let of = &self.hosts[host];
            if !of.state.outbox.is_empty() || !of.wal.is_empty() || !of.jobs.is_empty() || of.state.hold.is_some() {
                let what = format!(
                    "{} is not done: outbox {:?}, {} rows in the WAL, {} commits waiting, lease held: {}",
                    self.name(host),
                    of.state.outbox,
                    of.wal.len(),
                    of.jobs.len(),
                    of.state.hold.is_some()
                );
                self.violate(what);
            }
        }
        for row in 0..self.fates.len() {
            let fate = &self.fates[row];
            let known_lost = fate.set_aside || fate.excused || fate.told_failed;
            if (fate.told_local || fate.told_durable) && !known_lost && fate.txid.is_none() {
                self.violate(format!("row {row} was acknowledged and is nowhere: {fate:?}"));
            }
            if self.fates[row].told_durable && self.fates[row].set_aside {
                self.violate(format!("row {row} was acknowledged as durable and set aside"));
            }
        }
    }

    /// A holder dies for good; somebody who looks in now and then gets the lease as soon as its time is over.
    fn check_takeover(&mut self) {
        let (victim, heir) = (0, 1);
        let row = self.new_row();
        self.hosts[victim].jobs.push_back((row, false, 0));
        self.wake_at(victim, self.now);
        let begin = self.now;
        while !self.fates[row].told_local && self.violation.is_none() && self.now < begin + 200_000 && self.step_once()
        {
        }
        if self.violation.is_some() {
            return;
        }
        let Some((lease, _, created)) =
            self.bucket.lease.clone().filter(|(lease, _, _)| {
                lease.state == LeaseState::Held && lease.holder == self.hosts[victim].state.nonce
            })
        else {
            return self.violate("nobody contends, and yet the lease was not to be had".into());
        };
        self.crash(victim, true, true, i64::MAX / 4);
        let ttl = lease.ttl_ms as i64;
        let first_look = created + self.rng.i64(ttl / 3..ttl);
        let row = self.new_row();
        self.run(first_look);
        self.now = self.now.max(first_look);
        self.hosts[heir].jobs.push_back((row, true, 0));
        self.wake_at(heir, self.now);
        let limit = created + ttl + ttl / 50 + 2_000 + 8_000;
        while !self.fates[row].told_durable && self.violation.is_none() && self.now <= limit && self.step_once() {}
        if self.violation.is_none() && !self.fates[row].told_durable {
            self.violate(format!("a dead holder's lease of {ttl} ms was not taken over in time"));
        }
    }

    fn step_once(&mut self) -> bool {
        let Some(Reverse((time, number))) = self.queue.pop() else { return false };
        self.now = self.now.max(time);
        if let Some(event) = self.events.remove(&number) {
            self.happen(event);
        }
        true
    }

    /// Makes sure that a host looks around at this time.
    pub(super) fn wake_at(&mut self, host: usize, time: i64) {
        let of = &mut self.hosts[host];
        if of.wake_at.is_none_or(|at| at > time) {
            of.wake_at = Some(time);
            let life = of.life;
            self.at(time, Event::Wake { host, life });
        }
    }

    pub(super) fn name(&self, host: usize) -> String {
        match host.checked_sub(self.plan.writers) {
            None => format!("writer {}", ["A", "B", "C"][host]),
            Some(0) => "reader".into(),
            Some(_) => "follower".into(),
        }
    }
}

fn request_level(request: &Net) -> u8 {
    if let Net::Put((level, _, _), _, _) = request { *level } else { 0 }
}

fn short(request: &Net) -> String {
    match request {
        Net::SwapLease(expect, lease) => format!(
            "swap lease {expect:?} -> {:?} by {} epoch {} req {:x} sealed {} want {:?}",
            lease.state,
            lease.holder,
            lease.epoch,
            lease.req.0 >> 48,
            lease.sealed,
            lease.want.as_ref().map(|want| want.nonce.0 >> 48)
        ),
        Net::Put(key, content, _) => format!("put {key:?} rows {:?}", content.rows),
        Net::Fetch(objects) => format!("fetch {} objects", objects.len()),
        other => format!("{other:?}"),
    }
}

fn short_reply(reply: &Reply) -> String {
    match reply {
        Reply::Listing(listing, _) => {
            let names: Vec<String> = listing.iter().map(|l| format!("{}/{}-{}", l.level, l.min.0, l.max.0)).collect();
            names.join(" ")
        }
        Reply::Core(Answer::Lease(seen)) => match seen {
            Some(seen) => format!("generation {} {:?} by {}", seen.generation.0, seen.lease.state, seen.lease.holder),
            None => "no lease".into(),
        },
        Reply::Contents(contents) => if contents.is_some() { "there" } else { "gone" }.into(),
        other => format!("{other:?}"),
    }
}
