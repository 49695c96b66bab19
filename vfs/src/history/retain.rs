//! Deletes what the policy lets go.
//!
//! - **Ordering.** Before anything goes, the object that covers it has been read to its end and found whole (those that this
//!   process made were, before they were put). Lower levels go first; of one level the oldest.
//! - **Retries.** A delete that failed is tried again at the next step. One of unknown outcome may happen later: it names a
//!   generation, and what may go may go for ever.
//! - **Stop.** The right is asked for before each batch. A delete without the right does no harm (rule 3 of the protocol).
//! - **Crash.** Whatever is left is covered by an object that stays.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};

use crate::error::{Error, Result};
use crate::history::listing::Row;
use crate::history::policy::Deletion;
use crate::history::source::Reads;
use crate::replica::fetch::LocalObjects;
use crate::replica::names::{ObjectName, Replica};
use crate::runtime;
use crate::store::{Generation, StoreError};

/// So many deletes are sent at a time, and between two looks at the right.
const BATCH: usize = 32;
/// How long a batch may take; the store's own deadline is shorter.
const BATCH_WAIT: Duration = Duration::from_secs(120);

/// The objects that were read to their end and found whole, by name and generation.
pub(super) type Verified = BTreeSet<(ObjectName, Generation)>;

/// What came of a round of deletes.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    /// What is gone now.
    pub(super) gone: Vec<Row>,
    /// Some name is not what the listing said: list again.
    pub(super) surprised: bool,
}

/// Deletes in order, batch by batch, as long as the right lasts.
pub(super) fn delete(
    replica: &Replica,
    deletions: &[Deletion],
    verified: &mut Verified,
    right: &dyn Fn() -> bool,
) -> Result<Deleted> {
    let mut done = Deleted::default();
    for batch in deletions.chunks(BATCH) {
        for cover in batch.iter().map(|deletion| &deletion.cover) {
            verify(replica, cover, verified)?;
        }
        if !right() {
            return Ok(done);
        }
        let jobs: Vec<_> = batch
            .iter()
            .map(|deletion| {
                let (store, full) = (replica.store().clone(), replica.ltx(&deletion.row.name));
                let generation = deletion.row.meta.generation;
                async move { store.delete(&full, generation).await }
            })
            .collect();
        let all = async move { stream::iter(jobs).buffered(BATCH).collect::<Vec<_>>().await };
        let what = format!("deleting in {}", replica.place());
        let mut failed = None;
        for (deletion, answer) in batch.iter().zip(runtime::wait(&what, BATCH_WAIT, all)?) {
            match answer {
                Ok(()) | Err(StoreError::NotFound(_)) => done.gone.push(deletion.row.clone()),
                Err(StoreError::Precondition(_)) => done.surprised = true,
                Err(e) => failed = Some(Error::from(e).context(&what)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(done)
}

/// Reads an object to its end once, in bounded memory. It has to be in the bucket: a local copy proves nothing.
fn verify(replica: &Replica, row: &Row, verified: &mut Verified) -> Result<()> {
    let id = (row.name, row.meta.generation);
    if verified.contains(&id) {
        return Ok(());
    }
    let nothing_local: Arc<dyn LocalObjects> = Arc::new(crate::replica::fetch::NoLocalObjects);
    let reads = Reads::new(replica, &nothing_local, 1);
    let mut page = Vec::new();
    for mut decoder in reads.decoders(std::slice::from_ref(row))? {
        let bad = |e| reads.error(Error::from(e)).context(format!("{} in {}", row.name, replica.place()));
        while decoder.next_page(&mut page).map_err(bad)?.is_some() {}
        decoder.finish().map_err(bad)?;
    }
    verified.insert(id);
    Ok(())
}
