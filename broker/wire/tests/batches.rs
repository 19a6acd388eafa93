//! Batches as producers send them and as the log keeps them.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use gregor_types::{ErrorCode, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp};
use gregor_wire::{
    batch::{
        BatchError, BatchHeader, BatchOptions, BatchView, ControlRecordType, HEADER_BYTES_V2, ProduceError,
        ProduceRules, ProducerStamp, RecordBatchBuilder, TimestampType, TopicCompression, ValidatedBatch, crc32c,
        split_batches, validate_produced,
    },
    compression::CompressionType,
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const CODECS: [CompressionType; 5] = [
    CompressionType::None,
    CompressionType::Gzip,
    CompressionType::Snappy,
    CompressionType::Lz4,
    CompressionType::Zstd,
];

fn builder(compression: CompressionType) -> RecordBatchBuilder {
    let producer = ProducerStamp { id: ProducerId(7), epoch: ProducerEpoch(1), base_sequence: 40 };
    let mut builder = RecordBatchBuilder::new(BatchOptions {
        compression: compression.into(),
        producer: Some(producer),
        ..BatchOptions::default()
    });
    builder.append(NOW, Some(b"k1"), Some(b"v1"), &[("h", Some(b"x")), ("h", None)]);
    builder.append(NOW.plus_ms(-5), Some(b"k2"), None, &[]);
    builder.append(NOW.plus_ms(9), Some(b""), Some(&[b'z'; 300]), &[]);
    builder
}

/// Offset, timestamp, key, value and the number of headers.
type Record = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, usize);

fn records_of(bytes: &[u8]) -> Vec<Record> {
    let batch = BatchView::parse(bytes).unwrap();
    batch.check_crc().unwrap();
    let records = batch.records(1 << 20).unwrap();
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    records
        .iter()
        .map(|record| {
            let record = record.unwrap();
            (record.offset.0, record.timestamp.0, owned(record.key), owned(record.value), record.headers.len())
        })
        .collect()
}

fn whole(validated: &ValidatedBatch<'_>, base_offset: i64) -> Vec<u8> {
    let mut bytes = validated.stamped_header(Offset(base_offset), LeaderEpoch(3)).to_vec();
    bytes.extend_from_slice(validated.body());
    bytes
}

fn validate<'a>(bytes: &'a [u8], rules: &ProduceRules) -> Result<ValidatedBatch<'a>, ProduceError> {
    validate_produced(bytes, rules, NOW, &mut Vec::new())
}

