//! The way from this node to the active controller, wherever it is: one connection, kept and made anew, or the control thread of this process
//! where this node is the active controller itself (Kafka's `NodeToControllerChannelManager`).
//!
//! Handlers and the broker's own tasks ask through it. It asks again, after a pause, whoever leads by then, when an answer says that this was not
//! the controller, makes no sense or does not come, until the caller's patience ends; so what is asked must bear to be decided twice, as in
//! Kafka. It decides nothing itself, and it opens no connection before the first request that needs one.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gregor_channel::{Backoff, Channel, ChannelError, ChannelOptions, Security, authority};
use gregor_messages::{
    AddRaftVoterRequest, AllocateProducerIdsRequest, AlterClientQuotasRequest, AlterConfigsRequest,
    AlterPartitionReassignmentsRequest, AlterPartitionRequest, AlterUserScramCredentialsRequest,
    AssignReplicasToDirsRequest, BrokerHeartbeatRequest, BrokerRegistrationRequest, ControllerRegistrationRequest,
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeQuorumRequest, ElectLeadersRequest,
    EnvelopeRequest, IncrementalAlterConfigsRequest, ListPartitionReassignmentsRequest, RemoveRaftVoterRequest,
    UnregisterBrokerRequest, UnregisterControllerRequest, UpdateFeaturesRequest,
};
use gregor_types::{BrokerId, ErrorCode, KString};
use gregor_wire::Message as _;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout_at},
};

use crate::{
    control::{Answered, ControlHandle, QuorumLeader},
    envelope,
};

/// Requests that wait for an answer; whoever comes beyond them is refused at once.
const WAITING_MAX: usize = 1_000;
/// Requests on the connection at a time.
const IN_FLIGHT_MAX: usize = 5;
/// Pauses before the controller is asked again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long a connection may wait for one answer before another is made.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// A request that the active controller decides.
pub trait ToController: Answered + Clone {
    /// Whether the answer says that who answered is not, or not any more, the active controller.
    fn is_not_controller(response: &Self::Response) -> bool;
}

/// Why the controller's answer is not there.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It may be decided all the same; whoever asked has to look.
    #[error("the controller did not answer in time{}", .0.as_ref().map(|last| format!(" (last: {last})")).unwrap_or_default())]
    TimedOut(Option<ChannelError>),
    /// The active controller does not serve this request in a version that this node speaks.
    #[error("the active controller does not take this request: {0}")]
    Unsupported(ChannelError),
    /// Too many requests wait already.
    #[error("too many requests wait for the controller already")]
    Full,
    /// The controller did not take the envelope around a client's request, or answered what is none.
    #[error("the active controller did not take a forwarded request: {0}")]
    Envelope(ErrorCode),
    /// The request cannot be written.
    #[error("a request to the controller cannot be written: {0}")]
    Encode(#[from] gregor_wire::EncodeError),
    /// This node stops.
    #[error("this node is stopping")]
    Closed,
}

impl LinkError {
    /// What a client is told (Kafka's `ForwardingManager`).
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TimedOut(_) | Self::Full => ErrorCode::RequestTimedOut,
            Self::Unsupported(_) => ErrorCode::UnsupportedVersion,
            // Something is wrong between the nodes, of which a client would not expect to hear.
            Self::Envelope(_) | Self::Encode(_) => ErrorCode::UnknownServerError,
            Self::Closed => ErrorCode::NotController,
        }
    }
}

/// For whom a request is forwarded (KIP-590).
#[derive(Debug, Clone)]
pub struct ForwardedFor {
    /// The principal's name.
    pub principal: KString,
    /// Where the client is.
    pub address: IpAddr,
    /// What the client calls itself.
    pub client_id: Option<KString>,
    /// The number that it gave the request.
    pub correlation_id: i32,
}

/// See the module's documentation. Each has a connection of its own, so that one kind of request does not wait behind another.
pub struct ControllerLink {
    node_id: BrokerId,
    control: ControlHandle,
    leader: watch::Receiver<QuorumLeader>,
    security: Security,
    waiting: Semaphore,
    current: Mutex<Option<Channel>>,
}

/// Where a request goes.
enum Way {
    /// To this node's own controller.
    Here,
    To(Channel),
    /// Nobody is known to lead.
    Nowhere,
}

