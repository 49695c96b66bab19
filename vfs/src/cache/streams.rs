//! Which reads belong to a scan, and how far ahead of it pages are to be fetched.
//!
//! A stream is a place in the file that reads move forward from. A miss that continues none begins one, with a small window; a
//! read that continues one moves it on. Once a few reads have, it is a scan: half a window before the end of what was asked for
//! the next window is due, twice as long where most of the last one's pages were read, half as long where they were not.
//! Misses that continue nothing make the first window smaller, down to [`LEAST`] pages; scans make it larger again.
//!
//! Pure state under one lock that is held for nanoseconds; nothing is fetched from here. A process keeps the last
//! [`STREAMS`] of them.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sync::Mutex;

/// How many streams are kept at a time.
const STREAMS: usize = 8;
/// Pages of the first window: at most, and at least.
const FIRST: u32 = 16;
const LEAST: u32 = 4;
/// A read this far behind the end of a window still continues it.
const SLACK: u32 = 8;
/// So many reads make a stream a scan.
const PROOF: u32 = 3;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The page read last.
    at: u32,
    /// The first page that was not asked for yet.
    end: u32,
    window: u32,
    /// Where the window began, and how many pages were read since.
    from: u32,
    reads: u32,
    /// How many reads moved it on in all, up to [`PROOF`].
    proof: u32,
    last_use: u64,
}

#[derive(Debug)]
struct Table {
    streams: Vec<Stream>,
    first: u32,
    clock: u64,
}

/// The streams of one process.
#[derive(Debug)]
pub(crate) struct Streams {
    table: Mutex<Table>,
    most: AtomicU32,
}

impl Streams {
    /// With windows of at most so many pages.
    pub(crate) fn new(most: u32) -> Streams {
        let most = most.max(LEAST);
        Streams {
            table: Mutex::new(Table { streams: Vec::new(), first: FIRST.min(most), clock: 0 }),
            most: most.into(),
        }
    }

    /// Lowers the most that a window may be.
    pub(crate) fn set_most(&self, most: u32) {
        self.most.fetch_min(most.max(LEAST), Ordering::Relaxed);
    }

    fn most(&self) -> u32 {
        self.most.load(Ordering::Relaxed)
    }

    /// A page that is read is missing. Returns how many pages from it on are to be fetched, 1 or more.
    pub(crate) fn missed(&self, pgno: u32) -> u32 {
        let mut table = self.table.lock();
        let table = &mut *table;
        table.clock += 1;
        if let Some(stream) = table.continued(pgno) {
            stream.grow(self.most());
            stream.from = pgno;
            stream.reads = 1;
            stream.end = pgno.saturating_add(stream.window);
            let window = stream.window;
            table.first = FIRST.min(self.most());
            return window;
        }
        let window = table.first;
        table.first = (table.first / 2).max(LEAST);
        let fresh = Stream {
            at: pgno,
            end: pgno.saturating_add(window),
            window,
            from: pgno,
            reads: 1,
            proof: 1,
            last_use: table.clock,
        };
        if table.streams.len() < STREAMS {
            table.streams.push(fresh);
        } else if let Some(oldest) = table.streams.iter_mut().min_by_key(|stream| stream.last_use) {
            *oldest = fresh;
        }
        window
    }

    /// A page was read that was there. Returns the pages to fetch in the background now, from the first to before the second.
    pub(crate) fn hit(&self, pgno: u32) -> Option<(u32, u32)> {
        // Whoever else is here moves some stream on; this read may go uncounted.
        let mut table = self.table.try_lock()?;
        let table = &mut *table;
        table.clock += 1;
        let stream = table.continued(pgno)?;
        if stream.proof < PROOF || stream.end.saturating_sub(pgno) > stream.window / 2 {
            return None;
        }
        stream.grow(self.most());
        let from = stream.end.max(pgno.saturating_add(1));
        stream.end = pgno.saturating_add(stream.window).max(from);
        stream.from = pgno;
        stream.reads = 1;
        let due = (from < stream.end).then_some((from, stream.end));
        table.first = FIRST.min(self.most());
        due
    }

