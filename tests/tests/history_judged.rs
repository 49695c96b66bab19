//! Random histories with Litestream as the judge: after every step, whatever was written, merged, snapshotted, deleted, taken over or
//! killed, it restores the pages that were last durable; and it agrees with `at=` on what the past was.
//!
//! The bucket's clock is put ahead: deletes, which wait for ten minutes, and takeovers, which wait for a dead writer's lease, come at once.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use sqlite_gcs_tests::bed::Bed;
use sqlite_gcs_tests::content::{content_at, pages};
use sqlite_gcs_tests::host::difference;
use sqlite_gcs_tests::litestream::Point;
use sqlite_gcs_tests::machine::{Host, Load, Session};
use sqlite_gcs_tests::proxy::Class;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const AHEAD: Duration = Duration::from_secs(3 * 3600);
const ROWS: u32 = 200;

/// One history.
struct Run {
    bed: Bed,
    rng: fastrand::Rng,
    hosts: [Host; 2],
    /// Which host writes.
    at: usize,
    session: Session,
    /// The pages as of each transaction after which something looked.
    states: BTreeMap<String, Vec<u8>>,
    /// What was done, for the message of a failure.
    steps: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let bed = Bed::new();
        bed.proxy.set_clock_ahead(AHEAD);
        let mut rng = fastrand::Rng::with_seed(seed);
        let retention = ["0", "1h", "24h"][rng.usize(..3)];
        let settings = format!("flush_interval=0&retention={retention}");
        let hosts = ["a", "b"].map(|name| bed.host(name, &settings));
        let session = hosts[0].open();
        let steps = vec![format!("seed {seed}, retention {retention}")];
        let mut run = Run { bed, rng, hosts, at: 0, session, states: BTreeMap::new(), steps };
        run.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT)");
        run.judge();
        run
    }

    fn sql(&mut self, sql: &str) {
        self.session.sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}\n{:?}", self.steps));
    }

    /// A transaction that changes a few rows.
    fn change(&mut self) {
        let rng = &mut self.rng;
        let (id, many, bytes) = (rng.u32(..ROWS), rng.u32(1..20), rng.u32(..400));
        let sql = match rng.u32(..10) {
            0 => format!("DELETE FROM t WHERE id BETWEEN {id} AND {}", id + 3 * many),
            1 => format!("UPDATE t SET text = text || 'y' WHERE id % {many} = 0"),
            _ => format!(
                "INSERT OR REPLACE INTO t WITH RECURSIVE n(i) AS (SELECT {id} UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
                 SELECT i, hex(randomblob({bytes})) FROM n",
                id + many
            ),
        };
        self.sql(&sql);
    }

    fn step(&mut self) {
        let what = self.rng.u32(..12);
        self.steps.push(format!("{what} at {}", self.at));
        match what {
            0..=2 => (0..self.rng.u32(1..6)).for_each(|_| self.change()),
            // As many objects, so that they are merged, and what was merged is deleted.
            3..=5 => {
                for _ in 0..self.rng.u32(30..80) {
                    self.change();
                    self.sql("PRAGMA gcs_flush");
                }
            }
            6 => self.sql("PRAGMA wal_checkpoint(TRUNCATE)"),
            7 => self.sql("VACUUM"),
            8 => self.crash(),
            9 => self.take_over(true),
            _ => self.take_over(false),
        }
    }

    /// kill -9 in the middle of a load; the same host again.
    fn crash(&mut self) {
        self.session.connect("load", Duration::from_secs(5)).unwrap();
        let load = Load { first: i64::from(ROWS) * 10 + self.rng.i64(..1 << 40), seconds: 5.0, ..Load::default() };
        self.session.begin_write(&load);
        let rows = self.rng.usize(1..30);
        self.session.follow_write(rows, Duration::from_secs(10));
        self.go_on(true);
    }

    /// The other host writes from here on. This one ends in good order, or is killed with everything sent.
    fn take_over(&mut self, killed: bool) {
        if killed {
            self.change();
            self.sql("PRAGMA gcs_flush");
        }
        self.at = 1 - self.at;
        let lost = self.rng.bool();
        self.go_on(killed);
        if lost {
            self.hosts[1 - self.at].lose_disk();
        }
    }

    fn go_on(&mut self, killed: bool) {
        // Python's end closes the databases; an idle process in between keeps the field's type.
        let next = self.hosts[self.at].boot();
        let last = std::mem::replace(&mut self.session, next);
        match killed {
            true => last.kill(),
            false => assert_eq!(last.quit(), Some(0), "{:?}", self.steps),
        }
        let opened = self.session.connect("db", Duration::from_secs(20));
        opened.unwrap_or_else(|error| panic!("{error}: {:?}", self.steps));
        self.change();
    }

    /// What is durable now is what Litestream restores.
    #[track_caller]
    fn judge(&mut self) {
        let txid = self.session.sql("PRAGMA gcs_flush").unwrap()[0][0].as_str().unwrap().to_owned();
        let now = pages(&mut self.session, "db");
        // Who reads while objects are deleted may miss one.
        self.bed.rest();
        self.bed.judge.log();
        let restored = self.bed.restored_pages(Point::Newest);
        assert_eq!(difference(&restored, &now), None, "at {txid} after {:?}", self.steps);
        self.states.insert(txid, now);
    }

    /// Litestream and `at=` say the same of some points of the past, and what was seen then.
    fn judge_the_past(&mut self, points: usize) {
        let rows = self
            .session
            .sql("SELECT json_extract(value, '$.txid'), json_extract(value, '$.time') FROM json_each(gcs_history())")
            .unwrap();
        let history: Vec<_> = rows.iter().map(|row| (row[0].as_str().unwrap(), row[1].as_str().unwrap())).collect();
        // The first has no table yet.
        for _ in 0..points.min(history.len().saturating_sub(2)) {
            let n = self.rng.usize(1..history.len() - 1);
            let (txid, time) = history[n];
            let host = self.hosts[self.at].clone();
            let expected = self.bed.restored(Point::TxId(txid));
            let then = content_at(&mut self.session, &host, txid);
            assert!(then == expected, "not what it was as of {txid}, after {:?}", self.steps);
            if let Some(seen) = self.states.get(txid) {
                let restored = self.bed.restored_pages(Point::TxId(txid));
                assert_eq!(difference(&restored, seen), None, "as of {txid} after {:?}", self.steps);
            }
            // A time means the newest state not after it; Litestream's the newest before it. Several may have the same time.
            let time = OffsetDateTime::parse(time, &Rfc3339).unwrap();
            let same =
                history[n..].iter().take_while(|(_, other)| OffsetDateTime::parse(other, &Rfc3339).unwrap() <= time);
            let Some((last, _)) = same.last().filter(|(last, _)| last != &history[history.len() - 1].0) else {
                continue;
            };
            let expected = self.bed.restored(Point::TxId(last));
            let (now, after) = (time.format(&Rfc3339).unwrap(), time + Duration::from_millis(1));
            let then = content_at(&mut self.session, &host, &now);
            assert!(then == expected, "as of {now} it is not at {last}, after {:?}", self.steps);
            let after = after.format(&Rfc3339).unwrap();
            let before = self.bed.restored(Point::Timestamp(&after));
            assert!(before == expected, "litestream before {after} is not at {last}, after {:?}", self.steps);
        }
    }
}

