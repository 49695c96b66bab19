//! The shape of SQLite's B-trees, as far as it tells which pages a query meets first. Pure, and trusts no byte.
//!
//! A page of the file format: a header (8 or 12 bytes, behind the 100 of the database on page 1), an array of 2-byte cell
//! pointers, cells. Kinds: 2 and 5 interior (index, table), 10 and 13 leaf. An interior cell begins with its left child.

use crate::page::Pgno;

const INTERIOR_INDEX: u8 = 2;
const INTERIOR_TABLE: u8 = 5;
const LEAF_TABLE: u8 = 13;

fn header(pgno: Pgno) -> usize {
    if pgno == Pgno::ONE { 100 } else { 0 }
}

fn u16_at(page: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(*page.get(at..)?.first_chunk()?)))
}

fn pgno_at(page: &[u8], at: usize) -> Option<Pgno> {
    let pgno = u32::from_be_bytes(*page.get(at..)?.first_chunk()?);
    (pgno != 0).then_some(Pgno(pgno))
}

/// Where the cells of a page begin.
fn cells(page: &[u8], start: usize, header_bytes: usize) -> impl Iterator<Item = usize> {
    let count = u16_at(page, start + 3).unwrap_or(0);
    (0..count).map_while(move |cell| u16_at(page, start + header_bytes + 2 * cell))
}

/// Whether a page is an interior one of a B-tree, as far as its first byte says.
pub(crate) fn is_interior(pgno: Pgno, page: &[u8]) -> bool {
    matches!(page.get(header(pgno)), Some(&(INTERIOR_INDEX | INTERIOR_TABLE)))
}

/// The children of an interior page, in order; none of any other page.
pub(crate) fn children(pgno: Pgno, page: &[u8]) -> Vec<Pgno> {
    let start = header(pgno);
    if !is_interior(pgno, page) {
        return Vec::new();
    }
    let last = pgno_at(page, start + 8);
    cells(page, start, 12).filter_map(|cell| pgno_at(page, cell)).chain(last).collect()
}

/// The root pages that a leaf of the schema table names.
pub(crate) fn roots(pgno: Pgno, page: &[u8]) -> Vec<Pgno> {
    let start = header(pgno);
    if page.get(start) != Some(&LEAF_TABLE) {
        return Vec::new();
    }
    cells(page, start, 8).filter_map(|cell| root(page.get(cell..)?)).collect()
}

/// The fourth column, `rootpage`, of a row of the schema table.
fn root(cell: &[u8]) -> Option<Pgno> {
    let mut at = 0;
    let mut next = || {
        let mut value = 0u64;
        for i in 0..9 {
            let byte = *cell.get(at)?;
            at += 1;
            if i == 8 {
                return Some(value << 8 | u64::from(byte));
            }
            value = value << 7 | u64::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                break;
            }
        }
        Some(value)
    };
    let (_payload, _rowid, header) = (next()?, next()?, next()?);
    let kinds = [next()?, next()?, next()?, next()?];
    // The record's header counts its own length, of one byte for any schema row that is worth looking at.
    let body = at.checked_sub(5)? + usize::try_from(header).ok()?;
    let len = |kind: u64| match kind {
        0 | 8 | 9 => 0,
        1..=4 => kind as usize,
        5 => 6,
        6 | 7 => 8,
        kind => usize::try_from(kind.saturating_sub(12) / 2).unwrap_or(usize::MAX),
    };
    let skip = kinds[..3].iter().try_fold(body, |sum, &kind| sum.checked_add(len(kind)))?;
    let bytes = cell.get(skip..skip.checked_add(len(kinds[3]))?).filter(|bytes| bytes.len() <= 4)?;
    let number = match kinds[3] {
        9 => 1,
        1..=4 => bytes.iter().fold(0u32, |number, &byte| number << 8 | u32::from(byte)),
        _ => return None,
    };
    (number != 0).then_some(Pgno(number))
}

/// The schema's pages and the interior pages of all B-trees, upper levels first, at most `most`. `read` gives a page, or `None`
/// for one that is not at hand; what lies below such a page is left out.
pub(crate) fn upper_pages(most: usize, mut read: impl FnMut(Pgno) -> Option<Vec<u8>>) -> Vec<(Pgno, Vec<u8>)> {
    let mut kept = Vec::new();
    let mut seen = std::collections::HashSet::from([Pgno::ONE]);
    let mut roots_found = Vec::new();
    let mut level = vec![Pgno::ONE];
    // The schema first, leaves too; then everything else level by level.
    for is_schema in [true, false] {
        while !level.is_empty() && kept.len() < most {
            let mut below = Vec::new();
            for pgno in std::mem::take(&mut level) {
                let Some(page) = read(pgno) else { continue };
                let children = children(pgno, &page);
                if is_schema {
                    roots_found.extend(roots(pgno, &page));
                } else if children.is_empty() {
                    // A leaf; in a B-tree all leaves are on one level, so this was the level below the interior pages.
                    continue;
                }
                below.extend(children.into_iter().filter(|child| seen.insert(*child)));
                kept.push((pgno, page));
                if kept.len() >= most {
                    break;
                }
            }
            level = below;
        }
        if is_schema {
            level = std::mem::take(&mut roots_found).into_iter().filter(|root| seen.insert(*root)).collect();
        }
    }
    kept
}
