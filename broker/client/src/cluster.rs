//! The client itself, and what it knows of the cluster: brokers, topics, leaders.
//!
//! What is known is an immutable [`Cluster`] behind an `Arc`, replaced as metadata comes in. Requests are routed by `route.rs`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use gregor_channel::Channel;
use gregor_messages::{
    MetadataRequest, MetadataResponse, metadata_request::MetadataRequestTopic, metadata_response::MetadataResponseTopic,
};
use gregor_types::{BrokerId, ErrorCode, KString, LeaderEpoch, PartitionIndex, TopicId, TopicPartition};
use tokio::time::Instant;

use crate::{
    Admin, BrokerError, ClientError, ClientOptions, Consumer, ConsumerOptions, Producer, ProducerOptions,
    route::Purpose,
};

/// A connection to a Kafka cluster. A clone is the same client.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    options: ClientOptions,
    bootstrap: Vec<String>,
    cluster: RwLock<Arc<Cluster>>,
    channels: Mutex<HashMap<(String, Purpose), Channel>>,
    coordinators: Mutex<HashMap<KString, BrokerId>>,
    /// Counts through the addresses: whose turn it is to be asked what any broker knows.
    turn: AtomicUsize,
}

/// What is known of a cluster at one moment.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// The cluster's id, once a broker told it.
    pub cluster_id: Option<KString>,
    /// The broker that administrative requests go to.
    pub controller: Option<BrokerId>,
    /// The brokers that are up.
    pub brokers: BTreeMap<BrokerId, Endpoint>,
    /// The topics that were asked for.
    pub topics: HashMap<KString, Topic>,
}

/// Where a broker is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address.
    pub host: KString,
    /// The port.
    pub port: i32,
    /// The rack, if the broker is told one.
    pub rack: Option<KString>,
}

/// A topic as metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// The topic's id; zero from brokers before 2.8.
    pub id: TopicId,
    /// Whether coordinators own it.
    pub internal: bool,
    /// Its partitions by number.
    pub partitions: BTreeMap<PartitionIndex, Partition>,
    pub(crate) known_since: Instant,
}

/// A partition as metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The leader, if there is one.
    pub leader: Option<BrokerId>,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// Every replica, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// The replicas in sync.
    pub isr: Vec<BrokerId>,
    /// The replicas that are down.
    pub offline: Vec<BrokerId>,
}

impl Client {
    /// Connects to a cluster. `bootstrap` is `host:port`, or several with commas between; one that answers is enough.
    pub async fn connect(bootstrap: &str, options: ClientOptions) -> Result<Self, ClientError> {
        let bootstrap = parse_bootstrap(bootstrap)?;
        let inner = Inner {
            options,
            bootstrap,
            cluster: RwLock::default(),
            channels: Mutex::default(),
            coordinators: Mutex::default(),
            turn: AtomicUsize::new(0),
        };
        let client = Self { inner: Arc::new(inner) };
        client.retry(|| async { client.refresh_topics(&[], false).await }).await?;
        Ok(client)
    }

    /// Administration: topics, configurations, groups, offsets.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// A producer on this client; a task of the current runtime sends for it.
    pub fn producer(&self, options: ProducerOptions) -> Result<Producer, ClientError> {
        Producer::new(self.clone(), options)
    }

    /// A consumer on this client.
    pub fn consumer(&self, options: ConsumerOptions) -> Consumer {
        Consumer::new(self.clone(), options)
    }

