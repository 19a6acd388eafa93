//! ListGroups, DescribeGroups and DeleteGroups.

use gregor_messages::{
    delete_groups_response::DeletableGroupResult,
    describe_groups_response::{DescribedGroup, DescribedGroupMember},
    list_groups_response::ListedGroup,
};
use gregor_types::{ErrorCode, KString};

use super::{ClassicGroup, GroupCoordinator, GroupResponse, GroupState, append_error, records};
use crate::{Scope, Token};

/// From this version on a group that does not exist is an error; before, it is a group that is dead.
const NOT_FOUND_IS_AN_ERROR: i16 = 6;
const CLASSIC: &str = "classic";

impl GroupState {
    /// Kafka's name of the state.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance { .. } => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

impl GroupCoordinator {
    pub(super) fn list(
        &self,
        states: &[KString],
        types: &[KString],
        token: Token,
        scope: &mut Scope<'_, GroupResponse>,
    ) {
        let wanted =
            |list: &[KString], name: &str| list.is_empty() || list.iter().any(|one| one.eq_ignore_ascii_case(name));
        let matching =
            self.groups.values().filter(|group| wanted(states, group.state().name()) && wanted(types, CLASSIC));
        let rows = matching.map(|group| ListedGroup {
            group_id: group.id.clone(),
            protocol_type: group.protocol_type.clone().unwrap_or_default(),
            group_state: KString::from_static(group.state().name()),
            group_type: KString::from_static(CLASSIC),
            ..Default::default()
        });
        let rows = rows.collect();
        scope.answer(token, GroupResponse::List(rows));
    }

    pub(super) fn describe(&self, id: &KString, version: i16, token: Token, scope: &mut Scope<'_, GroupResponse>) {
        let row = self.groups.get(id).map_or_else(|| missing(id, version), described);
        scope.answer(token, GroupResponse::Describe(row));
    }

    pub(super) fn delete(&mut self, id: &KString, token: Token, scope: &mut Scope<'_, GroupResponse>) {
        let error = self.delete_group(id, scope).err().unwrap_or(ErrorCode::None);
        let row = DeletableGroupResult { group_id: id.clone(), error_code: error.code(), ..Default::default() };
        scope.answer(token, GroupResponse::Delete(row));
    }

    fn delete_group(&mut self, id: &KString, scope: &mut Scope<'_, GroupResponse>) -> Result<(), ErrorCode> {
        let group = self.groups.get(id).ok_or(ErrorCode::GroupIdNotFound)?;
        if group.state() != GroupState::Empty {
            return Err(ErrorCode::NonEmptyGroup);
        }
        let offsets: Vec<_> =
            self.offsets.of_group(id).map(|(topic, partition, _)| (topic.clone(), partition)).collect();
        self.remove_offsets(id, &offsets, scope).map_err(append_error)?;
        let tombstone = records::no_group(id)?;
        scope.append(&[tombstone]).map_err(append_error)?;
        self.groups.remove(id);
        Ok(())
    }
}

fn missing(id: &KString, version: i16) -> DescribedGroup {
    let dead = DescribedGroup { group_id: id.clone(), group_state: KString::from_static("Dead"), ..Default::default() };
    if version < NOT_FOUND_IS_AN_ERROR {
        return dead;
    }
    DescribedGroup {
        error_code: ErrorCode::GroupIdNotFound.code(),
        error_message: Some(format!("Group {id} not found.").into()),
        ..dead
    }
}

fn described(group: &ClassicGroup) -> DescribedGroup {
    let stable = group.state() == GroupState::Stable;
    // What members follow and are assigned is only told once it is settled.
    let protocol = group.protocol.clone().filter(|_| stable).unwrap_or_default();
    let members = group.members().map(|member| DescribedGroupMember {
        member_id: member.id.clone(),
        group_instance_id: member.instance.clone(),
        client_id: member.client_id.clone(),
        client_host: member.client_host.clone(),
        member_metadata: if stable { member.metadata(&protocol) } else { bytes::Bytes::new() },
        member_assignment: if stable { member.assignment.clone() } else { bytes::Bytes::new() },
        ..Default::default()
    });
    DescribedGroup {
        group_id: group.id.clone(),
        group_state: KString::from_static(group.state().name()),
        protocol_type: group.protocol_type.clone().unwrap_or_default(),
        members: members.collect(),
        protocol_data: protocol,
        ..Default::default()
    }
}
