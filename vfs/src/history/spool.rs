//! A file for the result of a merge until it is in the bucket. It has no name from the beginning, so that whatever ends the
//! process leaves nothing behind; and it is mapped to be sent, so that its size costs disk and not heap. (In a file system
//! in memory, as on Cloud Run, its pages are memory all the same.)
#![allow(unsafe_code)] // Mapped memory; see `Spool::bytes`.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{Error, Result};

/// A local file without a name.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
}

impl Spool {
    /// Makes one in a folder, which has to exist.
    pub(crate) fn new(folder: &Path) -> Result<Spool> {
        let path = folder.join(format!("merge-{}-{:016x}", std::process::id(), fastrand::u64(..)));
        let failed = |e: &std::io::Error| Error::local(format!("making {}", path.display()), e);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(|e| failed(&e))?;
        fs::remove_file(&path).map_err(|e| failed(&e))?;
        Ok(Spool { file })
    }

    /// The file to write to, from its beginning.
    pub(crate) fn writer(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| Error::local("opening the file of a merge", &e))
    }

    /// The whole content.
    pub(crate) fn bytes(self) -> Result<Bytes> {
        // SAFETY: a mapping must not change while it is borrowed. The file has no name, its only descriptors were this one and
        // the writer's, and the writer is done: nobody is left who could write to it or cut it.
        let map = unsafe { Mmap::map(&self.file) };
        Ok(Bytes::from_owner(map.map_err(|e| Error::local("mapping the result of a merge", &e))?))
    }
}
