//! What the numbers were measured on, in one line.

use std::fs;

use sqlite_gcs_tests::shell::{Program, Scratch};

use crate::Failure;

/// Cores, processor, memory, and the file system that the databases lie on.
pub fn describe() -> Result<String, Failure> {
    let cores = std::thread::available_parallelism()?;
    let processor = field("/proc/cpuinfo", "model name")?;
    let memory = field("/proc/meminfo", "MemTotal")?;
    let scratch = Scratch::new();
    let kind = Program::new("stat").args(["-f", "-c", "%T"]).args([scratch.path()]).run();
    Ok(format!(
        "Machine: {cores} cores ({processor}), {memory}; databases on {} ({}); SQLite {}.",
        kind.expect_success(),
        scratch.path().parent().unwrap_or(scratch.path()).display(),
        rusqlite::version(),
    ))
}

fn field(file: &str, name: &str) -> Result<String, Failure> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find(|line| line.starts_with(name)).ok_or(format!("{file} has no {name}"))?;
    Ok(line.split_once(':').map_or(line, |(_, value)| value).trim().to_owned())
}
