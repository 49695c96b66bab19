//! One page in a delta.
//!
//! ```text
//! offset  size  field
//!      0     4  page number, from 1
//!      4     2  flags: 1 = a length and an LZ4 block follow; 0 = an LZ4 frame follows (older files)
//!      6     4  length of the block; missing when flags = 0
//!     10     n  the page, compressed
//! ```
//!
//! Six zero bytes where a frame would begin end the pages. We write flags = 1 only; a page that does not
//! compress is a block of literals.

use std::io::Read;

use lz4_flex::block::{
    CompressTable, DecompressError, compress_into_with_table, decompress_into, decompress_into_with_dict,
    get_maximum_output_size,
};

use crate::page::{PageSize, Pgno};

use super::error::{DecodeError, EncodeError};
use super::input::Input;

/// What stands where the next frame would, after the last one.
pub(super) const END_OF_PAGES: [u8; 6] = [0; 6];
/// The shortest frame: a head and one byte.
pub(super) const MIN_LEN: u32 = 7;
/// More than any page can need, compressed as badly as the format allows; a longer frame is refused.
pub(super) const MAX_LEN: u32 = 128 * 1024;

const FLAG_BLOCK: u16 = 1;

/// Packs pages into frames; its buffers are used again for each.
pub(super) struct FrameWriter {
    table: CompressTable,
    frame: Vec<u8>,
}

impl FrameWriter {
    /// The length of a frame's head.
    pub(super) const HEAD_LEN: usize = 10;

    pub(super) fn new(page_size: PageSize) -> FrameWriter {
        let room = FrameWriter::HEAD_LEN + get_maximum_output_size(page_size.bytes() as usize);
        FrameWriter { table: CompressTable::default(), frame: vec![0; room] }
    }

    /// The frame of a page, whose first [`FrameWriter::HEAD_LEN`] bytes are its head.
    pub(super) fn pack(&mut self, pgno: Pgno, page: &[u8]) -> Result<&[u8], EncodeError> {
        let (head, body) = self.frame.split_at_mut(FrameWriter::HEAD_LEN);
        let len = compress_into_with_table(page, body, &mut self.table)
            .map_err(|error| EncodeError::refused("page", format!("page {pgno} was not compressed: {error}")))?;
        head[..4].copy_from_slice(&pgno.0.to_be_bytes());
        head[4..6].copy_from_slice(&FLAG_BLOCK.to_be_bytes());
        head[6..].copy_from_slice(&(len as u32).to_be_bytes());
        Ok(&self.frame[..FrameWriter::HEAD_LEN + len])
    }
}

/// The head of a frame that was read, as it stood in the file.
pub(super) struct FrameHead {
    pub(super) pgno: Pgno,
    bytes: [u8; 10],
    len: usize,
}

impl FrameHead {
    /// The bytes that the file's checksum covers: 6, or 10 where there is a length.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Unpacks frames; its buffer is used again for each.
#[derive(Default)]
pub(super) struct FrameReader {
    packed: Vec<u8>,
}

impl FrameReader {
    /// Reads the next frame into `page`, which is exactly one page long. `None` at the end of the pages.
    pub(super) fn read<R: Read>(
        &mut self,
        input: &mut Input<R>,
        page: &mut [u8],
    ) -> Result<Option<FrameHead>, DecodeError> {
        let start = input.offset();
        let short: [u8; 6] = input.take("page head")?;
        if short == END_OF_PAGES {
            return Ok(None);
        }
        let [a, b, c, d, e, f] = short;
        let pgno = Pgno(u32::from_be_bytes([a, b, c, d]));
        if pgno.0 == 0 {
            return Err(DecodeError::invalid("page number", start, "0; pages are counted from 1"));
        }
        let mut head = FrameHead { pgno, bytes: [a, b, c, d, e, f, 0, 0, 0, 0], len: 6 };
        match u16::from_be_bytes([e, f]) {
            FLAG_BLOCK => {
                let length: [u8; 4] = input.take("page length")?;
                head.bytes[6..].copy_from_slice(&length);
                head.len = 10;
                self.block(input, u32::from_be_bytes(length), page)?;
            }
            0 => self.lz4_frame(input, page)?,
            flags => {
                return Err(DecodeError::invalid("page flags", start + 4, format!("unknown bits in 0x{flags:04x}")));
            }
        }
        Ok(Some(head))
    }

    fn block<R: Read>(&mut self, input: &mut Input<R>, length: u32, page: &mut [u8]) -> Result<(), DecodeError> {
        let at = input.offset();
        let packed = self.take_packed(input, at - 4, length, page.len())?;
        let size = decompress_into(packed, page).map_err(|error| not_lz4(at, &error))?;
        exactly(at, size, page.len())
    }

