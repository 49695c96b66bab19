//! Section `read`: point SELECTs from a warm cache.

use crate::contender::{ALL, compare};
use crate::report::Report;
use crate::{Failure, Settings};

/// Measures all contenders.
pub fn run(settings: &Settings) -> Result<Vec<Report>, Failure> {
    Ok(vec![Report {
        name: "select",
        title: "point SELECTs per second by random key, one connection, warm cache",
        model: format!(
            "100,000 rows of about 200 bytes, SQLite's page cache 2 MB; {} rounds of {:?} each, medians",
            settings.repeats, settings.duration
        ),
        rows: compare(&ALL, "select", settings.duration, settings.repeats)?,
    }])
}
