//! The bucket goes away: its directory is moved, unreadable, replaced or full, the service is down. Present pages are read and
//! commits are made as long as the right to append lasts; the status says what is wrong; when it is back, nothing is lost.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::host::{Host, one, wait_until};
use sqlite_gcs_tests::litestream;
use sqlite_gcs_tests::peer::Peer;
use sqlite_gcs_tests::proxy::{Class, Fault, Proxy};

/// Works as somebody whom permissions hold back, in a folder of its own.
const UNPRIVILEGED: &str = r#"
folder = os.path.join(_path, 'disk')
os.mkdir(folder)
bucket = os.path.join(_path, 'bucket')
if os.geteuid() == 0:
    os.chmod(_path, 0o755)
    for path in folder, bucket: os.chown(path, 65534, 65534)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
"#;

const TABLE: &str = r#"
db = database('disk/app.db', '&flush_interval=10ms')
db.execute('CREATE TABLE t(a)')
for n in range(20): db.execute('INSERT INTO t VALUES (?)', (n,))
one(db, 'PRAGMA gcs_flush')
def rows(): return one(db, 'SELECT count(*) FROM t')
def settled(): return status(db)['committed_txid'] == status(db)['durable_txid']
"#;

fn rows_in_bucket(host: &Host) -> i64 {
    std::fs::write(host.path("restored.db"), host.restored("app.db")).unwrap();
    let db = rusqlite::Connection::open(host.path("restored.db")).unwrap();
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    one(&db, "SELECT count(*) FROM t")
}

/// The directory of the bucket is broken in some way and mended again, under a database that is being written.
fn goes_away_and_comes_back(break_it: impl Fn(&Path), mend_it: impl Fn(&Path)) {
    let host = Host::new();
    let bucket = host.path("bucket");
    let mut peer = Peer::start(&host, &format!("{UNPRIVILEGED}{TABLE}"));
    assert_eq!(peer.run("rows()"), "20");
    break_it(&bucket);
    peer.run("for n in range(30): db.execute('INSERT INTO t VALUES (?)', (n,))");
    assert_eq!(peer.run("rows()"), "50", "commits and reads go on");
    wait_until("the status says what is wrong", || {
        let error = peer.run("status(db)['last_error']");
        error.contains(&bucket.display().to_string())
    });
    // A machine without a cache cannot do without the bucket; it says so, and makes no new database.
    let refused = peer.fail("os.mkdir(folder + '/cold')\ndatabase('disk/cold/app.db')");
    assert!(refused.contains("unable to open"), "{refused}");
    // What is kept survives the end of the process, too.
    peer.kill();
    let setup = "folder = os.path.join(_path, 'disk')\ndef rows(): return one(db, 'SELECT count(*) FROM t')\n\
                 if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n";
    let mut peer = Peer::start(&host, setup);
    let refused = peer.fail("database('disk/app.db')");
    assert!(refused.contains("unable to open"), "{refused}");
    mend_it(&bucket);
    peer.run("db = database('disk/app.db')");
    assert_eq!(peer.run("rows()"), "50");
    peer.run("db.execute('INSERT INTO t VALUES (50)'); one(db, 'PRAGMA gcs_flush')");
    assert_eq!(rows_in_bucket(&host), 51);
    peer.run("db.close()");
    peer.end();
}

fn away(bucket: &Path) -> std::path::PathBuf {
    bucket.with_file_name("away")
}

#[test]
fn a_bucket_directory_that_is_gone_loses_nothing_and_is_not_made_anew() {
    goes_away_and_comes_back(
        |bucket| std::fs::rename(bucket, away(bucket)).unwrap(),
        |bucket| {
            assert!(!bucket.exists(), "a new log in the place of the old one");
            std::fs::rename(away(bucket), bucket).unwrap();
        },
    );
}

#[test]
fn a_bucket_directory_that_is_unreadable_loses_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    goes_away_and_comes_back(|bucket| mode(bucket, 0), |bucket| mode(bucket, 0o755));
}

