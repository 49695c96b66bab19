//! Any bytes, read as a delta in every way the codec has. Nothing may panic, and what is accepted must hold together.
//!
//! The codec's sources are taken in as they are, not through the crate: so only they are instrumented, and the build
//! leaves the cloud client out.
#![no_main]
#![allow(dead_code, unused_imports, reason = "the codec's callers are elsewhere")]

#[path = "../../vfs/src/delta/mod.rs"]
mod delta;
#[path = "../../vfs/src/error.rs"]
mod error;
#[path = "../../vfs/src/page.rs"]
mod page;

use delta::{Decoder, Encoder, Header, PageIndex, decode_page_frame, merge, tail_layout, verify};
use libfuzzer_sys::fuzz_target;
use page::PageSize;

fuzz_target!(|bytes: &[u8]| {
    let file_size = bytes.len() as u64;
    let _ = Header::decode(bytes);
    let _ = tail_layout(bytes, u64::from_le_bytes(*bytes.first_chunk().unwrap_or(&[0xff; 8])));
    for bits in [9, 12, 16] {
        let page_size = PageSize::new(1 << bits).expect("a legal size");
        if let Ok((_, page)) = decode_page_frame(bytes, page_size) {
            assert_eq!(page.len(), 1 << bits);
        }
    }
    if let Ok(index) = PageIndex::decode(bytes, file_size) {
        for entry in index.entries() {
            let frame = &bytes[entry.offset as usize..][..entry.len as usize];
            let _ = decode_page_frame(frame, PageSize::DEFAULT);
        }
    }
    let Ok(mut decoder) = Decoder::new(bytes) else {
        return;
    };
    // Taken page by page, as far as it goes.
    let mut page = Vec::new();
    let mut pages = Vec::new();
    while let Ok(Some(pgno)) = decoder.next_page(&mut page) {
        pages.push((pgno, page.clone()));
    }
    let Ok(header) = verify(bytes) else {
        // The checksum hardly ever fits; the pages that were read still make a delta.
        let header = *Decoder::new(bytes).expect("it was read before").header();
        if header.is_snapshot() || header.commit.0 == 0 {
            return;
        }
        let mut encoder = Encoder::new(Vec::new(), header).expect("a header that was read can be written");
        for (pgno, page) in &pages {
            encoder.page(*pgno, page).expect("pages that were read can be written");
        }
        let (ours, _) = encoder.finish().expect("no page is missing");
        assert_eq!(verify(&ours).expect("what we write is read"), header);
        return;
    };
    let index = PageIndex::decode(bytes, file_size).expect("a whole file has a good index");
    assert_eq!(index.entries().len(), pages.len());
    for (entry, (pgno, page)) in index.entries().iter().zip(&pages) {
        let frame = &bytes[entry.offset as usize..][..entry.len as usize];
        let found = decode_page_frame(frame, header.page_size).expect("a frame of a whole file");
        assert!(found == (*pgno, page.clone()));
    }
    if header.commit.0 != 0 {
        let again = [(); 2].map(|()| Decoder::new(bytes).expect("it was read before")).into();
        let (ours, _) = merge(again, Vec::new(), header).expect("a delta merged with itself is that delta");
        assert_eq!(verify(&ours).expect("what we write is read"), header);
    }
});
