//! DescribeProducers: which idempotent and transactional producers a partition remembers, for who looks for a hanging one.

use gregor_log::ActiveProducer;
use gregor_messages::{
    DescribeProducersRequest, DescribeProducersResponse,
    describe_producers_response::{PartitionResponse, ProducerState, TopicResponse},
};
use gregor_types::{ErrorCode, LeaderEpoch, Offset, check_topic_name};

use crate::api::Context;

/// Answers a request.
pub(crate) async fn handle(
    context: &Context,
    request: DescribeProducersRequest,
    _version: i16,
) -> DescribeProducersResponse {
    let image = context.broker.image();
    let find = |topic: &str, index: i32| -> Result<Vec<ProducerState>, ErrorCode> {
        if check_topic_name(topic).is_err() {
            return Err(ErrorCode::InvalidTopicException);
        }
        let partition = context.broker.partitions.find(topic, index, &image)?;
        partition.with_leader(LeaderEpoch::NONE, |log, _| Ok(log.active_producers().map(state).collect()))
    };
    let shown = |topic: &str, partition_index: i32| match find(topic, partition_index) {
        Ok(active_producers) => PartitionResponse { partition_index, active_producers, ..Default::default() },
        Err(error) => PartitionResponse { partition_index, error_code: error.code(), ..Default::default() },
    };
    let topics = request.topics.iter().map(|topic| TopicResponse {
        name: topic.name.clone(),
        partitions: topic.partition_indexes.iter().map(|index| shown(&topic.name, *index)).collect(),
        ..Default::default()
    });
    DescribeProducersResponse { topics: topics.collect(), ..Default::default() }
}

fn state(producer: ActiveProducer) -> ProducerState {
    ProducerState {
        producer_id: producer.producer_id.value(),
        producer_epoch: i32::from(producer.producer_epoch.value()),
        last_sequence: producer.last_sequence,
        last_timestamp: producer.last_timestamp.value(),
        coordinator_epoch: producer.coordinator_epoch,
        current_txn_start_offset: producer.current_transaction_start.unwrap_or(Offset::NONE).value(),
        ..Default::default()
    }
}
