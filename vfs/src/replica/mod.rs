//! The objects of one database in the bucket, from the reader's side.
//!
//! ```text
//! names         <-> the objects' names                      (pure)
//! chain         a listing -> the objects that make up a state (pure)
//! index_fetch   those objects -> which pages they have, and where
//! page_map      the newest place of each page, in a local file shared by processes
//! object_table  the objects those places are in
//! fetch         places -> pages, from the bucket or from the outbox
//! read_ahead    which pages come in one request
//! hot_index     map and upper B-tree pages in one object, for cold opens (pure)
//! btree         which pages those are              (pure)
//! ```
//!
//! A cold open is one listing, the indexes of the chain in parallel, and the map built from them. No page is
//! read for it. What is in the bucket is never changed from here.

#[cfg(test)]
pub(crate) mod bed;
pub(crate) mod btree;
pub mod chain;
pub mod fetch;
pub(crate) mod hot_index;
pub mod index_fetch;
pub mod names;
pub mod object_table;
pub mod page_map;
pub mod read_ahead;
