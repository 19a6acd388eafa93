//! Tagged fields that a message's own version does not know: kept, so that what passes through loses nothing (KIP-482).

use bytes::Bytes;

use crate::{EncodeError, Writer};

/// One tagged field, not interpreted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RawTag {
    /// The tag.
    pub tag: u32,
    /// The value's bytes.
    pub value: Bytes,
}

/// The unknown tagged fields of one struct; nearly always none, which costs no allocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct RawTags(Option<Box<[RawTag]>>);

impl RawTags {
    /// No unknown tagged field.
    pub const NONE: Self = Self(None);

    /// The fields in the order in which they were read.
    pub fn as_slice(&self) -> &[RawTag] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

impl From<Vec<RawTag>> for RawTags {
    fn from(tags: Vec<RawTag>) -> Self {
        Self(if tags.is_empty() { None } else { Some(tags.into_boxed_slice()) })
    }
}

/// Writes the tagged fields of one struct in the order of their tags, known and unknown ones merged.
#[derive(Debug)]
pub struct TagWriter<'a> {
    writer: &'a mut Writer,
    unknown: &'a [RawTag],
    count_at: usize,
    count: u32,
    next_tag: u32,
}

impl<'a> TagWriter<'a> {
    pub(crate) fn new(writer: &'a mut Writer, unknown: &'a RawTags) -> Self {
        let count_at = writer.len();
        Self { writer, unknown: unknown.as_slice(), count_at, count: 0, next_tag: 0 }
    }

    /// Writes a known field. Called in ascending order of tags.
    pub fn field(
        &mut self,
        tag: u32,
        write: impl FnOnce(&mut Writer) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        self.unknown_below(Some(tag))?;
        self.start(tag)?;
        let at = self.writer.len();
        write(self.writer)?;
        self.writer.insert_uvarint(at, (self.writer.len() - at) as u32);
        Ok(())
    }

    /// Writes the unknown fields that are left, and the count in front of all.
    pub fn finish(mut self) -> Result<(), EncodeError> {
        self.unknown_below(None)?;
        self.writer.insert_uvarint(self.count_at, self.count);
        Ok(())
    }

    fn unknown_below(&mut self, limit: Option<u32>) -> Result<(), EncodeError> {
        while let Some((first, rest)) = self.unknown.split_first()
            && limit.is_none_or(|limit| first.tag < limit)
        {
            self.unknown = rest;
            self.start(first.tag)?;
            self.writer.uvarint(first.value.len() as u32);
            self.writer.raw(&first.value);
        }
        Ok(())
    }

    fn start(&mut self, tag: u32) -> Result<(), EncodeError> {
        if tag < self.next_tag {
            return Err(EncodeError::TagOrder(tag));
        }
        self.next_tag = tag.saturating_add(1);
        self.count += 1;
        self.writer.uvarint(tag);
        Ok(())
    }
}
