//! Which page may come next in a delta: ascending, inside the database, never the lock page, and in a
//! snapshot without a gap.

use crate::page::{PageCount, PageSize, Pgno};

use super::header::Header;

/// Follows the page numbers of one delta, for the encoder and the decoder alike.
pub(super) struct PageOrder {
    commit: PageCount,
    lock_page: Pgno,
    snapshot: bool,
    /// The last page that was accepted; 0 before the first.
    last: u32,
}

impl PageOrder {
    pub(super) fn new(header: &Header) -> PageOrder {
        PageOrder {
            commit: header.commit,
            lock_page: header.page_size.lock_page(),
            snapshot: header.is_snapshot(),
            last: 0,
        }
    }

    /// Accepts the next page, or says which rule it breaks.
    pub(super) fn accept(&mut self, pgno: Pgno) -> Result<(), String> {
        if pgno.0 <= self.last {
            return Err(format!("{pgno} follows {}", self.last));
        }
        if !self.commit.contains(pgno) {
            return Err(format!("{pgno} lies beyond the database's {} pages", self.commit.0));
        }
        if pgno == self.lock_page {
            return Err(format!("{pgno} is the lock page, which is never stored"));
        }
        if self.snapshot && self.missing() != Some(pgno) {
            return Err(format!("{pgno} follows {} in a snapshot, which holds every page", self.last));
        }
        self.last = pgno.0;
        Ok(())
    }

    /// Says what is missing when no page follows.
    pub(super) fn complete(&self) -> Result<(), String> {
        match self.missing() {
            Some(pgno) if self.snapshot => Err(format!("the snapshot of {} pages ends before {pgno}", self.commit.0)),
            _ => Ok(()),
        }
    }

    /// The next page that the database has; `None` after its last.
    fn missing(&self) -> Option<Pgno> {
        page_after(self.last, self.commit, self.lock_page)
    }
}

fn page_after(last: u32, commit: PageCount, lock_page: Pgno) -> Option<Pgno> {
    let mut next = last.checked_add(1)?;
    if next == lock_page.0 {
        next += 1;
    }
    (next <= commit.0).then_some(Pgno(next))
}

/// The pages from `first` to `last` that a file can hold.
pub(super) fn pages_between(first: u32, last: u32, page_size: PageSize) -> impl Iterator<Item = Pgno> {
    (first..=last).map(Pgno).filter(move |&pgno| pgno != page_size.lock_page())
}
