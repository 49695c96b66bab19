//! The ways to get the protocol wrong that the simulation must notice. Each is made by the simulated driver alone: it
//! hides, forges or repeats what goes in and out of the core, so the shipped decisions carry no switch.

/// One wrong variant of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Broken {
    /// A takeover writes no seal: a late PUT of the old holder fences the valid one.
    NoSeal,
    /// Seals are deleted like other covered deltas.
    SealsDeleted,
    /// The seal is written before the lease is swapped.
    SealBeforeSwap,
    /// The right is looked at before the listing, not after it.
    RightBeforeList,
    /// A release says "sealed" though this epoch wrote no seal.
    ReleaseWithoutSeal,
    /// A lease that bears this host's name is taken for its own.
    ReentryByName,
    /// The lease is released while a PUT is unknown.
    ReleaseWithUnknownPut,
    /// A delta of this host's name is taken for its own.
    CompareByName,
    /// A delta of this disk's nonce is taken for its own (and the outbox does not survive a crash).
    CompareByNonce,
    /// The outbox does not survive a crash: its rows are captured again from the WAL.
    OutboxInMemory,
    /// An unknown delta is built again with newer commits under the same TXID.
    DeltaGrows,
    /// No answer counts as "not written".
    UnknownIsFailure,
    /// No answer counts as "written".
    UnknownIsSuccess,
    /// No answer, and read back absent, counts as "not written".
    AbsentIsFailure,
    /// 412 counts as "not written".
    RefusedIsFailure,
    /// The right never ends on the holder's own clock.
    NoSelfExpiry,
    /// The holder's clock does not count suspended time.
    ClockStep,
    /// An object may go when several others cover it together.
    AnyCoverDeletes,
    /// What is covered goes at once.
    NoDeleteGrace,
    /// A follower never lists.
    FollowerWithoutList,
    /// The head is the newest level-0 object (and compaction may delete that one).
    HeadFromLevelZero,
    /// After a restart a TXID in the log counts as the outbox's delta of that number.
    RestartByNumber,
    /// After a restart the seal goes over an own delta without looking whether that one is in the log.
    SealOverOwnDelta,
    /// A contender's `want` makes the lease look younger.
    WantRefreshesAge,
    /// A lease is judged by the contender's time to live.
    OwnTtl,
    /// A reader that loses an object plans again at a newer TXID within one read.
    ReplanNewer,
    /// A compacted object is written over as its block of TXIDs grows.
    OverwriteLevelOne,
    /// After a boot the outbox is built again from what the WAL still holds.
    RecaptureAfterBoot,
    /// The lease is released while another process of the host is within a commit.
    ReleaseDuringCommit,
}

impl Broken {
    /// All of them, with the profile of walks in which each shows soonest.
    pub(super) const ALL: [(Broken, super::plan::Profile); 29] = {
        use super::plan::Profile::*;
        [
            (Broken::NoSeal, Late),
            (Broken::SealsDeleted, History),
            (Broken::SealBeforeSwap, Late),
            (Broken::RightBeforeList, Freezes),
            (Broken::ReleaseWithoutSeal, Late),
            (Broken::ReentryByName, Freezes),
            (Broken::ReleaseWithUnknownPut, Late),
            (Broken::CompareByName, Freezes),
            (Broken::CompareByNonce, Crashes),
            (Broken::OutboxInMemory, Crashes),
            (Broken::DeltaGrows, Late),
            (Broken::UnknownIsFailure, Late),
            (Broken::UnknownIsSuccess, Late),
            (Broken::AbsentIsFailure, Late),
            (Broken::RefusedIsFailure, Late),
            (Broken::NoSelfExpiry, Freezes),
            (Broken::ClockStep, Freezes),
            (Broken::AnyCoverDeletes, History),
            (Broken::NoDeleteGrace, History),
            (Broken::FollowerWithoutList, History),
            (Broken::HeadFromLevelZero, History),
            (Broken::RestartByNumber, Crashes),
            (Broken::SealOverOwnDelta, Crashes),
            (Broken::WantRefreshesAge, Crashes),
            (Broken::OwnTtl, Freezes),
            (Broken::ReplanNewer, History),
            (Broken::OverwriteLevelOne, History),
            (Broken::RecaptureAfterBoot, Crashes),
            (Broken::ReleaseDuringCommit, Mixed),
        ]
    };
}
