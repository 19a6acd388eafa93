//! Peers that are not what they say: of another cluster, another disk, another epoch, or no Kafka at all. They get the errors that Apache Kafka
//! gives, and change nothing.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{fs, io::Cursor, time::Duration};

use gregor_channel::Channel;
use gregor_messages::{
    AddRaftVoterRequest, BeginQuorumEpochRequest, BrokerRegistrationRequest, EndQuorumEpochRequest, FetchRequest,
    FetchSnapshotRequest, RemoveRaftVoterRequest, UpdateRaftVoterRequest, VoteRequest, add_raft_voter_request,
    begin_quorum_epoch_request,
    describe_quorum_response::PartitionData,
    end_quorum_epoch_request,
    fetch_request::{FetchPartition, FetchTopic, ReplicaState},
    fetch_snapshot_request, vote_request,
};
use gregor_types::{DirectoryId, ErrorCode, LeaderEpoch, Uuid};
use support::controllers::{CLUSTER, Cluster, DEADLINE, PORT, alteration, directory_id, holds, shown, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const TOPIC: &str = "__cluster_metadata";
const OTHER_CLUSTER: &str = "other";
const STRANGER: i32 = 9;

/// What a stranger says, to a node, of itself.
#[derive(Clone, Copy)]
struct Words {
    cluster: &'static str,
    to: i32,
    directory: DirectoryId,
    epoch: i32,
}

impl Words {
    async fn votes(self, channel: &Channel) -> (ErrorCode, ErrorCode) {
        let partition = vote_request::PartitionData {
            replica_epoch: self.epoch,
            replica_id: STRANGER,
            replica_directory_id: directory_id(STRANGER),
            voter_directory_id: self.directory,
            last_offset: 1_000_000,
            last_offset_epoch: (self.epoch - 1).max(0),
            ..Default::default()
        };
        let topic =
            vote_request::TopicData { topic_name: TOPIC.into(), partitions: vec![partition], ..Default::default() };
        let request = VoteRequest {
            cluster_id: Some(self.cluster.into()),
            voter_id: self.to,
            topics: vec![topic],
            ..Default::default()
        };
        let answer = channel.call(&request).await.unwrap();
        let of_partition = answer.topics.first().map_or(0, |topic| topic.partitions[0].error_code);
        assert!(answer.topics.first().is_none_or(|topic| !topic.partitions[0].vote_granted));
        (ErrorCode::from(answer.error_code), ErrorCode::from(of_partition))
    }

    async fn begins(self, channel: &Channel) -> (ErrorCode, ErrorCode) {
        let partition = begin_quorum_epoch_request::PartitionData {
            voter_directory_id: self.directory,
            leader_id: STRANGER,
            leader_epoch: self.epoch,
            ..Default::default()
        };
        let topic = begin_quorum_epoch_request::TopicData {
            topic_name: TOPIC.into(),
            partitions: vec![partition],
            ..Default::default()
        };
        let request = BeginQuorumEpochRequest {
            cluster_id: Some(self.cluster.into()),
            voter_id: self.to,
            topics: vec![topic],
            ..Default::default()
        };
        let answer = channel.call(&request).await.unwrap();
        let of_partition = answer.topics.first().map_or(0, |topic| topic.partitions[0].error_code);
        (ErrorCode::from(answer.error_code), ErrorCode::from(of_partition))
    }

    async fn ends(self, channel: &Channel) -> (ErrorCode, ErrorCode) {
        let partition = end_quorum_epoch_request::PartitionData {
            leader_id: STRANGER,
            leader_epoch: self.epoch,
            ..Default::default()
        };
        let topic = end_quorum_epoch_request::TopicData {
            topic_name: TOPIC.into(),
            partitions: vec![partition],
            ..Default::default()
        };
        let request =
            EndQuorumEpochRequest { cluster_id: Some(self.cluster.into()), topics: vec![topic], ..Default::default() };
        let answer = channel.call(&request).await.unwrap();
        let of_partition = answer.topics.first().map_or(0, |topic| topic.partitions[0].error_code);
        (ErrorCode::from(answer.error_code), ErrorCode::from(of_partition))
    }

    async fn fetches(self, channel: &Channel) -> (ErrorCode, ErrorCode) {
        self.fetches_as(STRANGER, directory_id(STRANGER), (0, 0), channel).await
    }

    /// Says that a replica with this directory has all before an offset, and in which epoch the last of it was written.
    async fn fetches_as(
        self,
        replica: i32,
        directory: DirectoryId,
        (offset, last_epoch): (i64, i32),
        channel: &Channel,
    ) -> (ErrorCode, ErrorCode) {
        let partition = FetchPartition {
            current_leader_epoch: self.epoch,
            fetch_offset: offset,
            last_fetched_epoch: last_epoch,
            partition_max_bytes: 1 << 20,
            replica_directory_id: directory,
            ..Default::default()
        };
        let topic = FetchTopic { topic_id: Uuid::METADATA_TOPIC, partitions: vec![partition], ..Default::default() };
        let request = FetchRequest {
            cluster_id: Some(self.cluster.into()),
            replica_state: ReplicaState { replica_id: replica, ..Default::default() },
            max_bytes: 1 << 20,
            topics: vec![topic],
            ..Default::default()
        };
        let answer = channel.call(&request).await.unwrap();
        let of_partition = answer.responses.first().map_or(0, |topic| topic.partitions[0].error_code);
        (ErrorCode::from(answer.error_code), ErrorCode::from(of_partition))
    }

    async fn fetches_a_snapshot(self, channel: &Channel) -> (ErrorCode, ErrorCode) {
        let snapshot_id = fetch_snapshot_request::SnapshotId { end_offset: 7_777, epoch: 1, ..Default::default() };
        let partition = fetch_snapshot_request::PartitionSnapshot {
            current_leader_epoch: self.epoch,
            snapshot_id,
            ..Default::default()
        };
        let topic = fetch_snapshot_request::TopicSnapshot {
            name: TOPIC.into(),
            partitions: vec![partition],
            ..Default::default()
        };
        let request = FetchSnapshotRequest {
            cluster_id: Some(self.cluster.into()),
            replica_id: STRANGER,
            max_bytes: 1 << 20,
            topics: vec![topic],
            ..Default::default()
        };
        let answer = channel.call(&request).await.unwrap();
        let of_partition = answer.topics.first().map_or(0, |topic| topic.partitions[0].error_code);
        (ErrorCode::from(answer.error_code), ErrorCode::from(of_partition))
    }
}

/// What each node has written of elections.
fn election_states(cluster: &Cluster) -> Vec<Vec<u8>> {
    (1..=3).map(|id| fs::read(cluster.directory(id).join("__cluster_metadata-0/quorum-state")).unwrap()).collect()
}

async fn three_that_all_follow() -> (Cluster, i32, LeaderEpoch) {
    // So long that no follower loses sight of its leader on a busy machine.
    let mut cluster = Cluster::new(3, 0, false).with("controller.quorum.fetch.timeout.ms", "30000");
    cluster.start_all().await;
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    let (leader, epoch) = cluster.leader().await;
    (cluster, leader, epoch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_kafkas_errors_and_change_nothing() {
    use ErrorCode as E;
    let (mut cluster, first, _) = three_that_all_follow().await;
    // So that there is an epoch before the present one.
    cluster.stop(first).await;
    cluster.leader().await;
    cluster.start(first).await;
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    let (leader, epoch) = cluster.leader().await;
    let follower = if leader == 1 { 2 } else { 1 };
    let states = election_states(&cluster);
    for node in [leader, follower] {
        let channel = cluster.channel(node);
        let right = Words { cluster: CLUSTER, to: node, directory: directory_id(node), epoch: epoch.value() };
        let foreign = Words { cluster: OTHER_CLUSTER, epoch: 100, ..right };
        assert_eq!(foreign.votes(&channel).await, (E::InconsistentClusterId, E::None));
        assert_eq!(foreign.begins(&channel).await, (E::InconsistentClusterId, E::None));
        assert_eq!(foreign.ends(&channel).await, (E::InconsistentClusterId, E::None));
        assert_eq!(foreign.fetches(&channel).await, (E::InconsistentClusterId, E::None));
        assert_eq!(foreign.fetches_a_snapshot(&channel).await, (E::InconsistentClusterId, E::None));
        let late = Words { epoch: epoch.value() - 1, ..right };
        assert_eq!(late.votes(&channel).await, (E::None, E::FencedLeaderEpoch));
        assert_eq!(late.begins(&channel).await, (E::None, E::FencedLeaderEpoch));
        assert_eq!(late.ends(&channel).await, (E::None, E::FencedLeaderEpoch));
        // Another disk is asked for than the one that is there.
        let misdirected = Words { directory: directory_id(7), ..right };
        assert_eq!(misdirected.votes(&channel).await, (E::None, E::InvalidVoterKey));
        // An epoch has one leader, and this one's is another.
        assert_eq!(right.begins(&channel).await, (E::None, E::InvalidRequest));
        assert_eq!(right.ends(&channel).await, (E::None, E::InvalidRequest));
        let early = Words { epoch: epoch.value() + 1, ..right };
        let wrong_epoch = |of_leader| if node == leader { of_leader } else { E::NotLeaderOrFollower };
        assert_eq!(late.fetches(&channel).await.1, E::FencedLeaderEpoch);
        assert_eq!(late.fetches_a_snapshot(&channel).await.1, E::FencedLeaderEpoch);
        assert_eq!(early.fetches(&channel).await.1, E::UnknownLeaderEpoch);
        assert_eq!(early.fetches_a_snapshot(&channel).await.1, E::UnknownLeaderEpoch);
        assert_eq!(right.fetches(&channel).await.1, wrong_epoch(E::None));
        assert_eq!(right.fetches_a_snapshot(&channel).await.1, wrong_epoch(E::SnapshotNotFound));
    }
    assert_eq!(election_states(&cluster), states, "somebody wrote something of an election");
    cluster.commit(1_002).await;
    cluster.all_see(1_002).await;
    assert_eq!(cluster.leader().await, (leader, epoch), "nobody else was elected");
    assert!((1..=3).all(|id| !holds(&cluster.log(id), OTHER_CLUSTER)));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_votes_is_changed_by_nobody_of_another_cluster_and_for_no_disk_that_is_not_there() {
    use ErrorCode as E;
    let (mut cluster, leader, _) = three_that_all_follow().await;
    let channel = cluster.channel(leader);
    let voter = if leader == 1 { 2 } else { 1 };
    let endpoint = add_raft_voter_request::Listener {
        name: "CONTROLLER".into(),
        host: "127.0.0.1".into(),
        port: 9,
        ..Default::default()
    };
    for (cluster_id, add_or_remove) in [(OTHER_CLUSTER, E::InconsistentClusterId), (CLUSTER, E::VoterNotFound)] {
        let remove = RemoveRaftVoterRequest {
            cluster_id: Some(cluster_id.into()),
            voter_id: voter,
            voter_directory_id: directory_id(7),
            ..Default::default()
        };
        assert_eq!(E::from(channel.call(&remove).await.unwrap().error_code), add_or_remove);
        let update = UpdateRaftVoterRequest {
            cluster_id: Some(cluster_id.into()),
            current_leader_epoch: cluster.leader().await.1.value(),
            voter_id: voter,
            voter_directory_id: directory_id(7),
            listeners: vec![gregor_messages::update_raft_voter_request::Listener {
                name: "CONTROLLER".into(),
                host: "127.0.0.1".into(),
                port: 9,
                ..Default::default()
            }],
            k_raft_version_feature: gregor_messages::update_raft_voter_request::KRaftVersionFeature {
                max_supported_version: 1,
                ..Default::default()
            },
            ..Default::default()
        };
        assert_eq!(E::from(channel.call(&update).await.unwrap().error_code), add_or_remove);
    }
    let add = |cluster_id: &'static str, id| AddRaftVoterRequest {
        cluster_id: Some(cluster_id.into()),
        timeout_ms: 20_000,
        voter_id: id,
        voter_directory_id: directory_id(7),
        listeners: vec![endpoint.clone()],
        ..Default::default()
    };
    assert_eq!(E::from(channel.call(&add(OTHER_CLUSTER, 4)).await.unwrap().error_code), E::InconsistentClusterId);
    // The disk that votes for it has to go before another may come.
    assert_eq!(E::from(channel.call(&add(CLUSTER, voter)).await.unwrap().error_code), E::DuplicateVoter);
    let register = BrokerRegistrationRequest { broker_id: 4, cluster_id: OTHER_CLUSTER.into(), ..Default::default() };
    assert_eq!(E::from(channel.call(&register).await.unwrap().error_code), E::InconsistentClusterId);
    cluster.commit(1_002).await;
    cluster.all_see(1_002).await;
    let mut voters: Vec<_> = cluster
        .describe(leader)
        .await
        .current_voters
        .iter()
        .map(|voter| (voter.replica_id, voter.replica_directory_id))
        .collect();
    voters.sort_unstable();
    assert_eq!(voters, (1..=3).map(|id| (id, directory_id(id))).collect::<Vec<_>>());
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_of_kafkas_ends_its_own_connection_and_nothing_else() {
    let (mut cluster, leader, epoch) = three_that_all_follow().await;
    let header = |key: i16, version: i16| [&key.to_be_bytes()[..], &version.to_be_bytes(), &[0; 4], &[255; 2]].concat();
    let framed = |body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], body].concat();
    let noise: Vec<u8> = (0..200_u32).map(|index| (index * 31 + 7) as u8).collect();
    let mut cases = vec![
        ("bytes of no protocol", vec![0xa5; 4_096]),
        ("the start of a handshake of TLS", vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]),
        ("a request of HTTP", b"GET / HTTP/1.1\r\nHost: controller\r\n\r\n".to_vec()),
        ("a negative length", (-1_i32).to_be_bytes().to_vec()),
        ("an empty frame", framed(&[])),
        ("an unknown key", framed(&header(4_711, 0))),
        ("a broker's API", framed(&header(0, 9))),
        ("a version that there is not", framed(&header(52, 99))),
    ];
    // Vote, BeginQuorumEpoch, EndQuorumEpoch, FetchSnapshot, Fetch, AddRaftVoter, UpdateRaftVoter, Envelope, BrokerHeartbeat.
    for (key, version) in [(52, 2), (53, 1), (54, 1), (59, 1), (1, 17), (80, 1), (82, 0), (58, 0), (63, 1)] {
        cases.push(("a body of no sense", framed(&[&header(key, version)[..], &noise].concat())));
    }
    for id in 1..=3 {
        // Another client of the node, that says nothing meanwhile.
        let mut beside = TcpStream::connect((cluster.host(id).as_str(), PORT)).await.unwrap();
        assert_names_its_versions(&mut beside, id).await;
        for (what, bytes) in &cases {
            let mut socket = TcpStream::connect((cluster.host(id).as_str(), PORT)).await.unwrap();
            // The other side may have had enough before it has all of it. This side does not end the connection.
            let _ = tokio::io::copy(&mut Cursor::new(bytes), &mut socket).await;
            let mut rest = Vec::new();
            // An end or a reset, as the rest of the bytes was not read.
            let ended = timeout(DEADLINE, socket.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "{what} (node {id}): the connection goes on");
            assert!(rest.is_empty(), "{what} (node {id}) is answered: {rest:?}");
        }
        assert_names_its_versions(&mut beside, id).await;
    }
    cluster.commit(1_002).await;
    cluster.all_see(1_002).await;
    assert_eq!(cluster.leader().await, (leader, epoch), "nobody else was elected");
    cluster.stop_all().await;
}

/// Asks for the versions of a node's APIs (ApiVersions, version 0), and looks whether it answers.
async fn assert_names_its_versions(socket: &mut TcpStream, id: i32) {
    const CORRELATION: [u8; 4] = [0, 0, 0, 77];
    let request = [&[0, 0, 0, 10, 0, 18, 0, 0][..], &CORRELATION, &[255; 2]].concat();
    let answer = async {
        socket.write_all(&request).await?;
        let mut answer = vec![0; socket.read_u32().await? as usize];
        socket.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(DEADLINE, answer).await.unwrap().unwrap_or_else(|error| panic!("node {id} hung up: {error}"));
    // The correlation, and no error.
    assert_eq!(answer[..6], [&CORRELATION[..], &[0; 2]].concat(), "node {id}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fetches_as_a_voter_from_another_disk_commits_nothing_and_keeps_no_leader() {
    let mut cluster = Cluster::new(3, 0, false).with("controller.quorum.fetch.timeout.ms", "3000");
    cluster.start_all().await;
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    cluster.stop(3).await;
    let (leader, epoch) = cluster.leader().await;
    let other = 3 - leader;
    cluster.stop(other).await;
    let (control, channel) = (cluster.node(leader).control(), cluster.channel(leader));
    let end_of = |partition: &PartitionData, voter: i32| {
        let mut voters = partition.current_voters.iter();
        voters.find(|found| found.replica_id == voter).map_or(0, |found| found.log_end_offset)
    };
    let before = cluster.describe(leader).await;
    assert_eq!(before.leader_id, leader, "it has given up before anything was tried");
    let present = end_of(&before, leader);
    let words = Words { cluster: CLUSTER, to: leader, directory: directory_id(leader), epoch: epoch.value() };
    let (mut fetched_more, deadline) = (false, std::time::Instant::now() + DEADLINE);
    // As long as it leads, all that it appends is said to be on the others' disks, which are not those of the voters.
    let fetches = async {
        while let seen = cluster.describe(leader).await
            && seen.leader_id == leader
            && seen.leader_epoch == epoch.value()
        {
            assert!(seen.high_watermark <= present, "{seen:?}");
            assert!(end_of(&seen, other) <= present && end_of(&seen, 3) <= present, "{seen:?}");
            let end = end_of(&seen, leader);
            for voter in [other, 3] {
                let has = (end, epoch.value());
                let (_, error) = words.fetches_as(voter, directory_id(7), has, &channel).await;
                fetched_more |= error == ErrorCode::None && end > present;
            }
            assert!(std::time::Instant::now() < deadline, "it goes on to lead, with no other voter");
        }
    };
    let (answer, ()) = tokio::join!(control.ask(1, alteration("log.retention.bytes", 1_002)), fetches);
    assert_eq!(ErrorCode::from(answer.unwrap().responses[0].error_code), ErrorCode::NotController);
    assert!(fetched_more, "nobody has fetched what was appended");
    cluster.start(other).await;
    cluster.start(3).await;
    cluster.commit(1_003).await;
    cluster.all_see(1_003).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_of_another_cluster_learns_nothing_and_counts_for_nothing() {
    let (mut cluster, leader, epoch) = {
        let mut cluster = Cluster::new(3, 1, false).with("controller.quorum.fetch.timeout.ms", "30000");
        for id in 1..=3 {
            cluster.start(id).await;
        }
        cluster.commit(1_001).await;
        let (leader, epoch) = cluster.leader().await;
        (cluster, leader, epoch)
    };
    cluster.replace_disk(4, OTHER_CLUSTER, directory_id(4));
    let fourth = gregor_server::Node::start(cluster.config(4), gregor_server::NodeOptions::default()).await.unwrap();
    // As often as it asks, others go on.
    for value in 1_002..1_012 {
        cluster.commit(value).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.all_see(1_011).await;
    assert_eq!(shown(fourth.control()), None);
    assert_eq!(fourth.control().quorum_leader().borrow().leader, None);
    assert!(cluster.describe(leader).await.observers.is_empty());
    assert_eq!(cluster.leader().await, (leader, epoch));
    fourth.shutdown().await.unwrap();
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_disk_was_replaced_counts_for_nothing_until_that_disk_is_added() {
    let mut cluster = Cluster::new(3, 0, false).with("controller.quorum.fetch.timeout.ms", "3000");
    cluster.start_all().await;
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    cluster.stop(3).await;
    cluster.replace_disk(3, CLUSTER, directory_id(8));
    cluster.start(3).await;
    cluster.sees(3, 1_001).await;
    // With one voter beside it there is no majority: it might have voted for another before.
    let (leader, _) = cluster.leader().await;
    assert_ne!(leader, 3, "who has nothing is elected");
    let other = 3 - leader;
    cluster.stop(other).await;
    let answer =
        timeout(DEADLINE, cluster.node(leader).control().ask(1, alteration("log.retention.bytes", 1_002))).await;
    let answer = answer.expect("the leader goes on to lead").unwrap();
    assert_eq!(ErrorCode::from(answer.responses[0].error_code), ErrorCode::NotController);
    cluster.start(other).await;
    cluster.commit(1_003).await;
    cluster.all_see(1_003).await;
    let deadline = std::time::Instant::now() + DEADLINE;
    let (remove, add) = (
        RemoveRaftVoterRequest {
            cluster_id: Some(CLUSTER.into()),
            voter_id: 3,
            voter_directory_id: directory_id(3),
            ..Default::default()
        },
        AddRaftVoterRequest {
            cluster_id: Some(CLUSTER.into()),
            timeout_ms: 20_000,
            voter_id: 3,
            voter_directory_id: directory_id(8),
            listeners: vec![add_raft_voter_request::Listener {
                name: "CONTROLLER".into(),
                host: cluster.host(3).as_str().into(),
                port: PORT,
                ..Default::default()
            }],
            ..Default::default()
        },
    );
    // By whoever leads by then, once it can.
    loop {
        let channel = cluster.channel(cluster.leader().await.0);
        let removed = channel.call(&remove).await.unwrap();
        let added = channel.call(&add).await.unwrap();
        if added.error_code == 0 {
            break;
        }
        let errors = (removed.error_message, added.error_message);
        assert!(std::time::Instant::now() < deadline, "not in time: {errors:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (leader, _) = cluster.leader().await;
    let voters = cluster.describe(leader).await.current_voters;
    assert!(
        voters.len() == 3 && voters.iter().any(|voter| voter.replica_directory_id == directory_id(8)),
        "{voters:?}"
    );
    // Now it counts.
    let gone = if cluster.leader().await.0 == 1 { 2 } else { 1 };
    cluster.stop(gone).await;
    cluster.commit(1_004).await;
    until("those that are left to have it", || {
        cluster.running().all(|node| shown(node.control()).as_deref() == Some("1004"))
    })
    .await;
    cluster.stop_all().await;
}
