//! The hot index at a cold open: asked for beside the listing. Who writes it is `hot_writer.rs`.
//!
//! | at the open | round trips before the first page |
//! |---|---|
//! | it is as of the head, and the listing is one page | 1: both at a time |
//! | some deltas are newer | 2: these deltas, whole where they are short, so that their pages are here too |
//! | the listing is longer | 2: once its second page is asked for, what is newer is listed from the hot index's transaction on, and the next [`GUESS`] deltas are asked for by the names that they have if there are any; the long listing stops there |
//! | missing, damaged, of another version, or the objects it names are not the bucket's | as without it |

use std::time::Duration;

use super::hot_writer::AT_MOST_BEHIND;
use crate::error::Result;
use crate::log;
use crate::page::TxId;
use crate::replica::hot_index::{HotIndex, NAME};
use crate::replica::index_fetch::Short;
use crate::replica::names::{Listed, ObjectName, Replica, SNAPSHOT_LEVEL};
use crate::store::{Generation, Meta, StoreError};

/// Deltas that are asked for before it is known whether they are there: one hot index may not have been written, and the next
/// one was due.
const GUESS: u64 = 2 * AT_MOST_BEHIND;

/// How often it is looked whether the listing has a second page; short beside any answer of a bucket.
const LOOK: Duration = Duration::from_millis(1);

/// What a look at the bucket shows.
pub(super) struct Look {
    pub(super) listed: Vec<Listed>,
    pub(super) hot: Option<HotIndex>,
    /// Deltas behind the hot index that came along.
    pub(super) short: Short,
}

impl Look {
    pub(super) fn of(listed: Vec<Listed>) -> Look {
        Look { listed, hot: None, short: Short::new() }
    }

    /// The deltas after `from` as they were written, where they are few and all there: they are short, and some may be here already.
    /// What was merged of them is long and reaches back to before `from`.
    pub(super) fn deltas(&self, from: TxId, to: TxId) -> Option<Vec<Listed>> {
        if from == TxId::NONE || to.0.saturating_sub(from.0) > GUESS {
            return None;
        }
        let rows: std::collections::HashMap<ObjectName, &Listed> =
            self.listed.iter().map(|row| (row.name, row)).collect();
        (from.0 + 1..=to.0).map(|txid| rows.get(&ObjectName::delta(TxId(txid))).map(|row| (*row).clone())).collect()
    }
}

/// Lists the log and asks for the hot index, at a time.
pub(super) async fn look(replica: Replica) -> Result<Look> {
    let before = replica.store().traffic().snapshot()[2];
    let full = std::pin::pin!(replica.list());
    let hot = std::pin::pin!(read(&replica));
    match futures::future::select(full, hot).await {
        futures::future::Either::Left((listed, hot)) => {
            let listed = listed?;
            let hot = hot.await.filter(|hot| agrees(&replica, hot, &listed));
            Ok(Look { hot, ..Look::of(listed) })
        }
        futures::future::Either::Right((None, full)) => Ok(Look::of(full.await?)),
        futures::future::Either::Right((Some(hot), full)) => {
            let long = std::pin::pin!(async {
                while replica.store().traffic().snapshot()[2] < before + 2 {
                    tokio::time::sleep(LOOK).await;
                }
            });
            let (listed, short, is_whole) = match futures::future::select(full, long).await {
                // Of one page, which is all that is needed.
                futures::future::Either::Left((listed, _)) => (listed?, Short::new(), true),
                // The long listing stands still meanwhile: it would ask for pages that are not needed.
                futures::future::Either::Right(((), full)) => {
                    let short = replica.short_after(hot.head.txid, GUESS);
                    match futures::future::join(newer(&replica, &hot), short).await {
                        (Some(listed), short) => (listed, short, false),
                        (None, _) => return Ok(Look::of(full.await?)),
                    }
                }
            };
            let hot = Some(hot).filter(|hot| !is_whole || agrees(&replica, hot, &listed));
            Ok(Look { listed, hot, short })
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
