//! What the bucket was asked for: the counters of `PRAGMA gcs_status`, and what a full download would ask.

use std::error::Error;
use std::fs;
use std::ops::Sub;
use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;

/// Requests, bytes received and time, of one step or of all so far.
#[derive(Clone, Copy, Default)]
pub struct Cost {
    /// Requests of every kind.
    pub requests: u64,
    /// Bytes received from the bucket.
    pub bytes_in: u64,
    /// Milliseconds that the step took as a whole.
    pub ms: f64,
}

impl Cost {
    /// What this connection's database has asked for since it was opened; `ms` counts from `since`.
    pub fn so_far(db: &Connection, since: Instant) -> Result<Cost, Box<dyn Error>> {
        let ms = since.elapsed().as_secs_f64() * 1000.0;
        let text: String = pragma(db, "gcs_status")?.ok_or("PRAGMA gcs_status returned no row")?;
        let status: Value = serde_json::from_str(&text)?;
        let requests = status["requests"].as_object().ok_or("gcs_status names no requests")?;
        Ok(Cost {
            requests: requests.values().filter_map(Value::as_u64).sum(),
            bytes_in: status["bytes"]["in"].as_u64().ok_or("gcs_status names no bytes")?,
            ms,
        })
    }

    /// Reads every object of the log once, as a restore has to.
    pub fn of_full_download(replica: &Path) -> Result<Cost, Box<dyn Error>> {
        let started = Instant::now();
        let mut cost = Cost::default();
        for level in fs::read_dir(replica.join("ltx"))? {
            for object in fs::read_dir(level?.path())? {
                let path = object?.path();
                if path.extension().is_some_and(|extension| extension == "ltx") {
                    cost.requests += 1;
                    cost.bytes_in += fs::read(path)?.len() as u64;
                }
            }
        }
        cost.ms = started.elapsed().as_secs_f64() * 1000.0;
        Ok(cost)
    }
}

impl Sub for Cost {
    type Output = Cost;

    fn sub(self, earlier: Cost) -> Cost {
        Cost {
            requests: self.requests - earlier.requests,
            bytes_in: self.bytes_in - earlier.bytes_in,
            ms: self.ms - earlier.ms,
        }
    }
}

/// The one value of a PRAGMA; `None` where nobody answers it.
pub fn pragma(db: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    db.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).optional()
}

/// A number of bytes as a person reads it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} KB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
