//! What a step asks its driver to do, and the tokens that order it.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
};

use bytes::Bytes;
use gregor_types::{BrokerId, LeaderEpoch, Offset, Timestamp};

use crate::{
    ControlRecord, ElectionState, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, Nanos, Outgoing, Reply, SnapshotId, UpgradeError,
    api::LogRead,
};

/// Names one write. The driver gives it back with [`Input::Durable`](crate::Input::Durable) once that write is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Names a request until it is answered; chosen by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Why an append was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AppendError {
    /// This node does not lead that epoch any more.
    #[error("this node does not lead epoch {0}")]
    NotLeader(LeaderEpoch),
    /// Something else was appended in between.
    #[error("the records were meant for offset {expected}, but the log ends at {end}")]
    WrongOffset {
        /// Where they should have landed.
        expected: Offset,
        /// The end of the log.
        end: Offset,
    },
    /// A batch is never empty and never above the bounds.
    #[error(
        "a batch has 1 to {MAX_BATCH_RECORDS} records and at most {MAX_BATCH_BYTES} bytes; this one has {records} and {bytes}"
    )]
    Size {
        /// Its records.
        records: usize,
        /// Their bytes.
        bytes: usize,
    },
}

/// What a batch holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Batch {
    /// Records of the quorum itself.
    Control(Vec<ControlRecord>),
    /// Framed metadata records.
    Data(Vec<Bytes>),
}

impl Batch {
    /// How many offsets it takes.
    pub fn len(&self) -> usize {
        match self {
            Self::Control(records) => records.len(),
            Self::Data(records) => records.len(),
        }
    }

    /// Never: an empty batch stops Apache's followers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Who leads now, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoleChange {
    /// This node leads the epoch, whose first record is at `start`. It may append at once; nothing that it appends is committed
    /// before that first record is.
    Leader {
        /// The epoch.
        epoch: LeaderEpoch,
        /// The offset of the epoch's first record.
        start: Offset,
    },
    /// This node does not lead; what it appended and is not committed may be cut off.
    NotLeader {
        /// The newest epoch that it knows.
        epoch: LeaderEpoch,
    },
}

/// Something to do. Effects of one step are carried out in their order, except that a sync may be put off and combined with others.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write the election state: file, sync, rename, sync of the folder.
    Persist {
        /// Given back once that is done.
        token: Token,
        /// What to write.
        state: ElectionState,
    },
    /// Append a batch at exactly this offset.
    Append {
        /// Given back by [`Input::Appended`](crate::Input::Appended) once it can be read.
        token: Token,
        /// Where it must land.
        base: Offset,
        /// The epoch of the batch.
        epoch: LeaderEpoch,
        /// The time of its records.
        timestamp: Timestamp,
        /// What to append.
        batch: Batch,
    },
    /// Append batches as the leader sent them, at the end of the log.
    AppendFetched {
        /// Where they must land.
        base: Offset,
        /// Whole batches that were checked.
        records: Bytes,
    },
    /// Cut the log off here: what is behind it is not in the leader's log, and was never committed.
    Truncate {
        /// The new end.
        end: Offset,
    },
    /// Write a piece of the leader's snapshot behind those before it. One at position 0 begins a new file (`.checkpoint.part`); what was begun
    /// before is given up.
    SnapshotPiece {
        /// Which snapshot.
        id: SnapshotId,
        /// From which byte on.
        position: u64,
        /// The bytes, as many as were asked for at most.
        bytes: Bytes,
    },
    /// All pieces of this snapshot are written: read it as a whole, sync it, give it its name and sync the folder; then say so by
    /// [`Input::SnapshotReceived`](crate::Input::SnapshotReceived).
    CompleteSnapshot {
        /// Given back once that is done, or once the file has turned out not to be a snapshot, and is gone.
        token: Token,
        /// Which snapshot.
        id: SnapshotId,
    },
    /// Cut off all of the log: the next record lands at the end that this snapshot stands for. A start does the same, where the newest
    /// snapshot is not the end of something in the log ([`SnapshotId::is_end_in`]): a crash may have come in between.
    InstallSnapshot {
        /// A complete snapshot.
        id: SnapshotId,
    },
    /// Send a request to a voter. The driver answers each one once, by [`Input::Response`](crate::Input::Response), also where it could not be
    /// sent or nothing came back in time; until then no other is sent to that node.
    Send {
        /// The node; its endpoints are in the voter set, or known of the leader, or it is a [`Quorum::bootstrap_node`](crate::Quorum::bootstrap_node).
        to: BrokerId,
        /// What to send.
        request: Outgoing,
    },
    /// Sync the log, at least up to `end`.
    Flush {
        /// Given back once that is done.
        token: Token,
        /// The end of what must be on disk.
        end: Offset,
    },
    /// Answer a request, but not before the write `after` is on disk.
    Reply {
        /// The write to wait for.
        after: Option<Token>,
        /// Which request.
        to: RequestId,
        /// The answer.
        reply: Reply,
        /// Records to read from the log and put into the answer.
        read: Option<LogRead>,
    },
    /// Everything before this offset is committed.
    HighWatermark(Offset),
    /// Step again with [`Input::Tick`](crate::Input::Tick) at this time at the latest. Replaces the time asked for before.
    Timer {
        /// When.
        at: Nanos,
    },
    /// This node won or lost leadership.
    Role(RoleChange),
    /// What became of an [`Input::UpgradeKRaftVersion`](crate::Input::UpgradeKRaftVersion): it is written, or would be.
    Upgraded {
        /// Which request.
        to: RequestId,
        /// Why not, if not.
        result: Result<(), UpgradeError>,
    },
    /// An append could not be done; nothing of it was.
    Refused {
        /// Where it should have landed.
        base: Offset,
        /// Why.
        error: AppendError,
    },
}

