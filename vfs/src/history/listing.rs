//! What the history is decided from: the objects of a replica, each with the time of the state that it leads to.
//!
//! That time is the custom metadata `litestream-timestamp` (RFC 3339), which `litestream restore -timestamp` goes by too;
//! an object without it counts with the time at which it was written.

use std::collections::BTreeMap;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::{Error, Result};
use crate::page::TxId;
use crate::protocol;
use crate::replica::chain;
use crate::replica::names::{Listed, ObjectName, Replica};
use crate::runtime;
use crate::store::{BucketTime, Entry, Meta};

/// The custom metadata that says as of when an object's newest transaction is.
const TIMESTAMP: &str = "litestream-timestamp";
/// How long a listing may take in all; the store's own deadline is shorter.
const LIST_WAIT: Duration = Duration::from_secs(120);

/// An object of the replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// What its name says.
    pub name: ObjectName,
    /// What the store says of it.
    pub meta: Meta,
    /// When its last transaction was committed, in milliseconds since 1970 on the writer's clock.
    pub timestamp_ms: i64,
}

impl Row {
    /// The row of a listing's entry; `None` for a name that is not an LTX object's of this replica.
    fn of(replica: &Replica, entry: &Entry) -> Option<Row> {
        let said = entry.metadata.get(TIMESTAMP).and_then(|text| parse_time(text));
        let timestamp_ms = said.or(entry.meta.created.map(|at| at.0)).unwrap_or(0);
        Some(Row { name: replica.parse(&entry.name)?, meta: entry.meta.clone(), timestamp_ms })
    }

    /// As the reader's side lists it.
    pub(crate) fn listed(&self) -> Listed {
        Listed { name: self.name, meta: self.meta.clone() }
    }

    /// As the protocol lists it. An object of unknown age is taken for one from the far future: it never replaces another.
    pub(crate) fn in_protocol(&self) -> protocol::Listed {
        protocol::Listed {
            level: self.name.level,
            min: self.name.min,
            max: self.name.max,
            size: self.meta.size,
            crc32c: self.meta.crc32c.unwrap_or(0),
            generation: self.meta.generation,
            created: self.meta.created.unwrap_or(BucketTime(i64::MAX)),
        }
    }
}

/// Lists the LTX objects that are in the bucket now, with their times: one listing.
///
/// # Errors
/// The store's.
pub fn list(replica: &Replica) -> Result<Vec<Row>> {
    let (store, prefix) = (replica.store().clone(), replica.ltx_prefix());
    let what = format!("listing {}", replica.place());
    let entries = runtime::wait(&what, LIST_WAIT, async move { store.list(&prefix, None).await })?;
    let entries = entries.map_err(|e| Error::from(e).context(&what))?;
    Ok(entries.iter().filter_map(|entry| Row::of(replica, entry)).collect())
}

/// The objects that make up the state as of `target`, oldest first; empty for an empty log.
///
/// # Errors
/// [`chain::plan`]'s.
pub(crate) fn chain(rows: &[Row], target: Option<TxId>) -> Result<Vec<Row>> {
    let listed: Vec<Listed> = rows.iter().map(Row::listed).collect();
    let chain = chain::plan(&listed, target)?.map_or_else(Vec::new, |chain| chain.objects);
    let by_name: BTreeMap<ObjectName, &Row> = rows.iter().map(|row| (row.name, row)).collect();
    Ok(chain.iter().filter_map(|object| by_name.get(&object.name).map(|row| (*row).clone())).collect())
}

/// The custom metadata of an object that leads to a state as of this time.
pub(crate) fn metadata(timestamp_ms: i64) -> BTreeMap<String, String> {
    BTreeMap::from([(TIMESTAMP.to_owned(), format_time(timestamp_ms))])
}

/// A time as RFC 3339 in UTC, to the millisecond.
pub(crate) fn format_time(timestamp_ms: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(timestamp_ms) * 1_000_000);
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(&Rfc3339).unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}

/// Reads an RFC 3339 time; parts of a millisecond are dropped.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}
