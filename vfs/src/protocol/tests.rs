//! Answers that no walk of the simulation brings about, or seldom: each operation step by step.

#![allow(clippy::expect_used, reason = "test code")]

use super::*;
use crate::store::BucketTime;

const TTL: u64 = 40_000;

fn delta(txid: u64, crc32c: u32) -> ObjectId {
    ObjectId { txid: TxId(txid), size: 700, crc32c }
}

fn empty(txid: u64) -> ObjectId {
    ObjectId { txid: TxId(txid), size: object_id::EMPTY_DELTA_BYTES, crc32c: 1 }
}

fn at<O: Operation>(op: &mut O, state: &mut State, now: u64, answer: Answer) -> Step<O::Outcome> {
    op.step(state, Turn { now: BootTime(now), random: now + 7, answer })
}

fn written(generation: u64) -> Answer {
    Answer::Written(Generation(generation))
}

/// A holder from time 0 on, with the log at 5 and these deltas to send.
fn holder(outbox: &[ObjectId]) -> State {
    let mut state = State::new(Nonce(1), "localhost", TTL);
    state.durable = Some(delta(5, 5));
    state.outbox = outbox.to_vec();
    let lease = Lease {
        state: LeaseState::Held,
        sealed: true,
        holder: Nonce(1),
        who: "localhost".into(),
        epoch: 3,
        req: Nonce(30),
        ttl_ms: TTL,
        head: None,
        since: None,
        want: None,
        next: None,
    };
    state.hold = Some(Hold {
        lease,
        generation: Generation(9),
        right_until: BootTime(TTL),
        head: state.durable,
        turn_began: BootTime(0),
    });
    state
}

fn seen(lease: Lease, generation: u64, age_ms: i64) -> Answer {
    Answer::Lease(Some(SeenLease {
        lease,
        generation: Generation(generation),
        created: Some(BucketTime(1_000_000)),
        date: Some(BucketTime(1_000_000 + age_ms)),
    }))
}

fn lease_of(state: &State) -> Lease {
    state.hold.as_ref().expect("a holder").lease.clone()
}

/// Somebody else's lease, in a later epoch, under the very same host name.
fn foreign(of: &State) -> Lease {
    Lease { holder: Nonce(2), epoch: 4, req: Nonce(99), ..lease_of(of) }
}

#[test]
fn an_unknown_delta_is_sent_again_until_it_is_settled() {
    let (mut state, mut append) = (holder(&[delta(6, 6)]), Append::default());
    let put = Step::Ask(Request::PutDelta(delta(6, 6)));
    assert_eq!(at(&mut append, &mut state, 1, Answer::Start), put);
    assert_eq!(at(&mut append, &mut state, 2, Answer::Unknown), put);
    assert_eq!(at(&mut append, &mut state, 3, Answer::Refused), Step::Ask(Request::GetDelta(TxId(6))));
    assert_eq!(at(&mut append, &mut state, 4, Answer::Unknown), Step::Ask(Request::GetDelta(TxId(6))));
    let done = at(&mut append, &mut state, 5, Answer::Delta(Some(delta(6, 6))));
    assert_eq!(done, Step::Done(Appended::Durable(delta(6, 6))));
    assert_eq!((state.durable, state.outbox.len()), (Some(delta(6, 6)), 0));
}

#[test]
fn an_answer_after_the_right_is_not_an_acknowledgement() {
    let (mut state, mut append) = (holder(&[delta(6, 6)]), Append::default());
    at(&mut append, &mut state, 1, Answer::Start);
    assert_eq!(at(&mut append, &mut state, TTL, written(1)), Step::Done(Appended::Lapsed));
    assert_eq!(state.outbox.len(), 1, "it goes on after the renewal");
}

