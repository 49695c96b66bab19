//! Writing frames, and a header, into the WAL file.
//!
//! A frame ends a commit when its header carries the database size, and only then do it and the frames before it count
//! in a recovery. So everything but the last frame may go to the file at any time; the last one is kept back until
//! [`FrameWriter::flush`].

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::capture::wal::{ByteOrder, Checksum, FRAME_HEADER, HEADER, WalHeader};
use crate::error::{Error, Result};
use crate::page::{PageCount, PageSize, Pgno};

const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;
/// How much is gathered before it is written, in bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// Frames on their way into a WAL.
pub(crate) struct FrameWriter<'a> {
    file: &'a File,
    wal: WalHeader,
    checksum: Checksum,
    /// The number of the last frame.
    last: u32,
    /// Frames that are not written yet, and where they go in the file.
    pending: Vec<u8>,
    offset: u64,
}

impl<'a> FrameWriter<'a> {
    /// Goes on behind `frames` frames, the last of which has this running checksum.
    pub(crate) fn behind(file: &'a File, wal: WalHeader, frames: u32, checksum: Checksum) -> FrameWriter<'a> {
        let offset = WalHeader::frame_offset(wal.page_size, frames + 1);
        FrameWriter { file, wal, checksum, last: frames, pending: Vec::new(), offset }
    }

    /// Adds a frame; with a database size it ends the commit. Returns its number.
    pub(crate) fn push(&mut self, pgno: Pgno, page: &[u8], commit: Option<PageCount>) -> Result<u32> {
        if self.pending.len() + FRAME_HEADER + page.len() > CHUNK_BYTES {
            self.flush()?;
        }
        let at = self.pending.len();
        self.pending.extend_from_slice(&pgno.0.to_be_bytes());
        self.pending.extend_from_slice(&commit.map_or(0, |pages| pages.0).to_be_bytes());
        self.checksum.update(self.wal.order, &self.pending[at..]);
        self.checksum.update(self.wal.order, page);
        self.pending.extend_from_slice(&self.wal.salts);
        self.pending.extend_from_slice(&self.checksum.0[0].to_be_bytes());
        self.pending.extend_from_slice(&self.checksum.0[1].to_be_bytes());
        self.pending.extend_from_slice(page);
        self.last += 1;
        Ok(self.last)
    }

    /// Writes what was added so far.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.file
            .write_all_at(&self.pending, self.offset)
            .map_err(|e| Error::local(format_args!("writing the WAL at byte {}", self.offset), &e))?;
        self.offset += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// The number of the last frame.
    pub(crate) fn last(&self) -> u32 {
        self.last
    }

    /// Running checksum of the last frame.
    pub(crate) fn checksum(&self) -> Checksum {
        self.checksum
    }
}

/// Writes the header of a new generation, and syncs it: were it lost while frames behind it are not, a
/// recovery would take the file for the generation before.
pub(crate) fn write_header(file: &File, page_size: PageSize, salts: [u8; 8]) -> Result<WalHeader> {
    let mut bytes = [0; HEADER];
    let magic = MAGIC | u32::from(ByteOrder::NATIVE == ByteOrder::Big);
    let mut before = [0; 16];
    // The number of the generation is for people to read; one that cannot be told starts anew.
    let generation = match file.read_exact_at(&mut before, 0) {
        Ok(()) => u32::from_be_bytes([before[12], before[13], before[14], before[15]]).wrapping_add(1),
        Err(_) => 0,
    };
    for (at, value) in [(0, magic), (4, VERSION), (8, page_size.bytes()), (12, generation)] {
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    bytes[16..24].copy_from_slice(&salts);
    let mut checksum = Checksum::default();
    checksum.update(ByteOrder::NATIVE, &bytes[..24]);
    bytes[24..28].copy_from_slice(&checksum.0[0].to_be_bytes());
    bytes[28..].copy_from_slice(&checksum.0[1].to_be_bytes());
    let write = || {
        file.write_all_at(&bytes, 0)?;
        file.sync_data()
    };
    write().map_err(|e| Error::local("writing the WAL's header", &e))?;
    Ok(WalHeader { page_size, salts, order: ByteOrder::NATIVE, checksum })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::wal::FrameHeader;

    #[test]
    fn what_is_written_reads_back_as_a_wal() {
        for bytes in [512, 65536] {
            let page_size = PageSize::new(bytes).expect("a legal size");
            let file = tempfile::tempfile().expect("a file");
            let wal = write_header(&file, page_size, *b"saltsalt").expect("written");
            let mut header = [0; HEADER];
            file.read_exact_at(&mut header, 0).expect("read");
            assert_eq!(WalHeader::parse(&header), Some(wal));

            let mut frames = FrameWriter::behind(&file, wal, 0, wal.checksum);
            let count = CHUNK_BYTES as u32 / bytes + 3;
            for n in 1..=count {
                let page = vec![n as u8; bytes as usize];
                let commit = (n == count).then_some(PageCount(70));
                assert_eq!(frames.push(Pgno(n + 7), &page, commit).expect("pushed"), n);
            }
            frames.flush().expect("written");
            let mut running = wal.checksum;
            let mut frame = vec![0; FRAME_HEADER + bytes as usize];
            for n in 1..=count {
                file.read_exact_at(&mut frame, WalHeader::frame_offset(page_size, n)).expect("read");
                let header = FrameHeader::verify(&frame, &wal, &mut running).expect("a frame");
                assert_eq!((header.pgno, header.commit), (Pgno(n + 7), (n == count).then_some(PageCount(70))));
                assert!(frame[FRAME_HEADER..].iter().all(|byte| *byte == n as u8));
            }
            assert_eq!(frames.checksum(), running);
        }
    }
}
