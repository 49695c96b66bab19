//! Files below a place: written aside, synced, then named in one step; and what an I/O error means to a store.

use std::collections::HashSet;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use crate::store::{BucketTime, StoreError, check_name};
use crate::sync::Mutex;

/// Where files are written before they have a name. Nothing in it is an object.
pub(super) const OWN_FOLDER: &str = ".sqlite-gcs";

/// A file of a killed writer is removed when it is this old. A writer that was stopped for longer is told that its
/// write failed.
const STRAY_AGE: Duration = Duration::from_secs(3600);

/// A folder of a bucket directory.
#[derive(Debug)]
pub(super) struct Place {
    /// The bucket directory, never created here.
    root: PathBuf,
    /// `root` or a folder below it.
    base: PathBuf,
    /// Folders that exist and whose own names are synced.
    known: Mutex<HashSet<PathBuf>>,
    pub(super) stray_age: Duration,
}

/// A file that has no object's name yet; removed when it is dropped.
pub(super) struct Staged {
    pub(super) path: PathBuf,
    file: File,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // A failure leaves a stray, which goes away later.
        let _ = fs::remove_file(&self.path);
    }
}

/// What came of giving a file its name.
pub(super) enum Named {
    /// It has the name, durably.
    Ours(fs::Metadata),
    /// Another file had it, which is durable now.
    Taken,
}

impl Place {
    pub(super) fn new(root: PathBuf, folder: &str) -> Place {
        let base = if folder.is_empty() { root.clone() } else { root.join(folder) };
        Place { root, base, known: Mutex::default(), stray_age: STRAY_AGE }
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// The path of an object of this name (of a numbered one: without its number).
    pub(super) fn path(&self, name: &str) -> Result<PathBuf, StoreError> {
        check_name(name)?;
        if name.split('/').any(|part| part == OWN_FOLDER) {
            return Err(refused(name, format!("{OWN_FOLDER} is not free for objects")));
        }
        Ok(self.base.join(name))
    }

    /// What an error means while nothing has been written.
    pub(super) fn unreadable(&self, name: &str, what: &str, error: &io::Error) -> StoreError {
        use io::ErrorKind as E;
        if !self.root.is_dir() {
            return refused(name, format!("there is no directory {}", self.root.display()));
        }
        let why = format!("{what} in {}: {error}", self.base.display());
        match error.kind() {
            E::NotFound => StoreError::NotFound(name.to_owned()),
            E::PermissionDenied
            | E::ReadOnlyFilesystem
            | E::NotADirectory
            | E::IsADirectory
            | E::InvalidFilename
            | E::Unsupported => refused(name, why),
            _ => StoreError::Unavailable { name: name.to_owned(), why },
        }
    }

    /// Likewise for a write, to which a missing folder is no missing object.
    fn unwritten(&self, name: &str, what: &str, error: &io::Error) -> StoreError {
        match self.unreadable(name, what, error) {
            StoreError::NotFound(name) => {
                StoreError::Unavailable { name, why: format!("{what} in {}: {error}", self.base.display()) }
            }
            other => other,
        }
    }

    /// Writes and syncs a file that `target` can become.
    pub(super) fn stage(
        &self,
        name: &str,
        parts: &[&[u8]],
        modified: Option<SystemTime>,
    ) -> Result<Staged, StoreError> {
        let write = |file: &mut File| parts.iter().try_for_each(|part| file.write_all(part));
        self.stage_with(name, write, modified)
    }

    /// The same with what `content` writes.
    pub(super) fn stage_with(
        &self,
        name: &str,
        content: impl FnOnce(&mut File) -> io::Result<()>,
        modified: Option<SystemTime>,
    ) -> Result<Staged, StoreError> {
        let own = self.own_folder(name)?;
        let mut staged = self.create(&own).map_err(|e| self.unwritten(name, "creating a file", &e))?;
        let write = |file: &mut File| {
            content(file)?;
            if let Some(modified) = modified {
                file.set_times(FileTimes::new().set_modified(modified))?;
            }
            file.sync_all()
        };
        write(&mut staged.file).map_err(|e| self.unwritten(name, "writing", &e))?;
        Ok(staged)
    }

    /// The folder for files without a name, made where it is missing.
    fn own_folder(&self, name: &str) -> Result<PathBuf, StoreError> {
        let own = self.base.join(OWN_FOLDER);
        if !self.known.lock().contains(&own) || !own.is_dir() {
            self.known.lock().clear();
            self.make(&own).map_err(|e| self.unwritten(name, "making the folder", &e))?;
            self.sweep(&own);
        }
        Ok(own)
    }

    fn create(&self, own: &Path) -> io::Result<Staged> {
        loop {
            let path = own.join(format!("tmp-{}-{:016x}", std::process::id(), fastrand::u64(..)));
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Staged { path, file }),
                // A forked child draws the same numbers, another container has the same process id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives a file its name unless that is taken.
    pub(super) fn name(&self, name: &str, staged: &Staged, target: &Path) -> Result<Named, StoreError> {
        let folder = target.parent().unwrap_or(&self.base);
        if !self.known.lock().contains(folder) {
            self.make(folder).map_err(|e| self.unwritten(name, "making the folder", &e))?;
        }
        let mut linked = fs::hard_link(&staged.path, target);
        if linked.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) && staged.path.exists() {
            self.known.lock().clear();
            self.make(folder).map_err(|e| self.unwritten(name, "making the folder", &e))?;
            linked = fs::hard_link(&staged.path, target);
        }
        let ours = match linked {
            Ok(()) => true,
            // A network file system may have done it and say otherwise, having repeated a request.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                staged.file.metadata().is_ok_and(|meta| meta.nlink() == 2)
            }
            Err(error) => return Err(self.unwritten(name, "naming a file", &error)),
        };
        let unknown = |error: io::Error| StoreError::Unknown { name: name.to_owned(), why: error.to_string() };
        if ours {
            sync_folder(folder).map_err(unknown)?;
            return staged.file.metadata().map(Named::Ours).map_err(unknown);
        }
        // Whoever reads its own bytes back after this takes them for durable; their writer may not have come so far.
        let found = File::open(target).and_then(|file| file.metadata().map(|meta| (file, meta)));
        match found {
            Ok((_, meta)) if meta.is_dir() => Err(refused(name, "a folder has this name".to_owned())),
            Ok((file, _)) => file.sync_all().and_then(|()| sync_folder(folder)).map_err(unknown).map(|()| Named::Taken),
            // Deleted since, or not ours to read.
            Err(_) => Ok(Named::Taken),
        }
    }

