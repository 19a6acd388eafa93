//! The network between nodes, and between clients and nodes: what is lost, doubled, late, or cut off in one direction or both.
//!
//! It decides; the world carries.

use std::collections::{BTreeMap, BTreeSet};

use gregor_raft::Nanos;
use gregor_types::BrokerId;

use super::{ledger::Ledger, letters::Party};
use crate::{
    Random,
    clock::{MILLISECOND, SECOND},
};

/// How long a message takes at most on a network that is well.
const LATENCY_MAX: Nanos = 3 * MILLISECOND;

/// How late a copy of a message may come: it had lain somewhere while the first one was answered.
const COPY_LATENCY_MAX: Nanos = 8 * SECOND;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Wire {
    /// Directions in which nothing comes through.
    cut: BTreeSet<(BrokerId, BrokerId)>,
    /// How many of a hundred messages are lost, and how many come twice.
    loss: u64,
    doubles: u64,
    /// How late a message may be.
    latency_max: Nanos,
    /// How often something went wrong with it.
    worsened: u64,
    /// When the last message of each direction arrives.
    last: BTreeMap<(Party, Party), Nanos>,
}

impl Wire {
    /// A network that is well.
    pub(super) fn new() -> Self {
        Self { cut: BTreeSet::new(), loss: 0, doubles: 0, latency_max: LATENCY_MAX, worsened: 0, last: BTreeMap::new() }
    }

    /// The network is well again.
    pub(super) fn heal(&mut self) {
        (self.loss, self.doubles, self.latency_max) = (0, 0, LATENCY_MAX);
        self.cut.clear();
    }

    /// Messages are lost, doubled and late from now on.
    pub(super) fn worsen(&mut self, loss: u64, doubles: u64, latency_max: Nanos) {
        (self.loss, self.doubles, self.latency_max) = (loss, doubles, latency_max);
        self.worsened += 1;
    }

    /// Nothing comes through from one node to another.
    pub(super) fn cut(&mut self, from: BrokerId, to: BrokerId) {
        self.cut.insert((from, to));
        self.worsened += 1;
    }

    /// How often something went wrong with it.
    pub(super) const fn worsened(&self) -> u64 {
        self.worsened
    }

    /// Whether nothing is lost or late, and who hears another is heard by it: a leader that hears its followers, and is not heard, stays.
    pub(super) fn is_fair(&self) -> bool {
        let is_mutual = self.cut.iter().all(|(from, to)| self.cut.contains(&(*to, *from)));
        self.loss == 0 && self.latency_max == LATENCY_MAX && is_mutual
    }

    /// Whether nothing comes through. Clients reach whom they want.
    pub(super) fn is_cut(&self, from: Party, to: Party) -> bool {
        match (from, to) {
            (Party::Node(from), Party::Node(to)) => self.cut.contains(&(from, to)),
            _ => false,
        }
    }

    /// After which time a message arrives, if it does, and after which a copy of it.
    pub(super) fn arrivals(
        &mut self,
        (from, to): (Party, Party),
        may_be_doubled: bool,
        now: Nanos,
        random: &mut Random,
        ledger: &mut Ledger,
    ) -> (Option<Nanos>, Option<Nanos>) {
        if random.chance(self.loss) {
            ledger.count("message lost");
            return (None, None);
        }
        let is_doubled = may_be_doubled && random.chance(self.doubles);
        if is_doubled {
            ledger.count("message doubled");
        }
        let last = self.last.entry((from, to)).or_default();
        let mut arrival = |latency_max| {
            let delay = random.between(MILLISECOND / 10, latency_max);
            if delay > LATENCY_MAX {
                ledger.count("message late");
            }
            if now + delay < *last {
                ledger.count("messages reordered");
            }
            *last = (now + delay).max(*last);
            delay
        };
        let first = arrival(self.latency_max);
        (Some(first), is_doubled.then(|| arrival(COPY_LATENCY_MAX.max(self.latency_max))))
    }
}
