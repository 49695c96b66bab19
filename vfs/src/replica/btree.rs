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
/// for one that is not at hand; what lies below such a page is left out. Of the leaves, which are nearly all there is, one of each tree
/// is read.
pub(crate) fn upper_pages(most: usize, mut read: impl FnMut(Pgno) -> Option<Vec<u8>>) -> Vec<(Pgno, Vec<u8>)> {
    let mut kept = Vec::new();
    let mut seen = std::collections::HashSet::from([Pgno::ONE]);
    let mut roots_found = Vec::new();
    // The schema first, leaves too.
    let mut level = vec![Pgno::ONE];
    while !level.is_empty() && kept.len() < most {
        let mut below = Vec::new();
        for pgno in level.into_iter().take(most - kept.len()) {
            let Some(page) = read(pgno) else { continue };
            roots_found.extend(roots(pgno, &page));
            below.extend(children(pgno, &page).into_iter().filter(|child| seen.insert(*child)));
            kept.push((pgno, page));
        }
        level = below;
    }
    // Then level by level, each tree by itself.
    roots_found.retain(|root| seen.insert(*root));
    let mut trees: Vec<Vec<Pgno>> = roots_found.into_iter().map(|root| vec![root]).collect();
    while !trees.is_empty() && kept.len() < most {
        for level in &mut trees {
            let mut below = Vec::new();
            for pgno in std::mem::take(level) {
                if kept.len() >= most {
                    break;
                }
                let Some(page) = read(pgno) else { continue };
                let children = children(pgno, &page);
                if children.is_empty() {
                    // All leaves of a tree are on one level: this is it.
                    break;
                }
                below.extend(children.into_iter().filter(|child| seen.insert(*child)));
                kept.push((pgno, page));
            }
            *level = below;
        }
        trees.retain(|level| !level.is_empty());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of three levels with `fanout` children a page, of which page 2 is the root, below a schema of one page.
    fn tree(fanout: u32) -> Vec<(Pgno, Vec<u8>)> {
        let mut schema = vec![0; 1024];
        let cell = [9u8, 1, 6, 0, 0, 0, 1, 0, 2];
        schema[100] = LEAF_TABLE;
        schema[103..105].copy_from_slice(&1u16.to_be_bytes());
        schema[108..110].copy_from_slice(&900u16.to_be_bytes());
        schema[900..900 + cell.len()].copy_from_slice(&cell);
        let interior = |first: u32| {
            let mut page = vec![0; 1024];
            page[0] = INTERIOR_TABLE;
            page[3..5].copy_from_slice(&(fanout as u16 - 1).to_be_bytes());
            for child in 0..fanout - 1 {
                let (at, cell) = (12 + 2 * child as usize, 512 + 8 * child as usize);
                page[at..at + 2].copy_from_slice(&(cell as u16).to_be_bytes());
                page[cell..cell + 4].copy_from_slice(&(first + child).to_be_bytes());
            }
            page[8..12].copy_from_slice(&(first + fanout - 1).to_be_bytes());
            page
        };
        let leaf = || [&[LEAF_TABLE][..], &[0; 1023]].concat();
        let mut pages = vec![(Pgno(1), schema), (Pgno(2), interior(3))];
        pages.extend((0..fanout).map(|n| (Pgno(3 + n), interior(3 + fanout + n * fanout))));
        pages.extend((0..fanout * fanout).map(|n| (Pgno(3 + fanout + n), leaf())));
        pages
    }

    #[test]
    fn the_upper_pages_are_found_without_reading_the_leaves() {
        let pages: std::collections::HashMap<_, _> = tree(50).into_iter().collect();
        let mut reads = 0;
        let upper = upper_pages(1000, |pgno| {
            reads += 1;
            pages.get(&pgno).cloned()
        });
        let expected: Vec<_> = (1..=52).map(Pgno).collect();
        assert_eq!(upper.iter().map(|(pgno, _)| *pgno).collect::<Vec<_>>(), expected);
        assert_eq!(reads, 53, "one leaf tells of all");
    }

    #[test]
    fn a_page_that_is_not_at_hand_hides_what_is_below_it_and_no_more() {
        let pages: std::collections::HashMap<_, _> = tree(50).into_iter().collect();
        let absent = [Pgno(3), Pgno(103)];
        let upper = upper_pages(1000, |pgno| pages.get(&pgno).filter(|_| !absent.contains(&pgno)).cloned());
        assert_eq!(upper.len(), 51);
        assert!(upper.iter().all(|(pgno, _)| !absent.contains(pgno)));
        assert_eq!(upper_pages(10, |pgno| pages.get(&pgno).cloned()).len(), 10);
    }
}
