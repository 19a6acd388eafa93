//! Snappy in the framing of the xerial Java library, which all Kafka clients write, and bare blocks, which some old ones wrote.

use super::{CompressionError, CompressionType, malformed};

const MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const HEADER_BYTES: usize = 16;
const VERSION: u32 = 1;
/// Kafka's Java client cuts its input into blocks of this size.
const BLOCK_BYTES: usize = 32 * 1024;

pub(super) fn compress(input: &[u8], output: &mut Vec<u8>) -> Result<(), snap::Error> {
    output.extend_from_slice(&MAGIC);
    output.extend_from_slice(&VERSION.to_be_bytes());
    output.extend_from_slice(&VERSION.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    let mut block = vec![0; snap::raw::max_compress_len(input.len().min(BLOCK_BYTES))];
    for chunk in input.chunks(BLOCK_BYTES) {
        let len = encoder.compress(chunk, &mut block)?;
        output.extend_from_slice(&(len as u32).to_be_bytes());
        output.extend_from_slice(&block[..len]);
    }
    Ok(())
}

pub(super) fn decompress(mut input: &[u8], limit: usize, output: &mut Vec<u8>) -> Result<(), CompressionError> {
    let end = output.len().saturating_add(limit);
    if !input.starts_with(&MAGIC) {
        return block(input, end, limit, output);
    }
    while !input.is_empty() {
        // Streams can be joined: a header may stand wherever a block may.
        if input.starts_with(&MAGIC) {
            input = input.get(HEADER_BYTES..).ok_or_else(|| bad("its header is cut off"))?;
            continue;
        }
        let (len, rest) = input.split_first_chunk::<4>().ok_or_else(|| bad("a block's length is cut off"))?;
        let len = u32::from_be_bytes(*len) as usize;
        let (data, rest) = rest.split_at_checked(len).ok_or_else(|| bad("a block is longer than the data"))?;
        block(data, end, limit, output)?;
        input = rest;
    }
    Ok(())
}

fn block(data: &[u8], end: usize, limit: usize, output: &mut Vec<u8>) -> Result<(), CompressionError> {
    let len = snap::raw::decompress_len(data).map_err(|error| malformed(CompressionType::Snappy, error))?;
    let start = output.len();
    if len > end - start {
        return Err(CompressionError::TooLarge { limit });
    }
    // A snappy element of 3 bytes makes at most 64, so a longer claim is a lie and is not allocated.
    if len > data.len().saturating_mul(22) + 64 {
        return Err(bad("a block claims more than it can hold"));
    }
    output.resize(start + len, 0);
    snap::raw::Decoder::new()
        .decompress(data, &mut output[start..])
        .map_err(|error| malformed(CompressionType::Snappy, error))?;
    Ok(())
}

fn bad(reason: &str) -> CompressionError {
    malformed(CompressionType::Snappy, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_block_is_read_too() {
        let input = b"no frame around this, no frame at all".repeat(10);
        let packed = snap::raw::Encoder::new().compress_vec(&input).unwrap();
        let mut output = vec![];
        decompress(&packed, 1000, &mut output).unwrap();
        assert_eq!(output, input);
    }

    #[test]
    fn joined_streams_are_read_as_one() {
        let mut packed = vec![];
        compress(b"one ", &mut packed).unwrap();
        compress(b"two", &mut packed).unwrap();
        let mut output = vec![];
        decompress(&packed, 1000, &mut output).unwrap();
        assert_eq!(output, b"one two");
    }
}
