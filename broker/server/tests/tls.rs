//! TLS listeners over loopback, with rustls' own client at the other end.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use gregor_config::{BrokerConfig, Properties};
use gregor_messages::{
    AlterConfigsRequest, DescribeConfigsRequest, IncrementalAlterConfigsRequest, alter_configs_request,
    describe_configs_request::DescribeConfigsResource,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use gregor_server::{Node, NodeOptions};
use gregor_types::ErrorCode;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use support::{
    Client, DEADLINE, Home, Running, batch,
    certificates::{Authority, Identity, TlsClient, connect, connect_chopped},
    directories::wait_until,
    fetch_request, stamped,
};

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&TLS12, &TLS13];

/// Waits until so many connections count as closed for a reason: they are counted once their sockets are gone, which clients may see earlier.
fn wait_until_closed(running: &Running, reason: &str, count: u32) {
    let line = format!("gregor_connections_closed_total{{reason=\"{reason}\"}} {count}\n");
    wait_until(&line, || running.http("/metrics").contains(&line));
}

/// A node with a TLS listener beside the plain one, whose certificate is in a file.
fn home(authority: &Authority) -> (Home, String) {
    let home = Home::new();
    let path = home.folder.path().join("store.pem");
    fs::write(&path, authority.sign("first").store()).unwrap();
    let path = path.to_str().unwrap().to_owned();
    let home = home
        .with("listeners", "PLAINTEXT://127.0.0.1:0,SECURE://127.0.0.1:0,CONTROLLER://127.0.0.1:0")
        .with("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,SECURE:SSL,CONTROLLER:PLAINTEXT")
        .with("listener.name.secure.ssl.keystore.type", "PEM")
        .with("listener.name.secure.ssl.keystore.location", &path);
    (home, path)
}

fn secure(running: &Running, config: ClientConfig) -> TlsClient {
    connect(running.address_of("SECURE"), config).unwrap()
}

/// Whether the node still answers on this connection.
fn is_served<S: Read + Write>(client: &mut Client<S>) -> bool {
    client.list_offset("notes", 0, -1).error_code == 0
}

fn own_certificate(identity: &Identity) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()
}

fn shown(client: &TlsClient) -> CertificateDer<'static> {
    client.stream.conn.peer_certificates().unwrap()[0].clone()
}

/// Waits for what another thread brings about.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} never came about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn large_records_come_back_byte_for_byte_under_either_version() {
    let authority = Authority::new("authority");
    let (home, _) = home(&authority);
    let running = home.start();
    let mut plain = running.with_topic("notes", 1, &[("max.message.bytes", "16777216")]);
    // Values that no two records share, so that a piece that is sent twice or left out is noticed.
    let value = |seed: u32| (0..500_000_u32).map(|at| (at * 7 + seed).to_string()).collect::<String>();
    let mut expected = Vec::new();
    for (round, version) in [&TLS12, &TLS13].into_iter().enumerate() {
        let mut client = secure(&running, authority.client(&[version], None));
        assert_eq!(client.stream.conn.protocol_version(), Some(version.version));
        for (offset, value) in [(0, value(round as u32)), (1, "small".to_owned())] {
            let records = batch(&[&value]);
            assert_eq!(client.produce("notes", 0, records.clone()).error_code, 0);
            expected.extend_from_slice(&stamped(&records, round as i64 * 2 + offset, 0));
        }
        let mut request = fetch_request("notes", &[(0, 0)], 0);
        request.topics[0].partitions[0].partition_max_bytes = 64 << 20;
        let fetched = client.call(12, &request).responses[0].partitions[0].clone();
        assert!(expected.len() > 1 << 20);
        assert!(fetched.records.as_deref() == Some(&expected[..]), "what was produced is what is fetched");
        assert!(plain.call(12, &request).responses[0].partitions[0].records.as_deref() == Some(&expected[..]));
    }
    running.stop();
}

