//! fork with open connections: the parent goes on, the child begins with nothing and may open what it likes, nobody waits for
//! the other, and nothing is lost.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use sqlite_gcs_tests::host::{Host, difference, one, pages, wait_until};
use sqlite_gcs_tests::peer::Peer;

/// `forked(f)` runs `f` in a child, which `ended(pid)` waits for, 40 s at most; it returns the status, or what went wrong.
const FORKED: &str = r#"
import signal
def forked(f):
    pid = os.fork()
    if pid == 0:
        code = 99
        # What our log says, too.
        os.dup2(os.open(f'{_path}/said{os.getpid()}', os.O_CREAT | os.O_WRONLY), 2)
        try:
            f()
            code = 0
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(code)
    return pid
def ended(pid):
    for _ in range(40000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status if status == 0 else f'status {status}: ' + open(f'{_path}/said{pid}').read()
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 'hangs'
"#;

fn host_with_table() -> Host {
    let host = Host::new();
    host.open("app.db", "").execute_batch("CREATE TABLE t(who)").unwrap();
    host
}

/// After everybody has closed: so many rows, here and in the bucket.
#[track_caller]
fn assert_rows(host: &Host, rows: i64) {
    let mut db = host.open("app.db", "");
    assert_eq!(one::<i64>(&db, "SELECT count(*) FROM t"), rows);
    assert_eq!(one::<String>(&db, "PRAGMA integrity_check"), "ok");
    one::<String>(&db, "PRAGMA gcs_flush");
    assert_eq!(difference(&pages(&mut db), &host.restored("app.db")), None);
}

#[test]
fn a_child_with_a_connection_of_its_own_and_the_parent_both_go_on() {
    let host = host_with_table();
    let mut parent = Peer::start(&host, &format!("{FORKED}\ndb = database('app.db', '&flush_interval=5ms')"));
    parent.run("db.execute('INSERT INTO t VALUES (0)')");
    let child = "def child():\n    own = database('app.db')\n    for _ in range(20): own.execute('INSERT INTO t VALUES (1)')\n    own.close()";
    parent.run(child);
    for round in 1..=5 {
        assert_eq!(parent.run("ended(forked(child))"), "0");
        parent.run("db.execute('INSERT INTO t VALUES (0)')");
        assert_eq!(parent.run("one(db, 'SELECT count(*) FROM t')"), (1 + 21 * round).to_string());
    }
    parent.run("db.close()");
    parent.end();
    assert_rows(&host, 106);
}

#[test]
fn an_inherited_connection_refuses_in_the_child_and_still_works_in_the_parent() {
    let host = host_with_table();
    let mut parent = Peer::start(&host, &format!("{FORKED}\ndb = database('app.db', '&flush_interval=5ms')"));
    parent.run("db.execute('INSERT INTO t VALUES (0)')");
    parent.run(
        r#"
def child():
    for sql in ['SELECT * FROM t', 'INSERT INTO t VALUES (1)', 'PRAGMA wal_checkpoint(TRUNCATE)', 'PRAGMA gcs_flush']:
        try:
            db.execute(sql)
        except sqlite3.Error as error:
            assert sql != 'PRAGMA gcs_flush' or 'opened before fork' in str(error), error
        else:
            assert sql.startswith('PRAGMA wal'), sql
    db.close()"#,
    );
    assert_eq!(parent.run("ended(forked(child))"), "0");
    parent.run("db.execute('INSERT INTO t VALUES (0)')");
    assert_eq!(parent.run("one(db, 'PRAGMA gcs_flush') and one(db, 'SELECT count(*) FROM t')"), "2");
    parent.run("db.close()");
    parent.end();
    assert_rows(&host, 2);
}

#[test]
fn a_child_that_ends_by_sys_exit_or_exec_takes_nothing_from_its_parent() {
    let host = host_with_table();
    let mut parent = Peer::start(&host, &format!("{FORKED}\ndb = database('app.db', '&flush_interval=1h')"));
    parent.run("db.execute('INSERT INTO t VALUES (0)')");
    // The whole interpreter shuts down in the child: every object is destroyed, the handlers at exit run.
    parent.run("pid = os.fork()\nif pid == 0: sys.exit(0)");
    assert_eq!(parent.run("ended(pid)"), "0");
    parent.run("db.execute('INSERT INTO t VALUES (0)')");
    parent.run("pid = os.fork()\nif pid == 0: os.execv('/bin/sh', ['sh', '-c', 'ls -l /proc/self/fd >&2; exit 7'])");
    assert_eq!(parent.run("os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])"), "7");
    parent.run("db.execute('INSERT INTO t VALUES (0)')");
    assert_eq!(parent.run("one(db, 'SELECT count(*) FROM t')"), "3");
    let listed = parent.errors_of_killed();
    assert!(listed.contains("pipe:") && !listed.contains("/app.db"), "{listed}");
    assert_rows(&host, 3);
}

#[test]
fn a_child_that_outlives_its_killed_parent_keeps_none_of_its_locks() {
    let host = host_with_table();
    let mut parent = Peer::start(&host, &format!("{FORKED}\ndb = database('app.db', '&flush_interval=1h')"));
    parent.run("db.execute('INSERT INTO t VALUES (0)')");
    parent.run("reading, writing = os.pipe()\ndef child():\n    os.read(reading, 1)\npid = forked(child)");
    let child: i32 = parent.run("pid").parse().unwrap();
    let in_child = || std::fs::read_dir(format!("/proc/{child}/fd")).unwrap().flatten();
    let ours = |path: std::path::PathBuf| path.to_string_lossy().contains("app.db-gcs/");
    // The fork returns in the parent before the child has done anything.
    wait_until("the child has let go of our files", || {
        !in_child().filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(ours)
    });
    nix::sys::signal::kill(parent.pid(), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("the parent is gone", || {
        std::fs::read_to_string(format!("/proc/{}/stat", parent.pid())).is_ok_and(|s| s.contains(") Z "))
    });
    // Only whoever is alone on this host may say that the cache is whole, and gives the lease back.
    let db = host.open("app.db", "");
    db.execute("INSERT INTO t VALUES (2)", []).unwrap();
    drop(db);
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(host.path("app.db-gcs/state")).unwrap()).unwrap();
    assert_eq!(state["clean"], true, "somebody still counts as a member");
    assert!(std::path::Path::new(&format!("/proc/{child}")).exists(), "the child was there all the time");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_rows(&host, 2);
}

/// The story: SQLite believes that the locks of inherited connections are the child's. Its own connection therefore held no
/// SHARED lock, and the parent's close deleted the WAL that the child went on to write to.
#[test]
fn the_parents_last_close_does_not_take_the_wal_away_from_the_child() {
    let host = host_with_table();
    let mut parent = Peer::start(&host, &format!("{FORKED}\ndb = database('app.db', '&flush_interval=5ms')"));
    parent.run("db.execute('INSERT INTO t VALUES (0)')");
    parent.run(
        r#"
to_child, from_parent = os.pipe()
to_parent, from_child = os.pipe()
def child():
    own = database('app.db')
    own.execute('INSERT INTO t VALUES (1)')
    os.write(from_child, b'.')
    os.read(to_child, 1)
    for _ in range(10): own.execute('INSERT INTO t VALUES (1)')
    own.close()
pid = forked(child)
os.read(to_parent, 1)
db.close()
os.write(from_parent, b'.')"#,
    );
    assert_eq!(parent.run("ended(pid)"), "0");
    parent.end();
    assert_rows(&host, 12);
}

#[test]
fn forks_in_the_middle_of_writes_and_uploads_hang_nobody() {
    let host = host_with_table();
    let setup =
        format!("{FORKED}\nimport threading\ndb = database('app.db', '&flush_interval=0', check_same_thread=False)");
    let mut parent = Peer::start(&host, &setup);
    parent.run(
        r#"
stop = False
written = 0
turn = threading.Lock()
def write():
    global written
    while not stop:
        with turn:
            db.execute('INSERT INTO t VALUES (0)')
            written += 1
        # Without a pause the lock for writing would hardly ever be free, here as with plain SQLite.
        time.sleep(0.0002)
def child():
    own = database('app.db')
    own.execute('INSERT INTO t VALUES (1)')
    other = database('other.db')
    other.execute('CREATE TABLE IF NOT EXISTS o(a)')
    other.execute('INSERT INTO o VALUES (1)')
    other.close()
writer = threading.Thread(target=write)
writer.start()"#,
    );
    // While a thread of the parent is inside of SQLite, a fork inherits its mutexes as locked: so the writer pauses. Our own
    // threads do not.
    for round in 0..25 {
        assert_eq!(parent.run("with turn: pid = forked(child)\nended(pid)"), "0", "round {round}");
    }
    let written: i64 = parent.run("stop = True\nwriter.join()\nwritten").parse().unwrap();
    parent.run("db.close()");
    parent.end();
    assert_rows(&host, written + 25);
    assert_eq!(one::<i64>(&host.open("other.db", ""), "SELECT count(*) FROM o"), 25);
}

#[test]
fn a_child_that_is_forked_within_transactions_waits_for_them_like_any_process() {
    let host = host_with_table();
    let mut parent = Peer::start(&host, &format!("{FORKED}\ndb, reader = database('app.db'), database('app.db')"));
    parent.run("reader.execute('BEGIN'); one(reader, 'SELECT count(*) FROM t')");
    parent.run("db.execute('BEGIN IMMEDIATE'); db.execute('INSERT INTO t VALUES (0)')");
    parent.run(
        r#"
to_child, from_parent = os.pipe()
to_parent, from_child = os.pipe()
def child():
    own = database('app.db', timeout=0)
    assert one(own, 'SELECT count(*) FROM t') == 0
    try:
        own.execute('INSERT INTO t VALUES (1)')
    except sqlite3.OperationalError as error:
        assert 'locked' in str(error), error
    else:
        assert False, 'two writers'
    os.write(from_child, b'.')
    os.read(to_child, 1)
    own.execute('INSERT INTO t VALUES (1)')
    assert one(own, 'SELECT count(*) FROM t') == 2
    own.close()
pid = forked(child)
os.read(to_parent, 1)
db.execute('COMMIT')
os.write(from_parent, b'.')"#,
    );
    assert_eq!(parent.run("ended(pid)"), "0");
    assert_eq!(parent.run("one(reader, 'SELECT count(*) FROM t')"), "0", "its snapshot");
    parent.run("reader.close(); db.close()");
    parent.end();
    assert_rows(&host, 2);
}

#[test]
fn multiprocessing_workers_write_beside_their_parent() {
    let host = host_with_table();
    let mut parent = Peer::start(&host, &format!("{FORKED}\ndb = database('app.db', '&flush_interval=5ms')"));
    parent.run("db.execute('INSERT INTO t VALUES (0)')");
    let sum = parent.run(
        r#"
import multiprocessing
def work(n):
    own = database('app.db')
    for _ in range(n): own.execute('INSERT INTO t VALUES (?)', (n,))
    own.close()
    return n
context = multiprocessing.get_context('fork')
with context.Pool(3) as pool:
    result = sum(pool.map(work, range(1, 13)))
result"#,
    );
    assert_eq!(sum, "78");
    parent.run("db.execute('INSERT INTO t VALUES (0)'); db.close()");
    parent.end();
    assert_rows(&host, 80);
}

/// Where a process reads often, its read mark is kept for a moment, and counted as held. A child must not take that count for its own.
#[test]
fn a_child_of_a_process_that_reads_often_has_read_locks_of_its_own() {
    let host = host_with_table();
    let mut parent =
        Peer::start(&host, &format!("{FORKED}\ndb = database('app.db')\ndb.execute('PRAGMA busy_timeout=0')"));
    parent.run(
        r#"
def round():
    db.execute('INSERT INTO t VALUES (0)')
    db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    ready, go = os.pipe(), os.pipe()
    def child():
        own = database('app.db')
        own.execute('BEGIN')
        before = one(own, 'SELECT count(*) FROM t')
        os.write(ready[1], b'.')
        os.read(go[0], 1)
        assert one(own, 'SELECT count(*) FROM t') == before
        own.close()
    for _ in range(300): one(db, 'SELECT count(*) FROM t')
    pid = forked(child)
    os.read(ready[0], 1)
    db.execute('INSERT INTO t VALUES (0)')
    busy = one(db, 'PRAGMA wal_checkpoint(TRUNCATE)')
    os.write(go[1], b'.')
    end = ended(pid)
    for fd in ready + go: os.close(fd)
    return busy, end"#,
    );
    for _ in 0..8 {
        assert_eq!(parent.run("round()"), "(1, 0)", "the child reads, so the WAL cannot be truncated");
    }
    parent.run("db.close()");
    parent.end();
    assert_rows(&host, 16);
}
