//! A seeded simulation of the protocol: the decisions that are shipped, in a world that is against them.
//!
//! Two or three writers, a cold reader and a follower share a virtual bucket. Requests land late or never, answers get lost,
//! hosts are suspended, crash, lose their disks, and run on clocks that drift; holders and former holders compact and delete.
//! Checked at every instant: the log is contiguous, written once, and each delta made on the state before it; every row that was
//! acknowledged as durable is in it exactly once; nobody acknowledges past its right; what was set aside or reported as
//! failed is not in the log; a cold open finds the whole log; readers and the follower see states that were. At the end all
//! is settled, and every acknowledged row is in the log, set aside, or was lost with its disk.
//!
//! `SQLITE_GCS_SEEDS=100000` walks that many seeds. A failing seed is made smaller and printed as a trace.
//!
//! Not visible to these checks, and so not demanded of them: no second look at the right after a 200 (the seals hold the name);
//! a delete by name instead of by generation; a listing in descending order, with the newest delta kept; and the head taken
//! from level 0 alone, as long as the newest level-0 object is never deleted (the variant here deletes it).

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "test code")]

mod broken;
mod bucket;
mod chores;
mod disk;
mod driver;
mod forge;
mod host;
mod plan;
mod truth;
mod world;

use std::collections::BTreeMap;
use std::time::Instant;

use broken::Broken;
use plan::{Action, Plan, Planned, Profile};
use world::World;

/// Walks one plan; what it violated.
fn walk(plan: &Plan, broken: Option<Broken>) -> (Option<String>, BTreeMap<&'static str, u64>) {
    let mut world = World::new(plan, broken, false);
    let violation = world.walk();
    (violation, world.counts)
}

/// Makes a failing plan smaller as long as it fails, and walks it once more with a trace.
fn shrunk(mut plan: Plan, broken: Option<Broken>) -> String {
    let mut tries = 0;
    while tries < 2_000 {
        let smaller = plan.smaller().into_iter().find(|smaller| {
            tries += 1;
            walk(smaller, broken).0.is_some()
        });
        match smaller {
            Some(smaller) => plan = smaller,
            None => break,
        }
    }
    let mut world = World::new(&plan, broken, true);
    let violation = world.walk().unwrap_or_default();
    format!(
        "{violation}\nseed {}, {} actions:\n{}",
        plan.seed,
        plan.actions.len(),
        world.trace.unwrap_or_default().join("\n")
    )
}

#[test]
fn no_seed_violates_the_invariants() {
    let seeds = std::env::var("SQLITE_GCS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let (begin, mut totals) = (Instant::now(), BTreeMap::new());
    for seed in 0..seeds {
        let plan = Plan::new(seed, Profile::ALL[seed as usize % Profile::ALL.len()]);
        let (violation, counts) = walk(&plan, None);
        if violation.is_some() {
            panic!("{}", shrunk(plan, None));
        }
        counts.into_iter().for_each(|(what, count)| *totals.entry(what).or_insert(0) += count);
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{seeds} walks, {:.0} a second; {totals:?}", seeds as f64 / seconds);
    // A simulation in which nothing happens would pass as well.
    for what in ["conflicts", "leases lost", "deletes", "compactions", "reads"] {
        assert!(totals.get(what).is_some_and(|count| *count > 0), "no walk had any {what}");
    }
}

#[test]
fn every_broken_variant_is_caught() {
    let only = std::env::var("SQLITE_GCS_BROKEN").ok();
    let mut missed = Vec::new();
    for (broken, profile) in Broken::ALL {
        if only.as_ref().is_some_and(|only| *only != format!("{broken:?}")) {
            continue;
        }
        let caught = (0..4_000).find_map(|seed| {
            let plan = Plan::new(seed, profile);
            // That a takeover comes late is the whole harm of one variant; the others have worse to show.
            let plan = Plan { takeover: broken == Broken::WantRefreshesAge, ..plan };
            walk(&plan, Some(broken)).0.map(|violation| (plan, violation))
        });
        match caught {
            Some((plan, violation)) => {
                println!("{broken:?}: seed {} of {profile:?}: {violation}", plan.seed);
                if only.is_some() {
                    println!("{}", shrunk(plan, Some(broken)));
                }
            }
            None => missed.push(broken),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// A walk without any fault: these commits at these times.
fn quiet(commits: impl Iterator<Item = (i64, usize)>) -> Plan {
    let commit = |(at, host)| Planned { at, host, action: Action::Commit { durable: true } };
    let clocks = vec![(0, 40_000); 4];
    let actions = commits.map(commit).collect();
    Plan { seed: 1, writers: 2, clocks, faults: [0; 5], actions, takeover: false, dateless: false }
}

#[test]
fn two_writers_that_write_all_the_time_take_turns() {
    let plan = quiet((0..600).map(|n| (n * 100, n as usize % 2)));
    let mut world = World::new(&plan, None, false);
    assert_eq!(world.walk(), None);
    assert!(world.fates.iter().all(|fate| fate.told_durable), "every commit gets its turn");
    let holders: Vec<u64> =
        world.log.iter().filter(|(delta, ..)| !delta.rows.is_empty()).map(|(d, ..)| d.nonce).collect();
    let turns = holders.windows(2).filter(|pair| pair[0] != pair[1]).count();
    // Sixty seconds, turns of at least three, and a look at the lease once a second.
    assert!((8..=20).contains(&turns), "{turns} turns");
}

#[test]
fn a_burst_of_writes_costs_two_writes_of_the_lease() {
    let bursts = |n: i64| quiet((0..n).flat_map(|burst| (0..5).map(move |k| (burst * 20_000 + k * 200, 0))));
    let cost = |plan: &Plan| {
        let (violation, counts) = walk(plan, None);
        assert_eq!(violation, None);
        let of = |what| counts.get(what).copied().unwrap_or(0);
        (of("requests: write lease"), of("requests: list"))
    };
    // The first one meets an empty bucket: swap, list, seal, swap, release.
    assert_eq!(cost(&quiet((0..5).map(|k| (k * 200, 0)))), (3, 1));
    assert_eq!(cost(&bursts(4)), (3 + 3 * 2, 1));
}

#[test]
fn constant_writing_renews_the_lease_three_times_a_minute() {
    let (violation, counts) = walk(&quiet((0..1_200).map(|n| (n * 100, 0))), None);
    assert_eq!(violation, None);
    let writes = counts.get("requests: write lease").copied().unwrap_or(0);
    // Two minutes: six renewals, and the acquisition and release around them.
    assert!((7..=10).contains(&writes), "{writes} writes of the lease");
}
