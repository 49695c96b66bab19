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

use crate::delta::decode_page_frame_into;
use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageSize, Pgno};
use crate::replica::index_fetch::ReadError;
use crate::replica::names::{ObjectName, Replica};
use crate::replica::object_table::ObjectRef;
use crate::replica::read_ahead::Run;

/// How long a read of SQLite's waits for the bucket when nothing else is configured.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

/// So many bytes of pages are unpacked before they are stored: they are still in the processor's cache then.
const AT_A_TIME: usize = 256 * 1024;

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

/// Pages in ascending order, whose bytes lie side by side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unpacked {
    page_bytes: usize,
    pgnos: Vec<Pgno>,
    bytes: Vec<u8>,
}

impl Unpacked {
    /// These pages, of zeros.
    pub(crate) fn zeros(page_size: PageSize, pgnos: impl IntoIterator<Item = Pgno>) -> Unpacked {
        let mut pages = Unpacked { page_bytes: page_size.bytes() as usize, pgnos: Vec::new(), bytes: Vec::new() };
        pgnos.into_iter().for_each(|pgno| _ = pages.push(pgno));
        pages
    }

    /// These pages, but for what is not one page long.
    pub(crate) fn of(page_size: PageSize, mut from: Vec<(Pgno, Vec<u8>)>) -> Unpacked {
        from.sort_by_key(|(pgno, _)| *pgno);
        let mut pages = Unpacked::zeros(page_size, []);
        from.retain(|(_, page)| page.len() == pages.page_bytes);
        from.iter().for_each(|(pgno, page)| pages.push(*pgno).copy_from_slice(page));
        pages
    }

    /// Which pages.
    pub(crate) fn pgnos(&self) -> &[Pgno] {
        &self.pgnos
    }

    /// The bytes of the pages at these places.
    pub(crate) fn bytes(&self, places: Range<usize>) -> &[u8] {
        &self.bytes[places.start * self.page_bytes..places.end * self.page_bytes]
    }

    /// One more page, of zeros, to be written over.
    fn push(&mut self, pgno: Pgno) -> &mut [u8] {
        self.pgnos.push(pgno);
        let start = self.bytes.len();
        self.bytes.resize(start + self.page_bytes, 0);
        &mut self.bytes[start..]
    }

    fn pop(&mut self) {
        self.pgnos.pop();
        self.bytes.truncate(self.pgnos.len() * self.page_bytes);
    }

    fn clear(&mut self) {
        self.pgnos.clear();
        self.bytes.clear();
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

    /// Gets the pages of a run, waits for them and hands them to `store`. Of the outcome see [`PageSource::unpack`].
    pub(crate) fn pages(
        &self,
        run: &Run,
        page_size: PageSize,
        store: impl FnMut(&Unpacked) -> Result<()>,
    ) -> Result<(), ReadError> {
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
        self.unpack(run, &bytes, page_size, store)
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

    /// Unpacks the pages of a run from its bytes, in its order, and hands them to `store`, some at a time. The first one is the one
    /// that is needed: an error of its bytes is an error; another one that is damaged is left out, with all that are behind it, and is
    /// reported when it is read itself.
    pub(crate) fn unpack(
        &self,
        run: &Run,
        bytes: &[u8],
        page_size: PageSize,
        mut store: impl FnMut(&Unpacked) -> Result<()>,
    ) -> Result<(), ReadError> {
        let (start, end) = match (&run.object, run.pages.first()) {
            (Some(object), Some(first)) => (first.1.offset, span(run, object).end),
            _ => {
                let zeros = Unpacked::zeros(page_size, run.pages.iter().map(|(pgno, _)| *pgno));
                return store(&zeros).map_err(ReadError::Other);
            }
        };
        let mut unpacked = Unpacked::zeros(page_size, []);
        for (at, &(pgno, place)) in run.pages.iter().enumerate() {
            let until = run.pages.get(at + 1).map_or(end, |next| next.1.offset);
            let frame = bytes.get((place.offset - start) as usize..bytes.len().min((until - start) as usize));
            match unpack_page(pgno, frame.unwrap_or_default(), unpacked.push(pgno)) {
                Ok(()) => {}
                Err(why) if at == 0 => {
                    let name = run.object.as_ref().map(|object| object.name.to_string()).unwrap_or_default();
                    let what = format!("{name} in {}: page {pgno} at byte {}", self.replica.place(), place.offset);
                    return Err(ReadError::Other(why.context(what)));
                }
                Err(_) => {
                    unpacked.pop();
                    break;
                }
            }
            if unpacked.bytes.len() >= AT_A_TIME {
                store(&unpacked).map_err(ReadError::Other)?;
                unpacked.clear();
            }
        }
        store(&unpacked).map_err(ReadError::Other)
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
fn unpack_page(pgno: Pgno, bytes: &[u8], page: &mut [u8]) -> Result<()> {
    let cut = |len: usize| bytes.get(..len).unwrap_or(bytes);
    let found = decode_page_frame_into(frame_len(bytes).map_or(bytes, cut), page)?;
    if found != pgno {
        return Err(Error::new(ErrorKind::Corrupt, format!("page number: {found}, not {pgno}")));
    }
    Ok(())
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
