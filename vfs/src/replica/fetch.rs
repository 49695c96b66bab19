//! Gets the pages of a run: from the outbox where their object has not been uploaded yet, else by one ranged read of the
//! bucket that has to meet the generation that was listed.
//!
//! Called from SQLite's threads: it waits there, with a deadline, for work that runs on the runtime of the process.
//! Where the pages go, and that no page is asked for twice, is the cache's business.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::delta::decode_page_frame;
use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageSize, Pgno};
use crate::replica::index_fetch::ReadError;
use crate::replica::names::{ObjectName, Replica};
use crate::replica::object_table::ObjectRef;
use crate::replica::page_map::Location;
use crate::replica::read_ahead::Run;

/// How long a read of SQLite's waits for the bucket when nothing else is configured.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

/// The bytes of an object on the local disk.
pub trait ReadAt: Send {
    /// Reads from an offset of the object, as [`std::os::unix::fs::FileExt::read_at`] does.
    ///
    /// # Errors
    /// The disk's.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}

/// The objects that are (also) on the local disk: the frozen deltas of the outbox.
pub trait LocalObjects: Send + Sync {
    /// Opens an object, if it is there; its bytes are those that are or will be in the bucket.
    fn open(&self, name: &ObjectName) -> Option<Box<dyn ReadAt>>;
}

/// No local objects at all.
#[derive(Clone, Copy, Debug)]
pub struct NoLocalObjects;

impl LocalObjects for NoLocalObjects {
    fn open(&self, _: &ObjectName) -> Option<Box<dyn ReadAt>> {
        None
    }
}

/// Where pages come from.
#[derive(Clone)]
pub struct PageSource {
    replica: Replica,
    local: Arc<dyn LocalObjects>,
    limit: Duration,
}

impl std::fmt::Debug for PageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageSource").field("replica", &self.replica).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl PageSource {
    /// Reads from a replica, and from local objects before it; each wait ends after `limit`.
    pub fn new(replica: Replica, local: Arc<dyn LocalObjects>, limit: Duration) -> PageSource {
        PageSource { replica, local, limit }
    }

    /// The replica.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// How long one wait may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Gets the pages of a run and waits for them. Of the outcome see [`PageSource::unpack`].
    pub(crate) fn pages(&self, run: &Run, page_size: PageSize) -> Result<Vec<(Pgno, Vec<u8>)>, ReadError> {
        let (source, wanted) = (self.clone(), run.clone());
        let what = || match &run.object {
            Some(object) => {
                let Range { start, end } = span(run, object);
                format!("reading bytes {start}..{end} of {} in {}", object.name, self.replica.place())
            }
            None => "a page of zeros".to_owned(),
        };
        let bytes = match self.local_bytes(run) {
            Some(bytes) => bytes?,
            None => crate::runtime::wait(&what(), self.limit, async move { source.bytes(&wanted).await })
                .map_err(ReadError::Other)??,
        };
        self.unpack(run, &bytes, page_size)
    }

    /// The bytes of a run where its object is on the local disk, or where no object has it.
    pub(crate) fn local_bytes(&self, run: &Run) -> Option<Result<Bytes, ReadError>> {
        let Some(object) = &run.object else { return Some(Ok(Bytes::new())) };
        let local = self.local.open(&object.name)?;
        Some(read_local(&*local, &object.name, span(run, object)).map_err(ReadError::Other))
    }

    /// The bytes of a run, from the bucket.
    pub(crate) async fn bytes(&self, run: &Run) -> Result<Bytes, ReadError> {
        let Some(object) = &run.object else { return Ok(Bytes::new()) };
        let name = object.name;
        let Some(generation) = object.generation else {
            let why = format!("{name}: not uploaded yet as far as is known, and not in the outbox");
            return Err(ReadError::Stale(Error::new(ErrorKind::Corrupt, why)));
        };
        Ok(self.replica.read(&name, generation, Some(span(run, object))).await?.bytes)
    }

