//! The guestbook as a process of its own, and a client that speaks as much HTTP as tests and benchmarks need.
//!
//! The process is killed when its handle is dropped. A client keeps its connection and opens it anew when the
//! server has closed it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shell::target_directory;

/// The built guestbook: what `SQLITE_GCS_TEST_GUESTBOOK` names, else what lies in this build's target directory.
///
/// # Panics
/// If it is not there.
pub fn guestbook(profile: &str) -> PathBuf {
    let named = std::env::var_os("SQLITE_GCS_TEST_GUESTBOOK").map(PathBuf::from);
    let path = named.unwrap_or_else(|| target_directory().join(profile).join("guestbook"));
    assert!(path.is_file(), "there is no {}: run `cargo build --package guestbook`", path.display());
    path
}

/// A running app.
#[derive(Debug)]
pub struct Service {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// From the start of the process until it listened.
    pub started_in: Duration,
    lines: Receiver<String>,
}

impl Service {
    /// Starts it on the database `uri` and waits until it listens.
    ///
    /// # Panics
    /// If it does not within 60 s.
    pub fn start(binary: &Path, uri: &str, settings: &[(&str, &str)]) -> Service {
        let begin = Instant::now();
        let mut child = Command::new(binary)
            .env_clear()
            .envs([("GUESTBOOK_DB", uri), ("PORT", "0"), ("GCE_METADATA_HOST", "127.0.0.1:1")])
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the app starts");
        let output = child.stdout.take().expect("a pipe");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // The requests' own lines are many, and nobody waits for them.
                if !line.contains("httpRequest") && send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut service =
            Service { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), started_in: Duration::ZERO, lines };
        let line = service.line("listens on http://");
        let at = line.split("http://").nth(1).and_then(|rest| rest.split('"').next()).expect("an address");
        (service.address, service.started_in) = (at.parse().expect("an address"), begin.elapsed());
        service
    }

    /// The next log line that contains `part`; those before it are passed over.
    fn line(&self, part: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("no log line with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a signal");
    }

    /// Waits for its end, `limit` at most; how it ended.
    ///
    /// # Panics
    /// If it is still running then.
    pub fn ended(&mut self, limit: Duration) -> ExitStatus {
        let mut how = None;
        let ended = crate::poll(limit, || {
            how = self.child.try_wait().expect("a child");
            how.is_some()
        });
        assert!(ended, "still running after {limit:?}");
        how.expect("it ended")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client with one connection.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    limit: Duration,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    /// One that waits for each answer for `limit` at most.
    pub fn new(address: SocketAddr, limit: Duration) -> Client {
        Client { address, limit, connection: None }
    }

    /// Status and body of what `url` answers.
    ///
    /// # Errors
    /// There was no whole answer; whether the server acted is not known.
    pub fn get(&mut self, url: &str) -> io::Result<(u16, String)> {
        self.ask("GET", url, "")
    }

    /// Submits the form; `token` tells two submissions of one entry apart.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn sign(&mut self, token: &str, message: &str) -> io::Result<u16> {
        Ok(self.ask("POST", "/entries", &format!("token={token}&name=Ada&message={message}"))?.0)
    }

    fn ask(&mut self, method: &str, url: &str, body: &str) -> io::Result<(u16, String)> {
        // A kept connection that the server has closed meanwhile is no answer to this request yet.
        if let Some(connection) = self.connection.take()
            && let Ok(answer) = self.exchange(connection, method, url, body)
        {
            return Ok(answer);
        }
        let connection = TcpStream::connect_timeout(&self.address, self.limit)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(self.limit))?;
        self.exchange(BufReader::new(connection), method, url, body)
    }

    fn exchange(
        &mut self,
        mut connection: BufReader<TcpStream>,
        method: &str,
        url: &str,
        body: &str,
    ) -> io::Result<(u16, String)> {
        let head =
            format!("{method} {url} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", self.address, body.len());
        connection.get_mut().write_all((head + body).as_bytes())?;
        let (mut status, mut length, mut kept) = (None, 0, true);
        loop {
            let mut line = String::new();
            if connection.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            match line.split_once(": ") {
                _ if status.is_none() => status = line.split(' ').nth(1).and_then(|code| code.parse().ok()),
                Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
                Some(("connection", value)) => kept = value != "close",
                _ if line.is_empty() => break,
                _ => (),
            }
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body)?;
        if kept {
            self.connection = Some(connection);
        }
        let status = status.ok_or_else(|| io::Error::other("no status"))?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}
