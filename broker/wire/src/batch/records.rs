//! The records of a batch, one by one, borrowed from the batch or from its decompressed body.

use std::borrow::Cow;

use gregor_types::{Offset, Timestamp};

use super::{BatchError, BatchHeader, BatchView, TimestampType, legacy, legacy::LegacyIter, varint::Cursor};
use crate::compression::{CompressionType, decompress};

/// The records of one batch, decompressed.
#[derive(Debug)]
pub struct Records<'a> {
    header: BatchHeader,
    body: Cow<'a, [u8]>,
}

/// One record, in place.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    /// Its offset: the batch's base offset and the record's delta.
    pub offset: Offset,
    /// Its timestamp: the producer's, or the time of the append.
    pub timestamp: Timestamp,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; a record with a key and no value is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: HeadersView<'a>,
    /// Its size within the uncompressed batch, in bytes.
    pub size: usize,
}

/// The headers of a record, in place; every one was checked when the record was read.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadersView<'a> {
    bytes: &'a [u8],
    count: usize,
}

/// One header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderView<'a> {
    /// Its key, UTF-8 by agreement; Kafka does not check.
    pub key: &'a [u8],
    /// Its value.
    pub value: Option<&'a [u8]>,
}

/// Iterates over the records of a batch; the first error is the last item.
#[derive(Debug)]
pub struct RecordIter<'a>(Inner<'a>);

#[derive(Debug)]
enum Inner<'a> {
    V2(V2Iter<'a>),
    Legacy(LegacyIter<'a>),
}

#[derive(Debug)]
struct V2Iter<'a> {
    header: &'a BatchHeader,
    body: &'a [u8],
    position: usize,
    remaining: i32,
}

impl<'a> Records<'a> {
    pub(super) fn new(batch: &BatchView<'a>, limit: usize) -> Result<Self, BatchError> {
        let header = *batch.header();
        let body = if header.magic < 2 {
            legacy::body(batch, limit)?
        } else {
            match header.compression()? {
                CompressionType::None => Cow::Borrowed(batch.body()),
                codec => {
                    let mut body = Vec::new();
                    decompress(codec, batch.body(), limit, &mut body)?;
                    Cow::Owned(body)
                }
            }
        };
        Ok(Self { header, body })
    }

    /// The records from the first to the last.
    pub fn iter(&self) -> RecordIter<'_> {
        if self.header.magic < 2 {
            RecordIter(Inner::Legacy(LegacyIter::new(&self.header, &self.body)))
        } else {
            iterate(&self.header, &self.body)
        }
    }
}

impl<'a> IntoIterator for &'a Records<'_> {
    type Item = Result<RecordView<'a>, BatchError>;
    type IntoIter = RecordIter<'a>;

    fn into_iter(self) -> RecordIter<'a> {
        self.iter()
    }
}

/// Iterates over the uncompressed body of a batch of magic 2.
pub(super) fn iterate<'a>(header: &'a BatchHeader, body: &'a [u8]) -> RecordIter<'a> {
    RecordIter(Inner::V2(V2Iter { header, body, position: 0, remaining: header.records_count.max(0) }))
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<RecordView<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Inner::V2(records) => records.next(),
            Inner::Legacy(records) => records.next(),
        }
    }
}

impl<'a> V2Iter<'a> {
    fn next(&mut self) -> Option<Result<RecordView<'a>, BatchError>> {
        if self.remaining == 0 {
            let rest = self.body.len() - self.position;
            self.position = self.body.len();
            return (rest > 0).then_some(Err(BatchError::MalformedRecord("bytes are left after the last record")));
        }
        self.remaining -= 1;
        let record = self.record();
        if record.is_err() {
            self.remaining = 0;
            self.position = self.body.len();
        }
        Some(record)
    }

    fn record(&mut self) -> Result<RecordView<'a>, BatchError> {
        let start = self.position;
        let mut cursor = Cursor::new(self.body, start);
        let len = cursor.varint()?;
        let content_at = cursor.position();
        let content = cursor.take(len)?;
        self.position = cursor.position();

        let mut cursor = Cursor::new(content, 0);
        cursor.u8()?; // attributes, none of which is defined
        let timestamp_delta = cursor.varlong()?;
        let offset_delta = cursor.varint()?;
        let key = cursor.nullable_bytes()?;
        let value = cursor.nullable_bytes()?;
        let headers = Self::headers(content, &mut cursor)?;
        if cursor.position() != content.len() {
            return Err(BatchError::MalformedRecord("it is shorter than it says"));
        }
        let timestamp = match self.header.timestamp_type() {
            TimestampType::LogAppendTime => self.header.max_timestamp,
            TimestampType::CreateTime => self.header.base_timestamp.plus_ms(timestamp_delta),
        };
        Ok(RecordView {
            offset: self.header.base_offset.plus(offset_delta.into()),
            timestamp,
            key,
            value,
            headers,
            size: content_at - start + content.len(),
        })
    }

    fn headers(content: &'a [u8], cursor: &mut Cursor<'a>) -> Result<HeadersView<'a>, BatchError> {
        let count = cursor.varint()?;
        let start = cursor.position();
        let count = usize::try_from(count).map_err(|_| BatchError::MalformedRecord("its header count is negative"))?;
        if count > content.len() - start {
            return Err(BatchError::MalformedRecord("it has not so many headers"));
        }
        for _ in 0..count {
            read_header(cursor)?;
        }
        Ok(HeadersView { bytes: &content[start..cursor.position()], count })
    }
}

fn read_header<'a>(cursor: &mut Cursor<'a>) -> Result<HeaderView<'a>, BatchError> {
    let len = cursor.varint()?;
    let key = cursor.take(len)?;
    Ok(HeaderView { key, value: cursor.nullable_bytes()? })
}

impl<'a> HeadersView<'a> {
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers in their order; a key may come more than once.
    pub const fn iter(&self) -> HeadersIter<'a> {
        HeadersIter { bytes: self.bytes, position: 0, remaining: self.count }
    }
}

impl<'a> IntoIterator for &HeadersView<'a> {
    type Item = HeaderView<'a>;
    type IntoIter = HeadersIter<'a>;

    fn into_iter(self) -> HeadersIter<'a> {
        self.iter()
    }
}

/// Iterates over the headers of a record.
#[derive(Debug, Clone)]
pub struct HeadersIter<'a> {
    bytes: &'a [u8],
    position: usize,
    remaining: usize,
}

impl<'a> Iterator for HeadersIter<'a> {
    type Item = HeaderView<'a>;

    fn next(&mut self) -> Option<HeaderView<'a>> {
        self.remaining = self.remaining.checked_sub(1)?;
        let mut cursor = Cursor::new(self.bytes, self.position);
        let header = read_header(&mut cursor).expect("headers are checked when their record is read");
        self.position = cursor.position();
        Some(header)
    }
}
