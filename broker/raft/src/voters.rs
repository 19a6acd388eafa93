//! Who votes: voter sets, and how they and `kraft.version` changed along the log.

use std::collections::BTreeMap;

use gregor_state_records::control::{
    VotersRecord,
    voters_record::{Endpoint as EndpointRecord, KRaftVersionFeature, Voter as VoterRecord},
};
use gregor_types::{BrokerId, DirectoryId, KString, Offset, Uuid};

use crate::{ControlRecord, OffsetAndEpoch};

/// A replica of the metadata log: a node and, from KIP-853 on, the directory that it is in. The same node on a new disk is another replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaKey {
    /// The node.
    pub id: BrokerId,
    /// Its metadata directory; unknown in static quorums.
    pub directory: Option<DirectoryId>,
}

impl ReplicaKey {
    /// A replica; the zero id stands for an unknown directory, as on the wire.
    pub fn new(id: BrokerId, directory: DirectoryId) -> Self {
        Self { id, directory: (directory != Uuid::ZERO).then_some(directory) }
    }

    /// The directory as it stands on the wire.
    pub fn directory_or_zero(self) -> DirectoryId {
        self.directory.unwrap_or(Uuid::ZERO)
    }
}

/// Where a voter listens for other controllers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The listener's name.
    pub name: KString,
    /// The host that others connect to.
    pub host: KString,
    /// The port.
    pub port: u16,
}

/// A voter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Voter {
    /// The replica.
    pub key: ReplicaKey,
    /// Its listeners, each name once. A node's own begin with the one by which others reach it; in the log they have no order.
    pub endpoints: Vec<Endpoint>,
    /// The lowest and the highest `kraft.version` that it can run.
    pub kraft_versions: (i16, i16),
}

impl Voter {
    /// Whether both say the same of a voter, whatever the order of its endpoints: Apache Kafka writes them in that of a hash table, so whoever
    /// went by it would tell the leader for ever that it moved.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let has_same_endpoints = self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().all(|endpoint| other.endpoints.contains(endpoint));
        self.key == other.key && self.kraft_versions == other.kraft_versions && has_same_endpoints
    }
}

/// A set of voters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct VoterSet(BTreeMap<BrokerId, Voter>);

impl VoterSet {
    /// A set of these voters; of two with one id the later stays.
    pub fn new(voters: impl IntoIterator<Item = Voter>) -> Self {
        Self(voters.into_iter().map(|voter| (voter.key.id, voter)).collect())
    }

    /// The voters, by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Voter> {
        self.0.values()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The voter of this node.
    pub fn voter(&self, id: BrokerId) -> Option<&Voter> {
        self.0.get(&id)
    }

    /// Whether this replica votes. A voter whose directory is not known (static quorums) is any replica of that node.
    pub fn contains(&self, key: ReplicaKey) -> bool {
        self.0
            .get(&key.id)
            .is_some_and(|voter| voter.key.directory.is_none_or(|directory| key.directory == Some(directory)))
    }

    /// The set without this voter, if it is one and not the last.
    pub fn without(&self, key: ReplicaKey) -> Option<Self> {
        if self.len() < 2 || self.voter(key.id)?.key != key {
            return None;
        }
        let mut set = self.clone();
        set.0.remove(&key.id);
        Some(set)
    }

    /// The set with one voter put in place of the one with its id.
    #[must_use]
    pub fn with(&self, voter: Voter) -> Self {
        let mut set = self.clone();
        set.0.insert(voter.key.id, voter);
        set
    }
}

impl From<&VotersRecord> for VoterSet {
    fn from(record: &VotersRecord) -> Self {
        Self::new(record.voters.iter().map(|voter| {
            Voter {
                key: ReplicaKey::new(BrokerId(voter.voter_id), voter.voter_directory_id),
                endpoints: voter
                    .endpoints
                    .iter()
                    .map(|endpoint| Endpoint {
                        name: endpoint.name.clone(),
                        host: endpoint.host.clone(),
                        port: endpoint.port,
                    })
                    .collect(),
                kraft_versions: (
                    voter.k_raft_version_feature.min_supported_version,
                    voter.k_raft_version_feature.max_supported_version,
                ),
            }
        }))
    }
}

impl From<&VoterSet> for VotersRecord {
    fn from(set: &VoterSet) -> Self {
        let voter = |voter: &Voter| VoterRecord {
            voter_id: voter.key.id.value(),
            voter_directory_id: voter.key.directory_or_zero(),
            endpoints: voter
                .endpoints
                .iter()
                .map(|endpoint| EndpointRecord {
                    name: endpoint.name.clone(),
                    host: endpoint.host.clone(),
                    port: endpoint.port,
                    ..Default::default()
                })
                .collect(),
            k_raft_version_feature: KRaftVersionFeature {
                min_supported_version: voter.kraft_versions.0,
                max_supported_version: voter.kraft_versions.1,
                ..Default::default()
            },
            ..Default::default()
        };
        Self { version: 0, voters: set.iter().map(voter).collect(), ..Default::default() }
    }
}

