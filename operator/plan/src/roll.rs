//! Whose turn it is to be restarted: one node at a time, and only while the cluster can spare it. Called by the cluster's plan
//! with what was just read; it remembers nothing, so that an operator that is killed in the middle goes on where it was.
//!
//! A node that runs may go when every other is ready, every other replica of its partitions is in sync and the quorum decides
//! without it. A node that serves nothing at all may go at once, unless the newest configuration is what another ends of: it may
//! come back by itself with what it has. What has the newest configuration and is not ready holds up everybody who runs or is about
//! to. Two that are not ready with an older one do not wait for each other: what they lack may be what the newest brings.

use std::cmp::Reverse;

use crate::kafka::{KafkaSeen, PartitionSeen};
use crate::pods::PodState;
use crate::progress::Reason;
use crate::quorum;
use crate::validate::Node;

/// A node as far as its restart goes.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The node.
    pub node: &'a Node,
    /// How far its pod is; `None` if it has none.
    pub state: Option<&'a PodState>,
    /// Whether its pod or its template is older than the manifest.
    pub outdated: bool,
    /// Whether its template is the newest already, and only its pod is not: its turn has begun.
    pub begun: bool,
}

impl Candidate<'_> {
    fn is_ready(&self) -> bool {
        self.state == Some(&PodState::Ready)
    }

    /// Whether nothing of the node runs, and nothing is about to.
    fn is_idle(&self) -> bool {
        matches!(
            self.state,
            Some(
                PodState::Unschedulable(_)
                    | PodState::ImagePullFailed(_)
                    | PodState::FormatFailed(_)
                    | PodState::Refused(_)
                    | PodState::Crashing(_)
            )
        )
    }

    /// Whether nothing says yet that it runs with the newest configuration, although its turn was or is. A disk that is refused and
    /// a machine that has no room say nothing about that.
    fn is_unproven(&self) -> bool {
        let says_nothing = matches!(self.state, Some(PodState::Unschedulable(_) | PodState::Refused(_)));
        self.begun && !self.is_ready() && !self.waits() && !says_nothing
    }

    /// Whether its pod is to be replaced. One that goes is looked at again when it is gone.
    fn waits(&self) -> bool {
        self.outdated && self.state != Some(&PodState::Terminating)
    }

    /// Whether it does not come to run with the newest configuration. A disk that is refused and a machine that has no room say
    /// nothing about that.
    fn fails_with_the_newest(&self) -> bool {
        let fails = matches!(
            self.state,
            Some(PodState::ImagePullFailed(_) | PodState::FormatFailed(_) | PodState::Crashing(_))
        );
        fails && !self.outdated
    }
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Nobody needs a restart.
    Nobody,
    /// This node, now.
    Take(i32),
    /// Somebody does, and has to wait because of this.
    Wait(Reason, String),
}

/// Whose turn it is. `kafka` is what the brokers said after the pods were read; without it nobody who runs is touched.
pub fn next(nodes: &[Candidate<'_>], kafka: Option<&KafkaSeen>) -> Turn {
    let leader = kafka.and_then(|kafka| kafka.quorum.leader);
    let mut candidates: Vec<&Candidate<'_>> = nodes.iter().filter(|candidate| candidate.waits()).collect();
    candidates.sort_by_key(|candidate| {
        (
            Reverse(candidate.is_idle()),
            candidate.is_ready(),
            Reverse(candidate.begun),
            leader == Some(candidate.node.id),
            candidate.node.is_broker(),
            candidate.node.id,
        )
    });
    let Some(first) = candidates.first() else { return Turn::Nobody };
    // Those that are not ready do not wait for each other's turns.
    let mut not_ready = candidates.iter().filter(|candidate| !candidate.is_ready());
    if let Some(free) = not_ready.find(|candidate| obstacle(candidate, nodes, kafka).is_none()) {
        return Turn::Take(free.node.id);
    }
    match obstacle(first, nodes, kafka) {
        None => Turn::Take(first.node.id),
        Some((reason, why)) => {
            Turn::Wait(reason, format!("node {} is to be restarted and waits: {why}", first.node.id))
        }
    }
}

/// Why a node must not be restarted now, if so.
fn obstacle(candidate: &Candidate<'_>, nodes: &[Candidate<'_>], kafka: Option<&KafkaSeen>) -> Option<(Reason, String)> {
    let id = candidate.node.id;
    let others = || nodes.iter().filter(move |other| other.node.id != id);
    if candidate.is_idle() {
        let failing = others().find(|other| other.fails_with_the_newest())?;
        let why = format!("node {} does not come to run with the newest configuration", failing.node.id);
        return Some((Reason::WaitingForNodes, why));
    }
    if nodes.len() == 1 {
        return None;
    }
    let not_ready = |other: &Candidate<'_>| (Reason::WaitingForNodes, format!("node {} is not ready", other.node.id));
    if candidate.is_ready() {
        if let Some(other) = others().find(|other| !other.is_ready()) {
            return Some(not_ready(other));
        }
    } else {
        let alone = !others().any(Candidate::is_ready);
        // Where the whole cluster is down voters may need each other to be ready: that one runs is as much as it can show.
        let runs = |other: &Candidate<'_>| alone && other.state == Some(&PodState::Running);
        if let Some(other) = others().find(|other| other.is_unproven() && !runs(other)) {
            return Some(not_ready(other));
        }
        if alone || candidate.state != Some(&PodState::Running) {
            return None;
        }
    }
    let Some(kafka) = kafka else {
        return Some((Reason::ClusterUnreachable, "the brokers cannot be asked what they can spare".to_owned()));
    };
    // A voter that is behind takes nothing from what the quorum decides.
    let gives_nothing = !candidate.is_ready() && is_behind(kafka, id);
    if !gives_nothing && !quorum::may_restart(&kafka.quorum, id) {
        return Some((
            Reason::WaitingForQuorum,
            format!("too few voters are level with the leader: {}", lagging(kafka)),
        ));
    }
    // Who has not read the newest metadata may know of no replica that is missing.
    let mut asked = nodes.iter().filter(|node| node.is_ready());
    if let Some(stale) = asked.find(|node| !kafka.quorum.has_read_all(node.node.id)) {
        return Some((Reason::WaitingForReplicas, format!("node {} has not read all metadata", stale.node.id)));
    }
    // A broker that is not in sync takes nothing from a partition.
    let takes = |partition: &&PartitionSeen| candidate.is_ready() || partition.in_sync.contains(&id);
    let missing = kafka.under_replicated.iter().filter(|partition| partition.needs(id)).filter(takes);
    let mut missing = missing.peekable();
    let first = missing.peek()?;
    let named = format!("{}-{} (in sync: {:?} of {:?})", first.topic, first.partition, first.in_sync, first.replicas);
    Some((
        Reason::WaitingForReplicas,
        format!("{} of its partitions have another replica that is not in sync, the first is {named}", missing.count()),
    ))
}

/// Whether a node neither leads the quorum nor is level with who does.
fn is_behind(kafka: &KafkaSeen, id: i32) -> bool {
    let mut own = kafka.quorum.voters.iter().filter(|voter| voter.id == id);
    kafka.quorum.leader != Some(id) && own.all(|voter| !voter.is_caught_up())
}

fn lagging(kafka: &KafkaSeen) -> String {
    let ids: Vec<String> = kafka.quorum.lagging().iter().map(ToString::to_string).collect();
    if ids.is_empty() { "the quorum has no leader".to_owned() } else { format!("behind are {}", ids.join(", ")) }
}