    /// Reads an LZ4 frame, the older form, straight into the page. Its numbers are little-endian.
    ///
    /// ```text
    /// 4    magic
    /// 1    flags: 01 version, then a bit each for independent blocks, block checksums, content size,
    ///      content checksum, reserved, dictionary
    /// 1    largest block
    /// 8?   content size
    /// 1    checksum of the head
    ///      blocks: 4 length, highest bit set when stored as it is; data; 4? checksum
    /// 4    0
    /// 4?   checksum of the content
    /// ```
    ///
    /// lz4_flex can read this, but clears a buffer as large as the frame's largest block, commonly 4 MiB, for every
    /// page. The frame's checksums are passed over: the delta's own covers the content.
    fn lz4_frame<R: Read>(&mut self, input: &mut Input<R>, page: &mut [u8]) -> Result<(), DecodeError> {
        let start = input.offset();
        let [m0, m1, m2, m3, flags, _] = input.take("page")?;
        if u32::from_le_bytes([m0, m1, m2, m3]) != 0x184D_2204 || flags & 0b1100_0011 != 0b0100_0000 {
            return Err(DecodeError::invalid("page", start, "not an LZ4 frame, or one with a dictionary"));
        }
        let bytes_if = |bit: u8, count: usize| if flags & bit == 0 { 0 } else { count };
        let mut skipped = [0; 9];
        input.fill("page", &mut skipped[..bytes_if(0x08, 8) + 1])?;
        let mut size = 0;
        loop {
            let at = input.offset();
            let word = u32::from_le_bytes(input.take("page")?);
            if word == 0 {
                break;
            }
            let (before, rest) = page.split_at_mut(size);
            if word >> 31 == 1 {
                let length = (word & 0x7fff_ffff) as usize;
                let room = rest.len();
                let block = rest.get_mut(..length).ok_or_else(|| {
                    DecodeError::invalid("page", at, format!("a block of {length} bytes, where {room} are left"))
                })?;
                input.fill("page", block)?;
                size += length;
            } else {
                let packed = self.take_packed(input, at, word, before.len() + rest.len())?;
                size += decompress_into_with_dict(packed, rest, before).map_err(|error| not_lz4(at, &error))?;
            }
            input.fill("page", &mut skipped[..bytes_if(0x10, 4)])?;
            // Blocks may be empty; this many bytes no page needs.
            if input.offset() - start > u64::from(MAX_LEN) {
                return Err(DecodeError::invalid("page", start, format!("longer than {MAX_LEN} bytes")));
            }
        }
        input.fill("page", &mut skipped[..bytes_if(0x04, 4)])?;
        exactly(start, size, page.len())
    }

    /// Takes compressed bytes, no more than a page can need. `at` is where their length stands.
    fn take_packed<R: Read>(
        &mut self,
        input: &mut Input<R>,
        at: u64,
        length: u32,
        page_size: usize,
    ) -> Result<&[u8], DecodeError> {
        let most = get_maximum_output_size(page_size);
        let length = length as usize;
        if length == 0 || length > most {
            let why = format!("{length}, where a page of {page_size} bytes needs 1 to {most}");
            return Err(DecodeError::invalid("page length", at, why));
        }
        self.packed.resize(length, 0);
        input.fill("page", &mut self.packed)?;
        Ok(&self.packed)
    }
}

fn not_lz4(at: u64, error: &DecompressError) -> DecodeError {
    DecodeError::invalid("page", at, format!("not LZ4 data of one page: {error}"))
}

fn exactly(at: u64, size: usize, page_size: usize) -> Result<(), DecodeError> {
    if size == page_size {
        return Ok(());
    }
    Err(DecodeError::invalid("page", at, format!("holds {size} bytes instead of {page_size}")))
}

/// Unpacks a single frame, as the index addresses it: `bytes` is the frame and nothing else.
///
/// The file's checksum does not cover it; whoever fetched it has to trust the transport.
///
/// # Errors
/// The bytes are not exactly one frame of one page. Offsets count from the start of the frame.
pub fn decode_page_frame(bytes: &[u8], page_size: PageSize) -> Result<(Pgno, Vec<u8>), DecodeError> {
    let mut page = vec![0; page_size.bytes() as usize];
    Ok((decode_page_frame_into(bytes, &mut page)?, page))
}

/// The same, into a buffer of exactly one page, of which nothing can be said after an error.
///
/// # Errors
/// As [`decode_page_frame`].
pub(crate) fn decode_page_frame_into(bytes: &[u8], page: &mut [u8]) -> Result<Pgno, DecodeError> {
    if let Some((head, packed)) = bytes.split_first_chunk::<10>()
        && head[4..6] == FLAG_BLOCK.to_be_bytes()
        && u32::from_be_bytes([head[6], head[7], head[8], head[9]]) as usize == packed.len()
        && head[..4] != [0; 4]
    {
        // The form that nearly all have, without a copy of what is packed.
        let size = decompress_into(packed, page).map_err(|error| not_lz4(10, &error))?;
        exactly(10, size, page.len())?;
        return Ok(Pgno(u32::from_be_bytes([head[0], head[1], head[2], head[3]])));
    }
    let mut input = Input::new(bytes);
    let head = FrameReader::default()
        .read(&mut input, page)?
        .ok_or_else(|| DecodeError::invalid("page number", 0, "the end of the pages instead of a page"))?;
    if input.offset() != bytes.len() as u64 {
        let why = format!("the frame is {} bytes long, not {}", input.offset(), bytes.len());
        return Err(DecodeError::invalid("page frame", input.offset(), why));
    }
    Ok(head.pgno)
}