impl ControllerLink {
    /// The link of a node that knows from `leader` whom to ask.
    pub fn new(
        node_id: BrokerId,
        control: ControlHandle,
        leader: watch::Receiver<QuorumLeader>,
        security: Security,
    ) -> Self {
        Self { node_id, control, leader, security, waiting: Semaphore::new(WAITING_MAX), current: Mutex::default() }
    }

    /// The link of a node, which reaches controllers by `security`.
    pub(crate) fn of_node(node_id: BrokerId, control: &ControlHandle, security: Security) -> Arc<Self> {
        Arc::new(Self::new(node_id, control.clone(), control.quorum_leader(), security))
    }

    /// Asks for this node itself.
    pub async fn ask<R: ToController>(&self, request: R, patience: Duration) -> Result<R::Response, LinkError> {
        self.until_answered(*R::VERSIONS.end(), &request, patience, None).await
    }

    /// Asks for a client, in an envelope where the controller is another node (KIP-590).
    pub async fn forward<R: ToController>(
        &self,
        request: R,
        version: i16,
        client: &ForwardedFor,
        patience: Duration,
    ) -> Result<R::Response, LinkError> {
        let sealed = envelope::seal(&request, version, client)?;
        self.until_answered(version, &request, patience, Some((sealed, client.correlation_id))).await
    }

    /// Asks whoever leads, again and again, until somebody answers as the controller.
    async fn until_answered<R: ToController>(
        &self,
        version: i16,
        request: &R,
        patience: Duration,
        sealed: Option<(EnvelopeRequest, i32)>,
    ) -> Result<R::Response, LinkError> {
        let deadline = Instant::now() + patience;
        let _place = self.waiting.try_acquire().map_err(|_| LinkError::Full)?;
        let mut leaders = self.leader.clone();
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        let mut last = None;
        loop {
            let leader = leaders.borrow_and_update().clone();
            let asked = async {
                match self.way(&leader) {
                    Way::Nowhere => Ok(None),
                    Way::Here => {
                        self.control.ask(version, request.clone()).await.map(Some).map_err(|_| LinkError::Closed.into())
                    }
                    Way::To(channel) => {
                        let wait = REQUEST_TIMEOUT.min(deadline - Instant::now());
                        match &sealed {
                            None => Ok(Some(channel.call_with(R::VERSIONS, wait, |_| request.clone()).await?.1)),
                            Some((sealed, correlation_id)) => {
                                forward::<R>(&channel, wait, sealed, version, *correlation_id).await
                            }
                        }
                    }
                }
            };
            let known = leader.leader.is_some();
            tokio::select! {
                biased;
                answer = timeout_at(deadline, asked) => match answer {
                    Ok(Ok(Some(response))) if !R::is_not_controller(&response) => return Ok(response),
                    Ok(Ok(_)) => {}
                    Ok(Err(Failure::Link(error))) => return Err(error),
                    Ok(Err(Failure::Channel(error @ (ChannelError::Unsupported { .. } | ChannelError::Encode { .. })))) => {
                        return Err(LinkError::Unsupported(error));
                    }
                    Ok(Err(Failure::Channel(error))) => {
                        tracing::debug!(%error, "the controller is asked again");
                        last = Some(error);
                    }
                    Err(_) => return Err(LinkError::TimedOut(last)),
                },
                // Whoever leads now will never answer for the one that led: nobody waits for that one any more.
                moved = moved_from(&mut leaders, &leader) => if moved { continue } else { return Err(LinkError::Closed) },
            }
            let pause = if known { backoff.next_pause() } else { patience };
            let again = (Instant::now() + pause).min(deadline);
            match timeout_at(again, moved_from(&mut leaders, &leader)).await {
                Ok(false) => return Err(LinkError::Closed),
                Ok(true) => backoff.reset(),
                Err(_) if Instant::now() >= deadline => return Err(LinkError::TimedOut(last)),
                Err(_) => {}
            }
        }
    }

    fn way(&self, leader: &QuorumLeader) -> Way {
        let endpoint = match (leader.leader, &leader.endpoint) {
            (Some(id), _) if id == self.node_id => return Way::Here,
            (Some(_), Some(endpoint)) => endpoint,
            _ => return Way::Nowhere,
        };
        let address = authority(&endpoint.host, endpoint.port);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = current.as_ref().filter(|channel| channel.address() == address) {
            return Way::To(channel.clone());
        }
        let options = ChannelOptions {
            client_id: KString::from(format!("node-{}-to-controller", self.node_id).as_str()),
            security: self.security.clone(),
            request_timeout: REQUEST_TIMEOUT,
            in_flight_max: IN_FLIGHT_MAX,
            frame_bytes_max: ANSWER_BYTES_MAX,
            backoff_min: BACKOFF_MIN,
            backoff_max: BACKOFF_MAX,
            ..ChannelOptions::default()
        };
        let channel = Channel::new(address, options);
        *current = Some(channel.clone());
        Way::To(channel)
    }
}

