//! Fetching pages from objects, also damaged, moved and local ones.

#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use std::os::unix::fs::FileExt;

use super::*;
use crate::replica::bed::{Bucket, History, PAGE, content, indexes, name};
use crate::replica::page_map::PageMap;
use crate::replica::read_ahead::ReadAhead;

struct Bed {
    bucket: Arc<Bucket>,
    replica: Replica,
    map: PageMap,
    _dir: tempfile::TempDir,
}

/// One snapshot of 40 pages.
fn bed() -> Bed {
    let bucket = Bucket::new();
    let replica = Replica::new(bucket.clone(), "db");
    let mut history = History::default();
    history.commit(1, 40, 1..=40);
    history.put(&bucket, &replica, 9, 1, 1);
    let dir = tempfile::tempdir().unwrap();
    let map = PageMap::create(dir.path(), PAGE).unwrap();
    map.apply(&indexes(&replica, None).unwrap()).unwrap();
    bucket.take_gets();
    Bed { bucket, replica, map, _dir: dir }
}

impl Bed {
    fn run(&self, missing: u32) -> Run {
        ReadAhead::default().run(&self.map, Pgno(missing), Pgno(41.min(missing + 16)), |_| true).unwrap().0
    }

    fn source(&self) -> PageSource {
        PageSource::new(self.replica.clone(), Arc::new(NoLocalObjects), Duration::from_secs(30))
    }
}

/// All pages of a run.
fn unpacked(source: &PageSource, run: &Run) -> Result<Unpacked, ReadError> {
    let mut all = Vec::new();
    let mut keep = |some: &Unpacked| {
        let page = |at: usize| (some.pgnos()[at], some.bytes(at..at + 1).to_vec());
        all.extend((0..some.pgnos().len()).map(page));
        Ok(())
    };
    source.pages(run, PAGE, &mut keep)?;
    Ok(Unpacked::of(PAGE, all))
}

#[test]
fn a_run_is_one_request_and_gives_every_page_of_it() {
    let bed = bed();
    for missing in [1, 30, 40] {
        let run = bed.run(missing);
        assert_eq!(run.pages.len(), 16.min(41 - missing as usize));
        let pages = unpacked(&bed.source(), &run).unwrap();
        let expected: Vec<_> = (missing..).take(run.pages.len()).map(|pgno| (Pgno(pgno), content(pgno, 1))).collect();
        assert!(pages == Unpacked::of(PAGE, expected));
        assert_eq!(bed.bucket.take_gets().len(), 1);
    }
}

#[test]
fn a_run_stays_within_its_bytes_and_bridges_small_gaps_only() {
    let bed = bed();
    let all = Pgno(41);
    let plan = |limits: ReadAhead, wanted: fn(Pgno) -> bool| limits.run(&bed.map, Pgno(5), all, wanted).unwrap();
    let (run, next) = plan(ReadAhead { bytes: 5000, gap: 0 }, |_| true);
    let (first, last) = (run.pages[0].1, run.pages.last().unwrap().1);
    assert!(run.pages.len() > 1 && last.offset + u64::from(last.len) - first.offset <= 5000);
    assert_eq!(next.0, run.pages.last().unwrap().0.0 + 1);
    let (run, _) = plan(ReadAhead { bytes: 1, gap: 0 }, |_| true);
    assert_eq!(run.pages.len(), 1);
    let pages = |(run, next): (Run, Pgno)| (run.pages.iter().map(|page| page.0.0).collect::<Vec<_>>(), next.0);
    let without_8 = |pgno: Pgno| pgno.0 != 8;
    assert_eq!(pages(plan(ReadAhead { bytes: 1 << 20, gap: 0 }, without_8)), (vec![5, 6, 7], 9));
    let (bridged, next) = pages(plan(ReadAhead::default(), without_8));
    assert_eq!((bridged, next), ((5..=40).filter(|pgno| *pgno != 8).collect(), 41));
    let (run, _) = plan(ReadAhead::default(), without_8);
    let expected: Vec<_> = run.pages.iter().map(|(pgno, _)| (*pgno, content(pgno.0, 1))).collect();
    assert!(unpacked(&bed.source(), &run).unwrap() == Unpacked::of(PAGE, expected));
    assert_eq!(bed.bucket.take_gets().len(), 1);
    let (zeros, _) = ReadAhead::default().run(&bed.map, Pgno(41), Pgno(50), |_| true).unwrap();
    assert_eq!(unpacked(&bed.source(), &zeros).unwrap(), Unpacked::zeros(PAGE, [Pgno(41)]));
    assert!(bed.bucket.take_gets().is_empty());
}

