//! How a simulated host drives the core: it steps operations, puts their requests on the wire, and acts on their outcomes.

use std::rc::Rc;

use super::super::*;
use super::broken::Broken;
use super::bucket::{Content, Net, Reply};
use super::host::{LEASE, Lane, Op};
use super::world::{World, say};

impl World<'_> {
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
    pub(super) fn drive<O: Operation>(
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

    pub(super) fn on_the_wire(&mut self, host: usize, request: Request) -> Net {
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
    pub(super) fn became_durable(&mut self, host: usize, before: &[ObjectId]) {
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
    pub(super) fn gives_up(&mut self, host: usize) -> bool {
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

    pub(super) fn acquired(&mut self, host: usize, outcome: Acquired) {
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

    pub(super) fn renewed(&mut self, host: usize, outcome: Renewed) {
        if outcome == Renewed::Lost {
            say!(self, "{}: the lease is lost", self.name(host));
            self.count("leases lost");
            self.hosts[host].needs_settle = true;
        }
    }

    pub(super) fn released(&mut self, host: usize, outcome: Released) {
        say!(self, "{}: release: {outcome:?}", self.name(host));
        self.count("releases");
        self.hosts[host].draining = false;
        self.unhide(host);
    }

    pub(super) fn appended(&mut self, host: usize, outcome: Appended) {
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

    pub(super) fn judged(&mut self, host: usize, verdict: Verdict) {
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

    /// The broken seal before the swap, once for every wait: list and put until it is there, then acquire as if the log were
    /// sealed.
    pub(super) fn sealed_early(&mut self, host: usize, lane: usize, reply: Reply) {
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
