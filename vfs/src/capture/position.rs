//! How far the WAL is captured.

use serde::{Deserialize, Serialize};

use crate::page::PageCount;

/// A commit boundary of the WAL up to which everything is captured.
///
/// A frame number alone says nothing: after a reset, and after a power loss, frames of one number have other content.
/// The salts tell generations apart, the running checksum tells rewritten frames from the captured ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Salts of the generation, as the file has them; zeros before the first capture.
    pub(crate) salts: [u8; 8],
    /// Frames of that generation that are captured.
    pub(crate) frames: u32,
    /// Running checksum at the last of them.
    pub(crate) cksum: [u32; 2],
    /// Size of the database at this point.
    pub(crate) pages: PageCount,
    /// The generation is captured to its end, and a reset was allowed.
    pub(crate) closed: bool,
    /// Counts captures; tells which saved frames a frozen delta already contains.
    pub(crate) serial: u64,
}
