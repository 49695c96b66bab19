//! What came of one request, and whether to make another.
//!
//! | the attempt met | read | delete | write |
//! |---|---|---|---|
//! | no connection, no token yet | again | again | again |
//! | 408, 429, 5xx | again | again | again, and it may have happened |
//! | no answer, or a broken one | again | again, and it may have happened | stop: unknown |
//! | 404, 412, 416 | say so | say so | say so |
//! | any other answer | refused | refused | refused; unknown where an earlier attempt may have happened |
//! | wrong bytes | again, three times in all | | |
//!
//! A write is not sent again after a lost answer, because the second one could meet the first one's object and be told
//! that another came first. After an error of the service it is, since that is rarely a write that happened; the
//! caller, who has to look whose object it found after a 412 anyway, finds its own in the worst case.

use google_cloud_gax::error::{CredentialsError, Error};
use tokio::time::{Duration, Instant, sleep};

use crate::store::{Config, StoreError};

/// Wrong bytes three times are no accident on the way.
const DAMAGED_AT_MOST: u32 = 3;

/// Why an attempt did not succeed.
#[derive(Debug)]
pub(super) enum Attempt {
    /// The answer settles it.
    Final(StoreError),
    /// Nothing was sent.
    Unsent(String),
    /// The service answered that it could not do it now.
    Answered(String),
    /// There was no answer, or not all of it.
    Lost(String),
    /// What came is not what is stored.
    Damaged(String),
}

impl From<StoreError> for Attempt {
    fn from(error: StoreError) -> Attempt {
        Attempt::Final(error)
    }
}

/// What the request does if it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write,
    Delete,
}

impl Attempt {
    /// Reads an error of the official client.
    pub(super) fn of(name: &str, error: Error) -> Attempt {
        use std::error::Error as _;
        if let Some(status) = error.http_status_code() {
            let said = error.http_payload().map(|body| String::from_utf8_lossy(body).into_owned());
            return Attempt::of_status(name, status, &said.unwrap_or_default());
        }
        if error.is_transient_and_before_rpc() || error.is_connect() {
            return Attempt::Unsent(chain(&error));
        }
        if error.is_authentication() {
            return match error.source().and_then(|source| source.downcast_ref::<CredentialsError>()) {
                Some(source) => Attempt::of_credentials(name, source),
                None => Attempt::Final(StoreError::Refused { name: name.to_owned(), why: chain(&error) }),
            };
        }
        Attempt::Lost(chain(&error))
    }

    /// Reads an error of looking for a token.
    pub(super) fn of_credentials(name: &str, error: &CredentialsError) -> Attempt {
        let why = format!("no credentials: {}", chain(error));
        if error.is_transient() {
            Attempt::Unsent(why)
        } else {
            Attempt::Final(StoreError::Refused { name: name.to_owned(), why })
        }
    }

    /// Reads the status of an answer that is no success; `said` is its body.
    pub(super) fn of_status(name: &str, status: u16, said: &str) -> Attempt {
        let said = message(said);
        let why = format!("status {status}: {said}");
        let name = name.to_owned();
        match status {
            404 if said.contains("bucket does not exist") => Attempt::Final(StoreError::Refused { name, why }),
            404 => Attempt::Final(StoreError::NotFound(name)),
            412 => Attempt::Final(StoreError::Precondition(name)),
            416 => Attempt::Final(StoreError::Range(name)),
            408 | 429 | 500..=599 => Attempt::Answered(why),
            _ => Attempt::Final(StoreError::Refused { name, why }),
        }
    }
}

/// An error with what caused it: the outer texts alone rarely say what happened.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(source) = next {
        let inner = source.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        next = source.source();
    }
    text
}

/// The message in an error's JSON body, else the beginning of the body.
fn message(body: &str) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_str(body).ok();
    match parsed.as_ref().and_then(|body| body.pointer("/error/message")).and_then(|message| message.as_str()) {
        Some(message) => message.to_owned(),
        None => body.trim().chars().take(200).collect(),
    }
}

