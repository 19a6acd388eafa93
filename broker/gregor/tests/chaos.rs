//! Three real nodes that are killed, held, stopped, cut off and lose their disks, alone, by twos and all at once, while producers write and a
//! consumer reads, topics are made and offsets are committed: what was acknowledged or read is there in the end, at its offset, once
//! and in the order in which it was sent, and all nodes have the same.
//!
//! A run takes a minute, and longer if not all of it has happened then; `GREGOR_CHAOS_SECONDS` asks for more. What happens to whom is
//! chosen by a seed, which a failure shows and `GREGOR_CHAOS_SEED` repeats; when it happens is the machine's. Networks are cut where the
//! test may make one, which takes root; `GREGOR_CHAOS_CUTS=required` has it fail where it may not. `cargo xtask soak` reads the lines that begin with [`TELLS`].
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::UdpSocket,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gregor_client::{
    Client, ClientOptions, Consumer, ConsumerOptions, FetchedRecord, NewTopic, OffsetSpec, Producer, ProducerOptions,
    ProducerRecord, StartOffset,
    types::{KString, Offset, PartitionIndex, TopicPartition},
};
use support::{
    fleet::{DEADLINE, Fleet, NODES, Usage},
    network::{self, CLIENTS, Network},
    replicas, witnesses,
};

const SECONDS: &str = "GREGOR_CHAOS_SECONDS";
const SEED: &str = "GREGOR_CHAOS_SEED";
const CUTS_WANTED: &str = "GREGOR_CHAOS_CUTS";
/// What all of the deck takes at most beyond the time that was asked for.
const DECK_MAX: Duration = Duration::from_mins(15);
/// How lines begin that tell what happens, and what came of it.
const TELLS: &str = "chaos: ";
const TOPIC: &str = "records";
const PARTITIONS: i32 = 3;
const PRODUCERS: usize = 2;
/// Records that a producer has on their way to a partition, and its pause before the next.
const WINDOW: usize = 5;
const PACE: Duration = Duration::from_millis(5);
/// Acknowledged records of each partition, and as many that are read, which show that it is served.
const PROGRESS: usize = 20;

/// What happens to nodes, until it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Disturbance {
    Kill,
    Hold,
    Stop,
    HoldOneAndKillAnother,
    KillTwo,
    KillAll,
    /// A node is killed when all others have what it has, and gets an empty disk.
    Wipe,
    /// Nothing goes to a node or comes from it.
    CutOff,
    CutOffOneAndKillAnother,
    /// A node is cut off from the others, and clients reach it.
    CutFromNodes,
    /// Two nodes are cut off from each other.
    CutPair,
    /// What one node sends to another is lost.
    CutOneWay,
    /// All that a node sends is lost.
    Mute,
    /// All that is sent to a node is lost.
    Deaf,
    /// Every node is cut off from the others.
    CutAll,
}

/// Each is played once before any is played again.
const DECK: [Disturbance; 8] = [
    Disturbance::Kill,
    Disturbance::Hold,
    Disturbance::Hold,
    Disturbance::Stop,
    Disturbance::HoldOneAndKillAnother,
    Disturbance::KillTwo,
    Disturbance::KillAll,
    Disturbance::Wipe,
];

/// What is played with them where there is a network to cut.
const CUTS: [Disturbance; 8] = [
    Disturbance::CutOff,
    Disturbance::CutOffOneAndKillAnother,
    Disturbance::CutFromNodes,
    Disturbance::CutPair,
    Disturbance::CutOneWay,
    Disturbance::Mute,
    Disturbance::Deaf,
    Disturbance::CutAll,
];

impl Disturbance {
    /// Whether all but one node are left, and serve all partitions if they were in sync before.
    fn leaves_two(self) -> bool {
        !matches!(
            self,
            Self::HoldOneAndKillAnother
                | Self::KillTwo
                | Self::KillAll
                | Self::Wipe
                | Self::CutOffOneAndKillAnother
                | Self::CutAll
        )
    }

