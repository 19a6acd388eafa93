//! A controller that never fails: registrations with epochs, sessions, elections from the in-sync replicas and then from
//! those that KIP-966 keeps eligible, AlterPartition, reassignments, another `min.insync.replicas`. Each change makes a new version of
//! the metadata.

use gregor_replication::{IsrProposal, ProposalAnswer};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch};

#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_field_names, reason = "a partition epoch is what it is called")]
pub struct Partition {
    pub replicas: Vec<BrokerId>,
    pub adding: Vec<BrokerId>,
    pub removing: Vec<BrokerId>,
    pub isr: Vec<BrokerId>,
    pub elr: Vec<BrokerId>,
    pub leader: Option<BrokerId>,
    pub leader_epoch: i32,
    pub partition_epoch: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broker {
    pub epoch: i64,
    pub fenced: bool,
}

/// The metadata at one version.
#[derive(Debug, Clone)]
pub struct Image {
    pub partitions: Vec<Partition>,
    pub brokers: Vec<Broker>,
    pub min_isr: usize,
}

#[derive(Debug)]
pub struct Controller {
    pub image: Image,
    pub versions: Vec<Image>,
    pub elections: usize,
    pub last_heard: Vec<u64>,
}

impl Controller {
    pub fn new(brokers: i32, partitions: usize, replicas: i32, min_isr: usize) -> Self {
        let partition = |index: usize| {
            let place = |replica: i32| BrokerId((index as i32 + replica) % brokers);
            let all: Vec<BrokerId> = (0..replicas).map(place).collect();
            Partition {
                leader: Some(all[0]),
                isr: all.clone(),
                replicas: all,
                adding: vec![],
                removing: vec![],
                elr: vec![],
                leader_epoch: 0,
                partition_epoch: 0,
            }
        };
        let image = Image {
            partitions: (0..partitions).map(partition).collect(),
            brokers: vec![Broker { epoch: 0, fenced: false }; brokers as usize],
            min_isr,
        };
        let versions = vec![image.clone()];
        Self { image, versions, elections: 0, last_heard: vec![0; brokers as usize] }
    }

    pub fn version(&self) -> usize {
        self.versions.len() - 1
    }

    /// A broker in a new life. One that lost what it had not synced is out of everything.
    pub fn register(&mut self, id: BrokerId, lost_power: bool, now: u64) -> i64 {
        self.remove_from_isrs(id, true);
        if lost_power {
            for partition in &mut self.image.partitions {
                if partition.elr.contains(&id) {
                    partition.elr.retain(|member| *member != id);
                    partition.partition_epoch += 1;
                }
            }
        }
        let epoch = self.versions.len() as i64;
        self.image.brokers[id.value() as usize] = Broker { epoch, fenced: false };
        self.last_heard[id.value() as usize] = now;
        self.elect_everywhere();
        self.publish();
        epoch
    }

    pub fn fence_the_silent(&mut self, session_ms: u64, now: u64) {
        for id in 0..self.image.brokers.len() {
            if !self.image.brokers[id].fenced && now - self.last_heard[id] > session_ms {
                self.image.brokers[id].fenced = true;
                self.remove_from_isrs(BrokerId(id as i32), false);
                self.elect_everywhere();
                self.publish();
            }
        }
    }

    pub fn heard(&mut self, id: BrokerId, epoch: i64, now: u64) {
        let broker = &mut self.image.brokers[id.value() as usize];
        if broker.epoch != epoch {
            return;
        }
        self.last_heard[id.value() as usize] = now;
        if broker.fenced {
            broker.fenced = false;
            self.elect_everywhere();
            self.publish();
        }
    }

    pub fn prefer(&mut self, index: usize) {
        let partition = &self.image.partitions[index];
        let preferred = partition.replicas[0];
        if partition.leader != Some(preferred) && partition.isr.contains(&preferred) && !self.is_fenced(preferred) {
            self.lead(index, Some(preferred));
            self.publish();
        }
    }

    pub fn hand_over(&mut self, index: usize, to: usize) {
        let partition = &self.image.partitions[index];
        let candidates: Vec<BrokerId> = partition.isr.iter().copied().filter(|id| !self.is_fenced(*id)).collect();
        if let Some(next) = candidates.get(to % candidates.len().max(1)) {
            self.lead(index, Some(*next));
            self.publish();
        }
    }

    pub fn reassign(&mut self, index: usize, which: usize) {
        let brokers = self.image.brokers.len() as i32;
        let partition = &mut self.image.partitions[index];
        let outside = (0..brokers).map(BrokerId).find(|id| !partition.replicas.contains(id));
        if let (Some(new), true) = (outside, partition.adding.is_empty()) {
            let old = partition.replicas[which % partition.replicas.len()];
            partition.adding = vec![new];
            partition.removing = vec![old];
            partition.replicas.push(new);
            partition.partition_epoch += 1;
            self.publish();
        }
    }

    /// Another number has to be in sync from now on: who is eligible followed from the former one, but where nobody leads and nothing is
    /// committed.
    pub fn set_min_isr(&mut self, min_isr: usize) {
        self.image.min_isr = min_isr;
        for partition in &mut self.image.partitions {
            if partition.leader.is_some() && !partition.elr.is_empty() {
                partition.elr.clear();
                partition.partition_epoch += 1;
            }
        }
        self.publish();
    }

