//! The controller of a model: the production's, with a quorum that never fails. What it appends is committed at once; what brokers have
//! heard of it is another matter.

use gregor_config::{BrokerConfig, Properties};
use gregor_controller::{
    Controller, ControllerConfig, ControllerRequest, ControllerResponse, Effect, Effects, Input, Nanos, RequestId,
};
use gregor_messages::{
    AlterPartitionRequest, AlterPartitionResponse, BrokerHeartbeatRequest, BrokerRegistrationRequest,
    BrokerRegistrationResponse, CreateTopicsRequest, ElectLeadersRequest,
    alter_partition_request::{BrokerState, PartitionData, TopicData},
    broker_registration_request::{Feature, Listener},
    create_topics_request::{CreatableReplicaAssignment, CreatableTopic},
    elect_leaders_request::TopicPartitions,
};
use gregor_metadata::{ELIGIBLE_LEADER_REPLICAS_FEATURE, Image, METADATA_VERSION_FEATURE, ServedFeature};
use gregor_replication::{IsrProposal, PartitionAssignment, Registration};
use gregor_state_records::metadata::{FeatureLevelRecord, MetadataRecord};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, TopicId, Uuid};

use super::{BROKERS, index};

/// How many replicas have to be in sync for a record to be acknowledged.
pub const MIN_ISR: usize = 2;
const TOPIC: &str = "t";
const LEVEL: i16 = 30;
const SESSION: Nanos = 1_000;

/// What the metadata says of the partition and of its brokers, at one point of the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct View {
    pub leader: Option<BrokerId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: i32,
    pub isr: Vec<BrokerId>,
    pub elr: Vec<BrokerId>,
    last_known_elr: Vec<BrokerId>,
    pub brokers: [Option<Registration>; 3],
    end: i64,
}

/// What the controller said to a proposal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Said {
    /// Nothing of the partition.
    Nothing,
    Accepted {
        isr: Vec<BrokerId>,
        leader_epoch: LeaderEpoch,
        partition_epoch: i32,
    },
    Refused(ErrorCode),
}

/// See the module. Time passes only where a session ends, and all brokers whose session goes on are heard of then, so all that a
/// decision depends on stands in the newest [`View`].
#[derive(Debug, Clone)]
pub struct Desk {
    controller: Controller,
    image: Image,
    end: i64,
    now: Nanos,
    topic: TopicId,
    reply: Option<ControllerResponse>,
}

impl View {
    pub fn assignment(&self) -> PartitionAssignment {
        PartitionAssignment {
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
            replicas: BROKERS.to_vec(),
            isr: self.isr.clone(),
            adding: Vec::new(),
        }
    }

    pub fn registration(&self, id: BrokerId) -> Option<Registration> {
        self.brokers[index(id)]
    }

    /// Whether a broker is registered, and not fenced.
    pub fn is_active(&self, id: BrokerId) -> bool {
        self.registration(id).is_some_and(|registration| registration.active)
    }
}

impl Desk {
    /// A cluster of three brokers, none fenced, and a partition on all of them, which the first leads.
    pub fn new(keeps_eligible: bool) -> Self {
        let properties = format!(
            "node.id=9\nprocess.roles=broker,controller\ncontroller.listener.names=C\nlisteners=PLAINTEXT://:0,C://:0\n\
             listener.security.protocol.map=C:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
             controller.quorum.bootstrap.servers=h:1\nmin.insync.replicas={MIN_ISR}\n"
        );
        let properties = Properties::parse(&properties).expect("properties");
        let (broker, _) = BrokerConfig::from_properties(&properties).expect("valid properties");
        let feature = |(name, level): (&str, i16)| {
            MetadataRecord::FeatureLevel(FeatureLevelRecord {
                name: name.into(),
                feature_level: level,
                ..Default::default()
            })
        };
        let levels = [(METADATA_VERSION_FEATURE, LEVEL), (ELIGIBLE_LEADER_REPLICAS_FEATURE, 1)];
        let bootstrap = levels.into_iter().take(if keeps_eligible { 2 } else { 1 }).map(feature).collect();
        let mut config = ControllerConfig::new("cluster".into(), &broker, bootstrap);
        (config.session_timeout, config.max_idle_interval, config.rebalance_interval) = (SESSION, 0, None);
        if ServedFeature::of(ELIGIBLE_LEADER_REPLICAS_FEATURE).max == 0 {
            config.served.push(ServedFeature { name: ELIGIBLE_LEADER_REPLICAS_FEATURE, min: 0, max: 1 });
        }
        let mut desk = Self {
            controller: Controller::new(config),
            image: Image::default(),
            end: 0,
            now: 0,
            topic: TopicId::ZERO,
            reply: None,
        };
        desk.step(Input::LeadershipWon { epoch: LeaderEpoch(1), start: Offset::ZERO });
        desk.commit();
        for id in BROKERS {
            desk.register(id, 0);
            desk.heartbeat(id);
        }
        let assignment = CreatableReplicaAssignment {
            partition_index: 0,
            broker_ids: BROKERS.map(BrokerId::value).to_vec(),
            ..Default::default()
        };
        let topic = CreatableTopic {
            name: TOPIC.into(),
            num_partitions: -1,
            replication_factor: -1,
            assignments: vec![assignment],
            ..Default::default()
        };
        desk.ask(7, CreateTopicsRequest { topics: vec![topic], ..Default::default() });
        desk.topic = desk.image.topics().by_name(TOPIC).expect("it was created").id;
        desk
    }

