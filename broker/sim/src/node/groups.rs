//! The group coordinator of a simulated node: one shard of the production's coordinator over one partition of
//! `__consumer_offsets`, loaded from it and answering as it is committed.

use std::collections::HashMap;

use bytes::Bytes;
use gregor_coordinators::{
    Answer, Environment, Journal, LoggedRecord, Record, Shard, Token,
    group::{GroupConfig, GroupCoordinator, GroupRequest, GroupResponse},
};
use gregor_log::{LogError, ReadRequest};
use gregor_raft::Nanos;
use gregor_replication::LeaderState;
use gregor_types::{ErrorCode, LeaderEpoch, Offset, Timestamp};
use gregor_wire::batch::{BatchOptions, RecordBatchBuilder, split_batches};

use super::{Partition, partition, process::Death};
use crate::{
    Random,
    clock::{Clock, MILLISECOND},
    network::{CallId, Response},
};

/// One shard, of one leadership.
#[derive(Debug)]
pub(super) struct Groups {
    shard: Shard<GroupCoordinator>,
    epoch: LeaderEpoch,
    waiting: HashMap<Token, CallId>,
    next_token: u64,
}

struct PartitionJournal<'p> {
    partition: &'p mut Partition,
    epoch: LeaderEpoch,
    /// A disk that failed: the whole process goes with it.
    failed: Option<LogError>,
}

impl Journal for PartitionJournal<'_> {
    fn append(&mut self, records: &[Record], now: Timestamp) -> Result<Offset, ErrorCode> {
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        for record in records {
            builder.append(now, Some(&record.key), record.value.as_deref(), &[]);
        }
        self.partition.journal(&builder.build(), self.epoch, now).unwrap_or_else(|error| {
            self.failed = Some(error);
            Err(ErrorCode::KafkaStorageError)
        })
    }
}

impl Groups {
    /// Loads a shard from its partition.
    pub(super) fn load(partition: &mut Partition, clock: &Clock, random: &mut Random) -> Result<Self, Death> {
        let mut shard = Shard::new(GroupCoordinator::new(GroupConfig::default()));
        let (mut at, end) = (partition.log.start_offset(), partition.log.end_offset());
        while at < end {
            let request = ReadRequest { from: at, upper_bound: end, max_bytes: 1 << 16, min_one_batch: true };
            let plan = partition.log.read(&request).and_then(gregor_log::ReadPlan::check);
            let plan = plan.map_err(|error| Death(error.to_string()))?;
            let bytes = plan.read_all().map_err(|error| Death(error.to_string()))?;
            let before = at;
            for batch in split_batches(&bytes) {
                let batch = batch.map_err(|error| Death(error.to_string()))?;
                let records = batch.records(1 << 20).map_err(|error| Death(error.to_string()))?;
                for record in &records {
                    let record = record.map_err(|error| Death(error.to_string()))?;
                    let Some(key) = record.key.filter(|_| record.offset >= at) else { continue };
                    let record = LoggedRecord {
                        offset: record.offset,
                        transaction: None,
                        record: Record {
                            key: Bytes::copy_from_slice(key),
                            value: record.value.map(Bytes::copy_from_slice),
                        },
                    };
                    shard.replay(record).map_err(|error| Death(error.to_string()))?;
                }
                at = batch.next_offset();
            }
            if at == before {
                // A log may end with offsets that nothing stands at, see the server's `loader.rs`.
                break;
            }
        }
        let epoch = partition.leader.as_ref().map_or(LeaderEpoch::NONE, LeaderState::leader_epoch);
        let mut this = Self { shard, epoch, waiting: HashMap::new(), next_token: 0 };
        let committed = partition.high_watermark();
        this.step(partition, clock, random, |shard, environment| shard.activate(end, committed, environment))?;
        Ok(this)
    }

    pub(super) fn is_of(&self, epoch: LeaderEpoch) -> bool {
        self.epoch == epoch
    }

    pub(super) fn ask(
        &mut self,
        call: CallId,
        request: GroupRequest,
        partition: &mut Partition,
        clock: &Clock,
        random: &mut Random,
    ) -> Result<Vec<partition::Answer>, Death> {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.waiting.insert(token, call);
        self.step(partition, clock, random, |shard, environment| {
            shard.handle(request, token, environment).unwrap_or_default()
        })
    }

    /// Timers that are due, and answers that the high watermark has passed.
    pub(super) fn on_time(
        &mut self,
        partition: &mut Partition,
        clock: &Clock,
        random: &mut Random,
    ) -> Result<Vec<partition::Answer>, Death> {
        let due = self.shard.next_time().is_some_and(|next| next <= clock.moment());
        let mut answers = Vec::new();
        if due {
            answers.extend(self.step(partition, clock, random, Shard::on_time)?);
        }
        let committed = self.shard.committed(partition.high_watermark());
        answers.extend(self.deliver(committed));
        Ok(answers)
    }

    /// When a timer is due.
    pub(super) fn next_time(&self) -> Nanos {
        self.shard.next_time().map_or(Nanos::MAX, |moment| moment.0.saturating_mul(MILLISECOND))
    }

    fn step(
        &mut self,
        partition: &mut Partition,
        clock: &Clock,
        random: &mut Random,
        step: impl FnOnce(&mut Shard<GroupCoordinator>, Environment<'_>) -> Vec<Answer<GroupResponse>>,
    ) -> Result<Vec<partition::Answer>, Death> {
        let mut journal = PartitionJournal { partition, epoch: self.epoch, failed: None };
        let mut chance = || u128::from(random.bits()) << 64 | u128::from(random.bits());
        let environment =
            Environment { now: clock.moment(), wall_clock: clock.wall(), random: &mut chance, journal: &mut journal };
        let answers = step(&mut self.shard, environment);
        if let Some(error) = journal.failed {
            return Err(error.into());
        }
        Ok(self.deliver(answers))
    }

    fn deliver(&mut self, answers: Vec<Answer<GroupResponse>>) -> Vec<partition::Answer> {
        let answer = |Answer { token, response }| Some((self.waiting.remove(&token)?, Response::Group(response)));
        answers.into_iter().filter_map(answer).collect()
    }
}
