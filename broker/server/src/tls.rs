//! A connection's bytes under TLS: rustls' state machine driven straight over the socket.
//!
//! `transport.rs` sends and receives through it, as it does through a bare socket. Bytes pass through one buffer for each
//! thread, never through one for each connection: an idle connection holds what rustls itself keeps. A read takes no more
//! from the socket than the request's buffer has room for, so that what was decrypted and not asked for stays below a record.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, BufRead, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use gregor_log::disk::SharedFile;
use rustls::{ServerConfig, ServerConnection, pki_types::CertificateDer};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use crate::{
    close::Close,
    transport::{FAIR_SHARE, Received, writable},
};

/// What is read, or encrypted, in one step: half as much costs a consumer's GiB some 5 % more.
const STEP: usize = 128 << 10;
/// What is read in one step of a handshake, whose messages are small.
const HANDSHAKE_STEP: usize = 4 << 10;
/// How long a handshake may take; a frame has the same time to arrive.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);

thread_local! {
    /// Encrypted bytes of a read, or plain ones of a file, for the time of a call.
    static BYTES: RefCell<Vec<u8>> = RefCell::new(vec![0; STEP]);
}

/// A socket and the session on it.
#[derive(Debug)]
pub(crate) struct TlsStream {
    socket: TcpStream,
    session: ServerConnection,
    /// The peer sends nothing more.
    ended: bool,
}

impl TlsStream {
    /// Shakes hands with a new peer, within [`HANDSHAKE_TIME`].
    pub(crate) async fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> Result<Self, Close> {
        let mut session = ServerConnection::new(config).map_err(Close::Handshake)?;
        session.set_buffer_limit(Some(STEP));
        let mut stream = Self { socket, session, ended: false };
        match tokio::time::timeout(HANDSHAKE_TIME, stream.shake_hands()).await {
            Ok(outcome) => outcome.map(|()| stream),
            Err(_) => Err(Close::HandshakeTime),
        }
    }

    async fn shake_hands(&mut self) -> Result<(), Close> {
        loop {
            self.flush().await?;
            if !self.session.is_handshaking() {
                return Ok(());
            }
            if self.ended {
                return Err(Close::HandshakeEnded);
            }
            poll_fn(|context| self.poll_read(context, HANDSHAKE_STEP, None)).await.map_err(|close| match close {
                Close::Tls(error) => Close::Handshake(error),
                other => other,
            })?;
        }
    }

