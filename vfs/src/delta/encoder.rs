//! Writes a delta, page by page, front to back.

use std::io::Write;

use crate::page::Pgno;

use super::checksum::FileChecksum;
use super::error::EncodeError;
use super::frame::{END_OF_PAGES, FrameWriter};
use super::header::Header;
use super::index::IndexBytes;
use super::order::PageOrder;

/// Writes one delta to `W`.
///
/// It writes a frame at a time, so a file wants a `BufWriter`. What has been written before
/// [`Encoder::finish`] returned is not a delta, and a reader will refuse it.
///
/// ```
/// use sqlite_gcs::delta::{Encoder, Header, verify};
/// use sqlite_gcs::{PageCount, PageSize, Pgno, TxId};
///
/// let header = Header::level_0(PageSize::DEFAULT, PageCount(1), TxId(1), 0);
/// let mut encoder = Encoder::new(Vec::new(), header)?;
/// encoder.page(Pgno(1), &[0; 4096])?;
/// let (bytes, size) = encoder.finish()?;
/// assert_eq!(size, bytes.len() as u64);
/// assert_eq!(verify(&bytes)?, header);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Encoder<W> {
    writer: W,
    page_size: u32,
    order: PageOrder,
    frames: FrameWriter,
    checksum: FileChecksum,
    index: IndexBytes,
    written: u64,
}

impl<W: Write> Encoder<W> {
    /// Begins a delta by writing its header.
    ///
    /// # Errors
    /// A field of the header breaks a rule of the format, or the writer failed.
    pub fn new(writer: W, header: Header) -> Result<Encoder<W>, EncodeError> {
        header.check().map_err(EncodeError::from_rule)?;
        if header.commit.0 == 0 {
            return Err(EncodeError::refused("commit", "0; a database has at least one page"));
        }
        let mut encoder = Encoder {
            writer,
            page_size: header.page_size.bytes(),
            order: PageOrder::new(&header),
            frames: FrameWriter::new(header.page_size),
            checksum: FileChecksum::new(),
            index: IndexBytes::default(),
            written: 0,
        };
        encoder.write_covered(&header.encode())?;
        Ok(encoder)
    }

    /// Adds a page. Pages come in ascending order; a snapshot gets every page but the lock page.
    ///
    /// # Errors
    /// The page may not come here, or is not of the page size: nothing was written then and another page may be
    /// added. Or the writer failed: the encoder is of no more use.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) -> Result<(), EncodeError> {
        if page.len() != self.page_size as usize {
            let why = format!("page {pgno} has {} bytes instead of {}", page.len(), self.page_size);
            return Err(EncodeError::refused("page", why));
        }
        self.order.accept(pgno).map_err(|why| EncodeError::refused("page number", why))?;
        let frame = self.frames.pack(pgno, page)?;
        self.writer.write_all(frame)?;
        self.checksum.update(&frame[..FrameWriter::HEAD_LEN]);
        self.checksum.update(page);
        self.index.push(pgno, self.written, frame.len() as u64);
        self.written += frame.len() as u64;
        Ok(())
    }

    /// Writes the index and the trailer, and flushes. Returns the writer and the size of the delta in bytes.
    ///
    /// # Errors
    /// A snapshot lacks a page, or the writer failed.
    pub fn finish(mut self) -> Result<(W, u64), EncodeError> {
        self.order.complete().map_err(|why| EncodeError::refused("pages", why))?;
        self.write_covered(&END_OF_PAGES)?;
        let index = std::mem::take(&mut self.index).finish();
        self.write_covered(&index)?;
        let no_database_checksum = 0u64.to_be_bytes();
        self.write_covered(&no_database_checksum)?;
        self.writer.write_all(&self.checksum.finish().to_be_bytes())?;
        self.writer.flush()?;
        Ok((self.writer, self.written + 8))
    }

    /// Writes bytes that the checksum covers as they are.
    fn write_covered(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.writer.write_all(bytes)?;
        self.checksum.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }
}
