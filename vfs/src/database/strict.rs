//! `durability=strict`: a commit that nobody sees before the bucket has it.
//!
//! SQLite writes a frame as its header of 24 bytes and then its page. The header of the frame that ends a transaction is held
//! back: 24 zero bytes stand in its place, so neither a reader nor a recovery sees a commit. When the page has been written
//! too, the whole transaction is captured (with the held header in its place), frozen and uploaded; then the header is
//! written, and SQLite goes on to publish the commit. An error before that makes SQLite roll back.
//!
//! | crash | what the next open finds |
//! |---|---|
//! | before the freeze | frames without a commit: rolled back |
//! | after the freeze | a frozen delta beyond the WAL's end: it is settled like any other, and the cache is rebuilt with it |
//! | after the upload | the same |
//! | after the header was written | a commit like any other |
//!
//! When SQLite overwrites a frame that it had spilled, the headers behind it get neither salts nor checksums until it rewrites
//! all of them, up to the last one; that one's second writing then completes the transaction.
//!
//! Until the header is written a mark in the shared memory says so: a writer of any process that meets it with the WRITE lock
//! in hand has a database that lacks a commit of the log. A WAL that goes away in that state leaves a note in the state file
//! (`capture/`).
//!
//! An upload whose outcome stays unknown is an error too, and then the database refuses work until it is opened anew, when
//! the outcome is found out.

use std::time::Instant;

use super::exclusive::commit_in;
use super::{CAPTURE_WAIT, Database};
use crate::capture::frames::HeldHeader;
use crate::capture::index::Committed;
use crate::config::Durability;
use crate::error::{Error, ErrorKind, Result};

/// A commit frame whose header is not in the file yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldCommit {
    header: HeldHeader,
    commit: Committed,
    has_page: bool,
}

impl Database {
    /// xWrite(WAL): runs `base`, which writes these bytes at this offset through the base VFS, at the moment at which the
    /// durability allows it. `exclusive`: this connection makes no xShmLock calls.
    pub(crate) fn wal_write(
        &self,
        offset: u64,
        bytes: &[u8],
        exclusive: bool,
        base: &mut dyn FnMut(&[u8], u64) -> i32,
    ) -> Result<i32> {
        self.before_wal_write(offset, bytes, exclusive)?;
        if self.shared.strict_unsettled() {
            let message = "a strict commit is in the log and not in the local database".to_owned();
            let error = Error::new(ErrorKind::Unavailable, message);
            self.poison(&error);
            return Err(error);
        }
        let mut held = self.held.lock();
        if *self.durability.read() != Durability::Strict && held.is_none() {
            return Ok(base(bytes, offset));
        }
        if let Some(commit) = commit_in(offset, bytes, self.page_size)
            && let Ok(raw) = <[u8; 24]>::try_from(bytes)
        {
            let code = base(&[0; 24], offset);
            if code != 0 {
                return Ok(code);
            }
            let has_page = held.is_some_and(|held| held.header.offset == offset && held.has_page);
            *held = Some(HeldCommit { header: HeldHeader { offset, bytes: raw }, commit, has_page });
        } else {
            let code = base(bytes, offset);
            match &mut *held {
                Some(commit) if code == 0 && commit.header.offset + 24 == offset => commit.has_page = true,
                // Another transaction has begun where the last one was given up. (Headers alone are written by the pass that
                // makes the checksums right.)
                Some(commit) if commit.header.offset == offset || bytes.len() != 24 => *held = None,
                _ => {}
            }
            if code != 0 {
                return Ok(code);
            }
        }
        // Without salts it is one that SQLite writes again, once the checksums before it are right.
        let is_final = |held: &HeldCommit| held.has_page && held.commit.salts != [0; 8];
        let Some(commit) = held.filter(is_final) else { return Ok(0) };
        match self.send_held(&commit) {
            Ok(false) => {
                let message = "a commit's frames do not continue the WAL's checksum".to_owned();
                Err(Error::new(ErrorKind::Corrupt, message))
            }
            Ok(true) => {
                *held = None;
                let code = base(&commit.header.bytes, commit.header.offset);
                if code == 0 {
                    self.shared.set_strict_unsettled(false);
                } else {
                    let message = "the commit is in the bucket, but the WAL could not be written".to_owned();
                    self.poison(&Error::new(ErrorKind::Local, message));
                }
                Ok(code)
            }
            Err(e) => {
                *held = None;
                self.note_error(&e);
                Err(e)
            }
        }
    }

    /// xRead(WAL): puts a held header where its zeros were read, for the connection that rewrites checksums.
    pub(crate) fn after_wal_read(&self, offset: u64, bytes: &mut [u8]) {
        // Locked, it is being sent, and whoever reads is a reader of earlier commits.
        if let Some(held) = self.held.try_lock().and_then(|held| *held) {
            held.header.patch(offset, bytes);
        }
    }

    /// Uploads a transaction whose last header is held back. `false`: its checksums are wrong.
    fn send_held(&self, held: &HeldCommit) -> Result<bool> {
        let limit = self.commit_timeout();
        let deadline = Instant::now() + limit;
        self.check_poison()?;
        let _upload = self.uploader.lock_within(limit, "the upload lock")?;
        let awaited = {
            let capture = self.capture.lock_within(CAPTURE_WAIT, "the capture lock")?;
            if !capture.verifies(&self.shared, &held.commit, held.header)? {
                return Ok(false);
            }
            capture.serial_of(&self.shared, Some(&held.commit))?
        };
        self.shared.set_strict_unsettled(true);
        self.freeze(Some(held.commit), Some(held.header)).inspect_err(|_| self.shared.set_strict_unsettled(false))?;
        // From here on the delta may become durable, whatever this commit is told.
        let sent = self.append_all(deadline).and_then(|()| self.check_poison());
        match sent {
            Ok(()) if self.shared.durable_serial() >= awaited => Ok(true),
            Ok(()) => {
                let error = self.not_durable(limit);
                self.poison(&error);
                Err(error)
            }
            Err(e) => {
                self.poison(&e);
                Err(e)
            }
        }
    }
}
