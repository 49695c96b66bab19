//! `outbox/applied`: which frames of the WAL came from the bucket, so that they are never sent back to it.
//!
//! Two records, the newer of which is the one with the higher sequence; each is written whole, in a sector of its own
//! (little-endian where not bytes):
//!
//! | offset | field |
//! |---|---|
//! | 0 | `GCSAPPLY` |
//! | 8 | sequence (u64) |
//! | 16 | object id of the newest delta applied: TXID (u64), size (u64), CRC-32C (u32); zeros if there is none |
//! | 36 | flags (u32): 1 settled, 2 the position is closed |
//! | 40 | position behind its frames: salts (8 bytes), frames (u32), pages (u32), checksum (2 x u32), serial (u64) |
//! | 72 | timestamp of that delta, Unix ms (i64) |
//! | 80 | CRC-32C of the 80 bytes before (u32) |
//!
//! A record is on disk *before* the frames that it speaks of can be committed, so it may speak of frames that never
//! were. What counts is the WAL: a record is **in effect** if the last of its frames is among the committed ones,
//! with the record's salts and running checksum. That can change (a crash may bury frames that a later recovery digs out), so
//! it is looked at anew each time, and a position is never moved ahead of what is committed.
//!
//! A record that something was built on is **settled**: in effect for good, whatever becomes of the WAL. It is settled before
//! commits behind its frames are frozen, and before its generation of the WAL may go.
//!
//! Crash: a new record never overwrites the one in effect, so a torn one leaves that.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::index::Committed;
use super::position::Position;
use super::wal::{Checksum, FRAME_HEADER, FrameHeader, WalHeader};
use crate::error::{Error, Result};
use crate::local::state::State;
use crate::local::sync_dir;
use crate::page::{PageCount, TxId};
use crate::protocol::ObjectId;

const MAGIC: &[u8; 8] = b"GCSAPPLY";
const RECORD: usize = 84;
const SLOT: u64 = 512;
const SETTLED: u32 = 1;
const CLOSED: u32 = 2;

/// What one record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Applied {
    /// The newest delta applied; `None` if none ever was and the record only closes a generation.
    pub(crate) id: Option<ObjectId>,
    /// The commit boundary behind its frames.
    pub(crate) position: Position,
    /// The timestamp of that delta, Unix milliseconds.
    pub(crate) timestamp_ms: i64,
    /// In effect whatever the WAL holds.
    pub(crate) settled: bool,
}

impl Applied {
    /// Whether its frames are committed ones that `position` does not reach yet.
    pub(crate) fn is_beyond(&self, position: &Position) -> bool {
        let reached = position.salts == self.position.salts && position.frames >= self.position.frames;
        !self.settled && !reached
    }

    /// Puts it into the state; `false` if that has it, or a later one, already.
    pub(crate) fn note_in(&self, state: &mut State) -> bool {
        if self.txid() <= state.durable_txid() {
            return false;
        }
        state.protocol.durable = self.id;
        state.durable_generation = None;
        // The end of a generation stands in the records, not here.
        state.position = Position { closed: state.position.closed && self.position == state.position, ..self.position };
        true
    }

    /// The newest TXID applied.
    pub(crate) fn txid(&self) -> TxId {
        self.id.map_or(TxId::NONE, |id| id.txid)
    }
}

/// The file of the two records.
pub(crate) struct AppliedFile {
    file: File,
    name: String,
}

type Slots = [Option<(u64, Applied)>; 2];

impl AppliedFile {
    /// Opens the file in the outbox directory. It is made once, and then survives a power loss, so that a record's
    /// own sync is enough.
    pub(crate) fn open(outbox: &Path) -> Result<AppliedFile> {
        let path = outbox.join("applied");
        let open = || {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            if file.metadata()?.len() < 2 * SLOT {
                file.set_len(2 * SLOT)?;
                file.sync_all()?;
            }
            Ok(file)
        };
        let file = open().map_err(|e| Error::local(format_args!("opening {}", path.display()), &e))?;
        sync_dir(outbox)?;
        Ok(AppliedFile { file, name: path.display().to_string() })
    }

    /// The newest record in effect, given what is committed and the WAL that holds it.
    pub(crate) fn in_effect(&self, committed: Option<&Committed>, wal: Option<&File>) -> Result<Option<Applied>> {
        Ok(self.newest_in_effect(&self.slots()?, committed, wal)?.map(|(_, applied)| applied))
    }

    /// The newest record, if it hangs on the WAL whether it is in effect.
    pub(crate) fn unsettled(&self) -> Result<Option<Applied>> {
        let newest = self.slots()?.into_iter().flatten().max_by_key(|(sequence, _)| *sequence);
        Ok(newest.map(|(_, applied)| applied).filter(|applied| !applied.settled))
    }

    /// Writes a record and makes it survive a power loss; the one in effect stays until then, and behind it.
    pub(crate) fn write(&self, record: &Applied, committed: Option<&Committed>, wal: Option<&File>) -> Result<()> {
        let slots = self.slots()?;
        let kept = self.newest_in_effect(&slots, committed, wal)?.map(|(slot, _)| slot);
        let sequence = slots.iter().flatten().map(|(sequence, _)| *sequence).max().unwrap_or(0) + 1;
        let slot = if kept == Some(0) { 1 } else { 0 };
        let write = || {
            self.file.write_all_at(&encode(sequence, record), slot * SLOT)?;
            self.file.sync_data()
        };
        write().map_err(|e| Error::local(format_args!("writing {}", self.name), &e))
    }

