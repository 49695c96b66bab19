//! How many round trips follow one another until a new machine has its first row, told by the time they take through a proxy
//! that holds each request for a long while.

use std::path::Path;
use std::time::{Duration, Instant};

use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::proxy::{Class, Proxy};
use sqlite_gcs_tests::shell::{Program, Scratch};

/// Long beside everything that is done between two requests.
const DELAY: Duration = Duration::from_millis(700);

fn shell(place: (&str, &str), file: &Path, sql: &str) -> Program {
    let uri = format!("file:{}?vfs=gcs", file.display());
    let (bucket, endpoint) = place;
    Program::sqlite3_on(&uri, sql)
        .env("SQLITE_GCS_BUCKET", bucket)
        .env("STORAGE_EMULATOR_HOST", endpoint)
        .limit(Duration::from_secs(300))
}

/// Round trips, one after the other, of an open with an empty disk and one query; and all requests.
fn first_row(emulator: &Emulator, sql: &str, answer: &str) -> (u64, u64) {
    let proxy = Proxy::start(&emulator.host());
    let scratch = Scratch::new();
    let program = |name: &str| shell((&emulator.url(), &proxy.host()), &scratch.join(format!("{name}/app.db")), sql);
    let folder = |name: &str| std::fs::create_dir(scratch.join(name)).expect("a folder");
    folder("near");
    let started = Instant::now();
    assert_eq!(program("near").run().expect_success(), answer);
    let near = started.elapsed();
    proxy.set_delay(DELAY);
    folder("far");
    let before = proxy.requests();
    let started = Instant::now();
    assert_eq!(program("far").run().expect_success(), answer);
    let trips = started.elapsed().saturating_sub(near).as_secs_f64() / DELAY.as_secs_f64();
    assert_eq!(proxy.count(Class::Put), 0);
    (trips.round() as u64, proxy.requests() - before)
}

#[test]
fn the_first_row_is_three_round_trips_away_however_large_the_database_is() {
    for rows in [4_000, 100_000] {
        let emulator = Emulator::start();
        let scratch = Scratch::new();
        let fill = format!(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, n, body);\n\
             INSERT INTO t WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM i WHERE x<{rows}) \
             SELECT x, x * 3, hex(randomblob(100)) FROM i;\n"
        );
        shell((&emulator.url(), &emulator.host()), &scratch.join("app.db"), &fill).run().expect_success();
        let (trips, requests) = first_row(&emulator, "SELECT n FROM t WHERE id = 1234;\n", "3702");
        println!("{rows} rows: {trips} round trips, {requests} requests");
        assert!(trips <= 3, "{trips} round trips, {requests} requests");
    }
}

#[test]
fn the_first_row_is_three_round_trips_away_however_long_the_history_is() {
    let emulator = Emulator::start();
    let scratch = Scratch::new();
    let mut script = String::from("PRAGMA gcs_durability='commit';\nCREATE TABLE t(id INTEGER PRIMARY KEY, n);\n");
    for id in 1..=1200 {
        script += &format!("INSERT INTO t VALUES ({id}, {id} * 3);\n");
    }
    let wrote = shell((&emulator.url(), &emulator.host()), &scratch.join("app.db"), &script).run();
    wrote.expect_success();
    let (trips, requests) = first_row(&emulator, "SELECT n FROM t WHERE id = 777;\n", "2331");
    println!("1,200 deltas: {trips} round trips, {requests} requests");
    assert!(trips <= 3, "{trips} round trips, {requests} requests");
}
