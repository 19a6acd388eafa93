//! A client of brokers that are played, one of which takes connections and says nothing.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use gregor_client::{
    Client, ClientOptions,
    messages::{
        ApiKey, ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse, Request,
        api_versions_response::ApiVersion, metadata_response::MetadataResponseBroker,
    },
};
use gregor_wire::{Message, Reader, RequestHeader, ResponseHeader, Struct, Writer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Longer than a loaded machine needs to answer, and what the client waits for the silent one.
const PATIENCE: Duration = Duration::from_secs(3);

/// Takes connections, and counts them, and reads and answers nothing.
async fn keep_silent(listener: TcpListener, connections: Arc<AtomicUsize>) {
    let mut kept = Vec::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::SeqCst);
        kept.push(stream);
    }
}

/// Tells of the brokers at these ports, by ids from 1 on.
async fn speak(listener: TcpListener, ports: [u16; 2]) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, ports));
    }
}

/// Answers until the client hangs up.
async fn answer(mut stream: TcpStream, ports: [u16; 2]) {
    while let Ok(length) = stream.read_u32().await {
        let mut frame = vec![0; length as usize];
        stream.read_exact(&mut frame).await.unwrap();
        let key = ApiKey::from_code(i16::from_be_bytes([frame[0], frame[1]])).unwrap();
        let version = i16::from_be_bytes([frame[2], frame[3]]);
        let header = RequestHeader::read(&mut Reader::new(frame.into()), key.request_header_version(version)).unwrap();
        let response = match key {
            ApiKey::ApiVersions => frame_of::<ApiVersionsRequest>(&header, &served()),
            ApiKey::Metadata => frame_of::<MetadataRequest>(&header, &cluster(ports)),
            other => panic!("nobody was to ask {other:?}"),
        };
        stream.write_all(&response).await.unwrap();
    }
}

fn frame_of<R: Request>(header: &RequestHeader, response: &R::Response) -> Vec<u8> {
    let version = header.request_api_version;
    let mut writer = Writer::new();
    let head = ResponseHeader { correlation_id: header.correlation_id, ..ResponseHeader::default() };
    head.write(&mut writer, R::KEY.response_header_version(version)).unwrap();
    response.encode(&mut writer, version).unwrap();
    let bytes = writer.into_bytes();
    [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
}

fn served() -> ApiVersionsResponse {
    let row = |key: ApiKey, max_version| ApiVersion {
        api_key: key.code(),
        min_version: 0,
        max_version,
        ..Default::default()
    };
    let api_keys = vec![row(ApiKey::ApiVersions, *ApiVersionsRequest::VERSIONS.end()), row(ApiKey::Metadata, 12)];
    ApiVersionsResponse { api_keys, ..Default::default() }
}

fn cluster(ports: [u16; 2]) -> MetadataResponse {
    let broker = |(port, node_id)| MetadataResponseBroker {
        node_id,
        host: "127.0.0.1".into(),
        port: i32::from(port),
        ..Default::default()
    };
    MetadataResponse { brokers: ports.into_iter().zip(1..).map(broker).collect(), ..Default::default() }
}

#[tokio::test]
async fn a_broker_that_did_not_answer_is_not_the_first_to_be_asked_again() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let speaking = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ports = [&silent, &speaking].map(|listener| listener.local_addr().unwrap().port());
    let connections = Arc::new(AtomicUsize::new(0));
    tokio::spawn(keep_silent(silent, Arc::clone(&connections)));
    tokio::spawn(speak(speaking, ports));
    let options = ClientOptions { connect_timeout: PATIENCE, request_timeout: PATIENCE, ..ClientOptions::default() };
    let bootstrap = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
    let client = Client::connect(&bootstrap, options).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 1, "it was asked, and the other one after it");
    for _ in 0..3 {
        let told = client.call(&MetadataRequest::default()).await.unwrap();
        assert_eq!(told.brokers.len(), 2);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "nobody waited for it any more");
}
