//! `app.db-gcs/shared`: one page of memory that all processes of the host map, valid for one boot.
//!
//! | offset | field | guarded by |
//! |---|---|---|
//! | 0 | magic and version | written once under the members lock |
//! | 8 | newest durable TXID | upload lock; read by anybody |
//! | 16 | newest frozen TXID | capture lock |
//! | 24.. | captured position: salts, frames, checksum, serial, pages, closed | capture lock |
//! | 72 | bytes of saved frames in the outbox | capture lock |
//! | 80 | boot-time clock at the start of the last upload, ns | upload lock |
//! | 88 | fenced: 1 once the log belongs to somebody else | anybody |
//! | 96 | right to append ends at this boot-time clock, ns; 0 = none | state lock; read by anybody |
//! | 144 | serial of the capture that the newest durable delta reaches | state lock; read by anybody |
//! | 160, 168 | boot-time clock when a writer last began, and when the lease was last looked at, ns | anybody |
//! | 176 | 1 while a strict commit may be in the bucket and is not in the WAL | the WAL's WRITE lock |
//! | 152 | boot-time clock until which the lease is taken for somebody else's without asking, ns | anybody |
//! | 104 | boot-time clock of the last commit seen, ns | anybody |
//! | 184 | boot-time clock when the log was last looked at for what others wrote, ns | follow lock; read by anybody |
//! | 192 | the same of the last look as of which the database was the log's head, ns | follow lock; read by anybody |
//! | 232 | the same of the last look that found nothing more, ns | follow lock; read by anybody |
//! | 200 | the newest TXID that such a look saw | follow lock; read by anybody |
//! | 208 | boot-time clock since which the database is known to be behind that, ns; 0 = it is not | follow lock; read by anybody |
//! | 216 | 1 once others are known to have written since this host last held the lease | anybody |
//! | 224 | boot-time clock when a delta of others was last about to become a commit here, ns | follow lock; read by anybody |
//! | 136 | timestamp of the newest frozen delta, Unix ms | capture lock |
//! | 128 | size of the database as of the newest frozen TXID | capture lock |
//! | 112 | boot-time clock since which waiting bytes are not uploaded, ns; 0 = none wait | capture lock |
//!
//! Everything here can be rebuilt from the state file, the outbox and the WAL; the first process that opens the
//! database on this host does so. A process that is killed leaves it readable: single fields are atomic, and the
//! position is only read under the capture lock, which covers its writing too (a half-written position is healed by
//! the serial number: it is written last, and a position whose serial does not match its check is rebuilt).
#![allow(unsafe_code, reason = "maps a file into memory")]

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use nix::time::{ClockId, clock_gettime};

use crate::capture::position::Position;
use crate::error::{Error, Result};
use crate::page::{PageCount, TxId};

const MAGIC: u64 = 0x6763_7368_6172_0001;
const SIZE: usize = 4096;

/// The mapped page.
#[derive(Debug)]
pub(crate) struct Shared {
    map: MmapRaw,
}

/// A word of the page.
#[derive(Clone, Copy)]
enum Word {
    Magic = 0,
    Durable = 1,
    Frozen = 2,
    Salts = 3,
    Frames = 4,
    Cksum = 5,
    Pages = 6,
    Closed = 7,
    Serial = 8,
    SavedBytes = 9,
    LastPut = 10,
    Fenced = 11,
    Right = 12,
    LastCommit = 13,
    WaitingSince = 14,
    PositionCheck = 15,
    FrozenPages = 16,
    Timestamp = 17,
    DurableSerial = 18,
    HeldElsewhere = 19,
    LeaseUsed = 20,
    LastLook = 21,
    StrictUnsettled = 22,
    LogLooked = 23,
    LogConfirmed = 24,
    HeadSeen = 25,
    BehindSince = 26,
    OthersWrite = 27,
    Applying = 28,
    LogCaughtUp = 29,
}