    /// Forgets everything: the WAL is gone, and the state file says how far the bucket is contained in the cache.
    pub(crate) fn clear(&self) -> Result<()> {
        let clear = || {
            self.file.write_all_at(&[0; 2 * SLOT as usize], 0)?;
            self.file.sync_data()
        };
        clear().map_err(|e| Error::local(format_args!("emptying {}", self.name), &e))
    }

    fn slots(&self) -> Result<Slots> {
        let mut bytes = [0; 2 * SLOT as usize];
        self.file.read_exact_at(&mut bytes, 0).map_err(|e| Error::local(format_args!("reading {}", self.name), &e))?;
        Ok([decode(&bytes[..RECORD]), decode(&bytes[SLOT as usize..][..RECORD])])
    }

    fn newest_in_effect(
        &self,
        slots: &Slots,
        committed: Option<&Committed>,
        wal: Option<&File>,
    ) -> Result<Option<(u64, Applied)>> {
        let mut newest: Option<(u64, u64, Applied)> = None;
        for (slot, record) in (0..).zip(slots) {
            let Some((sequence, applied)) = record else { continue };
            if newest.is_some_and(|(_, newer, _)| newer > *sequence) {
                continue;
            }
            if applied.settled || is_committed(&applied.position, committed, wal)? {
                newest = Some((slot, *sequence, *applied));
            }
        }
        Ok(newest.map(|(slot, _, applied)| (slot, applied)))
    }
}

/// Whether the frame that a position stands behind is a committed one. Its running checksum vouches for all before it.
fn is_committed(position: &Position, committed: Option<&Committed>, wal: Option<&File>) -> Result<bool> {
    let (Some(committed), Some(wal)) = (committed, wal) else { return Ok(false) };
    if position.frames == 0 || committed.salts != position.salts || committed.frames < position.frames {
        return Ok(false);
    }
    let mut header = [0; FRAME_HEADER];
    let at = WalHeader::frame_offset(committed.page_size, position.frames);
    match wal.read_exact_at(&mut header, at) {
        Ok(()) => Ok(FrameHeader::parse(&header).is_some_and(|header| {
            header.salts == position.salts
                && header.checksum == Checksum(position.cksum)
                && header.commit == Some(position.pages)
        })),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(Error::local(format_args!("reading the WAL at byte {at}"), &e)),
    }
}

fn encode(sequence: u64, record: &Applied) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, MAGIC);
    put(8, &sequence.to_le_bytes());
    if let Some(id) = record.id {
        put(16, &id.txid.0.to_le_bytes());
        put(24, &id.size.to_le_bytes());
        put(32, &id.crc32c.to_le_bytes());
    }
    let position = &record.position;
    let flags = if record.settled { SETTLED } else { 0 } | if position.closed { CLOSED } else { 0 };
    put(36, &flags.to_le_bytes());
    put(40, &position.salts);
    put(48, &position.frames.to_le_bytes());
    put(52, &position.pages.0.to_le_bytes());
    put(56, &position.cksum[0].to_le_bytes());
    put(60, &position.cksum[1].to_le_bytes());
    put(64, &position.serial.to_le_bytes());
    put(72, &record.timestamp_ms.to_le_bytes());
    let crc = crc32c::crc32c(&out[..80]);
    out[80..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<(u64, Applied)> {
    let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    if &bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..80]) != u32_at(80) {
        return None;
    }
    let id = ObjectId { txid: TxId(u64_at(16)), size: u64_at(24), crc32c: u32_at(32) };
    let position = Position {
        salts: std::array::from_fn(|i| bytes[40 + i]),
        frames: u32_at(48),
        pages: PageCount(u32_at(52)),
        cksum: [u32_at(56), u32_at(60)],
        closed: u32_at(36) & CLOSED != 0,
        serial: u64_at(64),
    };
    let settled = u32_at(36) & SETTLED != 0;
    let id = (id.txid != TxId::NONE).then_some(id);
    Some((u64_at(8), Applied { id, position, timestamp_ms: u64_at(72) as i64, settled }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(txid: u64, settled: bool) -> Applied {
        Applied {
            id: Some(ObjectId { txid: TxId(txid), size: 7, crc32c: 8 }),
            position: Position {
                salts: [1, 2, 3, 4, 5, 6, 7, 8],
                frames: 9,
                cksum: [10, 11],
                pages: PageCount(12),
                closed: true,
                serial: 13,
            },
            timestamp_ms: -14,
            settled,
        }
    }

    #[test]
    fn a_record_comes_back_and_one_not_in_effect_leaves_the_one_that_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = AppliedFile::open(dir.path()).expect("a file");
        assert_eq!(file.in_effect(None, None).expect("read"), None);
        file.write(&record(1, true), None, None).expect("written");
        for txid in 2..5 {
            file.write(&record(txid, false), None, None).expect("written");
            assert_eq!(file.unsettled().expect("read"), Some(record(txid, false)));
            let reopened = AppliedFile::open(dir.path()).expect("a file");
            assert_eq!(reopened.in_effect(None, None).expect("read"), Some(record(1, true)), "after {txid}");
        }
        file.write(&record(5, true), None, None).expect("written");
        assert_eq!(file.in_effect(None, None).expect("read"), Some(record(5, true)));
        assert_eq!(file.unsettled().expect("read"), None);
    }

    #[test]
    fn a_torn_record_leaves_the_one_before() {
        let whole = encode(3, &record(1, true));
        assert_eq!(decode(&whole), Some((3, record(1, true))));
        for at in 0..RECORD {
            let mut torn = whole;
            torn[at] ^= 0x10;
            assert_eq!(decode(&torn), None, "byte {at}");
        }
    }
}
