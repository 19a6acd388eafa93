//! A network between controllers that a test cuts and breaks: each controller is reached through a relay, at the address that it advertises.
//!
//! A cut is what one of TCP's is: nobody is told of it, and what was on its way arrives once it is healed. Who speaks is known by the client
//! id in the first request of a connection. What a test asks by itself is never held up.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::AbortHandle,
};

/// The fixed part of a request's head with its length, up to the length of the client id.
const HEAD: usize = 14;

/// Who does not reach whom.
type Cuts = BTreeSet<(i32, i32)>;

/// The relays, which end with it.
pub struct Network {
    cuts: watch::Sender<Cuts>,
    /// After how many bytes at most a connection ends; 0 for never.
    bytes_max: Arc<AtomicU64>,
    relays: Vec<AbortHandle>,
}

impl Network {
    /// A whole network of nodes, each with the address at which others reach it and the one where it listens.
    pub async fn new(nodes: impl IntoIterator<Item = (i32, String, String)>) -> Self {
        let mut network = Self { cuts: watch::Sender::default(), bytes_max: Arc::default(), relays: Vec::new() };
        for (node, advertised, bound) in nodes {
            let listener = TcpListener::bind(&advertised).await.unwrap();
            let (cuts, bytes_max) = (network.cuts.subscribe(), Arc::clone(&network.bytes_max));
            let relay = tokio::spawn(async move {
                let mut connections = tokio::task::JoinSet::new();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let Ok((stream, _)) = accepted else { continue };
                            connections.spawn(relay(stream, bound.clone(), node, cuts.clone(), Arc::clone(&bytes_max)));
                        }
                        Some(_) = connections.join_next() => {}
                    }
                }
            });
            network.relays.push(relay.abort_handle());
        }
        network
    }

    /// Nothing that `from` says reaches `to`, be it a question or an answer.
    pub fn cut(&self, from: i32, to: i32) {
        self.cuts.send_modify(|cuts| {
            cuts.insert((from, to));
        });
    }

    /// Neither hears of the other.
    pub fn cut_both(&self, one: i32, other: i32) {
        self.cut(one, other);
        self.cut(other, one);
    }

    pub fn heal(&self) {
        self.cuts.send_modify(Cuts::clear);
    }

    /// From now on connections end after a few bytes, anywhere in what they carry; `0` for not any more.
    pub fn end_connections_within(&self, bytes: u64) {
        self.bytes_max.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.relays.iter().for_each(AbortHandle::abort);
    }
}

/// Carries one connection until one side ends it. Errors are ends, too.
async fn relay(
    mut stream: TcpStream,
    bound: String,
    to: i32,
    cuts: watch::Receiver<Cuts>,
    bytes_max: Arc<AtomicU64>,
) -> Option<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    // Another place in each connection, and the same ones in each run that makes as many.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    let mut head = vec![0; HEAD];
    stream.read_exact(&mut head).await.ok()?;
    let length = usize::try_from(i16::from_be_bytes([head[12], head[13]])).unwrap_or(0);
    head.resize(HEAD + length, 0);
    stream.read_exact(&mut head[HEAD..]).await.ok()?;
    let name = std::str::from_utf8(&head[HEAD..]).unwrap_or_default();
    // A stranger is nobody whose words are cut off.
    let from = name.rsplit('-').next().and_then(|id| id.parse().ok()).unwrap_or(0);
    passes(&mut cuts.clone(), from, to).await?;
    let mut onwards = TcpStream::connect(&bound).await.ok()?;
    onwards.write_all(&head).await.ok()?;
    let (client, server) = (stream.split(), onwards.split());
    let limit = |share: u64| {
        let bytes_max = Arc::clone(&bytes_max);
        move || match bytes_max.load(Ordering::Relaxed) {
            0 => u64::MAX,
            bytes_max => 1 + number.wrapping_mul(share) % bytes_max,
        }
    };
    // The first of the two that ends ends the other.
    tokio::select! {
        () = carry(client.0, server.1, cuts.clone(), (from, to), limit(3)) => {}
        () = carry(server.0, client.1, cuts, (to, from), limit(7)) => {}
    }
    Some(())
}

async fn carry(
    mut from: tcp::ReadHalf<'_>,
    mut to: tcp::WriteHalf<'_>,
    mut cuts: watch::Receiver<Cuts>,
    way: (i32, i32),
    limit: impl Fn() -> u64,
) {
    let (mut carried, mut buffer) = (0, vec![0; 4_096]);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let left = limit().saturating_sub(carried);
        let kept = read.min(usize::try_from(left).unwrap_or(usize::MAX));
        if passes(&mut cuts, way.0, way.1).await.is_none()
            || to.write_all(&buffer[..kept]).await.is_err()
            || kept < read
        {
            return;
        }
        carried += kept as u64;
    }
}

/// Waits until words of `from` reach `to`; `None` when the test is over.
async fn passes(cuts: &mut watch::Receiver<Cuts>, from: i32, to: i32) -> Option<()> {
    cuts.wait_for(|cuts| !cuts.contains(&(from, to))).await.ok().map(drop)
}
