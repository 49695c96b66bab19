//! The page: form, entries and panel, whole and in HTML, so that it works without JavaScript. `maud` escapes whatever people wrote.

use maud::{DOCTYPE, Markup, html};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::entries::{Entry, Problems};
use crate::panel::{Here, panel, role_pill, role_text};
use crate::status::Snapshot;

/// A line at the top of the page about what was just done.
pub enum Notice {
    /// An entry was stored, that many milliseconds after it arrived.
    Saved(u64),
    /// It was not, or perhaps not; the text says what to do.
    Refused(&'static str),
}

/// The form as it is shown: empty, or with what was sent and could not be stored.
#[derive(Default)]
pub struct Shown<'a> {
    /// Tells two submissions of one form apart.
    pub token: &'a str,
    /// The name as it was sent.
    pub name: &'a str,
    /// The message as it was sent.
    pub message: &'a str,
    /// What is wrong with them.
    pub problems: Problems,
}

/// Everything on the page.
pub struct Page<'a> {
    /// Entries, newest first.
    pub entries: &'a [Entry],
    /// Where the next older page begins, if there is one.
    pub older: Option<i64>,
    /// Whether this is the newest page.
    pub is_newest: bool,
    /// This instance.
    pub here: Here<'a>,
    /// The database's status.
    pub now: &'a Snapshot,
    /// The form.
    pub form: Shown<'a>,
    /// What was just done.
    pub notice: Option<Notice>,
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// Changes when the style sheet or the script does.
    pub assets: &'a str,
}

/// The whole document.
pub fn page(page: &Page<'_>) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Guestbook" }
                meta name="description" content="A guestbook whose SQLite database lives in a Cloud Storage bucket.";
                link rel="icon" href="data:,";
                link rel="stylesheet" href={ "/style.css?v=" (page.assets) };
                script src={ "/live.js?v=" (page.assets) } defer {}
            }
            body {
                a.skip href="#entries" { "Skip to the entries" }
                header.top {
                    h1 { a href="/" { "Guestbook" } }
                    p.quiet { "A SQLite database whose home is a bucket." }
                    p.where { span #top-role { (role_pill(page.here.role)) } " " code.quiet { (page.here.instance) } }
                }
                main {
                    (notice(page.notice.as_ref()))
                    section.write aria-labelledby="write-title" { (form(&page.form)) }
                    section.panel aria-labelledby="panel-title" {
                        h2 #panel-title { "What the database is doing" }
                        div #panel { (panel(&page.here, page.now)) }
                        p.live-line { button #live-toggle type="button" hidden { "Pause updates" } span #live-state.quiet { "" } }
                    }
                    section.book aria-labelledby="entries" {
                        h2 #entries tabindex="-1" { "Entries" }
                        div #list data-newest=(page.is_newest.then(|| page.entries.first().map_or(0, |e| e.id)).map_or("off".to_owned(), |n| n.to_string())) {
                            (list(page.entries, page.now_ms))
                        }
                        nav.pages aria-label="Pages" {
                            @if !page.is_newest { a href="/" rel="first" { "Newest" } }
                            @if let Some(before) = page.older { a href={ "/?before=" (before) } rel="next" { "Older entries" } }
                        }
                    }
                    p #announce.unseen role="status" aria-live="polite" data-role=(page.here.role.word()) { (role_text(page.here.role).0) }
                }
                footer.quiet {
                    a href="/metrics" { "Metrics" } " \u{b7} " a href="/health" { "Health" } " \u{b7} "
                    a href="/entries.json" { "Entries as JSON" }
                }
            }
        }
    }
}

fn notice(notice: Option<&Notice>) -> Markup {
    match notice {
        None => html! {},
        Some(Notice::Saved(ms)) => {
            html! { p.notice.good role="status" { "Thank you. Your entry was stored in " (ms) " ms." } }
        }
        Some(Notice::Refused(text)) => html! { p.notice.bad role="alert" { (text) } },
    }
}

