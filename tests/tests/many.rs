//! Many databases in one process: what each costs while it is idle, and that uploads are shared fairly among the busy ones.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::host::Host;
use sqlite_gcs_tests::peer::Peer;

/// `count()` says what the process has: threads, sockets, other descriptors, KB of memory, milliseconds of processor time.
const COUNT: &str = r#"
import gc
def count():
    gc.collect()
    fds = []
    for fd in os.listdir('/proc/self/fd'):
        try: fds.append(os.readlink('/proc/self/fd/' + fd))
        except OSError: pass
    sockets = sum(1 for fd in fds if fd.startswith('socket:'))
    resident = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS:'))
    return [len(os.listdir('/proc/self/task')), sockets, len(fds) - sockets, resident, int(time.process_time() * 1000)]
def fill(db):
    db.execute('CREATE TABLE t(a INTEGER PRIMARY KEY, b)')
    db.execute('INSERT INTO t(b) VALUES (zeroblob(100))')
def settle(dbs):
    for db in dbs:
        one(db, 'PRAGMA gcs_flush')
    for db in dbs:
        while status(db)['role'] == 'writer': time.sleep(0.05)
def open_some(first, last):
    for n in range(first, last):
        db = database(f'{n}.db')
        fill(db)
        dbs.append(db)
    settle(dbs)
dbs = []
"#;

/// The same without the VFS.
const PLAIN: &str = r#"
def open_some(first, last):
    for n in range(first, last):
        db = sqlite3.connect(f'{_path}/plain{n}.db', isolation_level=None)
        db.execute('PRAGMA journal_mode=WAL')
        fill(db)
        dbs.append(db)
"#;

/// What a process has.
#[derive(Clone, Copy, Debug)]
struct Count {
    threads: u64,
    sockets: u64,
    files: u64,
    kilobytes: u64,
    processor_ms: u64,
}

fn count(peer: &mut Peer) -> Count {
    let text = peer.run("count()");
    let numbers: Vec<u64> = text.trim_matches(['[', ']']).split(", ").map(|word| word.parse().unwrap()).collect();
    let [threads, sockets, files, kilobytes, processor_ms] = numbers[..] else { panic!("{text}") };
    Count { threads, sockets, files, kilobytes, processor_ms }
}

/// Opens a few, then `many` more, and compares what each of these costs with a plain database.
fn idle_databases_cost_little(few: u64, many: u64) {
    let (bed, host) = (Bed::new(), Host::new());
    let (bucket, proxy) = (bed.emulator.url(), bed.proxy.host());
    let mut own = Peer::start_with(&host, COUNT, |program| {
        program.env("STORAGE_EMULATOR_HOST", &proxy).env("SQLITE_GCS_BUCKET", &bucket)
    });
    let mut plain = Peer::start(&host, &format!("{COUNT}{PLAIN}"));
    let open = |peer: &mut Peer, from: u64, to: u64| {
        peer.begin(&format!("open_some({from}, {to})"));
        peer.answer_within(Duration::from_secs(600)).expect("opened");
        count(peer)
    };
    let (before, plain_before) = (open(&mut own, 0, few), open(&mut plain, 0, few));
    let (after, plain_after) = (open(&mut own, few, few + many), open(&mut plain, few, few + many));
    let each = |now: u64, then: u64| now.saturating_sub(then) as f64 / many as f64;
    let kilobytes = each(after.kilobytes, before.kilobytes) - each(plain_after.kilobytes, plain_before.kilobytes);
    let files = each(after.files, before.files) - each(plain_after.files, plain_before.files);
    let requests = bed.proxy.requests();
    let began = count(&mut own).processor_ms;
    std::thread::sleep(Duration::from_secs(3));
    let idle_ms = (count(&mut own).processor_ms - began) / 3;
    assert_eq!(bed.proxy.requests(), requests, "an idle database asks for nothing");
    println!(
        "{many} more idle databases: {kilobytes:.1} KB and {files:.1} descriptors each beyond SQLite's own ({:.1} KB, {:.1}); \
         {idle_ms} ms of processor time a second; {before:?}, {after:?}",
        each(plain_after.kilobytes, plain_before.kilobytes),
        each(plain_after.files, plain_before.files),
    );
    assert!(kilobytes < 64.0, "{kilobytes} KB");
    assert!(files < 12.5, "{files} descriptors");
    assert!(after.threads <= before.threads.max(24), "threads: {before:?}, {after:?}");
    assert!(after.sockets <= before.sockets.max(24), "sockets: {before:?}, {after:?}");
    own.kill();
}

#[test]
fn an_idle_database_costs_no_thread_no_socket_and_little_memory() {
    idle_databases_cost_little(10, 60);
}

#[test]
#[ignore = "minutes"]
fn a_thousand_idle_databases_cost_no_thread_no_socket_and_little_memory() {
    idle_databases_cost_little(20, 980);
}

#[test]
fn busy_databases_share_the_uploads() {
    busy_databases(20);
}

#[test]
#[ignore = "minutes"]
fn fifty_busy_databases_share_the_uploads() {
    busy_databases(50);
}

/// All of them are written to all the time, and there are more of them than uploads at a time.
fn busy_databases(many: usize) {
    let (bed, host) = (Bed::new(), Host::new());
    let (bucket, proxy) = (bed.emulator.url(), bed.proxy.host());
    let setup = format!(
        r#"{COUNT}
import threading
def work(seconds):
    def write(n):
        db = database(f'{{n}}.db')
        while not over.is_set():
            db.execute('INSERT INTO t(b) VALUES (1)')
            over.wait(0.01)
    durable = lambda: [int(status(db)['durable_txid'], 16) for db in dbs]
    over, before = threading.Event(), durable()
    threads = [threading.Thread(target=write, args=(n,)) for n in range(len(dbs))]
    for thread in threads: thread.start()
    end = time.time() + seconds
    # However slow the machine is: some rounds of all together.
    while time.time() < end or sum(durable()) - sum(before) < 5 * len(dbs): time.sleep(0.1)
    sent = [now - then for now, then in zip(durable(), before)]
    own = len(os.listdir('/proc/self/task')) - len(threads)
    over.set()
    for thread in threads: thread.join()
    return sent + [own]
"#
    );
    let mut own = Peer::start_with(&host, &setup, |program| {
        let program = program.env("STORAGE_EMULATOR_HOST", &proxy).env("SQLITE_GCS_BUCKET", &bucket);
        program.env("SQLITE_GCS_FLUSH_INTERVAL", "0")
    });
    own.run(&format!("for n in range({many}):\n    db = database(f'{{n}}.db'); fill(db); dbs.append(db)"));
    bed.proxy.set_delay(Duration::from_millis(40));
    let text = own.run("work(3)");
    let mut sent: Vec<u64> = text.trim_matches(['[', ']']).split(", ").map(|word| word.parse().unwrap()).collect();
    let threads = sent.pop().unwrap();
    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
    println!("uploads of each: {sent:?}, {threads} threads");
    assert!(*least >= 2 && *most <= 3 * least, "fair shares: {sent:?}");
    assert!(threads <= 32, "{threads}: busy databases have no threads of their own");
    own.kill();
}
