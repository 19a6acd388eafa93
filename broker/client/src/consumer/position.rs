//! Where a consumer is in each of its partitions.

use std::{collections::BTreeMap, fmt};

use gregor_types::{KString, LeaderEpoch, Offset, TopicPartition};

use super::{CommittedOffset, OffsetReset, StartOffset};
use crate::{Client, ClientError, ConsumerOptions, OffsetSpec};

/// The positions of the assigned partitions.
pub(super) struct Positions {
    client: Client,
    options: ConsumerOptions,
    partitions: BTreeMap<TopicPartition, Position>,
}

#[derive(Debug, Clone, Copy)]
enum Position {
    /// Still to be found out.
    Wanted(StartOffset),
    /// The offset to start at is gone: the policy decides.
    Lost,
    /// The next offset, and the epoch of the last record before it.
    Known { next: Offset, epoch: LeaderEpoch },
}

impl Positions {
    pub(super) fn new(client: Client, options: ConsumerOptions) -> Self {
        Self { client, options, partitions: BTreeMap::new() }
    }

    pub(super) fn replace(&mut self, partitions: BTreeMap<TopicPartition, StartOffset>) {
        self.partitions = partitions.into_iter().map(|(partition, start)| (partition, wanted(start))).collect();
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions.keys()
    }

    pub(super) fn at(&self, partition: &TopicPartition) -> Option<Offset> {
        match self.partitions.get(partition)? {
            Position::Known { next, .. } => Some(*next),
            _ => None,
        }
    }

    pub(super) fn seek(&mut self, partition: &TopicPartition, start: StartOffset) {
        if let Some(position) = self.partitions.get_mut(partition) {
            *position = wanted(start);
        }
    }

    /// Records up to here were handed out.
    pub(super) fn advance(&mut self, partition: &TopicPartition, next: Offset, epoch: Option<LeaderEpoch>) {
        if let Some(Position::Known { next: known, epoch: known_epoch }) = self.partitions.get_mut(partition) {
            *known = next;
            *known_epoch = epoch.unwrap_or(*known_epoch);
        }
    }

    /// The broker says that the offset is out of range.
    pub(super) fn lost(&mut self, partition: &TopicPartition) {
        if let Some(position) = self.partitions.get_mut(partition) {
            *position = Position::Lost;
        }
    }

    /// What a commit of now would say.
    pub(super) fn to_commit(&self) -> BTreeMap<TopicPartition, CommittedOffset> {
        let known = self.partitions.iter().filter_map(|(partition, position)| match position {
            Position::Known { next, epoch } => {
                let offset = CommittedOffset { offset: *next, leader_epoch: *epoch, metadata: KString::default() };
                Some((partition.clone(), offset))
            }
            _ => None,
        });
        known.collect()
    }

    /// Finds out every position that is not known.
    pub(super) async fn resolve(&mut self) -> Result<(), ClientError> {
        self.resolve_committed().await?;
        let mut specs = Vec::new();
        for (partition, position) in &self.partitions {
            let spec = match position {
                Position::Wanted(StartOffset::Earliest) => OffsetSpec::Earliest,
                Position::Wanted(StartOffset::Latest) => OffsetSpec::Latest,
                Position::Wanted(_) | Position::Lost => match self.options.offset_reset {
                    OffsetReset::Earliest => OffsetSpec::Earliest,
                    OffsetReset::Latest => OffsetSpec::Latest,
                    OffsetReset::Fail => {
                        return Err(ClientError::InvalidArgument(format!(
                            "{partition} has no offset to start at, and offset_reset says to fail"
                        )));
                    }
                },
                Position::Known { .. } => continue,
            };
            specs.push((partition.clone(), spec));
        }
        if specs.is_empty() {
            return Ok(());
        }
        let listed = self.client.admin().list_offsets(&specs, self.options.read_committed).await?;
        for (partition, outcome) in listed {
            let next = outcome?.offset;
            self.partitions.insert(partition, Position::Known { next, epoch: LeaderEpoch::NONE });
        }
        Ok(())
    }

    async fn resolve_committed(&mut self) -> Result<(), ClientError> {
        let wants = |position: &Position| matches!(position, Position::Wanted(StartOffset::Committed));
        let Some(group) = self.options.group_id.clone().filter(|_| self.partitions.values().any(wants)) else {
            return Ok(());
        };
        let committed = self.client.admin().list_group_offsets(group).await?;
        for (partition, position) in &mut self.partitions {
            if wants(position) {
                *position = match committed.get(partition) {
                    Some(found) => Position::Known { next: found.offset, epoch: found.leader_epoch },
                    None => Position::Lost,
                };
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Positions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(&self.partitions).finish()
    }
}

fn wanted(start: StartOffset) -> Position {
    match start {
        StartOffset::At(next) => Position::Known { next, epoch: LeaderEpoch::NONE },
        start => Position::Wanted(start),
    }
}
