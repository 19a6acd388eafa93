//! One partition of a simulated node: what the server's `partition.rs` does under its lock, in steps.
//!
//! The high watermark, acknowledgements and syncs go by the same rules: an acknowledgement waits for what its promise asks.

use std::sync::Arc;

use gregor_log::{AppendError, Appended, FlushToken, Flushed, LogConfig, LogError, PartitionLog, ReadRequest};
use gregor_raft::Nanos;
use gregor_replication::{LeaderState, LeadersLog, PartitionAssignment};
use gregor_server::TopicSettings;
use gregor_types::{BrokerId, ErrorCode, KString, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId};
use gregor_wire::batch::{ValidatedBatch, validate_produced};

use crate::network::{Batches, CallId, Fetched, Response};

const FETCH_BYTES: u32 = 2_000;

/// See the module's documentation.
#[derive(Debug)]
pub struct Partition {
    /// Its topic.
    pub topic: KString,
    /// Its topic's id.
    pub topic_id: TopicId,
    /// Its number.
    pub index: PartitionIndex,
    /// Its log.
    pub log: PartitionLog,
    /// Its state as a leader, where it leads.
    pub leader: Option<LeaderState>,
    high_watermark: Offset,
    settings: Arc<TopicSettings>,
    awaiting: Vec<(Awaits, CallId, Response)>,
    unflushed: i64,
    flush_wanted: bool,
    flushing: Option<(Nanos, FlushToken)>,
    /// What retention has deleted although it was to be kept.
    pub wrong: Option<String>,
}

/// What an acknowledgement waits for, and under which leadership.
#[derive(Debug, Clone, Copy)]
enum Awaits {
    Commit(Offset, LeaderEpoch),
    Sync(Offset, LeaderEpoch),
}

/// An answer that may leave.
pub(super) type Answer = (CallId, Response);

impl Partition {
    pub(super) fn new(
        (topic, topic_id, index): (KString, TopicId, PartitionIndex),
        mut log: PartitionLog,
        high_watermark: Offset,
        settings: Arc<TopicSettings>,
    ) -> Self {
        log.set_config(small(&settings.log));
        let high_watermark = high_watermark.clamp(log.start_offset(), log.end_offset());
        Self {
            topic,
            topic_id,
            index,
            log,
            leader: None,
            high_watermark,
            settings,
            awaiting: Vec::new(),
            unflushed: 0,
            flush_wanted: false,
            flushing: None,
            wrong: None,
        }
    }

    /// Everything before it is committed.
    pub fn high_watermark(&self) -> Offset {
        self.leader.as_ref().map_or(self.high_watermark, LeaderState::high_watermark)
    }

    /// The value of a setting that is in force here, if it is one that can be seen.
    pub fn setting(&self, key: &str) -> Option<String> {
        match key {
            "min.insync.replicas" => Some(self.settings.limits.min_isr.to_string()),
            "retention.bytes" => Some(self.log.config().retention_bytes.to_string()),
            "segment.bytes" => Some(self.settings.log.segment_bytes.to_string()),
            _ => None,
        }
    }

    pub(super) fn set_role(&mut self, me: BrokerId, leads: bool, assignment: &PartitionAssignment, now: Timestamp) {
        if let (Some(leader), true) = (&mut self.leader, leads)
            && leader.leader_epoch() == assignment.leader_epoch
        {
            leader.on_assignment(assignment, now);
            return;
        }
        self.high_watermark = self.high_watermark();
        self.leader = leads.then(|| {
            if assignment.leader_epoch > self.log.last_epoch() {
                self.log.assign_epoch_start(assignment.leader_epoch, self.log.end_offset());
            }
            let durable_end = self.settings.syncs_before_acknowledging().then(|| self.log.recovery_point());
            self.flush_wanted |= durable_end.is_some();
            let (start, end) = (self.log.start_offset(), self.log.end_offset());
            let log = LeadersLog { start, end, durable_end, high_watermark: self.high_watermark };
            LeaderState::new(me, assignment, self.settings.limits, log, now)
        });
    }

    pub(super) fn set_settings(&mut self, settings: &Arc<TopicSettings>, now: Timestamp) {
        self.log.set_config(small(&settings.log));
        self.settings = Arc::clone(settings);
        let durable = settings.syncs_before_acknowledging().then(|| self.log.recovery_point());
        if let Some(leader) = &mut self.leader {
            leader.on_limits(settings.limits, now);
            leader.on_durability(durable, now);
        }
        self.flush_wanted |= durable.is_some();
    }

