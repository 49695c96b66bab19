//! The routes: what each URL answers, and what every answer carries (security headers, one log line, one count).
//!
//! | route | answer |
//! | --- | --- |
//! | `GET /` | the page; `?before=N` for older entries |
//! | `POST /entries` | stores an entry; 303 to the page when it is stored as the settings promise |
//! | `GET /live?newest=N` | the panel, and the list if there are entries after N, for the script |
//! | `GET /entries.json` | entries as JSON; `?before=N&limit=N` |
//! | `GET /health`, `/healthz` | 200 when the database can be read, 503 when it cannot or the app is stopping |
//! | `GET /livez` | 200 while the process serves at all |
//! | `GET /metrics` | Prometheus text |
//!
//! A write that is refused is 503 with `Retry-After`, and the form keeps what was written. A form that another site sends is 403.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, MatchedPath, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use serde_json::{Map, json};

use crate::entries::{self, Draft, Entry, PAGE};
use crate::form::Form;
use crate::log::{self, Severity, Trace};
use crate::metrics::Metrics;
use crate::pages::{self, Notice, Page, Shown};
use crate::panel::{self, Here};
use crate::readers::Readers;
use crate::settings::Settings;
use crate::status::{Board, Role};
use crate::writer::{Refused, Writer};

const STYLE: &str = include_str!("../static/style.css");
const SCRIPT: &str = include_str!("../static/live.js");

/// A full message in four-byte characters, percent-encoded, and the rest of the form.
const BODY_LIMIT: usize = 32 * 1024;

/// What every request needs.
pub struct App {
    /// The settings of this process.
    pub settings: Settings,
    /// The read connections.
    pub readers: Readers,
    /// The way to the writer.
    pub writer: Writer,
    /// What the database said last.
    pub board: Board,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Raised by SIGTERM.
    pub stopping: Arc<AtomicBool>,
}

impl App {
    fn role(&self) -> Role {
        Role::of(self.board.snapshot().status.as_ref(), self.writer.waiting())
    }
}

/// All routes over `app`.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/entries", post(sign).layer(DefaultBodyLimit::max(BODY_LIMIT)))
        .route("/entries.json", get(entries_json))
        .route("/live", get(live))
        // Cloud Run keeps some paths that end in z from reaching a service from outside.
        .route("/health", get(health))
        .route("/healthz", get(health))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/metrics", get(metrics))
        .route("/style.css", get(|| async { asset("text/css; charset=utf-8", STYLE) }))
        .route("/live.js", get(|| async { asset("text/javascript; charset=utf-8", SCRIPT) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "There is nothing here.\n") })
        .layer(middleware::from_fn_with_state(app.clone(), around))
        .with_state(app)
}

/// What is fetched for a page of entries: the entries, and where the next page begins.
async fn fetch(app: &App, before: Option<i64>) -> Result<(Vec<Entry>, Option<i64>), String> {
    let mut found = app.readers.read(move |db| entries::list(db, before, PAGE + 1)).await?;
    let more = found.len() > PAGE;
    found.truncate(PAGE);
    let older = found.last().filter(|_| more).map(|entry| entry.id);
    Ok((found, older))
}

async fn home(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let Some(query) = Form::parse(query.unwrap_or_default().as_bytes()) else {
        return (StatusCode::BAD_REQUEST, "The query is not UTF-8.\n").into_response();
    };
    let notice = query.number("saved").map(|ms| Notice::Saved(ms.unsigned_abs()));
    show(&app, StatusCode::OK, query.number("before"), Shown::default(), notice).await
}

async fn show(
    app: &App,
    status: StatusCode,
    before: Option<i64>,
    mut form: Shown<'_>,
    notice: Option<Notice>,
) -> Response {
    let (entries, older) = match fetch(app, before).await {
        Ok(found) => found,
        Err(why) => return cannot_read(&why),
    };
    let new_token = entries::new_token();
    if form.token.is_empty() {
        form.token = &new_token;
    }
    let role = app.role();
    let page = pages::page(&Page {
        entries: &entries,
        older,
        is_newest: before.is_none(),
        here: Here { instance: &app.settings.instance, role: &role },
        now: &app.board.snapshot(),
        form,
        notice,
        now_ms: now_ms(),
        assets: assets_version(),
    });
    (status, page).into_response()
}

fn cannot_read(why: &str) -> Response {
    log::event(Severity::Error, &format!("could not read: {why}"));
    let headers = [(header::RETRY_AFTER, "2")];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "The guestbook cannot be read just now. Please try again.\n")
        .into_response()
}

async fn sign(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    if !from_here(&headers) {
        return (StatusCode::FORBIDDEN, "Entries are taken from this site's own form only.\n").into_response();
    }
    let Some(form) = Form::parse(&body) else {
        return (StatusCode::BAD_REQUEST, "The form is not UTF-8.\n").into_response();
    };
    let (token, name, message) = (form.field("token"), form.field("name"), form.field("message"));
    let shown = |problems| Shown { token, name, message, problems };
    let draft = match Draft::check(token, name, message) {
        Ok(draft) => draft,
        Err(problems) => return show(&app, StatusCode::UNPROCESSABLE_ENTITY, None, shown(problems), None).await,
    };
    let refused = match app.writer.store(draft).await {
        Ok(saved) => return Redirect::to(&format!("/?saved={}#e{}", saved.took.as_millis(), saved.id)).into_response(),
        Err(refused) => refused,
    };
    let (status, text) = match refused {
        Refused::Busy => (503, "Another instance is writing just now. Nothing is lost: please send it again."),
        Refused::Stopping => (503, "This instance is going away. Nothing is lost: please send it again."),
        Refused::Failed(_) => (503, "The entry could not be stored. Please send it again in a moment."),
        Refused::Unknown(_) => {
            (500, "It is not sure that the entry was stored. Sending it again is safe: it is kept once.")
        }
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut answer = show(&app, status, None, shown(Default::default()), Some(Notice::Refused(text))).await;
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    answer
}

/// Whether a form came from this site. Browsers say so (`Sec-Fetch-Site`, older ones `Origin`); other clients send neither.
fn from_here(headers: &HeaderMap) -> bool {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(&HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin" || site == "none";
    }
    match (text(&header::ORIGIN), text(&header::HOST)) {
        (None, _) => true,
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, from)| from == host),
        (Some(_), None) => false,
    }
}

