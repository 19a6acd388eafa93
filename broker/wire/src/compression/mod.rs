//! The four codecs of record batches, and none: gzip, snappy, LZ4 and zstd, as Kafka's clients write them.
//!
//! Called by [`crate::batch`] to read and to build batches. A decompressor never trusts a length that it is told: output
//! grows as it is made and stops at the caller's limit, so a small batch cannot claim a machine's memory.

mod lz4;
mod snappy;

use std::{fmt, io::Read, io::Write, str::FromStr};

/// How the records of a batch are compressed; the numbers are bits 0 to 2 of the batch's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CompressionType {
    /// Not compressed.
    #[default]
    None,
    /// A gzip stream (RFC 1952).
    Gzip,
    /// Snappy blocks in the framing of the xerial Java library; a bare block is read too.
    Snappy,
    /// An LZ4 frame of independent blocks.
    Lz4,
    /// A zstd frame (RFC 8878).
    Zstd,
}

/// A codec and how hard it shall try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compression {
    /// The codec.
    pub kind: CompressionType,
    /// The codec's own level; Kafka's default for the codec where none is given.
    pub level: Option<i32>,
}

/// Why bytes could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The output would pass the caller's limit.
    #[error("decompressed records exceed the limit of {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The bytes are not what the codec writes.
    #[error("the {codec} data cannot be decompressed: {reason}")]
    Malformed {
        /// The codec.
        codec: CompressionType,
        /// What its library says.
        reason: String,
    },
    /// The attribute bits name no codec.
    #[error("compression codec {0} does not exist: Kafka has 0 (none), 1 (gzip), 2 (snappy), 3 (lz4) and 4 (zstd)")]
    UnknownCodec(i16),
}

/// A text that names no codec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no compression type: use none, gzip, snappy, lz4 or zstd")]
pub struct ParseCompressionTypeError(String);

/// Windows up to 128 MiB are read, which is what Kafka's Java library reads.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const OUTPUT_STEP_BYTES: usize = 16 * 1024;

impl CompressionType {
    /// The codec of a batch's attribute bits.
    pub const fn from_attributes(attributes: i16) -> Result<Self, CompressionError> {
        match attributes & 0x7 {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            other => Err(CompressionError::UnknownCodec(other)),
        }
    }

    /// The number in a batch's attributes.
    pub const fn id(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// Kafka's name of the codec.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl From<CompressionType> for Compression {
    fn from(kind: CompressionType) -> Self {
        Self { kind, level: None }
    }
}

impl fmt::Display for CompressionType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for CompressionType {
    type Err = ParseCompressionTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" | "uncompressed" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "snappy" => Ok(Self::Snappy),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            other => Err(ParseCompressionTypeError(other.chars().take(64).collect())),
        }
    }
}

/// Appends `input`, compressed, to `output`.
pub fn compress(compression: Compression, input: &[u8], output: &mut Vec<u8>) -> Result<(), CompressionError> {
    let codec = compression.kind;
    let failed = |error: std::io::Error| malformed(codec, error);
    match codec {
        CompressionType::None => output.extend_from_slice(input),
        CompressionType::Gzip => {
            let level = compression
                .level
                .and_then(|level| u32::try_from(level).ok())
                .map_or_else(flate2::Compression::default, |level| flate2::Compression::new(level.min(9)));
            let mut encoder = flate2::write::GzEncoder::new(output, level);
            encoder.write_all(input).map_err(failed)?;
            encoder.finish().map_err(failed)?;
        }
        CompressionType::Snappy => snappy::compress(input, output).map_err(|error| malformed(codec, error))?,
        CompressionType::Lz4 => lz4::compress(input, output).map_err(|error| malformed(codec, error))?,
        CompressionType::Zstd => {
            let level = compression.level.unwrap_or(zstd::DEFAULT_COMPRESSION_LEVEL);
            let mut encoder = zstd::Encoder::new(output, level).map_err(failed)?;
            encoder.set_pledged_src_size(Some(input.len() as u64)).map_err(failed)?;
            encoder.write_all(input).map_err(failed)?;
            encoder.finish().map_err(failed)?;
        }
    }
    Ok(())
}

