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

use std::io::{self, Read};

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use lz4_flex::frame::FrameDecoder;

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
    /// Reads the next frame and leaves exactly one page in `page`. `None` at the end of the pages.
    pub(super) fn read<R: Read>(
        &mut self,
        input: &mut Input<R>,
        page_size: PageSize,
        page: &mut Vec<u8>,
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
        page.resize(page_size.bytes() as usize, 0);
        let mut head = FrameHead { pgno, bytes: [a, b, c, d, e, f, 0, 0, 0, 0], len: 6 };
        match u16::from_be_bytes([e, f]) {
            FLAG_BLOCK => {
                let length: [u8; 4] = input.take("page length")?;
                head.bytes[6..].copy_from_slice(&length);
                head.len = 10;
                self.block(input, u32::from_be_bytes(length), page)?;
            }
            0 => lz4_frame(input, page)?,
            flags => {
                return Err(DecodeError::invalid("page flags", start + 4, format!("unknown bits in 0x{flags:04x}")));
            }
        }
        if input.offset() - start > u64::from(MAX_LEN) {
            return Err(DecodeError::invalid("page frame", start, format!("longer than {MAX_LEN} bytes")));
        }
        Ok(Some(head))
    }

    fn block<R: Read>(&mut self, input: &mut Input<R>, length: u32, page: &mut [u8]) -> Result<(), DecodeError> {
        let at = input.offset();
        let most = get_maximum_output_size(page.len());
        let length = length as usize;
        if length == 0 || length > most {
            let why = format!("{length}, where a page of {} bytes needs 1 to {most}", page.len());
            return Err(DecodeError::invalid("page length", at - 4, why));
        }
        self.packed.resize(length, 0);
        input.fill("page", &mut self.packed)?;
        match decompress_into(&self.packed, page) {
            Ok(size) if size == page.len() => Ok(()),
            Ok(size) => Err(wrong_size(at, size, page.len())),
            Err(error) => Err(DecodeError::invalid("page", at, format!("not an LZ4 block of one page: {error}"))),
        }
    }
}

fn wrong_size(at: u64, size: usize, page_size: usize) -> DecodeError {
    DecodeError::invalid("page", at, format!("holds {size} bytes instead of {page_size}"))
}

/// The older form. What the LZ4 reader allocates is bounded by the format's largest block, 8 MiB.
fn lz4_frame<R: Read>(input: &mut Input<R>, page: &mut [u8]) -> Result<(), DecodeError> {
    let at = input.offset();
    let mut body = Body { input, failure: None };
    let mut size = 0;
    let mut decoder = FrameDecoder::new(&mut body);
    // One byte more than a page: the reader meets the frame's end mark and its checksums only when asked on.
    let mut beyond = [0];
    let outcome = loop {
        let room = if size < page.len() { &mut page[size..] } else { &mut beyond[..] };
        match decoder.read(room) {
            Ok(0) => break Ok(()),
            Ok(count) => size += count,
            Err(error) => break Err(error),
        }
        if size > page.len() {
            break Ok(());
        }
    };
    drop(decoder);
    match (outcome, body.failure) {
        (_, Some(Failure::Ended)) => Err(DecodeError::truncated("page", at)),
        (_, Some(Failure::Read(error))) => Err(DecodeError::read("page", at, error)),
        (Err(error), None) => Err(DecodeError::invalid("page", at, format!("not an LZ4 frame: {error}"))),
        (Ok(()), None) if size > page.len() => {
            Err(DecodeError::invalid("page", at, format!("holds more than {} bytes", page.len())))
        }
        (Ok(()), None) if size < page.len() => Err(wrong_size(at, size, page.len())),
        (Ok(()), None) => Ok(()),
    }
}

/// What the LZ4 reader sees: the end of the data is an error here, because it takes that for the end of the frame.
struct Body<'a, R> {
    input: &'a mut Input<R>,
    failure: Option<Failure>,
}

enum Failure {
    Ended,
    Read(io::Error),
}

impl<R: Read> Read for Body<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let failure = match self.input.some(buf) {
            Ok(0) if !buf.is_empty() => Failure::Ended,
            Ok(count) => return Ok(count),
            Err(error) => Failure::Read(error),
        };
        self.failure = Some(failure);
        Err(io::Error::other("no more data"))
    }
}

/// Unpacks a single frame, as the index addresses it: `bytes` is the frame and nothing else.
///
/// The file's checksum does not cover it; whoever fetched it has to trust the transport.
///
/// # Errors
/// The bytes are not exactly one frame of one page. Offsets count from the start of the frame.
pub fn decode_page_frame(bytes: &[u8], page_size: PageSize) -> Result<(Pgno, Vec<u8>), DecodeError> {
    let mut input = Input::new(bytes);
    let mut page = Vec::new();
    let head = FrameReader::default()
        .read(&mut input, page_size, &mut page)?
        .ok_or_else(|| DecodeError::invalid("page number", 0, "the end of the pages instead of a page"))?;
    if input.offset() != bytes.len() as u64 {
        let why = format!("the frame is {} bytes long, not {}", input.offset(), bytes.len());
        return Err(DecodeError::invalid("page frame", input.offset(), why));
    }
    Ok((head.pgno, page))
}
