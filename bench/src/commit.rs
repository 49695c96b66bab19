//! Section `commit`: COMMITs that return when the bucket has them, from one and from many writers, with a request that takes
//! 25 ms; and what a reader notices of them.

use std::time::Duration;

use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::proxy::Proxy;
use sqlite_gcs_tests::shell::{Program, Scratch};

use crate::report::Report;
use crate::sample::Sample;
use crate::worker::MARK;
use crate::{Failure, Settings};

const DELAY: Duration = Duration::from_millis(25);

/// Measures all numbers of writers.
pub fn run(settings: &Settings) -> Result<Vec<Report>, Failure> {
    let (mut writing, mut reading) = (Vec::new(), Vec::new());
    for (durability, writers) in
        [("commit", 1), ("commit", 4), ("commit", 16), ("commit", 64), ("strict", 1), ("strict", 4), ("strict", 16)]
    {
        writing.push((
            format!("{durability}, {writers} writers"),
            measure(settings, durability, &format!("commit-{writers}"))?,
        ));
    }
    for writers in [0, 4, 16] {
        reading.push((
            format!("beside {writers} writers"),
            measure(settings, "commit", &format!("read-beside-{writers}"))?,
        ));
    }
    let model = |what: &str| {
        let (rounds, each) = (settings.repeats, settings.duration);
        format!(
            "{what}; every request is held for {DELAY:?} by a proxy before fake-gcs-server; {rounds} rounds of {each:?} each, medians"
        )
    };
    Ok(vec![
        Report {
            name: "writers",
            title: "COMMITs per second that are in the bucket when they return; ratio to one writer",
            model: model("transactions of one row of about 200 bytes, one connection and thread per writer"),
            rows: writing,
        },
        Report {
            name: "readers",
            title: "Point queries per second of one reader while writers wait for the bucket",
            model: model("durability=commit, the rows are present"),
            rows: reading,
        },
    ])
}

fn measure(settings: &Settings, durability: &str, load: &str) -> Result<Sample, Failure> {
    let mut rounds = Vec::new();
    for round in 1..=settings.repeats {
        eprintln!("{load} {round}/{}: {durability}", settings.repeats);
        let (scratch, emulator) = (Scratch::new(), Emulator::start());
        let proxy = Proxy::start(&emulator.host());
        proxy.set_delay(DELAY);
        let uri = format!("file:{}?vfs=gcs&durability={durability}", scratch.join("app.db").display());
        let seconds = settings.duration.as_secs_f64().to_string();
        let done = Program::new(std::env::current_exe()?)
            .limit(settings.duration * 4 + Duration::from_secs(120))
            .env("SQLITE_GCS_BUCKET", emulator.url())
            .env("STORAGE_EMULATOR_HOST", proxy.host())
            .args([MARK, load, &uri, &seconds])
            .run();
        if !done.succeeded() {
            return Err(format!("{load}: {done}").into());
        }
        rounds.push(done.stdout.trim().parse()?);
    }
    Ok(Sample::median(&rounds))
}
