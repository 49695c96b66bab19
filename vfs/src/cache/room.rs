//! How much of the local disk a database may take, and what makes room.
//!
//! Counted is everything local: the present pages of the main file, and what the engine says the rest takes (WAL, outbox,
//! our own files). Over the limit, clean units are evicted until a share of [`SLACK`] is free below it.
//!
//! **Second chance**, not LRU: each unit has one bit that says it was used since the hand came by, in memory that all processes
//! share. A read sets it (a plain load when it is set already, which is nearly always), the hand clears it and comes back. An
//! exact order of use would need a list that every read of every process changes under a lock.
//!
//! **Clean** is what the map gives back as it is in the file. A checkpoint stamps the units it writes with the epoch in force. Who
//! uploads ends an epoch first and looks at what is committed second; when all of that is in the bucket, checkpointed and in the
//! map, units with a stamp of that epoch or an older one are clean. Stamp and eviction are under the unit's lock.

use std::time::{Duration, Instant};

use crate::cache::pages::Pages;
use crate::cache::presence::UNIT_BYTES;
use crate::error::Result;
use crate::sync::Mutex;

/// Evicted at a time is this share of the limit.
const SLACK: u64 = 32;
/// How old the engine's answer may be.
const MEASURE_AGAIN: Duration = Duration::from_millis(20);

/// What the rest of the local files takes, in bytes.
pub(crate) type Others = Box<dyn Fn() -> u64 + Send + Sync>;

/// The bound of one database in one process.
pub(crate) struct Room {
    limit: u64,
    others: Others,
    measured: Mutex<Option<(Instant, u64)>>,
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Room {
    pub(crate) fn new(limit: u64, others: Others) -> Room {
        Room { limit, others, measured: Mutex::default() }
    }

    /// The limit in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    fn others(&self) -> u64 {
        let mut measured = self.measured.lock();
        match *measured {
            Some((at, bytes)) if at.elapsed() < MEASURE_AGAIN => bytes,
            _ => {
                let bytes = (self.others)();
                *measured = Some((Instant::now(), bytes));
                bytes
            }
        }
    }

    /// What everything local takes now, in bytes.
    pub(crate) fn used(&self, pages: &Pages) -> u64 {
        pages.present_bytes() + self.others()
    }

    /// Sees to it that `more` bytes would have room, by eviction. Returns whether they have.
    pub(crate) fn make(&self, pages: &Pages, more: u64) -> Result<bool> {
        self.make_beside(pages, more, &[])
    }

    /// The same, with these units left where they are.
    fn make_beside(&self, pages: &Pages, more: u64, units: &[u64]) -> Result<bool> {
        let over = (self.used(pages) + more).saturating_sub(self.limit);
        Ok(over == 0 || pages.evict_some(over + self.limit / SLACK, units)? >= over)
    }

    /// The same for bytes that are about to be written: they count from now on, and show in the next measurement.
    pub(crate) fn take(&self, pages: &Pages, more: u64) -> Result<bool> {
        let has_room = self.make(pages, more)?;
        if has_room && let Some((_, bytes)) = &mut *self.measured.lock() {
            *bytes += more;
        }
        Ok(has_room)
    }
}

impl Pages {
    /// What the present pages take.
    pub(crate) fn present_bytes(&self) -> u64 {
        u64::from(self.presence.present()) * u64::from(self.page_size.bytes())
    }

    /// Evicts clean units, none of `spared`, until so many bytes are free, or the hand has come by each twice. Returns the bytes.
    fn evict_some(&self, bytes: u64, spared: &[u64]) -> Result<u64> {
        let units = self.presence.units_now();
        let before = self.present_bytes();
        let mut freed = 0;
        for _ in 0..2 * units {
            if freed >= bytes {
                break;
            }
            let unit = self.presence.next_under_hand(units);
            if spared.contains(&unit) || !self.presence.may_evict(unit) {
                continue;
            }
            let stamp = self.presence.stamp(unit);
            if self.evict(unit, stamp)? {
                freed = before.saturating_sub(self.present_bytes()).max(freed);
            }
        }
        Ok(freed)
    }

    /// After pages came into these units: evicts others where that took too much. Not these themselves, which somebody waits for: where
    /// all the rest must stay, they would be gone each time before they are read.
    pub(crate) fn keep_within_bounds(&self, units: &[u64]) -> Result<()> {
        match self.room.get() {
            Some(room) => room.make_beside(self, 0, units).map(drop),
            None => Ok(()),
        }
    }
}

/// The grain of eviction: what `cache_size` should be many of.
const _: () = assert!(UNIT_BYTES >= 64 * 1024);
