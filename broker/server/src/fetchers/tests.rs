//! Brokers in one process, each with its own partitions and folder, that replicate to each other: leaders, followers, fetchers
//! and changes of in-sync replicas as in a server, with images and a controller made by hand.

mod behind;
mod consumers;
mod deletions;
mod directories;
mod full_disk;
mod isr;
mod leaderships;
mod newcomers;
mod throttles;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use gregor_config::{BrokerConfig, Properties};
use gregor_log::{Disk, ReadRequest, disk::RealDisk};
use gregor_messages::{
    FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse,
    fetch_request::FetchPartition,
    fetch_response::{EpochEndOffset, FetchableTopicResponse, PartitionData},
    list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
};
use gregor_metadata::{Changes, Image, MetadataImage, MetadataPosition};
use gregor_node::IsrAnswers;
use gregor_replication::{IsrProposal, ProposalAnswer};
use gregor_state_records::metadata::{
    ConfigRecord, FeatureLevelRecord, MetadataRecord, PartitionRecord, RegisterBrokerRecord, TopicRecord,
    register_broker_record::BrokerEndpoint,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, TopicId, Uuid};
use gregor_wire::batch::{BatchOptions, RecordBatchBuilder, ValidatedBatch};
use tokio::{runtime::Handle, sync::watch, time::sleep};

use super::{Fetchers, Leader};
use crate::{
    clock::now,
    control::{FormatOptions, ImageUpdate, InitialVoters, MetadataListener, format_storage},
    isr_changes::{AlterPartition, Proposed},
    metrics::Metrics,
    partition::{Awaits, FollowerReader, Isolation, Partition, Produced, Query},
    partitions::{Partitions, Publisher},
    storage::Storage,
    waiters::Waiter,
};

const TOPIC: TopicId = Uuid(77);
const DEADLINE: Duration = Duration::from_secs(30);
const BROKERS: [i32; 2] = [1, 2];
/// As `replica.fetch.wait.max.ms` has it.
const LONG_WAIT_MS: i32 = 500;

/// What the brokers share: the metadata as the controller has it, and who can reach whom.
#[derive(Default)]
struct Cluster {
    image: Mutex<Image>,
    partition: Mutex<PartitionRecord>,
    brokers: Mutex<BTreeMap<i32, Arc<Partitions>>>,
    /// Who knows of the metadata, and is told what changes.
    told: Mutex<BTreeSet<i32>>,
    /// Brokers whose fetches do not arrive.
    cut_off: Mutex<Vec<i32>>,
    last_offset: Mutex<i64>,
    /// How many partitions each `AlterPartition` named.
    requests: Mutex<Vec<usize>>,
    /// What the next `AlterPartition` gets for each partition.
    refusal: Mutex<Option<ErrorCode>>,
    /// Whether the controller takes its time.
    holds_alterations: Mutex<bool>,
    /// Whether fetches that may wait for long do, whatever comes; and how many have begun to.
    holds_fetches: Mutex<bool>,
    held: Mutex<usize>,
    /// The same of those that may not: of newcomers, and of those that are behind.
    holds_others: Mutex<bool>,
}

struct World {
    cluster: Arc<Cluster>,
    folders: Vec<tempfile::TempDir>,
    threads: BTreeMap<i32, JoinHandle<()>>,
    disk: Arc<dyn Disk>,
    stop: watch::Sender<bool>,
    /// What brokers that are started from now on register with.
    incarnation: Uuid,
}

/// A broker as another reaches it: answers as `api/fetch.rs` does, without sessions.
struct InProcess {
    cluster: Arc<Cluster>,
    from: i32,
    to: i32,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the metadata has of a broker that registered after `offset`.
fn registration(id: i32, offset: i64, incarnation: Uuid) -> MetadataRecord {
    let endpoint = BrokerEndpoint { name: "PLAINTEXT".into(), host: "h".into(), port: id as u16, ..Default::default() };
    MetadataRecord::RegisterBroker(RegisterBrokerRecord {
        broker_id: id,
        broker_epoch: offset + i64::from(id),
        incarnation_id: incarnation,
        end_points: vec![endpoint],
        fenced: false,
        ..Default::default()
    })
}

impl World {
    /// Brokers 1 and 2, and a partition of a topic on both that 1 leads.
    fn new(min_isr: i32) -> Self {
        Self::with(&[("min.insync.replicas", min_isr.to_string().as_str())])
    }

