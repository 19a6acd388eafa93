//! Voters that are changed by what tools send to any node.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::{Duration, Instant};

use gregor_messages::{AddRaftVoterRequest, RemoveRaftVoterRequest, add_raft_voter_request};
use gregor_types::ErrorCode;
use support::controllers::{CLUSTER, Cluster, DEADLINE, PORT, directory_id};

/// How many vote, as the leader says.
async fn voters(cluster: &Cluster) -> usize {
    let (leader, _) = cluster.leader().await;
    cluster.describe(leader).await.current_voters.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn voters_are_changed_through_any_broker() {
    let mut cluster = Cluster::new(3, 0, false).with("broker.session.timeout.ms", "3000");
    cluster.combined = true;
    cluster.start_together().await;
    let (leader, _) = cluster.leader().await;
    let others: Vec<i32> = (1..=3).filter(|id| *id != leader).collect();
    let (changed, asked) = (others[0], others[1]);
    let remove = RemoveRaftVoterRequest {
        cluster_id: Some(CLUSTER.into()),
        voter_id: changed,
        voter_directory_id: directory_id(changed),
        ..Default::default()
    };
    let answer = cluster.client(asked).call(&remove).await.unwrap();
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::None, "{:?}", answer.error_message);
    assert_eq!(voters(&cluster).await, 2);
    let endpoint = add_raft_voter_request::Listener {
        name: "CONTROLLER".into(),
        host: cluster.host(changed).as_str().into(),
        port: PORT,
        ..Default::default()
    };
    let add = AddRaftVoterRequest {
        cluster_id: Some(CLUSTER.into()),
        timeout_ms: 20_000,
        voter_id: changed,
        voter_directory_id: directory_id(changed),
        listeners: vec![endpoint],
        ..Default::default()
    };
    let deadline = Instant::now() + DEADLINE;
    // It has to have caught up as an observer first.
    loop {
        let answer = cluster.client(changed).call(&add).await.unwrap();
        match ErrorCode::from(answer.error_code) {
            ErrorCode::None => break,
            error => assert_eq!(error, ErrorCode::RequestTimedOut, "{:?}", answer.error_message),
        }
        assert!(Instant::now() < deadline, "not in time: {:?}", answer.error_message);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(voters(&cluster).await, 3);
    let answer = cluster.client(asked).call(&add).await.unwrap();
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::DuplicateVoter, "who decides says why not");
    cluster.abandon();
}