/// Makes attempts until one settles it or the deadline has passed.
pub(super) async fn retry<T, A>(
    config: &Config,
    name: &str,
    kind: Kind,
    mut attempt: impl FnMut() -> A,
) -> Result<T, StoreError>
where
    A: Future<Output = Result<T, Attempt>>,
{
    let deadline = Instant::now() + config.deadline;
    let (mut happened, mut damaged) = (false, 0);
    let mut pause = config.first_pause;
    let unknown = |why| StoreError::Unknown { name: name.to_owned(), why };
    loop {
        let why = match attempt().await {
            Ok(value) => return Ok(value),
            Err(Attempt::Final(error @ (StoreError::Precondition(_) | StoreError::NotFound(_)))) => return Err(error),
            Err(Attempt::Final(error)) if happened => return Err(unknown(error.to_string())),
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Unsent(why)) => why,
            Err(Attempt::Answered(why)) => {
                happened |= kind != Kind::Read;
                why
            }
            Err(Attempt::Lost(why)) if kind == Kind::Write => return Err(unknown(why)),
            Err(Attempt::Lost(why)) => {
                happened |= kind == Kind::Delete;
                why
            }
            Err(Attempt::Damaged(why)) => {
                damaged += 1;
                if damaged == DAMAGED_AT_MOST {
                    return Err(StoreError::Damaged { name: name.to_owned(), why });
                }
                why
            }
        };
        // Anywhere from half of it on, so that many who failed together do not come back together.
        let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        if Instant::now() + jittered >= deadline {
            return Err(if happened { unknown(why) } else { StoreError::Unavailable { name: name.to_owned(), why } });
        }
        sleep(jittered).await;
        pause = (pause * 2).min(config.longest_pause).max(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { first_pause: Duration::ZERO, deadline: Duration::from_millis(200), ..Config::default() }
    }

    /// Runs a request whose attempts end like this, one after the other; the last one is repeated.
    async fn run(kind: Kind, attempts: &[fn() -> Result<(), Attempt>]) -> (Result<(), StoreError>, usize) {
        let mut made = 0;
        let outcome = retry(&config(), "a", kind, || {
            made += 1;
            std::future::ready(attempts[(made - 1).min(attempts.len() - 1)]())
        })
        .await;
        (outcome, made)
    }

    const DONE: fn() -> Result<(), Attempt> = || Ok(());
    const BUSY: fn() -> Result<(), Attempt> = || Err(Attempt::of_status("a", 503, ""));
    const LOST: fn() -> Result<(), Attempt> = || Err(Attempt::Lost("reset".to_owned()));
    const UNSENT: fn() -> Result<(), Attempt> = || Err(Attempt::Unsent("refused".to_owned()));
    const TAKEN: fn() -> Result<(), Attempt> = || Err(Attempt::of_status("a", 412, ""));
    const FORBIDDEN: fn() -> Result<(), Attempt> = || Err(Attempt::of_status("a", 403, ""));
    const WRONG: fn() -> Result<(), Attempt> = || Err(Attempt::Damaged("CRC-32C".to_owned()));

    #[tokio::test]
    async fn a_write_is_repeated_only_while_that_cannot_hide_its_own_success() {
        assert_eq!(run(Kind::Write, &[UNSENT, BUSY, DONE]).await, (Ok(()), 3));
        let (outcome, made) = run(Kind::Write, &[LOST, DONE]).await;
        assert!(matches!(outcome, Err(StoreError::Unknown { .. })) && made == 1);
        let (outcome, _) = run(Kind::Write, &[BUSY, TAKEN]).await;
        assert!(matches!(outcome, Err(StoreError::Precondition(_))));
        let (outcome, _) = run(Kind::Write, &[BUSY, FORBIDDEN]).await;
        assert!(matches!(outcome, Err(StoreError::Unknown { .. })), "the first may have happened: {outcome:?}");
        let (outcome, _) = run(Kind::Write, &[UNSENT, FORBIDDEN]).await;
        assert!(matches!(outcome, Err(StoreError::Refused { .. })));
    }

    #[tokio::test]
    async fn at_the_deadline_only_what_was_surely_not_done_is_called_so() {
        for kind in [Kind::Write, Kind::Delete] {
            let (outcome, _) = run(kind, &[BUSY, UNSENT]).await;
            assert!(matches!(outcome, Err(StoreError::Unknown { .. })), "{outcome:?}");
            let (outcome, made) = run(kind, &[UNSENT]).await;
            assert!(matches!(outcome, Err(StoreError::Unavailable { .. })) && made > 2, "{outcome:?}");
        }
        let (outcome, _) = run(Kind::Read, &[LOST, BUSY]).await;
        assert!(matches!(outcome, Err(StoreError::Unavailable { .. })), "{outcome:?}");
    }

    #[tokio::test]
    async fn wrong_bytes_are_read_again_but_not_for_long() {
        assert_eq!(run(Kind::Read, &[WRONG, WRONG, DONE]).await, (Ok(()), 3));
        let (outcome, made) = run(Kind::Read, &[WRONG]).await;
        assert!(matches!(outcome, Err(StoreError::Damaged { .. })) && made == 3);
    }

    #[test]
    fn an_answer_says_what_the_caller_can_do() {
        let missing = r#"{"error":{"code":404,"message":"The specified bucket does not exist."}}"#;
        let settled = |status, body| match Attempt::of_status("a", status, body) {
            Attempt::Final(error) => error,
            other => panic!("{other:?}"),
        };
        assert!(matches!(settled(404, missing), StoreError::Refused { .. }));
        assert!(matches!(settled(404, "Not Found"), StoreError::NotFound(_)));
        assert!(matches!(settled(416, ""), StoreError::Range(_)));
        assert!(settled(403, r#"{"error":{"message":"no storage.objects.create"}}"#).to_string().contains("create"));
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(matches!(Attempt::of_status("a", status, ""), Attempt::Answered(_)));
        }
    }
}
