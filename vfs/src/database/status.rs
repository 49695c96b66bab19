//! `PRAGMA gcs_*` and the functions of the same names: what a database says of itself.

use serde_json::json;

use super::Database;
use crate::config::{Durability, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::local::shared::BootTime;
use crate::upload::budget::MONTH;

/// The pragmas that exist, as a refusal lists them.
pub(crate) const PRAGMAS: &str = "gcs_durability, gcs_flush, gcs_history, gcs_rewind, gcs_status";

impl Database {
    /// FCNTL_PRAGMA and the SQL functions. `None`: not one of ours. `Some(Ok(text))` is the row to return.
    pub(crate) fn pragma(&self, name: &str, argument: Option<&str>) -> Option<Result<String>> {
        let name = name.to_ascii_lowercase();
        if !name.starts_with("gcs_") {
            return None;
        }
        if let Err(inherited) = self.check_process() {
            return Some(Err(inherited));
        }
        let refuse = |message: String| Err(Error::new(ErrorKind::Configuration, message));
        Some(match (name.as_str(), argument) {
            ("gcs_status", None) => Ok(self.status()),
            ("gcs_flush", None) => self.flush(self.commit_timeout()).map(|txid| txid.to_string()),
            ("gcs_durability", None) => Ok(self.durability.read().word().to_owned()),
            ("gcs_durability", Some(value)) => match Durability::parse(value) {
                Some(durability) => {
                    *self.durability.write() = durability;
                    Ok(durability.word().to_owned())
                }
                None => refuse(format!(
                    "gcs_durability={value:?} is not understood; accepted is background, commit or strict"
                )),
            },
            ("gcs_history", None) => super::history::points_as_json(&self.replica),
            ("gcs_rewind", None) => refuse("PRAGMA gcs_rewind='<point>': a time, a TXID or how long ago".to_owned()),
            ("gcs_status" | "gcs_flush" | "gcs_history", Some(_)) => refuse(format!("PRAGMA {name} takes no value")),
            _ => refuse(format!("unknown PRAGMA {name}; accepted are {PRAGMAS}")),
        })
    }

    /// One JSON object; every key is always there.
    pub(crate) fn status(&self) -> String {
        let mut outbox = self.outbox().list().unwrap_or_default();
        // A delta that the bucket has is removed a moment later.
        outbox.retain(|envelope| envelope.id.txid > self.shared.durable());
        let outbox_bytes: u64 = outbox.iter().map(|envelope| envelope.id.size).sum();
        let committed = self.committed();
        // Before a checkpoint the file is smaller than the database that the WAL makes of it.
        let pages = committed.filter(|c| c.frames > 0).map_or(self.cache.total(), |c| c.pages);
        let behind = crate::capture::Capture::is_behind(&self.shared, committed.as_ref());
        let committed = if behind { self.shared.frozen().next() } else { self.shared.frozen() };
        let durable = self.shared.durable();
        let waiting = self.shared.waiting_since();
        let lag_ms = if committed > durable && waiting != BootTime::default() {
            BootTime::now().since(waiting).as_millis() as u64
        } else {
            0
        };
        let [gets, puts, lists, deletes, bytes_in, bytes_out] = self.replica.store().traffic().snapshot();
        let open = BootTime::now().since(self.opened.at);
        json!({
            "replica": self.replica.place(),
            "durability": self.durability.read().word(),
            "committed_txid": committed.to_string(),
            "durable_txid": durable.to_string(),
            "role": self.role(),
            "lease": {
                "state": if self.has_right() { "held" } else if self.holder.lock().is_some() { "elsewhere" } else { "none" },
                "holder": *self.holder.lock(),
                "expires_in_ms": self.shared.right().since(BootTime::now()).as_millis() as u64,
            },
            "conflict": self.conflict.lock().as_ref().map(|path| path.display().to_string()),
            "lag_ms": lag_ms,
            "follower": {
                "awake": self.follower.is_awake(),
                "poll_interval_ms": self.config.poll_interval.as_millis() as u64,
                "txid": durable.to_string(),
                "head": self.shared.head_seen().to_string(),
                "lag_ms": since_or_zero(self.shared.behind_since()),
                "age_ms": if self.has_right() { 0 } else { since_or_zero(self.shared.log_caught_up()) },
                "error": self.follower.error(),
            },
            "outbox_deltas": outbox.len(),
            "outbox_bytes": outbox_bytes + self.shared.saved_bytes(),
            "sending": self.sending.lock().map(|(id, since)| {
                json!({ "txid": id.txid.to_string(), "bytes": id.size, "ms": since.elapsed().as_millis() as u64 })
            }),
            "cache_size": self.cache.bounds().map_or(0, |(limit, _)| limit),
            "local_bytes": self.cache.bounds().map_or(0, |(_, used)| used),
            "page_size": self.page_size.bytes(),
            "pages_present": self.cache.present(),
            "hydrate": self.hydration.state(),
            "pages_total": pages.0,
            "cache_bytes": self.local_bytes(),
            "requests": { "get": gets, "put": puts, "list": lists, "delete": deletes },
            "round_trips": self.replica.store().traffic().round_trips.load(std::sync::atomic::Ordering::Relaxed),
            "bytes": { "in": bytes_in, "out": bytes_out },
            "flush_interval_ms": self.interval(BootTime::now()).as_millis() as u64,
            "cost": {
                "class_a": puts + lists,
                "class_b": gets,
                "free": deletes,
                "usd": usd(puts + lists, gets),
                "usd_month": usd(puts + lists, gets) * MONTH / open.as_secs_f64().max(60.0),
            },
            "open": { "cold": self.opened.cold, "ms": self.opened.ms, "requests": self.opened.requests, "round_trips": self.opened.round_trips },
            "last_error": *self.last_error.lock(),
        })
        .to_string()
    }

    /// What this process is to the log.
    fn role(&self) -> &'static str {
        match () {
            () if self.shared.fenced() => "fenced",
            () if self.has_right() => "writer",
            () if BootTime::now() < self.shared.held_elsewhere() => "waiting",
            () if self.config.role == Role::Follower || self.shared.others_write() => "follower",
            () => "reader",
        }
    }

    /// Bytes that the database takes on the local disk: cache file without its holes, WAL, outbox.
    fn local_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let blocks = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
        let outbox = std::fs::read_dir(self.layout.outbox()).into_iter().flatten().flatten();
        let outbox: u64 = outbox.map(|entry| blocks(&entry.path())).sum();
        blocks(self.layout.main()) + blocks(&self.layout.wal()) + outbox
    }
}

fn since_or_zero(time: BootTime) -> u64 {
    if time == BootTime::default() { 0 } else { BootTime::now().since(time).as_millis() as u64 }
}

/// What these requests cost at list prices: $0.005 per 1,000 of class A, $0.0004 per 1,000 of class B.
fn usd(class_a: u64, class_b: u64) -> f64 {
    (class_a as f64 * 0.005 + class_b as f64 * 0.0004) / 1000.0
}
