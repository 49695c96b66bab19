//! A local directory as the bucket, safe between processes.
//!
//! Nobody takes a lock, so a process that is stopped or killed at any moment holds up nobody. Every object is
//! written to a file of its own beside the others, synced, and given its name by `link`, which fails if the name is
//! taken; then the directory is synced. There are two kinds of object:
//!
//! | name | kept as | can be overwritten | generation | custom metadata |
//! |---|---|---|---|---|
//! | ends in `.ltx` | a file of just this name and content | no | drawn from inode, birth and modification time | `litestream-timestamp` only, as modification time (to the millisecond) |
//! | any other | `<name>@<number, 16 hex digits>`, the highest number counts | yes | the number | any |
//!
//! So `litestream restore file:///dir/<database>` reads the log in place. Beside the objects lies a folder
//! `.sqlite-gcs` with files that are being written (`tmp-*`, what a killed writer left there goes away an hour later)
//! and `clock`. It is never listed.
//!
//! The bucket's clock is the file system's. The bucket directory itself is never created here: one that is
//! missing was deleted or not mounted, and starting a new log in its place would hide that.

mod file;
mod numbered;
mod plain;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{BucketUrl, Condition, Config, Entry, FileBody, Generation, Meta, Object, Store, StoreError, Traffic, url};
use file::{OWN_FOLDER, Place};

/// The store of a `file:///` place.
#[derive(Debug)]
pub struct DirectoryStore {
    place: Arc<Place>,
    url: BucketUrl,
    config: Config,
    traffic: Traffic,
}

/// Objects of this ending are the log: whole files of just their content, written once.
fn is_plain(name: &str) -> bool {
    name.ends_with(".ltx")
}

impl DirectoryStore {
    /// The store of this place; a place that is no directory is refused at the first request.
    pub fn new(url: &BucketUrl, config: Config) -> DirectoryStore {
        let root = match url.bucket() {
            url::Bucket::Directory(path) => path.clone(),
            url::Bucket::Cloud(name) => Path::new("gs://").join(name),
        };
        let place = Arc::new(Place::new(root, url.folder()));
        DirectoryStore { place, url: url.clone(), config, traffic: Traffic::default() }
    }

    /// Runs file I/O off the async workers, and stops waiting for it (a hanging network mount) at the deadline.
    async fn run<T: Send + 'static>(
        &self,
        name: &str,
        writes: bool,
        work: impl FnOnce(&Place, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_within(self.config.deadline, name, writes, work).await
    }

    async fn run_within<T: Send + 'static>(
        &self,
        limit: Duration,
        name: &str,
        writes: bool,
        work: impl FnOnce(&Place, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (place, shown) = (Arc::clone(&self.place), name.to_owned());
        let task = tokio::task::spawn_blocking(move || work(&place, &shown));
        let why = match self.traffic.round_trip(tokio::time::timeout(limit, task)).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(stopped)) => stopped.to_string(),
            Err(_) => format!("the file system did not answer within {} s", limit.as_secs()),
        };
        let name = name.to_owned();
        Err(if writes { StoreError::Unknown { name, why } } else { StoreError::Unavailable { name, why } })
    }
}

#[async_trait]
impl Store for DirectoryStore {
    fn place(&self) -> String {
        self.url.to_string()
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        self.traffic.gets.fetch_add(1, Ordering::Relaxed);
        let object = self
            .run(name, false, move |place, name| match is_plain(name) {
                true => plain::get(place, name, range),
                false => numbered::get(place, name, range),
            })
            .await?;
        self.traffic.bytes_in.fetch_add(object.bytes.len() as u64, Ordering::Relaxed);
        Ok(object)
    }

    async fn get_dated(&self, name: &str) -> Result<Object, StoreError> {
        let object = self.get(name, None).await?;
        // After the object was read: an age judged by it is never too small for what was read.
        let date = self.run(name, false, |place, _| Ok(place.now())).await?;
        Ok(Object { date, ..object })
    }

