//! `outbox/<TXID>.ltx`: deltas whose bytes are frozen and which the bucket may not have yet.
//!
//! A file is the delta's bytes exactly as they are sent, followed by an envelope that stays here:
//! a JSON text ([`Envelope`]), its length (u32, little-endian), its CRC-32C (u32), and `GCSFROZE`.
//! Because the delta comes first, a page lies at the same offset here and in the bucket.
//!
//! Crash: a file is written under another name, synced and renamed, so one that has its name is whole and
//! survives a power loss. It is removed only after the state file says that the bucket has it. Bytes behind a
//! name never change: what may have been sent once is what is sent again.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::capture::position::Position;
use crate::delta::{Decoder, EncodeError, Encoder, Header};
use crate::error::{Error, ErrorKind, Result};
use crate::local::{remove, suffixed, sync_dir};
use crate::page::TxId;
use crate::protocol::ObjectId;
use crate::replica::fetch::{LocalObjects, ReadAt};
use crate::replica::index_fetch::{ObjectIndex, WHOLE, ends};
use crate::replica::names::ObjectName;
use crate::store::FileBody;

const MAGIC: &[u8; 8] = b"GCSFROZE";
const TAIL: u64 = 16;
/// Behind the name of a delta that was frozen anew and does not count yet.
const REFROZEN: &str = ".refrozen";

/// What is known of a frozen delta beside its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// TXID, size and CRC-32C of the delta.
    pub(crate) id: ObjectId,
    /// How far the WAL is captured once this delta is applied.
    pub(crate) position: Position,
    /// Timestamp in the delta's header, Unix milliseconds.
    pub(crate) timestamp_ms: i64,
}

/// The directory of frozen deltas.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    dir: PathBuf,
}

impl Outbox {
    /// In an existing directory.
    pub(crate) fn new(dir: PathBuf) -> Outbox {
        Outbox { dir }
    }

    /// The file of a delta.
    pub(crate) fn path(&self, txid: TxId) -> PathBuf {
        self.dir.join(format!("{txid}.ltx"))
    }

    /// Freezes a delta: `write` produces its bytes. Nothing is there under the TXID's name until all of it is on disk.
    pub(crate) fn freeze(
        &self,
        txid: TxId,
        position: Position,
        timestamp_ms: i64,
        write: impl FnOnce(&mut Measured) -> Result<()>,
    ) -> Result<Envelope> {
        self.freeze_as(&self.path(txid), txid, position, timestamp_ms, write)
    }

    /// Freezes the deltas anew, in their order, with TXIDs from `first` on and times after `last_ms`, and returns their ids and the
    /// last time. The old files stay, and the new ones do not count, until [`Outbox::adopt_refrozen`] is told that the state
    /// names them.
    pub(crate) fn refreeze(&self, first: TxId, mut last_ms: i64) -> Result<(Vec<ObjectId>, i64)> {
        self.adopt_refrozen(&[])?;
        let mut fresh = Vec::new();
        for (old, txid) in self.list()?.into_iter().zip((first.0..).map(TxId)) {
            let body = self.body(&old.id)?;
            let path = suffixed(&self.path(txid), REFROZEN);
            last_ms = old.timestamp_ms.max(last_ms + 1);
            let envelope =
                self.freeze_as(&path, txid, old.position, last_ms, |out| renumber(body.reader(), txid, last_ms, out))?;
            fresh.push(envelope.id);
        }
        Ok((fresh, last_ms))
    }

