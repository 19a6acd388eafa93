//! DescribeTopicPartitions (KIP-966): topics page by page, with their eligible leader replicas.

use gregor_messages::{
    DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse,
    describe_topic_partitions_response::{
        Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
    },
};
use gregor_metadata::{Image, Topic};
use gregor_types::{ErrorCode, KString, PartitionIndex, check_topic_name, is_internal_topic};

use super::{
    Context,
    nodes::{self, ALL_TOPIC_OPERATIONS, numbers},
};

/// Answers with at most as many partitions as the client and the broker allow.
pub(crate) async fn handle(
    context: &Context,
    request: DescribeTopicPartitionsRequest,
    _version: i16,
) -> DescribeTopicPartitionsResponse {
    let most = context.broker.config.max_request_partition_size_limit;
    respond(&context.broker.image(), &request, context.listener_name(), most)
}

fn respond(
    image: &Image,
    request: &DescribeTopicPartitionsRequest,
    listener: &str,
    most: i32,
) -> DescribeTopicPartitionsResponse {
    let cursor = request.cursor.as_ref();
    if cursor.is_some_and(|cursor| cursor.partition_index < 0) {
        return refused(request);
    }
    let start = cursor.map_or("", |cursor| cursor.topic_name.as_str());
    let limit = usize::try_from(request.response_partition_limit.min(most)).unwrap_or(0).max(1);
    let mut page = Page { image, listener, left: limit, topics: Vec::new(), next: None };
    let first_of =
        |name: &str| cursor.filter(|cursor| cursor.topic_name == name).map_or(0, |cursor| cursor.partition_index);
    if request.topics.is_empty() {
        for topic in image.topics().iter_from(start) {
            if !page.add(&topic.name, Some(topic), first_of(&topic.name)) {
                break;
            }
        }
    } else {
        let mut names: Vec<&KString> = request.topics.iter().map(|topic| &topic.name).collect();
        names.sort_unstable();
        names.dedup();
        if cursor.is_some() && !names.iter().any(|name| *name == start) {
            return refused(request);
        }
        for name in names.into_iter().filter(|name| name.as_str() >= start) {
            if !page.add(name, image.topics().by_name(name).map(AsRef::as_ref), first_of(name)) {
                break;
            }
        }
    }
    DescribeTopicPartitionsResponse { topics: page.topics, next_cursor: page.next, ..Default::default() }
}

/// A request whose cursor cannot be: every topic of it is answered with the error.
fn refused(request: &DescribeTopicPartitionsRequest) -> DescribeTopicPartitionsResponse {
    let topics = request.topics.iter().map(|topic| DescribeTopicPartitionsResponseTopic {
        error_code: ErrorCode::InvalidRequest.code(),
        name: Some(topic.name.clone()),
        ..Default::default()
    });
    DescribeTopicPartitionsResponse { topics: topics.collect(), ..Default::default() }
}

struct Page<'a> {
    image: &'a Image,
    listener: &'a str,
    left: usize,
    topics: Vec<DescribeTopicPartitionsResponseTopic>,
    next: Option<Cursor>,
}

impl Page<'_> {
    /// Adds a topic from one of its partitions on; false if the page is full.
    fn add(&mut self, name: &KString, topic: Option<&Topic>, first: i32) -> bool {
        let cursor = |partition_index| Cursor { topic_name: name.clone(), partition_index, ..Default::default() };
        if self.left == 0 {
            self.next = Some(cursor(first));
            return false;
        }
        let Some(topic) = topic else {
            let legal = check_topic_name(name).is_ok();
            let error = if legal { ErrorCode::UnknownTopicOrPartition } else { ErrorCode::InvalidTopicException };
            self.topics.push(DescribeTopicPartitionsResponseTopic {
                error_code: error.code(),
                name: Some(name.clone()),
                is_internal: is_internal_topic(name),
                ..Default::default()
            });
            return true;
        };
        let mut partitions = Vec::new();
        let mut rest = topic.partitions_from(PartitionIndex(first));
        for (index, partition) in rest.by_ref().take(self.left) {
            let described = nodes::describe(self.image, partition, self.listener);
            partitions.push(DescribeTopicPartitionsResponsePartition {
                error_code: described.error.code(),
                partition_index: index.value(),
                leader_id: described.leader.value(),
                leader_epoch: partition.leader_epoch.value(),
                replica_nodes: described.replicas,
                isr_nodes: described.isr,
                eligible_leader_replicas: Some(numbers(&partition.elr)),
                last_known_elr: Some(numbers(&partition.last_known_elr)),
                offline_replicas: described.offline,
                ..Default::default()
            });
        }
        self.left -= partitions.len();
        self.next = rest.next().map(|(index, _)| cursor(index.value()));
        self.topics.push(DescribeTopicPartitionsResponseTopic {
            name: Some(name.clone()),
            topic_id: topic.id,
            is_internal: is_internal_topic(name),
            partitions,
            topic_authorized_operations: ALL_TOPIC_OPERATIONS,
            ..Default::default()
        });
        self.next.is_none()
    }
}

