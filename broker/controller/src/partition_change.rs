//! The record that takes a partition from what it is to what it should be (`PartitionChangeBuilder`).

use gregor_metadata::{Cluster, LeaderRecoveryState, MetadataVersion, Partition};
use gregor_state_records::metadata::PartitionChangeRecord;
use gregor_types::{BrokerId, DirectoryId, PartitionIndex, TopicId, Uuid, planted::planted};

/// In a change: the leader and its epoch stay.
pub(crate) const NO_LEADER_CHANGE: i32 = -2;

/// Who may become leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Election {
    /// The first replica if it can, else as `Online`.
    Preferred,
    /// The leader stays if it can; else the first replica in the ISR that can.
    Online,
    /// As `Online`, and if there is none, the first replica that is up, though it may lack records.
    Unclean,
}

/// What the cluster's features and the topic's configuration say about a change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// The finalized level.
    pub(crate) version: MetadataVersion,
    /// Whether a replica may lead that was not in sync (`unclean.leader.election.enable`).
    pub(crate) unclean: bool,
    /// KIP-966: how many in-sync replicas make all others dispensable, if eligible leader replicas are kept at all.
    pub(crate) min_isr: Option<usize>,
}

/// A change in the making.
pub(crate) struct PartitionChange<'a> {
    /// What is.
    pub(crate) partition: &'a Partition,
    /// The in-sync replicas to be.
    pub(crate) isr: Vec<BrokerId>,
    /// A replica that may have lost what it had: it is neither in sync nor eligible.
    pub(crate) lost: Option<BrokerId>,
    /// Whether a broker may lead.
    pub(crate) may_lead: &'a dyn Fn(BrokerId) -> bool,
    /// How to choose the leader.
    pub(crate) election: Election,
    /// Whether the leader has recovered.
    pub(crate) recovery: LeaderRecoveryState,
    /// The replicas to be, those that leave included.
    pub(crate) replicas: Vec<BrokerId>,
    /// Replicas that leave once the others are in sync.
    pub(crate) removing: Vec<BrokerId>,
    /// Replicas that are new.
    pub(crate) adding: Vec<BrokerId>,
    rules: Rules,
    elr: Vec<BrokerId>,
    last_known_elr: Vec<BrokerId>,
}

/// Whom an election chose.
enum Elected {
    /// A replica that has everything.
    Clean(BrokerId),
    /// A replica that may lack records.
    Unclean(BrokerId),
    Nobody,
}

impl<'a> PartitionChange<'a> {
    /// A change of nothing yet.
    pub(crate) fn new(partition: &'a Partition, may_lead: &'a dyn Fn(BrokerId) -> bool, rules: Rules) -> Self {
        Self {
            partition,
            isr: partition.isr.clone(),
            lost: None,
            may_lead,
            election: Election::Online,
            recovery: partition.leader_recovery,
            replicas: partition.replicas.clone(),
            removing: partition.removing.clone(),
            adding: partition.adding.clone(),
            rules,
            elr: partition.elr.clone(),
            last_known_elr: partition.last_known_elr.clone(),
        }
    }

    /// Whether a replica may lead that was not in sync.
    pub(crate) const fn allows_unclean(&self) -> bool {
        self.rules.unclean
    }

    /// The record; none if nothing would change.
    pub(crate) fn build(
        mut self,
        topic: TopicId,
        index: PartitionIndex,
        cluster: &Cluster,
    ) -> Option<PartitionChangeRecord> {
        self.complete_reassignment();
        if self.rules.min_isr.is_none() && self.isr.is_empty() {
            // Without eligible leader replicas the last in-sync replica stays the last one: it alone has everything.
            self.isr.clone_from(&self.partition.isr);
        }
        self.keep_eligible();
        let leader = self.install_leader();
        let enough = self.rules.min_isr.map_or(leader.is_some(), |min_isr| self.isr.len() >= min_isr);
        let forgets = planted("eligible-cleared") && leader.is_some();
        if (enough && !planted("eligible-while-enough")) || forgets {
            self.elr.clear();
        }
        self.remember_leader(leader);
        let mut record = PartitionChangeRecord {
            partition_id: index.value(),
            topic_id: topic,
            leader: NO_LEADER_CHANGE,
            leader_recovery_state: -1,
            ..Default::default()
        };
        let mut changed = false;
        let shrunk = self.partition.isr.iter().any(|replica| !self.isr.contains(replica));
        // A replica that goes must not be waited for any more by a leader that has not heard of it.
        let leaves = self.partition.replicas.iter().any(|replica| !self.replicas.contains(replica));
        let bump = leaves || (shrunk && self.rules.version.bumps_leader_epoch_on_isr_shrink());
        if leader != self.partition.leader || bump {
            record.leader = leader.unwrap_or(BrokerId::NONE).value();
            changed = true;
        }
        let mut put = |before: &[BrokerId], after: &[BrokerId], field: &mut Option<Vec<i32>>| {
            if before != after {
                *field = Some(after.iter().map(|broker| broker.value()).collect());
                changed = true;
            }
        };
        let before = self.partition;
        put(&before.isr, &self.isr, &mut record.isr);
        put(&before.replicas, &self.replicas, &mut record.replicas);
        put(&before.removing, &self.removing, &mut record.removing_replicas);
        put(&before.adding, &self.adding, &mut record.adding_replicas);
        put(&before.elr, &self.elr, &mut record.eligible_leader_replicas);
        put(&before.last_known_elr, &self.last_known_elr, &mut record.last_known_elr);
        if record.replicas.is_some() && self.rules.version.has_directory_assignment() {
            record.directories = Some(self.directories(cluster));
        }
        if self.recovery != self.partition.leader_recovery {
            record.leader_recovery_state = self.recovery.code();
            changed = true;
        }
        changed.then_some(record)
    }

