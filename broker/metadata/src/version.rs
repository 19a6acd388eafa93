//! `metadata.version`: its levels, their names, and which record versions each allows (`MetadataVersion` of Apache Kafka 4.4).
//!
//! A node at level N cannot read a record that came with N + 1: whoever writes a record asks [`MetadataVersion::record_version`]
//! first. Nothing here is specific to one cluster.

use std::fmt;

use gregor_state_records::metadata::MetadataRecord;

/// A level of the feature `metadata.version` that this program reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetadataVersion(i16);

/// Every production level: its number, its name, and whether going below it loses metadata.
const LEVELS: [(i16, &str, bool); 27] = [
    (7, "3.3-IV3", true),
    (8, "3.4-IV0", true),
    (9, "3.5-IV0", false),
    (10, "3.5-IV1", false),
    (11, "3.5-IV2", true),
    (12, "3.6-IV0", false),
    (13, "3.6-IV1", true),
    (14, "3.6-IV2", true),
    (15, "3.7-IV0", true),
    (16, "3.7-IV1", false),
    (17, "3.7-IV2", true),
    (18, "3.7-IV3", false),
    (19, "3.7-IV4", false),
    (20, "3.8-IV0", false),
    (21, "3.9-IV0", false),
    (22, "4.0-IV0", false),
    (23, "4.0-IV1", true),
    (24, "4.0-IV2", false),
    (25, "4.0-IV3", false),
    (26, "4.1-IV0", false),
    (27, "4.1-IV1", false),
    (28, "4.2-IV0", false),
    (29, "4.2-IV1", false),
    (30, "4.3-IV0", true),
    (31, "4.4-IV0", false),
    (32, "4.4-IV1", true),
    (33, "4.4-IV2", true),
];

impl MetadataVersion {
    /// The lowest level that Kafka 4 still reads: 3.3-IV3.
    pub const MINIMUM: Self = Self(7);
    /// The level that `gregor storage format` writes unless told otherwise: Apache's complete tool set exists for 4.3.
    pub const DEFAULT: Self = Self(30);
    /// The highest level of a released Kafka: 4.4-IV2.
    pub const LATEST: Self = Self(33);

    /// The version of this feature level, if it is one that we serve.
    pub fn from_level(level: i16) -> Option<Self> {
        (Self::MINIMUM.0..=Self::LATEST.0).contains(&level).then_some(Self(level))
    }

    /// The version of a name as `--release-version` takes it: `4.3-IV0`, or a release such as `4.3` or `4.3.1`, which means that
    /// release's last level.
    pub fn from_name(name: &str) -> Option<Self> {
        let release = || {
            let mut parts = name.splitn(3, '.');
            Some(format!("{}.{}-", parts.next()?, parts.next()?))
        };
        let exact = LEVELS.iter().find(|(_, known, _)| *known == name);
        let found = exact.or_else(|| {
            let release = release()?;
            LEVELS.iter().rev().find(|(_, known, _)| known.starts_with(&release))
        });
        found.map(|(level, _, _)| Self(*level))
    }

    /// Every level, lowest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        LEVELS.iter().map(|(level, _, _)| Self(*level))
    }

    /// The feature level, as in a `FeatureLevelRecord`.
    pub const fn level(self) -> i16 {
        self.0
    }

    /// Kafka's name of this level, such as `4.3-IV0`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Whether this level brought metadata that a lower one cannot hold, so that a downgrade below it is refused.
    pub fn changed_metadata(self) -> bool {
        self.row().2
    }

    /// KIP-858: whether partitions say in which log directory each replica is.
    pub const fn has_directory_assignment(self) -> bool {
        self.0 >= 17
    }

    /// KIP-919: whether controllers register.
    pub const fn has_controller_registration(self) -> bool {
        self.0 >= 15
    }

    /// KIP-868: whether records between Begin and End take effect together.
    pub const fn has_transactions(self) -> bool {
        self.0 >= 13
    }

    /// KIP-966: whether partitions can hold eligible leader replicas.
    pub const fn has_eligible_leader_replicas(self) -> bool {
        self.0 >= 23
    }

    /// KIP-966: whether a cluster that is formatted at this level keeps eligible leader replicas unless told otherwise
    /// (`EligibleLeaderReplicasVersion.bootstrapMetadataVersion`).
    pub const fn starts_with_eligible_leader_replicas(self) -> bool {
        self.0 >= 26
    }

    /// KIP-1066: whether a broker's log directories can be cordoned.
    pub const fn has_cordoned_directories(self) -> bool {
        self.0 >= 30
    }

    /// Whether a shrinking ISR alone must raise the leader epoch: followers of that age rely on it.
    pub const fn bumps_leader_epoch_on_isr_shrink(self) -> bool {
        self.0 < 12
    }

    /// The version in which a record is written at this level; `None` if nodes at this level do not know the record at all.
    pub fn record_version(self, record: &MetadataRecord) -> Option<i16> {
        let since = |level: i16| (self.0 >= level).then_some(0);
        match record {
            MetadataRecord::RegisterBroker(_) => Some(match self.0 {
                ..8 => 1,
                8..17 => 2,
                17..30 => 3,
                _ => 4,
            }),
            MetadataRecord::BrokerRegistrationChange(_) => Some(match self.0 {
                ..17 => 1,
                17..30 => 2,
                _ => 3,
            }),
            MetadataRecord::Partition(_) | MetadataRecord::PartitionChange(_) => Some(match self.0 {
                ..17 => 0,
                17..23 => 1,
                _ => 2,
            }),
            MetadataRecord::UserScramCredential(_) | MetadataRecord::RemoveUserScramCredential(_) => since(11),
            MetadataRecord::BeginTransaction(_)
            | MetadataRecord::EndTransaction(_)
            | MetadataRecord::AbortTransaction(_) => since(13),
            MetadataRecord::DelegationToken(_) | MetadataRecord::RemoveDelegationToken(_) => since(14),
            MetadataRecord::RegisterController(_) => since(15),
            MetadataRecord::ClearElr(_) => since(23),
            MetadataRecord::UnregisterController(_) => since(33),
            MetadataRecord::ZkMigrationState(_) => since(8),
            _ => Some(0),
        }
    }

    fn row(self) -> (i16, &'static str, bool) {
        LEVELS[(self.0 - Self::MINIMUM.0) as usize]
    }
}

impl fmt::Display for MetadataVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl fmt::Debug for MetadataVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "MetadataVersion({} = {})", self.0, self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_consecutive_and_named() {
        for (index, version) in MetadataVersion::all().enumerate() {
            assert_eq!(version.level(), 7 + index as i16);
            assert_eq!(MetadataVersion::from_name(version.name()), Some(version));
            assert_eq!(MetadataVersion::from_level(version.level()), Some(version));
        }
        assert_eq!(MetadataVersion::from_level(6), None);
        assert_eq!(MetadataVersion::from_level(34), None);
    }

    #[test]
    fn a_release_names_its_last_level() {
        for (name, level) in [("4.3", 30), ("4.3.1", 30), ("4.4", 33), ("3.7.2", 19), ("4.0", 25), ("3.3", 7)] {
            assert_eq!(MetadataVersion::from_name(name).map(MetadataVersion::level), Some(level), "{name}");
        }
        for name in ["", "4", "4.9", "3.3-IV2", "4.33", "latest"] {
            assert_eq!(MetadataVersion::from_name(name), None, "{name}");
        }
    }
}
