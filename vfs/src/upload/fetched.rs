//! Objects of the log that another host wrote, fetched to become commits here.
//!
//! A short one is kept in memory. A longer one goes piece by piece to a file without a name: its size costs local disk, not memory,
//! and the network is waited for before anything is locked. All pieces have to be of one generation; that they are the delta's bytes is
//! told by the checksum at its end, before any of it counts.

use std::collections::VecDeque;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::STORE_WAIT;
use crate::error::{Error, ErrorKind, Result};
use crate::local::spool::Spool;
use crate::page::TxId;
use crate::protocol::ObjectId;
use crate::replica::index_fetch::ends;
use crate::replica::names::{Listed, ObjectName, Replica};
use crate::runtime;
use crate::store::{FileBody, Object, StoreError};

/// What the first request for an object asks for, in bytes; one that is shorter stays in memory.
const SHORT: u64 = 1 << 20;
/// What each further request asks for, in bytes.
const PIECE: u64 = 4 << 20;

/// An object that was fetched.
pub(super) struct Fetched {
    pub(super) object: Listed,
    pub(super) id: ObjectId,
    content: Content,
}

enum Content {
    Short(Bytes),
    Long(FileBody),
}

impl Fetched {
    /// Reads it from its beginning to its end.
    pub(super) fn reader(&self) -> Box<dyn Read + '_> {
        match &self.content {
            Content::Short(bytes) => Box::new(&bytes[..]),
            Content::Long(body) => Box::new(body.reader()),
        }
    }

    /// Its header, and its end with the page index.
    pub(super) fn ends(&self) -> Result<(Bytes, Bytes)> {
        match &self.content {
            Content::Short(bytes) => Ok((bytes.clone(), bytes.clone())),
            Content::Long(body) => ends(body.size(), |range| body.range(range))
                .map_err(|e| e.context(format_args!("reading {}", self.object.name))),
        }
    }

    /// What it takes of the local disk until it is dropped, in bytes.
    pub(super) fn spooled(&self) -> u64 {
        match &self.content {
            Content::Short(_) => 0,
            Content::Long(body) => body.size(),
        }
    }
}

/// Where objects are fetched from, and to.
pub(super) struct Fetcher<'a> {
    pub(super) replica: &'a Replica,
    /// The folder for files without a name.
    pub(super) scratch: &'a Path,
    /// Set when nobody wants them any more.
    pub(super) stopped: &'a AtomicBool,
}

impl Fetcher<'_> {
    /// The delta of a TXID, and as many after it as `more` says, which are kept in `ahead`. `None`: there is none.
    pub(super) fn delta(&self, txid: TxId, more: u64, ahead: &mut VecDeque<Fetched>) -> Result<Option<Fetched>> {
        while let Some(known) = ahead.pop_front() {
            if known.id.txid == txid {
                return Ok(Some(known));
            }
        }
        let what = format!("reading {}", self.replica.ltx(&ObjectName::delta(txid)));
        let (replica, store) = (self.replica.clone(), self.replica.store().clone());
        let gets = async move {
            let get = |txid| {
                let (name, store) = (replica.ltx(&ObjectName::delta(TxId(txid))), store.clone());
                async move { store.get(&name, Some(0..SHORT)).await }
            };
            futures::future::join_all((txid.0..txid.0 + more).map(get)).await
        };
        for (first, txid) in runtime::wait(&what, STORE_WAIT, gets)?.into_iter().zip(txid.0..) {
            let name = ObjectName::delta(TxId(txid));
            match first.map(|first| self.complete(&name, first)) {
                Ok(Ok(fetched)) => ahead.push_back(fetched),
                Err(StoreError::NotFound(_)) => break,
                // What came before it is good.
                Err(_) | Ok(Err(_)) if !ahead.is_empty() => break,
                Err(e) => return Err(Error::from(e).context(what)),
                Ok(Err(e)) => return Err(e),
            }
        }
        Ok(ahead.pop_front())
    }

    /// An object of a listing.
    pub(super) fn object(&self, object: &Listed) -> Result<Fetched> {
        self.complete(&object.name, self.range(&object.name, 0..SHORT)?.map_err(Error::from)?)
    }

    fn range(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Result<Object, StoreError>> {
        let (name, store) = (self.replica.ltx(name), self.replica.store().clone());
        runtime::wait(&format!("reading {name}"), STORE_WAIT, async move { store.get(&name, Some(range)).await })
    }

    /// The rest of an object, behind its first piece.
    fn complete(&self, name: &ObjectName, first: Object) -> Result<Fetched> {
        let Object { bytes, mut meta, .. } = first;
        let content = if (bytes.len() as u64) < SHORT {
            Content::Short(bytes)
        } else {
            let spool = Spool::new(self.scratch)?;
            let mut file = spool.writer()?;
            let failed = |e: io::Error| Error::local(format_args!("keeping {name}"), &e);
            let mut size = bytes.len() as u64;
            file.write_all(&bytes).map_err(failed)?;
            drop(bytes);
            loop {
                if self.stopped.load(Ordering::SeqCst) {
                    return Err(Error::new(ErrorKind::Unavailable, format!("reading {name}: the database is closed")));
                }
                let piece = match self.range(name, size..size + PIECE)? {
                    Ok(piece) => piece,
                    // It ends where the last piece did.
                    Err(StoreError::Range(_)) => break,
                    Err(e) => return Err(e.into()),
                };
                if piece.meta.generation != meta.generation {
                    let why = format!("{name} was replaced while it was read");
                    return Err(Error::new(ErrorKind::Unavailable, why));
                }
                size += piece.bytes.len() as u64;
                file.write_all(&piece.bytes).map_err(failed)?;
                if (piece.bytes.len() as u64) < PIECE {
                    break;
                }
            }
            Content::Long(spool.body()?)
        };
        let (size, crc32c) = match &content {
            Content::Short(bytes) => (bytes.len() as u64, crc32c::crc32c(bytes)),
            Content::Long(body) => (body.size(), body.crc32c()),
        };
        // Of a range it may not have been told.
        meta.size = size;
        let id = ObjectId { txid: name.max, size, crc32c };
        Ok(Fetched { object: Listed { name: *name, meta }, id, content })
    }
}
