//! Which children of an interior B-tree page are read one after the other, and which of them a scan will come to next.
//!
//! Read-ahead by page number (`streams.rs`) does not help where the leaves of a tree lie scattered over the file, as those of an index
//! whose keys came in no order do. An interior page says in which order they come. It is remembered when SQLite reads it; once
//! [`PROOF`] neighbours among its children were read in order, up or down, the next ones are due, [`FIRST`] at first and twice as many
//! each time, and near the end of them the next interior page. A scan that goes on there is known as one at once.
//!
//! Off where it does not pay: nothing is due while the next child lies right behind the last one in the file, which reading ahead by
//! page number brings with fewer requests; nor after reads that are no neighbours, such as the points of a random load.
//!
//! Pure state under one lock that is held for a moment. A process keeps the last [`PARENTS`] interior pages.

use std::collections::HashMap;

use crate::page::Pgno;
use crate::replica::btree;
use crate::sync::Mutex;

/// Interior pages that are remembered.
const PARENTS: usize = 64;
/// So many neighbours read in order make a scan.
const PROOF: u32 = 2;
/// Children due at first, and at most.
const FIRST: usize = 4;
const MOST: usize = 64;
/// A child this little behind the last one in the file is left to the reading ahead by page number.
const NEAR: u32 = 8;

#[derive(Debug)]
struct Parent {
    pgno: Pgno,
    children: Vec<Pgno>,
    /// The child read last, and how many were read in order up to it.
    at: Option<usize>,
    run: u32,
    is_descending: bool,
    /// Children that were due at the last time, and how many of them are ahead of `at`.
    window: usize,
    ahead: usize,
    last_use: u64,
}

#[derive(Debug, Default)]
struct Table {
    parents: Vec<Parent>,
    /// Where a page stands among the children of a parent: indexes of both.
    places: HashMap<Pgno, (usize, usize)>,
    clock: u64,
}

/// The interior pages that one process has read.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    table: Mutex<Table>,
}

impl Trees {
    /// An interior page was read. Returns its children that are due at once, where a scan goes on in it.
    pub(crate) fn note(&self, pgno: Pgno, page: &[u8]) -> Vec<Pgno> {
        let children = btree::children(pgno, page);
        if children.is_empty() {
            return Vec::new();
        }
        let Some(mut table) = self.table.try_lock() else { return Vec::new() };
        table.note(pgno, children)
    }

    /// A page is about to be read. Returns the pages that are due.
    pub(crate) fn read(&self, pgno: Pgno) -> Vec<Pgno> {
        // Whoever else is here follows some scan; this read may go uncounted.
        self.table.try_lock().map(|mut table| table.read(pgno)).unwrap_or_default()
    }
}

impl Table {
    fn note(&mut self, pgno: Pgno, children: Vec<Pgno>) -> Vec<Pgno> {
        self.clock += 1;
        let last_use = self.clock;
        if let Some(known) = self.parents.iter_mut().find(|parent| parent.pgno == pgno) {
            known.last_use = last_use;
            if known.children == children {
                return Vec::new();
            }
        }
        // Where the last scan of a neighbour came to its end, it goes on here.
        let before =
            self.places.get(&pgno).and_then(|&(parent, _)| self.parents.get(parent)).filter(|p| p.run >= PROOF);
        let before = before.map(|grand| (grand.is_descending, self.window_below(grand)));
        let parent = Parent {
            pgno,
            at: None,
            run: 0,
            is_descending: before.is_some_and(|(is_descending, _)| is_descending),
            window: before.map_or(0, |(_, window)| window),
            ahead: 0,
            last_use,
            children,
        };
        let slot = self.slot(pgno);
        self.forget(slot);
        for (index, child) in parent.children.iter().enumerate() {
            self.places.insert(*child, (slot, index));
        }
        let parent = match self.parents.get_mut(slot) {
            Some(place) => {
                *place = parent;
                place
            }
            None => {
                self.parents.push(parent);
                let Some(parent) = self.parents.last_mut() else { return Vec::new() };
                parent
            }
        };
        if parent.window == 0 { Vec::new() } else { parent.first_due() }
    }

