//! Kafka's primitive types: exact bytes, and what is refused.

use bytes::Bytes;
use gregor_types::{KString, Uuid};
use gregor_wire::{
    DecodeError, DecodeErrorKind, EncodeError, Message, RawTag, RawTags, Reader, RequestHeader, ResponseHeader, Writer,
};

fn reader(bytes: &[u8]) -> Reader {
    Reader::new(Bytes::copy_from_slice(bytes))
}

fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::new();
    write(&mut writer);
    writer.into_bytes().to_vec()
}

fn kind<T: std::fmt::Debug>(result: Result<T, DecodeError>) -> DecodeErrorKind {
    result.expect_err("the bytes are refused").kind
}

#[test]
fn variable_length_numbers_have_kafka_s_bytes() {
    for (value, bytes) in [
        (0, &[0][..]),
        (127, &[0x7f]),
        (128, &[0x80, 0x01]),
        (300, &[0xac, 0x02]),
        (u32::MAX, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
    ] {
        assert_eq!(written(|writer| writer.uvarint(value)), bytes);
        assert_eq!(reader(bytes).uvarint(), Ok(value));
    }
    for value in [0, -1, 1, 63, -64, 64, i32::MIN, i32::MAX] {
        assert_eq!(reader(&written(|writer| writer.varint(value))).varint(), Ok(value));
    }
    for value in [0, -1, 1, i64::MIN, i64::MAX, 1 << 40] {
        assert_eq!(reader(&written(|writer| writer.varlong(value))).varlong(), Ok(value));
    }
    assert_eq!(written(|writer| writer.varint(-1)), [1]);
}

#[test]
fn over_long_variable_length_numbers_are_refused() {
    for bytes in
        [&[0x80, 0x00][..], &[0x81, 0x80, 0x00], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x01]]
    {
        assert_eq!(kind(reader(bytes).uvarint()), DecodeErrorKind::OverlongVarint, "{bytes:02x?}");
    }
    let eleven = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
    assert_eq!(kind(reader(&eleven).varlong()), DecodeErrorKind::OverlongVarint);
    let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
    assert_eq!(kind(reader(&too_large).varlong()), DecodeErrorKind::OverlongVarint);
    assert!(matches!(kind(reader(&[0x80]).uvarint()), DecodeErrorKind::Truncated { .. }));
}

#[test]
fn text_is_a_slice_of_the_frame_and_not_a_copy() {
    let frame = Bytes::from_static(b"\x00\x05hello");
    let text: KString = Reader::new(frame.clone()).string(false).unwrap();
    assert_eq!(text, "hello");
    assert_eq!(text.as_str().as_ptr(), frame[2..].as_ptr());
}

#[test]
fn text_that_is_null_too_long_cut_off_or_not_utf8_is_refused_with_its_place() {
    assert_eq!(kind(reader(&[0xff, 0xff]).string(false)), DecodeErrorKind::Null);
    assert_eq!(kind(reader(&[0]).string(true)), DecodeErrorKind::Null);
    assert_eq!(reader(&[0]).nullable_string(true, true), Ok(None));
    assert_eq!(kind(reader(&[0]).nullable_string(true, false)), DecodeErrorKind::Null);
    let long = written(|writer| writer.uvarint(32_769));
    assert_eq!(kind(reader(&long).string(true)), DecodeErrorKind::StringTooLong(32_768));
    let cut = DecodeErrorKind::Truncated { needed: 3, remaining: 2 };
    assert_eq!(reader(b"\x04ab").string(true), Err(DecodeError { offset: 1, kind: cut }));
    let error = reader(b"\x04a\xffb").string(true).unwrap_err();
    assert_eq!((error.offset, matches!(error.kind, DecodeErrorKind::NotUtf8(_))), (2, true));
}

#[test]
fn an_array_cannot_claim_more_than_the_frame_can_hold() {
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend([0; 8]);
    let error = reader(&bytes).list::<i32>(false).unwrap_err();
    assert_eq!(error, DecodeError { offset: 0, kind: DecodeErrorKind::ArrayTooLong { length: 3, limit: 2 } });
    bytes[3] = 2;
    assert_eq!(reader(&bytes).list::<i32>(false), Ok(vec![0, 0]));

    let mut million = vec![0, 0x0f, 0x42, 0x41];
    million.resize(4 + 2_000_000, 0);
    let limit = DecodeErrorKind::ArrayTooLong { length: 1_000_001, limit: 1_000_000 };
    assert_eq!(kind(reader(&million).list::<i8>(false)), limit);
}

