//! The content of a long object: the first bytes of a local file that nobody changes any more, read piece by piece as they are
//! sent. However long it is, an upload keeps a few pieces in memory.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// What is read and sent at a time, in bytes.
const PIECE: u64 = 512 * 1024;

/// Content that lies in a file. Clones are the same file.
#[derive(Clone, Debug)]
pub struct FileBody {
    file: Arc<File>,
    size: u64,
    crc32c: u32,
}

impl FileBody {
    /// The first `size` bytes of a file; they are read once for their checksum.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter.
    pub fn new(file: File, size: u64) -> io::Result<FileBody> {
        let body = FileBody { file: Arc::new(file), size, crc32c: 0 };
        let (mut crc32c, mut at) = (0, 0);
        while at < size {
            let piece = body.piece(at)?;
            crc32c = crc32c::crc32c_append(crc32c, &piece);
            at += piece.len() as u64;
        }
        Ok(FileBody { crc32c, ..body })
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// CRC-32C of all of it.
    pub fn crc32c(&self) -> u32 {
        self.crc32c
    }

    /// The bytes from an offset on, as many as are sent at a time; none at the end.
    ///
    /// # Errors
    /// The file cannot be read, or became shorter.
    pub fn piece(&self, offset: u64) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed(self.size.saturating_sub(offset).min(PIECE) as usize);
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.freeze())
    }

    /// The bytes of a range that lies within it.
    ///
    /// # Errors
    /// As [`FileBody::piece`].
    pub fn range(&self, range: Range<u64>) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed((range.end - range.start) as usize);
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.freeze())
    }

    /// All of it in memory.
    ///
    /// # Errors
    /// As [`FileBody::piece`].
    pub fn read_all(&self) -> io::Result<Bytes> {
        self.range(0..self.size)
    }

    /// Reads it from its beginning to its end.
    pub fn reader(&self) -> impl Read {
        io::BufReader::with_capacity(PIECE as usize, Reader { body: self.clone(), at: 0 })
    }
}

struct Reader {
    body: FileBody,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = (self.body.size - self.at).min(buf.len() as u64) as usize;
        self.body.file.read_exact_at(&mut buf[..wanted], self.at)?;
        self.at += wanted as u64;
        Ok(wanted)
    }
}
