//! Mistakes that the simulator plants in the product to see whether it notices them (decision
//! 0011).
//!
//! Each is a place in a machine that asks [`planted`]. Programs without debug assertions, which is
//! what is released, have a constant there: the mistakes are not in them. In all others nothing is
//! planted unless the thread was told so, and only the simulator tells.

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mistake {
    /// A disk answers a flush at once.
    FlushBeforeItIsMade,
    /// A disk takes a flush that failed for one that was made.
    FailedFlushBelieved,
    /// A disk takes writes of generations that are fenced.
    GenerationUnchecked,
    /// A log ends where a batch is bad, whatever comes after it.
    LogCutAtRot,
    /// A batch of the log counts though it is torn.
    TornBatchAccepted,
    /// The checksum of a block does not name its place.
    PlaceNotInChecksum,
    /// A write counts as sent again if its sequence is the last one's, whatever its generation.
    DuplicateByNumber,
    /// A discard reaches one member as it was asked for, and of the others only its first block.
    DiscardNotReplicated,
    /// A write is acknowledged with one member less than a quorum.
    AckBelowQuorum,
    /// A copy takes what the source has, whatever its stamp is, for what was chosen.
    StaleSource,
    /// A head is switched to between two pieces of one write.
    SnapshotSplitsWrite,
    /// A vote is not written before it is given.
    VoteNotWritten,
    /// A client is told that it has a volume before that is agreed.
    AttachUnagreed,
    /// Space is used again before what freed it is durable.
    FreedReusedEarly,
    /// A fence is answered before it is durable.
    FenceNotDurable,
    /// Any confirmation confirms a read, also one of before it came.
    ConfirmedBefore,
    /// As many members confirm a read as meet every write quorum.
    ConfirmedByFew,
    /// A disk does not say what it has refused.
    RefusalUnnoticed,
    /// Of an object's copies the highest stamp wins, whoever has settled it.
    SettledGenerationIgnored,
    /// A write does not settle its object by its generation.
    WriteDoesNotSettle,
    /// A session opens before what it has settled is flushed.
    OpeningUnflushed,
    /// Whatever opening of a disk answers counts as the one that is listed.
    IncarnationIgnored,
    /// New members are activated before what they were given is durable.
    ActivationUnflushed,
    /// What was written while it was copied has the stamp of the source.
    IncompleteUnmarked,
    /// What a former member has is replaced by what is being written.
    EvidenceTorn,
    /// What a former member has is replaced by what loses against it.
    EvidenceShrinks,
    /// A disk says that it refuses a configuration, and does not.
    NotRefused,
    /// A disk that lost its power is evidence of what it had acknowledged.
    ReopenedIsEvidence,
    /// The settled point passes what is not stable.
    SettledPointUnstable,
    /// A disk takes what an older attempt asks.
    AttemptUnnumbered,
    /// What was in flight when writes were lost is sent again under its old stamps.
    StampKeptAfterLoss,
    /// A disk settles objects under a configuration that it refuses.
    SettleUnderRefused,
    /// A machine has the same boot id after its power was cut.
    BootKept,
    /// A damaged block counts as mended, and is left as it is.
    DamageLeft,
    /// What is asked of an opening of a disk is asked of a later one, if there is one by then.
    AnyOpeningAsked,
    /// A change whose acknowledgement promises that it is stable is acknowledged before its flush.
    AckBeforeFlush,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Mistake; 36] = [
        Mistake::FlushBeforeItIsMade,
        Mistake::FailedFlushBelieved,
        Mistake::GenerationUnchecked,
        Mistake::LogCutAtRot,
        Mistake::TornBatchAccepted,
        Mistake::PlaceNotInChecksum,
        Mistake::DuplicateByNumber,
        Mistake::DiscardNotReplicated,
        Mistake::AckBelowQuorum,
        Mistake::StaleSource,
        Mistake::SnapshotSplitsWrite,
        Mistake::VoteNotWritten,
        Mistake::AttachUnagreed,
        Mistake::FreedReusedEarly,
        Mistake::FenceNotDurable,
        Mistake::ConfirmedBefore,
        Mistake::ConfirmedByFew,
        Mistake::RefusalUnnoticed,
        Mistake::SettledGenerationIgnored,
        Mistake::WriteDoesNotSettle,
        Mistake::OpeningUnflushed,
        Mistake::IncarnationIgnored,
        Mistake::ActivationUnflushed,
        Mistake::IncompleteUnmarked,
        Mistake::EvidenceTorn,
        Mistake::EvidenceShrinks,
        Mistake::NotRefused,
        Mistake::ReopenedIsEvidence,
        Mistake::SettledPointUnstable,
        Mistake::AttemptUnnumbered,
        Mistake::StampKeptAfterLoss,
        Mistake::SettleUnderRefused,
        Mistake::BootKept,
        Mistake::DamageLeft,
        Mistake::AnyOpeningAsked,
        Mistake::AckBeforeFlush,
    ];
}

/// Whether the mistake is planted in what this thread does.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn planted(_: Mistake) -> bool {
    false
}

// What is released cannot have any: this does not compile otherwise.
#[cfg(not(debug_assertions))]
const _: () = assert!(!planted(Mistake::ALL[0]));

#[cfg(debug_assertions)]
pub use possible::{plant, planted};

#[cfg(debug_assertions)]
mod possible {
    use super::Mistake;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
    }

    /// Whether the mistake is planted in what this thread does.
    pub fn planted(mistake: Mistake) -> bool {
        PLANTED.get() == Some(mistake)
    }

    /// Plants a mistake in all that this thread does from now on, or none.
    pub fn plant(mistake: Option<Mistake>) {
        PLANTED.set(mistake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn nothing_is_planted_unless_the_thread_was_told_so() {
        let all: BTreeSet<Mistake> = Mistake::ALL.into();
        assert_eq!(all.len(), Mistake::ALL.len());
        assert!(!all.iter().any(|mistake| planted(*mistake)));
        #[cfg(debug_assertions)]
        {
            plant(Some(Mistake::BootKept));
            let found = all.iter().filter(|mistake| planted(**mistake)).count();
            assert!(found == 1 && planted(Mistake::BootKept));
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(!planted(Mistake::BootKept), "another thread"));
            });
            plant(None);
        }
    }
}
