//! Makes one merge: several objects of the log into one of a higher level, or into a snapshot.
//!
//! - **Ordering.** The result is written to a local file, read back and verified to its end, and only then put under its name,
//!   if that is absent. Nothing is deleted here.
//! - **Retries.** A PUT whose outcome is unknown is repeated with the same bytes. A name that is taken is accepted where the
//!   object there holds the same pages: then somebody has made this merge before, and its answer was lost.
//! - **Stop.** Before the PUT the caller's right is asked for. A merge that is put without the right does no harm: it is a true
//!   copy of what it covers.
//! - **Crash.** Before the PUT: nothing is left, not even the file. After it: one more object, which the next listing shows.
//!
//! Memory: the ranges of the inputs (16 MB in all), a page of each, and about 10 bytes for each page of an input as it is
//! read and of the result. The PUT reads the file as it is sent.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::delta::{Decoder, Header, merge};
use crate::error::{Error, ErrorKind, Result};
use crate::history::listing::{Row, metadata};
use crate::history::policy::Merge;
use crate::history::source::Reads;
use crate::local::spool::Spool;
use crate::page::Pgno;
use crate::replica::fetch::LocalObjects;
use crate::replica::names::Replica;
use crate::runtime;
use crate::store::{Condition, FileBody, Meta, StoreError};

/// How often a PUT of unknown outcome is repeated before the merge is left for later.
const ATTEMPTS: u32 = 3;
/// How long a PUT may take beside the time for its bytes, and how slow those may be; the store's own limits are tighter.
const PUT_WAIT: Duration = Duration::from_secs(120);
const SLOWEST_BYTES_PER_SECOND: u64 = 128 << 10;

/// Where merges are made.
pub(super) struct Compactor<'a> {
    pub(super) replica: &'a Replica,
    /// A folder for the file of the result.
    pub(super) scratch: &'a Path,
    pub(super) local: &'a Arc<dyn LocalObjects>,
}

impl Compactor<'_> {
    /// Makes a merge and puts it; `None` if the right was lost before.
    pub(super) fn make(&self, job: &Merge, right: &dyn Fn() -> bool) -> Result<Option<Row>> {
        let name = job.name();
        let what = |e: Error| e.context(format!("merging into {name} in {}", self.replica.place()));
        let merged = self.merge(job, right);
        if !right() {
            return Ok(None);
        }
        let (body, timestamp_ms) = merged.map_err(what)?;
        let row = Row {
            name,
            meta: Meta { generation: crate::store::Generation(0), size: body.size(), created: None, crc32c: None },
            timestamp_ms,
        };
        let meta = match self.put(&row, &body).map_err(what)? {
            Some(meta) => meta,
            None => self.accept(&row, &body).map_err(what)?,
        };
        if meta.size != row.meta.size || meta.crc32c.is_some_and(|stored| stored != body.crc32c()) {
            let why = format!("the bucket says it holds {} bytes, crc32c {:?}", meta.size, meta.crc32c);
            return Err(what(Error::new(ErrorKind::Corrupt, why)));
        }
        Ok(Some(Row { meta, ..row }))
    }

    /// The verified bytes of the result, and the time of its newest transaction.
    fn merge(&self, job: &Merge, right: &dyn Fn() -> bool) -> Result<(FileBody, i64)> {
        let newest = job.inputs.last().ok_or_else(|| Error::new(ErrorKind::Corrupt, "there is nothing to merge"))?;
        let reads = Reads::new(self.replica, self.local, job.inputs.len());
        let inputs = reads.decoders(&job.inputs)?;
        let name = job.name();
        let last = inputs.last().map(|input| *input.header());
        let last = last.ok_or_else(|| Error::new(ErrorKind::Corrupt, "there is nothing to merge"))?;
        let header = Header::compacted(last.page_size, last.commit, name.min, name.max, last.timestamp_ms);
        let spool = Spool::new(self.scratch)?;
        let out = BufWriter::with_capacity(1 << 20, WhileRight { out: spool.writer()?, right });
        drop(merge(inputs, out, header).map_err(|e| reads.error(e.into()))?);
        let body = spool.body()?;
        let written = Decoder::new(body.reader()).and_then(Decoder::finish);
        let written = written.map_err(|e| Error::from(e).context("reading the result back"))?;
        if written != header {
            return Err(Error::new(ErrorKind::Corrupt, "reading the result back: another header than was written"));
        }
        Ok((body, newest.timestamp_ms))
    }

    /// Puts an object if its name is absent; `None` if it is not.
    fn put(&self, row: &Row, body: &FileBody) -> Result<Option<Meta>> {
        let full = self.replica.ltx(&row.name);
        let limit = PUT_WAIT + Duration::from_secs(row.meta.size / SLOWEST_BYTES_PER_SECOND);
        let mut attempt = 1;
        loop {
            let (store, full, body) = (self.replica.store().clone(), full.clone(), body.clone());
            let metadata = metadata(row.timestamp_ms);
            let put = async move { store.put_file(&full, &body, &metadata, Condition::Absent).await };
            match runtime::wait("sending it", limit, put)? {
                Ok(meta) => return Ok(Some(meta)),
                Err(StoreError::Precondition(_)) => return Ok(None),
                Err(StoreError::Unknown { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Looks whether the object that has the name holds the same pages as ours.
    fn accept(&self, row: &Row, body: &FileBody) -> Result<Meta> {
        let (store, full) = (self.replica.store().clone(), self.replica.ltx(&row.name));
        let get = async move { store.get(&full, Some(0..1)).await };
        let meta = runtime::wait("looking at what has the name", PUT_WAIT, get)??.meta;
        if meta.size == row.meta.size && meta.crc32c == Some(body.crc32c()) {
            return Ok(meta);
        }
        let reads = Reads::new(self.replica, self.local, 1);
        let there = Row { meta: meta.clone(), ..row.clone() };
        let mut theirs = reads.decoders(&[there])?;
        let mut ours = Decoder::new(body.reader())?;
        let differs = |what: String| Error::new(ErrorKind::Corrupt, format!("the object there differs: {what}"));
        let Some(mut theirs) = theirs.pop() else { return Err(differs("no object".to_owned())) };
        let (here, header) = (ours.header(), theirs.header());
        if (here.page_size, here.commit) != (header.page_size, header.commit) {
            return Err(differs(format!("{} pages of {} bytes", header.commit.0, header.page_size)));
        }
        let (mut mine, mut other) = (Vec::new(), Vec::new());
        loop {
            let page: Option<Pgno> = ours.next_page(&mut mine)?;
            let found = theirs.next_page(&mut other).map_err(|e| reads.error(e.into()))?;
            if page != found || (page.is_some() && mine != other) {
                return Err(differs(format!("page {page:?} against {found:?}")));
            }
            if page.is_none() {
                break;
            }
        }
        theirs.finish().map_err(|e| reads.error(e.into()))?;
        // The bytes may differ where the pages do not, so it stands for itself.
        Ok(Meta { size: row.meta.size, crc32c: None, ..meta })
    }
}

/// A file that takes what is written as long as the right lasts.
struct WhileRight<'a> {
    out: std::fs::File,
    right: &'a dyn Fn() -> bool,
}

impl Write for WhileRight<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.right)() { self.out.write(bytes) } else { Err(io::Error::other("the right to write is gone")) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
