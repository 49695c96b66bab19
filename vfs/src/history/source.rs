//! The bytes of an object as a stream: from the local disk where they are there, else by ranged reads of the bucket.
//!
//! The next range is under way while the last one is consumed. Memory is bounded whatever the object's size: two ranges.
//! Every range has to come from the generation that was listed.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::delta::Decoder;
use crate::error::{Error, ErrorKind, Result};
use crate::history::listing::Row;
use crate::replica::fetch::{LocalObjects, ReadAt};
use crate::replica::index_fetch::ReadError;
use crate::replica::names::Replica;
use crate::runtime;
use crate::sync::Mutex;

/// What all objects that are read together may keep in memory, in bytes.
const MEMORY: u64 = 16 << 20;
/// The least and the most that one request asks for.
const LEAST: u64 = 64 << 10;
const MOST: u64 = 4 << 20;
/// So many requests are under way at a time.
const PARALLEL: usize = 16;
/// How long one range is waited for; the store's own deadline is shorter.
const RANGE_WAIT: Duration = Duration::from_secs(120);

/// What the reads of one merge share.
pub(super) struct Reads {
    replica: Replica,
    local: Arc<dyn LocalObjects>,
    permits: Arc<Semaphore>,
    range: u64,
    /// The first error of a read, which says more than what the decoder makes of it.
    failed: Arc<Mutex<Option<Error>>>,
}

impl Reads {
    pub(super) fn new(replica: &Replica, local: &Arc<dyn LocalObjects>, objects: usize) -> Reads {
        Reads {
            replica: replica.clone(),
            local: Arc::clone(local),
            permits: Arc::new(Semaphore::new(PARALLEL)),
            range: (MEMORY / (2 * objects.max(1) as u64)).clamp(LEAST, MOST),
            failed: Arc::default(),
        }
    }

    /// Opens objects for decoding, in their order; each has to be of the transactions that its name says.
    pub(super) fn decoders(&self, rows: &[Row]) -> Result<Vec<Decoder<Source>>> {
        let sources = rows.iter().map(|row| self.open(row)).collect::<Result<Vec<Source>>>()?;
        let decode = |(row, source): (&Row, Source)| {
            let bad = |e| self.error(e).context(format!("{} in {}", row.name, self.replica.place()));
            let decoder = Decoder::new(source).map_err(|e| bad(e.into()))?;
            let header = decoder.header();
            if (header.min, header.max) != (row.name.min, row.name.max) {
                let why = format!("its header says transactions {} to {}", header.min, header.max);
                return Err(bad(Error::new(ErrorKind::Corrupt, why)));
            }
            Ok(decoder)
        };
        rows.iter().zip(sources).map(decode).collect()
    }

    /// The error to report where decoding failed with this one.
    pub(super) fn error(&self, seen: Error) -> Error {
        self.failed.lock().take().unwrap_or(seen)
    }

    fn open(&self, row: &Row) -> Result<Source> {
        if let Some(file) = self.local.open(&row.name) {
            return Ok(Source::Local(io::BufReader::with_capacity(LEAST as usize, LocalBytes { file, at: 0 })));
        }
        let mut remote = Remote {
            replica: self.replica.clone(),
            row: row.clone(),
            permits: Arc::clone(&self.permits),
            range: self.range,
            failed: Arc::clone(&self.failed),
            asked: 0,
            next: None,
            bytes: Bytes::new(),
        };
        remote.ask()?;
        Ok(Source::Remote(remote))
    }
}

/// One object being read.
pub(super) enum Source {
    Local(io::BufReader<LocalBytes>),
    Remote(Remote),
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::Local(file) => file.read(buf),
            Source::Remote(remote) => remote.read(buf),
        }
    }
}

pub(super) struct LocalBytes {
    file: Box<dyn ReadAt>,
    at: u64,
}

impl Read for LocalBytes {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(self.at, buf)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A range that was asked for.
struct UnderWay {
    answer: Receiver<Result<Bytes, ReadError>>,
    task: JoinHandle<()>,
}

pub(super) struct Remote {
    replica: Replica,
    row: Row,
    permits: Arc<Semaphore>,
    range: u64,
    failed: Arc<Mutex<Option<Error>>>,
    /// Up to here it was asked for.
    asked: u64,
    next: Option<UnderWay>,
    bytes: Bytes,
}

impl Remote {
    /// Asks for the next range, if there is one.
    fn ask(&mut self) -> Result<()> {
        let range = self.asked..self.row.meta.size.min(self.asked + self.range);
        if range.is_empty() {
            self.next = None;
            return Ok(());
        }
        self.asked = range.end;
        let (send, receive) = sync_channel(1);
        let (replica, name, generation) = (self.replica.clone(), self.row.name, self.row.meta.generation);
        let permits = Arc::clone(&self.permits);
        let task = runtime::handle()?.spawn(async move {
            let _permit = permits.acquire_owned().await;
            let read = replica.read(&name, generation, Some(range.clone())).await.map(|object| object.bytes);
            let whole = read.and_then(|bytes| match bytes.len() as u64 {
                got if got == range.end - range.start => Ok(bytes),
                got => {
                    let why = format!("{name}: {got} bytes came for {}..{}", range.start, range.end);
                    Err(ReadError::Other(Error::new(ErrorKind::Corrupt, why)))
                }
            });
            // The receiver is gone only when nobody reads any more.
            let _ = send.send(whole);
        });
        self.next = Some(UnderWay { answer: receive, task });
        Ok(())
    }

    fn refill(&mut self) -> Result<()> {
        let Some(next) = &self.next else { return Ok(()) };
        let read = next.answer.recv_timeout(RANGE_WAIT).map_err(|_| {
            let why = format!("reading {} in {}: no answer", self.row.name, self.replica.place());
            Error::new(ErrorKind::Unavailable, why)
        })?;
        self.bytes = read?;
        self.ask()
    }
}

impl Read for Remote {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty()
            && let Err(error) = self.refill()
        {
            let shown = io::Error::other(error.to_string());
            self.failed.lock().get_or_insert(error);
            return Err(shown);
        }
        let count = buf.len().min(self.bytes.len());
        self.bytes.copy_to_slice(&mut buf[..count]);
        Ok(count)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(next) = &self.next {
            next.task.abort();
        }
    }
}