/// Appends the decompressed `input` to `output`, at most `limit` bytes of it.
pub fn decompress(
    codec: CompressionType,
    input: &[u8],
    limit: usize,
    output: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    match codec {
        CompressionType::None if input.len() > limit => Err(CompressionError::TooLarge { limit }),
        CompressionType::None => {
            output.extend_from_slice(input);
            Ok(())
        }
        CompressionType::Gzip => drain(codec, flate2::read::MultiGzDecoder::new(input), limit, output),
        CompressionType::Snappy => snappy::decompress(input, limit, output),
        CompressionType::Lz4 => drain(codec, lz4_flex::frame::FrameDecoder::new(input), limit, output),
        CompressionType::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(input).map_err(|error| malformed(codec, error))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| malformed(codec, error))?;
            drain(codec, decoder, limit, output)
        }
    }
}

/// As [`decompress`], for a message of magic 0: its LZ4 frames carry a header checksum over the wrong bytes (KAFKA-3160).
pub(crate) fn decompress_magic_0(
    codec: CompressionType,
    input: &[u8],
    limit: usize,
    output: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    match codec {
        CompressionType::Lz4 => lz4::decompress_unchecked_header(input, limit, output),
        other => decompress(other, input, limit, output),
    }
}

fn drain(
    codec: CompressionType,
    mut decoder: impl Read,
    limit: usize,
    output: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    let start = output.len();
    loop {
        let written = output.len();
        output.resize(written + OUTPUT_STEP_BYTES, 0);
        let read = decoder.read(&mut output[written..]);
        output.truncate(written + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Ok(()),
            Ok(_) if output.len() - start > limit => return Err(CompressionError::TooLarge { limit }),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(malformed(codec, error)),
        }
    }
}

fn malformed(codec: CompressionType, reason: impl fmt::Display) -> CompressionError {
    CompressionError::Malformed { codec, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODECS: [CompressionType; 5] = [
        CompressionType::None,
        CompressionType::Gzip,
        CompressionType::Snappy,
        CompressionType::Lz4,
        CompressionType::Zstd,
    ];

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * i) >> 7) as u8).collect()
    }

    #[test]
    fn every_codec_gives_back_what_went_in() {
        for codec in CODECS {
            for len in [0, 1, 100, 32 * 1024, 300_000] {
                let input = sample(len);
                let (mut packed, mut output) = (vec![], vec![]);
                compress(codec.into(), &input, &mut packed).unwrap();
                decompress(codec, &packed, len, &mut output).unwrap();
                assert!(output == input, "{codec} {len}");
            }
        }
    }

    #[test]
    fn output_stops_at_the_limit() {
        for codec in CODECS {
            let (mut packed, mut output) = (vec![], vec![]);
            compress(codec.into(), &vec![0; 4 << 20], &mut packed).unwrap();
            let result = decompress(codec, &packed, 100_000, &mut output);
            assert!(matches!(result, Err(CompressionError::TooLarge { limit: 100_000 })), "{codec}: {result:?}");
            assert!(output.capacity() < 1 << 20, "{codec} grew to {}", output.capacity());
        }
    }

    #[test]
    fn damaged_data_is_an_error_and_never_a_panic() {
        for codec in &CODECS[1..] {
            let mut packed = vec![];
            compress((*codec).into(), &sample(10_000), &mut packed).unwrap();
            for cut in [0, 1, 5, 9, 17, packed.len() / 2] {
                let _ = decompress(*codec, &packed[..cut], 1 << 20, &mut vec![]);
            }
            for at in 0..packed.len().min(400) {
                let mut damaged = packed.clone();
                damaged[at] ^= 0x55;
                let _ = decompress(*codec, &damaged, 1 << 20, &mut vec![]);
            }
        }
    }
}