    /// How wide the children of the neighbours were scanned.
    fn window_below(&self, grand: &Parent) -> usize {
        let below = self.parents.iter().filter(|parent| grand.children.contains(&parent.pgno));
        below.max_by_key(|parent| parent.last_use).map_or(0, |parent| parent.window)
    }

    fn slot(&self, pgno: Pgno) -> usize {
        if let Some(known) = self.parents.iter().position(|parent| parent.pgno == pgno) {
            return known;
        }
        if self.parents.len() < PARENTS {
            return self.parents.len();
        }
        let oldest = self.parents.iter().enumerate().min_by_key(|(_, parent)| parent.last_use);
        oldest.map_or(0, |(slot, _)| slot)
    }

    fn forget(&mut self, slot: usize) {
        if let Some(parent) = self.parents.get(slot) {
            for child in &parent.children {
                if self.places.get(child).is_some_and(|&(of, _)| of == slot) {
                    self.places.remove(child);
                }
            }
        }
    }

    fn read(&mut self, pgno: Pgno) -> Vec<Pgno> {
        let Some(&(slot, index)) = self.places.get(&pgno) else { return Vec::new() };
        self.clock += 1;
        let clock = self.clock;
        let Some(parent) = self.parents.get_mut(slot) else { return Vec::new() };
        parent.last_use = clock;
        let mut due = parent.read(index);
        let (own, is_descending) = (parent.pgno, parent.is_descending);
        let left = if is_descending { index } else { parent.children.len() - 1 - index };
        if !due.is_empty() && left <= parent.window {
            // The interior page behind this one; what is below it is due when it is read.
            let place = self.places.get(&own).copied();
            let next = place.and_then(|(slot, at)| {
                let next = if is_descending { at.checked_sub(1)? } else { at + 1 };
                self.parents.get(slot)?.children.get(next).copied()
            });
            due.extend(next);
        }
        due
    }
}

impl Parent {
    fn read(&mut self, index: usize) -> Vec<Pgno> {
        let before = self.at.replace(index);
        let was_ahead = match before {
            Some(at) if at == index => return Vec::new(),
            Some(at) if at + 1 == index && (self.run < PROOF || !self.is_descending) => {
                self.is_descending = false;
                true
            }
            Some(at) if index + 1 == at && (self.run < PROOF || self.is_descending) => {
                self.is_descending = true;
                true
            }
            // A scan that went on into this page begins at the end that it comes from.
            None => self.window > 0 && index == if self.is_descending { self.children.len() - 1 } else { 0 },
            _ => false,
        };
        if !was_ahead {
            (self.run, self.window, self.ahead) = (1, 0, 0);
            return Vec::new();
        }
        self.run = if before.is_none() { PROOF } else { self.run.max(1) + 1 };
        self.ahead = self.ahead.saturating_sub(1);
        if self.run < PROOF || self.ahead > self.window / 2 {
            return Vec::new();
        }
        let last = self.children[index];
        let next = self.after(index, 0).next();
        if next.is_none_or(|next| last < next && next.0 - last.0 <= NEAR) {
            return Vec::new();
        }
        self.window = (self.window * 2).clamp(FIRST, MOST);
        let due: Vec<Pgno> = self.after(index, self.ahead).take(self.window - self.ahead).collect();
        self.ahead += due.len();
        due
    }

    /// The first children of a page that a scan goes on in.
    fn first_due(&mut self) -> Vec<Pgno> {
        let window = self.window;
        let due: Vec<Pgno> = if self.is_descending {
            self.children.iter().rev().take(window).copied().collect()
        } else {
            self.children.iter().take(window).copied().collect()
        };
        self.ahead = due.len();
        due
    }

