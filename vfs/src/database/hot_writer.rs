//! Writing the hot index: at a clean close, and every so many deltas, so that a cold open after a kill is as short.
//!
//! - **When.** [`AT_MOST_BEHIND`] deltas after the last one; more in proportion for a database beyond 1 GB, whose index is long. Or
//!   when so much was appended as the index takes itself, if some of it was in deltas that an open does not read whole. And after a merge or a delete of the history.
//! - **What.** The state of the newest durable delta, also while its pages are in the WAL only: the map, over it the indexes of
//!   the deltas that wait for their checkpoint (`cache/pending.rs`), and the upper pages from the short ones of these, else from the
//!   cache file. A checkpoint may have put something newer there, so what the WAL has beyond that delta is left out; and so is what
//!   the WAL has and no checkpoint has put there yet: after a kill the map may be ahead of the file.
//! - **Ordering.** What it says is gathered under the upload lane and the capture lock, from the memory and the files of this host; packed and
//!   sent outside of them, which nobody waits for but the close. One at a time. As of its transaction it stays true meanwhile.
//! - **Retries.** None: the next one is due soon. Losing a race for the name is as good.
//! - **Crash.** The object is replaced whole, on condition of its generation; an older one is as right, only further behind.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{CAPTURE_WAIT, Database};
use crate::delta::Decoder;
use crate::error::{Error, Result};
use crate::log;
use crate::page::{Pgno, TxId};
use crate::protocol::ObjectId;
use crate::replica::btree;
use crate::replica::hot_index::{HotIndex, MOST_PAGES, NAME, PAGES_BYTES};
use crate::replica::index_fetch::{ObjectIndex, WHOLE};
use crate::replica::names::Replica;
use crate::runtime;
use crate::store::{Condition, Generation, StoreError};
use crate::sync::{Condvar, Mutex};

/// The hot index of a database up to 1 GB is at most so many deltas behind the log, and twice as many where one could not be written.
pub(super) const AT_MOST_BEHIND: u64 = 48;
/// Pages of 1 GB.
const PAGES: u32 = 1 << 18;
/// What the index takes for each page of the database, in bytes, upper pages included, about.
const BYTES_PER_PAGE: u64 = 13;
/// A database of fewer pages is read with a few requests more at most.
const LEAST_PAGES: u32 = 256;
/// After one that could not be made, so many deltas pass.
const AGAIN: u64 = 8;
/// How long a close takes for it.
const WRITE_WAIT: Duration = Duration::from_secs(5);

/// Pages with their newest images, where those are at hand.
type Changed = HashMap<Pgno, Option<Vec<u8>>>;

/// What this process knows of the hot index in the bucket.
#[derive(Debug, Default)]
pub(super) struct HotWriter {
    known: Mutex<Known>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    /// The transaction that it is as of; `NONE` where that is not known.
    at: TxId,
    generation: Option<Generation>,
    /// Bytes that were appended since, if some of them in deltas that are not short.
    bytes: u64,
    has_long: bool,
    not_before: TxId,
    /// The history was changed: what the index names may go, and an open would read a merged object beside it.
    is_wanted: bool,
    under_way: bool,
}

impl HotWriter {
    /// There is one as of this transaction.
    pub(super) fn of(at: TxId) -> HotWriter {
        HotWriter { known: Mutex::new(Known { at, ..Known::default() }), ended: Condvar::new() }
    }

    fn is_due(&self, head: TxId, pages: u32) -> bool {
        let known = self.known.lock();
        let deltas = AT_MOST_BEHIND * u64::from(pages.div_ceil(PAGES)).max(1);
        let is_far = head.0.saturating_sub(known.at.0) >= deltas;
        let is_long = known.has_long && pages >= LEAST_PAGES && known.bytes >= u64::from(pages) * BYTES_PER_PAGE;
        !known.under_way && head >= known.not_before && (is_far || is_long || known.is_wanted)
    }

    fn begin(&self) -> Option<Option<Generation>> {
        let mut known = self.known.lock();
        (!std::mem::replace(&mut known.under_way, true)).then_some(known.generation)
    }

    fn end(&self, written: Option<(TxId, Generation)>) {
        let mut known = self.known.lock();
        known.under_way = false;
        known.generation = written.map(|(_, generation)| generation);
        if let Some((at, _)) = written {
            known.at = known.at.max(at);
        }
        self.ended.notify_all();
    }

