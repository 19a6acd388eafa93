//! A channel against peers that are played: brokers of other versions, brokers that die, and peers that are no brokers.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use gregor_channel::{Channel, ChannelError, ChannelOptions};
use gregor_messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, DescribeClusterRequest, HeartbeatRequest, HeartbeatResponse,
    MetadataRequest, MetadataResponse, Request, api_versions_response::ApiVersion,
};
use gregor_types::ErrorCode;
use gregor_wire::{Message, Reader, RequestHeader, ResponseHeader, Struct, Writer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A broker that is played line by line.
struct Peer {
    listener: TcpListener,
}

/// One connection of it.
struct Line {
    stream: TcpStream,
}

impl Peer {
    async fn new() -> (Self, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = ChannelOptions {
            request_timeout: DEADLINE,
            backoff_min: Duration::from_millis(1),
            backoff_max: Duration::from_millis(5),
            in_flight_max: 2,
            frame_bytes_max: 1 << 20,
            ..ChannelOptions::default()
        };
        let channel = Channel::new(listener.local_addr().unwrap().to_string(), options);
        (Self { listener }, channel)
    }

    async fn accept(&self) -> Line {
        let (stream, _) = tokio::time::timeout(DEADLINE, self.listener.accept()).await.unwrap().unwrap();
        Line { stream }
    }

    /// A connection that has answered what it serves.
    async fn serve(&self, apis: &[(ApiKey, i16, i16)]) -> Line {
        let mut line = self.accept().await;
        let (header, _) = line.request().await;
        assert_eq!(header.request_api_key, ApiKey::ApiVersions.code());
        line.answer::<ApiVersionsRequest>(&header, header.request_api_version, &versions(apis)).await;
        line
    }
}

impl Line {
    async fn request(&mut self) -> (RequestHeader, Bytes) {
        let length = self.stream.read_u32().await.unwrap();
        let mut frame = vec![0; length as usize];
        self.stream.read_exact(&mut frame).await.unwrap();
        let key = ApiKey::from_code(i16::from_be_bytes([frame[0], frame[1]])).unwrap();
        let version = i16::from_be_bytes([frame[2], frame[3]]);
        let mut reader = Reader::new(frame.into());
        let header = RequestHeader::read(&mut reader, key.request_header_version(version)).unwrap();
        (header, reader.rest())
    }

    async fn answer<R: Request>(&mut self, header: &RequestHeader, version: i16, response: &R::Response) {
        let mut writer = Writer::new();
        let head = ResponseHeader { correlation_id: header.correlation_id, ..ResponseHeader::default() };
        head.write(&mut writer, R::KEY.response_header_version(version)).unwrap();
        response.encode(&mut writer, version).unwrap();
        self.send(&writer.into_bytes()).await;
    }

    async fn send(&mut self, frame: &[u8]) {
        let mut bytes = BytesMut::new();
        bytes.put_u32(frame.len() as u32);
        bytes.put_slice(frame);
        self.stream.write_all(&bytes).await.unwrap();
    }
}

fn versions(apis: &[(ApiKey, i16, i16)]) -> ApiVersionsResponse {
    let row = |(key, min, max): &(ApiKey, i16, i16)| ApiVersion {
        api_key: key.code(),
        min_version: *min,
        max_version: *max,
        ..Default::default()
    };
    ApiVersionsResponse { api_keys: apis.iter().map(row).collect(), ..Default::default() }
}

fn member(id: &str) -> HeartbeatRequest {
    HeartbeatRequest { group_id: "group".into(), member_id: id.into(), ..Default::default() }
}

#[tokio::test]
async fn an_older_broker_is_spoken_to_in_its_own_versions() {
    let (peer, channel) = Peer::new().await;
    let broker = async {
        let mut line = peer.accept().await;
        let (header, _) = line.request().await;
        assert_eq!(header.request_api_version, *ApiVersionsRequest::VERSIONS.end());
        let refused = ApiVersionsResponse {
            error_code: ErrorCode::UnsupportedVersion.code(),
            ..versions(&[(ApiKey::ApiVersions, 0, 3)])
        };
        line.answer::<ApiVersionsRequest>(&header, 0, &refused).await;
        let (header, _) = line.request().await;
        assert_eq!(header.request_api_version, 3, "it is asked again in the newest version that it knows");
        let served = versions(&[(ApiKey::ApiVersions, 0, 3), (ApiKey::Metadata, 0, 9)]);
        line.answer::<ApiVersionsRequest>(&header, 3, &served).await;
        let (header, _) = line.request().await;
        let response = MetadataResponse { controller_id: 7, ..Default::default() };
        line.answer::<MetadataRequest>(&header, header.request_api_version, &response).await;
        (line, header.request_api_version)
    };
    let request = MetadataRequest::default();
    let (response, (_line, version)) = tokio::join!(channel.call(&request), broker);
    assert_eq!((response.unwrap().controller_id, version), (7, 9));
    let missing = channel.call(&DescribeClusterRequest::default()).await.unwrap_err();
    assert!(matches!(missing, ChannelError::Unsupported { api: "DescribeCluster", served: None, .. }), "{missing}");
    assert!(!missing.is_retriable());
}

#[tokio::test]
async fn an_unstable_version_is_not_used_though_the_peer_offers_it() {
    let (peer, channel) = Peer::new().await;
    let newest = *ApiKey::InitProducerId.versions().end();
    assert!(ApiKey::InitProducerId.latest_version_is_unstable());
    let apis = [(ApiKey::InitProducerId, 0, newest)];
    let (version, _line) =
        tokio::join!(channel.version::<gregor_messages::InitProducerIdRequest>(0..=newest), peer.serve(&apis));
    assert_eq!(version.unwrap(), newest - 1);
}

#[tokio::test]
async fn each_caller_gets_the_answer_to_its_own_request() {
    let (peer, channel) = Peer::new().await;
    let broker = async {
        let mut line = peer.serve(&[(ApiKey::Heartbeat, 0, 4)]).await;
        let first = line.request().await;
        let second = line.request().await;
        // The other way round than they came.
        for (header, body) in [second, first] {
            let request = HeartbeatRequest::decode(&mut Reader::new(body), header.request_api_version).unwrap();
            let response =
                HeartbeatResponse { throttle_time_ms: request.member_id.parse().unwrap(), ..Default::default() };
            line.answer::<HeartbeatRequest>(&header, header.request_api_version, &response).await;
        }
        line
    };
    let (one, two) = (member("1"), member("2"));
    let (one, two, _line) = tokio::join!(channel.call(&one), channel.call(&two), broker);
    assert_eq!((one.unwrap().throttle_time_ms, two.unwrap().throttle_time_ms), (1, 2));
}

#[tokio::test]
async fn a_broker_that_dies_fails_what_is_under_way_and_is_connected_to_again() {
    let (peer, channel) = Peer::new().await;
    let broker = async {
        let mut line = peer.serve(&[(ApiKey::Heartbeat, 0, 4)]).await;
        line.request().await;
    };
    let request = member("1");
    let (failed, ()) = tokio::join!(channel.call(&request), broker);
    let failed = failed.unwrap_err();
    assert!(matches!(failed, ChannelError::Disconnected { .. }) && failed.is_retriable(), "{failed}");

    let broker = async {
        let mut line = peer.serve(&[(ApiKey::Heartbeat, 0, 4)]).await;
        let (header, _) = line.request().await;
        line.answer::<HeartbeatRequest>(&header, header.request_api_version, &HeartbeatResponse::default()).await;
        line
    };
    let (again, _line) = tokio::join!(channel.call(&request), broker);
    assert_eq!(again.unwrap(), HeartbeatResponse::default());
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_left_at_the_deadline() {
    let (peer, channel) = Peer::new().await;
    let broker = async {
        let mut line = peer.serve(&[(ApiKey::Heartbeat, 0, 4)]).await;
        line.request().await;
        // The channel hangs up: what is stuck here would hold up all that follows.
        assert_eq!(line.stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    };
    let wait = Duration::from_millis(300);
    let (failed, ()) = tokio::join!(channel.call_with(0..=4, wait, |_| member("1")), broker);
    assert!(matches!(failed.unwrap_err(), ChannelError::TimedOut { api: "Heartbeat", .. }));
}

#[tokio::test]
async fn no_more_requests_are_on_the_wire_than_allowed() {
    let (peer, channel) = Peer::new().await;
    let broker = async {
        let mut line = peer.serve(&[(ApiKey::Heartbeat, 0, 4)]).await;
        let (first, _) = line.request().await;
        line.request().await;
        let third = tokio::time::timeout(Duration::from_millis(200), line.stream.peek(&mut [0; 1])).await;
        assert!(third.is_err(), "the third request waits for an answer");
        line.answer::<HeartbeatRequest>(&first, first.request_api_version, &HeartbeatResponse::default()).await;
        line.request().await;
        line
    };
    let requests = [member("1"), member("2"), member("3")];
    let [one, two, three] = requests.each_ref().map(|request| channel.call(request));
    tokio::select! {
        _line = broker => {}
        _ = async { tokio::join!(one, two, three) } => panic!("two of them are never answered"),
    }
}

#[tokio::test]
async fn a_peer_that_is_no_broker_is_named_and_costs_no_memory() {
    for greeting in
        [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x28], &[0, 0, 0, 1, 9]]
    {
        let (peer, channel) = Peer::new().await;
        let broker = async {
            let mut line = peer.accept().await;
            line.stream.write_all(greeting).await.unwrap();
            line
        };
        let request = member("1");
        let (failed, _line) = tokio::join!(channel.call(&request), broker);
        let failed = failed.unwrap_err().to_string();
        assert!(failed.contains("no Kafka listener"), "{failed}");
    }
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_an_error_and_not_tried_again() {
    let (peer, channel) = Peer::new().await;
    let broker = async {
        let mut line = peer.serve(&[(ApiKey::Heartbeat, 0, 4)]).await;
        let (header, _) = line.request().await;
        let mut frame = header.correlation_id.to_be_bytes().to_vec();
        frame.extend_from_slice(&[0, 0, 0]);
        line.send(&frame).await;
        line
    };
    let request = member("1");
    let (failed, _line) = tokio::join!(channel.call(&request), broker);
    let failed = failed.unwrap_err();
    assert!(matches!(failed, ChannelError::Decode { api: "Heartbeat", .. }) && !failed.is_retriable(), "{failed}");
}

#[tokio::test]
async fn nobody_listening_is_said_with_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let channel = Channel::new(address.clone(), ChannelOptions::default());
    let failed = channel.call(&member("1")).await.unwrap_err();
    assert!(matches!(failed, ChannelError::Connect { .. }) && failed.to_string().contains(&address), "{failed}");
}
