//! The status panel: what the database says about itself, for a person. Made from a [`Snapshot`] alone, so that the first
//! page and every later update look the same.

use maud::{Markup, html};

use crate::plots::{short, sparkline};
use crate::status::{Role, Sample, Snapshot, Status};

/// What the panel shows beside the snapshot.
pub struct Here<'a> {
    /// The name of this instance.
    pub instance: &'a str,
    /// Its role.
    pub role: &'a Role,
}

/// A role as a person reads it: its name and what it means for writing.
pub fn role_text(role: &Role) -> (&'static str, &'static str) {
    match role {
        Role::Writer => ("Writer", "holds the lease: entries are stored here"),
        Role::Follower => ("Follower", "reads what another instance writes"),
        Role::Waiting => ("Waiting for the lease", "another instance is writing; reading goes on"),
        Role::Ready => ("Ready", "nobody writes; the next entry takes the lease"),
        Role::Fenced => ("Fenced", "another instance has taken over; the next entry starts anew here"),
        Role::Plain => ("Plain SQLite", "a local file without a bucket"),
    }
}

/// The coloured word that stands for a role.
pub fn role_pill(role: &Role) -> Markup {
    html! { span.pill data-role=(role.word()) { (role_text(role).0) } }
}

/// The panel's inside.
pub fn panel(here: &Here<'_>, now: &Snapshot) -> Markup {
    let history: Vec<&Sample> = now.history.iter().collect();
    html! {
        p.role-line { strong { (role_text(here.role).0) } span.quiet { " \u{2013} " (role_text(here.role).1) } }
        @if let Some(trouble) = now.trouble.as_ref().or(now.status.as_ref().and_then(|s| s.last_error.as_ref())) {
            p.trouble { strong { "Trouble: " } (trouble) }
        }
        dl.tiles {
            @if let Some(status) = &now.status {
                @if *here.role == Role::Follower { (follower_tile(status)) }
                (bucket_tiles(status, &history))
            }
            @let commits: Vec<f64> = history.iter().map(|s| s.commit_ms).collect();
            (tile("Last commit", html! { (with_unit(commits.last().copied().filter(|ms| *ms > 0.0), "ms")) },
                html! { @if now.status.is_some() { "with its wait for the bucket" } @else { "on the local disk" } },
                Some(sparkline(&commits, "Time of the last commit", "milliseconds"))))
            @let served = rates(&history, |s| s.served);
            (tile("Requests served", html! { (with_unit(served.last().copied(), "/s")) }, html! { "by this instance" },
                Some(sparkline(&served, "Requests served", "a second"))))
        }
        dl.facts {
            div { dt { "Instance" } dd { code { (here.instance) } } }
            @if let Some(status) = &now.status { (lease_facts(status)) }
            @else { div { dt { "Database" } dd { "a plain file: start with " code { "vfs=gcs" } " to see the rest" } } }
        }
    }
}

fn bucket_tiles(status: &Status, history: &[&Sample]) -> Markup {
    let behind = match (status.committed(), status.durable()) {
        (Some(committed), Some(durable)) => Some(committed.saturating_sub(durable)),
        _ => None,
    };
    let lag: Vec<f64> = history.iter().map(|s| s.lag_ms).collect();
    let requests = rates(history, |s| s.bucket_requests);
    let kinds =
        status.requests.by_kind().map(|(kind, count)| format!("{} {count}", kind.to_uppercase())).join(" \u{b7} ");
    html! {
        (tile("Committed", txid(status.committed()), html! { "newest transaction here" }, None))
        (tile("Durable", txid(status.durable()), match behind {
            Some(0) => html! { span.good { "all of it in the bucket" } },
            Some(n) => html! { (n) " on the way to the bucket" },
            None => html! { "newest transaction in the bucket" },
        }, None))
        (tile("Upload lag", with_unit(status.lag_ms.map(|ms| ms as f64), "ms"), outbox(status),
            Some(sparkline(&lag, "Upload lag", "milliseconds"))))
        (tile("Bucket requests", html! { (grouped(status.requests.total())) }, html! { (kinds) },
            Some(sparkline(&requests, "Bucket requests", "a second"))))
        (tile(
            if status.open.cold == Some(false) { "Warm open" } else { "Cold open" },
            with_unit(status.open.ms.map(|ms| ms as f64), "ms"),
            html! { @if let Some(n) = status.open.requests { (plural(n, "request")) } },
            None,
        ))
        (tile("Cost so far", dollars(status.cost.usd), html! {
            @if let (Some(a), Some(b)) = (status.cost.class_a, status.cost.class_b) { (a) " class A, " (b) " class B" }
        }, None))
        (cache_tile(status))
    }
}

/// How old what a follower shows may be.
fn follower_tile(status: &Status) -> Markup {
    let following = &status.follower;
    let note = html! {
        @if following.awake == Some(false) { "asks again when somebody reads" }
        @else if let Some(age) = following.age_ms { "newest state known " (age) " ms ago" }
    };
    tile("Behind the writer", with_unit(following.lag_ms.map(|ms| ms as f64), "ms"), note, None)
}

fn cache_tile(status: &Status) -> Markup {
    let (Some(present), Some(total)) = (status.pages_present, status.pages_total) else { return html! {} };
    let share = if total == 0 { 0.0 } else { present as f64 / total as f64 };
    html! {
        div.tile.wide {
            dt { "Local cache" }
            dd.value { (status.cache_bytes.map_or("\u{2013}".to_owned(), bytes)) }
            dd.note {
                (grouped(present)) " of " (plural(total, "page")) " here (" (percent(share)) ")"
                svg.bar viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" {
                    rect.rest width="100" height="4" {}
                    rect.part width=(format!("{:.2}", (share * 100.0).clamp(0.0, 100.0))) height="4" {}
                }
            }
        }
    }
}

