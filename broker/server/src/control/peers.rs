//! Requests of this node's quorum on their way to other nodes, and what came back.
//!
//! The driver hands them over one by one, never a second one for a node before the first is answered. Each is tried once, on a connection
//! that is kept for the next: whether and when to ask again is the quorum's to decide. A host is resolved anew for each connection. Nobody waits
//! for the answer of a controller that does not lead any more, to what only the active one decides.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gregor_channel::{Channel, ChannelError, ChannelOptions, Security, authority};
use gregor_config::BrokerConfig;
use gregor_messages::{
    ApiVersionsRequest, BrokerHeartbeatRequest, BrokerRegistrationRequest, ControllerRegistrationRequest, FetchRequest,
    VoteRequest, VoteResponse, fetch_request::ReplicaState,
};
use gregor_node::LifecycleInput;
use gregor_raft::{Endpoint, Outgoing, Response};
use gregor_types::{BrokerId, ErrorCode};
use gregor_wire::Message as _;
use tokio::sync::{mpsc, watch};

use super::QuorumLeader;

/// Answers that wait for the driver. A node has one request under way at most, so this is far above what comes at once.
pub(super) const HEARD_MAX: usize = 100;
/// Connections that are kept. Far above any quorum; beyond it all are made anew.
const CHANNELS_MAX: usize = 1_000;
/// The longest answer: 8 MiB of records, or one batch that is as large, and what is around them.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// The longest pause before a peer that was not reached is dialed again (`reconnect.backoff.max.ms` of `KafkaNetworkChannel`).
const REDIAL_MAX: Duration = Duration::from_millis(500);
/// The version of Fetch from which a replica names itself in another field.
const FETCH_WITH_REPLICA_STATE: i16 = 15;
/// The version of Vote from which a voter can be asked whether it would vote (KIP-996).
const VOTE_WITH_PRE_VOTE: i16 = 2;

/// What came of a request.
#[derive(Debug)]
pub enum Heard {
    /// The answer of a node to the quorum; `None` where none came.
    Response {
        /// The node that was asked.
        from: BrokerId,
        /// What it said.
        response: Option<Response>,
    },
    /// The active controller's answer to the registration of this one; `None` where none came.
    Registered(Option<ErrorCode>),
    /// The active controller's answer to this broker's registration or heartbeat, or that none came.
    Broker(LifecycleInput),
}

/// What this broker asks of the active controller.
#[derive(Debug, Clone)]
pub enum OfBroker {
    /// It starts.
    Registration(BrokerRegistrationRequest),
    /// It is alive.
    Heartbeat(BrokerHeartbeatRequest),
}

/// A request for another node that a simulation carries itself.
#[derive(Debug, Clone)]
pub struct Posted {
    /// The node, as the quorum names it: a bootstrap server has no other name than its place among them.
    pub to: BrokerId,
    /// Where it listens.
    pub address: Endpoint,
    /// What it is asked.
    pub request: NodeRequest,
}

/// What a node asks of another one.
#[derive(Debug, Clone)]
pub enum NodeRequest {
    /// Something that the quorum answers.
    Quorum(Outgoing),
    /// A controller registers.
    Controller(ControllerRegistrationRequest),
    /// A broker speaks of itself.
    Broker(OfBroker),
}

impl NodeRequest {
    /// What its sender hears where `asked` does not answer.
    pub const fn unanswered(&self, asked: BrokerId) -> Heard {
        match self {
            Self::Quorum(_) => Heard::Response { from: asked, response: None },
            Self::Controller(_) => Heard::Registered(None),
            Self::Broker(request) => Heard::Broker(request.unanswered()),
        }
    }
}

impl OfBroker {
    /// What its life hears where nobody answered.
    pub const fn unanswered(&self) -> LifecycleInput {
        match self {
            Self::Registration(_) => LifecycleInput::RegistrationAnswered(None),
            Self::Heartbeat(_) => LifecycleInput::HeartbeatAnswered(None),
        }
    }
}

/// The way to other nodes.
pub(super) trait Network: Send {
    /// Sends a request of the quorum to a node at this address.
    fn send(&mut self, to: BrokerId, address: &Endpoint, request: Outgoing);
    /// Sends the registration of this controller to the active one.
    fn register(&mut self, leader: BrokerId, address: &Endpoint, request: ControllerRegistrationRequest);
    /// Sends what this broker says of itself to the active controller.
    fn tell(&mut self, leader: BrokerId, address: &Endpoint, request: OfBroker);
}