/// How the voter set and `kraft.version` changed along the log. A change counts from its offset on, committed or not (KIP-853), so
/// cutting the log takes changes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct VoterHistory {
    configured: VoterSet,
    snapshot: Snapshot,
    voters: Vec<(Offset, VoterSet)>,
    kraft_versions: Vec<(Offset, i16)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Snapshot {
    /// Whether it is a real one: what formatting wrote still has to be written into the log by the first leader.
    in_log: bool,
    voters: Option<VoterSet>,
    kraft_version: Option<i16>,
}

impl VoterHistory {
    /// The history of a node that has read nothing yet. `configured` are the voters of `controller.quorum.voters`, if there are any.
    pub fn new(configured: VoterSet) -> Self {
        Self { configured, ..Self::default() }
    }

    /// Takes over what a snapshot says; everything read before is forgotten.
    pub fn load_snapshot<'a>(&mut self, id: OffsetAndEpoch, records: impl IntoIterator<Item = &'a ControlRecord>) {
        self.voters.clear();
        self.kraft_versions.clear();
        self.snapshot = Snapshot { in_log: id != OffsetAndEpoch::BOOTSTRAP, ..Snapshot::default() };
        for record in records {
            match record {
                ControlRecord::Voters(voters) => self.snapshot.voters = Some(voters.into()),
                ControlRecord::KRaftVersion(version) => self.snapshot.kraft_version = Some(version.k_raft_version),
                _ => {}
            }
        }
    }

    /// Takes note of a control record in the log.
    pub fn replay(&mut self, offset: Offset, record: &ControlRecord) {
        match record {
            ControlRecord::Voters(voters) => self.voters.push((offset, voters.into())),
            ControlRecord::KRaftVersion(version) => self.kraft_versions.push((offset, version.k_raft_version)),
            _ => {}
        }
    }

    /// Forgets what stood at `end` or behind it.
    pub fn truncate(&mut self, end: Offset) {
        self.voters.retain(|(offset, _)| *offset < end);
        self.kraft_versions.retain(|(offset, _)| *offset < end);
    }

    /// Forgets what was overwritten before the start of the log: nobody asks for it any more.
    pub(crate) fn forget_before(&mut self, start: Offset) {
        let overwritten = self.voters.iter().filter(|(offset, _)| *offset < start).count().saturating_sub(1);
        self.voters.drain(..overwritten);
        let overwritten = self.kraft_versions.iter().filter(|(offset, _)| *offset < start).count().saturating_sub(1);
        self.kraft_versions.drain(..overwritten);
    }

    /// The voters now.
    pub fn voters(&self) -> &VoterSet {
        match self.voters.last() {
            Some((_, voters)) => voters,
            None => self.snapshot.voters.as_ref().unwrap_or(&self.configured),
        }
    }

    /// `kraft.version` now: 0 static voters, 1 voters in the log.
    pub fn kraft_version(&self) -> i16 {
        self.kraft_version_at(Offset(i64::MAX))
    }

    /// The voters and `kraft.version` as of an end of the log: what a snapshot of that end has to say.
    pub fn at(&self, end: Offset) -> (i16, &VoterSet) {
        let logged = self.voters.iter().rev().find(|(offset, _)| *offset < end).map(|(_, voters)| voters);
        let voters = logged.or(self.snapshot.voters.as_ref()).unwrap_or(&self.configured);
        (self.kraft_version_at(end), voters)
    }

    /// Where the voters stand in the log; before all of it, if they are from elsewhere.
    pub(crate) fn voters_offset(&self) -> Offset {
        self.voters.last().map_or(Offset::NONE, |(offset, _)| *offset)
    }

    /// The voters before the last change in the log, if one is there.
    pub(crate) fn voters_before(&self) -> Option<&VoterSet> {
        match self.voters.as_slice() {
            [] => None,
            [_] => Some(self.snapshot.voters.as_ref().unwrap_or(&self.configured)),
            [.., before, _] => Some(&before.1),
        }
    }

    /// Whether the voters stand in the log or in a snapshot of it, and not only where formatting put them.
    pub(crate) fn voters_are_in_log(&self) -> bool {
        !self.voters.is_empty() || (self.snapshot.in_log && self.snapshot.voters.is_some())
    }

    fn kraft_version_at(&self, end: Offset) -> i16 {
        let logged = self.kraft_versions.iter().rev().find(|(offset, _)| *offset < end).map(|(_, version)| *version);
        logged.or(self.snapshot.kraft_version).unwrap_or(0)
    }
}
