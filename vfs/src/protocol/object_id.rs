//! What makes two deltas the same one, and the number that tells disks apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::page::TxId;

/// Size of an LTX object without any page: header 100, end mark 6, index 1 + 8, trailer 16 bytes. One with
/// a page is always larger, so the size alone tells an empty delta.
pub const EMPTY_DELTA_BYTES: u64 = 131;

/// The identity of a delta: its number, and its bytes by their size and checksum.
///
/// Two writers' deltas of one TXID differ, because each carries its writer's nonce in the LTX node id; and a delta
/// that was built again with one more commit differs from its older self. So this, and never the TXID or the
/// nonce alone, answers "is that mine?".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectId {
    /// The delta's number (its largest, where it covers several).
    #[serde(with = "hex_txid")]
    pub txid: TxId,
    /// Size of the object in bytes.
    pub size: u64,
    /// CRC-32C of the object's bytes.
    pub crc32c: u32,
}

impl ObjectId {
    /// Whether the delta holds no page, so that the database after it is the database before it. All seals but the
    /// one at TXID 1 are of this kind.
    pub fn is_empty_delta(self) -> bool {
        self.size == EMPTY_DELTA_BYTES
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes, crc32c {:08x})", self.txid, self.size, self.crc32c)
    }
}

/// The random number of one disk: made with the local folder, and anew when the boot id or the state file's
/// (device, inode) changed. Written as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Nonce(pub u64);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Nonce {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Nonce, D::Error> {
        hex_txid::deserialize(from).map(|number| Nonce(number.0))
    }
}

/// Sixteen hexadecimal digits in JSON: its numbers are not exact beyond 2^53 in every reader.
pub(crate) mod hex_txid {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(txid: &TxId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(txid)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<TxId, D::Error> {
        let text = String::deserialize(from)?;
        TxId::from_str(&text).map_err(|()| de::Error::custom("expected 16 lowercase hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_id_survives_json_exactly() {
        let id = ObjectId { txid: TxId(u64::MAX - 1), size: EMPTY_DELTA_BYTES, crc32c: 0xfedc_ba98 };
        let text = serde_json::to_string(&id).expect("to JSON");
        assert_eq!(text, r#"{"txid":"fffffffffffffffe","size":131,"crc32c":4275878552}"#);
        assert_eq!(serde_json::from_str::<ObjectId>(&text).expect("from JSON"), id);
        assert!(serde_json::from_str::<ObjectId>(r#"{"txid":"1","size":131,"crc32c":0}"#).is_err());
    }
}
