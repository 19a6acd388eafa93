//! Peers that are not what they say: of another cluster, another disk, another epoch, or no Kafka at all. A lone voter of each kind hears the
//! same from them. Both give the same answers or hang up, and write the same of elections, which is nothing but where an epoch is newer.

use std::{
    fs,
    io::{Cursor, ErrorKind, Read},
    net::TcpStream,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gregor_apache::Jars;
use gregor_compat::Connection;
use gregor_messages::{
    AddRaftVoterRequest, BeginQuorumEpochRequest, DescribeQuorumRequest, EndQuorumEpochRequest, FetchRequest,
    FetchSnapshotRequest, RemoveRaftVoterRequest, Request, UpdateRaftVoterRequest, VoteRequest, add_raft_voter_request,
    begin_quorum_epoch_request, describe_quorum_request,
    describe_quorum_response::DescribeQuorumResponse,
    end_quorum_epoch_request,
    fetch_request::{FetchPartition, FetchTopic, ReplicaState},
    fetch_snapshot_request::{PartitionSnapshot, SnapshotId, TopicSnapshot},
    update_raft_voter_request::{self, KRaftVersionFeature},
    vote_request,
};
use gregor_types::{ErrorCode, Uuid};
use serde_json::Value;

use crate::cluster::{CLUSTER_ID, Cluster, Kind, Plan, Quorum, Role};

const TOPIC: &str = "__cluster_metadata";
/// The node that hears all this.
const NODE: i32 = 1;
/// Who says it, where nothing else is said.
const STRANGER: i32 = 9;
/// What a node does that has no answer.
const HANGS_UP: &str = "hangs up";
const ENDS: &str = "ends itself";
const OTHER_DISK: Uuid = Uuid(7);
/// How long an answer, the end of a connection or an election may take.
const LIMIT: Duration = Duration::from_mins(1);

/// What a stranger says of itself, and to whom.
#[derive(Clone, Copy)]
struct Words {
    cluster: Option<&'static str>,
    topic: (&'static str, Uuid),
    partition: i32,
    from: i32,
    to: i32,
    disk: Uuid,
    epoch: i32,
}

/// The error of an answer, and what it says of the partition: an error, a leader and an epoch.
type Answer = (i16, Option<(i16, i32, i32)>);

impl Words {
    fn vote(self, pre_vote: bool) -> VoteRequest {
        let partition = vote_request::PartitionData {
            partition_index: self.partition,
            replica_epoch: self.epoch,
            replica_id: self.from,
            replica_directory_id: OTHER_DISK,
            voter_directory_id: self.disk,
            last_offset: 1_000_000,
            last_offset_epoch: (self.epoch - 1).max(0),
            pre_vote,
            ..Default::default()
        };
        let topic = vote_request::TopicData {
            topic_name: self.topic.0.into(),
            partitions: vec![partition],
            ..Default::default()
        };
        VoteRequest {
            cluster_id: self.cluster.map(Into::into),
            voter_id: self.to,
            topics: vec![topic],
            ..Default::default()
        }
    }

    fn begin(self) -> BeginQuorumEpochRequest {
        let partition = begin_quorum_epoch_request::PartitionData {
            partition_index: self.partition,
            voter_directory_id: self.disk,
            leader_id: self.from,
            leader_epoch: self.epoch,
            ..Default::default()
        };
        let topic = begin_quorum_epoch_request::TopicData {
            topic_name: self.topic.0.into(),
            partitions: vec![partition],
            ..Default::default()
        };
        let endpoint = begin_quorum_epoch_request::LeaderEndpoint {
            name: "CONTROLLER".into(),
            host: "127.0.0.1".into(),
            port: 9,
            ..Default::default()
        };
        BeginQuorumEpochRequest {
            cluster_id: self.cluster.map(Into::into),
            voter_id: self.to,
            topics: vec![topic],
            leader_endpoints: vec![endpoint],
            ..Default::default()
        }
    }

    fn end(self) -> EndQuorumEpochRequest {
        let partition = end_quorum_epoch_request::PartitionData {
            partition_index: self.partition,
            leader_id: self.from,
            leader_epoch: self.epoch,
            ..Default::default()
        };
        let topic = end_quorum_epoch_request::TopicData {
            topic_name: self.topic.0.into(),
            partitions: vec![partition],
            ..Default::default()
        };
        let endpoint = end_quorum_epoch_request::LeaderEndpoint {
            name: "CONTROLLER".into(),
            host: "127.0.0.1".into(),
            port: 9,
            ..Default::default()
        };
        EndQuorumEpochRequest {
            cluster_id: self.cluster.map(Into::into),
            topics: vec![topic],
            leader_endpoints: vec![endpoint],
            ..Default::default()
        }
    }

    fn fetch(self) -> FetchRequest {
        let partition = FetchPartition {
            partition: self.partition,
            current_leader_epoch: self.epoch,
            last_fetched_epoch: 0,
            partition_max_bytes: 1 << 20,
            replica_directory_id: OTHER_DISK,
            ..Default::default()
        };
        let topic = FetchTopic { topic_id: self.topic.1, partitions: vec![partition], ..Default::default() };
        FetchRequest {
            cluster_id: self.cluster.map(Into::into),
            replica_state: ReplicaState { replica_id: self.from, ..Default::default() },
            max_bytes: 1 << 20,
            topics: vec![topic],
            ..Default::default()
        }
    }

    fn fetch_snapshot(self) -> FetchSnapshotRequest {
        let partition = PartitionSnapshot {
            partition: self.partition,
            current_leader_epoch: self.epoch,
            snapshot_id: SnapshotId { end_offset: 7_777, epoch: 1, ..Default::default() },
            ..Default::default()
        };
        let topic = TopicSnapshot { name: self.topic.0.into(), partitions: vec![partition], ..Default::default() };
        FetchSnapshotRequest {
            cluster_id: self.cluster.map(Into::into),
            replica_id: self.from,
            max_bytes: 1 << 20,
            topics: vec![topic],
            ..Default::default()
        }
    }

    fn describe(self) -> DescribeQuorumRequest {
        let partition =
            describe_quorum_request::PartitionData { partition_index: self.partition, ..Default::default() };
        let topic = describe_quorum_request::TopicData {
            topic_name: self.topic.0.into(),
            partitions: vec![partition],
            ..Default::default()
        };
        DescribeQuorumRequest { topics: vec![topic], ..Default::default() }
    }

    fn add(self, listeners: &[&str]) -> AddRaftVoterRequest {
        let listener = |name: &&str| add_raft_voter_request::Listener {
            name: (*name).into(),
            host: "127.0.0.1".into(),
            port: 9,
            ..Default::default()
        };
        AddRaftVoterRequest {
            cluster_id: self.cluster.map(Into::into),
            timeout_ms: 500,
            voter_id: self.to,
            voter_directory_id: self.disk,
            listeners: listeners.iter().map(listener).collect(),
            ..Default::default()
        }
    }

    fn remove(self) -> RemoveRaftVoterRequest {
        RemoveRaftVoterRequest {
            cluster_id: self.cluster.map(Into::into),
            voter_id: self.to,
            voter_directory_id: self.disk,
            ..Default::default()
        }
    }

    fn update(self, listeners: &[&str], versions: (i16, i16)) -> UpdateRaftVoterRequest {
        let listener = |name: &&str| update_raft_voter_request::Listener {
            name: (*name).into(),
            host: "127.0.0.1".into(),
            port: 9,
            ..Default::default()
        };
        UpdateRaftVoterRequest {
            cluster_id: self.cluster.map(Into::into),
            current_leader_epoch: self.epoch,
            voter_id: self.to,
            voter_directory_id: self.disk,
            listeners: listeners.iter().map(listener).collect(),
            k_raft_version_feature: KRaftVersionFeature {
                min_supported_version: versions.0,
                max_supported_version: versions.1,
                ..Default::default()
            },
            ..Default::default()
        }
    }
}

/// A node that votes alone, and what came of all that it was told.
struct Hearer {
    cluster: Cluster,
    address: String,
    quorum_state: PathBuf,
    /// Words that are right, but for who says them.
    right: Words,
    heard: Vec<(String, String)>,
}

impl Hearer {
    fn new(cluster: Cluster) -> Result<Self> {
        let right = Words {
            cluster: Some(CLUSTER_ID),
            topic: (TOPIC, Uuid::METADATA_TOPIC),
            partition: 0,
            from: STRANGER,
            to: NODE,
            disk: Uuid::ZERO,
            epoch: 0,
        };
        let quorum_state = cluster.data(NODE as u8).join("__cluster_metadata-0/quorum-state");
        let mut hearer = Self { address: cluster.controllers(), cluster, quorum_state, right, heard: Vec::new() };
        hearer.wait_until_it_leads()?;
        Ok(hearer)
    }

    /// From then on the right words are those of this epoch.
    fn wait_until_it_leads(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let said = call(&self.address, &self.right.describe());
            let topic = said.as_ref().ok().and_then(|said| said.topics.first());
            if let Some(quorum) = topic.and_then(|topic| topic.partitions.first())
                && (quorum.error_code, quorum.leader_id) == (0, NODE)
                && let [voter] = &quorum.current_voters[..]
            {
                self.right.disk = voter.replica_directory_id;
                self.right.epoch = quorum.leader_epoch;
                // It says so before it has written it.
                let written: Value = serde_json::from_slice(&fs::read(&self.quorum_state)?)?;
                if (&written["leaderId"], &written["leaderEpoch"]) == (&NODE.into(), &quorum.leader_epoch.into()) {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "it does not lead: {said:?}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Tells it, and takes down what comes of it.
    fn hears<R: Request>(
        &mut self,
        what: &str,
        request: &R,
        answer: impl FnOnce(&R::Response) -> Answer,
    ) -> Result<()> {
        let (before, epoch) = (fs::read(&self.quorum_state)?, self.right.epoch);
        let said = match call(&self.address, request) {
            Ok(response) => picture(answer(&response), epoch),
            Err(error) if has_ended(&error) => if self.goes_on()? { HANGS_UP } else { ENDS }.to_owned(),
            Err(error) => return Err(error.context(what.to_owned())),
        };
        let writes = fs::read(&self.quorum_state)? != before;
        // One that was started again leads in another epoch.
        let writes = writes && said != ENDS;
        let said = if writes { format!("{said}; writes of it") } else { said };
        println!("  {what}: {said}");
        self.heard.push((what.to_owned(), said));
        if writes { self.wait_until_it_leads() } else { Ok(()) }
    }

    /// Whether its process lives. One that ended itself is started again.
    fn goes_on(&mut self) -> Result<bool> {
        let deadline = Instant::now() + LIMIT;
        while self.cluster.check_that_all_run().is_ok() {
            if call(&self.address, &self.right.describe()).is_ok() {
                return Ok(true);
            }
            ensure!(Instant::now() < deadline, "it neither ends nor answers:\n{}", self.cluster.story());
            sleep(Duration::from_millis(20));
        }
        self.cluster.kill(NODE as u8)?;
        self.cluster.start(&[NODE as u8])?;
        self.wait_until_it_leads()?;
        Ok(false)
    }

    /// What leaders say.
    fn hears_of_leaders(&mut self, who: &str, of: impl Fn(Words) -> Words) -> Result<()> {
        self.hears(&format!("BeginQuorumEpoch, {who}"), &of(self.right).begin(), |answer| {
            let of_partition = answer.topics.first().map(|topic| &topic.partitions[0]);
            (answer.error_code, of_partition.map(|one| (one.error_code, one.leader_id, one.leader_epoch)))
        })?;
        self.hears(&format!("EndQuorumEpoch, {who}"), &of(self.right).end(), |answer| {
            let of_partition = answer.topics.first().map(|topic| &topic.partitions[0]);
            (answer.error_code, of_partition.map(|one| (one.error_code, one.leader_id, one.leader_epoch)))
        })
    }

    /// What replicas say that do not lead.
    fn hears_of_others(&mut self, who: &str, of: impl Fn(Words) -> Words) -> Result<()> {
        self.hears(&format!("Vote, {who}"), &of(self.right).vote(false), |answer| {
            let of_partition = answer.topics.first().map(|topic| &topic.partitions[0]);
            (answer.error_code, of_partition.map(|one| (one.error_code, one.leader_id, one.leader_epoch)))
        })?;
        self.hears(&format!("Vote that is no vote yet, {who}"), &of(self.right).vote(true), |answer| {
            let of_partition = answer.topics.first().map(|topic| &topic.partitions[0]);
            (answer.error_code, of_partition.map(|one| (one.error_code, one.leader_id, one.leader_epoch)))
        })?;
        self.hears(&format!("Fetch, {who}"), &of(self.right).fetch(), |answer| {
            let of_partition = answer.responses.first().map(|topic| &topic.partitions[0]);
            let leader = of_partition.map(|one| (one.error_code, &one.current_leader));
            (answer.error_code, leader.map(|(code, leader)| (code, leader.leader_id, leader.leader_epoch)))
        })?;
        self.hears(&format!("FetchSnapshot, {who}"), &of(self.right).fetch_snapshot(), |answer| {
            let of_partition = answer.topics.first().map(|topic| &topic.partitions[0]);
            let leader = of_partition.map(|one| (one.error_code, &one.current_leader));
            (answer.error_code, leader.map(|(code, leader)| (code, leader.leader_id, leader.leader_epoch)))
        })
    }

    /// What is said of who votes.
    fn hears_of_voters(&mut self) -> Result<()> {
        let right = self.right;
        let stranger = Words { to: STRANGER, disk: OTHER_DISK, ..right };
        let foreign = Words { cluster: Some("other"), ..right };
        let other_disk = Words { disk: OTHER_DISK, ..right };
        let no_disk = Words { disk: Uuid::ZERO, ..right };
        for (what, words, listeners) in [
            ("of another cluster", Words { cluster: foreign.cluster, ..stranger }, &["CONTROLLER"][..]),
            ("who votes already", right, &["CONTROLLER"]),
            ("another disk of who votes already", other_disk, &["CONTROLLER"]),
            ("no disk", Words { disk: Uuid::ZERO, ..stranger }, &["CONTROLLER"]),
            ("without a number", Words { to: -1, ..stranger }, &["CONTROLLER"]),
            ("that nothing leads to", stranger, &[]),
            ("that something else leads to", stranger, &["OTHER"]),
            ("whom nobody reaches", stranger, &["CONTROLLER"]),
        ] {
            self.hears(&format!("AddRaftVoter, {what}"), &words.add(listeners), |answer| (answer.error_code, None))?;
        }
        for (what, words) in [
            ("of another cluster", foreign),
            ("who does not vote", stranger),
            ("another disk", other_disk),
            ("no disk", no_disk),
            ("without a number", Words { to: -1, ..right }),
        ] {
            self.hears(&format!("RemoveRaftVoter, {what}"), &words.remove(), |answer| (answer.error_code, None))?;
        }
        for (what, words, listeners, versions) in [
            ("of another cluster", foreign, &["CONTROLLER"][..], (0, 1)),
            ("who does not vote", stranger, &["CONTROLLER"], (0, 1)),
            ("another disk", other_disk, &["CONTROLLER"], (0, 1)),
            ("no disk", no_disk, &["CONTROLLER"], (0, 1)),
            ("without a number", Words { to: -1, ..right }, &["CONTROLLER"], (0, 1)),
            ("late", Words { epoch: right.epoch - 1, ..right }, &["CONTROLLER"], (0, 1)),
            ("early", Words { epoch: right.epoch + 1, ..right }, &["CONTROLLER"], (0, 1)),
            ("that nothing leads to", right, &[], (0, 1)),
            ("that something else leads to", right, &["OTHER"], (0, 1)),
            ("that is older", right, &["CONTROLLER"], (0, 0)),
            ("that is newer", right, &["CONTROLLER"], (2, 3)),
        ] {
            self.hears(&format!("UpdateRaftVoter, {what}"), &words.update(listeners, versions), |answer| {
                let leader = &answer.current_leader;
                (answer.error_code, Some((0, leader.leader_id, leader.leader_epoch)))
            })?;
        }
        Ok(())
    }

    /// Bytes that are none of Kafka's requests. It may hang up before it has all of them.
    fn hears_noise(&mut self) -> Result<()> {
        let header =
            |key: i16, version: i16| [&key.to_be_bytes()[..], &version.to_be_bytes(), &[0; 4], &[255; 2]].concat();
        let framed = |body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], body].concat();
        let noise: Vec<u8> = (0..200_u32).map(|index| (index * 31 + 7) as u8).collect();
        let mut cases = vec![
            ("bytes of no protocol".to_owned(), vec![0xa5; 4_096]),
            ("the start of a handshake of TLS".to_owned(), vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]),
            ("a request of HTTP".to_owned(), b"GET / HTTP/1.1\r\nHost: controller\r\n\r\n".to_vec()),
            ("a negative length".to_owned(), (-1_i32).to_be_bytes().to_vec()),
            ("an empty frame".to_owned(), framed(&[])),
            ("an unknown API".to_owned(), framed(&header(4_711, 0))),
            ("a broker's API".to_owned(), framed(&header(0, 9))),
            ("a version that there is not".to_owned(), framed(&header(52, 99))),
        ];
        // Vote, BeginQuorumEpoch, EndQuorumEpoch, DescribeQuorum, FetchSnapshot, Fetch, AddRaftVoter, RemoveRaftVoter, UpdateRaftVoter.
        for (key, version) in [(52, 2), (53, 1), (54, 1), (55, 2), (59, 1), (1, 17), (80, 1), (81, 0), (82, 0)] {
            cases.push((format!("no body of API {key}"), framed(&header(key, version))));
            cases.push((format!("noise for API {key}"), framed(&[&header(key, version)[..], &noise].concat())));
        }
        for (what, bytes) in cases {
            let before = fs::read(&self.quorum_state)?;
            let mut socket = TcpStream::connect(&self.address)?;
            socket.set_read_timeout(Some(LIMIT))?;
            let _ = std::io::copy(&mut Cursor::new(&bytes), &mut socket);
            let mut rest = Vec::new();
            let said = match socket.read_to_end(&mut rest) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => "goes on",
                _ => "hangs up",
            };
            ensure!(fs::read(&self.quorum_state)? == before, "{what} changes who leads");
            self.heard.push((what, format!("{said} after {rest:?}")));
        }
        Ok(())
    }
}

fn call<R: Request>(address: &str, request: &R) -> Result<R::Response> {
    Connection::open(address)?.call(*R::KEY.stable_versions().end(), request)
}

fn has_ended(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
}

/// The epochs that two nodes lead in are not the same; what they are to what was said is.
fn picture((code, of_partition): Answer, epoch: i32) -> String {
    let error = ErrorCode::from(code);
    let Some((code, leader, of)) = of_partition else { return format!("{error:?}") };
    let of = if of <= 0 { of.to_string() } else { format!("present {:+}", of - epoch) };
    format!("{error:?}, {:?}: {leader} leads in epoch {of}", ErrorCode::from(code))
}

/// What a lone voter of a kind does when it hears all of it.
fn hears(kind: Kind, jars: &Jars, release: &'static str) -> Result<Vec<(String, String)>> {
    let plan = Plan { nodes: vec![(Role::Both, kind)], quorum: Quorum::Dynamic, jars: jars.clone(), release };
    let mut cluster = Cluster::new(plan)?;
    cluster.start(&[NODE as u8])?;
    let mut hearer = Hearer::new(cluster)?;
    let outcome = hears_everything(&mut hearer);
    outcome.map_err(|error| error.context(hearer.cluster.story()))?;
    Ok(hearer.heard)
}

fn hears_everything(hearer: &mut Hearer) -> Result<()> {
    let early = |right: Words| Words { epoch: right.epoch + 1, ..right };
    let other_cluster = |right| Words { cluster: Some("other"), ..right };
    let other_disk = |right| Words { disk: OTHER_DISK, ..right };
    // The early ones first, so that there are epochs before the present one.
    let everybody: [(&str, &dyn Fn(Words) -> Words); 9] = [
        ("early", &early),
        ("right but for who says it", &|right| right),
        ("of another cluster", &other_cluster),
        ("of another cluster and early", &|right| early(other_cluster(right))),
        ("of another topic", &|right| Words { topic: ("other", Uuid(8)), ..right }),
        ("of another partition", &|right| Words { partition: 1, ..right }),
        ("late", &|right| Words { epoch: right.epoch - 1, ..right }),
        ("of a negative epoch", &|right| Words { epoch: -1, ..right }),
        ("for another disk and early", &|right| early(other_disk(right))),
    ];
    for (who, of) in everybody {
        hearer.hears_of_others(who, of)?;
        hearer.hears_of_leaders(who, of)?;
    }
    hearer.hears_of_others("of no cluster", |right| Words { cluster: None, ..right })?;
    hearer.hears_of_others("for another node", |right| Words { to: 2, ..right })?;
    hearer.hears_of_others("for another disk", other_disk)?;
    hearer.hears_of_others("by nobody", |right| Words { from: -1, ..right })?;
    for (what, words) in [
        ("right", hearer.right),
        ("of another topic", Words { topic: ("other", Uuid(8)), ..hearer.right }),
        ("of another partition", Words { partition: 1, ..hearer.right }),
    ] {
        hearer.hears(&format!("DescribeQuorum, {what}"), &words.describe(), described)?;
    }
    hearer.hears_of_voters()?;
    hearer.hears_noise()
}

fn described(answer: &DescribeQuorumResponse) -> Answer {
    let of_partition = answer.topics.first().and_then(|topic| topic.partitions.first());
    (answer.error_code, of_partition.map(|one| (one.error_code, one.leader_id, one.leader_epoch)))
}

/// Where ours is not to do what Apache's does: a stranger would end it, or would not be told what is wrong.
fn is_on_purpose(what: &str, apache: &str, ours: &str) -> bool {
    const REFUSED: &str = "NONE(0), INVALID_REQUEST(42): 1 leads in epoch present +0";
    match apache {
        // An epoch has one leader. Who hears of another one takes it for a bug of its own, and halts.
        ENDS => ours == REFUSED,
        // An error of a partition has no records, and without them its answer cannot be written.
        "UNKNOWN_SERVER_ERROR(-1)" if what.starts_with("FetchSnapshot") => {
            ours.starts_with("NONE(0), ") && !ours.contains("NONE(0):") && ours.ends_with("1 leads in epoch present +0")
        }
        _ => false,
    }
}

/// Has a lone voter of each kind hear it.
pub fn are_answered_alike(jars: &Jars, release: &'static str) -> Result<()> {
    let (ours, apache) = (hears(Kind::Gregor, jars, release)?, hears(Kind::Apache, jars, release)?);
    let mut different = Vec::new();
    for ((what, apache), (_, ours)) in apache.iter().zip(&ours) {
        if apache != ours && !is_on_purpose(what, apache, ours) {
            different.push(format!("{what}: Apache {apache}, Gregor {ours}"));
        }
    }
    ensure!(apache.len() == ours.len() && different.is_empty(), "answers differ:\n{}", different.join("\n"));
    apache.iter().find(|(_, said)| said.contains("writes of it")).context("no newer epoch is taken up")?;
    Ok(())
}
