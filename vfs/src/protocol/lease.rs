//! The lease object: who may append, as one small JSON object that is only ever compare-and-swapped.
//!
//! | field | type | meaning |
//! |---|---|---|
//! | `v` | 1 | format; another one is refused |
//! | `state` | `held`, `released` | whether `holder` has the right to append |
//! | `sealed` | bool | no PUT of an earlier holder can still take a name after the head of this epoch |
//! | `holder` | 16 hex digits | nonce of the (last) holder |
//! | `who` | text | its name, for people only |
//! | `epoch` | number | one more with every acquisition |
//! | `req` | 16 hex digits | random per compare-and-swap of the holder: the proof that a swap was ours |
//! | `ttl_ms` | number | for how long after the write of this object the holder may act |
//! | `head` | 16 hex digits | newest TXID when released; zeros when not known |
//! | `head_id` | `{size, crc32c}`, null | the rest of the head's object id |
//! | `since` | ms since 1970, null | when the holder wrote it, on the bucket's clock, where a contender rewrote the object since |
//! | `want` | `{nonce, who}`, null | a contender waits |
//! | `next` | `{nonce, who}`, null | a released lease is kept for this one for a short time |
//!
//! Age is judged on the bucket's clock alone: `Date` of the answer minus `since`, or minus the generation's
//! `timeCreated`. `Date` has a resolution of one second, hence the slack.

use serde::{Deserialize, Serialize};

use super::object_id::{Nonce, ObjectId, hex_txid};
use crate::page::TxId;
use crate::store::{BucketTime, Generation};

/// For how long a released lease is kept for the contender that it names.
pub const NEXT_MS: u64 = 2_000;

/// Time to live plus what clocks may be off by: one second of `Date`, one of the servers among themselves, and
/// a holder's clock that runs 2 % slow.
pub fn ttl_with_slack_ms(ttl_ms: u64) -> u64 {
    ttl_ms + ttl_ms / 50 + 2_000
}

/// Whether the holder has the right to append.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// Until its time to live is over.
    Held,
    /// Given back: anybody may take it at once.
    Released,
}

/// Somebody who waits for the lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Contender {
    /// Its nonce.
    pub nonce: Nonce,
    /// Its name, for people only.
    pub who: String,
}

/// The content of the lease object. The table at the top of this file says what each field means.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Json", into = "Json")]
#[allow(missing_docs, reason = "the table at the top of the file says it once")]
pub struct Lease {
    pub state: LeaseState,
    pub sealed: bool,
    pub holder: Nonce,
    pub who: String,
    pub epoch: u64,
    pub req: Nonce,
    pub ttl_ms: u64,
    pub head: Option<ObjectId>,
    pub since: Option<BucketTime>,
    pub want: Option<Contender>,
    pub next: Option<Contender>,
}

impl Lease {
    /// Parses the bytes of the lease object.
    pub fn parse(bytes: &[u8]) -> Result<Lease, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The bytes of the lease object.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// The lease as one GET showed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenLease {
    /// The content.
    pub lease: Lease,
    /// Which write of the object this is.
    pub generation: Generation,
    /// The generation's `timeCreated` (never `updated`, which a metadata patch moves).
    pub created: Option<BucketTime>,
    /// `Date` of the answer.
    pub date: Option<BucketTime>,
}

impl SeenLease {
    /// Since when the holder's word stands, on the bucket's clock.
    pub fn since(&self) -> Option<BucketTime> {
        self.lease.since.or(self.created)
    }

    /// How old the holder's word is; `None` when the answer carried no usable date.
    pub fn age_ms(&self) -> Option<u64> {
        let (date, since) = (self.date?, self.since()?);
        Some(u64::try_from(date.0 - since.0).unwrap_or(0))
    }

    /// The same lease with `want` added: all else is copied, and the age goes on counting from the holder's write.
    pub fn wanted_by(&self, contender: Contender) -> Lease {
        Lease { want: Some(contender), since: self.since(), ..self.lease.clone() }
    }
}