#[test]
fn a_file_in_place_of_the_bucket_directory_loses_nothing() {
    goes_away_and_comes_back(
        |bucket| {
            std::fs::rename(bucket, away(bucket)).unwrap();
            std::fs::write(bucket, "not a directory").unwrap();
        },
        |bucket| {
            std::fs::remove_file(bucket).unwrap();
            std::fs::rename(away(bucket), bucket).unwrap();
        },
    );
}

#[test]
fn a_full_bucket_directory_takes_the_rest_when_it_has_room() {
    let host = Host::new();
    let setup = r#"
bucket = os.path.join(_path, 'bucket')
os.mkdir(os.path.join(_path, 'disk')); os.mkdir(os.path.join(_path, 'elsewhere'))
db = database('disk/app.db', '&flush_interval=10ms')
db.execute('CREATE TABLE t(a)'); one(db, 'PRAGMA gcs_flush')
def fill():
    with open(bucket + '/filler', 'wb', buffering=0) as filler:
        try:
            while True: filler.write(b'x' * 4096)
        except OSError: pass
"#;
    let mut peer = Peer::start_with_tmpfs(&host, setup, &host.path("bucket"), "2m");
    peer.run("fill()");
    peer.run("for n in range(30): db.execute('INSERT INTO t VALUES (randomblob(2000))')");
    assert_eq!(peer.run("one(db, 'SELECT count(*) FROM t')"), "30");
    wait_until("the status says what is wrong", || {
        let error = peer.run("status(db)['last_error']");
        error.contains("No space left") && error.contains("/bucket")
    });
    peer.run("os.remove(bucket + '/filler')\none(db, 'PRAGMA gcs_flush')");
    // The small disk is only seen there.
    assert_eq!(peer.run("other = database('elsewhere/app.db')\none(other, 'SELECT count(*) FROM t')"), "30");
    assert_eq!(peer.run("one(other, 'PRAGMA integrity_check')"), "ok");
}

fn rows_on_emulator(host: &Host, emulator: &Emulator) -> i64 {
    let bytes = litestream::restore(&format!("{}/app.db", emulator.url()), Some(&emulator.host())).unwrap();
    std::fs::write(host.path("restored.db"), bytes).unwrap();
    let db = rusqlite::Connection::open(host.path("restored.db")).unwrap();
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    one(&db, "SELECT count(*) FROM t")
}

/// While the service is down: reads go on as far as pages are present, commits as long as the right to append lasts. After that a
/// writer is told BUSY, until the service is back; then everything goes on by itself.
#[test]
fn a_service_that_is_down_and_back_loses_nothing() {
    let mut emulator = Emulator::start_on_disk();
    let host = Host::new();
    let setup = format!(
        "os.mkdir(os.path.join(_path, 'disk'))\n{}",
        TABLE.replace("10ms", &format!("10ms&lease_ttl=5s&bucket={}", emulator.url()))
    );
    let endpoint = emulator.host();
    let mut peer = Peer::start_with(&host, &setup, |program| program.env("STORAGE_EMULATOR_HOST", &endpoint));
    assert_eq!(peer.run("rows()"), "20");
    emulator.stop();
    peer.run("for n in range(30): db.execute('INSERT INTO t VALUES (?)', (n,))");
    assert_eq!(peer.run("rows()"), "50");
    let stopped = peer.run(
        r#"
db.execute('PRAGMA busy_timeout=0')
begun, extra, cut, stopped, longest = time.monotonic(), 0, 0, None, 0
while stopped is None and time.monotonic() < begun + 40:
    asked = time.monotonic()
    try:
        db.execute('INSERT INTO t VALUES (99)')
        extra += 1
        time.sleep(0.01)
    except sqlite3.Error as error:
        # Whoever has begun when the right ends is told so: before its commit, or after. All others are not let in.
        if 'disk I/O error' in str(error): cut += 1
        else: stopped = error
    longest = max(longest, time.monotonic() - asked)
repr(stopped)"#,
    );
    assert!(stopped.contains("database is locked"), "the right lasts 5 s: {stopped}");
    assert_eq!(peer.run("longest < 15 or longest"), "True", "a writer waits 10 s for the lease");
    assert_eq!(peer.run("50 + extra <= rows() <= 50 + extra + cut and cut < 3"), "True", "reads go on");
    let before: i64 = peer.run("rows()").parse().unwrap();
    emulator.restart();
    peer.run("db.execute('PRAGMA busy_timeout=30000'); db.execute('INSERT INTO t VALUES (100)')");
    peer.run("one(db, 'PRAGMA gcs_flush')");
    let rows: i64 = peer.run("rows()").parse().unwrap();
    assert_eq!(rows, before + 1);
    assert_eq!(rows_on_emulator(&host, &emulator), rows);
    peer.run("db.close()");
    peer.end();
}

