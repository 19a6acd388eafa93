//! Topics: create, delete, grow, list, describe.

use std::collections::BTreeMap;

use gregor_messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic},
    create_topics_request::{CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig},
    delete_topics_request::DeleteTopicState,
};
use gregor_types::{BrokerId, ErrorCode, KString, PartitionIndex, TopicId};

use super::{Admin, Outcomes, first_not_controller, outcome};
use crate::{BrokerError, ClientError, Partition};

/// The first version of `DeleteTopics` that can name topics by id.
const DELETE_BY_STATE: i16 = 6;

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewTopic {
    /// Its name.
    pub name: KString,
    /// How many partitions; none for the broker's `num.partitions`.
    pub partitions: Option<i32>,
    /// How many replicas each; none for the broker's `default.replication.factor`.
    pub replication_factor: Option<i16>,
    /// The replicas of each partition, the preferred leader first; empty to let the controller choose.
    pub assignment: Vec<Vec<BrokerId>>,
    /// Its configuration.
    pub configs: BTreeMap<KString, KString>,
}

/// A topic, how many partitions it is to have, and, if not the controller chooses, the replicas of each new one.
pub type NewPartitions = (KString, i32, Option<Vec<Vec<BrokerId>>>);

/// What a creation made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedTopic {
    /// The topic's id.
    pub id: TopicId,
    /// How many partitions it has; -1 where the broker is too old to tell.
    pub partitions: i32,
    /// How many replicas each has; -1 where the broker is too old to tell.
    pub replication_factor: i16,
}

/// A topic as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its name.
    pub name: KString,
    /// Its id.
    pub id: TopicId,
    /// Whether coordinators own it.
    pub internal: bool,
    /// Its partitions by number.
    pub partitions: BTreeMap<PartitionIndex, Partition>,
}

impl NewTopic {
    /// A topic with the broker's defaults.
    pub fn new(name: impl Into<KString>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// The same with so many partitions.
    #[must_use]
    pub fn partitions(mut self, count: i32) -> Self {
        self.partitions = Some(count);
        self
    }

    /// The same with so many replicas of each.
    #[must_use]
    pub fn replication_factor(mut self, count: i16) -> Self {
        self.replication_factor = Some(count);
        self
    }

    /// The same with one more configuration key.
    #[must_use]
    pub fn config(mut self, key: impl Into<KString>, value: impl Into<KString>) -> Self {
        self.configs.insert(key.into(), value.into());
        self
    }

    fn wire(&self) -> CreatableTopic {
        // An assignment says how many there are; the two numbers must then be -1.
        let chosen = self.assignment.is_empty();
        let assignments =
            self.assignment.iter().zip(0..).map(|(brokers, partition_index)| CreatableReplicaAssignment {
                partition_index,
                broker_ids: brokers.iter().map(|broker| broker.0).collect(),
                ..Default::default()
            });
        let configs = self.configs.iter().map(|(name, value)| CreatableTopicConfig {
            name: name.clone(),
            value: Some(value.clone()),
            ..Default::default()
        });
        CreatableTopic {
            name: self.name.clone(),
            num_partitions: self.partitions.filter(|_| chosen).unwrap_or(-1),
            replication_factor: self.replication_factor.filter(|_| chosen).unwrap_or(-1),
            assignments: assignments.collect(),
            configs: configs.collect(),
            ..Default::default()
        }
    }
}

impl Admin {
    /// Creates topics, or with `validate_only` says whether that would work.
    pub async fn create_topics(
        &self,
        topics: &[NewTopic],
        validate_only: bool,
    ) -> Result<Outcomes<KString, CreatedTopic>, ClientError> {
        let request = CreateTopicsRequest {
            topics: topics.iter().map(NewTopic::wire).collect(),
            timeout_ms: self.server_wait_ms(),
            validate_only,
            ..Default::default()
        };
        let response = self
            .client
            .call_controller(
                |_| request.clone(),
                |response| first_not_controller(response.topics.iter().map(|row| row.error_code)),
            )
            .await?;
        let rows = response.topics.into_iter().map(|row| {
            let created = CreatedTopic {
                id: row.topic_id,
                partitions: row.num_partitions,
                replication_factor: row.replication_factor,
            };
            let result = outcome(format!("topic {}", row.name), row.error_code, row.error_message.as_ref(), created);
            (row.name, result)
        });
        Ok(rows.collect())
    }

    /// Creates one topic.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<CreatedTopic, ClientError> {
        let name = topic.name.clone();
        only(&name, self.create_topics(&[topic], false).await?)
    }

