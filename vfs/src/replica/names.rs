//! The names of a replica's objects: the one place that builds and reads them.
//!
//! ```text
//! <replica>/ltx/<level>/<min>-<max>.ltx   level: one decimal digit, 0 (deltas) to 9 (snapshots);
//!                                         min, max: TXIDs of exactly 16 lowercase hexadecimal digits
//! <replica>/gcs/lease                     who may append
//! <replica>/gcs/...                       derived data
//! ```
//! `<replica>` ends in the database's file name. Whatever else lies there is somebody else's and is ignored.

use std::fmt;
use std::str::FromStr;

use crate::page::TxId;
use crate::store::{Entry, Meta, SharedStore};

/// The level of the deltas as they were written.
pub const DELTA_LEVEL: u8 = 0;

/// The level of the snapshots: objects that hold every page.
pub const SNAPSHOT_LEVEL: u8 = 9;

/// What an LTX object's name says: its level and the transactions it covers. Written as `<level>/<min>-<max>.ltx`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectName {
    /// 0 for deltas, 1 to 8 for compacted ones, 9 for snapshots.
    pub level: u8,
    /// The first transaction in it, never zero.
    pub min: TxId,
    /// The last transaction in it, at least `min`.
    pub max: TxId,
}

impl ObjectName {
    /// The name of the delta that holds just this transaction.
    pub fn delta(txid: TxId) -> ObjectName {
        ObjectName { level: DELTA_LEVEL, min: txid, max: txid }
    }

    /// Whether it covers the log from its beginning, and so holds every page.
    pub fn is_snapshot(&self) -> bool {
        self.min == TxId(1)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}.ltx", self.level, self.min, self.max)
    }
}

impl FromStr for ObjectName {
    type Err = ();

    /// Accepts exactly what `Display` writes, with `1 <= min <= max`.
    fn from_str(text: &str) -> Result<ObjectName, ()> {
        let (level, file) = text.split_once('/').ok_or(())?;
        let &[digit @ b'0'..=b'9'] = level.as_bytes() else { return Err(()) };
        let (min, max) = file.strip_suffix(".ltx").and_then(|stem| stem.split_once('-')).ok_or(())?;
        let name = ObjectName { level: digit - b'0', min: min.parse()?, max: max.parse()? };
        if name.min == TxId::NONE || name.min > name.max { Err(()) } else { Ok(name) }
    }
}

/// An LTX object that is known to be in the bucket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// What its name says.
    pub name: ObjectName,
    /// What the store says of it.
    pub meta: Meta,
}

/// The objects of one database: a store and the place in it.
#[derive(Clone, Debug)]
pub struct Replica {
    store: SharedStore,
    prefix: String,
}

impl Replica {
    /// The replica whose objects' names begin with `<prefix>/`. The prefix has no `/` at either end.
    pub fn new(store: SharedStore, prefix: impl Into<String>) -> Replica {
        Replica { store, prefix: prefix.into() }
    }

    /// The store that holds it.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// The place as a person would name it: the store's place, `/` and the prefix.
    pub fn place(&self) -> String {
        format!("{}/{}", self.store.place(), self.prefix)
    }

    /// The full name of an LTX object.
    pub fn ltx(&self, name: &ObjectName) -> String {
        format!("{}/ltx/{name}", self.prefix)
    }

    /// What the names of all LTX objects begin with: the prefix to list.
    pub fn ltx_prefix(&self) -> String {
        format!("{}/ltx/", self.prefix)
    }

    /// What the names of all LTX objects of a level begin with.
    pub fn level_prefix(&self, level: u8) -> String {
        format!("{}/ltx/{level}/", self.prefix)
    }

    /// The full name of the lease.
    pub fn lease(&self) -> String {
        self.derived("lease")
    }

    /// The full name of an object of ours beside the log.
    pub fn derived(&self, what: &str) -> String {
        format!("{}/gcs/{what}", self.prefix)
    }

    /// Reads a full name back; `None` for a name that is not an LTX object's of this replica.
    pub fn parse(&self, full: &str) -> Option<ObjectName> {
        full.strip_prefix(&self.prefix)?.strip_prefix("/ltx/")?.parse().ok()
    }

    /// The LTX objects among the rows of a listing; other names are left out.
    pub fn listed(&self, entries: &[Entry]) -> Vec<Listed> {
        let row = |e: &Entry| Some(Listed { name: self.parse(&e.name)?, meta: e.meta.clone() });
        entries.iter().filter_map(row).collect()
    }

    /// Lists the LTX objects that are in the bucket now: one listing.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self) -> crate::Result<Vec<Listed>> {
        let prefix = self.ltx_prefix();
        let entries = self.store.list(&prefix, None).await;
        Ok(self.listed(&entries.map_err(|e| crate::Error::from(e).context(format!("listing {}", self.place())))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_as_it_was_written() {
        let name = ObjectName { level: 9, min: TxId(1), max: TxId(0xab) };
        assert_eq!(name.to_string(), "9/0000000000000001-00000000000000ab.ltx");
        assert_eq!(name.to_string().parse(), Ok(name));
        assert_eq!(ObjectName::delta(TxId(3)).to_string(), "0/0000000000000003-0000000000000003.ltx");
    }

    #[test]
    fn foreign_names_are_not_taken_for_ltx_objects() {
        for bad in [
            "00/0000000000000001-0000000000000001.ltx",
            "10/0000000000000001-0000000000000001.ltx",
            "a/0000000000000001-0000000000000001.ltx",
            "/0000000000000001-0000000000000001.ltx",
            "0/0000000000000001-0000000000000001.ltx.tmp",
            "0/0000000000000001-0000000000000001",
            "0/000000000000001-0000000000000001.ltx",
            "0/000000000000000A-000000000000000A.ltx",
            "0/0000000000000002-0000000000000001.ltx",
            "0/0000000000000000-0000000000000001.ltx",
            "0/x/0000000000000001-0000000000000001.ltx",
        ] {
            assert_eq!(bad.parse::<ObjectName>(), Err(()), "{bad}");
        }
    }
}
