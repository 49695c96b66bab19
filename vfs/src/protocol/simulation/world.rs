//! The world of a walk: time, the network, the bucket and the truth about the log, and the checks against it.
//!
//! Time is the bucket's; every host's clock runs on its own. A request lands at an instant of its own, perhaps long after its
//! sender gave up or died. The truth is what was first written under each level-0 name.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::rc::Rc;

use fastrand::Rng;

use super::super::Answer;
use super::broken::Broken;
use super::bucket::{Bucket, Content, Net, Reply, Row, short, short_reply};
use super::host::Host;
use super::plan::{Action, Plan};
use super::truth::Fate;

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
    events: HashMap<u64, Event>,
    sequence: u64,
    pub(super) rng: Rng,
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
            events: HashMap::new(),
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

    pub(super) fn run(&mut self, until: i64) {
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

    pub(super) fn happen(&mut self, event: Event) {
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
            Event::Answer { lane, ticket, reply, .. } if of.lanes[lane].ticket == ticket => {
                self.hosts[host].lanes[lane].ticket = 0;
                self.answered(host, lane, reply);
                self.wake(host);
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

    pub(super) fn act(&mut self, index: usize) {
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

    pub(super) fn become_calm(&mut self) {
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
    pub(super) fn way(&mut self) -> Option<(i64, bool)> {
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

    pub(super) fn land(&mut self, event: Event) {
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
        if let Net::Put(key, content, _) = &request
            && matches!(reply, Reply::Core(Answer::Written(_)))
        {
            self.written(key.0, content);
        }
        if let Net::Delete(..) = request {
            self.check_recoverable();
        }
        let back = self.now + self.rng.i64(5..40);
        if answered_by.is_some_and(|limit| back <= limit) {
            self.at(back, Event::Answer { host, life, lane, ticket, reply });
        }
    }

    pub(super) fn step_once(&mut self) -> bool {
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
