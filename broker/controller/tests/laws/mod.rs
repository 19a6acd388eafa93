//! The rules that no cluster may break, checked record by record and step by step, and what every replica has of what was acknowledged.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};

use gregor_metadata::{ConfigResource, ELIGIBLE_LEADER_REPLICAS_FEATURE, Image, LeaderRecoveryState, Partition};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{BrokerId, PartitionIndex, TopicId};

use crate::common::Rig;

type Key = (TopicId, PartitionIndex);

/// What is in the logs of a partition: how many records were acknowledged, and how many each replica has.
#[derive(Debug, Clone, Default)]
struct Data {
    acknowledged: u64,
    replicas: BTreeMap<BrokerId, u64>,
}

pub struct Laws {
    /// Whether eligible leader replicas were ever kept.
    had_elr: bool,
    /// Whether they ever were not.
    lacked_elr: bool,
    default_min_isr: usize,
    image: Image,
    seen: usize,
    data: BTreeMap<Key, Data>,
    committed_data: BTreeMap<Key, Data>,
    incarnations: BTreeMap<BrokerId, gregor_types::Uuid>,
    pub moved: BTreeSet<Key>,
    /// While a leader says who is in sync with it: those have what was acknowledged.
    pub caught_up: Vec<BrokerId>,
    /// While a user asks for unclean elections.
    pub unclean_by_request: bool,
    pub clean_elections: usize,
    pub unclean_elections: usize,
    pub eligible_elections: usize,
    pub reassignments_done: usize,
}

impl Laws {
    pub fn new(rig: &Rig) -> Self {
        let has_elr = rig.image.features().has_eligible_leader_replicas();
        Self {
            had_elr: has_elr,
            lacked_elr: !has_elr,
            default_min_isr: rig.min_isr,
            image: rig.image.clone(),
            seen: rig.log.len(),
            data: BTreeMap::new(),
            committed_data: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            moved: BTreeSet::new(),
            caught_up: Vec::new(),
            unclean_by_request: false,
            clean_elections: 0,
            unclean_elections: 0,
            eligible_elections: 0,
            reassignments_done: 0,
        }
    }

    /// The level of the feature, as far as is decided.
    pub fn elr_level(&self) -> i16 {
        self.image.features().level(ELIGIBLE_LEADER_REPLICAS_FEATURE)
    }

    /// What was not committed is gone.
    pub fn rolled_back(&mut self, rig: &Rig) {
        self.image = rig.image.clone();
        self.seen = rig.log.len();
        self.data.clone_from(&self.committed_data);
    }

    /// A broker has a new process. One that died without a word may have lost what it had, where the controller is to know of that.
    pub fn restarted(&mut self, id: BrokerId, in_peace: bool) {
        if self.image.features().has_eligible_leader_replicas() && !in_peace {
            for data in self.data.values_mut().chain(self.committed_data.values_mut()) {
                if let Some(has) = data.replicas.get_mut(&id) {
                    *has = 0;
                }
            }
        }
    }

    /// A broker was told to stop: nobody depends on it.
    pub fn may_go(rig: &Rig, id: BrokerId) {
        let image = rig.controller.image();
        assert!(!image.cluster().is_unfenced(id));
        let leads = image.topics().iter().any(|topic| topic.partitions().any(|(_, one)| one.leader == Some(id)));
        assert!(!leads, "{id} leads something");
    }

