//! Which objects make up the database as of a transaction.
//!
//! The plan is the one that `litestream restore` computes: the newest snapshot (level 9) at or before the
//! target, then, as long as there is one, the object of any level that begins at or before the next
//! transaction and reaches furthest, never beyond the target; of two that reach equally far the one of the
//! higher level (it was made from the other). Where the log of one transaction number was written by two
//! writers, exactly one of the objects is thereby taken.
//!
//! A hole in the log is an error and never "the log is shorter" or "the log is empty": whoever believed that
//! would write over what is beyond the hole. A listing may show a hole for a moment while objects are replaced
//! by compacted ones, so the caller lists once more before it believes in it.
//!
//! Pure: no I/O. Whether the objects hold what their names say is checked where they are read.

use crate::error::{Error, ErrorKind, Result};
use crate::page::TxId;
use crate::replica::names::{Listed, SNAPSHOT_LEVEL};

/// The objects to apply one after the other, oldest first. Never empty; the first one holds every page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Oldest first; ranges may overlap, and then the later one counts.
    pub objects: Vec<Listed>,
}

impl Chain {
    /// The last transaction that it covers.
    pub fn txid(&self) -> TxId {
        self.objects.last().map_or(TxId::NONE, |last| last.name.max)
    }
}

/// Plans how to get to `target`, or to the head of the log where none is given. `None`: the log is empty.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a hole in the log, naming the first missing transaction. [`ErrorKind::Configuration`]
/// for a target after the head, or inside a range that exists only in compacted form.
pub fn plan(objects: &[Listed], target: Option<TxId>) -> Result<Option<Chain>> {
    let head = objects.iter().map(|o| o.name.max).max().unwrap_or(TxId::NONE);
    let limit = target.unwrap_or(head);
    let usable: Vec<&Listed> = objects.iter().filter(|o| o.name.max <= limit && is_well_formed(o)).collect();

    let snapshots = usable.iter().filter(|o| o.name.level == SNAPSHOT_LEVEL);
    let mut chain: Vec<Listed> = snapshots.max_by_key(|o| o.name.max).map(|o| (*o).clone()).into_iter().collect();
    let mut current = chain.first().map_or(TxId::NONE, |o| o.name.max);

    // By ascending min, so that each step only looks at what it newly reaches.
    let mut rest = usable;
    rest.sort_by_key(|o| o.name.min);
    let mut rest = rest.into_iter().peekable();
    let mut best: Option<&Listed> = None;
    loop {
        while let Some(next) = rest.next_if(|o| o.name.min <= current.next()) {
            let reach = |o: &Listed| (o.name.max, o.name.level);
            if best.is_none_or(|b| reach(b) < reach(next)) {
                best = Some(next);
            }
        }
        match best {
            Some(step) if step.name.max > current => {
                current = step.name.max;
                chain.push(step.clone());
            }
            _ => break,
        }
    }

    if let Some(beyond) = rest.next() {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the log has a gap: transaction {} is in no object, although {} is there",
                current.next(),
                beyond.name
            ),
        ));
    }
    if current < limit {
        let missing = current.next();
        let why = match objects.iter().find(|o| is_well_formed(o) && o.name.min <= missing && missing <= o.name.max) {
            Some(wider) => format!("transaction {missing} is kept only together with later ones, in {}", wider.name),
            None if limit > head => format!("the log ends at {head}"),
            None => format!("transaction {missing} is in no object"),
        };
        let kind = if target.is_some() { ErrorKind::Configuration } else { ErrorKind::Corrupt };
        return Err(Error::new(kind, format!("no way to the state as of {limit}: {why}")));
    }
    Ok((!chain.is_empty()).then_some(Chain { objects: chain }))
}

/// What is to be applied to a database as of `from` to bring it to `target`, oldest first: deltas and what was merged of them, and
/// a snapshot only where those are not to be had any more, because it says of every page that it may have changed.
///
/// # Errors
/// As [`plan`].
pub fn plan_onto(objects: &[Listed], from: TxId, target: TxId) -> Result<Vec<Listed>> {
    let mut rest: Vec<&Listed> =
        objects.iter().filter(|o| o.name.max <= target && o.name.max > from && o.name.level < SNAPSHOT_LEVEL).collect();
    rest.sort_by_key(|o| o.name.min);
    let (mut current, mut steps) = (from, Vec::new());
    while current < target {
        let within = rest.partition_point(|o| o.name.min <= current.next());
        let step = rest[..within].iter().max_by_key(|o| (o.name.max, o.name.level));
        match step {
            Some(step) if step.name.max > current => {
                current = step.name.max;
                steps.push((*step).clone());
                rest.retain(|o| o.name.max > current);
            }
            _ => {
                let whole = plan(objects, Some(target))?.map_or_else(Vec::new, |chain| chain.objects);
                return Ok(whole.into_iter().filter(|o| o.name.max > from).collect());
            }
        }
    }
    Ok(steps)
}