    /// The same, with this configuration of the topic.
    fn with(configs: &[(&str, &str)]) -> Self {
        Self::on(Arc::new(RealDisk), configs)
    }

    /// The same on a disk that both brokers have their folders on.
    fn on(disk: Arc<dyn Disk>, configs: &[(&str, &str)]) -> Self {
        let mut world = Self {
            cluster: Arc::default(),
            folders: Vec::new(),
            threads: BTreeMap::new(),
            disk,
            stop: watch::Sender::new(false),
            incarnation: Uuid::ZERO,
        };
        let mut image = Image::default();
        let mut apply = |record| image.apply(&record).unwrap();
        let level = FeatureLevelRecord { name: "metadata.version".into(), feature_level: 30, ..Default::default() };
        apply(MetadataRecord::FeatureLevel(level));
        for id in BROKERS {
            apply(registration(id, 100, Uuid::ZERO));
        }
        apply(MetadataRecord::Topic(TopicRecord { name: "t".into(), topic_id: TOPIC, ..Default::default() }));
        for (name, value) in configs {
            apply(MetadataRecord::Config(ConfigRecord {
                resource_type: 2,
                resource_name: "t".into(),
                name: (*name).into(),
                value: Some((*value).into()),
                ..Default::default()
            }));
        }
        *locked(&world.cluster.image) = image;
        *locked(&world.cluster.partition) = PartitionRecord {
            partition_id: 0,
            topic_id: TOPIC,
            replicas: BROKERS.to_vec(),
            isr: BROKERS.to_vec(),
            leader: 1,
            leader_epoch: 0,
            partition_epoch: 0,
            ..Default::default()
        };
        for id in BROKERS {
            world.format(id);
            world.start(id);
        }
        world
    }

    fn format(&mut self, id: i32) {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let options = FormatOptions {
            cluster_id: "test-cluster".into(),
            node_id: BrokerId(id),
            directories: vec![(data.clone(), Uuid(0x1111_2222_3333_4444_8555_6666_7777_8800 + id as u128))],
            metadata_directory: data.clone(),
            voters: InitialVoters::None,
            metadata_version: 30,
            features: Vec::new(),
            ignore_formatted: false,
            now: now(),
        };
        format_storage(&*self.disk, &options).unwrap();
        self.folders.push(folder);
    }

    fn start(&mut self, id: i32) {
        let data = self.folders[id as usize - 1].path().join("data");
        let mut properties = Properties::default();
        properties.set("node.id", id.to_string());
        properties.set("process.roles", "broker,controller");
        properties.set("listeners", "PLAINTEXT://127.0.0.1:0,CONTROLLER://127.0.0.1:0");
        properties.set("controller.listener.names", "CONTROLLER");
        properties.set("controller.quorum.bootstrap.servers", "127.0.0.1:9093");
        properties.set("log.dirs", data.to_str().unwrap());
        properties.set("replica.fetch.backoff.ms", "20");
        let config = Arc::new(BrokerConfig::from_properties(&properties).unwrap().0);
        let storage = Arc::new(Storage::open(&self.disk, &config, watch::Sender::new(None)).unwrap());
        let cluster = Arc::clone(&self.cluster);
        let connect = move |address: &str| -> Arc<dyn Leader> {
            let to = address.trim_start_matches("h:").parse().unwrap();
            Arc::new(InProcess { cluster: Arc::clone(&cluster), from: id, to })
        };
        let fetchers = Fetchers::new(&config, Box::new(connect), self.stop.subscribe(), Handle::current());
        let me = (BrokerId(id), self.incarnation);
        let partitions = Partitions::new(me, config, storage, Arc::new(Metrics::new()), fetchers);
        self.threads.insert(id, partitions.start(|_| {}).unwrap());
        let controller = Arc::clone(&self.cluster);
        tokio::spawn(Arc::clone(&partitions.isr_changes).run(controller));
        locked(&self.cluster.brokers).insert(id, partitions);
    }