/// Connections, on the control thread's own runtime.
pub(super) struct Peers {
    options: ChannelOptions,
    channels: BTreeMap<BrokerId, Channel>,
    /// Where the last registration went, beside the quorum's requests.
    registrar: Option<Channel>,
    /// Where the last heartbeat went: nothing else makes it wait.
    heartbeats: Option<Channel>,
    leader: watch::Receiver<QuorumLeader>,
    heard: mpsc::Sender<Heard>,
}

/// Requests that a simulation carries itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Outbox(Arc<Mutex<VecDeque<Posted>>>);

impl Peers {
    /// Peers that are reached by `security`; `leader` tells who leads.
    pub(super) fn new(
        config: &BrokerConfig,
        security: Security,
        leader: watch::Receiver<QuorumLeader>,
        heard: mpsc::Sender<Heard>,
    ) -> Self {
        let milliseconds = |time: i64| Duration::from_millis(time.max(1).unsigned_abs());
        let request_timeout = milliseconds(config.controller_quorum_request_timeout_ms);
        let options = ChannelOptions {
            client_id: format!("raft-client-{}", config.node_id).as_str().into(),
            security,
            connect_timeout: request_timeout,
            request_timeout,
            in_flight_max: 1,
            frame_bytes_max: ANSWER_BYTES_MAX,
            backoff_min: milliseconds(config.controller_quorum_retry_backoff_ms),
            backoff_max: REDIAL_MAX,
        };
        Self { options, channels: BTreeMap::new(), registrar: None, heartbeats: None, leader, heard }
    }

    fn dial(&self, address: &Endpoint) -> Channel {
        Channel::new(authority(&address.host, address.port), self.options.clone())
    }
}

impl Network for Peers {
    fn send(&mut self, to: BrokerId, address: &Endpoint, request: Outgoing) {
        let known = self.channels.get(&to).filter(|channel| reaches(channel, address)).cloned();
        let channel = known.unwrap_or_else(|| {
            if self.channels.len() >= CHANNELS_MAX {
                self.channels.clear();
            }
            let channel = self.dial(address);
            self.channels.insert(to, channel.clone());
            channel
        });
        let (heard, timeout) = (self.heard.clone(), self.options.request_timeout);
        tokio::spawn(async move {
            let answer = ask(&channel, timeout, request).await;
            let response = answer.inspect_err(|error| give_up(to, &channel, error)).ok();
            // A driver that has ended needs no answer.
            let _ = heard.send(Heard::Response { from: to, response }).await;
        });
    }

    fn register(&mut self, leader: BrokerId, address: &Endpoint, request: ControllerRegistrationRequest) {
        let known = self.registrar.take().filter(|channel| reaches(channel, address));
        let channel = known.unwrap_or_else(|| self.dial(address));
        self.registrar = Some(channel.clone());
        let (heard, led) = (self.heard.clone(), self.leader.clone());
        tokio::spawn(async move {
            let answer = while_it_leads(led, leader, &channel, channel.call(&request)).await;
            let error = answer.map(|answer| ErrorCode::from(answer.error_code));
            // A driver that has ended needs no answer.
            let _ = heard.send(Heard::Registered(error)).await;
        });
    }

    fn tell(&mut self, leader: BrokerId, address: &Endpoint, request: OfBroker) {
        let known = self.heartbeats.take().filter(|channel| reaches(channel, address));
        let channel = known.unwrap_or_else(|| self.dial(address));
        self.heartbeats = Some(channel.clone());
        let (heard, led) = (self.heard.clone(), self.leader.clone());
        tokio::spawn(async move {
            let input = match request {
                OfBroker::Registration(request) => LifecycleInput::RegistrationAnswered(
                    while_it_leads(led, leader, &channel, channel.call(&request)).await,
                ),
                OfBroker::Heartbeat(request) => LifecycleInput::HeartbeatAnswered(
                    while_it_leads(led, leader, &channel, channel.call(&request)).await,
                ),
            };
            // A driver that has ended needs no answer.
            let _ = heard.send(Heard::Broker(input)).await;
        });
    }
}

