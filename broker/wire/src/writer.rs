//! Writes Kafka's primitive types: the counterpart of [`Reader`](crate::Reader).
//!
//! It appends to one buffer and never seeks, except that a size which stands before its value is put in once the value is there.

use bytes::{BufMut, Bytes, BytesMut};
use gregor_types::{KString, Uuid};

use crate::{DecodeError, Element, EncodeError, RawTags, Reader, Struct, TagWriter, reader::MAX_STRING_LENGTH};

/// A buffer that grows with what is written.
#[derive(Debug, Default)]
pub struct Writer {
    buffer: BytesMut,
}

macro_rules! numbers {
    ($($name:ident $type:ty),*) => {
        $(
            #[doc = concat!("A big-endian `", stringify!($type), "`.")]
            pub fn $name(&mut self, value: $type) {
                self.buffer.put_slice(&value.to_be_bytes());
            }
        )*
    };
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer with room for this many bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { buffer: BytesMut::with_capacity(capacity) }
    }

    /// Goes on in a buffer that exists.
    pub fn append_to(buffer: BytesMut) -> Self {
        Self { buffer }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// What has been written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer
    }

    /// The bytes, shared.
    pub fn into_bytes(self) -> Bytes {
        self.buffer.freeze()
    }

    /// The buffer.
    pub fn into_inner(self) -> BytesMut {
        self.buffer
    }

    /// Splits off what has been written; writing goes on behind it in the same memory.
    pub fn split(&mut self) -> Bytes {
        self.buffer.split().freeze()
    }

    /// Bytes as they are, without a length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.put_slice(bytes);
    }

    numbers!(i8 i8, i16 i16, i32 i32, i64 i64, u16 u16, u32 u32, f64 f64);

    /// A boolean: 1 or 0.
    pub fn bool(&mut self, value: bool) {
        self.i8(i8::from(value));
    }

    /// A 16-byte id.
    pub fn uuid(&mut self, id: Uuid) {
        self.raw(&id.to_bytes());
    }

    /// An unsigned variable-length number.
    pub fn uvarint(&mut self, value: u32) {
        let (bytes, length) = uvarint_bytes(u64::from(value));
        self.raw(&bytes[..length]);
    }

    /// A zigzag variable-length number of 32 bits.
    pub fn varint(&mut self, value: i32) {
        self.uvarint((value << 1 ^ value >> 31) as u32);
    }

    /// A zigzag variable-length number of 64 bits.
    pub fn varlong(&mut self, value: i64) {
        let (bytes, length) = uvarint_bytes((value << 1 ^ value >> 63) as u64);
        self.raw(&bytes[..length]);
    }

    /// Text with its length.
    pub fn string(&mut self, flexible: bool, value: &str) -> Result<(), EncodeError> {
        let length = value.len();
        if length > MAX_STRING_LENGTH {
            return Err(EncodeError::TooLong { length, limit: MAX_STRING_LENGTH });
        }
        if flexible {
            self.uvarint(length as u32 + 1);
        } else {
            self.i16(length as i16);
        }
        self.raw(value.as_bytes());
        Ok(())
    }

    /// Text or null.
    pub fn nullable_string(
        &mut self,
        flexible: bool,
        nullable: bool,
        field: &'static str,
        value: Option<&KString>,
    ) -> Result<(), EncodeError> {
        match value {
            Some(value) => self.string(flexible, value),
            None if !nullable => Err(EncodeError::Null { field }),
            None if flexible => {
                self.uvarint(0);
                Ok(())
            }
            None => {
                self.i16(-1);
                Ok(())
            }
        }
    }

    /// A blob with its length.
    pub fn bytes(&mut self, flexible: bool, value: &[u8]) -> Result<(), EncodeError> {
        self.length(flexible, value.len())?;
        self.raw(value);
        Ok(())
    }

    /// A blob or null.
    pub fn nullable_bytes(
        &mut self,
        flexible: bool,
        nullable: bool,
        field: &'static str,
        value: Option<&Bytes>,
    ) -> Result<(), EncodeError> {
        match value {
            Some(value) => self.bytes(flexible, value),
            None => self.null(flexible, nullable, field),
        }
    }

    /// An array of primitives.
    pub fn list<T: Element>(&mut self, flexible: bool, list: &[T]) -> Result<(), EncodeError> {
        self.length(flexible, list.len())?;
        list.iter().try_for_each(|element| element.write(self, flexible))
    }

    /// An array of primitives, or null.
    pub fn nullable_list<T: Element>(
        &mut self,
        flexible: bool,
        nullable: bool,
        field: &'static str,
        list: Option<&Vec<T>>,
    ) -> Result<(), EncodeError> {
        match list {
            Some(list) => self.list(flexible, list),
            None => self.null(flexible, nullable, field),
        }
    }

    /// An array of structs.
    pub fn structs<T: Struct>(&mut self, flexible: bool, version: i16, list: &[T]) -> Result<(), EncodeError> {
        self.length(flexible, list.len())?;
        list.iter().try_for_each(|element| element.write(self, version))
    }

    /// An array of structs, or null.
    pub fn nullable_structs<T: Struct>(
        &mut self,
        flexible: bool,
        nullable: bool,
        field: &'static str,
        version: i16,
        list: Option<&Vec<T>>,
    ) -> Result<(), EncodeError> {
        match list {
            Some(list) => self.structs(flexible, version, list),
            None => self.null(flexible, nullable, field),
        }
    }

    /// A struct behind a marker byte, or null.
    pub fn nullable_struct<T: Struct>(
        &mut self,
        nullable: bool,
        field: &'static str,
        version: i16,
        value: Option<&T>,
    ) -> Result<(), EncodeError> {
        match value {
            Some(value) => {
                self.i8(1);
                value.write(self, version)
            }
            None if nullable => {
                self.i8(-1);
                Ok(())
            }
            None => Err(EncodeError::Null { field }),
        }
    }

    /// A struct or null as the value of a tagged field.
    pub fn nullable_tagged_struct<T: Struct>(
        &mut self,
        nullable: bool,
        field: &'static str,
        version: i16,
        value: Option<&T>,
    ) -> Result<(), EncodeError> {
        match value {
            None if nullable => {
                self.uvarint(0);
                Ok(())
            }
            value => self.nullable_struct(nullable, field, version, value),
        }
    }

    /// The length of an array or blob.
    pub fn length(&mut self, flexible: bool, length: usize) -> Result<(), EncodeError> {
        let limit = i32::MAX as usize;
        if length > limit {
            return Err(EncodeError::TooLong { length, limit });
        }
        if flexible {
            self.uvarint(length as u32 + 1);
        } else {
            self.i32(length as i32);
        }
        Ok(())
    }

    fn null(&mut self, flexible: bool, nullable: bool, field: &'static str) -> Result<(), EncodeError> {
        if !nullable {
            return Err(EncodeError::Null { field });
        }
        if flexible {
            self.uvarint(0);
        } else {
            self.i32(-1);
        }
        Ok(())
    }

    /// Starts the tagged fields of a struct.
    pub fn tags<'a>(&'a mut self, unknown: &'a RawTags) -> TagWriter<'a> {
        TagWriter::new(self, unknown)
    }

    /// The tagged fields of a struct that has none of its own.
    pub fn raw_tags(&mut self, unknown: &RawTags) -> Result<(), EncodeError> {
        if unknown.is_empty() {
            self.i8(0);
            return Ok(());
        }
        TagWriter::new(self, unknown).finish()
    }

    /// Fails if a field is set that the version does not have.
    pub fn absent(set: bool, field: &'static str, version: i16) -> Result<(), EncodeError> {
        if set { Err(EncodeError::FieldNotInVersion { field, version }) } else { Ok(()) }
    }

    /// Puts a variable-length number in front of what was written since `at`.
    pub(crate) fn insert_uvarint(&mut self, at: usize, value: u32) {
        let (bytes, length) = uvarint_bytes(u64::from(value));
        let end = self.buffer.len();
        self.buffer.put_bytes(0, length);
        self.buffer.copy_within(at..end, at + length);
        self.buffer[at..at + length].copy_from_slice(&bytes[..length]);
    }
}

