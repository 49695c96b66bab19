//! The local side: the main database file as a sparse cache of pages, shared by the processes of a host.
//!
//! ```text
//! file        what a read, a write and a truncation of the main file mean
//! flights     which pages this process is fetching right now
//! presence    which pages the file holds
//! unit_lock   who may change that
//! ```
//!
//! The cache is disposable: all of it can be made anew from the bucket, the outbox and the WAL.

pub mod file;
pub(crate) mod flights;
pub(crate) mod presence;
pub(crate) mod unit_lock;
