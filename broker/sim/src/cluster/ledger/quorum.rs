//! What the quorum is held to: one leader in an epoch and one vote of each voter, metadata that is the same wherever it is shown, and that a
//! majority has before anybody shows it.

use std::collections::BTreeSet;

use gregor_metadata::{Image, MetadataImage};
use gregor_raft::{ReplicaKey, VoterSet};
use gregor_types::{BrokerId, DirectoryId, LeaderEpoch, Offset};
use gregor_wire::batch::BatchView;

use super::{Ledger, Seal, Shown, changes_between, count_elections};
use crate::cluster::{
    laws::{broken_law, broken_passage, joined_in_another_life},
    process::Process,
};

/// That nodes show the same metadata is looked at for one offset of so many: that takes its time, and what differs once stays different.
const OFFSETS_PER_COMPARISON: i64 = 4;

impl Ledger {
    /// Looks at what a node's control thread shows.
    pub(in crate::cluster) fn look_at_control(
        &mut self,
        id: BrokerId,
        directory: DirectoryId,
        boot: u64,
        process: &Process,
    ) {
        let image = process.image();
        let (leader, epoch) = {
            let known = process.leader();
            (known.leader, known.epoch)
        };
        let (leads_in, end) = (process.leads_in(), process.metadata_end());
        let before = self.shown.get(&id).copied().filter(|before| before.boot == boot);
        let began = before.filter(|before| before.leads_in == leads_in).map_or(end, |before| before.began);
        let now = Shown { boot, directory, last: image.position.last_offset, epoch, leads_in, end, began };
        self.shown.insert(id, now);
        let looked = self
            .hold_leadership(id, &now, before.as_ref(), leader, process.quorum().history().voters())
            .and_then(|()| hold_progress(id, &now, before.as_ref(), &image))
            .and_then(|()| hold_voters(id, &now, process))
            .and_then(|()| match before {
                // It shows what it showed before, or nothing yet.
                Some(before) if before.last == now.last => Ok(()),
                _ if now.last < Offset::ZERO => Ok(()),
                _ => self.hold_image(id, &now, process, &image),
            });
        if let Err(wrong) = looked {
            self.violated(wrong);
        }
    }

    /// A voter says that it votes for a candidate. Whether it had not said so before.
    pub(in crate::cluster) fn votes(
        &mut self,
        (voter, directory): (BrokerId, DirectoryId),
        epoch: LeaderEpoch,
        candidate: BrokerId,
    ) -> bool {
        let known = self.votes.insert((voter, directory, epoch), candidate);
        if let Some(other) = known.filter(|known| *known != candidate) {
            self.violated(format!("node {voter} votes for {candidate} in epoch {epoch}, and did for {other}"));
        }
        known.is_none()
    }

    /// A batch of a node's metadata log that the node knows to be committed.
    pub(in crate::cluster) fn metadata_has(&mut self, id: BrokerId, batch: &BatchView<'_>) {
        let seal = Seal::of(batch);
        let known = *self.metadata.entry(batch.base_offset).or_insert(seal);
        if known != seal {
            let at = batch.base_offset;
            self.violated(format!("node {id} has {seal:?} at {at} of the metadata, {known:?} was committed there"));
        }
    }

    /// An epoch has one leader, in one of its lives, for which a majority has voted, and nobody goes back to an earlier epoch.
    fn hold_leadership(
        &mut self,
        id: BrokerId,
        now: &Shown,
        before: Option<&Shown>,
        leader: Option<BrokerId>,
        voters: &VoterSet,
    ) -> Result<(), String> {
        let Shown { boot, epoch, .. } = *now;
        if let Some(named) = leader {
            let known = *self.leaders.entry(epoch).or_insert(named);
            if known != named {
                return Err(format!("node {id} takes {named} for the leader of epoch {epoch}, it is {known}"));
            }
        }
        if let Some(epoch) = now.leads_in {
            if !self.controllers.contains_key(&epoch) {
                self.hold_election(id, epoch, voters)?;
            }
            let (other, life) = *self.controllers.entry(epoch).or_insert((id, boot));
            if (other, life) != (id, boot) {
                return Err(format!("node {id} leads epoch {epoch} in life {boot}, and {other} did in life {life}"));
            }
        }
        match before {
            Some(before) if epoch < before.epoch => {
                Err(format!("node {id} goes from epoch {} back to {epoch}", before.epoch))
            }
            _ => Ok(()),
        }
    }

    fn hold_election(&self, id: BrokerId, epoch: LeaderEpoch, voters: &VoterSet) -> Result<(), String> {
        let cast = self.votes.iter().filter(|((.., cast_in), candidate)| *cast_in == epoch && **candidate == id);
        let voting: BTreeSet<_> = cast
            .map(|((voter, directory, _), _)| ReplicaKey::new(*voter, *directory))
            .filter(|voter| voters.contains(*voter))
            .collect();
        if voting.len() > voters.len() / 2 {
            return Ok(());
        }
        Err(format!("node {id} leads epoch {epoch}, and of {} voters only {voting:?} voted for it", voters.len()))
    }

