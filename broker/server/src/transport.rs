//! The bytes of one connection, in and out: a socket, and what lies between it and the protocol.
//!
//! `frame.rs` reads requests through it, `reply.rs` and `connection.rs` send responses. Kinds of connection differ here and
//! nowhere else: in how bytes are read, and in how a region of a log file reaches the peer. It never knows what it carries.

use std::{io, time::Duration};

use bytes::BytesMut;
use gregor_log::disk::SharedFile;
use rustix::net::SendFlags;
use tokio::{
    io::{AsyncReadExt, Interest},
    net::TcpStream,
};

use crate::{close::Close, tls::TlsStream};

/// One `sendfile` sends at most this much, some 40 us of work: smaller steps wake the peer more often, larger ones gain little.
const SENDFILE_STEP: u64 = 256 << 10;
/// After so much, without a wait for the peer, the task lets others run. That wakes another worker, so it is not for nothing.
pub(crate) const FAIR_SHARE: u64 = 512 << 10;
/// How long a peer may take no byte at all.
const STALL_TIME: Duration = Duration::from_mins(1);

/// A connection's socket, and how it speaks.
#[derive(Debug)]
pub(crate) enum Transport {
    /// Bytes as they are.
    Plain(TcpStream),
    /// Bytes under TLS.
    Tls(Box<TlsStream>),
}

/// What came of a wait for the peer.
pub(crate) enum Received {
    /// So many bytes are in the buffer; none where the peer closed.
    Bytes(usize),
    /// There is something to read, and no memory to read it into yet.
    Readable,
}

impl Transport {
    /// Waits for bytes, and takes them where there is memory for them. A wait that is dropped has taken nothing.
    pub(crate) async fn receive(&mut self, buffer: &mut BytesMut, has_memory: bool) -> Result<Received, Close> {
        match self {
            Self::Plain(stream) if has_memory => Ok(Received::Bytes(stream.read_buf(buffer).await?)),
            Self::Plain(stream) => Ok(stream.readable().await.map(|()| Received::Readable)?),
            Self::Tls(stream) => stream.receive(buffer, has_memory).await,
        }
    }

    /// Sends all of the bytes; `more` joins them with what follows into full packets.
    pub(crate) async fn send(&mut self, bytes: &[u8], more: bool) -> Result<(), Close> {
        match self {
            Self::Plain(stream) => send_plain(stream, bytes, more).await,
            Self::Tls(stream) => stream.send(bytes, more).await,
        }
    }

    /// How many of the bytes are on their way at once; the rest, if only none, is for [`send`](Self::send).
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => try_send_plain(stream, bytes, SendFlags::NOSIGNAL),
            Self::Tls(stream) => stream.try_send(bytes),
        }
    }

    /// Sends a region of a file; one that turns out shorter is an error, as padding would be a lie.
    pub(crate) async fn send_region(&mut self, file: &SharedFile, start: u64, len: u64) -> Result<(), Close> {
        match self {
            Self::Plain(stream) => send_file(stream, file, start, len).await,
            Self::Tls(stream) => stream.send_region(file, start, len).await,
        }
    }

    /// Says goodbye where the protocol has a word for it.
    pub(crate) fn close(&mut self) {
        match self {
            Self::Plain(_) => {}
            Self::Tls(stream) => stream.close(),
        }
    }
}

async fn send_plain(stream: &TcpStream, mut bytes: &[u8], more: bool) -> Result<(), Close> {
    let flags = if more { SendFlags::MORE | SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL };
    while !bytes.is_empty() {
        match try_send_plain(stream, bytes, flags)? {
            0 => writable(stream).await?,
            sent => bytes = &bytes[sent..],
        }
    }
    Ok(())
}

/// How many bytes the socket took; 0 where it takes none now.
fn try_send_plain(stream: &TcpStream, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
    loop {
        match stream.try_io(Interest::WRITABLE, || Ok(rustix::net::send(stream, bytes, flags)?)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

async fn send_file(stream: &TcpStream, file: &SharedFile, start: u64, len: u64) -> Result<(), Close> {
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
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                writable(stream).await?;
                // Others have had their turn.
                turn = 0;
            }
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
        send_plain(stream, &bytes, sent + step < len).await?;
        sent += step;
    }
    Ok(())
}

/// Waits until the peer takes bytes again, but not longer than [`STALL_TIME`].
pub(crate) async fn writable(stream: &TcpStream) -> Result<(), Close> {
    match tokio::time::timeout(STALL_TIME, stream.writable()).await {
        Ok(ready) => Ok(ready?),
        Err(_) => Err(Close::Stalled),
    }
}
