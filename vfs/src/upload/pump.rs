//! The process's background threads: a few of them for any number of databases, each database served when it is due. Uploads,
//! the work on the history, the following of the log and the filling of caches stand in lines of their own, so that no upload waits
//! for a merge or for a stalled read.
//!
//! - **Ordering.** A database is served by one thread at a time; a call for it that comes meanwhile serves it again after.
//! - **Retries.** A turn says when it wants the next one; the pump itself never retries.
//! - **Stop.** A database that is dropped, or whose turn answers `None`, is forgotten. Threads end with the process: they hold
//!   nothing that a later start would miss.
//! - **Fork.** A forked child has no threads; the first call there starts a pump of its own.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::per_process::PerProcess;
use crate::sync::{Condvar, Mutex};

/// What a thread is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Line {
    /// Sending what is committed.
    Uploads = 0,
    /// Merging and deleting, which nobody waits for.
    History = 1,
    /// Looking what others wrote, and who waits for the lease.
    Follow = 2,
    /// Letting go of read marks, which takes no time.
    Marks = 3,
    /// Filling caches.
    Hydrate = 4,
}

const LINES: [Line; 5] = [Line::Uploads, Line::History, Line::Follow, Line::Marks, Line::Hydrate];

impl Line {
    /// Threads at the most. Each may wait for one upload; and two merges at a time are as much as should be read and written
    /// beside those.
    fn threads(self) -> usize {
        match self {
            Line::Uploads => 8,
            Line::History => 2,
            Line::Follow => 4,
            Line::Marks => 1,
            Line::Hydrate => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Line::Uploads => "sqlite-gcs-upload",
            Line::History => "sqlite-gcs-merge",
            Line::Follow => "sqlite-gcs-follow",
            Line::Marks => "sqlite-gcs-marks",
            Line::Hydrate => "sqlite-gcs-hydrate",
        }
    }

    fn pump(self) -> &'static Pump {
        &PUMPS.here()[self as usize]
    }
}

const LOOK: Duration = Duration::from_secs(1);
const LOOK_EACH: Duration = Duration::from_millis(10);

/// What is served.
pub(crate) trait Turn: Send + Sync {
    /// Does what is due, and says when to come again (`None`: not before somebody calls).
    fn turn(&self) -> Option<Instant>;
}

struct Job {
    owner: Weak<dyn Turn>,
    due: Option<Instant>,
    running: bool,
}

#[derive(Default)]
struct Queue {
    jobs: HashMap<usize, Job>,
    /// Those that are due some time and not running, by when: who has waited longest comes first.
    due: BTreeSet<(Instant, usize)>,
    threads: usize,
    idle: usize,
}

#[derive(Default)]
struct Pump {
    queue: Mutex<Queue>,
    changed: Condvar,
}

static PUMPS: PerProcess<[Pump; LINES.len()]> = PerProcess::new();

/// How often an idle process looks for commits whose own process did not live to send them: each second while it has few databases
/// open, each ten milliseconds one of them while it has many.
pub(crate) fn look() -> Duration {
    let jobs = Line::Uploads.pump().queue.lock().jobs.len();
    LOOK.max(LOOK_EACH * u32::try_from(jobs).unwrap_or(u32::MAX))
}

fn key(owner: &Arc<dyn Turn>) -> usize {
    Arc::as_ptr(owner).cast::<()>() as usize
}

/// Asks for a turn of `owner` at `due` or earlier, to upload.
pub(crate) fn call(owner: &Arc<dyn Turn>, due: Instant) -> Result<()> {
    call_in(Line::Uploads, owner, due)
}

/// Asks for a turn of `owner` at `due` or earlier.
pub(crate) fn call_in(line: Line, owner: &Arc<dyn Turn>, due: Instant) -> Result<()> {
    let pump = line.pump();
    let mut queue = pump.queue.lock();
    let key = key(owner);
    let job = queue.jobs.entry(key).or_insert_with(|| Job { owner: Arc::downgrade(owner), due: None, running: false });
    if job.due.is_some_and(|already| already <= due) {
        return Ok(());
    }
    let (before, running) = (job.due.replace(due), job.running);
    if let Some(before) = before {
        queue.due.remove(&(before, key));
    }
    if !running {
        queue.due.insert((due, key));
    }
    if queue.idle == 0 && queue.threads < line.threads() {
        queue.threads += 1;
        std::thread::Builder::new().name(line.name().to_owned()).spawn(move || serve(pump)).map_err(|e| {
            queue.threads -= 1;
            Error::local(format!("starting a thread {}", line.name()), &e)
        })?;
    }
    pump.changed.notify_one();
    Ok(())
}

