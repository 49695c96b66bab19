//! The cache file against a model: presence, flights, eviction, hydration.

#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use proptest::prelude::{ProptestConfig, any, proptest};

use super::*;
use crate::cache::presence::UNIT_BYTES;
use crate::page::TxId;
use crate::replica::bed::{Bucket, Get, History, PAGE, content, indexes, ltx, name};
use crate::replica::fetch::NoLocalObjects;
use crate::replica::names::Replica;

const BYTES: u64 = 4096;

/// A bucket with a history in it, and a directory for caches.
struct Bed {
    bucket: Arc<Bucket>,
    replica: Replica,
    history: History,
    dir: tempfile::TempDir,
}

impl Bed {
    fn empty() -> Bed {
        let bucket = Bucket::new();
        let replica = Replica::new(bucket.clone(), "db");
        Bed { bucket, replica, history: History::default(), dir: tempfile::tempdir().unwrap() }
    }

    /// One snapshot of so many pages.
    fn of(pages: u32) -> Bed {
        let mut bed = Bed::empty();
        bed.commit(pages, 1..=pages);
        bed
    }

    /// One more transaction, in a delta of its own.
    fn commit(&mut self, size: u32, pages: impl IntoIterator<Item = u32>) -> u64 {
        let txid = self.history.head() + 1;
        self.history.commit(txid, size, pages);
        self.history.put(&self.bucket, &self.replica, 0, txid, txid);
        txid
    }

