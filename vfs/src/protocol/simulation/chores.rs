//! Reading, following, compacting and deleting, as the shipped code is to do them by the core's rules.

use std::rc::Rc;

use fastrand::Rng;

use super::super::deletes::{GRACE_MS, deletable, may_compact};
use super::super::*;
use super::broken::Broken;
use super::bucket::{Content, Net, Reply, apply, plan};
use super::host::{CHORE, LOG, Op, READ};
use super::world::{World, say};
use crate::page::TxId;
use crate::store::BucketTime;

/// A reader on its way: it plans from one listing, and fetches what it planned, part by part.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Not a reader's, but a host's way to bring its database up to date.
    catches_up: bool,
    target: Option<u64>,
    listed_at: Option<i64>,
    todo: Vec<Listed>,
    asked: usize,
    got: Vec<Rc<Content>>,
    /// What was read as of an older TXID stays in the same answer.
    torn: bool,
    head: Option<ObjectId>,
    tries: u32,
}

impl Reading {
    pub(super) fn catch_up(to: Option<u64>) -> Reading {
        Reading { catches_up: true, target: to, ..Reading::default() }
    }
}

/// A compaction on its way.
#[derive(Debug)]
pub(super) struct Compaction {
    snapshot: bool,
    inputs: Vec<Listed>,
}