#[test]
fn unknown_tagged_fields_are_kept_and_merged_with_known_ones_by_tag() {
    let unknown = RawTags::from(vec![
        RawTag { tag: 1, value: Bytes::from_static(b"a") },
        RawTag { tag: 200, value: Bytes::from_static(b"") },
    ]);
    let bytes = written(|writer| {
        let mut tags = writer.tags(&unknown);
        tags.field(0, |writer| writer.string(true, "x")).unwrap();
        tags.field(2, |writer| {
            writer.i8(7);
            Ok(())
        })
        .unwrap();
        tags.finish().unwrap();
    });
    assert_eq!(bytes, [4, 0, 2, 2, b'x', 1, 1, b'a', 2, 1, 7, 0xc8, 0x01, 0]);

    let (mut text, mut number) = (KString::default(), 0);
    let mut reader = reader(&bytes);
    let kept = reader
        .tags(|reader, tag| {
            match tag {
                0 => text = reader.string(true)?,
                2 => number = reader.i8()?,
                _ => return Ok(false),
            }
            Ok(true)
        })
        .unwrap();
    assert_eq!((text.as_str(), number, kept, reader.remaining()), ("x", 7, unknown, 0));
}

#[test]
fn tagged_fields_that_lie_about_their_size_or_number_are_refused() {
    let known = |reader: &mut Reader, _| reader.i8().map(|_| true);
    assert_eq!(kind(reader(&[1, 0, 2, 5, 5]).tags(known)), DecodeErrorKind::TagSize { tag: 0, unread: 1 });
    assert!(matches!(kind(reader(&[1, 0, 0, 5]).tags(known)), DecodeErrorKind::Truncated { remaining: 0, .. }));
    assert!(matches!(kind(reader(&[1, 9, 4, 5]).raw_tags()), DecodeErrorKind::Truncated { .. }));
    assert_eq!(kind(reader(&[0x91, 0x4e]).raw_tags()), DecodeErrorKind::TooManyTags(10_001));
}

#[test]
fn unknown_tagged_fields_out_of_order_are_not_written() {
    let value = Bytes::new();
    let twice = RawTags::from(vec![RawTag { tag: 3, value: value.clone() }, RawTag { tag: 3, value }]);
    assert_eq!(Writer::new().raw_tags(&twice), Err(EncodeError::TagOrder(3)));
}

#[test]
fn a_request_header_keeps_the_long_form_of_its_client_id_in_every_version() {
    let header = RequestHeader {
        request_api_key: 3,
        request_api_version: 12,
        correlation_id: 9,
        client_id: Some("me".into()),
        ..Default::default()
    };
    let bytes = header.to_bytes(2).unwrap();
    assert_eq!(&bytes[..], b"\x00\x03\x00\x0c\x00\x00\x00\x09\x00\x02me\x00");
    assert_eq!(RequestHeader::from_bytes(bytes, 2), Ok(header.clone()));
    assert_eq!(&header.to_bytes(1).unwrap()[..], b"\x00\x03\x00\x0c\x00\x00\x00\x09\x00\x02me");
    let nobody = Bytes::from_static(b"\x00\x03\x00\x0c\x00\x00\x00\x09\xff\xff\x00");
    assert_eq!(RequestHeader::from_bytes(nobody, 2).unwrap().client_id, None);
}

#[test]
fn bytes_behind_a_message_are_not_overlooked() {
    let error = ResponseHeader::from_bytes(Bytes::from_static(&[0, 0, 0, 1, 0, 9]), 1).unwrap_err();
    assert_eq!(error, DecodeError { offset: 5, kind: DecodeErrorKind::Trailing(1) });
}

#[test]
fn ids_are_sixteen_bytes() {
    let id = Uuid(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    let bytes = written(|writer| writer.uuid(id));
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    assert_eq!(reader(&bytes).uuid(), Ok(id));
}
