//! The bucket, as one small trait with what it guarantees.
//!
//! A [`Store`] holds objects under names with `/` in them. An object is written whole: no reader ever
//! sees a part of one. Each write of a name gives it a new generation, and a write or delete can be made
//! to depend on the generation seen before. That is all the log and the lease need.
//!
//! Every attempt of an operation has a timeout, and transient failures (connection errors, timeouts,
//! 408, 429, 5xx) are tried again with exponential backoff and jitter up to a deadline. What cannot be
//! retried blindly is a write whose answer was lost: it is reported as [`StoreError::Unknown`], never as
//! failed or done, and the caller settles it by sending the same bytes again.

pub mod cloud;
pub mod directory;
mod file_body;
pub mod memory;
mod probe;
pub mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, ErrorKind};

pub use file_body::FileBody;
pub use probe::honours_conditions;
pub use url::BucketUrl;

/// The number that a store gives to one write of a name; never zero, never given twice for one name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Generation(pub u64);

/// Milliseconds since 1970 on the *bucket's* clock; never compared with a clock of this machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BucketTime(pub i64);

/// What must hold of a name for a write to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// The name does not exist.
    Absent,
    /// The name exists and its newest write is this one.
    Generation(Generation),
}

/// What a store says of an object beside its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Which write of the name this is.
    pub generation: Generation,
    /// Size of the whole object in bytes. (Imitations of Cloud Storage do not tell it with a range of an object: then
    /// it is where the range ended.)
    pub size: u64,
    /// When this generation was written, on the bucket's clock; `None` where the store did not say.
    pub created: Option<BucketTime>,
    /// CRC-32C of the whole object; `None` where the store did not say.
    pub crc32c: Option<u32>,
}

/// An object, or the range of it that was asked for.
#[derive(Clone, Debug)]
pub struct Object {
    /// The bytes of the range; all of them when no range was asked for.
    pub bytes: Bytes,
    /// Of the generation that the bytes belong to.
    pub meta: Meta,
    /// The bucket's clock when it answered; `None` where the answer carried no usable date.
    pub date: Option<BucketTime>,
}

/// One row of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Full name of the object below the store's place.
    pub name: String,
    /// What the store says of it.
    pub meta: Meta,
    /// The object's custom metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Why an operation of a store did not succeed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no object of this name.
    #[error("{0}: no such object")]
    NotFound(String),
    /// The condition of a write or delete did not hold: nothing was changed by this attempt. (After an earlier
    /// attempt whose answer was lost, the object that is there may be that attempt's own.)
    #[error("{0}: another write of this name came first")]
    Precondition(String),
    /// The range lies outside the object.
    #[error("{0}: the range lies outside the object")]
    Range(String),
    /// The write may or may not have happened, and may still happen later.
    #[error("{name}: not known whether it was written ({why})")]
    Unknown {
        /// The object's name.
        name: String,
        /// What the last attempt met.
        why: String,
    },
    /// The store could not be reached, or kept failing, until the deadline; nothing was written.
    #[error("{name}: the bucket did not answer ({why})")]
    Unavailable {
        /// The object's name.
        name: String,
        /// What the last attempt met.
        why: String,
    },
    /// The store refuses: credentials, permissions, no such bucket, a name or a size it does not take.
    #[error("{name}: refused by the store ({why})")]
    Refused {
        /// The object's name.
        name: String,
        /// What the store said.
        why: String,
    },
    /// The bytes that came are not the bytes that were stored.
    #[error("{name}: damaged on the way ({why})")]
    Damaged {
        /// The object's name.
        name: String,
        /// Which check failed.
        why: String,
    },
}

impl StoreError {
    /// Whether the same call may succeed later without anything being mended.
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Unknown { .. } | StoreError::Unavailable { .. } | StoreError::Damaged { .. })
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        let kind = match &error {
            StoreError::NotFound(_) | StoreError::Range(_) => ErrorKind::Corrupt,
            StoreError::Precondition(_) => ErrorKind::Fenced,
            StoreError::Refused { .. } => ErrorKind::Configuration,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, error.to_string())
    }
}

