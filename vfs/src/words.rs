//! A local file of 64-bit words that several processes map and change with atomic operations.
//!
//! It owns the mapping, and is with it the one place outside `sqlite/` that is allowed `unsafe`. What the words
//! mean is their owner's business ([`crate::cache::presence`], [`crate::replica::page_map`]).
//!
//! Guarantees:
//! - **No SIGBUS for want of space.** Every word within [`Words::len`] lies in allocated blocks: the file grows by
//!   `fallocate`, whose failure is an ordinary error, and only then is the new length published.
//! - **No remapping.** The file is mapped in segments, each as long as all before it together. A segment is mapped at
//!   the first use and stays until the value is dropped, so a reference to a word is valid as long as the value.
//! - **Never truncated.** Another process may have it mapped. A file is made anew under a temporary name and renamed.
//!
//! Whoever has it mapped keeps what it had mapped when the name goes to a new file.
//!
//! | word | what |
//! |---|---|
//! | 0 | magic, the owner's (also tells the byte order) |
//! | 1 | number of words allocated |
//! | 2 .. 63 | the owner's header |
//! | 64 .. | the owner's data |
#![allow(unsafe_code)] // Mapped memory is reached through a raw pointer; see `word`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::FallocateFlags;

use crate::error::{Error, ErrorKind, Result};
use crate::file_lock::{FileLock, Span};
use crate::sync::Mutex;

/// Where the owner's data begins.
pub(crate) const DATA: u64 = 64;

const MAGIC: u64 = 0;
const LEN: u64 = 1;
const WORD_BYTES: u64 = 8;
/// Words in the first segment (512 KiB); each later one is as long as all before it.
const FIRST_SEGMENT: u64 = 1 << 16;
/// Enough for two words for each of 2^32 pages.
const SEGMENTS: usize = 20;
/// The file grows in steps of this many words (64 KiB).
const STEP: u64 = 1 << 13;

/// A local file that cannot be used as it is; the sentence says why. The remedy is to build it anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotUsable(pub String);

impl std::fmt::Display for NotUsable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The mapped file.
#[derive(Debug)]
pub(crate) struct Words {
    path: PathBuf,
    file: File,
    segments: [OnceLock<MmapRaw>; SEGMENTS],
    growing: Mutex<()>,
}

