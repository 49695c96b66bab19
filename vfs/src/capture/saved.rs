//! `outbox/saved`: WAL frames copied aside because the WAL is about to be reset before they were frozen.
//!
//! Records follow one another; each is a header of 64 bytes and raw frames as they stood in the WAL:
//!
//! | offset | field (little-endian where not bytes) |
//! |---|---|
//! | 0 | `GCSSAVED` |
//! | 8 | serial of the capture (u64) |
//! | 16 | number of frames (u32) |
//! | 20 | database size in pages after them (u32) |
//! | 24 | the WAL's salts (8 bytes) |
//! | 32 | running checksum before the first frame (2 x u32) |
//! | 40 | page size (u32), 1 if the WAL's checksums are big-endian (u32) |
//! | 48 | number of the first frame in its WAL (u32), zero (u32) |
//! | 56 | CRC-32C of the 56 bytes before (u32), zero (u32) |
//!
//! Crash: a record counts only when all of its frames continue the checksum, so a half-written last one is
//! dropped; its frames are still in the WAL, because the reset that asked for it was not allowed yet. Records whose
//! serial a frozen delta contains are skipped. The file is emptied once everything in it is frozen.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::frames::Frames;
use super::position::Position;
use super::wal::{ByteOrder, Checksum, WalHeader};
use crate::error::{Error, Result};
use crate::page::{PageCount, PageSize};

const MAGIC: &[u8; 8] = b"GCSSAVED";
const RECORD_HEADER: usize = 64;

/// The file of saved frames.
pub(crate) struct Saved {
    file: File,
    path: PathBuf,
    name: String,
}

/// One record of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    serial: u64,
    first_frame: u32,
    count: u32,
    pages: PageCount,
    wal: WalHeader,
    seed: Checksum,
    /// Where its frames begin in the file.
    offset: u64,
}

impl Record {
    /// Whether it has nothing that the delta frozen at `serial` lacks.
    pub(crate) fn is_within(&self, serial: u64) -> bool {
        self.serial <= serial
    }

    /// The page size of its WAL.
    pub(crate) fn page_size(&self) -> PageSize {
        self.wal.page_size
    }

    /// Database size after its last frame.
    pub(crate) fn pages(&self) -> PageCount {
        self.pages
    }

    fn bytes(&self) -> u64 {
        RECORD_HEADER as u64 + u64::from(self.count) * (24 + u64::from(self.wal.page_size.bytes()))
    }
}

impl Saved {
    /// Opens the file in the outbox directory, making it if it is not there.
    pub(crate) fn open(outbox: &Path) -> Result<Saved> {
        let path = outbox.join("saved");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::local(format_args!("opening {}", path.display()), &e))?;
        Ok(Saved { file, name: path.display().to_string(), path })
    }

    /// Copies frames of a WAL behind the `end` bytes that count so far, and makes them survive a power loss.
    /// Returns the new end and the checksum of the last frame.
    pub(crate) fn append(
        &self,
        end: u64,
        frames: &Frames<'_>,
        first_frame: u32,
        serial: u64,
        pages: PageCount,
    ) -> Result<(u64, Checksum)> {
        let failed = |e: &std::io::Error| Error::local(format_args!("saving frames to {}", self.name), e);
        let mut at = end + RECORD_HEADER as u64;
        let walked = frames.walk(
            |_, _| (),
            |bytes| {
                self.file.write_all_at(bytes, at).map_err(|e| failed(&e))?;
                at += bytes.len() as u64;
                Ok(())
            },
        )?;
        let record = Record {
            serial,
            first_frame,
            count: frames.count,
            pages,
            wal: frames.wal,
            seed: frames.seed,
            offset: end + RECORD_HEADER as u64,
        };
        self.file.write_all_at(&encode(&record), end).map_err(|e| failed(&e))?;
        self.file.sync_data().map_err(|e| failed(&e))?;
        Ok((at, walked.checksum))
    }

    /// Forgets everything, once it is frozen.
    pub(crate) fn clear(&self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::local(format_args!("emptying {}", self.name), &e))
    }

    /// The records in the first `end` bytes.
    pub(crate) fn records(&self, end: u64) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut at = 0;
        while at + RECORD_HEADER as u64 <= end {
            let mut header = [0; RECORD_HEADER];
            self.file
                .read_exact_at(&mut header, at)
                .map_err(|e| Error::local(format_args!("reading {}", self.name), &e))?;
            let Some(record) = decode(&header, at + RECORD_HEADER as u64) else { break };
            if at + record.bytes() > end {
                break;
            }
            at += record.bytes();
            records.push(record);
        }
        Ok(records)
    }

    /// The frames of a record.
    pub(crate) fn frames(&self, record: &Record) -> Frames<'_> {
        Frames {
            file: &self.file,
            name: &self.name,
            wal: record.wal,
            offset: record.offset,
            count: record.count,
            seed: record.seed,
            held: None,
        }
    }

    /// After a crash: finds the whole records, checks their frames, and returns where the last one ends in the file
    /// and how far the WAL is captured by it (`None`: there are none).
    pub(crate) fn recover(&self) -> Result<(u64, Option<Position>)> {
        let size = self.file.metadata().map_err(|e| Error::local(format_args!("looking at {}", self.name), &e))?.len();
        let mut end = 0;
        let mut position = None;
        for record in self.records(size)? {
            let Ok(walked) = self.frames(&record).walk(|_, _| (), |_| Ok(())) else { break };
            end += record.bytes();
            position = Some(Position {
                salts: record.wal.salts,
                frames: record.first_frame - 1 + record.count,
                cksum: walked.checksum.0,
                pages: record.pages,
                closed: true,
                serial: record.serial,
            });
        }
        Ok((end, position))
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn encode(record: &Record) -> [u8; RECORD_HEADER] {
    let mut out = [0; RECORD_HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&record.serial.to_le_bytes());
    out[24..32].copy_from_slice(&record.wal.salts);
    let numbers = [
        (16, record.count),
        (20, record.pages.0),
        (32, record.seed.0[0]),
        (36, record.seed.0[1]),
        (40, record.wal.page_size.bytes()),
        (44, u32::from(record.wal.order == ByteOrder::Big)),
        (48, record.first_frame),
    ];
    for (at, number) in numbers {
        out[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out[..56]);
    out[56..60].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(header: &[u8; RECORD_HEADER], offset: u64) -> Option<Record> {
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if &header[..8] != MAGIC || crc32c::crc32c(&header[..56]) != u32_at(56) {
        return None;
    }
    let mut serial = [0; 8];
    serial.copy_from_slice(&header[8..16]);
    let mut salts = [0; 8];
    salts.copy_from_slice(&header[24..32]);
    let seed = Checksum([u32_at(32), u32_at(36)]);
    Some(Record {
        serial: u64::from_le_bytes(serial),
        first_frame: u32_at(48),
        count: u32_at(16),
        pages: PageCount(u32_at(20)),
        wal: WalHeader {
            page_size: PageSize::new(u32_at(40))?,
            salts,
            order: if u32_at(44) == 0 { ByteOrder::Little } else { ByteOrder::Big },
            checksum: seed,
        },
        seed,
        offset,
    })
}
