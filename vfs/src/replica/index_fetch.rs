//! Reads what the objects of a chain say of themselves: headers and page indexes, many at a time.
//!
//! A small object comes whole in one request. Of a larger one the header and the end are asked for at once; an index that
//! is longer than the guess takes one more request. So a chain costs two round trips at most, whatever its length divided
//! by [`PARALLEL`].
//!
//! Checked here: the header's transactions are those of the name; all page sizes agree; the answer is of the generation
//! that was listed; a snapshot holds every page; no page lies beyond the size that the header states. Not checked: the
//! file's checksum, which needs every page of the object.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::delta::{DecodeError, Header, IndexEntry, PageIndex, TAIL_MIN, tail_layout};
use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageCount, PageSize, TxId};
use crate::replica::chain::Chain;
use crate::replica::names::{Listed, ObjectName, Replica};
use crate::store::{Generation, Object, StoreError};

/// How many objects are asked for at a time: more than there are deltas between two hot indexes.
pub const PARALLEL: usize = 128;
/// An object up to this size is read whole, in bytes.
pub(crate) const WHOLE: u64 = 64 * 1024;
/// So many bytes of whole objects are handed on; of more only the indexes.
const HANDED_ON: u64 = 8 << 20;
/// An index takes 6 to 13 bytes per page, which compressed takes a kilobyte or two; this share of the object is
/// nearly always enough, and [`WHOLE`] is the least that is asked for.
const TAIL_SHARE: u64 = 100;

/// What an object says of itself: which pages it has, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectIndex {
    /// Its name.
    pub name: ObjectName,
    /// Its generation in the bucket; `None` while it is in the outbox only.
    pub generation: Option<Generation>,
    /// Its size in bytes.
    pub size: u64,
    /// The size of the pages.
    pub page_size: PageSize,
    /// The size of the database after it.
    pub commit: PageCount,
    /// The pages, in ascending order.
    pub pages: Vec<IndexEntry>,
}

impl ObjectIndex {
    /// What a whole object in memory or its header and its end say; `end` is the last bytes of a file of `size` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], naming the object and the field.
    pub fn decode(
        name: ObjectName,
        generation: Option<Generation>,
        size: u64,
        start: &[u8],
        end: &[u8],
    ) -> Result<ObjectIndex> {
        let bad = |e: DecodeError| Error::from(e).context(name);
        let header = Header::decode(start).map_err(bad)?;
        let pages = PageIndex::decode(end, size).map_err(bad)?.into_entries();
        let index = ObjectIndex { name, generation, size, page_size: header.page_size, commit: header.commit, pages };
        index.check(&header)?;
        Ok(index)
    }

    fn check(&self, header: &Header) -> Result<()> {
        let wrong = |field: &str, why: String| Error::new(ErrorKind::Corrupt, format!("{}: {field}: {why}", self.name));
        if header.min != self.name.min {
            return Err(wrong("first transaction", format!("{} does not agree with the name", header.min)));
        }
        if header.max != self.name.max {
            return Err(wrong("last transaction", format!("{} does not agree with the name", header.max)));
        }
        let lock_page = self.page_size.lock_page();
        if let Some(last) = self.pages.last()
            && !self.commit.contains(last.pgno)
        {
            return Err(wrong("index page number", format!("page {} of a database of {}", last.pgno, self.commit.0)));
        }
        let has_lock_page = self.pages.binary_search_by_key(&lock_page, |page| page.pgno).is_ok();
        if has_lock_page {
            return Err(wrong("index page number", format!("page {lock_page} is the lock page")));
        }
        let all = self.commit.0 - u32::from(self.commit.contains(lock_page));
        if header.is_snapshot() && self.pages.len() as u64 != u64::from(all) {
            return Err(wrong("index", format!("{} pages in a snapshot of {all}", self.pages.len())));
        }
        Ok(())
    }
}

/// Whole objects up to [`WHOLE`] bytes, with their generations.
pub(crate) type Short = std::collections::HashMap<ObjectName, (Generation, Bytes)>;

/// The header of an object of which ranges can be read, and its end with the page index.
pub(crate) fn ends(size: u64, read: impl Fn(Range<u64>) -> io::Result<Bytes>) -> Result<(Bytes, Bytes)> {
    let read = |range| read(range).map_err(|e| Error::local("reading an object's index", &e));
    let last = read(size.saturating_sub(TAIL_MIN as u64)..size)?;
    let tail = tail_layout(&last, size)?;
    Ok((read(0..Header::LEN as u64)?, read(size - tail..size)?))
}

/// Why an object could not be read where the chain said it is.
#[derive(Clone, Debug)]
pub(crate) enum ReadError {
    /// It is gone, or another one has its name: the chain has to be planned again, to the same transaction.
    Moved(Error),
    /// The place was looked up before something changed: look it up again.
    Stale(Error),
    /// Anything else.
    Other(Error),
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Error {
        match error {
            ReadError::Moved(error) | ReadError::Stale(error) | ReadError::Other(error) => error,
        }
    }
}

