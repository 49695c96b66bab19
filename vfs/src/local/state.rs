//! What one host knows of one replica, written to `app.db-gcs/state` by rename and sync.
//!
//! It is written after an upload was settled and before the outbox file of that delta is removed, so that
//! state and outbox together always tell how far the bucket goes and from which WAL frame on it does not.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::replace;
use crate::capture::position::Position;
use crate::error::{Error, ErrorKind, Result};
use crate::page::TxId;
use crate::protocol::{self, ObjectId};
use crate::store::Generation;

/// The format that this version writes; another one is set aside and rebuilt.
pub(crate) const FORMAT: u32 = 1;

/// The content of the state file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// See [`FORMAT`].
    pub(crate) format: u32,
    /// The replica's place: bucket URL and database name.
    pub(crate) replica: String,
    /// The boot of the machine that wrote this.
    pub(crate) boot: String,
    /// Device and inode of the main file, so that a copied cache is not taken for the original.
    pub(crate) file: (u64, u64),
    /// Page size in bytes.
    pub(crate) page_size: u32,
    /// What this host remembers of its part in the append protocol.
    pub(crate) protocol: protocol::State,
    /// Which write of its name the durable delta is, where that is known: a listing then tells it without its checksum.
    pub(crate) durable_generation: Option<u64>,
    /// How far the WAL is contained in the deltas up to the durable one.
    pub(crate) position: Position,
    /// The cache lacks a commit that was frozen, or has commits that are kept aside: it has to be built anew, whatever else
    /// says how far it goes.
    #[serde(default)]
    pub(crate) rebuild: bool,
    /// The last process closed in good order: the cache file is whole, also after a reboot.
    pub(crate) clean: bool,
}

impl State {
    /// Reads the state; `None` where there is none. A file that does not parse or has another format is an error
    /// of kind Corrupt that says why.
    pub(crate) fn load(path: &Path) -> Result<Option<State>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::local(format_args!("reading {}", path.display()), &e)),
        };
        let corrupt = |why: String| Error::new(ErrorKind::Corrupt, format!("{}: {why}", path.display()));
        let format: Format = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
        if format.format != FORMAT {
            return Err(corrupt(format!("format {}, this version reads {FORMAT}", format.format)));
        }
        serde_json::from_slice(&text).map(Some).map_err(|e| corrupt(e.to_string()))
    }

    /// Writes the state; after a crash either this or the former one is there.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|e| Error::new(ErrorKind::Local, format!("writing {}: {e}", path.display())))?;
        replace(path, &text)
    }

    /// The newest delta known to be in the bucket, and which write of its name it is, where both are known.
    pub(crate) fn durable(&self) -> Option<(ObjectId, Generation)> {
        Some((self.protocol.durable?, Generation(self.durable_generation?)))
    }

    /// The newest TXID known to be in the bucket.
    pub(crate) fn durable_txid(&self) -> TxId {
        self.protocol.durable.map_or(TxId::NONE, |id| id.txid)
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The boot of this machine: changes at every start of the kernel.
pub(crate) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if !text.trim().is_empty() {
        return text.trim().to_owned();
    }
    // Without the kernel's id (some sandboxes), the moment of the start tells boots apart as well.
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    stat.lines().find(|line| line.starts_with("btime ")).unwrap_or("unknown boot").to_owned()
}
