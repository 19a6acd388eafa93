//! A response on its way out: bytes that we made, and regions of log files that the transport resolves.
//!
//! Made by the APIs, sent by `connection.rs`. A region keeps its file open, so a deleted segment is still read to its end.

use std::{cell::RefCell, io};

use bytes::{Bytes, BytesMut};
use gregor_log::{ReadPlan, Region};
use gregor_wire::{
    Message, ResponseHeader, Struct, Writer,
    fetch::{ResponsePlan, Segment},
};

use crate::{close::Close, transport::Transport};

/// Fewer bytes than this are read and sent with the header in one call, which costs less than a `sendfile`.
const SENDFILE_BYTES_MIN: usize = 32 << 10;

thread_local! {
    /// A small response with its records, for the time of a call: never larger than [`SENDFILE_BYTES_MIN`].
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The response of any API but Produce and Fetch, with its length in front.
#[derive(Debug, Default)]
pub(crate) struct Reply(BytesMut);

impl Reply {
    /// A response whose body is a message.
    pub(crate) fn message<M: Message>(
        correlation_id: i32,
        header_version: i16,
        message: &M,
        version: i16,
    ) -> Result<Self, Close> {
        let mut writer = Writer::with_capacity(512);
        writer.i32(0);
        ResponseHeader { correlation_id, ..ResponseHeader::default() }.write(&mut writer, header_version)?;
        message.encode(&mut writer, version)?;
        let mut buffer = writer.into_inner();
        let length = u32::try_from(buffer.len() - 4).expect("what we answer is bounded far below 2 GiB");
        buffer[..4].copy_from_slice(&length.to_be_bytes());
        Ok(Self(buffer))
    }

    /// The response with its header, without the length in front.
    pub(crate) fn into_body(self) -> Bytes {
        let mut framed = self.0.freeze();
        framed.split_off(size_of::<u32>().min(framed.len()))
    }

    /// The response with its header and the length in front, for who sends it with others.
    pub(crate) fn into_frame(self) -> BytesMut {
        self.0
    }

    /// Sends the whole response.
    pub(crate) async fn send(self, stream: &mut Transport) -> Result<(), Close> {
        stream.send(&self.0, false).await
    }
}

/// Sends a fetch response. Few records are read here and leave with the header; many are left to the kernel.
pub(crate) async fn send_fetched(stream: &mut Transport, plan: &ResponsePlan<ReadPlan>) -> Result<(), Close> {
    if plan.size() < SENDFILE_BYTES_MIN {
        let unsent = send_joined(stream, plan)?;
        return stream.send(&unsent, false).await;
    }
    let mut left = plan.size();
    for segment in plan.segments() {
        match segment {
            Segment::Inline(bytes) => {
                left -= bytes.len();
                stream.send(bytes, left > 0).await?;
            }
            Segment::Records(records) => {
                left -= records.len() as usize;
                for region in records.regions() {
                    match region {
                        Region::File { file, position, len } => {
                            stream.send_region(file, *position, u64::from(*len)).await?;
                        }
                        // A plan with a source that this sender does not know was never sent to be read here.
                        _ => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
                    }
                }
            }
        }
    }
    Ok(())
}

/// Reads and sends in one go; returns what the socket did not take, which is nothing but for a slow peer.
fn send_joined(stream: &mut Transport, plan: &ResponsePlan<ReadPlan>) -> Result<Vec<u8>, Close> {
    JOINED.with_borrow_mut(|joined| {
        joined.clear();
        for segment in plan.segments() {
            match segment {
                Segment::Inline(bytes) => joined.extend_from_slice(bytes),
                Segment::Records(records) => records.read_into(joined)?,
            }
        }
        let sent = stream.try_send(joined)?;
        Ok(joined[sent..].to_vec())
    })
}