    async fn put(
        &self,
        name: &str,
        body: Bytes,
        metadata: &BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Meta, StoreError> {
        self.traffic.puts.fetch_add(1, Ordering::Relaxed);
        self.traffic.bytes_out.fetch_add(body.len() as u64, Ordering::Relaxed);
        let metadata = metadata.clone();
        self.run(name, true, move |place, name| match is_plain(name) {
            true => {
                let write = |file: &mut File| file.write_all(&body);
                plain::put(place, name, crc32c::crc32c(&body), write, &metadata, condition)
            }
            false => numbered::put(place, name, &body, &metadata, condition),
        })
        .await
    }

    async fn put_file(
        &self,
        name: &str,
        body: &FileBody,
        metadata: &BTreeMap<String, String>,
        condition: Condition,
    ) -> Result<Meta, StoreError> {
        self.traffic.puts.fetch_add(1, Ordering::Relaxed);
        self.traffic.bytes_out.fetch_add(body.size(), Ordering::Relaxed);
        let (metadata, body) = (metadata.clone(), body.clone());
        let limit = self.config.deadline + self.config.transfer(body.size());
        self.run_within(limit, name, true, move |place, name| match is_plain(name) {
            true => {
                let write = |file: &mut File| std::io::copy(&mut body.reader(), file).map(drop);
                plain::put(place, name, body.crc32c(), write, &metadata, condition)
            }
            false => {
                let bytes = body.read_all().map_err(|e| super::unreadable(name, &e))?;
                numbered::put(place, name, &bytes, &metadata, condition)
            }
        })
        .await
    }

    async fn list(&self, prefix: &str, start: Option<&str>) -> Result<Vec<Entry>, StoreError> {
        self.traffic.lists.fetch_add(1, Ordering::Relaxed);
        let start = start.unwrap_or_default().to_owned();
        self.run(prefix, false, move |place, prefix| {
            let mut listing = Listing { place, prefix, start: &start, rows: Vec::new() };
            let folder = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
            listing.folder(folder)?;
            listing.rows.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(listing.rows)
        })
        .await
    }

    async fn delete(&self, name: &str, generation: Generation) -> Result<(), StoreError> {
        self.traffic.deletes.fetch_add(1, Ordering::Relaxed);
        self.run(name, true, move |place, name| match is_plain(name) {
            true => plain::delete(place, name, generation),
            false => numbered::delete(place, name, generation),
        })
        .await
    }

    fn traffic(&self) -> &Traffic {
        &self.traffic
    }
}

/// One walk over the folders that can hold names with a prefix.
struct Listing<'a> {
    place: &'a Place,
    prefix: &'a str,
    start: &'a str,
    rows: Vec<Entry>,
}

impl Listing<'_> {
    /// Adds what lies in a folder and below; `folder` is empty or ends in a slash.
    fn folder(&mut self, folder: &str) -> Result<(), StoreError> {
        let path = self.place.base().join(folder);
        let failed = |error: &std::io::Error| self.place.unreadable(folder, "listing", error);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => match failed(&error) {
                StoreError::NotFound(_) => return Ok(()),
                error => return Err(error),
            },
        };
        let (mut below, mut numbered) = (Vec::new(), BTreeSet::new());
        for entry in entries {
            let entry = entry.map_err(|e| failed(&e))?;
            // Names that are not UTF-8 are nobody's objects.
            let Ok(file_name) = entry.file_name().into_string() else { continue };
            let kind = entry.file_type().map_err(|e| failed(&e))?;
            if kind.is_dir() && file_name != OWN_FOLDER {
                below.push(format!("{folder}{file_name}/"));
            } else if kind.is_file() {
                if is_plain(&file_name) {
                    self.plain(format!("{folder}{file_name}"))?;
                } else if let Some((name, _)) = numbered::parse(&file_name) {
                    numbered.insert(format!("{folder}{name}"));
                }
            }
        }
        for name in numbered {
            if self.wants(&name)
                && let Some(entry) = numbered::entry(self.place, &name)?
            {
                self.rows.push(entry);
            }
        }
        for folder in below {
            if folder.starts_with(self.prefix) || self.prefix.starts_with(&folder) {
                self.folder(&folder)?;
            }
        }
        Ok(())
    }

    fn plain(&mut self, name: String) -> Result<(), StoreError> {
        if self.wants(&name) {
            match plain::entry(self.place, &name) {
                Ok(entry) => self.rows.push(entry),
                // Deleted since the folder was read.
                Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        name.starts_with(self.prefix) && name >= self.start
    }
}

#[cfg(test)]
mod tests;
