//! The page map against a model, and its files when they are damaged.

#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::delta::IndexEntry;
use crate::replica::bed::{PAGE, name};

/// An object of one transaction whose frame of page p begins at `100 + 50 * p`.
fn index(txid: u64, commit: u32, pages: impl IntoIterator<Item = u32>) -> ObjectIndex {
    let entry = |pgno: u32| IndexEntry { pgno: Pgno(pgno), len: 50, offset: 100 + 50 * u64::from(pgno) };
    ObjectIndex {
        name: name(0, txid, txid),
        generation: Some(Generation(txid)),
        size: 1 << 20,
        page_size: PAGE,
        commit: PageCount(commit),
        pages: pages.into_iter().map(entry).collect(),
    }
}

fn map() -> (tempfile::TempDir, PageMap) {
    let dir = tempfile::tempdir().unwrap();
    let map = PageMap::create(dir.path(), PAGE).unwrap();
    map.publish().unwrap();
    (dir, map)
}

/// The transaction whose object has each page; 0 for a page of zeros.
fn owners(map: &PageMap, pages: u32) -> Vec<u64> {
    (1..=pages).map(|pgno| map.find(Pgno(pgno)).unwrap().map_or(0, |(_, object)| object.name.max.0)).collect()
}

#[test]
fn the_newest_object_has_the_page_whether_applied_at_once_or_one_by_one() {
    let objects = [index(1, 6, 1..=6), index(2, 6, [2, 3]), index(3, 7, [3, 7]), index(4, 7, [])];
    let (_dir, at_once) = map();
    at_once.apply(&objects).unwrap();
    let (_dir, one_by_one) = map();
    for object in &objects {
        one_by_one.apply(std::slice::from_ref(object)).unwrap();
    }
    for map in [at_once, one_by_one] {
        assert_eq!(owners(&map, 8), [1, 2, 3, 1, 1, 1, 3, 0]);
        assert_eq!((map.pages(), map.txid()), (PageCount(7), TxId(4)));
    }
}

#[test]
fn a_page_that_was_cut_off_and_grown_over_again_is_one_of_zeros() {
    let objects = [index(1, 6, 1..=6), index(2, 3, [1]), index(3, 6, [6])];
    let (_dir, at_once) = map();
    at_once.apply(&objects).unwrap();
    let (_dir, one_by_one) = map();
    for object in &objects {
        one_by_one.apply(std::slice::from_ref(object)).unwrap();
    }
    for map in [at_once, one_by_one] {
        assert_eq!(owners(&map, 6), [2, 1, 1, 0, 0, 3]);
    }
}

#[test]
fn a_rebuilt_map_forgets_what_the_chain_does_not_have() {
    let (_dir, map) = map();
    map.apply(&[index(1, 6, 1..=6)]).unwrap();
    map.rebuild(&[index(2, 5, [1, 2]), index(3, 5, [2])]).unwrap();
    assert_eq!(owners(&map, 6), [2, 3, 0, 0, 0, 0]);
    assert_eq!(map.objects().len(), 2);
}

#[test]
fn the_lock_page_and_pages_beyond_the_end_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let size = PageSize::new(65536).unwrap();
    let map = PageMap::create(dir.path(), size).unwrap();
    let lock_page = size.lock_page().0;
    let object = ObjectIndex {
        page_size: size,
        ..index(1, lock_page + 1, [lock_page - 1, lock_page, lock_page + 1, lock_page + 2])
    };
    map.apply(&[object]).unwrap();
    let has: Vec<bool> = (lock_page - 1..=lock_page + 2).map(|pgno| map.location(Pgno(pgno)).is_some()).collect();
    assert_eq!(has, [true, false, true, false]);
}

#[test]
fn a_truncation_drops_the_pages_beyond_it() {
    let (_dir, map) = map();
    map.apply(&[index(1, 6, 1..=6)]).unwrap();
    map.truncate(PageCount(4));
    assert_eq!(owners(&map, 6), [1, 1, 1, 1, 0, 0]);
    assert_eq!(map.pages(), PageCount(4));
}

#[test]
fn a_location_covers_its_frame_and_hardly_more() {
    let (_dir, map) = map();
    for len in 1..=4536 {
        let mut object = index(1, 1, [1]);
        object.pages[0].len = len;
        map.apply(&[object]).unwrap();
        let found = map.location(Pgno(1)).unwrap();
        assert!(found.len >= len && found.len < len + map.len_step(), "{} for {len}", found.len);
    }
}