impl std::fmt::Debug for ControllerLink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ControllerLink({:?})", *self.leader.borrow())
    }
}

/// Why one attempt failed.
enum Failure {
    /// Another may succeed.
    Channel(ChannelError),
    /// No other will.
    Link(LinkError),
}

impl From<ChannelError> for Failure {
    fn from(error: ChannelError) -> Self {
        Self::Channel(error)
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// Sends an envelope once; `None` where who answered is not the controller.
async fn forward<R: ToController>(
    channel: &Channel,
    wait: Duration,
    sealed: &EnvelopeRequest,
    version: i16,
    correlation_id: i32,
) -> Result<Option<R::Response>, Failure> {
    let (_, answer) = channel.call_with(EnvelopeRequest::VERSIONS, wait, |_| sealed.clone()).await?;
    match ErrorCode::from(answer.error_code) {
        ErrorCode::None => {}
        ErrorCode::NotController => return Ok(None),
        error => return Err(LinkError::Envelope(error).into()),
    }
    let opened = envelope::open_answer::<R>(answer, version, correlation_id);
    opened.map(Some).ok_or(Failure::Link(LinkError::Envelope(ErrorCode::UnknownServerError)))
}

/// Until somebody else is to be asked; `false` when nobody will say so any more.
async fn moved_from(leaders: &mut watch::Receiver<QuorumLeader>, asked: &QuorumLeader) -> bool {
    leaders.wait_for(|now| (now.leader, &now.endpoint) != (asked.leader, &asked.endpoint)).await.is_ok()
}

/// What the quorum answers, which has another word for that.
macro_rules! to_quorum {
    ($($request:ident),*) => {
        $(impl ToController for $request {
            fn is_not_controller(response: &Self::Response) -> bool {
                response.error_code == ErrorCode::NotLeaderOrFollower.code()
            }
        })*
    };
}

to_quorum!(AddRaftVoterRequest, RemoveRaftVoterRequest);

impl ToController for DescribeQuorumRequest {
    // It says so of the partition that it was asked about.
    fn is_not_controller(response: &Self::Response) -> bool {
        let partitions = response.topics.iter().flat_map(|topic| &topic.partitions).map(|one| one.error_code);
        partitions.chain([response.error_code]).any(|code| code == ErrorCode::NotLeaderOrFollower.code())
    }
}

const NOT_CONTROLLER: i16 = ErrorCode::NotController.code();

impl ToController for ElectLeadersRequest {
    // Version 0 says so of the partitions alone.
    fn is_not_controller(response: &Self::Response) -> bool {
        let partitions = response.replica_election_results.iter().flat_map(|topic| &topic.partition_result);
        partitions.map(|one| one.error_code).chain([response.error_code]).any(|code| code == NOT_CONTROLLER)
    }
}

macro_rules! to_controller {
    ($($request:ident),*; by item $($items:ident $field:ident),*) => {
        $(impl ToController for $request {
            fn is_not_controller(response: &Self::Response) -> bool {
                response.error_code == NOT_CONTROLLER
            }
        })*
        $(impl ToController for $items {
            fn is_not_controller(response: &Self::Response) -> bool {
                response.$field.iter().any(|item| item.error_code == NOT_CONTROLLER)
            }
        })*
    };
}

to_controller!(
    AllocateProducerIdsRequest, AlterPartitionReassignmentsRequest, AlterPartitionRequest, AssignReplicasToDirsRequest,
    BrokerHeartbeatRequest, BrokerRegistrationRequest, ControllerRegistrationRequest, ListPartitionReassignmentsRequest,
    UnregisterBrokerRequest, UnregisterControllerRequest, UpdateFeaturesRequest;
    by item AlterClientQuotasRequest entries, AlterConfigsRequest responses, AlterUserScramCredentialsRequest results,
    CreatePartitionsRequest results, CreateTopicsRequest topics,
    DeleteTopicsRequest responses, IncrementalAlterConfigsRequest responses
);