    /// The certificates that the peer has shown, its own first.
    pub(crate) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.session.peer_certificates()
    }

    /// See [`Transport::receive`](crate::transport::Transport::receive).
    pub(crate) async fn receive(&mut self, buffer: &mut BytesMut, has_memory: bool) -> Result<Received, Close> {
        if !has_memory {
            // What was decrypted already makes no socket readable.
            if !self.ended && self.session.reader().fill_buf().is_err() {
                self.socket.readable().await?;
            }
            return Ok(Received::Readable);
        }
        if buffer.capacity() == buffer.len() {
            buffer.reserve(1);
        }
        let before = buffer.len();
        poll_fn(|context| {
            loop {
                self.take(buffer);
                let received = buffer.len() - before;
                if received > 0 || self.ended {
                    return Poll::Ready(Ok(Received::Bytes(received)));
                }
                let room = buffer.capacity() - buffer.len();
                ready!(self.poll_read(context, room, Some(buffer)))?;
            }
        })
        .await
    }

    /// See [`Transport::send`](crate::transport::Transport::send).
    pub(crate) async fn send(&mut self, mut bytes: &[u8], more: bool) -> Result<(), Close> {
        let mut turn = 0;
        loop {
            let taken = self.session.writer().write(bytes)?;
            bytes = &bytes[taken..];
            // A file's region follows, whose end takes this along.
            if bytes.is_empty() && more {
                return Ok(());
            }
            let has_waited = self.flush().await?;
            if bytes.is_empty() {
                return Ok(());
            }
            turn = if has_waited { 0 } else { fair(turn + taken as u64).await };
        }
    }

    /// See [`Transport::try_send`](crate::transport::Transport::try_send).
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.session.writer().write(bytes)?;
        self.try_flush()?;
        Ok(taken)
    }

    /// See [`Transport::send_region`](crate::transport::Transport::send_region).
    pub(crate) async fn send_region(&mut self, file: &SharedFile, start: u64, len: u64) -> Result<(), Close> {
        let (mut position, end) = (start, start + len);
        let mut turn = 0;
        while position < end {
            let step = (end - position).min(STEP as u64) as usize;
            let taken = BYTES.with_borrow_mut(|bytes| {
                file.read_exact_at(&mut bytes[..step], position)?;
                self.session.writer().write(&bytes[..step])
            })? as u64;
            position += taken;
            let has_waited = self.flush().await?;
            turn = if has_waited { 0 } else { fair(turn + taken).await };
        }
        Ok(())
    }

    /// Says goodbye, as far as the socket takes it at once.
    pub(crate) fn close(&mut self) {
        self.session.send_close_notify();
        // The peer may be gone, or read nothing: it is closed all the same.
        let _ = self.try_flush();
    }

    /// Moves what was decrypted into the room that the buffer has.
    fn take(&mut self, buffer: &mut BytesMut) {
        let mut reader = self.session.reader();
        loop {
            let room = buffer.capacity() - buffer.len();
            if room == 0 {
                break;
            }
            match reader.fill_buf() {
                Ok([]) => {
                    self.ended = true;
                    break;
                }
                Ok(decrypted) => {
                    let taken = decrypted.len().min(room);
                    buffer.extend_from_slice(&decrypted[..taken]);
                    reader.consume(taken);
                }
                // Nothing yet; or an end without a goodbye, which `ended` says.
                Err(_) => break,
            }
        }
    }

    /// Reads at most so many bytes off the socket and has them decrypted; into `buffer` as far as it has room. A poll that is
    /// pending has taken nothing.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        most: usize,
        mut buffer: Option<&mut BytesMut>,
    ) -> Poll<Result<(), Close>> {
        let outcome = BYTES.with_borrow_mut(|bytes| {
            let mut read = ReadBuf::new(&mut bytes[..most.min(STEP)]);
            ready!(Pin::new(&mut self.socket).poll_read(context, &mut read))?;
            let mut encrypted = read.filled();
            self.ended |= encrypted.is_empty();
            while !encrypted.is_empty() {
                if self.session.read_tls(&mut encrypted)? == 0 {
                    // Whatever follows a goodbye is not looked at.
                    self.ended = true;
                    break;
                }
                self.session.process_new_packets().map_err(Close::Tls)?;
                if let Some(buffer) = &mut buffer {
                    self.take(buffer);
                }
            }
            Poll::Ready(Ok(()))
        });
        // An alert that says what was wrong, or the answer to a new key; what does not leave now leaves with the next response.
        if self.session.wants_write()
            && let Err(error) = self.try_flush()
            && !matches!(outcome, Poll::Ready(Err(_)))
        {
            return Poll::Ready(Err(error.into()));
        }
        outcome
    }

    /// Sends all that is encrypted; whether it had to wait for that, so that others have had their turn.
    async fn flush(&mut self) -> Result<bool, Close> {
        let mut has_waited = false;
        while !self.try_flush()? {
            writable(&self.socket).await?;
            has_waited = true;
        }
        Ok(has_waited)
    }

    /// Whether all that is encrypted has left.
    fn try_flush(&mut self) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Outgoing(&self.socket)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    }
}

/// Lets others run where enough was sent in a turn.
async fn fair(turn: u64) -> u64 {
    if turn < FAIR_SHARE {
        return turn;
    }
    tokio::task::yield_now().await;
    0
}

/// The socket as rustls writes to it.
struct Outgoing<'a>(&'a TcpStream);

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use gregor_authentication::ServerSettings;
    use tokio::net::TcpListener;

    use super::*;

    fn config() -> Arc<ServerConfig> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let settings = ServerSettings::from_lookup(|name| match name {
            "ssl.keystore.type" => Some("PEM"),
            "ssl.keystore.certificate.chain" => Some(&chain),
            "ssl.keystore.key" => Some(&key),
            _ => None,
        });
        settings.unwrap().config(&gregor_authentication::StoreFiles::default()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_has_its_time_and_no_more() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let outcome = TlsStream::accept(socket, config()).await;
        assert!(matches!(outcome, Err(Close::HandshakeTime)), "{outcome:?}");
    }
}