    fn wait(&self, limit: Duration) {
        drop(self.ended.wait_while_for(self.known.lock(), |known| known.under_way, limit));
    }
}

impl Database {
    /// A delta is durable.
    pub(crate) fn note_appended(&self, id: ObjectId) {
        let mut known = self.hot.known.lock();
        known.bytes += id.size;
        known.has_long |= id.size > WHOLE;
    }

    /// The objects that the one in the bucket names are about to go.
    pub(crate) fn hot_index_is_stale(&self) {
        self.hot.known.lock().at = TxId::NONE;
    }

    /// Objects were merged or deleted: writes the hot index anew, now or with the next upload.
    pub(crate) fn follow_history(&self) {
        self.hot.known.lock().is_wanted = true;
        if let Ok(_uploader) = self.uploader.lock_within(WRITE_WAIT, "the upload lock") {
            self.refresh_hot_index();
        }
    }

    /// Writes the hot index if it is due. Under the upload lane; does not wait for the bucket.
    pub(crate) fn refresh_hot_index(&self) {
        if !self.hot.is_due(self.shared.durable(), self.shared.frozen_pages().0) {
            return;
        }
        let made = self.make_hot_index().unwrap_or_else(|e| {
            log::debug!("{}: no hot index: {e}", self.replica.place());
            None
        });
        let Some(hot) = made else {
            self.hot.known.lock().not_before = TxId(self.shared.durable().0 + AGAIN);
            return;
        };
        let (replica, me) = (self.replica.clone(), self.me.get().cloned());
        let Ok(runtime) = runtime::handle() else { return };
        let Some(seen) = self.hot.begin() else { return };
        {
            let mut known = self.hot.known.lock();
            (known.bytes, known.has_long, known.is_wanted) = (0, false, false);
        }
        runtime.spawn(async move {
            let head = hot.head.txid;
            // On a thread that may take its time, and under no lock.
            let written = match tokio::task::spawn_blocking(move || hot.encode()).await {
                Ok(bytes) => write(&replica, bytes, seen, head).await,
                Err(e) => {
                    log::info!("{}: packing the hot index: {e}", replica.place());
                    Ok(None)
                }
            };
            if let Err(e) = &written {
                log::info!("{}: no hot index was written: {e}", replica.place());
            }
            if let Some(database) = me.and_then(|me| me.upgrade()) {
                database.hot.end(written.ok().flatten().map(|generation| (head, generation)));
            }
        });
    }

    /// Writes the hot index as of the durable transaction, if this host has appended something since it opened. Under both lanes, with
    /// the database open nowhere else.
    pub(super) fn write_hot_index(&self) -> Result<()> {
        self.update_map()?;
        self.hot.wait(WRITE_WAIT);
        let durable = self.shared.durable();
        if durable == self.opened.txid || durable == self.hot.known.lock().at {
            return Ok(());
        }
        let Some(hot) = self.make_hot_index()? else { return Ok(()) };
        let (head, bytes) = (hot.head.txid, hot.encode());
        let Some(seen) = self.hot.begin() else { return Ok(()) };
        let replica = self.replica.clone();
        let what = format!("writing {}", replica.derived(NAME));
        let written = runtime::wait(&what, WRITE_WAIT, async move { write(&replica, bytes, seen, head).await });
        let written = written.and_then(|written| written.map_err(|e| Error::from(e).context(what)));
        self.hot.end(written.as_ref().ok().copied().flatten().map(|generation| (head, generation)));
        written.map(drop)
    }

