//! Messages of magic 0 and 1, which Kafka before 0.11 wrote: each a batch of its own, or a wrapper around compressed ones.
//!
//! No client may produce them any more; directories that have lived since then still hold them, and what their cleaning leaves.

use std::borrow::Cow;

use gregor_types::{Offset, Timestamp};

use super::{
    BatchError, BatchHeader, BatchView, HeadersView, OFFSET_AND_LENGTH_BYTES, RecordView, TimestampType,
    header::{LEGACY_TIMESTAMP_AT, i32_at, i64_at},
};
use crate::compression::{CompressionType, decompress, decompress_magic_0};

/// Iterates over the messages in the body of a wrapper, or over the one message that is not wrapped.
#[derive(Debug)]
pub(super) struct LegacyIter<'a> {
    header: &'a BatchHeader,
    bytes: &'a [u8],
    /// What to add to an inner message's offset: those of magic 1 are relative to the wrapper's, which is the last one's.
    offset_shift: i64,
}

/// The messages of a batch: itself, or what its value holds when decompressed.
pub(super) fn body<'a>(batch: &BatchView<'a>, limit: usize) -> Result<Cow<'a, [u8]>, BatchError> {
    let codec = batch.header().compression()?;
    if codec == CompressionType::None {
        return Ok(Cow::Borrowed(batch.bytes()));
    }
    let (_, value, _) = fields(batch.bytes(), batch.header().magic)?;
    let value = value.ok_or(BatchError::MalformedRecord("a compressed message has no value"))?;
    let mut body = Vec::new();
    if batch.header().magic == 0 {
        decompress_magic_0(codec, value, limit, &mut body)?;
    } else {
        decompress(codec, value, limit, &mut body)?;
    }
    Ok(Cow::Owned(body))
}

impl<'a> LegacyIter<'a> {
    pub(super) fn new(header: &'a BatchHeader, bytes: &'a [u8]) -> Self {
        let wrapped = header.attributes & 0x7 != 0;
        let offset_shift = match last_message_offset(bytes) {
            Some(last) if wrapped && header.magic == 1 => header.base_offset.0.saturating_sub(last),
            _ => 0,
        };
        Self { header, bytes, offset_shift }
    }

    pub(super) fn next(&mut self) -> Option<Result<RecordView<'a>, BatchError>> {
        if self.bytes.is_empty() {
            return None;
        }
        let record = self.message();
        if record.is_err() {
            self.bytes = &[];
        }
        Some(record)
    }

    fn message(&mut self) -> Result<RecordView<'a>, BatchError> {
        let header = BatchHeader::parse(self.bytes)?;
        let size = header.size as usize;
        if size > self.bytes.len() || header.magic != self.header.magic {
            return Err(BatchError::MalformedRecord("an inner message is cut off or of another magic"));
        }
        let (key, value, end) = fields(&self.bytes[..size], header.magic)?;
        if end != size {
            return Err(BatchError::MalformedRecord("it is shorter than it says"));
        }
        self.bytes = &self.bytes[size..];
        let timestamp = match (header.magic, self.header.timestamp_type()) {
            (0, _) => Timestamp::NONE,
            (_, TimestampType::LogAppendTime) => self.header.max_timestamp,
            (_, TimestampType::CreateTime) => header.max_timestamp,
        };
        Ok(RecordView {
            offset: Offset(header.base_offset.0.saturating_add(self.offset_shift)),
            timestamp,
            key,
            value,
            headers: HeadersView::default(),
            size,
        })
    }
}

type Fields<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, usize);

fn fields(bytes: &[u8], magic: i8) -> Result<Fields<'_>, BatchError> {
    let key_at = if magic == 0 { LEGACY_TIMESTAMP_AT } else { LEGACY_TIMESTAMP_AT + 8 };
    let (key, value_at) = nullable(bytes, key_at)?;
    let (value, end) = nullable(bytes, value_at)?;
    Ok((key, value, end))
}

fn nullable(bytes: &[u8], at: usize) -> Result<(Option<&[u8]>, usize), BatchError> {
    let start = at + 4;
    if bytes.len() < start {
        return Err(BatchError::MalformedRecord("it is cut off"));
    }
    match i32_at(bytes, at) {
        -1 => Ok((None, start)),
        len => {
            let len = usize::try_from(len).map_err(|_| BatchError::MalformedRecord("a length is negative"))?;
            let field = bytes[start..].get(..len).ok_or(BatchError::MalformedRecord("a length passes its end"))?;
            Ok((Some(field), start + len))
        }
    }
}

fn last_message_offset(mut bytes: &[u8]) -> Option<i64> {
    let mut last = None;
    while bytes.len() >= OFFSET_AND_LENGTH_BYTES {
        last = Some(i64_at(bytes, 0));
        let size = usize::try_from(i32_at(bytes, 8)).ok()?.checked_add(OFFSET_AND_LENGTH_BYTES)?;
        bytes = bytes.get(size..)?;
    }
    last
}

