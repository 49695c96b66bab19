//! How often to upload: a fixed interval, or (`flush_interval=auto`) one that keeps a month's class A requests within a budget.
//!
//! Requests are saved up at the budget's rate, a day's worth at most, and every class A request takes one: uploads, but also
//! renewals of the lease, merges and listings. The interval follows from what is saved up:
//!
//! | saved up | interval |
//! |---|---|
//! | an hour's worth and more | [`LEAST`] |
//! | from there down to nothing | widens to the one that the rate pays for |
//! | less than nothing, down to a missing hour | widens further, to [`MOST`] |
//!
//! [`MOST`] is the bound of what a lost machine takes with it: it holds whatever the budget says. Constant writing at that interval
//! costs 180,000 requests a month, most of it renewals; hence no smaller budget can be promised. A process begins with an
//! hour's worth: what earlier processes spent, and what other hosts spend, it does not know.

use std::time::Duration;

use crate::local::shared::BootTime;
use crate::sync::Mutex;

/// The shortest interval: as without a budget.
pub(crate) const LEAST: Duration = Duration::from_secs(1);
/// The longest interval.
pub(crate) const MOST: Duration = Duration::from_secs(60);

const HOUR: f64 = 3600.0;
/// A month of 30.4 days, in seconds.
pub(crate) const MONTH: f64 = 730.0 * HOUR;

/// How often to upload.
#[derive(Debug)]
pub(crate) enum Pace {
    /// At this interval.
    Fixed(Duration),
    /// Within a budget.
    Auto(Budget),
}

impl Pace {
    /// The interval now; `spent`: class A requests of this process for the database so far.
    pub(crate) fn interval(&self, now: BootTime, spent: u64) -> Duration {
        match self {
            Pace::Fixed(interval) => *interval,
            Pace::Auto(budget) => budget.interval(now, spent),
        }
    }
}

/// What is left of a budget.
#[derive(Debug)]
pub(crate) struct Budget {
    per_second: f64,
    saved: Mutex<Saved>,
}

#[derive(Debug)]
struct Saved {
    requests: f64,
    at: BootTime,
    spent: u64,
}

impl Budget {
    /// So many class A requests a month.
    pub(crate) fn new(per_month: u64, now: BootTime) -> Budget {
        let per_second = per_month as f64 / MONTH;
        Budget { per_second, saved: Mutex::new(Saved { requests: per_second * HOUR, at: now, spent: 0 }) }
    }

    fn interval(&self, now: BootTime, spent: u64) -> Duration {
        let mut saved = self.saved.lock();
        let earned = now.since(saved.at).as_secs_f64() * self.per_second;
        let used = spent.saturating_sub(saved.spent) as f64;
        saved.requests = (saved.requests + earned - used).min(self.per_second * 24.0 * HOUR);
        (saved.at, saved.spent) = (now.max(saved.at), spent.max(saved.spent));
        let hours = saved.requests / (self.per_second * HOUR);
        let (least, most) = (LEAST.as_secs_f64(), MOST.as_secs_f64());
        let paid_for = self.per_second.recip().clamp(least, most);
        let seconds = if hours >= 0.0 {
            paid_for + (least - paid_for) * hours.min(1.0)
        } else {
            paid_for + (most - paid_for) * (-hours).min(1.0)
        };
        Duration::from_secs_f64(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DEFAULT_BUDGET, LEAST_BUDGET};

    /// A month of writing all the time: class A requests, and the longest interval.
    fn month(budget: u64) -> (u64, Duration) {
        let begun = BootTime::now();
        let budget = Budget::new(budget, begun);
        let (mut now, mut spent, mut longest) = (begun, 0, Duration::ZERO);
        let mut renewed = begun;
        while now.since(begun).as_secs_f64() < MONTH {
            let interval = budget.interval(now, spent);
            longest = longest.max(interval);
            now = now.plus(interval);
            // An upload; a merge or a listing for every 32 of them; a renewal every 20 s.
            spent += 1 + u64::from(spent % 32 == 0);
            while now.since(renewed) >= Duration::from_secs(20) {
                renewed = renewed.plus(Duration::from_secs(20));
                spent += 1;
            }
        }
        (spent, longest)
    }

    #[test]
    fn a_month_of_constant_writing_stays_within_its_budget_and_the_bound() {
        for budget in [LEAST_BUDGET, 300_000, DEFAULT_BUDGET, 2_000_000] {
            let (spent, longest) = month(budget);
            assert!(spent as f64 <= budget as f64 * 1.005, "{spent} of {budget}");
            assert!(spent as f64 >= budget as f64 * 0.8, "{spent} of {budget}: it could upload more often");
            assert!(longest <= MOST);
        }
        let (_, longest) = month(4_000_000);
        assert_eq!(longest, LEAST, "a budget for an upload every second");
    }

    #[test]
    fn a_quiet_database_uploads_at_once_when_it_is_written() {
        let begun = BootTime::now();
        let budget = Budget::new(LEAST_BUDGET, begun);
        assert_eq!(budget.interval(begun, 0), LEAST);
        let tired = budget.interval(begun.plus(Duration::from_secs(600)), 1000);
        assert!(tired > Duration::from_secs(15), "{tired:?}");
        assert_eq!(budget.interval(begun.plus(Duration::from_secs(24 * 3600)), 1000), LEAST);
    }
}
