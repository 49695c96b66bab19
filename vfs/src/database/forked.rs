//! A child of fork and the databases that its parent has open.
//!
//! SQLite's rule is that a connection must not be used in a child, not even closed. What is added to it:
//! - Every hook of an inherited database refuses, and takes no lock before it does. Closing an inherited connection does nothing to
//!   the parent's database.
//! - Our locks belong to the opening of a file, which the child shares. A child that outlives its parent would keep its
//!   locks, so it lets go of the descriptors at once. The numbers stay taken: they still have an owner that closes them.
//! - An inherited database is never dropped: closing its descriptor of the main file would drop the locks of connections
//!   that the child has opened itself.
//! - SQLite thinks that the locks of inherited connections are the child's own, and would neither take nor get them for a
//!   connection that the child opens. So the shim lets go of them before the child's first connection. Should that not be
//!   possible, other processes still see our members lock: [`Database::before_exclusive`].

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::Database;
use crate::error::{Error, ErrorKind, Result};
use crate::per_process;

/// Whether this process or one before it has opened a database.
pub(crate) static EVER_OPENED: AtomicBool = AtomicBool::new(false);

impl Database {
    /// Whether this is a database of the process that this one was forked from.
    pub(crate) fn is_inherited(&self) -> bool {
        self.generation != per_process::generation()
    }

    /// Refuses to work on a database of the parent's.
    pub(super) fn check_process(&self) -> Result<()> {
        if !self.is_inherited() {
            return Ok(());
        }
        let path = self.layout.main().display();
        let message = format!("{path}: this connection was opened before fork; open one in this process");
        Err(Error::new(ErrorKind::Configuration, message))
    }
}

/// Whether a file lies in the directory of a database.
pub(crate) fn is_ours(path: &Path) -> bool {
    path.ancestors().skip(1).any(|folder| folder.to_str().is_some_and(|folder| folder.ends_with("-gcs")))
}
