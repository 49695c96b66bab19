//! Cloud Storage as the bucket.
//!
//! Bytes of objects go through the official client: ranged reads, and uploads with a condition. What that client
//! can do over gRPC only, or does not tell (listing, deleting, an object's age), are plain JSON requests with the
//! same credentials (`json.rs`). When an attempt counts as failed, lost or worth repeating is in `attempt.rs`.
//!
//! Nothing is sent when a store is made: credentials are looked for at the first request, on the runtime that makes
//! it. An upload is always one multipart request, so that its condition is judged once, by the bucket, and one that breaks off leaves
//! nothing. A long one is read from its file as it is sent (`upload.rs`).

mod attempt;
mod json;
mod upload;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use google_cloud_auth::credentials;
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_storage::client::Storage;
use google_cloud_storage::model_ext::ReadRange;
use google_cloud_storage::read_resume_policy::NeverResume;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::{
    BucketTime, BucketUrl, Condition, Config, Entry, FileBody, Generation, Meta, Object, Store, StoreError, Traffic,
    check_name, clip,
};
use crate::per_process::PerProcess;
use crate::sync::Mutex;
use attempt::{Attempt, Kind, retry};
use json::Json;
use upload::Body;

/// The store of a `gs://` place.
#[derive(Debug)]
pub struct CloudStore {
    bucket: String,
    url: BucketUrl,
    config: Config,
    clients: Arc<OnceCell<Clients>>,
    traffic: Traffic,
}

/// The clients that are in use, by endpoint and bucket.
type SharedClients = Mutex<HashMap<(Option<String>, String), Weak<OnceCell<Clients>>>>;

static SHARED: PerProcess<SharedClients> = PerProcess::new();

#[derive(Debug)]
struct Clients {
    /// For the bytes of objects.
    storage: Storage,
    /// For everything else.
    json: Json,
}

impl CloudStore {
    /// The store of this place in this bucket.
    pub fn new(bucket: &str, url: &BucketUrl, config: Config) -> CloudStore {
        CloudStore::with(Arc::default(), bucket, url, config)
    }

    /// The same with the clients that the others of this process have.
    pub fn sharing(bucket: &str, url: &BucketUrl, config: Config) -> CloudStore {
        let mut shared = SHARED.here().lock();
        shared.retain(|_, clients| clients.strong_count() > 0);
        let known = shared.entry((config.endpoint.clone(), bucket.to_owned())).or_default();
        let clients = known.upgrade().unwrap_or_default();
        *known = Arc::downgrade(&clients);
        CloudStore::with(clients, bucket, url, config)
    }

    fn with(clients: Arc<OnceCell<Clients>>, bucket: &str, url: &BucketUrl, config: Config) -> CloudStore {
        let traffic = Traffic::default();
        CloudStore { bucket: bucket.to_owned(), url: url.clone(), config, clients, traffic }
    }

