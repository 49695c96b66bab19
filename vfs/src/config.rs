//! The settings of one database: parsed once, from its URI and the environment, to final types.
//!
//! Every setting can stand in the URI (`file:app.db?vfs=gcs&flush_interval=500ms`) or in the environment
//! (`SQLITE_GCS_FLUSH_INTERVAL=500ms`); the URI wins. A parameter that is not known here, or a value that
//! does not parse, is refused with the accepted ones.
//!
//! | name | value | default | zero means |
//! |---|---|---|---|
//! | `at` | a time (RFC 3339), a TXID, or how long ago (`-15m`); in the URI only | none: the live database | - |
//! | `bucket` | `gs://bucket[/prefix]` or `file:///dir` | none: required | - |
//! | `durability` | `background`, `commit` or `strict` | `background` | - |
//! | `class_a_budget` | class A requests a month, 200000 or more; with `flush_interval=auto` only | 1000000 | refused |
//! | `flush_interval` | duration, or `auto`: from 1 s to 60 s, such that the budget is kept | `1s` | every commit is sent at once |
//! | `cache_size` | size, 1 MB or more | a quarter of the memory limit on tmpfs, half of the free disk elsewhere | no bound |
//! | `hydrate` | `auto`, `off`, `background` or `now` (the open waits) | `auto`: `background`, from a second after the open on, for a database of 64 MB and an eighth of `cache_size` at the most; else `off` | - |
//! | `page_size` | bytes, of a new database | `4096` | refused |
//! | `poll_interval` | duration, to 10 min: how old what a follower shows may be, at the most | `1s` | what others write is not looked for |
//! | `lease_ttl` | duration, 5 s to 10 min | `40s` | refused |
//! | `request_timeout` | duration, 100 ms to 10 min: how long a request may go without an answer before it is made again, and how long a writer waits for the lease | `10s` | refused |
//! | `commit_timeout` | duration, 100 ms to 1 h: how long a COMMIT (`commit`, `strict`), `gcs_flush` and a close wait for the bucket | `30s` | refused |
//! | `probe` | `auto`, `on` or `off`: whether the first write of a process checks that the bucket honours conditions; `auto`: unless it is the real Cloud Storage, or a directory | `auto` | - |
//! | `role` | `auto`: writes, and follows while somebody else may write; `writer`: does not follow; `follower`: does not write | `auto` | - |
//! | `retention` | duration: up to which age states can be opened | `24h` | the newest state, and what the 10 minutes before a delete keep |
//! | `sigterm` | `flush` or `ignore` | `ignore` | - |
//!
//! Durations take `ms`, `s`, `m`, `h`; sizes take `KB`, `MB`, `GB` (powers of 1024) or plain bytes.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::page::PageSize;

/// When a COMMIT returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Once it is in the local WAL; the upload follows in the background.
    Background,
    /// Once its pages are in the bucket; other local connections may see it a moment earlier.
    Commit,
    /// Once its pages are in the bucket, and no connection sees it before; an error means rolled back.
    Strict,
}

impl Durability {
    /// Parses the setting's value.
    pub fn parse(text: &str) -> Option<Durability> {
        match text {
            "background" => Some(Durability::Background),
            "commit" => Some(Durability::Commit),
            "strict" => Some(Durability::Strict),
            _ => None,
        }
    }

    /// The word that stands for it in settings.
    pub fn word(self) -> &'static str {
        match self {
            Durability::Background => "background",
            Durability::Commit => "commit",
            Durability::Strict => "strict",
        }
    }
}

/// Whether the cache is filled without being asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hydrate {
    /// In the background where the database is small: 64 MB at the most, and an eighth of the cache's bound.
    Auto,
    /// Only what is read is fetched, and what a scan will come to.
    Off,
    /// The rest is fetched while the database is in use.
    Background,
    /// The open returns when everything is there, or the cache is full.
    Now,
}