    /// Takes a client's batch; the answer comes at once or once what it promises is so.
    pub(super) fn produce(
        &mut self,
        call: CallId,
        bytes: &[u8],
        acks_all: bool,
        now: Timestamp,
    ) -> Result<Option<Answer>, LogError> {
        let settings = Arc::clone(&self.settings);
        let mut scratch = Vec::new();
        match validate_produced(bytes, &settings.rules, now, &mut scratch) {
            Ok(batch) => self.append(call, &batch, acks_all, now, None),
            Err(error) => Ok(Some((call, Response::Refused(error.error_code())))),
        }
    }

    /// Appends a marker or a coordinator's batch.
    pub(super) fn append_trusted(
        &mut self,
        call: CallId,
        bytes: &[u8],
        now: Timestamp,
        answer: Response,
    ) -> Result<Option<Answer>, LogError> {
        match ValidatedBatch::trusted(bytes) {
            Ok(batch) => self.append(call, &batch, true, now, Some(answer)),
            Err(_) => Ok(Some((call, Response::Refused(ErrorCode::CorruptMessage)))),
        }
    }

    fn append(
        &mut self,
        call: CallId,
        batch: &ValidatedBatch<'_>,
        acks_all: bool,
        now: Timestamp,
        answer: Option<Response>,
    ) -> Result<Option<Answer>, LogError> {
        let appended = match self.append_as_leader(batch, acks_all, now) {
            Ok(appended) => appended,
            Err(AppendError::Log(error)) if !error.is_disk_full() => return Err(error),
            Err(error) => return Ok(Some((call, Response::Refused(error.error_code())))),
        };
        let Some(appended) = appended else {
            return Ok(Some((call, Response::Refused(ErrorCode::NotLeaderOrFollower))));
        };
        let info = appended.info();
        let (required, epoch) = (info.last_offset.plus(1), self.epoch());
        let response = answer.unwrap_or(Response::Produced(info.base_offset));
        let syncs = self.settings.syncs_before_acknowledging();
        let awaits = if acks_all {
            (self.high_watermark() < required).then_some(Awaits::Commit(required, epoch))
        } else {
            (syncs && self.log.recovery_point() < required).then_some(Awaits::Sync(required, epoch))
        };
        Ok(match awaits {
            None => Some((call, response)),
            Some(awaits) => {
                self.flush_wanted |= syncs;
                self.awaiting.push((awaits, call, response));
                None
            }
        })
    }

    fn append_as_leader(
        &mut self,
        batch: &ValidatedBatch<'_>,
        acks_all: bool,
        now: Timestamp,
    ) -> Result<Option<Appended>, AppendError> {
        let Some(leader) = &mut self.leader else { return Ok(None) };
        if acks_all && leader.check_min_isr().is_err() {
            return Ok(None);
        }
        let appended = self.log.append_as_leader(batch, leader.leader_epoch(), now)?;
        if let Appended::New(info) = &appended {
            leader.on_append(info.last_offset.plus(1), now);
            self.unflushed += batch.offsets_count();
            let sealed = self.log.has_unsynced_sealed_segments();
            self.flush_wanted |= sealed || self.unflushed >= self.settings.flush_messages;
        }
        Ok(Some(appended))
    }

    fn epoch(&self) -> LeaderEpoch {
        self.leader.as_ref().map_or(LeaderEpoch::NONE, LeaderState::leader_epoch)
    }

    /// Appends a coordinator's batch in the epoch that its state belongs to; the offset behind it.
    pub(super) fn journal(
        &mut self,
        bytes: &[u8],
        epoch: LeaderEpoch,
        now: Timestamp,
    ) -> Result<Result<Offset, ErrorCode>, LogError> {
        if self.epoch() != epoch {
            return Ok(Err(ErrorCode::NotLeaderOrFollower));
        }
        let settings = Arc::clone(&self.settings);
        let mut scratch = Vec::new();
        let batch = match validate_produced(bytes, &settings.rules, now, &mut scratch) {
            Ok(batch) => batch,
            Err(error) => return Ok(Err(error.error_code())),
        };
        match self.append_as_leader(&batch, true, now) {
            Ok(Some(appended)) => Ok(Ok(appended.info().last_offset.plus(1))),
            Ok(None) => Ok(Err(ErrorCode::NotLeaderOrFollower)),
            Err(AppendError::Log(error)) if !error.is_disk_full() => Err(error),
            Err(error) => Ok(Err(error.error_code())),
        }
    }

