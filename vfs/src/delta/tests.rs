//! What the codec promises, on files of its own and on files that Litestream wrote.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::Write as _;

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use proptest::prelude::*;

use super::checksum::FileChecksum;
use super::frame::END_OF_PAGES;
use super::index::IndexBytes;
use super::order::PageOrder;
use super::*;
use crate::page::{PageCount, PageSize, Pgno, TxId};

pub(super) type Pages = Vec<(Pgno, Vec<u8>)>;

pub(super) fn size(bytes: u32) -> PageSize {
    PageSize::new(bytes).unwrap()
}

pub(super) fn encode(header: Header, pages: &[(Pgno, Vec<u8>)]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (pgno, page) in pages {
        encoder.page(*pgno, page).unwrap();
    }
    let (bytes, size) = encoder.finish().unwrap();
    assert_eq!(size, bytes.len() as u64);
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<(Header, Pages), DecodeError> {
    let mut decoder = Decoder::new(bytes)?;
    let mut pages = Vec::new();
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.push((pgno, page.clone()));
    }
    Ok((decoder.finish()?, pages))
}

/// A file as older writers made it: LZ4 frames without a length. It checks nothing.
fn encode_older(header: Header, pages: &[(Pgno, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = header.encode().to_vec();
    let mut checksum = FileChecksum::new();
    checksum.update(&bytes);
    let mut index = IndexBytes::default();
    for (pgno, page) in pages {
        let start = bytes.len();
        bytes.extend_from_slice(&pgno.0.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        checksum.update(&bytes[start..]);
        checksum.update(page);
        let form =
            FrameInfo::new().block_size(BlockSize::Max4MB).block_mode(BlockMode::Independent).content_checksum(true);
        let mut frame = FrameEncoder::with_frame_info(form, &mut bytes);
        frame.write_all(page).unwrap();
        frame.finish().unwrap();
        index.push(*pgno, start as u64, (bytes.len() - start) as u64);
    }
    let covered = bytes.len();
    bytes.extend_from_slice(&END_OF_PAGES);
    bytes.extend_from_slice(&index.finish());
    bytes.extend_from_slice(&[0; 8]);
    checksum.update(&bytes[covered..]);
    bytes.extend_from_slice(&checksum.finish().to_be_bytes());
    bytes
}

/// Three pages of which one compresses well, one a little and one not at all.
fn sample() -> (Header, Pages) {
    let header = Header::level_0(size(512), PageCount(9), TxId(5), 1_700_000_000_123);
    let mut random = 1u32;
    let noise = (0..512).map(|_| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    });
    let text = b"a row and another row and the next row; ".iter().copied().cycle().take(512);
    (header, vec![(Pgno(2), vec![0; 512]), (Pgno(3), text.collect()), (Pgno(9), noise.collect())])
}

fn header_for(page_size: PageSize, pages: &Pages) -> Header {
    let commit = pages.last().map_or(1, |(pgno, _)| pgno.0);
    Header::compacted(page_size, PageCount(commit), TxId(2), TxId(9), -1)
}

fn any_pages() -> impl Strategy<Value = (PageSize, Pages)> {
    let page = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        prop::collection::vec(any::<u8>(), 1..40),
        prop::collection::vec(any::<u8>(), 512),
    ];
    let numbers = prop::collection::btree_map(1u32..5000, page, 0..8);
    ((9u32..=16).prop_map(|bits| size(1 << bits)), numbers).prop_map(|(page_size, numbers)| {
        let stretch = |seed: Vec<u8>| seed.into_iter().cycle().take(page_size.bytes() as usize).collect();
        let pages = numbers.into_iter().filter(|(pgno, _)| *pgno != page_size.lock_page().0);
        (page_size, pages.map(|(pgno, seed)| (Pgno(pgno), stretch(seed))).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_encoded_is_decoded((page_size, pages) in any_pages()) {
        let header = header_for(page_size, &pages);
        for bytes in [encode(header, &pages), encode_older(header, &pages)] {
            prop_assert_eq!(decode(&bytes).unwrap(), (header, pages.clone()));
        }
    }

    #[test]
    fn every_page_is_found_through_the_index((page_size, pages) in any_pages(), spare in 0usize..200) {
        let header = header_for(page_size, &pages);
        for bytes in [encode(header, &pages), encode_older(header, &pages)] {
            let file_size = bytes.len() as u64;
            let needed = tail_layout(&bytes[bytes.len() - TAIL_MIN..], file_size).unwrap() as usize;
            let from = (bytes.len() - needed).saturating_sub(spare);
            let index = PageIndex::decode(&bytes[from..], file_size).unwrap();
            prop_assert_eq!(index.entries().len(), pages.len());
            for (pgno, page) in &pages {
                let entry = index.find(*pgno).unwrap();
                let frame = &bytes[entry.offset as usize..][..entry.len as usize];
                prop_assert_eq!(decode_page_frame(frame, page_size).unwrap(), (*pgno, page.clone()));
            }
            prop_assert!(index.find(Pgno(5001)).is_none());
        }
    }

    /// Bytes are cut out, doubled, overwritten and set to the numbers that break arithmetic. What is still accepted
    /// must be the same delta.
    #[test]
    fn malformed_files_are_errors(
        (page_size, pages) in any_pages(),
        older in any::<bool>(),
        changes in prop::collection::vec((0u8..6, any::<prop::sample::Index>(), any::<u64>()), 1..4),
    ) {
        let header = header_for(page_size, &pages);
        let whole = if older { encode_older(header, &pages) } else { encode(header, &pages) };
        let mut bytes = whole.clone();
        for (kind, at, value) in changes {
            // Most of the structure stands near the two ends.
            let near = if value & 1 == 0 { bytes.len() } else { bytes.len().min(160) };
            let at = at.index(near);
            let at = if value & 2 == 0 { at } else { bytes.len() - 1 - at };
            let extreme = [0u64, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX][(value >> 8) as usize % 6];
            match kind {
                0 => bytes[at] ^= 1 << (value >> 8 & 7),
                1 => bytes[at] = (value >> 8) as u8,
                2 => bytes.insert(at, (value >> 8) as u8),
                3 => drop(bytes.drain(at..(at + 1 + (value >> 8 & 31) as usize).min(bytes.len()))),
                4 => bytes.iter_mut().skip(at).zip((extreme as u32).to_be_bytes()).for_each(|(old, new)| *old = new),
                _ => bytes.iter_mut().skip(at).zip(extreme.to_be_bytes()).for_each(|(old, new)| *old = new),
            }
            if bytes.is_empty() {
                break;
            }
        }
        match decode(&bytes) {
            Ok(decoded) => prop_assert_eq!(decoded, (header, pages)),
            Err(error) => prop_assert!(error.is_malformed() && error.offset() <= bytes.len() as u64, "{}", error),
        }
        // A part of a file promises less; it must not fail in any other way than by an error.
        let file_size = bytes.len() as u64;
        if let Ok(index) = PageIndex::decode(&bytes, file_size) {
            for entry in index.entries() {
                let frame = &bytes[entry.offset as usize..][..entry.len as usize];
                let _ = decode_page_frame(frame, page_size);
            }
        }
        let _ = PageIndex::decode(&bytes, whole.len() as u64);
        let _ = decode_page_frame(&bytes[bytes.len().min(100)..], page_size);
        let _ = Header::decode(&bytes);
    }

    #[test]
    fn noise_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), file_size in any::<u64>()) {
        prop_assert!(verify(&bytes).is_err());
        prop_assert!(PageIndex::decode(&bytes, bytes.len() as u64).is_err());
        let _ = tail_layout(&bytes, file_size);
        let _ = PageIndex::decode(&bytes, file_size);
        let _ = decode_page_frame(&bytes, size(512));
        let mut frame = vec![0, 0, 0, 1, 0, 0, 0x04, 0x22, 0x4d, 0x18];
        frame.extend_from_slice(&bytes);
        prop_assert!(decode_page_frame(&frame, size(512)).is_err());
    }
}

#[test]
fn every_truncation_is_an_error() {
    let (header, pages) = sample();
    for bytes in [encode(header, &pages), encode_older(header, &pages)] {
        let index = PageIndex::decode(&bytes, bytes.len() as u64).unwrap();
        for len in 0..bytes.len() {
            let error = verify(&bytes[..len]).expect_err("a part of a file");
            assert!(error.is_malformed() && error.offset() <= len as u64, "{len}: {error}");
            assert!(PageIndex::decode(&bytes[..len], len as u64).is_err(), "{len}");
        }
        for entry in index.entries() {
            let frame = &bytes[entry.offset as usize..][..entry.len as usize];
            for len in 0..frame.len() {
                assert!(decode_page_frame(&frame[..len], header.page_size).is_err(), "{} of {entry:?}", len);
            }
            let longer = [frame, &[0]].concat();
            assert_eq!(decode_page_frame(&longer, header.page_size).unwrap_err().field(), "page frame");
        }
    }
}

/// The checksum covers everything but the compressed form of a page. A change there may only pass when the page is
/// the same: LZ4 has more than one way to say it.
#[test]
fn every_flipped_bit_is_an_error_or_changes_nothing() {
    let (header, pages) = sample();
    for bytes in [encode(header, &pages), encode_older(header, &pages)] {
        let index = PageIndex::decode(&bytes, bytes.len() as u64).unwrap();
        let in_a_body = |at: usize| {
            index
                .entries()
                .iter()
                .any(|e| (e.offset as usize + 6..(e.offset + u64::from(e.len)) as usize).contains(&at))
        };
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                if let Ok(decoded) = decode(&changed) {
                    assert!(in_a_body(at), "byte {at}, bit {bit} is not covered");
                    assert_eq!(decoded, (header, pages.clone()), "byte {at}, bit {bit}");
                }
            }
        }
    }
}