/// What a host does with a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Writes when it is its turn, and follows whoever else writes.
    Auto,
    /// Writes when it is its turn, and does not look what others write before that.
    Writer,
    /// Only reads, and follows whoever writes.
    Follower,
}

/// The settings of one database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Which state of the past to open, as it was given; `None`: the live database.
    pub at: Option<String>,
    /// Where the objects lie: `gs://bucket[/prefix]` or `file:///dir`.
    pub bucket: String,
    /// When a COMMIT returns.
    pub durability: Durability,
    /// The least time between two uploads in the background; `None`: what the budget allows.
    pub flush_interval: Option<Duration>,
    /// Class A requests a month.
    pub class_a_budget: u64,
    /// What everything local may take, in bytes: cache file, WAL, outbox, our own files. 0: no bound. `None`: a share of
    /// what there is.
    pub cache_size: Option<u64>,
    /// Whether the cache is filled without being asked.
    pub hydrate: Hydrate,
    /// Page size of a database that does not exist yet.
    pub page_size: PageSize,
    /// How often the log is looked at for what others write, at the least, while somebody reads; zero: never.
    pub poll_interval: Duration,
    /// Whether this host writes, follows, or both.
    pub role: Role,
    /// How long the right to append lasts without being renewed.
    pub lease_ttl: Duration,
    /// How long a request may go without an answer before it is made again.
    pub request_timeout: Duration,
    /// How long a COMMIT that waits, `gcs_flush` and a close wait for the bucket.
    pub commit_timeout: Duration,
    /// Whether the first write checks that the bucket honours conditions; `None`: where it is a stand-in for Cloud Storage.
    pub probe: Option<bool>,
    /// Up to which age states are kept openable.
    pub retention: Duration,
    /// Whether SIGTERM uploads what is committed before the process ends.
    pub sigterm_flush: bool,
}

/// The least bound of the local files. With SQLite's default of a checkpoint each 1000 pages, 32 MB and more serve well.
const LEAST_CACHE: u64 = 1 << 20;

/// The smallest budget that can be kept, in class A requests a month (`upload/budget.rs`).
pub(crate) const LEAST_BUDGET: u64 = 200_000;
/// The budget if none is given: 5 dollars.
pub(crate) const DEFAULT_BUDGET: u64 = 1_000_000;

/// The names that a URI may carry, as an error message lists them.
const NAMES: &str = "at, bucket, cache_size, class_a_budget, commit_timeout, durability, flush_interval, hydrate, lease_ttl, page_size, poll_interval, probe, request_timeout, retention, role, sigterm";

