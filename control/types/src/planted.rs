//! Bugs that are planted to see whether a test would find them: the simulation, or with real processes `tests/faults.rs` and
//! `tests/witness`. Without the feature `planted-bugs`, which nothing that ships turns on, [`Bug::is_planted`] is `false` and leaves nothing behind in a program.

/// A planted bug: the code without one of the rules that hold a promise. Each name says how the code behaves then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    // The log.
    DiskWithoutFsync,
    AcknowledgedBeforeCommit,
    ReadWithoutQuorum,
    // Leases.
    LeaseWithoutQuorum,
    LeaseFromLatestAsking,
    LeaseBeforeItsIndex,
    LeaseWithoutDriftMargin,
    NewLeaderAssumesNoLease,
    ClockStandsStill,
    // When a purge is true.
    SilentWithoutTheSecond,
    DetachedCountsAsSilent,
    OnlyTheNewestVersionCounts,
    RemovedCountsAsGone,
    // What a node is told, and what it says.
    AcknowledgedBeforeApply,
    AcknowledgedByOneWorker,
    AcknowledgedBeforeSave,
    CatchUpWithoutPurges,
    CatchUpWithoutFloor,
    LagWithoutCatchUp,
    FreshLogWithoutFloor,
    RestoreTrustsTheBackup,
    // The ledger.
    FloorIgnored,
    IncarnationIgnored,
    CleanThroughTooFar,
    TagsIgnored,
    KeysRuleIgnored,
    // Fills.
    FillCleanFromItsEnd,
    ConfirmationCleanFromItsEnd,
    TagsInTheHeadIgnored,
    // Tiers.
    DemandIgnored,
    VouchingIgnored,
    SoftlyPurgedVouchedFor,
    EndToEndIgnored,
    OwnWayDemandsLess,
    SecondPerTier,
    RestartedNodeTrustsShields,
    // The disk tier.
    DiskTrustedBeforeLease,
    DiskWithoutRevision,
    RestartWithoutPurges,
    // Reuse.
    PurgedMayStandIn,
    SecondCountsFromAnswer,
    SecondIgnoredInJoining,
    DetachedNodeServes,
    StaleIfErrorWhileDetached,
    // For whom an answer is, and what anybody waits for; the witness looks for these.
    NamedByConnectionGoesOn,
    WaitersShareAll,
    TornBodyIsWhole,
    TwoFramingsBelieved,
    UnreadableTagsIgnored,
    BrokenPrivateIgnored,
    HeuristicsForCookies,
    ConfirmationUnjudged,
    ReloadJoinsOlder,
    StaleDespiteMustRevalidate,
    CookiesKept,
    StreamsOutliveReaders,
    AttemptsUncounted,
    UploadsOnTheClock,
}

impl Bug {
    /// The bugs that the simulation has to find.
    pub const ALL: [Self; 44] = [
        Self::DiskWithoutFsync,
        Self::AcknowledgedBeforeCommit,
        Self::ReadWithoutQuorum,
        Self::LeaseWithoutQuorum,
        Self::LeaseFromLatestAsking,
        Self::LeaseBeforeItsIndex,
        Self::LeaseWithoutDriftMargin,
        Self::NewLeaderAssumesNoLease,
        Self::ClockStandsStill,
        Self::SilentWithoutTheSecond,
        Self::DetachedCountsAsSilent,
        Self::OnlyTheNewestVersionCounts,
        Self::RemovedCountsAsGone,
        Self::AcknowledgedBeforeApply,
        Self::AcknowledgedByOneWorker,
        Self::AcknowledgedBeforeSave,
        Self::CatchUpWithoutPurges,
        Self::CatchUpWithoutFloor,
        Self::LagWithoutCatchUp,
        Self::FreshLogWithoutFloor,
        Self::RestoreTrustsTheBackup,
        Self::FloorIgnored,
        Self::IncarnationIgnored,
        Self::CleanThroughTooFar,
        Self::TagsIgnored,
        Self::KeysRuleIgnored,
        Self::FillCleanFromItsEnd,
        Self::ConfirmationCleanFromItsEnd,
        Self::TagsInTheHeadIgnored,
        Self::DemandIgnored,
        Self::VouchingIgnored,
        Self::SoftlyPurgedVouchedFor,
        Self::EndToEndIgnored,
        Self::OwnWayDemandsLess,
        Self::SecondPerTier,
        Self::RestartedNodeTrustsShields,
        Self::DiskTrustedBeforeLease,
        Self::DiskWithoutRevision,
        Self::RestartWithoutPurges,
        Self::PurgedMayStandIn,
        Self::SecondCountsFromAnswer,
        Self::SecondIgnoredInJoining,
        Self::DetachedNodeServes,
        Self::StaleIfErrorWhileDetached,
    ];

    /// The bugs that the witness has to find.
    pub const OF_SOCKETS: [Self; 14] = [
        Self::NamedByConnectionGoesOn,
        Self::WaitersShareAll,
        Self::TornBodyIsWhole,
        Self::TwoFramingsBelieved,
        Self::UnreadableTagsIgnored,
        Self::BrokenPrivateIgnored,
        Self::HeuristicsForCookies,
        Self::ConfirmationUnjudged,
        Self::ReloadJoinsOlder,
        Self::StaleDespiteMustRevalidate,
        Self::CookiesKept,
        Self::StreamsOutliveReaders,
        Self::AttemptsUncounted,
        Self::UploadsOnTheClock,
    ];

    /// Whether it is planted on this thread.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub fn is_planted(self) -> bool {
        PLANTED.get() == Some(self)
    }

    /// Never: this program has no planted bugs.
    #[cfg(not(feature = "planted-bugs"))]
    #[must_use]
    #[inline(always)]
    pub const fn is_planted(self) -> bool {
        false
    }
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = std::cell::Cell::new(of_build());
}

/// What a program is built with: the name of a bug in `TIDEGATE_PLANTED`.
#[cfg(feature = "planted-bugs")]
fn of_build() -> Option<Bug> {
    let name = option_env!("TIDEGATE_PLANTED")?;
    let found = Bug::ALL.into_iter().chain(Bug::OF_SOCKETS).find(|b| format!("{b:?}") == name);
    assert!(found.is_some(), "TIDEGATE_PLANTED names no bug: {name}");
    found
}

/// Plants one bug, or none, in all that this thread does from now on.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