    /// Looks at every new record, then at the whole.
    pub fn hold(&mut self, rig: &Rig) {
        let level = self.image.features().metadata_version();
        for offset in self.seen..rig.log.len() {
            let record = &rig.log[offset];
            assert_eq!(level.record_version(&record.record), Some(record.version), "{record:?}");
            let before = self.image.clone();
            self.image.apply(&record.record).unwrap();
            self.had_elr |= self.elr_level() > 0;
            self.lacked_elr |= self.elr_level() == 0;
            match &record.record {
                MetadataRecord::RegisterBroker(broker) => {
                    let id = BrokerId(broker.broker_id);
                    let is_new = self.incarnations.insert(id, broker.incarnation_id) != Some(broker.incarnation_id);
                    assert!(!is_new || broker.fenced, "a broker begins fenced");
                    assert!(!is_new || broker.broker_epoch == offset as i64, "its epoch is the record's offset");
                }
                MetadataRecord::PartitionChange(change) => {
                    let key = (change.topic_id, PartitionIndex(change.partition_id));
                    self.change(&before, key);
                }
                MetadataRecord::Partition(created) => {
                    let key = (created.topic_id, PartitionIndex(created.partition_id));
                    let replicas = created.replicas.iter().map(|replica| (BrokerId(*replica), 0)).collect();
                    self.data.insert(key, Data { acknowledged: 0, replicas });
                }
                _ => {}
            }
        }
        let was = self.seen;
        self.seen = rig.log.len();
        assert_eq!(&self.image, rig.controller.image(), "the records make the image that was decided on");
        self.state(was < self.seen);
        if rig.committed == rig.log.len() {
            self.acknowledge();
            self.committed_data.clone_from(&self.data);
        }
    }

    fn change(&mut self, before: &Image, key: Key) {
        let was = before.topics().partition(key.0, key.1).unwrap();
        let is = self.image.topics().partition(key.0, key.1).unwrap();
        let picture = format!("{was:?}\n became {is:?}");
        assert_eq!(is.partition_epoch, was.partition_epoch + 1, "{picture}");
        let raised = is.leader_epoch.value() - was.leader_epoch.value();
        if is.leader == was.leader {
            assert!((0..=1).contains(&raised), "{picture}");
        } else {
            assert_eq!(raised, 1, "{picture}");
        }
        let same =
            Partition { leader_epoch: was.leader_epoch, partition_epoch: was.partition_epoch, ..Partition::clone(is) };
        assert!(raised == 1 || same != **was, "a change changes something: {picture}");
        let kept = is.isr.iter().any(|member| was.isr.contains(member) || self.caught_up.contains(member));
        let from_elr = is.isr.iter().all(|member| was.elr.contains(member));
        let unclean = was.leader_recovery == LeaderRecoveryState::Recovered
            && is.leader_recovery == LeaderRecoveryState::Recovering;
        let still_unclean =
            is.leader_recovery == LeaderRecoveryState::Recovering && is.leader != was.leader && !kept && !from_elr;
        if !is.isr.is_empty() && !kept {
            assert!(from_elr || unclean || still_unclean, "the last in-sync replica is lost: {picture}");
        }
        let data = self.data.get_mut(&key).unwrap();
        data.replicas.retain(|replica, _| is.replicas.contains(replica));
        for replica in &is.replicas {
            data.replicas.entry(*replica).or_insert(0);
        }
        for member in self.caught_up.iter().filter(|member| is.replicas.contains(member)) {
            data.replicas.insert(*member, data.acknowledged);
        }
        let leader = is.leader.filter(|leader| was.leader != Some(*leader));
        if let Some(leader) = leader {
            let has = data.replicas[&leader];
            if unclean || still_unclean {
                self.unclean_elections += 1;
                let allowed = self.unclean_by_request || allows_unclean(before, key.0);
                let last = self.had_elr && was.last_known_elr == [leader] && was.elr.is_empty();
                let died_last = self.had_elr && was.elr.len() + was.isr.len() <= 1;
                assert!(allowed || last || died_last, "nobody allowed an unclean election: {picture}");
                data.acknowledged = has;
                data.replicas.values_mut().for_each(|other| *other = (*other).min(has));
            } else {
                self.clean_elections += 1;
                self.eligible_elections += usize::from(was.elr.contains(&leader));
                assert_eq!(has, data.acknowledged, "a clean leader lacks what was acknowledged: {picture}");
            }
        }
        let joined = |member: &&BrokerId| !was.isr.contains(member) && is.leader != Some(**member);
        for member in is.isr.iter().filter(joined) {
            assert!(self.caught_up.contains(member), "nobody said that {member} is in sync: {picture}");
        }
        let under_way = |partition: &Partition| !(partition.adding.is_empty() && partition.removing.is_empty());
        self.reassignments_done += usize::from(under_way(was) && !under_way(is));
    }

