//! The virtual bucket: objects with generations, and the lease. Each request is carried out at one instant.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::object_id::EMPTY_DELTA_BYTES;
use super::super::{Answer, Lease, Listed, ObjectId, SeenLease};
use crate::page::TxId;
use crate::store::{BucketTime, Generation};

/// What one application commit wrote; every row is written by one commit only.
pub(super) type Row = usize;
/// Level, min, max: an LTX object's name.
pub(super) type Key = (u8, u64, u64);

/// The bytes of an LTX object, as far as they matter: which state of the database it was made on, and what it makes of it.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) min: u64,
    pub(super) max: u64,
    /// (TXID, row), ascending by TXID.
    pub(super) rows: Vec<(u64, Row)>,
    /// The database before, as a hash of all rows in order.
    pub(super) parent: u64,
    /// The database after.
    pub(super) after: u64,
    pub(super) nonce: u64,
    id: ObjectId,
}

/// The database with one row more.
pub(super) fn with_row(database: u64, row: Row) -> u64 {
    (database ^ (row as u64 + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

impl Content {
    /// A delta of rows on top of a database. The salt stands for the time stamp: bytes that are built again are other bytes.
    pub(super) fn delta(txid: u64, rows: &[Row], parent: u64, nonce: u64, salt: u64) -> Content {
        let after = rows.iter().fold(parent, |database, row| with_row(database, *row));
        let empty = rows.is_empty() && txid > 1;
        let size = if empty { EMPTY_DELTA_BYTES } else { 600 + rows.len() as u64 };
        let hash = with_row(after ^ nonce ^ salt.rotate_left(17), txid as usize);
        let id = ObjectId { txid: TxId(txid), size, crc32c: (hash >> 32) as u32 };
        Content { min: txid, max: txid, rows: rows.iter().map(|row| (txid, *row)).collect(), parent, after, nonce, id }
    }

    /// One object of several that follow each other.
    pub(super) fn merged(contents: &[Rc<Content>]) -> Option<Content> {
        let (first, last) = (contents.first()?, contents.last()?);
        let mut at = first.min - 1;
        let mut rows: Vec<(u64, Row)> = Vec::new();
        for content in contents {
            rows.extend(content.rows.iter().filter(|(txid, _)| *txid > at));
            at = content.max;
        }
        let full = || contents.iter().filter(|content| !content.rows.is_empty());
        let (parent, after) = (full().next().map_or(0, |c| c.parent), full().next_back().map_or(0, |c| c.after));
        let crc32c = (with_row(after, (first.min << 32 | last.max) as usize) >> 32) as u32;
        let id = ObjectId { txid: TxId(last.max), size: 600 + rows.len() as u64, crc32c };
        Some(Content { min: first.min, max: last.max, rows, parent, after, nonce: 0, id })
    }

    pub(super) fn id(&self) -> ObjectId {
        self.id
    }
}

#[derive(Debug)]
pub(super) struct Object {
    pub(super) content: Rc<Content>,
    pub(super) generation: u64,
    pub(super) created: i64,
}

/// A request on its way.
#[derive(Clone, Debug)]
pub(super) enum Net {
    GetLease,
    SwapLease(Option<u64>, Lease),
    List,
    /// Write if absent (`true`), or whatever is there.
    Put(Key, Rc<Content>, bool),
    GetId(u64),
    /// All of these objects in exactly these generations.
    Fetch(Vec<(Key, u64)>),
    Delete(Key, u64),
}

/// An answer on its way.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Core(Answer),
    Listing(Vec<Listed>, i64),
    Contents(Option<Vec<Rc<Content>>>),
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) objects: BTreeMap<Key, Object>,
    pub(super) lease: Option<(Lease, u64, i64)>,
    /// No answer carries a date.
    pub(super) dateless: bool,
    pub(super) generations: u64,
}

impl Bucket {
    /// Carries out a request at a time. `Date` is cut to whole seconds, as HTTP does.
    pub(super) fn execute(&mut self, now: i64, request: &Net) -> Reply {
        let date = now / 1000 * 1000;
        match request {
            Net::GetLease => {
                Reply::Core(Answer::Lease(self.lease.as_ref().map(|(lease, generation, created)| SeenLease {
                    lease: lease.clone(),
                    generation: Generation(*generation),
                    created: Some(BucketTime(*created)),
                    date: (!self.dateless).then_some(BucketTime(date)),
                })))
            }
            Net::SwapLease(expect, lease) => {
                if self.lease.as_ref().map(|(_, generation, _)| *generation) != *expect {
                    return Reply::Core(Answer::Refused);
                }
                self.generations += 1;
                self.lease = Some((lease.clone(), self.generations, now));
                Reply::Core(Answer::Written(Generation(self.generations)))
            }
            Net::List => Reply::Listing(self.listing(), date),
            Net::Put(key, content, if_absent) => {
                if *if_absent && self.objects.contains_key(key) {
                    return Reply::Core(Answer::Refused);
                }
                self.generations += 1;
                let object = Object { content: content.clone(), generation: self.generations, created: now };
                self.objects.insert(*key, object);
                Reply::Core(Answer::Written(Generation(self.generations)))
            }
            Net::GetId(txid) => {
                Reply::Core(Answer::Delta(self.objects.get(&(0, *txid, *txid)).map(|object| object.content.id())))
            }
            Net::Fetch(wanted) => Reply::Contents(
                wanted
                    .iter()
                    .map(|(key, generation)| {
                        self.objects
                            .get(key)
                            .filter(|object| object.generation == *generation)
                            .map(|object| object.content.clone())
                    })
                    .collect(),
            ),
            Net::Delete(key, generation) => {
                if self.objects.get(key).is_some_and(|object| object.generation == *generation) {
                    self.objects.remove(key);
                }
                Reply::Core(Answer::Written(Generation(*generation)))
            }
        }
    }

    pub(super) fn listing(&self) -> Vec<Listed> {
        self.objects
            .iter()
            .map(|((level, min, _), object)| Listed {
                level: *level,
                min: TxId(*min),
                max: TxId(object.content.max),
                size: object.content.id().size,
                crc32c: object.content.id().crc32c,
                generation: Generation(object.generation),
                created: BucketTime(object.created),
            })
            .collect()
    }
}

/// The objects that make up `from..=to` (`to`: the head, if not given), greedily: largest max first, ties to the higher level,
/// then to the larger range. `None` when they do not.
pub(super) fn plan(listing: &[Listed], from: u64, to: Option<u64>) -> Option<(Vec<Listed>, u64)> {
    let to = to.unwrap_or_else(|| listing.iter().map(|listed| listed.max.0).max().unwrap_or(0));
    let (mut at, mut plan) = (from - 1, Vec::new());
    while at < to {
        let next = listing
            .iter()
            .filter(|l| l.min.0 >= from && l.min.0 <= at + 1 && l.max.0 > at && l.max.0 <= to)
            .max_by_key(|l| (l.max, l.level, std::cmp::Reverse(l.min)))?;
        at = next.max.0;
        plan.push(next.clone());
    }
    Some((plan, to))
}

/// What the contents of a plan make of a database, applied in order; `None` when one was made on another state.
pub(super) fn apply(mut database: u64, mut at: u64, contents: &[Rc<Content>]) -> Option<u64> {
    for content in contents {
        if content.min > at + 1 || (content.min == at + 1 && !content.rows.is_empty() && content.parent != database) {
            return None;
        }
        if !content.rows.is_empty() {
            database = content.after;
        }
        at = content.max;
    }
    Some(database)
}

/// A request in a trace.
pub(super) fn short(request: &Net) -> String {
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

/// An answer in a trace.
pub(super) fn short_reply(reply: &Reply) -> String {
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