#[test]
fn an_error_names_the_field_and_where_it_begins() {
    let (header, pages) = sample();
    let good = encode(header, &pages);
    let end = good.len();
    let index = PageIndex::decode(&good, end as u64).unwrap();
    let second = index.entries()[1].offset as usize;
    let index_at = end - tail_layout(&good, end as u64).unwrap() as usize;
    let cases: &[(&str, usize, usize, &[u8])] = &[
        ("magic", 0, 3, b"2"),
        ("flags", 4, 7, &[3]),
        ("page size", 8, 8, &1000u32.to_be_bytes()),
        ("page number", index.entries()[2].offset as usize, 12, &8u32.to_be_bytes()),
        ("first transaction", 16, 16, &0u64.to_be_bytes()),
        ("last transaction", 24, 24, &4u64.to_be_bytes()),
        ("database checksum before", 40, 47, &[1]),
        ("WAL offset", 48, 48, &(-1i64).to_be_bytes()),
        ("WAL size", 56, 56, &i64::MIN.to_be_bytes()),
        ("WAL size", 56, 48, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("WAL salts", 64, 48, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("reserved bytes", 80, 99, &[1]),
        ("page number", 100, 100, &[0, 0, 0, 0]),
        ("page number", second, second, &2u32.to_be_bytes()),
        ("page number", second, second, &10u32.to_be_bytes()),
        ("page flags", second + 4, second + 5, &[2]),
        ("page length", second + 6, second + 6, &u32::MAX.to_be_bytes()),
        ("page length", second + 6, second + 6, &0u32.to_be_bytes()),
        ("page", second + 10, second + 10, &[0xff, 0xff, 0xff]),
        ("index", index_at + 1, index_at + 1, &[0x65]),
        ("index", end - 17, end - 17, &[0]),
        ("database checksum after", end - 16, end - 9, &[1]),
        ("file checksum", end - 8, end - 1, &[good[end - 1] ^ 1]),
        ("end of the file", end, end, b"x"),
    ];
    for (field, offset, at, with) in cases {
        let mut bytes = good.clone();
        bytes.truncate(end.max(at + with.len()));
        bytes.resize(end.max(at + with.len()), 0);
        bytes[*at..at + with.len()].copy_from_slice(with);
        let error = verify(&bytes).expect_err(field);
        assert_eq!((error.field(), error.offset()), (*field, *offset as u64), "{error}");
    }
}

#[test]
fn an_index_must_describe_the_file_it_stands_in() {
    let tail = |entries: &[[u64; 3]]| {
        let mut index = IndexBytes::default();
        for [pgno, offset, len] in entries {
            index.push(Pgno(*pgno as u32), *offset, *len);
        }
        let mut bytes = index.finish();
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&[0x80; 8]);
        bytes
    };
    let check = |entries: &[[u64; 3]], pages_len: u64| {
        let tail = tail(entries);
        let file_size = 100 + pages_len + 6 + tail.len() as u64;
        PageIndex::decode(&tail, file_size).map(|index| index.entries().len()).map_err(|error| error.field())
    };
    assert_eq!(check(&[], 0), Ok(0));
    assert_eq!(check(&[[1, 100, 20], [7, 120, 30]], 50), Ok(2));
    assert_eq!(check(&[[1, 100, 20], [1, 120, 30]], 50), Err("index page number"), "twice");
    assert_eq!(check(&[[7, 100, 20], [1, 120, 30]], 50), Err("index page number"), "descending");
    assert_eq!(check(&[[1, 100, 20], [7, 110, 30]], 50), Err("index offset"), "overlap");
    assert_eq!(check(&[[1, 100, 20], [7, u64::MAX, 30]], 50), Err("index offset"), "outside");
    assert_eq!(check(&[[1, 100, 20], [7, 120, u64::MAX]], 50), Err("index frame length"), "overflow");
    assert_eq!(check(&[[1, 100, 20], [7, 120, 6]], 26), Err("index frame length"), "too short");
    assert_eq!(check(&[[1, 100, 20]], 50), Err("index"), "a frame is missing");
    assert_eq!(check(&[[1, 100, 20], [7, 120, 30]], 49), Err("index"), "reaches into the index");

    let raw = |index: &[u8]| {
        let mut bytes = index.to_vec();
        bytes.extend_from_slice(&(index.len() as u64).to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]);
        let file_size = 106 + bytes.len() as u64;
        PageIndex::decode(&bytes, file_size).map(|index| index.entries().len()).map_err(|error| error.field())
    };
    assert_eq!(raw(&[0]), Ok(0));
    assert_eq!(raw(&[1, 100]), Err("index frame length"), "no end mark");
    assert_eq!(raw(&[0, 0]), Err("index"), "two end marks");
    assert_eq!(raw(&[0x81, 0, 0]), Err("index page number"), "a longer form");
    assert_eq!(raw(&[0xff; 12]), Err("index page number"), "more than 64 bits");
    assert_eq!(raw(&[0x80, 0x80, 0x80, 0x80, 0x10, 100, 20, 0]), Err("index page number"), "page 2^32");
}

