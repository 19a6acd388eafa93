//! Committed offsets: commit, fetch, delete, expire.

use std::collections::{BTreeMap, BTreeSet};

use gregor_messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
    offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic},
    offset_fetch_request::OffsetFetchRequestGroup,
    offset_fetch_response::{OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics},
};
use gregor_types::{ErrorCode, KString, LeaderEpoch, Offset, Timestamp};

use super::{ClassicGroup, GroupCoordinator, GroupResponse, GroupState, Timer, append_error, rebalance, records};
use crate::{Moment, Record, Scope, Token};

/// How many records one step of expiry appends at most in one batch.
const EXPIRED_PER_BATCH_MAX: usize = 1_000;

/// How far a group has read a partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: Offset,
    /// The epoch of the last record read, if known.
    pub leader_epoch: LeaderEpoch,
    /// The committer's own words.
    pub metadata: KString,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// When it expires, if the client asked for a time of its own.
    pub expires_at: Option<Timestamp>,
}

/// Offsets by group, topic and partition.
#[derive(Debug, Default)]
pub(super) struct Offsets(BTreeMap<KString, BTreeMap<KString, BTreeMap<i32, Kept>>>);

/// An offset and where its record lies.
#[derive(Debug)]
struct Kept {
    written_at: Offset,
    committed: CommittedOffset,
}

impl Offsets {
    /// Takes in what a record at `written_at` says.
    pub(super) fn put(
        &mut self,
        group: &KString,
        topic: &KString,
        partition: i32,
        written_at: Offset,
        committed: Option<CommittedOffset>,
    ) {
        if let Some(committed) = committed {
            let topics = self.0.entry(group.clone()).or_default();
            topics.entry(topic.clone()).or_default().insert(partition, Kept { written_at, committed });
            return;
        }
        self.remove(group, topic, partition);
    }

    pub(super) fn remove(&mut self, group: &KString, topic: &KString, partition: i32) {
        let Some(topics) = self.0.get_mut(group) else { return };
        if let Some(partitions) = topics.get_mut(topic) {
            partitions.remove(&partition);
            if partitions.is_empty() {
                topics.remove(topic);
            }
        }
        if topics.is_empty() {
            self.0.remove(group);
        }
    }

    pub(super) fn groups(&self) -> Vec<KString> {
        self.0.keys().cloned().collect()
    }

    pub(super) fn of_group(&self, group: &str) -> impl Iterator<Item = (&KString, i32, &CommittedOffset)> {
        self.0.get(group).into_iter().flatten().flat_map(|(topic, partitions)| {
            partitions.iter().map(move |(partition, kept)| (topic, *partition, &kept.committed))
        })
    }

    pub(super) fn count(&self) -> usize {
        self.0.values().flat_map(BTreeMap::values).map(BTreeMap::len).sum()
    }

    pub(super) fn get(&self, group: &str, topic: &str, partition: i32) -> Option<&CommittedOffset> {
        Some(&self.0.get(group)?.get(topic)?.get(&partition)?.committed)
    }

    /// Where the record of an offset lies.
    pub(super) fn written_at(&self, group: &str, topic: &str, partition: i32) -> Option<Offset> {
        Some(self.0.get(group)?.get(topic)?.get(&partition)?.written_at)
    }

    pub(super) fn durable_state(&self) -> impl Iterator<Item = String> {
        self.0.keys().flat_map(|group| {
            self.of_group(group).map(move |(topic, partition, at)| format!("offset {group} {topic}-{partition} {at:?}"))
        })
    }
}

impl GroupCoordinator {
    pub(super) fn offset_commit(
        &mut self,
        request: &OffsetCommitRequest,
        token: Token,
        scope: &mut Scope<'_, GroupResponse>,
    ) {
        if let Err(error) = self.check_commit(request, scope) {
            let response = commit_response(request, |_, _| error);
            return scope.answer_now(token, GroupResponse::OffsetCommit(response));
        }
        let now = scope.wall_clock();
        let expires_at = (request.retention_time_ms >= 0).then(|| now.plus_ms(request.retention_time_ms));
        let limit = self.config.offset_metadata_bytes_max;
        let group = request.group_id.compact();
        let mut records: Vec<Record> = Vec::new();
        let mut commits = Vec::new();
        let mut encoding = Ok(());
        let rows = request.topics.iter().flat_map(|topic| topic.partitions.iter().map(move |row| (topic, row)));
        for (topic, row) in rows {
            let metadata = row.committed_metadata.as_ref().map(KString::compact).unwrap_or_default();
            if metadata.len() > limit {
                continue;
            }
            let committed = CommittedOffset {
                offset: Offset(row.committed_offset),
                leader_epoch: LeaderEpoch(row.committed_leader_epoch),
                metadata,
                committed_at: now,
                expires_at,
            };
            let topic = topic.name.compact();
            match records::offset(&group, &topic, row.partition_index, Some(&committed)) {
                Ok(record) => records.push(record),
                Err(error) => encoding = Err(error),
            }
            commits.push((topic, row.partition_index, committed));
        }
        let written = encoding.and_then(|()| scope.append(&records));
        if let Err(error) = written {
            let error = match error {
                ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge | ErrorCode::InvalidFetchSize => {
                    ErrorCode::InvalidCommitOffsetSize
                }
                error => append_error(error),
            };
            let response = commit_response(request, |_, _| error);
            return scope.answer_now(token, GroupResponse::OffsetCommit(response));
        }
        let written_at = scope.last_offset();
        if !commits.is_empty() {
            self.groups.entry(group.clone()).or_insert_with(|| ClassicGroup::new(group.clone(), now));
        }
        for (topic, partition, committed) in commits {
            self.offsets.put(&group, &topic, partition, written_at, Some(committed));
        }
        let response = commit_response(request, |_, metadata_bytes| {
            if metadata_bytes > limit { ErrorCode::OffsetMetadataTooLarge } else { ErrorCode::None }
        });
        scope.answer(token, GroupResponse::OffsetCommit(response));
    }

