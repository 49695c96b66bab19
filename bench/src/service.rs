//! Section `service`: the guestbook as a web service, at 1 and at 80 clients, with each durability, against the same app on
//! plain SQLite with Litestream beside it. A request to the bucket takes 25 ms.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::proxy::{Class, Proxy};
use sqlite_gcs_tests::shell::Scratch;
use sqlite_gcs_tests::web::{Client, Service, guestbook};

use crate::contender::beside;
use crate::report::Report;
use crate::sample::Sample;
use crate::{Failure, Settings};

const DELAY: Duration = Duration::from_millis(25);
const CLIENTS: [usize; 2] = [1, 80];

/// What the app stands on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    Litestream,
    Plain,
    Gcs(&'static str),
}

/// Litestream first, because the others are compared with the first.
const BASES: [(&str, Base); 4] = [
    ("plain SQLite + Litestream", Base::Litestream),
    ("plain SQLite alone", Base::Plain),
    ("sqlite-gcs, durability=background", Base::Gcs("background")),
    ("sqlite-gcs, durability=commit", Base::Gcs("commit")),
];

/// What the clients do, one request after the other.
#[derive(Clone, Copy)]
enum Load {
    /// Sign the book: one transaction that waits for its durability.
    Sign,
    /// Fetch the page with its twenty entries.
    Page,
}

/// Measures all of it.
pub fn run(settings: &Settings) -> Result<Vec<Report>, Failure> {
    let mut reports = Vec::new();
    for (load, clients, name, title) in [
        (Load::Sign, CLIENTS[0], "sign-1", "Entries per second that the web app stores, 1 client"),
        (Load::Sign, CLIENTS[1], "sign-80", "Entries per second that the web app stores, 80 clients"),
        (Load::Page, CLIENTS[0], "page-1", "Pages per second that the web app serves, 1 client"),
        (Load::Page, CLIENTS[1], "page-80", "Pages per second that the web app serves, 80 clients"),
    ] {
        let mut samples = vec![Vec::new(); BASES.len()];
        for round in 1..=settings.repeats {
            for ((what, base), samples) in BASES.iter().zip(&mut samples) {
                eprintln!("{name} {round}/{}: {what}", settings.repeats);
                samples.push(measure(*base, load, clients, settings.duration)?);
            }
        }
        let names = BASES.iter().map(|(what, _)| (*what).to_owned());
        reports.push(Report {
            name,
            title,
            model: format!(
                "the guestbook and its clients on one machine, kept connections; every request to fake-gcs-server is held for {DELAY:?}; \
                 {} rounds of {:?} each, medians",
                settings.repeats, settings.duration
            ),
            rows: names.zip(samples.iter().map(|rounds| Sample::median(rounds))).collect(),
        });
    }
    Ok(reports)
}

fn measure(base: Base, load: Load, clients: usize, duration: Duration) -> Result<Sample, Failure> {
    let (scratch, emulator) = (Scratch::new(), Emulator::start());
    let proxy = Proxy::start(&emulator.host());
    proxy.set_delay(DELAY);
    let file = scratch.join("app.db");
    let (mut uri, bucket, host) = (format!("file:{}", file.display()), emulator.url(), proxy.host());
    let mut sidecar = None;
    match base {
        Base::Litestream => sidecar = Some(beside(&file, &format!("{bucket}/app.db"), Some(&host))?),
        Base::Plain => Connection::open(&file)?.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE first(a);")?,
        Base::Gcs(durability) => uri += &format!("?vfs=gcs&durability={durability}"),
    }
    let settings = [("SQLITE_GCS_BUCKET", bucket.as_str()), ("STORAGE_EMULATOR_HOST", host.as_str())];
    let service = Service::start(&guestbook("release"), &uri, &settings);
    // Full pages to serve, and the lease: what is measured is the steady state.
    let mut first = Client::new(service.address, Duration::from_secs(30));
    for n in 0..20 {
        let status = first.sign(&format!("first{n}"), "An+entry+as+people+write+them%2C+of+one+or+two+lines.")?;
        if status != 303 {
            return Err(format!("the first entries were answered with {status}").into());
        }
    }
    let (before, begin) = (proxy.count(Class::Put), Instant::now());
    let each: Vec<Duration> = std::thread::scope(|scope| {
        let visitors: Vec<_> = (0..clients)
            .map(|n| {
                let client = Client::new(service.address, Duration::from_secs(30));
                scope.spawn(move || visitor(n, load, client, begin + duration))
            })
            .collect();
        let mut all = Vec::new();
        for visitor in visitors {
            match visitor.join() {
                Ok(times) => all.extend(times?),
                Err(_) => return Err::<_, String>("a client panicked".to_owned()),
            }
        }
        Ok(all)
    })?;
    let (took, puts) = (begin.elapsed(), proxy.count(Class::Put) - before);
    drop(service);
    if let Some(sidecar) = sidecar {
        sidecar.stop()?;
    }
    Ok(Sample::of(each, took, puts))
}

/// One request after the other until `end`; what each of them took.
fn visitor(n: usize, load: Load, mut client: Client, end: Instant) -> Result<Vec<Duration>, String> {
    let mut times = Vec::new();
    while Instant::now() < end {
        let begin = Instant::now();
        let (wanted, answer) = match load {
            Load::Sign => (303, client.sign(&format!("{n}x{}", times.len()), "A+line+or+two.")),
            Load::Page => (200, client.get("/").map(|(status, _)| status)),
        };
        match answer {
            Ok(status) if status == wanted => times.push(begin.elapsed()),
            Ok(status) => return Err(format!("client {n} was answered with {status}")),
            Err(error) => return Err(format!("client {n}: {error}")),
        }
    }
    Ok(times)
}
