//! The life of the guestbook on Cloud Run, with real processes: cold starts on an empty disk, load, a frozen CPU, scale to zero, a
//! rolling deploy, kill -9. Between the app and fake-gcs-server lies a proxy that takes 25 ms.
//!
//! What must hold: an entry that was acknowledged is there at the end, once. No error but the documented 503 of a write whose turn
//! it is not. A deploy keeps writes out for less than 4 s, and reads for less than 1 s (in the long life, which runs alone). A
//! timeline is left in the target directory, `cloud-run.svg`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::poll;
use sqlite_gcs_tests::proxy::Proxy;
use sqlite_gcs_tests::shell::{Program, Scratch, target_directory};
use sqlite_gcs_tests::timeline::{self, Event, What};
use sqlite_gcs_tests::web::{Client, Service, guestbook};

/// How long each part lasts, and how large the database is.
struct Life {
    load: Duration,
    frozen: Duration,
    together: Duration,
    megabytes: usize,
    /// Of a cold start, of writes and of reads during a deploy, at most.
    limits: [Duration; 3],
    svg: &'static str,
}

/// The world outside of the instances: the bucket, the front end and everybody who looks at the page.
struct World {
    emulator: Emulator,
    proxy: Proxy,
    scratch: Scratch,
    begin: Instant,
    events: Mutex<Vec<Event>>,
    /// Who gets requests, by number and address; writes go to the last one. The front end holds requests back while nobody does.
    route: RwLock<Vec<(usize, std::net::SocketAddr)>>,
    acknowledged: Mutex<Vec<String>>,
    /// When a write was acknowledged, and when a page was read.
    written: Mutex<Vec<Instant>>,
    read: Mutex<Vec<Instant>>,
    done: AtomicBool,
    /// While an instance is killed, requests to it get no answer.
    killing: AtomicBool,
    wrong: Mutex<Vec<String>>,
}

struct Instance {
    number: usize,
    disk: PathBuf,
    service: Service,
}

impl World {
    fn new() -> World {
        let emulator = Emulator::start();
        let proxy = Proxy::start(&emulator.host());
        proxy.set_delay(Duration::from_millis(25));
        World {
            emulator,
            proxy,
            scratch: Scratch::new(),
            begin: Instant::now(),
            events: Mutex::default(),
            route: RwLock::default(),
            acknowledged: Mutex::default(),
            written: Mutex::default(),
            read: Mutex::default(),
            done: AtomicBool::new(false),
            killing: AtomicBool::new(false),
            wrong: Mutex::default(),
        }
    }

    fn happened(&self, instance: usize, what: What) {
        self.events.lock().expect("no panic").push(Event { at: self.begin.elapsed(), instance, what });
    }

    /// A new instance on an empty disk.
    fn start(&self, number: usize) -> Instance {
        let disk = self.scratch.join(format!("disk{number}"));
        std::fs::create_dir_all(&disk).expect("a disk");
        self.happened(number, What::Mark("start".to_owned()));
        let uri = format!("file:{}/guestbook.db?vfs=gcs&durability=commit&lease_ttl=5s", disk.display());
        let (bucket, host) = (self.emulator.url(), self.proxy.host());
        let settings = [("SQLITE_GCS_BUCKET", bucket.as_str()), ("STORAGE_EMULATOR_HOST", host.as_str())];
        let service = Service::start(&guestbook("debug"), &uri, &settings);
        self.happened(number, What::Mark(format!("cold open, {} ms", service.started_in.as_millis())));
        Instance { number, disk, service }
    }

    fn send_requests_to(&self, instances: &[&Instance]) {
        let route = instances.iter().map(|instance| (instance.number, instance.service.address)).collect();
        *self.route.write().expect("no panic") = route;
    }

    /// SIGTERM as Cloud Run sends it, when no requests come any more; then the disk is gone.
    fn stop(&self, mut instance: Instance) {
        self.happened(instance.number, What::Mark("SIGTERM".to_owned()));
        let begin = Instant::now();
        instance.service.signal(Signal::SIGTERM);
        let how = instance.service.ended(Duration::from_secs(8));
        assert!(how.success(), "ended with {how} after {:?}", begin.elapsed());
        self.happened(instance.number, What::Mark(format!("ended, {} ms", begin.elapsed().as_millis())));
        self.happened(instance.number, What::End);
        wipe(&instance.disk);
    }

    fn kill(&self, mut instance: Instance) {
        self.killing.store(true, Ordering::SeqCst);
        self.happened(instance.number, What::Mark("kill -9".to_owned()));
        instance.service.signal(Signal::SIGKILL);
        instance.service.ended(Duration::from_secs(8));
        self.happened(instance.number, What::End);
        self.send_requests_to(&[]);
        wipe(&instance.disk);
    }

