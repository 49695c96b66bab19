//! The states of the past that can be opened, and which of them an `at=` means.
//!
//! A point is a transaction at which some object ends and up to which the objects cover the log without a hole, so it is
//! exactly what [`crate::replica::chain::plan`] finds a way to.

use crate::config::parse_duration;
use crate::error::{Error, ErrorKind, Result};
use crate::history::listing::{Row, format_time, parse_time};
use crate::page::TxId;
use crate::replica::names::SNAPSHOT_LEVEL;

/// A time given with `at=` may be this far ahead of the clock here: clocks differ, and people round up.
const AHEAD_MS: i64 = 60_000;

/// A state that can be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// Its last transaction.
    pub txid: TxId,
    /// When that was committed, in milliseconds since 1970 on the writer's clock.
    pub timestamp_ms: i64,
    /// The highest level of the objects that end there: 9 is a snapshot, 0 a single transaction.
    pub level: u8,
}

/// The points of a listing, oldest first.
pub fn points(rows: &[Row]) -> Vec<Point> {
    let mut rows: Vec<&Row> =
        rows.iter().filter(|row| row.name.level < SNAPSHOT_LEVEL || row.name.is_snapshot()).collect();
    rows.sort_by_key(|row| (row.name.max, row.name.level));
    let mut points: Vec<Point> = Vec::new();
    // What the objects so far cover: disjoint ranges with holes between them, ascending.
    let mut covered: Vec<(TxId, TxId)> = Vec::new();
    for row in rows {
        let (mut min, max) = (row.name.min, row.name.max);
        while let Some(last) = covered.pop_if(|last| last.1.next() >= min) {
            min = min.min(last.0);
        }
        covered.push((min, max));
        if covered.len() > 1 || min != TxId(1) {
            continue;
        }
        let point = Point { txid: max, timestamp_ms: row.timestamp_ms, level: row.name.level };
        match points.last_mut() {
            // Of objects that end together the one of the highest level speaks: it was made from the others.
            Some(last) if last.txid == max => *last = point,
            _ => points.push(point),
        }
    }
    points
}

/// What an `at=` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// `at=2026-11-22T10:00:00Z`: the newest state not after this time, in milliseconds since 1970.
    Time(i64),
    /// `at=000000000000002a`: exactly this transaction.
    TxId(TxId),
    /// `at=-15m`: as of so many milliseconds ago.
    Ago(i64),
}

impl At {
    /// Parses a value of `at=`.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`], naming the value and the accepted forms.
    pub fn parse(text: &str) -> Result<At> {
        let ago = |text: &str| i64::try_from(parse_duration(text)?.as_millis()).ok();
        let at = match text.strip_prefix('-') {
            Some(duration) => ago(duration).map(At::Ago),
            None => text.parse().ok().map(At::TxId).or_else(|| parse_time(text).map(At::Time)),
        };
        at.ok_or_else(|| {
            let accepted = "a time such as 2026-11-22T10:00:00Z, a TXID of 16 lowercase hexadecimal digits, or how long \
                            ago, such as -15m";
            Error::new(ErrorKind::Configuration, format!("at={text:?} is not understood; accepted is {accepted}"))
        })
    }

    /// The transaction to open of the points that there are (oldest first), at `now` in milliseconds since 1970.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`], naming what can be opened.
    pub fn resolve(self, points: &[Point], now_ms: i64) -> Result<TxId> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Configuration, why));
        let shown = |point: &Point| format!("{} ({})", point.txid, format_time(point.timestamp_ms));
        let (Some(oldest), Some(newest)) = (points.first(), points.last()) else {
            return refuse("the log is empty: there is no state to open".to_owned());
        };
        let between = format!("states from {} to {} can be opened", shown(oldest), shown(newest));
        let time = match self {
            At::TxId(txid) => {
                return match points.binary_search_by_key(&txid, |point| point.txid) {
                    Ok(_) => Ok(txid),
                    Err(at) if at > 0 && at < points.len() => refuse(format!(
                        "the state as of transaction {txid} is not kept; the nearest that can be opened are {} and {}",
                        shown(&points[at - 1]),
                        shown(&points[at])
                    )),
                    Err(_) => refuse(format!("there is no state as of transaction {txid}; {between}")),
                };
            }
            At::Time(time) if time > now_ms.saturating_add(AHEAD_MS) && time > newest.timestamp_ms => {
                return refuse(format!("{} lies in the future; {between}", format_time(time)));
            }
            At::Time(time) => time,
            At::Ago(ago) => now_ms.saturating_sub(ago),
        };
        match points.iter().rev().find(|point| point.timestamp_ms <= time) {
            Some(point) => Ok(point.txid),
            None => refuse(format!("nothing is kept from as early as {}; {between}", format_time(time))),
        }
    }
}

#[cfg(test)]
#[path = "points/tests.rs"]
mod tests;
