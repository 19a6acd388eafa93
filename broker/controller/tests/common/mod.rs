//! A quorum of one on paper: a log that is a vector, and a commit when the test says so.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(dead_code, reason = "each test file uses what it needs")]

use std::collections::BTreeMap;

use gregor_config::{BrokerConfig, Properties};
use gregor_controller::{
    Controller, ControllerConfig, ControllerRequest, ControllerResponse, Effect, Effects, Input, Nanos, Refusal,
    RequestId,
};
use gregor_messages::{
    AlterConfigsRequest, AlterPartitionRequest, AlterPartitionResponse, BrokerHeartbeatRequest,
    BrokerHeartbeatResponse, BrokerRegistrationRequest, BrokerRegistrationResponse, CreateTopicsRequest,
    CreateTopicsResponse, IncrementalAlterConfigsRequest,
    alter_partition_request::{BrokerState, PartitionData, TopicData},
    broker_registration_request::{Feature, Listener},
    create_topics_request::{CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig},
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use gregor_metadata::{Image, MetadataVersion, Partition, VersionedRecord};
use gregor_state_records::metadata::{FeatureLevelRecord, MetadataRecord, NoOpRecord};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, Uuid};

pub const SECOND: Nanos = 1_000_000_000;

pub struct Rig {
    pub controller: Controller,
    pub log: Vec<VersionedRecord>,
    pub committed: usize,
    pub image: Image,
    pub now: Nanos,
    pub replies: BTreeMap<RequestId, ControllerResponse>,
    /// What a quorum says to a `kraft.version`; none where it must not be asked.
    pub quorum_says: Option<Result<(), Refusal>>,
    /// `min.insync.replicas` of the node's file.
    pub min_isr: usize,
    next_request: u64,
    seed: u64,
    effects: Effects,
    epochs: BTreeMap<i32, i64>,
    leader_epoch: i32,
}

impl Rig {
    /// A controller that leads an empty log, at this level.
    pub fn at(level: i16) -> Self {
        Self::with(level, "")
    }

    /// The same with further configuration.
    pub fn with(level: i16, properties: &str) -> Self {
        Self::with_features(&[("metadata.version", level)], properties)
    }

    /// The same where partitions keep eligible leader replicas (KIP-966).
    pub fn with_elr(level: i16, properties: &str) -> Self {
        Self::with_features(&[("metadata.version", level), ("eligible.leader.replicas.version", 1)], properties)
    }

    fn with_features(features: &[(&str, i16)], properties: &str) -> Self {
        let base = "node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=C\nlisteners=PLAINTEXT://:0,C://:0\n\
                    listener.security.protocol.map=C:PLAINTEXT,PLAINTEXT:PLAINTEXT\ncontroller.quorum.bootstrap.servers=h:1\n";
        let properties = Properties::parse(&format!("{base}{properties}")).unwrap();
        let (broker, _) = BrokerConfig::from_properties(&properties).unwrap();
        let feature = |(name, level): &(&str, i16)| {
            MetadataRecord::FeatureLevel(FeatureLevelRecord {
                name: (*name).into(),
                feature_level: *level,
                ..Default::default()
            })
        };
        let bootstrap = features.iter().map(feature).collect();
        let config = ControllerConfig::new("cluster".into(), &broker, bootstrap);
        let mut rig = Self {
            controller: Controller::new(config),
            log: Vec::new(),
            committed: 0,
            image: Image::default(),
            now: 0,
            replies: BTreeMap::new(),
            quorum_says: None,
            min_isr: broker.set_value("min.insync.replicas").map_or(1, |value| value.parse().unwrap()),
            next_request: 0,
            seed: 7,
            effects: Effects::default(),
            epochs: BTreeMap::new(),
            leader_epoch: 0,
        };
        rig.win();
        rig.commit();
        rig
    }

    /// With brokers 1 to `count`, all unfenced.
    pub fn brokers(mut self, count: i32) -> Self {
        for id in 1..=count {
            assert_eq!(self.register(id, u128::from(id.unsigned_abs())).error_code, 0);
            assert!(!self.heartbeat(id, |_| ()).is_fenced);
        }
        self
    }

