//! A leader's high watermark beside a model that keeps everything that ever happened and works it out from the start each
//! time, as one would by hand.

use gregor_replication::{
    FollowerFetch, IsrProposal, LeaderState, LeadersLog, PartitionAssignment, ProposalAnswer, ProposalOutcome,
    Registration, ReplicationLimits,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp};
use proptest::{collection::vec, prelude::*};

const ME: BrokerId = BrokerId(0);
const MAX_LAG_MS: i64 = 100;

#[derive(Debug, Clone)]
enum Step {
    Append(i64),
    /// A replica fetches from so far behind the leader's end.
    Fetch(i32, i64),
    Wait(i64),
    Tick,
    Answer(bool),
    /// The controller makes this the set, the leader apart.
    Isr(Vec<i32>),
    Registered(i32, bool),
    MinIsr(usize),
}

#[derive(Debug, Clone, Copy)]
struct Fetched {
    replica: i32,
    at: i64,
    offset: i64,
    leader_end: i64,
}

#[derive(Debug)]
struct Model {
    now: i64,
    end: i64,
    min_isr: usize,
    isr: Vec<i32>,
    proposed: Vec<i32>,
    active: [bool; 4],
    /// What the leader believes: only a fetch or the metadata tells it of a registration.
    known: [bool; 4],
    fetches: Vec<Fetched>,
    high_watermark: i64,
}

impl Model {
    fn position(&self, replica: i32) -> Option<i64> {
        self.fetches.iter().rev().find(|fetch| fetch.replica == replica).map(|fetch| fetch.offset)
    }

    /// The latest moment at which the replica is known to have had all that the leader had: that of a fetch that had it, or
    /// that of the fetch before one that had it.
    fn caught_up_at(&self, replica: i32) -> i64 {
        let fetches: Vec<Fetched> = self.fetches.iter().copied().filter(|fetch| fetch.replica == replica).collect();
        let mut latest = 0;
        for (index, fetch) in fetches.iter().enumerate() {
            for earlier in &fetches[index.saturating_sub(1)..=index] {
                if fetch.offset >= earlier.leader_end {
                    latest = latest.max(earlier.at);
                }
            }
        }
        latest
    }

    fn settle(&mut self) {
        let counts = |replica: &i32| {
            let position = self.position(*replica);
            let is_caught_up = position == Some(self.end) || self.now - self.caught_up_at(*replica) <= MAX_LAG_MS;
            self.isr.contains(replica)
                || self.proposed.contains(replica)
                || (position.is_some() && is_caught_up && self.known[*replica as usize])
        };
        if self.isr.len() < self.min_isr {
            return;
        }
        let slowest = (1..4).filter(counts).map(|replica| self.position(replica).unwrap_or(0)).min();
        self.high_watermark = self.high_watermark.max(slowest.unwrap_or(self.end).min(self.end));
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_i64..20).prop_map(Step::Append),
        8 => (1_i32..4, 0_i64..12).prop_map(|(replica, behind)| Step::Fetch(replica, (behind - 8).max(0))),
        3 => (1_i64..150).prop_map(Step::Wait),
        1 => Just(Step::Tick),
        2 => any::<bool>().prop_map(Step::Answer),
        1 => vec(1_i32..4, 0..3).prop_map(Step::Isr),
        1 => (1_i32..4, any::<bool>()).prop_map(|(replica, active)| Step::Registered(replica, active)),
        1 => (1_usize..4).prop_map(Step::MinIsr),
    ]
}

fn limits(min_isr: usize) -> ReplicationLimits {
    ReplicationLimits { min_isr, max_lag_ms: MAX_LAG_MS }
}

fn assignment(isr: &[i32], partition_epoch: i32) -> PartitionAssignment {
    PartitionAssignment {
        leader_epoch: LeaderEpoch(1),
        partition_epoch,
        replicas: (0..4).map(BrokerId).collect(),
        isr: isr.iter().map(|id| BrokerId(*id)).collect(),
        adding: Vec::new(),
    }
}

fn registration(active: bool) -> Registration {
    Registration { epoch: BrokerEpoch(9), active }
}

fn members(proposal: &IsrProposal) -> Vec<i32> {
    proposal.isr.iter().map(|(id, _)| id.value()).collect()
}