impl Replica {
    /// Reads a range of an object (or all of it) that has to be of this generation.
    pub(crate) async fn read(
        &self,
        name: &ObjectName,
        generation: Generation,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<Object, ReadError> {
        let what = match &range {
            Some(range) => format!("reading bytes {}..{} of {name} in {}", range.start, range.end, self.place()),
            None => format!("reading {name} in {}", self.place()),
        };
        let object = match self.store().get(&self.ltx(name), range).await {
            Ok(object) => object,
            Err(error @ StoreError::NotFound(_)) => return Err(ReadError::Moved(Error::from(error).context(what))),
            Err(error) => return Err(ReadError::Other(Error::from(error).context(what))),
        };
        if object.meta.generation != generation {
            let found = object.meta.generation.0;
            let why = format!("{what}: changed under us: generation {found}, not {}", generation.0);
            return Err(ReadError::Moved(Error::new(ErrorKind::Corrupt, why)));
        }
        Ok(object)
    }

    /// Reads the indexes of a chain's objects, oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], naming the object and the field; the store's. The caller may plan anew and try again
    /// where an object is gone or has changed.
    pub async fn indexes(&self, chain: &Chain) -> Result<Vec<ObjectIndex>> {
        Ok(self.indexes_and_short(chain, &Short::new()).await?.into_iter().map(|(index, _)| index).collect())
    }

    /// The same, each with all of its object where that is short, and all the short ones together are not long. Those in `known` are
    /// not asked for.
    pub(crate) async fn indexes_and_short(
        &self,
        chain: &Chain,
        known: &Short,
    ) -> Result<Vec<(ObjectIndex, Option<Bytes>)>> {
        // Collected first: a stream over a closure that borrows would not be Send in every caller's eyes.
        let sizes = chain.objects.iter().map(|object| object.meta.size);
        let hands_on = sizes.filter(|size| *size <= WHOLE).sum::<u64>() <= HANDED_ON;
        let job = |object| async move {
            let (index, whole) = self.index_and_short(object, known).await?;
            Ok::<_, Error>((index, whole.filter(|_| hands_on)))
        };
        let jobs: Vec<_> = chain.objects.iter().map(job).collect();
        let indexes: Vec<(ObjectIndex, Option<Bytes>)> = stream::iter(jobs).buffered(PARALLEL).try_collect().await?;
        if let Some((newest, _)) = indexes.last()
            && let Some((odd, _)) = indexes.iter().find(|(index, _)| index.page_size != newest.page_size)
        {
            let why = format!(
                "{}: page size: {} bytes, but {} has {}",
                odd.name, odd.page_size, newest.name, newest.page_size
            );
            return Err(Error::new(ErrorKind::Corrupt, why));
        }
        Ok(indexes)
    }

    /// Reads one object's index.
    ///
    /// # Errors
    /// As [`Replica::indexes`].
    pub async fn index(&self, listed: &Listed) -> Result<ObjectIndex> {
        Ok(self.index_and_short(listed, &Short::new()).await?.0)
    }

    async fn index_and_short(&self, listed: &Listed, known: &Short) -> Result<(ObjectIndex, Option<Bytes>)> {
        let Listed { name, meta } = listed;
        let (generation, size) = (meta.generation, meta.size);
        if size <= WHOLE {
            let whole = match known.get(name) {
                Some((known, bytes)) if *known == generation => bytes.clone(),
                _ => self.read(name, generation, None).await?.bytes,
            };
            self.full(name, size, whole.len() as u64)?;
            let index = ObjectIndex::decode(*name, Some(generation), size, &whole, &whole)?;
            return Ok((index, Some(whole)));
        }
        let guess = WHOLE.max(size / TAIL_SHARE);
        let header = self.read(name, generation, Some(0..Header::LEN as u64));
        let end = self.read(name, generation, Some(size - guess..size));
        let (header, end) = futures::future::try_join(header, end).await?;
        let (header, mut end) = (header.bytes, end.bytes);
        self.full(name, guess, end.len() as u64)?;
        let needed = tail_layout(&end[end.len().saturating_sub(TAIL_MIN)..], size);
        let needed = needed.map_err(|e| Error::from(e).context(name))?;
        if needed > guess {
            let before = self.read(name, generation, Some(size - needed..size - guess)).await?.bytes;
            self.full(name, needed - guess, before.len() as u64)?;
            end = [before, end].concat().into();
        }
        Ok((ObjectIndex::decode(*name, Some(generation), size, &header, &end)?, None))
    }

    /// Reads the deltas after `txid`, so many at the most, by the names that they have if there are any: for one who knows that
    /// there may be some and has not seen a listing yet. Those that are not there, or not short, are left out.
    pub(crate) async fn short_after(&self, txid: TxId, count: u64) -> Short {
        let jobs: Vec<_> = (txid.0 + 1..=txid.0.saturating_add(count)).map(|next| self.short(TxId(next))).collect();
        futures::future::join_all(jobs).await.into_iter().flatten().collect()
    }

    async fn short(&self, txid: TxId) -> Option<(ObjectName, (Generation, Bytes))> {
        let name = ObjectName::delta(txid);
        let object = self.store().get(&self.ltx(&name), Some(0..WHOLE + 1)).await.ok()?;
        // Some stores do not tell the size with a range.
        let is_whole = object.bytes.len() as u64 <= WHOLE;
        is_whole.then_some((name, (object.meta.generation, object.bytes)))
    }

    /// A store may answer with less than was asked for only at the end of an object.
    fn full(&self, name: &ObjectName, asked: u64, got: u64) -> Result<()> {
        if asked == got {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, format!("{name}: size: {got} bytes came where {asked} should be")))
    }
}

#[cfg(test)]
#[path = "index_fetch/tests.rs"]
mod tests;
