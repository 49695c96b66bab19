//! No room on the local disk: for the outbox, for the cache and the WAL, and a capture lock that somebody sits on. Commits
//! that can be made are made, the WAL is never given up before its frames are safe, and nothing is lost.
//!
//! The small disks are tmpfs in a mount namespace of the other process, so they go with it, however it ends.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use sqlite_gcs_tests::host::{Host, one, wait_until};
use sqlite_gcs_tests::peer::Peer;

/// Takes all room that is left on a disk, but for so many bytes.
const FILLER: &str = r#"
def fill(folder, but=0):
    with open(folder + '/filler', 'ab', buffering=0) as filler:
        try:
            while True: filler.write(b'x' * 4096)
        except OSError: pass
    size = os.stat(folder + '/filler').st_size
    os.truncate(folder + '/filler', max(0, size - but))
def free(folder):
    os.remove(folder + '/filler')
def wal(): return os.stat(folder + '/app.db-gcswal').st_size
def rows(db): return one(db, 'SELECT count(*) FROM t')
"#;

fn in_bucket(host: &Host) -> i64 {
    std::fs::write(host.path("restored.db"), host.restored("app.db")).unwrap();
    let db = rusqlite::Connection::open(host.path("restored.db")).unwrap();
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    one(&db, "SELECT count(*) FROM t")
}

#[test]
fn a_full_outbox_stops_uploads_and_resets_but_neither_commits_nor_reads() {
    let host = Host::new();
    let folder = host.path("disk");
    std::fs::create_dir_all(folder.join("app.db-gcs/outbox")).unwrap();
    let setup = format!(
        "{FILLER}\nfolder = {folder:?}\noutbox = folder + '/app.db-gcs/outbox'\n\
         db = database('disk/app.db', '&flush_interval=10ms')\n\
         db.execute('PRAGMA wal_autocheckpoint=10'); db.execute('CREATE TABLE t(a)'); one(db, 'PRAGMA gcs_flush')"
    );
    let mut peer = Peer::start_with_tmpfs(&host, &setup, &folder.join("app.db-gcs/outbox"), "256k");
    // The delta of the table is durable a moment before it goes from the outbox.
    wait_until("the outbox is empty", || peer.run("status(db)['outbox_deltas']") == "0");
    peer.run("fill(outbox)");
    peer.run("for n in range(200): db.execute('INSERT INTO t VALUES (randomblob(1000))')");
    assert_eq!(peer.run("rows(db)"), "200", "commits and reads go on");
    assert!(peer.run("wal()").parse::<u64>().unwrap() > 200 * 4120, "the WAL must not have been reset");
    let error = peer.run("status(db)['last_error']");
    assert!(error.contains("No space left") && error.contains("outbox"), "{error}");
    assert_eq!(
        peer.run("db.execute('PRAGMA busy_timeout=0'); db.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone()[0]"),
        "1",
        "busy, which harms nothing"
    );
    let exclusive = peer.fail(
        "other = database('disk/app.db', timeout=0)\nother.execute('PRAGMA locking_mode=EXCLUSIVE')\n\
         other.execute('INSERT INTO t VALUES (0)')",
    );
    assert!(exclusive.contains("locked"), "{exclusive}");
    peer.run("other.close(); db.close()");
    assert!(peer.run("wal()").parse::<u64>().unwrap() > 200 * 4120, "the close must not have removed it");
    assert_eq!(in_bucket(&host), 0);
    // With no room for what the WAL holds, the database does not open, and says why.
    let refused = peer.fail("database('disk/app.db')");
    assert!(refused.contains("full"), "{refused}");
    // The one before did not give its lease back, so what is unsent has to go behind a seal, under another name: until it has
    // that, it is there twice.
    peer.run("free(outbox)\ndb = database('disk/app.db')");
    assert_eq!(peer.run("rows(db)"), "200");
    let refused = peer.fail("db.execute('INSERT INTO t VALUES (1)')");
    assert!(refused.contains("full"), "{refused}");
    peer.run("assert os.system('mount -o remount,size=1m ' + outbox) == 0");
    peer.run("db.execute('INSERT INTO t VALUES (1)'); one(db, 'PRAGMA gcs_flush')");
    assert_eq!(in_bucket(&host), 201);
    peer.run("db.close()");
    peer.end();
}

#[test]
fn an_outbox_that_gets_room_again_goes_on_by_itself() {
    let host = Host::new();
    let folder = host.path("disk");
    std::fs::create_dir_all(folder.join("app.db-gcs/outbox")).unwrap();
    let setup = format!(
        "{FILLER}\nfolder = {folder:?}\noutbox = folder + '/app.db-gcs/outbox'\n\
         db = database('disk/app.db', '&flush_interval=10ms')\ndb.execute('PRAGMA wal_autocheckpoint=10')\n\
         db.execute('CREATE TABLE t(a)'); one(db, 'PRAGMA gcs_flush')"
    );
    let mut peer = Peer::start_with_tmpfs(&host, &setup, &folder.join("app.db-gcs/outbox"), "1m");
    for rows in 1..=5 {
        peer.run("fill(outbox, 20000 * rows(db) % 50000)");
        peer.run("for n in range(30): db.execute('INSERT INTO t VALUES (randomblob(900))')");
        peer.run("free(outbox)\none(db, 'PRAGMA gcs_flush')");
        assert_eq!(in_bucket(&host), 30 * rows);
    }
    assert_eq!(peer.run("db.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone()[0]"), "0");
    assert_eq!(peer.run("one(db, 'PRAGMA integrity_check')"), "ok");
}

