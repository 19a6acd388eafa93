//! A channel over TLS, against peers that are played: that it works, and what it says where the two sides do not agree.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, BytesMut};
use gregor_channel::{Channel, ChannelError, ChannelOptions, Security, TlsFailure};
use gregor_messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, HeartbeatRequest, HeartbeatResponse, Request,
    api_versions_response::ApiVersion,
};
use gregor_wire::{Message, Reader, RequestHeader, ResponseHeader, Struct, Writer};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

const DEADLINE: Duration = Duration::from_secs(20);

/// Whoever signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        self.sign_params(&CertificateParams::new(names).unwrap())
    }

    fn sign_params(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity { chain: vec![certificate.der().clone()], key: key.serialize_der().try_into().unwrap() }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    fn trusted(&self) -> ClientConfig {
        ClientConfig::builder().with_root_certificates(self.roots()).with_no_client_auth()
    }
}

fn server(identity: Identity) -> ServerConfig {
    ServerConfig::builder().with_no_client_auth().with_single_cert(identity.chain, identity.key).unwrap()
}

/// A server that asks for certificates which `authority` signed.
fn asking(identity: Identity, authority: &Authority, version: &'static SupportedProtocolVersion) -> ServerConfig {
    let verifier = WebPkiClientVerifier::builder(Arc::new(authority.roots())).build().unwrap();
    ServerConfig::builder_with_protocol_versions(&[version])
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain, identity.key)
        .unwrap()
}

fn channel(address: String, security: Security) -> Channel {
    let options = ChannelOptions {
        security,
        request_timeout: DEADLINE,
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..ChannelOptions::default()
    };
    Channel::new(address, options)
}

/// Runs a channel against a TLS broker that answers heartbeats with their member id's length as throttle time.
async fn heartbeat(config: ServerConfig, client: ClientConfig, member: &str) -> Result<i32, ChannelError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channel = channel(listener.local_addr().unwrap().to_string(), Security::Tls(Arc::new(client)));
    let broker = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        // A handshake that fails is what several tests are about; the client tells of it.
        if let Ok(stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
            serve(stream).await;
        }
    });
    let request = HeartbeatRequest { group_id: "group".into(), member_id: member.into(), ..Default::default() };
    let answered = tokio::time::timeout(DEADLINE, channel.call(&request)).await.unwrap();
    channel.disconnect();
    broker.abort();
    answered.map(|response: HeartbeatResponse| response.throttle_time_ms)
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    while let Ok(length) = stream.read_u32().await {
        let mut frame = vec![0; length as usize];
        stream.read_exact(&mut frame).await.unwrap();
        let key = ApiKey::from_code(i16::from_be_bytes([frame[0], frame[1]])).unwrap();
        let version = i16::from_be_bytes([frame[2], frame[3]]);
        let mut reader = Reader::new(frame.into());
        let header = RequestHeader::read(&mut reader, key.request_header_version(version)).unwrap();
        if key == ApiKey::ApiVersions {
            let row = |key: ApiKey, max| ApiVersion { api_key: key.code(), max_version: max, ..Default::default() };
            let api_keys = vec![row(ApiKey::ApiVersions, 4), row(ApiKey::Heartbeat, 4)];
            let response = ApiVersionsResponse { api_keys, ..Default::default() };
            answer::<ApiVersionsRequest>(&mut stream, &header, version, &response).await;
        } else {
            let request = HeartbeatRequest::decode(&mut reader, version).unwrap();
            let throttle_time_ms = request.member_id.len() as i32;
            let response = HeartbeatResponse { throttle_time_ms, ..Default::default() };
            answer::<HeartbeatRequest>(&mut stream, &header, version, &response).await;
        }
    }
}

async fn answer<R: Request>(
    stream: &mut (impl AsyncWrite + Unpin),
    header: &RequestHeader,
    version: i16,
    response: &R::Response,
) {
    let mut writer = Writer::new();
    let head = ResponseHeader { correlation_id: header.correlation_id, ..ResponseHeader::default() };
    head.write(&mut writer, R::KEY.response_header_version(version)).unwrap();
    response.encode(&mut writer, version).unwrap();
    let frame = writer.into_bytes();
    let mut bytes = BytesMut::new();
    bytes.put_u32(frame.len() as u32);
    bytes.put_slice(&frame);
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
}

/// The TLS failure of a call. It is worth another try only where the peer may just have stopped.
fn refused(outcome: Result<i32, ChannelError>) -> TlsFailure {
    match outcome {
        Err(error @ ChannelError::Tls { .. }) => {
            let again = error.is_retriable();
            let ChannelError::Tls { failure, .. } = error else { unreachable!() };
            assert_eq!(again, matches!(failure, TlsFailure::Ended | TlsFailure::EndedAfterwards), "{failure}");
            failure
        }
        other => panic!("expected a failure of TLS, not {other:?}"),
    }
}

#[tokio::test]
async fn requests_of_any_length_go_over_tls() {
    let authority = Authority::new();
    for length in [0, 1, 16_384, 32_000] {
        let config = server(authority.sign(&["127.0.0.1"]));
        let answered = heartbeat(config, authority.trusted(), &"m".repeat(length)).await;
        assert_eq!(answered.unwrap(), length as i32);
    }
}

#[tokio::test]
async fn a_client_that_shows_its_certificate_is_let_in() {
    let authority = Authority::new();
    for version in [&TLS12, &TLS13] {
        let config = asking(authority.sign(&["127.0.0.1"]), &authority, version);
        let mine = authority.sign(&["client"]);
        let client = ClientConfig::builder().with_root_certificates(authority.roots());
        let client = client.with_client_auth_cert(mine.chain, mine.key).unwrap();
        assert_eq!(heartbeat(config, client, "four").await.unwrap(), 4);
    }
}

