//! Deltas that are in the bucket and not in the page map yet: `app.db-gcs/pending/<max>`, one small file each.
//!
//! The map describes the state that the main file shows, so a delta enters it only after the checkpoint that wrote its pages. Until
//! then this remembers where its pages lie. A file is a JSON line ([`Pending`]), then the object's header and its end with
//! the page index, or all of an object up to [`WHOLE`] bytes, then the CRC-32C of all that. Part of the cache: not synced, and
//! thrown away with it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::capture::index::Committed;
use crate::delta::{Header, TAIL_MIN, tail_layout};
use crate::error::{Error, ErrorKind, Result};
use crate::local::remove;
use crate::page::TxId;
use crate::replica::index_fetch::{ObjectIndex, WHOLE};
use crate::replica::names::ObjectName;
use crate::store::Generation;

/// What is known of the object beside its index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// Level and transactions.
    pub(crate) level: u8,
    /// First transaction.
    pub(crate) min: u64,
    /// Last transaction.
    pub(crate) max: u64,
    /// Generation in the bucket.
    pub(crate) generation: u64,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Salts of the generation of the WAL that its last frame is in.
    pub(crate) salts: [u8; 8],
    /// Number of frames up to and with its last one.
    pub(crate) frames: u32,
}

impl Pending {
    /// Whether all of its frames are in the main file. `wal`: the committed state of the WAL and the frames of it that are
    /// backfilled, read after this delta was captured; `None` where there is no WAL.
    pub(crate) fn is_backfilled(&self, wal: Option<(Committed, u32)>) -> bool {
        match wal {
            // A generation ends only after all of it was backfilled.
            Some((committed, backfilled)) => committed.salts != self.salts || self.frames <= backfilled,
            None => true,
        }
    }

    fn name(&self) -> ObjectName {
        ObjectName { level: self.level, min: TxId(self.min), max: TxId(self.max) }
    }
}

/// The directory.
#[derive(Debug)]
pub(crate) struct PendingDeltas {
    dir: PathBuf,
}

impl PendingDeltas {
    /// In the database's own directory.
    pub(crate) fn of(dir: &Path) -> PendingDeltas {
        PendingDeltas { dir: dir.join("pending") }
    }

    /// Remembers an object, of which `start` holds the header and `end` the page index at least; of one that is short, both
    /// are all of it.
    pub(crate) fn add(&self, pending: &Pending, start: &[u8], end: &[u8]) -> Result<()> {
        let name = pending.name();
        let tail = tail_layout(&end[end.len().saturating_sub(TAIL_MIN)..], pending.size);
        let tail = tail.map_err(|e| Error::from(e).context(name))?;
        let mut content = serde_json::to_vec(pending)
            .map_err(|e| Error::new(ErrorKind::Local, format!("remembering where the pages of {name} lie: {e}")))?;
        content.push(b'\n');
        content.extend_from_slice(start.get(..Header::LEN).unwrap_or(start));
        let keep = if pending.size <= WHOLE { pending.size.saturating_sub(Header::LEN as u64) } else { tail };
        content.extend_from_slice(&end[end.len().saturating_sub(keep as usize)..]);
        content.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
        let path = self.dir.join(TxId(pending.max).to_string());
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let draft = path.with_extension("new");
            fs::write(&draft, &content)?;
            fs::rename(&draft, &path)
        };
        write().map_err(|e| Error::local(format!("writing {}", path.display()), &e))
    }

    /// What is remembered, lowest transaction first. Each is read when the iterator comes to it: most of those who look stop at
    /// the first.
    pub(crate) fn list(&self) -> Result<impl Iterator<Item = Result<(Pending, ObjectIndex)>>> {
        let mut txids = self.txids()?;
        txids.sort_unstable();
        Ok(txids.into_iter().map(|txid| self.read(txid).map(|(pending, index, _)| (pending, index))))
    }

    /// Whether nothing is remembered.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        self.txids().map(|txids| txids.is_empty())
    }

    fn txids(&self) -> Result<Vec<TxId>> {
        let failed = |e: &std::io::Error| Error::local(format!("reading {}", self.dir.display()), e);
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| failed(&e))?,
        };
        let mut txids = Vec::new();
        for entry in entries {
            let name = entry.map_err(|e| failed(&e))?.file_name();
            txids.extend(name.to_str().and_then(|name| name.parse::<TxId>().ok()));
        }
        Ok(txids)
    }

    /// All of an object, if it was short enough to be kept.
    pub(crate) fn whole(&self, pending: &Pending) -> Result<Option<Vec<u8>>> {
        let (_, _, bytes) = self.read(TxId(pending.max))?;
        Ok((bytes.len() as u64 == pending.size).then_some(bytes))
    }

    fn read(&self, txid: TxId) -> Result<(Pending, ObjectIndex, Vec<u8>)> {
        let path = self.dir.join(txid.to_string());
        let bytes = fs::read(&path).map_err(|e| Error::local(format!("reading {}", path.display()), &e))?;
        let damaged = || Error::new(ErrorKind::Corrupt, format!("{}: damaged", path.display()));
        let (content, crc) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
            return Err(damaged());
        }
        let line = content.iter().position(|&byte| byte == b'\n').ok_or_else(damaged)?;
        let pending: Pending = serde_json::from_slice(&content[..line]).map_err(|_| damaged())?;
        let object = &content[line + 1..];
        let (start, end) = object.split_at_checked(Header::LEN).ok_or_else(damaged)?;
        let generation = Some(Generation(pending.generation));
        let index = ObjectIndex::decode(pending.name(), generation, pending.size, start, end)?;
        Ok((pending, index, object.to_vec()))
    }

    /// Forgets one that is in the map now.
    pub(crate) fn remove(&self, pending: &Pending) -> Result<()> {
        remove(&self.dir.join(TxId(pending.max).to_string()))
    }

    /// Forgets all: the map was made anew.
    pub(crate) fn clear(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::local(format!("emptying {}", self.dir.display()), &e))
            }
            _ => Ok(()),
        }
    }
}
