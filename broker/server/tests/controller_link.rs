//! The way to the active controller over real sockets: a controller that moves, dies, talks nonsense or says that it is none; and what an
//! envelope carries, seen from both of its ends.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use gregor_channel::Security;
use gregor_messages::{
    AllocateProducerIdsRequest, AllocateProducerIdsResponse, ApiKey, ApiVersionsRequest, ApiVersionsResponse,
    BrokerHeartbeatRequest, CreateTopicsRequest, CreateTopicsResponse, DefaultPrincipalData, EnvelopeRequest,
    EnvelopeResponse, Request, api_versions_response::ApiVersion, create_topics_request::CreatableTopic,
    create_topics_response::CreatableTopicResult,
};
use gregor_node::LifecycleConfig;
use gregor_raft::Endpoint;
use gregor_server::{
    control::{
        self, ControlHandle, ControlOptions, ControlThread, FormatOptions, ImageUpdate, InitialVoters,
        MetadataListener, QuorumLeader, format_storage,
    },
    controller_link::{ControllerLink, ForwardedFor, LinkError},
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, KString, LeaderEpoch, Timestamp, Uuid};
use gregor_wire::{Message, Reader, RequestHeader, ResponseHeader, Struct, Writer};
use support::{Client, DEADLINE, Home, envelope::envelope_of};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

const DIRECTORY: Uuid = Uuid(0x1111_2222_3333_4444_8555_6666_7777_8888);
/// Long enough for the worst of machines; no test waits for its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a controller does with the next request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    /// Answers it as the active controller.
    Answer,
    NotController,
    /// Ends the connection.
    Die,
    /// Answers with bytes that are no response.
    Garbage,
    /// Never answers.
    Silence,
    /// Refuses the envelope.
    EnvelopeError(ErrorCode),
    /// Answers with what is inside of another's envelope.
    OtherAnswer,
}

/// A controller that does as it is told; behind the end of what it was told, it answers.
struct Fake {
    address: SocketAddr,
    acts: Arc<Mutex<VecDeque<Act>>>,
    /// The requests that it took.
    taken: Arc<Mutex<Vec<(ApiKey, Bytes)>>>,
    asked: watch::Receiver<usize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Fake {
    async fn with(serves: &'static [ApiKey], acts: &[Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acts = Arc::new(Mutex::new(acts.iter().copied().collect::<VecDeque<_>>()));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (count, asked) = watch::channel(0);
        let (script, seen) = (Arc::clone(&acts), Arc::clone(&taken));
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, serves, Arc::clone(&script), Arc::clone(&seen), count.clone()));
            }
        });
        Self { address, acts, taken, asked, accepting }
    }

    async fn new(acts: &[Act]) -> Self {
        Self::with(&[ApiKey::AllocateProducerIds, ApiKey::Envelope, ApiKey::BrokerHeartbeat], acts).await
    }

    fn leads(&self, epoch: i32) -> QuorumLeader {
        QuorumLeader {
            epoch: LeaderEpoch(epoch),
            leader: Some(BrokerId(i32::from(self.address.port()))),
            endpoint: Some(Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: self.address.port() }),
        }
    }

    fn acts_left(&self) -> usize {
        self.acts.lock().unwrap().len()
    }

    async fn asked_times(&self, times: usize) {
        let mut asked = self.asked.clone();
        let enough = asked.wait_for(|asked| *asked >= times);
        tokio::time::timeout(DEADLINE, enough).await.expect("nobody asks").unwrap();
    }
}

