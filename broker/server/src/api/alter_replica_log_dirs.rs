//! AlterReplicaLogDirs: moves replicas of this broker to other log directories of it, or has them created there.
//!
//! It only begins moves: DescribeLogDirs shows how far they are.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use gregor_messages::{
    AlterReplicaLogDirsRequest, AlterReplicaLogDirsResponse,
    alter_replica_log_dirs_response::{AlterReplicaLogDirPartitionResult, AlterReplicaLogDirTopicResult},
};
use gregor_types::{ErrorCode, KString, PartitionIndex, TopicPartition};

use crate::api::{Broker, Context};

/// Answers a request.
pub(crate) async fn handle(
    context: &Context,
    request: AlterReplicaLogDirsRequest,
    _version: i16,
) -> AlterReplicaLogDirsResponse {
    let broker = Arc::clone(&context.broker);
    // It makes folders and has them on the disk before it answers.
    let answer = tokio::task::spawn_blocking(move || answer(&broker, &request));
    // A runtime that ends drops the connection with its request.
    answer.await.unwrap_or_default()
}

fn answer(broker: &Broker, request: &AlterReplicaLogDirsRequest) -> AlterReplicaLogDirsResponse {
    let image = broker.image();
    // Named twice, the last directory counts.
    let mut wanted: BTreeMap<(&KString, i32), &str> = BTreeMap::new();
    for directory in &request.dirs {
        for topic in &directory.topics {
            wanted.extend(topic.partitions.iter().map(|index| ((&topic.name, *index), directory.path.as_str())));
        }
    }
    let mut results: Vec<AlterReplicaLogDirTopicResult> = Vec::new();
    for ((topic, index), path) in wanted {
        let name = TopicPartition { topic: topic.clone(), partition: PartitionIndex(index) };
        let moved = broker.partitions.move_replica(&name, Path::new(path), &image);
        if let Err(error) = moved {
            tracing::warn!(partition = %name, to = path, error = error.name(), "a replica cannot move");
        }
        let result = AlterReplicaLogDirPartitionResult {
            partition_index: index,
            error_code: moved.err().unwrap_or(ErrorCode::None).code(),
            ..Default::default()
        };
        match results.last_mut().filter(|last| last.topic_name == *topic) {
            Some(last) => last.partitions.push(result),
            None => results.push(AlterReplicaLogDirTopicResult {
                topic_name: topic.clone(),
                partitions: vec![result],
                ..Default::default()
            }),
        }
    }
    AlterReplicaLogDirsResponse { results, ..Default::default() }
}