async fn live(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let query = Form::parse(query.unwrap_or_default().as_bytes());
    let seen = query.and_then(|query| query.number("newest"));
    let role = app.role();
    let here = Here { instance: &app.settings.instance, role: &role };
    let mut answer = json!({
        "role": role.word(),
        "role_text": panel::role_text(&role).0,
        "pill": panel::role_pill(&role).into_string(),
        "panel": panel::panel(&here, &app.board.snapshot()).into_string(),
    });
    if let Some(seen) = seen {
        let newest = match app.readers.read(entries::newest).await {
            Ok(newest) => newest,
            Err(why) => return cannot_read(&why),
        };
        if newest != seen {
            match fetch(&app, None).await {
                Ok((entries, _)) => {
                    answer["newest"] = json!(newest);
                    answer["list"] = json!(pages::list(&entries, now_ms()).into_string());
                }
                Err(why) => return cannot_read(&why),
            }
        }
    }
    json_answer(&answer.to_string())
}

async fn entries_json(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let Some(query) = Form::parse(query.unwrap_or_default().as_bytes()) else {
        return (StatusCode::BAD_REQUEST, "The query is not UTF-8.\n").into_response();
    };
    let before = query.number("before");
    let limit = query.number("limit").unwrap_or(100).clamp(1, 1000) as usize;
    match app.readers.read(move |db| entries::list(db, before, limit)).await {
        Ok(entries) => json_answer(&json!({ "entries": entries }).to_string()),
        Err(why) => cannot_read(&why),
    }
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let stopping = app.stopping.load(Ordering::Relaxed);
    let read =
        app.readers.read(|db| db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)));
    let trouble = if stopping { Some("stopping".to_owned()) } else { read.await.err() };
    let status = if trouble.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = json!({
        "ready": trouble.is_none(),
        "trouble": trouble,
        "instance": app.settings.instance,
        "role": app.role().word(),
    });
    (status, json_answer(&text.to_string())).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let now = app.board.snapshot();
    let text = app.metrics.text(&app.settings.instance, app.role().word(), now.status.as_ref());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn json_answer(text: &str) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text.to_owned()).into_response()
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    // The URL on the page changes with the content.
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")], text)
        .into_response()
}

fn assets_version() -> &'static str {
    static VERSION: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hash = DefaultHasher::new();
        (STYLE, SCRIPT).hash(&mut hash);
        format!("{:08x}", hash.finish() as u32)
    });
    &VERSION
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Headers, count and log line of every request.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let url = request.uri().to_string();
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let asked = request.headers().clone();
    let mut answer = next.run(request).await;
    let took = started.elapsed();
    for (name, value) in [
        (
            "content-security-policy",
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
          img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
    ] {
        answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if !answer.headers().contains_key(header::CACHE_CONTROL) {
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    let status = answer.status().as_u16();
    app.metrics.answered(word(&method), route.clone(), status, took);
    // Probes and scrapes come all day and say nothing when they succeed.
    let dull = matches!(route.as_str(), "/health" | "/healthz" | "/livez" | "/metrics" | "/live") && status < 400;
    if !dull {
        log_request(&app, &method, &url, &asked, &answer, took.as_secs_f64());
    }
    answer
}

fn log_request(app: &App, method: &Method, url: &str, asked: &HeaderMap, answer: &Response, seconds: f64) {
    let status = answer.status().as_u16();
    let text = |name: HeaderName| asked.get(name).and_then(|value| value.to_str().ok());
    let size = answer.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    // The first address is the client's; the front end appended it.
    let address = text(HeaderName::from_static("x-forwarded-for")).and_then(|all| all.split(',').next());
    let mut fields = Map::new();
    fields.insert(
        "httpRequest".to_owned(),
        json!({
            "requestMethod": method.as_str(),
            "requestUrl": url,
            "status": status,
            "responseSize": size,
            "userAgent": text(header::USER_AGENT),
            "remoteIp": address,
            "latency": format!("{seconds:.6}s"),
        }),
    );
    fields.insert("instance".to_owned(), json!(app.settings.instance));
    if let Some(trace) = Trace::of(asked) {
        trace.add_to(&mut fields, app.settings.project.as_deref());
    }
    let severity = match status {
        503 => Severity::Warning,
        500.. => Severity::Error,
        _ => Severity::Info,
    };
    log::line(severity, &format!("{method} {url} {status}"), fields);
}

fn word(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "HEAD" => "HEAD",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn a_form_of_another_site_is_told_apart() {
        assert!(from_here(&headers(&[("sec-fetch-site", "same-origin")])));
        assert!(!from_here(&headers(&[("sec-fetch-site", "cross-site"), ("host", "a")])));
        assert!(!from_here(&headers(&[("sec-fetch-site", "same-site")])));
        assert!(from_here(&headers(&[("origin", "https://book.example"), ("host", "book.example")])));
        assert!(!from_here(&headers(&[("origin", "https://evil.example"), ("host", "book.example")])));
        assert!(!from_here(&headers(&[("origin", "null"), ("host", "book.example")])));
        assert!(from_here(&headers(&[("host", "book.example")])), "a client that is no browser");
    }
}