#[test]
fn requests_in_pieces_of_any_small_size_are_answered() {
    let authority = Authority::new("authority");
    let (home, _) = home(&authority);
    let running = home.start();
    running.with_topic("notes", 1, &[]);
    for size in 1..=24 {
        // Each write is a record of its own, and each record arrives in pieces.
        let mut client = connect_chopped(running.address_of("SECURE"), authority.client(BOTH, None), size).unwrap();
        assert!(is_served(&mut client), "pieces of {size} bytes");
        assert_eq!(client.produce("notes", 0, batch(&["value"; 20])).error_code, 0);
    }
    for size in [1, 2, 3, 5, 8, 13] {
        let mut client = secure(&running, authority.client(BOTH, None));
        let frame = client_frame();
        for piece in frame.chunks(size) {
            client.stream.write_all(piece).unwrap();
            client.stream.flush().unwrap();
        }
        assert!(!client.read_frame().is_empty(), "records of {size} bytes");
    }
    // Several requests in one record are answered one after the other.
    let mut client = secure(&running, authority.client(BOTH, None));
    client.stream.write_all(&client_frame().repeat(50)).unwrap();
    for _ in 0..50 {
        assert!(!client.read_frame().is_empty());
    }
    running.stop();
}

/// An ApiVersions request with its length.
fn client_frame() -> Vec<u8> {
    let body = [&[0, 18, 0, 0, 0, 0, 0, 7][..], &[0, 4], b"test"].concat();
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

#[test]
fn a_client_is_asked_for_a_certificate_as_configured() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let (known, unknown) = (authority.sign("client"), stranger.sign("client"));
    for (asked, without, with_unknown) in [("none", true, true), ("requested", true, false), ("required", false, false)]
    {
        let (home, _) = home(&authority);
        let home = home
            .with("listener.name.secure.ssl.client.auth", asked)
            .with("ssl.truststore.type", "PEM")
            .with("ssl.truststore.certificates", authority.pem());
        let running = home.start();
        running.with_topic("notes", 1, &[]);
        for version in [&TLS12, &TLS13] {
            let is_let_in = |identity: Option<&Identity>| {
                let config = authority.client(&[version], identity);
                // Under TLS 1.3 a client hears of its refusal only after its own handshake.
                connect(running.address_of("SECURE"), config).is_ok_and(|mut client| {
                    client.stream.write_all(&client_frame()).is_ok()
                        && client.stream.read(&mut [0; 4]).is_ok_and(|read| read > 0)
                })
            };
            assert!(is_let_in(Some(&known)), "{asked}");
            assert_eq!(is_let_in(None), without, "{asked}, without a certificate");
            assert_eq!(is_let_in(Some(&unknown)), with_unknown, "{asked}, with a stranger's certificate");
        }
        if asked == "required" {
            wait_until_closed(&running, "handshake", 4);
        }
        running.stop();
    }
}

#[test]
fn a_rule_that_does_not_fit_keeps_a_client_out() {
    let authority = Authority::new("authority");
    let (home, _) = home(&authority);
    let home = home
        .with("listener.name.secure.ssl.client.auth", "required")
        .with("listener.name.secure.ssl.principal.mapping.rules", "RULE:^CN=(ann|bob),O=Gregor$/$1/")
        .with("ssl.truststore.type", "PEM")
        .with("ssl.truststore.certificates", authority.pem());
    let running = home.start();
    running.with_topic("notes", 1, &[]);
    assert!(is_served(&mut secure(&running, authority.client(BOTH, Some(&authority.sign("ann"))))));
    let mut kept_out = secure(&running, authority.client(BOTH, Some(&authority.sign("eve"))));
    assert!(kept_out.stream.read(&mut [0; 1]).is_err_and(|error| error.kind() != ErrorKind::WouldBlock));
    wait_until_closed(&running, "principal", 1);
    running.stop();
}

