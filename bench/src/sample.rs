//! What one measurement yields, and the median of several.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One measurement: operations per second, and what single operations took.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Operations per second of wall-clock time.
    pub per_second: f64,
    /// Half of the operations took at most this many microseconds.
    pub p50_us: f64,
    /// 99 of 100 operations took at most this many microseconds.
    pub p99_us: f64,
    /// Objects that were written to the bucket meanwhile; zero without one.
    pub puts: f64,
}

impl Sample {
    /// From the time of every single operation and of all together.
    pub fn of(mut each: Vec<Duration>, all: Duration, puts: u64) -> Sample {
        each.sort_unstable();
        let at = |share: f64| {
            let index = (each.len().saturating_sub(1) as f64 * share) as usize;
            each.get(index).copied().unwrap_or_default().as_secs_f64() * 1e6
        };
        Sample {
            per_second: each.len() as f64 / all.as_secs_f64(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            puts: puts as f64,
        }
    }

    /// Each number's median over the rounds.
    pub fn median(rounds: &[Sample]) -> Sample {
        let of = |number: fn(&Sample) -> f64| {
            let mut all: Vec<f64> = rounds.iter().map(number).collect();
            all.sort_unstable_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        Sample {
            per_second: of(|s| s.per_second),
            p50_us: of(|s| s.p50_us),
            p99_us: of(|s| s.p99_us),
            puts: of(|s| s.puts),
        }
    }
}

/// The line that a worker prints.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.per_second, self.p50_us, self.p99_us, self.puts)
    }
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(line: &str) -> Result<Sample, String> {
        let numbers: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [per_second, p50_us, p99_us, puts] => Ok(Sample { per_second, p50_us, p99_us, puts }),
            _ => Err(format!("a worker printed {line:?} instead of four numbers")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_sorted_times() {
        let each = (1..=100).rev().map(Duration::from_micros).collect();
        let sample = Sample::of(each, Duration::from_secs(2), 3);
        assert_eq!((sample.per_second, sample.puts), (50.0, 3.0));
        assert!((sample.p50_us - 50.0).abs() < 0.01 && (sample.p99_us - 99.0).abs() < 0.01, "{sample:?}");
    }

    #[test]
    fn a_line_is_read_back_as_it_was_printed() {
        let sample = Sample { per_second: 12.5, p50_us: 1.0, p99_us: 2.25, puts: 0.0 };
        let again: Sample = sample.to_string().parse().expect("four numbers");
        assert_eq!(again.to_string(), sample.to_string());
        assert!("1 2 3".parse::<Sample>().is_err());
    }
}
