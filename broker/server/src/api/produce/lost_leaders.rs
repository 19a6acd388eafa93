//! Who leads now, for a producer whose append lost its leader while it waited (KIP-951).
//!
//! `produce.rs` calls it. The response was written when the batches were appended, and its size changes with what is told now: it is
//! written once more, by the generated structs. That is as rare as changes of leaders are.

use bytes::BytesMut;
use gregor_messages::{
    ApiKey, ProduceResponse,
    produce_response::{LeaderIdAndEpoch, NodeEndpoint},
};
use gregor_types::ErrorCode;
use gregor_wire::{Message, Reader, ResponseHeader, Struct};

use crate::{
    api::{Context, leader_of},
    close::Close,
    reply::Reply,
};

/// The same response, with the leader of every partition that this broker does not lead, and where it is.
pub(super) fn name_leaders(context: &Context, version: i16, response: BytesMut) -> Result<BytesMut, Close> {
    let header_version = ApiKey::Produce.response_header_version(version);
    let mut reader = Reader::new(response.freeze());
    reader.take(size_of::<i32>())?;
    let header = ResponseHeader::read(&mut reader, header_version)?;
    let mut answer = ProduceResponse::decode(&mut reader, version)?;
    let image = context.broker.image();
    for topic in &mut answer.responses {
        for partition in &mut topic.partition_responses {
            if partition.error_code != ErrorCode::NotLeaderOrFollower.code() {
                continue;
            }
            let known = leader_of(&image, &topic.name, topic.topic_id, partition.index);
            let Some((leader, epoch)) = known else { continue };
            let (leader_id, leader_epoch) = (leader.value(), epoch.value());
            partition.current_leader = LeaderIdAndEpoch { leader_id, leader_epoch, ..Default::default() };
            if let Some((host, port, rack)) = context.endpoint_of(&image, leader)
                && answer.node_endpoints.iter().all(|known| known.node_id != leader_id)
            {
                let port = i32::from(port);
                let endpoint = NodeEndpoint { node_id: leader_id, host, port, rack, ..Default::default() };
                answer.node_endpoints.push(endpoint);
            }
        }
    }
    Ok(Reply::message(header.correlation_id, header_version, &answer, version)?.into_frame())
}