#[test]
fn a_short_tail_says_how_much_is_needed() {
    let (header, pages) = sample();
    let bytes = encode(header, &pages);
    let size = bytes.len() as u64;
    let needed = tail_layout(&bytes[bytes.len() - TAIL_MIN..], size).unwrap();
    assert!(PageIndex::decode(&bytes[bytes.len() - needed as usize..], size).is_ok());
    assert!(PageIndex::decode(&bytes[bytes.len() - needed as usize + 1..], size).is_err());
    assert!(tail_layout(&bytes[bytes.len() - TAIL_MIN + 1..], size).is_err());
    assert!(tail_layout(&bytes, size - 1).is_err(), "more bytes than the file has");
}

#[test]
fn the_encoder_refuses_what_the_format_forbids() {
    let header = Header::level_0(size(512), PageCount(3), TxId(2), 0);
    let page = [0; 512];
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    assert!(encoder.page(Pgno(4), &page).is_err(), "beyond the commit");
    assert!(encoder.page(Pgno(0), &page).is_err());
    assert!(encoder.page(Pgno(1), &page[1..]).is_err(), "short page");
    encoder.page(Pgno(2), &page).unwrap();
    assert!(encoder.page(Pgno(2), &page).is_err(), "twice");
    assert!(encoder.page(Pgno(1), &page).is_err(), "descending");
    assert!(verify(&encoder.finish().unwrap().0).is_ok(), "a refused page leaves no trace");

    assert!(Encoder::new(Vec::new(), Header { commit: PageCount(0), ..header }).is_err());
    assert!(Encoder::new(Vec::new(), Header { min: TxId(3), ..header }).is_err());
    assert!(Encoder::new(Vec::new(), Header { wal_offset: 0, wal_size: 1, ..header }).is_err());

    let mut snapshot = Encoder::new(Vec::new(), Header { min: TxId(1), ..header }).unwrap();
    snapshot.page(Pgno(1), &page).unwrap();
    assert!(snapshot.page(Pgno(3), &page).is_err(), "a gap");
    snapshot.page(Pgno(2), &page).unwrap();
    assert!(snapshot.finish().is_err(), "page 3 is missing");
}

