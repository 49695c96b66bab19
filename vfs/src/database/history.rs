//! What the application asks of the history: the states that can be opened.

use serde_json::{Value, json};

use crate::error::Result;
use crate::history::listing::{self, format_time};
use crate::history::points::points;
use crate::replica::names::Replica;

/// The points that can be opened, oldest first: a JSON array of `{"txid", "time", "level"}`. One listing.
///
/// # Errors
/// The bucket's.
pub(super) fn points_as_json(replica: &Replica) -> Result<String> {
    let rows = listing::list(replica)?;
    let points: Vec<Value> = points(&rows)
        .iter()
        .map(|point| {
            json!({ "txid": point.txid.to_string(), "time": format_time(point.timestamp_ms), "level": point.level })
        })
        .collect();
    Ok(Value::Array(points).to_string())
}