    /// KIP-966: with fewer in-sync replicas than a record needs to be acknowledged, nothing is acknowledged, and who leaves them has
    /// all that ever was: it stays eligible until there are enough again.
    fn keep_eligible(&mut self) {
        if self.rules.min_isr.is_some() {
            self.elr.extend(&self.partition.isr);
            self.elr.sort_unstable();
            self.elr.dedup();
        }
        let (isr, replicas, lost) = (&self.isr, &self.replicas, self.lost);
        self.elr.retain(|replica| !isr.contains(replica) && replicas.contains(replica) && Some(*replica) != lost);
    }

    /// Elects a leader, and makes the in-sync replicas what follows from that.
    fn install_leader(&mut self) -> Option<BrokerId> {
        let leader = match self.elect() {
            Elected::Nobody => return None,
            Elected::Clean(leader) => {
                // An eligible leader replica leads alone: nobody else is known to have what it has.
                if self.isr.is_empty() {
                    self.isr = vec![leader];
                }
                leader
            }
            Elected::Unclean(leader) => {
                self.isr = vec![leader];
                self.elr.clear();
                self.recovery = LeaderRecoveryState::Recovering;
                leader
            }
        };
        self.elr.retain(|replica| *replica != leader);
        Some(leader)
    }

    /// KIP-966: who led last is remembered while nobody is in sync, and may lead when nobody is eligible either.
    fn remember_leader(&mut self, leader: Option<BrokerId>) {
        if leader.is_some() {
            self.last_known_elr.clear();
        } else if self.rules.min_isr.is_some() && self.isr.is_empty() {
            // Where nobody led, the last in-sync replica is who would have.
            let only = match self.partition.isr[..] {
                [only] => Some(only),
                _ => None,
            };
            self.last_known_elr.extend(self.partition.leader.or(only));
            let latest = self.last_known_elr.len().saturating_sub(1);
            self.last_known_elr.drain(..latest);
        }
    }

    /// Lets the replicas go that leave, once all others are in sync.
    fn complete_reassignment(&mut self) {
        if self.removing.is_empty() && self.adding.is_empty() {
            return;
        }
        let stay = |brokers: &[BrokerId]| -> Vec<BrokerId> {
            brokers.iter().copied().filter(|broker| !self.removing.contains(broker)).collect()
        };
        let (replicas, isr) = (stay(&self.replicas), stay(&self.isr));
        let is_done = replicas.iter().all(|replica| isr.contains(replica)) || planted("moved-too-early");
        if !replicas.is_empty() && is_done {
            (self.replicas, self.isr) = (replicas, isr);
            self.removing.clear();
            self.adding.clear();
        }
    }

    /// Where each of the replicas is, or will be.
    fn directories(&self, cluster: &Cluster) -> Vec<DirectoryId> {
        let new =
            |replica| cluster.broker(replica).map_or(Uuid::DIRECTORY_UNASSIGNED, |broker| broker.default_directory());
        let directory = |replica: &BrokerId| self.partition.directory_of(*replica).unwrap_or_else(|| new(*replica));
        self.replicas.iter().map(directory).collect()
    }

    fn elect(&self) -> Elected {
        let valid = |replica: &BrokerId| {
            let has_everything =
                if self.isr.is_empty() { self.elr.contains(replica) } else { self.isr.contains(replica) };
            has_everything && self.replicas.contains(replica) && (self.may_lead)(*replica)
        };
        if self.election == Election::Preferred
            && let Some(preferred) = self.replicas.first().copied().filter(valid)
        {
            return Elected::Clean(preferred);
        }
        if let Some(leader) = self.partition.leader.filter(valid) {
            return Elected::Clean(leader);
        }
        if let Some(replica) = self.replicas.iter().copied().find(valid) {
            return Elected::Clean(replica);
        }
        let up = |replica: &BrokerId| self.replicas.contains(replica) && (self.may_lead)(*replica);
        // Also where eligible leader replicas are not kept any more: what had nobody in sync then has nobody else to lead it.
        if self.isr.is_empty()
            && self.elr.is_empty()
            && let [last] = self.last_known_elr[..]
            && up(&last)
        {
            return Elected::Unclean(last);
        }
        if self.election == Election::Unclean
            && let Some(replica) = self.replicas.iter().copied().find(up)
        {
            return Elected::Unclean(replica);
        }
        Elected::Nobody
    }
}
