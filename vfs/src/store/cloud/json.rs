//! Requests of Cloud Storage's JSON interface that the official client has no way to make over HTTP: list, delete,
//! and what the bucket says of an object, with the date of the answer.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use google_cloud_auth::credentials::{CacheableResource, Credentials};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, Response, redirect};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};

use super::attempt::{Attempt, chain};
use crate::store::{BucketTime, Entry, Generation, Meta};

/// All but the characters that no part of a URL gives a meaning.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const FIELDS: &str = "name,generation,size,timeCreated,crc32c,metadata";

/// The most rows that the service puts into one page.
const PAGE_ROWS: u32 = 1000;

/// A bucket, as JSON requests see it.
#[derive(Debug)]
pub(super) struct Json {
    http: reqwest::Client,
    /// URL of the bucket's objects, without a slash at the end.
    objects: String,
    credentials: Credentials,
}

/// A page of a listing.
pub(super) struct Page {
    pub(super) rows: Vec<Entry>,
    /// What to ask for the next page with; `None` at the last one.
    pub(super) next: Option<String>,
}

impl Json {
    pub(super) fn new(endpoint: &str, bucket: &str, credentials: Credentials) -> Result<Json, reqwest::Error> {
        let http = reqwest::Client::builder().redirect(redirect::Policy::none()).build()?;
        let objects = format!("{}/storage/v1/b/{}/o", endpoint.trim_end_matches('/'), encode(bucket));
        Ok(Json { http, objects, credentials })
    }

    /// What the bucket says of an object, and its clock. `name` is for errors, `full` the name in the bucket.
    pub(super) async fn stat(&self, name: &str, full: &str) -> Result<(Meta, Option<BucketTime>), Attempt> {
        let url = format!("{}/{}?fields={}", self.objects, encode(full), encode(FIELDS));
        let response = self.send(name, Method::GET, url).await?;
        let date = date(&response);
        let row: Row = parse(response).await?;
        Ok((row.entry()?.meta, date))
    }

    /// One page of a listing.
    pub(super) async fn list(
        &self,
        name: &str,
        prefix: &str,
        start: Option<&str>,
        token: Option<&str>,
    ) -> Result<Page, Attempt> {
        let fields = format!("nextPageToken,items({FIELDS})");
        let mut url =
            format!("{}?maxResults={PAGE_ROWS}&fields={}&prefix={}", self.objects, encode(&fields), encode(prefix));
        for (key, value) in [("startOffset", start), ("pageToken", token)] {
            if let Some(value) = value {
                url.push_str(&format!("&{key}={}", encode(value)));
            }
        }
        let listing: Listing = parse(self.send(name, Method::GET, url).await?).await?;
        let rows = listing.items.into_iter().map(Row::entry).collect::<Result<_, _>>()?;
        Ok(Page { rows, next: listing.next_page_token.filter(|token| !token.is_empty()) })
    }

    /// Deletes an object if this is its newest generation.
    pub(super) async fn delete(&self, name: &str, full: &str, generation: Generation) -> Result<(), Attempt> {
        let url = format!("{}/{}?ifGenerationMatch={}", self.objects, encode(full), generation.0);
        self.send(name, Method::DELETE, url).await.map(|_| ())
    }

    async fn send(&self, name: &str, method: Method, url: String) -> Result<Response, Attempt> {
        let headers = match self.credentials.headers(Default::default()).await {
            Ok(CacheableResource::New { data, .. }) => data,
            // Only said to who shows an earlier answer's tag.
            Ok(CacheableResource::NotModified) => return Err(Attempt::Unsent("no token".to_owned())),
            Err(error) => return Err(Attempt::of_credentials(name, &error)),
        };
        let sent = self.http.request(method, url).headers(headers).send().await;
        let response = sent.map_err(|error| match error.is_connect() {
            true => Attempt::Unsent(chain(&error)),
            false => Attempt::Lost(chain(&error)),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        // The status alone decides; a body that does not come is only words missing.
        let said = response.text().await.unwrap_or_default();
        Err(Attempt::of_status(name, status, &said))
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

async fn parse<T: for<'a> Deserialize<'a>>(response: Response) -> Result<T, Attempt> {
    let body = response.bytes().await.map_err(|error| Attempt::Lost(chain(&error)))?;
    serde_json::from_slice(&body).map_err(|error| Attempt::Damaged(format!("the answer is not as documented: {error}")))
}

/// The bucket's clock, to the second.
fn date(response: &Response) -> Option<BucketTime> {
    let text = response.headers().get("date")?.to_str().ok()?;
    // HTTP writes the zone as GMT, which is what mail calls +0000.
    let time = OffsetDateTime::parse(&text.replace("GMT", "+0000"), &Rfc2822).ok()?;
    Some(BucketTime(time.unix_timestamp() * 1000))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    #[serde(default)]
    items: Vec<Row>,
    next_page_token: Option<String>,
}

/// An object as the JSON interface writes it: 64-bit numbers are strings.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    generation: String,
    size: String,
    time_created: Option<String>,
    crc32c: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

impl Row {
    fn entry(self) -> Result<Entry, Attempt> {
        let number = |field: &str, text: &str| {
            text.parse::<u64>().map_err(|_| Attempt::Damaged(format!("{field} of {} is {text:?}", self.name)))
        };
        let generation = Generation(number("generation", &self.generation)?);
        let size = number("size", &self.size)?;
        let created = self.time_created.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok());
        let created = created.map(|time| BucketTime((time.unix_timestamp_nanos() / 1_000_000) as i64));
        let crc32c = self.crc32c.and_then(|text| BASE64_STANDARD.decode(text).ok());
        let crc32c = crc32c.and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        Ok(Entry { name: self.name, meta: Meta { generation, size, created, crc32c }, metadata: self.metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_whole() {
        assert_eq!(encode("a/b c%2F+?#ä~_.-"), "a%2Fb%20c%252F%2B%3F%23%C3%A4~_.-");
    }

    #[test]
    fn a_row_is_read_as_the_service_writes_it() {
        let text = r#"{"name":"a","generation":"1700000000000001","size":"9","timeCreated":"2026-01-02T03:04:05.678Z",
            "crc32c":"4waSgw==","metadata":{"litestream-timestamp":"x"}}"#;
        let entry = serde_json::from_str::<Row>(text).expect("a row").entry().expect("an entry");
        assert_eq!(entry.meta.generation, Generation(1_700_000_000_000_001));
        assert_eq!(entry.meta.created, Some(BucketTime(1_767_323_045_678)));
        assert_eq!(entry.meta.crc32c, Some(crc32c::crc32c(b"123456789")));
        let text = text.replace("1700000000000001", "many");
        let broken = serde_json::from_str::<Row>(&text).expect("a row").entry();
        assert!(matches!(broken, Err(Attempt::Damaged(why)) if why.contains("generation of a")));
    }
}
