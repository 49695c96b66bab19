//! Small plots as inline SVG: one line, no axes, the newest value at the right end. Colours come from the style sheet.
//! The plot is a picture to a screen reader, with its newest and its largest value as the name.

use maud::{Markup, html};

const WIDTH: f64 = 120.0;
const HEIGHT: f64 = 30.0;
const MARGIN: f64 = 3.0;
/// Points across the whole width; fewer values begin further to the right.
const POINTS: usize = 60;

/// Draws the newest values, the oldest first, from zero to their largest. `what` and `unit` name them to a screen reader.
pub fn sparkline(values: &[f64], what: &str, unit: &str) -> Markup {
    let values = &values[values.len().saturating_sub(POINTS)..];
    let largest = values.iter().copied().fold(0.0, f64::max);
    let newest = values.last().copied().unwrap_or(0.0);
    let points = points(values, largest);
    let line = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
    let base = HEIGHT - MARGIN;
    let area = match (points.first(), points.last()) {
        (Some((first, _)), Some((last, _))) => format!("{first:.1},{base} {line} {last:.1},{base}"),
        _ => String::new(),
    };
    html! {
        svg.spark viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img"
            aria-label={ (what) " over the last minute: now " (short(newest)) " " (unit) ", at most " (short(largest)) " " (unit) } {
            line.base x1="0" x2=(WIDTH) y1=(base) y2=(base) {}
            polygon.area points=(area) {}
            polyline.line points=(line) {}
        }
    }
}

fn points(values: &[f64], largest: f64) -> Vec<(f64, f64)> {
    let step = WIDTH / (POINTS - 1) as f64;
    let begin = WIDTH - step * values.len().saturating_sub(1) as f64;
    let scale = if largest > 0.0 { (HEIGHT - 2.0 * MARGIN) / largest } else { 0.0 };
    let place = |(n, value): (usize, &f64)| (begin + step * n as f64, HEIGHT - MARGIN - value * scale);
    values.iter().enumerate().map(place).collect()
}

/// A number in at most four characters where it can be.
pub fn short(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v < 10.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_value_is_at_the_right_end_and_the_largest_at_the_top() {
        let points = points(&[0.0, 5.0, 10.0], 10.0);
        assert_eq!(points[2], (WIDTH, MARGIN));
        assert_eq!(points[0].1, HEIGHT - MARGIN);
        assert!(points[0].0 > WIDTH / 2.0, "few values begin on the right");
    }

    #[test]
    fn no_values_and_zeros_are_a_flat_line_without_nan() {
        for values in [&[][..], &[0.0, 0.0]] {
            let svg = sparkline(values, "Lag", "ms").into_string();
            assert!(!svg.contains("NaN") && svg.contains("now 0 ms, at most 0 ms"), "{svg}");
        }
    }
}
