//! Keeping what cannot go on: commits that lost the log to another writer, and caches that belong elsewhere.
//!
//! A conflict folder stands beside the database, `conflict-<Unix seconds>[-n]`:
//!
//! | name | what |
//! |---|---|
//! | `note.json` | database, replica, last TXID that the log shares with us, the log's head, our deltas |
//! | `<TXID>.ltx` | our deltas, as LTX files that Litestream's tools read |
//!
//! # Crash
//! Everything is moved by rename on one file system, so a file is in one of the two places. Before the first one moves the
//! state says that the cache is to be built anew, because its pages may be those of the commits that go; and what was
//! applied from the bucket is forgotten, because it would say that the cache is the log up to there. The newest delta goes
//! first: what is left in the outbox still follows the durable one, and is kept aside by the next open.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::state::State;
use super::{Layout, replace, suffixed, sync_dir};
use crate::capture::applied::AppliedFile;
use crate::error::{Error, Result};
use crate::outbox::Outbox;
use crate::page::TxId;

/// Moves every frozen delta that the bucket will not take into a new conflict folder, and returns it. `lost` is the first
/// TXID that another writer has. The state is written before, and changed once more for the caller to write.
pub(crate) fn keep(layout: &Layout, outbox: &Outbox, state: &mut State, lost: TxId) -> Result<PathBuf> {
    state.rebuild = true;
    state.save(&layout.state())?;
    AppliedFile::open(outbox.dir())?.clear()?;
    let folder = fresh(layout.main().parent().unwrap_or(Path::new("/")), "conflict")?;
    let deltas = outbox.list()?;
    let note = json!({
        "database": layout.main().display().to_string(),
        "replica": state.replica,
        "base_txid": state.durable_txid().to_string(),
        "lost_from_txid": lost.to_string(),
        "deltas": deltas.iter().map(|d| json!({
            "txid": d.id.txid.to_string(),
            "bytes": d.id.size,
            "pages_after": d.position.pages.0,
            "timestamp_ms": d.timestamp_ms,
        })).collect::<Vec<_>>(),
    });
    replace(&folder.join("note.json"), note.to_string().as_bytes())?;
    for delta in deltas.iter().rev() {
        let from = outbox.path(delta.id.txid);
        let to = folder.join(format!("{}.ltx", delta.id.txid));
        let failed =
            |e: &std::io::Error| Error::local(format_args!("moving {} to {}", from.display(), to.display()), e);
        fs::rename(&from, &to).map_err(|e| failed(&e))?;
        sync_dir(outbox.dir())?;
        // Without the envelope it is an LTX file like any other.
        File::options().write(true).open(&to).and_then(|f| f.set_len(delta.id.size)).map_err(|e| failed(&e))?;
    }
    sync_dir(&folder)?;
    state.protocol.set_aside();
    Ok(folder)
}

/// Moves a cache that does not belong here (and the main file, if it is a cache) into a new folder in our directory.
pub(crate) fn put_aside(layout: &Layout, with_main: bool) -> Result<PathBuf> {
    let folder = fresh(layout.dir(), "aside")?;
    let mut from: Vec<PathBuf> = Vec::new();
    for name in ["state", "outbox", "map", "objects", "presence"] {
        from.push(layout.dir().join(name));
    }
    from.push(layout.wal());
    if with_main {
        from.push(layout.main().to_owned());
        from.push(layout.shm());
    }
    for path in from {
        let Some(name) = path.file_name() else { continue };
        let to = folder.join(name);
        match fs::rename(&path, &to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::local(format_args!("moving {} to {}", path.display(), to.display()), &e));
            }
            _ => {}
        }
    }
    sync_dir(&folder)?;
    Ok(folder)
}

/// Makes a folder of a new name.
fn fresh(parent: &Path, word: &str) -> Result<PathBuf> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let first = parent.join(format!("{word}-{seconds}"));
    let mut folder = first.clone();
    for number in 1..10_000 {
        match fs::create_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => folder = suffixed(&first, &format!("-{number}")),
            Err(e) => return Err(Error::local(format_args!("creating {}", folder.display()), &e)),
            Ok(()) => break,
        }
    }
    Ok(folder)
}