fn random_history(seed: u64, steps: usize) -> u64 {
    let mut run = Run::new(seed);
    for n in 1..=steps {
        run.step();
        run.judge();
        if n.is_multiple_of(5) {
            run.judge_the_past(1);
        }
    }
    run.judge_the_past(3);
    let deletes = run.bed.proxy.count(Class::Delete);
    println!("seed {seed}: {} states, {} objects left, {deletes} deletes", run.states.len(), run.bed.judge.log().len());
    assert_eq!(run.session.quit(), Some(0));
    deletes
}

/// SQLite takes the size of a file without a WAL for that of the database, and writes it into its next commit.
#[test]
fn a_disk_that_comes_back_has_the_size_that_another_host_left() {
    let bed = Bed::new();
    let [a, b] = ["a", "b"].map(|name| bed.host(name, ""));
    let run = |host: &Host, statements: &[&str]| {
        let mut session = host.open();
        statements.iter().for_each(|sql| drop(session.sql(sql).unwrap()));
        session.sql("PRAGMA gcs_flush").unwrap();
        let difference = difference(&bed.restored_pages(Point::Newest), &pages(&mut session, "db"));
        assert_eq!(difference, None, "after {statements:?}");
        assert_eq!(session.quit(), Some(0));
    };
    let fill = "INSERT INTO t WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) SELECT i, hex(randomblob(200)) FROM n";
    run(&a, &["CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT)", fill]);
    run(&b, &["DELETE FROM t", "VACUUM"]);
    run(&a, &["INSERT INTO t VALUES (1, 'small')"]);
    run(&b, &[fill.replace("INSERT", "INSERT OR REPLACE").as_str()]);
    run(&a, &["DELETE FROM t WHERE id = 7"]);
}

#[test]
fn litestream_agrees_with_every_step_of_a_random_history() {
    random_history(1, 12);
}

#[test]
fn litestream_agrees_with_every_step_of_another() {
    random_history(2, 12);
}

#[test]
#[ignore = "minutes"]
fn litestream_agrees_with_every_step_of_many_histories() {
    let begun = std::time::Instant::now();
    let (mut seed, mut deletes) = (fastrand::u64(..1 << 32), 0);
    while begun.elapsed() < Duration::from_secs(300) {
        deletes += random_history(seed, 30);
        seed += 1;
    }
    assert!(deletes > 0, "nothing was ever deleted");
}
