//! Finds out whether a bucket honours conditions at all.
//!
//! Some imitations of Cloud Storage take `ifGenerationMatch` and ignore it. On such a bucket two writers would
//! overwrite each other's log without a word, so nobody may write to it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Condition, Store, StoreError};

/// Whether the store refuses a write whose condition does not hold.
///
/// Creates `name` if it is absent, which is refused when an earlier probe left it there: the usual cost is this one
/// request. Where it was created, the same is tried once more and has to be refused. The object (a few bytes) is
/// left behind for the next probe.
///
/// # Errors
/// What the store answers where it answers neither way: it could not be reached, or does not let anybody write.
pub async fn honours_conditions(store: &dyn Store, name: &str) -> Result<bool, StoreError> {
    let body = Bytes::from_static(b"left by sqlite-gcs to see whether conditions are honoured\n");
    let (mut done, mut last) = (0, None);
    for _ in 0..3 {
        match store.put(name, body.clone(), &BTreeMap::new(), Condition::Absent).await {
            Err(StoreError::Precondition(_)) => return Ok(true),
            // Two creations of one name: that is the proof.
            Ok(_) if done == 1 => return Ok(false),
            Ok(_) => done += 1,
            // It may be there now or not: the next round tells.
            Err(error @ StoreError::Unknown { .. }) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| StoreError::Unavailable { name: name.to_owned(), why: "no answer".to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::{Fault, MemoryStore, Mode, Operation};

    #[tokio::test]
    async fn a_careful_bucket_costs_two_requests_once_and_one_later() {
        let store = MemoryStore::new();
        assert_eq!(honours_conditions(&*store, "gcs/probe").await, Ok(true));
        assert_eq!(store.traffic().snapshot()[1], 2);
        assert_eq!(honours_conditions(&*store, "gcs/probe").await, Ok(true));
        assert_eq!(store.traffic().snapshot()[1], 3);
    }

    #[tokio::test]
    async fn a_bucket_that_ignores_conditions_is_found_out_every_time() {
        let store = MemoryStore::new();
        store.bucket().ignore_conditions();
        for _ in 0..2 {
            assert_eq!(honours_conditions(&*store, "gcs/probe").await, Ok(false));
        }
    }

    #[tokio::test]
    async fn a_bucket_that_cannot_be_reached_is_not_judged() {
        let store = MemoryStore::new();
        store.inject(Fault::on(Operation::Put, Mode::Fail));
        let error = honours_conditions(&*store, "gcs/probe").await.expect_err("no answer");
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        store.inject(Fault::on(Operation::Put, Mode::LoseAnswer));
        assert_eq!(honours_conditions(&*store, "gcs/probe").await, Ok(true));
    }
}
