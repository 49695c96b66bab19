//! Which pages are being fetched by this process right now, so that each is fetched once.
//!
//! Whoever misses a page that somebody fetches already waits for that fetch and takes its outcome. A flight ends only after its
//! pages are in the file and their bits are set, so one look at the bits under the table's lock, before a flight is
//! started, is enough: either the page is there, or its flight is, or nobody fetches it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::page::Pgno;
use crate::sync::{Condvar, Mutex};

/// One fetch of a run of pages.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    outcome: Mutex<Option<Result<()>>>,
    ended: Condvar,
}

impl Flight {
    /// Waits for its end, `limit` at most; whether it came.
    pub(crate) fn ended_within(&self, limit: Duration) -> bool {
        let outcome = self.ended.wait_while_for(self.outcome.lock(), |outcome| outcome.is_none(), limit);
        outcome.is_some()
    }

    /// Waits for its end, `limit` at most, and returns its outcome.
    pub(crate) fn wait(&self, limit: Duration) -> Result<()> {
        let outcome = self.ended.wait_while_for(self.outcome.lock(), |outcome| outcome.is_none(), limit);
        let late = || format!("another thread's fetch of the page has not ended within {} ms", limit.as_millis());
        outcome.clone().unwrap_or_else(|| Err(Error::new(ErrorKind::Unavailable, late())))
    }
}

/// All flights of a cache file.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    by_page: Mutex<HashMap<Pgno, Arc<Flight>>>,
}

/// What to do about a missing page.
pub(crate) enum Turn<T> {
    /// It is there by now.
    Present,
    /// Somebody else fetches it.
    Wait(Arc<Flight>),
    /// Fetch what was planned, then end the flights. The first one has the missing page.
    Fetch(Vec<(Departed, T)>),
}

/// The pages of one flight, and what the planner wants to keep with them.
pub(crate) type Planned<T> = (Vec<Pgno>, T);

/// A flight that was started. Dropped without an outcome, it fails.
pub(crate) struct Departed {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    pages: Vec<Pgno>,
    outcome: Result<()>,
}

impl Flights {
    /// Decides about `missing`. `present` is asked under the table's lock; `plan` is given a way to ask whether a page is
    /// free to be fetched along, and returns the flights: no page twice, the missing one in the first.
    pub(crate) fn turn<T>(
        self: &Arc<Self>,
        missing: Pgno,
        present: impl Fn(Pgno) -> bool,
        plan: impl FnOnce(&dyn Fn(Pgno) -> bool) -> Result<Vec<Planned<T>>>,
    ) -> Result<Turn<T>> {
        let mut by_page = self.by_page.lock();
        if present(missing) {
            return Ok(Turn::Present);
        }
        if let Some(flight) = by_page.get(&missing) {
            return Ok(Turn::Wait(Arc::clone(flight)));
        }
        let planned = plan(&|pgno| !present(pgno) && !by_page.contains_key(&pgno))?;
        Ok(Turn::Fetch(self.depart(&mut by_page, planned)))
    }

    /// Starts flights that nobody waits for yet; `plan` as in [`Flights::turn`].
    pub(crate) fn ahead<T>(
        self: &Arc<Self>,
        present: impl Fn(Pgno) -> bool,
        plan: impl FnOnce(&dyn Fn(Pgno) -> bool) -> Result<Vec<Planned<T>>>,
    ) -> Result<Vec<(Departed, T)>> {
        let mut by_page = self.by_page.lock();
        let planned = plan(&|pgno| !present(pgno) && !by_page.contains_key(&pgno))?;
        Ok(self.depart(&mut by_page, planned))
    }

    fn depart<T>(
        self: &Arc<Self>,
        by_page: &mut HashMap<Pgno, Arc<Flight>>,
        planned: Vec<Planned<T>>,
    ) -> Vec<(Departed, T)> {
        let depart = |(pages, kept): Planned<T>| {
            let flight = Arc::new(Flight::default());
            by_page.extend(pages.iter().map(|&pgno| (pgno, Arc::clone(&flight))));
            let outcome = Err(Error::new(ErrorKind::Unavailable, "the fetch of the page was given up"));
            (Departed { flights: Arc::clone(self), flight, pages, outcome }, kept)
        };
        planned.into_iter().map(depart).collect()
    }
}

#[cfg(test)]
impl Flights {
    /// How many threads wait for the flight that fetches a page.
    pub(crate) fn waiters(&self, pgno: Pgno) -> usize {
        let by_page = self.by_page.lock();
        let Some(flight) = by_page.get(&pgno) else { return 0 };
        let entries = by_page.values().filter(|other| Arc::ptr_eq(other, flight)).count();
        Arc::strong_count(flight) - entries - 1
    }
}

impl Departed {
    /// The flight, for one who waits for its end.
    pub(crate) fn watch(&self) -> Arc<Flight> {
        Arc::clone(&self.flight)
    }

    /// Ends the flight; those who wait get a copy of the outcome.
    pub(crate) fn land(mut self, outcome: Result<()>) -> Result<()> {
        self.outcome = outcome.clone();
        outcome
    }
}

impl Drop for Departed {
    fn drop(&mut self) {
        let mut by_page = self.flights.by_page.lock();
        for pgno in &self.pages {
            by_page.remove(pgno);
        }
        drop(by_page);
        *self.flight.outcome.lock() = Some(self.outcome.clone());
        self.flight.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_came_before_its_turn_is_not_fetched() {
        let flights = Arc::new(Flights::default());
        let plan = |_: &dyn Fn(Pgno) -> bool| -> Result<Vec<Planned<()>>> { panic!("nothing is to be planned") };
        assert!(matches!(flights.turn(Pgno(3), |_| true, plan), Ok(Turn::Present)));
    }

    #[test]
    fn pages_of_a_flight_are_not_free_until_it_has_landed_also_when_it_was_given_up() {
        let flights = Arc::new(Flights::default());
        let both = |_: &dyn Fn(Pgno) -> bool| Ok(vec![(vec![Pgno(3), Pgno(4)], ())]);
        let Ok(Turn::Fetch(departed)) = flights.turn(Pgno(3), |_| false, both) else { panic!("a first turn") };
        let Ok(Turn::Wait(flight)) = flights.turn(Pgno(4), |_| false, both) else { panic!("a second turn") };
        let alone = |free: &dyn Fn(Pgno) -> bool| Ok(vec![(vec![Pgno(2)], (free(Pgno(3)), free(Pgno(5))))]);
        let Ok(Turn::Fetch(other)) = flights.turn(Pgno(2), |_| false, alone) else { panic!("a third turn") };
        assert_eq!(other[0].1, (false, true));
        assert!(flight.wait(Duration::from_millis(1)).is_err());
        drop(departed);
        let error = flight.wait(Duration::from_secs(5)).expect_err("no outcome was given");
        assert!(error.to_string().contains("given up"), "{error}");
        assert!(matches!(flights.turn(Pgno(3), |_| false, both), Ok(Turn::Fetch(..))));
    }
}
