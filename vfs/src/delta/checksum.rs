//! The checksum of a delta: CRC-64/GO-ISO over the file as it would be with its pages uncompressed.
//!
//! Covered, in this order: header; per page its head (with the length, where the frame has one) and its
//! *uncompressed* bytes; the end of the pages; index and its length; the first half of the trailer.

use crc::{CRC_64_GO_ISO, Crc, Digest, Table};

static ISO: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_GO_ISO);

/// Set in every checksum, so that a real one is never zero.
pub(super) const FLAG: u64 = 1 << 63;

/// The running checksum of a file.
pub(super) struct FileChecksum(Digest<'static, u64, Table<16>>);

impl FileChecksum {
    pub(super) fn new() -> FileChecksum {
        FileChecksum(ISO.digest())
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The value as it stands in the trailer.
    pub(super) fn finish(self) -> u64 {
        FLAG | self.0.finalize()
    }
}
