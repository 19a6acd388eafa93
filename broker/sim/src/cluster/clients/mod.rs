//! Who uses a cluster: each acts when its time comes, asks nodes, and writes down what it was answered.

mod admin;
mod deleter;
mod producer;
mod reader;
mod voters;

use std::sync::Arc;

use gregor_controller::ControllerRequest;
use gregor_messages::{UpdateFeaturesRequest, update_features_request::FeatureUpdateKey};
use gregor_metadata::MetadataImage;
use gregor_raft::Nanos;
use gregor_types::BrokerId;

pub(super) use admin::Admin;
pub(super) use deleter::Deleter;
pub(super) use producer::Producer;
pub(super) use reader::Reader;
pub(super) use voters::VoterAdmin;

use super::{
    audit::Machines,
    ledger::Ledger,
    letters::{Answer, CallId, Question},
    trouble::Power,
};
use crate::{Random, clock::MILLISECOND};

/// `FeatureUpdate.UpgradeType.UPGRADE`, and `SAFE_DOWNGRADE`.
const UPGRADE: i8 = 1;
const SAFE_DOWNGRADE: i8 = 2;

/// Asks for a level of a feature.
fn finalize(feature: &str, level: i16, upgrade_type: i8) -> ControllerRequest {
    let update =
        FeatureUpdateKey { feature: feature.into(), max_version_level: level, upgrade_type, ..Default::default() };
    UpdateFeaturesRequest { timeout_ms: 10_000, feature_updates: vec![update], ..Default::default() }.into()
}

/// Somebody who uses the cluster.
pub(super) trait Client: std::fmt::Debug {
    /// It is time: the client may ask, and says by [`View::wake_in`] when to come again.
    fn wake(&mut self, view: &mut View<'_>);
    /// The answer to one of its questions; `None` where there will be none.
    fn hear(&mut self, call: CallId, answer: Option<Answer>, view: &mut View<'_>);
}

/// The world as a client sees it.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// Which client it is.
    pub(super) me: usize,
    pub(super) now: Nanos,
    /// Whether all heals: nothing new is begun.
    pub(super) healing: bool,
    pub(super) random: &'a mut Random,
    pub(super) ledger: &'a mut Ledger,
    /// The nodes: as they are written down, and whether each runs.
    pub(super) machines: &'a Machines,
    /// The metadata as some node that runs shows it now, and whom that node takes for the active controller.
    pub(super) image: Option<Arc<MetadataImage>>,
    pub(super) controller: Option<BrokerId>,
    /// How machines lose power: what topics are to ask for depends on it.
    pub(super) power: Power,
    pub(super) next_call: &'a mut CallId,
    pub(super) outbox: Vec<(CallId, BrokerId, Question)>,
    pub(super) wake_at: Option<Nanos>,
    /// A node that votes no more, whose disk is to be replaced by a new one if it may be.
    pub(super) replaces: Option<BrokerId>,
    /// A node that is down, and not to start as long as what is asked may be on its way.
    pub(super) keeps_down: Option<BrokerId>,
}

impl View<'_> {
    /// Asks a node; the number names the question.
    pub(super) fn ask(&mut self, node: BrokerId, question: Question) -> CallId {
        *self.next_call += 1;
        self.outbox.push((*self.next_call, node, question));
        *self.next_call
    }

    /// Wants to be woken after so many milliseconds, more or less.
    pub(super) fn wake_in(&mut self, milliseconds: u64) {
        let middle = milliseconds * MILLISECOND;
        self.wake_at = Some(self.now + self.random.between(middle / 2, middle * 3 / 2));
    }

    /// The brokers that there are, running or not.
    pub(super) fn brokers(&self) -> Vec<BrokerId> {
        let brokers = self.machines.values().filter(|machine| machine.identity.roles.is_broker());
        brokers.map(|machine| machine.identity.id).collect()
    }
}
