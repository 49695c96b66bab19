//! What the database says about itself (`PRAGMA gcs_status`), sampled once a second, and its recent history.
//!
//! Asking costs no request to the bucket. A key that is missing stays absent on the page; a database
//! without a bucket (a plain file) has no status at all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rusqlite::Connection;
use serde::Deserialize;
use tokio::sync::Notify;

use crate::metrics::Metrics;
use crate::readers::Readers;

/// Samples kept: two minutes of them.
const HISTORY: usize = 120;
const INTERVAL: Duration = Duration::from_secs(1);

/// The answer of `PRAGMA gcs_status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Where the database lives: the bucket's URL and the prefix.
    pub replica: Option<String>,
    /// What this process may do: `writer`, `reader`, `follower`, `waiting` or `fenced`.
    pub role: Option<String>,
    committed_txid: Option<Txid>,
    durable_txid: Option<Txid>,
    /// Deltas that are not in the bucket yet.
    pub outbox_deltas: Option<u64>,
    /// Their size.
    pub outbox_bytes: Option<u64>,
    /// Age of the oldest of them in milliseconds.
    pub lag_ms: Option<u64>,
    /// Pages in the cache.
    pub pages_present: Option<u64>,
    /// Pages of the database.
    pub pages_total: Option<u64>,
    /// Local bytes of the cache.
    pub cache_bytes: Option<u64>,
    /// Requests to the bucket since the open.
    pub requests: Requests,
    /// Bytes from and to the bucket since the open.
    pub bytes: Bytes,
    /// How the open went.
    pub open: Open,
    /// The right to append.
    pub lease: Lease,
    /// How far it follows what others write.
    pub follower: Following,
    /// What the requests cost at list price.
    pub cost: Cost,
    /// The last thing that went wrong and was not mended since.
    pub last_error: Option<String>,
}

/// A TXID: 16 hexadecimal digits, or a number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Txid {
    Digits(String),
    Number(u64),
}

impl Txid {
    fn number(&self) -> Option<u64> {
        match self {
            Txid::Digits(digits) => u64::from_str_radix(digits, 16).ok(),
            Txid::Number(number) => Some(*number),
        }
    }
}

/// Requests by kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Requests {
    get: u64,
    put: u64,
    list: u64,
    delete: u64,
}

impl Requests {
    /// Kind and count, most telling first.
    pub fn by_kind(&self) -> [(&'static str, u64); 4] {
        [("put", self.put), ("get", self.get), ("list", self.list), ("delete", self.delete)]
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.get + self.put + self.list + self.delete
    }
}

/// Bytes by direction.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Bytes {
    /// Fetched.
    #[serde(rename = "in")]
    pub inward: Option<u64>,
    /// Sent.
    #[serde(rename = "out")]
    pub outward: Option<u64>,
}

/// How far an instance follows what others write.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Following {
    /// Whether it asks for what is new: while somebody reads.
    pub awake: Option<bool>,
    /// Since when it is known to be behind, in milliseconds; 0: it is not.
    pub lag_ms: Option<u64>,
    /// How long ago it was last known to show the newest state, in milliseconds.
    pub age_ms: Option<u64>,
}

/// How the open went.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Open {
    /// Whether there was no usable cache on the disk.
    pub cold: Option<bool>,
    /// How long it took in milliseconds.
    pub ms: Option<u64>,
    /// Requests that it took.
    pub requests: Option<u64>,
}

/// The right to append.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// `held` (here), `elsewhere` or `none`.
    pub state: Option<String>,
    /// Who holds it.
    pub holder: Option<String>,
    /// For how long still, in milliseconds.
    pub expires_in_ms: Option<i64>,
}

/// What the requests cost at list price.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Cost {
    /// Writes and lists.
    pub class_a: Option<u64>,
    /// Reads.
    pub class_b: Option<u64>,
    /// Dollars.
    pub usd: Option<f64>,
}

impl Status {
    /// Reads the JSON; the error names the place.
    pub fn parse(json: &str) -> Result<Status, String> {
        serde_json::from_str(json).map_err(|error| format!("gcs_status: {error}"))
    }

    /// Asks a connection; `None` if its database has no bucket.
    fn ask(db: &Connection) -> Result<Option<Status>, String> {
        match db.query_row("PRAGMA gcs_status", [], |row| row.get::<_, String>(0)) {
            Ok(json) => Status::parse(&json).map(Some),
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
            Err(error) => Err(format!("gcs_status: {error}")),
        }
    }

    /// The newest transaction committed here.
    pub fn committed(&self) -> Option<u64> {
        self.committed_txid.as_ref()?.number()
    }

    /// The newest transaction in the bucket.
    pub fn durable(&self) -> Option<u64> {
        self.durable_txid.as_ref()?.number()
    }
}

/// What this instance is to the database just now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// Holds the lease.
    Writer,
    /// Reads what another writes.
    Follower,
    /// Has something to write and waits for the lease.
    Waiting,
    /// Nobody holds the lease that this instance knows of; its next write takes it.
    Ready,
    /// Another instance has taken the log over while this one wrote; it is opened anew at the next write.
    Fenced,
    /// A plain file: there is no lease.
    Plain,
}

impl Role {
    /// Puts together what the database says and what the writer's thread is doing.
    pub fn of(status: Option<&Status>, waiting: bool) -> Role {
        let Some(status) = status else {
            return if waiting { Role::Waiting } else { Role::Plain };
        };
        match (status.role.as_deref(), status.lease.state.as_deref()) {
            _ if waiting => Role::Waiting,
            (Some("fenced"), _) => Role::Fenced,
            (Some("waiting"), _) => Role::Waiting,
            (Some("follower"), _) | (_, Some("elsewhere")) => Role::Follower,
            (Some("writer"), None | Some("held")) => Role::Writer,
            _ => Role::Ready,
        }
    }

