//! What clients ask of nodes and what they hear. Between nodes there will be more kinds; the way is the same: everything takes its
//! time, and whoever is down answers nothing.

use std::fmt;

use bytes::Bytes;
use gregor_controller::{ControllerRequest, ControllerResponse};
use gregor_coordinators::group::{GroupRequest, GroupResponse};
use gregor_log::AbortedTransaction;
use gregor_types::{ErrorCode, Offset, ProducerEpoch, ProducerId};
use gregor_wire::batch::split_batches;

/// A client, by number.
pub type ClientId = usize;
/// A node, by number.
pub type NodeId = usize;

/// Names a client's request until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId {
    /// Who asks.
    pub client: ClientId,
    /// Which of its requests.
    pub number: u64,
}

/// A partition as clients name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The topic.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.topic, self.partition)
    }
}

/// Batches on their way. A story tells of each where it stands, how many records it has and whose they are, and not its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Batches(pub Bytes);

impl fmt::Debug for Batches {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[")?;
        for batch in split_batches(&self.0) {
            let Ok(batch) = batch else { return formatter.write_str(" and a part]") };
            let (base, records, crc) = (batch.base_offset, batch.records_count, batch.crc);
            write!(formatter, " {base}: {records} records ({crc:08x})")?;
            if batch.has_producer_id() {
                write!(formatter, " of {} from {}", batch.producer_id, batch.base_sequence)?;
            }
        }
        formatter.write_str(" ]")
    }
}

/// What a client asks.
#[derive(Debug, Clone)]
pub enum Request {
    /// Append a batch.
    Produce {
        /// Where.
        place: Place,
        /// The batch.
        batch: Batches,
        /// `acks=all`, or else `acks=1`.
        acks_all: bool,
    },
    /// End a producer's transaction in a partition, as a transaction coordinator asks the leader to.
    EndTransaction {
        /// Where.
        place: Place,
        /// Whose.
        producer: ProducerId,
        /// In which epoch.
        epoch: ProducerEpoch,
        /// Whether what it wrote counts.
        commit: bool,
    },
    /// Read from an offset on.
    Fetch {
        /// Where.
        place: Place,
        /// The first offset wanted; `None` for the first that there is.
        from: Option<Offset>,
        /// Whether only what no open transaction can undo.
        read_committed: bool,
    },
    /// Delete the records before an offset; -1 for all that is committed.
    DeleteRecords {
        /// Where.
        place: Place,
        /// The new start.
        before: Offset,
    },
    /// Something that the controller decides.
    Control(ControllerRequest),
    /// A fresh producer id.
    ProducerId,
    /// Something that the coordinator of a group decides.
    Group {
        /// The group.
        group: String,
        /// What is asked.
        request: GroupRequest,
    },
}

/// What a fetch gives.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Whole batches, and maybe part of one.
    pub records: Batches,
    /// The high watermark.
    pub high_watermark: Offset,
    /// The last stable offset.
    pub last_stable: Offset,
    /// The first offset that is kept.
    pub log_start: Offset,
    /// Aborted transactions in the range, for a read-committed reader.
    pub aborted: Vec<AbortedTransaction>,
}

/// What a client hears.
#[derive(Debug, Clone)]
pub enum Response {
    /// Where the batch lies.
    Produced(Offset),
    /// The transaction is ended.
    TransactionEnded,
    /// Records.
    Fetched(Fetched),
    /// The log's start now.
    RecordsDeleted(Offset),
    /// A decision of the controller.
    Control(ControllerResponse),
    /// A fresh producer id.
    ProducerId(ProducerId),
    /// An answer of a group's coordinator.
    Group(GroupResponse),
    /// No.
    Refused(ErrorCode),
    /// The connection is gone; whether the request was carried out is not known.
    Disconnected,
}
