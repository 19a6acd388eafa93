//! Records to batches and back, on top of `gregor_wire::batch`.

use bytes::Bytes;
use gregor_messages::fetch_response::AbortedTransaction;
use gregor_types::{KString, LeaderEpoch, Offset, ProducerId, Timestamp, TopicPartition};
use gregor_wire::{
    batch::{BatchError, BatchView, ControlRecordType, split_batches},
    compression::CompressionType,
};

use crate::ClientError;

/// How far a batch may grow when it is decompressed.
const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

/// A record as a consumer gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedRecord {
    /// Where it is stored.
    pub partition: TopicPartition,
    /// Its offset there.
    pub offset: Offset,
    /// When it happened, or when it was stored, as the topic says.
    pub timestamp: Timestamp,
    /// The epoch of the leader that stored it.
    pub leader_epoch: LeaderEpoch,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers; Kafka does not promise that names are text, so one that is not is read with replacements.
    pub headers: Vec<(KString, Option<Bytes>)>,
}

/// What a fetch returned for one partition.
pub(crate) struct Decoded {
    /// The records from the offset asked for on.
    pub(crate) records: Vec<FetchedRecord>,
    /// Where to go on; none if not even one batch was whole.
    pub(crate) next: Option<Offset>,
}

/// Reads the batches that a fetch from `from` returned. `aborted` is given to a consumer that wants committed records only.
pub(crate) fn decode(
    partition: &TopicPartition,
    from: Offset,
    bytes: &Bytes,
    aborted: Option<Vec<AbortedTransaction>>,
) -> Result<Decoded, ClientError> {
    let corrupt = |error: BatchError| ClientError::CorruptRecords {
        partition: partition.clone(),
        offset: from.0,
        reason: error.to_string(),
    };
    let mut decoded = Decoded { records: Vec::new(), next: None };
    let mut filter = aborted.map(Aborted::new);
    for batch in split_batches(bytes) {
        let batch = batch.map_err(corrupt)?;
        decoded.next = Some(batch.next_offset());
        if batch.next_offset() <= from {
            continue;
        }
        batch.check_crc().map_err(corrupt)?;
        if filter.as_mut().is_some_and(|filter| filter.hides(&batch)) || batch.is_control() {
            continue;
        }
        // A record of a batch that is not compressed is a slice of the response; else it is copied out of what was decompressed.
        let plain = batch.compression().is_ok_and(|codec| codec == CompressionType::None);
        let own = |part: &[u8]| if plain { bytes.slice_ref(part) } else { Bytes::copy_from_slice(part) };
        let records = batch.records(DECOMPRESSED_BYTES_MAX).map_err(corrupt)?;
        for record in &records {
            let record = record.map_err(corrupt)?;
            if record.offset < from {
                continue;
            }
            let headers = record
                .headers
                .iter()
                .map(|header| (KString::from(String::from_utf8_lossy(header.key).into_owned()), header.value.map(own)));
            decoded.records.push(FetchedRecord {
                partition: partition.clone(),
                offset: record.offset,
                timestamp: record.timestamp,
                leader_epoch: batch.leader_epoch,
                key: record.key.map(own),
                value: record.value.map(own),
                headers: headers.collect(),
            });
        }
    }
    Ok(decoded)
}

/// Hides the batches of aborted transactions, as the broker listed them.
struct Aborted {
    /// Not yet begun at the batch looked at, the last one first.
    ahead: Vec<AbortedTransaction>,
    open: Vec<ProducerId>,
}

impl Aborted {
    fn new(mut transactions: Vec<AbortedTransaction>) -> Self {
        transactions.sort_by_key(|transaction| std::cmp::Reverse(transaction.first_offset));
        Self { ahead: transactions, open: Vec::new() }
    }

    fn hides(&mut self, batch: &BatchView<'_>) -> bool {
        while let Some(transaction) = self.ahead.pop_if(|next| next.first_offset <= batch.last_offset().0) {
            self.open.push(ProducerId(transaction.producer_id));
        }
        if batch.is_control() {
            let ended_by_abort = batch.records(DECOMPRESSED_BYTES_MAX).is_ok_and(|records| {
                let first = records.iter().next().and_then(Result::ok);
                let key = first.and_then(|record| record.key.and_then(ControlRecordType::from_key));
                key == Some(ControlRecordType::Abort)
            });
            if ended_by_abort {
                self.open.retain(|producer| *producer != batch.producer_id);
            }
            return true;
        }
        batch.is_transactional() && self.open.contains(&batch.producer_id)
    }
}