#[test]
fn a_full_disk_refuses_commits_keeps_reads_and_loses_nothing() {
    let host = Host::new();
    let folder = host.path("disk");
    std::fs::create_dir(&folder).unwrap();
    let setup = format!(
        "{FILLER}\nfolder = {folder:?}\ndb = database('disk/app.db', '&flush_interval=10ms')\n\
         db.execute('CREATE TABLE t(a)'); db.execute('CREATE INDEX t_a ON t(a)')\n\
         for n in range(100): db.execute('INSERT INTO t VALUES (randomblob(500))')\none(db, 'PRAGMA gcs_flush')"
    );
    let mut peer = Peer::start_with_tmpfs(&host, &setup, &folder, "3m");
    peer.run("fill(folder)");
    // Room that the WAL has already may be used up first.
    peer.run(
        r#"
done, refused = 100, None
for n in range(2000):
    try:
        db.execute('INSERT INTO t VALUES (randomblob(500))')
        done += 1
    except sqlite3.Error as error:
        refused = error
        break"#,
    );
    let refused = peer.run("refused");
    assert!(refused.contains("full"), "{refused}");
    assert_eq!(peer.run("rows(db) == done and one(db, 'PRAGMA integrity_check')"), "ok");
    peer.run("db.close()");
    peer.run("free(folder)\ndb = database('disk/app.db')");
    assert_eq!(peer.run("rows(db) == done and one(db, 'PRAGMA integrity_check')"), "ok");
    peer.run("db.execute('INSERT INTO t VALUES (1)'); one(db, 'PRAGMA gcs_flush'); db.close()");
    assert_eq!(in_bucket(&host).to_string(), peer.run("done + 1"));
    peer.end();
}

#[test]
fn a_cold_cache_without_room_says_full_and_reads_on_when_there_is_room() {
    let host = Host::new();
    let db = host.open("app.db", "");
    db.execute_batch(
        "CREATE TABLE t(a); WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
         INSERT INTO t SELECT hex(randomblob(1500)) FROM n",
    )
    .unwrap();
    drop(db);
    let folder = host.path("disk");
    std::fs::create_dir(&folder).unwrap();
    let setup =
        format!("{FILLER}\nfolder = {folder:?}\ndb = database('disk/app.db')\none(db, 'SELECT 1 FROM t LIMIT 1')");
    let mut peer = Peer::start_with_tmpfs(&host, &setup, &folder, "4m");
    peer.run("fill(folder)");
    let error = peer.fail("one(db, 'SELECT sum(length(a)) FROM t')");
    assert!(error.contains("full"), "{error}");
    assert_eq!(peer.run("one(db, 'SELECT 1 FROM t LIMIT 1')"), "1", "what is present can be read");
    peer.run("free(folder)");
    assert_eq!(peer.run("one(db, 'SELECT sum(length(a)) FROM t')"), (400 * 3000).to_string());
    assert_eq!(peer.run("one(db, 'PRAGMA integrity_check')"), "ok");
}

/// Holds the capture lock as a process that hangs would: byte 1 of `app.db-gcs/lock`.
struct Stuck(std::fs::File);

impl Stuck {
    fn on(host: &Host) -> Stuck {
        let path = host.path("app.db-gcs/lock");
        let stuck = Stuck(std::fs::File::options().read(true).write(true).open(path).unwrap());
        let begun = std::time::Instant::now();
        while stuck.set(nix::libc::F_WRLCK).is_err() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "nobody holds it for long");
        }
        stuck
    }

    fn set(&self, kind: nix::libc::c_int) -> nix::Result<nix::libc::c_int> {
        let lock = nix::libc::flock { l_type: kind as i16, l_whence: 0, l_start: 1, l_len: 1, l_pid: 0 };
        nix::fcntl::fcntl(&self.0, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock))
    }
}

#[test]
fn a_stuck_capture_lock_puts_off_resets_and_nothing_else() {
    let host = Host::new();
    let db = host.open("app.db", "&flush_interval=1h");
    db.execute_batch("PRAGMA wal_autocheckpoint=20; CREATE TABLE t(a)").unwrap();
    one::<String>(&db, "PRAGMA gcs_flush");
    let stuck = Stuck::on(&host);
    for _ in 0..30 {
        db.execute("INSERT INTO t VALUES (randomblob(3000))", []).unwrap();
    }
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), 30, "commits and reads go on");
    assert!(std::fs::metadata(host.path("app.db-gcswal")).unwrap().len() > 30 * 4120, "no reset came through");
    db.busy_timeout(std::time::Duration::ZERO).unwrap();
    assert_eq!(one::<i64>(&db, "PRAGMA wal_checkpoint(RESTART)"), 1, "busy");
    assert_eq!(one::<i64>(&db, "PRAGMA wal_checkpoint(TRUNCATE)"), 1, "busy");
    // The close waits for it; by then the process that hung is gone.
    let (begun, closing) = std::sync::mpsc::channel();
    let close = std::thread::spawn(move || {
        begun.send(()).unwrap();
        drop(db);
    });
    closing.recv().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!close.is_finished() && host.path("app.db-gcswal").exists(), "the WAL is not captured");
    stuck.set(nix::libc::F_UNLCK).unwrap();
    close.join().unwrap();
    assert_eq!(in_bucket(&host), 30);
}