    pub(super) fn fetch(&mut self, from: Option<Offset>, read_committed: bool) -> Result<Response, LogError> {
        if self.leader.is_none() {
            return Ok(Response::Refused(ErrorCode::NotLeaderOrFollower));
        }
        let high_watermark = self.high_watermark();
        let last_stable = self.log.last_stable_offset(high_watermark);
        let log_start = self.log.start_offset();
        let from = from.unwrap_or(log_start);
        if from < log_start || from > self.log.end_offset() {
            return Ok(Response::Refused(ErrorCode::OffsetOutOfRange));
        }
        let upper_bound = if read_committed { last_stable } else { high_watermark };
        let request = ReadRequest { from, upper_bound, max_bytes: FETCH_BYTES, min_one_batch: true };
        let plan = match self.log.read(&request).and_then(gregor_log::ReadPlan::check) {
            Ok(plan) => plan,
            Err(gregor_log::ReadError::Log(error @ LogError::Io { .. })) => return Err(error),
            Err(error) => return Ok(Response::Refused(error.error_code())),
        };
        let path = self.log.directory().to_owned();
        let records = plan.read_all().map_err(|source| LogError::Io { path, source })?;
        let aborted = if read_committed && !records.is_empty() {
            self.log.aborted_transactions(from, upper_bound)?
        } else {
            Vec::new()
        };
        Ok(Response::Fetched(Fetched { records: Batches(records), high_watermark, last_stable, log_start, aborted }))
    }

    pub(super) fn delete_records(&mut self, before: Offset) -> Result<Response, LogError> {
        let Some(leader) = &mut self.leader else { return Ok(Response::Refused(ErrorCode::NotLeaderOrFollower)) };
        let high_watermark = leader.high_watermark();
        let before = if before == Offset::NONE { high_watermark } else { before };
        if before > high_watermark {
            return Ok(Response::Refused(ErrorCode::OffsetOutOfRange));
        }
        self.log.advance_start(before)?;
        leader.on_log_start(self.log.start_offset());
        Ok(Response::RecordsDeleted(leader.low_watermark()))
    }

    /// Deletes segments that nobody wants any more.
    pub(super) fn retain(&mut self, now: Timestamp) -> Result<(), LogError> {
        let (high_watermark, start) = (self.high_watermark(), self.log.start_offset());
        let retained = self.log.retain(high_watermark, now, 4);
        let (left, kept) = (self.log.size(), self.settings.log.retention_bytes);
        if self.log.start_offset() > start && i64::try_from(left).is_ok_and(|left| left < kept) {
            self.wrong = Some(format!("retention has left {left} bytes, and {kept} are kept"));
        }
        match retained {
            Err(error) if !error.is_disk_full() => return Err(error),
            _ => {}
        }
        self.log.release_files();
        if let Some(leader) = &mut self.leader {
            leader.on_log_start(self.log.start_offset());
        }
        Ok(())
    }

    /// Begins a sync that is wanted, to be completed at `done_at`.
    pub(super) fn begin_flush(&mut self, done_at: Nanos) -> Result<(), LogError> {
        if !self.flush_wanted || self.flushing.is_some() {
            return Ok(());
        }
        match self.log.flush() {
            Ok(token) => self.flushing = token.map(|token| (done_at, token)),
            Err(error) if error.is_disk_full() => return Ok(()),
            Err(error) => return Err(error),
        }
        (self.flush_wanted, self.unflushed) = (false, 0);
        Ok(())
    }

    /// When the sync under way is to be completed.
    pub(super) fn flush_due(&self) -> Option<Nanos> {
        self.flushing.as_ref().map(|(due, _)| *due)
    }

    pub(super) fn complete_flush(&mut self, now: Nanos, wall: Timestamp) -> Result<(), LogError> {
        let Some((_, token)) = self.flushing.take_if(|(due, _)| *due <= now) else { return Ok(()) };
        match token.complete() {
            Ok(flushed) => self.flushed(flushed, wall),
            Err(error) if error.is_disk_full() => self.flush_wanted = true,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn flushed(&mut self, flushed: Flushed, now: Timestamp) {
        self.log.flushed(flushed);
        let durable = self.log.recovery_point();
        if let (Some(leader), true) = (&mut self.leader, self.settings.syncs_before_acknowledging()) {
            leader.on_durable(durable, now);
        }
    }

    /// The answers whose promise is kept now, or never will be.
    pub(super) fn take_answers(&mut self) -> Vec<Answer> {
        let (high_watermark, synced, current) = (self.high_watermark(), self.log.recovery_point(), self.epoch());
        let mut ready = Vec::new();
        self.awaiting.retain(|(awaits, call, response)| {
            let (Awaits::Commit(offset, epoch) | Awaits::Sync(offset, epoch)) = *awaits;
            let reached = if matches!(awaits, Awaits::Commit(..)) { high_watermark } else { synced };
            if epoch != current {
                ready.push((*call, Response::Refused(ErrorCode::NotLeaderOrFollower)));
            } else if offset <= reached {
                ready.push((*call, response.clone()));
            }
            epoch == current && offset > reached
        });
        ready
    }
}

/// A topic's settings with segments a thousandth as large: what takes Kafka a gibibyte happens here within a minute.
fn small(config: &LogConfig) -> Arc<LogConfig> {
    Arc::new(LogConfig { segment_bytes: config.segment_bytes / 1_000, ..config.clone() })
}