    pub fn step(&mut self, input: Input) {
        let seed = &mut self.seed;
        let mut random = || {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *seed >> 20
        };
        let end = Offset(self.log.len() as i64);
        self.controller.step(input, end, self.now, &mut random, &mut self.effects);
        while let Some(effect) = self.effects.pop() {
            match effect {
                Effect::Append { epoch, base, records } => {
                    assert_eq!(base, Offset(self.log.len() as i64), "an append lands where it was decided for");
                    assert_eq!(epoch, LeaderEpoch(self.leader_epoch));
                    for record in &records {
                        let bytes = record.record.encode_framed(record.version).unwrap();
                        assert_eq!(MetadataRecord::decode_framed(bytes).unwrap(), record.record);
                    }
                    self.log.extend(records);
                }
                Effect::Reply { to, response } => {
                    assert!(self.replies.insert(to, response).is_none(), "one answer per request");
                }
                Effect::UpgradeKRaft { id, version, request, epoch, .. } => {
                    assert_eq!(epoch, LeaderEpoch(self.leader_epoch));
                    let result = self.quorum_says.clone().expect("nobody had to ask the quorum");
                    if result.is_ok() && !request.validate_only {
                        // A record of the quorum's own takes an offset, too.
                        let record = MetadataRecord::NoOp(NoOpRecord::default());
                        self.log.push(VersionedRecord::at(self.level(), record).unwrap());
                    }
                    self.step(Input::KRaftUpgraded { id, version, request, result });
                }
            }
        }
    }

    pub fn win(&mut self) {
        self.leader_epoch += 1;
        let start = Offset(self.log.len() as i64);
        self.step(Input::LeadershipWon { epoch: LeaderEpoch(self.leader_epoch), start });
    }

    /// Leadership goes, and what is not committed with it.
    pub fn lose(&mut self) {
        self.log.truncate(self.committed);
        self.step(Input::LeadershipLost);
    }

    /// Commits all that is appended.
    pub fn commit(&mut self) {
        for record in &self.log[self.committed..] {
            self.image.apply(&record.record).unwrap_or_else(|error| panic!("{record:?}: {error}"));
        }
        self.committed = self.log.len();
        let image = self.image.clone();
        self.step(Input::Committed { image, end: Offset(self.committed as i64) });
        // A commit may let the controller append more, as when it begins to decide.
        if self.committed < self.log.len() {
            self.commit();
        }
    }

    /// Commits all that is appended, and the controller does not get to know.
    pub fn commit_without_telling(&mut self) {
        for record in &self.log[self.committed..] {
            self.image.apply(&record.record).unwrap();
        }
        self.committed = self.log.len();
    }

    pub fn submit(&mut self, version: i16, request: impl Into<ControllerRequest>) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.step(Input::Request { id, version, request: request.into() });
        id
    }

    pub fn ask<R: TryFrom<ControllerResponse>>(&mut self, version: i16, request: impl Into<ControllerRequest>) -> R {
        let id = self.submit(version, request);
        self.commit();
        self.take(id)
    }

    pub fn take<R: TryFrom<ControllerResponse>>(&mut self, id: RequestId) -> R {
        let response = self.replies.remove(&id).expect("an answer");
        R::try_from(response).ok().expect("an answer of this kind")
    }

    pub fn level(&self) -> MetadataVersion {
        self.image.features().metadata_version()
    }

    pub fn register(&mut self, id: i32, incarnation: u128) -> BrokerRegistrationResponse {
        self.register_with(id, incarnation, |_| ())
    }

    pub fn register_with(
        &mut self,
        id: i32,
        incarnation: u128,
        change: impl FnOnce(&mut BrokerRegistrationRequest),
    ) -> BrokerRegistrationResponse {
        let mut request = BrokerRegistrationRequest {
            broker_id: id,
            cluster_id: "cluster".into(),
            incarnation_id: Uuid(incarnation),
            listeners: vec![Listener { name: "PLAINTEXT".into(), host: "h".into(), port: 9092, ..Default::default() }],
            features: [("metadata.version", 7, 33), ("eligible.leader.replicas.version", 0, 1)]
                .map(|(name, min_supported_version, max_supported_version)| Feature {
                    name: name.into(),
                    min_supported_version,
                    max_supported_version,
                    ..Default::default()
                })
                .to_vec(),
            log_dirs: vec![Uuid(1000 + u128::from(id.unsigned_abs()))],
            ..Default::default()
        };
        change(&mut request);
        let response: BrokerRegistrationResponse = self.ask(4, request);
        if response.error_code == 0 {
            self.epochs.insert(id, response.broker_epoch);
        }
        response
    }

    pub fn epoch(&self, id: i32) -> i64 {
        self.epochs[&id]
    }

    pub fn heartbeat(&mut self, id: i32, change: impl FnOnce(&mut BrokerHeartbeatRequest)) -> BrokerHeartbeatResponse {
        let mut request = BrokerHeartbeatRequest {
            broker_id: id,
            broker_epoch: self.epoch(id),
            current_metadata_offset: self.log.len() as i64,
            ..Default::default()
        };
        change(&mut request);
        self.ask(1, request)
    }

    pub fn tick_after(&mut self, nanos: Nanos) {
        self.now += nanos;
        self.step(Input::Tick);
        self.commit();
    }

    pub fn create(&mut self, topics: Vec<CreatableTopic>) -> CreateTopicsResponse {
        self.ask(7, CreateTopicsRequest { topics, ..Default::default() })
    }

    pub fn partition(&self, topic: &str, index: i32) -> Partition {
        let topic = self.image.topics().by_name(topic).unwrap_or_else(|| panic!("no topic {topic}"));
        topic.partition(PartitionIndex(index)).unwrap().as_ref().clone()
    }
}

