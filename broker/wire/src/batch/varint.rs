//! Zigzag varints, as records carry them (protobuf's encoding; at most 5 bytes for 32 bits, 10 for 64).

use super::BatchError;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    pub(super) const fn position(&self) -> usize {
        self.position
    }

    pub(super) fn u8(&mut self) -> Result<u8, BatchError> {
        let byte = *self.bytes.get(self.position).ok_or(BatchError::MalformedRecord("it is cut off"))?;
        self.position += 1;
        Ok(byte)
    }

    pub(super) fn varint(&mut self) -> Result<i32, BatchError> {
        let value = self.unsigned(5)?;
        let value = u32::try_from(value).map_err(|_| BatchError::MalformedRecord("a varint does not fit 32 bits"))?;
        Ok((value >> 1) as i32 ^ -((value & 1) as i32))
    }

    pub(super) fn varlong(&mut self) -> Result<i64, BatchError> {
        let value = self.unsigned(10)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Bytes behind their varint length; -1 is null.
    pub(super) fn nullable_bytes(&mut self) -> Result<Option<&'a [u8]>, BatchError> {
        match self.varint()? {
            -1 => Ok(None),
            len => self.take(len).map(Some),
        }
    }

    pub(super) fn take(&mut self, len: i32) -> Result<&'a [u8], BatchError> {
        let len = usize::try_from(len).map_err(|_| BatchError::MalformedRecord("a length is negative"))?;
        let end = self.position.checked_add(len).ok_or(BatchError::MalformedRecord("a length is too large"))?;
        let taken = self.bytes.get(self.position..end).ok_or(BatchError::MalformedRecord("a length passes its end"))?;
        self.position = end;
        Ok(taken)
    }

    fn unsigned(&mut self, bytes_max: u32) -> Result<u64, BatchError> {
        let mut value = 0;
        for index in 0..bytes_max {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f).checked_shl(7 * index).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BatchError::MalformedRecord("a varint is too long"))
    }
}

pub(super) fn put_varint(value: i32, output: &mut Vec<u8>) {
    put_unsigned(u64::from(((value << 1) ^ (value >> 31)) as u32), output);
}

pub(super) fn put_varlong(value: i64, output: &mut Vec<u8>) {
    put_unsigned(((value << 1) ^ (value >> 63)) as u64, output);
}

pub(super) fn put_nullable_bytes(bytes: Option<&[u8]>, output: &mut Vec<u8>) {
    match bytes {
        None => put_varint(-1, output),
        Some(bytes) => {
            put_varint(bytes.len() as i32, output);
            output.extend_from_slice(bytes);
        }
    }
}

/// How many bytes [`put_varint`] writes.
pub(super) const fn varint_len(value: i32) -> usize {
    unsigned_len(((value << 1) ^ (value >> 31)) as u32 as u64)
}

/// How many bytes [`put_varlong`] writes.
pub(super) const fn varlong_len(value: i64) -> usize {
    unsigned_len(((value << 1) ^ (value >> 63)) as u64)
}

const fn unsigned_len(value: u64) -> usize {
    let bits = 64 - value.leading_zeros() as usize;
    if bits == 0 { 1 } else { bits.div_ceil(7) }
}

fn put_unsigned(mut value: u64, output: &mut Vec<u8>) {
    while value >= 0x80 {
        output.push(value as u8 | 0x80);
        value >>= 7;
    }
    output.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_their_length_is_foretold() {
        for value in [0, -1, 1, 63, 64, -64, -65, 8191, 8192, i32::MAX, i32::MIN] {
            let mut bytes = vec![];
            put_varint(value, &mut bytes);
            assert_eq!(bytes.len(), varint_len(value), "{value}");
            assert_eq!(Cursor::new(&bytes, 0).varint().unwrap(), value);
        }
        for value in [0, -1, i64::from(i32::MAX) + 1, i64::MAX, i64::MIN] {
            let mut bytes = vec![];
            put_varlong(value, &mut bytes);
            assert_eq!(bytes.len(), varlong_len(value), "{value}");
            assert_eq!(Cursor::new(&bytes, 0).varlong().unwrap(), value);
        }
    }

    #[test]
    fn a_varint_without_an_end_is_refused() {
        assert!(Cursor::new(&[0xff; 20], 0).varint().is_err());
        assert!(Cursor::new(&[0xff; 20], 0).varlong().is_err());
        assert!(Cursor::new(&[0xff, 0xff, 0xff, 0xff, 0x7f], 0).varint().is_err());
    }
}
