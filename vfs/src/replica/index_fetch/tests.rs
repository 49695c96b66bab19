//! Reading page indexes, also of damaged objects.

#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::page::{Pgno, TxId};
use crate::replica::bed::{Bucket, History, PAGE, content, ltx, name, run};
use crate::replica::chain::plan;

fn bucket() -> (Arc<Bucket>, Replica) {
    let bucket = Bucket::new();
    (Arc::clone(&bucket), Replica::new(bucket, "db"))
}

fn read_all(replica: &Replica) -> Result<Vec<ObjectIndex>> {
    let listed = run(replica.list()).unwrap();
    run(replica.indexes(&plan(&listed, None).unwrap().unwrap()))
}

/// A snapshot of `size` pages that do not compress.
fn large(size: u32) -> Vec<u8> {
    let pages: BTreeMap<u32, Vec<u8>> = (1..=size)
        .map(|pgno| {
            let mut rng = fastrand::Rng::with_seed(pgno.into());
            (pgno, std::iter::repeat_with(|| rng.u8(..)).take(PAGE.bytes() as usize).collect())
        })
        .collect();
    ltx(name(9, 1, 1), PAGE, size, &pages)
}

#[test]
fn a_small_object_takes_one_request_and_a_large_one_two_at_once() {
    let (bucket, replica) = bucket();
    bucket.set("db/ltx/9/0000000000000001-0000000000000001.ltx", large(100));
    let index = &read_all(&replica).unwrap()[0];
    assert_eq!((index.commit, index.page_size, index.pages.len()), (PageCount(100), PAGE, 100));
    assert_eq!((bucket.take_gets().len(), bucket.under_way().1), (2, 2));
    let mut history = History::default();
    history.commit(1, 3, 1..=3);
    history.put(&bucket, &replica, 9, 1, 1);
    assert_eq!(read_all(&replica).unwrap()[0].pages.len(), 3);
    assert_eq!(bucket.take_gets().len(), 1);
}

#[test]
fn an_index_longer_than_the_guess_takes_one_more_request() {
    let (bucket, replica) = bucket();
    // Pages of zeros: their index is a large part of the object.
    let pages: BTreeMap<u32, Vec<u8>> = (1..=20_000).map(|pgno| (pgno, vec![0; 512])).collect();
    let size = PageSize::new(512).unwrap();
    bucket.set("db/ltx/0/0000000000000001-0000000000000001.ltx", ltx(name(0, 1, 1), size, 20_000, &pages));
    let index = &read_all(&replica).unwrap()[0];
    assert_eq!(index.pages.len(), 20_000);
    assert_eq!(index.pages[19_999].pgno, Pgno(20_000));
    assert_eq!(bucket.take_gets().len(), 3);
}

#[test]
fn no_more_than_the_stated_number_of_objects_is_asked_for_at_a_time() {
    let (bucket, replica) = bucket();
    let mut history = History::default();
    for txid in 1..=200 {
        history.commit(txid, 2, 1..=2);
        history.put(&bucket, &replica, 0, txid, txid);
    }
    let indexes = read_all(&replica).unwrap();
    assert_eq!(indexes.iter().map(|i| i.name.max.0).collect::<Vec<_>>(), (1..=200).collect::<Vec<_>>());
    assert_eq!(bucket.under_way(), (0, PARALLEL));
}

/// Each kind of damage with the words that its error has to have.
#[test]
fn a_wrong_object_is_named_with_the_field() {
    let page = |pgno: u32| (pgno, content(pgno, 1));
    let first = ltx(name(0, 1, 1), PAGE, 2, &[page(1), page(2)].into());
    let second = |bytes: Vec<u8>, field: &str| {
        let (bucket, replica) = bucket();
        bucket.set("db/ltx/0/0000000000000001-0000000000000001.ltx", first.clone());
        bucket.set("db/ltx/0/0000000000000002-0000000000000002.ltx", bytes);
        let error = read_all(&replica).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let text = error.to_string();
        assert!(text.contains("0/0000000000000002-0000000000000002.ltx") && text.contains(field), "{field}: {text}");
    };
    let good = ltx(name(0, 2, 2), PAGE, 2, &[page(2)].into());
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    second(with(0, b'X'), "magic");
    second(with(11, 3), "page size");
    second(with(23, 1), "first transaction");
    second(with(31, 3), "last transaction");
    second(with(good.len() - 20, 0xff), "index length");
    second(with(good.len() - 8, 0), "file checksum");
    second(good[..50].to_vec(), "header");
    second(good[..good.len() - 1].to_vec(), "index");
    second(with(15, 1), "index page number: page 2 of a database of 1");
    let small = PageSize::new(512).unwrap();
    second(ltx(name(0, 2, 2), small, 2, &[(2, vec![1; 512])].into()), "page size");
}

#[test]
fn a_snapshot_has_to_hold_every_page() {
    let (bucket, replica) = bucket();
    let pages: BTreeMap<u32, Vec<u8>> = [1, 2].map(|pgno| (pgno, content(pgno, 1))).into();
    let mut bytes = ltx(name(0, 1, 1), PAGE, 2, &pages);
    bytes[15] = 3;
    bucket.set("db/ltx/0/0000000000000001-0000000000000001.ltx", bytes);
    let error = read_all(&replica).unwrap_err().to_string();
    assert!(error.contains("2 pages in a snapshot of 3"), "{error}");
}

#[test]
fn an_object_written_anew_since_the_listing_is_not_taken() {
    let (bucket, replica) = bucket();
    let mut history = History::default();
    history.commit(1, 3, 1..=3);
    history.put(&bucket, &replica, 0, 1, 1);
    let chain = plan(&run(replica.list()).unwrap(), Some(TxId(1))).unwrap().unwrap();
    history.put(&bucket, &replica, 0, 1, 1);
    let error = run(replica.indexes(&chain)).unwrap_err().to_string();
    assert!(error.contains("changed under us") && error.contains("0/0000000000000001"), "{error}");
    bucket.remove(&replica.ltx(&name(0, 1, 1)));
    let error = run(replica.indexes(&chain)).unwrap_err().to_string();
    assert!(error.contains("no such object"), "{error}");
}