#[test]
fn a_peer_that_does_not_speak_tls_is_closed_and_nobody_else_is() {
    let authority = Authority::new("authority");
    let (home, _) = home(&authority);
    let running = home.start();
    running.with_topic("notes", 1, &[]);
    let mut before = secure(&running, authority.client(BOTH, None));
    let mut plain = Client::connect(running.address_of("SECURE"));
    plain.stream.write_all(&client_frame()).unwrap();
    let mut answer = Vec::new();
    // An alert at most, and then the end; a reset is an end as well.
    let _ = plain.stream.read_to_end(&mut answer);
    assert!(answer.len() < 16, "{answer:?}");
    // And one that says nothing at all holds up neither those that do nor the end of the node.
    let _silent = TcpStream::connect(running.address_of("SECURE")).unwrap();
    assert!(is_served(&mut before));
    assert!(is_served(&mut secure(&running, authority.client(BOTH, None))));
    wait_until_closed(&running, "handshake", 1);
    running.stop();
}

#[test]
fn a_reader_that_is_slow_holds_up_nobody_and_loses_nothing() {
    let authority = Authority::new("authority");
    let (home, _) = home(&authority);
    let running = home.start();
    running.with_topic("notes", 1, &[("max.message.bytes", "16777216")]);
    let mut writer = secure(&running, authority.client(BOTH, None));
    let value: String = (0..1_500_000_u32).map(|at| (at * 13).to_string()).collect();
    let records = batch(&[&value]);
    assert_eq!(writer.produce("notes", 0, records.clone()).error_code, 0);
    let mut slow = secure(&running, authority.client(BOTH, None));
    let asked = slow.send(12, &fetch_request("notes", &[(0, 0)], 0));
    // More than the sockets hold waits for this reader while the others are served.
    for _ in 0..50 {
        assert!(is_served(&mut writer));
    }
    let fetched = slow.receive::<gregor_messages::FetchRequest>(12, asked);
    let got = fetched.responses[0].partitions[0].records.clone().unwrap();
    assert!(got[..] == stamped(&records, 0, 0)[..], "all of it, in order");
    running.stop();
}

#[test]
fn both_ends_say_goodbye() {
    let authority = Authority::new("authority");
    let (home, _) = home(&authority);
    let running = home.start();
    running.with_topic("notes", 1, &[]);
    for version in [&TLS12, &TLS13] {
        let mut client = secure(&running, authority.client(&[version], None));
        assert!(is_served(&mut client));
        client.stream.conn.send_close_notify();
        client.stream.flush().unwrap();
        assert_eq!(client.stream.read(&mut [0; 1]).unwrap(), 0, "the node says goodbye, too");
    }
    // An end without a goodbye between two requests is no fault either.
    drop(secure(&running, authority.client(BOTH, None)));
    let mut last = secure(&running, authority.client(BOTH, None));
    assert!(is_served(&mut last));
    running.stop();
    assert_eq!(last.stream.read(&mut [0; 1]).unwrap(), 0, "a node that stops says goodbye");
}

#[test]
fn a_certificate_that_is_swapped_is_for_new_connections() {
    let authority = Authority::new("authority");
    let (home, path) = home(&authority);
    // As Kubernetes mounts a secret: the file is a link into a folder, which is itself a link that is swapped.
    let folder = home.folder.path().to_owned();
    let swap = |name: &str, store: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("store.pem"), store).unwrap();
        symlink(name, folder.join("next")).unwrap();
        fs::rename(folder.join("next"), folder.join("now")).unwrap();
    };
    let (first, second, third) = (authority.sign("broker"), authority.sign("broker"), authority.sign("broker"));
    swap("one", &first.store());
    fs::remove_file(&path).unwrap();
    symlink(Path::new("now/store.pem"), &path).unwrap();
    let running = home.start();
    running.with_topic("notes", 1, &[]);
    let mut old = secure(&running, authority.client(BOTH, None));
    assert_eq!(shown(&old), own_certificate(&first));
    let fresh = || shown(&secure(&running, authority.client(BOTH, None)));

    swap("two", &second.store());
    until("the second certificate", || fresh() == own_certificate(&second));
    assert!(is_served(&mut old), "a connection lives on with what it began with");

    swap("three", &format!("{}{}", third.key, second.certificate));
    let refused = "gregor_tls_reloads_total{listener=\"SECURE\",outcome=\"refused\"} 1";
    until("the refusal of a key that is not the certificate's", || running.http("/metrics").contains(refused));
    assert_eq!(fresh(), own_certificate(&second), "what cannot be used changes nothing");

    swap("four", &third.store());
    until("the third certificate", || fresh() == own_certificate(&third));
    assert!(running.http("/metrics").contains(refused), "it was said once");
    assert!(is_served(&mut old));
    running.stop();
}

