//! Metadata: the brokers, and the topics that a client asks for, created on first use where that is allowed.

use std::collections::BTreeSet;

use gregor_messages::{
    MetadataRequest, MetadataResponse,
    metadata_request::MetadataRequestTopic,
    metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
};
use gregor_metadata::{Image, Topic};
use gregor_types::{BrokerId, ErrorCode, KString, Uuid, check_topic_name, is_internal_topic};

use super::{
    Context,
    nodes::{self, ALL_CLUSTER_OPERATIONS, ALL_TOPIC_OPERATIONS, OPERATIONS_OMITTED},
    topic_creation::create_all_on_first_use,
};

/// Answers from the newest image, after creating what is missing and may be created.
pub(crate) async fn handle(context: &Context, request: MetadataRequest, version: i16) -> MetadataResponse {
    let broker = &context.broker;
    let view = View {
        listener: context.listener_name(),
        this: broker.node_id,
        cluster_id: broker.cluster_id.clone(),
        version,
    };
    if let Some(response) = refused(&request, version) {
        return response;
    }
    // Before version 4 a client had no say, and the broker's configuration decided.
    let may_create = broker.config.auto_create_topics_enable && (version < 4 || request.allow_auto_topic_creation);
    let failed = match &request.topics {
        Some(topics) if may_create => {
            let image = broker.image();
            let named =
                topics.iter().filter(|topic| topic.topic_id == Uuid::ZERO).filter_map(|topic| topic.name.as_ref());
            let missing: BTreeSet<_> = named.filter(|name| image.topics().by_name(name).is_none()).cloned().collect();
            create_all_on_first_use(broker, &missing.into_iter().collect::<Vec<_>>()).await
        }
        _ => Vec::new(),
    };
    view.response(&broker.image(), &request, &failed)
}

/// What a response depends on beside the image and the request.
struct View<'a> {
    listener: &'a str,
    this: BrokerId,
    cluster_id: KString,
    version: i16,
}

/// Requests that contradict their version.
fn refused(request: &MetadataRequest, version: i16) -> Option<MetadataResponse> {
    let topics = request.topics.as_ref().filter(|_| version < 12)?;
    if !topics.iter().any(|topic| topic.name.is_none() || topic.topic_id != Uuid::ZERO) {
        return None;
    }
    let refuse = |topic: &MetadataRequestTopic| MetadataResponseTopic {
        error_code: ErrorCode::InvalidRequest.code(),
        name: Some(topic.name.clone().unwrap_or_default()),
        topic_id: topic.topic_id,
        ..Default::default()
    };
    Some(MetadataResponse { topics: topics.iter().map(refuse).collect(), ..Default::default() })
}