    /// Stops a broker cleanly and starts it again. It knows nothing of the metadata until it is published.
    fn restart(&mut self, id: i32) {
        let partitions = locked(&self.cluster.brokers).remove(&id).unwrap();
        partitions.stop();
        self.threads.remove(&id).unwrap().join().unwrap();
        partitions.close();
        partitions.storage().close(BrokerEpoch::NONE);
        locked(&self.cluster.told).remove(&id);
        self.start(id);
    }

    /// Has all brokers know the metadata as it is now, and waits until they do.
    async fn publish(&self) -> [Arc<Partition>; 2] {
        let partition = MetadataRecord::Partition(locked(&self.cluster.partition).clone());
        self.publish_with(&partition).await
    }

    /// The same with another record.
    async fn publish_with(&self, record: &MetadataRecord) -> [Arc<Partition>; 2] {
        let offset = {
            let mut last = locked(&self.cluster.last_offset);
            *last += 1;
            *last
        };
        let (before, image) = {
            let before = locked(&self.cluster.image).clone();
            let mut image = before.clone();
            image.apply(record).unwrap();
            *locked(&self.cluster.image) = image.clone();
            (before, image)
        };
        let position = MetadataPosition { last_offset: Offset(offset), epoch: LeaderEpoch(1) };
        let image = Arc::new(MetadataImage { image, position, kraft_version: 1 });
        let mut found = Vec::new();
        for (id, partitions) in &*locked(&self.cluster.brokers) {
            let known = if locked(&self.cluster.told).insert(*id) { &Image::default() } else { &before };
            let update = ImageUpdate { image: Arc::clone(&image), changes: Changes::between(known, &image) };
            Publisher(Arc::clone(partitions)).publish(update);
            found.push(Arc::clone(partitions));
        }
        for partitions in &found {
            partitions.applied().wait_for(|applied| *applied >= Offset(offset)).await.unwrap();
        }
        [1, 2].map(|id| found[id - 1].get("t", 0).unwrap())
    }

    /// Another broker leads, in a new epoch.
    async fn elect(&self, leader: i32) {
        {
            let mut partition = locked(&self.cluster.partition);
            partition.leader = leader;
            partition.leader_epoch += 1;
            partition.partition_epoch += 1;
        }
        self.publish().await;
    }

    fn cut_off(&self, id: i32) {
        locked(&self.cluster.cut_off).push(id);
    }

    fn heal(&self) {
        locked(&self.cluster.cut_off).clear();
    }

    fn isr(&self) -> Vec<i32> {
        locked(&self.cluster.partition).isr.clone()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for partitions in std::mem::take(&mut *locked(&self.cluster.brokers)).values() {
            partitions.stop();
        }
    }
}

/// The controller: takes what is proposed on its own state.
impl AlterPartition for Cluster {
    async fn alter(&self, proposed: &[Proposed]) -> Option<IsrAnswers> {
        locked(&self.requests).push(proposed.len());
        while *locked(&self.holds_alterations) {
            sleep(Duration::from_millis(5)).await;
        }
        let refusal = std::mem::take(&mut *locked(&self.refusal));
        let answer = |proposal: &IsrProposal| {
            let mut partition = locked(&self.partition);
            if let Some(error) = refusal {
                return ProposalAnswer::Refused(error);
            }
            if partition.leader_epoch != proposal.leader_epoch.value() {
                return ProposalAnswer::Refused(ErrorCode::FencedLeaderEpoch);
            }
            if partition.partition_epoch != proposal.partition_epoch {
                return ProposalAnswer::Refused(ErrorCode::InvalidUpdateVersion);
            }
            partition.isr = proposal.isr.iter().map(|(id, _)| id.value()).collect();
            partition.partition_epoch += 1;
            ProposalAnswer::Accepted {
                isr: proposal.isr.iter().map(|(id, _)| *id).collect(),
                leader_epoch: proposal.leader_epoch,
                partition_epoch: partition.partition_epoch,
            }
        };
        let named = |one: &Proposed| (one.id, answer(&one.proposal));
        Some(proposed.iter().map(named).collect())
    }
}

impl InProcess {
    fn leader(&self) -> Option<Arc<Partitions>> {
        let is_cut_off = locked(&self.cluster.cut_off).iter().any(|id| *id == self.from || *id == self.to);
        if is_cut_off { None } else { locked(&self.cluster.brokers).get(&self.to).cloned() }
    }

