//! Before the first write: does the bucket honour conditions? One that ignores them is not written to.
//!
//! - **Ordering.** Before the lease is taken for the first time, once per process and bucket.
//! - **Retries.** A bucket that does not answer is asked again by the next write.
//! - **Crash.** The object that the check leaves behind serves the next one.

use std::collections::HashMap;

use crate::database::Database;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime;
use crate::store::honours_conditions;
use crate::sync::Mutex;

/// What was found out, by bucket.
static FOUND: Mutex<Option<HashMap<String, bool>>> = Mutex::new(None);

impl Database {
    /// Refuses to write to a bucket that ignores conditions.
    ///
    /// # Errors
    /// Configuration: it ignores them. Unavailable: it does not say.
    pub(super) fn check_conditions(&self) -> Result<()> {
        if !self.probes() {
            return Ok(());
        }
        let bucket = self.bucket().to_owned();
        let known = FOUND.lock().as_ref().and_then(|found| found.get(&bucket).copied());
        let honours = match known {
            Some(honours) => honours,
            None => {
                let (store, name) = (self.replica.store().clone(), self.replica.derived("probe"));
                let what = format!("checking that {bucket} honours conditions");
                let work = async move { honours_conditions(&*store, &name).await };
                let honours = runtime::wait(&what, self.request_timeout() * 2, work)??;
                FOUND.lock().get_or_insert_default().insert(bucket.clone(), honours);
                honours
            }
        };
        if honours {
            return Ok(());
        }
        let message = format!(
            "{bucket} ignores ifGenerationMatch: two writers would overwrite each other without a word; nothing is written to it"
        );
        Err(Error::new(ErrorKind::Configuration, message))
    }
}