impl View<'_> {
    fn response(&self, image: &Image, request: &MetadataRequest, failed: &[(KString, ErrorCode)]) -> MetadataResponse {
        let topics = match &request.topics {
            // In version 0 an empty list means every topic.
            Some(topics) if self.version > 0 || !topics.is_empty() => {
                topics.iter().map(|topic| self.asked(image, topic, request, failed)).collect()
            }
            _ => image.topics().iter().map(|topic| self.topic(image, topic, request)).collect(),
        };
        let brokers = nodes::reachable(image, self.listener).map(|(broker, endpoint)| MetadataResponseBroker {
            node_id: broker.id.value(),
            host: endpoint.host.clone(),
            port: i32::from(endpoint.port),
            rack: broker.rack.clone(),
            ..Default::default()
        });
        let all = request.include_cluster_authorized_operations && (8..=10).contains(&self.version);
        MetadataResponse {
            brokers: brokers.collect(),
            cluster_id: Some(self.cluster_id.clone()),
            controller_id: nodes::controller_for_clients(image, self.listener, self.this).value(),
            topics,
            cluster_authorized_operations: if all { ALL_CLUSTER_OPERATIONS } else { OPERATIONS_OMITTED },
            ..Default::default()
        }
    }

    fn asked(
        &self,
        image: &Image,
        asked: &MetadataRequestTopic,
        request: &MetadataRequest,
        failed: &[(KString, ErrorCode)],
    ) -> MetadataResponseTopic {
        let found = match &asked.name {
            Some(name) if asked.topic_id == Uuid::ZERO => image.topics().by_name(name),
            _ => image.topics().by_id(asked.topic_id),
        };
        if let Some(topic) = found {
            return self.topic(image, topic, request);
        }
        let by_id = asked.topic_id != Uuid::ZERO;
        let error = match &asked.name {
            _ if by_id => ErrorCode::UnknownTopicId,
            None => ErrorCode::InvalidRequest,
            Some(name) if check_topic_name(name).is_err() => ErrorCode::InvalidTopicException,
            Some(name) => {
                let failure = failed.iter().find(|(failed, _)| failed == name);
                failure.map_or(ErrorCode::UnknownTopicOrPartition, |(_, error)| *error)
            }
        };
        let unnamed = (self.version < 12).then(KString::default);
        MetadataResponseTopic {
            error_code: error.code(),
            name: asked.name.clone().filter(|_| !by_id).or(unnamed),
            topic_id: asked.topic_id,
            is_internal: asked.name.as_ref().is_some_and(|name| is_internal_topic(name)),
            ..Default::default()
        }
    }

    fn topic(&self, image: &Image, topic: &Topic, request: &MetadataRequest) -> MetadataResponseTopic {
        let partitions = topic.partitions().map(|(index, partition)| {
            let described = nodes::describe(image, partition, self.listener);
            // Version 5 brought the error for a leader without this listener; older clients only know the other one.
            let error = match described.error {
                ErrorCode::ListenerNotFound if self.version < 6 => ErrorCode::LeaderNotAvailable,
                error => error,
            };
            MetadataResponsePartition {
                error_code: error.code(),
                partition_index: index.value(),
                leader_id: described.leader.value(),
                leader_epoch: partition.leader_epoch.value(),
                replica_nodes: described.replicas,
                isr_nodes: described.isr,
                offline_replicas: described.offline,
                ..Default::default()
            }
        });
        let all = request.include_topic_authorized_operations && self.version >= 8;
        MetadataResponseTopic {
            name: Some(topic.name.clone()),
            topic_id: topic.id,
            is_internal: is_internal_topic(&topic.name),
            partitions: partitions.collect(),
            topic_authorized_operations: if all { ALL_TOPIC_OPERATIONS } else { OPERATIONS_OMITTED },
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::test_image::image, *};

    fn ask(version: i16, change: impl FnOnce(&mut MetadataRequest)) -> MetadataResponse {
        let mut request = MetadataRequest { topics: None, ..Default::default() };
        change(&mut request);
        let view = View { listener: "PLAINTEXT", this: BrokerId(1), cluster_id: "c".into(), version };
        refused(&request, version).unwrap_or_else(|| view.response(&image(), &request, &[]))
    }

    fn named(name: &str) -> MetadataRequestTopic {
        MetadataRequestTopic { name: Some(name.into()), ..Default::default() }
    }

    #[test]
    fn everything_is_every_topic_by_name_and_every_broker_that_is_up() {
        let response = ask(13, |_| ());
        let names: Vec<_> = response.topics.iter().map(|topic| topic.name.clone().unwrap().to_string()).collect();
        assert_eq!(names, ["__consumer_offsets", "alone", "t"]);
        assert_eq!(response.brokers.iter().map(|broker| broker.node_id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((response.controller_id, response.cluster_id), (1, Some("c".into())));
        assert!(response.topics[0].is_internal && !response.topics[2].is_internal);
    }

    #[test]
    fn an_empty_list_means_everything_in_version_0_and_nothing_later() {
        let empty = |request: &mut MetadataRequest| request.topics = Some(Vec::new());
        assert_eq!(ask(0, empty).topics.len(), 3);
        assert_eq!(ask(1, empty).topics.len(), 0);
    }

    #[test]
    fn partitions_say_who_leads_and_who_is_down() {
        let response = ask(13, |request| request.topics = Some(vec![named("t"), named("alone")]));
        let led = &response.topics[0].partitions[0];
        assert_eq!((led.error_code, led.leader_id, led.leader_epoch), (0, 1, 4));
        assert_eq!(
            (&led.replica_nodes, &led.isr_nodes, &led.offline_replicas),
            (&vec![1, 2, 3], &vec![1, 2], &vec![3])
        );
        let alone = &response.topics[1].partitions[0];
        assert_eq!((alone.error_code, alone.leader_id), (ErrorCode::LeaderNotAvailable.code(), -1));
    }

    #[test]
    fn topics_are_found_by_id_from_version_12_on() {
        let by_id = |id| MetadataRequestTopic { topic_id: Uuid(id), name: None, ..Default::default() };
        let response = ask(12, |request| request.topics = Some(vec![by_id(11), by_id(99)]));
        assert_eq!(response.topics[0].name, Some("t".into()));
        assert_eq!(response.topics[1].error_code, ErrorCode::UnknownTopicId.code());
        assert_eq!((&response.topics[1].name, response.topics[1].topic_id), (&None, Uuid(99)));
        let response = ask(11, |request| request.topics = Some(vec![by_id(11)]));
        assert_eq!(response.topics[0].error_code, ErrorCode::InvalidRequest.code());
    }

    #[test]
    fn unknown_and_impossible_names_have_errors_of_their_own() {
        let response = ask(9, |request| request.topics = Some(vec![named("nope"), named("a b")]));
        let codes: Vec<_> = response.topics.iter().map(|topic| topic.error_code).collect();
        assert_eq!(codes, [ErrorCode::UnknownTopicOrPartition.code(), ErrorCode::InvalidTopicException.code()]);
    }

    #[test]
    fn operations_are_told_only_when_asked_for() {
        let response = ask(8, |request| {
            request.include_topic_authorized_operations = true;
            request.include_cluster_authorized_operations = true;
        });
        assert_eq!(
            (response.topics[0].topic_authorized_operations, response.cluster_authorized_operations),
            (3576, 8096)
        );
        assert_eq!(ask(8, |_| ()).topics[0].topic_authorized_operations, i32::MIN);
    }
}