    /// The same metadata and the same voters stand at an offset wherever they are shown, later offsets are of later epochs, and a majority
    /// of the voters has what is shown first.
    fn hold_image(
        &mut self,
        id: BrokerId,
        now: &Shown,
        process: &Process,
        image: &MetadataImage,
    ) -> Result<(), String> {
        let (at, epoch) = (now.last, image.position.epoch);
        let (version, voters) = process.quorum().history().at(at.plus(1));
        let known = self.voters.entry(at).or_insert_with(|| (version, voters.clone()));
        if known.0 != version || known.1 != *voters {
            return Err(format!(
                "at {at} of the metadata node {id} knows the voters {:?}, others {:?}",
                voters, known.1
            ));
        }
        let newest = self.images.last_key_value();
        let is_newest = newest.is_none_or(|(newest, _)| *newest < at);
        if is_newest {
            if let Some((_, (_, before))) = newest {
                count_elections(&mut self.counts, before, &image.image);
                if let Some(changes) = &mut self.changes {
                    changes.extend(changes_between(before, &image.image));
                }
                let joined = joined_in_another_life(before, &image.image, &self.proposed);
                if let Some(law) = broken_passage(before, &image.image).or(joined) {
                    return Err(format!("the metadata at {at}: {law}"));
                }
            }
            if let Some(law) = broken_law(&image.image) {
                return Err(format!("the metadata at {at}: {law}"));
            }
            if now.leads_in.is_some() {
                self.hold_majority(at, &[process.quorum().history().voters(), voters])?;
            }
            self.is_newer = true;
        }
        let earlier = self.images.range(..at).next_back().is_none_or(|(_, (earlier, _))| *earlier <= epoch);
        let later = self.images.range(at.plus(1)..).next().is_none_or(|(_, (later, _))| epoch <= *later);
        if !earlier || !later {
            let shown = |(at, (epoch, _)): (&Offset, &(LeaderEpoch, Image))| (*at, *epoch);
            let before = self.images.range(..at).next_back().map(shown);
            let after = self.images.range(at.plus(1)..).next().map(shown);
            return Err(format!(
                "node {id} shows metadata of epoch {epoch} at {at}, between what was shown before: {before:?} and {after:?}"
            ));
        }
        let Some((shown_in, known)) = self.images.get(&at) else {
            self.images.insert(at, (epoch, image.image.clone()));
            for topic in image.topics().iter() {
                self.names.entry(topic.id).or_insert_with(|| topic.name.to_string());
            }
            return Ok(());
        };
        let is_compared = at.value() % OFFSETS_PER_COMPARISON == 0;
        if *shown_in != epoch || (is_compared && *known != image.image) {
            return Err(format!(
                "node {id} has another image of the metadata at {at} in epoch {epoch} than was shown in epoch {shown_in}"
            ));
        }
        Ok(())
    }

    /// What a leader shows as committed the logs of a majority have, as far as each got when it ran last: of those who vote now, or of those who
    /// did before a change that is not committed yet.
    fn hold_majority(&self, at: Offset, sets: &[&VoterSet]) -> Result<(), String> {
        let has_it = |key: ReplicaKey| {
            let shown = self.shown.get(&key.id);
            shown.is_some_and(|shown| shown.end > at && key.directory.is_none_or(|known| known == shown.directory))
        };
        let have = |voters: &VoterSet| voters.iter().filter(|voter| has_it(voter.key)).count();
        if sets.iter().any(|voters| have(voters) > voters.len() / 2) {
            return Ok(());
        }
        let ends: Vec<_> = self.shown.iter().map(|(id, shown)| (*id, shown.end)).collect();
        let voters: Vec<_> = sets[0].iter().map(|voter| voter.key.id).collect();
        Err(format!("the metadata at {at} is shown, and of the voters {voters:?} too few have it: {ends:?}"))
    }
}

/// A life of a node never shows less than before, nor what its log lacks; and what a leader commits ends with a record of its own epoch.
fn hold_progress(id: BrokerId, now: &Shown, before: Option<&Shown>, image: &MetadataImage) -> Result<(), String> {
    let Shown { last, end, leads_in, .. } = *now;
    if last >= end {
        return Err(format!("node {id} shows metadata up to {last}, and its log ends at {end}"));
    }
    let Some(before) = before else { return Ok(()) };
    if last < before.last {
        return Err(format!("node {id} shows metadata up to {last} after {}", before.last));
    }
    match leads_in {
        Some(epoch) if before.leads_in == leads_in && last > before.last && image.position.epoch != epoch => {
            let earlier = image.position.epoch;
            Err(format!(
                "node {id} leads epoch {epoch}, and commits what ends with a record of epoch {earlier}, at {last}"
            ))
        }
        _ => Ok(()),
    }
}

/// Who votes, committed or not, is at most one away from who votes as far as is committed, where this leader has changed it: else two majorities
/// need not meet (KIP-853). What earlier leaders have changed may be committed, and this one not know it yet.
fn hold_voters(id: BrokerId, now: &Shown, process: &Process) -> Result<(), String> {
    let quorum = process.quorum();
    let (Some(committed), true) = (quorum.high_watermark(), now.leads_in.is_some()) else { return Ok(()) };
    let (voters, (version, then)) = (quorum.history().voters(), quorum.history().at(committed.max(now.began)));
    if std::ptr::eq(voters, then) {
        return Ok(());
    }
    // The voters of a static quorum have no directories.
    let directory = |key: ReplicaKey| key.directory.filter(|_| version > 0);
    let keys =
        |voters: &VoterSet| voters.iter().map(|voter| (voter.key.id, directory(voter.key))).collect::<BTreeSet<_>>();
    let (voters, then) = (keys(voters), keys(then));
    if voters.symmetric_difference(&then).count() > 1 {
        return Err(format!("node {id} has {voters:?} for voters, and only {then:?} are committed"));
    }
    Ok(())
}
