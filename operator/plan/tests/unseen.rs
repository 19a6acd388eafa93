//! What could not be read of a cluster is in its status, with the node and the reason.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod fleet;

use fleet::{COMBINED, Fleet};
use gregor_operator_plan::Reason;

#[test]
fn brokers_that_cannot_be_asked_are_said_to_be_with_the_reason_and_nothing_old_is_shown() {
    let mut fleet = Fleet::settled(COMBINED);
    fleet.blind = true;
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::ClusterUnreachable));
    assert!(fleet.message().contains("(connection refused)"), "{}", fleet.message());
    let status = fleet.last.as_ref().unwrap().status.clone();
    assert_eq!((status.quorum_leader, status.under_replicated_partitions), (None, None));

    fleet.wipe(2);
    fleet.settle();
    fleet.spec(|cluster| cluster.spec.accept_data_loss = vec![2]);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DiskLost));
    assert!(fleet.message().contains("(connection refused)"), "{}", fleet.message());
}

#[test]
fn a_node_that_shows_no_certificate_is_named_while_all_else_is_well() {
    let mut fleet = Fleet::settled(COMBINED);
    fleet.secrets.unseen.insert(1);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready));
    assert!(fleet.message().ends_with("; node 1 shows no certificate: no answer in time"), "{}", fleet.message());
    let conditions = &fleet.last.as_ref().unwrap().status.conditions;
    assert!(conditions.iter().all(|condition| condition.message == fleet.message()), "{conditions:?}");

    // What waits for it says so too.
    fleet.spec(|cluster| {
        cluster.spec.node_connections.get_or_insert_default().authority_renewed_at = Some("once".to_owned());
    });
    fleet.settle();
    let waits = fleet.last.as_ref().unwrap().status.node_connections.clone().unwrap().waiting_for.unwrap();
    assert!(waits.contains("node 1 shows no certificate: no answer in time"), "{waits}");
    fleet.secrets.unseen.clear();
    fleet.settle();
    assert_eq!(fleet.message(), "every node runs as the manifest says");
}