    /// Deletes topics with all that is in them.
    pub async fn delete_topics(&self, names: &[KString]) -> Result<Outcomes<KString, ()>, ClientError> {
        let timeout_ms = self.server_wait_ms();
        let build = |version| {
            if version < DELETE_BY_STATE {
                return DeleteTopicsRequest { topic_names: names.to_vec(), timeout_ms, ..Default::default() };
            }
            let state = |name: &KString| DeleteTopicState { name: Some(name.clone()), ..Default::default() };
            DeleteTopicsRequest { topics: names.iter().map(state).collect(), timeout_ms, ..Default::default() }
        };
        let response = self
            .client
            .call_controller(build, |response| {
                first_not_controller(response.responses.iter().map(|row| row.error_code))
            })
            .await?;
        let rows = response.responses.into_iter().map(|row| {
            let name = row.name.unwrap_or_default();
            let result = outcome(format!("topic {name}"), row.error_code, row.error_message.as_ref(), ());
            (name, result)
        });
        Ok(rows.collect())
    }

    /// Deletes one topic.
    pub async fn delete_topic(&self, name: impl Into<KString>) -> Result<(), ClientError> {
        let name = name.into();
        only(&name, self.delete_topics(std::slice::from_ref(&name)).await?)
    }

    /// Grows topics to the given numbers of partitions, where the controller chooses the replicas or `assignment` gives those of
    /// each new partition.
    pub async fn create_partitions(
        &self,
        counts: &[NewPartitions],
        validate_only: bool,
    ) -> Result<Outcomes<KString, ()>, ClientError> {
        let topics = counts.iter().map(|(name, count, assignment)| {
            let wire = |brokers: &Vec<BrokerId>| CreatePartitionsAssignment {
                broker_ids: brokers.iter().map(|broker| broker.0).collect(),
                ..Default::default()
            };
            CreatePartitionsTopic {
                name: name.clone(),
                count: *count,
                assignments: assignment.as_ref().map(|partitions| partitions.iter().map(wire).collect()),
                ..Default::default()
            }
        });
        let request = CreatePartitionsRequest {
            topics: topics.collect(),
            timeout_ms: self.server_wait_ms(),
            validate_only,
            ..Default::default()
        };
        let response = self
            .client
            .call_controller(
                |_| request.clone(),
                |response| first_not_controller(response.results.iter().map(|row| row.error_code)),
            )
            .await?;
        let rows = response.results.into_iter().map(|row| {
            let result = outcome(format!("topic {}", row.name), row.error_code, row.error_message.as_ref(), ());
            (row.name, result)
        });
        Ok(rows.collect())
    }

    /// Every topic that this client may see, internal ones included.
    pub async fn list_topics(&self) -> Result<Vec<TopicDescription>, ClientError> {
        let response = self.client.retry(|| async { self.client.fetch_metadata(None, false).await }).await?;
        let cluster = self.client.learn(&response, true);
        let mut topics: Vec<_> = cluster.topics.iter().map(|(name, topic)| describe(name, topic)).collect();
        topics.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(topics)
    }

    /// Topics by name. It never creates one.
    pub async fn describe_topics(&self, names: &[KString]) -> Result<Outcomes<KString, TopicDescription>, ClientError> {
        let response = self.client.retry(|| async { self.client.fetch_metadata(Some(names), false).await }).await?;
        let cluster = self.client.learn(&response, false);
        let mut outcomes = BTreeMap::new();
        for row in response.topics {
            let Some(name) = row.name else { continue };
            let result = match cluster.topics.get(&name) {
                Some(topic) => Ok(describe(&name, topic)),
                None => Err(BrokerError::new(
                    format!("topic {name}"),
                    ErrorCode::from(row.error_code).ok().err().unwrap_or(ErrorCode::UnknownTopicOrPartition),
                )),
            };
            outcomes.insert(name, result);
        }
        Ok(outcomes)
    }

    /// One topic by name.
    pub async fn describe_topic(&self, name: impl Into<KString>) -> Result<TopicDescription, ClientError> {
        let name = name.into();
        only(&name, self.describe_topics(std::slice::from_ref(&name)).await?)
    }
}

fn describe(name: &KString, topic: &crate::Topic) -> TopicDescription {
    TopicDescription {
        name: name.clone(),
        id: topic.id,
        internal: topic.internal,
        partitions: topic.partitions.clone(),
    }
}

/// The outcome for the one thing that was asked about.
pub(super) fn only<T>(name: &KString, mut outcomes: Outcomes<KString, T>) -> Result<T, ClientError> {
    let missing = || Err(BrokerError::new(name.to_string(), ErrorCode::UnknownServerError));
    Ok(outcomes.remove(name).unwrap_or_else(missing)?)
}
