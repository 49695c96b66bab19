//! What the environment says, parsed once to final types. No other file reads the environment.
//!
//! | variable | default | what it sets |
//! | --- | --- | --- |
//! | `GUESTBOOK_DB` | `file:/tmp/guestbook/guestbook.db?vfs=gcs&durability=commit` | the database, as a SQLite URI or a path |
//! | `GUESTBOOK_ANSWER` | `commit` | when a write is answered: after `COMMIT`, or after `flush` (`PRAGMA gcs_flush`) |
//! | `GUESTBOOK_WAIT` | `5s` | how long a write waits its turn while another instance holds the lease (`ms` or `s`) |
//! | `GUESTBOOK_READERS` | `4` | read connections |
//! | `GUESTBOOK_LISTEN` | `127.0.0.1`, on Cloud Run `0.0.0.0` | address to listen on |
//! | `PORT` | `8080` | port to listen on; `0` takes a free one |
//! | `GOOGLE_CLOUD_PROJECT` | none | project id, so that log lines are joined to their traces |
//! | `K_REVISION` | `local` | set by Cloud Run; the first part of the instance's name |

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// When a write is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// When `COMMIT` returned. What that promises is the URI's `durability`: with `commit` the entry is in the bucket.
    Commit,
    /// When `PRAGMA gcs_flush` returned after the commit: the entry is in the bucket whatever the URI's durability is.
    Flush,
}

/// Everything that can be set from outside.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// The database: a SQLite URI, or a path.
    pub database: String,
    /// When a write is answered.
    pub answer: Answer,
    /// How long a write waits its turn before it is refused; zero tries once.
    pub wait: Duration,
    /// Number of read connections, at least 1.
    pub readers: u32,
    /// The name of this process in pages and logs: the revision and four random digits.
    pub instance: String,
    /// The project whose traces the log lines belong to.
    pub project: Option<String>,
}

impl Settings {
    /// Reads the variables through `variable`; the error names the variable, its value and what is accepted.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let on_cloud_run = given("K_SERVICE").is_some();
        let host = match given("GUESTBOOK_LISTEN") {
            Some(text) => text.parse().map_err(|_| refusal("GUESTBOOK_LISTEN", &text, "an IP address"))?,
            None if on_cloud_run => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let port = match given("PORT") {
            Some(text) => text.parse().map_err(|_| refusal("PORT", &text, "0 to 65535"))?,
            None => 8080,
        };
        let answer = match given("GUESTBOOK_ANSWER").as_deref() {
            None | Some("commit") => Answer::Commit,
            Some("flush") => Answer::Flush,
            Some(text) => return Err(refusal("GUESTBOOK_ANSWER", text, "commit or flush")),
        };
        let wait = match given("GUESTBOOK_WAIT") {
            Some(text) => duration(&text).ok_or_else(|| refusal("GUESTBOOK_WAIT", &text, "like 500ms or 5s"))?,
            None => Duration::from_secs(5),
        };
        let readers = match given("GUESTBOOK_READERS") {
            Some(text) => text
                .parse()
                .ok()
                .filter(|n| (1..=64).contains(n))
                .ok_or_else(|| refusal("GUESTBOOK_READERS", &text, "1 to 64"))?,
            None => 4,
        };
        let revision = given("K_REVISION").unwrap_or_else(|| "local".to_owned());
        Ok(Settings {
            listen: SocketAddr::new(host, port),
            database: given("GUESTBOOK_DB")
                .unwrap_or_else(|| "file:/tmp/guestbook/guestbook.db?vfs=gcs&durability=commit".to_owned()),
            answer,
            wait,
            readers,
            instance: format!("{revision}-{:04x}", fastrand::u16(..)),
            project: given("GOOGLE_CLOUD_PROJECT"),
        })
    }

    /// The folder that has to exist before the database can be opened; `None` for the current one.
    pub fn folder(&self) -> Option<PathBuf> {
        let name = self.database.strip_prefix("file:").unwrap_or(&self.database);
        let name = name.split(['?', '#']).next().unwrap_or(name);
        // file:///path is file:/path with an empty authority.
        let name = name.strip_prefix("//").unwrap_or(name);
        let folder = std::path::Path::new(name).parent()?;
        (!folder.as_os_str().is_empty()).then(|| folder.to_owned())
    }
}

fn refusal(name: &str, value: &str, accepted: &str) -> String {
    format!("{name}={value} is not understood: give {accepted}")
}

fn duration(text: &str) -> Option<Duration> {
    if let Some(ms) = text.strip_suffix("ms") {
        return ms.parse().ok().map(Duration::from_millis);
    }
    text.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn it_listens_on_this_machine_only_unless_cloud_run_started_it() {
        assert_eq!(read(&[]).expect("defaults").listen.to_string(), "127.0.0.1:8080");
        let there = read(&[("K_SERVICE", "guestbook"), ("PORT", "9090"), ("K_REVISION", "guestbook-00007")]);
        let there = there.expect("settings");
        assert_eq!(there.listen.to_string(), "0.0.0.0:9090");
        assert!(there.instance.starts_with("guestbook-00007-"), "{}", there.instance);
    }

    #[test]
    fn a_bad_value_is_refused_with_its_name_and_what_is_accepted() {
        for (name, value) in
            [("PORT", "http"), ("GUESTBOOK_ANSWER", "later"), ("GUESTBOOK_WAIT", "5"), ("GUESTBOOK_READERS", "0")]
        {
            let error = read(&[(name, value)]).expect_err(name);
            assert!(error.starts_with(&format!("{name}={value} is not understood: give ")), "{error}");
        }
    }

    #[test]
    fn the_folder_of_the_database_is_found_in_a_uri_and_in_a_path() {
        for (database, folder) in [
            ("file:/tmp/a/b.db?vfs=gcs", Some("/tmp/a")),
            ("file:///tmp/a/b.db", Some("/tmp/a")),
            ("/tmp/b.db", Some("/tmp")),
            ("b.db", None),
        ] {
            let settings = read(&[("GUESTBOOK_DB", database)]).expect("settings");
            assert_eq!(settings.folder(), folder.map(PathBuf::from), "{database}");
        }
    }
}