/// A place that keeps objects.
///
/// Guarantees of every implementation, checked by one conformance suite:
/// - **Atomic.** A reader sees no object or the whole object, whoever crashes.
/// - **Read after write.** What `put` reported as done is seen by every later `get` and `list`, of any process.
/// - **One winner.** Of any number of concurrent `put`s with the same condition, at most one succeeds.
/// - **Durable.** What `put` reported as done survives a crash of the machine.
/// - **Bounded.** No call waits for ever: each ends within the store's deadline.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// The place, as a person would name it: `gs://bucket/prefix` or `file:///dir`.
    fn place(&self) -> String;

    /// Reads an object, whole or a range of bytes of it. A range that reaches past the end is cut to it; one that
    /// is empty or begins past the end is [`StoreError::Range`].
    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Object, StoreError>;

    /// Reads a whole object and how old it is: `meta.created` and `date` are there wherever the bucket has a clock
    /// at all. Costs one request more than [`Store::get`] on Cloud Storage; for small objects such as the lease.
    async fn get_dated(&self, name: &str) -> Result<Object, StoreError> {
        self.get(name, None).await
    }

    /// Writes an object with its custom metadata, if the condition holds.
    async fn put(
        &self,
        name: &str,
        body: Bytes,
        metadata: &BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Meta, StoreError>;

    /// The same for an object that is too long to be held in memory; where a store can, it is not. No reader sees anything of it
    /// before all of it is there, and an upload that breaks off leaves nothing.
    async fn put_file(
        &self,
        name: &str,
        body: &FileBody,
        metadata: &BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Meta, StoreError> {
        let bytes = body.read_all().map_err(|e| unreadable(name, &e))?;
        self.put(name, bytes, metadata, condition).await
    }

    /// Lists the objects whose names begin with `prefix`, in ascending order of names, from the name `start` on
    /// (inclusive) where one is given. All pages of the listing are fetched.
    async fn list(&self, prefix: &str, start: Option<&str>) -> Result<Vec<Entry>, StoreError>;

    /// Deletes an object if its newest write is `generation`. A name that is not there is [`StoreError::NotFound`]
    /// (after an attempt whose answer was lost, that may be this delete's own doing).
    async fn delete(&self, name: &str, generation: Generation) -> Result<(), StoreError>;

    /// What was asked of the store so far through this value, every attempt counted.
    fn traffic(&self) -> &Traffic;
}

/// A store that many owners share.
pub type SharedStore = Arc<dyn Store>;

/// How long a store tries, and where Cloud Storage is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Longest time that one attempt may make no progress, and what each attempt gets beside the time for its
    /// bytes. Default 10 s; must not be 0.
    pub attempt_timeout: Duration,
    /// After this no further attempt is begun; one that is under way still gets its own time. Default 60 s.
    pub deadline: Duration,
    /// Upper bound of the first pause between attempts; it doubles each time. Default 100 ms; 0 = no pauses.
    pub first_pause: Duration,
    /// Upper bound of any pause between attempts. Default 5 s.
    pub longest_pause: Duration,
    /// The slowest transfer that is waited for: an attempt gets the time that its bytes take at this rate on top.
    /// In bytes per second, default 256 KiB/s; 0 counts as 1.
    pub slowest_rate: u64,
    /// Base URL of something that stands in for Cloud Storage and is spoken to without credentials. `None` (the
    /// default): the real service, with Application Default Credentials.
    pub endpoint: Option<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            attempt_timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(60),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
            slowest_rate: 256 * 1024,
            endpoint: None,
        }
    }
}

impl Config {
    /// The defaults, with the endpoint of `STORAGE_EMULATOR_HOST` where that is set (with or without a scheme, as
    /// Google's own libraries read it).
    pub fn from_environment() -> Config {
        let host = std::env::var("STORAGE_EMULATOR_HOST").unwrap_or_default();
        Config { endpoint: emulator_endpoint(&host), ..Config::default() }
    }

    /// What moving so many bytes may take at the slowest rate.
    fn transfer(&self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / self.slowest_rate.max(1))
    }
}

/// The base URL that a value of `STORAGE_EMULATOR_HOST` stands for; `None` for an empty one.
fn emulator_endpoint(host: &str) -> Option<String> {
    let host = host.trim().trim_end_matches('/');
    match host {
        "" => None,
        _ if host.contains("://") => Some(host.to_owned()),
        _ => Some(format!("http://{host}")),
    }
}

/// Makes the store of a place. Touches neither the network nor the disk: the first request does.
///
/// A store belongs to the process that made it. After `fork` the child makes a new one.
pub fn open(url: &BucketUrl, config: Config) -> SharedStore {
    match url.bucket() {
        url::Bucket::Directory(_) => Arc::new(directory::DirectoryStore::new(url, config)),
        url::Bucket::Cloud(name) => Arc::new(cloud::CloudStore::new(name, url, config)),
    }
}

/// The same with connections and credentials that all stores of this process share which are made so and go to the same bucket: their
/// number does not grow with that of the databases. For use on the process's one runtime.
pub(crate) fn open_shared(url: &BucketUrl, config: Config) -> SharedStore {
    match url.bucket() {
        url::Bucket::Directory(_) => open(url, config),
        url::Bucket::Cloud(name) => Arc::new(cloud::CloudStore::sharing(name, url, config)),
    }
}

/// What a body that cannot be read means: nothing was sent.
fn unreadable(name: &str, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable { name: name.to_owned(), why: format!("reading what is to be sent: {error}") }
}

