//! Several deltas into one: for pieces captured one after the other, and for compaction.
//!
//! The result is what applying the inputs one after the other would leave. So the newest image of a page wins, but an
//! image counts only as long as no later input made the database too small for its page; and a page that came back
//! after such a cut without an image of its own is zeros, as in a file that was truncated and extended.
//!
//! Inputs are read in step, one page of each in memory, and each is verified to its end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

use super::decoder::Decoder;
use super::encoder::Encoder;
use super::error::{EncodeError, MergeError};
use super::header::Header;
use super::order::pages_between;

#[cfg(test)]
mod tests;

/// Merges `inputs`, the newest last, into one delta with this header. Returns the writer and the delta's size in bytes.
///
/// The header's page size and commit must be the newest input's; the transactions are the caller's word, nothing is
/// compared with the inputs'. With `min` = 1 the result is a snapshot and must come out complete.
///
/// # Errors
/// An input is malformed, the header does not fit, or the writer failed. What was written is not a delta then: an
/// input may prove to be damaged only at its end.
pub fn merge<R: Read, W: Write>(inputs: Vec<Decoder<R>>, out: W, header: Header) -> Result<(W, u64), MergeError> {
    let newest = inputs.last().map(|input| *input.header());
    let newest = newest.ok_or_else(|| EncodeError::refused("inputs", "there are none"))?;
    if header.commit != newest.commit {
        let why = format!("{}, where the newest input has {}", header.commit.0, newest.commit.0);
        return Err(EncodeError::refused("commit", why).into());
    }
    if let Some(other) = inputs.iter().find(|input| input.header().page_size != header.page_size) {
        let why = format!("{}, where an input has {}", header.page_size, other.header().page_size);
        return Err(EncodeError::refused("page size", why).into());
    }

    let mut encoder = Encoder::new(out, header)?;
    let mut sources = Sources::new(inputs)?;
    let zeros = vec![0; header.page_size.bytes() as usize];
    // Below this every page without an image is older than all inputs; above it, it was cut off and came back.
    let floor = sources.smallest_commit;
    let mut last = 0;
    while let Some((pgno, index)) = sources.lowest() {
        let source = &sources.all[index];
        if pgno > last && pgno <= source.ceiling {
            for gap in pages_between(last.max(floor).saturating_add(1), pgno - 1, header.page_size) {
                encoder.page(gap, &zeros)?;
            }
            encoder.page(crate::page::Pgno(pgno), &source.page)?;
            last = pgno;
        }
        sources.advance(index)?;
    }
    if header.commit.0 > last.max(floor) {
        for gap in pages_between(last.max(floor) + 1, header.commit.0, header.page_size) {
            encoder.page(gap, &zeros)?;
        }
    }
    Ok(encoder.finish()?)
}

struct Source<R> {
    /// `None` once it is read to its end and verified.
    decoder: Option<Decoder<R>>,
    /// The page it stands at.
    page: Vec<u8>,
    /// The smallest commit of it and all later inputs: its images beyond were cut off.
    ceiling: u32,
}

struct Sources<R> {
    all: Vec<Source<R>>,
    /// The page each source stands at; the lowest page first, and of equal pages the newest.
    heap: BinaryHeap<(Reverse<u32>, usize)>,
    smallest_commit: u32,
}

impl<R: Read> Sources<R> {
    fn new(inputs: Vec<Decoder<R>>) -> Result<Sources<R>, MergeError> {
        let mut ceiling = u32::MAX;
        let mut all: Vec<Source<R>> = inputs
            .into_iter()
            .rev()
            .map(|decoder| {
                ceiling = ceiling.min(decoder.header().commit.0);
                Source { decoder: Some(decoder), page: Vec::new(), ceiling }
            })
            .collect();
        all.reverse();
        let count = all.len();
        let mut sources = Sources { all, heap: BinaryHeap::with_capacity(count), smallest_commit: ceiling };
        for index in 0..count {
            sources.advance(index)?;
        }
        Ok(sources)
    }

    fn lowest(&mut self) -> Option<(u32, usize)> {
        self.heap.pop().map(|(Reverse(pgno), index)| (pgno, index))
    }

    /// Moves a source to its next page, or verifies its end.
    fn advance(&mut self, index: usize) -> Result<(), MergeError> {
        let input = |source| MergeError::Input { index, source };
        let Source { decoder, page, .. } = &mut self.all[index];
        let Some(mut reading) = decoder.take() else {
            return Ok(());
        };
        match reading.next_page(page).map_err(input)? {
            Some(pgno) => {
                self.heap.push((Reverse(pgno.0), index));
                *decoder = Some(reading);
            }
            None => {
                reading.finish().map_err(input)?;
            }
        }
        Ok(())
    }
}
