//! The truth about the log and about every row, and the checks against it.

use std::rc::Rc;

use super::super::LeaseState;
use super::bucket::{Content, Row, apply, plan, with_row};
use super::world::{World, say};

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

impl World<'_> {
    /// Holds a new object against the truth.
    pub(super) fn written(&mut self, level: u8, content: &Rc<Content>) {
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
    pub(super) fn check_recoverable(&mut self) {
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
    pub(super) fn check_rest(&mut self) {
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
    pub(super) fn check_takeover(&mut self) {
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
}
