//! The objects that the page map points into: a table of fixed records in `app.db-gcs/objects`.
//!
//! A record is found by its slot, a number below 2^20 that the page map stores with each page. Each record counts the
//! pages that point at it; one that no page points at any more is used again, so the table stays as small as the number
//! of objects in use, however long a database is written.
//!
//! One process at a time changes the table (the host-wide lock of [`crate::replica::page_map`]); others read at any
//! moment. A reader who meets a record while it is rewritten sees a wrong checksum, or sees afterwards that the map's entry
//! has changed, and looks again. A process that dies in the middle leaves counts that are too high, never too low: a
//! record may then stay unused, but none is used twice.
//!
//! Record, 8 words:
//!
//! | word | what |
//! |---|---|
//! | 0 | CRC-32C of words 1 to 4, with bit 32 set; 0 while the record is written |
//! | 1 | level |
//! | 2, 3 | first and last transaction |
//! | 4 | size in bytes |
//! | 5 | generation in the bucket; 0 while it is in the outbox only |
//! | 6 | number of pages that point here |
//! | 7 | zero |

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::page::TxId;
use crate::replica::names::ObjectName;
use crate::store::Generation;
use crate::sync::Mutex;
use crate::words::{DATA, NotUsable, Words};

/// "gcsobj" and the format's version.
const MAGIC: u64 = u64::from_be_bytes(*b"gcsobj\x00\x01");
const RECORD: u64 = 8;
/// Header word: which page map this table belongs to.
const PAIR: u64 = 2;
/// Header word: number of records ever used.
const COUNT: u64 = 3;

const CHECK: u64 = 0;
const LEVEL: u64 = 1;
const MIN: u64 = 2;
const MAX: u64 = 3;
const SIZE: u64 = 4;
const GENERATION: u64 = 5;
const LIVE: u64 = 6;

/// How often a record that is not whole is looked at again before it counts as damaged.
const LOOKS: u32 = 1000;

/// The number of slots that a page map can tell apart.
pub(crate) const SLOTS: u64 = 1 << 20;

/// An object that pages are read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectRef {
    /// Its name.
    pub name: ObjectName,
    /// Its generation in the bucket; `None` while it is in the outbox only.
    pub generation: Option<Generation>,
    /// Its size in bytes.
    pub size: u64,
}

#[derive(Debug)]
pub(crate) struct ObjectTable {
    words: Words,
    /// Slots that were seen unused. Only the process that holds the merge lock takes from it, and looks again then.
    free: Mutex<Vec<u32>>,
}

impl ObjectTable {
    pub(crate) fn create(path: &Path, pair: u64) -> Result<ObjectTable> {
        let words = Words::create(path, MAGIC, DATA)?;
        words.header(PAIR).store(pair, Ordering::Release);
        Ok(ObjectTable { words, free: Mutex::default() })
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.words.sync()
    }

    pub(crate) fn publish(&self) -> Result<()> {
        self.words.publish()
    }

    pub(crate) fn open(path: &Path, pair: u64) -> Result<ObjectTable, NotUsable> {
        let words = Words::open(path, MAGIC)?;
        if words.header(PAIR).load(Ordering::Acquire) != pair {
            return Err(NotUsable(format!("{}: it belongs to another page map", path.display())));
        }
        let table = ObjectTable { words, free: Mutex::default() };
        for slot in 0..table.count() {
            if table.is_damaged(slot)? {
                return Err(NotUsable(format!("{}: the checksum of record {slot} is wrong", path.display())));
            }
        }
        Ok(table)
    }

    /// Whether a record that counts is not whole, and stays so: another process may be putting another object in its place.
    fn is_damaged(&self, slot: u64) -> Result<bool, NotUsable> {
        for _ in 0..LOOKS {
            if self.live_word(slot)?.load(Ordering::Acquire) == 0 || self.record(slot as u32).is_some() {
                return Ok(false);
            }
            std::thread::yield_now();
        }
        Ok(true)
    }

    fn count(&self) -> u64 {
        self.words.header(COUNT).load(Ordering::Acquire)
    }

    fn word(&self, slot: u64, field: u64) -> Option<&AtomicU64> {
        self.words.word(DATA + slot * RECORD + field)
    }

    fn live_word(&self, slot: u64) -> Result<&AtomicU64, NotUsable> {
        self.word(slot, LIVE).ok_or_else(|| NotUsable(format!("the object table has no slot {slot}")))
    }

    /// What a slot says; `None` while it is being rewritten, or when it was never used or is damaged.
    pub(crate) fn record(&self, slot: u32) -> Option<ObjectRef> {
        let field = |index| Some(self.word(slot.into(), index)?.load(Ordering::Acquire));
        let fields = [field(LEVEL)?, field(MIN)?, field(MAX)?, field(SIZE)?];
        let generation = field(GENERATION)?;
        if field(CHECK)? != check(fields) {
            return None;
        }
        let [level, min, max, size] = fields;
        let name = ObjectName { level: level as u8, min: TxId(min), max: TxId(max) };
        Some(ObjectRef { name, generation: (generation != 0).then_some(Generation(generation)), size })
    }