#[cfg(test)]
mod tests {
    use gregor_messages::describe_topic_partitions_request::{self, TopicRequest};

    use super::{super::test_image::image_with, *};

    fn pages(topics: &[&str], limit: i32) -> Vec<String> {
        let image = image_with(&[("a", 3), ("b", 2), ("c", 1)]);
        let mut request = DescribeTopicPartitionsRequest {
            topics: topics.iter().map(|name| TopicRequest { name: (*name).into(), ..Default::default() }).collect(),
            response_partition_limit: limit,
            ..Default::default()
        };
        let mut pages = Vec::new();
        loop {
            let response = respond(&image, &request, "PLAINTEXT", 2000);
            let topic = |topic: &DescribeTopicPartitionsResponseTopic| {
                let name = topic.name.clone().unwrap();
                let indexes: Vec<_> = topic.partitions.iter().map(|partition| partition.partition_index).collect();
                if topic.error_code == 0 {
                    format!("{name}{indexes:?}")
                } else {
                    format!("{name}!{}", topic.error_code)
                }
            };
            pages.push(response.topics.iter().map(topic).collect::<Vec<_>>().join(" "));
            let Some(cursor) = response.next_cursor else { return pages };
            assert!(pages.len() < 20, "{pages:?}");
            request.cursor = Some(describe_topic_partitions_request::Cursor {
                topic_name: cursor.topic_name,
                partition_index: cursor.partition_index,
                ..Default::default()
            });
        }
    }

    #[test]
    fn a_page_ends_at_the_limit_and_the_next_one_goes_on_there() {
        assert_eq!(pages(&[], 2000), ["a[0, 1, 2] b[0, 1] c[0]"]);
        assert_eq!(pages(&[], 2), ["a[0, 1]", "a[2] b[0]", "b[1] c[0]"]);
        assert_eq!(pages(&[], 3), ["a[0, 1, 2]", "b[0, 1] c[0]"]);
        assert_eq!(pages(&["c", "a", "a"], 3), ["a[0, 1, 2]", "c[0]"]);
    }

    #[test]
    fn a_limit_that_is_no_number_of_partitions_still_makes_progress() {
        assert_eq!(pages(&["b"], 0), ["b[0]", "b[1]"]);
        assert_eq!(pages(&["b"], -5), ["b[0]", "b[1]"]);
    }

    #[test]
    fn unknown_topics_are_named_and_impossible_cursors_refused() {
        assert_eq!(pages(&["zz", "a b", "c"], 10), ["a b!17 c[0] zz!3"]);
        let request = DescribeTopicPartitionsRequest {
            topics: vec![TopicRequest { name: "a".into(), ..Default::default() }],
            response_partition_limit: 10,
            cursor: Some(describe_topic_partitions_request::Cursor {
                topic_name: "a".into(),
                partition_index: -1,
                ..Default::default()
            }),
            ..Default::default()
        };
        let response = respond(&image_with(&[("a", 1)]), &request, "PLAINTEXT", 2000);
        assert_eq!(response.topics[0].error_code, ErrorCode::InvalidRequest.code());
    }
}