async fn serve(
    mut stream: TcpStream,
    serves: &'static [ApiKey],
    acts: Arc<Mutex<VecDeque<Act>>>,
    taken: Arc<Mutex<Vec<(ApiKey, Bytes)>>>,
    count: watch::Sender<usize>,
) {
    loop {
        let Ok(length) = stream.read_i32().await else { return };
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        if stream.read_exact(&mut frame).await.is_err() {
            return;
        }
        let key = ApiKey::from_code(i16::from_be_bytes([frame[0], frame[1]])).unwrap();
        let version = i16::from_be_bytes([frame[2], frame[3]]);
        let mut reader = Reader::new(Bytes::from(frame));
        let header = RequestHeader::read(&mut reader, key.request_header_version(version)).unwrap();
        let correlation = header.correlation_id;
        if key == ApiKey::ApiVersions {
            let keys = serves.iter().chain([&ApiKey::ApiVersions]).map(|key| ApiVersion {
                api_key: key.code(),
                min_version: *key.stable_versions().start(),
                max_version: *key.stable_versions().end(),
                ..Default::default()
            });
            let response = ApiVersionsResponse { api_keys: keys.collect(), ..Default::default() };
            reply::<ApiVersionsRequest>(&mut stream, correlation, 0, version, &response).await;
            continue;
        }
        let body = reader.rest();
        taken.lock().unwrap().push((key, body.clone()));
        count.send_modify(|count| *count += 1);
        let act = acts.lock().unwrap().pop_front().unwrap_or(Act::Answer);
        match act {
            Act::Die => return,
            Act::Silence => continue,
            Act::Garbage => {
                let mut nonsense = 7_i32.to_be_bytes().to_vec();
                nonsense.extend(correlation.to_be_bytes());
                nonsense.extend([0xff; 3]);
                stream.write_all(&nonsense).await.unwrap();
                continue;
            }
            _ => {}
        }
        match key {
            ApiKey::AllocateProducerIds => {
                let error = if act == Act::NotController { ErrorCode::NotController } else { ErrorCode::None };
                let response = AllocateProducerIdsResponse {
                    error_code: error.code(),
                    producer_id_start: i64::from(stream.local_addr().unwrap().port()),
                    producer_id_len: 1,
                    ..Default::default()
                };
                reply::<AllocateProducerIdsRequest>(&mut stream, correlation, 1, version, &response).await;
            }
            ApiKey::Envelope => {
                let response = match act {
                    Act::NotController => enveloped(ErrorCode::NotController, None),
                    Act::EnvelopeError(error) => enveloped(error, None),
                    act => {
                        let envelope = EnvelopeRequest::decode(&mut Reader::new(body), 0).unwrap();
                        enveloped(ErrorCode::None, Some(create_topics_answer(&envelope, act == Act::OtherAnswer)))
                    }
                };
                reply::<EnvelopeRequest>(&mut stream, correlation, 1, version, &response).await;
            }
            other => panic!("nobody asks for {other:?}"),
        }
    }
}

fn enveloped(error: ErrorCode, response_data: Option<Bytes>) -> EnvelopeResponse {
    EnvelopeResponse { error_code: error.code(), response_data, ..Default::default() }
}

async fn reply<R: Request>(
    stream: &mut TcpStream,
    correlation_id: i32,
    header_version: i16,
    version: i16,
    response: &R::Response,
) {
    let mut writer = Writer::new();
    ResponseHeader { correlation_id, ..Default::default() }.write(&mut writer, header_version).unwrap();
    response.encode(&mut writer, version).unwrap();
    let body = writer.into_inner();
    stream.write_i32(i32::try_from(body.len()).unwrap()).await.unwrap();
    stream.write_all(&body).await.unwrap();
}

/// Says that every topic in an envelope's CreateTopics exists.
fn create_topics_answer(envelope: &EnvelopeRequest, other: bool) -> Bytes {
    let (header, request) = inside(envelope);
    let topics = request.topics.into_iter().map(|topic| CreatableTopicResult {
        name: topic.name,
        error_code: ErrorCode::TopicAlreadyExists.code(),
        ..Default::default()
    });
    let response = CreateTopicsResponse { topics: topics.collect(), ..Default::default() };
    let mut writer = Writer::new();
    let correlation_id = header.correlation_id + i32::from(other);
    ResponseHeader { correlation_id, ..Default::default() }.write(&mut writer, 1).unwrap();
    response.encode(&mut writer, header.request_api_version).unwrap();
    writer.into_inner().freeze()
}

fn inside(envelope: &EnvelopeRequest) -> (RequestHeader, CreateTopicsRequest) {
    let mut reader = Reader::new(envelope.request_data.clone());
    let header = RequestHeader::read(&mut reader, 2).unwrap();
    assert_eq!(header.request_api_key, ApiKey::CreateTopics.code());
    let request = CreateTopicsRequest::decode(&mut reader, header.request_api_version).unwrap();
    (header, request)
}

