//! An entry of the guestbook: what may be written, and the SQL that stores and lists it.
//!
//! Every statement touches few pages however long the book is: lists walk the primary key from its end, and
//! nothing counts the rows. On a database that is fetched page by page that is the difference
//! between a few kilobytes and all of it.

use rusqlite::{Connection, OptionalExtension, Result, params};

/// Entries on one page.
pub const PAGE: usize = 20;

const NAME_CHARS: usize = 60;
const MESSAGE_CHARS: usize = 1000;
const TOKEN_CHARS: usize = 64;

/// One entry as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Entry {
    /// Its number: later entries have larger ones.
    pub id: i64,
    /// Made with the form; an entry that is submitted twice is stored once.
    pub token: String,
    /// Who wrote it.
    pub name: String,
    /// What was written; lines end in `\n`.
    pub message: String,
    /// When, in milliseconds since 1970.
    pub written_ms: i64,
    /// The instance that stored it.
    pub instance: String,
}

/// An entry that passed the checks and is not stored yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draft {
    token: String,
    name: String,
    message: String,
}

/// What is wrong with a draft, per field, as sentences for the person who wrote it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Problems {
    /// About the name.
    pub name: Option<String>,
    /// About the message.
    pub message: Option<String>,
}

impl Draft {
    /// Checks what a form sent. Ends are trimmed and line ends become `\n` before lengths are counted in characters.
    pub fn check(token: &str, name: &str, message: &str) -> Result<Draft, Problems> {
        let name = name.trim();
        let message = message.replace("\r\n", "\n");
        let message = message.trim();
        let problems = Problems {
            name: trouble(name, NAME_CHARS, "Please give a name.", false),
            message: trouble(message, MESSAGE_CHARS, "Please write something.", true),
        };
        if problems != Problems::default() {
            return Err(problems);
        }
        let plain = |c: char| c.is_ascii_alphanumeric();
        let token = if !token.is_empty() && token.len() <= TOKEN_CHARS && token.chars().all(plain) {
            token.to_owned()
        } else {
            new_token()
        };
        Ok(Draft { token, name: name.to_owned(), message: message.to_owned() })
    }
}

fn trouble(text: &str, limit: usize, when_empty: &str, lines: bool) -> Option<String> {
    let chars = text.chars().count();
    if chars == 0 {
        return Some(when_empty.to_owned());
    }
    if chars > limit {
        return Some(format!("That is {chars} characters; {limit} fit."));
    }
    if text.chars().any(|c| c.is_control() && !(lines && (c == '\n' || c == '\t'))) {
        return Some("That has characters in it that cannot be shown.".to_owned());
    }
    None
}

/// A token for a new form.
pub fn new_token() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

/// Makes the table if it is not there. Runs in the transaction of a write, so that starting up needs no lease.
pub fn prepare(db: &Connection) -> Result<()> {
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS entry (
           id INTEGER PRIMARY KEY,
           token TEXT NOT NULL UNIQUE,
           name TEXT NOT NULL,
           message TEXT NOT NULL,
           written_ms INTEGER NOT NULL,
           instance TEXT NOT NULL
         )",
    )
}

/// Stores a draft, or finds that its token is stored already; returns the entry's number.
pub fn store(db: &Connection, draft: &Draft, instance: &str, now_ms: i64) -> Result<i64> {
    let mut insert = db.prepare_cached(
        "INSERT INTO entry (token, name, message, written_ms, instance) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (token) DO NOTHING RETURNING id",
    )?;
    let new = insert
        .query_row(params![draft.token, draft.name, draft.message, now_ms, instance], |row| row.get(0))
        .optional()?;
    match new {
        Some(id) => Ok(id),
        None => db.query_row("SELECT id FROM entry WHERE token = ?1", [&draft.token], |row| row.get(0)),
    }
}

/// The newest entries with numbers below `before`, newest first, at most `limit`. An empty book is an empty list.
pub fn list(db: &Connection, before: Option<i64>, limit: usize) -> Result<Vec<Entry>> {
    let select = db.prepare_cached(
        "SELECT id, token, name, message, written_ms, instance FROM entry WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
    );
    let mut select = match select {
        Ok(select) => select,
        Err(error) if error.to_string().contains("no such table") => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let rows = select.query_map(params![before.unwrap_or(i64::MAX), limit as i64], |row| {
        Ok(Entry {
            id: row.get(0)?,
            token: row.get(1)?,
            name: row.get(2)?,
            message: row.get(3)?,
            written_ms: row.get(4)?,
            instance: row.get(5)?,
        })
    })?;
    rows.collect()
}

/// The number of the newest entry; 0 if there is none.
pub fn newest(db: &Connection) -> Result<i64> {
    Ok(list(db, None, 1)?.first().map_or(0, |entry| entry.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(name: &str, message: &str) -> Draft {
        Draft::check("", name, message).expect("a good draft")
    }

    #[test]
    fn a_draft_is_trimmed_and_its_line_ends_are_unified() {
        let draft = draft("  Ada ", "\r\none\r\ntwo  ");
        assert_eq!((draft.name.as_str(), draft.message.as_str()), ("Ada", "one\ntwo"));
    }

    #[test]
    fn empty_long_and_unprintable_fields_are_refused_each_with_its_sentence() {
        let both = Draft::check("t", " ", "\r\n").expect_err("empty");
        assert!(both.name.is_some() && both.message.is_some());
        let long = Draft::check("t", &"é".repeat(61), "hello").expect_err("long");
        assert_eq!(long.name.as_deref(), Some("That is 61 characters; 60 fit."));
        assert!(Draft::check("t", &"é".repeat(60), &"ü".repeat(1000)).is_ok());
        assert!(Draft::check("t", "a\u{0}b", "hello").is_err());
        assert!(Draft::check("t", "a\nb", "hello").is_err(), "a name is one line");
    }

    #[test]
    fn an_entry_submitted_twice_is_stored_once() {
        let db = Connection::open_in_memory().expect("a database");
        prepare(&db).expect("a table");
        let draft = draft("Ada", "hello");
        let first = store(&db, &draft, "a", 1).expect("stored");
        assert_eq!(store(&db, &draft, "b", 2).expect("found"), first);
        assert_eq!(list(&db, None, 10).expect("a list").len(), 1);
    }

    #[test]
    fn the_list_goes_back_from_the_newest_page_by_page() {
        let db = Connection::open_in_memory().expect("a database");
        assert_eq!(list(&db, None, 10).expect("no table yet"), Vec::new());
        prepare(&db).expect("a table");
        for n in 0..5 {
            store(&db, &draft("Ada", &n.to_string()), "a", n).expect("stored");
        }
        let ids = |entries: Vec<Entry>| entries.iter().map(|e| e.id).collect::<Vec<_>>();
        assert_eq!(ids(list(&db, None, 2).expect("a list")), [5, 4]);
        assert_eq!(ids(list(&db, Some(4), 2).expect("a list")), [3, 2]);
        assert_eq!(newest(&db).expect("a number"), 5);
    }
}
