//! Changing who votes (KIP-853): the leader adds, removes and updates voters, one change at a time. Each is a record with the whole new set,
//! which counts from where it stands in the log on, committed or not; a change is done once it is committed by the new set.
//!
//! Two sets of which one has one voter more always share a voter in any two of their majorities. So no change begins before the one before it is
//! committed, nor before a record of the leader's own epoch is: an earlier leader may have begun one that nobody knows of.

use gregor_messages::{AddRaftVoterResponse, ApiVersionsResponse, RemoveRaftVoterResponse};
use gregor_state_records::control::VotersRecord;
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset};

use crate::{
    Batch, ControlRecord, Effect, Effects, Now, Outgoing, Quorum, ReplicaKey, Reply, RequestId, Response, Rng, Role,
    Voter, VoterSet, peers::Asked, time::Countdown,
};

/// The feature whose supported range a new voter is asked for.
const KRAFT_VERSION: &str = "kraft.version";

/// A change that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Change {
    kind: Kind,
    /// Who still waits for an answer.
    caller: Option<RequestId>,
    /// When it is given up. What is in the log stays there, and may still be committed.
    timeout: Countdown,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// The new voter is asked which versions it runs.
    Asking { voter: Voter, ack_when_committed: bool },
    /// The record of the set with the new voter is at this offset.
    Adding(Offset),
    /// The record of the set without the voter is at this offset.
    Removing(Offset),
}

/// Why a change is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) error: ErrorCode,
    pub(crate) message: &'static str,
}

pub(crate) const fn refusal(error: ErrorCode, message: &'static str) -> Refusal {
    Refusal { error, message }
}

impl Change {
    pub(crate) fn pass(&mut self, elapsed: crate::Nanos) {
        self.timeout.pass(elapsed);
    }

    pub(crate) fn remaining(&self) -> crate::Nanos {
        self.timeout.remaining()
    }

    fn answer(&self, error: ErrorCode, message: Option<&'static str>) -> Option<(RequestId, Reply)> {
        let message = message.map(Into::into);
        let reply = match self.kind {
            Kind::Asking { .. } | Kind::Adding(_) => Reply::AddRaftVoter(AddRaftVoterResponse {
                error_code: error.code(),
                error_message: message,
                ..Default::default()
            }),
            Kind::Removing(_) => Reply::RemoveRaftVoter(RemoveRaftVoterResponse {
                error_code: error.code(),
                error_message: message,
                ..Default::default()
            }),
        };
        Some((self.caller?, reply))
    }
}

impl Quorum {
    /// Whether a change may begin now, in the order of Kafka's checks.
    pub(crate) fn check_change(&self) -> Result<(), Refusal> {
        self.check_no_change()?;
        if self.history.kraft_version() < 1 {
            return Err(refusal(
                ErrorCode::UnsupportedVersion,
                "the voters of a quorum of kraft.version 0 cannot be changed: finalize kraft.version 1 first",
            ));
        }
        self.check_voters_committed()
    }

    /// Whether no change is under way, and no earlier leader's can be.
    pub(crate) fn check_no_change(&self) -> Result<(), Refusal> {
        let busy = |message| Err(refusal(ErrorCode::RequestTimedOut, message));
        let Role::Leader(leader) = &self.role else {
            return Err(refusal(ErrorCode::NotLeaderOrFollower, "this node does not lead the quorum"));
        };
        if leader.change.is_some() {
            return busy("another change of the voters is under way");
        }
        if self.high_watermark.is_none_or(|committed| committed <= leader.start) {
            return busy("the leader has not committed a record of its epoch yet");
        }
        Ok(())
    }

    pub(crate) fn check_voters_committed(&self) -> Result<(), Refusal> {
        let changed_at = self.history.voters_offset();
        if self.high_watermark.is_none_or(|committed| changed_at >= committed) {
            return Err(refusal(ErrorCode::RequestTimedOut, "the last change of the voters is not committed yet"));
        }
        Ok(())
    }

    /// Asks a replica that shall vote which versions it runs; the answer decides.
    pub(crate) fn begin_adding(
        &mut self,
        id: RequestId,
        voter: Voter,
        ack_when_committed: bool,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        self.check_change()?;
        if self.voters().voter(voter.key.id).is_some() {
            return Err(refusal(ErrorCode::DuplicateVoter, "a voter with this id is there already"));
        }
        let Some(endpoint) = voter.endpoints.first().cloned().filter(|_| self.peers.is_free(voter.key.id)) else {
            return Err(refusal(ErrorCode::RequestTimedOut, "the new voter cannot be asked anything just now"));
        };
        let Role::Leader(leader) = &mut self.role else { unreachable!("the caller checked") };
        let to = voter.key.id;
        self.peers.ask(to, Asked::ApiVersions(leader.epoch));
        let request = Outgoing::ApiVersions(endpoint);
        effects.push(Effect::Send { to, request });
        leader.change = Some(Change {
            kind: Kind::Asking { voter, ack_when_committed },
            caller: Some(id),
            timeout: Countdown::new(self.config.request_timeout),
        });
        Ok(())
    }