struct Nobody;

impl MetadataListener for Nobody {
    fn publish(&mut self, _: ImageUpdate) {}
}

/// The control thread of node 1, which knows no other node.
struct Local {
    control: ControlHandle,
    thread: ControlThread,
    _folder: tempfile::TempDir,
}

impl Local {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("data");
        let mut properties = gregor_config::Properties::default();
        properties.set("node.id", "1");
        properties.set("process.roles", "broker,controller");
        properties.set("listeners", "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093");
        properties.set("controller.listener.names", "CONTROLLER");
        properties.set("log.dirs", directory.to_str().unwrap());
        properties.set("controller.quorum.voters", "1@127.0.0.1:9093");
        let config = gregor_config::BrokerConfig::from_properties(&properties).unwrap().0;
        let format = FormatOptions {
            cluster_id: "cluster".into(),
            node_id: BrokerId(1),
            directories: vec![(directory.clone(), DIRECTORY)],
            metadata_directory: directory,
            voters: InitialVoters::None,
            metadata_version: 30,
            features: Vec::new(),
            ignore_formatted: false,
            now: Timestamp(1_700_000_000_000),
        };
        let disk = gregor_log::disk::RealDisk;
        format_storage(&disk, &format).unwrap();
        let broker = LifecycleConfig {
            id: BrokerId(1),
            cluster_id: "cluster".into(),
            incarnation: Uuid(7),
            listeners: vec![("PLAINTEXT".into(), "127.0.0.1".into(), 9092, 0)],
            rack: None,
            directories: vec![DIRECTORY],
            directory_failure_timeout: 30_000_000_000,
            previous_epoch: BrokerEpoch::NONE,
            heartbeat_interval: 2_000_000_000,
            registration_timeout: 20_000_000_000,
            session_timeout: 9_000_000_000,
        };
        let options = ControlOptions {
            config: Arc::new(config),
            disk: Arc::new(disk),
            cluster_id: "cluster".into(),
            metadata_directory_id: DIRECTORY,
            controller_endpoints: vec![Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: 9093 }],
            broker,
            listener: Box::new(Nobody),
        };
        let (control, thread) = control::start(options, Security::Plaintext).unwrap();
        Self { control, thread, _folder: folder }
    }

    fn link(&self, leader: QuorumLeader) -> (Arc<ControllerLink>, watch::Sender<QuorumLeader>) {
        let (sender, leaders) = watch::channel(leader);
        let link = ControllerLink::new(BrokerId(1), self.control.clone(), leaders, Security::Plaintext);
        (Arc::new(link), sender)
    }

    async fn stop(mut self) {
        self.control.stop().await.unwrap();
        self.thread.ended().await.unwrap();
    }
}

/// The first id of a block, which says which controller gave it.
async fn block(link: &ControllerLink) -> i64 {
    let request = AllocateProducerIdsRequest { broker_id: 1, broker_epoch: 5, ..Default::default() };
    let asked = tokio::time::timeout(DEADLINE, link.ask(request, PATIENCE)).await;
    asked.expect("no answer in time").unwrap().producer_id_start
}

fn client() -> ForwardedFor {
    ForwardedFor {
        principal: "alice".into(),
        address: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
        client_id: Some("her-client".into()),
        correlation_id: 77,
    }
}

async fn forward(link: &ControllerLink, name: &str) -> Result<Vec<(KString, ErrorCode)>, LinkError> {
    let client = client();
    let forwarded = link.forward(creation(name), 7, &client, PATIENCE);
    let response = tokio::time::timeout(DEADLINE, forwarded).await.expect("no answer in time")?;
    let results = response.topics.into_iter();
    Ok(results.map(|topic| (topic.name, ErrorCode::from(topic.error_code))).collect())
}

fn creation(name: &str) -> CreateTopicsRequest {
    let topic = CreatableTopic { name: name.into(), num_partitions: 1, replication_factor: 1, ..Default::default() };
    CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() }
}