impl Words {
    /// Makes a new file of at least `len` zero words under a temporary name beside `path`; [`Words::publish`] gives it
    /// its name.
    pub(crate) fn create(path: &Path, magic: u64, len: u64) -> Result<Words> {
        let temporary = temporary(path);
        let failed = |e: &io::Error| Error::local(format!("making {}", temporary.display()), e);
        match std::fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&e)),
            _ => {}
        }
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(&temporary).map_err(|e| failed(&e))?;
        allocate(&file, 0, STEP * WORD_BYTES).map_err(|e| failed(&e))?;
        let words = Words { path: path.into(), file, segments: Default::default(), growing: Mutex::new(()) };
        words.segment(0)?;
        words.header(LEN).store(STEP, Ordering::Release);
        words.header(MAGIC).store(magic, Ordering::Release);
        words.grow(len)?;
        Ok(words)
    }

    /// Gives the file its name, in place of the one that had it.
    pub(crate) fn publish(&self) -> Result<()> {
        std::fs::rename(temporary(&self.path), &self.path)
            .map_err(|e| Error::local(format!("naming {}", self.path.display()), &e))
    }

    /// Opens the file if it is one with this magic and as long as it says.
    pub(crate) fn open(path: &Path, magic: u64) -> Result<Words, NotUsable> {
        let not = |why: String| NotUsable(format!("{}: {why}", path.display()));
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| not(e.to_string()))?;
        let bytes = |file: &File| file.metadata().map(|meta| meta.len()).map_err(|e| not(e.to_string()));
        // Checked before a word is touched: beyond the end of the file a touch is a SIGBUS.
        let at_least = bytes(&file)?;
        if at_least < STEP * WORD_BYTES {
            return Err(not(format!("only {at_least} bytes long")));
        }
        let words = Words { path: path.into(), file, segments: Default::default(), growing: Mutex::new(()) };
        words.segment(0).map_err(|e| not(e.to_string()))?;
        let found = words.header(MAGIC).load(Ordering::Acquire);
        if found != magic {
            return Err(not(format!("another kind or version of file (magic {found:016x}, not {magic:016x})")));
        }
        let len = words.len();
        // Asked again: another process may just have made it longer.
        let bytes = bytes(&words.file)?;
        if len < STEP || len.checked_mul(WORD_BYTES).is_none_or(|needed| needed > bytes) {
            return Err(not(format!("{bytes} bytes long, but its header says {len} words")));
        }
        Ok(words)
    }

    /// How many words there are.
    pub(crate) fn len(&self) -> u64 {
        // Only the header is read before the length is known to be right.
        self.at(0, LEN).map_or(0, |len| len.load(Ordering::Acquire))
    }

    /// A word of the header, which is always there.
    pub(crate) fn header(&self, index: u64) -> &AtomicU64 {
        static NOWHERE: AtomicU64 = AtomicU64::new(0);
        debug_assert!(index < DATA);
        // The first segment is mapped by `create` and `open`.
        self.at(0, index).unwrap_or(&NOWHERE)
    }

    /// The word at `index`; `None` beyond the length, or where no address space is left to map it.
    pub(crate) fn word(&self, index: u64) -> Option<&AtomicU64> {
        if index >= self.len() {
            return None;
        }
        let segment = segment_of(index);
        if self.segments[segment].get().is_none() {
            self.segment(segment).ok()?;
        }
        self.at(segment, index)
    }

    /// Makes it at least `len` words long; new words are zero.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] where the disk has no room; nothing changed then.
    pub(crate) fn grow(&self, len: u64) -> Result<()> {
        if len <= self.len() {
            return Ok(());
        }
        let _one_thread = self.growing.lock();
        let _one_process = FileLock::hold(&self.file, Span::one(0))
            .map_err(|e| Error::local(format!("locking {}", self.path.display()), &e))?;
        let old = self.len();
        if len <= old {
            return Ok(());
        }
        let new = len.div_ceil(STEP) * STEP;
        if segment_of(new - 1) >= SEGMENTS {
            return Err(self.broken(&format!("{new} words are more than it can hold")));
        }
        allocate(&self.file, old * WORD_BYTES, (new - old) * WORD_BYTES)
            .map_err(|e| Error::local(format!("growing {} to {} bytes", self.path.display(), new * WORD_BYTES), &e))?;
        for segment in segment_of(old - 1)..=segment_of(new - 1) {
            self.segment(segment)?;
        }
        self.header(LEN).store(new, Ordering::Release);
        Ok(())
    }

    /// Sees to it that a segment is mapped.
    fn segment(&self, segment: usize) -> Result<()> {
        if self.segments[segment].get().is_some() {
            return Ok(());
        }
        let (start, len) = bounds(segment);
        let map = MmapOptions::new()
            .offset(start * WORD_BYTES)
            .len((len * WORD_BYTES) as usize)
            .map_raw(&self.file)
            .map_err(|e| Error::local(format!("mapping {}", self.path.display()), &e))?;
        // Another thread may have been first; then this mapping is dropped again.
        let _ = self.segments[segment].set(map);
        Ok(())
    }

    /// The word at `index` of a mapped segment. The index must be within the length.
    fn at(&self, segment: usize, index: u64) -> Option<&AtomicU64> {
        let map = self.segments.get(segment)?.get()?;
        let (start, len) = bounds(segment);
        let within = index.checked_sub(start).filter(|&i| i < len)?;
        // SAFETY: the mapping is `len` words long, page-aligned, and lives as long as `self`; all-zero bytes are a valid
        // AtomicU64, and every process touches these bytes by atomic operations only. The callers keep `index` within
        // the allocated length, so the page behind it exists.
        Some(unsafe { AtomicU64::from_ptr(map.as_mut_ptr().cast::<u64>().add(within as usize)) })
    }

    /// Makes the words survive a power loss: a sync of the file covers what was written through the mapping.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::local(format!("syncing {}", self.path.display()), &e))
    }

    /// An error of this file.
    pub(crate) fn broken(&self, why: &str) -> Error {
        Error::new(ErrorKind::Local, format!("{}: {why}", self.path.display()))
    }
}