    /// What was asked for after `at` ended earlier, before this page.
    pub(crate) fn ended(&self, at: u32, end: u32) {
        let mut table = self.table.lock();
        for stream in table.streams.iter_mut().filter(|stream| stream.at <= at && at < stream.end) {
            stream.end = stream.end.min(end.max(at + 1));
        }
    }
}

impl Table {
    fn continued(&mut self, pgno: u32) -> Option<&mut Stream> {
        let clock = self.clock;
        let continues = |s: &&mut Stream| s.at < pgno && pgno <= s.end.saturating_add(SLACK.max(s.window / 8));
        let stream = self.streams.iter_mut().filter(continues).max_by_key(|stream| stream.at)?;
        stream.at = pgno;
        stream.reads += 1;
        stream.proof = (stream.proof + 1).min(PROOF);
        stream.last_use = clock;
        Some(stream)
    }
}

impl Stream {
    /// The next window, by what was read of the last one.
    fn grow(&mut self, most: u32) {
        let passed = self.at.saturating_sub(self.from).max(1);
        let dense = u64::from(self.reads) * 4 >= u64::from(passed);
        self.window = if dense { self.window.saturating_mul(2).min(most) } else { (self.window / 2).max(LEAST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads pages one after the other from a file of which nothing is there; returns what was fetched at each miss and
    /// in the background.
    fn read(streams: &Streams, pages: impl Iterator<Item = u32>) -> (Vec<u32>, Vec<(u32, u32)>) {
        let mut there = std::collections::HashSet::new();
        let (mut missed, mut ahead) = (Vec::new(), Vec::new());
        for pgno in pages {
            if !there.contains(&pgno) {
                let window = streams.missed(pgno);
                missed.push(window);
                there.extend(pgno..pgno + window);
            }
            if let Some((from, to)) = streams.hit(pgno) {
                ahead.push((from, to));
                there.extend(from..to);
            }
        }
        (missed, ahead)
    }

    #[test]
    fn a_scan_misses_once_and_its_window_grows_to_the_most() {
        let streams = Streams::new(256);
        let (missed, ahead) = read(&streams, 1..5000);
        assert_eq!(missed, [16]);
        let longest = ahead.iter().map(|(from, to)| to - from).max();
        assert!(ahead.windows(2).all(|pair| pair[0].1 == pair[1].0), "without holes and once: {ahead:?}");
        assert!(longest >= Some(128), "{longest:?}");
        assert!(ahead.len() < 50, "{} requests", ahead.len());
    }

    #[test]
    fn scans_of_several_threads_do_not_disturb_each_other() {
        let streams = Streams::new(256);
        let (missed, _) = read(&streams, (0..3000).flat_map(|n| [1 + n, 100_001 + n, 200_001 + n]));
        assert_eq!(missed.len(), 3);
    }

    #[test]
    fn every_third_page_is_a_scan_as_well() {
        let streams = Streams::new(256);
        let (missed, ahead) = read(&streams, (1..3000).step_by(3));
        assert_eq!(missed.len(), 1);
        assert!(!ahead.is_empty());
    }

    #[test]
    fn reads_at_random_fetch_a_few_pages_each() {
        let streams = Streams::new(256);
        let mut rng = fastrand::Rng::with_seed(7);
        let (missed, ahead) = read(&streams, std::iter::repeat_with(|| rng.u32(1..10_000_000)).take(1000));
        let pages: u32 = missed.iter().sum();
        assert!(pages <= 5 * 1000 && ahead.is_empty(), "{pages} pages, {ahead:?}");
    }

    #[test]
    fn a_scan_that_leaves_most_pages_out_is_followed_with_small_windows() {
        let streams = Streams::new(4096);
        read(&streams, 1..2000);
        let (_, ahead) = read(&streams, (2000..20_000).step_by(9));
        let last = ahead.last().map_or(0, |(from, to)| to - from);
        assert!(last <= 32, "{last}");
    }
}