#[tokio::test]
async fn a_request_survives_a_controller_that_dies_in_its_middle_talks_nonsense_or_is_none_any_more() {
    let local = Local::start();
    for act in [Act::Die, Act::Garbage, Act::NotController] {
        let fake = Fake::new(&[act, act]).await;
        let (link, _leader) = local.link(fake.leads(1));
        assert_eq!(block(&link).await, i64::from(fake.address.port()), "{act:?}");
        assert_eq!(fake.acts_left(), 0, "{act:?} was met");
        assert_eq!(fake.taken.lock().unwrap().len(), 3, "{act:?}: asked once more each time");
    }
    local.stop().await;
}

#[tokio::test]
async fn nobody_waits_for_a_silent_controller_once_another_leads() {
    let local = Local::start();
    let old = Fake::new(&[Act::Silence]).await;
    let new = Fake::new(&[]).await;
    let (link, leader) = local.link(old.leads(1));
    let asking = Arc::clone(&link);
    let asked = tokio::spawn(async move { block(&asking).await });
    old.asked_times(1).await;
    leader.send_replace(new.leads(2));
    assert_eq!(asked.await.unwrap(), i64::from(new.address.port()));
    assert_eq!(block(&link).await, i64::from(new.address.port()));
    assert_eq!(old.taken.lock().unwrap().len(), 1, "the one that led is not asked again");
    local.stop().await;
}

#[tokio::test]
async fn a_request_waits_for_a_leader_to_be_known_and_no_longer_than_its_patience() {
    let local = Local::start();
    let nobody = QuorumLeader { epoch: LeaderEpoch(1), leader: None, endpoint: None };
    let (link, leader) = local.link(nobody);
    let request = AllocateProducerIdsRequest::default();
    let refused = link.ask(request, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::RequestTimedOut, "{refused}");
    let asking = Arc::clone(&link);
    let asked = tokio::spawn(async move { block(&asking).await });
    let fake = Fake::new(&[]).await;
    leader.send_replace(fake.leads(2));
    assert_eq!(asked.await.unwrap(), i64::from(fake.address.port()));
    local.stop().await;
}

#[tokio::test]
async fn the_controller_of_this_node_is_asked_in_process() {
    let local = Local::start();
    let here = QuorumLeader { epoch: LeaderEpoch(1), leader: Some(BrokerId(1)), endpoint: None };
    let (link, _leader) = local.link(here);
    let request = BrokerHeartbeatRequest { broker_id: 9, broker_epoch: 5, ..Default::default() };
    let asked = tokio::time::timeout(DEADLINE, link.ask(request, PATIENCE)).await.expect("no answer in time").unwrap();
    assert_eq!(ErrorCode::from(asked.error_code), ErrorCode::StaleBrokerEpoch);
    local.stop().await;
}

#[tokio::test]
async fn a_controller_that_does_not_know_a_request_is_not_asked_twice() {
    let local = Local::start();
    let fake = Fake::with(&[ApiKey::BrokerHeartbeat], &[]).await;
    let (link, _leader) = local.link(fake.leads(1));
    let refused = forward(&link, "t").await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::UnsupportedVersion, "{refused}");
    local.stop().await;
}