impl Config {
    /// Parses the parameters of a URI over the values of the environment (`env` looks up one variable).
    pub fn parse(parameters: &[(String, String)], env: impl Fn(&str) -> Option<String>) -> Result<Config> {
        let known: Vec<&str> = NAMES.split(", ").collect();
        if let Some((name, _)) = parameters.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            return Err(refuse(format!("unknown URI parameter {name:?}; accepted are {NAMES}")));
        }
        let value = |name: &str| {
            let in_uri = parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            in_uri.or_else(|| env(&format!("SQLITE_GCS_{}", name.to_uppercase()))).filter(|value| !value.is_empty())
        };
        let bucket = value("bucket").ok_or_else(|| {
            refuse(
                "no bucket is configured; set SQLITE_GCS_BUCKET or the URI parameter bucket= \
                 to gs://bucket[/prefix] or file:///dir"
                    .to_owned(),
            )
        })?;
        let durability = match value("durability") {
            None => Durability::Background,
            Some(text) => Durability::parse(&text)
                .ok_or_else(|| refuse_value("durability", &text, "background, commit or strict"))?,
        };
        let flush_interval = match value("flush_interval") {
            Some(text) if text == "auto" => None,
            Some(text) if parse_duration(&text).is_none() => {
                let accepted = "auto, or a whole number followed by ms, s, m or h, such as 500ms";
                return Err(refuse_value("flush_interval", &text, accepted));
            }
            text => Some(duration("flush_interval", text, Duration::from_secs(1))?),
        };
        let class_a_budget =
            match value("class_a_budget") {
                None => DEFAULT_BUDGET,
                Some(_) if flush_interval.is_some() => {
                    return Err(refuse("class_a_budget needs flush_interval=auto".to_owned()));
                }
                Some(text) => text.parse().ok().filter(|&requests| requests >= LEAST_BUDGET).ok_or_else(|| {
                    refuse_value("class_a_budget", &text, "a number of requests a month, 200000 or more")
                })?,
            };
        let cache_size = match value("cache_size") {
            None => None,
            Some(text) => Some(
                parse_size(&text)
                    .filter(|&bytes| bytes == 0 || bytes >= LEAST_CACHE)
                    .ok_or_else(|| refuse_value("cache_size", &text, "0, or a size from 1MB on, such as 256MB"))?,
            ),
        };
        let hydrate = match value("hydrate").as_deref() {
            None | Some("auto") => Hydrate::Auto,
            Some("off") => Hydrate::Off,
            Some("background") => Hydrate::Background,
            Some("now") => Hydrate::Now,
            Some(text) => return Err(refuse_value("hydrate", text, "auto, off, background or now")),
        };
        let page_size = match value("page_size") {
            None => PageSize::DEFAULT,
            Some(text) => text
                .parse()
                .ok()
                .and_then(PageSize::new)
                .ok_or_else(|| refuse_value("page_size", &text, "a power of two from 512 to 65536"))?,
        };
        let lease_ttl = duration("lease_ttl", value("lease_ttl"), Duration::from_secs(40))?;
        if !(Duration::from_secs(5)..=Duration::from_secs(600)).contains(&lease_ttl) {
            return Err(refuse(format!("lease_ttl is {lease_ttl:?}; accepted is 5s to 10m")));
        }
        let within = |name: &str, default: u64, most: u64, accepted: &str| {
            let limits = Duration::from_millis(100)..=Duration::from_secs(most);
            match duration(name, value(name), Duration::from_secs(default))? {
                time if limits.contains(&time) => Ok(time),
                time => Err(refuse(format!("{name} is {time:?}; accepted is {accepted}"))),
            }
        };
        let request_timeout = within("request_timeout", 10, 600, "100ms to 10m")?;
        let commit_timeout = within("commit_timeout", 30, 3600, "100ms to 1h")?;
        let poll_interval = match duration("poll_interval", value("poll_interval"), Duration::from_secs(1))? {
            time if time > Duration::from_secs(600) => {
                return Err(refuse(format!("poll_interval is {time:?}; accepted is 0 to 10m")));
            }
            time => time,
        };
        let role = match value("role").as_deref() {
            None | Some("auto") => Role::Auto,
            Some("writer") => Role::Writer,
            Some("follower") => Role::Follower,
            Some(text) => return Err(refuse_value("role", text, "auto, writer or follower")),
        };
        let probe = match value("probe").as_deref() {
            None | Some("auto") => None,
            Some("on") => Some(true),
            Some("off") => Some(false),
            Some(text) => return Err(refuse_value("probe", text, "auto, on or off")),
        };
        let retention = duration("retention", value("retention"), Duration::from_secs(86_400))?;
        let sigterm_flush = match value("sigterm").as_deref() {
            None | Some("ignore") => false,
            Some("flush") => true,
            Some(text) => return Err(refuse_value("sigterm", text, "flush or ignore")),
        };
        // Not from the environment: it would hide every live database.
        let at = parameters.iter().find(|(name, text)| name == "at" && !text.is_empty()).map(|(_, at)| at.clone());
        Ok(Config {
            at,
            bucket,
            cache_size,
            hydrate,
            durability,
            flush_interval,
            class_a_budget,
            page_size,
            poll_interval,
            role,
            lease_ttl,
            request_timeout,
            commit_timeout,
            probe,
            retention,
            sigterm_flush,
        })
    }
}