    /// May this client commit for the group? A commit keeps its session alive.
    fn check_commit(
        &mut self,
        request: &OffsetCommitRequest,
        scope: &mut Scope<'_, GroupResponse>,
    ) -> Result<(), ErrorCode> {
        let generation = request.generation_id_or_member_epoch;
        let Some((group, mut turn)) = self.turn(&request.group_id, scope) else {
            // A group that only keeps offsets is made by its first commit.
            return if generation < 0 { Ok(()) } else { Err(ErrorCode::IllegalGeneration) };
        };
        if generation < 0 && group.state() == GroupState::Empty {
            return Ok(());
        }
        let instance = request.group_instance_id.as_ref();
        if generation < 0 && request.member_id.is_empty() && instance.is_none() {
            return Err(ErrorCode::UnknownMemberId);
        }
        group.check_member(&request.member_id, instance)?;
        if generation != group.generation() {
            return Err(ErrorCode::IllegalGeneration);
        }
        if group.state() == GroupState::CompletingRebalance {
            return Err(ErrorCode::RebalanceInProgress);
        }
        rebalance::restart_session(&mut turn, group, &request.member_id.compact());
        Ok(())
    }

    pub(super) fn offset_fetch(
        &self,
        request: &OffsetFetchRequestGroup,
        require_stable: bool,
        token: Token,
        scope: &mut Scope<'_, GroupResponse>,
    ) {
        let group = &request.group_id;
        let row = |topic: &KString, partition_index: i32, committed: Option<&CommittedOffset>| {
            // KIP-447: an open transaction may move it in a moment.
            let unstable = require_stable && self.pending.has(group, topic, partition_index);
            let committed = committed.filter(|_| !unstable);
            let error = if unstable { ErrorCode::UnstableOffsetCommit } else { ErrorCode::None };
            OffsetFetchResponsePartitions {
                partition_index,
                error_code: error.code(),
                committed_offset: committed.map_or(-1, |at| at.offset.0),
                committed_leader_epoch: committed.map_or(-1, |at| at.leader_epoch.0),
                metadata: Some(committed.map(|at| at.metadata.clone()).unwrap_or_default()),
                ..Default::default()
            }
        };
        let topics: Vec<OffsetFetchResponseTopics> = match &request.topics {
            Some(topics) => topics
                .iter()
                .map(|topic| OffsetFetchResponseTopics {
                    name: topic.name.clone(),
                    topic_id: topic.topic_id,
                    partitions: topic
                        .partition_indexes
                        .iter()
                        .map(|index| row(&topic.name, *index, self.offsets.get(group, &topic.name, *index)))
                        .collect(),
                    ..Default::default()
                })
                .collect(),
            None => self
                .offsets
                .0
                .get(group)
                .into_iter()
                .flatten()
                .map(|(topic, partitions)| OffsetFetchResponseTopics {
                    name: topic.clone(),
                    partitions: partitions
                        .iter()
                        .map(|(index, kept)| row(topic, *index, Some(&kept.committed)))
                        .collect(),
                    ..Default::default()
                })
                .collect(),
        };
        let response = OffsetFetchResponseGroup { group_id: group.clone(), topics, ..Default::default() };
        scope.answer(token, GroupResponse::OffsetFetch(response));
    }

    pub(super) fn offset_delete(
        &mut self,
        request: &OffsetDeleteRequest,
        token: Token,
        scope: &mut Scope<'_, GroupResponse>,
    ) {
        let refused = |error: ErrorCode| {
            GroupResponse::OffsetDelete(OffsetDeleteResponse { error_code: error.code(), ..Default::default() })
        };
        let Some(group) = self.groups.get(&request.group_id) else {
            return scope.answer_now(token, refused(ErrorCode::GroupIdNotFound));
        };
        if group.state() != GroupState::Empty && !group.is_of_consumers() {
            return scope.answer_now(token, refused(ErrorCode::NonEmptyGroup));
        }
        let mut gone = Vec::new();
        let topics = request.topics.iter().map(|topic| {
            let in_use = group.reads(&topic.name);
            let partitions = topic.partitions.iter().map(|row| {
                if !in_use && self.offsets.get(&request.group_id, &topic.name, row.partition_index).is_some() {
                    gone.push((topic.name.clone(), row.partition_index));
                }
                let error = if in_use { ErrorCode::GroupSubscribedToTopic } else { ErrorCode::None };
                OffsetDeleteResponsePartition {
                    partition_index: row.partition_index,
                    error_code: error.code(),
                    ..Default::default()
                }
            });
            let partitions = partitions.collect();
            OffsetDeleteResponseTopic { name: topic.name.clone(), partitions, ..Default::default() }
        });
        let topics = topics.collect();
        if let Err(error) = self.remove_offsets(&request.group_id.compact(), &gone, scope) {
            return scope.answer_now(token, refused(append_error(error)));
        }
        scope.answer(token, GroupResponse::OffsetDelete(OffsetDeleteResponse { topics, ..Default::default() }));
    }