    /// Lets the deltas that were frozen anew under these ids take the place of the old ones, and removes all others that
    /// were. Can be repeated.
    pub(crate) fn adopt_refrozen(&self, ids: &[ObjectId]) -> Result<()> {
        let failed = |e: &std::io::Error| Error::local(format_args!("reading {}", self.dir.display()), e);
        let mut refrozen = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| failed(&e))? {
            let name = entry.map_err(|e| failed(&e))?.file_name();
            let stem =
                name.to_str().and_then(|name| name.strip_suffix(REFROZEN)).and_then(|name| name.strip_suffix(".ltx"));
            if let Some(txid) = stem.and_then(|stem| stem.parse::<TxId>().ok()) {
                refrozen.push(txid);
            }
        }
        if refrozen.is_empty() {
            return Ok(());
        }
        let wanted: Vec<_> = refrozen
            .iter()
            .filter(|txid| {
                let id = envelope_in(&suffixed(&self.path(**txid), REFROZEN)).ok().map(|envelope| envelope.id);
                id.is_some_and(|id| ids.contains(&id))
            })
            .copied()
            .collect();
        if !wanted.is_empty() {
            for old in self.list()? {
                if !ids.contains(&old.id) {
                    self.remove(old.id.txid)?;
                }
            }
        }
        for txid in refrozen {
            let path = suffixed(&self.path(txid), REFROZEN);
            match wanted.contains(&txid) {
                true => fs::rename(&path, self.path(txid)).map_err(|e| failed(&e))?,
                false => remove(&path)?,
            }
        }
        sync_dir(&self.dir)
    }

    fn freeze_as(
        &self,
        path: &Path,
        txid: TxId,
        position: Position,
        timestamp_ms: i64,
        write: impl FnOnce(&mut Measured) -> Result<()>,
    ) -> Result<Envelope> {
        let draft = self.dir.join("draft");
        let failed = |e: &std::io::Error| Error::local(format_args!("writing {}", draft.display()), e);
        let file = File::create(&draft).map_err(|e| failed(&e))?;
        let mut out = Measured { to: BufWriter::with_capacity(1 << 18, file), size: 0, crc32c: 0 };
        let result = write(&mut out).and_then(|()| {
            let id = ObjectId { txid, size: out.size, crc32c: out.crc32c };
            let envelope = Envelope { id, position, timestamp_ms };
            let text = serde_json::to_vec(&envelope)
                .map_err(|e| Error::new(ErrorKind::Local, format!("writing {}: {e}", draft.display())))?;
            let mut tail = Vec::with_capacity(text.len() + TAIL as usize);
            tail.extend_from_slice(&text);
            tail.extend_from_slice(&(text.len() as u32).to_le_bytes());
            tail.extend_from_slice(&crc32c::crc32c(&text).to_le_bytes());
            tail.extend_from_slice(MAGIC);
            out.to.write_all(&tail).map_err(|e| failed(&e))?;
            let file = out.to.into_inner().map_err(|e| failed(e.error()))?;
            file.sync_data().map_err(|e| failed(&e))?;
            fs::rename(&draft, path).map_err(|e| failed(&e))?;
            sync_dir(&self.dir)?;
            Ok(envelope)
        });
        if result.is_err() {
            // Its room may be what the next attempt needs; if it cannot be removed, the next attempt overwrites it.
            let _ = fs::remove_file(&draft);
        }
        result.map_err(|e| e.context(self.dir.display()))
    }

    /// The frozen deltas, lowest TXID first; one that is removed meanwhile, because it is in the bucket, is not among them.
    pub(crate) fn list(&self) -> Result<Vec<Envelope>> {
        let failed = |e: &std::io::Error| Error::local(format_args!("reading {}", self.dir.display()), e);
        let mut envelopes = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| failed(&e))? {
            let name = entry.map_err(|e| failed(&e))?.file_name();
            let txid = name.to_str().and_then(|name| name.strip_suffix(".ltx")).and_then(|name| name.parse().ok());
            if let Some(txid) = txid {
                match self.envelope(txid) {
                    Ok(envelope) => envelopes.push(envelope),
                    Err(_) if !self.path(txid).exists() => {}
                    Err(e) => return Err(e),
                }
            }
        }
        envelopes.sort_by_key(|envelope| envelope.id.txid);
        Ok(envelopes)
    }

    /// What is known of a frozen delta.
    pub(crate) fn envelope(&self, txid: TxId) -> Result<Envelope> {
        let path = self.path(txid);
        let envelope = envelope_in(&path)?;
        if envelope.id.txid != txid {
            let why = format!("{}: its envelope belongs to another delta", path.display());
            return Err(Error::new(ErrorKind::Corrupt, why));
        }
        Ok(envelope)
    }

    /// The bytes of a frozen delta, checked against its envelope.
    pub(crate) fn read(&self, id: &ObjectId) -> Result<Bytes> {
        let path = self.path(id.txid);
        let read = || {
            let mut bytes = Vec::with_capacity(id.size as usize);
            File::open(&path)?.take(id.size).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|e: std::io::Error| Error::local(format_args!("reading {}", path.display()), &e))?;
        if bytes.len() as u64 != id.size || crc32c::crc32c(&bytes) != id.crc32c {
            return Err(Error::new(ErrorKind::Corrupt, format!("{}: its bytes changed on disk", path.display())));
        }
        Ok(bytes.into())
    }

    /// The same for a delta that is too long to be held in memory.
    pub(crate) fn body(&self, id: &ObjectId) -> Result<FileBody> {
        let path = self.path(id.txid);
        let body = File::open(&path).and_then(|file| FileBody::new(file, id.size));
        let body = body.map_err(|e| Error::local(format_args!("reading {}", path.display()), &e))?;
        if body.crc32c() != id.crc32c {
            return Err(Error::new(ErrorKind::Corrupt, format!("{}: its bytes changed on disk", path.display())));
        }
        Ok(body)
    }

    /// A frozen delta's header, and its end with the page index: of one that is read whole, all of it.
    pub(crate) fn ends(&self, id: &ObjectId) -> Result<(Bytes, Bytes)> {
        if id.size <= WHOLE {
            let bytes = self.read(id)?;
            return Ok((bytes.clone(), bytes));
        }
        let path = self.path(id.txid);
        let failed = |e: std::io::Error| Error::local(format_args!("reading {}", path.display()), &e);
        let file = File::open(&path).map_err(failed)?;
        let piece = |range: std::ops::Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, range.start).map(|()| bytes.into())
        };
        ends(id.size, piece).map_err(|e| e.context(path.display()))
    }

    /// Where a frozen delta's pages lie.
    pub(crate) fn index(&self, id: &ObjectId) -> Result<ObjectIndex> {
        let (start, end) = self.ends(id)?;
        ObjectIndex::decode(ObjectName::delta(id.txid), None, id.size, &start, &end)
    }

    /// Removes a delta that the state file says is in the bucket.
    pub(crate) fn remove(&self, txid: TxId) -> Result<()> {
        remove(&self.path(txid))
    }

    /// Where the directory is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Reads the envelope at the end of a file.
