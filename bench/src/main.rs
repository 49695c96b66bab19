//! Measures this VFS beside plain SQLite and beside Litestream, all in one run on one machine.
//!
//! ```text
//! sqlite-gcs-bench [--out DIR] [--seconds N] [--repeats N] [--sizes MB,MB] SECTION...
//! ```
//!
//! A section runs its contenders in turn, round after round, so that what disturbs the machine for a while
//! disturbs them all; each measurement is a process of its own (`worker.rs`). The table shows medians over the
//! rounds and the ratio to plain SQLite: on another machine only the ratio means anything.

mod chart;
mod cold;
mod commit;
mod contender;
mod cost;
mod machine;
mod read;
mod report;
mod sample;
mod service;
mod worker;
mod write;
mod writers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use report::Report;

type Failure = Box<dyn std::error::Error>;

/// What holds for a whole run.
struct Settings {
    /// Where the charts go.
    out: PathBuf,
    /// How long one measurement lasts.
    duration: Duration,
    /// How often each contender is measured.
    repeats: usize,
    /// Sizes of the databases of the section `cold`, in MB.
    sizes: Vec<u64>,
    /// How long the section `cost` writes.
    cost: Duration,
}

/// A section's name on the command line, and what runs it.
type Section = (&'static str, fn(&Settings) -> Result<Vec<Report>, Failure>);

const SECTIONS: [Section; 4] =
    [("write", write::run), ("read", read::run), ("commit", commit::run), ("service", service::run)];

/// The same for a section that has a table of its own.
type OwnSection = (&'static str, fn(&Settings) -> Result<(), Failure>);

const OWN: [OwnSection; 2] = [("cold", cold::run), ("cost", cost::run)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, rest)) if first == worker::MARK => worker::run(rest),
        _ => bench(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sqlite-gcs-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: Vec<String>) -> Result<(), Failure> {
    let mut settings = Settings {
        out: "target/bench".into(),
        duration: Duration::from_secs(3),
        repeats: 5,
        sizes: vec![108, 1024],
        cost: cost::DURATION,
    };
    let (mut wanted, mut own) = (Vec::new(), Vec::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--out" => settings.out = value()?.into(),
            "--seconds" => {
                settings.duration = Duration::from_secs_f64(value()?.parse()?);
                settings.cost = settings.duration;
            }
            "--repeats" => settings.repeats = value()?.parse::<usize>()?.max(1),
            "--sizes" => settings.sizes = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            name => {
                let section = SECTIONS.iter().find(|(section, _)| *section == name);
                let with_table = OWN.iter().find(|(section, _)| *section == name);
                if section.is_none() && with_table.is_none() {
                    let known = SECTIONS.iter().map(|(name, _)| *name).chain(OWN.map(|(name, _)| name));
                    let known = known.collect::<Vec<_>>().join(", ");
                    return Err(format!("no section {name}: there are {known}").into());
                }
                wanted.extend(section);
                own.extend(with_table);
            }
        }
    }
    if wanted.is_empty() && own.is_empty() {
        (wanted, own) = (SECTIONS.iter().collect(), OWN.iter().collect());
    }
    std::fs::create_dir_all(&settings.out)?;
    println!("{}\n", machine::describe()?);
    for (name, run) in wanted {
        for report in run(&settings)? {
            let chart = settings.out.join(format!("{name}-{}.svg", report.name));
            std::fs::write(&chart, chart::draw(&report))?;
            println!("{report}\nchart: {}\n", chart.display());
        }
    }
    for (_, run) in own {
        run(&settings)?;
    }
    Ok(())
}
