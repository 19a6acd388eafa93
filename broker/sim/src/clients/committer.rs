//! Somebody who commits offsets for a group, one after the other, and asks now and then what is committed.

use gregor_coordinators::group::{GroupRequest, GroupResponse};
use gregor_messages::{
    OffsetCommitRequest,
    offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
    offset_fetch_response::OffsetFetchResponseGroup,
};

use super::{Client, View};
use crate::network::{Place, Request, Response};

/// See the module's documentation.
#[derive(Debug)]
pub struct Committer {
    group: String,
    next_offset: i64,
    asking: Option<(u64, Place, Asked)>,
    /// Where it has committed last, to be looked at first where the connection is lost.
    last: Option<Place>,
    look: Option<Place>,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    Commit(i64),
    Fetch,
}

impl Committer {
    /// One for this group.
    pub fn new(group: impl Into<String>) -> Self {
        Self { group: group.into(), next_offset: 0, asking: None, last: None, look: None }
    }
}

/// Asks what a group has committed for a partition.
pub(super) fn fetch(group: &str, place: &Place) -> GroupRequest {
    let topic = OffsetFetchRequestTopics {
        name: place.topic.as_str().into(),
        partition_indexes: vec![place.partition],
        ..Default::default()
    };
    let request = OffsetFetchRequestGroup {
        group_id: group.into(),
        member_epoch: -1,
        topics: Some(vec![topic]),
        ..Default::default()
    };
    GroupRequest::OffsetFetch { request, require_stable: false }
}

/// Commits for a group: as this member of that generation, or with "" and -1 as nobody in particular.
pub(super) fn commit(group: &str, (member, generation): (&str, i32), place: &Place, offset: i64) -> GroupRequest {
    let partition = OffsetCommitRequestPartition {
        partition_index: place.partition,
        committed_offset: offset,
        committed_leader_epoch: -1,
        committed_metadata: Some("".into()),
        ..Default::default()
    };
    let topic = OffsetCommitRequestTopic {
        name: place.topic.as_str().into(),
        partitions: vec![partition],
        ..Default::default()
    };
    GroupRequest::OffsetCommit(OffsetCommitRequest {
        group_id: group.into(),
        member_id: member.into(),
        generation_id_or_member_epoch: generation,
        retention_time_ms: -1,
        topics: vec![topic],
        ..Default::default()
    })
}

/// Holds what a group is said to have committed to what it was promised.
pub(super) fn fetched(group: &str, place: &Place, response: &OffsetFetchResponseGroup, world: &mut View<'_>) {
    let found = response.topics.first().and_then(|topic| topic.partitions.first());
    let Some(found) = found.filter(|found| response.error_code == 0 && found.error_code == 0) else { return };
    let found = found.committed_offset;
    let may_be_lost = world.promises.groups_may_be_lost();
    // Which of several it was is known now.
    let expected = std::mem::replace(world.promises.committed(group, place), vec![found]);
    if !expected.contains(&found) && !may_be_lost {
        world.promises.violated(format!("{group} has {found} for {place}, and committed one of {expected:?}"));
    }
}

impl Client for Committer {
    fn wake(&mut self, world: &mut View<'_>) {
        world.wake_in(150);
        let places = world.promises.places_for_data(false);
        if self.asking.is_some() || places.is_empty() {
            return;
        }
        let look = self.look.take().filter(|place| world.promises.is_there(&place.topic));
        let only_looks = look.is_some() || world.winding_down || world.random.chance(40);
        let place = look.unwrap_or_else(|| world.random.pick(&places).clone());
        let (request, asked) = if only_looks {
            (fetch(&self.group, &place), Asked::Fetch)
        } else {
            self.next_offset += 1;
            // From now on it may be there, whatever is answered.
            world.promises.committed(&self.group, &place).push(self.next_offset);
            (commit(&self.group, ("", -1), &place, self.next_offset), Asked::Commit(self.next_offset))
        };
        let number = world.ask(Request::Group { group: self.group.clone(), request });
        self.asking = Some((number, place, asked));
    }

    fn hear(&mut self, number: u64, response: Response, world: &mut View<'_>) {
        let Some((_, place, asked)) = self.asking.take_if(|(asking, ..)| *asking == number) else { return };
        if matches!(response, Response::Disconnected) {
            self.look.clone_from(&self.last);
        }
        if !world.promises.is_there(&place.topic) {
            return;
        }
        match (asked, response) {
            (Asked::Commit(offset), Response::Group(GroupResponse::OffsetCommit(response)))
                if response.topics[0].partitions[0].error_code == 0 =>
            {
                *world.promises.committed(&self.group, &place) = vec![offset];
                self.last = Some(place);
            }
            (Asked::Fetch, Response::Group(GroupResponse::OffsetFetch(response))) => {
                fetched(&self.group, &place, &response, world);
            }
            _ => {}
        }
    }
}