    fn state(&self, after_a_change: bool) {
        let cluster = self.image.cluster();
        for topic in self.image.topics().iter() {
            for (index, partition) in topic.partitions() {
                let distinct = |brokers: &[BrokerId]| brokers.iter().collect::<BTreeSet<_>>().len() == brokers.len();
                let held = |brokers: &[BrokerId]| brokers.iter().all(|broker| partition.replicas.contains(broker));
                for list in
                    [&partition.replicas, &partition.isr, &partition.elr, &partition.adding, &partition.removing]
                {
                    assert!(distinct(list) && held(list), "{partition:?}");
                }
                assert_eq!(partition.directories.len(), partition.replicas.len(), "{partition:?}");
                assert!(partition.replicas.iter().any(|replica| !partition.removing.contains(replica)));
                assert!(!partition.elr.iter().any(|member| partition.isr.contains(member)), "{partition:?}");
                assert!(self.had_elr || !partition.isr.is_empty(), "{partition:?}");
                assert!(self.had_elr || partition.elr.is_empty() && partition.last_known_elr.is_empty());
                let can_lead = |broker: &BrokerId| {
                    let online = |directory| cluster.broker(*broker).unwrap().has_online_directory(directory);
                    cluster.is_active(*broker) && partition.directory_of(*broker).is_some_and(online)
                };
                // Without the feature the last in-sync replica stays, led by nobody.
                let stays = self.lacked_elr && partition.isr.len() == 1 && partition.leader.is_none();
                assert!(stays || partition.isr.iter().all(|member| cluster.is_active(*member)), "{partition:?}");
                if let Some(leader) = partition.leader {
                    assert!(partition.isr.contains(&leader) && can_lead(&leader), "{partition:?}");
                    assert!(partition.last_known_elr.is_empty(), "{partition:?}");
                } else if after_a_change && !self.moved.contains(&(topic.id, index)) {
                    let candidates = if partition.isr.is_empty() { &partition.elr } else { &partition.isr };
                    assert!(!candidates.iter().any(can_lead), "somebody could lead {partition:?}");
                }
                let recovering = partition.leader_recovery == LeaderRecoveryState::Recovering;
                assert!(!recovering || partition.isr.len() <= 1, "{partition:?}");
            }
        }
    }

    /// Producers write wherever enough replicas are in sync.
    fn acknowledge(&mut self) {
        for topic in self.image.topics().iter() {
            for (index, partition) in topic.partitions() {
                let min = min_isr(&self.image, self.default_min_isr, &topic.name).min(partition.replicas.len());
                if partition.leader.is_none() || partition.isr.len() < min {
                    continue;
                }
                let data = self.data.get_mut(&(topic.id, index)).unwrap();
                data.acknowledged += 1;
                for member in &partition.isr {
                    data.replicas.insert(*member, data.acknowledged);
                }
            }
        }
    }
}

fn value(image: &Image, resource: &ConfigResource, key: &str) -> Option<String> {
    image.configs().get(resource, key).map(ToString::to_string)
}

fn allows_unclean(image: &Image, topic: TopicId) -> bool {
    let name = image.topics().by_id(topic).unwrap().name.clone();
    value(image, &ConfigResource::topic(name), "unclean.leader.election.enable").as_deref() == Some("true")
}

fn min_isr(image: &Image, default: usize, topic: &str) -> usize {
    let key = "min.insync.replicas";
    let own = value(image, &ConfigResource::topic(topic.to_owned()), key);
    let set = own.or_else(|| value(image, &ConfigResource::all_brokers(), key));
    set.map_or(default, |set| set.parse().unwrap())
}