    /// What is known at this moment.
    pub fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.inner.cluster.read().expect("nothing panics while it holds this lock"))
    }

    /// The choices this client was made with.
    pub fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    /// Asks for topics by name and remembers the answer. A topic that does not exist is created if `create` says so
    /// and the broker allows it.
    pub(crate) async fn refresh_topics(&self, names: &[KString], create: bool) -> Result<Arc<Cluster>, ClientError> {
        let response = self.fetch_metadata(Some(names), create).await?;
        Ok(self.learn(&response, false))
    }

    /// The metadata of some topics, or of all.
    pub(crate) async fn fetch_metadata(
        &self,
        names: Option<&[KString]>,
        create: bool,
    ) -> Result<MetadataResponse, ClientError> {
        let named = |name: &KString| MetadataRequestTopic { name: Some(name.clone()), ..Default::default() };
        let topics = names.map(|names| names.iter().map(named).collect::<Vec<_>>());
        let build = |_version| MetadataRequest {
            topics: topics.clone(),
            allow_auto_topic_creation: create,
            ..Default::default()
        };
        // From version 4 on, a request can say that it must not create; older ones always create (brokers before 0.11).
        let (_, response) = self.call_any::<MetadataRequest>(4..=13, self.options().request_timeout, build).await?;
        ErrorCode::from(response.error_code).ok().map_err(|code| BrokerError::new("metadata", code))?;
        Ok(response)
    }

    /// Takes metadata into what is known. With `all`, what it does not mention is gone.
    pub(crate) fn learn(&self, response: &MetadataResponse, all: bool) -> Arc<Cluster> {
        let mut known = self.inner.cluster.write().expect("nothing panics while it holds this lock");
        let mut cluster = Cluster {
            cluster_id: response.cluster_id.as_ref().map(KString::compact),
            controller: (response.controller_id >= 0).then_some(BrokerId(response.controller_id)),
            brokers: BTreeMap::new(),
            topics: if all { HashMap::new() } else { known.topics.clone() },
        };
        for broker in &response.brokers {
            let endpoint = Endpoint {
                host: broker.host.compact(),
                port: broker.port,
                rack: broker.rack.as_ref().map(KString::compact),
            };
            cluster.brokers.insert(BrokerId(broker.node_id), endpoint);
        }
        for topic in &response.topics {
            let Some(name) = &topic.name else { continue };
            match ErrorCode::from(topic.error_code) {
                // A partition without a leader is an error of that partition; the topic is known all the same.
                ErrorCode::None | ErrorCode::LeaderNotAvailable if !topic.partitions.is_empty() => {
                    cluster.topics.insert(name.compact(), topic_of(topic).newest(known.topics.get(name)));
                }
                _ => drop(cluster.topics.remove(name)),
            }
        }
        *known = Arc::new(cluster);
        Arc::clone(&known)
    }

    /// A topic, asked for if it is not known or was learnt too long ago.
    pub(crate) async fn topic(&self, name: &KString, create: bool) -> Result<Topic, ClientError> {
        if let Some(topic) = self.cluster().topics.get(name)
            && topic.known_since.elapsed() < self.options().metadata_max_age
        {
            return Ok(topic.clone());
        }
        self.retry(|| async {
            let response = self.fetch_metadata(Some(std::slice::from_ref(name)), create).await?;
            if let Some(topic) = self.learn(&response, false).topics.get(name) {
                return Ok(topic.clone());
            }
            let code = response.topics.first().map_or(ErrorCode::UnknownTopicOrPartition, |row| row.error_code.into());
            // A topic that may not be created will not appear by waiting.
            let code = if code == ErrorCode::None { ErrorCode::LeaderNotAvailable } else { code };
            match (code, create) {
                (ErrorCode::UnknownTopicOrPartition, false) => {
                    Err(ClientError::InvalidArgument(format!("topic {name} does not exist in this cluster")))
                }
                _ => Err(BrokerError::new(format!("topic {name}"), code).into()),
            }
        })
        .await
    }

    /// The leader of a partition as far as it is known.
    pub(crate) fn leader(&self, partition: &TopicPartition) -> Result<(BrokerId, LeaderEpoch), ClientError> {
        let cluster = self.cluster();
        let known = cluster.topics.get(&partition.topic).and_then(|topic| topic.partitions.get(&partition.partition));
        let no_leader = || ClientError::NoLeader(partition.clone());
        let known = known.ok_or_else(no_leader)?;
        Ok((known.leader.ok_or_else(no_leader)?, known.leader_epoch))
    }

    /// Whether what is known of one of these topics is so old that it is to be asked for again.
    pub(crate) fn outdated<'a>(&self, mut topics: impl Iterator<Item = &'a KString>) -> bool {
        let (cluster, age) = (self.cluster(), self.options().metadata_max_age);
        topics.any(|name| cluster.topics.get(name).is_some_and(|topic| topic.known_since.elapsed() >= age))
    }

    pub(crate) fn bootstrap(&self) -> &[String] {
        &self.inner.bootstrap
    }

    /// Where any broker can be asked: those that metadata tells of, then those that the client was given; each once.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<String> = self.cluster().brokers.values().map(Endpoint::address).collect();
        for given in &self.inner.bootstrap {
            if !addresses.contains(given) {
                addresses.push(given.clone());
            }
        }
        addresses
    }

    /// The place among [`addresses`](Self::addresses), modulo their number, of the broker whose turn it is. It stays the
    /// same broker's while that answers, so that what a client is told does not go back and forth.
    pub(crate) fn turn(&self) -> usize {
        self.inner.turn.load(Ordering::Relaxed)
    }

    /// Lets the next broker have its turn, once for all calls that found the broker at `turn` silent.
    pub(crate) fn pass_on(&self, turn: usize) {
        let next = turn.wrapping_add(1);
        let _ = self.inner.turn.compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Lets the next broker have its turn: what this one says did not help. It may answer and be cut off from the others, and
    /// tell for ever of leaders that were.
    pub(crate) fn ask_another(&self) {
        self.inner.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// The channel to an address for a purpose; made when it is first asked for.
    pub(crate) fn channel(&self, address: String, purpose: Purpose) -> Channel {
        let mut channels = self.inner.channels.lock().expect("nothing panics while it holds this lock");
        let options = || self.options().channel(purpose.in_flight_max());
        channels.entry((address.clone(), purpose)).or_insert_with(|| Channel::new(address, options())).clone()
    }

    pub(crate) fn coordinators(&self) -> std::sync::MutexGuard<'_, HashMap<KString, BrokerId>> {
        self.inner.coordinators.lock().expect("nothing panics while it holds this lock")
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Client({})", self.inner.bootstrap.join(","))
    }
}

impl Endpoint {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn address(&self) -> String {
        gregor_channel::authority(&self.host, self.port)
    }
}

