//! A walk before it is walked: who takes part, how bad the network is, and what befalls whom when. All of it comes from the
//! seed; a failing walk is made smaller by leaving parts of its plan out.

use fastrand::Rng;

/// Which dangers a walk is rich in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Profile {
    /// A bit of everything.
    Mixed,
    /// Requests that land late, lost answers.
    Late,
    /// Suspended hosts, leases that run out.
    Freezes,
    /// Crashes with kept and lost disks.
    Crashes,
    /// Compaction, deletes, slow readers, requests that land after the grace.
    History,
}

impl Profile {
    pub(super) const ALL: [Profile; 5] =
        [Profile::Mixed, Profile::Late, Profile::Freezes, Profile::Crashes, Profile::History];
}

/// What befalls a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// The application commits a row; it waits for the bucket if `durable`.
    Commit { durable: bool },
    /// The process dies; with `power` the machine does, and with `wipe` its disk goes too.
    Crash { wipe: bool, power: bool, down_ms: i64 },
    /// The host is suspended.
    Freeze { ms: i64 },
    /// The last connection closes.
    Close,
    /// Compacts something into a level-1 object, or into a snapshot.
    Compact { snapshot: bool },
    /// Deletes what may go.
    Sweep,
    /// A cold reader opens the database.
    Read,
    /// A follower looks for news.
    Poll,
}

/// One action of a plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Planned {
    pub(super) at: i64,
    pub(super) host: usize,
    pub(super) action: Action,
}

/// A whole walk.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Writers; after them come one cold reader and one follower.
    pub(super) writers: usize,
    /// Of each writer: clock drift in parts per million, time to live of its leases.
    pub(super) clocks: Vec<(i64, u64)>,
    /// Per mille of requests that: never land; land, but the answer is lost; land after seconds; after minutes; after more than
    /// the grace.
    pub(super) faults: [u64; 5],
    pub(super) actions: Vec<Planned>,
    /// At the end, a holder dies and another writer must get its lease in time.
    pub(super) takeover: bool,
    /// No answer carries a date.
    pub(super) dateless: bool,
}

