//! A scan of an index whose leaves lie scattered over the file: its interior pages say which leaves come next, so that they are on
//! their way before they are read.

use std::time::Duration;

use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::proxy::Proxy;
use sqlite_gcs_tests::shell::{Program, Scratch};

const DELAY: Duration = Duration::from_millis(25);
/// Entries of the index; about 75 on a leaf.
const ROWS: u64 = 60_000;

fn shell(bucket: &str, endpoint: &str, folder: &std::path::Path, sql: &str) -> Program {
    Program::sqlite3_on(&format!("file:{}?vfs=gcs", folder.join("app.db").display()), sql)
        .env("SQLITE_GCS_BUCKET", bucket)
        .env("STORAGE_EMULATOR_HOST", endpoint)
}

/// The words of the last line that a query prints.
fn numbers(emulator: &Emulator, endpoint: &str, sql: &str) -> Vec<u64> {
    let scratch = Scratch::new();
    let done = shell(&emulator.url(), endpoint, scratch.path(), sql).run();
    let words = done.expect_success().lines().last().unwrap_or_default().split('|');
    words.map(|word| word.parse().unwrap_or_else(|_| panic!("{done}"))).collect()
}

const COST: &str = "SELECT json_extract(gcs_status(), '$.round_trips'), json_extract(gcs_status(), '$.requests.get'), \
                    json_extract(gcs_status(), '$.bytes.in');\n";

#[test]
fn a_scan_of_scattered_leaves_takes_few_round_trips_and_points_fetch_little() {
    let emulator = Emulator::start();
    let scratch = Scratch::new();
    let fill = format!(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;\n\
         CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, pad TEXT); CREATE INDEX of_k ON t(k);\n\
         INSERT INTO t WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < {ROWS}) \
         SELECT x, printf('%016x%.30c', x * 7919 % {ROWS} * 68719476, 'k'), printf('%.100c', 'p') FROM i;\n"
    );
    let file = scratch.join("app.db");
    Program::sqlite3_on(&file.display().to_string(), &fill).run().expect_success();
    shell(&emulator.url(), &emulator.host(), scratch.path(), "PRAGMA gcs_flush;\n").run().expect_success();

    let proxy = Proxy::start(&emulator.host());
    proxy.set_delay(DELAY);
    // An eighth of the index: some hundred leaves.
    let eighth = ROWS / 8;
    let range = |order: &str| {
        format!(
            "SELECT count(*) FROM (SELECT k FROM t INDEXED BY of_k WHERE k >= printf('%016x', {0} * 68719476) AND \
             k < printf('%016x', {0} * 2 * 68719476) ORDER BY k {order});\n{COST}",
            eighth
        )
    };
    for order in ["ASC", "DESC"] {
        let cost = numbers(&emulator, &proxy.host(), &range(order));
        println!("{order}: {} round trips, {} GETs, {} bytes", cost[0], cost[1], cost[2]);
        assert!(cost[0] <= 30, "{order}: {cost:?}");
    }

    // A hundred points at random: what each fetches on average.
    let points: String = (0..100).map(|n| format!("SELECT pad FROM t WHERE id = {};\n", n * 7919 % ROWS + 1)).collect();
    let before = numbers(&emulator, &emulator.host(), &format!("SELECT count(*) FROM sqlite_schema;\n{COST}"));
    let after = numbers(&emulator, &emulator.host(), &format!("{points}{COST}"));
    let each = (after[2] - before[2]) / 100;
    println!("{each} bytes per point");
    assert!(each <= 64 * 1024, "{each} bytes per point");
}
