//! The directory `app.db-gcs/` beside the database: everything local that is not the cache file or the WAL.
//!
//! | name | what | lost without it |
//! |---|---|---|
//! | `lock` | byte-range locks of the processes of this host | nothing: empty file |
//! | `state` | replica, nonce, durable TXID, WAL position, written by rename | the cache is rebuilt |
//! | `shared` | mapped memory that the processes share, valid for one boot | rebuilt at open |
//! | `outbox/` | deltas that are local only, and saved WAL frames | committed data that was not uploaded |
//! | `pending/` | deltas that are in the bucket and not in `map` yet | requests |
//! | `map`, `presence` | where each page lies in the bucket, which pages the cache file has | requests |

pub(crate) mod conflict;
pub(crate) mod locks;
pub(crate) mod shared;
pub(crate) mod spool;
pub(crate) mod state;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The paths below `app.db-gcs/`, and of the files beside the database.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    main: PathBuf,
    dir: PathBuf,
    wal: PathBuf,
}

impl Layout {
    /// Of the database whose main file is `main` (a canonical path).
    pub(crate) fn of(main: &Path) -> Layout {
        Layout { main: main.to_owned(), dir: suffixed(main, "-gcs"), wal: suffixed(main, "-gcswal") }
    }

    /// Of a database that tests open through SQLite's own VFS, with the WAL where that puts it.
    #[cfg(test)]
    pub(crate) fn of_plain(main: &Path) -> Layout {
        Layout { wal: suffixed(main, "-wal"), ..Layout::of(main) }
    }

    /// The cache file.
    pub(crate) fn main(&self) -> &Path {
        &self.main
    }

    /// Our directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The WAL, under the name that a plain SQLite does not look for.
    pub(crate) fn wal(&self) -> PathBuf {
        self.wal.clone()
    }

    /// The wal-index.
    pub(crate) fn shm(&self) -> PathBuf {
        suffixed(&self.main, "-shm")
    }

    /// The directory of what is local only.
    pub(crate) fn outbox(&self) -> PathBuf {
        self.dir.join("outbox")
    }

    /// The lock file.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The state file.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The memory that processes share.
    pub(crate) fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// What our directory, the WAL and the wal-index take of the disk, in bytes.
    pub(crate) fn beside_bytes(&self) -> u64 {
        let of = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
        let files = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
        let inside: u64 = files(&self.dir)
            .map(|entry| entry.path())
            .map(|path| of(&path) + if path.is_dir() { files(&path).map(|entry| of(&entry.path())).sum() } else { 0 })
            .sum();
        inside + of(&self.wal()) + of(&self.shm())
    }

    /// Makes the directories, if they are not there.
    pub(crate) fn create(&self) -> Result<()> {
        let outbox = self.outbox();
        fs::create_dir_all(&outbox).map_err(|e| Error::local(format_args!("creating {}", outbox.display()), &e))
    }
}

/// The path with `suffix` behind its last name.
pub(crate) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the names in a directory survive a power loss.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let sync = || File::open(dir)?.sync_all();
    sync().map_err(|e| Error::local(format_args!("syncing the directory {}", dir.display()), &e))
}

/// Removes a file; one that is not there is as good.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::local(format_args!("deleting {}", path.display()), &e))
        }
        _ => Ok(()),
    }
}

/// Writes a file so that after a crash either the old or the new content is there, whole: temporary file, sync,
/// rename, sync of the directory.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let fresh = suffixed(path, ".new");
    let write = || {
        use std::io::Write as _;
        let mut file = File::create(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|e| Error::local(format_args!("writing {}", path.display()), &e))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}
