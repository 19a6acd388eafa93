//! A member of a group of the classic protocol: joins, is given partitions, commits offsets for them, says that it lives, and leaves.

use bytes::Bytes;
use gregor_coordinators::group::{ClientInfo, GroupRequest, GroupResponse};
use gregor_messages::{
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest,
    join_group_request::JoinGroupRequestProtocol, leave_group_request::MemberIdentity,
    sync_group_request::SyncGroupRequestAssignment,
};
use gregor_types::ErrorCode;

use super::{
    Client, View,
    committer::{commit, fetch, fetched},
};
use crate::network::{Place, Request, Response};

const GROUP: &str = "members";
const SESSION_TIMEOUT_MS: i32 = 6_000;
const REBALANCE_TIMEOUT_MS: i32 = 2_000;
const JOIN_VERSION: i16 = 9;
const LEAVE_VERSION: i16 = 5;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Member {
    /// What the coordinator calls it; empty where it is to give a name.
    id: String,
    state: State,
    asking: Option<(u64, Asked)>,
    commits: i64,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Outside,
    /// It has joined a generation, and knows the others if it leads.
    Joined { generation: i32, members: Vec<String> },
    /// It has its partitions.
    Assigned { generation: i32, places: Vec<Place> },
}

#[derive(Debug)]
enum Asked {
    Join,
    Sync { generation: i32 },
    Heartbeat,
    Commit(Place, i64),
    Fetch(Place),
    Leave,
}

impl Member {
    fn next(&mut self, world: &mut View<'_>) -> Option<(GroupRequest, Asked)> {
        match &self.state {
            State::Outside if world.winding_down => None,
            State::Outside => Some((self.join(), Asked::Join)),
            State::Joined { generation, members } => {
                let request = self.sync(*generation, members, &world.promises.places_for_data(false));
                Some((request, Asked::Sync { generation: *generation }))
            }
            State::Assigned { generation, places } => {
                let there: Vec<_> = places.iter().filter(|place| world.promises.is_there(&place.topic)).collect();
                if there.is_empty() || world.random.chance(50) {
                    return Some(if world.random.chance(6) {
                        (self.leave(), Asked::Leave)
                    } else {
                        (self.heartbeat(*generation), Asked::Heartbeat)
                    });
                }
                let place = (*world.random.pick(&there)).clone();
                if world.winding_down || world.random.chance(40) {
                    return Some((fetch(GROUP, &place), Asked::Fetch(place)));
                }
                self.commits += 1;
                // No two members commit the same offset.
                let offset = self.commits * 100 + world.me as i64;
                world.promises.committed(GROUP, &place).push(offset);
                let request = commit(GROUP, (&self.id, *generation), &place, offset);
                Some((request, Asked::Commit(place, offset)))
            }
        }
    }

    fn join(&self) -> GroupRequest {
        let protocol = JoinGroupRequestProtocol { name: "by turns".into(), ..Default::default() };
        let request = JoinGroupRequest {
            group_id: GROUP.into(),
            session_timeout_ms: SESSION_TIMEOUT_MS,
            rebalance_timeout_ms: REBALANCE_TIMEOUT_MS,
            member_id: self.id.as_str().into(),
            protocol_type: "consumer".into(),
            protocols: vec![protocol],
            ..Default::default()
        };
        GroupRequest::Join { request, version: JOIN_VERSION, client: ClientInfo::default() }
    }

    /// Whoever leads gives out the partitions by turns; the others only ask.
    fn sync(&self, generation: i32, members: &[String], places: &[Place]) -> GroupRequest {
        let assignment = |(turn, member): (usize, &String)| {
            let own = places.iter().skip(turn).step_by(members.len());
            let text = own.map(ToString::to_string).collect::<Vec<_>>().join(" ");
            SyncGroupRequestAssignment {
                member_id: member.as_str().into(),
                assignment: Bytes::from(text),
                ..Default::default()
            }
        };
        GroupRequest::Sync(SyncGroupRequest {
            group_id: GROUP.into(),
            generation_id: generation,
            member_id: self.id.as_str().into(),
            assignments: members.iter().enumerate().map(assignment).collect(),
            ..Default::default()
        })
    }

