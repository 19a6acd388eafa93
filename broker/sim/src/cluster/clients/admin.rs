//! An administrator: creates topics and deletes them, adds partitions, moves them, elects leaders, changes what a topic asks for, raises and
//! lowers `metadata.version`, and unregisters brokers that are down.

use gregor_controller::{ControllerRequest, ControllerResponse as Decision};
use gregor_messages::{
    AlterPartitionReassignmentsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    ElectLeadersRequest, IncrementalAlterConfigsRequest, UnregisterBrokerRequest,
    alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
    create_partitions_request::CreatePartitionsTopic,
    create_topics_request::{CreatableTopic, CreatableTopicConfig},
    elect_leaders_request::TopicPartitions,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use gregor_metadata::{Image, METADATA_VERSION_FEATURE, MetadataVersion};
use gregor_server::control::ControllerResponse;
use gregor_types::{BrokerId, ErrorCode};

use super::{Client, SAFE_DOWNGRADE, UPGRADE, View, finalize};
use crate::cluster::{
    ledger::UNCLEAN_TOPIC,
    letters::{Answer, CallId, Question},
    machine::{METADATA_VERSION, Machine},
    trouble::Power,
};

const TOPICS_MAX: usize = 4;
const PARTITIONS_MAX: usize = 4;
const TOPIC_RESOURCE: i8 = 2;
const TIMEOUT_MS: i32 = 10_000;
/// `ElectionType.PREFERRED`, and `UNCLEAN`.
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Admin {
    created: usize,
    asking: Option<(CallId, Asked)>,
    /// What was not answered is asked again, until it is.
    again: Option<Asked>,
}

#[derive(Debug, Clone)]
enum Asked {
    Create { name: String, partitions: i32, replicas: i16, min_isr: usize, synced: bool, unclean: bool },
    Delete { name: String },
    Grow { name: String, partitions: i32 },
    Move { name: String, index: i32, to: Vec<i32> },
    Elect { name: String, index: i32, kind: i8 },
    MinIsr { name: String, min_isr: usize },
    Raise { level: i16 },
    Lower { level: i16 },
    Unregister { broker: BrokerId },
}

impl Admin {
    fn next(&mut self, view: &mut View<'_>) -> Option<Asked> {
        if let Some(again) = self.again.take() {
            return Some(again);
        }
        if view.healing {
            return None;
        }
        let topics: Vec<String> = view.ledger.topics().cloned().collect();
        let brokers = view.brokers();
        if topics.is_empty() || (topics.len() < TOPICS_MAX && view.random.chance(40)) {
            self.created += 1;
            let replicas = brokers.len().min(3);
            let min_isr = if view.random.chance(70) || view.power == Power::FailsInTurn { 2 } else { 1 };
            let unclean = view.random.chance(15);
            return Some(Asked::Create {
                name: format!("{}{}", if unclean { UNCLEAN_TOPIC } else { "topic-" }, self.created),
                partitions: view.random.between(1, 4) as i32,
                replicas: replicas as i16,
                min_isr,
                synced: view.power == Power::Fails,
                unclean,
            });
        }
        let image = view.image.clone()?;
        // Who may lead what nobody leads depends on how many have to be in sync: that is changed just then, too.
        let is_led = |name: &String| {
            let mut partitions = image.topics().by_name(name).into_iter().flat_map(|topic| topic.partitions());
            partitions.all(|(_, partition)| partition.leader.is_some())
        };
        // Of how many have to be in sync it depends how many may lose something at a time.
        let changes_min_isr = view.power != Power::FailsInTurn;
        if let Some(name) = topics.iter().find(|name| !is_led(name))
            && changes_min_isr
            && view.random.chance(30)
        {
            return Some(Asked::MinIsr { name: name.clone(), min_isr: view.random.between(1, 4) as usize });
        }
        let name = view.random.pick(&topics).clone();
        let partitions = image.topics().by_name(&name)?.partition_count();
        let index = view.random.below(partitions.max(1) as u64) as i32;
        match view.random.below(15) {
            0 if topics.len() > 1 => Some(Asked::Delete { name }),
            1 if partitions < PARTITIONS_MAX => Some(Asked::Grow { name, partitions: partitions as i32 + 1 }),
            2..5 => {
                let mut to: Vec<i32> = brokers.iter().map(|broker| broker.value()).collect();
                // Who moves a partition to a machine that lacks something, and to no other, has it lost.
                let wanted = if view.power == Power::FailsInTurn { 3 } else { view.random.between(1, 5) as usize };
                while to.len() > wanted {
                    let index = view.random.below(to.len() as u64) as usize;
                    to.remove(index);
                }
                let turn = view.random.below(to.len() as u64) as usize;
                to.rotate_left(turn);
                Some(Asked::Move { name, index, to })
            }
            5..8 => {
                let kind = if name.starts_with(UNCLEAN_TOPIC) { UNCLEAN } else { PREFERRED };
                Some(Asked::Elect { name, index, kind })
            }
            8 if changes_min_isr => Some(Asked::MinIsr { name, min_isr: view.random.between(1, 4) as usize }),
            9 | 10 => level_beside(&image, view),
            11 => unregistered_next(&image, view),
            _ => None,
        }
    }
}

/// A broker that is down for longer than its session lasts, and stays down until whom this is asked of has heard of it. Where it may be the only one
/// that has lost nothing, none that may lead: who takes that out gives up what it has.
fn unregistered_next(image: &Image, view: &mut View<'_>) -> Option<Asked> {
    let is_long_down = |machine: &&Machine| {
        let broker = image.cluster().broker(machine.identity.id);
        let is_needed = view.power == Power::FailsInTurn && may_lead_anything(image, machine.identity.id);
        machine.process.is_none() && broker.is_some_and(|broker| broker.fenced) && !is_needed
    };
    let broker = view.machines.values().find(is_long_down)?.identity.id;
    view.keeps_down = Some(broker);
    Some(Asked::Unregister { broker })
}

fn may_lead_anything(image: &Image, broker: BrokerId) -> bool {
    let mut partitions = image.topics().iter().flat_map(|topic| topic.partitions());
    partitions.any(|(_, partition)| partition.isr.contains(&broker) || partition.elr.contains(&broker))
}

/// A higher level of `metadata.version`, or a lower one for which nothing is lost.
fn level_beside(image: &Image, view: &mut View<'_>) -> Option<Asked> {
    let present = image.features().metadata_version();
    let is_lossless = |wanted: MetadataVersion| {
        !MetadataVersion::all().any(|passed| wanted < passed && passed <= present && passed.changed_metadata())
    };
    // Where topics keep eligible leader replicas, every level that is lossless to go to has them, too.
    let lower: Vec<i16> = MetadataVersion::all()
        .filter(|wanted| *wanted < present && is_lossless(*wanted))
        .map(MetadataVersion::level)
        .collect();
    if !lower.is_empty() && view.random.chance(50) {
        return Some(Asked::Lower { level: *view.random.pick(&lower) });
    }
    let present = present.level();
    (present < METADATA_VERSION)
        .then(|| Asked::Raise { level: view.random.between(present as u64 + 1, METADATA_VERSION as u64 + 1) as i16 })
}

impl Asked {
    fn request(&self) -> ControllerRequest {
        match self {
            Self::Create { name, partitions, replicas, min_isr, synced, unclean } => {
                create(name, *partitions, *replicas, *min_isr, (*synced, *unclean)).into()
            }
            Self::Delete { name } => {
                let topic_names = vec![name.as_str().into()];
                DeleteTopicsRequest { topic_names, timeout_ms: TIMEOUT_MS, ..Default::default() }.into()
            }
            Self::Grow { name, partitions } => {
                let topic = CreatePartitionsTopic {
                    name: name.as_str().into(),
                    count: *partitions,
                    assignments: None,
                    ..Default::default()
                };
                CreatePartitionsRequest { topics: vec![topic], timeout_ms: TIMEOUT_MS, ..Default::default() }.into()
            }
            Self::Move { name, index, to } => {
                let partition =
                    ReassignablePartition { partition_index: *index, replicas: Some(to.clone()), ..Default::default() };
                let topic =
                    ReassignableTopic { name: name.as_str().into(), partitions: vec![partition], ..Default::default() };
                let topics = vec![topic];
                AlterPartitionReassignmentsRequest { timeout_ms: TIMEOUT_MS, topics, ..Default::default() }.into()
            }
            Self::Unregister { broker } => {
                UnregisterBrokerRequest { broker_id: broker.value(), ..Default::default() }.into()
            }
            Self::Raise { level } => finalize(METADATA_VERSION_FEATURE, *level, UPGRADE),
            Self::Lower { level } => finalize(METADATA_VERSION_FEATURE, *level, SAFE_DOWNGRADE),
            Self::Elect { name, index, kind } => {
                let topic =
                    TopicPartitions { topic: name.as_str().into(), partitions: vec![*index], ..Default::default() };
                ElectLeadersRequest {
                    election_type: *kind,
                    topic_partitions: Some(vec![topic]),
                    timeout_ms: TIMEOUT_MS,
                    ..Default::default()
                }
                .into()
            }
            Self::MinIsr { name, min_isr } => {
                let config = AlterableConfig {
                    name: "min.insync.replicas".into(),
                    config_operation: 0,
                    value: Some(min_isr.to_string().as_str().into()),
                    ..Default::default()
                };
                let resource = AlterConfigsResource {
                    resource_type: TOPIC_RESOURCE,
                    resource_name: name.as_str().into(),
                    configs: vec![config],
                    ..Default::default()
                };
                IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() }.into()
            }
        }
    }

    /// What is counted once it is done.
    const fn deed(&self) -> &'static str {
        match self {
            Self::Create { .. } => "topic created",
            Self::Delete { .. } => "topic deleted",
            Self::Grow { .. } => "partitions added",
            Self::Move { .. } => "partition moved",
            Self::Elect { kind: UNCLEAN, .. } => "unclean leader asked for",
            Self::Elect { .. } => "preferred leader elected",
            Self::MinIsr { .. } => "setting changed",
            Self::Raise { .. } => "metadata version raised",
            Self::Lower { .. } => "metadata version lowered",
            Self::Unregister { .. } => "broker unregistered",
        }
    }
}

