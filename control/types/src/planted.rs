//! Bugs that a simulation plants, to see whether it would find them. Without the feature `planted-bugs`, which nothing but
//! the simulation turns on, [`Bug::is_planted`] is `false` and leaves nothing behind in a program.

/// One rule taken out of the code that holds the purge promise. Each is named by what the code does instead.
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
}

impl Bug {
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
    Bug::ALL.into_iter().find(|b| format!("{b:?}") == name)
}

/// Plants one bug, or none, in all that this thread does from now on.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
