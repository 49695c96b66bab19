//! Backfilling the WAL of a follower: what SQLite's checkpoint does, for a database that has no connection to run one.
//!
//! The steps, the locks and what readers may rely on are those of `walCheckpoint` in SQLite's `src/wal.c`; WRITE is held besides,
//! so that nothing is appended meanwhile. CKPT is held alone from before the header is looked at until the end, which also keeps
//! out the checkpoint-and-reset race of SQLite before 3.51.3.
//!
//! 1. A read mark that nobody holds is raised or given up. One that is held bounds what may be copied: its reader takes
//!    pages that later frames hold from the database file, as they were.
//! 2. Under READ0 alone (nobody reads the database file by itself) the newest image of each page up to that bound is copied.
//! 3. If nothing is left in the WAL, the file gets the size of the database.
//! 4. `nBackfill` says how far it is.
//!
//! **Crash.** Before 4 the WAL still holds all that was copied, and it is copied again. Nothing is synced: after a power loss
//! the whole cache is distrusted, and the bucket has every page.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;

use super::Applier;
use super::index::{self, BACKFILL_ATTEMPTED, BACKFILLED, IndexHeader, IndexWriter, READ_MARK_UNUSED, READ_MARKS};
use crate::capture::wal::{FRAME_HEADER, WalHeader};
use crate::error::{Error, Result};
use crate::page::{PageCount, Pgno};

/// The database file.
pub(crate) trait DatabaseFile {
    /// Writes a page.
    fn put(&self, pgno: Pgno, page: &[u8]) -> Result<()>;

    /// Makes it so long.
    fn cut(&self, pages: PageCount) -> Result<()>;
}

/// How far the WAL is in the database file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Backfilled {
    /// Committed frames.
    pub(crate) frames: u32,
    /// Those of them that are in the database file.
    pub(crate) done: u32,
}

impl Applier<'_> {
    /// Copies what readers allow from the WAL into the database file. `None`: somebody writes or checkpoints just now, or the
    /// wal-index has to be recovered first.
    pub(crate) fn backfill(&self, file: &dyn DatabaseFile) -> Result<Option<Backfilled>> {
        let Some(index) = self.index.writer()? else { return Ok(None) };
        if !index.try_lock_checkpoint()? {
            return Ok(None);
        }
        let result = match index.region(0).map(IndexHeader::read) {
            Ok(Some(header)) => self.backfill_locked(&*index, &header, file).map(Some),
            Ok(None) => Ok(None),
            Err(e) => Err(e),
        };
        index.unlock_checkpoint();
        result
    }

    fn backfill_locked(
        &self,
        index: &dyn IndexWriter,
        header: &IndexHeader,
        file: &dyn DatabaseFile,
    ) -> Result<Backfilled> {
        let frames = header.frames();
        let first = index.region(0)?;
        let before = index::backfilled(first);
        if before >= frames {
            return Ok(Backfilled { frames, done: frames });
        }
        let mut bound = frames;
        for (number, word) in READ_MARKS.enumerate().skip(1) {
            let mark = first.words[word].load(Ordering::Acquire);
            if mark >= bound {
                continue;
            }
            if index.try_lock_reader(number)? {
                let mark = if number == 1 { bound } else { READ_MARK_UNUSED };
                first.words[word].store(mark, Ordering::Release);
                index.unlock_reader(number);
            } else {
                bound = mark;
            }
        }
        if bound <= before || !index.try_lock_reader(0)? {
            return Ok(Backfilled { frames, done: before });
        }
        first.words[BACKFILL_ATTEMPTED].store(bound, Ordering::Release);
        let result = self.copy(index, header, before..bound, file);
        if result.is_ok() {
            first.words[BACKFILLED].store(bound, Ordering::Release);
        }
        index.unlock_reader(0);
        result.map(|()| Backfilled { frames, done: bound })
    }

    /// Copies the frames behind `range.start` up to `range.end`.
    fn copy(
        &self,
        index: &dyn IndexWriter,
        header: &IndexHeader,
        range: std::ops::Range<u32>,
        file: &dyn DatabaseFile,
    ) -> Result<()> {
        let mut newest = BTreeMap::new();
        for frame in range.start + 1..=range.end {
            newest.insert(index::page_of(index, frame)?, frame);
        }
        let path = self.layout.wal();
        let failed = |e: &std::io::Error| Error::local(format_args!("reading {}", path.display()), e);
        let wal = File::open(&path).map_err(|e| failed(&e))?;
        let mut page = vec![0; self.page_size.bytes() as usize];
        for (pgno, frame) in newest.into_iter().filter(|(pgno, _)| header.pages().contains(*pgno)) {
            let at = WalHeader::frame_offset(self.page_size, frame) + FRAME_HEADER as u64;
            wal.read_exact_at(&mut page, at).map_err(|e| failed(&e))?;
            file.put(pgno, &page)?;
        }
        if range.end == header.frames() { file.cut(header.pages()) } else { Ok(()) }
    }
}
