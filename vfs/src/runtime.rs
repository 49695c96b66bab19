//! The one tokio runtime of the process, and the way a thread of SQLite's waits for it.
//!
//! It starts at the first use and not before (a library that starts threads when it is loaded breaks
//! `fork`). A forked child has none of its parent's threads: it starts a runtime of its own; the parent's is left
//! alone, never dropped.
//!
//! A caller may itself be a thread of some other runtime, so nothing here uses `block_on`: the work is
//! spawned, and the caller waits on an ordinary channel with a deadline.

use std::future::Future;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::{Error, ErrorKind, Result};
use crate::per_process::PerProcess;
use crate::sync::Mutex;

/// Threads for file I/O of a directory as the bucket, at the most: their number does not grow with that of the databases.
const BLOCKING_THREADS: usize = 16;

static CURRENT: PerProcess<Mutex<Option<&'static Runtime>>> = PerProcess::new();

/// The handle of this process's runtime; starts it if there is none.
pub(crate) fn handle() -> Result<Handle> {
    let mut current = CURRENT.here().lock();
    if let Some(runtime) = *current {
        return Ok(runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("sqlite-gcs")
        .enable_all()
        .build()
        .map_err(|e| Error::local("starting the background threads", &e))?;
    // Lives as long as the process: it is never shut down, because callers may come until the very end.
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    *current = Some(runtime);
    Ok(runtime.handle().clone())
}

/// Runs `work` on the runtime and waits for it, `limit` at most. `what` names the work in the error.
///
/// After the deadline the work is aborted at its next await point.
pub(crate) fn wait<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    wait_beside(what, limit, limit, &mut || {}, work)
}

/// The same, with `beside` done by the waiting thread each time that `every` has passed.
pub(crate) fn wait_beside<T: Send + 'static>(
    what: &str,
    limit: Duration,
    every: Duration,
    beside: &mut dyn FnMut(),
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    let (answer, answered) = mpsc::sync_channel(1);
    let task = handle()?.spawn(async move {
        // The receiver is gone only when the caller gave up.
        let _ = answer.send(work.await);
    });
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match answered.recv_timeout(left.min(every)) {
            Ok(answer) => return Ok(answer),
            Err(mpsc::RecvTimeoutError::Timeout) if Instant::now() < end => beside(),
            Err(_) => {
                task.abort();
                let why = format!("{what}: no answer within {} ms", limit.as_millis());
                return Err(Error::new(ErrorKind::Unavailable, why));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_works_inside_another_runtime() {
        let outer = Builder::new_current_thread().build().expect("a runtime");
        let got = outer.block_on(async { wait("two", Duration::from_secs(5), async { 2 }) });
        assert_eq!(got.expect("an answer"), 2);
    }

    #[test]
    fn work_beside_a_wait_is_done_until_the_answer_comes() {
        let (answer, wait) = tokio::sync::oneshot::channel();
        let (mut answer, mut times) = (Some(answer), 0);
        let mut beside = || {
            times += 1;
            if times == 3 {
                answer.take().expect("a first answer").send(7).expect("a waiter");
            }
        };
        let got = wait_beside("seven", Duration::from_secs(20), Duration::from_millis(1), &mut beside, wait);
        assert_eq!(got.expect("an answer"), Ok(7));
        assert!(times >= 3);
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let error = wait("nothing", Duration::from_millis(20), std::future::pending::<()>()).expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().starts_with("nothing: "), "{error}");
    }
}