/// Cuts a range to the object's size; all of it when none was asked for.
fn clip(name: &str, range: Option<Range<u64>>, size: u64) -> Result<Range<u64>, StoreError> {
    match range {
        None => Ok(0..size),
        Some(range) if range.start < range.end && range.start < size => Ok(range.start..range.end.min(size)),
        Some(_) => Err(StoreError::Range(name.to_owned())),
    }
}

/// Refuses what is not the name of an object in every store: at most 1024 bytes, no control characters, no empty,
/// `.` or `..` part between slashes.
fn check_name(name: &str) -> Result<(), StoreError> {
    let part = |part: &str| matches!(part, "" | "." | "..");
    let why = if name.len() > 1024 {
        "its name is longer than 1024 bytes"
    } else if name.split('/').any(part) {
        "its name has an empty, '.' or '..' part"
    } else if name.chars().any(char::is_control) {
        "its name has a control character"
    } else {
        return Ok(());
    };
    Err(StoreError::Refused { name: name.to_owned(), why: why.to_owned() })
}

/// Counts of requests by kind and of bytes by direction; every attempt counts, also a failed one.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Reads of objects (class B).
    pub gets: AtomicU64,
    /// Writes of objects (class A).
    pub puts: AtomicU64,
    /// Pages of listings (class A).
    pub lists: AtomicU64,
    /// Deletes (free).
    pub deletes: AtomicU64,
    /// Bytes of objects received.
    pub bytes_in: AtomicU64,
    /// Bytes of objects sent.
    pub bytes_out: AtomicU64,
    /// The longest row of requests each of which began after the one before had ended.
    pub round_trips: AtomicU64,
}

impl Traffic {
    /// The counts at this moment: gets, puts, lists, deletes, bytes received, bytes sent.
    pub fn snapshot(&self) -> [u64; 6] {
        [&self.gets, &self.puts, &self.lists, &self.deletes, &self.bytes_in, &self.bytes_out]
            .map(|count| count.load(Ordering::Relaxed))
    }

    /// Counts a round trip when the request ends: one more than those that had ended when it began. One whose answer nobody uses
    /// counts like any other, so this is never too few; one that is given up has no answer, and nothing comes after it.
    pub async fn round_trip<T>(&self, request: impl Future<Output = T>) -> T {
        let nth = self.round_trips.load(Ordering::Acquire) + 1;
        let answer = request.await;
        self.round_trips.fetch_max(nth, Ordering::AcqRel);
        answer
    }
}

#[cfg(test)]
mod tests {
    use futures::future::poll_immediate;

    use super::*;

    #[test]
    fn the_emulator_is_named_with_or_without_a_scheme() {
        assert_eq!(emulator_endpoint(""), None);
        for host in ["127.0.0.1:9000", "http://127.0.0.1:9000", "http://127.0.0.1:9000/"] {
            assert_eq!(emulator_endpoint(host).as_deref(), Some("http://127.0.0.1:9000"), "{host}");
        }
        assert_eq!(emulator_endpoint("https://storage.test").as_deref(), Some("https://storage.test"));
    }

    #[tokio::test]
    async fn requests_at_a_time_are_one_round_trip_requests_in_a_row_are_several_and_one_given_up_is_none() {
        let traffic = Traffic::default();
        let count = || traffic.round_trips.load(Ordering::Relaxed);
        let answered = || traffic.round_trip(std::future::ready(()));
        let (answer, first) = tokio::sync::oneshot::channel::<()>();
        let (other_answer, second) = tokio::sync::oneshot::channel::<()>();
        let mut first = Box::pin(traffic.round_trip(first));
        let mut second = Box::pin(traffic.round_trip(second));
        assert!(poll_immediate(&mut first).await.is_none() && poll_immediate(&mut second).await.is_none());
        drop((answer, other_answer));
        assert!(first.await.is_err() && second.await.is_err());
        assert_eq!(count(), 1);
        let (answer, long) = tokio::sync::oneshot::channel::<()>();
        let mut long = Box::pin(traffic.round_trip(long));
        assert!(poll_immediate(&mut long).await.is_none());
        answered().await;
        answered().await;
        drop(answer);
        assert!(long.await.is_err());
        assert_eq!(count(), 3, "the long one was under way beside two");
        let given_up = Box::pin(traffic.round_trip(std::future::pending::<()>()));
        assert!(poll_immediate(given_up).await.is_none());
        answered().await;
        assert_eq!(count(), 4);
    }

    #[test]
    fn ranges_are_cut_to_the_object() {
        assert_eq!(clip("a", None, 0), Ok(0..0));
        assert_eq!(clip("a", Some(1..9), 3), Ok(1..3));
        for (range, size) in [(0..1, 0), (3..4, 3), (1..1, 3)] {
            assert_eq!(clip("a", Some(range), size), Err(StoreError::Range("a".to_owned())));
        }
    }
}