/// The older form as any writer of LZ4 frames may make it: several blocks, linked or not, with every optional field.
#[test]
fn every_kind_of_lz4_frame_is_read() {
    let page: Vec<u8> = (0..65536u32).map(|i| (i / 700 * 31 + i % 97) as u8).collect();
    let noise: Vec<u8> = (0..65536u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
    for mode in [BlockMode::Independent, BlockMode::Linked] {
        for options in 0..8 {
            let form = FrameInfo::new()
                .block_size(BlockSize::Max64KB)
                .block_mode(mode)
                .block_checksums(options & 1 != 0)
                .content_checksum(options & 2 != 0)
                .content_size((options & 4 != 0).then_some(65536));
            for page in [&page, &noise] {
                let mut frame = vec![0, 0, 0, 9, 0, 0];
                let mut encoder = FrameEncoder::with_frame_info(form.clone(), &mut frame);
                for part in page.chunks(30000) {
                    encoder.write_all(part).unwrap();
                    encoder.flush().unwrap();
                }
                encoder.finish().unwrap();
                let decoded = decode_page_frame(&frame, size(65536)).unwrap();
                assert!(decoded == (Pgno(9), page.clone()), "{mode:?}, options {options}");
                assert_eq!(decode_page_frame(&frame, size(32768)).unwrap_err().field(), "page");
            }
        }
    }
}

#[test]
fn a_frame_holds_exactly_one_page() {
    let (header, pages) = sample();
    for bytes in [encode(header, &pages), encode_older(header, &pages)] {
        let entry = PageIndex::decode(&bytes, bytes.len() as u64).unwrap().entries()[1];
        let frame = &bytes[entry.offset as usize..][..entry.len as usize];
        assert_eq!(decode_page_frame(frame, size(512)).unwrap().0, Pgno(3));
        let error = decode_page_frame(frame, size(1024)).unwrap_err();
        assert!(error.to_string().ends_with("holds 512 bytes instead of 1024"), "{error}");
    }
}

#[test]
fn empty_blocks_without_end_are_given_up() {
    let mut frame = vec![0, 0, 0, 1, 0, 0, 0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82];
    frame.extend([0, 0, 0, 0x80].repeat(1 << 20));
    let error = decode_page_frame(&frame, size(512)).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

#[test]
fn a_snapshot_that_lacks_a_page_is_not_read() {
    let header = Header::compacted(size(512), PageCount(3), TxId(1), TxId(4), 0);
    let pages: Pages = [1, 2, 3].map(|n| (Pgno(n), vec![n as u8; 512])).into();
    assert!(verify(&encode_older(header, &pages)).is_ok());
    assert_eq!(verify(&encode_older(header, &pages[..2])).unwrap_err().field(), "end of the pages");
    assert_eq!(verify(&encode_older(header, &pages[1..])).unwrap_err().field(), "page number");
}

#[test]
fn the_lock_page_is_never_in_a_delta() {
    for bits in 9..=16 {
        let page_size = size(1 << bits);
        let lock = page_size.lock_page().0;
        let header = Header::level_0(page_size, PageCount(lock + 1), TxId(2), 0);
        let page = vec![7; page_size.bytes() as usize];
        let around: Pages = vec![(Pgno(lock - 1), page.clone()), (Pgno(lock + 1), page.clone())];
        assert_eq!(decode(&encode(header, &around)).unwrap(), (header, around));

        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        assert!(encoder.page(Pgno(lock), &page).is_err(), "{page_size}");
        let foreign = encode_older(header, &[(Pgno(lock), page)]);
        assert_eq!(verify(&foreign).unwrap_err().field(), "page number", "{page_size}");
    }
}

#[test]
fn a_snapshot_beyond_one_gib_is_complete_without_the_lock_page() {
    let page_size = size(65536);
    let header = Header::compacted(page_size, PageCount(16387), TxId(1), TxId(1), 0);
    let page = vec![7; 65536];
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for pgno in (1..=16387).filter(|&pgno| pgno != 16385) {
        encoder.page(Pgno(pgno), &page).unwrap();
    }
    let (bytes, file_size) = encoder.finish().unwrap();
    let index = PageIndex::decode(&bytes, file_size).unwrap();
    assert_eq!(index.entries().len(), 16386);
    assert_eq!(index.find(Pgno(16385)), None);
    assert_eq!(verify(&bytes).unwrap(), header);

    // The page after the lock page is not the lock page's to excuse.
    let mut order = PageOrder::new(&header);
    for pgno in 1..=16384 {
        order.accept(Pgno(pgno)).unwrap();
    }
    assert!(order.complete().is_err());
    assert!(order.accept(Pgno(16387)).is_err());
    let ends_there = Header { commit: PageCount(16385), ..header };
    let mut order = PageOrder::new(&ends_there);
    (1..=16384).for_each(|pgno| order.accept(Pgno(pgno)).unwrap());
    assert_eq!(order.complete(), Ok(()));
}

#[test]
fn an_empty_delta_is_a_delta() {
    let header = Header::level_0(size(4096), PageCount(12), TxId(77), 0);
    let bytes = encode(header, &[]);
    assert_eq!(decode(&bytes).unwrap(), (header, Vec::new()));
    assert!(PageIndex::decode(&bytes, bytes.len() as u64).unwrap().entries().is_empty());
}

#[test]
fn a_file_with_database_checksums_is_read() {
    let header = Header::level_0(size(512), PageCount(2), TxId(3), 0);
    let mut bytes = header.encode().to_vec();
    bytes[7] = 0;
    bytes[40] = 0x80;
    bytes.extend_from_slice(&END_OF_PAGES);
    bytes.extend_from_slice(&IndexBytes::default().finish());
    bytes.extend_from_slice(&(1u64 << 63).to_be_bytes());
    let mut checksum = FileChecksum::new();
    checksum.update(&bytes);
    bytes.extend_from_slice(&checksum.finish().to_be_bytes());
    assert_eq!(verify(&bytes).unwrap(), header);
    // Checksums that the flags do not announce, and announced ones that are not there.
    bytes[7] = 2;
    assert_eq!(verify(&bytes).unwrap_err().field(), "database checksum before");
    bytes[7] = 0;
    bytes[40] = 0;
    assert_eq!(verify(&bytes).unwrap_err().field(), "database checksum before");
}

#[test]
fn a_failing_reader_is_not_called_a_malformed_file() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("unplugged"))
        }
    }
    let (header, pages) = sample();
    for bytes in [encode(header, &pages), encode_older(header, &pages)] {
        for len in 0..=bytes.len() {
            let reader = std::io::Read::chain(&bytes[..len], Broken);
            let error = Decoder::new(reader).and_then(Decoder::finish).expect_err("a broken reader");
            assert!(!error.is_malformed(), "{len}: {error}");
            assert_eq!(crate::Error::from(error).kind(), crate::ErrorKind::Local);
        }
    }
}