    fn main(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn source(&self) -> PageSource {
        PageSource::new(self.replica.clone(), Arc::new(NoLocalObjects), Duration::from_secs(30))
    }

    /// Opens cold as of a transaction, or of the head.
    fn cold(&self, target: Option<u64>) -> CacheFile {
        let dir = self.dir.path();
        let map = PageMap::create(dir, PAGE).unwrap();
        map.rebuild(&indexes(&self.replica, target).unwrap()).unwrap();
        let cache = CacheFile::create(dir, &self.main(), map, self.source()).unwrap();
        self.bucket.take_gets();
        cache
    }

    fn warm(&self) -> Result<CacheFile, NotUsable> {
        CacheFile::open(self.dir.path(), &self.main(), PageMap::open(self.dir.path())?, self.source())
    }

    /// Applies one transaction's delta to the map, as after the checkpoint that wrote its pages; all that was written is clean.
    fn merge(&self, cache: &CacheFile, txid: u64) {
        self.merge_only(cache, txid);
        cache.set_clean(cache.end_epoch());
    }

    fn merge_only(&self, cache: &CacheFile, txid: u64) {
        let listed = crate::replica::bed::run(self.replica.list()).unwrap();
        let listed = listed.into_iter().find(|object| object.name == name(0, txid, txid)).unwrap();
        cache.map().apply(&[crate::replica::bed::run(self.replica.index(&listed)).unwrap()]).unwrap();
        self.bucket.take_gets();
    }
}

/// What a checkpoint of SQLite's does with a page.
fn checkpoint(cache: &CacheFile, pgno: u32, page: &[u8]) {
    let start = u64::from(pgno - 1) * BYTES;
    let code = cache.write(start..start + BYTES, &mut || {
        cache.pages.file.write_all_at(page, start).unwrap();
        0
    });
    assert_eq!(code.unwrap(), 0);
}

fn page(cache: &CacheFile, pgno: u32) -> Vec<u8> {
    cache.page(Pgno(pgno)).unwrap()
}

/// That no bytes were asked for twice; a request may reach into what follows by the rounding of a length.
fn assert_nothing_twice(gets: &[Get], step: u64) {
    let mut ranges: Vec<_> = gets.iter().map(|get| (get.name.clone(), get.range.clone().unwrap())).collect();
    ranges.sort_by_key(|(name, range)| (name.clone(), range.start));
    for pair in ranges.windows(2) {
        let [(a, first), (b, second)] = pair else { unreachable!() };
        assert!(a != b || first.end < second.start + step, "{a}: {first:?} and {second:?}");
    }
}

/// Yields until it holds; fails after a bounded number of looks.
fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..20_000_000 {
        if holds() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("never came: {what}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Histories with several levels, overlapping objects, shrinking and growing, read in random order at every target.
    #[test]
    fn every_page_of_every_state_is_read_right_and_fetched_once(seed in any::<u64>()) {
        let mut rng = Rng::with_seed(seed);
        let mut bed = Bed::empty();
        bed.history = History::random(&mut rng, 12);
        bed.history.put_randomly(&bed.bucket, &bed.replica, &mut rng);
        for target in 1..=bed.history.head() {
            if indexes(&bed.replica, Some(target)).is_none() {
                continue; // The state exists only inside a compacted object.
            }
            let mut cache = bed.cold(Some(target));
            // Gaps are bridged by asking for bytes that are there.
            cache.read_ahead.gap = 0;
            let state = bed.history.state(target);
            assert_eq!((cache.map().txid(), cache.total().0), (TxId(target), state.len() as u32));
            let mut order: Vec<u32> = (1..=state.len() as u32).collect();
            rng.shuffle(&mut order);
            for pgno in &order {
                assert!(page(&cache, *pgno) == state[*pgno as usize - 1], "page {pgno} as of {target}, seed {seed}");
            }
            assert_nothing_twice(&bed.bucket.take_gets(), cache.map().len_step().into());
            assert_eq!(cache.present(), state.len() as u32);
            for pgno in order {
                assert!(page(&cache, pgno) == state[pgno as usize - 1]);
            }
            assert!(bed.bucket.take_gets().is_empty());
        }
        assert!(indexes(&bed.replica, None).is_some());
    }

    /// Reads, checkpoints, forgetting, eviction and truncation at random against the model, through two openings.
    #[test]
    fn whatever_is_written_forgotten_and_evicted_reads_are_right(seed in any::<u64>()) {
        let mut rng = Rng::with_seed(seed);
        let mut bed = Bed::of(50);
        let cache = [bed.cold(None), bed.warm().unwrap()];
        for _ in 0..60 {
            let one = &cache[rng.usize(..2)];
            let size = bed.history.state(bed.history.head()).len() as u32;
            let pgno = rng.u32(1..=size);
            match rng.u8(..10) {
                0 => one.forget([Pgno(pgno)]).unwrap(),
                1 | 2 => {
                    let (unit, stamp) = one.pages.unit(Pgno(pgno));
                    assert!(one.pages.evict(unit, stamp).unwrap());
                }
                3 => one.clear_all().unwrap(),
                4 | 5 => {
                    let new_size = if rng.bool() { size } else { rng.u32(1..80) };
                    let changed: Vec<u32> = (1..=new_size).filter(|&p| p > size || rng.u8(..8) == 0).collect();
                    let txid = bed.commit(new_size, changed);
                    for (pgno, bytes) in &bed.history.writes[txid as usize - 1] {
                        let mut bytes = bytes.clone();
                        if *pgno == 1 {
                            bytes[..16].copy_from_slice(&MASK);
                        }
                        checkpoint(one, *pgno, &bytes);
                    }
                    let bytes = u64::from(new_size) * BYTES;
                    one.truncate(bytes, &mut || { one.pages.file.set_len(bytes).unwrap(); 0 }).unwrap();
                    bed.merge(one, txid);
                }
                _ => assert!(page(one, pgno) == bed.history.state(bed.history.head())[pgno as usize - 1], "seed {seed}"),
            }
        }
        for one in &cache {
            let state = bed.history.state(bed.history.head());
            assert_eq!(one.total().0, state.len() as u32);
            for (at, expected) in state.iter().enumerate() {
                assert!(&page(one, at as u32 + 1) == expected, "page {} at the end, seed {seed}", at + 1);
            }
            let counted = one.present();
            one.recount();
            assert_eq!(counted, one.present());
        }
    }
}

#[test]
fn a_cold_open_reads_only_touched_pages() {
    let bed = Bed::of(200);
    let cache = bed.cold(None);
    assert_eq!((cache.present(), cache.total()), (0, PageCount(200)));
    page(&cache, 150);
    assert_eq!(bed.bucket.take_gets().len(), 1);
    assert_eq!(cache.present(), 16);
    assert_eq!(cache.pages.file.metadata().unwrap().len(), 200 * BYTES);
    assert!(cache.pages.file.metadata().unwrap().blocks() * 512 < 40 * BYTES);
}

#[test]
fn threads_that_miss_pages_of_one_run_share_one_request() {
    let bed = Bed::of(16);
    let cache = bed.cold(None);
    let gate = bed.bucket.hold();
    std::thread::scope(|scope| {
        scope.spawn(|| page(&cache, 1));
        until("the first request", || bed.bucket.under_way().0 == 1);
        let others: Vec<_> = (0..7u32)
            .map(|n| {
                (
                    n,
                    scope.spawn({
                        let cache = &cache;
                        move || page(cache, 1 + 2 * n)
                    }),
                )
            })
            .collect();
        until("seven waiting threads", || cache.flights.waiters(Pgno(1)) == 7);
        gate.open();
        for (n, other) in others {
            assert!(other.join().unwrap() == content(1 + 2 * n, 1));
        }
    });
    assert_eq!(bed.bucket.take_gets().len(), 1);
}

#[test]
fn a_scan_is_fetched_ahead_in_several_requests_at_a_time_and_no_page_twice() {
    let mut bed = Bed::empty();
    bed.commit(3000, 1..=3000);
    let mut cache = bed.cold(None);
    cache.read_ahead.gap = 0;
    for pgno in 1..=3000 {
        assert!(page(&cache, pgno) == content(pgno, 1), "page {pgno}");
    }
    let gets = bed.bucket.take_gets();
    assert!(gets.len() < 100, "{} requests for 3000 pages", gets.len());
    assert_nothing_twice(&gets, cache.map().len_step().into());
    // While the scan waits for one request, the others of its window are under way.
    let bed = Bed::of(3000);
    let cache = bed.cold(None);
    (1..=500).for_each(|pgno| drop(page(&cache, pgno)));
    until("the end of what is fetched ahead", || bed.bucket.under_way().0 == 0);
    let gate = bed.bucket.hold();
    std::thread::scope(|scope| {
        scope.spawn(|| (501..=3000).for_each(|pgno| drop(page(&cache, pgno))));
        until("several requests at a time", || bed.bucket.under_way().0 > 3);
        gate.open();
    });
}

#[test]
fn a_cache_that_is_dropped_while_pages_are_fetched_ahead_lets_go_of_the_file_first() {
    let bed = Bed::of(3000);
    let cache = bed.cold(None);
    let gate = bed.bucket.hold();
    let pages = Arc::downgrade(&cache.pages);
    let fetches = cache.flights.ahead(|_| false, |free| cache.plan(Pgno(1), Pgno(1000), free)).unwrap();
    for (flight, (run, stamps)) in fetches {
        cache.background.fetch(&cache.pages, &cache.source, flight, run, stamps);
    }
    until("a request", || bed.bucket.under_way().0 > 0);
    drop(cache);
    assert_eq!(pages.strong_count(), 0);
    gate.open();
}

#[test]
fn room_that_is_asked_for_does_not_count_until_it_is_taken() {
    let bed = Bed::of(10);
    let cache = bed.cold(None);
    let limit = 1 << 30;
    cache.bound(limit, Box::new(|| 0));
    for _ in 0..100 {
        assert!(cache.make_room(limit / 4).unwrap(), "what may be written at most is not written");
    }
    // The measurement that both count on may be made anew in between, once.
    let taken = (0..20).filter(|_| cache.take_room(limit / 4).unwrap()).count();
    assert!((3..=8).contains(&taken), "{taken}");
}

#[test]
fn what_a_checkpoint_wrote_is_not_evicted_before_its_epoch_is_clean() {
    let mut bed = Bed::of(200);
    let cache = bed.cold(None);
    let evict = |pgno: u32| {
        let (unit, stamp) = cache.pages.unit(Pgno(pgno));
        cache.pages.evict(unit, stamp).unwrap()
    };
    let txid = bed.commit(200, [20]);
    checkpoint(&cache, 20, &content(20, txid));
    assert!(!evict(20), "written, and in no epoch that is clean");
    let first = cache.end_epoch();
    checkpoint(&cache, 40, &content(40, 1));
    assert!(cache.has_unclean());
    bed.merge_only(&cache, txid);
    cache.set_clean(first);
    assert!(evict(20));
    assert!(!evict(40), "written after that epoch");
    assert!(page(&cache, 20) == content(20, txid));
    cache.set_clean(cache.end_epoch());
    assert!(evict(40) && !cache.has_unclean());
}

/// Within the bound and the pages of one flight, whatever is read, and every page is right.
#[test]
fn a_bounded_cache_takes_no_more_than_it_may_and_reads_right() {
    let bed = Bed::of(3000);
    let caches = [bed.cold(None), bed.warm().unwrap()];
    let limit = 64 * UNIT_BYTES;
    for cache in &caches {
        cache.bound(limit, Box::new(|| 10 * BYTES));
    }
    std::thread::scope(|scope| {
        for (seed, cache) in caches.iter().chain(&caches).enumerate() {
            scope.spawn(move || {
                let mut rng = Rng::with_seed(seed as u64);
                for _ in 0..40 {
                    let from = rng.u32(1..3000);
                    let pages = if rng.bool() { 1 } else { 200 };
                    for pgno in from..(from + pages).min(3001) {
                        assert!(page(cache, pgno) == content(pgno, 1), "page {pgno}");
                    }
                }
            });
        }
    });
    until("the end of what is fetched ahead", || bed.bucket.under_way().0 == 0);
    let [one, two] = caches;
    drop(two);
    let present = u64::from(one.present()) * BYTES;
    assert!(present <= limit, "{present} bytes are present");
    one.recount();
    assert_eq!(u64::from(one.present()) * BYTES, present);
    let on_disk = one.pages.file.metadata().unwrap().blocks() * 512;
    assert!(on_disk <= present + 32 * UNIT_BYTES, "{on_disk} bytes on disk for {present} that are present");
}

#[test]
fn a_page_can_be_read_where_all_the_room_is_taken_by_what_must_stay() {
    let bed = Bed::of(300);
    let cache = bed.cold(None);
    cache.bound(16 * UNIT_BYTES, Box::new(|| 17 * UNIT_BYTES));
    for pgno in [7, 150, 299, 8, 7] {
        assert!(page(&cache, pgno) == content(pgno, 1));
    }
    assert!(u64::from(cache.present()) * BYTES <= 4 * UNIT_BYTES, "the others went");
}

#[test]
fn pages_that_are_used_stay_while_others_pass_through() {
    let bed = Bed::of(3000);
    let cache = bed.cold(None);
    cache.bound(64 * UNIT_BYTES, Box::new(|| 0));
    page(&cache, 1);
    bed.bucket.take_gets();
    let mut missed = 0;
    for pgno in (100..3000).step_by(20) {
        page(&cache, pgno);
        page(&cache, 1);
        missed += bed.bucket.take_gets().iter().filter(|get| get.range.clone().unwrap().start == 100).count();
    }
    assert_eq!(missed, 0);
}

#[test]
fn those_who_wait_get_the_error_and_the_next_read_tries_again() {
    let bed = Bed::of(32);
    let cache = bed.cold(None);
    let object = bed.replica.ltx(&name(0, 1, 1));
    let at = cache.map().location(Pgno(3)).unwrap().offset as usize + 3;
    bed.bucket.tamper(&object, |bytes| bytes[at] ^= 1);
    let gate = bed.bucket.hold();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| cache.page(Pgno(3)));
        until("the request", || bed.bucket.under_way().0 == 1);
        let second = scope.spawn(|| cache.page(Pgno(3)));
        until("a waiting thread", || cache.flights.waiters(Pgno(3)) == 1);
        gate.open();
        for reader in [first, second] {
            let error = reader.join().unwrap().unwrap_err();
            assert!(error.to_string().contains("page 3"), "{error}");
        }
    });
    bed.bucket.tamper(&object, |bytes| bytes[at] ^= 1);
    assert!(page(&cache, 3) == content(3, 1));
}

