//! What is counted, and the text that Prometheus reads.
//!
//! Counters belong to this process and start at zero with it. What the database knows about its bucket is read from
//! [`Status`] when the text is made.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::status::Status;

/// Upper bounds of the histograms' buckets in seconds.
const BOUNDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Method, route and status of a request. Routes are patterns, never what a client sent.
type Kind = (&'static str, String, u16);

/// The counters of this process.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Kind, u64>>,
    served: AtomicU64,
    latency: Mutex<Histogram>,
    commits: Mutex<Histogram>,
    entries: AtomicU64,
    last_commit_us: AtomicU64,
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            if seconds <= bound {
                *bucket += 1;
            }
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        header(out, name, "histogram", help);
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            line(out, format_args!("{name}_bucket{{le=\"{bound}\"}} {bucket}"));
        }
        line(out, format_args!("{name}_bucket{{le=\"+Inf\"}} {}", self.count));
        line(out, format_args!("{name}_sum {}", self.sum));
        line(out, format_args!("{name}_count {}", self.count));
    }
}

impl Metrics {
    /// Counts an answered request.
    pub fn answered(&self, method: &'static str, route: String, status: u16, took: Duration) {
        *self.requests.lock().entry((method, route, status)).or_default() += 1;
        self.served.fetch_add(1, Ordering::Relaxed);
        self.latency.lock().add(took);
    }

    /// Counts a commit of `entries` entries, with its wait for the bucket.
    pub fn committed(&self, entries: usize, took: Duration) {
        self.entries.fetch_add(entries as u64, Ordering::Relaxed);
        self.last_commit_us.store(took.as_micros() as u64, Ordering::Relaxed);
        self.commits.lock().add(took);
    }

    /// Requests answered since the start.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// How long the last commit took; `None` before the first.
    pub fn last_commit(&self) -> Option<Duration> {
        match self.last_commit_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    /// Everything as Prometheus reads it (text format 0.0.4).
    pub fn text(&self, instance: &str, role: &str, status: Option<&Status>) -> String {
        let mut out = String::new();
        header(&mut out, "guestbook_info", "gauge", "This instance and its role; always 1.");
        line(&mut out, format_args!("guestbook_info{{instance=\"{}\",role=\"{role}\"}} 1", escaped(instance)));
        header(&mut out, "guestbook_http_requests_total", "counter", "Requests answered.");
        for ((method, route, status), count) in &*self.requests.lock() {
            let labels = format!("method=\"{method}\",route=\"{}\",status=\"{status}\"", escaped(route));
            line(&mut out, format_args!("guestbook_http_requests_total{{{labels}}} {count}"));
        }
        self.latency.lock().write(&mut out, "guestbook_http_request_seconds", "Time to answer a request.");
        self.commits.lock().write(
            &mut out,
            "guestbook_commit_seconds",
            "Time of a commit with its wait for the bucket.",
        );
        header(&mut out, "guestbook_entries_total", "counter", "Entries stored by this instance.");
        line(&mut out, format_args!("guestbook_entries_total {}", self.entries.load(Ordering::Relaxed)));
        if let Some(status) = status {
            write_status(&mut out, status);
        }
        out
    }
}

fn write_status(out: &mut String, status: &Status) {
    let seconds = |ms: Option<u64>| ms.map(|ms| ms as f64 / 1000.0);
    let whole = |n: Option<u64>| n.map(|n| n as f64);
    let gauges = [
        ("sqlite_gcs_committed_txid", "The newest transaction committed here.", whole(status.committed())),
        ("sqlite_gcs_durable_txid", "The newest transaction in the bucket.", whole(status.durable())),
        ("sqlite_gcs_outbox_deltas", "Deltas that are not in the bucket yet.", whole(status.outbox_deltas)),
        ("sqlite_gcs_outbox_bytes", "Their size.", whole(status.outbox_bytes)),
        ("sqlite_gcs_upload_lag_seconds", "Age of the oldest of them.", seconds(status.lag_ms)),
        ("sqlite_gcs_pages_present", "Pages in the local cache.", whole(status.pages_present)),
        ("sqlite_gcs_pages", "Pages of the database.", whole(status.pages_total)),
        ("sqlite_gcs_cache_bytes", "Local bytes of the cache.", whole(status.cache_bytes)),
        ("sqlite_gcs_open_seconds", "How long opening the database took.", seconds(status.open.ms)),
        ("sqlite_gcs_open_requests", "Requests that opening it took.", whole(status.open.requests)),
        ("sqlite_gcs_cost_dollars", "List price of all requests since the start.", status.cost.usd),
        (
            "sqlite_gcs_failing",
            "1 while there is a last error.",
            Some(f64::from(u8::from(status.last_error.is_some()))),
        ),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            header(out, name, "gauge", help);
            line(out, format_args!("{name} {value}"));
        }
    }
    header(out, "sqlite_gcs_requests_total", "counter", "Requests to the bucket.");
    for (kind, count) in status.requests.by_kind() {
        line(out, format_args!("sqlite_gcs_requests_total{{kind=\"{kind}\"}} {count}"));
    }
    header(out, "sqlite_gcs_bytes_total", "counter", "Bytes from (in) and to (out) the bucket.");
    for (direction, bytes) in [("in", status.bytes.inward), ("out", status.bytes.outward)] {
        line(out, format_args!("sqlite_gcs_bytes_total{{direction=\"{direction}\"}} {}", bytes.unwrap_or(0)));
    }
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{text}");
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_comment_or_a_sample_and_buckets_are_cumulative() {
        let metrics = Metrics::default();
        metrics.answered("GET", "/".to_owned(), 200, Duration::from_millis(3));
        metrics.answered("GET", "/".to_owned(), 200, Duration::from_secs(9));
        metrics.committed(3, Duration::from_millis(40));
        let status = Status::parse(crate::status::SAMPLE).expect("a status");
        let text = metrics.text("here-\"1\"", "writer", Some(&status));
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(name.starts_with("guestbook_") || name.starts_with("sqlite_gcs_"), "{line}");
        }
        for expected in [
            "guestbook_info{instance=\"here-\\\"1\\\"\",role=\"writer\"} 1",
            "guestbook_http_requests_total{method=\"GET\",route=\"/\",status=\"200\"} 2",
            "guestbook_http_request_seconds_bucket{le=\"0.0025\"} 0",
            "guestbook_http_request_seconds_bucket{le=\"0.005\"} 1",
            "guestbook_http_request_seconds_bucket{le=\"+Inf\"} 2",
            "guestbook_entries_total 3",
            "sqlite_gcs_committed_txid 420",
            "sqlite_gcs_requests_total{kind=\"put\"} 31",
        ] {
            assert!(text.lines().any(|line| line == expected), "no line {expected} in\n{text}");
        }
    }
}
