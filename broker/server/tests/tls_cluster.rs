//! Nodes that dial each other under TLS: with the certificates of the listeners that they dial, and not without.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{fs, net::ToSocketAddrs, path::Path, sync::Arc, time::Instant};

use gregor_channel::{Channel, ChannelError, ChannelOptions, Security};
use gregor_messages::{CreateTopicsRequest, DescribeClusterRequest, create_topics_request::CreatableTopic};
use gregor_types::{BrokerId, ErrorCode, PartitionIndex};
use rustls::version::TLS13;
use support::{
    DEADLINE, batch,
    certificates::{Authority, Identity, TlsClient, connect},
    controllers::{BROKER_PORT, Cluster, PORT, shown, until},
};

/// Has every listener ask for a certificate that `authority` signed, and every node show the one in `store`.
fn secured(cluster: Cluster, authority: &Authority, store: &Path) -> Cluster {
    let trusted = cluster.folder.path().join("trusted.pem");
    fs::write(&trusted, authority.pem()).unwrap();
    cluster
        .with("listener.security.protocol.map", "PLAINTEXT:SSL,CONTROLLER:SSL")
        .with("ssl.client.auth", "required")
        .with("ssl.keystore.type", "PEM")
        .with("ssl.keystore.location", leaked(store))
        .with("ssl.truststore.type", "PEM")
        .with("ssl.truststore.location", leaked(&trusted))
}

/// A path for the settings of a test, which are there as long as it runs.
fn leaked(path: &Path) -> &'static str {
    path.to_str().unwrap().to_owned().leak()
}

fn hosts(cluster: &Cluster) -> Vec<String> {
    (1..=3).map(|id| cluster.host(id)).collect()
}

/// Asks a controller who is there.
async fn ask(cluster: &Cluster, id: i32, security: Security) -> Result<(), ChannelError> {
    let options = ChannelOptions { security, ..ChannelOptions::default() };
    let channel = Channel::new(format!("{}:{PORT}", cluster.host(id)), options);
    let request = DescribeClusterRequest { endpoint_type: 2, ..Default::default() };
    channel.call(&request).await.map(drop)
}

fn shows(authority: &Authority, identity: Option<&Identity>) -> Security {
    Security::Tls(Arc::new(authority.client(&[&TLS13], identity)))
}

/// Produces to the partition with acks=all, as soon as its leader knows that it leads; returns the record's offset.
fn produce(client: &mut TlsClient) -> i64 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = client.produce("t", 0, batch(&["kept"]));
        match ErrorCode::from(answer.error_code) {
            ErrorCode::None => return answer.base_offset,
            ErrorCode::UnknownTopicOrPartition | ErrorCode::NotLeaderOrFollower => {}
            error => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "nobody leads in time");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_show_certificates_elect_forward_and_replicate() {
    let authority = Arc::new(Authority::new("authority"));
    let cluster = Cluster::new(3, 0, false).with("default.replication.factor", "3").with("min.insync.replicas", "3");
    let identity = Arc::new(authority.sign_for("node", hosts(&cluster)));
    let store = cluster.folder.path().join("store.pem");
    fs::write(&store, identity.store()).unwrap();
    let mut cluster = secured(cluster, &authority, &store);
    cluster.combined = true;
    cluster.start_together().await;
    let address = |id| (cluster.host(id), BROKER_PORT).to_socket_addrs().unwrap().next().unwrap();
    let addresses = [address(1), address(2), address(3)];
    let client = {
        let (authority, identity) = (Arc::clone(&authority), Arc::clone(&identity));
        move |id: i32| connect(addresses[id as usize - 1], authority.client(&[&TLS13], Some(&identity))).unwrap()
    };
    let topic = CreatableTopic { name: "t".into(), num_partitions: 1, replication_factor: 3, ..Default::default() };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 20_000, ..Default::default() };
    // Two of them are not the controller, and pass it on.
    for id in 1..=3 {
        let (client, request) = (client.clone(), request.clone());
        let answer = tokio::task::spawn_blocking(move || client(id).call(7, &request)).await.unwrap();
        let error = answer.topics[0].error_code;
        assert_eq!(error, if id == 1 { 0 } else { 36 }, "{:?}", answer.topics[0].error_message);
    }
    let mut leader = None;
    until("a leader of the partition", || {
        let image = cluster.node(1).control().image();
        let partition = image.topics().by_name("t").and_then(|topic| topic.partition(PartitionIndex(0)).cloned());
        leader = partition.and_then(|partition| partition.leader);
        leader.is_some()
    })
    .await;
    let leader: BrokerId = leader.unwrap();
    // All three have it before it is acknowledged: followers fetch under TLS.
    let offset = tokio::task::spawn_blocking(move || produce(&mut client(leader.value()))).await.unwrap();
    assert_eq!(offset, 0);
    cluster.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_answers_nobody_who_shows_no_certificate_that_it_trusts() {
    let authority = Authority::new("authority");
    let cluster = Cluster::new(3, 0, false);
    let identity = authority.sign_for("node", hosts(&cluster));
    let store = cluster.folder.path().join("store.pem");
    fs::write(&store, identity.store()).unwrap();
    let mut cluster = secured(cluster, &authority, &store);
    cluster.start_all().await;
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    ask(&cluster, 1, shows(&authority, Some(&identity))).await.unwrap();
    let stranger = Authority::new("authority").sign_for("node", hosts(&cluster));
    for nobody in [None, Some(&stranger)] {
        let refused = ask(&cluster, 1, shows(&authority, nobody)).await;
        assert!(matches!(refused, Err(ChannelError::Tls { .. })), "{refused:?}");
    }
    assert!(ask(&cluster, 1, Security::Plaintext).await.is_err(), "in plaintext");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_certificate_is_put_right_joins_without_a_restart() {
    let authority = Authority::new("authority");
    let cluster = Cluster::new(3, 0, false);
    let hosts = hosts(&cluster);
    let (store, wrong) = (cluster.folder.path().join("store.pem"), cluster.folder.path().join("wrong.pem"));
    let right = authority.sign_for("node", hosts.clone()).store();
    fs::write(&store, &right).unwrap();
    fs::write(&wrong, Authority::new("authority").sign_for("node", hosts).store()).unwrap();
    let mut cluster = secured(cluster, &authority, &store);
    cluster.start(1).await;
    cluster.start(2).await;
    cluster.commit(1_001).await;
    cluster.properties.push(("ssl.keystore.location", leaked(&wrong)));
    cluster.start(3).await;
    cluster.sees(1, 1_001).await;
    assert_eq!(shown(cluster.node(3).control()), None, "nobody speaks with a stranger");
    // Kubernetes swaps mounted secrets in one step, too.
    let renewed = cluster.folder.path().join("renewed.pem");
    fs::write(&renewed, right).unwrap();
    fs::rename(&renewed, &wrong).unwrap();
    cluster.sees(3, 1_001).await;
    cluster.stop_all().await;
}