fn create(
    name: &str,
    partitions: i32,
    replicas: i16,
    min_isr: usize,
    (synced, unclean): (bool, bool),
) -> CreateTopicsRequest {
    let config = |name: &str, value: &str| CreatableTopicConfig {
        name: name.into(),
        value: Some(value.into()),
        ..Default::default()
    };
    let mut configs = vec![
        config("segment.bytes", "1048576"),
        config("retention.ms", "-1"),
        config("index.interval.bytes", "100"),
        config("min.insync.replicas", &min_isr.to_string()),
        // The wall clocks jump, and producers' clocks do not.
        config("message.timestamp.after.max.ms", "9223372036854775807"),
    ];
    if synced {
        configs.push(config("flush.messages", "1"));
    }
    if unclean {
        configs.push(config("unclean.leader.election.enable", "true"));
    }
    let topic = CreatableTopic {
        name: name.into(),
        num_partitions: partitions,
        replication_factor: replicas,
        configs,
        ..Default::default()
    };
    CreateTopicsRequest { topics: vec![topic], timeout_ms: TIMEOUT_MS, ..Default::default() }
}

/// The error of the one thing that was asked for, if the answer is one to it.
fn error_in(decision: &Decision) -> Option<ErrorCode> {
    let code = match decision {
        Decision::CreateTopics(response) => response.topics.first()?.error_code,
        Decision::UpdateFeatures(response) => response.error_code,
        Decision::UnregisterBroker(response) => response.error_code,
        Decision::DeleteTopics(response) => response.responses.first()?.error_code,
        Decision::CreatePartitions(response) => response.results.first()?.error_code,
        Decision::IncrementalAlterConfigs(response) => response.responses.first()?.error_code,
        Decision::AlterPartitionReassignments(response) => {
            let of_partition = response.responses.first().and_then(|topic| topic.partitions.first());
            of_partition.map_or(response.error_code, |partition| partition.error_code)
        }
        Decision::ElectLeaders(response) => {
            let of_partition =
                response.replica_election_results.first().and_then(|topic| topic.partition_result.first());
            of_partition.map_or(response.error_code, |partition| partition.error_code)
        }
        _ => return None,
    };
    Some(ErrorCode::from(code))
}

