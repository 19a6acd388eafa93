//! A borrowed position in a frame: what the hand-written views stand on.
//!
//! The same rules and limits as [`Reader`](crate::Reader), which hands out shared slices; this one hands out borrowed ones and
//! so costs no reference count. `broker/messages/tests/views.rs` compares the two on every input it can think of.

use gregor_types::{NotUtf8, Uuid};

use crate::{
    DecodeError, DecodeErrorKind,
    reader::{MAX_ARRAY_LENGTH, MAX_STRING_LENGTH, MAX_TAGS},
};

/// A position in a borrowed frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    data: &'a [u8],
    position: usize,
    flexible: bool,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(data: &'a [u8], flexible: bool) -> Self {
        Self { data, position: 0, flexible }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn error(&self, kind: DecodeErrorKind) -> DecodeError {
        DecodeError { offset: self.position, kind }
    }

    pub(crate) fn finish(&self) -> Result<(), DecodeError> {
        match self.data.len() - self.position {
            0 => Ok(()),
            left => Err(self.error(DecodeErrorKind::Trailing(left))),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.data[self.position..];
        let Some((taken, _)) = rest.split_at_checked(length) else {
            return Err(self.error(DecodeErrorKind::Truncated { needed: length, remaining: rest.len() }));
        };
        self.position += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("take gave exactly this many bytes"))
    }

    pub(crate) fn i8(&mut self) -> Result<i8, DecodeError> {
        self.array().map(i8::from_be_bytes)
    }

    pub(crate) fn i16(&mut self) -> Result<i16, DecodeError> {
        self.array().map(i16::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_be_bytes)
    }

    pub(crate) fn uuid(&mut self) -> Result<Uuid, DecodeError> {
        self.array().map(Uuid::from_bytes)
    }

    pub(crate) fn uvarint(&mut self) -> Result<u32, DecodeError> {
        let start = self.position;
        let mut value = 0u64;
        for index in 0..5 {
            let byte = self.array::<1>()?[0];
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || index == 0;
                return u32::try_from(value)
                    .ok()
                    .filter(|_| shortest)
                    .ok_or(DecodeError { offset: start, kind: DecodeErrorKind::OverlongVarint });
            }
        }
        Err(DecodeError { offset: start, kind: DecodeErrorKind::OverlongVarint })
    }

    fn compact_length(&mut self) -> Result<Option<usize>, DecodeError> {
        Ok((self.uvarint()? as usize).checked_sub(1))
    }

    pub(crate) fn string(&mut self) -> Result<&'a str, DecodeError> {
        self.nullable_string()?.ok_or_else(|| self.error(DecodeErrorKind::Null))
    }

    pub(crate) fn nullable_string(&mut self) -> Result<Option<&'a str>, DecodeError> {
        let length = if self.flexible { self.compact_length()? } else { usize::try_from(self.i16()?).ok() };
        let Some(length) = length else { return Ok(None) };
        if length > MAX_STRING_LENGTH {
            return Err(self.error(DecodeErrorKind::StringTooLong(length)));
        }
        let at = self.position;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map(Some).map_err(|error| {
            let bad = error.valid_up_to();
            DecodeError { offset: at + bad, kind: NotUtf8(bad).into() }
        })
    }

    pub(crate) fn nullable_bytes(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        let length = if self.flexible { self.compact_length()? } else { usize::try_from(self.i32()?).ok() };
        length.map(|length| self.take(length)).transpose()
    }

    pub(crate) fn array_length(&mut self, min_size: usize) -> Result<usize, DecodeError> {
        let at = self.position;
        let length = if self.flexible { self.compact_length()? } else { usize::try_from(self.i32()?).ok() };
        let length = length.ok_or_else(|| self.error(DecodeErrorKind::Null))?;
        let limit = ((self.data.len() - self.position) / min_size).min(MAX_ARRAY_LENGTH);
        if length > limit {
            let kind = DecodeErrorKind::ArrayTooLong { length: length as u64, limit: limit as u64 };
            return Err(DecodeError { offset: at, kind });
        }
        Ok(length)
    }

    /// Hands each tagged field to `known`, which returns whether it read it; the others are skipped.
    pub(crate) fn tags(
        &mut self,
        mut known: impl FnMut(u32, &mut Self) -> Result<bool, DecodeError>,
    ) -> Result<(), DecodeError> {
        if !self.flexible {
            return Ok(());
        }
        let count = self.uvarint()?;
        if count > MAX_TAGS {
            return Err(self.error(DecodeErrorKind::TooManyTags(count)));
        }
        for _ in 0..count {
            let tag = self.uvarint()?;
            let size = self.uvarint()? as usize;
            let start = self.position;
            self.take(size)?;
            let mut value = Self { data: &self.data[..start + size], position: start, flexible: true };
            if known(tag, &mut value)? && value.position != start + size {
                let unread = start + size - value.position;
                return Err(value.error(DecodeErrorKind::TagSize { tag, unread }));
            }
        }
        Ok(())
    }

    pub(crate) fn skip_tags(&mut self) -> Result<(), DecodeError> {
        self.tags(|_, _| Ok(false))
    }
}