fn duration(name: &str, value: Option<String>, default: Duration) -> Result<Duration> {
    let Some(text) = value else { return Ok(default) };
    parse_duration(&text)
        .ok_or_else(|| refuse_value(name, &text, "a whole number followed by ms, s, m or h, such as 500ms"))
}

/// Parses `500ms`, `1s`, `2m`, `1h`, or a plain `0`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let millis = match &text[digits..] {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        "" if number == 0 => 0,
        _ => return None,
    };
    Some(Duration::from_millis(millis))
}

/// Parses `64KB`, `256MB`, `2GB` (powers of 1024), or plain bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "" => Some(number),
        "KB" => number.checked_mul(1 << 10),
        "MB" => number.checked_mul(1 << 20),
        "GB" => number.checked_mul(1 << 30),
        _ => None,
    }
}

fn refuse_value(name: &str, value: &str, accepted: &str) -> Error {
    refuse(format!("{name}={value:?} is not understood; accepted is {accepted}"))
}

fn refuse(message: String) -> Error {
    Error::new(ErrorKind::Configuration, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Config> {
        let own = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| (String::from(*k), String::from(*v))).collect::<Vec<_>>()
        };
        let env = own(env);
        Config::parse(&own(parameters), |name| env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn the_uri_wins_over_the_environment() {
        let env = [("SQLITE_GCS_BUCKET", "gs://a"), ("SQLITE_GCS_FLUSH_INTERVAL", "2s")];
        let config = parse(&[("flush_interval", "250ms")], &env).expect("a good configuration");
        assert_eq!(config.bucket, "gs://a");
        assert_eq!(config.flush_interval, Some(Duration::from_millis(250)));
        assert_eq!(config.durability, Durability::Background);
    }

    #[test]
    fn a_refusal_names_the_parameter_and_what_is_accepted() {
        let bucket = ("bucket", "gs://a");
        for (parameters, name, accepted) in [
            (vec![], "no bucket", "SQLITE_GCS_BUCKET"),
            (vec![bucket, ("durabilty", "commit")], "durabilty", "durability"),
            (vec![bucket, ("durability", "yes")], "durability", "background, commit or strict"),
            (vec![bucket, ("flush_interval", "1 s")], "flush_interval", "500ms"),
            (vec![bucket, ("flush_interval", "99999999999999999999s")], "flush_interval", "ms"),
            (vec![bucket, ("class_a_budget", "500000")], "class_a_budget", "flush_interval=auto"),
            (vec![bucket, ("flush_interval", "auto"), ("class_a_budget", "9")], "class_a_budget", "200000"),
            (vec![bucket, ("cache_size", "100KB")], "cache_size", "256MB"),
            (vec![bucket, ("cache_size", "1 GB")], "cache_size", "256MB"),
            (vec![bucket, ("hydrate", "yes")], "hydrate", "auto, off, background or now"),
            (vec![bucket, ("page_size", "1000")], "page_size", "512"),
            (vec![bucket, ("lease_ttl", "0")], "lease_ttl", "5s"),
            (vec![bucket, ("request_timeout", "5ms")], "request_timeout", "100ms"),
            (vec![bucket, ("commit_timeout", "2h")], "commit_timeout", "1h"),
            (vec![bucket, ("probe", "1")], "probe", "auto, on or off"),
            (vec![bucket, ("poll_interval", "11m")], "poll_interval", "10m"),
            (vec![bucket, ("role", "reader")], "role", "auto, writer or follower"),
            (vec![bucket, ("retention", "1d")], "retention", "h"),
            (vec![bucket, ("sigterm", "1")], "sigterm", "flush"),
        ] {
            let error = parse(&parameters, &[]).expect_err("a refusal");
            assert_eq!(error.kind(), ErrorKind::Configuration);
            let text = error.to_string();
            assert!(text.contains(name) && text.contains(accepted), "{text}");
        }
    }
}
