//! Whether all nodes of a fleet have the same, on their disks and in what they say.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use gregor_client::{
    Client,
    messages::{MetadataRequest, metadata_request::MetadataRequestTopic},
    types::{BrokerId, KString},
};

use super::fleet::{DEADLINE, Fleet, NODES};

const POLL: Duration = Duration::from_millis(20);

/// A log's batches by their base offset.
type Batches = BTreeMap<i64, Vec<u8>>;

/// The bytes of a log's segments, one after the other.
fn bytes(log: &Path) -> Vec<u8> {
    let mut segments: Vec<_> = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    segments.sort();
    segments.into_iter().flat_map(|path| fs::read(path).unwrap()).collect()
}

/// The batches of a log, as far as they are written.
fn batches(log: &Path) -> Batches {
    let bytes = bytes(log);
    let mut found = Batches::new();
    let mut rest = &bytes[..];
    // Base offset, length of what comes behind it.
    while let Some(head) = rest.first_chunk::<12>() {
        let base = i64::from_be_bytes(head[..8].try_into().unwrap());
        let length = i32::from_be_bytes(head[8..].try_into().unwrap());
        // A log that changes meanwhile may show anything.
        let length = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(head.len());
        let Some((batch, behind)) = rest.split_at_checked(length) else { break };
        found.insert(base, batch.to_vec());
        rest = behind;
    }
    found
}

/// Waits until the replicas of a partition have the same bytes. Nobody writes any more, and no log begins later than another.
pub async fn equal(fleet: &Fleet, partition: &str) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let replicas: Vec<_> = (1..=NODES).map(|node| bytes(&fleet.directory(node).join(partition))).collect();
        if replicas.iter().all(|replica| *replica == replicas[0]) {
            return;
        }
        let lengths: Vec<_> = replicas.iter().map(Vec::len).collect();
        let late = Instant::now() > deadline;
        assert!(!late, "the replicas of {partition} differ; they are {lengths:?} bytes long");
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until the nodes' metadata logs have the same batches as far as they go together, which is past all that any of them had
/// when this began. They grow meanwhile.
pub async fn same_metadata(fleet: &Fleet) {
    let read =
        || -> Vec<_> { (1..=NODES).map(|node| batches(&fleet.directory(node).join("__cluster_metadata-0"))).collect() };
    let ends_of = |logs: &[Batches]| -> Vec<i64> { logs.iter().filter_map(|log| log.keys().last().copied()).collect() };
    let goal = ends_of(&read()).into_iter().max().unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let logs = read();
        let ends = ends_of(&logs);
        let begin = logs.iter().filter_map(|log| log.keys().next().copied()).max().unwrap();
        let end = ends.iter().copied().min().unwrap();
        let differ = (begin < end).then(|| {
            let differs = |log: &Batches| !log.range(begin..=end).eq(logs[0].range(begin..=end));
            logs.iter().any(differs)
        });
        if end >= goal && differ == Some(false) {
            return;
        }
        let late = Instant::now() > deadline;
        assert!(
            !late,
            "the metadata logs do not come together: they end at {ends:?} of {goal}, and differ: {differ:?}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until every broker tells the same of the topic, and of the brokers.
pub async fn unanimous(client: &Client, topic: &'static str) {
    let asked = MetadataRequestTopic { name: Some(KString::from_static(topic)), ..Default::default() };
    let request = MetadataRequest { topics: Some(vec![asked]), allow_auto_topic_creation: false, ..Default::default() };
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut told = Vec::new();
        for node in 1..=NODES as i32 {
            match client.call_broker(BrokerId(node), &request).await {
                Ok(response) => told.push((response.brokers, response.topics)),
                // The client may not know yet that it is up again.
                Err(_) => drop(client.admin().describe_topic(topic).await),
            }
        }
        if told.len() == NODES && told.iter().all(|one| *one == told[0]) {
            return;
        }
        assert!(Instant::now() < deadline, "the brokers tell different things of {topic}: {told:?}");
        tokio::time::sleep(POLL).await;
    }
}
