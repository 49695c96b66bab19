//! A data set of 170,000 cities in a bucket. `make demo` runs it; by hand:
//!
//! ```text
//! export SQLITE_GCS_BUCKET=file:///somewhere   (or gs://bucket)
//! cities load cities.db      builds the database and uploads it
//! rm -r cities.db*           the local files are only a cache
//! cities ask cities.db       opens it cold and asks questions
//! ```

mod ask;
mod cost;
mod data;
mod load;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use rusqlite::Connection;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cities: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [step, path] = arguments.as_slice() else {
        return Err("usage: cities load|ask DATABASE".into());
    };
    sqlite_gcs::register()?;
    let open = || Connection::open(format!("file:{path}?vfs=gcs"));
    match step.as_str() {
        "load" => load::load(open()?),
        "ask" => {
            let bucket = std::env::var("SQLITE_GCS_BUCKET").unwrap_or_default();
            let file = Path::new(path).file_name().ok_or("the path names no file")?;
            let replica = bucket.strip_prefix("file://").map(|folder| Path::new(folder).join(file));
            ask::ask(open, replica.as_deref())
        }
        other => Err(format!("unknown step {other}: it is load or ask").into()),
    }
}