/// Allocates zeroed blocks for bytes that no process uses yet, and extends the file over them.
fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match nix::fcntl::fallocate(file, FallocateFlags::empty(), offset as i64, len as i64) {
        Ok(()) => Ok(()),
        // Some filesystems have no fallocate. Zeros that were written have their blocks.
        Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => {
            let zeros = [0u8; 65536];
            let mut done = 0;
            while done < len {
                let part = zeros.len().min((len - done) as usize);
                file.write_all_at(&zeros[..part], offset + done)?;
                done += part as u64;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn segment_of(index: u64) -> usize {
    if index < FIRST_SEGMENT { 0 } else { (index.ilog2() - FIRST_SEGMENT.ilog2() + 1) as usize }
}

/// The first word of a segment and how many there are.
fn bounds(segment: usize) -> (u64, u64) {
    if segment == 0 {
        return (0, FIRST_SEGMENT);
    }
    let start = FIRST_SEGMENT << (segment - 1);
    (start, start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: u64 = 0x1122_3344_5566_7788;

    #[test]
    fn segments_cover_every_index_once() {
        let mut expected = 0;
        for segment in 0..SEGMENTS {
            let (start, len) = bounds(segment);
            assert_eq!(start, expected);
            assert_eq!(segment_of(start), segment);
            assert_eq!(segment_of(start + len - 1), segment);
            expected = start + len;
        }
        assert!(expected > DATA + (2 << 32), "two words for each of 2^32 pages");
    }

    #[test]
    fn a_word_written_through_one_opening_is_seen_through_another_also_after_growth() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("words");
        let one = Words::create(&path, KIND, 100).expect("a file");
        one.publish().expect("a name");
        let two = Words::open(&path, KIND).expect("the same file");
        assert!(two.word(two.len()).is_none());
        let far = 3 * FIRST_SEGMENT + 17;
        one.grow(far + 1).expect("room");
        one.word(far).expect("a word").store(42, Ordering::Release);
        assert_eq!(two.word(far).expect("a word").load(Ordering::Acquire), 42);
        assert_eq!(two.word(far - 1).expect("a word").load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_file_that_is_shorter_than_it_says_or_of_another_kind_is_not_usable() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("words");
        let words = Words::create(&path, KIND, 5 * STEP).expect("a file");
        words.publish().expect("a name");
        assert!(Words::open(&path, KIND).is_ok());
        assert!(Words::open(&path, KIND + 1).expect_err("another kind").0.contains("another kind"));
        drop(words);
        let file = OpenOptions::new().write(true).open(&path).expect("the file");
        file.set_len(4 * STEP * WORD_BYTES).expect("cut");
        assert!(Words::open(&path, KIND).expect_err("short").0.contains("its header says"));
        file.set_len(10).expect("cut");
        assert!(Words::open(&path, KIND).expect_err("short").0.contains("only 10 bytes"));
        assert!(Words::open(&dir.path().join("none"), KIND).is_err());
    }

    #[test]
    fn every_allocated_word_has_its_blocks_on_disk() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("words");
        let words = Words::create(&path, KIND, 20 * STEP).expect("a file");
        let meta = words.file.metadata().expect("its size");
        assert_eq!(meta.len(), words.len() * WORD_BYTES);
        assert!(meta.blocks() * 512 >= meta.len(), "{} blocks for {} bytes", meta.blocks(), meta.len());
    }
}