impl Outbox {
    /// The oldest request that was not taken yet.
    pub(super) fn take(&self) -> Option<Posted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn post(&self, to: BrokerId, address: &Endpoint, request: NodeRequest) {
        let posted = Posted { to, address: address.clone(), request };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(posted);
    }
}

impl Network for Outbox {
    fn send(&mut self, to: BrokerId, address: &Endpoint, request: Outgoing) {
        self.post(to, address, NodeRequest::Quorum(request));
    }

    fn register(&mut self, leader: BrokerId, address: &Endpoint, request: ControllerRegistrationRequest) {
        self.post(leader, address, NodeRequest::Controller(request));
    }

    fn tell(&mut self, leader: BrokerId, address: &Endpoint, request: OfBroker) {
        self.post(leader, address, NodeRequest::Broker(request));
    }
}

fn reaches(channel: &Channel, address: &Endpoint) -> bool {
    channel.address() == authority(&address.host, address.port)
}

/// A peer that is silent may be gone, and its name may stand for another address by now.
fn give_up(node: BrokerId, channel: &Channel, error: &ChannelError) {
    tracing::debug!(%node, %error, "a controller gave no answer");
    if matches!(error, ChannelError::TimedOut { .. }) {
        channel.disconnect();
    }
}

/// The answer of who leads, unless that is somebody else before it comes. A controller that was cut off may not answer for long, and would be
/// waited for while the broker's session with its successor runs out.
async fn while_it_leads<A>(
    mut led: watch::Receiver<QuorumLeader>,
    leader: BrokerId,
    channel: &Channel,
    answer: impl Future<Output = Result<A, ChannelError>>,
) -> Option<A> {
    tokio::select! {
        biased;
        answer = answer => answer.inspect_err(|error| give_up(leader, channel, error)).ok(),
        // An error means that the driver has ended, which needs no answer.
        _ = led.wait_for(|now| now.leader != Some(leader)) => {
            channel.disconnect();
            None
        }
    }
}

async fn ask(channel: &Channel, timeout: Duration, request: Outgoing) -> Result<Response, ChannelError> {
    Ok(match request {
        Outgoing::Vote(request) => Response::Vote(ask_for_vote(channel, timeout, request).await?),
        Outgoing::BeginQuorumEpoch(request) => Response::BeginQuorumEpoch(channel.call(&request).await?),
        Outgoing::EndQuorumEpoch(request) => Response::EndQuorumEpoch(channel.call(&request).await?),
        Outgoing::Fetch(mut request) => {
            // The leader may hold it for so long before it has anything to say.
            let wait = timeout + Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
            let build = |version| {
                if version >= FETCH_WITH_REPLICA_STATE {
                    request.replica_id = -1;
                } else {
                    request.replica_state = ReplicaState::default();
                }
                request
            };
            Response::Fetch(channel.call_with(FetchRequest::VERSIONS, wait, build).await?.1)
        }
        Outgoing::FetchSnapshot(request) => Response::FetchSnapshot(channel.call(&request).await?),
        Outgoing::ApiVersions(_) => {
            let request = ApiVersionsRequest {
                client_software_name: "gregor".into(),
                client_software_version: env!("CARGO_PKG_VERSION").into(),
                ..Default::default()
            };
            Response::ApiVersions(channel.call(&request).await?)
        }
        Outgoing::AddRaftVoter(request) => Response::AddRaftVoter(channel.call(&request).await?),
        Outgoing::RemoveRaftVoter(request) => Response::RemoveRaftVoter(channel.call(&request).await?),
        Outgoing::UpdateRaftVoter(request) => Response::UpdateRaftVoter(channel.call(&request).await?),
    })
}