    fn heartbeat(&self, generation: i32) -> GroupRequest {
        GroupRequest::Heartbeat(HeartbeatRequest {
            group_id: GROUP.into(),
            generation_id: generation,
            member_id: self.id.as_str().into(),
            ..Default::default()
        })
    }

    fn leave(&self) -> GroupRequest {
        let member = MemberIdentity { member_id: self.id.as_str().into(), ..Default::default() };
        let request = LeaveGroupRequest { group_id: GROUP.into(), members: vec![member], ..Default::default() };
        GroupRequest::Leave { request, version: LEAVE_VERSION }
    }

    fn joined(&mut self, response: &JoinGroupResponse) {
        match ErrorCode::from(response.error_code) {
            ErrorCode::None => {
                self.id = response.member_id.to_string();
                let members = response.members.iter().map(|member| member.member_id.to_string()).collect();
                self.state = State::Joined { generation: response.generation_id, members };
            }
            ErrorCode::MemberIdRequired => self.id = response.member_id.to_string(),
            error => self.refused(error),
        }
    }

    fn refused(&mut self, error: ErrorCode) {
        match error {
            ErrorCode::RebalanceInProgress => self.state = State::Outside,
            ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration | ErrorCode::FencedInstanceId => {
                (self.id, self.state) = (String::new(), State::Outside);
            }
            // The same again, a little later.
            _ => {}
        }
    }
}

/// The partitions that an assignment names.
fn places_of(assignment: &[u8]) -> Vec<Place> {
    let text = String::from_utf8_lossy(assignment);
    let place = |name: &str| {
        let (topic, partition) = name.rsplit_once('-')?;
        Some(Place { topic: topic.to_owned(), partition: partition.parse().ok()? })
    };
    text.split(' ').filter_map(place).collect()
}

impl Client for Member {
    fn wake(&mut self, world: &mut View<'_>) {
        world.wake_in(200);
        if self.asking.is_some() {
            return;
        }
        if let Some((request, asked)) = self.next(world) {
            let number = world.ask(Request::Group { group: GROUP.to_owned(), request });
            self.asking = Some((number, asked));
        }
    }

    fn hear(&mut self, number: u64, response: Response, world: &mut View<'_>) {
        let Some((_, asked)) = self.asking.take_if(|(asking, _)| *asking == number) else { return };
        let Response::Group(response) = response else { return };
        match (asked, response) {
            (Asked::Join, GroupResponse::Join(response)) => self.joined(&response),
            (Asked::Sync { generation }, GroupResponse::Sync(response)) if response.error_code == 0 => {
                let places = places_of(&response.assignment);
                world.promises.assigned(GROUP, generation, &self.id, &places);
                self.state = State::Assigned { generation, places };
            }
            (Asked::Sync { .. }, GroupResponse::Sync(response)) => self.refused(response.error_code.into()),
            (Asked::Heartbeat, GroupResponse::Heartbeat(response)) => self.refused(response.error_code.into()),
            (Asked::Leave, GroupResponse::Leave(_)) => (self.id, self.state) = (String::new(), State::Outside),
            (Asked::Commit(place, offset), GroupResponse::OffsetCommit(response)) => {
                match ErrorCode::from(response.topics[0].partitions[0].error_code) {
                    ErrorCode::None if world.promises.is_there(&place.topic) => {
                        *world.promises.committed(GROUP, &place) = vec![offset];
                    }
                    error => self.refused(error),
                }
            }
            (Asked::Fetch(place), GroupResponse::OffsetFetch(response)) if world.promises.is_there(&place.topic) => {
                fetched(GROUP, &place, &response, world);
            }
            _ => {}
        }
    }
}