    /// Makes the folders down to this one, each durable; the bucket directory must be there.
    fn make(&self, folder: &Path) -> io::Result<()> {
        if !self.root.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut at = self.root.clone();
        for part in folder.strip_prefix(&self.root).map_err(io::Error::other)? {
            let parent = at.clone();
            at.push(part);
            if self.known.lock().contains(&at) {
                continue;
            }
            match fs::create_dir(&at) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => sync_folder(&parent)?,
            }
            self.known.lock().insert(at.clone());
        }
        if folder == self.root {
            self.known.lock().insert(at);
        }
        Ok(())
    }

    /// Removes what killed writers left.
    fn sweep(&self, own: &Path) {
        let now = SystemTime::now();
        for entry in fs::read_dir(own).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with("tmp-") {
                continue;
            }
            // The modification time may be the object's; the change time cannot be set.
            let changed = entry.metadata().map(|meta| UNIX_EPOCH + Duration::from_secs(meta.ctime().max(0) as u64));
            if changed.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age >= self.stray_age)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// A path without a name for a file that is about to go.
    pub(super) fn aside(&self, name: &str) -> Result<PathBuf, StoreError> {
        Ok(self.own_folder(name)?.join(format!("tmp-gone-{}-{:016x}", std::process::id(), fastrand::u64(..))))
    }

    /// The file system's clock; `None` where nothing may be written.
    pub(super) fn now(&self) -> Option<BucketTime> {
        let path = self.base.join(OWN_FOLDER).join("clock");
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(path).ok()?;
        futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW).ok()?;
        file.metadata().and_then(|meta| meta.modified()).ok().map(bucket_time)
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

pub(super) fn refused(name: &str, why: String) -> StoreError {
    StoreError::Refused { name: name.to_owned(), why }
}

pub(super) fn bucket_time(time: SystemTime) -> BucketTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    BucketTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
