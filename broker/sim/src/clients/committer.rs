//! Somebody who commits offsets for a group, one after the other, and asks now and then what is committed.

use gregor_coordinators::group::{GroupRequest, GroupResponse};
use gregor_messages::{
    OffsetCommitRequest,
    offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
};

use super::{Client, View};
use crate::{
    network::{Place, Request, Response},
    node::OFFSETS_TOPIC,
};

/// See the module's documentation.
#[derive(Debug)]
pub struct Committer {
    group: String,
    next_offset: i64,
    asking: Option<(u64, Place, Asked)>,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    Commit(i64),
    Fetch,
}

impl Committer {
    /// One for this group.
    pub fn new(group: impl Into<String>) -> Self {
        Self { group: group.into(), next_offset: 0, asking: None }
    }

    fn fetch(&self, place: &Place) -> GroupRequest {
        let topic = OffsetFetchRequestTopics {
            name: place.topic.as_str().into(),
            partition_indexes: vec![place.partition],
            ..Default::default()
        };
        let request = OffsetFetchRequestGroup {
            group_id: self.group.as_str().into(),
            member_epoch: -1,
            topics: Some(vec![topic]),
            ..Default::default()
        };
        GroupRequest::OffsetFetch { request, require_stable: false }
    }

    fn commit(&self, place: &Place, offset: i64) -> GroupRequest {
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
            group_id: self.group.as_str().into(),
            generation_id_or_member_epoch: -1,
            retention_time_ms: -1,
            topics: vec![topic],
            ..Default::default()
        })
    }
}

impl Client for Committer {
    fn wake(&mut self, world: &mut View<'_>) {
        world.wake_in(150);
        let places = world.promises.places_for_data(false);
        if self.asking.is_some() || places.is_empty() {
            return;
        }
        let place = world.random.pick(&places).clone();
        let (request, asked) = if world.winding_down || world.random.chance(40) {
            (self.fetch(&place), Asked::Fetch)
        } else {
            self.next_offset += 1;
            // From now on it may be there, whatever is answered.
            world.promises.committed(&self.group, &place).push(self.next_offset);
            (self.commit(&place, self.next_offset), Asked::Commit(self.next_offset))
        };
        let number = world.ask(Request::Group { group: self.group.clone(), request });
        self.asking = Some((number, place, asked));
    }

    fn hear(&mut self, number: u64, response: Response, world: &mut View<'_>) {
        let Some((_, place, asked)) = self.asking.take_if(|(asking, ..)| *asking == number) else { return };
        if !world.promises.is_there(&place.topic) {
            return;
        }
        let may_be_lost = world.promises.power_losses > 0 && !world.promises.is_synced(OFFSETS_TOPIC);
        let committed = world.promises.committed(&self.group, &place);
        match (asked, response) {
            (Asked::Commit(offset), Response::Group(GroupResponse::OffsetCommit(response)))
                if response.topics[0].partitions[0].error_code == 0 =>
            {
                *committed = vec![offset];
            }
            (Asked::Fetch, Response::Group(GroupResponse::OffsetFetch(response))) if response.error_code == 0 => {
                let found = response.topics.first().and_then(|topic| topic.partitions.first());
                let Some(found) = found.filter(|found| found.error_code == 0) else { return };
                let found = found.committed_offset;
                // Which of several it was is known now.
                let expected = std::mem::replace(committed, vec![found]);
                if !expected.contains(&found) && !may_be_lost {
                    let group = &self.group;
                    let what = format!("{group} has {found} for {place}, and committed one of {expected:?}");
                    world.promises.violated(what);
                }
            }
            _ => {}
        }
    }
}
