//! A simulated host's disk: the outbox with its bytes, and what a crash leaves of it.

use std::rc::Rc;

use super::super::*;
use super::broken::Broken;
use super::bucket::{Content, Row};
use super::host::{LEASE, NAME};
use super::world::{Event, World, say};

impl World<'_> {
    /// Captures what is in the WAL into a delta of its own.
    pub(super) fn freeze(&mut self, host: usize) {
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

    pub(super) fn build(&mut self, host: usize, txid: u64, rows: &[Row], parent: u64) -> Rc<Content> {
        let of = &mut self.hosts[host];
        Rc::new(Content::delta(txid, rows, parent, of.state.nonce.0, of.rng.u64(..)))
    }

    pub(super) fn file(&self, host: usize, id: ObjectId) -> Rc<Content> {
        let files = &self.hosts[host].files;
        files
            .iter()
            .find(|(of, _)| *of == id)
            .map(|(_, content)| content.clone())
            .expect("what is in the outbox has bytes")
    }

    /// The database with the outbox.
    pub(super) fn tip(&self, host: usize) -> u64 {
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

    pub(super) fn refreeze(&mut self, host: usize, first: u64) -> Vec<ObjectId> {
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

    pub(super) fn unhide(&mut self, host: usize) {
        let of = &mut self.hosts[host];
        if !of.hidden.is_empty() && of.idle(LEASE) {
            of.state.outbox = std::mem::take(&mut of.hidden);
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
    pub(super) fn forget_outbox(&mut self, host: usize, power: bool) {
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
}
