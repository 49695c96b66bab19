//! A report as a bar chart: one SVG that needs nothing else to be shown.

use std::fmt::Write;

use crate::report::Report;

const WIDTH: usize = 760;
const LABELS: usize = 260;
const BAR: usize = 26;
const TOP: usize = 44;

/// Draws operations per second, one bar for each contender.
pub fn draw(report: &Report) -> String {
    let most = report.rows.iter().map(|(_, row)| row.per_second).fold(1.0, f64::max);
    let height = TOP + report.rows.len() * (BAR + 12) + 12;
    let room = (WIDTH - LABELS - 150) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escape(report.title)
    );
    let base = report.rows.first().map_or(1.0, |(_, row)| row.per_second);
    for (index, (name, row)) in report.rows.iter().enumerate() {
        let y = TOP + index * (BAR + 12);
        let length = row.per_second / most * room;
        let colour = if name.starts_with("sqlite-gcs") { "#1a73e8" } else { "#9aa0a6" };
        let text = y + 18;
        // Formatting into a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABELS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"3\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{text}\">{:.0} ({:.2})</text>",
            LABELS - 10,
            escape(name),
            LABELS as f64 + length + 8.0,
            row.per_second,
            row.per_second / base,
        );
    }
    svg += "</svg>\n";
    svg
}

/// Draws one number for each name, longer is more.
pub fn bars(title: &str, rows: &[(String, f64)]) -> String {
    let most = rows.iter().map(|(_, number)| *number).fold(1.0, f64::max);
    let height = TOP + rows.len() * (BAR + 12) + 12;
    let room = (WIDTH - LABELS - 150) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    for (index, (name, number)) in rows.iter().enumerate() {
        let y = TOP + index * (BAR + 12);
        let (text, length) = (y + 18, number / most * room);
        let colour = if name.starts_with("sqlite-gcs") { "#1a73e8" } else { "#9aa0a6" };
        // Formatting into a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABELS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"3\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{text}\">{number:.0}</text>",
            LABELS - 10,
            escape(name),
            LABELS as f64 + length + 8.0,
        );
    }
    svg += "</svg>\n";
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn bars_are_as_long_as_their_numbers() {
        let row = |per_second| Sample { per_second, p50_us: 1.0, p99_us: 1.0, puts: 0.0 };
        let rows = vec![("plain".to_owned(), row(200.0)), ("a < b".to_owned(), row(100.0))];
        let svg = draw(&Report { name: "n", title: "t", model: String::new(), rows });
        assert!(svg.contains("width=\"350.0\"") && svg.contains("width=\"175.0\""), "{svg}");
        assert!(svg.contains("a &lt; b") && svg.contains("100 (0.50)"), "{svg}");
    }
}
