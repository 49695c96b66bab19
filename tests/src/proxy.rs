//! An HTTP proxy in front of the emulator that delays, counts and breaks requests.
//!
//! It streams bodies both ways, keeps connections open and serves any number at once on a thread of its own, so that
//! tests and benchmarks with or without a runtime can use it. Faults are picked per request by rules.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// A kind of request, told by method and path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Reads bytes of an object.
    Get,
    /// Uploads an object.
    Put,
    /// Lists objects.
    List,
    /// Deletes an object.
    Delete,
    /// Asks what the bucket says of an object.
    Stat,
    /// Anything else.
    Other,
}

/// What a rule is asked about.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which request of all this is, from 1.
    pub n: u64,
    /// Which request of its class this is, from 1.
    pub n_of_class: u64,
    /// Its class.
    pub class: Class,
    /// `GET`, `POST`, `DELETE`.
    pub method: String,
    /// Path and query, as sent (percent-encoded).
    pub path: String,
}

/// What happens to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The connection ends; the request reaches nobody.
    DropBefore,
    /// The request is done; the connection ends without an answer.
    DropAfter,
    /// This status is the answer; the request reaches nobody.
    Status(u16),
    /// The request is done; this status is the answer all the same.
    StatusAfter(u16),
    /// The connection ends after so many bytes of the answer's body.
    CutBody(u64),
    /// The request goes on without its `ifGenerationMatch`, as to a service that takes conditions and ignores them.
    Unconditional,
    /// The request is held until [`Proxy::release`], then goes on, whether or not the client still waits: a late upload.
    Stall,
    /// The request is done; its answer is held until [`Proxy::release`].
    StallAfter,
}

type Rule = Box<dyn Fn(&Request) -> Option<Fault> + Send>;

struct Shared {
    upstream: String,
    rules: Mutex<Vec<Rule>>,
    counts: Mutex<BTreeMap<Class, u64>>,
    delay_micros: AtomicU64,
    /// Bytes per second in each direction; 0 = unlimited.
    bandwidth: AtomicU64,
    /// How far the `Date` of answers is ahead of this machine's clock, in seconds.
    clock_ahead: AtomicU64,
    bytes_up: Line,
    bytes_down: Line,
    released: watch::Sender<u64>,
    /// Requests that were held so far.
    stalled: AtomicU64,
    /// Requests that the upstream answered so far.
    answers: AtomicU64,
}

/// One direction of the line that all connections share.
#[derive(Default)]
struct Line {
    bytes: AtomicU64,
    free_at: Mutex<Option<Instant>>,
}

impl Line {
    /// Waits until so many bytes have passed at this rate.
    async fn pass(&self, bytes: usize, rate: u64) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let until = {
            let mut free_at = self.free_at.lock().expect("no panic while locked");
            let begin = free_at.unwrap_or_else(Instant::now).max(Instant::now());
            let end = begin + Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate);
            *free_at = Some(end);
            end
        };
        sleep_until(until).await;
    }
}

/// A running proxy; it stops when this is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    stop: Option<watch::Sender<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one on a free port of 127.0.0.1 in front of `upstream` (host and port).
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn start(upstream: &str) -> Proxy {
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            rules: Mutex::default(),
            counts: Mutex::default(),
            delay_micros: AtomicU64::new(0),
            bandwidth: AtomicU64::new(0),
            clock_ahead: AtomicU64::new(0),
            bytes_up: Line::default(),
            bytes_down: Line::default(),
            released: watch::Sender::new(0),
            stalled: AtomicU64::new(0),
            answers: AtomicU64::new(0),
        });
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("an address").port();
        let (stop, stopped) = watch::channel(false);
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serve(listener, serving, stopped));
        });
        Proxy { shared, port, stop: Some(stop), thread: Some(thread) }
    }

    /// Host and port, as `STORAGE_EMULATOR_HOST` takes it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its base URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.host())
    }

    /// Holds every request for this long before it goes on: the round trip of a distant bucket.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.delay_micros.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// Lets at most so many bytes of bodies pass per second, up and down each, of all connections together. `None`:
    /// as fast as it goes.
    pub fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.shared.bandwidth.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    }

    /// Puts the `Date` of answers ahead of this machine's clock: what is in the bucket looks that much older.
    pub fn set_clock_ahead(&self, ahead: Duration) {
        self.shared.clock_ahead.store(ahead.as_secs(), Ordering::Relaxed);
    }

    /// Adds a rule. The first rule, in the order they were added, that names a fault decides.
    pub fn rule(&self, rule: impl Fn(&Request) -> Option<Fault> + Send + 'static) {
        self.shared.rules.lock().expect("no panic while locked").push(Box::new(rule));
    }

    /// Adds a rule: these requests of a class, counted from now on from 1, meet the fault.
    pub fn fail(&self, class: Class, which: RangeInclusive<u64>, fault: Fault) {
        let before = self.count(class);
        self.rule(move |request| {
            let hit = request.class == class && which.contains(&(request.n_of_class.saturating_sub(before)));
            hit.then(|| fault.clone())
        });
    }

    /// Removes all rules.
    pub fn heal(&self) {
        self.shared.rules.lock().expect("no panic while locked").clear();
    }

    /// Lets every held request go on.
    pub fn release(&self) {
        self.shared.released.send_modify(|n| *n += 1);
    }

    /// Waits until so many requests have been held in all, 10 s at most; whether that came true.
    pub fn wait_for_stalled(&self, requests: u64) -> bool {
        reaches(&self.shared.stalled, requests)
    }

    /// Number of requests that the upstream has answered so far, whatever became of the answers.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::SeqCst)
    }

    /// Waits until the upstream has answered so many requests in all, 10 s at most; whether that came true.
    pub fn wait_for_answers(&self, requests: u64) -> bool {
        reaches(&self.shared.answers, requests)
    }

    /// Number of requests of a class so far.
    pub fn count(&self, class: Class) -> u64 {
        self.shared.counts.lock().expect("no panic while locked").get(&class).copied().unwrap_or(0)
    }

    /// Number of all requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.counts.lock().expect("no panic while locked").values().sum()
    }

    /// Bytes of bodies that passed so far: to the bucket, from the bucket.
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.bytes_up.bytes.load(Ordering::Relaxed), self.shared.bytes_down.bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

