//! Which neighbours come along when a page has to be fetched.
//!
//! The policy here is a fixed one: the pages behind the missing one, as long as they are missing too, their frames
//! lie back to back in one object, and the run stays within a number of pages and of bytes. The type is the place for a
//! policy that watches the access pattern; everything else only sees the [`Run`].

use crate::error::{Error, ErrorKind, Result};
use crate::page::Pgno;
use crate::replica::object_table::ObjectRef;
use crate::replica::page_map::{Location, PageMap};

/// How far a run may reach.
#[derive(Clone, Copy, Debug)]
pub struct ReadAhead {
    /// At most this many pages, 1 or more.
    pub pages: usize,
    /// At most this many bytes of the object; the missing page itself comes whatever it takes.
    pub bytes: u64,
}

impl Default for ReadAhead {
    /// 16 pages, 64 KiB.
    fn default() -> ReadAhead {
        ReadAhead { pages: 16, bytes: 64 * 1024 }
    }
}

/// Pages to be had by one request.
#[derive(Clone, Debug)]
pub struct Run {
    /// The object that has them; `None` for a page of zeros, which no object has.
    pub object: Option<ObjectRef>,
    /// The missing page and its neighbours in ascending order, with their places. Never empty. A page of zeros has an
    /// empty place and is alone.
    pub pages: Vec<(Pgno, Location)>,
}

impl ReadAhead {
    /// Plans the run of a missing page. `wanted` is asked once for each neighbour, in ascending order, **before** its
    /// place is looked up.
    ///
    /// # Errors
    /// The map's.
    pub fn run(&self, map: &PageMap, missing: Pgno, mut wanted: impl FnMut(Pgno) -> bool) -> Result<Run> {
        for _ in 0..1000 {
            let Some((first, object)) = map.find(missing)? else {
                let nowhere = Location { object: 0, offset: 0, len: 0 };
                return Ok(Run { object: None, pages: vec![(missing, nowhere)] });
            };
            let mut pages = vec![(missing, first)];
            let mut last = first;
            for pgno in (missing.0.saturating_add(1)..).map(Pgno).take(self.pages.saturating_sub(1)) {
                if !wanted(pgno) {
                    break;
                }
                match map.location(pgno) {
                    Some(next)
                        if last.is_followed_by(&next)
                            && next.offset + u64::from(next.len) - first.offset <= self.bytes =>
                    {
                        pages.push((pgno, next));
                        last = next;
                    }
                    _ => break,
                }
            }
            // While the missing page points at the slot, the slot is this object's, and so it was for the neighbours.
            if map.location(missing) == Some(first) {
                return Ok(Run { object: Some(object), pages });
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("page {missing}: its place in the bucket keeps changing")))
    }
}