    /// The role in one word, for logs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Role::Writer => "writer",
            Role::Follower => "follower",
            Role::Waiting => "waiting",
            Role::Ready => "ready",
            Role::Fenced => "fenced",
            Role::Plain => "plain",
        }
    }
}

/// What is plotted of one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// Upload lag in milliseconds.
    pub lag_ms: f64,
    /// Requests to the bucket since the open.
    pub bucket_requests: u64,
    /// Requests answered by this app since its start.
    pub served: u64,
    /// How long the last commit took, in milliseconds.
    pub commit_ms: f64,
}

/// The latest status and its history.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the database said last.
    pub status: Option<Status>,
    /// Why it could not be asked, if so.
    pub trouble: Option<String>,
    /// Oldest first.
    pub history: VecDeque<Sample>,
}

/// The place where the latest is kept for the pages.
#[derive(Clone, Default)]
pub struct Board(Arc<RwLock<Snapshot>>);

impl Board {
    /// A copy of the latest.
    pub fn snapshot(&self) -> Snapshot {
        self.0.read().clone()
    }
}

/// Asks for ever, once a second and whenever `changed` is told that something did.
pub async fn watch(readers: Readers, board: Board, metrics: Arc<Metrics>, changed: Arc<Notify>) {
    loop {
        let answer = match readers.read(|db| Ok(Status::ask(db))).await {
            Ok(answer) => answer,
            Err(why) => Err(why),
        };
        board.put(answer, &metrics);
        // Both ends of this wait lead to the next look.
        let _ = tokio::time::timeout(INTERVAL, changed.notified()).await;
    }
}

impl Board {
    fn put(&self, answer: Result<Option<Status>, String>, metrics: &Metrics) {
        let mut now = self.0.write();
        match answer {
            Ok(status) => {
                now.status = status;
                now.trouble = None;
            }
            // A failed question leaves the last known status on the page, beside the trouble.
            Err(why) => now.trouble = Some(why),
        }
        // Looks between two ticks change the numbers, not the plots, which have one point a second.
        if now.history.back().is_some_and(|last| last.at.elapsed() < INTERVAL * 9 / 10) {
            return;
        }
        if now.history.len() == HISTORY {
            now.history.pop_front();
        }
        let sample = Sample {
            at: Instant::now(),
            lag_ms: now.status.as_ref().and_then(|s| s.lag_ms).unwrap_or(0) as f64,
            bucket_requests: now.status.as_ref().map_or(0, |s| s.requests.total()),
            served: metrics.served(),
            commit_ms: metrics.last_commit().map_or(0.0, |took| took.as_secs_f64() * 1000.0),
        };
        now.history.push_back(sample);
    }
}

/// A status as the engine gives it, for tests.
#[cfg(test)]
pub const SAMPLE: &str = r#"{"replica":"gs://my-bucket/prod/guestbook.db","role":"writer",
 "committed_txid":"00000000000001a4","durable_txid":"00000000000001a2","outbox_deltas":2,"outbox_bytes":9120,
 "lag_ms":84,"page_size":4096,"pages_present":312,"pages_total":262144,"cache_bytes":1277952,
 "requests":{"get":12,"put":31,"list":1,"delete":0},"bytes":{"in":1310720,"out":204800},
 "open":{"cold":true,"ms":87,"requests":3},"lease":{"state":"held","holder":"guestbook-00007-x","expires_in_ms":31200},
 "follower":{"awake":true,"poll_interval_ms":1000,"txid":"00000000000001a2","head":"00000000000001a3","lag_ms":12,"age_ms":740,"error":null},
 "cost":{"class_a":32,"class_b":12,"usd":0.0001648},"last_error":null,"a_key_of_a_later_release":1}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_whole_and_missing_keys_are_absent() {
        let status = Status::parse(SAMPLE).expect("a status");
        assert_eq!((status.committed(), status.durable()), (Some(420), Some(418)));
        assert_eq!((status.requests.total(), status.open.ms), (44, Some(87)));
        assert!(status.last_error.is_none());
        assert_eq!(
            (status.follower.lag_ms, status.follower.age_ms, status.follower.awake),
            (Some(12), Some(740), Some(true))
        );
        let bare = Status::parse(r#"{"committed_txid":7}"#).expect("a bare status");
        assert_eq!((bare.committed(), bare.durable(), bare.lag_ms), (Some(7), None, None));
        assert!(Status::parse("{\"role\":").is_err());
    }

    #[test]
    fn the_role_follows_the_lease_and_a_waiting_writer_comes_first() {
        let mut status = Status::parse(SAMPLE).expect("a status");
        assert_eq!(Role::of(Some(&status), false), Role::Writer);
        assert_eq!(Role::of(Some(&status), true), Role::Waiting);
        status.lease.state = Some("none".to_owned());
        assert_eq!(Role::of(Some(&status), false), Role::Ready);
        status.role = Some("reader".to_owned());
        status.lease.state = Some("elsewhere".to_owned());
        assert_eq!(Role::of(Some(&status), false), Role::Follower);
        status.role = Some("fenced".to_owned());
        assert_eq!(Role::of(Some(&status), false), Role::Fenced);
        status.role = Some("follower".to_owned());
        assert_eq!(Role::of(Some(&status), false), Role::Follower);
        assert_eq!(Role::of(None, false), Role::Plain);
    }
}