#[test]
fn a_foreign_delta_fences_and_a_late_seal_is_stepped_over() {
    let refused = |there: Option<ObjectId>| {
        let (mut state, mut append) = (holder(&[delta(6, 6), delta(7, 7)]), Append::default());
        at(&mut append, &mut state, 1, Answer::Start);
        at(&mut append, &mut state, 2, Answer::Refused);
        let step = at(&mut append, &mut state, 3, Answer::Delta(there));
        (state, append, step)
    };
    for there in [Some(delta(6, 66)), None] {
        let (state, _, step) = refused(there);
        assert_eq!((step, state.hold), (Step::Done(Appended::Fenced), None));
    }
    let (mut state, mut append, step) = refused(Some(empty(6)));
    assert_eq!(step, Step::Ask(Request::GetLease), "an empty delta alone proves nothing");
    let own = seen(lease_of(&state), 9, 0);
    assert_eq!(at(&mut append, &mut state, 4, own), Step::Ask(Request::Refreeze(TxId(7))));
    let anew = vec![delta(7, 70), delta(8, 80)];
    let done = at(&mut append, &mut state, 5, Answer::Refrozen(anew.clone()));
    assert_eq!(done, Step::Done(Appended::SteppedOver));
    assert_eq!((state.durable, &state.outbox), (Some(empty(6)), &anew));
    assert_eq!(state.may_commit(BootTime(6)), Ok(()));

    let (mut state, mut append, _) = refused(Some(empty(6)));
    let taken = seen(foreign(&state), 12, 0);
    assert_eq!(at(&mut append, &mut state, 4, taken), Step::Done(Appended::Fenced));
}

#[test]
fn the_right_counts_from_the_first_attempt() {
    let (mut state, mut renew) = (holder(&[]), Renew::default());
    let first = at(&mut renew, &mut state, 20_000, Answer::Start);
    assert_eq!(at(&mut renew, &mut state, 30_000, Answer::Unknown), first, "the very same swap again");
    assert_eq!(at(&mut renew, &mut state, 31_000, written(10)), Step::Done(Renewed::Held));
    assert_eq!(state.hold.map(|hold| hold.right_until), Some(BootTime(60_000)));
}

#[test]
fn a_lost_answer_is_proved_by_the_request_and_by_nothing_less() {
    let begin = || {
        let (mut state, mut renew) = (holder(&[]), Renew::default());
        let Step::Ask(Request::SwapLease { lease, .. }) = at(&mut renew, &mut state, 20_000, Answer::Start) else {
            panic!("a swap");
        };
        assert_eq!(at(&mut renew, &mut state, 20_100, Answer::Refused), Step::Ask(Request::GetLease));
        (state, renew, lease)
    };
    let (mut state, mut renew, sent) = begin();
    assert_eq!(at(&mut renew, &mut state, 20_200, seen(sent, 10, 0)), Step::Done(Renewed::Held));

    let (mut state, mut renew, _) = begin();
    let other = foreign(&state);
    assert_eq!(at(&mut renew, &mut state, 20_200, seen(other, 10, 0)), Step::Done(Renewed::Lost));
    assert_eq!(state.may_commit(BootTime(20_300)), Err(Stop::NoLease));

    // Our nonce and epoch under a request that we never sent: a copy of this disk, perhaps.
    let (mut state, mut renew, sent) = begin();
    let twin = Lease { req: Nonce(12345), ..sent };
    assert_eq!(at(&mut renew, &mut state, 20_200, seen(twin, 10, 0)), Step::Done(Renewed::Lost));
}

#[test]
fn a_want_moves_the_generation_and_is_handed_on_with_the_release() {
    let mut state = holder(&[]);
    let contender = Contender { nonce: Nonce(2), who: "b".into() };
    let wanted = Lease { want: Some(contender.clone()), ..lease_of(&state) };
    assert_eq!(at(&mut Look, &mut state, 500, seen(wanted, 10, 0)), Step::Done(Renewed::Held));
    assert!(!state.should_hand_over(BootTime(2_999), 3_000));
    assert!(state.should_hand_over(BootTime(3_000), 3_000));
    let mut release = Release::default();
    let Step::Ask(Request::SwapLease { expect, lease }) = at(&mut release, &mut state, 3_000, Answer::Start) else {
        panic!("a swap");
    };
    assert_eq!((expect, lease.state, lease.head), (Some(Generation(10)), LeaseState::Released, Some(delta(5, 5))));
    assert_eq!((lease.next.as_ref(), lease.want, lease.sealed), (Some(&contender), None, true));
    assert_eq!(state.may_commit(BootTime(3_001)), Err(Stop::Lapsed), "the right ends when the release is sent");
    assert_eq!(at(&mut release, &mut state, 3_100, written(11)), Step::Done(Released::Done(Some(contender))));
}

