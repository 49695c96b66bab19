//! Deltas of real databases applied to real databases, with real readers, writers and kills, over SQLite's own VFS.

mod bed;
mod child;
mod crash;
mod live;
mod sizes;

pub(super) use self::child::crash_point;