    fn answer(&self, request: &FetchRequest, held: &Arc<Partition>, wanted: &FetchPartition) -> PartitionData {
        let replica = BrokerId(request.replica_state.replica_id);
        let image = locked(&self.cluster.image).clone();
        let read = held.read(&Query {
            from: Offset(wanted.fetch_offset),
            current_leader_epoch: LeaderEpoch(wanted.current_leader_epoch),
            last_fetched_epoch: LeaderEpoch(wanted.last_fetched_epoch),
            max_bytes: wanted.partition_max_bytes as u32,
            min_one_batch: true,
            isolation: Isolation::LogEnd,
            of_any_replica: false,
            near: &[],
            follower: Some(FollowerReader {
                replica,
                broker_epoch: BrokerEpoch(request.replica_state.replica_epoch),
                log_start: Offset(wanted.log_start_offset),
                registrations: &image,
                is_noted: false,
                is_over_quota: false,
            }),
        });
        let partition_index = wanted.partition;
        match read {
            Ok(read) => PartitionData {
                partition_index,
                high_watermark: read.marks.high_watermark.value(),
                log_start_offset: read.marks.log_start.value(),
                diverging_epoch: read.diverging.map_or_else(EpochEndOffset::default, |end| EpochEndOffset {
                    epoch: end.leader_epoch.value(),
                    end_offset: end.end_offset.value(),
                    ..Default::default()
                }),
                records: Some(read.plan.read_all().unwrap()),
                ..Default::default()
            },
            Err(error) => PartitionData { partition_index, error_code: error.code(), ..Default::default() },
        }
    }

    fn answers(&self, request: &FetchRequest, leader: &Partitions) -> FetchResponse {
        let partitions = |topic: &gregor_messages::fetch_request::FetchTopic| {
            let find = |wanted: &FetchPartition| {
                let held = leader.get_by_id(topic.topic_id, wanted.partition)?;
                Some(self.answer(request, &held, wanted))
            };
            topic.partitions.iter().filter_map(find).collect()
        };
        let topic = |topic: &gregor_messages::fetch_request::FetchTopic| FetchableTopicResponse {
            topic_id: topic.topic_id,
            partitions: partitions(topic),
            ..Default::default()
        };
        FetchResponse { responses: request.topics.iter().map(topic).collect(), ..Default::default() }
    }
}

impl Leader for InProcess {
    fn fetch(&self, request: FetchRequest) -> BoxFuture<'_, Option<FetchResponse>> {
        async move {
            let Cluster { holds_fetches, holds_others, held, .. } = &*self.cluster;
            let holds = if request.max_wait_ms >= LONG_WAIT_MS { holds_fetches } else { holds_others };
            if *locked(holds) {
                *locked(held) += usize::from(std::ptr::eq(holds, holds_fetches));
                while *locked(holds) {
                    sleep(Duration::from_millis(5)).await;
                }
            }
            let leader = self.leader()?;
            let response = self.answers(&request, &leader);
            let has_news = response.responses.iter().flat_map(|topic| &topic.partitions).any(|partition| {
                partition.error_code != 0
                    || partition.diverging_epoch.end_offset >= 0
                    || partition.records.as_ref().is_some_and(|records| !records.is_empty())
            });
            if has_news {
                return Some(response);
            }
            let waiter = Waiter::new(1);
            leader.all().iter().for_each(|partition| partition.lock_waiters().add_follower(&waiter));
            waiter.wait_until(tokio::time::Instant::now() + Duration::from_millis(50)).await;
            let leader = self.leader()?;
            leader.all().iter().for_each(|partition| partition.lock_waiters().remove(&waiter));
            Some(self.answers(&request, &leader))
        }
        .boxed()
    }