    /// What is cut meanwhile: from whom to whom.
    fn cuts(self, [one, other, third]: [usize; NODES]) -> Vec<(usize, usize)> {
        let both = |pairs: &[(usize, usize)]| -> Vec<(usize, usize)> {
            pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).collect()
        };
        match self {
            Self::CutOff | Self::CutOffOneAndKillAnother => both(&[(one, other), (one, third), (one, CLIENTS)]),
            Self::CutFromNodes => both(&[(one, other), (one, third)]),
            Self::CutPair => both(&[(one, other)]),
            Self::CutAll => both(&[(one, other), (one, third), (other, third)]),
            Self::CutOneWay => vec![(one, other)],
            Self::Mute => vec![(one, other), (one, third), (one, CLIENTS)],
            Self::Deaf => vec![(other, one), (third, one), (CLIENTS, one)],
            _ => Vec::new(),
        }
    }
}

/// What clients were told.
#[derive(Default)]
struct Told {
    /// How many records of each partition were acknowledged.
    counts: [usize; PARTITIONS as usize],
    /// Their values and offsets; there is none where a broker knew a record already.
    acknowledged: Vec<(PartitionIndex, String, Offset)>,
    /// Records that a consumer was given, and how many of each partition.
    read: Records,
    read_counts: [usize; PARTITIONS as usize],
}

type Records = BTreeMap<(PartitionIndex, Offset), String>;

/// What the clients share.
#[derive(Default)]
struct Story {
    told: Mutex<Told>,
    is_over: AtomicBool,
}

/// A sequence of numbers that a seed repeats (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    fn millis(&mut self, range: std::ops::Range<usize>) -> Duration {
        Duration::from_millis((range.start + self.below(range.end - range.start)) as u64)
    }
}

impl Story {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// How many records of each partition were acknowledged, and how many were read.
    fn counts(&self) -> [[usize; PARTITIONS as usize]; 2] {
        let told = self.told();
        [told.counts, told.read_counts]
    }

