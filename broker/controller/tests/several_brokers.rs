//! A world of several brokers: they register, die, come back and stop, leaders tell who is in sync, users ask for whatever they like, and
//! leadership of the quorum comes and goes with what was not committed. After every record and every step the rules that no cluster
//! may break are checked, and that no clean leader lacks a record that was acknowledged.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;
mod laws;

use std::collections::BTreeMap;

use common::{DELETE, Rig, SECOND, SET, alter, assigned, topic};
use gregor_controller::{ControllerRequest, RequestId};
use gregor_messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionRequest, AssignReplicasToDirsRequest, BrokerHeartbeatRequest,
    BrokerHeartbeatResponse, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, ElectLeadersRequest,
    UnregisterBrokerRequest, UpdateFeaturesRequest,
    alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
    alter_partition_request::{BrokerState, PartitionData, TopicData},
    assign_replicas_to_dirs_request, create_partitions_request, elect_leaders_request,
    update_features_request::FeatureUpdateKey,
};
use gregor_metadata::Partition;
use gregor_types::{BrokerId, PartitionIndex, TopicId, Uuid};
use laws::Laws;

const BROKERS: i32 = 5;
const TOPICS: [&str; 3] = ["t", "u", "v"];

/// Chance that a seed repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, bound: i32) -> i32 {
        i32::try_from(self.roll() % u64::from(bound.unsigned_abs())).unwrap()
    }

    fn percent(&mut self, chance: i32) -> bool {
        self.below(100) < chance
    }

    fn broker(&mut self) -> i32 {
        1 + self.below(BROKERS)
    }

    /// Some brokers in any order, each once.
    fn brokers(&mut self) -> Vec<i32> {
        let mut all: Vec<i32> = (1..=BROKERS).collect();
        let count = 1 + self.below(4);
        (0..count).map(|_| all.remove(usize::try_from(self.roll() % all.len() as u64).unwrap())).collect()
    }
}

/// A broker's process, as far as there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Running,
    Stopping,
    Dead { in_peace: bool },
}