    fn list_offsets(&self, request: ListOffsetsRequest) -> BoxFuture<'_, Option<ListOffsetsResponse>> {
        async move {
            let leader = self.leader()?;
            let topic = &request.topics[0];
            let held = leader.get(&topic.name, 0)?;
            let (start, end) = held.with_log(|log, _| (log.start_offset(), log.end_offset()))?;
            let offset = if topic.partitions[0].timestamp == -1 { end } else { start };
            let partition = ListOffsetsPartitionResponse { offset: offset.value(), ..Default::default() };
            let topic = ListOffsetsTopicResponse {
                name: topic.name.clone(),
                partitions: vec![partition],
                ..Default::default()
            };
            Some(ListOffsetsResponse { topics: vec![topic], ..Default::default() })
        }
        .boxed()
    }
}

fn append(to: &Arc<Partition>, text: &str, acks_all: bool) -> Result<Produced, ErrorCode> {
    let mut builder = RecordBatchBuilder::new(BatchOptions::default());
    builder.append(now(), None, Some(text.as_bytes()), &[]);
    let bytes = builder.build();
    to.append(&ValidatedBatch::trusted(&bytes).unwrap(), acks_all, now())
}

fn bytes_of(partition: &Partition) -> Vec<u8> {
    let read = partition.with_log(|log, _| {
        let (from, upper_bound) = (log.start_offset(), log.end_offset());
        if from == upper_bound {
            return Vec::new();
        }
        let request = ReadRequest { from, upper_bound, max_bytes: 1 << 20, min_one_batch: true };
        log.read(&request).unwrap().read_all().unwrap().to_vec()
    });
    read.unwrap()
}