impl Shared {
    /// Maps the page, making the file if it is not there. Its blocks are allocated first: a full disk is an error here,
    /// not a signal later.
    pub(crate) fn open(path: &Path) -> Result<Shared> {
        let open = || {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
            nix::fcntl::posix_fallocate(&file, 0, SIZE as i64)?;
            MmapOptions::new().len(SIZE).map_raw(&file)
        };
        let map = open().map_err(|e: std::io::Error| Error::local(format_args!("mapping {}", path.display()), &e))?;
        Ok(Shared { map })
    }

    /// Forgets everything; the first process of a host does this before it fills the page anew.
    pub(crate) fn reset(&self) {
        for word in 1..SIZE / 8 {
            self.at(word).store(0, Ordering::SeqCst);
        }
        self.word(Word::Magic).store(MAGIC, Ordering::SeqCst);
    }

    fn at(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < SIZE / 8);
        // SAFETY: the mapping is SIZE bytes, page-aligned and lives as long as self; every access of any process goes
        // through atomics of this width.
        unsafe { &*self.map.as_ptr().cast::<AtomicU64>().add(index) }
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        self.at(word as usize)
    }

    fn get(&self, word: Word) -> u64 {
        self.word(word).load(Ordering::SeqCst)
    }

    fn set(&self, word: Word, value: u64) {
        self.word(word).store(value, Ordering::SeqCst);
    }

    /// The newest TXID known to be in the bucket.
    pub(crate) fn durable(&self) -> TxId {
        TxId(self.get(Word::Durable))
    }

    /// Sets the newest durable TXID.
    pub(crate) fn set_durable(&self, txid: TxId) {
        self.set(Word::Durable, txid.0);
    }

    /// The newest TXID whose bytes are frozen in the outbox or in the bucket.
    pub(crate) fn frozen(&self) -> TxId {
        TxId(self.get(Word::Frozen))
    }

    /// Sets the newest frozen TXID.
    pub(crate) fn set_frozen(&self, txid: TxId) {
        self.set(Word::Frozen, txid.0);
    }

    /// The serial of the capture up to which everything is in the bucket.
    pub(crate) fn durable_serial(&self) -> u64 {
        self.get(Word::DurableSerial)
    }

    /// Sets the serial of the capture up to which everything is in the bucket.
    pub(crate) fn set_durable_serial(&self, serial: u64) {
        self.set(Word::DurableSerial, serial);
    }

    /// Until when the lease counts as somebody else's without a request.
    pub(crate) fn held_elsewhere(&self) -> BootTime {
        BootTime(self.get(Word::HeldElsewhere))
    }

    /// Sets until when the lease counts as somebody else's.
    pub(crate) fn set_held_elsewhere(&self, until: BootTime) {
        self.set(Word::HeldElsewhere, until.0);
    }

    /// When the lease was last taken, or a writer last began.
    pub(crate) fn lease_used(&self) -> BootTime {
        BootTime(self.get(Word::LeaseUsed))
    }

    /// Notes that the lease was taken, or that a writer begins.
    pub(crate) fn note_lease_used(&self, at: BootTime) {
        self.set(Word::LeaseUsed, at.0);
    }

    /// When the lease was last looked at.
    pub(crate) fn last_look(&self) -> BootTime {
        BootTime(self.get(Word::LastLook))
    }

    /// Notes that the lease is looked at.
    pub(crate) fn set_last_look(&self, at: BootTime) {
        self.set(Word::LastLook, at.0);
    }

    /// When the log was last looked at for what others wrote.
    pub(crate) fn log_looked(&self) -> BootTime {
        BootTime(self.get(Word::LogLooked))
    }

    /// Notes that the log is looked at.
    pub(crate) fn set_log_looked(&self, at: BootTime) {
        self.set(Word::LogLooked, at.0);
    }

    /// When that was last asked which showed the database to be the log's head; zero: never on this boot.
    pub(crate) fn log_confirmed(&self) -> BootTime {
        BootTime(self.get(Word::LogConfirmed))
    }

    /// Notes that the database is, or was just brought to, the head of the log as of a time.
    pub(crate) fn set_log_confirmed(&self, at: BootTime) {
        self.set(Word::LogConfirmed, at.0);
        self.set(Word::BehindSince, 0);
    }

    /// As of when the database was last known to be the log's head, with nothing behind it.
    pub(crate) fn log_caught_up(&self) -> BootTime {
        BootTime(self.get(Word::LogCaughtUp))
    }

    /// Notes that a look begun then found nothing more than what is here.
    pub(crate) fn set_log_caught_up(&self, at: BootTime) {
        self.set_log_confirmed(at);
        self.set(Word::LogCaughtUp, at.0);
    }

    /// The newest TXID that was seen in the log.
    pub(crate) fn head_seen(&self) -> TxId {
        TxId(self.get(Word::HeadSeen)).max(self.durable())
    }

    /// Notes that this TXID is in the log, and not in the database yet.
    pub(crate) fn note_head(&self, txid: TxId, at: BootTime) {
        self.set(Word::HeadSeen, txid.0);
        // Only the first delta that is lacking counts.
        let _ = self.word(Word::BehindSince).compare_exchange(0, at.0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Since when the database is known to be behind the log; zero if it is not.
    pub(crate) fn behind_since(&self) -> BootTime {
        BootTime(self.get(Word::BehindSince))
    }

    /// When a delta of others was last about to become a commit of the local WAL.
    pub(crate) fn applying(&self) -> BootTime {
        BootTime(self.get(Word::Applying))
    }

    /// Notes that one is.
    pub(crate) fn set_applying(&self, at: BootTime) {
        self.set(Word::Applying, at.0);
    }

    /// Whether others are known to have written since this host last held the lease.
    pub(crate) fn others_write(&self) -> bool {
        self.get(Word::OthersWrite) != 0
    }

    /// Sets the same.
    pub(crate) fn set_others_write(&self, write: bool) {
        self.set(Word::OthersWrite, write.into());
    }

    /// The timestamp of the newest frozen delta, Unix milliseconds.
    pub(crate) fn last_timestamp_ms(&self) -> i64 {
        self.get(Word::Timestamp) as i64
    }

    /// Sets the timestamp of the newest frozen delta.
    pub(crate) fn set_last_timestamp_ms(&self, ms: i64) {
        self.set(Word::Timestamp, ms as u64);
    }

    /// Size of the database as of the newest frozen TXID.
    pub(crate) fn frozen_pages(&self) -> PageCount {
        PageCount(self.get(Word::FrozenPages) as u32)
    }

    /// Sets the size of the database as of the newest frozen TXID.
    pub(crate) fn set_frozen_pages(&self, pages: PageCount) {
        self.set(Word::FrozenPages, pages.0.into());
    }

    /// How far the WAL is captured; under the capture lock only. `None`: a process died while writing it.
    pub(crate) fn position(&self) -> Option<Position> {
        let cksum = self.get(Word::Cksum);
        let position = Position {
            salts: self.get(Word::Salts).to_be_bytes(),
            frames: self.get(Word::Frames) as u32,
            cksum: [(cksum >> 32) as u32, cksum as u32],
            pages: PageCount(self.get(Word::Pages) as u32),
            closed: self.get(Word::Closed) != 0,
            serial: self.get(Word::Serial),
        };
        (self.get(Word::PositionCheck) == check(&position)).then_some(position)
    }

    /// Sets how far the WAL is captured; under the capture lock only.
    pub(crate) fn set_position(&self, position: &Position) {
        self.set(Word::PositionCheck, !check(position));
        self.set(Word::Salts, u64::from_be_bytes(position.salts));
        self.set(Word::Frames, position.frames.into());
        self.set(Word::Cksum, u64::from(position.cksum[0]) << 32 | u64::from(position.cksum[1]));
        self.set(Word::Pages, position.pages.0.into());
        self.set(Word::Closed, position.closed.into());
        self.set(Word::Serial, position.serial);
        self.set(Word::PositionCheck, check(position));
    }

    /// Bytes of saved frames in the outbox; under the capture lock only.
    pub(crate) fn saved_bytes(&self) -> u64 {
        self.get(Word::SavedBytes)
    }

    /// Sets the bytes of saved frames.
    pub(crate) fn set_saved_bytes(&self, bytes: u64) {
        self.set(Word::SavedBytes, bytes);
    }

    /// When the last upload began.
    pub(crate) fn last_put(&self) -> BootTime {
        BootTime(self.get(Word::LastPut))
    }

    /// Notes that an upload begins.
    pub(crate) fn set_last_put(&self, at: BootTime) {
        self.set(Word::LastPut, at.0);
    }

    /// Whether the log belongs to somebody else.
    pub(crate) fn fenced(&self) -> bool {
        self.get(Word::Fenced) != 0
    }

    /// Notes that the log belongs to somebody else; holds until every process has closed the database.
    pub(crate) fn set_fenced(&self) {
        self.set(Word::Fenced, 1);
    }

    /// Whether a strict commit may be in the bucket and is not in the WAL. Whoever finds it so with the WRITE lock in hand
    /// has a database that lacks that commit.
    pub(crate) fn strict_unsettled(&self) -> bool {
        self.get(Word::StrictUnsettled) != 0
    }

    /// Sets the same, under the WAL's WRITE lock.
    pub(crate) fn set_strict_unsettled(&self, unsettled: bool) {
        self.set(Word::StrictUnsettled, unsettled.into());
    }

    /// When the right to append ends; zero if there is none.
    pub(crate) fn right(&self) -> BootTime {
        BootTime(self.get(Word::Right))
    }

    /// Sets when the right to append ends.
    pub(crate) fn set_right(&self, until: BootTime) {
        self.set(Word::Right, until.0);
    }

    /// When a commit was last seen.
    pub(crate) fn last_commit(&self) -> BootTime {
        BootTime(self.get(Word::LastCommit))
    }

    /// Notes a commit, and since when something waits to be uploaded.
    pub(crate) fn note_commit(&self, at: BootTime) {
        self.set(Word::LastCommit, at.0);
        // Only the first of a batch counts; losing a race to another first one is as good.
        let _ = self.word(Word::WaitingSince).compare_exchange(0, at.0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Since when committed bytes wait to be uploaded; zero if none do.
    pub(crate) fn waiting_since(&self) -> BootTime {
        BootTime(self.get(Word::WaitingSince))
    }

    /// Notes that nothing waits any more, or that something has since `at`.
    pub(crate) fn set_waiting_since(&self, at: BootTime) {
        self.set(Word::WaitingSince, at.0);
    }
}

fn check(position: &Position) -> u64 {
    let cksum = u64::from(position.cksum[0]) << 32 | u64::from(position.cksum[1]);
    u64::from_be_bytes(position.salts).rotate_left(7)
        ^ cksum.rotate_left(19)
        ^ u64::from(position.frames).rotate_left(31)
        ^ u64::from(position.pages.0).rotate_left(43)
        ^ u64::from(position.closed) << 17
        ^ position.serial.rotate_left(3)
        ^ MAGIC
}

/// Nanoseconds on the clock that counts since boot, also while the machine is suspended; zero stands for "never".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct BootTime(pub(crate) u64);

impl BootTime {
    /// Now.
    pub(crate) fn now() -> BootTime {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        BootTime(now.as_nanos() as u64)
    }

    /// How long after `earlier` this is; zero if it is before.
    pub(crate) fn since(self, earlier: BootTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This much later.
    pub(crate) fn plus(self, by: Duration) -> BootTime {
        BootTime(self.0.saturating_add(by.as_nanos() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_share_a_position_and_a_torn_one_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("shared");
        let (one, two) = (Shared::open(&path).expect("a map"), Shared::open(&path).expect("a map"));
        one.reset();
        assert_eq!(two.position(), None, "zeros are no position");
        let position = Position {
            salts: [1, 2, 3, 4, 5, 6, 7, 8],
            frames: 9,
            cksum: [10, 11],
            pages: PageCount(12),
            closed: true,
            serial: 13,
        };
        one.set_position(&position);
        assert_eq!(two.position(), Some(position));
        two.set(Word::Frames, 8);
        assert_eq!(one.position(), None);
    }
}