struct World {
    rig: Rig,
    dice: Dice,
    laws: Laws,
    processes: BTreeMap<i32, Process>,
    incarnations: u128,
    asked: Vec<RequestId>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let level = [7, 12, 16, 17, 23, 29, 30, 33][usize::try_from(dice.below(8)).unwrap()];
        let properties =
            format!("min.insync.replicas={}\nleader.imbalance.check.interval.seconds=20\n", 1 + dice.below(3));
        let with_elr = level >= 23 && dice.percent(60);
        let rig = if with_elr { Rig::with_elr(level, &properties) } else { Rig::with(level, &properties) };
        let mut world = Self {
            laws: Laws::new(&rig),
            rig,
            dice,
            processes: (1..=BROKERS).map(|id| (id, Process::Dead { in_peace: false })).collect(),
            incarnations: 0,
            asked: Vec::new(),
        };
        for id in 1..=BROKERS {
            world.start(id);
            world.beat(id);
        }
        for name in TOPICS {
            let replicas = world.dice.brokers();
            world.rig.create(vec![assigned(name, &[(0, &replicas)])]);
            world.check();
        }
        world
    }

    /// A new process of a broker registers.
    fn start(&mut self, id: i32) {
        let Process::Dead { in_peace } = self.processes[&id] else { return };
        self.incarnations += 1;
        let known = self.rig.image.cluster().broker(BrokerId(id)).map(|broker| broker.epoch.value());
        let previous = known.filter(|_| in_peace).unwrap_or(-1);
        let (id_bits, incarnation) = (u128::from(id.unsigned_abs()), self.incarnations);
        let response = self.rig.register_with(id, incarnation, |request| {
            request.rack = Some(["a", "b", "c"][id.unsigned_abs() as usize % 3].into());
            request.log_dirs = vec![Uuid(1_000 + id_bits), Uuid(2_000 + id_bits)];
            request.previous_broker_epoch = previous;
        });
        if response.error_code == 0 {
            self.processes.insert(id, Process::Running);
            self.laws.restarted(BrokerId(id), in_peace && previous >= 0);
        }
        self.check();
    }

    fn is_running(&self, id: i32) -> bool {
        !matches!(self.processes[&id], Process::Dead { .. })
    }

    fn heartbeat(&mut self, id: i32, change: impl FnOnce(&mut BrokerHeartbeatRequest)) -> BrokerHeartbeatResponse {
        let end = i64::try_from(self.rig.log.len()).unwrap();
        let behind = i64::from(if self.dice.percent(20) { self.dice.below(20) } else { 0 });
        let response = self.rig.heartbeat(id, |request| {
            request.current_metadata_offset = (end - behind).max(0);
            change(request);
        });
        self.check();
        response
    }

    fn beat(&mut self, id: i32) {
        if !self.is_running(id) {
            return;
        }
        let stopping = self.processes[&id] == Process::Stopping;
        let response = self.heartbeat(id, |request| request.want_shut_down = stopping);
        if response.should_shut_down {
            Laws::may_go(&self.rig, BrokerId(id));
            self.processes.insert(id, Process::Dead { in_peace: true });
        }
        if response.error_code != 0 {
            // It was unregistered: it cannot do anything but start anew.
            self.processes.insert(id, Process::Dead { in_peace: false });
        }
    }

    /// Some partition, of those that there are as far as is decided.
    fn partition(&mut self) -> Option<(TopicId, String, PartitionIndex, Partition)> {
        let all: Vec<_> = self
            .rig
            .controller
            .image()
            .topics()
            .iter()
            .flat_map(|topic| {
                topic.partitions().map(move |(index, one)| (topic.id, topic.name.to_string(), index, one))
            })
            .map(|(topic, name, index, partition)| (topic, name, index, Partition::clone(partition)))
            .collect();
        let chosen = usize::try_from(self.dice.roll()).unwrap().checked_rem(all.len())?;
        all.into_iter().nth(chosen)
    }

    /// A leader says who is in sync: those that were, and others that have caught up; or with something wrong about it.
    fn alter_isr(&mut self) {
        let Some((topic_id, _, index, partition)) = self.partition() else { return };
        let Some(leader) = partition.leader.filter(|leader| self.is_running(leader.value())) else { return };
        let cluster = self.rig.controller.image().cluster().clone();
        let mut members = partition.isr.clone();
        for replica in &partition.replicas {
            if members.contains(replica) {
                let slow = *replica != leader && self.dice.percent(25);
                members.retain(|member| !slow || member != replica);
            } else if self.dice.percent(70) {
                members.push(*replica);
            }
        }
        let mut data = PartitionData {
            partition_index: index.value(),
            leader_epoch: partition.leader_epoch.value(),
            partition_epoch: partition.partition_epoch,
            leader_recovery_state: 0,
            ..Default::default()
        };
        match self.dice.below(20) {
            0 => data.leader_epoch -= 1,
            1 => data.partition_epoch -= 1,
            2 => data.leader_epoch += 1,
            3 => members.retain(|member| *member != leader),
            4 => members.push(leader),
            5 => members.push(BrokerId(99)),
            6 => data.leader_recovery_state = 1,
            _ => {}
        }
        let stale = self.dice.percent(5);
        let state = |member: &BrokerId| BrokerState {
            broker_id: member.value(),
            broker_epoch: cluster.broker(*member).map_or(0, |broker| broker.epoch.value()) - i64::from(stale),
            ..Default::default()
        };
        data.new_isr_with_epochs = members.iter().map(state).collect();
        let request = AlterPartitionRequest {
            broker_id: leader.value(),
            broker_epoch: cluster.broker(leader).map_or(-1, |broker| broker.epoch.value()),
            topics: vec![TopicData { topic_id, partitions: vec![data], ..Default::default() }],
            ..Default::default()
        };
        self.laws.caught_up = members;
        self.submit(3, request);
        self.laws.caught_up.clear();
        self.commit_mostly();
    }

    fn reassign(&mut self) {
        let Some((_, name, index, _)) = self.partition() else { return };
        let replicas = (!self.dice.percent(25)).then(|| self.dice.brokers());
        let partition = ReassignablePartition { partition_index: index.value(), replicas, ..Default::default() };
        let topic = ReassignableTopic { name: name.as_str().into(), partitions: vec![partition], ..Default::default() };
        let request = AlterPartitionReassignmentsRequest {
            topics: vec![topic],
            allow_replication_factor_change: self.dice.percent(80),
            ..Default::default()
        };
        self.ask(1, request);
    }

    fn elect(&mut self) {
        let everything = self.dice.percent(30);
        let one = self.partition().filter(|_| !everything).map(|(_, name, index, _)| {
            vec![elect_leaders_request::TopicPartitions {
                topic: name.as_str().into(),
                partitions: vec![index.value()],
                ..Default::default()
            }]
        });
        let election_type = i8::from(self.dice.percent(15));
        self.laws.unclean_by_request = election_type == 1;
        self.submit(2, ElectLeadersRequest { topic_partitions: one, election_type, ..Default::default() });
        self.laws.unclean_by_request = false;
        self.commit_mostly();
    }

    fn configure(&mut self) {
        let name = TOPICS[usize::try_from(self.dice.below(3)).unwrap()];
        let value = ["1", "2", "3"][usize::try_from(self.dice.below(3)).unwrap()];
        let request = match self.dice.below(6) {
            0 => alter(2, name, &[("unclean.leader.election.enable", SET, Some("true"))]),
            1 | 2 => alter(2, name, &[("unclean.leader.election.enable", DELETE, None)]),
            3 => alter(2, name, &[("min.insync.replicas", SET, Some(value))]),
            4 => alter(4, "", &[("min.insync.replicas", SET, Some(value))]),
            _ => alter(2, name, &[("min.insync.replicas", DELETE, None)]),
        };
        self.ask(1, request);
    }

    /// A user turns eligible leader replicas on or off.
    fn keep_eligible_or_not(&mut self) {
        if self.rig.level().level() >= 23 {
            let max_version_level = i16::from(self.dice.percent(70));
            let upgrade_type = if max_version_level < self.laws.elr_level() { 2 } else { 1 };
            let update = FeatureUpdateKey {
                feature: "eligible.leader.replicas.version".into(),
                max_version_level,
                upgrade_type,
                ..Default::default()
            };
            self.ask(2, UpdateFeaturesRequest { feature_updates: vec![update], ..Default::default() });
        }
    }

    fn change_topics(&mut self) {
        let name = TOPICS[usize::try_from(self.dice.below(3)).unwrap()];
        match self.dice.below(4) {
            0 => self.ask(5, DeleteTopicsRequest { topic_names: vec![name.into()], ..Default::default() }),
            1 => {
                let replicas = self.dice.brokers();
                let topics = vec![assigned(name, &[(0, &replicas)])];
                self.ask(7, CreateTopicsRequest { topics, ..Default::default() });
            }
            2 => {
                let topics = vec![topic(name, 1 + self.dice.below(3), 1 + self.dice.roll() as i16 % 3)];
                self.ask(7, CreateTopicsRequest { topics, ..Default::default() });
            }
            _ => {
                let count = 1 + self.dice.below(4);
                let more =
                    create_partitions_request::CreatePartitionsTopic { name: name.into(), count, ..Default::default() };
                self.ask(3, CreatePartitionsRequest { topics: vec![more], ..Default::default() });
            }
        }
    }

    /// A directory fails, or a broker says in which of its directories a replica is.
    fn change_directories(&mut self) {
        let Some((topic_id, _, index, partition)) = self.partition() else { return };
        let id = partition.replicas[0].value();
        if !self.is_running(id) {
            return;
        }
        let directory = Uuid(1_000 * (1 + u128::from(self.dice.percent(50))) + u128::from(id.unsigned_abs()));
        if self.dice.percent(30) {
            self.heartbeat(id, |request| request.offline_log_dirs = vec![directory]);
            return;
        }
        self.laws.moved.insert((topic_id, index));
        let replica =
            assign_replicas_to_dirs_request::PartitionData { partition_index: index.value(), ..Default::default() };
        let topic =
            assign_replicas_to_dirs_request::TopicData { topic_id, partitions: vec![replica], ..Default::default() };
        let directories = vec![assign_replicas_to_dirs_request::DirectoryData {
            id: directory,
            topics: vec![topic],
            ..Default::default()
        }];
        let broker_epoch = self.rig.epoch(id);
        self.ask(0, AssignReplicasToDirsRequest { broker_id: id, broker_epoch, directories, ..Default::default() });
    }

    /// Asks, and mostly waits until the answer is committed.
    fn ask(&mut self, version: i16, request: impl Into<ControllerRequest>) {
        self.submit(version, request);
        self.commit_mostly();
    }

    fn submit(&mut self, version: i16, request: impl Into<ControllerRequest>) {
        self.asked.push(self.rig.submit(version, request));
        self.check();
    }

    fn commit_mostly(&mut self) {
        if self.dice.percent(80) {
            self.rig.commit();
            for id in std::mem::take(&mut self.asked) {
                assert!(self.rig.replies.remove(&id).is_some(), "an answer");
            }
            self.check();
        }
    }

    fn check(&mut self) {
        self.laws.hold(&self.rig);
    }

    fn step(&mut self) {
        let id = self.dice.broker();
        match self.dice.below(33) {
            0..=7 => self.beat(id),
            8 => {
                if self.is_running(id) {
                    self.processes.insert(id, Process::Dead { in_peace: false });
                }
            }
            9..=11 => self.start(id),
            12 => {
                if self.processes[&id] == Process::Running {
                    self.processes.insert(id, Process::Stopping);
                }
            }
            13 => {
                if self.is_running(id) {
                    self.heartbeat(id, |request| request.want_fence = true);
                }
            }
            14 => self.ask(0, UnregisterBrokerRequest { broker_id: id, ..Default::default() }),
            15..=17 => {
                let longest = if self.dice.percent(30) { 12 } else { 3 };
                let time = SECOND * u64::from(self.dice.below(longest).unsigned_abs());
                self.rig.tick_after(time);
                self.check();
                // Whoever runs is heard of in time, or nearly so.
                for id in 1..=BROKERS {
                    if self.dice.percent(90) {
                        self.beat(id);
                    }
                }
            }
            18 => {
                self.rig.lose();
                self.laws.rolled_back(&self.rig);
                self.rig.win();
                self.rig.commit();
                self.check();
            }
            19..=24 => self.alter_isr(),
            25 | 26 => self.reassign(),
            27 => self.elect(),
            28 | 29 => self.configure(),
            30 => self.change_topics(),
            31 => self.keep_eligible_or_not(),
            _ => self.change_directories(),
        }
    }
}

