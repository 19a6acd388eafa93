//! Clients beside those that write and read records, who note what they were promised: that a topic is there, that an offset
//! is committed.
//!
//! What they ask for is asked again where no answer came, and a request that was given up can arrive later than what came after it:
//! it lies in the sockets of a network that was cut. So no two of their requests may contradict each other, and each is promised
//! something of its own: names are used once, and what is promised is never taken back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use gregor_client::{
    Client, CommittedOffset, NewTopic,
    types::{ErrorCode, KString, Offset, TopicPartition},
};

/// A pause after each promise.
const PACE: Duration = Duration::from_millis(500);

/// Makes topics while this goes on, and returns those that it was told to be there. Every other one it deletes again, whatever
/// comes of it.
pub async fn make_topics(client: Client, goes_on: impl Fn() -> bool) -> BTreeSet<KString> {
    let admin = client.admin();
    let mut made = BTreeSet::new();
    for number in 0_u64.. {
        if !goes_on() {
            break;
        }
        let name = KString::from(format!("topic-{number}"));
        let topic = NewTopic::new(name.clone()).partitions(1).replication_factor(3);
        let is_there = match admin.create_topic(topic).await {
            Ok(_) => true,
            // An earlier try was decided, and its answer lost.
            Err(error) => error.code() == Some(ErrorCode::TopicAlreadyExists),
        };
        if number % 2 == 0 {
            let _ = admin.delete_topic(name).await;
        } else if is_there {
            made.insert(name);
        }
        tokio::time::sleep(PACE).await;
    }
    made
}

/// Commits an offset for one group after the other while this goes on, and returns what it was told to be committed.
pub async fn commit_offsets(
    client: Client,
    partition: TopicPartition,
    goes_on: impl Fn() -> bool,
) -> BTreeMap<KString, Offset> {
    let admin = client.admin();
    let mut committed = BTreeMap::new();
    for number in 0_i64.. {
        if !goes_on() {
            break;
        }
        let group = KString::from(format!("group-{number}"));
        let offsets = BTreeMap::from([(partition.clone(), CommittedOffset::new(number))]);
        let told = admin.alter_group_offsets(group.clone(), &offsets).await;
        if told.is_ok_and(|outcomes| outcomes.len() == 1 && outcomes.values().all(Result::is_ok)) {
            committed.insert(group, Offset(number));
        }
        tokio::time::sleep(PACE).await;
    }
    committed
}

/// Whether all that was promised is there.
pub async fn check(
    client: &Client,
    made: &BTreeSet<KString>,
    committed: &BTreeMap<KString, Offset>,
    partition: &TopicPartition,
) {
    let listed = client.admin().list_topics().await.unwrap();
    let listed: BTreeSet<KString> = listed.into_iter().map(|topic| topic.name).collect();
    let lost: Vec<_> = made.difference(&listed).collect();
    assert!(lost.is_empty() && !made.is_empty(), "of {} topics that were made these are lost: {lost:?}", made.len());
    for (group, offset) in committed {
        let offsets = client.admin().list_group_offsets(group.clone()).await.unwrap();
        let found = offsets.get(partition).map(|one| one.offset);
        assert_eq!(found, Some(*offset), "what {group} committed is lost");
    }
    assert!(!committed.is_empty(), "no offset was committed");
}