#[test]
fn a_damaged_page_is_an_error_that_names_it_and_a_damaged_neighbour_is_none() {
    let bed = bed();
    let at = bed.map.location(Pgno(7)).unwrap().offset as usize;
    bed.bucket.tamper(&bed.replica.ltx(&name(9, 1, 1)), |bytes| bytes[at + 3] = 9);
    let pages = unpacked(&bed.source(), &bed.run(5)).unwrap();
    assert!(pages == Unpacked::of(PAGE, [5, 6].map(|pgno| (Pgno(pgno), content(pgno, 1))).to_vec()));
    let error = Error::from(unpacked(&bed.source(), &bed.run(7)).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let text = error.to_string();
    for part in ["9/0000000000000001-0000000000000001.ltx", "memory://bucket/db", "page 7", "page number: 9, not 7"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

struct Outbox(tempfile::TempDir);

struct Frozen(std::fs::File);

impl ReadAt for Frozen {
    /// As inside an envelope of 33 bytes, and never all at once.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let part = buf.len().min(100);
        self.0.read_at(&mut buf[..part], offset + 33)
    }
}

impl LocalObjects for Outbox {
    fn open(&self, name: &ObjectName) -> Option<Box<dyn ReadAt>> {
        let file = std::fs::File::open(self.0.path().join(name.max.to_string())).ok()?;
        Some(Box::new(Frozen(file)))
    }
}

#[test]
fn pages_of_a_delta_in_the_outbox_are_read_there_until_it_is_in_the_bucket() {
    let bed = bed();
    let mut history = History::default();
    history.commit(1, 40, 1..=40);
    history.commit(2, 40, [3, 4, 5]);
    let bytes = history.object(0, 2, 2);
    let size = bytes.len() as u64;
    let index = crate::replica::index_fetch::ObjectIndex::decode(name(0, 2, 2), None, size, &bytes, &bytes).unwrap();
    bed.map.apply(&[index]).unwrap();
    let outbox = Outbox(tempfile::tempdir().unwrap());
    let frozen = outbox.0.path().join("0000000000000002");
    std::fs::write(&frozen, [vec![7; 33], bytes.clone()].concat()).unwrap();
    let source = PageSource::new(bed.replica.clone(), Arc::new(outbox), Duration::from_secs(30));
    let expected = [3, 4, 5].map(|pgno| (Pgno(pgno), content(pgno, 2)));
    assert!(unpacked(&source, &bed.run(3)).unwrap() == Unpacked::of(PAGE, expected.to_vec()));
    assert!(bed.bucket.take_gets().is_empty());

    let generation = bed.bucket.set(&bed.replica.ltx(&name(0, 2, 2)), bytes);
    let looked_up_before = bed.run(3);
    bed.map.uploaded(&name(0, 2, 2), generation);
    std::fs::remove_file(frozen).unwrap();
    assert!(matches!(unpacked(&source, &looked_up_before), Err(ReadError::Stale(_))));
    assert!(unpacked(&source, &bed.run(3)).unwrap() == Unpacked::of(PAGE, expected.to_vec()));
    assert_eq!(bed.bucket.take_gets().len(), 1);
}

#[test]
fn a_wait_for_the_bucket_ends_and_says_what_was_tried() {
    let bed = bed();
    let _never_opened = bed.bucket.hold();
    let source = PageSource::new(bed.replica.clone(), Arc::new(NoLocalObjects), Duration::from_millis(20));
    let error = Error::from(unpacked(&source, &bed.run(5)).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("of 9/0000000000000001-0000000000000001.ltx in memory://bucket/db"), "{error}");
}

#[test]
fn a_gone_object_is_told_from_a_damaged_one() {
    let bed = bed();
    let run = bed.run(5);
    let whole = bed.replica.ltx(&name(9, 1, 1));
    bed.bucket.set(&whole, vec![0; 100_000]);
    assert!(matches!(unpacked(&bed.source(), &run), Err(ReadError::Moved(_))));
    bed.bucket.remove(&whole);
    assert!(matches!(unpacked(&bed.source(), &run), Err(ReadError::Moved(_))));
}

/// Frames of both forms with bytes behind them, as a rounded length brings them.
#[test]
fn the_frame_is_found_among_the_bytes_behind_it() {
    use std::io::Write;
    let body = content(2, 1);
    let head = |flags: u16| [2u32.to_be_bytes().as_slice(), flags.to_be_bytes().as_slice()].concat();
    let block = lz4_flex::block::compress(&body);
    let mut frames = vec![[head(1), (block.len() as u32).to_be_bytes().to_vec(), block].concat()];
    for bits in 0..16 {
        let info = lz4_flex::frame::FrameInfo::new()
            .block_size(lz4_flex::frame::BlockSize::Max64KB)
            .block_checksums(bits & 1 != 0)
            .content_checksum(bits & 2 != 0)
            .content_size((bits & 4 != 0).then_some(4096));
        let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
        // With bit 8 in two blocks.
        let cut = if bits & 8 != 0 { 1000 } else { 4096 };
        encoder.write_all(&body[..cut]).unwrap();
        encoder.flush().unwrap();
        encoder.write_all(&body[cut..]).unwrap();
        frames.push([head(0), encoder.finish().unwrap()].concat());
    }
    let mut page = body.clone();
    for frame in frames {
        for behind in [0, 1, 36] {
            let bytes = [frame.clone(), vec![0xa5; behind]].concat();
            assert_eq!(frame_len(&bytes), Some(frame.len()));
            page.fill(0xff);
            unpack_page(Pgno(2), &bytes, &mut page).unwrap();
            assert!(page == body);
        }
        for end in 0..frame.len() {
            assert!(unpack_page(Pgno(2), &frame[..end], &mut page).is_err());
        }
    }
}
