//! Reads Kafka's primitive types from a frame, in place.
//!
//! Every decoder stands on it. Strings and blobs are slices of the frame, not copies. It never allocates from a length that
//! the peer claims: an array's length is checked against what the rest of the frame can hold, and its capacity grows as
//! elements really arrive.

use bytes::Bytes;
use gregor_types::{KString, Uuid};

use crate::{DecodeError, DecodeErrorKind, RawTag, RawTags, Struct};

/// No array has more elements, whatever the frame's size.
pub const MAX_ARRAY_LENGTH: usize = 1_000_000;
/// The longest string, in bytes.
pub const MAX_STRING_LENGTH: usize = i16::MAX as usize;
/// The most tagged fields of one struct.
pub const MAX_TAGS: u32 = 10_000;
/// What an array's capacity is at most before its elements have been seen.
const INITIAL_CAPACITY: usize = 1_024;

/// A position in a frame.
#[derive(Debug, Clone)]
pub struct Reader {
    data: Bytes,
    position: usize,
    end: usize,
}

/// A type that an array can have as an element without being a struct.
pub trait Element: Sized {
    /// The fewest bytes that one value takes.
    const MIN_SIZE: usize;
    /// Reads one value.
    fn read(reader: &mut Reader, flexible: bool) -> Result<Self, DecodeError>;
    /// Writes one value.
    fn write(&self, writer: &mut crate::Writer, flexible: bool) -> Result<(), crate::EncodeError>;
}

macro_rules! numbers {
    ($($name:ident $type:ty),*) => {
        $(
            #[doc = concat!("A big-endian `", stringify!($type), "`.")]
            pub fn $name(&mut self) -> Result<$type, DecodeError> {
                const SIZE: usize = size_of::<$type>();
                let bytes = self.need(SIZE)?;
                let value = <$type>::from_be_bytes(bytes.try_into().expect("need gave exactly this many bytes"));
                self.position += SIZE;
                Ok(value)
            }
        )*
    };
}

impl Reader {
    /// A reader at the start of a frame.
    pub fn new(data: Bytes) -> Self {
        let end = data.len();
        Self { data, position: 0, end }
    }

    /// Where the next value starts.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.end - self.position
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// An error at the present position.
    pub fn error(&self, kind: DecodeErrorKind) -> DecodeError {
        DecodeError { offset: self.position, kind }
    }

