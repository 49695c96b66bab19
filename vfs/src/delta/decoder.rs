//! Reads a whole delta front to back and checks everything that can be checked.

use std::io::Read;

use crate::page::Pgno;

use super::checksum::{FLAG, FileChecksum};
use super::error::DecodeError;
use super::frame::{END_OF_PAGES, FrameReader};
use super::header::Header;
use super::index::IndexBytes;
use super::input::Input;
use super::order::PageOrder;

/// Reads one delta from `R`, page by page.
///
/// It reads in small pieces, so a file wants a `BufReader`. The pages are the delta's only once
/// [`Decoder::finish`] has returned without an error: the checksum stands at the end. After an error the decoder
/// is of no more use.
pub struct Decoder<R> {
    input: Input<R>,
    header: Header,
    keeps_checksum: bool,
    order: PageOrder,
    frames: FrameReader,
    checksum: FileChecksum,
    /// The index that the pages read so far must have.
    index: IndexBytes,
    pages_ended: bool,
}

impl<R: Read> Decoder<R> {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// The header is malformed, or the reader failed.
    pub fn new(reader: R) -> Result<Decoder<R>, DecodeError> {
        let mut input = Input::new(reader);
        let bytes: [u8; Header::LEN] = input.take("header")?;
        let (header, keeps_checksum) = Header::parse(&bytes)?;
        let mut checksum = FileChecksum::new();
        checksum.update(&bytes);
        Ok(Decoder {
            input,
            header,
            keeps_checksum,
            order: PageOrder::new(&header),
            frames: FrameReader::default(),
            checksum,
            index: IndexBytes::default(),
            pages_ended: false,
        })
    }

    /// What the delta says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next page into `page`, whose contents are replaced. `None` after the last one.
    ///
    /// # Errors
    /// The frame is malformed, the page may not come here, a snapshot lacks a page, or the reader failed.
    pub fn next_page(&mut self, page: &mut Vec<u8>) -> Result<Option<Pgno>, DecodeError> {
        if self.pages_ended {
            return Ok(None);
        }
        let start = self.input.offset();
        page.resize(self.header.page_size.bytes() as usize, 0);
        let Some(head) = self.frames.read(&mut self.input, page)? else {
            self.order.complete().map_err(|why| DecodeError::invalid("end of the pages", start, why))?;
            self.checksum.update(&END_OF_PAGES);
            self.pages_ended = true;
            return Ok(None);
        };
        self.order.accept(head.pgno).map_err(|why| DecodeError::invalid("page number", start, why))?;
        self.checksum.update(head.bytes());
        self.checksum.update(page);
        self.index.push(head.pgno, start, self.input.offset() - start);
        Ok(Some(head.pgno))
    }

    /// Reads what is left, pages included, and checks index, trailer, checksum, and that nothing follows.
    ///
    /// # Errors
    /// Anything in the file is malformed, or the reader failed.
    pub fn finish(mut self) -> Result<Header, DecodeError> {
        let mut page = Vec::new();
        while self.next_page(&mut page)?.is_some() {}
        self.check_index()?;

        let at = self.input.offset();
        let after: [u8; 8] = self.input.take("database checksum after")?;
        self.checksum.update(&after);
        let after = u64::from_be_bytes(after);
        if (after & FLAG != 0) != self.keeps_checksum || (!self.keeps_checksum && after != 0) {
            let why = format!("0x{after:x} is not legal here");
            return Err(DecodeError::invalid("database checksum after", at, why));
        }

        let at = self.input.offset();
        let stored = u64::from_be_bytes(self.input.take("file checksum")?);
        let computed = self.checksum.finish();
        if stored != computed {
            let why = format!("0x{stored:016x}, but the content has 0x{computed:016x}");
            return Err(DecodeError::invalid("file checksum", at, why));
        }
        self.input.end()?;
        Ok(self.header)
    }

    /// An index has one legal form for given pages, so it is compared byte for byte as it comes.
    fn check_index(&mut self) -> Result<(), DecodeError> {
        let expected = std::mem::take(&mut self.index).finish();
        let mut buf = [0; 4096];
        for part in expected.chunks(buf.len()) {
            let at = self.input.offset();
            let read = &mut buf[..part.len()];
            self.input.fill("index", read)?;
            if let Some(differs) = part.iter().zip(read.iter()).position(|(a, b)| a != b) {
                let why = "it does not describe the pages before it";
                return Err(DecodeError::invalid("index", at + differs as u64, why));
            }
        }
        self.checksum.update(&expected);
        Ok(())
    }
}

/// Checks a whole delta held in memory.
///
/// # Errors
/// Anything in it is malformed.
pub fn verify(bytes: &[u8]) -> Result<Header, DecodeError> {
    Decoder::new(bytes)?.finish()
}