    /// Puts an object into a slot that nothing points at, with a count of `live` pages that will.
    pub(crate) fn add(&self, object: &ObjectRef, live: u64) -> Result<u32> {
        let slot = self.unused()?;
        let store = |field, value| self.store(slot.into(), field, value);
        store(CHECK, 0)?;
        store(LEVEL, object.name.level.into())?;
        store(MIN, object.name.min.0)?;
        store(MAX, object.name.max.0)?;
        store(SIZE, object.size)?;
        store(GENERATION, object.generation.map_or(0, |g| g.0))?;
        store(CHECK, check([object.name.level.into(), object.name.min.0, object.name.max.0, object.size]))?;
        // Last: a record that counts is whole, whenever another process looks.
        store(LIVE, live)?;
        Ok(slot)
    }

    fn store(&self, slot: u64, field: u64, value: u64) -> Result<()> {
        let word = self.word(slot, field).ok_or_else(|| self.words.broken(&format!("no record {slot}")))?;
        word.store(value, Ordering::Release);
        Ok(())
    }

    /// Takes `pages` off the count of a slot.
    pub(crate) fn release(&self, slot: u32, pages: u64) {
        if let Some(live) = self.word(slot.into(), LIVE) {
            // Never below zero, whatever an earlier death in the middle left.
            let _ = live.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_sub(pages)));
        }
    }

    fn unused(&self) -> Result<u32> {
        let is_free = |slot: u64| self.word(slot, LIVE).is_some_and(|live| live.load(Ordering::Acquire) == 0);
        let mut free = self.free.lock();
        let mut searched = false;
        loop {
            while let Some(slot) = free.pop() {
                if is_free(slot.into()) {
                    return Ok(slot);
                }
            }
            let count = self.count();
            let end = DATA + (count + 1) * RECORD;
            if (end <= self.words.len() && count < SLOTS) || searched {
                if count >= SLOTS {
                    return Err(self.words.broken("pages of more than 2^20 objects"));
                }
                self.words.grow(end)?;
                self.words.header(COUNT).store(count + 1, Ordering::Release);
                return Ok(count as u32);
            }
            // Only where the table would have to grow is it searched, so that a search is paid for by many additions.
            searched = true;
            free.extend((0..count).rev().filter(|&slot| is_free(slot)).map(|slot| slot as u32));
            if (free.len() as u64) < count / 4 && count < SLOTS {
                free.clear();
            }
        }
    }

    /// Notes that an object is in the bucket now. Returns whether any page points into it.
    pub(crate) fn uploaded(&self, name: &ObjectName, generation: Generation) -> bool {
        let mut found = false;
        for slot in (0..self.count()).rev() {
            if self.record(slot as u32).is_some_and(|object| object.name == *name && object.generation.is_none())
                && let Some(word) = self.word(slot, GENERATION)
            {
                word.store(generation.0, Ordering::Release);
                found = true;
            }
        }
        found
    }

    /// The objects that pages point into.
    pub(crate) fn live(&self) -> Vec<ObjectRef> {
        let live = |slot: u64| self.word(slot, LIVE).is_some_and(|live| live.load(Ordering::Acquire) > 0);
        (0..self.count()).filter(|&slot| live(slot)).filter_map(|slot| self.record(slot as u32)).collect()
    }

    /// An error of the table about a slot.
    pub(crate) fn damaged(&self, slot: u32) -> Error {
        let error = self.words.broken(&format!("the checksum of record {slot} is wrong"));
        Error::new(ErrorKind::Corrupt, error.to_string())
    }
}

fn check(fields: [u64; 4]) -> u64 {
    let mut sum = 0;
    for field in fields {
        sum = crc32c::crc32c_append(sum, &field.to_le_bytes());
    }
    u64::from(sum) | 1 << 32
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn it_opens_while_another_process_puts_objects_into_it_and_not_when_it_is_damaged() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("objects");
        let table = ObjectTable::create(&path, 7).expect("a table");
        table.publish().expect("a name");
        let object = |txid| ObjectRef {
            name: ObjectName { level: 0, min: TxId(txid), max: TxId(txid) },
            generation: Some(Generation(txid)),
            size: txid,
        };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for txid in (1..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let slot = table.add(&object(txid), 1).expect("room");
                    table.release(slot, 1);
                    table.free.lock().push(slot);
                }
            });
            for _ in 0..5_000 {
                let opened = ObjectTable::open(&path, 7).map(drop);
                if opened.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                opened.expect("whole");
            }
            stop.store(true, Ordering::Relaxed);
        });
        let slot = table.add(&object(1), 1).expect("room");
        table.store(slot.into(), SIZE, 2).expect("damaged");
        assert!(ObjectTable::open(&path, 7).expect_err("damage").0.contains("checksum of record"));
    }
}