    pub fn view(&self) -> View {
        let partition = self.image.topics().partition(self.topic, PartitionIndex(0)).expect("it was created");
        let registration = |id: BrokerId| {
            let known = self.image.cluster().broker(id)?;
            Some(Registration { epoch: known.epoch, active: known.is_active() })
        };
        View {
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            isr: partition.isr.clone(),
            elr: partition.elr.clone(),
            last_known_elr: partition.last_known_elr.clone(),
            brokers: BROKERS.map(registration),
            end: self.end,
        }
    }

    /// Nothing was heard of a broker for as long as its session lasts.
    pub fn fence(&mut self, id: BrokerId) {
        self.let_session_end(id);
        self.step(Input::Tick);
        self.commit();
    }

    /// A new process of a broker, which does not know how its predecessor ended.
    pub fn register(&mut self, id: BrokerId, life: u8) -> BrokerEpoch {
        self.let_session_end(id);
        let levels = [(METADATA_VERSION_FEATURE, 7, 33), (ELIGIBLE_LEADER_REPLICAS_FEATURE, 0, 1)];
        let features = levels.map(|(name, min_supported_version, max_supported_version)| Feature {
            name: name.into(),
            min_supported_version,
            max_supported_version,
            ..Default::default()
        });
        let number = u128::from(id.value().unsigned_abs());
        let request = BrokerRegistrationRequest {
            broker_id: id.value(),
            cluster_id: "cluster".into(),
            incarnation_id: Uuid(number << 64 | u128::from(life)),
            listeners: vec![Listener { name: "PLAINTEXT".into(), host: "h".into(), port: 9092, ..Default::default() }],
            features: features.to_vec(),
            log_dirs: vec![Uuid(1_000 + number)],
            ..Default::default()
        };
        let response = BrokerRegistrationResponse::try_from(self.ask(4, request)).expect("an answer of this kind");
        assert_eq!(response.error_code, 0, "a broker whose session is over may register");
        BrokerEpoch(response.broker_epoch)
    }

    /// A broker is heard of, which has read all of the metadata.
    pub fn heartbeat(&mut self, id: BrokerId) {
        let epoch = self.image.cluster().broker(id).expect("it is registered").epoch;
        let request = BrokerHeartbeatRequest {
            broker_id: id.value(),
            broker_epoch: epoch.value(),
            current_metadata_offset: self.end,
            ..Default::default()
        };
        self.ask(1, request);
    }

    /// A leader asks for other in-sync replicas.
    pub fn alter(&mut self, from: BrokerId, broker_epoch: BrokerEpoch, proposal: &IsrProposal) -> Said {
        let member = |(id, epoch): &(BrokerId, BrokerEpoch)| BrokerState {
            broker_id: id.value(),
            broker_epoch: epoch.value(),
            ..Default::default()
        };
        let partition = PartitionData {
            leader_epoch: proposal.leader_epoch.value(),
            partition_epoch: proposal.partition_epoch,
            new_isr_with_epochs: proposal.isr.iter().map(member).collect(),
            ..Default::default()
        };
        let topic = TopicData { topic_id: self.topic, partitions: vec![partition], ..Default::default() };
        let request = AlterPartitionRequest {
            broker_id: from.value(),
            broker_epoch: broker_epoch.value(),
            topics: vec![topic],
            ..Default::default()
        };
        let response = AlterPartitionResponse::try_from(self.ask(3, request)).expect("an answer of this kind");
        let Some(answered) = response.topics.first().and_then(|topic| topic.partitions.first()) else {
            return Said::Nothing;
        };
        match ErrorCode::from(answered.error_code) {
            ErrorCode::None => Said::Accepted {
                isr: answered.isr.iter().copied().map(BrokerId).collect(),
                leader_epoch: LeaderEpoch(answered.leader_epoch),
                partition_epoch: answered.partition_epoch,
            },
            error => Said::Refused(error),
        }
    }

    /// A user asks for the preferred leader.
    pub fn prefer(&mut self) {
        let partitions = TopicPartitions { topic: TOPIC.into(), partitions: vec![0], ..Default::default() };
        self.ask(2, ElectLeadersRequest { topic_partitions: Some(vec![partitions]), ..Default::default() });
    }

    /// So much time passes as a session lasts, in which all but this broker are heard of.
    fn let_session_end(&mut self, id: BrokerId) {
        self.now += SESSION;
        for other in BROKERS {
            if other != id && self.image.cluster().is_unfenced(other) {
                self.heartbeat(other);
            }
        }
    }

    fn ask(&mut self, version: i16, request: impl Into<ControllerRequest>) -> ControllerResponse {
        self.step(Input::Request { id: RequestId(0), version, request: request.into() });
        self.commit();
        self.reply.take().expect("an answer")
    }

    /// Tells the controller that all is committed, until it has nothing more to append.
    fn commit(&mut self) {
        loop {
            let (image, end) = (self.image.clone(), self.end);
            self.step(Input::Committed { image, end: Offset(end) });
            if self.end == end {
                return;
            }
        }
    }

    fn step(&mut self, input: Input) {
        let mut effects = Effects::default();
        self.controller.step(input, Offset(self.end), self.now, &mut || 7, &mut effects);
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Append { base, records, .. } => {
                    assert_eq!(base, Offset(self.end), "an append lands where it was decided for");
                    for record in &records {
                        self.image.apply(&record.record).expect("a record that applies");
                    }
                    self.end += records.len() as i64;
                }
                Effect::Reply { response, .. } => self.reply = Some(response),
                Effect::UpgradeKRaft { .. } => unreachable!("nobody asks for it"),
            }
        }
    }
}