    /// The replica that shall vote has answered, or has not.
    pub(crate) fn on_versions(
        &mut self,
        from: BrokerId,
        epoch: LeaderEpoch,
        response: Option<&Response>,
        now: Now,
        effects: &mut Effects,
    ) {
        let Role::Leader(leader) = &self.role else { return };
        let Some(Change { kind: Kind::Asking { voter, ack_when_committed }, .. }) = &leader.change else { return };
        if leader.epoch != epoch || voter.key.id != from {
            return;
        }
        let (voter, ack_when_committed) = (voter.clone(), *ack_when_committed);
        match self.versions_of_new_voter(voter.key, response) {
            Err(refusal) => self.end_change(refusal.error, Some(refusal.message), effects),
            Ok(kraft_versions) => {
                let voters = self.voters().with(Voter { kraft_versions, ..voter });
                let offset = self.append_voters(&voters, now, effects);
                let Role::Leader(leader) = &mut self.role else { unreachable!("it appended") };
                let Some(change) = &mut leader.change else { unreachable!("it is under way") };
                change.kind = Kind::Adding(offset);
                if !ack_when_committed {
                    let answer = change.answer(ErrorCode::None, None);
                    change.caller = None;
                    if let Some((to, reply)) = answer {
                        effects.reply(None, to, reply);
                    }
                }
            }
        }
    }

    fn versions_of_new_voter(&self, key: ReplicaKey, response: Option<&Response>) -> Result<(i16, i16), Refusal> {
        let Some(Response::ApiVersions(ApiVersionsResponse { error_code: 0, supported_features, .. })) = response
        else {
            return Err(refusal(ErrorCode::RequestTimedOut, "the new voter did not say which versions it runs"));
        };
        let range = supported_features.iter().find(|feature| feature.name == KRAFT_VERSION);
        let version = self.history.kraft_version();
        let range = range.map(|range| (range.min_version, range.max_version));
        let Some(range) = range.filter(|(min, max)| (*min..=*max).contains(&version)) else {
            return Err(refusal(ErrorCode::InvalidRequest, "the new voter does not run the finalized kraft.version"));
        };
        // Else the new set might wait for long until a majority has what the old one had.
        let Role::Leader(leader) = &self.role else { unreachable!("the caller checked") };
        if !leader.is_caught_up(key) {
            return Err(refusal(ErrorCode::RequestTimedOut, "the new voter has not caught up with the log yet"));
        }
        Ok(range)
    }

    pub(crate) fn begin_removing(
        &mut self,
        id: RequestId,
        voter: ReplicaKey,
        now: Now,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        self.check_change()?;
        let Some(voters) = self.voters().without(voter) else {
            return Err(refusal(ErrorCode::VoterNotFound, "there is no such voter, or no other"));
        };
        let offset = self.append_voters(&voters, now, effects);
        let timeout = Countdown::new(self.config.request_timeout);
        if let Role::Leader(leader) = &mut self.role {
            leader.change = Some(Change { kind: Kind::Removing(offset), caller: Some(id), timeout });
        }
        Ok(())
    }

    /// Appends a set of voters, which counts from now on. Returns its offset.
    pub(crate) fn append_voters(&mut self, voters: &VoterSet, now: Now, effects: &mut Effects) -> Offset {
        let record = ControlRecord::Voters(VotersRecord::from(voters));
        self.append_control(vec![record], now, effects)
    }

    /// Appends control records of the quorum, which count from now on. Returns the offset of the last.
    pub(crate) fn append_control(&mut self, records: Vec<ControlRecord>, now: Now, effects: &mut Effects) -> Offset {
        let Role::Leader(leader) = &self.role else { unreachable!("only a leader appends") };
        let base = leader.end;
        for (offset, record) in (base.value()..).zip(&records) {
            self.history.replay(Offset(offset), record);
        }
        let last = base.plus(records.len() as i64 - 1);
        self.append(Batch::Control(records), now, effects);
        if let Role::Leader(leader) = &mut self.role {
            leader.know_directories(self.history.voters());
        }
        last
    }

    /// Ends a change that is committed, or that takes too long; a leader that has been removed gives way. Returns whether it did.
    pub(crate) fn pursue_change(&mut self, now: Now, rng: &mut dyn Rng, effects: &mut Effects) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let is_committed = |offset: Offset| self.high_watermark.is_some_and(|committed| committed > offset);
        let is_removed = !self.is_voter() && is_committed(leader.start.max(self.history.voters_offset()));
        match &leader.change {
            Some(Change { kind: Kind::Adding(offset) | Kind::Removing(offset), .. }) if is_committed(*offset) => {
                self.end_change(ErrorCode::None, None, effects);
            }
            Some(change) if change.timeout.is_due() => {
                self.end_change(ErrorCode::RequestTimedOut, Some("the change was not committed in time"), effects);
            }
            _ => {}
        }
        if is_removed {
            self.resign(false, now, rng, effects);
        }
        is_removed
    }

    pub(crate) fn end_change(&mut self, error: ErrorCode, message: Option<&'static str>, effects: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(change) = leader.change.take() else { return };
        if let Some((to, reply)) = change.answer(error, message) {
            effects.reply(None, to, reply);
        }
    }
}