    /// Deletes the offsets of topics that are no more, in every group.
    pub(super) fn forget_topics(&mut self, topics: &[KString], token: Token, scope: &mut Scope<'_, GroupResponse>) {
        let topics: BTreeSet<&KString> = topics.iter().collect();
        for group in self.offsets.groups() {
            let gone: Vec<_> = self
                .offsets
                .of_group(&group)
                .filter(|(topic, ..)| topics.contains(topic))
                .map(|(topic, partition, _)| (topic.clone(), partition))
                .collect();
            // What cannot be written now is found again when the offsets expire.
            let _ = self.remove_offsets(&group, &gone, scope);
        }
        scope.answer(token, GroupResponse::ForgetTopics);
    }

    /// Deletes what nobody has used for the retention time, and groups that then have nothing left.
    pub(super) fn expire_offsets(&mut self, scope: &mut Scope<'_, GroupResponse>) {
        let now = scope.wall_clock();
        let ids: Vec<KString> = self.groups.keys().cloned().collect();
        for id in ids {
            let Some(group) = self.groups.get(&id) else { continue };
            let expired: Vec<_> = self
                .offsets
                .of_group(&id)
                .filter(|(topic, _, committed)| {
                    is_expired(group, topic, committed, now, self.config.offsets_retention_ms)
                })
                .filter(|(topic, partition, _)| !self.pending.has(&id, topic, *partition))
                .map(|(topic, partition, _)| (topic.clone(), partition))
                .collect();
            let group_is_done =
                group.state() == GroupState::Empty && group.pending_join.is_empty() && !self.pending.has_group(&id);
            // What cannot be written now expires with the next look.
            if self.remove_offsets(&id, &expired, scope).is_err() || !group_is_done {
                continue;
            }
            if self.offsets.of_group(&id).next().is_none()
                && records::no_group(&id).and_then(|record| scope.append(&[record])).is_ok()
            {
                self.groups.remove(&id);
            }
        }
    }

    pub(super) fn schedule_expiry(&mut self, now: Moment) {
        let next = now.plus_ms(self.config.offsets_retention_check_interval_ms.max(1));
        self.timers.set(Timer::ExpireOffsets, next);
    }

    pub(super) fn remove_offsets(
        &mut self,
        group: &KString,
        gone: &[(KString, i32)],
        scope: &mut Scope<'_, GroupResponse>,
    ) -> Result<(), ErrorCode> {
        for gone in gone.chunks(EXPIRED_PER_BATCH_MAX) {
            let tombstones: Result<Vec<Record>, ErrorCode> =
                gone.iter().map(|(topic, partition)| records::offset(group, topic, *partition, None)).collect();
            scope.append(&tombstones?)?;
            for (topic, partition) in gone {
                self.offsets.remove(group, topic, *partition);
            }
        }
        Ok(())
    }
}

/// KIP-211: offsets live as long as their group has members (that read their topic), and then for the retention time.
fn is_expired(
    group: &ClassicGroup,
    topic: &KString,
    committed: &CommittedOffset,
    now: Timestamp,
    retention_ms: i64,
) -> bool {
    let unused_since = match (&group.protocol_type, group.state()) {
        (Some(_), GroupState::Empty) if group.state_since != Timestamp::NONE => group.state_since,
        (None, _) | (Some(_), GroupState::Empty) => committed.committed_at,
        (Some(_), GroupState::Stable)
            if group.is_of_consumers() && group.knows_subscriptions() && !group.reads(topic) =>
        {
            committed.committed_at
        }
        _ => return false,
    };
    match committed.expires_at {
        Some(expires_at) => now >= expires_at,
        None => now.since(unused_since) >= retention_ms,
    }
}

fn commit_response(request: &OffsetCommitRequest, error: impl Fn(i32, usize) -> ErrorCode) -> OffsetCommitResponse {
    let topics = request.topics.iter().map(|topic| OffsetCommitResponseTopic {
        name: topic.name.clone(),
        topic_id: topic.topic_id,
        partitions: topic
            .partitions
            .iter()
            .map(|row| OffsetCommitResponsePartition {
                partition_index: row.partition_index,
                error_code: error(row.partition_index, row.committed_metadata.as_ref().map_or(0, |text| text.len()))
                    .code(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    });
    OffsetCommitResponse { topics: topics.collect(), ..Default::default() }
}