/// The leader of partition 0 of topic "t" says that brokers 1 and 2 are in sync, or what `change` makes of that. Returns the error and
/// the partition's epoch.
pub fn alter_isr(rig: &mut Rig, change: impl FnOnce(&mut PartitionData)) -> (ErrorCode, i32) {
    let partition = rig.partition("t", 0);
    let leader = partition.leader.unwrap().value();
    let member = |id: i32| BrokerState { broker_id: id, broker_epoch: rig.epoch(id), ..Default::default() };
    let mut data = PartitionData {
        leader_epoch: partition.leader_epoch.value(),
        partition_epoch: partition.partition_epoch,
        new_isr_with_epochs: vec![member(1), member(2)],
        ..Default::default()
    };
    change(&mut data);
    let topic_id = rig.image.topics().by_name("t").unwrap().id;
    let request = AlterPartitionRequest {
        broker_id: leader,
        broker_epoch: rig.epoch(leader),
        topics: vec![TopicData { topic_id, partitions: vec![data], ..Default::default() }],
        ..Default::default()
    };
    let response: AlterPartitionResponse = rig.ask(3, request);
    let partition = &response.topics[0].partitions[0];
    (ErrorCode::from_code(partition.error_code).unwrap(), partition.partition_epoch)
}

pub fn topic(name: &str, num_partitions: i32, replication_factor: i16) -> CreatableTopic {
    CreatableTopic { name: name.into(), num_partitions, replication_factor, ..Default::default() }
}

pub fn assigned(name: &str, partitions: &[(i32, &[i32])]) -> CreatableTopic {
    let assignments = partitions.iter().map(|(index, brokers)| CreatableReplicaAssignment {
        partition_index: *index,
        broker_ids: brokers.to_vec(),
        ..Default::default()
    });
    CreatableTopic { assignments: assignments.collect(), ..topic(name, -1, -1) }
}

pub fn with_config(mut topic: CreatableTopic, name: &str, value: Option<&str>) -> CreatableTopic {
    topic.configs.push(CreatableTopicConfig { name: name.into(), value: value.map(Into::into), ..Default::default() });
    topic
}

pub const SET: i8 = 0;
pub const DELETE: i8 = 1;
pub const APPEND: i8 = 2;
pub const SUBTRACT: i8 = 3;

pub fn alter(resource_type: i8, name: &str, operations: &[(&str, i8, Option<&str>)]) -> IncrementalAlterConfigsRequest {
    let configs = operations.iter().map(|(name, operation, value)| AlterableConfig {
        name: (*name).into(),
        config_operation: *operation,
        value: value.map(Into::into),
        ..Default::default()
    });
    let resource = AlterConfigsResource {
        resource_type,
        resource_name: name.into(),
        configs: configs.collect(),
        ..Default::default()
    };
    IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() }
}

pub fn replace(resource_type: i8, name: &str, values: &[(&str, &str)]) -> AlterConfigsRequest {
    use gregor_messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let configs = values.iter().map(|(name, value)| AlterableConfig {
        name: (*name).into(),
        value: Some((*value).into()),
        ..Default::default()
    });
    let resource = AlterConfigsResource {
        resource_type,
        resource_name: name.into(),
        configs: configs.collect(),
        ..Default::default()
    };
    AlterConfigsRequest { resources: vec![resource], ..Default::default() }
}

pub fn ids(brokers: &[i32]) -> Vec<BrokerId> {
    brokers.iter().copied().map(BrokerId).collect()
}

#[track_caller]
pub fn assert_error(code: i16, message: Option<&gregor_types::KString>, expected: ErrorCode, part: &str) {
    assert_eq!(ErrorCode::from_code(code), Some(expected), "{message:?}");
    let message = message.map(ToString::to_string).unwrap_or_default();
    assert!(message.contains(part), "{message:?} does not say {part:?}");
}