impl World<'_> {
    pub(super) fn begin_read(&mut self, host: usize) {
        if self.hosts[host].lanes[READ].op.is_none() {
            self.begin(host, READ, Op::Read(Reading::default()));
        }
    }

    pub(super) fn read_on(&mut self, host: usize, lane: usize, mut reading: Reading, reply: Reply) {
        let request = match reply {
            Reply::Listing(listing, date) => {
                reading.tries += 1;
                let Some((todo, to)) = plan(&listing, 1, reading.target) else {
                    if reading.tries > 20 || reading.target.is_some() {
                        // The state of that TXID is not to be had any more: an error, and nothing was made up.
                        return self.count("reads that ended with an error");
                    }
                    self.hosts[host].lanes[lane].op = Some(Op::Read(reading));
                    return self.send(host, lane, Net::List);
                };
                reading.torn |= !reading.got.is_empty() && reading.target.is_none();
                reading.got.clear();
                reading.head = Chain::of(&listing).ok().and_then(|chain| match TxId(to) == chain.head_txid() {
                    true => chain.head(),
                    false => chain.delta(TxId(to)).or_else(|| todo.last().map(Listed::id)),
                });
                reading.target = Some(to);
                reading.listed_at.get_or_insert(date);
                reading.todo = todo;
                self.next_part(&mut reading)
            }
            Reply::Contents(Some(mut contents)) => {
                reading.got.append(&mut contents);
                reading.todo.drain(..reading.asked);
                self.next_part(&mut reading)
            }
            Reply::Contents(None) => {
                let listed_at = reading.listed_at.unwrap_or(self.now);
                if reading.tries == 1 && self.now - listed_at < GRACE_MS as i64 {
                    self.violate(format!("{} lost an object within the grace", self.name(host)));
                }
                say!(self, "{}: plans again", self.name(host));
                if self.is(Broken::ReplanNewer) {
                    reading.target = None;
                }
                Some(Net::List)
            }
            Reply::Core(_) => Some(Net::List),
            Reply::Unknown if reading.todo.is_empty() => Some(Net::List),
            Reply::Unknown => self.next_part(&mut reading),
        };
        match request {
            Some(request) => {
                self.hosts[host].lanes[lane].op = Some(Op::Read(reading));
                self.send(host, lane, request);
            }
            None => self.has_read(host, &reading),
        }
    }

    fn next_part(&mut self, reading: &mut Reading) -> Option<Net> {
        reading.asked = reading.todo.len().min(reading.todo.len() / 2 + 1);
        let part = &reading.todo[..reading.asked];
        let key = |l: &Listed| {
            let found = self.bucket.objects.iter().find(|(_, object)| object.generation == l.generation.0);
            (found.map_or((l.level, l.min.0, l.max.0), |(key, _)| *key), l.generation.0)
        };
        (!part.is_empty()).then(|| Net::Fetch(part.iter().map(key).collect()))
    }

    fn has_read(&mut self, host: usize, reading: &Reading) {
        let txid = reading.target.unwrap_or(0);
        let database = apply(0, 0, &reading.got);
        if database != Some(self.database_at(txid)) || reading.torn {
            return self.violate(format!("{} read a state that never was, as of {txid}", self.name(host)));
        }
        say!(self, "{}: read the database at {txid}", self.name(host));
        self.count("reads");
        let of = &mut self.hosts[host];
        if reading.catches_up && of.state.outbox.is_empty() && of.wal.is_empty() {
            of.state.caught_up(reading.head);
            of.base = database.unwrap_or(0);
        }
    }

    pub(super) fn begin_poll(&mut self, host: usize) {
        let of = &self.hosts[host];
        if of.lanes[LOG].op.is_none() && of.lanes[READ].op.is_none() {
            let clock = self.clock(host);
            let blind = self.is(Broken::FollowerWithoutList) && self.hosts[host].state.durable.is_some();
            let confirmed = if blind { Some(clock) } else { self.hosts[host].confirmed };
            self.begin(host, LOG, Op::Follow(Follow::new(confirmed), self.now));
        }
    }

    pub(super) fn followed(&mut self, host: usize, outcome: Followed, asked: i64) {
        say!(self, "{}: {outcome:?}", self.name(host));
        let held = self.hosts[host].state.durable;
        let database = self.database_at(held.map_or(0, |id| id.txid.0));
        if self.hosts[host].base != database {
            return self.violate("the follower shows a state that never was".into());
        }
        match outcome {
            Followed::Current { confirmed } => {
                self.hosts[host].confirmed = Some(confirmed);
                let next = held.map_or(0, |id| id.txid.0 as usize);
                if self.log.get(next).is_some_and(|(_, _, at)| *at < asked) {
                    self.violate("the follower takes an old state for the newest".into());
                }
            }
            Followed::Next { delta, confirmed } => {
                let content = self.bucket.objects.get(&(0, delta.txid.0, delta.txid.0)).map(|o| o.content.clone());
                let Some(content) = content.filter(|content| content.id() == delta) else { return };
                let base = self.hosts[host].base;
                if !content.rows.is_empty() && content.parent != base {
                    return self.violate("the follower applied a delta of another state".into());
                }
                let of = &mut self.hosts[host];
                of.state.caught_up(Some(delta));
                of.base = if content.rows.is_empty() { base } else { content.after };
                of.confirmed = Some(confirmed);
                self.begin_poll(host);
            }
            Followed::Replan { head, confirmed } => {
                self.hosts[host].confirmed = Some(confirmed);
                self.begin(host, READ, Op::Read(Reading::catch_up(Some(head.txid.0))));
            }
            Followed::Diverged => self.violate("the follower finds another log".into()),
        }
    }

    pub(super) fn begin_compaction(&mut self, host: usize, snapshot: bool) {
        if self.hosts[host].lanes[CHORE].op.is_none() {
            self.begin(host, CHORE, Op::Compact(Compaction { snapshot, inputs: Vec::new() }));
        }
    }

    pub(super) fn compact_on(&mut self, host: usize, lane: usize, mut of: Compaction, reply: Reply) {
        let request = match reply {
            Reply::Core(Answer::Start) => Net::List,
            Reply::Listing(listing, _) => {
                of.inputs = match self.inputs(host, &listing, of.snapshot) {
                    Some(inputs) => inputs,
                    None => return,
                };
                Net::Fetch(of.inputs.iter().map(|l| ((l.level, l.min.0, l.max.0), l.generation.0)).collect())
            }
            Reply::Contents(Some(contents)) => {
                let Some(content) = Content::merged(&contents) else { return };
                self.count("compactions");
                let level = of.inputs.iter().map(|l| l.level).max().unwrap_or(0).min(7) + 1;
                match (of.snapshot, self.is(Broken::OverwriteLevelOne)) {
                    (true, _) => Net::Put((9, content.min, content.max), Rc::new(content), true),
                    (false, true) => Net::Put((1, content.min, content.min + 9), Rc::new(content), false),
                    (false, false) => Net::Put((level, content.min, content.max), Rc::new(content), true),
                }
            }
            // Done, or somebody else's of the same name (made of the same log), or not known: the next compaction sees.
            _ => return,
        };
        self.hosts[host].lanes[lane].op = Some(Op::Compact(of));
        self.send(host, lane, request);
    }

    /// A run of objects to put into one.
    fn inputs(&mut self, host: usize, listing: &[Listed], snapshot: bool) -> Option<Vec<Listed>> {
        let durable = self.hosts[host].state.durable?;
        let chain = Chain::of(listing).ok()?;
        let blocks = self.is(Broken::OverwriteLevelOne);
        let rng: &mut Rng = &mut self.hosts[host].rng;
        let below: u8 = if snapshot { 9 } else { rng.u8(0..2) };
        let below = if blocks && !snapshot { 0 } else { below };
        let usable: Vec<Listed> =
            listing.iter().filter(|l| l.level <= below && l.max <= durable.txid).cloned().collect();
        let mut from = if snapshot { 1 } else { usable.get(rng.usize(0..usable.len().max(1)))?.min.0 };
        if blocks && !snapshot {
            from = (from - 1) / 10 * 10 + 1;
        }
        let longest =
            usable.iter().map(|l| l.max.0).filter(|max| *max >= from && (!blocks || *max < from + 10)).max()?;
        let to = if rng.bool() { longest } else { rng.u64(from..=longest) };
        let (inputs, to) = plan(&usable, from, Some(to))?;
        (inputs.len() > 1 && may_compact(&chain, durable, TxId(to))).then_some(inputs)
    }

    pub(super) fn begin_sweep(&mut self, host: usize) {
        if self.hosts[host].lanes[CHORE].op.is_none() {
            self.begin(host, CHORE, Op::Sweep);
        }
    }

    pub(super) fn sweep_on(&mut self, host: usize, reply: Reply) {
        let Reply::Listing(mut listing, date) = reply else { return };
        let real = listing.clone();
        if self.is(Broken::SealsDeleted) {
            listing.iter_mut().filter(|l| l.is_seal() && l.max.0 > 1).for_each(|l| l.size += 1);
        }
        if self.is(Broken::HeadFromLevelZero) {
            let newest = listing.iter().filter(|l| l.level == 0).max_by_key(|l| l.max).cloned();
            listing.extend(newest.map(|l| Listed { min: TxId(l.min.0 + 1), max: TxId(l.max.0 + 1), ..l }));
        }
        let grace = if self.is(Broken::NoDeleteGrace) { 0 } else { GRACE_MS };
        let mut doomed: Vec<Listed> = deletable(&listing, BucketTime(date), grace).into_iter().cloned().collect();
        if self.is(Broken::AnyCoverDeletes) {
            let old = |l: &Listed| date - l.created.0 >= grace as i64;
            let together = |x: &Listed| {
                let others: Vec<Listed> = real.iter().filter(|l| *l != x && old(l)).cloned().collect();
                plan(&others, x.min.0, Some(x.max.0)).is_some()
            };
            doomed.extend(real.iter().filter(|l| !l.is_seal() && l.level > 0 && together(l)).cloned());
        }
        for l in doomed {
            let found = self.bucket.objects.iter().find(|(_, object)| object.generation == l.generation.0);
            if let Some(key) = found.map(|(key, _)| *key) {
                self.count("deletes");
                self.send_off(host, Net::Delete(key, l.generation.0));
            }
        }
    }
}
