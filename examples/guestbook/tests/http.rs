//! The app over HTTP, as a process of its own, on a plain SQLite file. Another connection that holds SQLite's write lock stands
//! for another instance that holds the lease: the app sees the same SQLITE_BUSY.
#![allow(clippy::unwrap_used, missing_docs)] // tests

mod app;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use app::{App, read_answer};
use nix::sys::signal::Signal;
use serde_json::Value;

fn start(settings: &[(&str, &str)]) -> (tempfile::TempDir, App) {
    let folder = tempfile::tempdir().unwrap();
    let app = App::start(folder.path(), settings);
    (folder, app)
}

/// Another writer: it holds the right to write until it is dropped.
fn other_writer(folder: &tempfile::TempDir) -> rusqlite::Connection {
    let db = rusqlite::Connection::open(folder.path().join("guestbook.db")).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    db
}

fn stored(app: &App) -> Vec<String> {
    let json: Value = serde_json::from_str(&app.get("/entries.json?limit=1000").body).unwrap();
    let entries = json["entries"].as_array().unwrap();
    entries.iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_entry_is_stored_shown_escaped_and_there_after_a_restart() {
    let (folder, mut app) = start(&[]);
    assert!(app.get("/").body.contains("Nobody has written here yet."));
    let answer = app.sign("Ada", "%3Cb%3Ehello%3C%2Fb%3E");
    assert_eq!(answer.status, 303);
    assert!(answer.header("location").starts_with("/?saved="), "{}", answer.head);
    let page = app.get(answer.header("location").split('#').next().unwrap());
    assert!(page.body.contains("&lt;b&gt;hello&lt;/b&gt;") && !page.body.contains("<b>hello"));
    assert!(page.body.contains("Your entry was stored in"));
    app.signal(Signal::SIGTERM);
    assert!(app.ended(Duration::from_secs(8)).success());
    let again = App::start(folder.path(), &[]);
    assert_eq!(stored(&again), ["<b>hello</b>"]);
}

#[test]
fn a_bad_form_is_sent_back_with_what_was_written() {
    let (_folder, app) = start(&[]);
    let empty = app.sign("", "I+wrote+this");
    assert_eq!(empty.status, 422);
    assert!(empty.body.contains("Please give a name.") && empty.body.contains(">I wrote this</textarea>"));
    let not_text = app.ask("POST", "/entries", "", b"name=Ada&message=%ff");
    assert_eq!(not_text.status, 400);
    let huge = app.sign("Ada", &"x".repeat(40_000));
    assert_eq!(huge.status, 413);
    assert_eq!(stored(&app), Vec::<String>::new());
}

#[test]
fn a_form_of_another_site_stores_nothing() {
    let (_folder, app) = start(&[]);
    for header in ["Sec-Fetch-Site: cross-site\r\n", "Origin: https://evil.example\r\n"] {
        assert_eq!(app.ask("POST", "/entries", header, b"name=Ada&message=hi").status, 403, "{header}");
    }
    assert_eq!(stored(&app), Vec::<String>::new());
    let own = format!("Origin: http://{}\r\n", app.address);
    assert_eq!(app.ask("POST", "/entries", &own, b"name=Ada&message=hi").status, 303);
}

#[test]
fn the_same_form_sent_twice_is_stored_once() {
    let (_folder, app) = start(&[]);
    for _ in 0..2 {
        assert_eq!(app.ask("POST", "/entries", "", b"token=abc123&name=Ada&message=once").status, 303);
    }
    assert_eq!(stored(&app), ["once"]);
}

#[test]
fn a_write_waits_its_turn_while_reads_go_on() {
    let (folder, app) = start(&[("GUESTBOOK_WAIT", "20s")]);
    assert_eq!(app.sign("Ada", "before").status, 303);
    let other = other_writer(&folder);
    let body = b"name=Ada&message=in+turn";
    let mut waiting = TcpStream::connect(app.address).unwrap();
    write!(waiting, "POST /entries HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len())
        .unwrap();
    waiting.write_all(body).unwrap();
    app.until("/", "Waiting for the lease");
    assert_eq!(stored(&app), ["before"]);
    drop(other);
    assert_eq!(read_answer(waiting).status, 303);
    assert_eq!(stored(&app), ["in turn", "before"]);
}

#[test]
fn a_write_that_waited_too_long_is_503_with_retry_after_and_stores_nothing() {
    let (folder, app) = start(&[("GUESTBOOK_WAIT", "300ms")]);
    assert_eq!(app.sign("Ada", "before").status, 303);
    let other = other_writer(&folder);
    let started = Instant::now();
    let refused = app.sign("Ada", "too+late");
    assert!(started.elapsed() >= Duration::from_millis(300), "refused after {:?}", started.elapsed());
    assert_eq!((refused.status, refused.header("retry-after")), (503, "2"));
    assert!(refused.body.contains(">too late</textarea>"), "the form keeps what was written");
    drop(other);
    assert_eq!(stored(&app), ["before"]);
    assert_eq!(app.sign("Ada", "after").status, 303);
}

#[test]
fn many_at_once_are_all_stored_and_share_commits() {
    let (folder, app) = start(&[("GUESTBOOK_WAIT", "20s")]);
    assert_eq!(app.sign("Ada", "first").status, 303);
    let other = other_writer(&folder);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..40)
            .map(|n| {
                scope.spawn({
                    let app = &app;
                    move || app.sign("Ada", &format!("m{n}")).status
                })
            })
            .collect();
        app.until("/healthz", "waiting");
        drop(other);
        for writer in writers {
            assert_eq!(writer.join().unwrap(), 303);
        }
    });
    assert_eq!(stored(&app).len(), 41);
    let metrics = app.get("/metrics").body;
    let commits = metrics.lines().find_map(|line| line.strip_prefix("guestbook_commit_seconds_count ")).unwrap();
    assert!(commits.parse::<u32>().unwrap() < 30, "{commits} commits for 41 entries");
    assert!(metrics.contains("guestbook_entries_total 41"));
}

