//! A guestbook whose SQLite database lives in a bucket: start, serve, stop.
//!
//! ```text
//! request  web -> readers (a few connections)            GET: pages from the local cache, missing ones from the bucket
//!              -> writer (one connection, one thread)    POST: one transaction for all that wait, then the answer
//! beside   status (once a second: PRAGMA gcs_status)     panel, metrics
//! ```
//!
//! Stop, on SIGTERM or SIGINT: no new connections, the open requests are answered, the writer flushes, every connection
//! is closed, which gives the lease back. All of it ends within [`STOP`], because a host kills about 10 s after its SIGTERM.
#![deny(unsafe_code)]

mod entries;
mod form;
mod log;
mod metrics;
mod pages;
mod panel;
mod plots;
mod readers;
mod settings;
mod status;
mod web;
mod writer;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use log::Severity;
use metrics::Metrics;
use readers::Readers;
use settings::Settings;
use status::Board;
use web::App;
use writer::Writer;

/// From the signal to the end of the process, at most.
const STOP: Duration = Duration::from_secs(8);
/// From the signal until requests that are still open are given up.
const DRAIN: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            log::event(Severity::Error, &why);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let settings = Settings::read(|name| std::env::var(name).ok())?;
    if let Some(folder) = settings.folder() {
        std::fs::create_dir_all(&folder).map_err(|error| format!("making the folder {}: {error}", folder.display()))?;
    }
    // From here on SQLite knows `vfs=gcs`. A database without it is as it always was.
    sqlite_gcs::register().map_err(|error| format!("registering the VFS: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("starting the threads: {error}"))?;
    let outcome = runtime.block_on(serve(settings));
    // What is left of the runtime is requests that were given up; they must not hold the end back.
    runtime.shutdown_background();
    outcome
}

async fn serve(settings: Settings) -> Result<(), String> {
    // Before anything that takes time: a signal that comes during the open must not kill without a close.
    let stopping = Arc::new(AtomicBool::new(false));
    let (stop, stopped) = tokio::sync::watch::channel(());
    watch_signals(stopping.clone(), stop)?;

    let started = Instant::now();
    let database = settings.database.clone();
    let connections = settings.readers;
    let readers = tokio::task::spawn_blocking(move || Readers::open(&database, connections))
        .await
        .map_err(|error| format!("opening the database: {error}"))?
        .map_err(|error| format!("opening {}: {error}", settings.database))?;
    let opened_ms = started.elapsed().as_millis();

    let metrics = Arc::new(Metrics::default());
    let board = Board::default();
    let changed = Arc::new(tokio::sync::Notify::new());
    let sampler = tokio::spawn(status::watch(readers.clone(), board.clone(), metrics.clone(), changed.clone()));
    let (writer, writing) = Writer::start(&settings, readers.clone(), metrics.clone(), stopping.clone(), changed)
        .map_err(|error| format!("starting a thread: {error}"))?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|error| format!("listening on {}: {error}", settings.listen))?;
    let address = listener.local_addr().map_err(|error| format!("listening: {error}"))?;
    let instance = settings.instance.clone();
    log::event(
        Severity::Info,
        &format!("{instance} opened the database in {opened_ms} ms and listens on http://{address}"),
    );

    let to_stop = writer.clone();
    let app = Arc::new(App { settings, readers: readers.clone(), writer, board, metrics, stopping });
    let mut signalled = stopped.clone();
    let server = axum::serve(listener, web::router(app)).with_graceful_shutdown(async move {
        // An error means that the sender is gone, and with it every signal: that is a stop, too.
        let _ = signalled.changed().await;
    });
    let mut signalled = stopped;
    let given_up = async {
        let _ = signalled.changed().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = std::future::IntoFuture::into_future(server) => served.map_err(|error| format!("serving: {error}"))?,
        () = given_up => log::event(Severity::Warning, "some requests were still open and were given up"),
    }
    log::event(Severity::Info, "no request is open any more; closing the database");
    sampler.abort();
    let closing = tokio::task::spawn_blocking(move || close(&to_stop, writing, &readers));
    closing.await.map_err(|error| format!("closing: {error}"))?;
    log::event(Severity::Info, &format!("{instance} has closed the database"));
    Ok(())
}

fn close(writer: &Writer, writing: JoinHandle<()>, readers: &Readers) {
    // The writer first: its flush is what must not be missed.
    writer.stop();
    let _ = writing.join();
    readers.close();
}

/// Waits for SIGTERM or SIGINT on a task of its own; then raises the flag, tells the server, and starts the clock.
fn watch_signals(stopping: Arc<AtomicBool>, stop: tokio::sync::watch::Sender<()>) -> Result<(), String> {
    let listen = |kind| signal(kind).map_err(|error| format!("listening for signals: {error}"));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let name = tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" };
        log::event(Severity::Info, &format!("{name}: taking no more connections"));
        stopping.store(true, Ordering::Relaxed);
        // A thread, not a task: it must fire also when every worker is stuck.
        std::thread::spawn(|| {
            std::thread::sleep(STOP - Duration::from_millis(300));
            log::event(Severity::Error, "the stop took too long; what is not in the bucket is kept on this disk only");
            // exit() would run the exit handlers, which may be what is stuck.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        });
        let _ = stop.send(());
        // Dropping the sender would be a signal as well; it lives as long as the process.
        std::future::pending::<()>().await;
    });
    Ok(())
}
