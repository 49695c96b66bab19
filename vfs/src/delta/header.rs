//! The first 100 bytes of a delta: which transactions it covers and how large the database is after them.
//!
//! ```text
//! offset  size  field
//!      0     4  "LTX1"
//!      4     4  flags: 0x2 = no database checksum is kept; no other bit is legal
//!      8     4  page size in bytes
//!     12     4  commit: size of the database in pages after the delta is applied
//!     16     8  first transaction, from 1
//!     24     8  last transaction
//!     32     8  milliseconds since 1970, signed
//!     40     8  checksum of the database before the delta; 0 when none is kept, and in a snapshot
//!     48     8  offset in the WAL it came from, signed; 0 = not from a WAL
//!     56     8  size of that piece of the WAL, signed
//!     64     8  the WAL's two salts
//!     72     8  node that wrote it; 0 = not said
//!     80    20  zeros
//! ```
//!
//! Litestream never keeps database checksums and neither do we. A file that has them is read; they are
//! checked for form only.

use crate::page::{PageCount, PageSize, TxId};

use super::checksum::FLAG;
use super::error::DecodeError;

const MAGIC: &[u8; 4] = b"LTX1";
const NO_CHECKSUM: u32 = 0x2;

/// What a delta says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The size of every page in it.
    pub page_size: PageSize,
    /// The size of the database after the delta is applied.
    pub commit: PageCount,
    /// The first transaction it covers; 1 makes it a snapshot.
    pub min: TxId,
    /// The last transaction it covers.
    pub max: TxId,
    /// When the last of them was committed, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Where in a WAL its pages came from, in bytes; 0 when they did not.
    pub wal_offset: i64,
    /// How many bytes of that WAL it covers.
    pub wal_size: i64,
    /// The salts of that WAL.
    pub wal_salts: [u32; 2],
    /// Who wrote it; 0 when that is not said.
    pub node_id: u64,
}

impl Header {
    /// The length of an encoded header in bytes.
    pub const LEN: usize = 100;

    /// The header of one transaction's delta at level 0.
    ///
    /// It names a WAL offset of 32 with size and salts 0: a Litestream that continues the log then takes a
    /// new snapshot, where it would fail for ever on an offset of 0.
    pub fn level_0(page_size: PageSize, commit: PageCount, txid: TxId, timestamp_ms: i64) -> Header {
        Header { wal_offset: 32, ..Header::compacted(page_size, commit, txid, txid, timestamp_ms) }
    }

    /// The header of a delta at levels 1 to 9; its WAL fields are zero.
    pub fn compacted(page_size: PageSize, commit: PageCount, min: TxId, max: TxId, timestamp_ms: i64) -> Header {
        Header { page_size, commit, min, max, timestamp_ms, wal_offset: 0, wal_size: 0, wal_salts: [0, 0], node_id: 0 }
    }

    /// Whether the delta holds every page of the database.
    pub fn is_snapshot(&self) -> bool {
        self.min == TxId(1)
    }

    /// Reads a header from the first [`Header::LEN`] bytes of `bytes`; what follows is not looked at.
    ///
    /// # Errors
    /// Any field that breaks a rule of the format.
    pub fn decode(bytes: &[u8]) -> Result<Header, DecodeError> {
        let bytes = bytes.first_chunk().ok_or_else(|| DecodeError::truncated("header", bytes.len() as u64))?;
        Ok(Header::parse(bytes)?.0)
    }

    /// The header, and whether the file keeps checksums of the database.
    pub(super) fn parse(bytes: &[u8; Header::LEN]) -> Result<(Header, bool), DecodeError> {
        if &bytes[..4] != MAGIC {
            return Err(DecodeError::invalid("magic", 0, "this is not an LTX file of version 3"));
        }
        let flags = u32_at(bytes, 4);
        if flags & !NO_CHECKSUM != 0 {
            return Err(DecodeError::invalid("flags", 4, format!("unknown bits in 0x{flags:08x}")));
        }
        let keeps_checksum = flags & NO_CHECKSUM == 0;
        let raw_size = u32_at(bytes, 8);
        let page_size = PageSize::new(raw_size).ok_or_else(|| {
            DecodeError::invalid("page size", 8, format!("{raw_size} is no power of two from 512 to 65536"))
        })?;
        let header = Header {
            page_size,
            commit: PageCount(u32_at(bytes, 12)),
            min: TxId(u64_at(bytes, 16)),
            max: TxId(u64_at(bytes, 24)),
            timestamp_ms: u64_at(bytes, 32) as i64,
            wal_offset: u64_at(bytes, 48) as i64,
            wal_size: u64_at(bytes, 56) as i64,
            wal_salts: [u32_at(bytes, 64), u32_at(bytes, 68)],
            node_id: u64_at(bytes, 72),
        };
        header.check()?;
        let before = u64_at(bytes, 40);
        let fits = if keeps_checksum && !header.is_snapshot() { before & FLAG != 0 } else { before == 0 };
        if !fits {
            return Err(DecodeError::invalid(
                "database checksum before",
                40,
                format!("0x{before:x} is not legal here"),
            ));
        }
        if bytes[80..].iter().any(|&byte| byte != 0) {
            return Err(DecodeError::invalid("reserved bytes", 80, "not all zero"));
        }
        Ok((header, keeps_checksum))
    }

    /// The rules that hold between the fields, for reading and for writing.
    pub(super) fn check(&self) -> Result<(), DecodeError> {
        if self.min == TxId::NONE {
            return Err(DecodeError::invalid("first transaction", 16, "0; they are counted from 1"));
        }
        if self.max < self.min {
            let why = format!("{} comes before the first, {}", self.max, self.min);
            return Err(DecodeError::invalid("last transaction", 24, why));
        }
        if self.wal_offset < 0 {
            return Err(DecodeError::invalid("WAL offset", 48, format!("{} is negative", self.wal_offset)));
        }
        if self.wal_size < 0 {
            return Err(DecodeError::invalid("WAL size", 56, format!("{} is negative", self.wal_size)));
        }
        if self.wal_offset == 0 && self.wal_size != 0 {
            return Err(DecodeError::invalid("WAL size", 56, format!("{} without a WAL offset", self.wal_size)));
        }
        if self.wal_offset == 0 && self.wal_salts != [0, 0] {
            return Err(DecodeError::invalid("WAL salts", 64, "salts without a WAL offset"));
        }
        Ok(())
    }

    /// The bytes of the header, without database checksums. Rules between fields are not checked here; the
    /// [`Encoder`](super::Encoder) does.
    pub fn encode(&self) -> [u8; Header::LEN] {
        let mut bytes = [0; Header::LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(4, &NO_CHECKSUM.to_be_bytes());
        put(8, &self.page_size.bytes().to_be_bytes());
        put(12, &self.commit.0.to_be_bytes());
        put(16, &self.min.0.to_be_bytes());
        put(24, &self.max.0.to_be_bytes());
        put(32, &self.timestamp_ms.to_be_bytes());
        put(48, &self.wal_offset.to_be_bytes());
        put(56, &self.wal_size.to_be_bytes());
        put(64, &self.wal_salts[0].to_be_bytes());
        put(68, &self.wal_salts[1].to_be_bytes());
        put(72, &self.node_id.to_be_bytes());
        bytes
    }
}

fn u32_at(bytes: &[u8; Header::LEN], at: usize) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8; Header::LEN], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}
