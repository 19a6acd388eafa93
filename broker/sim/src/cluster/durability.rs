//! What a node says to others is on its disk when it says so: the votes that it gives, and what it has of the metadata. And a follower says
//! in which of its runs it has what it has.
//!
//! The world calls it with what leaves a node. It looks at the disk and asks the node nothing.

use std::path::Path;

use gregor_log::{
    Disk,
    disk::{Crash, FaultyDisk, read_file},
};
use gregor_messages::FetchRequest;
use gregor_raft::Outgoing;
use gregor_server::control::{ControllerResponse, NodeRequest};
use gregor_types::{BrokerEpoch, BrokerId, LeaderEpoch};

use super::{
    ledger::Ledger,
    letters::{Answer, Ballot, FollowerQuestion, Purpose, Question, Wanted},
    machine::Machine,
};
use crate::node::DIRECTORY;

const METADATA: &str = "__cluster_metadata-0";
const QUORUM_STATE_BYTES_MAX: usize = 1 << 16;

/// Looks at what a node asks.
pub(super) fn audit_question(machine: &Machine, question: &Question, ledger: &mut Ledger) {
    match question {
        // Who asks for votes has voted for itself.
        Question::Control(NodeRequest::Quorum(Outgoing::Vote(request))) => {
            if let Some(ballot) = Ballot::of(request) {
                audit_vote(machine, ballot, ledger);
            }
        }
        Question::Control(NodeRequest::Quorum(Outgoing::Fetch(request))) => audit_fetch(machine, request, ledger),
        Question::Fetch(fetch) => audit_follower(machine, fetch, ledger),
        _ => {}
    }
}

/// A leader takes what a follower says under a broker epoch for what the run has that was registered so, and under none for anybody's.
fn audit_follower(machine: &Machine, fetch: &FollowerQuestion, ledger: &mut Ledger) {
    let (id, epoch) = (machine.identity.id, fetch.broker_epoch);
    let Some(process) = &machine.process else { return };
    let known = process.image();
    let is_known = known.image.cluster().broker(id).is_some_and(|broker| broker.epoch == epoch);
    if epoch == BrokerEpoch::NONE || (is_known && !machine.counts_in(&known.image)) {
        ledger.violated(format!("node {id} follows in broker epoch {epoch}, which is not that of this run"));
    }
}

/// Looks at what a node answers to a question of this purpose.
pub(super) fn audit_answer(machine: &Machine, asked: &Purpose, answer: &Answer, ledger: &mut Ledger) {
    let Purpose::Control(_, Wanted::Vote(Some(ballot))) = asked else { return };
    let Answer::Control(ControllerResponse::Vote(response)) = answer else { return };
    let vote = response.topics.first().and_then(|topic| topic.partitions.first());
    if vote.is_some_and(|vote| vote.vote_granted) {
        audit_vote(machine, *ballot, ledger);
    }
}

fn audit_vote(machine: &Machine, Ballot { epoch, candidate }: Ballot, ledger: &mut Ledger) {
    let voter = (machine.identity.id, machine.identity.directory);
    if !ledger.votes(voter, epoch, candidate) {
        return;
    }
    let on_disk = Remembered::of(&machine.disk);
    let is_kept = on_disk.as_ref().is_some_and(|on_disk| on_disk.keeps(epoch, candidate));
    if !is_kept {
        let id = voter.0;
        ledger.violated(format!("node {id} votes for {candidate} in epoch {epoch}, and has {on_disk:?} on its disk"));
    }
}

/// A fetch says how much of the metadata a node has, and a leader counts on it.
fn audit_fetch(machine: &Machine, request: &FetchRequest, ledger: &mut Ledger) {
    let Some(process) = machine.process.as_ref().filter(|process| !process.is_stalled()) else { return };
    let folder = Path::new(DIRECTORY).join(METADATA);
    let Ok(files) = machine.disk.list(&folder) else { return };
    let is_log = |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "log");
    let mut logs = files.iter().filter(|file| is_log(&file.name));
    if let Some(file) = logs.find(|file| !machine.disk.is_synced(&folder.join(&file.name))) {
        let part = request.topics.first().and_then(|topic| topic.partitions.first());
        let (id, from) = (machine.identity.id, part.map(|part| part.fetch_offset));
        let (name, end) = (&file.name, process.metadata_end());
        ledger.violated(format!(
            "node {id} asks for the metadata from {from:?} on, and its log up to {end} is not on its disk: {name}"
        ));
    }
}

/// What `quorum-state` would say after a loss of power.
#[derive(Debug)]
struct Remembered {
    epoch: i32,
    leader: i32,
    voted: i32,
}

impl Remembered {
    fn of(disk: &FaultyDisk) -> Option<Self> {
        let disk = disk.fork();
        disk.crash(Crash::LoseUnsynced);
        let path = Path::new(DIRECTORY).join(METADATA).join("quorum-state");
        let text = String::from_utf8(read_file(&disk, &path, QUORUM_STATE_BYTES_MAX).ok()?).ok()?;
        let number = |key: &str| {
            let (_, rest) = text.split_once(&format!("\"{key}\":"))?;
            let end = rest.find(|character: char| character != '-' && !character.is_ascii_digit())?;
            rest[..end].parse().ok()
        };
        Some(Self { epoch: number("leaderEpoch")?, leader: number("leaderId")?, voted: number("votedId")? })
    }

    /// Whether who reads this would vote for nobody else in the epoch.
    fn keeps(&self, epoch: LeaderEpoch, candidate: BrokerId) -> bool {
        let knows_more = self.leader >= 0 || self.voted == candidate.value();
        self.epoch > epoch.value() || (self.epoch == epoch.value() && knows_more)
    }
}
