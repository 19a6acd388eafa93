//! No bytes, however made, crash a decoder or make it take much more memory than they have themselves.
//!
//! Every decoder and version reads random bytes that are biased towards what decoders trip over, and bytes that were good
//! until some of them were changed. `GREGOR_FUZZ_ROUNDS` sets how many of each; the default keeps it to seconds.

#![allow(unsafe_code, reason = "a global allocator that counts; the test's own, nothing ships with it")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use bytes::Bytes;
use gregor_messages::{
    FetchRequest, MetadataRequest, ProduceRequest,
    fetch_request::{FetchPartition, FetchTopic, ForgottenTopic},
    produce_request::{PartitionProduceData, TopicProduceData},
};
use gregor_wire::{
    Codec, DecodeErrorKind, Message, RequestHeader, ResponseHeader, fetch::FetchView, produce::ProduceView,
};

/// Counts what each thread holds, and refuses nothing: the tests look at the peak.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counters are plain thread-local numbers without a
// destructor and allocate nothing themselves.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().saturating_add(layout.size());
        HELD.set(held);
        PEAK.set(PEAK.get().max(held));
        // SAFETY: the caller's promises about the layout are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: the pointer came from `alloc` above, which got it from the system's allocator with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What one call holds at most, beyond what was held before it.
fn peak_of<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = call();
    (result, PEAK.get() - before)
}

/// A first allocation of an array is at most 64 KiB, arrays are nested at most five deep, and an element in memory is at
/// most so many times its shortest encoding; growing a vector holds the old and the new one for a moment.
fn cap(input: usize) -> usize {
    6 * 64 * 1024 + 128 * input
}

/// Small, seeded, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Bytes that often look like lengths, short texts and empty tag sections.
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        const PIECES: [&[u8]; 18] = [
            &[0],
            &[1],
            &[2],
            &[3, b'a', b'b'],
            &[0, 0],
            &[0, 1, b'a'],
            &[0, 0, 0, 0],
            &[0, 0, 0, 1],
            &[0, 0, 0, 2],
            &[0, 0, 0, 0, 0, 0, 0, 1],
            &[0xff],
            &[0xff, 0xff],
            &[0xff, 0xff, 0xff, 0xff],
            &[0x7f, 0xff, 0xff, 0xff],
            &[0xff, 0xff, 0xff, 0xff, 0x0f],
            &[0x80, 0x80, 0x80, 0x80, 0x08],
            &[0x80, 0x00],
            &[1, 0, 4, 0, 0, 0, 0],
        ];
        let benign = self.below(2) == 0;
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            if self.below(8) == 0 {
                bytes.push(self.next() as u8);
            } else {
                bytes.extend_from_slice(self.pick(if benign { &PIECES[..10] } else { &PIECES[..] }));
            }
        }
        bytes.truncate(length);
        bytes
    }

    /// The same bytes with some changed, put in, taken out, or cut off.
    fn spoil(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = *self.pick(&[&0, &1, &0x7f, &0x80, &0xff]),
                2 => bytes.truncate(at),
                3 if at < bytes.len() => drop(bytes.remove(at)),
                _ => {
                    let piece = self.bytes(4);
                    bytes.splice(at..at, piece);
                }
            }
        }
        bytes
    }
}

fn rounds() -> usize {
    std::env::var("GREGOR_FUZZ_ROUNDS").map_or(150, |rounds| rounds.parse().expect("GREGOR_FUZZ_ROUNDS is a number"))
}

fn every_decoder() -> Vec<(Codec, i16)> {
    let headers = [Codec::of::<RequestHeader>(), Codec::of::<ResponseHeader>()];
    let records = gregor_state_records::CODECS.iter().copied().flatten();
    let all = gregor_messages::CODECS.iter().chain(records).cloned().chain(headers);
    all.flat_map(|codec| codec.versions.clone().map(move |version| (codec.clone(), version))).collect()
}

/// Decodes under the cap; returns whether the bytes were taken for good.
fn decode(codec: &Codec, version: i16, bytes: &[u8]) -> bool {
    let input = Bytes::copy_from_slice(bytes);
    let (result, peak) = peak_of(|| (codec.decode)(input, version));
    assert!(
        peak <= cap(bytes.len()),
        "{} v{version} held {peak} bytes for an input of {}: {bytes:02x?}",
        codec.name,
        bytes.len()
    );
    result.is_ok()
}