/// A level-9 object that does not begin at 1 is no snapshot; Litestream does not restore from one either.
fn is_well_formed(object: &Listed) -> bool {
    object.name.level != SNAPSHOT_LEVEL || object.name.is_snapshot()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::names::ObjectName;
    use crate::store::{Generation, Meta};

    fn log(names: &[(u8, u64, u64)]) -> Vec<Listed> {
        let listed = |&(level, min, max)| Listed {
            name: ObjectName { level, min: TxId(min), max: TxId(max) },
            meta: Meta { generation: Generation(1), size: 100, created: None, crc32c: None },
        };
        names.iter().map(listed).collect()
    }

    fn planned(names: &[(u8, u64, u64)], target: Option<u64>) -> Vec<(u8, u64, u64)> {
        let chain = plan(&log(names), target.map(TxId)).expect("a plan").expect("a log");
        chain.objects.iter().map(|o| (o.name.level, o.name.min.0, o.name.max.0)).collect()
    }

    fn refused(names: &[(u8, u64, u64)], target: Option<u64>) -> Error {
        plan(&log(names), target.map(TxId)).expect_err("no plan")
    }

    #[test]
    fn an_empty_log_has_no_chain() {
        assert_eq!(plan(&[], None).expect("a plan"), None);
    }

    #[test]
    fn the_chains_that_litestream_restores_are_planned_as_it_does() {
        assert_eq!(planned(&[(9, 1, 1), (0, 2, 2), (0, 3, 3)], None), [(9, 1, 1), (0, 2, 2), (0, 3, 3)]);
        assert_eq!(planned(&[(0, 1, 1), (0, 2, 2)], None), [(0, 1, 1), (0, 2, 2)]);
        assert_eq!(planned(&[(9, 1, 100), (0, 101, 101)], None), [(9, 1, 100), (0, 101, 101)]);
        assert_eq!(planned(&[(0, 1, 1), (0, 2, 5), (0, 6, 9)], None), [(0, 1, 1), (0, 2, 5), (0, 6, 9)]);
        // A gap in level 0, bridged by level 1.
        assert_eq!(planned(&[(0, 1, 1), (0, 4, 4), (1, 2, 3)], None), [(0, 1, 1), (1, 2, 3), (0, 4, 4)]);
    }

    #[test]
    fn the_furthest_reach_wins_and_then_the_higher_level() {
        assert_eq!(planned(&[(0, 1, 1), (0, 2, 2), (1, 1, 2), (2, 1, 2)], None), [(2, 1, 2)]);
        assert_eq!(planned(&[(0, 1, 1), (1, 1, 4), (0, 2, 9), (0, 5, 5)], None), [(1, 1, 4), (0, 2, 9)]);
        // The old snapshot is not needed; the newest one is taken although a longer object begins at 1.
        assert_eq!(planned(&[(9, 1, 3), (9, 1, 5), (3, 1, 6), (0, 6, 6)], None), [(9, 1, 5), (3, 1, 6)]);
    }

    #[test]
    fn a_target_leaves_out_what_reaches_beyond_it() {
        let names = [(9, 1, 2), (0, 3, 3), (0, 4, 4), (1, 3, 4), (0, 5, 5), (9, 1, 5)];
        assert_eq!(planned(&names, Some(3)), [(9, 1, 2), (0, 3, 3)]);
        assert_eq!(planned(&names, Some(4)), [(9, 1, 2), (1, 3, 4)]);
        assert_eq!(planned(&names, Some(5)), [(9, 1, 5)]);
        // A gap after the target does not matter.
        assert_eq!(planned(&[(0, 1, 1), (0, 3, 3)], Some(1)), [(0, 1, 1)]);
    }

    #[test]
    fn a_database_is_brought_forward_without_a_snapshot_where_that_can_be() {
        let onto = |names: &[(u8, u64, u64)], from, target| -> Vec<(u8, u64, u64)> {
            let steps = plan_onto(&log(names), TxId(from), TxId(target)).expect("a plan");
            steps.iter().map(|o| (o.name.level, o.name.min.0, o.name.max.0)).collect()
        };
        let names = [(9, 1, 2), (0, 3, 3), (0, 4, 4), (1, 3, 6), (2, 1, 6), (9, 1, 6), (0, 7, 7), (0, 8, 8)];
        assert_eq!(onto(&names, 4, 7), [(2, 1, 6), (0, 7, 7)]);
        assert_eq!(onto(&names, 2, 4), [(0, 3, 3), (0, 4, 4)]);
        assert_eq!(onto(&names, 8, 8), []);
        assert_eq!(onto(&[(9, 1, 6), (0, 7, 7)], 4, 7), [(9, 1, 6), (0, 7, 7)], "nothing else is left");
        assert!(plan_onto(&log(&[(9, 1, 6), (0, 8, 8)]), TxId(4), TxId(8)).is_err());
    }

    #[test]
    fn a_gap_is_an_error_that_names_the_missing_transaction() {
        for names in
            [&[(9, 1, 5), (0, 6, 6), (0, 8, 8)][..], &[(9, 1, 6), (1, 8, 9)], &[(0, 1, 6), (9, 7, 9), (0, 8, 8)]]
        {
            let error = refused(names, None);
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains("transaction 0000000000000007"), "{error}");
        }
        let before_the_target = refused(&[(0, 1, 1), (0, 3, 3)], Some(3));
        assert_eq!(before_the_target.kind(), ErrorKind::Corrupt);
        assert!(before_the_target.to_string().contains("gap"), "{before_the_target}");
        // A log without its beginning is not an empty log.
        assert!(refused(&[(0, 2, 2)], None).to_string().contains("transaction 0000000000000001"));
        assert!(refused(&[(9, 7, 9)], None).to_string().contains("0000000000000001"));
    }

    #[test]
    fn a_target_that_cannot_be_reached_says_why() {
        let beyond = refused(&[(0, 1, 1)], Some(2));
        assert_eq!(beyond.kind(), ErrorKind::Configuration);
        assert!(beyond.to_string().contains("the log ends at 0000000000000001"), "{beyond}");
        let inside = refused(&[(0, 1, 1), (1, 2, 9)], Some(5));
        assert!(inside.to_string().contains("1/0000000000000002-0000000000000009.ltx"), "{inside}");
        assert_eq!(refused(&[], Some(1)).kind(), ErrorKind::Configuration);
    }
}