#[tokio::test]
async fn what_is_trusted_and_shown_may_change_while_a_channel_lives() {
    let (before, after) = (Authority::new(), Authority::new());
    let (newest, renewed) = watch::channel(Arc::new(before.trusted()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channel = channel(listener.local_addr().unwrap().to_string(), Security::Renewed(renewed));
    let acceptor = TlsAcceptor::from(Arc::new(server(after.sign(&["127.0.0.1"]))));
    let broker = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Who does not trust it ends the handshake.
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream).await;
            }
        }
    });
    let request = HeartbeatRequest { group_id: "group".into(), member_id: "four".into(), ..Default::default() };
    let answered = tokio::time::timeout(DEADLINE, channel.call(&request)).await.unwrap();
    assert_eq!(refused(answered.map(|answer| answer.throttle_time_ms)), TlsFailure::UnknownIssuer);
    newest.send_replace(Arc::new(after.trusted()));
    let answered = tokio::time::timeout(DEADLINE, channel.call(&request)).await.unwrap();
    assert_eq!(answered.unwrap().throttle_time_ms, 4);
    channel.disconnect();
    broker.abort();
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused_and_says_where_to_name_it() {
    let config = server(Authority::new().sign(&["127.0.0.1"]));
    let failure = refused(heartbeat(config, Authority::new().trusted(), "m").await);
    assert_eq!(failure, TlsFailure::UnknownIssuer);
    assert!(failure.to_string().contains("ssl.truststore.location"), "{failure}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_and_both_names_are_told() {
    let authority = Authority::new();
    let failure = refused(heartbeat(server(authority.sign(&["kafka.example"])), authority.trusted(), "m").await);
    let shown = failure.to_string();
    assert!(matches!(failure, TlsFailure::OtherName { .. }), "{shown}");
    assert!(shown.contains("kafka.example") && shown.contains("127.0.0.1"), "{shown}");
}

#[tokio::test]
async fn a_certificate_whose_time_is_over_is_refused() {
    let authority = Authority::new();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let failure = refused(heartbeat(server(authority.sign_params(&params)), authority.trusted(), "m").await);
    assert!(matches!(failure, TlsFailure::NotValidNow(_)), "{failure}");
}

#[tokio::test]
async fn a_client_without_a_certificate_learns_that_one_is_wanted() {
    let authority = Authority::new();
    for version in [&TLS12, &TLS13] {
        let config = asking(authority.sign(&["127.0.0.1"]), &authority, version);
        let failure = refused(heartbeat(config, authority.trusted(), "m").await);
        assert!(failure.to_string().contains("ssl.keystore.location"), "{failure}");
    }
}

#[tokio::test]
async fn a_client_with_a_certificate_of_a_stranger_learns_that_it_is_not_accepted() {
    let authority = Authority::new();
    let config = asking(authority.sign(&["127.0.0.1"]), &authority, &TLS12);
    let mine = Authority::new().sign(&["client"]);
    let client = ClientConfig::builder().with_root_certificates(authority.roots());
    let failure = refused(heartbeat(config, client.with_client_auth_cert(mine.chain, mine.key).unwrap(), "m").await);
    assert!(matches!(failure, TlsFailure::CertificateRefused(_)), "{failure}");
}

#[tokio::test]
async fn sides_with_no_version_in_common_say_so() {
    let authority = Authority::new();
    let identity = authority.sign(&["127.0.0.1"]);
    let config = ServerConfig::builder_with_protocol_versions(&[&TLS13]).with_no_client_auth();
    let config = config.with_single_cert(identity.chain, identity.key).unwrap();
    let client = ClientConfig::builder_with_protocol_versions(&[&TLS12]).with_root_certificates(authority.roots());
    let failure = refused(heartbeat(config, client.with_no_client_auth(), "m").await);
    assert!(matches!(failure, TlsFailure::NothingInCommon(_)), "{failure}");
    assert!(failure.to_string().contains("ssl.enabled.protocols"), "{failure}");
}

/// A peer without TLS that does `reply` once it was greeted.
async fn plaintext_peer(reply: &'static [u8]) -> TlsFailure {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channel =
        channel(listener.local_addr().unwrap().to_string(), Security::Tls(Arc::new(Authority::new().trusted())));
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(reply).await.unwrap();
        stream.shutdown().await.unwrap();
        // Reads to the end, so that what was sent is not lost in a reset.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let outcome = tokio::time::timeout(DEADLINE, channel.call(&HeartbeatRequest::default())).await.unwrap();
    peer.abort();
    refused(outcome.map(|_| 0))
}

#[tokio::test]
async fn a_plaintext_listener_is_told_from_one_with_another_certificate() {
    let closed = plaintext_peer(b"").await;
    assert!(closed == TlsFailure::Ended && closed.to_string().contains("security.protocol=PLAINTEXT"), "{closed}");
    assert_eq!(plaintext_peer(b"\0\0\0\x0a\0\0\0\0\0\x23").await, TlsFailure::NotTls);
}

#[tokio::test]
async fn a_plaintext_channel_to_a_tls_listener_is_told_of_tls() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ChannelOptions { request_timeout: DEADLINE, ..ChannelOptions::default() };
    let channel = Channel::new(listener.local_addr().unwrap().to_string(), options);
    let config = server(authority.sign(&["127.0.0.1"]));
    let broker = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let accepted = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
        assert!(accepted.is_err(), "an ApiVersions request is no greeting");
    });
    let failed = channel.call(&HeartbeatRequest::default()).await.unwrap_err();
    assert!(failed.to_string().contains("security.protocol=SSL"), "{failed}");
    broker.await.unwrap();
}
