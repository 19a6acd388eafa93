//! The replicas that a simulated broker holds, and which of them may have changed: most of what happens to a node is about one or two of many,
//! and who looks for changes need not look at the others.
//!
//! Whoever may change a replica takes it by [`Held::get_mut`] or [`Held::all_mut`].

use std::collections::BTreeMap;

use gregor_raft::Nanos;
use gregor_replication::FollowedPartition;

use super::replica::Replica;
use crate::node::HeldLog;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Held {
    replicas: BTreeMap<FollowedPartition, Replica>,
    /// Those that may have changed since what was due of them was done, and since the ledger has looked at them; in order.
    touched: Vec<FollowedPartition>,
    unseen: Vec<FollowedPartition>,
    /// The syncs that are under way, and when each is to be completed.
    syncs: Vec<(Nanos, FollowedPartition)>,
}

impl Held {
    pub(super) fn contains(&self, id: FollowedPartition) -> bool {
        self.replicas.contains_key(&id)
    }

    pub(super) fn get(&self, id: FollowedPartition) -> Option<&Replica> {
        self.replicas.get(&id)
    }

    /// A replica that is changed, perhaps.
    pub(super) fn get_mut(&mut self, id: FollowedPartition) -> Option<&mut Replica> {
        let replica = self.replicas.get_mut(&id)?;
        note(&mut self.touched, id);
        note(&mut self.unseen, id);
        Some(replica)
    }

    /// A replica that is read: what others see of it stays as it is.
    pub(super) fn reading(&mut self, id: FollowedPartition) -> Option<&mut Replica> {
        self.replicas.get_mut(&id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.values()
    }

    /// Their logs.
    pub(super) fn logs(&self) -> impl Iterator<Item = HeldLog<'_>> + Clone {
        self.replicas.values().map(|replica| (&replica.log, replica.high_watermark()))
    }

    /// All of them, each of which is changed, perhaps.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Replica> {
        self.touch_all();
        self.replicas.values_mut()
    }

    /// Each of them may have changed, if only because time has passed.
    pub(super) fn touch_all(&mut self) {
        self.touched = self.replicas.keys().copied().collect();
        self.unseen.clone_from(&self.touched);
    }

    pub(super) fn insert(&mut self, id: FollowedPartition, replica: Replica) {
        self.replicas.insert(id, replica);
        note(&mut self.touched, id);
        note(&mut self.unseen, id);
    }

    pub(super) fn remove(&mut self, id: FollowedPartition) -> Option<Replica> {
        self.syncs.retain(|(_, of)| *of != id);
        self.replicas.remove(&id)
    }

    /// Those of which something is due, in order: that may have changed since this was asked last, or have a sync to be completed now.
    pub(super) fn take_due(&mut self, now: Nanos) -> Vec<FollowedPartition> {
        let mut due = std::mem::take(&mut self.touched);
        for (_, id) in self.syncs.extract_if(.., |(at, _)| *at <= now) {
            note(&mut due, id);
            note(&mut self.unseen, id);
        }
        due
    }

    /// What was due of this one is done, until something happens to it or its sync is to be completed.
    pub(super) fn done(&mut self, id: FollowedPartition) {
        self.syncs.retain(|(_, of)| *of != id);
        let Some(replica) = self.replicas.get(&id) else { return };
        if let Some(at) = replica.sync_due() {
            self.syncs.push((at, id));
        } else if replica.wants_sync() {
            // The disk had no room.
            note(&mut self.touched, id);
        }
    }

    /// When the first sync is to be completed.
    pub(super) fn sync_due(&self) -> Option<Nanos> {
        self.syncs.iter().map(|(at, _)| *at).min()
    }

    /// Shows those that may have changed since this was asked last; `look` says of which it has not seen all yet.
    pub(super) fn show(&mut self, mut look: impl FnMut(&mut Replica) -> bool) {
        let replicas = &mut self.replicas;
        self.unseen.retain(|id| replicas.get_mut(id).is_some_and(&mut look));
    }
}

/// Puts one in its place among others, unless it is there.
fn note(ids: &mut Vec<FollowedPartition>, id: FollowedPartition) {
    if let Err(place) = ids.binary_search(&id) {
        ids.insert(place, id);
    }
}