/// Forgets `owner`; a turn that is running ends on its own.
pub(crate) fn forget(owner: &Arc<dyn Turn>) {
    for line in LINES {
        line.pump().queue.lock().remove(key(owner));
    }
}

impl Queue {
    fn remove(&mut self, key: usize) {
        if let Some(due) = self.jobs.remove(&key).and_then(|job| job.due) {
            self.due.remove(&(due, key));
        }
    }
}

fn serve(pump: &'static Pump) {
    let mut queue = pump.queue.lock();
    loop {
        let Some((due, key)) = queue.due.first().copied() else {
            queue.idle += 1;
            queue = pump.changed.wait(queue);
            queue.idle -= 1;
            continue;
        };
        if due > Instant::now() {
            queue.idle += 1;
            queue = pump.changed.wait_until(queue, due);
            queue.idle -= 1;
            continue;
        }
        queue.due.remove(&(due, key));
        let Some(owner) = queue.jobs.get_mut(&key).and_then(|job| {
            job.due = None;
            job.running = true;
            job.owner.upgrade()
        }) else {
            queue.remove(key);
            continue;
        };
        drop(queue);
        // A panic in one database's turn must not stop the others'; it has been printed by the panic hook.
        let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| owner.turn())).ok().flatten();
        drop(owner);
        queue = pump.queue.lock();
        if let Some(job) = queue.jobs.get_mut(&key) {
            job.running = false;
            job.due = match (job.due, again) {
                (Some(called), Some(again)) => Some(called.min(again)),
                (called, again) => called.or(again),
            };
            if let Some(due) = job.due {
                queue.due.insert((due, key));
            }
            pump.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::*;

    struct Counted {
        turns: Sender<u32>,
        left: Mutex<u32>,
    }

    impl Turn for Counted {
        fn turn(&self) -> Option<Instant> {
            let mut left = self.left.lock();
            *left -= 1;
            self.turns.send(*left).expect("a listener");
            (*left > 0).then(Instant::now)
        }
    }

    fn counted(turns: u32) -> (Arc<dyn Turn>, Receiver<u32>) {
        let (send, receive) = channel();
        (Arc::new(Counted { turns: send, left: Mutex::new(turns) }), receive)
    }

    /// Always has more to send.
    struct Greedy;

    impl Turn for Greedy {
        fn turn(&self) -> Option<Instant> {
            std::thread::yield_now();
            Some(Instant::now())
        }
    }

    #[test]
    fn who_always_has_more_to_send_keeps_nobody_waiting() {
        // More of them than threads.
        let greedy: Vec<_> = (0..3 * Line::History.threads()).map(|_| Arc::new(Greedy) as Arc<dyn Turn>).collect();
        for owner in &greedy {
            call_in(Line::History, owner, Instant::now()).expect("a thread");
        }
        for _ in 0..20 {
            let (owner, turns) = counted(1);
            call_in(Line::History, &owner, Instant::now()).expect("a thread");
            assert_eq!(turns.recv_timeout(Duration::from_secs(10)), Ok(0), "its turn came");
            forget(&owner);
        }
        greedy.iter().for_each(forget);
    }

    #[test]
    fn every_database_gets_its_turns_and_then_rests() {
        let many: Vec<_> = (0..50).map(|_| counted(3)).collect();
        for (owner, _) in &many {
            call(owner, Instant::now()).expect("a thread");
        }
        for (owner, turns) in &many {
            let seen: Vec<_> = (0..3).map(|_| turns.recv_timeout(Duration::from_secs(10)).expect("a turn")).collect();
            assert_eq!(seen, [2, 1, 0]);
            forget(owner);
            assert!(turns.try_recv().is_err());
        }
    }
}