fn uvarint_bytes(mut value: u64) -> ([u8; 10], usize) {
    let mut bytes = [0; 10];
    let mut length = 0;
    while value >= 0x80 {
        bytes[length] = value as u8 | 0x80;
        value >>= 7;
        length += 1;
    }
    bytes[length] = value as u8;
    (bytes, length + 1)
}

macro_rules! element_numbers {
    ($($type:ty, $name:ident, $size:literal);*) => {
        $(impl Element for $type {
            const MIN_SIZE: usize = $size;
            fn read(reader: &mut Reader, _flexible: bool) -> Result<Self, DecodeError> {
                reader.$name()
            }
            fn write(&self, writer: &mut Writer, _flexible: bool) -> Result<(), EncodeError> {
                writer.$name(*self);
                Ok(())
            }
        })*
    };
}

element_numbers!(i8, i8, 1; i16, i16, 2; i32, i32, 4; i64, i64, 8; Uuid, uuid, 16);

impl Element for KString {
    const MIN_SIZE: usize = 1;
    fn read(reader: &mut Reader, flexible: bool) -> Result<Self, DecodeError> {
        reader.string(flexible)
    }
    fn write(&self, writer: &mut Writer, flexible: bool) -> Result<(), EncodeError> {
        writer.string(flexible, self)
    }
}
