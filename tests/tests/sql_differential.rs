//! The same SQL on this VFS and on plain SQLite: the same answers, the same pages.
//!
//! Every case is a random script of schema changes, transactions, checkpoints, VACUUMs, reopens and lost machines, run
//! side by side with a plain database in WAL mode. The pages are compared with the plain database's, with those of
//! a cold open, and with what `litestream restore` makes of the bucket.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::host::{Host, difference, one, pages};
use sqlite_gcs_tests::litestream;
use sqlite_gcs_tests::shell::Program;

/// What every case begins with.
const TABLES: &str = "CREATE TABLE t0(a INTEGER PRIMARY KEY, b, c); CREATE TABLE t1(a, b, c, PRIMARY KEY (b, a)) WITHOUT ROWID; \
                      CREATE INDEX i0_0 ON t0(b); CREATE VIRTUAL TABLE f0 USING fts5(x)";

/// What is done to both databases.
#[derive(Clone, Debug)]
enum Step {
    /// One statement, with the same answer on both.
    Sql(String),
    /// One statement whose answer is a matter of the machine.
    Quiet(String),
    /// All connections are closed, and opened again.
    Reopen,
    /// The same, with the local files of the managed database gone in between.
    Lose,
}

fn sql() -> impl Strategy<Value = String> {
    let table = 0..3u32;
    let write = prop_oneof![
        (table.clone(), 0..400u32, 1..60u32, 0..3000u32).prop_map(|(t, from, count, len)| format!(
            "INSERT OR REPLACE INTO t{t}(a, b, c) WITH RECURSIVE s(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM s \
             WHERE i < {}) SELECT i, i * 31 % 97, printf('%0*d', {len} % (i + 7), i) FROM s",
            from + count
        )),
        (table.clone(), 0..400u32, 1..60_000u32).prop_map(|(t, a, len)| format!(
            "INSERT OR REPLACE INTO t{t}(a, b, c) VALUES ({a}, {len}, zeroblob({len}))"
        )),
        (table.clone(), 2..9u32, 1..900u32)
            .prop_map(|(t, m, len)| format!("UPDATE t{t} SET c = substr(c || a || c, 1, {len}) WHERE a % {m} = 1")),
        (table.clone(), 1..5u32).prop_map(|(t, m)| format!("DELETE FROM t{t} WHERE a % {m} = 0")),
        (table.clone(), 0..400u32).prop_map(|(t, a)| format!("DELETE FROM t{t} WHERE a = {a} RETURNING length(c)")),
    ];
    let schema = prop_oneof![
        (table.clone(), any::<bool>()).prop_map(|(t, rowid)| if rowid {
            format!("CREATE TABLE t{t}(a INTEGER PRIMARY KEY, b, c)")
        } else {
            format!("CREATE TABLE t{t}(a, b, c, PRIMARY KEY (b, a)) WITHOUT ROWID")
        }),
        (table.clone(), 0..3usize)
            .prop_map(|(t, c)| format!("CREATE INDEX i{t}_{c} ON t{t}({})", ["b", "c", "b, c"][c])),
        (table.clone(), 0..3u32).prop_map(|(t, c)| format!("DROP INDEX i{t}_{c}")),
        table.clone().prop_map(|t| format!("DROP TABLE t{t}")),
        (table.clone(), 0..9u32).prop_map(|(t, n)| format!("ALTER TABLE t{t} ADD COLUMN d{n} DEFAULT {n}")),
        (0..3u32).prop_map(|n| format!("CREATE VIRTUAL TABLE f{n} USING fts5(x)")),
        (0..3u32, 0..400u32).prop_map(|(n, k)| format!(
            "INSERT INTO f{n} WITH RECURSIVE s(i) AS (SELECT {k} UNION ALL SELECT i + 1 FROM s WHERE i < {k} + 20) \
             SELECT 'word' || i || ' and ' || (i % 7) FROM s"
        )),
    ];
    let transaction = prop::sample::select(vec![
        "BEGIN",
        "BEGIN IMMEDIATE",
        "COMMIT",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT a",
        "SAVEPOINT b",
        "RELEASE a",
        "ROLLBACK TO a",
        "ROLLBACK TO b",
        "RELEASE b",
    ])
    .prop_map(str::to_owned);
    let whole = prop::sample::select(vec![
        "VACUUM",
        "PRAGMA auto_vacuum=INCREMENTAL",
        "PRAGMA auto_vacuum=FULL",
        "PRAGMA incremental_vacuum(3)",
        "PRAGMA user_version=7",
        "PRAGMA integrity_check",
        "PRAGMA page_count",
        "PRAGMA freelist_count",
        "ANALYZE",
        "REINDEX",
    ])
    .prop_map(str::to_owned);
    let read = table.prop_map(|t| format!("SELECT a, b, length(c), hex(substr(c, 1, 9)) FROM t{t} ORDER BY b, a"));
    prop_oneof![8 => write, 3 => schema, 4 => transaction, 2 => whole, 2 => read]
}

