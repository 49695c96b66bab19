//! Where each page of a delta lies, at the delta's end, so that a page can be had by one ranged read.
//!
//! ```text
//! uvarint page number, uvarint offset in the file, uvarint length of the frame with its head    per page
//! 0x00
//! 8 bytes: length of all this with the 0x00
//! trailer, 16 bytes: checksum of the database after the delta (0 = none kept), checksum of the file
//! ```
//!
//! Frames lie one behind the other from byte 100 to the six zero bytes before the index, in ascending order of
//! pages. Decoding insists on it, so entries can neither overlap nor point outside the pages. It cannot check the
//! file's checksum, which needs every page.

use crate::page::Pgno;

use super::checksum::FLAG;
use super::error::DecodeError;
use super::frame::{END_OF_PAGES, MAX_LEN, MIN_LEN};
use super::header::Header;

/// The bytes at a file's end from which [`tail_layout`] can tell how long the index is.
pub const TAIL_MIN: usize = 24;
const TRAILER_LEN: usize = 16;

/// Where one page lies in its delta.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// The page.
    pub pgno: Pgno,
    /// Length of its frame in bytes, head included.
    pub len: u32,
    /// Where its frame begins in the file.
    pub offset: u64,
}

/// Says how many bytes at the end of a file of `file_size` bytes hold its index and trailer.
///
/// `last` is the end of the file, [`TAIL_MIN`] bytes or more of it. When the answer is more than `last.len()`,
/// that many bytes have to be fetched before [`PageIndex::decode`].
///
/// # Errors
/// `last` is too short, or the file cannot hold an index of that length.
pub fn tail_layout(last: &[u8], file_size: u64) -> Result<u64, DecodeError> {
    let smallest = (Header::LEN + END_OF_PAGES.len() + 1 + TAIL_MIN) as u64;
    if file_size < smallest {
        return Err(DecodeError::truncated("index", file_size));
    }
    let start = file_size.checked_sub(last.len() as u64);
    let (Some(_), Some(tail)) = (start, last.last_chunk::<TAIL_MIN>()) else {
        let why = format!("{} bytes of {file_size} are not the end of a file", last.len());
        return Err(DecodeError::invalid("index length", file_size.saturating_sub(TAIL_MIN as u64), why));
    };
    let length = u64::from_be_bytes(std::array::from_fn(|i| tail[i]));
    let room = file_size - smallest + 1;
    if length == 0 || length > room {
        let why = format!("{length}, where a file of {file_size} bytes has room for 1 to {room}");
        return Err(DecodeError::invalid("index length", file_size - TAIL_MIN as u64, why));
    }
    Ok(length + TAIL_MIN as u64)
}

/// The page index of one delta, in ascending order of pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageIndex {
    entries: Vec<IndexEntry>,
}

impl PageIndex {
    /// Reads the index from the end of a file of `file_size` bytes; `last` is at least as long as
    /// [`tail_layout`] says.
    ///
    /// # Errors
    /// The index is not the one of a file of that size: pages out of order or twice, frames that do not follow each
    /// other from byte 100 to the index, a number that is too large or not in its shortest form.
    pub fn decode(last: &[u8], file_size: u64) -> Result<PageIndex, DecodeError> {
        let tail_len = tail_layout(last, file_size)?;
        let start = file_size - tail_len;
        let tail = usize::try_from(tail_len).ok().and_then(|len| last.len().checked_sub(len)).map(|at| &last[at..]);
        let tail = tail.ok_or_else(|| DecodeError::truncated("index", file_size - last.len() as u64))?;
        let (index, end) = tail.split_at(tail.len() - TAIL_MIN);
        // The last 8 bytes of the file; `end` is TAIL_MIN bytes long.
        if end[TRAILER_LEN] & (FLAG >> 56) as u8 == 0 {
            return Err(DecodeError::invalid("file checksum", file_size - 8, "its highest bit is not set"));
        }
        let mut numbers = Varints { bytes: index, at: 0, start };
        let mut entries: Vec<IndexEntry> = Vec::new();
        let mut next_offset = Header::LEN as u64;
        loop {
            let at = numbers.offset();
            let pgno = numbers.next("index page number")?;
            if pgno == 0 {
                break;
            }
            let last = entries.last().map_or(0, |entry| entry.pgno.0);
            let pgno = match u32::try_from(pgno) {
                Ok(number) if number > last => Pgno(number),
                _ => return Err(DecodeError::invalid("index page number", at, format!("{pgno} follows {last}"))),
            };
            let at = numbers.offset();
            let offset = numbers.next("index offset")?;
            if offset != next_offset {
                let why = format!("page {pgno} at {offset}, where the frame before it ends at {next_offset}");
                return Err(DecodeError::invalid("index offset", at, why));
            }
            let at = numbers.offset();
            let len = numbers.next("index frame length")?;
            let len = match u32::try_from(len) {
                Ok(len) if (MIN_LEN..=MAX_LEN).contains(&len) => len,
                _ => {
                    let why = format!("{len} for page {pgno}; a frame has {MIN_LEN} to {MAX_LEN} bytes");
                    return Err(DecodeError::invalid("index frame length", at, why));
                }
            };
            next_offset = offset + u64::from(len);
            entries.push(IndexEntry { pgno, len, offset });
        }
        if numbers.at != index.len() {
            return Err(DecodeError::invalid("index", numbers.offset(), "it goes on after its end mark"));
        }
        if next_offset + END_OF_PAGES.len() as u64 != start {
            let why = format!("its pages end at {next_offset}, the index begins at {start}");
            return Err(DecodeError::invalid("index", start, why));
        }
        Ok(PageIndex { entries })
    }

    /// All entries, in ascending order of pages.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Gives the entries away.
    pub fn into_entries(self) -> Vec<IndexEntry> {
        self.entries
    }

    /// Where a page lies, if the delta has it.
    pub fn find(&self, pgno: Pgno) -> Option<IndexEntry> {
        let at = self.entries.binary_search_by_key(&pgno, |entry| entry.pgno).ok()?;
        Some(self.entries[at])
    }
}

struct Varints<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where `bytes` begin in the file.
    start: u64,
}

impl Varints<'_> {
    fn offset(&self) -> u64 {
        self.start + self.at as u64
    }

    fn next(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let begin = self.offset();
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(DecodeError::truncated(field, begin));
            };
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            value |= bits << shift;
            if value >> shift != bits {
                break;
            }
            if byte & 0x80 == 0 {
                // A last byte of zero adds nothing: the same number has a shorter form.
                if byte == 0 && shift != 0 {
                    return Err(DecodeError::invalid(field, begin, "not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(DecodeError::invalid(field, begin, "more than 64 bits"))
    }
}

/// Collects the index of a delta while its pages go by, in the form it has in the file: 6 to 13 bytes per page.
#[derive(Default)]
pub(super) struct IndexBytes(Vec<u8>);

impl IndexBytes {
    pub(super) fn push(&mut self, pgno: Pgno, offset: u64, len: u64) {
        for mut number in [u64::from(pgno.0), offset, len] {
            while number >= 0x80 {
                self.0.push(number as u8 | 0x80);
                number >>= 7;
            }
            self.0.push(number as u8);
        }
    }

    /// The index with its end mark and its length.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.push(0);
        let len = self.0.len() as u64;
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0
    }
}