    async fn clients(&self, name: &str) -> Result<&Clients, StoreError> {
        let build = async {
            // Somebody else in the process may have chosen one already; any will do.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let credentials = match self.config.endpoint {
                Some(_) => credentials::anonymous::Builder::new().build(),
                None => credentials::Builder::default().build().map_err(|e| format!("no credentials: {e}"))?,
            };
            // Each client of the two reads the system's certificates, which takes some milliseconds: both at a time.
            let endpoint = self.config.endpoint.as_deref().unwrap_or("https://storage.googleapis.com");
            let (at, bucket, for_json) = (endpoint.to_owned(), self.bucket.clone(), credentials.clone());
            let json = tokio::task::spawn_blocking(move || Json::new(&at, &bucket, for_json));
            let mut builder = Storage::builder()
                .with_credentials(credentials)
                .with_retry_policy(NeverRetry)
                .with_read_resume_policy(NeverResume)
                .with_resumable_upload_threshold(usize::MAX)
                .with_grpc_subchannel_count(1);
            if let Some(endpoint) = &self.config.endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            let storage = builder.build().await.map_err(|e| format!("making the client: {e}"))?;
            let json = json.await.map_err(|e| format!("making the client: {e}"))?;
            let json = json.map_err(|e| format!("making the client: {e}"))?;
            Ok(Clients { storage, json })
        };
        let refused = |why: String| StoreError::Refused { name: name.to_owned(), why };
        self.clients.get_or_try_init(|| build).await.map_err(refused)
    }

    /// The bucket's name for a name below this place.
    fn full(&self, name: &str) -> Result<String, StoreError> {
        let full = self.below(name);
        check_name(&full)?;
        Ok(full)
    }

    fn below(&self, name: &str) -> String {
        match self.url.folder() {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        }
    }

    fn bucket_path(&self) -> String {
        format!("projects/_/buckets/{}", self.bucket)
    }

    /// One attempt to read the bytes of an object.
    async fn read(&self, name: &str, full: &str, range: Option<&Range<u64>>) -> Result<Object, Attempt> {
        self.traffic.gets.fetch_add(1, Ordering::Relaxed);
        let storage = &self.clients(name).await?.storage;
        let mut request = storage.read_object(self.bucket_path(), full).compute_crc32c(false);
        if let Some(range) = range {
            request = request.set_read_range(ReadRange::segment(range.start, range.end - range.start));
        }
        let late = |_| Attempt::Lost(format!("no answer within {} s", self.config.attempt_timeout.as_secs_f32()));
        let sent = timeout(self.config.attempt_timeout, request.send()).await.map_err(late)?;
        let mut response = sent.map_err(|error| Attempt::of(name, error))?;
        let told = response.object();
        // The service tells the size; imitations leave it out, which looks like an empty object.
        let size = u64::try_from(told.size).ok().filter(|size| *size > 0);
        let wanted = match (range, size) {
            (_, Some(size)) => clip(name, range.cloned(), size)?,
            (Some(range), None) => range.clone(),
            (None, None) => 0..u64::MAX,
        };
        let longest = wanted.end - wanted.start;
        let body = async {
            let mut bytes = BytesMut::new();
            // The client makes an error of an answer that ends before its own announced length.
            while let Some(chunk) = timeout(self.config.attempt_timeout, response.next()).await.map_err(late)? {
                let chunk = chunk.map_err(|error| Attempt::of(name, error))?;
                if (bytes.len() + chunk.len()) as u64 > longest {
                    return Err(Attempt::Damaged(format!("more than the {longest} bytes asked for")));
                }
                self.traffic.bytes_in.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                if bytes.is_empty() && size.is_some() {
                    bytes.reserve(longest as usize);
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes.freeze())
        };
        // Where no length is known, the time without progress is all there is to go by.
        let limit = self.config.attempt_timeout + self.config.transfer(longest);
        let bytes: Bytes = timeout(limit, body).await.map_err(late)??;
        let length = bytes.len() as u64;
        if size.is_some() && length != longest || range.is_some() && length == 0 {
            return Err(Attempt::Damaged(format!("{length} of {longest} bytes")));
        }
        let crc32c = told.checksums.and_then(|checksums| checksums.crc32c);
        if range.is_none() && crc32c.is_some_and(|told| told != crc32c::crc32c(&bytes)) {
            return Err(Attempt::Damaged("CRC-32C".to_owned()));
        }
        let generation = generation(told.generation).ok_or_else(|| Attempt::Damaged("no generation".to_owned()))?;
        let size = size.unwrap_or(wanted.start + length);
        Ok(Object { bytes, meta: Meta { generation, size, created: None, crc32c }, date: None })
    }

    /// One attempt to write an object.
    async fn write(
        &self,
        name: &str,
        full: &str,
        body: Body,
        metadata: &BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Meta, Attempt> {
        self.traffic.puts.fetch_add(1, Ordering::Relaxed);
        let storage = &self.clients(name).await?.storage;
        let (size, checksum) = (body.size(), body.crc32c());
        self.traffic.bytes_out.fetch_add(size, Ordering::Relaxed);
        let generation_match = match condition {
            Condition::Absent => 0,
            Condition::Generation(Generation(seen)) => seen as i64,
        };
        let request = storage
            .write_object(self.bucket_path(), full, body)
            .set_if_generation_match(generation_match)
            .set_metadata(metadata)
            .set_content_type("application/octet-stream")
            .set_cache_control("no-store")
            // Also keeps the client from adding a part that imitations take for content.
            .with_known_crc32c(checksum);
        let limit = self.config.attempt_timeout + self.config.transfer(size);
        let late = |_| Attempt::Lost(format!("no answer within {} s", limit.as_secs_f32()));
        let sent = timeout(limit, request.send_unbuffered()).await.map_err(late)?;
        let object = sent.map_err(|error| match Attempt::of(name, error) {
            // An upload does not say what is missing; it can only be the bucket.
            Attempt::Final(StoreError::NotFound(_)) => self.no_bucket(name),
            other => other,
        })?;
        Ok(Meta {
            generation: generation(object.generation).ok_or_else(|| Attempt::Lost("no generation".to_owned()))?,
            size,
            created: object
                .create_time
                .map(|time| BucketTime(time.seconds() * 1000 + i64::from(time.nanos()) / 1_000_000)),
            crc32c: Some(checksum),
        })
    }

    fn no_bucket(&self, name: &str) -> Attempt {
        let why = format!("there is no bucket {}", self.bucket);
        Attempt::Final(StoreError::Refused { name: name.to_owned(), why })
    }

    /// One attempt to read what the store says of an object, and the bucket's clock.
    async fn stat(&self, name: &str, full: &str) -> Result<(Meta, Option<BucketTime>), Attempt> {
        self.traffic.gets.fetch_add(1, Ordering::Relaxed);
        let json = &self.clients(name).await?.json;
        timeout(self.config.attempt_timeout, json.stat(name, full)).await.map_err(|_| self.silence())?
    }

    fn silence(&self) -> Attempt {
        Attempt::Lost(format!("no answer within {} s", self.config.attempt_timeout.as_secs_f32()))
    }
}

fn generation(number: i64) -> Option<Generation> {
    u64::try_from(number).ok().filter(|number| *number > 0).map(Generation)
}

#[async_trait]
impl Store for CloudStore {
    fn place(&self) -> String {
        self.url.to_string()
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        let full = self.full(name)?;
        if range.as_ref().is_some_and(|range| range.is_empty()) {
            return Err(StoreError::Range(name.to_owned()));
        }
        retry(&self.config, name, Kind::Read, || self.traffic.round_trip(self.read(name, &full, range.as_ref()))).await
    }

    async fn get_dated(&self, name: &str) -> Result<Object, StoreError> {
        let full = self.full(name)?;
        retry(&self.config, name, Kind::Read, || async {
            let (object, stat) = tokio::join!(
                self.traffic.round_trip(self.read(name, &full, None)),
                self.traffic.round_trip(self.stat(name, &full))
            );
            let (object, (meta, date)) = (object?, stat?);
            if object.meta.generation != meta.generation {
                return Err(Attempt::Answered("it was overwritten meanwhile".to_owned()));
            }
            Ok(Object { bytes: object.bytes, meta, date })
        })
        .await
    }

    async fn put(
        &self,
        name: &str,
        body: Bytes,
        metadata: &BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Meta, StoreError> {
        let full = self.full(name)?;
        let write = || self.traffic.round_trip(self.write(name, &full, Body::of_bytes(&body), metadata, condition));
        retry(&self.config, name, Kind::Write, write).await
    }

    async fn put_file(
        &self,
        name: &str,
        body: &FileBody,
        metadata: &BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Meta, StoreError> {
        let full = self.full(name)?;
        let write = || self.traffic.round_trip(self.write(name, &full, Body::of_file(body), metadata, condition));
        retry(&self.config, name, Kind::Write, write).await
    }

    async fn list(&self, prefix: &str, start: Option<&str>) -> Result<Vec<Entry>, StoreError> {
        let full_prefix = self.below(prefix);
        let full_start = start.map(|start| self.below(start));
        let shown = if prefix.is_empty() { self.place() } else { prefix.to_owned() };
        let shown = shown.as_str();
        let own = self.below("").len();
        let (mut rows, mut token) = (Vec::new(), None);
        loop {
            let page = || async {
                self.traffic.lists.fetch_add(1, Ordering::Relaxed);
                let json = &self.clients(shown).await?.json;
                let page = json.list(shown, &full_prefix, full_start.as_deref(), token.as_deref());
                match timeout(self.config.attempt_timeout, page).await.map_err(|_| self.silence())? {
                    Err(Attempt::Final(StoreError::NotFound(_))) => Err(self.no_bucket(shown)),
                    answer => answer,
                }
            };
            let page = retry(&self.config, shown, Kind::Read, || self.traffic.round_trip(page())).await?;
            for mut row in page.rows {
                // What the prefix did not ask for would be cut wrongly.
                if row.name.starts_with(&full_prefix) {
                    row.name.drain(..own);
                    rows.push(row);
                }
            }
            token = page.next;
            if token.is_none() {
                return Ok(rows);
            }
        }
    }

    async fn delete(&self, name: &str, generation: Generation) -> Result<(), StoreError> {
        let full = self.full(name)?;
        let delete = || async {
            self.traffic.deletes.fetch_add(1, Ordering::Relaxed);
            let json = &self.clients(name).await?.json;
            timeout(self.config.attempt_timeout, json.delete(name, &full, generation))
                .await
                .map_err(|_| self.silence())?
        };
        retry(&self.config, name, Kind::Delete, || self.traffic.round_trip(delete())).await
    }

    fn traffic(&self) -> &Traffic {
        &self.traffic
    }
}
