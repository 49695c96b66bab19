//! A comparison as a markdown table; the first row is what the others are compared with.

use std::fmt;

use crate::sample::Sample;

/// What a section found out.
pub struct Report {
    /// Its part of the chart's file name.
    pub name: &'static str,
    /// What was measured.
    pub title: &'static str,
    /// The conditions: sizes, repeats, delay of requests.
    pub model: String,
    /// Each contender's medians.
    pub rows: Vec<(String, Sample)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n\n{}.\n", self.title, self.model)?;
        writeln!(f, "| | per second | ratio | p50 µs | p99 µs | ratio | PUTs |")?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|---:|")?;
        let Some((_, base)) = self.rows.first() else { return Ok(()) };
        for (name, row) in &self.rows {
            writeln!(
                f,
                "| {name} | {:.0} | {:.2} | {:.1} | {:.1} | {:.2} | {:.0} |",
                row.per_second,
                row.per_second / base.per_second,
                row.p50_us,
                row.p99_us,
                row.p99_us / base.p99_us,
                row.puts,
            )?;
        }
        Ok(())
    }
}
