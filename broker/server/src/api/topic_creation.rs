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

/// Creates a topic that is used for the first time. An error says what to tell the client.
pub(crate) async fn create_on_first_use(broker: &Broker, name: &KString) -> Result<(), ErrorCode> {
    match create_all_on_first_use(broker, std::slice::from_ref(name)).await.pop() {
        None => Ok(()),
        Some((_, error)) => Err(error),
    }
}

/// The same for several at once. Returns those that were not created, and what to tell the client of each.
pub(crate) async fn create_all_on_first_use(broker: &Broker, names: &[KString]) -> Vec<(KString, ErrorCode)> {
    let (legal, illegal): (Vec<_>, Vec<_>) = names.iter().cloned().partition(|name| check_topic_name(name).is_ok());
    let mut failed: Vec<_> = illegal.into_iter().map(|name| (name, ErrorCode::InvalidTopicException)).collect();
    if legal.is_empty() {
        return failed;
    }
    // The client should ask again until there is a controller, or a broker that can hold the topic.
    let again = || legal.iter().map(|name| (name.clone(), ErrorCode::LeaderNotAvailable));
    match timeout(PATIENCE, create(broker, &legal)).await {
        Ok(Some(refused)) => failed.extend(refused),
        Ok(None) | Err(_) => failed.extend(again()),
    }
    failed
}

/// Asks for topics and waits until this broker knows those that were created. `None` if the node stops.
async fn create(broker: &Broker, names: &[KString]) -> Option<Vec<(KString, ErrorCode)>> {
    let request = CreateTopicsRequest {
        topics: names.iter().map(|name| creation_of(&broker.config, name)).collect(),
        timeout_ms: PATIENCE.as_millis() as i32,
        ..Default::default()
    };
    let response = broker.controller.ask(request, PATIENCE).await.ok()?;
    let failure = |code| match ErrorCode::from_code(code).unwrap_or(ErrorCode::UnknownServerError) {
        ErrorCode::None | ErrorCode::TopicAlreadyExists => None,
        ErrorCode::NotController | ErrorCode::RequestTimedOut => Some(ErrorCode::LeaderNotAvailable),
        error => Some(error),
    };
    let mut refused = Vec::new();
    let mut created = Vec::new();
    for topic in response.topics {
        match failure(topic.error_code) {
            Some(error) => refused.push((topic.name, error)),
            None => created.push(topic.name),
        }
    }
    let mut images = broker.control.image_updates();
    let known = images.wait_for(|image| created.iter().all(|name| image.topics().by_name(name).is_some()));
    known.await.ok()?;
    Some(refused)
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
