//! LZ4 frames as Kafka writes them: independent blocks of 64 KiB, neither content size nor checksums.
//!
//! Messages of magic 0 have a wrong header checksum, which the frame decoder rightly refuses; they get a reader of their own.

use std::io::{self, Write};

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

use super::{CompressionError, CompressionType, malformed};

const FRAME_MAGIC: u32 = 0x184D_2204;
const UNCOMPRESSED_BLOCK: u32 = 1 << 31;
const FLAG_BLOCK_CHECKSUM: u8 = 1 << 4;
const FLAG_CONTENT_SIZE: u8 = 1 << 3;

pub(super) fn compress(input: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
    let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, output);
    encoder.write_all(input)?;
    encoder.finish().map_err(io::Error::other)?;
    Ok(())
}

/// Reads a frame of independent blocks and does not look at its header checksum.
pub(super) fn decompress_unchecked_header(
    input: &[u8],
    limit: usize,
    output: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    let start = output.len();
    let (magic, rest) = split_u32(input)?;
    let (&[flags, descriptor], mut rest) = rest.split_first_chunk::<2>().ok_or_else(|| bad("its header is cut off"))?;
    if magic != FRAME_MAGIC {
        return Err(bad("it does not start as an LZ4 frame does"));
    }
    let block_bytes_max = match descriptor >> 4 & 0x7 {
        4 => 64 << 10,
        5 => 256 << 10,
        6 => 1 << 20,
        7 => 4 << 20,
        _ => return Err(bad("its block size is not defined")),
    };
    let header_rest = if flags & FLAG_CONTENT_SIZE == 0 { 1 } else { 9 };
    rest = rest.get(header_rest..).ok_or_else(|| bad("its header is cut off"))?;
    loop {
        let (word, after) = split_u32(rest)?;
        if word == 0 {
            return Ok(());
        }
        let len = (word & !UNCOMPRESSED_BLOCK) as usize;
        let (block, after) = after.split_at_checked(len).ok_or_else(|| bad("a block is longer than the data"))?;
        if word & UNCOMPRESSED_BLOCK == 0 {
            let written = output.len();
            output.resize(written + block_bytes_max, 0);
            let len = lz4_flex::block::decompress_into(block, &mut output[written..])
                .map_err(|error| malformed(CompressionType::Lz4, error))?;
            output.truncate(written + len);
        } else {
            output.extend_from_slice(block);
        }
        if output.len() - start > limit {
            return Err(CompressionError::TooLarge { limit });
        }
        rest = if flags & FLAG_BLOCK_CHECKSUM == 0 { after } else { split_u32(after)?.1 };
    }
}

fn split_u32(input: &[u8]) -> Result<(u32, &[u8]), CompressionError> {
    let (word, rest) = input.split_first_chunk::<4>().ok_or_else(|| bad("it is cut off"))?;
    Ok((u32::from_le_bytes(*word), rest))
}

fn bad(reason: &str) -> CompressionError {
    malformed(CompressionType::Lz4, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_with_a_wrong_header_checksum_is_read_when_asked() {
        let input = b"written by a client of 2015 ".repeat(9000);
        let mut packed = vec![];
        compress(&input, &mut packed).unwrap();
        packed[6] ^= 0xff;
        assert!(crate::compression::decompress(CompressionType::Lz4, &packed, 1 << 20, &mut vec![]).is_err());
        let mut output = vec![];
        decompress_unchecked_header(&packed, 1 << 20, &mut output).unwrap();
        assert!(output == input);
    }
}
