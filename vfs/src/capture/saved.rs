//! `outbox/saved`: pages copied out of a WAL that is about to be reset before they were frozen.
//!
//! Records follow one another. Each holds what a run of frames of one WAL ends with, every page once:
//!
//! | offset | field (little-endian where not bytes) |
//! |---|---|
//! | 0 | `GCSSAVE2` |
//! | 8 | serial of the capture (u64) |
//! | 16 | number of pages, n (u32) |
//! | 20 | database size in pages after the frames (u32) |
//! | 24 | the WAL's salts (8 bytes) |
//! | 32 | running checksum of the last frame (2 x u32) |
//! | 40 | page size (u32) |
//! | 44 | number of the last frame in its WAL (u32) |
//! | 48 | CRC-32C of everything behind this header (u32), zero (u32) |
//! | 56 | CRC-32C of the 56 bytes before (u32), zero (u32) |
//! | 64 | n page numbers, ascending (u32 each) |
//! | 64 + 4n | the pages in that order |
//!
//! Crash: a record counts only when both of its checksums are right, so a half-written last one is dropped; its frames
//! are still in the WAL, because the reset that asked for it was not allowed yet. Records whose serial a frozen delta
//! contains are skipped. The file is emptied once everything in it is frozen.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::frames::Frames;
use super::position::Position;
use super::wal::Checksum;
use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageCount, PageSize, Pgno};

const MAGIC: &[u8; 8] = b"GCSSAVE2";
const RECORD_HEADER: usize = 64;
/// How much is copied at once, in bytes, before it is cut to whole pages.
const CHUNK_BYTES: usize = 1 << 20;

/// The file of saved pages.
pub(crate) struct Saved {
    file: File,
    path: PathBuf,
    name: String,
}

/// One record of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    serial: u64,
    count: u32,
    pages: PageCount,
    salts: [u8; 8],
    checksum: Checksum,
    page_size: PageSize,
    last_frame: u32,
    crc32c: u32,
    /// Where its page numbers begin in the file.
    offset: u64,
}

impl Record {
    /// Whether it has nothing that the delta frozen at `serial` lacks.
    pub(crate) fn is_within(&self, serial: u64) -> bool {
        self.serial <= serial
    }

    /// The page size of its WAL.
    pub(crate) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Database size after its last frame.
    pub(crate) fn pages(&self) -> PageCount {
        self.pages
    }

    /// What lies behind the header, in bytes.
    fn body_bytes(&self) -> u64 {
        u64::from(self.count) * (4 + u64::from(self.page_size.bytes()))
    }

