//! The read connections: a few of them, each used by one request at a time, on threads that may block.
//!
//! A read never waits for a writer (WAL), so it goes on while another instance holds the lease. What it may wait for is a
//! page that is not in the cache yet. A connection that failed is closed, and the next read opens a new one.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// How long a request waits for a free connection before it is refused.
const TURN: Duration = Duration::from_secs(10);
/// How long opening anew waits for the connections that are reading.
const RENEW: Duration = Duration::from_secs(2);

/// Opens a connection as every part of the app does. Making the database, if it is not there, costs no request.
pub fn open(database: &str) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(database, flags)?;
    // For the moments in which a checkpoint or a recovery of another connection is under way.
    db.busy_timeout(Duration::from_secs(2))?;
    // A database in a bucket is in WAL mode anyway; a plain file, for comparison, is put into it.
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "normal")?;
    Ok(db)
}

/// The pool.
#[derive(Clone)]
pub struct Readers {
    database: Arc<str>,
    free: Arc<Mutex<Free>>,
    turns: Arc<Semaphore>,
    connections: u32,
}

struct Free {
    connections: Vec<Connection>,
    // Raised by `renew`: connections of an older round are closed when they come back.
    round: u64,
}

impl Readers {
    /// Opens the first connection, so that a wrong setting shows at once; the others follow as they are needed.
    pub fn open(database: &str, connections: u32) -> rusqlite::Result<Readers> {
        let first = reader(database)?;
        Ok(Readers {
            database: database.into(),
            free: Arc::new(Mutex::new(Free { connections: vec![first], round: 0 })),
            turns: Arc::new(Semaphore::new(connections as usize)),
            connections,
        })
    }

    /// Runs `work` on a free connection, on a thread that may block. The error is a sentence for the log.
    pub async fn read<T, F>(&self, work: F) -> Result<T, String>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let turn = match tokio::time::timeout(TURN, self.turns.clone().acquire_owned()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err("the app is stopping".to_owned()),
            Err(_) => return Err(format!("no read connection was free within {} s", TURN.as_secs())),
        };
        let pool = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            // Held here, not by the request: a client that goes away leaves the statement running.
            let _turn = turn;
            pool.on_a_connection(work)
        });
        match done.await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(error) => Err(format!("the read was ended: {error}")),
        }
    }

    fn on_a_connection<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let (free, round) = {
            let mut free = self.free.lock();
            (free.connections.pop(), free.round)
        };
        let db = match free {
            Some(db) => db,
            None => reader(&self.database)?,
        };
        let answer = work(&db)?;
        let mut free = self.free.lock();
        if free.round == round {
            free.connections.push(db);
        }
        Ok(answer)
    }

    /// Closes every connection when those that read have finished, and lets nobody open a new one until `reopened` returns: a
    /// database is opened anew only after its last connection in the process is gone. Reads wait meanwhile.
    ///
    /// Blocks, 2 s at most: after that the connections in use are left to be closed when they come back.
    pub fn renew<T>(&self, runtime: &Handle, reopened: impl FnOnce() -> T) -> T {
        let all = self.turns.acquire_many(self.connections);
        let _all = runtime.block_on(async { tokio::time::timeout(RENEW, all).await });
        self.forget();
        reopened()
    }

    fn forget(&self) {
        let old = {
            let mut free = self.free.lock();
            free.round += 1;
            std::mem::take(&mut free.connections)
        };
        drop(old);
    }

    /// Refuses further reads and closes what is free; those in use close when they come back.
    pub fn close(&self) {
        self.turns.close();
        self.forget();
    }
}

fn reader(database: &str) -> rusqlite::Result<Connection> {
    let db = open(database)?;
    // Not opened read-only: a connection in WAL mode has to be able to make the shared index.
    db.pragma_update(None, "query_only", true)?;
    Ok(db)
}
