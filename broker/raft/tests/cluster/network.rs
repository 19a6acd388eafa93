//! What happens in time: messages that arrive or do not, writes that end, timers.

use gregor_messages::{ApiVersionsResponse, api_versions_response::SupportedFeatureKey};
use gregor_raft::{Input, Origin, Outgoing, Quorum, Reply, Request, RequestId, Response};
use gregor_types::BrokerId;

use super::{Cluster, MS};

/// How long a driver waits for an answer.
const REQUEST_TIMEOUT: u64 = 2_000 * MS;
const FETCH_VERSION: i16 = 17;

#[derive(Debug)]
pub(super) enum Event {
    Arrives { from: BrokerId, to: BrokerId, number: u64, message: Message },
    WriteDone(BrokerId, u64),
    TimerDue(BrokerId, u64),
    NoAnswer { asker: BrokerId, number: u64 },
}

#[derive(Debug, Clone)]
pub(super) enum Message {
    Request(Request),
    /// Which versions the node runs.
    Versions,
    Response(Response),
}

impl Cluster {
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::WriteDone(id, life) if self.lives[&id] == life => self.complete_write(id),
            Event::TimerDue(id, life) if self.lives[&id] == life => {
                let member = self.members.get_mut(&id).expect("this life is on");
                if member.timer.is_some_and(|timer| timer <= self.now) {
                    member.timer = None;
                    self.step(id, Input::Tick);
                }
            }
            Event::NoAnswer { asker, number } => self.answer(asker, number, None),
            Event::Arrives { from, to, .. } if self.cut.contains(&(from, to)) => {}
            Event::Arrives { from, to, number, message: Message::Request(request) } => {
                if self.is_up(to) {
                    let life = self.lives[&to];
                    self.origins.insert(number, (from, life));
                    let version = match request {
                        Request::Fetch(_) => FETCH_VERSION,
                        Request::FetchSnapshot(_) => 1,
                        _ => 2,
                    };
                    self.step(to, Input::Request { id: RequestId(number), origin: Origin::here(version), request });
                }
            }
            Event::Arrives { to, number, message: Message::Response(response), .. } => {
                self.answer(to, number, Some(response));
            }
            Event::Arrives { from, to, number, message: Message::Versions } => {
                if self.is_up(to) {
                    let feature = SupportedFeatureKey {
                        name: "kraft.version".into(),
                        min_version: 0,
                        max_version: 1,
                        ..Default::default()
                    };
                    let answer = ApiVersionsResponse { supported_features: vec![feature], ..Default::default() };
                    self.transmit(to, from, number, Message::Response(Response::ApiVersions(answer)));
                }
            }
            Event::WriteDone(..) | Event::TimerDue(..) => {}
        }
    }

    fn answer(&mut self, asker: BrokerId, number: u64, response: Option<Response>) {
        let Some(member) = self.members.get_mut(&asker) else { return };
        if let Some(asked) = member.asked.remove(&number) {
            self.step(asker, Input::Response { from: asked, response });
        }
    }

    pub(super) fn send(&mut self, from: BrokerId, to: BrokerId, request: Outgoing) {
        self.next_number += 1;
        let number = self.next_number;
        let member = self.members.get_mut(&from).expect("only who is up sends");
        assert!(member.asked.values().all(|asked| *asked != to), "one request at a time to each node");
        member.asked.insert(number, to);
        let place = self.nodes.iter().zip(0..).find(|(_, index)| Quorum::bootstrap_node(*index) == to);
        let to = place.map_or(to, |(node, _)| *node);
        let request = match request {
            Outgoing::Vote(request) => Request::Vote(request),
            Outgoing::BeginQuorumEpoch(request) => Request::BeginQuorumEpoch(request),
            Outgoing::EndQuorumEpoch(request) => Request::EndQuorumEpoch(request),
            Outgoing::Fetch(request) => Request::Fetch(request),
            Outgoing::FetchSnapshot(request) => Request::FetchSnapshot(request),
            Outgoing::AddRaftVoter(request) => Request::AddRaftVoter(request),
            Outgoing::RemoveRaftVoter(request) => Request::RemoveRaftVoter(request),
            Outgoing::UpdateRaftVoter(request) => Request::UpdateRaftVoter(request),
            Outgoing::ApiVersions(endpoint) => {
                assert_eq!(i32::from(endpoint.port), to.value());
                self.transmit(from, to, number, Message::Versions);
                self.at(self.now + REQUEST_TIMEOUT, Event::NoAnswer { asker: from, number });
                return;
            }
        };
        self.transmit(from, to, number, Message::Request(request));
        // A node that is down refuses the connection at once.
        let patience = if self.is_up(to) { REQUEST_TIMEOUT } else { MS };
        self.at(self.now + patience, Event::NoAnswer { asker: from, number });
    }

    pub(super) fn reply(&mut self, from: BrokerId, to: RequestId, reply: Reply) {
        let Some((asker, life)) = self.origins.remove(&to.0) else {
            self.replies.push((to.0, reply));
            return;
        };
        if self.lives[&from] != life {
            return;
        }
        let response = match reply {
            Reply::Vote(response) => Response::Vote(response),
            Reply::BeginQuorumEpoch(response) => Response::BeginQuorumEpoch(response),
            Reply::EndQuorumEpoch(response) => Response::EndQuorumEpoch(response),
            Reply::Fetch(response) => Response::Fetch(response),
            Reply::FetchSnapshot(response, _) => Response::FetchSnapshot(response),
            Reply::AddRaftVoter(response) => Response::AddRaftVoter(response),
            Reply::RemoveRaftVoter(response) => Response::RemoveRaftVoter(response),
            Reply::UpdateRaftVoter(response) => Response::UpdateRaftVoter(response),
            Reply::DescribeQuorum(_) => panic!("nobody asks who leads"),
        };
        self.transmit(from, asker, to.0, Message::Response(response));
    }

    fn transmit(&mut self, from: BrokerId, to: BrokerId, number: u64, message: Message) {
        if self.dice.percent(self.loss_percent) {
            return;
        }
        let delay = self.dice.below(self.delay_ms.max(1) * MS);
        self.at(self.now + delay, Event::Arrives { from, to, number, message });
    }
}
