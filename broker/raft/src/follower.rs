//! Following a leader: fetching its log, cutting off what it does not have, and noticing that it has gone.

use gregor_messages::{
    FetchRequest, FetchResponse,
    fetch_request::{FetchPartition, FetchTopic, ReplicaState},
};
use gregor_types::{BrokerId, LeaderEpoch, Offset, Uuid, planted::planted};

use crate::{
    Effect, Effects, ElectionState, Endpoint, LogView, METADATA_TOPIC, Nanos, OffsetAndEpoch, Outgoing, Quorum, Role,
    control::{Content, ControlError, Entry, read_batches},
    download::Download,
    effects::Write,
    peers::Asked,
    time::Countdown,
};

/// How long a leader may hold a fetch while it has nothing new (`KafkaRaftClient.MAX_FETCH_WAIT_MS`).
const FETCH_WAIT_MS: i32 = 500;

/// See [`Role::Follower`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Follower {
    /// The epoch, its leader, and whom this node voted for in it.
    pub(crate) election: ElectionState,
    pub(crate) leader: BrokerId,
    /// Where the leader listens, if it said so itself; else the voter set knows.
    pub(crate) endpoints: Vec<Endpoint>,
    /// How long the leader may be silent yet.
    pub(crate) timeout: Countdown,
    /// Whether the leader has answered a fetch in this epoch. Until then this node would vote for another.
    pub(crate) has_fetched: bool,
    /// The high watermark of the leader's last answer.
    pub(crate) leaders_high_watermark: Offset,
    /// The snapshot that is being taken from the leader, instead of records.
    pub(crate) download: Option<Download>,
    /// When this node asks next whether the voters should be changed for it.
    pub(crate) update_voter: Countdown,
    /// Whether the leader of this epoch knows where this voter listens.
    pub(crate) has_told_leader: bool,
}

impl Quorum {
    /// Follows a leader of the present epoch or of the one in `election`. What has to be on disk for it the caller has seen to.
    pub(crate) fn follow(&mut self, election: ElectionState, leader: BrokerId, endpoints: Vec<Endpoint>) {
        self.role = Role::Follower(Follower {
            election: election.led_by(leader),
            leader,
            endpoints,
            timeout: Countdown::new(self.silence_max()),
            has_fetched: false,
            leaders_high_watermark: Offset::NONE,
            download: None,
            update_voter: Countdown::new(self.config.fetch_timeout),
            has_told_leader: false,
        });
    }

    /// How long a leader may be silent.
    pub(crate) fn silence_max(&self) -> Nanos {
        self.config.fetch_timeout * if planted("leader-awaited-too-long") { 30 } else { 1 }
    }

    /// Asks the leader for more. A fetch says how much this node has, so it waits until all of that is on disk.
    pub(crate) fn fetch(&mut self, log: &dyn LogView, effects: &mut Effects) {
        let Role::Follower(role) = &self.role else { return };
        if !self.writes.log_is_durable() || !self.peers.is_free(role.leader) {
            return;
        }
        let (leader, download) = (role.leader, role.download);
        if self.ask_for_change(effects) {
            return;
        }
        match download {
            Some(download) => self.fetch_piece(download, effects),
            None => self.send_fetch(leader, log, effects),
        }
    }

    /// Asks a node for more, in the epoch that this node knows.
    pub(crate) fn send_fetch(&mut self, node: BrokerId, log: &dyn LogView, effects: &mut Effects) {
        let (epoch, end) = (self.epoch(), log.end());
        let local = self.config.local.key;
        let max_bytes = self.config.fetch_bytes.min(i32::MAX as u32) as i32;
        let partition = FetchPartition {
            current_leader_epoch: epoch.value(),
            fetch_offset: end.offset.value(),
            last_fetched_epoch: end.epoch.value(),
            log_start_offset: log.start().value(),
            partition_max_bytes: max_bytes,
            replica_directory_id: local.directory_or_zero(),
            high_watermark: self.high_watermark.unwrap_or(Offset::NONE).value(),
            ..Default::default()
        };
        let topic = FetchTopic {
            topic: METADATA_TOPIC.into(),
            topic_id: Uuid::METADATA_TOPIC,
            partitions: vec![partition],
            ..Default::default()
        };
        let request = FetchRequest {
            cluster_id: Some(self.config.cluster_id.clone()),
            replica_id: local.id.value(),
            replica_state: ReplicaState { replica_id: local.id.value(), ..Default::default() },
            max_wait_ms: FETCH_WAIT_MS,
            max_bytes,
            topics: vec![topic],
            ..Default::default()
        };
        self.peers.ask(node, Asked::Fetch(epoch));
        effects.push(Effect::Send { to: node, request: Outgoing::Fetch(request) });
    }