fn envelope_in(path: &Path) -> Result<Envelope> {
    let corrupt = |why: &str| Error::new(ErrorKind::Corrupt, format!("{}: {why}", path.display()));
    let read = || {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut tail = [0; TAIL as usize];
        if size < TAIL {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(size - TAIL))?;
        file.read_exact(&mut tail)?;
        let length = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
        if &tail[8..] != MAGIC || u64::from(length) > (size - TAIL).min(4096) {
            return Ok(None);
        }
        let mut text = vec![0; length as usize];
        file.seek(SeekFrom::Start(size - TAIL - u64::from(length)))?;
        file.read_exact(&mut text)?;
        let crc = u32::from_le_bytes([tail[4], tail[5], tail[6], tail[7]]);
        Ok((crc32c::crc32c(&text) == crc).then_some((text, size)))
    };
    let (text, size) = read()
        .map_err(|e: std::io::Error| Error::local(format_args!("reading {}", path.display()), &e))?
        .ok_or_else(|| corrupt("no whole envelope at its end"))?;
    let envelope: Envelope = serde_json::from_slice(&text).map_err(|e| corrupt(&e.to_string()))?;
    if envelope.id.size + text.len() as u64 + TAIL != size {
        return Err(corrupt("it is not as long as its envelope says"));
    }
    Ok(envelope)
}