#[test]
fn a_certificate_of_another_name_is_taken_over_only_where_that_is_allowed() {
    let authority = Authority::new("authority");
    for (allowed, expected) in [("false", "refused"), ("true", "taken")] {
        let (home, path) = home(&authority);
        let home = home.with("ssl.allow.dn.changes", allowed);
        let running = home.start();
        let fresh = || shown(&secure(&running, authority.client(BOTH, None)));
        let (before, other) = (fresh(), authority.sign("another"));
        fs::write(&path, other.store()).unwrap();
        let counted = format!("gregor_tls_reloads_total{{listener=\"SECURE\",outcome=\"{expected}\"}} 1");
        until("the outcome", || running.http("/metrics").contains(&counted));
        assert_eq!(fresh(), if allowed == "true" { own_certificate(&other) } else { before });
        running.stop();
    }
}

#[test]
fn keys_of_a_listener_change_by_alter_configs_and_outlive_a_restart() {
    let authority = Authority::new("authority");
    let (home, _) = home(&authority);
    let running = home.start();
    let mut plain = running.with_topic("notes", 1, &[]);
    let second = authority.sign("first");
    let path = home.folder.path().join("second.pem");
    fs::write(&path, second.store()).unwrap();
    let location = "listener.name.secure.ssl.keystore.location";
    let mut alter = |broker: &str, key: &str, value: &str| {
        let config = AlterableConfig { name: key.into(), value: Some(value.into()), ..Default::default() };
        let resource = AlterConfigsResource {
            resource_type: 4,
            resource_name: broker.into(),
            configs: vec![config],
            ..Default::default()
        };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
        let response = plain.call(1, &request).responses[0].clone();
        (ErrorCode::from(response.error_code), response.error_message.unwrap_or_default())
    };
    let (error, message) = alter("1", "ssl.keystore.location", "/x");
    assert_eq!(error, ErrorCode::InvalidRequest);
    assert!(message.contains("only per-listener using the listener prefix"), "{message}");
    assert_eq!(alter("", location, "/x").0, ErrorCode::InvalidRequest, "not for all brokers at once");
    assert_eq!(alter("1", "listener.name.secure.ssl.client.auth", "maybe").0, ErrorCode::InvalidRequest);
    let rules = alter("1", "listener.name.secure.ssl.principal.mapping.rules", "DEFAULT");
    assert_eq!(rules.0, ErrorCode::InvalidRequest, "only a restart changes it");
    assert_eq!(alter("1", location, path.to_str().unwrap()).0, ErrorCode::None);
    until("the second certificate", || {
        shown(&secure(&running, authority.client(BOTH, None))) == own_certificate(&second)
    });
    running.stop();
    let again = home.start();
    let first_client = secure(&again, authority.client(BOTH, None));
    assert_eq!(shown(&first_client), own_certificate(&second), "from the first connection on");
    again.stop();
}

