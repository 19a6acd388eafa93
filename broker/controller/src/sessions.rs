//! When each broker was last heard of, and whose session is over (`BrokerHeartbeatManager`).
//!
//! The active controller keeps it; the decisions about brokers ask and touch it. It decides nothing itself.

use std::collections::BTreeMap;

use gregor_metadata::{BrokerRegistration, Image};
use gregor_types::{BrokerEpoch, BrokerId, Offset};

use crate::Nanos;

/// When each broker was last heard of by this controller. Not replicated: a new leader gives every broker a whole session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(BTreeMap<BrokerId, Session>);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    /// The incarnation that was heard of, if this controller heard of one.
    pub(crate) heard_of: Option<BrokerEpoch>,
    pub(crate) expires: Nanos,
    /// How far the broker has read the metadata log.
    pub(crate) metadata_offset: Offset,
    /// Up to where the others must have read before this broker may go.
    pub(crate) shutdown_offset: Option<Offset>,
}

impl Sessions {
    pub(crate) fn new(image: &Image, expires: Nanos) -> Self {
        let session = Session { heard_of: None, expires, metadata_offset: Offset::NONE, shutdown_offset: None };
        Self(image.cluster().brokers().map(|broker| (broker.id, session)).collect())
    }

    pub(crate) fn get(&self, id: BrokerId) -> Option<&Session> {
        self.0.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: BrokerId) -> Option<&mut Session> {
        self.0.get_mut(&id)
    }

    /// A broker was heard of.
    pub(crate) fn touch(&mut self, id: BrokerId, epoch: BrokerEpoch, metadata_offset: Offset, expires: Nanos) {
        let before = self.0.get(&id).filter(|session| session.heard_of == Some(epoch));
        let shutdown_offset = before.and_then(|session| session.shutdown_offset);
        self.0.insert(id, Session { heard_of: Some(epoch), expires, metadata_offset, shutdown_offset });
    }

    pub(crate) fn remove(&mut self, id: BrokerId) {
        self.0.remove(&id);
    }

    /// Whether this incarnation may be running within its session: it was heard of, or a predecessor of this controller had it unfenced, which
    /// nobody has told otherwise since (`BrokerHeartbeatManager.hasValidSession`). `local` is the node that decides: no other process is its
    /// broker than the one that asks, so what nobody has heard of there has ended.
    pub(crate) fn is_alive(&self, broker: &BrokerRegistration, local: BrokerId, now: Nanos) -> bool {
        let Some(session) = self.0.get(&broker.id) else { return false };
        let runs = match session.heard_of {
            Some(epoch) => epoch == broker.epoch,
            None => !broker.fenced && broker.id != local,
        };
        runs && now < session.expires
    }

    /// How far the slowest active broker has read the metadata log.
    pub(crate) fn lowest_active_offset(&self, image: &Image) -> Option<Offset> {
        let active = self.0.iter().filter(|(id, _)| image.cluster().is_active(**id));
        active.map(|(_, session)| session.metadata_offset).min()
    }

    pub(crate) fn first_expired(&self, image: &Image, now: Nanos) -> Option<BrokerId> {
        let expired = self.unfenced(image).filter(|(_, session)| session.expires <= now);
        expired.min_by_key(|(_, session)| session.expires).map(|(id, _)| id)
    }

    pub(crate) fn next_expiry(&self, image: &Image) -> Option<Nanos> {
        self.unfenced(image).map(|(_, session)| session.expires).min()
    }

    fn unfenced(&self, image: &Image) -> impl Iterator<Item = (BrokerId, Session)> {
        self.0.iter().filter(|(id, _)| image.cluster().is_unfenced(**id)).map(|(id, session)| (*id, *session))
    }
}