    /// Waits until every partition has taken more records, and given more to the consumer.
    async fn progress(&self, after: &str, fleet: &Fleet) {
        let wanted = self.counts().map(|counts| counts.map(|count| count + PROGRESS));
        let deadline = Instant::now() + DEADLINE;
        loop {
            let counts = self.counts();
            if counts.iter().flatten().zip(wanted.iter().flatten()).all(|(count, wanted)| count >= wanted) {
                return;
            }
            let late = Instant::now() > deadline;
            assert!(!late, "after {after}: {counts:?} of {wanted:?} are acknowledged and read\n{}", fleet.story());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

fn partition(index: i32) -> TopicPartition {
    TopicPartition::new(KString::from_static(TOPIC), PartitionIndex(index))
}

/// A client that gives a node up soon that does not answer.
async fn client(fleet: &Fleet) -> Client {
    let patience = Duration::from_secs(2);
    let options = ClientOptions {
        request_timeout: patience,
        connect_timeout: patience,
        // A leader that is cut off, and that clients reach, tells consumers nothing of its successor.
        metadata_max_age: Duration::from_secs(3),
        ..ClientOptions::default()
    };
    fleet.client(options).await
}

/// Sends to one partition until the story is over. Each value says whose it is, and how many came before it.
async fn produce(producer: Producer, name: usize, index: i32, story: Arc<Story>) {
    let index = PartitionIndex(index);
    let mut next = 0_u64;
    while story.goes_on() {
        let mut sent = Vec::new();
        for _ in 0..WINDOW {
            let value = format!("{name}/{next}");
            next += 1;
            let record = ProducerRecord { partition: Some(index), ..ProducerRecord::new(TOPIC, value.clone()) };
            // What could not be sent was promised to nobody.
            if let Ok(delivery) = producer.send(record).await {
                sent.push((value, delivery));
            }
        }
        for (value, delivery) in sent {
            if let Ok(stored) = delivery.await {
                let mut told = story.told();
                told.counts[index.value() as usize] += 1;
                told.acknowledged.push((index, value, stored.offset));
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Takes note of what a consumer is given.
fn note(records: &mut Records, given: Vec<FetchedRecord>) {
    for record in given {
        let at = (record.partition.partition, record.offset);
        let value = String::from_utf8(record.value.unwrap_or_default().to_vec()).unwrap();
        if let Some(before) = records.insert(at, value.clone()) {
            assert_eq!(before, value, "what was read at {at:?}, and is read there now");
        }
    }
}

/// A consumer of all partitions. A broker may hear last that there are any.
async fn reader(client: &Client) -> Consumer {
    let mut consumer = client.consumer(ConsumerOptions { auto_commit: None, ..ConsumerOptions::default() });
    let deadline = Instant::now() + DEADLINE;
    let all = || (0..PARTITIONS).map(|index| (partition(index), StartOffset::Earliest));
    while let Err(error) = consumer.assign(all()).await {
        assert!(Instant::now() < deadline, "no broker knows the topic: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    consumer
}

/// Reads until the story is over.
async fn consume(client: Client, story: Arc<Story>) {
    let mut consumer = reader(&client).await;
    while story.goes_on() {
        // Nodes that are down are asked again.
        if let Ok(given) = consumer.poll(Duration::from_millis(200)).await {
            let mut told = story.told();
            for record in &given {
                told.read_counts[record.partition.partition.value() as usize] += 1;
            }
            note(&mut told.read, given);
        }
    }
}

/// Reads all that there is.
async fn read_all(client: &Client) -> Records {
    let wanted: Vec<_> = (0..PARTITIONS).map(|index| (partition(index), OffsetSpec::Latest)).collect();
    let mut ends = Vec::new();
    for (partition, listed) in client.admin().list_offsets(&wanted, false).await.unwrap() {
        ends.push((partition, listed.unwrap().offset));
    }
    let mut consumer = reader(client).await;
    let mut found = Records::new();
    let deadline = Instant::now() + DEADLINE;
    while !ends.iter().all(|(partition, end)| consumer.position(partition).is_some_and(|at| at >= *end)) {
        assert!(Instant::now() < deadline, "the records are not read in time: {} of {ends:?}", found.len());
        note(&mut found, consumer.poll(Duration::from_millis(200)).await.unwrap());
    }
    found
}

/// Waits until every replica is in sync.
async fn whole(client: &Client, fleet: &Fleet) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let seen = client.admin().describe_topic(TOPIC).await;
        if let Ok(topic) = &seen
            && topic.partitions.values().all(|partition| partition.isr.len() == NODES)
        {
            return;
        }
        assert!(Instant::now() < deadline, "not all replicas are in sync: {seen:?}\n{}", fleet.story());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until every replica of every topic is in sync, by what a node says that has heard of all that was decided before.
async fn whole_throughout(client: &Client, fleet: &Fleet, number: usize) {
    let latest = KString::from(format!("latest-{number}"));
    let deadline = Instant::now() + DEADLINE;
    loop {
        let _ = client.admin().create_topic(NewTopic::new(latest.clone()).partitions(1).replication_factor(3)).await;
        let seen = client.admin().list_topics().await;
        if let Ok(topics) = &seen
            && topics.iter().any(|topic| topic.name == latest)
            && topics.iter().flat_map(|topic| topic.partitions.values()).all(|partition| partition.isr.len() == NODES)
        {
            return;
        }
        assert!(Instant::now() < deadline, "not all replicas are in sync: {seen:?}\n{}", fleet.story());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What each producer's session promises, and what was acknowledged or read before, of all that is there in the end.
fn check(told: &Told, found: &Records) {
    let mut last: BTreeMap<(PartitionIndex, &str), u64> = BTreeMap::new();
    for ((partition, offset), value) in found {
        let (producer, number) = value.split_once('/').unwrap();
        let number = number.parse().unwrap();
        if let Some(before) = last.insert((*partition, producer), number) {
            let place = format!("{partition:?} at {offset:?}");
            assert!(before < number, "{place}: record {number} of producer {producer} comes after its record {before}");
        }
    }
    let values: BTreeSet<_> = found.iter().map(|((partition, _), value)| (*partition, value)).collect();
    for (partition, value, offset) in &told.acknowledged {
        if *offset == Offset::NONE {
            assert!(values.contains(&(*partition, value)), "{partition:?} has lost {value}, which was acknowledged");
        } else {
            assert_eq!(found.get(&(*partition, *offset)), Some(value), "acknowledged of {partition:?} at {offset:?}");
        }
    }
    for (at, value) in &told.read {
        assert_eq!(found.get(at), Some(value), "what a consumer read at {at:?}");
    }
}

/// Does to the nodes what is to be done, and undoes it after a while. Returns to which in the first place.
async fn disturb(disturbance: Disturbance, calm: bool, chance: &mut Chance, story: &Story, fleet: &mut Fleet) -> usize {
    let mut nodes = [1, 2, 3];
    chance.shuffle(&mut nodes);
    let [one, other, _] = nodes;
    let cuts = disturbance.cuts(nodes);
    for (from, to) in &cuts {
        fleet.network().unwrap().cut(*from, *to);
    }
    let mut held = None;
    match disturbance {
        Disturbance::Kill => fleet.kill(one),
        Disturbance::Hold => {
            fleet.hold(one);
            held = Some(one);
        }
        Disturbance::Stop => fleet.stop(one).await,
        Disturbance::HoldOneAndKillAnother => {
            fleet.hold(one);
            tokio::time::sleep(chance.millis(0..2_500)).await;
            fleet.kill(other);
            held = Some(one);
        }
        Disturbance::KillTwo => {
            fleet.kill(one);
            tokio::time::sleep(chance.millis(0..1_000)).await;
            fleet.kill(other);
        }
        Disturbance::KillAll => fleet.kill_all(),
        Disturbance::Wipe => {
            fleet.kill(one);
            fleet.wipe(one);
        }
        Disturbance::CutOffOneAndKillAnother => {
            tokio::time::sleep(chance.millis(0..2_500)).await;
            fleet.kill(other);
        }
        // Nothing but what is cut.
        Disturbance::CutOff
        | Disturbance::CutFromNodes
        | Disturbance::CutPair
        | Disturbance::CutOneWay
        | Disturbance::Mute
        | Disturbance::Deaf
        | Disturbance::CutAll => {}
    }
    // What is on its way when something is cut still arrives, and would be taken for progress.
    tokio::time::sleep(chance.millis(50..3_000)).await;
    if calm && disturbance.leaves_two() {
        story.progress(&format!("{disturbance:?} of nodes {nodes:?} while two are left"), fleet).await;
    }
    for (from, to) in cuts {
        fleet.network().unwrap().mend(from, to);
    }
    if let Some(node) = held {
        fleet.resume(node);
    }
    fleet.start_missing();
    one
}

/// Has `most` be what a node took at most until now, and tells what each takes.
fn watch(fleet: &Fleet, most: &mut Usage) -> String {
    let mut told = Vec::new();
    for usage in fleet.usage() {
        let Some(usage) = usage else {
            told.push("-".to_owned());
            continue;
        };
        most.memory_kib = most.memory_kib.max(usage.memory_kib);
        most.files = most.files.max(usage.files);
        told.push(format!("{} MiB {} files", usage.memory_kib / 1024, usage.files));
    }
    told.join(", ")
}

async fn play(network: Option<Network>, seed: u64, lasts: Duration) {
    let mut chance = Chance(seed);
    let all: Vec<_> = DECK.into_iter().chain(network.iter().flat_map(|_| CUTS)).collect();
    let mut fleet = Fleet::format_on(network);
    fleet.start_all().await;
    let admin = client(&fleet).await;
    let topic = NewTopic::new(TOPIC).partitions(PARTITIONS).replication_factor(3);
    admin.admin().create_topic(topic).await.unwrap();
    let story = Arc::new(Story::default());
    let mut tasks = Vec::new();
    for name in 0..PRODUCERS {
        let producer = client(&fleet).await.producer(ProducerOptions::default()).unwrap();
        for index in 0..PARTITIONS {
            tasks.push(tokio::spawn(produce(producer.clone(), name, index, Arc::clone(&story))));
        }
    }
    tasks.push(tokio::spawn(consume(client(&fleet).await, Arc::clone(&story))));
    let until_over = |story: &Arc<Story>| {
        let story = Arc::clone(story);
        move || story.goes_on()
    };
    let made = tokio::spawn(witnesses::make_topics(client(&fleet).await, until_over(&story)));
    let committing = witnesses::commit_offsets(client(&fleet).await, partition(0), until_over(&story));
    let committed = tokio::spawn(committing);
    let began = Instant::now();
    let (mut played, mut most) = (BTreeMap::<Disturbance, usize>::new(), Usage::default());
    let missing = |played: &BTreeMap<Disturbance, usize>| -> Vec<Disturbance> {
        all.iter().copied().filter(|disturbance| !played.contains_key(disturbance)).collect()
    };
    let mut deck = Vec::new();
    while began.elapsed() < lasts || !missing(&played).is_empty() && began.elapsed() < lasts + DECK_MAX {
        if deck.is_empty() {
            deck.clone_from(&all);
            chance.shuffle(&mut deck);
        }
        let disturbance = deck.pop().unwrap();
        let calm = chance.below(2) == 0;
        if calm || disturbance == Disturbance::Wipe {
            // Until the run of a node that was started anew is registered, an earlier one counts as in sync: a new controller takes it to be alive for
            // a session.
            fleet.serving().await;
        }
        if disturbance == Disturbance::Wipe {
            whole_throughout(&admin, &fleet, played.values().sum()).await;
        } else if calm {
            whole(&admin, &fleet).await;
        }
        let (seconds, usage) = (began.elapsed().as_secs(), watch(&fleet, &mut most));
        let records = story.told().acknowledged.len();
        eprintln!("{TELLS}{seconds} s, {records} records; {usage}; {disturbance:?}, calm: {calm}");
        let node = disturb(disturbance, calm, &mut chance, &story, &mut fleet).await;
        if disturbance == Disturbance::Wipe {
            fleet.votes(node, &admin).await;
        }
        story.progress(&format!("{disturbance:?}"), &fleet).await;
        *played.entry(disturbance).or_default() += 1;
    }
    eprintln!("{TELLS}this happened: {played:?}");
    assert_eq!(missing(&played), [], "there was no time for these");
    story.is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let (made, committed) = (made.await.unwrap(), committed.await.unwrap());
    fleet.serving().await;
    whole(&admin, &fleet).await;
    for index in 0..PARTITIONS {
        replicas::equal(&fleet, &format!("{TOPIC}-{index}")).await;
    }
    replicas::same_metadata(&fleet).await;
    replicas::unanimous(&admin, TOPIC).await;
    let usage = watch(&fleet, &mut most);
    // What counts is what is there after a start, not what a process still has in its memory.
    fleet.stop_all().await;
    fleet.start_all().await;
    let client = client(&fleet).await;
    let found = read_all(&client).await;
    witnesses::check(&client, &made, &committed, &partition(0)).await;
    let told = std::mem::take(&mut *story.told());
    eprintln!(
        "{TELLS}{} disturbances, {} records acknowledged, {} read meanwhile, {} there, {} topics, {} offsets; \
         at the end {usage}; at most {} MiB {} files",
        played.values().sum::<usize>(),
        told.acknowledged.len(),
        told.read.len(),
        found.len(),
        made.len(),
        committed.len(),
        most.memory_kib / 1024,
        most.files
    );
    assert!(!told.read.is_empty());
    check(&told, &found);
}

/// A network, unless none can be made here and none has to.
fn network() -> Option<Network> {
    let is_required = match env::var(CUTS_WANTED).as_deref() {
        Err(_) => false,
        Ok("required") => true,
        Ok(other) => panic!("{CUTS_WANTED}={other}: say `required`, or leave it out"),
    };
    Network::make()
        .inspect_err(|why| {
            let why = why.trim();
            assert!(!is_required, "{CUTS_WANTED}=required, and no network can be made to cut: {why}");
            eprintln!("{TELLS}no network is cut: {why}");
        })
        .ok()
}

/// Without it, the chaos would not be what it says.
#[test]
fn what_is_cut_is_lost_one_way_until_it_is_mended() {
    const PORT: u16 = 9;
    let Some(network) = network() else { return };
    let sockets = [CLIENTS, 1, 2].map(|place| {
        let socket = network.at(place, || UdpSocket::bind((network::address(place), PORT)).unwrap());
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    });
    let send = |from: usize, to: usize, what: u8| {
        sockets[from].send_to(&[what], (network::address(to), PORT)).unwrap();
    };
    let arrives = |at: usize| {
        let mut what = [0];
        sockets[at].recv(&mut what).unwrap();
        what[0]
    };
    network.cut(1, 2);
    send(1, 2, 1);
    send(2, 1, 2);
    assert_eq!(arrives(1), 2, "the other way is whole");
    send(1, CLIENTS, 3);
    assert_eq!(arrives(CLIENTS), 3, "so is the way elsewhere");
    network.mend(1, 2);
    send(1, 2, 4);
    assert_eq!(arrives(2), 4, "what was sent before is lost");
}

#[test]
fn what_was_acknowledged_is_kept_once_and_in_order_whatever_happens_to_nodes() {
    let lasts = Duration::from_secs(setting(SECONDS).unwrap_or(60));
    let seed = setting(SEED).unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    eprintln!("{TELLS}{SEED}={seed}");
    let network = network();
    if let Some(network) = &network {
        // The runtime's threads come from this one.
        network.enter();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(play(network, seed, lasts));
}
