//! The numbers that name things: pages, page sizes, database sizes, transactions.
//!
//! Each is its own type, so that a page number is never taken for a page count or a byte offset.
//! Text and parsing of a type stand together.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of a page, counted from 1 as SQLite does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pgno(pub u32);

impl Pgno {
    /// The page that holds the database header.
    pub const ONE: Pgno = Pgno(1);

    /// Where this page begins in the database file, in bytes.
    pub fn offset(self, page_size: PageSize) -> u64 {
        u64::from(self.0 - 1) * u64::from(page_size.bytes())
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a database's pages in bytes: a power of two from 512 to 65536.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageSize(u32);

impl PageSize {
    /// What SQLite uses when nothing else is asked for: 4096 bytes.
    pub const DEFAULT: PageSize = PageSize(4096);

    /// Checks a size in bytes; `None` unless it is a power of two from 512 to 65536.
    pub fn new(bytes: u32) -> Option<PageSize> {
        (bytes.is_power_of_two() && (512..=65536).contains(&bytes)).then_some(PageSize(bytes))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// The page that SQLite never uses, because its byte-range locks lie there (at 1 GiB).
    pub fn lock_page(self) -> Pgno {
        Pgno(0x4000_0000 / self.0 + 1)
    }

    /// The page that holds the byte at `offset`.
    pub fn page_at(self, offset: u64) -> Pgno {
        Pgno((offset / u64::from(self.0)) as u32 + 1)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a database in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct PageCount(pub u32);

impl PageCount {
    /// The size in bytes.
    pub fn bytes(self, page_size: PageSize) -> u64 {
        u64::from(self.0) * u64::from(page_size.bytes())
    }

    /// Whether the database has this page.
    pub fn contains(self, pgno: Pgno) -> bool {
        pgno.0 >= 1 && pgno.0 <= self.0
    }
}

/// The number of a transaction in the replica's log, counted from 1; zero stands for "none yet".
///
/// Written as exactly 16 lowercase hexadecimal digits, as Litestream names its objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TxId(pub u64);

impl TxId {
    /// No transaction: the state of a database that was never written.
    pub const NONE: TxId = TxId(0);

    /// The transaction after this one.
    pub fn next(self) -> TxId {
        TxId(self.0 + 1)
    }
}

impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for TxId {
    type Err = ();

    /// Accepts exactly 16 lowercase hexadecimal digits.
    fn from_str(text: &str) -> Result<TxId, ()> {
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 16 || !text.bytes().all(digits) {
            return Err(());
        }
        u64::from_str_radix(text, 16).map(TxId).map_err(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_txid_is_sixteen_lowercase_digits_both_ways() {
        assert_eq!(TxId(0x1f).to_string(), "000000000000001f");
        assert_eq!("000000000000001f".parse(), Ok(TxId(0x1f)));
        for bad in ["1f", "000000000000001F", "+00000000000001f", "00000000000000000"] {
            assert_eq!(bad.parse::<TxId>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn the_lock_page_holds_the_byte_at_one_gib() {
        for bytes in [512, 4096, 65536] {
            let size = PageSize::new(bytes).expect("a legal size");
            assert_eq!(size.page_at(0x4000_0000), size.lock_page());
        }
        assert_eq!(PageSize::new(1000), None);
        assert_eq!(PageSize::new(131072), None);
    }
}
