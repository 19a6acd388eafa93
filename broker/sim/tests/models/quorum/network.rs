//! What is under way between the nodes of a model: questions and answers, of which each arrives at any time or never.
//!
//! A connection carries one question at a time and gives each answer to the question that it is for, so nothing arrives twice. What takes
//! the place of duplicates are questions that are asked again while the one that was given up is still under way.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    mem::discriminant,
};

use gregor_messages::{ApiVersionsResponse, FetchRequest, api_versions_response::SupportedFeatureKey};
use gregor_raft::{Outgoing, Reply, Request, RequestId, Response};
use gregor_types::{BrokerId, LeaderEpoch};
use gregor_wire::Message as _;

/// The version of Fetch that is spoken; the newest, in which all that the quorum says can be written.
pub const FETCH_VERSION: i16 = 18;

/// Names a message: who asked whom, which of its questions it is, and whether this is the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    pub asker: BrokerId,
    pub asked: BrokerId,
    /// Counts the questions that were given up while they were under way, so that states stay finitely many.
    pub number: u8,
    pub is_answer: bool,
}

/// A message. Two with one digest say the same.
#[derive(Debug, Clone)]
pub struct Message {
    pub content: Content,
    /// Whether it arrives at once: it has no part in what is safe, only in who asks whom next.
    pub is_instant: bool,
    digest: u64,
}

#[derive(Debug, Clone)]
pub enum Content {
    Request(Request),
    /// Which versions the node runs.
    Versions,
    Response(Response),
}

/// A vote that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ballot {
    pub candidate: BrokerId,
    pub epoch: LeaderEpoch,
}

impl Route {
    /// The name of a request at the node that it came to.
    pub fn request_id(self) -> RequestId {
        RequestId(u64::from(self.asker.value().unsigned_abs()) * 1_000 + u64::from(self.number))
    }

    /// Where the message goes.
    pub fn receiver(self) -> BrokerId {
        if self.is_answer { self.asker } else { self.asked }
    }
}

impl Message {
    pub fn question(outgoing: Outgoing) -> Self {
        let content = match outgoing {
            Outgoing::Vote(request) => Content::Request(Request::Vote(request)),
            Outgoing::BeginQuorumEpoch(request) => Content::Request(Request::BeginQuorumEpoch(request)),
            Outgoing::EndQuorumEpoch(request) => Content::Request(Request::EndQuorumEpoch(request)),
            Outgoing::Fetch(request) => Content::Request(Request::Fetch(request)),
            Outgoing::UpdateRaftVoter(request) => Content::Request(Request::UpdateRaftVoter(request)),
            Outgoing::ApiVersions(_) => Content::Versions,
            Outgoing::FetchSnapshot(_) | Outgoing::AddRaftVoter(_) | Outgoing::RemoveRaftVoter(_) => {
                unreachable!("no snapshots, and no node that makes itself a voter")
            }
        };
        let mut message = Self::new(content, false);
        message.is_instant = matches!(message.content, Content::Versions) || message.is_pre_vote();
        message
    }

    /// `to_vote` says that the question was to vote, and not whether the node would.
    pub fn answer(reply: Reply, to_vote: bool) -> Self {
        let is_instant = match &reply {
            Reply::Vote(_) => !to_vote,
            Reply::BeginQuorumEpoch(_) | Reply::EndQuorumEpoch(_) => true,
            _ => false,
        };
        let response = match reply {
            Reply::Vote(response) => Response::Vote(response),
            Reply::BeginQuorumEpoch(response) => Response::BeginQuorumEpoch(response),
            Reply::EndQuorumEpoch(response) => Response::EndQuorumEpoch(response),
            Reply::Fetch(response) => Response::Fetch(response),
            Reply::UpdateRaftVoter(response) => Response::UpdateRaftVoter(response),
            Reply::FetchSnapshot(..)
            | Reply::DescribeQuorum(_)
            | Reply::AddRaftVoter(_)
            | Reply::RemoveRaftVoter(_) => unreachable!("no node asks for it"),
        };
        Self::new(Content::Response(response), is_instant)
    }

    /// The answer to [`Content::Versions`].
    pub fn versions() -> Self {
        let feature =
            SupportedFeatureKey { name: "kraft.version".into(), min_version: 0, max_version: 1, ..Default::default() };
        let answer = ApiVersionsResponse { supported_features: vec![feature], ..Default::default() };
        Self::new(Content::Response(Response::ApiVersions(answer)), true)
    }

    fn new(content: Content, is_instant: bool) -> Self {
        let digest = digest(&content);
        Self { content, is_instant, digest }
    }

    /// Whether it asks how an election would go.
    pub fn is_pre_vote(&self) -> bool {
        self.ballot_if(true).is_some()
    }

    /// The vote that it asks for.
    pub fn ballot(&self) -> Option<Ballot> {
        self.ballot_if(false)
    }

    fn ballot_if(&self, pre_vote: bool) -> Option<Ballot> {
        let Content::Request(Request::Vote(request)) = &self.content else { return None };
        let ballot = &request.topics[0].partitions[0];
        let epoch = LeaderEpoch(ballot.replica_epoch);
        (ballot.pre_vote == pre_vote).then_some(Ballot { candidate: BrokerId(ballot.replica_id), epoch })
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Hash for Message {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.digest.hash(hasher);
    }
}

fn digest(content: &Content) -> u64 {
    let mut hasher = DefaultHasher::new();
    let encoded = match content {
        Content::Versions => return 1,
        Content::Request(request) => {
            discriminant(request).hash(&mut hasher);
            match request {
                Request::Vote(request) => request.to_bytes(2),
                Request::BeginQuorumEpoch(request) => request.to_bytes(1),
                Request::EndQuorumEpoch(request) => request.to_bytes(1),
                // The replica stands in its state from version 15 on.
                Request::Fetch(request) => FetchRequest { replica_id: -1, ..request.clone() }.to_bytes(FETCH_VERSION),
                Request::UpdateRaftVoter(request) => request.to_bytes(0),
                _ => unreachable!("no node asks for it"),
            }
        }
        Content::Response(response) => {
            discriminant(response).hash(&mut hasher);
            match response {
                Response::Vote(response) => response.to_bytes(2),
                Response::BeginQuorumEpoch(response) => response.to_bytes(1),
                Response::EndQuorumEpoch(response) => response.to_bytes(1),
                Response::Fetch(response) => response.to_bytes(FETCH_VERSION),
                Response::UpdateRaftVoter(response) => response.to_bytes(0),
                Response::ApiVersions(response) => response.to_bytes(4),
                _ => unreachable!("no node asks for it"),
            }
        }
    };
    discriminant(content).hash(&mut hasher);
    encoded.expect("a message that can be written").hash(&mut hasher);
    hasher.finish()
}