const FOREIGN: [(&[u8], u64, u64, u32, usize); 5] = [
    (include_bytes!("fixtures/level-0-snapshot.ltx"), 1, 1, 4, 4),
    (include_bytes!("fixtures/level-0-delta.ltx"), 2, 2, 4, 1),
    (include_bytes!("fixtures/level-0-growth.ltx"), 3, 3, 5, 2),
    (include_bytes!("fixtures/level-1-merged.ltx"), 1, 2, 4, 4),
    (include_bytes!("fixtures/level-9-snapshot.ltx"), 1, 2, 4, 4),
];

#[test]
fn what_litestream_wrote_is_read() {
    for (bytes, min, max, commit, count) in FOREIGN {
        let (header, pages) = decode(bytes).unwrap();
        assert_eq!((header.min, header.max, header.commit), (TxId(min), TxId(max), PageCount(commit)));
        assert_eq!(header.page_size, size(1024));
        assert_eq!(pages.len(), count, "{min}-{max}");
        let index = PageIndex::decode(bytes, bytes.len() as u64).unwrap();
        for (pgno, page) in pages {
            let entry = index.find(pgno).unwrap();
            let frame = &bytes[entry.offset as usize..][..entry.len as usize];
            assert_eq!(decode_page_frame(frame, size(1024)).unwrap(), (pgno, page));
        }
    }
    let (_, pages) = decode(FOREIGN[0].0).unwrap();
    assert!(pages[0].1.starts_with(b"SQLite format 3\0"));
}