#[test]
fn a_store_that_a_listener_could_not_use_is_refused_before_it_is_kept() {
    let authority = Authority::new("authority");
    let (home, _) = home(&authority);
    let home = home.with("ssl.truststore.type", "PEM");
    let running = home.start();
    let mut plain = running.with_topic("notes", 1, &[]);
    let before = shown(&secure(&running, authority.client(BOTH, None)));
    let (first, other) = (authority.sign("first"), authority.sign("other"));
    let file = |name: &str, store: &str| {
        let path = home.folder.path().join(name);
        fs::write(&path, store).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key_store = "listener.name.secure.ssl.keystore.location";
    let wrong = [
        (key_store, home.folder.path().join("none.pem").to_str().unwrap().to_owned(), "none.pem"),
        (key_store, file("text.pem", "no certificate"), "no -----BEGIN CERTIFICATE----- is in it"),
        (key_store, file("mixed.pem", &format!("{}{}", other.key, first.certificate)), "does not belong"),
        (key_store, file("another.pem", &other.store()), "ssl.allow.dn.changes"),
        ("listener.name.secure.ssl.truststore.location", "/nowhere/trust.pem".to_owned(), "/nowhere/trust.pem"),
    ];
    for (key, value, expected) in &wrong {
        for validate_only in [true, false] {
            let config =
                AlterableConfig { name: (*key).into(), value: Some(value.as_str().into()), ..Default::default() };
            let resource = |resource_type, name: &str, configs| AlterConfigsResource {
                resource_type,
                resource_name: name.into(),
                configs,
                ..Default::default()
            };
            let resources = vec![resource(2, "notes", vec![]), resource(4, "1", vec![config]), resource(4, "", vec![])];
            let request = IncrementalAlterConfigsRequest { resources, validate_only, ..Default::default() };
            let responses = plain.call(1, &request).responses;
            let errors: Vec<_> =
                responses.iter().map(|one| (one.resource_type, ErrorCode::from(one.error_code))).collect();
            let only_this = [(2, ErrorCode::None), (4, ErrorCode::InvalidRequest), (4, ErrorCode::None)];
            assert_eq!(errors, only_this, "{key}={value}: the others are answered as if they were alone");
            let message = responses[1].error_message.clone().unwrap_or_default();
            let start = "Invalid config value for resource ConfigResource(type=BROKER, name='1'): the listener SECURE";
            assert!(message.starts_with(start) && message.contains(expected), "{key}={value}: {message}");

            let config = alter_configs_request::AlterableConfig {
                name: (*key).into(),
                value: Some(value.as_str().into()),
                ..Default::default()
            };
            let resource = alter_configs_request::AlterConfigsResource {
                resource_type: 4,
                resource_name: "1".into(),
                configs: vec![config],
                ..Default::default()
            };
            let request = AlterConfigsRequest { resources: vec![resource], validate_only, ..Default::default() };
            let response = plain.call(1, &request).responses[0].clone();
            assert_eq!(ErrorCode::from(response.error_code), ErrorCode::InvalidRequest, "{key}={value}");
            assert!(response.error_message.unwrap().contains(expected), "{key}={value}");
        }
    }
    let resource = DescribeConfigsResource { resource_type: 4, resource_name: "1".into(), ..Default::default() };
    let described = plain.call(1, &DescribeConfigsRequest { resources: vec![resource], ..Default::default() });
    let dynamic = described.results[0].configs.iter().filter(|config| config.config_source == 2);
    assert_eq!(dynamic.count(), 0, "nothing of it was kept");
    assert_eq!(shown(&secure(&running, authority.client(BOTH, None))), before);
    running.stop();
}

/// A key of the curve P-256 that guards nothing, as PKCS#8.
const PLAIN_KEY: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgYdlFhe83G2FQNHHU\n\
8f0TE8/qKh3O2SQSIYPwEPVXTAKhRANCAAS3iX/fwG4Ge2Zzv/hum7Db8rImyltz\n\
hKsFfnt1pJXmaA/CpywKXDOX5m5O3LL9PkVx05VUzsATpK2HhZ3OxXZ8\n\
-----END PRIVATE KEY-----\n\
";
/// The same under the password `correct-horse`, as OpenSSL 3 writes it.
const ENCRYPTED_KEY: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----\n\
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAh7CI0Bg7A/HAICCAAw\n\
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEC/sEpJe12kgrOQUtUvC4g8EgZC7\n\
APKpKrcGcPpNT24rbRjudFd+FgYyUWnLevyvJR/S98P88gSvqyLkYz1QQ6Jks+zV\n\
fJ+ZG+FDvePIo8gI+WHTOnxqG1Tdin983+2Hn5jrzo5p4phvrpmsxo6dugk1FZKd\n\
2m6iqB4t4Hv4owG6FaRv3wBlwsJpP3bBydfEjS7eKhl0Mrr8N/pXMkmLVIyWcNE=\n\
-----END ENCRYPTED PRIVATE KEY-----\n\
";

#[test]
fn a_listener_reads_a_key_store_that_a_password_guards() {
    let authority = Authority::new("authority");
    let (home, path) = home(&authority);
    let identity = authority.sign_key("first", &rcgen::KeyPair::from_pem(PLAIN_KEY).unwrap());
    fs::write(&path, format!("{ENCRYPTED_KEY}{}", identity.certificate)).unwrap();
    let key = "listener.name.secure.ssl.key.password";
    let home = home.with(key, "correct-horse");
    let running = home.start();
    let mut plain = running.with_topic("notes", 1, &[]);
    let mut client = secure(&running, authority.client(BOTH, None));
    assert_eq!(shown(&client), own_certificate(&identity));
    assert!(is_served(&mut client));

    let config = AlterableConfig { name: key.into(), value: Some("battery-staple".into()), ..Default::default() };
    let resource = AlterConfigsResource {
        resource_type: 4,
        resource_name: "1".into(),
        configs: vec![config],
        ..Default::default()
    };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
    let refused = plain.call(1, &request).responses[0].clone();
    assert_eq!(ErrorCode::from(refused.error_code), ErrorCode::InvalidRequest);
    let message = refused.error_message.unwrap_or_default();
    assert!(message.contains("ssl.key.password") && !message.contains("battery-staple"), "{message}");
    running.stop();
}

#[test]
fn a_listener_that_cannot_do_tls_stops_the_start_and_says_what_to_do() {
    let authority = Authority::new("authority");
    let refusal = |keys: &[(&'static str, &str)]| {
        let mut properties = Properties::default();
        let folder = tempfile::tempdir().unwrap();
        let (home, _) = home(&authority);
        for (key, value) in [
            ("node.id", "1"),
            ("process.roles", "broker,controller"),
            ("listeners", "SECURE://127.0.0.1:0,CONTROLLER://127.0.0.1:0"),
            ("listener.security.protocol.map", "SECURE:SSL,CONTROLLER:PLAINTEXT"),
            ("controller.listener.names", "CONTROLLER"),
            ("controller.quorum.bootstrap.servers", "127.0.0.1:9093"),
            ("log.dirs", home.folder.path().join("data").to_str().unwrap()),
        ] {
            properties.set(key, value);
        }
        for (key, value) in keys {
            properties.set(*key, *value);
        }
        let config = BrokerConfig::from_properties(&properties).unwrap().0;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let started = runtime.block_on(Node::start(config, NodeOptions::default()));
        drop(folder);
        started.err().expect("it does not start").to_string()
    };
    let without = refusal(&[]);
    assert!(without.starts_with("the listener SECURE cannot do TLS: a TLS listener needs a certificate"), "{without}");
    let store = authority.sign("broker");
    let inline = [
        ("ssl.keystore.type", "PEM"),
        ("ssl.keystore.key", store.key.as_str()),
        ("ssl.keystore.certificate.chain", store.certificate.as_str()),
    ];
    let untrusting = refusal(&[&inline[..], &[("ssl.client.auth", "required")]].concat());
    assert!(untrusting.contains("ssl.truststore.location"), "{untrusting}");
    let jks = refusal(&[("ssl.keystore.location", "/etc/kafka/broker.jks")]);
    assert!(jks.contains("ssl.keystore.type=JKS") && jks.contains("openssl pkcs12"), "{jks}");
    let other = authority.sign("other");
    let mixed = [inline[0], ("ssl.keystore.key", other.key.as_str()), inline[2]];
    assert!(refusal(&mixed).contains("does not belong to its first certificate"));
}