    /// The hot index as of the newest durable delta; `None` where that cannot be told just now. Under the upload lane, and for its whole
    /// time under the capture lock: it reads the upper pages and copies the map, and leaves the packing to the caller.
    ///
    /// # Errors
    /// The local disk's.
    fn make_hot_index(&self) -> Result<Option<HotIndex>> {
        let started = Instant::now();
        let Some((head, generation)) = self.change_state(|state| state.durable())? else { return Ok(None) };
        // While it is held the WAL is not reset.
        let capture = self.capture.lock_within(CAPTURE_WAIT, "the capture lock")?;
        let pages = self.shared.frozen_pages();
        if self.shared.frozen() != head.txid || self.shared.saved_bytes() > 0 || pages.0 > MOST_PAGES {
            return Ok(None);
        }
        let Some((newer, changed)) = self.not_in_map(head.txid)? else { return Ok(None) };
        let Some(wal) = self.backfilled() else { return Ok(None) };
        let not_there = match wal {
            Some((committed, backfilled)) => {
                capture.pages_in_file(&committed)?.into_iter().skip(backfilled as usize).collect()
            }
            None => HashSet::new(),
        };
        let page_bytes = self.page_size.bytes() as usize;
        let mut from_cache = HashSet::new();
        let mut upper = btree::upper_pages(PAGES_BYTES / page_bytes, |pgno: Pgno| match changed.get(&pgno) {
            Some(image) => image.clone(),
            None => {
                let mut page = vec![0; page_bytes];
                from_cache.insert(pgno);
                matches!(self.cache.read_present(pgno, &mut page), Ok(true)).then_some(page)
            }
        });
        let Some(hot) = HotIndex::of(self.cache.map(), &newer, head, generation, Vec::new())? else { return Ok(None) };
        let ahead = capture.ahead(&self.shared, self.committed().as_ref())?;
        drop(capture);
        upper.retain(|(pgno, _)| !(from_cache.contains(pgno) && (ahead.contains(pgno) || not_there.contains(pgno))));
        let has_first = upper.first().is_some_and(|(first, _)| *first == Pgno::ONE);
        if hot.pages != pages || !hot.is_whole() || !has_first {
            log::debug!("{}: no hot index as of {} can be made now", self.replica.place(), head.txid);
            return Ok(None);
        }
        let (upper_pages, ms) = (upper.len(), started.elapsed().as_millis());
        log::debug!(
            "{}: hot index as of {} with {upper_pages} upper pages, made in {ms} ms",
            self.replica.place(),
            head.txid
        );
        Ok(Some(HotIndex { hot: upper, ..hot }))
    }

    /// What is in the log up to `head` and not in the map, and the newest image of each page of it, as far as it was kept. `None` where
    /// something of it is not remembered.
    fn not_in_map(&self, head: TxId) -> Result<Option<(Vec<ObjectIndex>, Changed)>> {
        let mut reached = self.cache.map().txid();
        let (mut newer, mut changed) = (Vec::new(), HashMap::new());
        for remembered in self.pending.list()? {
            let (pending, index) = remembered?;
            if pending.max <= reached.0 || pending.max > head.0 {
                continue;
            }
            if pending.min > reached.0 + 1 {
                break;
            }
            changed.retain(|pgno, _| index.commit.contains(*pgno));
            changed.extend(index.pages.iter().map(|page| (page.pgno, None)));
            if let Some(whole) = self.pending.whole(&pending)? {
                changed.extend(images(&whole)?.into_iter().map(|(pgno, page)| (pgno, Some(page))));
            }
            reached = TxId(pending.max);
            newer.push(index);
        }
        Ok((reached == head).then_some((newer, changed)))
    }
}

/// The pages of a whole delta, checked.
///
/// # Errors
/// It is damaged.
pub(super) fn images(delta: &[u8]) -> Result<Vec<(Pgno, Vec<u8>)>> {
    let mut decoder = Decoder::new(delta)?;
    let (mut pages, mut page) = (Vec::new(), Vec::new());
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.push((pgno, std::mem::take(&mut page)));
    }
    decoder.finish()?;
    Ok(pages)
}

/// Returns the generation that it has in the bucket, if no other was faster.
async fn write(
    replica: &Replica,
    bytes: Vec<u8>,
    seen: Option<Generation>,
    head: TxId,
) -> Result<Option<Generation>, StoreError> {
    let name = replica.derived(NAME);
    let condition = match seen {
        Some(generation) => Condition::Generation(generation),
        None => match replica.store().get(&name, Some(0..64)).await {
            Ok(object) => Condition::Generation(object.meta.generation),
            Err(StoreError::NotFound(_) | StoreError::Range(_)) => Condition::Absent,
            Err(e) => return Err(e),
        },
    };
    match replica.store().put(&name, bytes.into(), &Default::default(), condition).await {
        Ok(meta) => {
            log::debug!("{}: the hot index is as of {head}", replica.place());
            Ok(Some(meta.generation))
        }
        Err(StoreError::Precondition(_)) => Ok(None),
        Err(e) => Err(e),
    }
}