/// Waits for a count, 10 s at most.
fn reaches(count: &AtomicU64, wanted: u64) -> bool {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while count.load(Ordering::SeqCst) < wanted {
        if std::time::Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    // A connection that breaks is what this is for.
                    tokio::spawn(connection(client, Arc::clone(&shared)));
                }
            }
            _ = stopped.changed() => return,
        }
    }
}

/// Where a message's body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Body {
    Length(u64),
    Chunked,
    UntilClose,
}

/// The lines of a message before its body.
struct Head {
    first: String,
    fields: Vec<String>,
}

impl Head {
    /// Reads one; `None` at the end of the connection.
    async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Head>> {
        let (mut first, mut fields) = (String::new(), Vec::new());
        if from.read_line(&mut first).await? == 0 {
            return Ok(None);
        }
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line == "\r\n" {
                return Ok(Some(Head { first, fields }));
            }
            fields.push(line);
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    fn body(&self, otherwise: Body) -> Body {
        if self.field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            return Body::Chunked;
        }
        self.field("content-length").and_then(|value| value.parse().ok()).map_or(otherwise, Body::Length)
    }

    fn text(&self) -> String {
        format!("{}{}\r\n", self.first, self.fields.concat())
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = BufReader::with_capacity(64 * 1024, client);
    let mut upstream: Option<BufReader<TcpStream>> = None;
    while let Some(mut head) = Head::read(&mut client).await? {
        let request = shared.count(&head);
        let fault = {
            let rules = shared.rules.lock().expect("no panic while locked");
            rules.iter().find_map(|rule| rule(&request))
        };
        if fault == Some(Fault::DropBefore) {
            return Ok(());
        }
        let delay = Duration::from_micros(shared.delay_micros.load(Ordering::Relaxed));
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let body = head.body(Body::Length(0));
        if let Some(Fault::Status(status)) = fault {
            shared.copy(&mut client, &mut tokio::io::sink(), body, &shared.bytes_up, u64::MAX).await?;
            client.get_mut().write_all(canned(status).as_bytes()).await?;
            continue;
        }
        if fault == Some(Fault::Unconditional)
            && let Some((before, rest)) = head.first.split_once("&ifGenerationMatch=")
        {
            let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            head.first = format!("{before}{after}");
        }
        // The emulator answers only to its own name.
        for line in &mut head.fields {
            if line.len() > 5 && line[..5].eq_ignore_ascii_case("host:") {
                *line = format!("Host: {}\r\n", shared.upstream);
            }
        }
        let mut held = Vec::new();
        if fault == Some(Fault::Stall) {
            shared.copy(&mut client, &mut held, body, &shared.bytes_up, u64::MAX).await?;
            shared.hold().await;
        }
        let server = match upstream.take().filter(still_open) {
            Some(open) => upstream.insert(open),
            None => {
                let open = TcpStream::connect(&shared.upstream).await?;
                open.set_nodelay(true)?;
                upstream.insert(BufReader::with_capacity(64 * 1024, open))
            }
        };
        server.get_mut().write_all(head.text().as_bytes()).await?;
        if fault == Some(Fault::Stall) {
            server.get_mut().write_all(&held).await?;
        } else {
            shared.copy(&mut client, server.get_mut(), body, &shared.bytes_up, u64::MAX).await?;
        }
        let mut answer = Head::read(server).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        shared.put_date_ahead(&mut answer);
        shared.answers.fetch_add(1, Ordering::SeqCst);
        let bodiless = head.first.starts_with("HEAD ") || [" 204 ", " 304 "].iter().any(|s| answer.first.contains(s));
        let body = if bodiless { Body::Length(0) } else { answer.body(Body::UntilClose) };
        match fault {
            Some(Fault::DropAfter) => return Ok(()),
            Some(Fault::StatusAfter(status)) => {
                shared.copy(server, &mut tokio::io::sink(), body, &shared.bytes_down, u64::MAX).await?;
                client.get_mut().write_all(canned(status).as_bytes()).await?;
                continue;
            }
            Some(Fault::StallAfter) => shared.hold().await,
            _ => {}
        }
        client.get_mut().write_all(answer.text().as_bytes()).await?;
        let limit = if let Some(Fault::CutBody(bytes)) = fault { bytes } else { u64::MAX };
        shared.copy(server, client.get_mut(), body, &shared.bytes_down, limit).await?;
        let last = [&head, &answer].iter().any(|head| head.field("connection").is_some_and(|v| v == "close"));
        if last || body == Body::UntilClose || limit != u64::MAX {
            return Ok(());
        }
    }
    Ok(())
}

fn canned(status: u16) -> String {
    let body = format!(r#"{{"error":{{"code":{status},"message":"injected"}}}}"#);
    let length = body.len();
    format!("HTTP/1.1 {status} Injected\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Whether a connection without a request on it was not ended from the other side.
fn still_open(connection: &BufReader<TcpStream>) -> bool {
    matches!(connection.get_ref().try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

impl Shared {
    fn count(&self, head: &Head) -> Request {
        let mut words = head.first.split(' ');
        let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        let place = path.split('?').next().unwrap_or_default();
        let class = match method.as_str() {
            "GET" if path.contains("alt=media") => Class::Get,
            "GET" if place.ends_with("/o") => Class::List,
            "GET" if place.contains("/o/") => Class::Stat,
            "POST" | "PUT" if place.starts_with("/upload/") => Class::Put,
            "DELETE" => Class::Delete,
            _ => Class::Other,
        };
        let mut counts = self.counts.lock().expect("no panic while locked");
        *counts.entry(class).or_default() += 1;
        Request { n: counts.values().sum(), n_of_class: counts[&class], class, method, path }
    }

    fn put_date_ahead(&self, answer: &mut Head) {
        let ahead = Duration::from_secs(self.clock_ahead.load(Ordering::Relaxed));
        if ahead.is_zero() {
            return;
        }
        answer.fields.retain(|line| !line.to_ascii_lowercase().starts_with("date:"));
        let date = (OffsetDateTime::now_utc() + ahead).format(&Rfc2822).expect("a date of this century");
        answer.fields.push(format!("Date: {date}\r\n"));
    }

    async fn hold(&self) {
        let mut released = self.released.subscribe();
        self.stalled.fetch_add(1, Ordering::SeqCst);
        // An error means that the proxy is gone.
        let _ = released.changed().await;
    }

    /// Passes a body on, and stops after `limit` bytes of it.
    async fn copy(
        &self,
        from: &mut (impl AsyncBufRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        body: Body,
        line: &Line,
        limit: u64,
    ) -> io::Result<()> {
        match body {
            Body::Length(length) => self.copy_bytes(from, to, length.min(limit), line).await,
            Body::UntilClose => match self.copy_bytes(from, to, limit, line).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                other => other,
            },
            Body::Chunked => {
                let mut left = limit;
                loop {
                    let mut size = String::new();
                    from.read_line(&mut size).await?;
                    let digits = size.trim().split(';').next().unwrap_or_default();
                    let length = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
                    to.write_all(size.as_bytes()).await?;
                    if length > left {
                        return self.copy_bytes(from, to, left, line).await;
                    }
                    left -= length;
                    self.copy_bytes(from, to, length, line).await?;
                    let mut end = String::new();
                    from.read_line(&mut end).await?;
                    to.write_all(end.as_bytes()).await?;
                    if length == 0 {
                        // No client or server here sends trailing fields.
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn copy_bytes(
        &self,
        from: &mut (impl AsyncBufRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        mut left: u64,
        line: &Line,
    ) -> io::Result<()> {
        let rate = self.bandwidth.load(Ordering::Relaxed);
        while left > 0 {
            let buffer = from.fill_buf().await?;
            if buffer.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let n = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            line.pass(n, rate).await;
            to.write_all(&buffer[..n]).await?;
            from.consume(n);
            left -= n as u64;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("port", &self.port).field("upstream", &self.shared.upstream).finish()
    }
}
