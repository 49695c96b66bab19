//! Walking the frames of a WAL, or of a saved piece of one, with every checksum verified.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::wal::{Checksum, FRAME_HEADER, FrameHeader, WalHeader};
use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageCount, Pgno};

/// How much is read at once, in bytes, before it is cut to whole frames.
const CHUNK_BYTES: usize = 1 << 20;

/// A run of frames in a file.
pub(crate) struct Frames<'a> {
    /// The file, and what to call it in an error.
    pub(crate) file: &'a File,
    pub(crate) name: &'a str,
    /// The WAL that the frames belong to.
    pub(crate) wal: WalHeader,
    /// Where the first frame begins in the file, in bytes.
    pub(crate) offset: u64,
    /// How many frames to walk.
    pub(crate) count: u32,
    /// Running checksum before the first one.
    pub(crate) seed: Checksum,
    /// A header among them that is not in the file yet.
    pub(crate) held: Option<HeldHeader>,
}

/// A frame's header that is not in the file yet; zeros stand in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HeldHeader {
    /// Where it belongs, in bytes.
    pub(crate) offset: u64,
    /// What belongs there.
    pub(crate) bytes: [u8; FRAME_HEADER],
}

impl HeldHeader {
    /// Puts the header into bytes that were read at `offset`, as far as they cover it.
    pub(crate) fn patch(&self, offset: u64, bytes: &mut [u8]) {
        for (i, byte) in (self.offset..).zip(self.bytes) {
            if let Some(at) = i.checked_sub(offset)
                && let Some(place) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at))
            {
                *place = byte;
            }
        }
    }
}

/// What a walk ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Walked {
    /// Running checksum of the last frame.
    pub(crate) checksum: Checksum,
    /// Size of the database after the last commit among the frames; `None` if they hold no commit.
    pub(crate) pages: Option<PageCount>,
}

impl Frames<'_> {
    /// Size of one frame in bytes.
    pub(crate) fn frame_bytes(&self) -> usize {
        FRAME_HEADER + self.wal.page_size.bytes() as usize
    }

    /// Visits the frames in order, each with the file offset of its page's bytes.
    ///
    /// # Errors
    /// Corrupt, naming the frame, when one does not continue the checksum; Local when the file cannot be read.
    pub(crate) fn walk(&self, mut frame: impl FnMut(Pgno, u64)) -> Result<Walked> {
        let size = self.frame_bytes();
        let per_chunk = (CHUNK_BYTES / size).max(1);
        let mut buffer = vec![0; size * per_chunk.min(self.count as usize)];
        let mut walked = Walked { checksum: self.seed, pages: None };
        let mut done = 0;
        while done < self.count {
            let now = per_chunk.min((self.count - done) as usize);
            let bytes = &mut buffer[..now * size];
            let offset = self.offset + u64::from(done) * size as u64;
            self.file
                .read_exact_at(bytes, offset)
                .map_err(|e| Error::local(format_args!("reading frames of {} at byte {offset}", self.name), &e))?;
            if let Some(held) = &self.held {
                held.patch(offset, bytes);
            }
            for (i, raw) in bytes.chunks_exact(size).enumerate() {
                let header = FrameHeader::verify(raw, &self.wal, &mut walked.checksum).ok_or_else(|| {
                    let at = offset + (i * size) as u64;
                    Error::new(
                        ErrorKind::Corrupt,
                        format!("{}: the frame at byte {at} does not continue the checksum", self.name),
                    )
                })?;
                if header.commit.is_some() {
                    walked.pages = header.commit;
                }
                frame(header.pgno, offset + (i * size + FRAME_HEADER) as u64);
            }
            done += now as u32;
        }
        Ok(walked)
    }
}
