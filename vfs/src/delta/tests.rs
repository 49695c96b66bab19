//! What the codec promises, on files of its own and on files that Litestream wrote.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use super::*;
use crate::page::{PageCount, PageSize, Pgno, TxId};

#[test]
fn what_is_encoded_is_decoded() {
    let header = Header::level_0(PageSize::DEFAULT, PageCount(3), TxId(1), 7);
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for pgno in 1..=3 {
        encoder.page(Pgno(pgno), &[pgno as u8; 4096]).unwrap();
    }
    let (bytes, size) = encoder.finish().unwrap();
    assert_eq!(size, bytes.len() as u64);
    assert_eq!(verify(&bytes).unwrap(), header);
    assert_eq!(PageIndex::decode(&bytes, size).unwrap().entries().len(), 3);
}