fn step() -> impl Strategy<Value = Step> {
    let quiet = prop::sample::select(vec![
        "PRAGMA wal_checkpoint(PASSIVE)",
        "PRAGMA wal_checkpoint(FULL)",
        "PRAGMA wal_checkpoint(RESTART)",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        // Transactions spill into the WAL before they are committed.
        "PRAGMA cache_size=5",
        "PRAGMA cache_size=2000",
        "PRAGMA wal_autocheckpoint=8",
        "PRAGMA synchronous=FULL",
    ]);
    prop_oneof![
        20 => sql().prop_map(Step::Sql),
        3 => quiet.prop_map(|sql| Step::Quiet(sql.to_owned())),
        1 => Just(Step::Reopen),
        1 => Just(Step::Lose),
    ]
}

fn answer(db: &Connection, sql: &str) -> Result<Vec<Vec<Value>>, String> {
    let run = || {
        let mut statement = db.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push((0..columns).map(|i| row.get(i)).collect::<rusqlite::Result<Vec<Value>>>()?);
        }
        Ok(all)
    };
    run().map_err(|error: rusqlite::Error| error.to_string())
}

struct Pair<'a> {
    host: &'a Host,
    name: String,
    page_size: u32,
    managed: Connection,
    plain: Connection,
}

impl Pair<'_> {
    fn new(host: &Host, n: u32, page_size: u32) -> Pair<'_> {
        let name = format!("case-{n}.db");
        let managed = host.open(&name, &format!("&page_size={page_size}&flush_interval=5ms"));
        let plain = Connection::open(host.path(format!("plain-{n}"))).expect("a plain database");
        let set = format!("PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL");
        plain.execute_batch(&set).expect("WAL mode");
        Pair { host, name, page_size, managed, plain }
    }

    fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Sql(sql) => prop_assert_eq!(answer(&self.managed, sql), answer(&self.plain, sql), "{}", sql),
            Step::Quiet(sql) => {
                let (managed, plain) = (answer(&self.managed, sql), answer(&self.plain, sql));
                prop_assert_eq!(managed.is_ok(), plain.is_ok(), "{}: {:?} {:?}", sql, managed, plain);
            }
            Step::Reopen => self.reopen(false)?,
            Step::Lose => self.reopen(true)?,
        }
        Ok(())
    }

    fn reopen(&mut self, lost: bool) -> Result<(), TestCaseError> {
        let path = self.plain.path().expect("a path").to_owned();
        let none = || Connection::open_in_memory().expect("a database in memory");
        drop((std::mem::replace(&mut self.managed, none()), std::mem::replace(&mut self.plain, none())));
        if lost {
            self.host.lose(&self.name);
        }
        self.managed = self.host.open(&self.name, &format!("&page_size={}", self.page_size));
        self.plain = Connection::open(path).expect("the plain database");
        self.compare()
    }

    fn compare(&mut self) -> Result<(), TestCaseError> {
        let (managed, plain) = (pages(&mut self.managed), pages(&mut self.plain));
        prop_assert_eq!(difference(&managed, &plain), None, "this VFS and plain SQLite");
        Ok(())
    }

    fn end(mut self) -> Result<(), TestCaseError> {
        // Outside of a transaction this is an error, on both.
        prop_assert_eq!(answer(&self.managed, "ROLLBACK"), answer(&self.plain, "ROLLBACK"));
        self.compare()?;
        let live = pages(&mut self.managed);
        self.reopen(true)?;
        let cold = pages(&mut self.managed);
        prop_assert_eq!(difference(&cold, &live), None, "a cold open and the database before");
        prop_assert_eq!(one::<String>(&self.managed, "PRAGMA integrity_check"), "ok");
        drop(self.managed);
        let restored = self.host.restored(&self.name);
        prop_assert_eq!(difference(&restored, &live), None, "litestream restore and the database before");
        Ok(())
    }
}

fn differ(host: &Host, cases: u32) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_time: 20_000, ..Config::default() };
    let strategy =
        (prop::sample::select(vec![512u32, 1024, 4096, 4096, 16384, 65536]), prop::collection::vec(step(), 1..60));
    let n = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&strategy, |(page_size, steps)| {
            n.set(n.get() + 1);
            let mut pair = Pair::new(host, n.get(), page_size);
            for sql in TABLES.split("; ") {
                pair.run(&Step::Sql(sql.to_owned()))?;
            }
            for step in &steps {
                pair.run(step)?;
            }
            pair.end()
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn sql_answers_as_on_plain_sqlite_with_a_directory_as_the_bucket() {
    differ(&Host::new(), 32);
}

/// Set in the process that runs the test against the emulator: the store reads the address from the environment.
const INNER: &str = "SQLITE_GCS_TEST_INNER";

#[test]
fn sql_answers_as_on_plain_sqlite_with_cloud_storage_as_the_bucket() {
    if let Some(bucket) = std::env::var_os(INNER) {
        return differ(&Host::on_emulator(&bucket.to_string_lossy()), 12);
    }
    let emulator = Emulator::start();
    Program::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "sql_answers_as_on_plain_sqlite_with_cloud_storage_as_the_bucket", "--nocapture"])
        .env(INNER, emulator.url())
        .env("STORAGE_EMULATOR_HOST", emulator.host())
        .env("SQLITE_GCS_TEST_LITESTREAM", litestream::binary())
        .limit(std::time::Duration::from_secs(240))
        .run()
        .expect_success();
}
