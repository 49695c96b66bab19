//! A file for an object on its way between here and the bucket. It has no name from the beginning, so that whatever ends the
//! process leaves nothing behind; and it is written and read piece by piece, so that its size costs disk and not memory. (In a
//! file system in memory, as on Cloud Run, it is memory all the same.)

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use crate::error::{Error, Result};
use crate::store::FileBody;

/// A local file without a name.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
}

impl Spool {
    /// Makes one in a folder, which has to exist.
    pub(crate) fn new(folder: &Path) -> Result<Spool> {
        let path = folder.join(format!("spool-{}-{:016x}", std::process::id(), fastrand::u64(..)));
        let failed = |e: &std::io::Error| Error::local(format!("making {}", path.display()), e);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(|e| failed(&e))?;
        fs::remove_file(&path).map_err(|e| failed(&e))?;
        Ok(Spool { file })
    }

    /// The file to write to, from its beginning.
    pub(crate) fn writer(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| Error::local("opening a spool file", &e))
    }

    /// The whole content. The file has no name, so nobody is left who could write to it or cut it.
    pub(crate) fn body(self) -> Result<FileBody> {
        let size = self.file.metadata().map(|meta| meta.len());
        size.and_then(|size| FileBody::new(self.file, size)).map_err(|e| Error::local("reading a spool file", &e))
    }
}
