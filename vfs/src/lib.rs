//! SQLite whose durable home is a Cloud Storage bucket.
#![deny(unsafe_code)]

pub mod error;
pub mod page;

pub mod sqlite;

mod database;

pub mod delta;

pub mod replica;
pub mod store;

pub mod cache;

pub mod history;

pub mod protocol;

mod apply;
mod capture;
mod config;
mod local;
mod outbox;
mod per_process;
mod runtime;
mod upload;

mod file_lock;
mod sync;
mod words;

mod log;

pub use config::{Config, Durability};
pub use error::{Error, ErrorKind, Result};
pub use page::{PageCount, PageSize, Pgno, TxId};
#[cfg(feature = "static")]
pub use sqlite::register;
