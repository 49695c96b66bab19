//! What several instances did, drawn as one SVG over time: roles as bands, requests as marks as high as they took long.

use std::fmt::Write as _;
use std::time::Duration;

/// What happened, at a moment since the beginning.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it was over.
    pub at: Duration,
    /// At which instance, from 0.
    pub instance: usize,
    /// What.
    pub what: What,
}

/// The kinds of events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// A page that was read, with the answer's status (0: none came) and how long it took.
    Read(u16, Duration),
    /// An entry that was sent, likewise.
    Write(u16, Duration),
    /// The instance said what its role is.
    Role(String),
    /// Something that was done to it.
    Mark(String),
    /// It is gone.
    End,
}

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 46.0;
const LANE: f64 = 150.0;
const TOP: f64 = 40.0;

/// Draws the events of `instances` instances.
pub fn draw(title: &str, instances: usize, events: &[Event]) -> String {
    let all = events.iter().map(|event| event.at.as_secs_f64()).fold(1.0, f64::max);
    let x = |at: Duration| LEFT + at.as_secs_f64() / all * (WIDTH - LEFT - 20.0);
    let height = TOP + instances as f64 * LANE + 50.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n"
    );
    for instance in 0..instances {
        let top = TOP + instance as f64 * LANE;
        let base = top + LANE - 18.0;
        // Formatting into a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{:.0}\" font-size=\"15\" font-weight=\"bold\">{}</text>\n\
             <line x1=\"{LEFT}\" y1=\"{base}\" x2=\"{WIDTH}\" y2=\"{base}\" stroke=\"#ccc\"/>",
            top + 70.0,
            char::from(b'A' + instance as u8),
        );
        let mine = || events.iter().filter(|event| event.instance == instance);
        bands(&mut svg, mine(), &x, top);
        let mut marks = 0;
        for event in mine() {
            let (status, took, colour) = match &event.what {
                What::Read(status, took) => (*status, *took, "#9aa0a6"),
                What::Write(status, took) => (*status, *took, "#1e8e3e"),
                What::Mark(text) => {
                    // One below the other, as they may be close; to the left of their line at the right end.
                    marks += 1;
                    let (anchor, aside) = if x(event.at) > WIDTH - 150.0 { ("end", -3.0) } else { ("start", 3.0) };
                    let _ = writeln!(
                        svg,
                        "<line x1=\"{0:.1}\" y1=\"{1}\" x2=\"{0:.1}\" y2=\"{base}\" stroke=\"#202124\"/>\
                         <text x=\"{2:.1}\" y=\"{3}\" text-anchor=\"{anchor}\">{text}</text>",
                        x(event.at),
                        top + 22.0,
                        x(event.at) + aside,
                        top + 32.0 + f64::from((marks - 1) % 3) * 12.0
                    );
                    continue;
                }
                What::Role(_) | What::End => continue,
            };
            let colour = match status {
                503 => "#f9ab00",
                200..=399 => colour,
                _ => "#d93025",
            };
            let length = (took.as_secs_f64() * 1000.0).max(1.0).log10() * 20.0 + 4.0;
            let _ = writeln!(
                svg,
                "<line x1=\"{0:.1}\" y1=\"{base}\" x2=\"{0:.1}\" y2=\"{1:.1}\" stroke=\"{colour}\" stroke-opacity=\"0.6\"/>",
                x(event.at),
                base - length.min(90.0)
            );
        }
    }
    let axis = TOP + instances as f64 * LANE + 6.0;
    let step = (all / 12.0).ceil().max(1.0);
    for tick in 0..=(all / step) as u32 {
        let at = Duration::from_secs_f64(f64::from(tick) * step);
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{axis}\" text-anchor=\"middle\">{} s</text>", x(at), at.as_secs());
    }
    let mut left = LEFT;
    let roles = ["writer", "ready", "follower", "waiting", "fenced"].map(|role| (role, role_colour(role)));
    let marks = [("read", "#9aa0a6"), ("write", "#1e8e3e"), ("503", "#f9ab00"), ("no answer", "#d93025")];
    for (name, colour) in roles.into_iter().chain(marks) {
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{0}\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{1}\" y=\"{2}\">{name}</text>",
            axis + 14.0,
            left + 16.0,
            axis + 24.0
        );
        left += 90.0;
    }
    let _ =
        writeln!(svg, "<text x=\"{left}\" y=\"{}\">height: duration, 1 ms to 10 s, log</text>\n</svg>", axis + 24.0);
    svg
}

/// The roles, each from when the instance said so until it said something else, or ended.
fn bands<'a>(svg: &mut String, events: impl Iterator<Item = &'a Event>, x: &impl Fn(Duration) -> f64, top: f64) {
    let mut since: Option<(&str, Duration)> = None;
    let mut last = Duration::ZERO;
    let mut draw = |role: &str, from: Duration, to: Duration| {
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{}\" width=\"{:.1}\" height=\"14\" fill=\"{}\"><title>{role}</title></rect>",
            x(from),
            top + 4.0,
            (x(to) - x(from)).max(0.5),
            role_colour(role)
        );
    };
    for event in events {
        last = event.at;
        match (&event.what, since) {
            (What::Role(role), Some((before, _))) if role == before => (),
            (What::Role(role), before) => {
                if let Some((before, from)) = before {
                    draw(before, from, event.at);
                }
                since = Some((role, event.at));
            }
            (What::End, Some((before, from))) => {
                draw(before, from, event.at);
                since = None;
            }
            _ => (),
        }
    }
    if let Some((role, from)) = since {
        draw(role, from, last);
    }
}

fn role_colour(role: &str) -> &'static str {
    match role {
        "writer" => "#1a73e8",
        "waiting" => "#fdd663",
        "fenced" => "#d93025",
        "follower" => "#a142f4",
        _ => "#aecbfa",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instance_has_its_lane_and_every_request_its_mark() {
        let second = Duration::from_secs(1);
        let event = |at, instance, what| Event { at: second * at, instance, what };
        let svg = draw(
            "a life",
            2,
            &[
                event(0, 0, What::Role("writer".to_owned())),
                event(1, 0, What::Write(303, Duration::from_millis(30))),
                event(2, 0, What::End),
                event(3, 1, What::Write(503, second)),
                event(10, 1, What::Mark("SIGTERM".to_owned())),
            ],
        );
        assert!(svg.contains(">A</text>") && svg.contains(">B</text>") && !svg.contains(">C</text>"), "{svg}");
        // 2 of 10 seconds of the width that the lanes have.
        assert!(svg.contains("<title>writer</title>") && svg.contains("width=\"226.8\""), "{svg}");
        assert!(svg.contains("stroke=\"#f9ab00\"") && svg.contains("stroke=\"#1e8e3e\""), "{svg}");
        assert!(svg.contains(">SIGTERM<"), "{svg}");
    }
}