#[cfg(test)]
mod tests {
    use gregor_types::{Offset, Timestamp};

    use super::*;
    use crate::{
        batch::{BatchChecksum, retained_batch},
        compression::compress,
    };

    type KeyAndValue<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

    fn put_message(
        to: &mut Vec<u8>,
        magic: i8,
        offset: i64,
        attributes: u8,
        timestamp: Timestamp,
        (key, value): KeyAndValue<'_>,
    ) {
        let mut content = vec![magic as u8, attributes];
        if magic == 1 {
            content.extend(timestamp.0.to_be_bytes());
        }
        for field in [key, value] {
            content.extend(field.map_or(-1, |field| field.len() as i32).to_be_bytes());
            content.extend(field.unwrap_or_default());
        }
        let mut checksum = BatchChecksum::new(magic);
        checksum.update(&content);
        to.extend(offset.to_be_bytes());
        to.extend((content.len() as i32 + 4).to_be_bytes());
        to.extend(checksum.finish().to_be_bytes());
        to.extend(content);
    }

    fn message(offset: i64, magic: i8, attributes: u8, timestamp: i64, key: Option<&[u8]>, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_message(&mut bytes, magic, offset, attributes, Timestamp(timestamp), (key, Some(value)));
        bytes
    }

    #[test]
    fn a_message_of_magic_0_is_a_batch_of_one_record() {
        let bytes = message(42, 0, 0, 0, None, b"old");
        let batch = BatchView::parse(&bytes).unwrap();
        batch.check_crc().unwrap();
        let records = batch.records(1000).unwrap();
        let record = records.iter().next().unwrap().unwrap();
        assert_eq!((record.offset, record.timestamp, record.value), (Offset(42), Timestamp::NONE, Some(&b"old"[..])));
        assert_eq!(records.iter().count(), 1);
    }

    #[test]
    fn offsets_inside_a_wrapper_of_magic_1_end_at_the_wrappers() {
        for codec in [CompressionType::Gzip, CompressionType::Snappy, CompressionType::Lz4] {
            let mut inner = message(0, 1, 0, 1000, Some(b"k"), b"a");
            inner.extend(message(1, 1, 0, 1001, None, b"b"));
            inner.extend(message(2, 1, 0, 1002, None, b"c"));
            let mut packed = vec![];
            compress(codec.into(), &inner, &mut packed).unwrap();
            let bytes = message(12, 1, codec.id() as u8, 1002, None, &packed);
            let batch = BatchView::parse(&bytes).unwrap();
            let records = batch.records(1000).unwrap();
            let seen: Vec<_> = records.iter().map(|r| r.map(|r| (r.offset.0, r.timestamp.0)).unwrap()).collect();
            assert_eq!(seen, [(10, 1000), (11, 1001), (12, 1002)], "{codec}");
        }
    }

    #[test]
    fn what_is_left_of_a_wrapper_is_a_batch_with_its_offsets_times_and_codec() {
        let seen = |bytes: &[u8]| {
            let batch = BatchView::parse(bytes).unwrap();
            batch.check_crc().unwrap();
            let records = batch.records(1000).unwrap();
            let one =
                |r: RecordView<'_>| (r.offset.0, r.timestamp.0, r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec));
            records.iter().map(|r| one(r.unwrap())).collect::<Vec<_>>()
        };
        let codecs = [CompressionType::Gzip, CompressionType::Snappy, CompressionType::Lz4];
        for (magic, codec) in codecs.into_iter().flat_map(|codec| [(0, codec), (1, codec)]) {
            for append_time in [0, 8] {
                let offset = |i: i64| if magic == 1 { i } else { 10 + i };
                let inner: Vec<u8> = (0..4)
                    .flat_map(|i| message(offset(i), magic, append_time, 1000 + i, Some(b"k"), &[i as u8]))
                    .collect();
                let mut packed = vec![];
                compress(codec.into(), &inner, &mut packed).unwrap();
                let bytes = message(13, magic, codec.id() as u8 | append_time, 1003, None, &packed);
                let whole = seen(&bytes);
                let batch = BatchView::parse(&bytes).unwrap();
                let records = batch.records(1000).unwrap();
                let kept: Vec<_> =
                    records.iter().map(Result::unwrap).filter(|r| matches!(r.offset.0, 10 | 12)).collect();
                let rewritten = retained_batch(batch.header(), None, &kept).unwrap();
                let header = BatchHeader::parse(&rewritten).unwrap();
                assert_eq!((header.magic, header.compression().unwrap()), (2, codec), "KIP-724");
                let is_append_time = magic == 1 && append_time != 0;
                assert_eq!(header.timestamp_type() == TimestampType::LogAppendTime, is_append_time);
                assert_eq!((header.base_offset, header.last_offset()), (Offset(10), Offset(12)));
                assert_eq!(seen(&rewritten), [whole[0].clone(), whole[2].clone()], "magic {magic}, {codec}");
            }
        }
    }
}
