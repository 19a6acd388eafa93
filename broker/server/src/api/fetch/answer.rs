//! The answer to a Fetch: what was found, as bytes and pieces of files, and what is counted of it.
//!
//! `fetch.rs` calls it once nothing more is waited for. It reads nothing.

use std::collections::HashSet;

use gregor_log::ReadPlan;
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, TopicId};
use gregor_wire::{
    EncodeError,
    fetch::{FetchResponseWriter, FetchedPartition, NodeEndpoint, ResponsePlan},
};

use super::{Found, Limits};
use crate::{
    api::{Context, leader_of},
    close::Close,
    fetch_sessions::TopicRef,
};

/// From this version on an error names the right leader (KIP-951).
const FIRST_VERSION_WITH_LEADER: i16 = 16;

pub(super) fn count(context: &Context, found: &[Found], limits: &Limits) {
    let all = context.broker.metrics.all_topics();
    for found in found {
        if found.error != ErrorCode::None {
            context.broker.metrics.on_error("Fetch", found.error);
            all.failed_fetch.inc();
        }
        if limits.is_follower {
            count_replication(context, found);
        }
        // What goes to followers is no consumers' traffic.
        if let Some(partition) = found.partition.as_ref().filter(|_| !limits.is_follower) {
            partition.metrics.fetch_requests.inc();
            partition.metrics.bytes_out.inc_by(found.plan.len());
            all.bytes_out.inc_by(found.plan.len());
        }
    }
}

fn count_replication(context: &Context, found: &Found) {
    let (metrics, bytes) = (&context.broker.metrics.replication, found.plan.len());
    metrics.bytes_out.inc_by(bytes);
    if found.traffic.is_reassignment {
        metrics.reassignment_bytes_out.inc_by(bytes);
    }
    if found.traffic.is_throttled {
        context.broker.partitions.throttles().leader.record(bytes, context.now());
    }
}

pub(super) fn write(
    context: &Context,
    reused: ResponsePlan<ReadPlan>,
    session_id: i32,
    found: &[Found],
) -> Result<ResponsePlan<ReadPlan>, Close> {
    let topics = || found.chunk_by(Found::same_topic);
    let version = context.api_version;
    let mut writer =
        FetchResponseWriter::new(reused, context.correlation_id, version, 0, 0, session_id, topics().count())?;
    let mut leaders = HashSet::new();
    for topic in topics() {
        let (name, id) = match &topic[0].wanted.topic {
            TopicRef::Name(name) => (name.as_str(), TopicId::ZERO),
            TopicRef::Id(id) => ("", *id),
        };
        writer.topic(name, id, topic.len())?;
        for found in topic {
            let asked_wrongly = matches!(found.error, ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch);
            let leader = (asked_wrongly && version >= FIRST_VERSION_WITH_LEADER)
                .then(|| leader_of(&context.broker.image(), name, id, found.wanted.partition))
                .flatten();
            leaders.extend(leader.map(|(leader, _)| leader));
            write_partition(&mut writer, found, leader)?;
        }
    }
    if leaders.is_empty() {
        return Ok(writer.finish(&[])?);
    }
    let image = context.broker.image();
    let endpoints: Vec<_> =
        leaders.iter().filter_map(|leader| Some((*leader, context.endpoint_of(&image, *leader)?))).collect();
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(leader, (host, port, rack))| NodeEndpoint {
            node_id: leader.value(),
            host,
            port: i32::from(*port),
            rack: rack.as_deref(),
        })
        .collect();
    Ok(writer.finish(&endpoints)?)
}

fn write_partition(
    writer: &mut FetchResponseWriter<ReadPlan>,
    found: &Found,
    leader: Option<(BrokerId, LeaderEpoch)>,
) -> Result<(), EncodeError> {
    let partition = FetchedPartition {
        partition_index: found.wanted.partition,
        error_code: found.error.code(),
        high_watermark: found.high_watermark,
        last_stable_offset: found.last_stable_offset,
        log_start_offset: found.log_start,
        diverging_epoch: found.diverging.map(|end| (end.leader_epoch.value(), end.end_offset.value())),
        current_leader: leader.map(|(leader, epoch)| (leader.value(), epoch.value())),
        snapshot_id: None,
        aborted_transactions: found.aborted.as_deref(),
        preferred_read_replica: found.preferred.unwrap_or(BrokerId::NONE).value(),
    };
    let length = usize::try_from(found.plan.len()).unwrap_or(usize::MAX);
    writer.partition(&partition, Some((found.plan.clone(), length)))
}