    /// Fails if anything is left.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(self.error(DecodeErrorKind::Trailing(left))),
        }
    }

    /// All that is left, as a slice of the frame.
    pub fn rest(&mut self) -> Bytes {
        let rest = self.data.slice(self.position..self.end);
        self.position = self.end;
        rest
    }

    numbers!(i8 i8, i16 i16, i32 i32, i64 i64, u16 u16, u32 u32, f64 f64);

    /// A boolean: any byte but 0 is true, as in Kafka.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        Ok(self.i8()? != 0)
    }

    /// A 16-byte id.
    pub fn uuid(&mut self) -> Result<Uuid, DecodeError> {
        let bytes = self.need(16)?;
        let id = Uuid::from_bytes(bytes.try_into().expect("need gave exactly 16 bytes"));
        self.position += 16;
        Ok(id)
    }

    /// An unsigned variable-length number of at most 32 bits, in its shortest form.
    pub fn uvarint(&mut self) -> Result<u32, DecodeError> {
        let value = self.unsigned(5)?;
        u32::try_from(value).map_err(|_| self.error(DecodeErrorKind::OverlongVarint))
    }

    /// A zigzag variable-length number of at most 32 bits.
    pub fn varint(&mut self) -> Result<i32, DecodeError> {
        let raw = self.uvarint()?;
        Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
    }

    /// A zigzag variable-length number of at most 64 bits.
    pub fn varlong(&mut self) -> Result<i64, DecodeError> {
        let raw = self.unsigned(10)?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    fn unsigned(&mut self, most_bytes: usize) -> Result<u64, DecodeError> {
        let window = &self.data[self.position..self.end];
        let mut value = 0u64;
        for (index, &byte) in window.iter().take(most_bytes).enumerate() {
            let bits = u64::from(byte & 0x7f);
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                let lost_bits = index == 9 && bits > 1;
                if lost_bits || (byte == 0 && index > 0) {
                    return Err(self.error(DecodeErrorKind::OverlongVarint));
                }
                self.position += index + 1;
                return Ok(value);
            }
        }
        let kind = if window.len() < most_bytes {
            DecodeErrorKind::Truncated { needed: window.len() + 1, remaining: window.len() }
        } else {
            DecodeErrorKind::OverlongVarint
        };
        Err(self.error(kind))
    }

    /// Text; null is an error.
    pub fn string(&mut self, flexible: bool) -> Result<KString, DecodeError> {
        self.nullable_string(flexible, false)?.ok_or_else(|| self.error(DecodeErrorKind::Null))
    }

    /// Text or null.
    pub fn nullable_string(&mut self, flexible: bool, nullable: bool) -> Result<Option<KString>, DecodeError> {
        let length = if flexible { self.compact_length()? } else { signed_length(i64::from(self.i16()?)) };
        let Some(length) = self.value_or_null(length, nullable)? else { return Ok(None) };
        if length > MAX_STRING_LENGTH {
            return Err(self.error(DecodeErrorKind::StringTooLong(length)));
        }
        let at = self.position;
        let bytes = self.take(length)?;
        KString::from_utf8(bytes).map(Some).map_err(|error| DecodeError { offset: at + error.0, kind: error.into() })
    }

    /// A blob as a slice of the frame; null is an error.
    pub fn bytes(&mut self, flexible: bool) -> Result<Bytes, DecodeError> {
        self.nullable_bytes(flexible, false)?.ok_or_else(|| self.error(DecodeErrorKind::Null))
    }

    /// A blob or null.
    pub fn nullable_bytes(&mut self, flexible: bool, nullable: bool) -> Result<Option<Bytes>, DecodeError> {
        let length = self.length(flexible)?;
        match self.value_or_null(length, nullable)? {
            None => Ok(None),
            Some(length) => self.take(length).map(Some),
        }
    }

    /// An array of primitives; null is an error.
    pub fn list<T: Element>(&mut self, flexible: bool) -> Result<Vec<T>, DecodeError> {
        self.nullable_list(flexible, false)?.ok_or_else(|| self.error(DecodeErrorKind::Null))
    }

    /// An array of primitives, or null.
    pub fn nullable_list<T: Element>(&mut self, flexible: bool, nullable: bool) -> Result<Option<Vec<T>>, DecodeError> {
        let Some(length) = self.array_length(flexible, nullable, T::MIN_SIZE)? else { return Ok(None) };
        let mut list = Vec::with_capacity(length.min(INITIAL_CAPACITY));
        for _ in 0..length {
            list.push(T::read(self, flexible)?);
        }
        Ok(Some(list))
    }

    /// An array of structs; null is an error.
    pub fn structs<T: Struct>(&mut self, flexible: bool, version: i16) -> Result<Vec<T>, DecodeError> {
        self.nullable_structs(flexible, false, version)?.ok_or_else(|| self.error(DecodeErrorKind::Null))
    }

    /// An array of structs, or null.
    pub fn nullable_structs<T: Struct>(
        &mut self,
        flexible: bool,
        nullable: bool,
        version: i16,
    ) -> Result<Option<Vec<T>>, DecodeError> {
        let Some(length) = self.array_length(flexible, nullable, T::MIN_SIZE)? else { return Ok(None) };
        // A capacity in bytes, so that large structs do not multiply what a small frame may claim.
        let most = (64 * 1_024 / size_of::<T>().max(1)).clamp(1, INITIAL_CAPACITY);
        let mut list = Vec::with_capacity(length.min(most));
        for _ in 0..length {
            list.push(T::read(self, version)?);
        }
        Ok(Some(list))
    }

    /// A struct behind a marker byte, or null.
    pub fn nullable_struct<T: Struct>(&mut self, nullable: bool, version: i16) -> Result<Option<T>, DecodeError> {
        let at = self.position;
        if self.i8()? < 0 {
            return if nullable { Ok(None) } else { Err(DecodeError { offset: at, kind: DecodeErrorKind::Null }) };
        }
        T::read(self, version).map(Some)
    }

    /// A struct or null as the value of a tagged field: there Kafka writes 1 or 0 as a variable-length number in front.
    pub fn nullable_tagged_struct<T: Struct>(
        &mut self,
        nullable: bool,
        version: i16,
    ) -> Result<Option<T>, DecodeError> {
        let at = self.position;
        if self.uvarint()? == 0 {
            return if nullable { Ok(None) } else { Err(DecodeError { offset: at, kind: DecodeErrorKind::Null }) };
        }
        T::read(self, version).map(Some)
    }

    /// The length of an array, checked against the limit and against what the rest of the frame can hold.
    pub fn array_length(
        &mut self,
        flexible: bool,
        nullable: bool,
        min_size: usize,
    ) -> Result<Option<usize>, DecodeError> {
        let at = self.position;
        let length = self.length(flexible)?;
        let Some(length) = self.value_or_null(length, nullable)? else { return Ok(None) };
        let limit = (self.remaining() / min_size.max(1)).min(MAX_ARRAY_LENGTH);
        if length > limit {
            let kind = DecodeErrorKind::ArrayTooLong { length: length as u64, limit: limit as u64 };
            return Err(DecodeError { offset: at, kind });
        }
        Ok(Some(length))
    }

    /// The tagged fields of a struct. `known` reads the ones it knows and returns false for the others, which are kept.
    pub fn tags(
        &mut self,
        mut known: impl FnMut(&mut Self, u32) -> Result<bool, DecodeError>,
    ) -> Result<RawTags, DecodeError> {
        let count = self.uvarint()?;
        if count == 0 {
            return Ok(RawTags::NONE);
        }
        if count > MAX_TAGS {
            return Err(self.error(DecodeErrorKind::TooManyTags(count)));
        }
        let mut unknown = Vec::new();
        for _ in 0..count {
            let tag = self.uvarint()?;
            let size = self.uvarint()? as usize;
            self.need(size)?;
            let (start, outer_end) = (self.position, self.end);
            self.end = start + size;
            if known(self, tag)? {
                if !self.is_empty() {
                    return Err(self.error(DecodeErrorKind::TagSize { tag, unread: self.remaining() }));
                }
            } else {
                unknown.push(RawTag { tag, value: self.data.slice(start..start + size) });
                self.position = start + size;
            }
            self.end = outer_end;
        }
        Ok(unknown.into())
    }

    /// The tagged fields of a struct that has none of its own: all are kept.
    pub fn raw_tags(&mut self) -> Result<RawTags, DecodeError> {
        self.tags(|_, _| Ok(false))
    }

    /// The next bytes as a slice of the frame.
    pub fn take(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        self.need(length)?;
        let slice = self.data.slice(self.position..self.position + length);
        self.position += length;
        Ok(slice)
    }

    fn need(&self, length: usize) -> Result<&[u8], DecodeError> {
        let remaining = self.remaining();
        if length > remaining {
            return Err(self.error(DecodeErrorKind::Truncated { needed: length, remaining }));
        }
        Ok(&self.data[self.position..self.position + length])
    }

    fn length(&mut self, flexible: bool) -> Result<Option<usize>, DecodeError> {
        if flexible { self.compact_length() } else { Ok(signed_length(i64::from(self.i32()?))) }
    }

    fn compact_length(&mut self) -> Result<Option<usize>, DecodeError> {
        Ok((self.uvarint()? as usize).checked_sub(1))
    }

    fn value_or_null(&self, length: Option<usize>, nullable: bool) -> Result<Option<usize>, DecodeError> {
        if length.is_none() && !nullable { Err(self.error(DecodeErrorKind::Null)) } else { Ok(length) }
    }
}

/// Kafka reads any negative length as null.
fn signed_length(length: i64) -> Option<usize> {
    usize::try_from(length).ok()
}