fn form(shown: &Shown<'_>) -> Markup {
    let Shown { token, name, message, problems } = shown;
    html! {
        h2 #write-title { "Write an entry" }
        form action="/entries" method="post" accept-charset="utf-8" {
            input type="hidden" name="token" value=(token);
            div.field {
                label for="name" { "Name" }
                input #name name="name" type="text" required maxlength="60" autocomplete="name" value=(name)
                    aria-invalid=[problems.name.as_ref().map(|_| "true")]
                    aria-describedby=[problems.name.as_ref().map(|_| "name-problem")];
                @if let Some(problem) = &problems.name { p #name-problem.problem { (problem) } }
            }
            div.field {
                label for="message" { "Message" }
                textarea #message name="message" required rows="3" maxlength="1000"
                    aria-invalid=[problems.message.as_ref().map(|_| "true")]
                    aria-describedby=[problems.message.as_ref().map(|_| "message-problem")] { (message) }
                @if let Some(problem) = &problems.message { p #message-problem.problem { (problem) } }
            }
            button type="submit" { "Sign the book" }
        }
    }
}

/// The entries alone, as the live updates replace them.
pub fn list(entries: &[Entry], now_ms: i64) -> Markup {
    html! {
        @if entries.is_empty() { p.empty { "Nobody has written here yet." } }
        @else {
            ol.entries {
                @for entry in entries {
                    li #{ "e" (entry.id) } {
                        p.message { (entry.message) }
                        p.by {
                            strong { (entry.name) } " \u{b7} "
                            time datetime=(stamp(entry.written_ms)) title=(stamp(entry.written_ms)) { (ago(now_ms - entry.written_ms)) }
                            " \u{b7} " span.via { "stored by " code { (entry.instance) } }
                        }
                    }
                }
            }
        }
    }
}

fn stamp(ms: i64) -> String {
    let second = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    // The form has no part that can fail on a valid moment.
    second.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z")).unwrap_or_default()
}

fn ago(ms: i64) -> String {
    let (n, unit) = match ms / 1000 {
        s if s < 45 => return "just now".to_owned(),
        s if s < 90 * 60 => ((s + 30) / 60, "minute"),
        s if s < 36 * 3600 => ((s + 1800) / 3600, "hour"),
        s => ((s + 43_200) / 86_400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Role;

    fn shown(entries: &[Entry], form: Shown<'_>) -> String {
        let now = Snapshot::default();
        page(&Page {
            entries,
            older: Some(7),
            is_newest: true,
            here: Here { instance: "here", role: &Role::Plain },
            now: &now,
            form,
            notice: Some(Notice::Saved(43)),
            now_ms: 0,
            assets: "1",
        })
        .into_string()
    }

    #[test]
    fn what_people_wrote_is_escaped_everywhere() {
        let evil = "<script>alert(1)</script>\"'&";
        let entry = Entry {
            id: 9,
            token: evil.to_owned(),
            name: evil.to_owned(),
            message: evil.to_owned(),
            written_ms: 0,
            instance: evil.to_owned(),
        };
        let form = Shown { token: evil, name: evil, message: evil, problems: Problems::default() };
        let html = shown(&[entry], form);
        assert!(!html.contains("<script>alert"), "{html}");
        assert!(!html.contains("alert(1)</script>\""), "{html}");
        assert!(html.contains("value=\"&lt;script&gt;"), "{html}");
    }

    #[test]
    fn every_field_has_a_label_and_a_problem_is_tied_to_its_field() {
        let problems = Problems { name: Some("Please give a name.".to_owned()), message: None };
        let html = shown(&[], Shown { problems, ..Shown::default() });
        for field in ["name", "message"] {
            assert!(html.contains(&format!("<label for=\"{field}\">")), "{field}");
        }
        assert!(html.contains("aria-describedby=\"name-problem\"") && html.contains("id=\"name-problem\""), "{html}");
        assert!(!html.contains("message-problem"), "{html}");
    }

    #[test]
    fn ages_are_told_in_one_unit() {
        for (ms, text) in
            [(0, "just now"), (60_000, "1 minute ago"), (7_200_000, "2 hours ago"), (172_800_000, "2 days ago")]
        {
            assert_eq!(ago(ms), text);
        }
        assert_eq!(stamp(1_700_000_000_123), "2023-11-14T22:13:20Z");
    }
}
