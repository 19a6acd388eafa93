//! Takes requests off a socket, one frame after the other.
//!
//! A frame's length is a claim: it is checked against `socket.request.max.bytes` at once, and memory follows only the bytes
//! that have really arrived. What the peer sends ahead waits in the same buffer, or in the socket. A frame that was begun
//! must go on arriving; a connection without a request may idle for `connections.max.idle.ms`.

use std::{pin::Pin, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    close::Close,
    memory::MemoryGrant,
    transport::{Received, Transport},
};

/// The step in which a buffer begins, and what an active connection keeps at least.
const STEP: usize = 16 << 10;
/// Less room than this in a buffer is not read into, unless the frame needs no more.
const SPARE_MIN: usize = 4 << 10;
/// What an active connection keeps at most between two requests: a producer's largest request by its default,
/// `max.request.size`, and what is around it.
const RETAINED: usize = (1 << 20) + (64 << 10);
/// What is read at once of a peer that sends requests before the last one is answered, so that several come with one call.
const AHEAD: usize = 64 << 10;
/// How long a buffer outlives its last request.
const BUFFER_IDLE: Duration = Duration::from_secs(2);
/// How long a frame may take to arrive, and a second more for each 64 KiB of it that came.
const FRAME_TIME: Duration = Duration::from_secs(30);

/// Reads the frames of one connection. Every wait may be dropped and begun anew.
#[derive(Debug)]
pub(crate) struct FrameReader {
    buffer: BytesMut,
    grant: MemoryGrant,
    /// Room that the grant covers, counted from the buffer's first byte.
    frame_bytes_max: usize,
    idle: Duration,
    last_frame: Instant,
    frame_began: Option<Instant>,
    /// What the last frame took, and a little: the next one is likely to take as much, and is read at once then. A buffer
    /// that it does not fill tells that there is no more, without another call.
    usual: usize,
    /// One timer for all of the above; it may fire early and is then set again.
    timer: Pin<Box<Sleep>>,
}

impl FrameReader {
    /// A reader whose memory comes from `grant`.
    pub(crate) fn new(grant: MemoryGrant, frame_bytes_max: usize, idle: Duration) -> Self {
        let now = Instant::now();
        Self {
            buffer: BytesMut::new(),
            grant,
            frame_bytes_max,
            idle,
            last_frame: now,
            frame_began: None,
            usual: STEP,
            timer: Box::pin(sleep_until(now + idle.min(FRAME_TIME))),
        }
    }

    /// The next request without its length, or `None` where the peer closed between two requests.
    pub(crate) async fn next(&mut self, stream: &mut Transport) -> Result<Option<Bytes>, Close> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            if !self.buffer.is_empty() && self.frame_began.is_none() {
                self.frame_began = Some(Instant::now());
            }
            let wanted = self.deadline();
            if wanted < self.timer.deadline() {
                self.timer.as_mut().reset(wanted);
            }
            // Memory comes after bytes: an idle connection holds none.
            let has_memory = self.grant.bytes() > 0;
            if has_memory {
                self.make_room().await?;
            }
            tokio::select! {
                biased;
                received = stream.receive(&mut self.buffer, has_memory) => match received? {
                    Received::Bytes(0) if self.buffer.is_empty() => return Ok(None),
                    Received::Bytes(0) => return Err(Close::HalfSent),
                    Received::Bytes(_) => {}
                    Received::Readable => self.make_room().await?,
                },
                () = &mut self.timer => self.on_timer()?,
            }
        }
    }

    /// Grants and reserves the next step: at most twice what has arrived, or what the last frame took, or [`AHEAD`] where the peer
    /// sends ahead.
    async fn make_room(&mut self) -> Result<(), Close> {
        let needed = match self.frame_length()? {
            Some(length) => (self.buffer.len() * 2).max(self.usual).clamp(STEP, with_spare(length).max(self.usual)),
            None => self.usual,
        };
        // A few bytes at the end of the allocation would be read in as many calls: it is used anew from its beginning instead.
        let room = needed.saturating_sub(self.buffer.len()).max(1);
        let spare = self.buffer.capacity() - self.buffer.len();
        // A buffer with little in it costs little to begin anew.
        let enough = if self.buffer.len() < needed / 4 { room } else { room.min(SPARE_MIN) };
        if spare >= enough && self.grant.bytes() >= needed {
            return Ok(());
        }
        // Waiting for memory counts as the frame's time, so that a stalled pool frees itself.
        let deadline = self.frame_began.map(|began| began + self.frame_time());
        let grow = self.grant.grow_to(needed);
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, grow).await.map_err(|_| Close::FrameTime)?,
            None => grow.await,
        }
        self.buffer.reserve(room);
        Ok(())
    }

    /// Whether the next request is here already, and a small one.
    pub(crate) fn has_small_frame(&self) -> bool {
        let length = self.frame_length().ok().flatten();
        length.is_some_and(|length| length <= AHEAD && self.buffer.len() >= 4 + length)
    }

    fn take_frame(&mut self) -> Result<Option<Bytes>, Close> {
        let Some(length) = self.frame_length()? else { return Ok(None) };
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(4 + length).freeze();
        frame.advance(4);
        self.frame_began = None;
        self.last_frame = Instant::now();
        let kept = if self.grant.is_scarce() { 0 } else { RETAINED };
        let usual = if self.buffer.is_empty() { with_spare(length) } else { with_spare(length).max(AHEAD) };
        self.usual = usual.min(kept.max(STEP));
        if self.grant.bytes() > kept && self.buffer.len() <= STEP {
            self.buffer = BytesMut::from(&self.buffer[..]);
            self.grant.shrink_to(self.buffer.len());
        }
        Ok(Some(frame))
    }

    /// The length that the buffered frame claims, if its first four bytes are there.
    fn frame_length(&self) -> Result<Option<usize>, Close> {
        let Some(prefix) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let claimed = i32::from_be_bytes(*prefix);
        match usize::try_from(claimed) {
            Ok(length) if length <= self.frame_bytes_max => Ok(Some(length)),
            _ => Err(Close::FrameSize { claimed, limit: self.frame_bytes_max }),
        }
    }

    fn frame_time(&self) -> Duration {
        FRAME_TIME + Duration::from_secs((self.buffer.len() >> 16) as u64)
    }

    fn deadline(&self) -> Instant {
        match self.frame_began {
            Some(began) => began + self.frame_time(),
            None if self.grant.bytes() > 0 => self.last_frame + self.idle.min(BUFFER_IDLE),
            None => self.last_frame + self.idle,
        }
    }

    fn on_timer(&mut self) -> Result<(), Close> {
        let now = Instant::now();
        if now >= self.deadline() {
            match self.frame_began {
                Some(_) => return Err(Close::FrameTime),
                None if now >= self.last_frame + self.idle => return Err(Close::Idle),
                None => {
                    self.buffer = BytesMut::new();
                    self.usual = STEP;
                    self.grant.shrink_to(0);
                }
            }
        }
        let next = self.deadline();
        self.timer.as_mut().reset(next);
        Ok(())
    }
}

/// What is read for a frame of that length, at least.
fn with_spare(length: usize) -> usize {
    (4 + length + SPARE_MIN).max(STEP)
}