/// Changes a batch's bytes and makes its checksum right again.
fn patched(mut bytes: Vec<u8>, at: usize, field: &[u8]) -> Vec<u8> {
    bytes[at..at + field.len()].copy_from_slice(field);
    let crc = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

#[test]
fn a_batch_reads_back_whatever_its_codec() {
    for codec in CODECS {
        let bytes = builder(codec).build();
        let header = BatchHeader::parse(&bytes).unwrap();
        assert_eq!((header.size as usize, header.records_count, header.last_offset()), (bytes.len(), 3, Offset(2)));
        assert_eq!((header.last_sequence(), header.max_timestamp), (42, NOW.plus_ms(9)));
        let records = records_of(&bytes);
        assert_eq!(records[0], (0, NOW.0, Some(b"k1".to_vec()), Some(b"v1".to_vec()), 2));
        assert_eq!(records[1], (1, NOW.0 - 5, Some(b"k2".to_vec()), None, 0));
        assert_eq!(records[2].3.as_ref().unwrap().len(), 300, "{codec}");
    }
    let bytes = builder(CompressionType::None).build();
    let batch = BatchView::parse(&bytes).unwrap();
    let records = batch.records(0).unwrap();
    let headers: Vec<_> = records.iter().next().unwrap().unwrap().headers.iter().collect();
    assert_eq!((headers[0].value, headers[1].value), (Some(&b"x"[..]), None));
}

#[test]
fn a_good_batch_passes_unchanged_but_for_offset_and_epoch() {
    for codec in CODECS {
        let bytes = builder(codec).build();
        let validated = validate(&bytes, &ProduceRules::default()).unwrap();
        let stored = whole(&validated, 1000);
        assert_eq!(stored[16..], bytes[16..], "{codec}: what the checksum covers is the producer's");
        let header = BatchHeader::parse(&stored).unwrap();
        assert_eq!((header.base_offset, header.leader_epoch), (Offset(1000), LeaderEpoch(3)));
        assert_eq!(records_of(&stored)[2].0, 1002);
    }
}

#[test]
fn log_append_time_is_stamped_and_the_checksum_made_anew() {
    let bytes = builder(CompressionType::Lz4).build();
    let rules = ProduceRules { timestamp_type: TimestampType::LogAppendTime, ..ProduceRules::default() };
    let stored = whole(&validate(&bytes, &rules).unwrap(), 5);
    let header = BatchHeader::parse(&stored).unwrap();
    assert_eq!((header.timestamp_type(), header.max_timestamp), (TimestampType::LogAppendTime, NOW));
    assert!(records_of(&stored).iter().all(|record| record.1 == NOW.0));
}

#[test]
fn a_wrong_max_timestamp_is_put_right() {
    let bytes = patched(builder(CompressionType::None).build().to_vec(), 35, &5_i64.to_be_bytes());
    let validated = validate(&bytes, &ProduceRules::default()).unwrap();
    assert_eq!(validated.header().max_timestamp, NOW.plus_ms(9));
    records_of(&whole(&validated, 0));
}

#[test]
fn a_topic_with_a_codec_of_its_own_gets_its_batches_compressed_anew() {
    for from in CODECS {
        for to in CODECS {
            let bytes = builder(from).build();
            let rules = ProduceRules { compression: TopicCompression::Fixed(to.into()), ..ProduceRules::default() };
            let validated = validate(&bytes, &rules).unwrap();
            let stored = whole(&validated, 0);
            let header = BatchHeader::parse(&stored).unwrap();
            assert_eq!(header.compression().unwrap(), to);
            assert_eq!((header.producer_id, header.base_sequence), (ProducerId(7), 40));
            assert_eq!(validated.size(), stored.len());
            assert_eq!(records_of(&stored), records_of(&bytes), "{from} to {to}");
        }
    }
}

#[test]
fn each_kind_of_bad_batch_gets_the_error_that_kafka_gives() {
    let good = || builder(CompressionType::None).build().to_vec();
    let code = |bytes: &[u8], rules: &ProduceRules| validate(bytes, rules).unwrap_err().error_code();
    let rules = ProduceRules::default();
    assert_eq!(code(&[], &rules), ErrorCode::InvalidRecord);
    assert_eq!(code(&[good(), good()].concat(), &rules), ErrorCode::InvalidRecord);
    assert_eq!(code(&good()[..80], &rules), ErrorCode::CorruptMessage);
    let mut flipped = good();
    flipped[90] ^= 1;
    assert_eq!(code(&flipped, &rules), ErrorCode::CorruptMessage);
    let mut old = good();
    old[16] = 1;
    assert!(matches!(validate(&old, &rules), Err(ProduceError::OldMagic(1))));
    let mut offset = good();
    offset[7] = 9;
    assert_eq!(code(&offset, &rules), ErrorCode::InvalidRecord);
    assert_eq!(code(&patched(good(), 57, &4_i32.to_be_bytes()), &rules), ErrorCode::InvalidRecord, "count");
    assert_eq!(code(&patched(good(), 57, &0_i32.to_be_bytes()), &rules), ErrorCode::InvalidRecord, "no records");
    assert_eq!(code(&patched(good(), 21, &(1_i16 << 5).to_be_bytes()), &rules), ErrorCode::InvalidRecord, "control");
    assert_eq!(code(&patched(good(), 21, &7_i16.to_be_bytes()), &rules), ErrorCode::InvalidRecord, "codec 7");
    assert_eq!(code(&patched(good(), 53, &(-1_i32).to_be_bytes()), &rules), ErrorCode::InvalidRecord, "sequence");
    assert_eq!(code(&patched(good(), 61, &[0x7f]), &rules), ErrorCode::InvalidRecord, "a record's length");
    let small = ProduceRules { max_message_bytes: 100, ..ProduceRules::default() };
    assert_eq!(code(&good(), &small), ErrorCode::MessageTooLarge);
    let zstd = builder(CompressionType::Zstd).build();
    let before_7 = ProduceRules { zstd_allowed: false, ..ProduceRules::default() };
    assert_eq!(code(&zstd, &before_7), ErrorCode::UnsupportedCompressionType);
    let control = RecordBatchBuilder::control_batch(
        Offset(0),
        LeaderEpoch(0),
        NOW,
        [(ControlRecordType::LeaderChange, &b""[..])],
    );
    assert_eq!(code(&control, &rules), ErrorCode::InvalidRecord);
}

#[test]
fn refused_records_are_named() {
    let mut builder = RecordBatchBuilder::new(BatchOptions::default());
    builder.append(NOW, Some(b"k"), Some(b"v"), &[]);
    builder.append(NOW, None, Some(b"v"), &[]);
    builder.append(NOW.plus_ms(3_600_001), Some(b"k"), Some(b"v"), &[]);
    let bytes = builder.build();
    let compacted = ProduceRules { compacted: true, timestamp_after_max_ms: i64::MAX, ..ProduceRules::default() };
    let error = validate(&bytes, &compacted).unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::InvalidRecord);
    assert_eq!(error.record_errors().iter().map(|error| error.batch_index).collect::<Vec<_>>(), [1]);
    let error = validate(&bytes, &ProduceRules::default()).unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::InvalidTimestamp);
    assert_eq!(error.record_errors()[0].batch_index, 2);
    let append_time = ProduceRules { timestamp_type: TimestampType::LogAppendTime, ..ProduceRules::default() };
    assert!(validate(&bytes, &append_time).is_ok(), "the producer's time does not count then");
    let old = ProduceRules { timestamp_before_max_ms: -1, timestamp_after_max_ms: i64::MAX, ..ProduceRules::default() };
    assert_eq!(validate(&bytes, &old).unwrap_err().error_code(), ErrorCode::InvalidTimestamp);
}