fn lease_facts(status: &Status) -> Markup {
    html! {
        @if let Some(replica) = &status.replica { div { dt { "Lives at" } dd { code { (replica) } } } }
        @if let Some(state) = &status.lease.state {
            div {
                dt { "Lease" }
                dd {
                    (state)
                    @if let Some(holder) = &status.lease.holder { " by " code { (holder) } }
                    @if let Some(ms) = status.lease.expires_in_ms.filter(|ms| *ms > 0) { ", " (ms / 1000) " s left" }
                }
            }
        }
        @if let (Some(inward), Some(outward)) = (status.bytes.inward, status.bytes.outward) {
            div { dt { "Traffic" } dd { (bytes(outward)) " sent, " (bytes(inward)) " fetched" } }
        }
    }
}

fn tile(name: &str, value: Markup, note: Markup, plot: Option<Markup>) -> Markup {
    html! {
        div.tile {
            dt { (name) }
            dd.value { (value) }
            dd.note { (note) }
            @if let Some(plot) = plot { dd.plot { (plot) } }
        }
    }
}

fn outbox(status: &Status) -> Markup {
    match (status.outbox_deltas, status.outbox_bytes) {
        (Some(0), _) => html! { "nothing waits to be sent" },
        (Some(deltas), Some(size)) => html! { (plural(deltas, "delta")) ", " (bytes(size)) " waiting" },
        _ => html! {},
    }
}

fn txid(number: Option<u64>) -> Markup {
    match number {
        Some(number) => html! { span title={ "TXID " (format!("{number:016x}")) } { (grouped(number)) } },
        None => html! { "\u{2013}" },
    }
}

fn with_unit(value: Option<f64>, unit: &str) -> Markup {
    match value {
        Some(value) => html! { (short(value)) span.unit { " " (unit) } },
        None => html! { "\u{2013}" },
    }
}

/// Changes a second of a counter, one for each pair of neighbouring samples.
fn rates(history: &[&Sample], counter: impl Fn(&Sample) -> u64) -> Vec<f64> {
    let rate = |pair: &[&Sample]| {
        let seconds = pair[1].at.duration_since(pair[0].at).as_secs_f64();
        let change = counter(pair[1]).saturating_sub(counter(pair[0])) as f64;
        if seconds > 0.0 { change / seconds } else { 0.0 }
    };
    history.windows(2).map(rate).collect()
}

fn dollars(usd: Option<f64>) -> Markup {
    match usd {
        // Six digits: one request costs four ten-millionths to five millionths of a dollar.
        Some(usd) if usd < 1.0 => html! { "$" (format!("{usd:.6}")) },
        Some(usd) => html! { "$" (format!("{usd:.2}")) },
        None => html! { "\u{2013}" },
    }
}

fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p > 0.0 && p < 1.0 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}

fn bytes(n: u64) -> String {
    match n as f64 {
        n if n < 1e3 => format!("{n:.0} B"),
        n if n < 1e6 => format!("{:.0} KB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.2} GB", n / 1e9),
    }
}

fn plural(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// Digits in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(status: Option<Status>, role: &Role) -> String {
        let now = Snapshot { status, ..Snapshot::default() };
        panel(&Here { instance: "here", role }, &now).into_string()
    }

    #[test]
    fn everything_the_database_says_is_on_the_panel() {
        let status = Status::parse(crate::status::SAMPLE).expect("a status");
        let html = shown(Some(status), &Role::Writer);
        for expected in [
            "Writer",
            "420",
            "418",
            "2 on the way",
            "84",
            "2 deltas, 9 KB waiting",
            "PUT 31",
            "GET 12",
            "87",
            "3 requests",
            "312 of 262,144 pages here (0.1 %)",
            "1.3 MB",
            "$0.000165",
            "32 class A, 12 class B",
            "31 s left",
            "gs://my-bucket/prod/guestbook.db",
            "guestbook-00007-x",
            "TXID 00000000000001a4",
        ] {
            assert!(html.contains(expected), "no {expected} in {html}");
        }
    }

    #[test]
    fn a_follower_says_how_old_what_it_shows_may_be() {
        let status = Status::parse(crate::status::SAMPLE).expect("a status");
        let html = shown(Some(status.clone()), &Role::Follower);
        assert!(html.contains("Behind the writer") && html.contains("newest state known 740 ms ago"), "{html}");
        assert!(!shown(Some(status), &Role::Writer).contains("Behind the writer"));
    }

    #[test]
    fn a_plain_file_and_a_bare_status_show_what_there_is() {
        let plain = shown(None, &Role::Plain);
        assert!(plain.contains("Plain SQLite") && !plain.contains("Durable"), "{plain}");
        let bare = shown(Some(Status::default()), &Role::Ready);
        assert!(bare.contains("Durable") && !bare.contains("Local cache") && !bare.contains("NaN"), "{bare}");
    }

    #[test]
    fn trouble_is_shown_and_escaped() {
        let mut status = Status::default();
        status.last_error = Some("PUT <b>: 503".to_owned());
        assert!(shown(Some(status), &Role::Writer).contains("PUT &lt;b&gt;: 503"));
    }
}
