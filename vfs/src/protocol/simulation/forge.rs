//! How a broken driver twists the answers on their way into the core.

use super::super::object_id::EMPTY_DELTA_BYTES;
use super::super::*;
use super::broken::Broken;
use super::bucket::Row;
use super::host::LOG;
use super::world::{World, say};
use crate::page::TxId;

impl World<'_> {
    /// The answer as a broken driver understands it; `None`: it ended the operation on its own.
    pub(super) fn forge(&mut self, host: usize, acquiring: bool, appending: bool, answer: Answer) -> Option<Answer> {
        let first = self.hosts[host].state.outbox.first().copied();
        Some(match answer {
            Answer::Unknown | Answer::Refused if appending => return self.forge_put(host, first, answer),
            Answer::Delta(Some(there)) if appending => match first {
                Some(first) if self.is(Broken::CompareByName) => Answer::Delta(Some(first)),
                Some(first) if self.is(Broken::CompareByNonce) && self.is_of(host, there) => Answer::Delta(Some(first)),
                _ => Answer::Delta(Some(there)),
            },
            Answer::Listing(listing) => Answer::Listing(self.forge_listing(host, acquiring, listing)),
            Answer::Lease(Some(mut seen)) => {
                let state = &mut self.hosts[host].state;
                let foreign = seen.lease.holder != state.nonce;
                if self.broken == Some(Broken::OwnTtl) && foreign {
                    seen.lease.ttl_ms = state.ttl_ms;
                }
                if self.broken == Some(Broken::ReentryByName)
                    && acquiring
                    && foreign
                    && seen.lease.state == LeaseState::Held
                {
                    state.hold = Some(Hold {
                        lease: seen.lease.clone(),
                        generation: seen.generation,
                        right_until: BootTime(0),
                        head: None,
                        turn_began: BootTime(0),
                    });
                }
                Answer::Lease(Some(seen))
            }
            other => other,
        })
    }

    /// Whether the delta of an id bears this disk's nonce.
    fn is_of(&self, host: usize, id: ObjectId) -> bool {
        let truth = self.log.get(id.txid.0 as usize - 1);
        truth.is_some_and(|(content, _, _)| content.id() == id && content.nonce == self.hosts[host].state.nonce.0)
    }

    fn forge_put(&mut self, host: usize, first: Option<ObjectId>, answer: Answer) -> Option<Answer> {
        let Some(first) = first else { return Some(answer) };
        let refused = answer == Answer::Refused;
        let there = self.bucket.objects.get(&(0, first.txid.0, first.txid.0)).map(|object| object.content.id());
        match self.broken {
            Some(Broken::UnknownIsSuccess) if !refused => return Some(Answer::Written(crate::store::Generation(1))),
            Some(Broken::UnknownIsFailure) if !refused => {}
            Some(Broken::RefusedIsFailure) if refused => {}
            Some(Broken::AbsentIsFailure) if !refused && there.is_none() => {}
            Some(Broken::DeltaGrows) if !refused && self.hosts[host].state.outbox.len() == 1 => {
                self.grow(host, first);
                return Some(answer);
            }
            _ => return Some(answer),
        }
        say!(self, "{}: reports its commits as failed", self.name(host));
        let mut rows = self.rows_of_outbox(host);
        rows.append(&mut self.hosts[host].wal);
        self.hosts[host].state.outbox.clear();
        self.hosts[host].lanes[LOG] = Default::default();
        rows.into_iter().for_each(|row: Row| self.tell_failed(row));
        None
    }

    fn forge_listing(&mut self, host: usize, acquiring: bool, mut listing: Vec<Listed>) -> Vec<Listed> {
        let state = &self.hosts[host].state;
        let mine: Vec<ObjectId> = state.durable.iter().chain(&state.outbox).copied().collect();
        match self.broken {
            Some(Broken::RestartByNumber | Broken::CompareByName) => {
                for l in listing.iter_mut().filter(|l| l.level == 0) {
                    if let Some(id) = mine.iter().find(|id| id.txid == l.max) {
                        (l.size, l.crc32c) = (id.size, id.crc32c);
                    }
                }
            }
            Some(Broken::CompareByNonce) => {
                let twins: Vec<(TxId, ObjectId)> = mine.iter().map(|id| (id.txid, *id)).collect();
                for l in listing.iter_mut().filter(|l| l.level == 0) {
                    let twin = twins.iter().find(|(txid, _)| *txid == l.max);
                    if let Some((_, id)) = twin.filter(|_| self.is_of(host, l.id())) {
                        (l.size, l.crc32c) = (id.size, id.crc32c);
                    }
                }
            }
            Some(Broken::SealOverOwnDelta) if acquiring => {
                let outbox = &self.hosts[host].state.outbox;
                for l in listing.iter_mut().filter(|l| l.level == 0 && outbox.contains(&l.id())) {
                    l.size = EMPTY_DELTA_BYTES;
                }
            }
            Some(Broken::HeadFromLevelZero) if acquiring => {
                listing.retain(|l| l.level == 0);
                if let Some(newest) = listing.iter().max_by_key(|l| l.max).cloned() {
                    listing.push(Listed { level: 9, min: TxId(1), ..newest });
                }
            }
            _ => {}
        }
        listing
    }
}