    /// Somebody who reads pages, or writes one entry after the other, until the end.
    fn visitor(&self, name: &str, writes: bool) {
        let mut clients: BTreeMap<usize, Client> = BTreeMap::new();
        let (mut n, mut turn) = (0_usize, 0_usize);
        while !self.done.load(Ordering::SeqCst) {
            turn += 1;
            let (number, address) = {
                let route = self.route.read().expect("no panic");
                match (writes, route.len()) {
                    (_, 0) => {
                        drop(route);
                        thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    (true, all) => route[all - 1],
                    (false, all) => route[turn % all],
                }
            };
            let client = clients.entry(number).or_insert_with(|| Client::new(address, Duration::from_secs(15)));
            let begin = Instant::now();
            let entry = format!("{name}x{n}");
            let status = if writes { client.sign(&entry, &entry) } else { client.get("/").map(|(status, _)| status) };
            let (took, status) = (begin.elapsed(), status.unwrap_or(0));
            self.happened(number, if writes { What::Write(status, took) } else { What::Read(status, took) });
            match (writes, status) {
                (true, 303) => {
                    self.acknowledged.lock().expect("no panic").push(entry);
                    self.written.lock().expect("no panic").push(Instant::now());
                    n += 1;
                }
                (false, 200) => self.read.lock().expect("no panic").push(Instant::now()),
                // Not its turn: the same entry is sent again.
                (true, 503) => thread::sleep(Duration::from_millis(200)),
                // The connection to a killed instance; the same entry is sent again, to the next one.
                (_, 0) if self.killing.load(Ordering::SeqCst) => drop(clients.remove(&number)),
                _ => self.wrong.lock().expect("no panic").push(format!(
                    "{} of {name} at {number} after {took:?}, {:.1} s: {status}",
                    if writes { "a write" } else { "a read" },
                    self.begin.elapsed().as_secs_f64()
                )),
            }
            thread::sleep(Duration::from_millis(if writes { 20 } else { 30 }));
        }
    }

    /// Asks every instance for its role, as the probes do.
    fn watch(&self) {
        while !self.done.load(Ordering::SeqCst) {
            let route = self.route.read().expect("no panic").clone();
            for (number, address) in route {
                if let Ok((200, text)) = Client::new(address, Duration::from_secs(1)).get("/health") {
                    let json: Value = serde_json::from_str(&text).expect("JSON");
                    self.happened(number, What::Role(json["role"].as_str().expect("a role").to_owned()));
                }
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn pass(&self, time: Duration) {
        thread::sleep(time);
    }
}

fn wipe(disk: &Path) {
    std::fs::remove_dir_all(disk).expect("a wiped disk");
}

/// The longest time without one of `moments` between `from` and `to`.
fn longest_pause(moments: &Mutex<Vec<Instant>>, from: Instant, to: Instant) -> Duration {
    let mut inside: Vec<_> =
        moments.lock().expect("no panic").iter().copied().filter(|at| (from..=to).contains(at)).collect();
    inside.sort();
    let with_ends: Vec<_> = [from].into_iter().chain(inside).chain([to]).collect();
    with_ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Fills the database with a large table, as a job on a machine of its own does: in transactions of 16 MB, uploaded meanwhile.
fn fill(world: &World, megabytes: usize) {
    let disk = world.scratch.join("moving");
    std::fs::create_dir_all(&disk).expect("a disk");
    let one = "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) \
               INSERT INTO archive SELECT randomblob(4000) FROM n; COMMIT;\n";
    let script = format!("CREATE TABLE archive(a);\n{}PRAGMA gcs_flush;\n", one.repeat(megabytes.div_ceil(16)));
    Program::sqlite3_on(&format!("file:{}/guestbook.db?vfs=gcs&commit_timeout=10m", disk.display()), &script)
        .env("SQLITE_GCS_BUCKET", world.emulator.url())
        .env("STORAGE_EMULATOR_HOST", world.emulator.host())
        .limit(Duration::from_secs(900))
        .run()
        .expect_success();
    std::fs::remove_dir_all(&disk).expect("a wiped disk");
}

fn live(life: &Life) {
    let mut world = World::new();
    fill(&world, life.megabytes);
    world.begin = Instant::now();
    thread::scope(|scope| {
        // Whatever fails, the visitors go home, and there is a timeline to look at.
        struct Closing<'a>(&'a World, PathBuf);
        impl Drop for Closing<'_> {
            fn drop(&mut self) {
                self.0.done.store(true, Ordering::SeqCst);
                let events = self.0.events.lock().expect("no panic");
                let svg = timeline::draw("A life on Cloud Run, simulated", 4, &events);
                std::fs::write(&self.1, svg).expect("the timeline");
                println!("timeline: {}", self.1.display());
            }
        }
        let closing = Closing(&world, target_directory().join(life.svg));
        for n in 0..3 {
            let world = &world;
            scope.spawn(move || world.visitor(&format!("writer{n}"), true));
        }
        for n in 0..3 {
            let world = &world;
            scope.spawn(move || world.visitor(&format!("reader{n}"), false));
        }
        scope.spawn(|| world.watch());

        let first = world.start(0);
        world.send_requests_to(&[&first]);
        world.pass(life.load);

        // No request is open: the CPU is taken away, for longer than the lease lasts.
        world.send_requests_to(&[]);
        world.pass(Duration::from_millis(500));
        world.happened(0, What::Mark("no CPU".to_owned()));
        first.service.signal(Signal::SIGSTOP);
        world.pass(life.frozen);
        first.service.signal(Signal::SIGCONT);
        world.happened(0, What::Mark("CPU".to_owned()));
        let thawed = Instant::now();
        world.send_requests_to(&[&first]);
        world.pass(life.load);
        let pause = longest_pause(&world.written, thawed, Instant::now());
        assert!(pause < life.limits[1], "writes were out for {pause:?} after the CPU came back");

        // Scale to zero, and a cold start on the large database.
        world.send_requests_to(&[]);
        world.pass(Duration::from_millis(500));
        world.stop(first);
        let second = world.start(1);
        let cold = second.service.started_in;
        assert!(cold < life.limits[0], "a cold start took {cold:?}");
        let (_, page) =
            Client::new(second.service.address, Duration::from_secs(10)).get("/entries.json").expect("read");
        assert!(page.contains("writer"), "the cold start shows no entry: {page}");
        world.send_requests_to(&[&second]);
        world.pass(life.load);

        // A rolling deploy under constant traffic: the new revision takes the writes while the old one still answers reads.
        let deploy = Instant::now();
        let third = world.start(2);
        world.send_requests_to(&[&second, &third]);
        world.pass(life.together);
        world.send_requests_to(&[&third]);
        world.pass(Duration::from_millis(500));
        world.stop(second);
        world.pass(life.load);
        let deployed = Instant::now();
        let (writes, reads) =
            (longest_pause(&world.written, deploy, deployed), longest_pause(&world.read, deploy, deployed));
        println!("deploy: longest pause of writes {writes:?}, of reads {reads:?}; cold start {cold:?}");
        assert!(writes < life.limits[1], "a deploy kept writes out for {writes:?}");
        assert!(reads < life.limits[2], "a deploy kept reads out for {reads:?}");

        // The instance dies under traffic, with its disk. Its lease has to run out.
        world.kill(third);
        let fourth = world.start(3);
        world.killing.store(false, Ordering::SeqCst);
        world.send_requests_to(&[&fourth]);
        let before = world.written.lock().expect("no panic").len();
        let again = poll(Duration::from_secs(20), || world.written.lock().expect("no panic").len() > before);
        assert!(again, "nobody could write after the writer was killed");
        world.pass(life.load);
        world.send_requests_to(&[]);
        world.pass(Duration::from_millis(500));
        world.stop(fourth);
        drop(closing);
    });
    let wrong = world.wrong.lock().expect("no panic");
    assert!(wrong.is_empty(), "{wrong:#?}");

    let last = world.start(4);
    let mut client = Client::new(last.service.address, Duration::from_secs(20));
    let mut stored: BTreeMap<String, u32> = BTreeMap::new();
    let mut before = i64::MAX;
    loop {
        let (status, page) = client.get(&format!("/entries.json?before={before}&limit=1000")).expect("a page");
        assert_eq!(status, 200, "{page}");
        let page: Value = serde_json::from_str(&page).expect("JSON");
        let entries = page["entries"].as_array().expect("entries");
        let Some(oldest) = entries.last() else { break };
        before = oldest["id"].as_i64().expect("a number");
        for entry in entries {
            *stored.entry(entry["message"].as_str().expect("a message").to_owned()).or_default() += 1;
        }
    }
    let acknowledged = world.acknowledged.lock().expect("no panic");
    let lost: Vec<_> = acknowledged.iter().filter(|entry| !stored.contains_key(*entry)).collect();
    assert!(lost.is_empty(), "of {} acknowledged entries are lost: {lost:?}", acknowledged.len());
    let twice: Vec<_> = stored.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "stored more than once: {twice:?}");
    assert!(acknowledged.len() > 50, "only {} entries were written", acknowledged.len());
    // Per writer those under way at the kill and at the end may be stored without having been acknowledged.
    assert!(stored.len() <= acknowledged.len() + 6, "{} are stored, {} acknowledged", stored.len(), acknowledged.len());
    println!("{} entries acknowledged, none lost", acknowledged.len());
}

#[test]
fn a_life_on_cloud_run_loses_no_acknowledged_entry() {
    live(&Life {
        load: Duration::from_secs(1),
        frozen: Duration::from_millis(5500),
        together: Duration::from_millis(3500),
        megabytes: 16,
        // Other tests run at the same time.
        limits: [15, 20, 5].map(Duration::from_secs),
        svg: "cloud-run.svg",
    });
}

#[test]
#[ignore = "minutes"]
fn a_long_life_on_cloud_run_with_a_database_of_one_gigabyte_loses_no_acknowledged_entry() {
    live(&Life {
        load: Duration::from_secs(10),
        frozen: Duration::from_secs(60),
        together: Duration::from_secs(20),
        megabytes: 1024,
        limits: [3, 4, 1].map(Duration::from_secs),
        svg: "cloud-run-long.svg",
    });
}