    /// Takes in what the leader of this epoch answered. Returns whether the answer was of use.
    pub(crate) fn on_fetched(&mut self, response: &FetchResponse, log: &dyn LogView, effects: &mut Effects) -> bool {
        let Role::Follower(role) = &mut self.role else { return true };
        let Some(data) = response.responses.first().and_then(|topic| topic.partitions.first()) else { return false };
        if data.diverging_epoch.epoch >= 0 {
            let theirs =
                OffsetAndEpoch::new(Offset(data.diverging_epoch.end_offset), LeaderEpoch(data.diverging_epoch.epoch));
            let end = common_end(theirs, log);
            if end < self.high_watermark.unwrap_or(Offset::ZERO) || end >= log.end().offset {
                // A leader that lacks what is committed is none; and one that says nothing new would be asked for ever.
                return false;
            }
            role.heard();
            if !planted("cut-voters-kept") {
                self.history.truncate(end);
            }
            effects.push(Effect::Truncate { end });
            // The next fetch says what is left, so it waits until the log is that on the disk, too.
            let token = self.writes.begin(Write::Fetched(end));
            effects.push(Effect::Flush { token, end });
            return true;
        }
        if data.snapshot_id.epoch >= 0 {
            let id = OffsetAndEpoch::new(Offset(data.snapshot_id.end_offset), LeaderEpoch(data.snapshot_id.epoch));
            role.heard();
            return self.begin_download(id);
        }
        let base = log.end().offset;
        let records = data.records.clone().unwrap_or_default();
        let mut end = base;
        let mut controls = Vec::new();
        let read = read_batches::<ControlError>(&records, |entry: Entry| {
            end = entry.offset.plus(1);
            if let Content::Control(control) = entry.content {
                controls.push((entry.offset, control));
            }
            Ok(())
        });
        let Ok(read) = read else { return false };
        let starts_here = gregor_wire::batch::split_batches(&records)
            .next()
            .is_none_or(|first| first.is_ok_and(|first| first.base_offset == base));
        if !starts_here {
            return false;
        }
        role.heard();
        role.leaders_high_watermark = role.leaders_high_watermark.max(Offset(data.high_watermark));
        if read > 0 {
            for (offset, control) in &controls {
                self.history.replay(*offset, control);
            }
            effects.push(Effect::AppendFetched { base, records: records.slice(..read) });
            let token = self.writes.begin(Write::Fetched(end));
            effects.push(Effect::Flush { token, end });
        } else {
            self.follow_high_watermark(base, effects);
        }
        true
    }

    /// What the leader says is committed is, as far as this node has it.
    pub(crate) fn follow_high_watermark(&mut self, end: Offset, effects: &mut Effects) {
        let Role::Follower(role) = &self.role else { return };
        let committed = role.leaders_high_watermark.min(end);
        if committed > self.high_watermark.unwrap_or(Offset::ZERO) {
            self.high_watermark = Some(committed);
            effects.push(Effect::HighWatermark(committed));
        }
    }
}

impl Follower {
    fn heard(&mut self) {
        self.has_fetched = true;
    }
}

/// Up to where this log can be the leader's, which ends `theirs.epoch` at `theirs.offset` (`ReplicatedLog.truncateToEndOffset`).
fn common_end(theirs: OffsetAndEpoch, log: &dyn LogView) -> Offset {
    let ours = log.end_of_epoch(theirs.epoch);
    if ours.epoch == theirs.epoch { ours.offset.min(theirs.offset) } else { ours.offset }
}