#[test]
fn random_and_spoiled_bytes_neither_crash_a_decoder_nor_make_it_take_much_memory() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut taken = 0;
    for (codec, version) in every_decoder() {
        let mut good: Vec<Vec<u8>> = Vec::new();
        for round in 0..rounds() {
            let length = [4, 16, 64, 256][round % 4];
            let mut bytes = random.bytes(length);
            // Where a decoder stops early, the bytes up to there are a message: such ones are spoiled below.
            if let Err(error) = (codec.decode)(bytes.clone().into(), version)
                && matches!(error.kind, DecodeErrorKind::Trailing(_))
            {
                bytes.truncate(error.offset);
            }
            if decode(&codec, version, &bytes) {
                good.push(bytes);
            }
        }
        taken += good.len();
        for _ in 0..rounds() {
            let Some(seed) = (!good.is_empty()).then(|| random.below(good.len())) else { break };
            let bytes = random.spoil(&good[seed]);
            if decode(&codec, version, &bytes) && good.len() < 200 {
                good.push(bytes);
            }
        }
    }
    assert!(
        taken > 10_000,
        "only {taken} random inputs were messages: the generator no longer reaches the inside of decoders"
    );
}

#[test]
fn what_was_taken_for_good_is_encoded_and_taken_again() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for (codec, version) in every_decoder() {
        for _ in 0..rounds() / 2 {
            let mut bytes = random.bytes(48);
            if let Err(error) = (codec.decode)(bytes.clone().into(), version)
                && matches!(error.kind, DecodeErrorKind::Trailing(_))
            {
                bytes.truncate(error.offset);
            }
            let Ok((json, encoded)) = (codec.round_trip)(bytes.clone().into(), version) else { continue };
            // Tagged fields may stand in any order on the wire, but are written in one.
            let Ok(encoded) = encoded else { continue };
            let (again, _) = (codec.round_trip)(encoded.clone(), version).unwrap_or_else(|error| {
                panic!("{} v{version}: {bytes:02x?} became {encoded:02x?}: {error}", codec.name)
            });
            assert_eq!(again, json, "{} v{version}: {bytes:02x?} became {encoded:02x?}", codec.name);
        }
    }
}

#[test]
fn a_metadata_body_of_five_bytes_that_claims_two_billion_topics_is_an_error() {
    // kafka-protocol 0.18 reserves room for what the length says and aborts the process.
    let (result, peak) =
        peak_of(|| MetadataRequest::from_bytes(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f]), 12));
    assert!(matches!(result.unwrap_err().kind, DecodeErrorKind::ArrayTooLong { limit: 0, .. }));
    assert!(peak < 1_024, "{peak} bytes were held for five");

    let (result, peak) = peak_of(|| MetadataRequest::from_bytes(Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff]), 1));
    assert!(matches!(result.unwrap_err().kind, DecodeErrorKind::ArrayTooLong { limit: 0, .. }));
    assert!(peak < 1_024, "{peak} bytes were held for four");
}

#[test]
fn the_views_of_produce_and_fetch_allocate_nothing() {
    let produce = ProduceRequest {
        topic_data: vec![TopicProduceData {
            name: "letters".into(),
            partition_data: vec![PartitionProduceData {
                records: Some(Bytes::from_static(b"batch")),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let bytes = produce.to_bytes(9).unwrap();
    let (records, peak) = peak_of(|| {
        let view = ProduceView::parse(&bytes, 9).unwrap();
        view.topics()
            .flat_map(|topic| topic.partitions())
            .filter_map(|partition| partition.records)
            .map(<[u8]>::len)
            .sum::<usize>()
    });
    assert_eq!((records, peak), (5, 0));

    let fetch = FetchRequest {
        topics: vec![FetchTopic { partitions: vec![FetchPartition::default(); 3], ..Default::default() }],
        forgotten_topics_data: vec![ForgottenTopic { partitions: vec![1, 2], ..Default::default() }],
        ..Default::default()
    };
    let bytes = fetch.to_bytes(17).unwrap();
    let (counts, peak) = peak_of(|| {
        let view = FetchView::parse(&bytes, 17).unwrap();
        let fetched = view.topics().flat_map(|topic| topic.partitions()).count();
        (fetched, view.forgotten_topics().flat_map(|topic| topic.partitions()).count())
    });
    assert_eq!((counts, peak), ((3, 2), 0));
}

#[test]
fn a_long_frame_of_the_shortest_elements_takes_no_more_than_the_cap() {
    for (codec, version) in every_decoder() {
        // An array's length that the frame could just hold, at each place where one may be expected, and zeros behind it.
        for length in [&[0x00, 0x00, 0x80, 0x00][..], &[0x81, 0x80, 0x02], &[0x00, 0x00, 0x10, 0x00]] {
            for lead in 0..16 {
                let mut bytes = vec![0; lead];
                bytes.extend_from_slice(length);
                bytes.resize(lead + 32 * 1024, 0);
                decode(&codec, version, &bytes);
                bytes[lead + length.len()..].fill(1);
                decode(&codec, version, &bytes);
            }
        }
    }
}
