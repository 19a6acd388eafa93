//! Taking a snapshot from the leader, where this node's log ends before the leader's starts, or has nothing yet (KIP-630).
//!
//! The pieces go to the driver as they come, so none is held here. Once all have come, the driver checks the whole file and gives it
//! its name; from then on it stands for what was committed up to its end, so it takes the place of a log that ends before, whoever leads by
//! then. A leader that changes while the pieces come ends the download: the next leader may have another snapshot.

use bytes::Bytes;
use gregor_messages::{
    FetchSnapshotRequest, FetchSnapshotResponse,
    fetch_snapshot_request::{PartitionSnapshot, SnapshotId as SnapshotIdField, TopicSnapshot},
};
use gregor_types::{LeaderEpoch, Offset, planted::planted};

use crate::{
    ControlRecord, Effect, Effects, LogView, METADATA_TOPIC, OffsetAndEpoch, Outgoing, Quorum, Role, SnapshotId, Token,
    effects::Write, peers::Asked,
};

/// A snapshot that is being taken from the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Download {
    id: SnapshotId,
    /// How many of its bytes have come.
    position: u64,
    /// How many it has, once the leader has said so.
    size: Option<u64>,
}

impl Quorum {
    /// The leader says that this node needs a snapshot. Returns whether that can be.
    pub(crate) fn begin_download(&mut self, id: SnapshotId) -> bool {
        // What a leader has a snapshot of is committed, and more than this node knows to be: else it would have been given records.
        if id.offset <= self.high_watermark.unwrap_or(Offset::ZERO) {
            return false;
        }
        if let Role::Follower(role) = &mut self.role {
            role.download = Some(Download { id, position: 0, size: None });
        }
        true
    }

    /// Asks for the next piece.
    pub(crate) fn fetch_piece(&mut self, download: Download, effects: &mut Effects) {
        let Role::Follower(role) = &self.role else { return };
        let (leader, epoch) = (role.leader, role.election.epoch);
        let local = self.config.local.key;
        let partition = PartitionSnapshot {
            partition: 0,
            current_leader_epoch: epoch.value(),
            snapshot_id: SnapshotIdField {
                end_offset: download.id.offset.value(),
                epoch: download.id.epoch.value(),
                ..Default::default()
            },
            position: download.position as i64,
            replica_directory_id: local.directory_or_zero(),
            ..Default::default()
        };
        let topic = TopicSnapshot { name: METADATA_TOPIC.into(), partitions: vec![partition], ..Default::default() };
        let request = FetchSnapshotRequest {
            cluster_id: Some(self.config.cluster_id.clone()),
            replica_id: local.id.value(),
            max_bytes: self.config.snapshot_piece_bytes.min(i32::MAX as u32) as i32,
            topics: vec![topic],
            ..Default::default()
        };
        self.peers.ask(leader, Asked::FetchSnapshot(epoch));
        effects.push(Effect::Send { to: leader, request: Outgoing::FetchSnapshot(request) });
    }

    /// Takes in a piece. Returns whether the answer was of use; where it was not, the leader is asked anew which snapshot it has: this one may be
    /// gone.
    pub(crate) fn on_piece(&mut self, response: &FetchSnapshotResponse, effects: &mut Effects) -> bool {
        let Role::Follower(role) = &mut self.role else { return true };
        let Some(mut download) = role.download.take() else { return false };
        let Some(bytes) = download.take_piece(response) else { return false };
        let id = download.id;
        let position = download.position - bytes.len() as u64;
        effects.push(Effect::SnapshotPiece { id, position, bytes });
        if download.size == Some(download.position) {
            let token = self.writes.begin(Write::Snapshot(id));
            effects.push(Effect::CompleteSnapshot { token, id });
        } else {
            role.download = Some(download);
        }
        true
    }

    /// The leader did not give a piece: the download begins anew with a fetch.
    pub(crate) fn give_up_download(&mut self) {
        if let Role::Follower(role) = &mut self.role {
            role.download = None;
        }
    }

    /// A snapshot has its name on the disk, or was none.
    pub(crate) fn on_snapshot_received(
        &mut self,
        token: Token,
        control: Option<&[ControlRecord]>,
        log: &dyn LogView,
        effects: &mut Effects,
    ) {
        let Some(Write::Snapshot(id)) = self.writes.end(token) else { return };
        let Some(control) = control else {
            // What the leader has, or what came of it, is broken: asking again at once would do no good.
            if let Role::Follower(role) = &self.role
                && self.peers.is_free(role.leader)
            {
                self.peers.pause(role.leader, self.config.election_backoff_max);
            }
            return;
        };
        let is_known = id.offset <= self.high_watermark.unwrap_or(Offset::ZERO) || id.is_end_in(log);
        if is_known || matches!(self.role, Role::Leader(_)) {
            return;
        }
        if !planted("snapshot-voters-ignored") {
            self.history.load_snapshot(id, control);
        }
        effects.push(Effect::InstallSnapshot { id });
        self.high_watermark = Some(id.offset);
        effects.push(Effect::HighWatermark(id.offset));
        // A fetch says how much this node has, so the next one waits until the log is the snapshot's end on the disk, too.
        let token = self.writes.begin(Write::Fetched(id.offset));
        effects.push(Effect::Flush { token, end: id.offset });
    }
}

impl Download {
    /// The bytes of the piece that was asked for, if that is what the answer holds.
    fn take_piece(&mut self, response: &FetchSnapshotResponse) -> Option<Bytes> {
        let data = response.topics.first().and_then(|topic| topic.partitions.first())?;
        let id = OffsetAndEpoch::new(Offset(data.snapshot_id.end_offset), LeaderEpoch(data.snapshot_id.epoch));
        let bytes = data.unaligned_records.clone();
        let size = u64::try_from(data.size).ok()?;
        let is_next = id == self.id && u64::try_from(data.position) == Ok(self.position);
        let is_same_file = self.size.is_none_or(|known| known == size);
        let end = self.position + bytes.len() as u64;
        if !is_next || !is_same_file || bytes.is_empty() || end > size {
            return None;
        }
        (self.position, self.size) = (end, Some(size));
        Some(bytes)
    }
}

impl OffsetAndEpoch {
    /// Whether a log has everything up to this end, and the same record before it; or begins behind it.
    pub fn is_end_in(self, log: &dyn LogView) -> bool {
        let end = log.end_of_epoch(self.epoch);
        self.offset < log.start() || (end.epoch == self.epoch && end.offset >= self.offset)
    }
}
