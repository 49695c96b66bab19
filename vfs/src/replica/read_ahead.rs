//! Which pages come in one request.
//!
//! A [`Run`] is a request: pages of one object in ascending order whose frames lie back to back, or with so small gaps between
//! them that skipping them would cost more than carrying them along. How far ahead of a reader pages are wanted at all
//! is decided elsewhere ([`crate::cache`]).

use crate::error::{Error, ErrorKind, Result};
use crate::page::Pgno;
use crate::replica::object_table::ObjectRef;
use crate::replica::page_map::{Location, PageMap};

/// How far a run may reach.
#[derive(Clone, Copy, Debug)]
pub struct ReadAhead {
    /// At most this many bytes of the object; the first page itself comes whatever it takes.
    pub bytes: u64,
    /// Two frames of a run lie at most this many bytes apart.
    pub gap: u64,
}

impl Default for ReadAhead {
    /// 128 KiB, with gaps of 8 KiB: several requests at a time fill a fast line, and none of them takes long on a slow one.
    fn default() -> ReadAhead {
        ReadAhead { bytes: 128 * 1024, gap: 8 * 1024 }
    }
}

/// Pages to be had by one request.
#[derive(Clone, Debug)]
pub struct Run {
    /// The object that has them; `None` for a page of zeros, which no object has.
    pub object: Option<ObjectRef>,
    /// The pages in ascending order, with their places. Never empty. A page of zeros has an empty place and is alone.
    pub pages: Vec<(Pgno, Location)>,
}

impl ReadAhead {
    /// Plans the run that begins with the page `first` and ends before `until`. `wanted` is asked once for each page behind the
    /// first, in ascending order, **before** its place is looked up. Returns the first page that was not looked at, too.
    ///
    /// # Errors
    /// The map's.
    pub fn run(
        &self,
        map: &PageMap,
        first: Pgno,
        until: Pgno,
        mut wanted: impl FnMut(Pgno) -> bool,
    ) -> Result<(Run, Pgno)> {
        for _ in 0..1000 {
            let Some((place, object)) = map.find(first)? else {
                let nowhere = Location { object: 0, offset: 0, len: 0 };
                return Ok((Run { object: None, pages: vec![(first, nowhere)] }, Pgno(first.0 + 1)));
            };
            let mut pages = vec![(first, place)];
            let mut last = place;
            let mut next = Pgno(first.0 + 1);
            while next < until {
                if !wanted(next) {
                    next = Pgno(next.0 + 1);
                    continue;
                }
                let Some(behind) = map.location(next) else { break };
                let is_near = behind.object == last.object
                    && behind.offset > last.offset
                    && behind.offset <= last.offset + u64::from(last.len) + self.gap
                    && behind.offset + u64::from(behind.len) - place.offset <= self.bytes;
                if !is_near {
                    break;
                }
                pages.push((next, behind));
                last = behind;
                next = Pgno(next.0 + 1);
            }
            // While the first page points at the slot, the slot is this object's, and so it was for the others.
            if map.location(first) == Some(place) {
                return Ok((Run { object: Some(object), pages }, next));
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("page {first}: its place in the bucket keeps changing")))
    }
}