    /// Unpacks the pages of a run from its bytes, in its order. The first one is the one that is needed: an error of its bytes is
    /// an error; another one that is damaged is left out, with all that are behind it, and is reported when it is read itself.
    pub(crate) fn unpack(
        &self,
        run: &Run,
        bytes: &[u8],
        page_size: PageSize,
    ) -> Result<Vec<(Pgno, Vec<u8>)>, ReadError> {
        let (Some(object), Some(first)) = (&run.object, run.pages.first()) else {
            let zeros = |&(pgno, _): &(Pgno, Location)| (pgno, vec![0; page_size.bytes() as usize]);
            return Ok(run.pages.iter().map(zeros).collect());
        };
        let (start, end) = (first.1.offset, span(run, object).end);
        let mut pages = Vec::with_capacity(run.pages.len());
        for (at, &(pgno, place)) in run.pages.iter().enumerate() {
            let until = run.pages.get(at + 1).map_or(end, |next| next.1.offset);
            let frame = bytes.get((place.offset - start) as usize..bytes.len().min((until - start) as usize));
            match page(pgno, frame.unwrap_or_default(), page_size) {
                Ok(page) => pages.push((pgno, page)),
                Err(why) if at == 0 => {
                    let what =
                        format!("{} in {}: page {pgno} at byte {}", object.name, self.replica.place(), place.offset);
                    return Err(ReadError::Other(why.context(what)));
                }
                Err(_) => break,
            }
        }
        Ok(pages)
    }
}

/// The bytes of its object that a run needs. The last length is rounded up: beyond the object's end there is nothing to ask for.
fn span(run: &Run, object: &ObjectRef) -> Range<u64> {
    let start = run.pages.first().map_or(0, |first| first.1.offset);
    let end = run.pages.last().map_or(0, |last| last.1.offset + u64::from(last.1.len));
    start..end.min(object.size)
}

fn read_local(local: &dyn ReadAt, name: &ObjectName, range: Range<u64>) -> Result<Bytes> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let mut done = 0;
    while done < bytes.len() {
        match local.read_at(range.start + done as u64, &mut bytes[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::local(format!("reading {name} in the outbox"), &e)),
        }
    }
    bytes.truncate(done);
    Ok(bytes.into())
}

/// Unpacks the frame at the beginning of `bytes`, which has to be this page's.
fn page(pgno: Pgno, bytes: &[u8], page_size: PageSize) -> Result<Vec<u8>> {
    let cut = |len: usize| bytes.get(..len).unwrap_or(bytes);
    let (found, page) = decode_page_frame(frame_len(bytes).map_or(bytes, cut), page_size)?;
    if found != pgno {
        return Err(Error::new(ErrorKind::Corrupt, format!("page number: {found}, not {pgno}")));
    }
    Ok(page)
}

/// The length of the frame at the beginning of `bytes`; `None` where they end before that can be told. (Places are kept
/// with rounded lengths, and the decoder wants exactly one frame.)
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let four_at = |at: usize| bytes.get(at..)?.first_chunk::<4>();
    if bytes.get(4..6)? != [0, 0] {
        return Some(10 + u32::from_be_bytes(*four_at(6)?) as usize);
    }
    // The older form: an LZ4 frame, whose end is found by going through its blocks.
    const HEAD: usize = 6;
    let flags = *bytes.get(HEAD + 4)?;
    let has = |bit: u8| usize::from(flags >> bit & 1);
    // Magic, flags, block sizes, [content size], [dictionary], header checksum.
    let mut at = HEAD + 6 + 8 * has(3) + 4 * has(0) + 1;
    loop {
        let block = u32::from_le_bytes(*four_at(at)?) as usize;
        at += 4;
        if block == 0 {
            return Some(at + 4 * has(2));
        }
        at = at.checked_add((block & 0x7fff_ffff) + 4 * has(4))?;
    }
}

#[cfg(test)]
#[path = "fetch/tests.rs"]
mod tests;