    pub fn alter_partition(&mut self, from: BrokerId, epoch: i64, index: usize, asked: &IsrProposal) -> ProposalAnswer {
        let refused = ProposalAnswer::Refused;
        let sender = self.image.brokers[from.value() as usize];
        if sender.epoch != epoch {
            return refused(ErrorCode::StaleBrokerEpoch);
        }
        let partition = &self.image.partitions[index];
        if asked.leader_epoch != LeaderEpoch(partition.leader_epoch) {
            return refused(ErrorCode::FencedLeaderEpoch);
        }
        if partition.leader != Some(from) {
            return refused(ErrorCode::InvalidRequest);
        }
        if asked.partition_epoch != partition.partition_epoch {
            return refused(ErrorCode::InvalidUpdateVersion);
        }
        let is_eligible = |(id, epoch): &(BrokerId, gregor_types::BrokerEpoch)| {
            let broker = self.image.brokers[id.value() as usize];
            !broker.fenced && (epoch.value() == -1 || epoch.value() == broker.epoch)
        };
        if !asked.isr.iter().all(is_eligible) {
            return refused(ErrorCode::IneligibleReplica);
        }
        assert!(asked.isr.iter().any(|(id, _)| *id == from), "a leader is in sync with itself");
        let members: Vec<BrokerId> = asked.isr.iter().map(|(id, _)| *id).collect();
        assert!(members.iter().all(|id| partition.replicas.contains(id)), "only replicas are in sync");
        self.set_isr(index, members);
        self.complete_reassignment(index);
        self.publish();
        let partition = &self.image.partitions[index];
        if partition.leader != Some(from) {
            return refused(ErrorCode::NewLeaderElected);
        }
        ProposalAnswer::Accepted {
            isr: partition.isr.clone(),
            leader_epoch: LeaderEpoch(partition.leader_epoch),
            partition_epoch: partition.partition_epoch,
        }
    }

    fn complete_reassignment(&mut self, index: usize) {
        let partition = &mut self.image.partitions[index];
        let target: Vec<BrokerId> =
            partition.replicas.iter().copied().filter(|id| !partition.removing.contains(id)).collect();
        if partition.adding.is_empty() || !target.iter().all(|id| partition.isr.contains(id)) {
            return;
        }
        partition.isr.retain(|id| target.contains(id));
        partition.elr.retain(|id| target.contains(id));
        partition.replicas = target;
        partition.adding.clear();
        partition.removing.clear();
        // Kafka raises the epoch, so that whoever is removed is fenced.
        let leader = partition.leader.filter(|id| partition.isr.contains(id)).unwrap_or(partition.isr[0]);
        self.lead(index, Some(leader));
    }

    fn is_fenced(&self, id: BrokerId) -> bool {
        self.image.brokers[id.value() as usize].fenced
    }

    fn remove_from_isrs(&mut self, id: BrokerId, registers: bool) {
        for index in 0..self.image.partitions.len() {
            let partition = &self.image.partitions[index];
            if partition.isr.contains(&id) {
                let rest = partition.isr.iter().copied().filter(|member| *member != id).collect();
                self.set_isr(index, rest);
            }
            // Whoever registers anew leads in a new epoch, if it leads again.
            if registers && self.image.partitions[index].leader == Some(id) {
                self.lead(index, None);
            }
        }
    }

    /// KIP-966: who leaves while too few stay has all that is committed, and stays eligible.
    fn set_isr(&mut self, index: usize, isr: Vec<BrokerId>) {
        let partition = &mut self.image.partitions[index];
        let needed = self.image.min_isr.min(partition.replicas.len());
        if isr.len() >= needed {
            partition.elr.clear();
        } else {
            let left = partition.isr.iter().chain(&partition.elr).copied().filter(|id| !isr.contains(id));
            let mut elr: Vec<BrokerId> = left.collect();
            elr.dedup();
            partition.elr = elr;
        }
        partition.isr = isr;
        partition.partition_epoch += 1;
    }

    fn elect_everywhere(&mut self) {
        for index in 0..self.image.partitions.len() {
            let partition = &self.image.partitions[index];
            let serves = |id: &BrokerId| !self.is_fenced(*id);
            if partition.leader.is_some_and(|leader| serves(&leader) && partition.isr.contains(&leader)) {
                continue;
            }
            let next = partition.isr.iter().copied().find(serves);
            let from_elr = partition.elr.iter().copied().find(serves);
            let chosen = next.or(from_elr);
            if chosen == partition.leader {
                continue;
            }
            if let (None, Some(eligible)) = (next, from_elr) {
                let partition = &mut self.image.partitions[index];
                // Members that are fenced stay eligible.
                let mut elr = partition.elr.clone();
                elr.extend(partition.isr.iter().copied());
                elr.retain(|id| *id != eligible);
                partition.isr = vec![eligible];
                partition.elr = if self.image.min_isr.min(partition.replicas.len()) <= 1 { vec![] } else { elr };
            }
            self.lead(index, chosen);
        }
    }

    fn lead(&mut self, index: usize, leader: Option<BrokerId>) {
        let partition = &mut self.image.partitions[index];
        partition.leader = leader;
        partition.leader_epoch += 1;
        partition.partition_epoch += 1;
        self.elections += 1;
    }

    fn publish(&mut self) {
        self.versions.push(self.image.clone());
    }
}
