//! Section `write`: transactions of one row, one connection, synchronous=NORMAL, uploads running.

use crate::contender::{ALL, compare};
use crate::report::Report;
use crate::{Failure, Settings};

/// Measures all contenders.
pub fn run(settings: &Settings) -> Result<Vec<Report>, Failure> {
    Ok(vec![Report {
        name: "insert",
        title: "INSERT transactions per second, one connection, synchronous=NORMAL, uploads running",
        model: format!(
            "one row of about 200 bytes per transaction; {} rounds of {:?} each, medians; no delay on requests",
            settings.repeats, settings.duration
        ),
        rows: compare(&ALL, "insert", settings.duration, settings.repeats)?,
    }])
}