/// A vote, or whether one would be given. To voters of Kafka before 4.0 the latter cannot be put: the quorum is told so as by an answer (KIP-996).
async fn ask_for_vote(
    channel: &Channel,
    timeout: Duration,
    request: VoteRequest,
) -> Result<VoteResponse, ChannelError> {
    let is_question = request.topics.iter().flat_map(|topic| &topic.partitions).any(|ballot| ballot.pre_vote);
    if !is_question {
        return channel.call(&request).await;
    }
    let versions = VOTE_WITH_PRE_VOTE..=*VoteRequest::VERSIONS.end();
    match channel.call_with(versions, timeout, |_| request).await {
        Ok((_, response)) => Ok(response),
        Err(ChannelError::Unsupported { served: Some(_), .. }) => {
            Ok(VoteResponse { error_code: ErrorCode::UnsupportedVersion.code(), ..Default::default() })
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use gregor_config::Properties;
    use gregor_messages::{ApiVersionsResponse, api_versions_response::ApiVersion, vote_request};
    use gregor_types::LeaderEpoch;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn config() -> BrokerConfig {
        // So long that no test waits for it.
        let text = "node.id=1\nprocess.roles=broker\ncontroller.listener.names=C\nlisteners=PLAINTEXT://127.0.0.1:0\nlog.dirs=/d\n\
                    controller.quorum.bootstrap.servers=h:1\ncontroller.quorum.request.timeout.ms=3600000\n";
        BrokerConfig::from_properties(&Properties::parse(text).unwrap()).unwrap().0
    }

    #[tokio::test]
    async fn nobody_waits_for_the_answer_of_a_controller_that_does_not_lead_any_more() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let address = Endpoint { name: "C".into(), host: "127.0.0.1".into(), port };
        let leads =
            |id| QuorumLeader { epoch: LeaderEpoch(id), leader: Some(BrokerId(id)), endpoint: Some(address.clone()) };
        let (leader, led) = watch::channel(leads(2));
        let (heard, mut hears) = mpsc::channel(HEARD_MAX);
        let mut peers = Peers::new(&config(), Security::Plaintext, led, heard);
        peers.tell(BrokerId(2), &address, OfBroker::Heartbeat(BrokerHeartbeatRequest::default()));
        peers.register(BrokerId(2), &address, ControllerRegistrationRequest::default());
        let _under_way = [silent.accept().await.unwrap(), silent.accept().await.unwrap()];
        leader.send_replace(leads(3));
        let mut answers = Vec::new();
        for _ in 0..2 {
            let answer = tokio::time::timeout(Duration::from_secs(30), hears.recv()).await;
            answers.push(answer.expect("nobody said in time that no answer comes").unwrap());
        }
        let of_broker = |heard: &Heard| matches!(heard, Heard::Broker(LifecycleInput::HeartbeatAnswered(None)));
        assert!(answers.iter().any(of_broker), "{answers:?}");
        assert!(answers.iter().any(|heard| matches!(heard, Heard::Registered(None))), "{answers:?}");
    }

    /// A peer that serves Vote in these versions, as far as it says so.
    async fn peer_with_votes(max_version: i16) -> Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            loop {
                let Ok(length) = stream.read_u32().await else { return };
                let mut request = vec![0; length as usize];
                stream.read_exact(&mut request).await.unwrap();
                let number = |at: usize| i16::from_be_bytes([request[at], request[at + 1]]);
                let vote = ApiVersion { api_key: 52, min_version: 0, max_version, ..Default::default() };
                let answer = match number(0) {
                    18 => {
                        ApiVersionsResponse { api_keys: vec![vote], ..Default::default() }.to_bytes(number(2)).unwrap()
                    }
                    // A flexible header ends with its tagged fields.
                    _ => [&[0][..], &VoteResponse::default().to_bytes(number(2)).unwrap()].concat().into(),
                };
                stream.write_u32(answer.len() as u32 + 4).await.unwrap();
                stream.write_all(&request[4..8]).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        Channel::new(address.to_string(), ChannelOptions::default())
    }

    #[tokio::test]
    async fn a_voter_that_cannot_be_asked_whether_it_would_vote_is_one_that_says_so() {
        for (max_version, pre_vote, expected) in [
            (1, true, ErrorCode::UnsupportedVersion),
            (1, false, ErrorCode::None),
            (2, true, ErrorCode::None),
            (2, false, ErrorCode::None),
        ] {
            let channel = peer_with_votes(max_version).await;
            let ballot = vote_request::PartitionData { pre_vote, ..Default::default() };
            let topic = vote_request::TopicData { partitions: vec![ballot], ..Default::default() };
            let request = VoteRequest { topics: vec![topic], ..Default::default() };
            let answer = ask(&channel, Duration::from_secs(30), Outgoing::Vote(request)).await;
            let Ok(Response::Vote(vote)) = &answer else { panic!("version {max_version}: {answer:?}") };
            assert_eq!(ErrorCode::from(vote.error_code), expected, "version {max_version}, pre-vote {pre_vote}");
        }
    }
}
