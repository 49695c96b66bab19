//! LTX: the bytes of one delta, as Litestream 0.5 reads and writes them.
//!
//! A delta holds the newest image of every page that a range of transactions changed. This module turns
//! pages into those bytes and back, over `std::io` only: it opens nothing, waits for nothing and knows no
//! bucket. What a name in the log means, and which delta wins, is the replica's business.
//!
//! ```text
//! header       100 bytes                                             header.rs
//! page frame   page number, flags, length, LZ4 block; ascending      frame.rs, order.rs
//! ...
//! end of pages 6 zero bytes
//! index        (page number, offset, frame length)*, 0, its length   index.rs
//! trailer      checksum of the database (0), checksum of the file    checksum.rs
//! ```
//!
//! Numbers are big-endian; those inside the index are LEB128 varints. A delta whose first transaction is 1
//! is a *snapshot* and holds every page of the database. The page that covers the byte at 1 GiB, where
//! SQLite puts its locks, is never stored.
//!
//! Every byte that comes in is treated as hostile: what is malformed is a [`DecodeError`] that names the
//! field and its offset. Nothing panics, and nothing is allocated by a length that was not checked first.
//! Memory is bounded by one page and about 10 bytes per page of index.

mod checksum;
mod decoder;
mod encoder;
mod error;
mod frame;
mod header;
mod index;
mod input;
mod merge;
mod order;

#[cfg(test)]
mod tests;

pub use decoder::{Decoder, verify};
pub use encoder::Encoder;
pub use error::{DecodeError, EncodeError, MergeError};
pub use frame::decode_page_frame;
pub(crate) use frame::decode_page_frame_into;
pub use header::Header;
pub use index::{IndexEntry, PageIndex, TAIL_MIN, tail_layout};
pub use merge::merge;