impl Topic {
    /// The partitions that have a leader now.
    pub fn available(&self) -> impl Iterator<Item = PartitionIndex> {
        self.partitions.iter().filter(|(_, partition)| partition.leader.is_some()).map(|(index, _)| *index)
    }

    /// This, but for partitions of which a newer leader is known already: a broker may be behind another (KIP-320).
    /// Without ids, a topic cannot be told from the one that had its name before, whose epochs mean nothing to it.
    fn newest(mut self, known: Option<&Self>) -> Self {
        let Some(known) = known.filter(|known| known.id == self.id && self.id != TopicId::ZERO) else { return self };
        for (index, partition) in &mut self.partitions {
            let told = partition.leader_epoch;
            if let Some(before) = known.partitions.get(index)
                && told != LeaderEpoch::NONE
                && told < before.leader_epoch
            {
                *partition = before.clone();
            }
        }
        self
    }
}

fn topic_of(topic: &MetadataResponseTopic) -> Topic {
    let brokers = |ids: &[i32]| ids.iter().copied().map(BrokerId).collect();
    let partitions = topic.partitions.iter().map(|row| {
        let partition = Partition {
            leader: (row.leader_id >= 0).then_some(BrokerId(row.leader_id)),
            leader_epoch: LeaderEpoch(row.leader_epoch),
            replicas: brokers(&row.replica_nodes),
            isr: brokers(&row.isr_nodes),
            offline: brokers(&row.offline_replicas),
        };
        (PartitionIndex(row.partition_index), partition)
    });
    Topic {
        id: topic.topic_id,
        internal: topic.is_internal,
        partitions: partitions.collect(),
        known_since: Instant::now(),
    }
}

fn parse_bootstrap(text: &str) -> Result<Vec<String>, ClientError> {
    let wrong = |entry: &str| {
        ClientError::InvalidArgument(format!(
            "{entry:?} is no broker address: expected host:port, such as localhost:9092"
        ))
    };
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let addresses: Vec<_> = entries
        .map(|entry| match entry.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(entry.to_owned()),
            _ => Err(wrong(entry)),
        })
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() { Err(wrong(text)) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn topic(id: u128, leaders: &[(i32, i32)]) -> Topic {
        let partition = |(leader, epoch): &(i32, i32)| Partition {
            leader: Some(BrokerId(*leader)),
            leader_epoch: LeaderEpoch(*epoch),
            replicas: Vec::new(),
            isr: Vec::new(),
            offline: Vec::new(),
        };
        let partitions =
            leaders.iter().map(partition).zip(0..).map(|(partition, index)| (PartitionIndex(index), partition));
        Topic {
            id: gregor_types::Uuid(id),
            internal: false,
            partitions: partitions.collect(),
            known_since: Instant::now(),
        }
    }

    fn leaders(topic: &Topic) -> Vec<i32> {
        topic.partitions.values().filter_map(|partition| partition.leader).map(|leader| leader.0).collect()
    }

    #[test]
    fn what_a_broker_that_is_behind_says_does_not_replace_newer_leaders() {
        let known = topic(7, &[(1, 5), (1, 5), (1, 5)]);
        let told = topic(7, &[(2, 4), (2, 6), (2, -1)]).newest(Some(&known));
        assert_eq!(leaders(&told), [1, 2, 2]);
        assert_eq!(leaders(&topic(8, &[(2, 0)]).newest(Some(&known))), [2], "another topic of that name");
        let nameless = topic(0, &[(1, 5)]);
        assert_eq!(leaders(&topic(0, &[(2, 0)]).newest(Some(&nameless))), [2], "an old broker tells no id");
    }

    #[test]
    fn what_is_known_of_a_topic_is_outdated_at_its_age() {
        let client = |metadata_max_age| {
            let topics = HashMap::from([(KString::from_static("orders"), topic(7, &[(1, 5)]))]);
            let inner = Inner {
                options: ClientOptions { metadata_max_age, ..ClientOptions::default() },
                bootstrap: Vec::new(),
                cluster: RwLock::new(Arc::new(Cluster { topics, ..Cluster::default() })),
                channels: Mutex::default(),
                coordinators: Mutex::default(),
                turn: AtomicUsize::new(0),
            };
            Client { inner: Arc::new(inner) }
        };
        let (known, unknown) = (KString::from_static("orders"), KString::from_static("payments"));
        let (at_once, in_a_day) = (client(Duration::ZERO), client(Duration::from_hours(24)));
        assert!(at_once.outdated([&unknown, &known].into_iter()));
        assert!(!at_once.outdated([&unknown].into_iter()), "nothing is known of it");
        assert!(!in_a_day.outdated([&known].into_iter()));
    }

    #[test]
    fn addresses_without_a_port_are_named() {
        assert_eq!(parse_bootstrap("a:1, [::1]:2,").unwrap(), ["a:1", "[::1]:2"]);
        for wrong in ["", "a", "a:", ":1", "a:99999", "a:1,b"] {
            let message = parse_bootstrap(wrong).unwrap_err().to_string();
            assert!(message.contains("expected host:port"), "{message}");
        }
    }
}
