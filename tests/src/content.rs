//! What a database holds, as one text that can be compared: its schema, and the rows of its table `t`, in order; as an
//! application reads it, as of a point of the past, and as Litestream restores it.

use std::time::Duration;

use rusqlite::Connection;
use serde_json::json;

use crate::bed::Bed;
use crate::litestream::{self, Point};
use crate::machine::{Host, Session};
use crate::shell::Scratch;

/// Asks for that text.
pub const CONTENT: &str = "SELECT (SELECT group_concat(sql, ';') FROM sqlite_master) || \
    coalesce((SELECT group_concat(id || '=' || text, ';') FROM (SELECT * FROM t ORDER BY id)), '')";

/// Through a session's connection `db`.
#[track_caller]
pub fn content(session: &mut Session) -> String {
    content_on(session, "db")
}

/// Through any of its connections.
#[track_caller]
pub fn content_on(session: &mut Session, name: &str) -> String {
    let rows = session.sql_on(name, CONTENT).unwrap_or_else(|error| panic!("the content of {name}: {error}"));
    rows[0][0].as_str().expect("a text").to_owned()
}

/// As of a point of the past, beside whatever the session has open; checked for its integrity.
#[track_caller]
pub fn content_at(session: &mut Session, host: &Host, at: &str) -> String {
    let opened = session.connect_to("past", &format!("{}&at={at}", host.uri()), Duration::from_secs(1));
    opened.unwrap_or_else(|error| panic!("as of {at}: {error}"));
    assert_eq!(session.sql_on("past", "PRAGMA integrity_check").expect("a check"), [["ok"]], "as of {at}");
    let content = content_on(session, "past");
    session.ask(&json!({ "do": "close", "db": "past" })).expect("closed");
    content
}

/// All pages as a connection of the session reads them.
#[track_caller]
pub fn pages(session: &mut Session, name: &str) -> Vec<u8> {
    let scratch = Scratch::new();
    let file = scratch.join("pages");
    session.ask(&json!({ "do": "pages", "db": name, "file": file })).unwrap_or_else(|error| panic!("{name}: {error}"));
    std::fs::read(file).expect("the pages")
}

impl Bed {
    /// The content that Litestream restores as of a point; checked for its integrity.
    #[track_caller]
    pub fn restored(&self, point: Point<'_>) -> String {
        let scratch = Scratch::new();
        let file = scratch.join("restored.db");
        let replica = format!("{}/app.db", self.emulator.url());
        let restored = litestream::restore_into(&replica, Some(&self.emulator.host()), point, &file);
        restored.unwrap_or_else(|error| panic!("{point:?}: {error}"));
        let db = Connection::open(&file).expect("a database");
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
        assert_eq!(check, "ok", "{point:?}");
        db.query_row(CONTENT, [], |row| row.get(0)).expect("its content")
    }

    /// The pages that Litestream restores as of a point.
    #[track_caller]
    pub fn restored_pages(&self, point: Point<'_>) -> Vec<u8> {
        let replica = format!("{}/app.db", self.emulator.url());
        litestream::restore_at(&replica, Some(&self.emulator.host()), point)
            .unwrap_or_else(|error| panic!("{point:?}: {error}"))
    }
}