/// The lease as it lies in the bucket.
#[derive(Clone, Serialize, Deserialize)]
struct Json {
    v: u32,
    state: LeaseState,
    sealed: bool,
    holder: Nonce,
    who: String,
    epoch: u64,
    req: Nonce,
    ttl_ms: u64,
    #[serde(with = "hex_txid")]
    head: TxId,
    head_id: Option<HeadId>,
    since: Option<i64>,
    want: Option<Contender>,
    next: Option<Contender>,
}

#[derive(Clone, Serialize, Deserialize)]
struct HeadId {
    size: u64,
    crc32c: u32,
}

impl TryFrom<Json> for Lease {
    type Error = String;

    fn try_from(json: Json) -> Result<Lease, String> {
        if json.v != 1 {
            return Err(format!("a lease of format {}, and this version knows format 1", json.v));
        }
        Ok(Lease {
            state: json.state,
            sealed: json.sealed,
            holder: json.holder,
            who: json.who,
            epoch: json.epoch,
            req: json.req,
            ttl_ms: json.ttl_ms,
            head: json.head_id.map(|id| ObjectId { txid: json.head, size: id.size, crc32c: id.crc32c }),
            since: json.since.map(BucketTime),
            want: json.want,
            next: json.next,
        })
    }
}

impl From<Lease> for Json {
    fn from(lease: Lease) -> Json {
        Json {
            v: 1,
            state: lease.state,
            sealed: lease.sealed,
            holder: lease.holder,
            who: lease.who,
            epoch: lease.epoch,
            req: lease.req,
            ttl_ms: lease.ttl_ms,
            head: lease.head.map_or(TxId::NONE, |id| id.txid),
            head_id: lease.head.map(|id| HeadId { size: id.size, crc32c: id.crc32c }),
            since: lease.since.map(|time| time.0),
            want: lease.want,
            next: lease.next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            state: LeaseState::Held,
            sealed: true,
            holder: Nonce(1),
            who: "localhost".into(),
            epoch: 3,
            req: Nonce(u64::MAX),
            ttl_ms: 40_000,
            head: Some(ObjectId { txid: TxId(31), size: 131, crc32c: 7 }),
            since: None,
            want: Some(Contender { nonce: Nonce(2), who: "b".into() }),
            next: None,
        }
    }

    #[test]
    fn the_lease_is_the_json_that_the_table_says() {
        let text = String::from_utf8(lease().to_bytes().expect("to JSON")).expect("text");
        assert_eq!(
            text,
            r#"{"v":1,"state":"held","sealed":true,"holder":"0000000000000001","who":"localhost","epoch":3,"req":"ffffffffffffffff","ttl_ms":40000,"head":"000000000000001f","head_id":{"size":131,"crc32c":7},"since":null,"want":{"nonce":"0000000000000002","who":"b"},"next":null}"#
        );
        assert_eq!(Lease::parse(text.as_bytes()).expect("from JSON"), lease());
        let newer = text.replace(r#""v":1"#, r#""v":2"#);
        assert!(Lease::parse(newer.as_bytes()).expect_err("a newer format").to_string().contains("format 2"));
    }

    #[test]
    fn a_want_does_not_make_the_lease_younger() {
        let seen = SeenLease {
            lease: lease(),
            generation: Generation(5),
            created: Some(BucketTime(1_000)),
            date: Some(BucketTime(9_000)),
        };
        let marked = seen.wanted_by(Contender { nonce: Nonce(9), who: String::new() });
        let again =
            SeenLease { lease: marked, created: Some(BucketTime(9_500)), date: Some(BucketTime(11_000)), ..seen };
        assert_eq!(again.age_ms(), Some(10_000));
        assert_eq!(again.wanted_by(Contender { nonce: Nonce(8), who: String::new() }).since, Some(BucketTime(1_000)));
    }
}