proptest! {
    #[test]
    fn the_high_watermark_is_what_everybody_who_counts_has(steps in vec(step(), 1..80)) {
        let start = 1_000_i64;
        let mut model = Model {
            now: start,
            end: 0,
            min_isr: 2,
            isr: vec![0],
            proposed: Vec::new(),
            active: [true; 4],
            known: [false; 4],
            fetches: Vec::new(),
            high_watermark: 0,
        };
        let mut partition_epoch = 1;
        let mut under_way: Option<IsrProposal> = None;
        let log =
            LeadersLog { start: Offset(0), end: Offset(0), durable_end: None, high_watermark: Offset(0) };
        let assigned = assignment(&model.isr, partition_epoch);
        let mut leader = LeaderState::new(ME, &assigned, limits(2), log, Timestamp(start));
        for step in steps {
            let now = Timestamp(model.now);
            let before = leader.high_watermark();
            match step {
                Step::Append(records) => {
                    model.end += records;
                    leader.on_append(Offset(model.end), now);
                    model.settle();
                }
                Step::Fetch(replica, behind) => {
                    let offset = (model.end - behind).max(model.position(replica).unwrap_or(0));
                    let active = model.active[replica as usize];
                    model.known[replica as usize] = active;
                    model.fetches.push(Fetched { replica, at: model.now, offset, leader_end: model.end });
                    let fetch = FollowerFetch {
                        replica: BrokerId(replica),
                        broker_epoch: BrokerEpoch(9),
                        leader_epoch: LeaderEpoch(1),
                        offset: Offset(offset),
                        log_start: Offset(0),
                        registration: Some(registration(active)),
                    };
                    let progress = leader.on_fetch(fetch, now).expect("a fetch of a replica in this epoch");
                    if let Some(proposal) = progress.proposal {
                        prop_assert!(offset >= model.high_watermark && active && under_way.is_none());
                        model.proposed = members(&proposal);
                        under_way = Some(proposal);
                    }
                    model.settle();
                }
                Step::Wait(milliseconds) => model.now += milliseconds,
                Step::Tick => if let Some(proposal) = leader.on_tick(now) {
                    let stays = members(&proposal);
                    for replica in model.isr.iter().filter(|id| **id != 0) {
                        let has_all = model.position(*replica) == Some(model.end);
                        prop_assert!(stays.contains(replica) || !has_all, "{replica} has everything");
                    }
                    model.proposed = stays;
                    under_way = Some(proposal);
                },
                Step::Answer(accepts) => if let Some(proposal) = under_way.take() {
                    let mut shrinks = false;
                    let answer = if accepts {
                        partition_epoch += 1;
                        shrinks = model.isr.iter().any(|id| !members(&proposal).contains(id));
                        model.isr = members(&proposal);
                        ProposalAnswer::Accepted {
                            isr: proposal.isr.iter().map(|(id, _)| *id).collect(),
                            leader_epoch: LeaderEpoch(1),
                            partition_epoch,
                        }
                    } else {
                        ProposalAnswer::Refused(ErrorCode::IneligibleReplica)
                    };
                    model.proposed.clear();
                    let outcome = leader.on_proposal_answered(&proposal, &answer, now);
                    if shrinks {
                        prop_assert_eq!(outcome, ProposalOutcome::AwaitsMetadata);
                        prop_assert_eq!(leader.high_watermark(), before);
                        leader.on_assignment(&assignment(&model.isr, partition_epoch), now);
                    } else {
                        prop_assert!(matches!(outcome, ProposalOutcome::Settled(_)));
                    }
                    model.settle();
                },
                Step::Isr(mut others) => {
                    others.sort_unstable();
                    others.dedup();
                    // The controller takes members out by itself, but lets nobody in who has not asked.
                    others.retain(|id| model.isr.contains(id));
                    model.isr = [0].into_iter().chain(others).collect();
                    model.proposed.clear();
                    under_way = None;
                    partition_epoch += 1;
                    leader.on_assignment(&assignment(&model.isr, partition_epoch), now);
                    model.settle();
                }
                Step::Registered(replica, active) => {
                    model.active[replica as usize] = active;
                    model.known[replica as usize] = active;
                    leader.on_registration(BrokerId(replica), Some(registration(active)), now);
                    model.settle();
                }
                Step::MinIsr(min_isr) => {
                    model.min_isr = min_isr;
                    leader.on_limits(limits(min_isr), now);
                    model.settle();
                }
            }
            prop_assert!(leader.high_watermark() >= before, "it never moves back");
            prop_assert_eq!(leader.high_watermark().value(), model.high_watermark);
        }
    }
}