#[test]
fn nothing_is_released_while_a_delta_is_not_settled() {
    let mut state = holder(&[delta(6, 6)]);
    assert_eq!(at(&mut Release::default(), &mut state, 1, Answer::Start), Step::Done(Released::Unsettled));
    assert_eq!(state.may_commit(BootTime(2)), Ok(()));
}

#[test]
fn an_own_release_is_taken_back_in_one_request() {
    let mut state = holder(&[]);
    let mut release = Release::default();
    at(&mut release, &mut state, 1, Answer::Start);
    at(&mut release, &mut state, 2, written(10));
    let mut acquire = Acquire::default();
    let step = at(&mut acquire, &mut state, 5_000, Answer::Start);
    assert!(matches!(&step, Step::Ask(Request::SwapLease { expect: Some(Generation(10)), lease }) if lease.epoch == 4));
    assert_eq!(at(&mut acquire, &mut state, 5_050, written(11)), Step::Done(Acquired::Ready));
    assert_eq!(state.may_commit(BootTime(5_051)), Ok(()));
}

#[test]
fn a_held_lease_is_taken_only_after_its_own_time_to_live() {
    let mut state = State::new(Nonce(2), "localhost", 1);
    let lease = lease_of(&holder(&[]));
    let limit = lease::ttl_with_slack_ms(TTL) as i64;
    let look = |state: &mut State, age_ms| {
        let mut acquire = Acquire::default();
        assert_eq!(at(&mut acquire, state, 1, Answer::Start), Step::Ask(Request::GetLease));
        at(&mut acquire, state, 2, seen(lease.clone(), 9, age_ms))
    };
    let Step::Ask(Request::SwapLease { lease: marked, .. }) = look(&mut state, limit) else { panic!("a want") };
    assert_eq!((marked.holder, marked.epoch, marked.since), (Nonce(1), 3, Some(BucketTime(1_000_000))));
    let Step::Ask(Request::SwapLease { lease: taken, .. }) = look(&mut state, limit + 1) else { panic!("a swap") };
    assert_eq!((taken.holder, taken.epoch, taken.sealed), (Nonce(2), 4, false));
}

#[test]
fn without_a_date_the_lease_is_watched_on_the_own_clock() {
    let mut state = State::new(Nonce(2), "localhost", TTL);
    let look = |state: &mut State, now, req| {
        let mut acquire = Acquire::default();
        at(&mut acquire, state, now, Answer::Start);
        let contender = Some(Contender { nonce: Nonce(3), who: String::new() });
        let lease = Lease { want: contender, req: Nonce(req), ..lease_of(&holder(&[])) };
        let seen = SeenLease { lease, generation: Generation(9), created: None, date: None };
        at(&mut acquire, state, now, Answer::Lease(Some(seen)))
    };
    let limit = lease::ttl_with_slack_ms(TTL);
    assert!(matches!(look(&mut state, 5, 30), Step::Done(Acquired::Busy(_))));
    assert!(matches!(look(&mut state, 5 + limit, 30), Step::Done(Acquired::Busy(_))));
    assert!(matches!(look(&mut state, 6 + limit, 31), Step::Done(Acquired::Busy(_))), "renewed: from the beginning");
    assert!(matches!(look(&mut state, 7 + 2 * limit, 31), Step::Ask(Request::SwapLease { .. })));
}