impl Client for Admin {
    fn wake(&mut self, view: &mut View<'_>) {
        view.wake_in(700);
        let Some(controller) = view.controller else { return };
        if self.asking.is_some() {
            return;
        }
        let Some(asked) = self.next(view) else { return };
        if let Asked::Delete { name } = &asked {
            view.ledger.leaves(name);
        }
        let call = view.ask(controller, Question::Decide(asked.request()));
        self.asking = Some((call, asked));
    }

    fn hear(&mut self, call: CallId, answer: Option<Answer>, view: &mut View<'_>) {
        let Some((_, asked)) = self.asking.take_if(|(asking, _)| *asking == call) else { return };
        let error = match &answer {
            Some(Answer::Control(ControllerResponse::Controller(decision))) => error_in(decision),
            _ => None,
        };
        match (asked, error) {
            (Asked::Create { name, .. }, Some(ErrorCode::None | ErrorCode::TopicAlreadyExists)) => {
                view.ledger.count("topic created");
                view.ledger.created(&name);
            }
            (Asked::Delete { .. }, Some(ErrorCode::None | ErrorCode::UnknownTopicOrPartition)) => {
                view.ledger.count("topic deleted");
            }
            // What may have been done is asked for until it is known to be: nothing else may come after it unseen.
            (asked @ (Asked::Create { .. } | Asked::Delete { .. }), _) => self.again = Some(asked),
            (asked, Some(ErrorCode::None)) => view.ledger.count(asked.deed()),
            _ => {}
        }
    }
}