fn play(seed: u64) -> Laws {
    let mut world = World::new(seed);
    for _ in 0..1_000 {
        world.step();
    }
    world.rig.commit();
    world.check();
    assert_eq!(world.rig.controller.image(), &world.rig.image, "the log makes the controller's own image");
    let mut copy = gregor_metadata::Image::default();
    world.rig.image.write_snapshot(|record| {
        copy.apply(&record.record).unwrap();
    });
    assert_eq!(copy.topics(), world.rig.image.topics(), "so does a snapshot");
    assert_eq!(copy.cluster(), world.rig.image.cluster());
    world.laws
}

#[test]
fn whatever_happens_to_brokers_no_rule_is_broken_and_no_clean_leader_lacks_what_was_acknowledged() {
    let seeds = std::env::var("GREGOR_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    let (mut clean, mut unclean, mut eligible, mut reassigned) = (0, 0, 0, 0);
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(|| play(seed));
        let laws = outcome.unwrap_or_else(|_| panic!("seed {seed}"));
        clean += laws.clean_elections;
        unclean += laws.unclean_elections;
        eligible += laws.eligible_elections;
        reassigned += laws.reassignments_done;
    }
    for (what, times) in [("clean", clean), ("unclean", unclean), ("eligible", eligible), ("reassigned", reassigned)] {
        assert!(times > 0, "{what}: it has to happen for the rules to say something");
    }
}
