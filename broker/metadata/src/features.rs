//! Finalized feature levels, and the ranges of them that this program serves.
//!
//! A cluster whose finalized levels we do not serve is refused at start, by name; registration tells the controller the same ranges.

use gregor_state_records::metadata::{FeatureLevelRecord, MetadataRecord};
use gregor_types::KString;
use rpds::RedBlackTreeMapSync;

use crate::{
    ApplyError, ELIGIBLE_LEADER_REPLICAS_FEATURE, KRAFT_VERSION_FEATURE, METADATA_VERSION_FEATURE, MetadataVersion,
};

/// A feature with the levels that this program serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedFeature {
    /// The feature's name.
    pub name: &'static str,
    /// The lowest level served.
    pub min: i16,
    /// The highest level served.
    pub max: i16,
}

/// What ApiVersions, BrokerRegistration and ControllerRegistration advertise. A feature that is not listed is served at level 0 only.
pub const SERVED_FEATURES: [ServedFeature; 3] = [
    ServedFeature { name: METADATA_VERSION_FEATURE, min: 7, max: 33 },
    ServedFeature { name: KRAFT_VERSION_FEATURE, min: 0, max: 1 },
    ServedFeature { name: ELIGIBLE_LEADER_REPLICAS_FEATURE, min: 0, max: 1 },
];

/// A finalized feature level that this program does not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the feature {name} is finalized at level {level}, and this version of gregor serves levels {min} to {max}; \
     lower it with kafka-features downgrade before this node joins"
)]
pub struct UnservedFeature {
    /// The feature.
    pub name: KString,
    /// The level at which it is finalized.
    pub level: i16,
    /// The lowest level that we serve.
    pub min: i16,
    /// The highest level that we serve.
    pub max: i16,
}

/// The finalized levels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Features {
    metadata_version: Option<MetadataVersion>,
    levels: RedBlackTreeMapSync<KString, i16>,
}

impl ServedFeature {
    /// The range served for a feature; 0 to 0 for one that we do not know.
    pub fn of(name: &str) -> Self {
        let known = SERVED_FEATURES.iter().find(|feature| feature.name == name);
        known.copied().unwrap_or(Self { name: "", min: 0, max: 0 })
    }
}

impl Features {
    /// The finalized `metadata.version`; `None` before the first record of a new cluster.
    pub const fn finalized_metadata_version(&self) -> Option<MetadataVersion> {
        self.metadata_version
    }

    /// The `metadata.version` to go by: the lowest one until one is finalized.
    pub fn metadata_version(&self) -> MetadataVersion {
        self.metadata_version.unwrap_or(MetadataVersion::MINIMUM)
    }

    /// The finalized level of a feature, 0 if it has none.
    pub fn level(&self, name: &str) -> i16 {
        if name == METADATA_VERSION_FEATURE {
            return self.metadata_version.map_or(0, MetadataVersion::level);
        }
        self.levels.get(name).copied().unwrap_or(0)
    }

    /// KIP-966: whether partitions keep eligible leader replicas, and may have no in-sync replica at all.
    pub fn has_eligible_leader_replicas(&self) -> bool {
        self.level(ELIGIBLE_LEADER_REPLICAS_FEATURE) > 0 && self.metadata_version().has_eligible_leader_replicas()
    }

    /// Every finalized feature with its level, `metadata.version` first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i16)> {
        let first = self.metadata_version.map(|version| (METADATA_VERSION_FEATURE, version.level()));
        first.into_iter().chain(self.levels.iter().map(|(name, level)| (name.as_str(), *level)))
    }

    /// Whether this program serves what is finalized here.
    pub fn check_served(&self) -> Result<(), UnservedFeature> {
        for (name, level) in self.iter() {
            let ServedFeature { min, max, .. } = ServedFeature::of(name);
            if !(min..=max).contains(&level) {
                return Err(UnservedFeature { name: name.into(), level, min, max });
            }
        }
        Ok(())
    }

    pub(crate) fn apply(&mut self, record: &FeatureLevelRecord) -> Result<(), ApplyError> {
        if record.name == METADATA_VERSION_FEATURE {
            let version = MetadataVersion::from_level(record.feature_level);
            self.metadata_version = Some(version.ok_or(ApplyError::UnknownMetadataVersion(record.feature_level))?);
        } else if record.feature_level == 0 {
            self.levels.remove_mut(record.name.as_str());
        } else {
            self.levels.insert_mut(record.name.compact(), record.feature_level);
        }
        Ok(())
    }

    pub(crate) fn write(&self, emit: &mut impl FnMut(MetadataRecord)) {
        for (name, feature_level) in self.iter() {
            emit(MetadataRecord::FeatureLevel(FeatureLevelRecord {
                name: name.into(),
                feature_level,
                ..Default::default()
            }));
        }
    }
}
