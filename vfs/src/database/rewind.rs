//! `PRAGMA gcs_rewind`: a state of the past becomes the newest one, by one more commit. Nothing is erased: the states in between
//! stay what they are, and a later rewind may go back to them.
//!
//! 1. What is committed goes to the bucket, and the lease is taken, so the log's head is the local database.
//! 2. Every page that may differ between that state and the head is read as of that state into one delta in a local file: the pages
//!    that the objects after it hold, and what the database was cut off by meanwhile.
//! 3. The delta is appended to the WAL as a commit of this host's own (`apply/`), if nobody wrote since step 1. From there
//!    on it is a commit like any other; it is waited for until the bucket has it.
//!
//! The schema's number is one that no state had before, so that every connection reads the schema anew.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Database;
use super::past::Past;
use crate::apply::Outcome;
use crate::delta::{Decoder, EncodeError, Encoder, Header, decode_page_frame};
use crate::error::{Error, ErrorKind, Result};
use crate::history::listing::{self, Row};
use crate::history::points::{At, points};
use crate::local::shared::BootTime;
use crate::local::spool::Spool;
use crate::log;
use crate::page::{Pgno, TxId};
use crate::replica::chain;
use crate::replica::index_fetch::ObjectIndex;
use crate::runtime;
use crate::store::FileBody;
use crate::upload::{STORE_WAIT, now_ms};

/// How long somebody who writes is waited for.
const BUSY_WAIT: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// Where page 1 has the schema's number.
const SCHEMA_COOKIE: std::ops::Range<usize> = 40..44;

impl Database {
    /// Makes the state that `point` means the newest one, and waits until the bucket has it; returns its TXID. A connection of this
    /// process has to be reading the wal-index.
    ///
    /// # Errors
    /// Configuration: no such state. Busy: somebody writes, here or elsewhere. The bucket's and the disk's.
    pub(crate) fn rewind(&self, point: &str) -> Result<String> {
        self.check_process()?;
        self.check_role()?;
        let at = At::parse(point).map_err(|e| e.context("gcs_rewind"))?;
        let limit = self.commit_timeout();
        self.flush(limit)?;
        self.wait_to_begin()?;
        self.ensure_right()?;
        self.shared.note_lease_used(BootTime::now());
        let head = self.shared.durable();
        let rows = listing::list(&self.replica)?;
        let txid = at.resolve(&points(&rows), now_ms()).map_err(|e| e.context(self.replica.place()))?;
        if txid == head {
            return Ok(head.to_string());
        }
        let delta = self.way_back(&rows, txid, head)?;
        self.commit_delta(&delta, head)?;
        log::info!("{}: rewound to {txid}", self.replica.place());
        self.shared.note_commit(BootTime::now());
        self.flush(limit).map(|txid| txid.to_string())
    }

    /// The pages of `txid` where they may differ from those of `head`, as the delta after it.
    fn way_back(&self, rows: &[Row], txid: TxId, head: TxId) -> Result<FileBody> {
        let listed: Vec<_> = rows.iter().map(Row::listed).collect();
        let newer = chain::plan_onto(&listed, txid, head)?;
        let newer = self.read_indexes(chain::Chain { objects: newer })?;
        let past = Past::of_point(self.path(), &self.replica, rows, txid, &self.config)?;
        let pages = past.pages();
        // What was cut off meanwhile came back, if at all, with other pages.
        let kept = newer.iter().map(|object| object.commit).min().unwrap_or(pages);
        let held = newer.iter().flat_map(|object| &object.pages).map(|page| page.pgno);
        let mut changed: BTreeSet<Pgno> = held.filter(|pgno| pages.contains(*pgno)).collect();
        changed.extend((kept.0 + 1..=pages.0).map(Pgno));
        changed.insert(Pgno::ONE);
        changed.remove(&self.page_size.lock_page());

        let failed = |e: EncodeError| Error::from(e).context(format_args!("making the delta back to {txid}"));
        let spool = Spool::new(self.layout.dir())?;
        let out = std::io::BufWriter::with_capacity(1 << 20, spool.writer()?);
        let header = Header { node_id: self.nonce(), ..Header::level_0(self.page_size, pages, head.next(), now_ms()) };
        let mut encoder = Encoder::new(out, header).map_err(failed)?;
        let mut page = vec![0; self.page_size.bytes() as usize];
        for pgno in changed {
            past.read(&mut page, pgno.offset(self.page_size))?;
            if pgno == Pgno::ONE {
                crate::sqlite::header::unmask(&mut page, 0);
                let now = self.newest_first_page(&newer)?;
                let used = [&page, now.as_ref().unwrap_or(&page)].map(|page| cookie(page));
                page[SCHEMA_COOKIE].copy_from_slice(&used[0].max(used[1]).wrapping_add(1).to_be_bytes());
            }
            encoder.page(pgno, &page).map_err(failed)?;
        }
        drop(encoder.finish().map_err(failed)?);
        spool.body()
    }

    /// The first page as the newest of these objects that has it says; `None` where none has.
    fn newest_first_page(&self, newer: &[ObjectIndex]) -> Result<Option<Vec<u8>>> {
        for object in newer.iter().rev() {
            let Some(first) = object.pages.first().filter(|page| page.pgno == Pgno::ONE) else { continue };
            let Some(generation) = object.generation else { continue };
            let (replica, name) = (self.replica.clone(), object.name);
            let range = first.offset..first.offset + u64::from(first.len);
            let read = async move { replica.read(&name, generation, Some(range)).await };
            let bytes = runtime::wait("reading the first page", STORE_WAIT, read)?.map_err(Error::from)?.bytes;
            let (_, page) = decode_page_frame(&bytes, self.page_size).map_err(|e| Error::from(e).context(name))?;
            return Ok(Some(page));
        }
        Ok(None)
    }

    /// Commits a delta on top of `head`.
    fn commit_delta(&self, delta: &FileBody, head: TxId) -> Result<()> {
        let busy = || {
            let message = format!("{}: somebody writes; nothing was rewound", self.layout.main().display());
            Error::new(ErrorKind::Busy, message)
        };
        let Some(index) = self.wal_index() else { return Err(busy()) };
        let begun = Instant::now();
        loop {
            if !self.has_right() || self.shared.durable() != head {
                return Err(busy());
            }
            match self.applier(&*index).commit(Decoder::new(delta.reader())?)? {
                Outcome::Applied(_) => return Ok(()),
                Outcome::Busy if begun.elapsed() < BUSY_WAIT => std::thread::sleep(BUSY_PAUSE),
                Outcome::Busy | Outcome::Conflict | Outcome::Known => return Err(busy()),
            }
        }
    }
}

fn cookie(page: &[u8]) -> u32 {
    let bytes = &page[SCHEMA_COOKIE];
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
