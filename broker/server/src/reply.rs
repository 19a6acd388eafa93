//! A response on its way out: bytes that we made, and regions of log files that the kernel copies itself.
//!
//! Made by the APIs, sent by `connection.rs`. A region keeps its file open, so a deleted segment is still read to its end; a
//! file that turns out shorter closes the connection, as padding would be a lie.

use std::{cell::RefCell, io, time::Duration};

use bytes::BytesMut;
use gregor_log::{ReadPlan, Region, disk::SharedFile};
use gregor_wire::{
    Message, ResponseHeader, Struct, Writer,
    fetch::{ResponsePlan, Segment},
};
use rustix::net::SendFlags;
use tokio::{io::Interest, net::TcpStream};

use crate::connection::Close;

/// One `sendfile` copies at most this much: measured best on loopback.
const SENDFILE_STEP: u64 = 64 << 10;
/// Fewer bytes than this are read and sent with the header in one call, which costs less than a `sendfile`.
const SENDFILE_BYTES_MIN: usize = 32 << 10;
/// After so much the task lets others run.
const FAIR_SHARE: u64 = 256 << 10;
/// How long a peer may take no byte at all.
const STALL_TIME: Duration = Duration::from_mins(1);

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

    /// Sends the whole response.
    pub(crate) async fn send(self, stream: &TcpStream) -> Result<(), Close> {
        send_bytes(stream, &self.0, false).await
    }
}

/// Sends a fetch response. Few records are read here and leave with the header; many are left to the kernel.
pub(crate) async fn send_fetched(stream: &TcpStream, plan: &ResponsePlan<ReadPlan>) -> Result<(), Close> {
    if plan.size() < SENDFILE_BYTES_MIN {
        let unsent = send_joined(stream, plan)?;
        return send_bytes(stream, &unsent, false).await;
    }
    let mut left = plan.size();
    for segment in plan.segments() {
        match segment {
            Segment::Inline(bytes) => {
                left -= bytes.len();
                send_bytes(stream, bytes, left > 0).await?;
            }
            Segment::Records(records) => {
                left -= records.len() as usize;
                for region in records.regions() {
                    match region {
                        Region::File { file, position, len } => {
                            send_region(stream, file, *position, u64::from(*len)).await?;
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
fn send_joined(stream: &TcpStream, plan: &ResponsePlan<ReadPlan>) -> Result<Vec<u8>, Close> {
    JOINED.with_borrow_mut(|joined| {
        joined.clear();
        for segment in plan.segments() {
            match segment {
                Segment::Inline(bytes) => joined.extend_from_slice(bytes),
                Segment::Records(records) => records.read_into(joined)?,
            }
        }
        let sent = try_send(stream, joined, SendFlags::NOSIGNAL)?;
        Ok(joined[sent..].to_vec())
    })
}

/// `more` joins the bytes with what follows into full packets.
pub(crate) async fn send_bytes(stream: &TcpStream, mut bytes: &[u8], more: bool) -> Result<(), Close> {
    let flags = if more { SendFlags::MORE | SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL };
    while !bytes.is_empty() {
        match try_send(stream, bytes, flags)? {
            0 => writable(stream).await?,
            sent => bytes = &bytes[sent..],
        }
    }
    Ok(())
}

/// How many bytes the socket took; 0 where it takes none now.
fn try_send(stream: &TcpStream, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
    loop {
        match stream.try_io(Interest::WRITABLE, || Ok(rustix::net::send(stream, bytes, flags)?)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

async fn send_region(stream: &TcpStream, file: &SharedFile, start: u64, len: u64) -> Result<(), Close> {
    let Some(descriptor) = file.as_fd() else { return send_read(stream, file, start, len).await };
    let mut position = start;
    let end = start + len;
    let mut turn = 0;
    while position < end {
        let step = (end - position).min(SENDFILE_STEP) as usize;
        let sent = stream
            .try_io(Interest::WRITABLE, || Ok(rustix::fs::sendfile(stream, descriptor, Some(&mut position), step)?));
        match sent {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(sent) => {
                turn += sent as u64;
                if turn >= FAIR_SHARE {
                    turn = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => writable(stream).await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A file in memory, which has no descriptor, is read and sent like bytes of ours.
async fn send_read(stream: &TcpStream, file: &SharedFile, start: u64, len: u64) -> Result<(), Close> {
    let mut sent = 0;
    while sent < len {
        let step = (len - sent).min(SENDFILE_STEP);
        let mut bytes = vec![0; step as usize];
        file.read_exact_at(&mut bytes, start + sent)?;
        send_bytes(stream, &bytes, sent + step < len).await?;
        sent += step;
    }
    Ok(())
}

async fn writable(stream: &TcpStream) -> Result<(), Close> {
    match tokio::time::timeout(STALL_TIME, stream.writable()).await {
        Ok(ready) => Ok(ready?),
        Err(_) => Err(Close::Stalled),
    }
}
