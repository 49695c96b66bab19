//! The local side: the main database file as a sparse cache of pages, shared by the processes of a host.
//!
//! ```text
//! file        what a read, a write and a truncation of the main file mean
//! streams     which reads are a scan, and how far ahead of it pages are fetched
//! trees       which pages a scan of a B-tree comes to next
//! flights     which pages this process is fetching right now
//! background  fetches that no read waits for
//! pages       the file, and every way in which pages come into it and leave it
//! room        how much of the disk all of it may take, and what is evicted
//! pending     deltas that are in the bucket and not in the page map yet
//! presence    which pages the file holds
//! unit_lock   who may change that
//! ```
//!
//! The cache is disposable: all of it can be made anew from the bucket, the outbox and the WAL.

mod background;
pub(crate) mod default_size;
pub mod file;
pub(crate) mod flights;
mod pages;
pub(crate) mod pending;
pub(crate) mod presence;
pub(crate) mod room;
mod streams;
mod trees;
pub(crate) mod unit_lock;
