//! How many round trips follow one another until a new machine has its first row: open and point query by rowid together, as the
//! store's own counter has it, through a proxy that holds each request long enough that those at a time overlap. And how much a
//! query by rowid at random brings along.

use std::path::Path;
use std::time::Duration;

use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::proxy::{Class, Proxy};
use sqlite_gcs_tests::shell::{Program, Scratch};

/// Long beside everything that is done between two requests.
const DELAY: Duration = Duration::from_millis(900);
/// What the promise is.
const MOST: u64 = 3;
/// Bytes of a row of the table `t`, about.
const ROW_BYTES: u64 = 220;

fn shell(place: (&str, &str), file: &Path, sql: &str) -> Program {
    let uri = format!("file:{}?vfs=gcs", file.display());
    let (bucket, endpoint) = place;
    Program::sqlite3_on(&uri, sql)
        .env("SQLITE_GCS_BUCKET", bucket)
        .env("STORAGE_EMULATOR_HOST", endpoint)
        .limit(Duration::from_secs(900))
}

/// Round trips of an open with an empty disk and one query, and all requests that were made until then.
fn first_row(emulator: &Emulator, id: u64) -> (u64, u64) {
    let proxy = Proxy::start(&emulator.host());
    let scratch = Scratch::new();
    proxy.set_delay(DELAY);
    let sql = format!(
        "SELECT n FROM t WHERE id = {id};\n\
         SELECT json_extract(gcs_status(), '$.round_trips') || ' ' || json_extract(gcs_status(), '$.requests.get');\n"
    );
    let done = shell((&emulator.url(), &proxy.host()), &scratch.join("app.db"), &sql).run();
    let mut lines = done.expect_success().lines();
    assert_eq!(lines.next(), Some((id * 3).to_string().as_str()));
    let counts = lines.next().expect("a second row").split(' ').map(|n| n.parse().expect("a number"));
    assert_eq!(proxy.count(Class::Put), 0);
    match counts.collect::<Vec<u64>>()[..] {
        [round_trips, gets] => (round_trips, gets),
        ref other => panic!("{other:?}"),
    }
}

/// What an open with an empty disk and a hundred queries by rowid at random take on average: bytes from the bucket, requests.
fn random_points(emulator: &Emulator, rows: u64) -> (u64, u64) {
    const POINTS: u64 = 100;
    let scratch = Scratch::new();
    let mut random = fastrand::Rng::with_seed(rows);
    let mut sql = String::new();
    for _ in 0..POINTS {
        sql += &format!("SELECT n / 3 - id FROM t WHERE id = {};\n", random.u64(1..=rows));
    }
    sql += "SELECT json_extract(gcs_status(), '$.bytes.in') || ' ' || json_extract(gcs_status(), '$.requests.get');\n";
    let done = shell((&emulator.url(), &emulator.host()), &scratch.join("app.db"), &sql).run();
    let (points, counts) = done.expect_success().rsplit_once('\n').expect("lines");
    assert_eq!(points.lines().filter(|line| *line == "0").count() as u64, POINTS);
    let (bytes, gets) = counts.split_once(' ').expect("two numbers");
    let per_point = |count: &str| count.parse::<u64>().expect("a number").div_ceil(POINTS);
    (per_point(bytes), per_point(gets))
}

#[track_caller]
fn assert_few(what: &str, (round_trips, gets): (u64, u64)) {
    println!("{what}: {round_trips} round trips, {gets} GETs");
    assert!(round_trips <= MOST, "{what}: {round_trips} round trips, {gets} GETs");
    // The counter counts at all: a listing with the hot index, then the row.
    assert!(round_trips >= 2, "{what}: {round_trips} round trips");
}

/// A plain database of about this size, adopted into the bucket: one delta.
fn adopted(emulator: &Emulator, folder: &Path, mebibytes: u64) -> u64 {
    let rows = mebibytes * (1 << 20) / ROW_BYTES;
    let file = folder.join("app.db");
    let fill = format!(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;\n\
         CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, body TEXT);\n\
         INSERT INTO t WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < {rows}) \
         SELECT x, x * 3, printf('%020d%s%.150c', x * 7919, x, 'x') FROM i;\n"
    );
    Program::sqlite3_on(&file.display().to_string(), &fill).limit(Duration::from_secs(300)).run().expect_success();
    let adopt = "PRAGMA gcs_flush;\n";
    let adopted = shell((&emulator.url(), &emulator.host()), &file, adopt).run();
    assert_ne!(adopted.expect_success(), "0000000000000000", "a flush waits for the adopted file");
    rows
}

/// So many commits, each a delta of its own, by a process that then kills itself.
fn commits(emulator: &Emulator, folder: &Path, from: u64, count: u64) {
    // On a busy machine the lease may be late.
    let mut script = String::from(".timeout 60000\nPRAGMA gcs_durability='commit';\n");
    for id in from..from + count {
        script += &format!("INSERT INTO t VALUES ({id}, {id} * 3, 'new');\n");
    }
    // Written at once, since it does not live to write it later.
    script += ".system echo all; kill -9 $PPID\n";
    let ended = shell((&emulator.url(), &emulator.host()), &folder.join("app.db"), &script).run();
    assert!(!ended.succeeded() && ended.stdout.trim_end().ends_with("all"), "it was killed after all of them: {ended}");
}

fn of_size(mebibytes: u64, deltas: u64) {
    let emulator = if mebibytes > 100 { Emulator::start_on_disk() } else { Emulator::start() };
    let scratch = Scratch::new();
    let rows = adopted(&emulator, scratch.path(), mebibytes);
    for id in [1, rows / 2] {
        assert_few(&format!("{mebibytes} MB, 1 delta, row {id}"), first_row(&emulator, id));
    }
    if mebibytes >= 100 {
        let (bytes, gets) = random_points(&emulator, rows);
        println!("{mebibytes} MB, a random point: {bytes} bytes, {gets} GETs");
        assert!(bytes <= 64 << 10, "{bytes} bytes for a random point");
        // Each is a page of its own that has to come.
        assert!(bytes >= 1 << 10, "{bytes} bytes for a random point");
        assert!(gets <= 2, "{gets} GETs for a random point");
    }
    commits(&emulator, scratch.path(), rows + 1, deltas);
    for id in [1, rows / 2, rows + deltas] {
        assert_few(&format!("{mebibytes} MB, {deltas} deltas, killed, row {id}"), first_row(&emulator, id));
    }
}

#[test]
fn the_first_row_of_1_mb_is_three_round_trips_away_also_after_a_listing_of_two_pages_and_a_kill() {
    of_size(1, 1_050);
}

#[test]
#[ignore = "minutes"]
fn the_first_row_of_1_mb_is_three_round_trips_away_also_after_5000_deltas_and_a_kill() {
    of_size(1, 5_000);
}

#[test]
fn the_first_row_of_100_mb_is_three_round_trips_away() {
    of_size(100, 70);
}

#[test]
#[ignore = "minutes"]
fn the_first_row_of_100_mb_is_three_round_trips_away_after_5000_deltas_and_a_kill() {
    of_size(100, 5_000);
}

#[test]
#[ignore = "minutes, and 3 GB of disk"]
fn the_first_row_of_1_gb_is_three_round_trips_away_also_after_5000_deltas_and_a_kill() {
    of_size(1024, 5_000);
}
