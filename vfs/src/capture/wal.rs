//! The WAL file format: header, frames, checksums. Pure.
//!
//! All numbers are big-endian (<https://sqlite.org/fileformat2.html#the_write_ahead_log>):
//!
//! | header offset | field | | frame offset | field |
//! |---|---|---|---|---|
//! | 0 | magic 0x377f0682, +1 for big-endian checksums | | 0 | page number |
//! | 4 | version 3007000 | | 4 | database size in pages after a commit frame, else 0 |
//! | 8 | page size | | 8 | salts, as in the header |
//! | 16 | salts | | 16 | running checksum: previous frame's, these 8 first bytes, the page |
//! | 24 | checksum of the 24 bytes before | | 24 | the page |

use crate::page::{PageCount, PageSize, Pgno};

/// Size of the file's header in bytes.
pub(crate) const HEADER: usize = 32;
/// Size of a frame's header in bytes.
pub(crate) const FRAME_HEADER: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

/// The byte order that a WAL's checksums are computed in; that of the machine which made the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl ByteOrder {
    /// Of this machine.
    pub(crate) const NATIVE: ByteOrder = if cfg!(target_endian = "big") { ByteOrder::Big } else { ByteOrder::Little };
}

/// SQLite's running checksum over pairs of 32-bit words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Checksum(pub(crate) [u32; 2]);

impl Checksum {
    /// Adds bytes; their number is a multiple of 8.
    pub(crate) fn update(&mut self, order: ByteOrder, bytes: &[u8]) {
        let [mut s0, mut s1] = self.0;
        let word = |b: &[u8]| {
            let b = [b[0], b[1], b[2], b[3]];
            if order == ByteOrder::Big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
        };
        for pair in bytes.chunks_exact(8) {
            s0 = s0.wrapping_add(word(&pair[..4])).wrapping_add(s1);
            s1 = s1.wrapping_add(word(&pair[4..])).wrapping_add(s0);
        }
        self.0 = [s0, s1];
    }
}

/// The header of a WAL file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WalHeader {
    /// Page size.
    pub(crate) page_size: PageSize,
    /// Salts of the generation.
    pub(crate) salts: [u8; 8],
    /// Byte order of the checksums.
    pub(crate) order: ByteOrder,
    /// Where the running checksum of the frames starts.
    pub(crate) checksum: Checksum,
}

impl WalHeader {
    /// Reads a header; `None` if it is not one or its checksum is wrong.
    pub(crate) fn parse(bytes: &[u8; HEADER]) -> Option<WalHeader> {
        let order = match u32_at(bytes, 0) {
            MAGIC => ByteOrder::Little,
            magic if magic == MAGIC + 1 => ByteOrder::Big,
            _ => return None,
        };
        let page_size = PageSize::new(u32_at(bytes, 8))?;
        let mut checksum = Checksum::default();
        checksum.update(order, &bytes[..24]);
        if u32_at(bytes, 4) != VERSION || checksum != Checksum([u32_at(bytes, 24), u32_at(bytes, 28)]) {
            return None;
        }
        Some(WalHeader { page_size, salts: salts(&bytes[16..24]), order, checksum })
    }

    /// Where a frame begins in the file; frames count from 1.
    pub(crate) fn frame_offset(page_size: PageSize, frame: u32) -> u64 {
        HEADER as u64 + u64::from(frame - 1) * (FRAME_HEADER as u64 + u64::from(page_size.bytes()))
    }
}

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHeader {
    /// The page that the frame holds.
    pub(crate) pgno: Pgno,
    /// Size of the database after the commit that this frame ends; `None` for frames within a transaction.
    pub(crate) commit: Option<PageCount>,
    /// Salts of the generation that wrote it.
    pub(crate) salts: [u8; 8],
    /// Running checksum.
    pub(crate) checksum: Checksum,
}

impl FrameHeader {
    /// Reads a frame's header; `None` for page number 0, which no frame has.
    pub(crate) fn parse(bytes: &[u8]) -> Option<FrameHeader> {
        let bytes = bytes.get(..FRAME_HEADER)?;
        let (pgno, commit) = (u32_at(bytes, 0), u32_at(bytes, 4));
        (pgno != 0).then(|| FrameHeader {
            pgno: Pgno(pgno),
            commit: (commit != 0).then_some(PageCount(commit)),
            salts: salts(&bytes[8..16]),
            checksum: Checksum([u32_at(bytes, 16), u32_at(bytes, 20)]),
        })
    }

    /// Reads a frame that continues `running`, and checks it; `None` if it does not belong to this generation or is damaged.
    pub(crate) fn verify(frame: &[u8], wal: &WalHeader, running: &mut Checksum) -> Option<FrameHeader> {
        let header = FrameHeader::parse(frame)?;
        let mut checksum = *running;
        checksum.update(wal.order, &frame[..8]);
        checksum.update(wal.order, &frame[FRAME_HEADER..]);
        (header.salts == wal.salts && header.checksum == checksum).then(|| {
            *running = checksum;
            header
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn salts(bytes: &[u8]) -> [u8; 8] {
    let mut salts = [0; 8];
    salts.copy_from_slice(bytes);
    salts
}