/// Writes a delta's pages again under another TXID and time.
fn renumber(bytes: impl std::io::Read, txid: TxId, timestamp_ms: i64, out: &mut Measured) -> Result<()> {
    let mut old = Decoder::new(bytes)?;
    let header = Header { min: txid, max: txid, timestamp_ms, ..*old.header() };
    let refused =
        |e: EncodeError| Error::from(e).context(format_args!("freezing delta {txid} anew, beside the old one"));
    let mut encoder = Encoder::new(out, header).map_err(refused)?;
    let mut page = Vec::new();
    while let Some(pgno) = old.next_page(&mut page)? {
        encoder.page(pgno, &page).map_err(refused)?;
    }
    old.finish()?;
    encoder.finish().map_err(refused)?;
    Ok(())
}

impl LocalObjects for Outbox {
    fn open(&self, name: &ObjectName) -> Option<Box<dyn ReadAt>> {
        let delta = *name == ObjectName::delta(name.max);
        let file = delta.then(|| File::open(self.path(name.max)))?;
        file.ok().map(|file| Box::new(Frozen(file)) as Box<dyn ReadAt>)
    }
}

/// A frozen delta, open for reading. It stays readable when it is removed meanwhile.
struct Frozen(File);

impl ReadAt for Frozen {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.0, buf, offset)
    }
}

/// Writes to a file and keeps the size and CRC-32C of what was written.
pub(crate) struct Measured {
    to: BufWriter<File>,
    size: u64,
    crc32c: u32,
}

impl Write for Measured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.size += written as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freeze(outbox: &Outbox, txid: u64, bytes: &[u8]) -> Envelope {
        let write = |out: &mut Measured| {
            out.write_all(bytes).expect("a written delta");
            Ok(())
        };
        outbox.freeze(TxId(txid), Position::default(), 5, write).expect("a frozen delta")
    }

    #[test]
    fn a_frozen_delta_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = Outbox::new(dir.path().to_owned());
        let second = freeze(&outbox, 0x20, b"second");
        let first = freeze(&outbox, 0x1f, b"first");
        assert_eq!(outbox.list().expect("a list"), [first, second]);
        assert_eq!(outbox.read(&first.id).expect("bytes"), &b"first"[..]);
        outbox.remove(TxId(0x1f)).expect("removed");
        assert_eq!(outbox.list().expect("a list"), [second]);
    }

    #[test]
    fn a_delta_that_is_removed_while_others_are_listed_is_not_among_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = Outbox::new(dir.path().to_owned());
        let kept = freeze(&outbox, 1, b"kept");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for txid in 2..400 {
                    freeze(&outbox, txid, b"sent");
                    outbox.remove(TxId(txid)).expect("removed");
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(outbox.list().expect("a list").first(), Some(&kept));
            }
        });
    }

    #[test]
    fn damage_is_named_and_never_sent() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = Outbox::new(dir.path().to_owned());
        let id = freeze(&outbox, 1, b"delta").id;
        let path = outbox.path(TxId(1));
        let good = fs::read(&path).expect("bytes");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&path, &bad).expect("written");
            let error = outbox.list().and_then(|_| outbox.read(&id)).expect_err("damage");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}");
            assert!(error.to_string().contains("0000000000000001.ltx"), "{error}");
        }
        for cut in 0..good.len() {
            fs::write(&path, &good[..cut]).expect("written");
            assert_eq!(outbox.list().expect_err("damage").kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn a_delta_that_failed_to_be_written_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = Outbox::new(dir.path().to_owned());
        let fail = |_: &mut Measured| Err(Error::new(ErrorKind::Full, "no room"));
        outbox.freeze(TxId(1), Position::default(), 0, fail).expect_err("a refusal");
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
    }
}