    fn bytes(&self) -> u64 {
        RECORD_HEADER as u64 + self.body_bytes()
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

    /// Copies what frames of a WAL end with behind the `end` bytes that count so far, and makes it survive a power loss.
    /// Returns the new end and the checksum of the last frame.
    pub(crate) fn append(
        &self,
        end: u64,
        frames: &Frames<'_>,
        last_frame: u32,
        serial: u64,
        pages: PageCount,
    ) -> Result<(u64, Checksum)> {
        let failed = |e: &std::io::Error| Error::local(format_args!("saving pages to {}", self.name), e);
        let mut newest = BTreeMap::new();
        let walked = frames.walk(|pgno, at| _ = newest.insert(pgno, at))?;

        let offset = end + RECORD_HEADER as u64;
        let numbers: Vec<u8> = newest.keys().flat_map(|pgno| pgno.0.to_le_bytes()).collect();
        self.file.write_all_at(&numbers, offset).map_err(|e| failed(&e))?;
        let mut crc = crc32c::crc32c(&numbers);
        let mut at = offset + numbers.len() as u64;
        let page_bytes = frames.wal.page_size.bytes() as usize;
        let mut chunk = vec![0; page_bytes * (CHUNK_BYTES / page_bytes).clamp(1, newest.len().max(1))];
        let from: Vec<u64> = newest.into_values().collect();
        for from in from.chunks(chunk.len() / page_bytes) {
            let chunk = &mut chunk[..from.len() * page_bytes];
            for (page, &from) in chunk.chunks_exact_mut(page_bytes).zip(from) {
                frames
                    .file
                    .read_exact_at(page, from)
                    .map_err(|e| Error::local(format_args!("reading a page of {} at byte {from}", frames.name), &e))?;
            }
            crc = crc32c::crc32c_append(crc, chunk);
            self.file.write_all_at(chunk, at).map_err(|e| failed(&e))?;
            at += chunk.len() as u64;
        }
        let record = Record {
            serial,
            count: from.len() as u32,
            pages,
            salts: frames.wal.salts,
            checksum: walked.checksum,
            page_size: frames.wal.page_size,
            last_frame,
            crc32c: crc,
            offset,
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
            self.read(&mut header, at)?;
            let Some(record) = decode(&header, at + RECORD_HEADER as u64) else { break };
            if at + record.bytes() > end {
                break;
            }
            at += record.bytes();
            records.push(record);
        }
        Ok(records)
    }

    /// The pages of a record, each with where its bytes begin in the file.
    ///
    /// # Errors
    /// Corrupt when its checksum is wrong.
    pub(crate) fn pages(&self, record: &Record) -> Result<Vec<(Pgno, u64)>> {
        let mut numbers = vec![0; record.count as usize * 4];
        self.read(&mut numbers, record.offset)?;
        let mut crc = crc32c::crc32c(&numbers);
        let first = record.offset + numbers.len() as u64;
        let (mut at, end) = (first, record.offset + record.body_bytes());
        let mut chunk = vec![0; CHUNK_BYTES.min((end - first) as usize)];
        while at < end {
            let chunk = &mut chunk[..CHUNK_BYTES.min((end - at) as usize)];
            self.read(chunk, at)?;
            crc = crc32c::crc32c_append(crc, chunk);
            at += chunk.len() as u64;
        }
        if crc != record.crc32c {
            let message = format!("{}: the record at byte {} is damaged", self.name, record.offset);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let numbers = numbers.as_chunks::<4>().0.iter().map(|bytes| Pgno(u32::from_le_bytes(*bytes)));
        let places = (first..).step_by(record.page_size.bytes() as usize);
        Ok(numbers.zip(places).collect())
    }

    /// After a crash: finds the whole records and returns where the last one ends in the file and how far the WAL is
    /// captured by it (`None`: there are none).
    pub(crate) fn recover(&self) -> Result<(u64, Option<Position>)> {
        let size = self.file.metadata().map_err(|e| Error::local(format_args!("looking at {}", self.name), &e))?.len();
        let mut end = 0;
        let mut position = None;
        for record in self.records(size)? {
            if self.pages(&record).is_err() {
                break;
            }
            end += record.bytes();
            position = Some(Position {
                salts: record.salts,
                frames: record.last_frame,
                cksum: record.checksum.0,
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

    fn read(&self, into: &mut [u8], at: u64) -> Result<()> {
        self.file.read_exact_at(into, at).map_err(|e| Error::local(format_args!("reading {}", self.name), &e))
    }
}

fn encode(record: &Record) -> [u8; RECORD_HEADER] {
    let mut out = [0; RECORD_HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&record.serial.to_le_bytes());
    out[24..32].copy_from_slice(&record.salts);
    let numbers = [
        (16, record.count),
        (20, record.pages.0),
        (32, record.checksum.0[0]),
        (36, record.checksum.0[1]),
        (40, record.page_size.bytes()),
        (44, record.last_frame),
        (48, record.crc32c),
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
    Some(Record {
        serial: u64::from_le_bytes(serial),
        count: u32_at(16),
        pages: PageCount(u32_at(20)),
        salts,
        checksum: Checksum([u32_at(32), u32_at(36)]),
        page_size: PageSize::new(u32_at(40))?,
        last_frame: u32_at(44),
        crc32c: u32_at(48),
        offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::wal::{FRAME_HEADER, HEADER, WalHeader};

    /// A file of saved pages, and the WAL of a plain database that changed its pages several times.
    struct Bed {
        dir: tempfile::TempDir,
        _db: rusqlite::Connection,
        wal: File,
        saved: Saved,
    }

    impl Bed {
        fn new() -> Bed {
            let dir = tempfile::tempdir().expect("a directory");
            let db = rusqlite::Connection::open(dir.path().join("plain.db")).expect("opened");
            db.execute_batch("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a)").expect("a WAL");
            for n in 0..50 {
                db.execute("INSERT INTO t VALUES (randomblob(300 + ?))", [n]).expect("inserted");
            }
            let wal = File::open(dir.path().join("plain.db-wal")).expect("opened");
            let saved = Saved::open(dir.path()).expect("opened");
            Bed { dir, _db: db, wal, saved }
        }

        fn header(&self) -> WalHeader {
            let mut bytes = [0; HEADER];
            self.wal.read_exact_at(&mut bytes, 0).expect("read");
            WalHeader::parse(&bytes).expect("a header")
        }

        fn frames(&self) -> Frames<'_> {
            let wal = self.header();
            let frame = (FRAME_HEADER as u64) + u64::from(wal.page_size.bytes());
            let count = ((self.wal.metadata().expect("a size").len() - HEADER as u64) / frame) as u32;
            Frames { file: &self.wal, name: "wal", wal, offset: HEADER as u64, count, seed: wal.checksum, held: None }
        }

        fn append(&self, end: u64, serial: u64) -> u64 {
            let frames = self.frames();
            self.saved.append(end, &frames, frames.count, serial, PageCount(7)).expect("saved").0
        }
    }

    #[test]
    fn what_was_saved_is_the_newest_image_of_each_page() {
        let bed = Bed::new();
        let end = bed.append(0, 3);
        let mut newest = BTreeMap::new();
        let walked = bed.frames().walk(|pgno, at| _ = newest.insert(pgno, at)).expect("whole");
        assert!(newest.len() < bed.frames().count as usize / 2, "pages were written again and again");
        let records = bed.saved.records(end).expect("read");
        let [record] = records[..] else { panic!("{records:?}") };
        let read = |file: &File, at| {
            let mut page = vec![0; record.page_size().bytes() as usize];
            file.read_exact_at(&mut page, at).expect("read");
            page
        };
        let pages = bed.saved.pages(&record).expect("whole");
        assert_eq!(pages.iter().map(|(pgno, _)| *pgno).collect::<Vec<_>>(), newest.keys().copied().collect::<Vec<_>>());
        for (pgno, at) in pages {
            assert!(read(&bed.saved.file, at) == read(&bed.wal, newest[&pgno]), "page {pgno}");
        }
        let (recovered, position) = bed.saved.recover().expect("read");
        let position = position.expect("a position");
        assert_eq!((recovered, position.frames, position.serial), (end, bed.frames().count, 3));
        assert_eq!((position.cksum, position.salts, position.closed), (walked.checksum.0, bed.header().salts, true));
    }

    #[test]
    fn a_record_that_is_damaged_or_cut_does_not_count_and_those_before_it_do() {
        let bed = Bed::new();
        let first = bed.append(0, 1);
        let end = bed.append(first, 2);
        assert_eq!(bed.saved.recover().expect("read").0, end);
        let whole = std::fs::read(bed.saved.path()).expect("read");
        let step = whole.len() / 40;
        for at in (first as usize..first as usize + 64).step_by(3).chain((first as usize..end as usize).step_by(step)) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(bed.dir.path().join("saved"), &damaged).expect("written");
            let (end, position) = Saved::open(bed.dir.path()).expect("opened").recover().expect("read");
            // The last four bytes of the header are padding.
            let counts = (first as usize + 60..first as usize + 64).contains(&at);
            assert_eq!(end == first, !counts, "byte {at}");
            assert_eq!(position.expect("a position").serial, if counts { 2 } else { 1 }, "byte {at}");
            std::fs::write(bed.dir.path().join("saved"), &whole[..at]).expect("written");
            assert_eq!(Saved::open(bed.dir.path()).expect("opened").recover().expect("read").0, first, "cut at {at}");
        }
    }
}