#[test]
fn a_frame_that_cannot_be_is_refused_with_the_objects_name() {
    let (_dir, map) = map();
    map.apply(&[index(1, 1, [1])]).unwrap();
    for (len, offset) in [(0, 100), (5000, 100), (50, 1 << 37)] {
        let mut object = index(2, 1, [1]);
        object.pages[0] = IndexEntry { pgno: Pgno(1), len, offset };
        let error = map.apply(&[object]).unwrap_err();
        assert!(error.to_string().contains("0/0000000000000002-0000000000000002.ltx: index"), "{error}");
        assert_eq!((owners(&map, 1), map.txid()), (vec![1], TxId(1)));
    }
    let other_size = ObjectIndex { page_size: PageSize::new(512).unwrap(), ..index(2, 1, [1]) };
    assert!(map.apply(&[other_size]).unwrap_err().to_string().contains("page size is 512, not 4096"));
}

#[test]
fn another_opening_sees_every_change() {
    let (dir, one) = map();
    one.apply(&[index(1, 3, 1..=3)]).unwrap();
    let two = PageMap::open(dir.path()).unwrap();
    assert_eq!((two.page_size(), two.pages(), owners(&two, 3)), (PAGE, PageCount(3), vec![1, 1, 1]));
    let mut local = index(2, 200_000, [2, 200_000]);
    local.generation = None;
    one.apply(&[local]).unwrap();
    assert_eq!(owners(&two, 3), [1, 2, 1]);
    let (_, far) = two.find(Pgno(200_000)).unwrap().unwrap();
    assert_eq!((far.name, far.generation), (name(0, 2, 2), None));
    one.uploaded(&name(0, 2, 2), Generation(77));
    assert_eq!(two.find(Pgno(2)).unwrap().unwrap().1.generation, Some(Generation(77)));
}

#[test]
fn a_damaged_or_mixed_up_table_is_not_usable() {
    let (dir, map) = map();
    map.apply(&[index(1, 3, 1..=3)]).unwrap();
    drop(map);
    let path = dir.path().join(OBJECTS_FILE);
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[(DATA as usize + 2) * 8] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert!(PageMap::open(dir.path()).unwrap_err().0.contains("checksum of record 0"));
    let (other, _map) = self::map();
    std::fs::copy(other.path().join(OBJECTS_FILE), &path).unwrap();
    assert!(PageMap::open(dir.path()).unwrap_err().0.contains("another page map"));
    std::fs::write(&path, &whole).unwrap();
    assert!(PageMap::open(dir.path()).is_ok());
    std::fs::remove_file(dir.path().join(MAP_FILE)).unwrap();
    assert!(PageMap::open(dir.path()).is_err());
}

#[test]
fn a_database_written_for_ever_needs_no_more_records_than_it_has_objects() {
    let (dir, map) = map();
    map.apply(&[index(1, 100, 1..=100)]).unwrap();
    for txid in 2..10_000 {
        map.apply(&[index(txid, 100, [txid as u32 % 100 + 1])]).unwrap();
    }
    assert_eq!(map.objects().len(), 100);
    let bytes = std::fs::metadata(dir.path().join(OBJECTS_FILE)).unwrap().len();
    assert!(bytes <= 128 * 1024, "{bytes} bytes for 100 objects in use");
}

#[test]
fn eight_bytes_per_page_on_disk() {
    let (dir, map) = map();
    map.apply(&[index(1, 1_000_000, [1_000_000])]).unwrap();
    let bytes = std::fs::metadata(dir.path().join(MAP_FILE)).unwrap().len();
    assert!((8_000_000..8_100_000).contains(&bytes), "{bytes}");
}

/// The slot of an object that lost its last page goes to another one while readers look pages up.
#[test]
fn a_lookup_never_pairs_a_place_with_another_objects_name() {
    let (_dir, map) = map();
    let done = AtomicBool::new(false);
    // Each object's only frame begins at an offset that tells its transaction.
    let object = |txid: u64| {
        let mut object = index(txid, 1, [1]);
        object.pages[0].offset = 1000 * txid;
        object
    };
    map.apply(&[object(1)]).unwrap();
    std::thread::scope(|scope| {
        let reader = || {
            let mut looks = 0u64;
            while !done.load(Ordering::Relaxed) || looks == 0 {
                if let Some((place, found)) = map.find(Pgno(1)).unwrap() {
                    assert_eq!(place.offset, 1000 * found.name.max.0);
                }
                looks += 1;
            }
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for txid in 2..60_000 {
            map.apply(&[object(txid)]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