/// The effects of a step. Kept by the driver and emptied by it, so that a step allocates nothing in the long run.
#[derive(Debug, Clone, Default)]
pub struct Effects(VecDeque<Effect>);

impl Effects {
    /// Takes the first one.
    pub fn pop(&mut self) -> Option<Effect> {
        self.0.pop_front()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn reply(&mut self, after: Option<Token>, to: RequestId, reply: Reply) {
        self.push(Effect::Reply { after, to, reply, read: None });
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.0.push_back(effect);
    }
}

/// The writes that are not on disk yet. Tokens count up for ever, so two states that differ only in how far they counted
/// are the same state: equality and hash see the distances between tokens only.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes {
    next: u64,
    outstanding: VecDeque<(Token, Write)>,
}

/// What a write was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Write {
    /// This node's vote for itself in an epoch.
    OwnVote(LeaderEpoch),
    /// Something that only answers wait for.
    Election,
    /// What a follower fetched, up to here.
    Fetched(Offset),
    /// A snapshot of the leader, checked and with its name.
    Snapshot(SnapshotId),
    /// A batch; it can be read up to here.
    Batch(Offset),
    /// The log up to here, by the leader of an epoch.
    Log(LeaderEpoch, Offset),
}

impl Writes {
    pub(crate) fn begin(&mut self, write: Write) -> Token {
        let token = Token(self.next);
        self.next += 1;
        self.outstanding.push_back((token, write));
        token
    }

    /// Ends a write; none if the token is unknown or was ended before.
    pub(crate) fn end(&mut self, token: Token) -> Option<Write> {
        let index = self.outstanding.iter().position(|(outstanding, _)| *outstanding == token)?;
        self.outstanding.remove(index).map(|(_, write)| write)
    }

    /// Whether all of the log is on disk, and no snapshot is about to take its place.
    pub(crate) fn log_is_durable(&self) -> bool {
        let is_of_log = |write: &Write| matches!(write, Write::Log(..) | Write::Fetched(_) | Write::Snapshot(_));
        !self.outstanding.iter().any(|(_, write)| is_of_log(write))
    }

    fn relative(&self) -> impl Iterator<Item = (u64, Write)> + '_ {
        let first = self.outstanding.front().map_or(0, |(token, _)| token.0);
        self.outstanding.iter().map(move |(token, write)| (token.0.wrapping_sub(first), *write))
    }
}

impl PartialEq for Writes {
    fn eq(&self, other: &Self) -> bool {
        self.relative().eq(other.relative())
    }
}

impl Eq for Writes {}

impl Hash for Writes {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.relative().for_each(|write| write.hash(hasher));
    }
}