    /// The children behind one in the direction of the scan, without the first so many.
    fn after(&self, index: usize, skip: usize) -> impl Iterator<Item = Pgno> {
        let (up, down) = match self.is_descending {
            true => (&[][..], &self.children[..index]),
            false => (&self.children[index + 1..], &[][..]),
        };
        up.iter().chain(down.iter().rev()).skip(skip).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interior page of a table with these children.
    fn interior(children: &[u32]) -> Vec<u8> {
        let mut page = vec![0; 4096];
        let (last, others) = children.split_last().expect("a child");
        page[0] = 5;
        page[3..5].copy_from_slice(&(others.len() as u16).to_be_bytes());
        page[8..12].copy_from_slice(&last.to_be_bytes());
        for (at, child) in others.iter().enumerate() {
            let cell = 4096 - 5 * (at + 1);
            page[12 + 2 * at..14 + 2 * at].copy_from_slice(&(cell as u16).to_be_bytes());
            page[cell..cell + 4].copy_from_slice(&child.to_be_bytes());
        }
        page
    }

    /// Page numbers in no order.
    fn scattered(count: u32) -> Vec<u32> {
        (0..count).map(|n| 1000 + n * 7919 % 10_007).collect()
    }

    /// Reads these pages, of which none is there at first; returns how many were missed and how many came and were not read.
    fn read(trees: &Trees, pages: impl IntoIterator<Item = u32>) -> (usize, usize) {
        let mut there = std::collections::HashSet::new();
        let mut missed = 0;
        for pgno in pages {
            let due = trees.read(Pgno(pgno));
            missed += usize::from(!there.remove(&Pgno(pgno)));
            there.extend(due);
        }
        (missed, there.len())
    }

    #[test]
    fn a_scan_of_scattered_leaves_misses_the_first_two_in_both_directions() {
        let leaves = scattered(300);
        for reversed in [false, true] {
            let trees = Trees::default();
            assert!(trees.note(Pgno(2), &interior(&leaves)).is_empty());
            let order: Vec<u32> = if reversed { leaves.iter().rev().copied().collect() } else { leaves.clone() };
            assert_eq!(read(&trees, order), (2, 0));
        }
    }

    #[test]
    fn a_scan_goes_on_below_the_next_interior_page() {
        let trees = Trees::default();
        let leaves = scattered(400);
        trees.note(Pgno(2), &interior(&[3, 700, 5]));
        trees.read(Pgno(3));
        trees.note(Pgno(3), &interior(&leaves[..200]));
        let (missed, _) = read(&trees, leaves[..200].iter().copied());
        assert_eq!(missed, 2);
        let own = trees.read(Pgno(700));
        let due = trees.note(Pgno(700), &interior(&leaves[200..]));
        assert!(due.len() >= FIRST && due[0] == Pgno(leaves[200]), "{own:?} {due:?}");
        assert!(trees.read(Pgno(leaves[200])).len() <= MOST);
    }

    #[test]
    fn points_at_random_and_leaves_in_file_order_make_nothing_due() {
        let trees = Trees::default();
        let leaves = scattered(300);
        trees.note(Pgno(2), &interior(&leaves));
        let mut rng = fastrand::Rng::with_seed(3);
        let points: Vec<u32> = (0..1000).map(|_| leaves[rng.usize(..300)]).collect();
        let (_, in_vain) = read(&trees, points);
        assert!(in_vain < 50, "{in_vain} of 1000");
        let trees = Trees::default();
        trees.note(Pgno(2), &interior(&(100..400).collect::<Vec<_>>()));
        assert_eq!(read(&trees, 100..400), (300, 0));
    }

    #[test]
    fn a_short_range_fetches_about_as_much_again() {
        let trees = Trees::default();
        let leaves = scattered(300);
        trees.note(Pgno(2), &interior(&leaves));
        let (missed, in_vain) = read(&trees, leaves[50..60].iter().copied());
        assert!(missed == 2 && in_vain <= 16, "{missed} {in_vain}");
    }

    #[test]
    fn no_more_than_the_stated_number_of_interior_pages_is_kept() {
        let trees = Trees::default();
        for n in 0..500 {
            trees.note(Pgno(100_000 + n), &interior(&[n * 10 + 1, n * 10 + 5]));
        }
        let table = trees.table.lock();
        assert_eq!((table.parents.len(), table.places.len()), (PARENTS, 2 * PARENTS));
    }
}
