//! An administrator: creates topics and deletes them, changes their configuration, deletes records.

use std::collections::BTreeMap;

use gregor_controller::{ControllerRequest, ControllerResponse};
use gregor_messages::{
    CreateTopicsRequest, DeleteTopicsRequest, IncrementalAlterConfigsRequest,
    create_topics_request::{CreatableTopic, CreatableTopicConfig},
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use gregor_types::{ErrorCode, Offset};

use super::{Client, View};
use crate::{
    Random,
    network::{Place, Request, Response},
    node::OFFSETS_TOPIC,
    promises::{Existence, Topic},
};

const TOPICS_MAX: usize = 4;
const TOPIC_RESOURCE: i8 = 2;
/// What topics are created with and changed to; a simulated log divides it (see `node/partition.rs`).
const SEGMENT_BYTES: [u32; 3] = [1 << 20, 3 << 19, 2 << 20];
/// So many bytes are kept of topics that have a limit, and of the others.
const LIMITED_BYTES: (u64, u64) = (3_000, 9_000);
const UNLIMITED_BYTES: (u64, u64) = (1 << 40, 1 << 41);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Admin {
    created: usize,
    asking: Option<(u64, Asked)>,
    /// What was not answered is asked again, until it is.
    again: Option<Asked>,
}

#[derive(Debug, Clone)]
enum Asked {
    Create { name: String, partitions: i32, kind: Kind, segment_bytes: u32 },
    Delete { name: String },
    Configure { name: String, key: &'static str, value: String },
    DeleteRecords { place: Place, before: i64 },
}

/// What kind of topic.
#[derive(Debug, Clone, Copy)]
struct Kind {
    synced: bool,
    limited: bool,
    compacted: bool,
}

impl Kind {
    fn retention_bytes(self, random: &mut Random) -> u64 {
        let (least, most) = if self.limited { LIMITED_BYTES } else { UNLIMITED_BYTES };
        random.between(least, most)
    }
}

impl Admin {
    fn next(&mut self, world: &mut View<'_>) -> Option<Asked> {
        if let Some(again) = self.again.take() {
            return Some(again);
        }
        let segment_bytes = *world.random.pick(&SEGMENT_BYTES);
        if !world.promises.is_there(OFFSETS_TOPIC) {
            let kind = Kind { synced: world.random.chance(60), limited: false, compacted: true };
            let name = OFFSETS_TOPIC.to_owned();
            return Some(Asked::Create { name, partitions: 2, kind, segment_bytes });
        }
        if world.winding_down {
            return None;
        }
        let places = world.promises.places_for_data(false);
        let topics = places.iter().filter(|place| place.partition == 0).count();
        if topics == 0 || (topics < TOPICS_MAX && world.random.chance(25)) {
            self.created += 1;
            let partitions = world.random.between(1, 3) as i32;
            let name = format!("topic-{}", self.created);
            let (synced, limited) = (world.random.chance(60), world.random.chance(30));
            let kind = Kind { synced, limited, compacted: world.random.chance(25) };
            return Some(Asked::Create { name, partitions, kind, segment_bytes });
        }
        let place = world.random.pick(&places).clone();
        let name = place.topic.clone();
        match world.random.below(10) {
            0 if topics > 1 => Some(Asked::Delete { name }),
            1..4 => {
                let (key, value) = match world.random.below(3) {
                    0 => ("min.insync.replicas", world.random.between(1, 3)),
                    1 => {
                        let limited = world.promises.is_limited(&name);
                        let kind = Kind { synced: false, limited, compacted: false };
                        ("retention.bytes", kind.retention_bytes(world.random))
                    }
                    _ => ("segment.bytes", u64::from(segment_bytes)),
                };
                Some(Asked::Configure { name, key, value: value.to_string() })
            }
            // Nobody deletes records of a log that is only compacted: a server refuses it.
            4..7 if world.promises.is_limited(&name) || !world.promises.is_compacted(&name) => {
                let last = world.promises.last_known(&place)?;
                Some(Asked::DeleteRecords { place, before: world.random.below(last as u64 + 1) as i64 })
            }
            _ => None,
        }
    }
}

impl Asked {
    fn request(&self) -> Request {
        let control: ControllerRequest = match self {
            Self::Create { name, partitions, kind, segment_bytes } => {
                create(name, *partitions, *kind, *segment_bytes).into()
            }
            Self::Delete { name } => {
                let topic_names = vec![name.as_str().into()];
                DeleteTopicsRequest { topic_names, timeout_ms: 10_000, ..Default::default() }.into()
            }
            Self::Configure { name, key, value } => {
                let config = AlterableConfig {
                    name: (*key).into(),
                    config_operation: 0,
                    value: Some(value.as_str().into()),
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
            Self::DeleteRecords { place, before } => {
                return Request::DeleteRecords { place: place.clone(), before: Offset(*before) };
            }
        };
        Request::Control(control)
    }
}

fn create(name: &str, partitions: i32, kind: Kind, segment_bytes: u32) -> CreateTopicsRequest {
    let config = |name: &str, value: &str| CreatableTopicConfig {
        name: name.into(),
        value: Some(value.into()),
        ..Default::default()
    };
    let mut configs = vec![
        config("segment.bytes", &segment_bytes.to_string()),
        config("retention.ms", "-1"),
        config("index.interval.bytes", "100"),
        // The wall clock jumps, and producers' clocks do not.
        config("message.timestamp.after.max.ms", "9223372036854775807"),
    ];
    if kind.compacted {
        configs.extend([
            config("cleanup.policy", if kind.limited { "compact,delete" } else { "compact" }),
            config("min.cleanable.dirty.ratio", "0"),
            config("delete.retention.ms", "3000"),
        ]);
    }
    if kind.limited {
        configs.push(config("retention.bytes", &LIMITED_BYTES.1.to_string()));
    }
    if kind.synced {
        configs.push(config("flush.messages", "1"));
    }
    let topic = CreatableTopic {
        name: name.into(),
        num_partitions: partitions,
        replication_factor: 1,
        configs,
        ..Default::default()
    };
    CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() }
}

impl Client for Admin {
    fn wake(&mut self, world: &mut View<'_>) {
        world.wake_in(500);
        if self.asking.is_some() {
            return;
        }
        let Some(asked) = self.next(world) else { return };
        match &asked {
            Asked::Delete { name } => world.promises.set_existence(name, Existence::Leaving),
            Asked::DeleteRecords { place, before } => world.promises.start_asked(place, *before),
            // From now on it may be so, whatever is answered.
            Asked::Configure { name, key, value } => world.promises.configured(name, key, value),
            Asked::Create { .. } => {}
        }
        let number = world.ask(asked.request());
        self.asking = Some((number, asked));
    }

    fn hear(&mut self, number: u64, response: Response, world: &mut View<'_>) {
        let Some((_, asked)) = self.asking.take_if(|(asking, _)| *asking == number) else { return };
        let code = match response {
            Response::Control(ControllerResponse::CreateTopics(response)) => response.topics[0].error_code,
            Response::Control(ControllerResponse::DeleteTopics(response)) => response.responses[0].error_code,
            Response::Control(ControllerResponse::IncrementalAlterConfigs(response)) => {
                response.responses[0].error_code
            }
            _ => {
                // Records are deleted by a request that may be lost; where the log starts then is known to a file that is
                // written now and then, so a crash may bring some of them back.
                self.again = Some(asked).filter(|asked| !matches!(asked, Asked::DeleteRecords { .. }));
                return;
            }
        };
        match (asked, ErrorCode::from(code)) {
            (Asked::Create { name, partitions, kind, .. }, ErrorCode::None | ErrorCode::TopicAlreadyExists) => {
                let Kind { synced, limited, compacted } = kind;
                let topic = Topic {
                    existence: Existence::There,
                    compacted,
                    synced,
                    limited,
                    partitions,
                    configs: BTreeMap::new(),
                };
                world.promises.topics.insert(name, topic);
            }
            (Asked::Delete { name }, ErrorCode::None | ErrorCode::UnknownTopicOrPartition) => {
                world.promises.set_existence(&name, Existence::Gone);
            }
            (asked @ (Asked::Create { .. } | Asked::Delete { .. }), _) => self.again = Some(asked),
            (Asked::Configure { name, key, value }, ErrorCode::None) => {
                world.promises.set_configured(&name, key, value);
            }
            (Asked::Configure { .. } | Asked::DeleteRecords { .. }, _) => {}
        }
    }
}