#[test]
fn a_small_batch_cannot_claim_the_memory_of_the_machine() {
    let mut builder =
        RecordBatchBuilder::new(BatchOptions { compression: CompressionType::Zstd.into(), ..BatchOptions::default() });
    builder.append(NOW, None, Some(&vec![0; 8 << 20]), &[]);
    let bytes = builder.build();
    assert!(bytes.len() < 4096);
    let rules = ProduceRules { decompressed_bytes_max: 1 << 20, ..ProduceRules::default() };
    let mut scratch = Vec::new();
    let error = validate_produced(&bytes, &rules, NOW, &mut scratch).unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::InvalidRecord);
    assert!(scratch.capacity() <= 4 << 20, "{}", scratch.capacity());
    // A header that counts two thousand million records in a hundred bytes.
    let claim = patched(self::builder(CompressionType::None).build().to_vec(), 57, &i32::MAX.to_be_bytes());
    let claim = patched(claim, 23, &(i32::MAX - 1).to_be_bytes());
    assert!(validate(&claim, &ProduceRules::default()).is_err());
}

#[test]
fn damaged_bytes_never_panic() {
    for codec in CODECS {
        let good = builder(codec).build().to_vec();
        for at in 0..good.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                let _ = validate(&bytes, &ProduceRules::default());
                // And with a checksum that is right, so that what is behind it is reached.
                if at >= 21 {
                    let byte = bytes[at];
                    let bytes = patched(bytes.clone(), at, &[byte]);
                    let _ = validate(&bytes, &ProduceRules::default());
                }
                if let Ok(batch) = BatchView::parse(&bytes)
                    && let Ok(records) = batch.records(1 << 20)
                {
                    for record in &records {
                        let _ = record;
                    }
                }
            }
        }
        for cut in 0..good.len() {
            assert!(matches!(BatchView::parse(&good[..cut]), Err(BatchError::Truncated { .. })), "{codec} {cut}");
        }
    }
}

#[test]
fn batches_are_split_and_a_cut_off_end_is_no_error() {
    let one = builder(CompressionType::None).build();
    let bytes = [&one[..], &one[..], &one[..HEADER_BYTES_V2 + 4]].concat();
    assert_eq!(split_batches(&bytes).map(Result::unwrap).count(), 2);
    let mut bad = bytes;
    bad[one.len() + 16] = 9;
    let results: Vec<_> = split_batches(&bad).map(|batch| batch.is_ok()).collect();
    assert_eq!(results, [true, false]);
}
