//! What must hold whatever goes wrong: one leader an epoch, which has all that is committed; one history of what is committed; and sets of
//! voters of which each shares a majority with the next.

use gregor_raft::{
    ControlRecord, ReplicaKey, VoterSet,
    control::{Content, ControlError, read_batches},
};
use gregor_types::{BrokerId, LeaderEpoch, Offset};

use super::Cluster;

impl Cluster {
    pub(super) fn crown(&mut self, id: BrokerId, epoch: LeaderEpoch) {
        let before = self.leaders.insert(epoch, id);
        assert!(before.is_none(), "{id} and {before:?} were both elected in epoch {epoch}");
        let log = &self.members[&id].log;
        log.check_start(self.committed.values());
        for batch in self.committed.values().filter(|batch| batch.end > log.start.offset.value()) {
            assert!(log.batches.contains(batch), "{id} leads epoch {epoch} without {} to {}", batch.base, batch.end);
        }
    }

    pub(super) fn commit(&mut self, id: BrokerId, end: Offset) {
        let log = &self.members[&id].log;
        assert!(end.value() <= log.end_offset(), "{id} has not got what it says is committed");
        let batches = log.batches.iter().filter(|batch| batch.end <= end.value());
        let mut new = Vec::new();
        for batch in batches {
            if let Some(known) = self.committed.get(&batch.base) {
                assert_eq!(known, batch, "{id} has another batch at {} than what is committed", batch.base);
            } else {
                new.push(batch.clone());
            }
        }
        for batch in new {
            read_batches::<ControlError>(&batch.bytes, |entry| {
                if let Content::Control(ControlRecord::Voters(voters)) = &entry.content {
                    self.check_voters(entry.offset.value(), voters.into());
                }
                Ok(())
            })
            .unwrap();
            self.committed.insert(batch.base, batch);
        }
    }

    fn check_voters(&mut self, at: i64, voters: VoterSet) {
        if let Some((_, before)) = self.voter_sets.range(..at).next_back() {
            let keys = |set: &VoterSet| set.iter().map(|voter| voter.key).collect::<Vec<ReplicaKey>>();
            let (before, after) = (keys(before), keys(&voters));
            let changed = before.iter().filter(|key| !after.contains(key)).count()
                + after.iter().filter(|key| !before.contains(key)).count();
            assert!(changed <= 1, "majorities of {before:?} and {after:?} need not meet");
        }
        self.voter_sets.insert(at, voters);
    }
}
