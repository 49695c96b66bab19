//! The first bytes of a database file: the header of a new database, and the masked magic of our files on disk.
//!
//! A managed file begins with `sqlite-gcs cache` instead of `SQLite format 3` and a zero. A plain SQLite then says "file is
//! not a database" and touches nothing, instead of reading pages that are not there. The mask exists on the local disk
//! only: deltas and snapshots carry the real magic.
//!
//! The header that a new WAL-mode database begins with, as SQLite itself writes it (all other bytes are zero):
//!
//! | offset | value | meaning |
//! |---|---|---|
//! | 0 | 16 B | magic |
//! | 16 | u16 | page size; 1 stands for 65536 |
//! | 18, 19 | 2, 2 | write and read version: WAL |
//! | 21, 22, 23 | 64, 32, 32 | payload fractions |
//! | 27, 31, 95 | 1, 1, 1 | change counter, size in pages, version-valid-for (low bytes) |
//! | 96 | u32 | version number of the SQLite that wrote it |
//! | 100 | 0x0D | page 1 is a leaf of the schema table, without cells |
//! | 105 | u16 | where its cell content begins: the page's end; 0 stands for 65536 |

use crate::page::PageSize;

/// What a database file begins with.
pub(crate) const MAGIC: [u8; 16] = *b"SQLite format 3\0";

/// What a managed file begins with on disk.
pub(crate) const MASKED_MAGIC: [u8; 16] = *b"sqlite-gcs cache";

/// The version number in the headers that we write: that of the SQLite the layout was compared with.
const WRITTEN_BY: u32 = 3_054_001;

/// Page 1 of a new, empty database in WAL mode, one page long, with the real magic.
pub(crate) fn new_database_header(page_size: PageSize) -> Vec<u8> {
    let bytes = page_size.bytes();
    let mut page = vec![0; bytes as usize];
    page[0..16].copy_from_slice(&MAGIC);
    // 65536 does not fit: the format writes 1 for it as the page size, and 0 as the start of the cell content.
    let in_header = if bytes == 65536 { 1 } else { bytes as u16 };
    page[16..18].copy_from_slice(&in_header.to_be_bytes());
    page[18..20].copy_from_slice(&[2, 2]);
    page[21..24].copy_from_slice(&[64, 32, 32]);
    page[27] = 1;
    page[31] = 1;
    page[95] = 1;
    page[96..100].copy_from_slice(&WRITTEN_BY.to_be_bytes());
    page[100] = 0x0d;
    page[105..107].copy_from_slice(&(bytes as u16).to_be_bytes());
    page
}

/// Puts the mask over the magic in `bytes`, which begin at `offset` of the file.
pub(crate) fn mask(bytes: &mut [u8], offset: u64) {
    replace(bytes, offset, &MAGIC, &MASKED_MAGIC);
}

/// Takes the mask off in `bytes`, which begin at `offset` of the file.
pub(crate) fn unmask(bytes: &mut [u8], offset: u64) {
    replace(bytes, offset, &MASKED_MAGIC, &MAGIC);
}

/// Byte by byte and only where `from` is found, so that a part of the magic works like the whole, and zeros that stand
/// for a missing page stay zeros.
fn replace(bytes: &mut [u8], offset: u64, from: &[u8; 16], to: &[u8; 16]) {
    if offset >= 16 {
        return;
    }
    for (byte, at) in bytes.iter_mut().zip(offset as usize..16) {
        if *byte == from[at] {
            *byte = to[at];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_the_magic_is_masked_and_restored_exactly() {
        for start in 0..20usize {
            for end in start..24 {
                let mut file = [7u8; 24];
                file[..16].copy_from_slice(&MAGIC);
                let mut part = file[start..end].to_vec();
                mask(&mut part, start as u64);
                for (i, byte) in part.iter().enumerate() {
                    let expected = if start + i < 16 { MASKED_MAGIC[start + i] } else { 7 };
                    assert_eq!(*byte, expected, "{start}..{end} at {i}");
                }
                unmask(&mut part, start as u64);
                assert_eq!(part, file[start..end], "{start}..{end}");
            }
        }
    }

    #[test]
    fn a_zero_page_does_not_grow_a_magic() {
        let mut page = vec![0; 100];
        unmask(&mut page, 0);
        assert_eq!(page, vec![0; 100]);
    }

    #[test]
    fn sqlite_opens_the_header_at_every_page_size() {
        let dir = tempfile::tempdir().expect("a directory");
        for power in 9..=16 {
            let size = PageSize::new(1 << power).expect("a legal size");
            let path = dir.path().join(format!("{size}.db"));
            std::fs::write(&path, new_database_header(size)).expect("written");
            let db = rusqlite::Connection::open(&path).expect("opened");
            let text = |sql: &str| db.query_row(sql, [], |row| row.get::<_, String>(0)).expect("a row");
            let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a row");
            assert_eq!(number("PRAGMA page_size"), i64::from(size.bytes()));
            assert_eq!(text("PRAGMA journal_mode"), "wal");
            assert_eq!(number("PRAGMA page_count"), 1);
            assert_eq!(text("PRAGMA integrity_check"), "ok");
            db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (randomblob(200000))").expect("written to");
            assert_eq!(text("PRAGMA integrity_check"), "ok");
        }
    }

    #[test]
    fn the_header_is_sqlites_own_at_4096() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("own.db");
        let db = rusqlite::Connection::open(&path).expect("opened");
        db.pragma_update(None, "journal_mode", "wal").expect("wal");
        db.close().expect("closed");
        let own = std::fs::read(&path).expect("read");
        assert_eq!(new_database_header(PageSize::DEFAULT), own);
        // If this number differs, SQLite was updated: compare the layout again and change the constant.
        assert_eq!(rusqlite::version_number(), WRITTEN_BY as i32);
    }
}