#[test]
fn a_restart_seals_before_it_acknowledges() {
    let mut state = holder(&[delta(6, 6)]);
    state.restarted();
    let (mut acquire, lease) = (Acquire::default(), lease_of(&state));
    assert_eq!(at(&mut acquire, &mut state, 1, Answer::Start), Step::Ask(Request::GetLease));
    let step = at(&mut acquire, &mut state, 2, seen(lease, 9, 0));
    assert!(matches!(step, Step::Ask(Request::SwapLease { .. })), "its own generation needs no waiting");
    assert_eq!(at(&mut acquire, &mut state, 3, written(10)), Step::Ask(Request::List));
    let listing = vec![Listed { crc32c: 5, size: 700, ..chain::tests::listed(9, 1, 5) }, {
        Listed { size: 700, ..chain::tests::listed(0, 5, 5) }
    }];
    assert_eq!(at(&mut acquire, &mut state, 4, Answer::Listing(listing)), Step::Ask(Request::MakeSeal(TxId(6))));
    assert_eq!(at(&mut acquire, &mut state, 5, Answer::Made(empty(6))), Step::Ask(Request::PutSeal(empty(6))));
    assert_eq!(at(&mut acquire, &mut state, 6, written(1)), Step::Ask(Request::Refreeze(TxId(7))));
    let step = at(&mut acquire, &mut state, 7, Answer::Refrozen(vec![delta(7, 6)]));
    assert!(matches!(step, Step::Ask(Request::SwapLease { lease, .. }) if lease.sealed));
    assert_eq!(state.may_commit(BootTime(8)), Err(Stop::NoLease), "not before the seal is in the lease");
    assert_eq!(at(&mut acquire, &mut state, 9, written(11)), Step::Done(Acquired::Ready));
    assert_eq!(state.may_commit(BootTime(10)), Ok(()));
}

#[test]
fn the_state_survives_json_exactly() {
    let mut state = holder(&[delta(6, 6)]);
    at(&mut Renew::default(), &mut state, 20_000, Answer::Start);
    let text = serde_json::to_string(&state).expect("to JSON");
    assert_eq!(serde_json::from_str::<State>(&text).expect("from JSON"), state);
}

#[test]
fn a_follower_lists_when_its_last_look_is_old() {
    let (mut state, young) = (State::new(Nonce(3), "f", TTL), deletes::GRACE_MS / 2);
    state.durable = Some(delta(5, 5));
    let mut follow = Follow::new(Some(BootTime(0)));
    assert_eq!(at(&mut follow, &mut state, young, Answer::Start), Step::Ask(Request::GetDelta(TxId(6))));
    assert_eq!(
        at(&mut follow, &mut state, young + 1, Answer::Delta(None)),
        Step::Ask(Request::List),
        "the answer came late"
    );
    let mut follow = Follow::new(Some(BootTime(0)));
    at(&mut follow, &mut state, 10, Answer::Start);
    let current = Followed::Current { confirmed: BootTime(10) };
    assert_eq!(at(&mut follow, &mut state, 20, Answer::Delta(None)), Step::Done(current));
}

#[test]
fn a_name_taken_by_another_is_not_sealed_by_us() {
    let mut state = holder(&[]);
    state.restarted();
    let (mut acquire, lease) = (Acquire::default(), lease_of(&state));
    at(&mut acquire, &mut state, 1, Answer::Start);
    at(&mut acquire, &mut state, 2, seen(lease, 9, 0));
    at(&mut acquire, &mut state, 3, written(10));
    let listing = || vec![Listed { size: 700, crc32c: 5, ..chain::tests::listed(9, 1, 5) }];
    at(&mut acquire, &mut state, 4, Answer::Listing(listing()));
    at(&mut acquire, &mut state, 5, Answer::Made(empty(6)));
    assert_eq!(at(&mut acquire, &mut state, 6, Answer::Refused), Step::Ask(Request::GetDelta(TxId(6))));
    let late = Answer::Delta(Some(delta(6, 66)));
    assert_eq!(at(&mut acquire, &mut state, 7, late), Step::Ask(Request::List), "the late delta is part of the log");
    let longer = [listing(), vec![Listed { size: 700, crc32c: 66, ..chain::tests::listed(0, 6, 6) }]].concat();
    assert_eq!(at(&mut acquire, &mut state, 8, Answer::Listing(longer)), Step::Ask(Request::MakeSeal(TxId(7))));
    let lapsed = at(&mut acquire, &mut state, 3 + TTL, Answer::Made(empty(7)));
    assert_eq!(lapsed, Step::Done(Acquired::Lapsed), "no seal is sent past the right");
}
