//! Responses as they come off a connection, each behind its length.
//!
//! One read takes what has arrived, which is a whole response most of the time. Memory grows as bytes arrive, never by what a
//! length claims.

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::end::End;

/// Room for a response of which nothing is known yet.
const ROOM: usize = 64 << 10;
/// A buffer that grew beyond this is given back with the response that it grew for.
const KEPT_MAX: usize = 256 << 10;
const LENGTH_BYTES: usize = 4;

/// What reads a connection's responses.
pub(crate) struct FrameReader<R> {
    read: R,
    buffer: BytesMut,
    frame_bytes_max: usize,
    /// How long the last response was: one like it may follow.
    last: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A response may be as long as `frame_bytes_max`.
    pub(crate) fn new(read: R, frame_bytes_max: usize) -> Self {
        Self { read, buffer: BytesMut::new(), frame_bytes_max, last: 0 }
    }

    /// The next response, without its length.
    pub(crate) async fn next(&mut self, address: &str) -> Result<Bytes, End> {
        loop {
            let length = self.length()?;
            if let Some(length) = length
                && self.buffer.len() >= LENGTH_BYTES + length
            {
                return Ok(self.take(length));
            }
            let missing = length.map_or(ROOM, |length| LENGTH_BYTES + length - self.buffer.len());
            self.buffer.reserve(missing.min(self.buffer.len().max(ROOM).max(self.last)));
            if self.read.read_buf(&mut self.buffer).await.map_err(|error| End::of(&error, address))? == 0 {
                return Err(match length {
                    None => "the peer closed it".into(),
                    Some(_) => "the peer closed it within a response".into(),
                });
            }
        }
    }

    fn length(&self) -> Result<Option<usize>, End> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = i32::from_be_bytes(*length);
        let max = self.frame_bytes_max;
        let known = usize::try_from(length).ok().filter(|length| (LENGTH_BYTES..=max).contains(length));
        known.map(Some).ok_or_else(|| {
            let bounds = format!("outside 4 to {max}");
            let meaning = "this is no Kafka listener, or it wants TLS (security.protocol=SSL)";
            format!("a response claims {length} bytes, {bounds}: {meaning}").as_str().into()
        })
    }

    fn take(&mut self, length: usize) -> Bytes {
        self.buffer.advance(LENGTH_BYTES);
        let frame = self.buffer.split_to(length).freeze();
        if length > KEPT_MAX {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        self.last = length;
        frame
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// The responses in some bytes that arrive in pieces of at most `step`, and the end.
    async fn all_of(bytes: Vec<u8>, step: usize) -> (Vec<Bytes>, End) {
        let (mut peer, read) = tokio::io::duplex(step);
        let writer = tokio::spawn(async move { peer.write_all(&bytes).await });
        let mut reader = FrameReader::new(read, 1 << 20);
        let mut frames = Vec::new();
        loop {
            match reader.next("peer:9092").await {
                Ok(frame) => frames.push(frame),
                Err(end) => {
                    writer.abort();
                    return (frames, end);
                }
            }
        }
    }

    fn framed(responses: &[&[u8]]) -> Vec<u8> {
        responses.iter().flat_map(|one| [&u32::try_from(one.len()).unwrap().to_be_bytes(), *one].concat()).collect()
    }

    fn told(end: End) -> String {
        end.error("peer:9092").to_string()
    }

    #[tokio::test]
    async fn responses_are_the_same_however_they_arrive() {
        let large = vec![7; 700_000];
        let responses: [&[u8]; 5] = [b"once", b"again", &large, b"less", &large[..300_000]];
        for (step, responses) in
            [(1, &responses[..2]), (3, &responses[..2]), (4_096, &responses), (1 << 21, &responses)]
        {
            let (frames, end) = all_of(framed(responses), step).await;
            assert_eq!(frames, responses, "in pieces of {step}");
            assert!(told(end).contains("the peer closed it"));
        }
    }

    #[tokio::test]
    async fn a_response_that_is_cut_off_or_too_long_is_none() {
        let mut cut = framed(&[b"whole", b"this is cut off"]);
        cut.truncate(cut.len() - 1);
        let (frames, end) = all_of(cut, 64).await;
        assert_eq!(frames, [&b"whole"[..]]);
        assert!(told(end).contains("within a response"));
        for claimed in [-1_i32, 3, (1 << 20) + 1, i32::MAX] {
            let (frames, end) = all_of(claimed.to_be_bytes().to_vec(), 64).await;
            assert!(frames.is_empty());
            assert!(told(end).contains(&format!("claims {claimed} bytes")));
        }
    }

    #[tokio::test]
    async fn a_length_that_is_not_made_good_takes_no_memory() {
        let (mut peer, read) = tokio::io::duplex(1 << 10);
        let mut reader = FrameReader::new(read, 1 << 30);
        peer.write_all(&(1_i32 << 29).to_be_bytes()).await.unwrap();
        assert!(reader.next("peer:9092").now_or_never().is_none());
        assert!(reader.buffer.capacity() <= 2 * ROOM, "{}", reader.buffer.capacity());
    }
}