/// As an eviction by another process between the check of the bits and the read.
#[test]
fn a_read_that_met_an_eviction_is_done_again() {
    let bed = Bed::of(32);
    let cache = bed.cold(None);
    page(&cache, 20);
    let runs = Cell::new(0);
    let mut bytes = vec![0; BYTES as usize];
    let range = 19 * BYTES..20 * BYTES;
    let code = cache.read(range.clone(), &mut || {
        runs.set(runs.get() + 1);
        if runs.get() == 1 {
            let (unit, stamp) = cache.pages.unit(Pgno(20));
            assert!(cache.pages.evict(unit, stamp).unwrap());
        }
        cache.pages.file.read_exact_at(&mut bytes, range.start).unwrap();
        42
    });
    assert_eq!((code.unwrap(), runs.get()), (42, 2));
    assert!(bytes == content(20, 1));
}

#[test]
fn readers_never_see_a_hole_while_units_are_evicted_through_another_opening() {
    let bed = Bed::of(32);
    let (cache, other) = (bed.cold(None), bed.warm().unwrap());
    let (expected, done) = ([content(5, 1), content(25, 1)], AtomicBool::new(false));
    let (reads, holes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for at in 0..2 {
            let (cache, expected, done, reads, holes) = (&cache, &expected, &done, &reads, &holes);
            scope.spawn(move || {
                let (pgno, mut bytes) = ([5, 25][at], vec![0; BYTES as usize]);
                let start = (pgno - 1) * BYTES;
                while !done.load(Ordering::Relaxed) {
                    let mut base = || {
                        // As a reader that the scheduler stops between its look at the bits and its read.
                        std::thread::yield_now();
                        cache.pages.file.read_exact_at(&mut bytes, start).unwrap();
                        0
                    };
                    cache.read(start..start + BYTES, &mut base).unwrap();
                    holes.fetch_add(usize::from(bytes != expected[at]), Ordering::Relaxed);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut evicted = 0;
        while evicted < 2000 || reads.load(Ordering::Relaxed) < 100 {
            for pgno in [5, 25] {
                let (unit, stamp) = other.pages.unit(Pgno(pgno));
                evicted += u32::from(other.pages.evict(unit, stamp).unwrap());
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(holes.into_inner(), 0, "reads that saw a hole, of {}", reads.into_inner());
}

#[test]
fn nothing_is_evicted_from_a_file_that_is_mapped_and_only_what_is_there_is_mapped() {
    let bed = Bed::of(64);
    let (cache, other) = (bed.cold(None), bed.warm().unwrap());
    let bytes = |pgno: u64| (pgno - 1) * BYTES..pgno * BYTES;
    let evict = |pgno: u32| {
        let (unit, stamp) = other.pages.unit(Pgno(pgno));
        other.pages.evict(unit, stamp).unwrap()
    };
    page(&cache, 20);
    assert!(evict(20) && !cache.may_map_bytes(&bytes(20)), "it is not there");
    assert!(page(&cache, 20) == content(20, 1));
    assert!(!evict(20), "one has tried to map it");
    let before = cache.present();
    assert!(cache.may_map_bytes(&bytes(20)) && !cache.may_map_bytes(&bytes(64)) && !cache.may_map_bytes(&bytes(65)));
    page(&cache, 1);
    assert!(!cache.may_map_bytes(&bytes(1)), "its first bytes are masked");
    assert!(!evict(20) && cache.pages.presence.has(Pgno(20)) && cache.present() >= before);
    cache.nothing_is_mapped();
    assert!(evict(20), "all have closed it");
    // Whoever has a bound maps nothing.
    other.bound(1 << 30, Box::new(|| 0));
    assert!(page(&other, 20) == content(20, 1) && !other.may_map_bytes(&bytes(20)));
}

/// An eviction that has looked whether the file is mapped, and a mapping that has looked whether a page is there, at the same moment.
#[test]
fn a_page_that_may_be_mapped_is_not_punched_out_by_an_eviction_that_began_before() {
    let bed = Bed::of(32);
    let (cache, other) = (bed.cold(None), bed.warm().unwrap());
    let range = 4 * BYTES..5 * BYTES;
    let expected = content(5, 1);
    let mut mapped = 0;
    for round in 0..3000u32 {
        assert!(page(&cache, 5) == expected);
        cache.nothing_is_mapped();
        let (unit, stamp) = other.pages.unit(Pgno(5));
        let may = std::thread::scope(|scope| {
            let evict = scope.spawn(|| other.pages.evict(unit, stamp).unwrap());
            (0..round % 64 * 20).for_each(|_| std::hint::spin_loop());
            let may = cache.may_map_bytes(&range);
            evict.join().unwrap();
            may
        });
        if may {
            mapped += 1;
            let mut bytes = vec![0; BYTES as usize];
            cache.pages.file.read_exact_at(&mut bytes, range.start).unwrap();
            assert!(bytes == expected, "a hole in round {round}");
        }
    }
    assert!(mapped > 0);
}

/// The memory that mappings of files with this name take in this process, in kilobytes.
fn resident_kb(path: &std::path::Path) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut ours, mut sum) = (false, 0);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if first.contains('-') && !first.ends_with(':') {
            ours = line.ends_with(&path.display().to_string());
        } else if ours && first == "Rss:" {
            sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    sum
}

/// 100 GB of pages of 4096 bytes: a map of 8 bytes a page is 210 MB, the presence of 24 bytes per 16 pages 39 MB.
#[test]
fn a_point_query_of_100_gb_touches_a_few_pages_of_the_map() {
    const PAGES: u32 = 100 * ((1 << 30) / 4096);
    let bed = Bed::empty();
    let dir = bed.dir.path();
    let wanted = [1, PAGES / 3, PAGES / 2, PAGES];
    let delta = ltx(name(0, 2, 2), PAGE, PAGES, &wanted.iter().map(|&pgno| (pgno, content(pgno, 2))).collect());
    bed.bucket.set(&bed.replica.ltx(&name(0, 2, 2)), delta);
    let listed = crate::replica::bed::run(bed.replica.list()).unwrap();
    let index = crate::replica::bed::run(bed.replica.index(&listed[0])).unwrap();
    let map = PageMap::create(dir, PAGE).unwrap();
    map.apply(&[index]).unwrap();
    drop(CacheFile::create(dir, &bed.main(), map, bed.source()).unwrap());
    assert!(std::fs::metadata(dir.join("map")).unwrap().len() > 200 << 20);

    let cache = bed.warm().unwrap();
    bed.bucket.take_gets();
    for pgno in wanted {
        assert!(page(&cache, pgno) == content(pgno, 2), "page {pgno}");
    }
    assert_eq!(bed.bucket.take_gets().len(), 4);
    let resident = [resident_kb(&dir.join("map")), resident_kb(&dir.join("presence"))];
    // A fault may bring 64 KB around it.
    assert!(resident[0] > 0 && resident.iter().sum::<u64>() <= 2 * 5 * 64, "{resident:?} KB");
}

#[test]
fn an_eviction_decided_before_a_checkpoint_wrote_is_not_carried_out() {
    let bed = Bed::of(32);
    let cache = bed.cold(None);
    page(&cache, 20);
    let (unit, seen) = cache.pages.unit(Pgno(20));
    checkpoint(&cache, 20, &content(20, 9));
    assert!(!cache.pages.evict(unit, seen).unwrap());
    assert!(page(&cache, 20) == content(20, 9));
}

/// Fetches page 20 and, while the request is under way, does something; returns the page that the reader got.
fn while_fetching(bed: &Bed, cache: &CacheFile, meanwhile: impl FnOnce()) -> Vec<u8> {
    let gate = bed.bucket.hold();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| page(cache, 20));
        until("the request", || bed.bucket.under_way().0 == 1);
        meanwhile();
        gate.open();
        reader.join().unwrap()
    })
}

#[test]
fn a_fill_does_not_write_over_what_a_checkpoint_wrote_meanwhile() {
    let bed = Bed::of(32);
    let cache = bed.cold(None);
    let got = while_fetching(&bed, &cache, || checkpoint(&cache, 20, &content(20, 2)));
    assert!(got == content(20, 2));
    assert!(page(&cache, 21) == content(21, 1));
    assert_eq!(bed.bucket.take_gets().len(), 1, "a write of one page does not spoil the fetch of its neighbours");
}

#[test]
fn a_fill_does_not_bring_back_what_was_replaced_and_evicted_meanwhile() {
    let mut bed = Bed::of(32);
    let cache = bed.cold(None);
    let first = bed.history.clone();
    let txid = bed.commit(32, [20]);
    // The index has to be there before requests are held up.
    let bytes = bed.history.object(0, txid, txid);
    let generation = crate::replica::bed::run(bed.replica.list()).unwrap().last().unwrap().meta.generation;
    let index = crate::replica::index_fetch::ObjectIndex::decode(
        name(0, txid, txid),
        Some(generation),
        bytes.len() as u64,
        &bytes,
        &bytes,
    );
    let got = while_fetching(&bed, &cache, || {
        checkpoint(&cache, 20, &content(20, txid));
        cache.map().apply(&[index.unwrap()]).unwrap();
        let (unit, stamp) = cache.pages.unit(Pgno(20));
        cache.set_clean(cache.end_epoch());
        assert!(cache.pages.evict(unit, stamp).unwrap());
    });
    assert!(got != first.state(1)[19], "the old page came back");
    assert!(got == content(20, txid));
}

#[test]
fn two_openings_share_what_is_present() {
    let bed = Bed::of(32);
    let one = bed.cold(None);
    let two = bed.warm().unwrap();
    for pgno in 1..=32 {
        page(&one, pgno);
    }
    bed.bucket.take_gets();
    for pgno in 1..=32 {
        assert!(page(&two, pgno) == content(pgno, 1));
    }
    assert!(bed.bucket.take_gets().is_empty());
    two.forget([Pgno(4)]).unwrap();
    assert_eq!((one.present(), two.present()), (31, 31));
    page(&one, 4);
    assert_eq!(bed.bucket.take_gets().len(), 1);
}

#[test]
fn a_warm_open_of_a_valid_cache_asks_the_bucket_for_nothing() {
    let bed = Bed::of(32);
    let cache = bed.cold(None);
    (1..=32).for_each(|pgno| drop(page(&cache, pgno)));
    drop(cache);
    bed.bucket.take_gets();
    let cache = bed.warm().unwrap();
    (1..=32).for_each(|pgno| assert!(page(&cache, pgno) == content(pgno, 1)));
    assert!(bed.bucket.take_gets().is_empty());
}

#[test]
fn a_cache_that_is_not_what_was_left_is_not_usable_and_says_why() {
    let refused = |spoil: &dyn Fn(&Bed), why: &str| {
        let bed = Bed::of(32);
        drop(page(&bed.cold(None), 1));
        spoil(&bed);
        let found = bed.warm().unwrap_err().0;
        assert!(found.contains(why), "{why}: {found}");
        let cache = bed.cold(None);
        assert!(page(&cache, 7) == content(7, 1));
    };
    let open = |bed: &Bed| OpenOptions::new().write(true).open(bed.main()).unwrap();
    refused(&|bed| std::fs::remove_file(bed.main()).unwrap(), "No such file");
    refused(&|bed| open(bed).set_len(0).unwrap(), "0 bytes long, but 131072 were there");
    refused(&|bed| open(bed).set_len(31 * BYTES).unwrap(), "bytes long, but");
    refused(&|bed| open(bed).write_all_at(&MAGIC, 0).unwrap(), "first bytes");
    let replaced = |bed: &Bed| {
        let copy = bed.dir.path().join("copy");
        std::fs::copy(bed.main(), &copy).unwrap();
        std::fs::rename(copy, bed.main()).unwrap();
    };
    refused(&replaced, "not the one that the cache was made for");
    for file in ["presence", "map", "objects"] {
        refused(&|bed| std::fs::remove_file(bed.dir.path().join(file)).unwrap(), file);
        refused(&|bed| std::fs::write(bed.dir.path().join(file), "junk").unwrap(), file);
    }
}

#[test]
fn a_cache_whose_making_was_cut_short_is_not_usable() {
    let bed = Bed::of(32);
    let cache = bed.cold(None);
    page(&cache, 7);
    drop(cache);
    // Its last file cannot be made; the main file has been emptied by then.
    std::fs::create_dir(bed.dir.path().join("presence.new")).unwrap();
    let map = PageMap::open(bed.dir.path()).unwrap();
    assert!(CacheFile::create(bed.dir.path(), &bed.main(), map, bed.source()).is_err());
    assert!(bed.warm().unwrap_err().0.contains("presence"));
}

#[test]
fn page_1_is_masked_on_disk_only() {
    let bed = Bed::of(3);
    let cache = bed.cold(None);
    assert!(page(&cache, 1) == content(1, 1));
    let mut on_disk = vec![0; BYTES as usize];
    cache.pages.file.read_exact_at(&mut on_disk, 0).unwrap();
    assert_eq!(on_disk[..16], MASK);
    assert!(on_disk[16..] == content(1, 1)[16..]);
}

#[test]
fn a_truncation_forgets_the_pages_and_growth_brings_zeros() {
    let bed = Bed::of(40);
    let cache = bed.cold(None);
    (1..=40).for_each(|pgno| drop(page(&cache, pgno)));
    let size = 20 * BYTES;
    let cut = |code: i32| {
        cache.truncate(size, &mut || {
            if code == 0 {
                cache.pages.file.set_len(size).unwrap();
            }
            code
        })
    };
    assert_eq!(cut(10).unwrap(), 10);
    assert_eq!(cut(0).unwrap(), 0);
    assert_eq!((cache.total(), cache.present(), cache.map().pages()), (PageCount(20), 20, PageCount(20)));
    cache.set_size(PageCount(40)).unwrap();
    assert!(page(&cache, 20) == content(20, 1));
    assert!(page(&cache, 21) == vec![0; BYTES as usize] && page(&cache, 40) == vec![0; BYTES as usize]);
}

#[test]
fn a_distrusted_cache_is_read_again_from_the_bucket() {
    let bed = Bed::of(40);
    let cache = bed.cold(None);
    (1..=40).for_each(|pgno| drop(page(&cache, pgno)));
    cache.pages.file.write_all_at(&[1; 9000], 50_000).unwrap();
    cache.clear_all().unwrap();
    assert_eq!((cache.present(), cache.total()), (0, PageCount(40)));
    assert_eq!(cache.pages.file.metadata().unwrap().blocks(), 0);
    (1..=40).for_each(|pgno| assert!(page(&cache, pgno) == content(pgno, 1)));
}

#[test]
fn a_range_of_several_pages_and_units_is_read_whole() {
    let bed = Bed::of(64);
    let cache = bed.cold(None);
    let range = 10 * BYTES + 5..50 * BYTES + 7;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    cache
        .read(range.clone(), &mut || {
            cache.pages.file.read_exact_at(&mut bytes, range.start).unwrap();
            0
        })
        .unwrap();
    let all: Vec<u8> = (1..=64).flat_map(|pgno| content(pgno, 1)).collect();
    assert!(bytes == all[range.start as usize..range.end as usize]);
    // Beyond the end everything is left to the base.
    assert_eq!(cache.read(64 * BYTES..65 * BYTES, &mut || 522).unwrap(), 522);
    assert_eq!(cache.read(63 * BYTES..65 * BYTES, &mut || 522).unwrap(), 522);
}

#[test]
fn a_write_of_part_of_a_missing_page_keeps_the_rest_of_it() {
    let bed = Bed::of(32);
    let cache = bed.cold(None);
    let start = 4 * BYTES + 100;
    cache
        .write(start..start + 10, &mut || {
            cache.pages.file.write_all_at(&[9; 10], start).unwrap();
            0
        })
        .unwrap();
    let mut expected = content(5, 1);
    expected[100..110].fill(9);
    assert!(page(&cache, 5) == expected);
    // From within a page on to the end of the next one.
    let (unit, stamp) = cache.pages.unit(Pgno(7));
    cache.set_clean(cache.end_epoch());
    assert!(cache.pages.evict(unit, stamp).unwrap());
    checkpoint_bytes(&cache, 6 * BYTES + 50, 2 * BYTES - 50);
    assert!(page(&cache, 7)[..50] == content(7, 1)[..50]);
    // A write over the border of two units.
    checkpoint_bytes(&cache, 15 * BYTES, 2 * BYTES);
    assert!(page(&cache, 16) == vec![3; BYTES as usize] && page(&cache, 17) == vec![3; BYTES as usize]);
}

fn checkpoint_bytes(cache: &CacheFile, start: u64, len: u64) {
    let write = &mut || {
        cache.pages.file.write_all_at(&vec![3; len as usize], start).unwrap();
        0
    };
    cache.write(start..start + len, write).unwrap();
}

#[test]
fn a_write_that_failed_makes_no_page_present() {
    let bed = Bed::of(32);
    let cache = bed.cold(None);
    assert_eq!(cache.write(4 * BYTES..5 * BYTES, &mut || 778).unwrap(), 778);
    assert_eq!(cache.present(), 0);
    assert!(page(&cache, 5) == content(5, 1));
}

#[test]
fn a_checkpoint_beyond_the_end_grows_the_cache() {
    let bed = Bed::of(2);
    let cache = bed.cold(None);
    let far = 600_000;
    checkpoint(&cache, far, &content(far, 2));
    assert_eq!(cache.total(), PageCount(far));
    assert!(page(&cache, far) == content(far, 2));
    assert!(page(&cache, far - 1) == vec![0; BYTES as usize]);
    assert!(page(&bed.warm().unwrap(), far) == content(far, 2));
}

#[test]
fn an_object_that_is_gone_is_planned_around_to_the_same_state() {
    let mut bed = Bed::of(32);
    bed.commit(32, [3, 4]);
    let cache = Arc::new(bed.cold(None));
    bed.history.put(&bed.bucket, &bed.replica, 1, 1, 2);
    bed.bucket.remove(&bed.replica.ltx(&name(0, 2, 2)));
    let error = cache.page(Pgno(3)).unwrap_err();
    assert!(error.to_string().contains("0/0000000000000002-0000000000000002.ltx"), "{error}");

    let (replica, weak) = (bed.replica.clone(), Arc::downgrade(&cache));
    let planned = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&planned);
    cache.on_moved(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        let cache = weak.upgrade().unwrap();
        cache.map().rebuild(&indexes(&replica, Some(cache.map().txid().0)).unwrap())
    });
    assert!(page(&cache, 3) == content(3, 2));
    assert!(page(&cache, 20) == content(20, 1));
    assert_eq!(planned.load(Ordering::Relaxed), 1);
}
