//! Which states of the past can be opened, and what `at=` means.

#![allow(clippy::unwrap_used)] // A failure here is a failed test.
use super::*;
use crate::replica::chain::plan;
use crate::replica::names::{Listed, ObjectName};
use crate::store::{BucketTime, Generation, Meta};

fn row(level: u8, min: u64, max: u64) -> Row {
    let meta = Meta { generation: Generation(1), size: 100, created: Some(BucketTime(0)), crc32c: None };
    let name = ObjectName { level, min: TxId(min), max: TxId(max) };
    Row { name, meta, timestamp_ms: max as i64 * 60_000 }
}

fn log() -> Vec<Point> {
    points(&[row(9, 1, 10), row(1, 11, 14), row(0, 15, 15), row(0, 12, 12)])
}

#[test]
fn a_point_is_what_there_is_a_plan_for() {
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..2000 {
        let mut rows: Vec<Row> = Vec::new();
        for _ in 0..rng.usize(0..14) {
            let min = if rng.u8(0..4) == 0 { 1 } else { rng.u64(1..12) };
            let new = row([0, 0, 1, 2, 3, 9][rng.usize(0..6)], min, rng.u64(min..=12));
            rows.retain(|row| row.name != new.name);
            rows.push(new);
        }
        let listed: Vec<Listed> = rows.iter().map(Row::listed).collect();
        let planned =
            |txid: &u64| matches!(plan(&listed, Some(TxId(*txid))), Ok(Some(chain)) if chain.txid().0 == *txid);
        let expected: Vec<u64> = (1..=12).filter(planned).collect();
        let found: Vec<u64> = points(&rows).iter().map(|point| point.txid.0).collect();
        assert_eq!(found, expected, "{rows:?}");
    }
}

#[test]
fn the_highest_level_that_ends_there_speaks_for_a_point() {
    let points = points(&[row(0, 1, 1), row(0, 2, 2), row(9, 1, 2), row(1, 1, 2)]);
    assert_eq!(points.iter().map(|point| (point.txid.0, point.level)).collect::<Vec<_>>(), [(1, 0), (2, 9)]);
}

#[test]
fn each_form_of_at_finds_its_state() {
    let minute = 60_000;
    let open = |text: &str| At::parse(text).unwrap().resolve(&log(), 16 * minute).map(|txid| txid.0);
    assert_eq!(open("1970-01-01T00:15:00Z").unwrap(), 15);
    assert_eq!(open("1970-01-01T00:14:59.999Z").unwrap(), 14);
    assert_eq!(open("1970-01-01T02:13:00+02:00").unwrap(), 10);
    assert_eq!(open("000000000000000e").unwrap(), 14);
    assert_eq!(open("-2m").unwrap(), 14);
    assert_eq!(open("-0s").unwrap(), 15);
}

#[test]
fn a_refusal_names_what_can_be_opened() {
    let refuse = |text: &str, parts: &[&str]| {
        let error = At::parse(text).and_then(|at| at.resolve(&log(), 16 * 60_000)).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Configuration);
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "{error}"));
    };
    refuse("yesterday", &["\"yesterday\"", "2026-11-22T10:00:00Z", "16 lowercase", "-15m"]);
    refuse("-15 m", &["\"-15 m\""]);
    // 12 is there as a delta, but 11 is kept only together with later ones.
    refuse("000000000000000c", &["000000000000000a (1970-01-01T00:10:00Z)", "000000000000000e (1970-01-01T00:14:00Z)"]);
    refuse("0000000000000010", &["no state as of", "000000000000000f"]);
    refuse("-1h", &["as early as", "from 000000000000000a"]);
    refuse("2026-11-22T10:00:00Z", &["lies in the future", "to 000000000000000f"]);
    assert!(At::Ago(0).resolve(&[], 0).expect_err("an empty log").to_string().contains("empty"));
}
