//! The app as a process of its own on a free port of 127.0.0.1, and the little HTTP that the tests need.
//! What was started is killed when its handle is dropped.
#![allow(dead_code)] // each test file uses a part of it

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running app.
pub struct App {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    lines: Mutex<Receiver<String>>,
}

/// An answer, whole.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The value of a header; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        let of = |line: &&str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().find(of).and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
    }
}

impl App {
    /// Starts it on a plain SQLite file in `folder` and waits until it listens.
    pub fn start(folder: &Path, settings: &[(&str, &str)]) -> App {
        App::start_on(&format!("file:{}/guestbook.db", folder.display()), settings)
    }

    /// Starts it on a database in the local-directory bucket `bucket`, with its disk in `folder`.
    pub fn start_in(bucket: &Path, folder: &Path, parameters: &str, settings: &[(&str, &str)]) -> App {
        let database = format!("file:{}/guestbook.db?vfs=gcs&{parameters}", folder.display());
        let url = format!("file://{}", bucket.display());
        let settings: Vec<_> = settings.iter().copied().chain([("SQLITE_GCS_BUCKET", url.as_str())]).collect();
        App::start_on(&database, &settings)
    }

    fn start_on(database: &str, settings: &[(&str, &str)]) -> App {
        let mut child = Command::new(env!("CARGO_BIN_EXE_guestbook"))
            .env_clear()
            .env("GUESTBOOK_DB", database)
            .env("PORT", "0")
            .env("GCE_METADATA_HOST", "127.0.0.1:1")
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the app starts");
        let stdout = child.stdout.take().expect("a pipe");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut app = App { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), lines: Mutex::new(lines) };
        let line = app.line("listens on http://");
        let at = line.split("http://").nth(1).expect("an address").split('"').next().expect("its end");
        app.address = at.parse().expect("an address");
        app
    }

    /// The next log line that contains `part`; those before it are passed over.
    pub fn line(&self, part: &str) -> String {
        loop {
            let line = self.lines.lock().expect("no panic").recv_timeout(Duration::from_secs(20));
            let line = line.unwrap_or_else(|_| panic!("no log line with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Sends a request and reads the whole answer.
    pub fn ask(&self, method: &str, url: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let head = format!(
            "{method} {url} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(body).expect("sent");
        read_answer(stream)
    }

    pub fn get(&self, url: &str) -> Answer {
        self.ask("GET", url, "", b"")
    }

    /// Submits the form.
    pub fn sign(&self, name: &str, message: &str) -> Answer {
        self.ask("POST", "/entries", "", format!("token=&name={name}&message={message}").as_bytes())
    }

    /// Asks for a page until it contains `part`.
    pub fn until(&self, url: &str, part: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.get(url).body.contains(part) {
            assert!(Instant::now() < deadline, "{url} never said {part:?}");
        }
    }

    /// Submits the form until it is stored; only "not yet" may come in between.
    pub fn until_signed(&self, name: &str, message: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            match self.sign(name, message).status {
                303 => return,
                503 => assert!(Instant::now() < deadline, "still refused after {limit:?}"),
                other => panic!("answered {other}"),
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a signal");
    }

    /// Waits for the end of the process, `limit` at most.
    pub fn ended(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Reads an answer to the end of the connection.
pub fn read_answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

impl Drop for App {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