#[tokio::test]
async fn an_envelope_carries_the_request_its_header_and_who_and_where_its_client_is() {
    let local = Local::start();
    let fake = Fake::new(&[Act::NotController, Act::Die]).await;
    let (link, _leader) = local.link(fake.leads(1));
    assert_eq!(forward(&link, "t").await.unwrap(), [("t".into(), ErrorCode::TopicAlreadyExists)]);
    let taken = fake.taken.lock().unwrap().clone();
    assert_eq!(taken.len(), 3, "NOT_CONTROLLER of the envelope and a lost connection are not the client's to hear");
    let envelope = EnvelopeRequest::decode(&mut Reader::new(taken[2].1.clone()), 0).unwrap();
    let (header, request) = inside(&envelope);
    assert_eq!((header.request_api_version, header.correlation_id), (7, 77));
    assert_eq!((header.client_id.as_deref(), request), (Some("her-client"), creation("t")));
    assert_eq!(&envelope.client_host_address[..], [10, 1, 2, 3]);
    let mut who = Reader::new(envelope.request_principal.unwrap());
    assert_eq!(who.i16().unwrap(), 0, "a version goes before it");
    let who = DefaultPrincipalData::decode(&mut who, 0).unwrap();
    assert_eq!((&*who.r#type, &*who.name, who.token_authenticated), ("User", "alice", false));
    local.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_an_envelope_is_no_error_that_a_client_would_expect() {
    let local = Local::start();
    for act in [Act::EnvelopeError(ErrorCode::PrincipalDeserializationFailure), Act::OtherAnswer] {
        let fake = Fake::new(&[act]).await;
        let (link, _leader) = local.link(fake.leads(1));
        let refused = forward(&link, "t").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::UnknownServerError, "{refused}");
    }
    local.stop().await;
}

/// An envelope for a CreateTopics, to be broken.
fn envelope(name: &str) -> EnvelopeRequest {
    envelope_of(7, &creation(name))
}

#[test]
fn a_controller_listener_answers_what_is_in_an_envelope_inside_of_one() {
    let home = Home::new();
    let node = home.start();
    let mut broker = Client::connect(node.address_of("CONTROLLER"));
    let answer = broker.call(0, &envelope("enveloped"));
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::None);
    let mut reader = Reader::new(answer.response_data.unwrap());
    assert_eq!(ResponseHeader::read(&mut reader, 1).unwrap().correlation_id, 77, "the client's own number");
    let created = CreateTopicsResponse::decode(&mut reader, 7).unwrap();
    reader.finish().unwrap();
    assert_eq!(ErrorCode::from(created.topics[0].error_code), ErrorCode::None);
    let again = broker.call(0, &envelope("enveloped")).response_data.unwrap();
    let mut reader = Reader::new(again);
    ResponseHeader::read(&mut reader, 1).unwrap();
    let again = CreateTopicsResponse::decode(&mut reader, 7).unwrap();
    let code = ErrorCode::from(again.topics[0].error_code);
    assert_eq!(code, ErrorCode::TopicAlreadyExists, "an error of what is inside stays inside");
    node.stop();
}

#[test]
fn an_envelope_that_is_wrong_gets_the_error_that_kafka_gives_and_changes_nothing() {
    let home = Home::new();
    let node = home.start();
    let mut broker = Client::connect(node.address_of("CONTROLLER"));
    let whole = || envelope("never");
    let unread = Bytes::from_static(&[0, 19, 0, 7, 1]);
    let unknown = Bytes::from_static(&[0x7f, 0, 0, 0, 0, 0, 0, 1]);
    let cut = |bytes: Bytes| bytes.slice(..bytes.len() - 3);
    let cases = [
        (
            "no principal",
            ErrorCode::PrincipalDeserializationFailure,
            EnvelopeRequest { request_principal: None, ..whole() },
        ),
        (
            "half a principal",
            ErrorCode::PrincipalDeserializationFailure,
            EnvelopeRequest { request_principal: whole().request_principal.map(cut), ..whole() },
        ),
        (
            "three bytes of an address",
            ErrorCode::InvalidRequest,
            EnvelopeRequest { client_host_address: Bytes::from_static(&[1, 2, 3]), ..whole() },
        ),
        ("no request", ErrorCode::UnsupportedVersion, EnvelopeRequest { request_data: Bytes::new(), ..whole() }),
        ("half a header", ErrorCode::UnsupportedVersion, EnvelopeRequest { request_data: unread, ..whole() }),
        (
            "half a request",
            ErrorCode::UnsupportedVersion,
            EnvelopeRequest { request_data: cut(whole().request_data), ..whole() },
        ),
        ("an unknown API", ErrorCode::UnsupportedVersion, EnvelopeRequest { request_data: unknown, ..whole() }),
        ("no client's request", ErrorCode::InvalidRequest, envelope_of(1, &BrokerHeartbeatRequest::default())),
        ("an envelope in an envelope", ErrorCode::InvalidRequest, envelope_of(0, &envelope("never"))),
    ];
    for (what, error, envelope) in cases {
        let answer = broker.call(0, &envelope);
        assert_eq!((ErrorCode::from(answer.error_code), answer.response_data), (error, None), "{what}");
    }
    let answer = broker.call(0, &envelope("now"));
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::None, "the connection goes on");
    node.stop();
}

#[test]
fn a_clients_listener_takes_no_envelope() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.client();
    client.send(0, &envelope("never"));
    assert!(client.is_closed());
    node.stop();
}
