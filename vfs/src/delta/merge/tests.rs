//! What a merge promises: the same database as its inputs one after the other.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use proptest::prelude::*;

use super::super::tests::{Pages, decode, encode, size};
use super::*;
use crate::page::{PageCount, Pgno, TxId};

fn decoders(inputs: &[Vec<u8>]) -> Vec<Decoder<&[u8]>> {
    inputs.iter().map(|bytes| Decoder::new(bytes.as_slice()).unwrap()).collect()
}

fn delta(min: u64, commit: u32, pages: &[(u32, u8)]) -> Vec<u8> {
    let header = Header::compacted(size(512), PageCount(commit), TxId(min), TxId(min), 0);
    let pages: Pages = pages.iter().map(|&(pgno, fill)| (Pgno(pgno), vec![fill; 512])).collect();
    encode(header, &pages)
}

/// The merged pages, each named by its fill byte.
fn merged(min: u64, inputs: &[Vec<u8>]) -> Result<Vec<(u32, u8)>, MergeError> {
    let decoders = decoders(inputs);
    let commit = decoders.last().unwrap().header().commit;
    let header = Header::compacted(size(512), commit, TxId(min), TxId(99), 0);
    let (bytes, written) = merge(decoders, Vec::new(), header)?;
    assert_eq!(written, bytes.len() as u64);
    let (read, pages) = decode(&bytes).unwrap();
    assert_eq!(read, header);
    Ok(pages.into_iter().map(|(pgno, page)| (pgno.0, page[0])).collect())
}

#[test]
fn the_newest_image_wins() {
    let inputs = [delta(2, 9, &[(1, 1), (4, 1), (9, 1)]), delta(3, 9, &[(1, 2), (5, 2)]), delta(4, 9, &[(5, 3)])];
    assert_eq!(merged(2, &inputs).unwrap(), [(1, 2), (4, 1), (5, 3), (9, 1)]);
}

#[test]
fn pages_beyond_the_final_commit_are_dropped() {
    let inputs = [delta(2, 9, &[(1, 1), (8, 1), (9, 1)]), delta(3, 8, &[(1, 2)])];
    assert_eq!(merged(2, &inputs).unwrap(), [(1, 2), (8, 1)]);
}

/// Shrinking to 3 pages cuts page 5 off. That the database has 5 pages again at the end does not bring its image back.
#[test]
fn a_page_that_was_cut_off_comes_back_as_zeros() {
    let inputs = [delta(2, 5, &[(4, 1), (5, 1)]), delta(3, 3, &[(1, 2)]), delta(4, 6, &[(4, 3)])];
    assert_eq!(merged(2, &inputs).unwrap(), [(1, 2), (4, 3), (5, 0), (6, 0)]);
}

#[test]
fn filling_up_leaves_the_lock_page_out() {
    let header = |commit| Header::compacted(size(65536), PageCount(commit), TxId(2), TxId(2), 0);
    let inputs = [encode(header(16383), &[]), encode(header(16387), &[(Pgno(16384), vec![1; 65536])])];
    let (bytes, _) = merge(decoders(&inputs), Vec::new(), header(16387)).unwrap();
    let numbers: Vec<u32> = decode(&bytes).unwrap().1.iter().map(|(pgno, _)| pgno.0).collect();
    assert_eq!(numbers, [16384, 16386, 16387]);
}

#[test]
fn a_snapshot_must_come_out_complete() {
    let base = delta(1, 3, &[(1, 1), (2, 1), (3, 1)]);
    assert_eq!(merged(1, &[base, delta(2, 3, &[(2, 2)])]).unwrap(), [(1, 1), (2, 2), (3, 1)]);
    let pieces = [delta(2, 3, &[(1, 1), (2, 1)]), delta(3, 3, &[(1, 1)])];
    assert!(matches!(merged(1, &pieces), Err(MergeError::Output(_))));
}

#[test]
fn a_damaged_input_is_named_even_where_its_pages_lose() {
    let good = [delta(2, 3, &[(1, 1), (3, 1)]), delta(3, 3, &[(1, 2), (3, 2)])];
    for damaged in 0..good.len() {
        for at in [101, good[damaged].len() - 1] {
            let mut inputs = good.clone();
            inputs[damaged][at] ^= 1;
            match merged(2, &inputs) {
                Err(MergeError::Input { index, .. }) => assert_eq!(index, damaged),
                other => panic!("byte {at} of input {damaged}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_header_that_does_not_fit_the_inputs_is_refused() {
    let header = |bytes, commit| Header::compacted(size(bytes), PageCount(commit), TxId(2), TxId(2), 0);
    let inputs = [delta(2, 3, &[]), delta(3, 4, &[])];
    for wrong in [header(512, 3), header(1024, 4)] {
        assert!(merge(decoders(&inputs), Vec::new(), wrong).is_err());
    }
    assert!(merge(decoders(&inputs), Vec::new(), header(512, 4)).is_ok());
    assert!(merge(decoders(&[]), Vec::new(), header(512, 4)).is_err());
}

#[test]
fn merging_gives_the_pages_that_litestream_merges_to() {
    let inputs = [
        include_bytes!("../fixtures/level-0-snapshot.ltx").to_vec(),
        include_bytes!("../fixtures/level-0-delta.ltx").to_vec(),
    ];
    let (theirs, pages) = decode(include_bytes!("../fixtures/level-1-merged.ltx")).unwrap();
    let (ours, _) = merge(decoders(&inputs), Vec::new(), theirs).unwrap();
    assert_eq!(decode(&ours).unwrap(), (theirs, pages));
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Held {
    /// What the page held before all inputs.
    Before,
    /// What an input wrote, by its fill byte; zero where the file was extended.
    Written(u8),
}

proptest! {
    #[test]
    fn a_merge_is_its_inputs_one_after_the_other(
        steps in prop::collection::vec((1u32..12, prop::collection::btree_set(1u32..12, 0..6)), 1..7),
    ) {
        let mut model = vec![Held::Before; steps[0].0 as usize];
        let mut inputs = Vec::new();
        for (number, (commit, pages)) in steps.iter().enumerate() {
            let fill = number as u8 + 1;
            model.resize(*commit as usize, Held::Written(0));
            let pages: Vec<(u32, u8)> = pages.iter().filter(|&pgno| pgno <= commit).map(|&pgno| (pgno, fill)).collect();
            pages.iter().for_each(|&(pgno, fill)| model[pgno as usize - 1] = Held::Written(fill));
            inputs.push(delta(number as u64 + 2, *commit, &pages));
        }
        let expected: Vec<(u32, u8)> = (1..)
            .zip(model)
            .filter_map(|(pgno, held)| match held {
                Held::Before => None,
                Held::Written(fill) => Some((pgno, fill)),
            })
            .collect();
        prop_assert_eq!(merged(2, &inputs).unwrap(), expected);
    }
}