#[test]
fn a_flush_that_a_plain_file_cannot_give_is_never_claimed() {
    let (_folder, app) = start(&[("GUESTBOOK_ANSWER", "flush")]);
    let answer = app.sign("Ada", "hello");
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("It is not sure that the entry was stored."));
}

#[test]
fn sigterm_answers_what_is_open_and_ends_in_time() {
    let (folder, mut app) = start(&[("GUESTBOOK_WAIT", "20s")]);
    assert_eq!(app.sign("Ada", "before").status, 303);
    let other = other_writer(&folder);
    let body = b"name=Ada&message=late";
    let mut waiting = TcpStream::connect(app.address).unwrap();
    write!(waiting, "POST /entries HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    waiting.write_all(body).unwrap();
    app.until("/healthz", "waiting");
    // A client that never finishes its request must not hold the end back.
    let mut slow = TcpStream::connect(app.address).unwrap();
    slow.write_all(b"POST /entries HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nname=").unwrap();
    app.get("/livez");
    let started = Instant::now();
    app.signal(Signal::SIGTERM);
    let refused = read_answer(waiting);
    assert_eq!((refused.status, refused.header("retry-after")), (503, "2"));
    assert!(app.ended(Duration::from_secs(8)).success());
    assert!(started.elapsed() < Duration::from_secs(8));
    app.line("has closed the database");
    drop(other);
}

#[test]
fn log_lines_are_json_with_severity_request_and_trace() {
    let (_folder, app) = start(&[("GOOGLE_CLOUD_PROJECT", "mine"), ("GUESTBOOK_WAIT", "0s")]);
    let trace = "X-Cloud-Trace-Context: 105445aa7843bc8bf206b12000100000/1;o=1\r\nX-Forwarded-For: 192.0.2.7\r\n";
    assert_eq!(app.ask("GET", "/nothing", trace, b"").status, 404);
    let line: Value = serde_json::from_str(&app.line("/nothing")).unwrap();
    assert_eq!(line["severity"], "INFO");
    assert_eq!(line["logging.googleapis.com/trace"], "projects/mine/traces/105445aa7843bc8bf206b12000100000");
    let request = &line["httpRequest"];
    assert_eq!((&request["requestMethod"], &request["status"]), (&"GET".into(), &404.into()));
    assert_eq!(request["remoteIp"], "192.0.2.7");
    assert!(request["latency"].as_str().unwrap().ends_with('s'));
}

#[test]
fn the_script_gets_the_list_only_when_there_is_something_new() {
    let (_folder, app) = start(&[]);
    app.sign("Ada", "hello");
    let live = |newest: &str| serde_json::from_str::<Value>(&app.get(&format!("/live?newest={newest}")).body).unwrap();
    let first = live("0");
    assert_eq!(first["newest"], 1);
    assert!(first["list"].as_str().unwrap().contains("hello"));
    assert_eq!(live("1")["list"], Value::Null);
    assert!(live("1")["panel"].as_str().unwrap().contains("Requests served"));
}

#[test]
fn every_answer_has_the_security_headers_and_pages_work_without_script() {
    let (_folder, app) = start(&[]);
    let page = app.get("/");
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("cache-control"), "no-store");
    assert!(!page.body.contains("<noscript") && page.body.contains("action=\"/entries\" method=\"post\""));
    let style = page.body.split("href=\"/style.css").nth(1).unwrap().split('"').next().unwrap();
    assert!(app.get(&format!("/style.css{style}")).header("cache-control").contains("immutable"));
    assert_eq!(app.get("/healthz").status, 200);
    assert_eq!(app.get("/livez").status, 200);
}

#[test]
fn a_wrong_setting_ends_the_start_with_a_sentence() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_guestbook"))
        .env_clear()
        .env("GUESTBOOK_DB", "file:/tmp/nowhere.db?vfs=no-such-vfs")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\"severity\":\"ERROR\"") && text.contains("no such vfs: no-such-vfs"), "{text}");
}