/// A missing page cannot be had at every point of a transaction over several indexes: the transaction ends whole.
#[test]
fn a_refused_read_at_every_point_of_a_transaction_ends_it_whole() {
    let emulator = Emulator::start();
    let proxy = Proxy::start(&emulator.host());
    let host = Host::new();
    let setup = r#"
import shutil
def fresh(n):
    os.mkdir(os.path.join(_path, f'disk{n}'))
    return database(f'disk{n}/app.db', '&bucket=gs://tbkt&flush_interval=1h&hydrate=off&poll_interval=0')
db = fresh(0)
db.executescript('''
CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE, c, d); CREATE INDEX t_c ON t(c); CREATE INDEX t_cd ON t(d, c);
WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
INSERT INTO t SELECT i, i * 7919 % 1000003, i * 31 % 97, hex(randomblob(100)) FROM n''')
one(db, 'PRAGMA gcs_flush'); db.close()
def print_of(db): return one(db, "SELECT count(*) || ' ' || total(b) || ' ' || total(c) || ' ' || total(length(d)) FROM t")
def transaction(db):
    failed = None
    try:
        db.execute('BEGIN')
        db.execute('UPDATE t SET b = -b, c = c + 1 WHERE a % 1500 = 3')
        db.execute('INSERT OR REPLACE INTO t SELECT a + 100000, b + 2000003, c, d FROM t WHERE a < 100000 AND a % 2000 = 1')
        db.execute('DELETE FROM t WHERE a % 1700 = 5')
    except sqlite3.Error as error:
        failed = error
    try:
        db.execute('COMMIT')
    except sqlite3.Error as error:
        failed = failed or error
    if db.in_transaction: db.execute('ROLLBACK')
    return failed
"#;
    let endpoint = proxy.host();
    let mut peer = Peer::start_with(&host, setup, |program| program.env("STORAGE_EMULATOR_HOST", &endpoint));
    let mut failures = 0;
    for n in 1..200 {
        peer.run(&format!("db = fresh({n})"));
        proxy.fail(Class::Get, n..=n, Fault::Status(403));
        let failed = peer.run("failed = transaction(db)\nfailed");
        proxy.heal();
        assert_eq!(peer.run("one(db, 'PRAGMA integrity_check')"), "ok", "read {n}: {failed}");
        if failed == "None" {
            // The read that would have failed was not made, or was one of the uploader's.
            break;
        }
        // The first write reads the lease, and is refused as a whole.
        assert!(failed.contains("disk I/O error") || failed.contains("readonly"), "{failed}");
        failures += u32::from(failed.contains("disk I/O error"));
        let before = peer.run(&format!("other = fresh({})\nprint_of(other)", n + 1000));
        assert_eq!(peer.run("print_of(db)"), before, "read {n}: half a transaction");
        peer.run(
            "other.close(); db.close(); shutil.rmtree(os.path.join(_path, f'disk{NUMBER}'))"
                .replace("NUMBER", &n.to_string())
                .as_str(),
        );
    }
    assert!(failures >= 3, "only {failures} reads were made to fail");
}
