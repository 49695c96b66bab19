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
    /// The time stamp: bytes that are built again are other bytes.
    pub(super) salt: u64,
}

/// The database with one row more.
pub(super) fn with_row(database: u64, row: Row) -> u64 {
    (database ^ (row as u64 + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

impl Content {
    /// A delta of rows on top of a database.
    pub(super) fn delta(txid: u64, rows: &[Row], parent: u64, nonce: u64, salt: u64) -> Content {
        let after = rows.iter().fold(parent, |database, row| with_row(database, *row));
        Content {
            min: txid,
            max: txid,
            rows: rows.iter().map(|row| (txid, *row)).collect(),
            parent,
            after,
            nonce,
            salt,
        }
    }

    pub(super) fn id(&self) -> ObjectId {
        let empty = self.rows.is_empty() && self.min == self.max && self.min > 1;
        let size = if empty { EMPTY_DELTA_BYTES } else { 600 + self.rows.len() as u64 };
        let seed = self.nonce ^ self.salt.rotate_left(17) ^ self.min.rotate_left(40);
        let hash = self.rows.iter().fold(seed ^ self.parent, |hash, (_, row)| with_row(hash, *row));
        let hash = with_row(hash, self.max as usize);
        ObjectId { txid: TxId(self.max), size, crc32c: (hash >> 32) as u32 }
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
