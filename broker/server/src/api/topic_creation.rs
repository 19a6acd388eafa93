//! Topics that are created because somebody uses them: a client's by Metadata, the coordinators' own by FindCoordinator.
//!
//! The broker asks the controller for an ordinary CreateTopics and waits until its own image has the topic. Several that ask for the
//! same topic at once each ask the controller, which creates it once.

use std::time::Duration;

use gregor_config::BrokerConfig;
use gregor_messages::{
    CreateTopicsRequest,
    create_topics_request::{CreatableTopic, CreatableTopicConfig},
};
use gregor_types::{ErrorCode, KString, check_topic_name};
use tokio::time::timeout;

use super::Broker;

/// How long a client waits for the controller before it is told to ask again.
const PATIENCE: Duration = Duration::from_secs(10);
/// The version in which the request is made.
const CREATE_TOPICS_VERSION: i16 = 7;

/// Creates a topic that is used for the first time. An error says what to tell the client.
pub(crate) async fn create_on_first_use(broker: &Broker, name: &KString) -> Result<(), ErrorCode> {
    check_topic_name(name).map_err(|_| ErrorCode::InvalidTopicException)?;
    let request = CreateTopicsRequest {
        topics: vec![creation_of(&broker.config, name)],
        timeout_ms: PATIENCE.as_millis() as i32,
        ..Default::default()
    };
    let created = timeout(PATIENCE, async {
        let response = broker.control.ask(CREATE_TOPICS_VERSION, request).await;
        let response = response.map_err(|_| ErrorCode::LeaderNotAvailable)?;
        let code = response.topics.first().map_or(ErrorCode::UnknownServerError.code(), |topic| topic.error_code);
        match ErrorCode::from_code(code).unwrap_or(ErrorCode::UnknownServerError) {
            ErrorCode::None | ErrorCode::TopicAlreadyExists => {}
            // The client should ask again until there is a controller, or a broker that can hold the topic.
            ErrorCode::NotController | ErrorCode::RequestTimedOut => return Err(ErrorCode::LeaderNotAvailable),
            error => return Err(error),
        }
        let mut images = broker.control.image_updates();
        let known = images.wait_for(|image| image.topics().by_name(name).is_some()).await;
        known.map(drop).map_err(|_| ErrorCode::LeaderNotAvailable)
    });
    created.await.unwrap_or(Err(ErrorCode::LeaderNotAvailable))
}

/// What is asked for: the broker's defaults, or, for the topic of committed offsets, what its coordinator needs.
fn creation_of(config: &BrokerConfig, name: &KString) -> CreatableTopic {
    let mut topic =
        CreatableTopic { name: name.clone(), num_partitions: -1, replication_factor: -1, ..Default::default() };
    if name == "__consumer_offsets" {
        topic.num_partitions = config.offsets_topic_num_partitions;
        topic.replication_factor = config.offsets_topic_replication_factor;
        let configs = [
            ("cleanup.policy", "compact".to_owned()),
            ("compression.type", "producer".to_owned()),
            ("segment.bytes", config.offsets_topic_segment_bytes.to_string()),
        ];
        let config = |(name, value): (&str, String)| CreatableTopicConfig {
            name: name.into(),
            value: Some(value.into()),
            ..Default::default()
        };
        topic.configs = configs.into_iter().map(config).collect();
    }
    topic
}
