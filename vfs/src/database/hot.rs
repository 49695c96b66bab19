//! The hot index as the engine uses it: asked for beside the listing at a cold open, written at a clean close.
//!
//! | at the open | round trips before the first page |
//! |---|---|
//! | it is as of the head, and the listing is one page | 1: both at a time |
//! | some deltas are newer | 2: their indexes |
//! | the listing is longer | 2: what is newer is listed from its transaction on, while the long listing goes on; the first one counts |
//! | missing, damaged, of another version, or the objects it names are not the bucket's | as without it |

use std::time::{Duration, Instant};

use crate::database::Database;
use crate::error::{Error, ErrorKind, Result};
use crate::log;
use crate::page::{Pgno, TxId};
use crate::protocol::ObjectId;
use crate::replica::btree;
use crate::replica::hot_index::{HotIndex, MOST_PAGES, NAME, PAGES_BYTES};
use crate::replica::names::{Listed, ObjectName, Replica, SNAPSHOT_LEVEL};
use crate::runtime;
use crate::store::{Condition, Generation, Meta, StoreError};

/// How long a close takes for it.
const WRITE_WAIT: Duration = Duration::from_secs(5);

/// What a look at the bucket shows.
pub(super) struct Look {
    pub(super) listed: Vec<Listed>,
    pub(super) hot: Option<HotIndex>,
}

/// Lists the log and asks for the hot index, at a time.
pub(super) async fn look(replica: Replica) -> Result<Look> {
    let started = Instant::now();
    let full = std::pin::pin!(replica.list());
    let hot = std::pin::pin!(read(&replica));
    match futures::future::select(full, hot).await {
        futures::future::Either::Left((listed, hot)) => {
            let listed = listed?;
            let hot = hot.await.filter(|hot| agrees(&replica, hot, &listed));
            Ok(Look { listed, hot })
        }
        futures::future::Either::Right((None, full)) => Ok(Look { listed: full.await?, hot: None }),
        futures::future::Either::Right((Some(hot), full)) => {
            let (listed, is_whole) = {
                let tail = std::pin::pin!(async {
                    // A listing of one page is here a moment after the hot index.
                    tokio::time::sleep(started.elapsed()).await;
                    newer(&replica, &hot).await
                });
                match futures::future::select(full, tail).await {
                    futures::future::Either::Left((listed, _)) => (listed?, true),
                    futures::future::Either::Right((Some(listed), _)) => (listed, false),
                    futures::future::Either::Right((None, full)) => {
                        return Ok(Look { listed: full.await?, hot: None });
                    }
                }
            };
            let hot = Some(hot).filter(|hot| !is_whole || agrees(&replica, hot, &listed));
            Ok(Look { listed, hot })
        }
    }
}

async fn read(replica: &Replica) -> Option<HotIndex> {
    let name = replica.derived(NAME);
    match replica.store().get(&name, None).await {
        Ok(object) => HotIndex::decode(&object.bytes)
            .inspect_err(|e| log::info!("{}/{name}: {e}; opening without it", replica.store().place()))
            .ok(),
        Err(StoreError::NotFound(_)) => None,
        Err(e) => {
            log::info!("{e}; opening without the hot index");
            None
        }
    }
}

/// Whether the objects that it names are those of a whole listing.
fn agrees(replica: &Replica, hot: &HotIndex, listed: &[Listed]) -> bool {
    let rows: std::collections::HashMap<ObjectName, &Meta> = listed.iter().map(|row| (row.name, &row.meta)).collect();
    let is_there = |name: &ObjectName, size: u64, generation: Option<Generation>| {
        rows.get(name).is_some_and(|meta| meta.size == size && Some(meta.generation) == generation)
    };
    let stale = hot.objects.iter().find(|object| !is_there(&object.name, object.size, object.generation));
    let head = rows.get(&ObjectName::delta(hot.head.txid)).and_then(|meta| meta.crc32c);
    if head.is_some_and(|crc32c| crc32c != hot.head.crc32c) {
        log::info!("{}: the hot index is of another {}; opening without it", replica.place(), hot.head.txid);
        return false;
    }
    if let Some(stale) = stale {
        log::info!(
            "{}: the hot index names {}, which is not the bucket's; opening without it",
            replica.place(),
            stale.name
        );
    }
    stale.is_none()
}