impl Plan {
    pub(super) fn new(seed: u64, profile: Profile) -> Plan {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ profile as u64);
        let writers = rng.usize(2..=3);
        let clocks =
            (0..writers + 2).map(|_| (rng.i64(-15_000..=15_000), [20_000, 40_000, 60_000][rng.usize(0..3)])).collect();
        let faults = match (profile, rng.u8(0..4)) {
            (_, 0) => [0; 5],
            (Profile::Late, _) => [30, 60, 50, 150, 5],
            (Profile::History, _) => [10, 20, 20, 10, 60],
            _ => [30, 30, 30, 15, 2],
        };
        let (mut at, mut actions) = (0, Vec::new());
        for _ in 0..rng.usize(10..40) {
            at += match rng.u32(0..100) {
                0..60 => rng.i64(1..800),
                60..90 => rng.i64(800..6_000),
                90..97 => rng.i64(6_000..70_000),
                _ if profile == Profile::History => rng.i64(300_000..900_000),
                _ => rng.i64(30_000..130_000),
            };
            if rng.u8(0..12) == 0 {
                Plan::episode(&mut rng, profile, writers, &mut at, &mut actions);
                continue;
            }
            let (host, action) = Plan::action(&mut rng, profile, writers);
            let commits = matches!(action, Action::Commit { .. });
            actions.push(Planned { at, host, action });
            // The worst comes right behind a commit.
            if commits && rng.u8(0..8) == 0 {
                at += rng.i64(1..90);
                actions.push(Planned { at, host, action: Plan::blow(&mut rng, profile) });
            }
        }
        let dateless = rng.u8(0..10) == 0;
        Plan { seed, writers, clocks, faults, actions, takeover: !dateless && rng.u8(0..3) == 0, dateless }
    }

    fn action(rng: &mut Rng, profile: Profile, writers: usize) -> (usize, Action) {
        let (reader, follower) = (writers, writers + 1);
        let host = rng.usize(0..writers);
        // Of a hundred: crash, freeze, compact, sweep, read, poll, close; the rest are commits.
        let odds: [u32; 7] = match profile {
            Profile::Mixed => [6, 6, 5, 4, 4, 4, 4],
            Profile::Late => [3, 4, 1, 1, 1, 1, 8],
            Profile::Freezes => [2, 18, 2, 1, 1, 1, 4],
            Profile::Crashes => [20, 3, 2, 1, 1, 1, 3],
            Profile::History => [3, 4, 18, 16, 10, 10, 3],
        };
        let (mut dice, mut kind) = (rng.u32(0..100), 0);
        while kind < odds.len() && dice >= odds[kind] {
            dice -= odds[kind];
            kind += 1;
        }
        match kind {
            0 => (host, Plan::crash(rng)),
            1 => {
                let host = if profile == Profile::History { rng.usize(0..writers + 2) } else { host };
                (host, Plan::freeze(rng, profile))
            }
            2 => (host, Action::Compact { snapshot: rng.u8(0..3) == 0 }),
            3 => (host, Action::Sweep),
            4 => (reader, Action::Read),
            5 => (follower, Action::Poll),
            6 => (host, Action::Close),
            _ => (host, Action::Commit { durable: rng.bool() }),
        }
    }

    /// What chance alone would seldom put in a row.
    fn episode(rng: &mut Rng, profile: Profile, writers: usize, at: &mut i64, actions: &mut Vec<Planned>) {
        let a = rng.usize(0..writers);
        let b = (a + 1) % writers;
        let commit = |rng: &mut Rng| Action::Commit { durable: rng.bool() };
        let mut then = |after: i64, host: usize, action: Action| {
            *at += after;
            actions.push(Planned { at: *at, host, action });
        };
        match (profile, rng.bool()) {
            // A reader stalls within a read, until what it planned with is gone.
            (Profile::History, true) => {
                then(0, a, commit(rng));
                then(rng.i64(300..2_000), a, commit(rng));
                then(rng.i64(1_000..5_000), writers, Action::Read);
                then(rng.i64(20..110), writers, Action::Freeze { ms: rng.i64(700_000..1_200_000) });
                then(rng.i64(10..1_000), a, Action::Compact { snapshot: rng.bool() });
                then(rng.i64(605_000..650_000), a, commit(rng));
                then(rng.i64(1_000..5_000), b, Action::Sweep);
            }
            // A writer dies with a delta under way; its heir writes, compacts, and deletes.
            (Profile::History, false) => {
                then(0, a, commit(rng));
                then(rng.i64(300..1_500), a, commit(rng));
                then(rng.i64(1..90), a, Action::Crash { wipe: true, power: true, down_ms: 5_000 });
                then(rng.i64(100..2_000), b, commit(rng));
                then(rng.i64(65_000..70_000), b, commit(rng));
                then(rng.i64(2_000..5_000), b, Action::Compact { snapshot: rng.bool() });
                then(rng.i64(605_000..650_000), b, Action::Sweep);
                then(rng.i64(500_000..800_000), b, commit(rng));
            }
            // A writer dies or stalls with a delta under way; another one waits for the lease.
            _ => {
                then(0, a, commit(rng));
                then(rng.i64(10..1_500), a, commit(rng));
                then(rng.i64(1..90), a, Plan::blow(rng, profile));
                then(rng.i64(10..20_000), b, commit(rng));
                then(rng.i64(10..20_000), b, commit(rng));
                then(rng.i64(10..20_000), b, commit(rng));
            }
        }
    }

    fn blow(rng: &mut Rng, profile: Profile) -> Action {
        match profile {
            Profile::Crashes => Plan::crash(rng),
            Profile::Freezes | Profile::History => Plan::freeze(rng, profile),
            Profile::Late if rng.u8(0..4) == 0 => Action::Close,
            Profile::Late | Profile::Mixed if rng.bool() => Plan::crash(rng),
            Profile::Late | Profile::Mixed => Plan::freeze(rng, profile),
        }
    }

    fn crash(rng: &mut Rng) -> Action {
        let wipe = rng.u8(0..3) == 0;
        let down_ms = if rng.bool() { rng.i64(50..3_000) } else { rng.i64(3_000..90_000) };
        Action::Crash { wipe, power: wipe || rng.bool(), down_ms }
    }

    fn freeze(rng: &mut Rng, profile: Profile) -> Action {
        let ms = match rng.u8(0..3) {
            0 => rng.i64(100..5_000),
            1 => rng.i64(15_000..100_000),
            _ if profile == Profile::History => rng.i64(500_000..1_500_000),
            _ => rng.i64(30_000..200_000),
        };
        Action::Freeze { ms }
    }

    /// Smaller plans to try, larger cuts first.
    pub(super) fn smaller(&self) -> Vec<Plan> {
        let mut plans = Vec::new();
        if self.takeover {
            plans.push(Plan { takeover: false, ..self.clone() });
        }
        let mut size = self.actions.len() / 2;
        while size > 0 {
            for start in (0..self.actions.len()).step_by(size) {
                let mut plan = self.clone();
                plan.actions.drain(start..(start + size).min(plan.actions.len()));
                plans.push(plan);
            }
            size /= 2;
        }
        for (kind, of_all) in self.faults.iter().enumerate() {
            if *of_all > 0 {
                let mut plan = self.clone();
                plan.faults[kind] = 0;
                plans.push(plan);
            }
        }
        plans
    }
}
