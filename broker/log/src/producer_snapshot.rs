//! `.snapshot`: the producers of a partition as of the offset that is the file's name, so that a start need not read the
//! whole log. Guarded by a checksum: a damaged one is as good as none.

use gregor_types::{Offset, ProducerEpoch, ProducerId, Timestamp};
use gregor_wire::batch::crc32c;

use crate::producer_state::{BatchMetadata, ProducerEntry, ProducerState};

const VERSION: i16 = 1;
const CRC_END: usize = 6;
const HEADER_BYTES: usize = 10;
const ENTRY_BYTES: usize = 46;

/// The length of a snapshot without producers.
pub(crate) const EMPTY_BYTES: u64 = HEADER_BYTES as u64;

pub(crate) fn encode(state: &ProducerState) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + state.len() * ENTRY_BYTES);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(state.len() as i32).to_be_bytes());
    for (id, entry) in state.iter() {
        let (last_sequence, last_offset, offset_delta) = entry
            .last_batch()
            .map_or((-1, Offset::NONE, 0), |batch| (batch.last_sequence, batch.last_offset, batch.offset_delta));
        bytes.extend_from_slice(&id.0.to_be_bytes());
        bytes.extend_from_slice(&entry.epoch.0.to_be_bytes());
        bytes.extend_from_slice(&last_sequence.to_be_bytes());
        bytes.extend_from_slice(&last_offset.0.to_be_bytes());
        bytes.extend_from_slice(&offset_delta.to_be_bytes());
        bytes.extend_from_slice(&entry.last_timestamp.0.to_be_bytes());
        bytes.extend_from_slice(&entry.coordinator_epoch.to_be_bytes());
        bytes.extend_from_slice(&entry.current_transaction_start.unwrap_or(Offset::NONE).0.to_be_bytes());
    }
    let crc = crc32c(&bytes[CRC_END..]);
    bytes[2..CRC_END].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// The producers in a snapshot; `None` if it is damaged or of a later version.
pub(crate) fn decode(bytes: &[u8]) -> Option<ProducerState> {
    let mut header = Fields(bytes.get(..HEADER_BYTES)?);
    let (version, crc, count) = (i16::from_be_bytes(header.take()), header.take(), i32::from_be_bytes(header.take()));
    if version != VERSION || crc32c(&bytes[CRC_END..]) != u32::from_be_bytes(crc) {
        return None;
    }
    let entries = &bytes[HEADER_BYTES..];
    if entries.len() != usize::try_from(count).ok()?.checked_mul(ENTRY_BYTES)? {
        return None;
    }
    let mut state = ProducerState::default();
    for entry in entries.chunks_exact(ENTRY_BYTES) {
        let mut fields = Fields(entry);
        let id = ProducerId(i64::from_be_bytes(fields.take()));
        let mut producer = ProducerEntry::new();
        producer.epoch = ProducerEpoch(i16::from_be_bytes(fields.take()));
        let last_sequence = i32::from_be_bytes(fields.take());
        let last_offset = Offset(i64::from_be_bytes(fields.take()));
        let offset_delta = i32::from_be_bytes(fields.take());
        producer.last_timestamp = Timestamp(i64::from_be_bytes(fields.take()));
        producer.coordinator_epoch = i32::from_be_bytes(fields.take());
        let start = Offset(i64::from_be_bytes(fields.take()));
        producer.current_transaction_start = (start >= Offset::ZERO).then_some(start);
        if last_offset >= Offset::ZERO {
            let timestamp = producer.last_timestamp;
            producer.push(BatchMetadata { last_sequence, last_offset, offset_delta, timestamp });
        }
        state.insert(id, producer);
    }
    Some(state)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("the fields add up to the entry's size");
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_reads_back_and_a_damaged_one_does_not() {
        let mut state = ProducerState::default();
        let mut entry = ProducerEntry::new();
        entry.epoch = ProducerEpoch(3);
        entry.last_timestamp = Timestamp(1234);
        entry.coordinator_epoch = 7;
        entry.current_transaction_start = Some(Offset(40));
        entry.push(BatchMetadata {
            last_sequence: 9,
            last_offset: Offset(49),
            offset_delta: 9,
            timestamp: Timestamp(1234),
        });
        state.insert(ProducerId(5), entry.clone());
        state.insert(ProducerId(6), ProducerEntry::new());
        let mut bytes = encode(&state);
        assert_eq!(bytes.len(), HEADER_BYTES + 2 * ENTRY_BYTES);
        let mut read = decode(&bytes).unwrap();
        assert_eq!(read.iter().find(|(id, _)| id.0 == 5).unwrap().1, &entry);
        assert_eq!(read.first_unstable_offset(Offset(100)), Some(Offset(40)));
        bytes[30] ^= 1;
        assert!(decode(&bytes).is_none());
        assert!(decode(&bytes[..9]).is_none());
    }
}