/// The rows of the log behind the hot index, and two that stand for what it covers. `None` where its own delta is not there as
/// it says, or on an error: then only the whole listing counts.
async fn newer(replica: &Replica, hot: &HotIndex) -> Option<Vec<Listed>> {
    let head = ObjectName::delta(hot.head.txid);
    let (start, higher) = (replica.ltx(&head), replica.level_prefix(1));
    let (level_0, all) = (replica.level_prefix(0), replica.ltx_prefix());
    let deltas = replica.store().list(&level_0, Some(&start));
    let merged = replica.store().list(&all, Some(&higher));
    let (deltas, merged) = futures::future::try_join(deltas, merged).await.ok()?;
    let mut listed = replica.listed(&deltas);
    let own = listed.iter_mut().find(|row| row.name == head)?;
    if own.meta.generation != hot.generation || own.meta.size != hot.head.size {
        return None;
    }
    own.meta.crc32c = Some(hot.head.crc32c);
    listed.extend(replica.listed(&merged).into_iter().filter(|row| row.name.max > hot.head.txid));
    let name = ObjectName { level: SNAPSHOT_LEVEL, min: TxId(1), max: hot.head.txid };
    listed.push(Listed { name, meta: Meta { generation: hot.generation, size: 0, created: None, crc32c: Some(0) } });
    Some(listed)
}

impl Database {
    /// Writes the hot index as of the durable transaction, if this host has appended something since it opened and all of it is in
    /// the map. Under both lanes, with the database open nowhere else. Losing a race for its name is as good.
    pub(super) fn write_hot_index(&self) -> Result<()> {
        self.update_map()?;
        let Some((head, generation)) = self.change_state(|state| state.durable())? else { return Ok(()) };
        let map = self.cache.map();
        if head.txid == self.opened.txid || map.txid() != head.txid || map.pages().0 > MOST_PAGES {
            return Ok(());
        }
        let started = Instant::now();
        let Some(bytes) = self.hot_index(head, generation)? else { return Ok(()) };
        let size = bytes.len();
        let (replica, name) = (self.replica.clone(), self.replica.derived(NAME));
        let what = format!("writing {name}");
        let put = async move {
            let condition = match replica.store().get(&name, Some(0..64)).await {
                Ok(object) => Condition::Generation(object.meta.generation),
                Err(StoreError::NotFound(_) | StoreError::Range(_)) => Condition::Absent,
                Err(e) => return Err(e),
            };
            match replica.store().put(&name, bytes.into(), &Default::default(), condition).await {
                Err(e) if !matches!(e, StoreError::Precondition(_)) => Err(e),
                _ => Ok(()),
            }
        };
        runtime::wait(&what, WRITE_WAIT, put)?.map_err(|e| Error::from(e).context(what))?;
        let ms = started.elapsed().as_millis();
        log::debug!("{}: hot index as of {}, {size} bytes, in {ms} ms", self.replica.place(), head.txid);
        Ok(())
    }

    /// The bytes of the hot index as of the map; `head` is the delta of its transaction.
    ///
    /// # Errors
    /// The map's.
    pub(crate) fn hot_index(&self, head: ObjectId, generation: Generation) -> Result<Option<Vec<u8>>> {
        let page_bytes = self.page_size.bytes() as usize;
        let hot = btree::upper_pages(PAGES_BYTES / page_bytes, |pgno: Pgno| {
            let mut page = vec![0; page_bytes];
            matches!(self.cache.read_present(pgno, &mut page), Ok(true)).then_some(page)
        });
        if hot.first().is_none_or(|(first, _)| *first != Pgno::ONE) {
            return Err(Error::new(ErrorKind::Local, "the first page is not in the cache"));
        }
        Ok(HotIndex::of(self.cache.map(), head, generation, hot)?.map(|hot| hot.encode()))
    }
}