fn end_of(partition: &Partition) -> i64 {
    partition.with_log(|log, _| log.end_offset().value()).unwrap()
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn is_committed(partition: &Partition, awaits: Awaits) -> bool {
    partition.check(awaits).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_all_waits_for_the_follower_which_then_has_the_same_bytes() {
    let world = World::new(2);
    world.cut_off(2);
    let [leader, follower] = world.publish().await;
    let awaits = append(&leader, "one", true).unwrap().awaits.expect("the follower does not have it yet");
    assert!(!is_committed(&leader, awaits));
    let waiter = Waiter::new(1);
    leader.wait_for(awaits, &waiter);
    world.heal();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    assert_eq!(waiter.wait_until(deadline).await, crate::waiters::Waited::Woken);
    assert!(is_committed(&leader, awaits));
    assert_eq!(bytes_of(&leader), bytes_of(&follower));
    until("the follower knows what is committed", || follower.high_watermark() == Offset(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_sync_replicas_shrink_without_a_follower_and_grow_when_it_is_back() {
    let world = World::new(2);
    let [leader, follower] = world.publish().await;
    append(&leader, "one", true).unwrap();
    until("both have it", || end_of(&follower) == 1 && leader.high_watermark() == Offset(1)).await;
    world.cut_off(2);
    let unacknowledged = append(&leader, "two", true).unwrap().awaits.unwrap();
    leader.drop_laggards(now().plus_ms(10 * 60_000));
    until("broker 2 is out of sync", || world.isr() == [1]).await;
    world.publish().await;
    until("the leader knows", || leader.standing().under_min_isr).await;
    assert_eq!(append(&leader, "three", true).unwrap_err(), ErrorCode::NotEnoughReplicas);
    assert_eq!(leader.check(unacknowledged), Ok(false), "fewer are in sync than are asked for: nothing is committed");
    world.heal();
    until("broker 2 is in sync again", || world.isr() == [1, 2]).await;
    until("what waited is committed", || is_committed(&leader, unacknowledged)).await;
    append(&leader, "three", true).unwrap();
    until("both have all", || end_of(&follower) == 3).await;
    assert_eq!(bytes_of(&leader), bytes_of(&follower));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_away_cuts_off_what_only_it_had_and_catches_up() {
    let world = World::new(1);
    let [one, two] = world.publish().await;
    append(&one, "both", true).unwrap();
    until("both have it", || end_of(&two) == 1).await;
    world.cut_off(2);
    append(&one, "only here", false).unwrap();
    append(&one, "only here too", false).unwrap();
    world.cut_off(1);
    world.elect(2).await;
    append(&two, "instead", false).unwrap();
    assert_eq!(append(&one, "no more", false).unwrap_err(), ErrorCode::NotLeaderOrFollower);
    assert_ne!(bytes_of(&one), bytes_of(&two));
    world.heal();
    until("the logs are the same", || bytes_of(&one) == bytes_of(&two)).await;
    let epochs = |partition: &Partition| partition.with_log(|log, _| log.epochs().to_vec()).unwrap();
    assert_eq!(epochs(&one), epochs(&two));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_behind_its_leaders_start_begins_anew_there() {
    let world = World::new(1);
    world.cut_off(2);
    let [leader, follower] = world.publish().await;
    leader.with_log(|log, _| log.truncate_fully_and_start_at(Offset(50), now()).unwrap()).unwrap();
    world.elect(1).await;
    append(&leader, "fifty", false).unwrap();
    world.heal();
    until("the follower has it", || end_of(&follower) == 51).await;
    assert_eq!(follower.with_log(|log, _| log.start_offset()), Some(Offset(50)));
    assert_eq!(bytes_of(&leader), bytes_of(&follower));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetches_of_another_leadership_or_of_another_life_are_fenced() {
    let world = World::new(1);
    world.cut_off(2);
    let [leader, _] = world.publish().await;
    world.elect(1).await;
    let fetch = |leader_epoch, replica, broker_epoch| {
        let image = locked(&world.cluster.image).clone();
        let read = leader.read(&Query {
            from: Offset(0),
            current_leader_epoch: LeaderEpoch(leader_epoch),
            last_fetched_epoch: LeaderEpoch::NONE,
            max_bytes: 1,
            min_one_batch: true,
            isolation: Isolation::LogEnd,
            of_any_replica: false,
            near: &[],
            follower: Some(FollowerReader {
                replica: BrokerId(replica),
                broker_epoch: BrokerEpoch(broker_epoch),
                log_start: Offset(0),
                registrations: &image,
                is_noted: false,
                is_over_quota: false,
            }),
        });
        read.map(|_| ())
    };
    assert_eq!(fetch(0, 2, 102), Err(ErrorCode::FencedLeaderEpoch));
    assert_eq!(fetch(2, 2, 102), Err(ErrorCode::UnknownLeaderEpoch));
    assert_eq!(fetch(1, 2, 101), Err(ErrorCode::NotLeaderOrFollower), "an earlier life of the broker");
    assert_eq!(fetch(1, 3, 103), Err(ErrorCode::UnknownLeaderEpoch), "no replica of the partition");
    assert_eq!(fetch(1, 2, 102), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_unsynced_is_acknowledged_a_follower_syncs_before_it_says_what_it_has() {
    let world = World::with(&[("min.insync.replicas", "2"), ("flush.messages", "1")]);
    let [leader, follower] = world.publish().await;
    for number in 0..20 {
        // Both may have synced it before the append returns.
        if let Some(awaits) = append(&leader, "synced", true).unwrap().awaits {
            let waiter = Waiter::new(1);
            leader.wait_for(awaits, &waiter);
            waiter.wait_until(tokio::time::Instant::now() + DEADLINE).await;
            assert!(is_committed(&leader, awaits));
        }
        for replica in [&leader, &follower] {
            let synced = replica.with_log(|log, _| log.recovery_point());
            assert_eq!(synced, Some(Offset(number + 1)), "what is acknowledged is on the disk of every replica");
        }
    }
}
