//! One pass over the records of a produced batch that makes no view of any: what most batches need, at a fraction of the price.
//!
//! `validate.rs` asks it first. It says nothing of a batch in which anything is wrong; that is gone over record by record, by
//! `records.rs`, which can say what.

use gregor_types::Timestamp;

use super::BatchHeader;

/// What all records of a batch have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Survey {
    pub(super) earliest: Timestamp,
    pub(super) latest: Timestamp,
    pub(super) all_have_keys: bool,
}

/// Goes over the uncompressed body of a batch of magic 2; `None` unless it holds the records that the header counts, whole, with
/// offsets one after the other. Timestamps are the producer's.
pub(super) fn survey(header: &BatchHeader, body: &[u8]) -> Option<Survey> {
    let (mut earliest, mut latest, mut all_have_keys) = (i64::MAX, i64::MIN, true);
    let mut rest = Bytes(body);
    for index in 0..header.records_count {
        let len = rest.varint()?;
        let mut record = Bytes(rest.take(len)?);
        record.byte()?; // attributes, none of which is defined
        let timestamp_delta = record.varlong()?;
        (earliest, latest) = (earliest.min(timestamp_delta), latest.max(timestamp_delta));
        if record.varint()? != index {
            return None;
        }
        all_have_keys &= record.skip_nullable()?;
        record.skip_nullable()?;
        // A count that is too large comes to the end of the record.
        for _ in 0..u32::try_from(record.varint()?).ok()? {
            let len = record.varint()?;
            record.take(len)?;
            record.skip_nullable()?;
        }
        if !record.0.is_empty() {
            return None;
        }
    }
    let at = |delta| header.base_timestamp.plus_ms(delta);
    (rest.0.is_empty() && earliest <= latest).then(|| Survey {
        earliest: at(earliest),
        latest: at(latest),
        all_have_keys,
    })
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    #[inline]
    fn take(&mut self, len: i32) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// Bytes behind their length; whether they are not null.
    #[inline]
    fn skip_nullable(&mut self) -> Option<bool> {
        match self.varint()? {
            -1 => Some(false),
            len => self.take(len).map(|_| true),
        }
    }

    #[inline]
    fn varint(&mut self) -> Option<i32> {
        let value = u32::try_from(self.unsigned(5)?).ok()?;
        Some((value >> 1) as i32 ^ -((value & 1) as i32))
    }

    #[inline]
    fn varlong(&mut self) -> Option<i64> {
        let value = self.unsigned(10)?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Nearly all numbers of a record have a byte or two.
    #[inline]
    fn unsigned(&mut self, bytes_max: u32) -> Option<u64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(first.into());
        }
        let second = self.byte()?;
        let value = u64::from(first & 0x7f) | u64::from(second & 0x7f) << 7;
        if second < 0x80 { Some(value) } else { self.long(value, bytes_max) }
    }

    #[cold]
    #[inline(never)]
    fn long(&mut self, mut value: u64, bytes_max: u32) -> Option<u64> {
        for index in 2..bytes_max {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(7 * index).unwrap_or(0);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{BatchOptions, BatchView, RecordBatchBuilder, records::iterate};

    /// The same by the records themselves.
    fn one_by_one(header: &BatchHeader, body: &[u8]) -> Option<Survey> {
        let mut found: Option<Survey> = None;
        for (index, record) in iterate(header, body).enumerate() {
            let record = record.ok().filter(|record| record.offset.0 == index as i64)?;
            let before =
                found.unwrap_or(Survey { earliest: record.timestamp, latest: record.timestamp, all_have_keys: true });
            found = Some(Survey {
                earliest: before.earliest.min(record.timestamp),
                latest: before.latest.max(record.timestamp),
                all_have_keys: before.all_have_keys && record.key.is_some(),
            });
        }
        found
    }

    type Drawn = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

    fn record() -> impl Strategy<Value = Drawn> {
        // Small ones, so that a flip often hits a number.
        let small = || prop::collection::vec(any::<u8>(), 0..3);
        let bytes =
            || prop_oneof![40 => small(), 2 => prop::collection::vec(any::<u8>(), 0..90), 1 => Just(vec![7; 9_000])];
        let headers = prop::collection::vec((".{0,9}", prop::option::of(bytes())), 0..3);
        let time = prop_oneof![Just(-1_i64), 0..1_000_i64, Just(1_i64 << 40)];
        (time, prop::option::weighted(0.8, bytes()), prop::option::of(bytes()), headers)
    }

    proptest! {
        #[test]
        fn it_sees_what_a_look_at_each_record_sees_and_nothing_where_one_is_wrong(
            records in prop::collection::vec(record(), 1..20),
            wrong_offset in prop::option::weighted(0.2, 0..20_usize),
            count_off in prop_oneof![6 => Just(0), 1 => -2..3_i32],
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1..8_u8), 0..3),
            cut in prop_oneof![4 => Just(0_usize), 1 => 1..9_usize],
        ) {
            let mut builder = RecordBatchBuilder::new(BatchOptions::default());
            for (index, (time, key, value, headers)) in records.iter().enumerate() {
                let offset = index as i32 + i32::from(wrong_offset == Some(index));
                let headers = headers.iter().map(|(key, value)| (key.as_bytes(), value.as_deref()));
                builder.append_delta(offset, Timestamp(*time), key.as_deref(), value.as_deref(), headers);
            }
            let bytes = builder.build();
            let batch = BatchView::parse(&bytes).unwrap();
            let mut header = *batch.header();
            header.records_count += count_off;
            let mut body = batch.body().to_vec();
            for (at, flip) in flips {
                let at = at.index(body.len());
                body[at] ^= flip;
            }
            body.truncate(body.len() - cut.min(body.len()));
            prop_assert_eq!(survey(&header, &body), one_by_one(&header, &body));
        }
    }
}
