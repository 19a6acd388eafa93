//! A partition with three replicas as a value: the production's controller, leader and followers, what each broker has read of the metadata,
//! and what is under way between them.
//!
//! [`World::happen`] carries one event out. What is left to chance is which event comes next: who has read how much of the metadata, which
//! question arrives or is answered when, whose session ends, whose process dies.

mod broker;
mod checks;
mod desk;
mod log;
pub mod model;

use std::{
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use gregor_replication::{FetchPosition, IsrProposal};
use gregor_types::{BrokerEpoch, BrokerId};

use broker::{Broker, Cut, Fetched};
use checks::Past;
use desk::{Desk, Said, View};

/// All brokers; each has a replica, and the first is the preferred leader.
pub const BROKERS: [BrokerId; 3] = [BrokerId(1), BrokerId(2), BrokerId(3)];

/// How often something may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// A producer sends a record to a leader.
    pub records: u8,
    /// A leader finds that followers have been behind for too long.
    pub lags: u8,
    /// A broker's session ends.
    pub fences: u8,
    /// A process dies.
    pub deaths: u8,
    /// A machine loses its power, and its disk all that it had of the partition.
    pub losses: u8,
    /// A leader gets no answer of the controller, which may have done what it asked for.
    pub silences: u8,
    /// A user asks for the preferred leader.
    pub preferences: u8,
}

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Produce(BrokerId),
    /// A leader answers a fetch.
    Serve(FetchKey),
    /// A follower takes the answer.
    Take(FetchKey),
    Lag(BrokerId),
    /// The controller decides about in-sync replicas that a leader wants.
    Decide(BrokerId, u8),
    /// The leader hears of it.
    Hear(BrokerId, u8),
    /// It does not.
    Silence(BrokerId, u8),
    /// A broker reads the next change of the metadata, or all that there are.
    Read(BrokerId),
    ReadAll(BrokerId),
    Fence(BrokerId),
    /// A fenced broker is heard of again.
    Heartbeat(BrokerId),
    Die(BrokerId),
    LosePower(BrokerId),
    /// A new process of a dead broker begins.
    Start(BrokerId),
    Prefer,
}

/// Names a fetch: who asks, in which of its lives, and whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchKey {
    pub follower: BrokerId,
    pub life: u8,
    pub leader: BrokerId,
}

/// A fetch that is under way, or its answer.
#[derive(Debug, Clone, PartialEq, Hash)]
struct Fetching {
    broker_epoch: BrokerEpoch,
    position: FetchPosition,
    answer: Option<Fetched>,
}

/// A proposal that is under way, or its answer.
#[derive(Debug, Clone, PartialEq, Hash)]
struct Proposing {
    broker_epoch: BrokerEpoch,
    proposal: IsrProposal,
    answer: Option<Said>,
}

/// See the module.
#[derive(Clone)]
pub struct World {
    desk: Arc<Desk>,
    /// The metadata: what some process has still to read, and the newest.
    views: Vec<Arc<View>>,
    brokers: [Arc<Broker>; 3],
    fetches: BTreeMap<FetchKey, Arc<Fetching>>,
    proposals: BTreeMap<(BrokerId, u8), Arc<Proposing>>,
    pub left: Budget,
    pub past: Past,
}

impl World {
    /// All brokers run, the first leads, and the log is empty.
    pub fn new(keeps_eligible: bool, left: Budget) -> Self {
        let desk = Desk::new(keeps_eligible);
        let view = Arc::new(desk.view());
        let brokers = BROKERS.map(|id| {
            let epoch = view.registration(id).expect("it is registered").epoch;
            let mut broker = Broker::new(id);
            broker.start(epoch, 0, &view);
            Arc::new(broker)
        });
        let (fetches, proposals) = (BTreeMap::new(), BTreeMap::new());
        let desk = Arc::new(desk);
        let mut world = Self { desk, views: vec![view], brokers, fetches, proposals, left, past: Past::default() };
        world.settle();
        world
    }

    /// The same, after all brokers have a record, and know it to be committed.
    pub fn with_record(mut self) -> Self {
        self.left.records += 1;
        self.happen(Event::Produce(BROKERS[0]));
        // One round brings the record, one that it is there, one that it is committed.
        for _ in 0..3 {
            for key in self.fetches.keys().copied().collect::<Vec<_>>() {
                self.happen(Event::Serve(key));
                self.happen(Event::Take(key));
            }
        }
        self
    }

    /// The same, after the third broker fell out of sync, and lacks a record that the two others have and that is committed.
    pub fn with_laggard(mut self) -> Self {
        self.left.records += 1;
        self.left.lags += 1;
        self.happen(Event::Produce(BROKERS[0]));
        for _ in 0..2 {
            for key in self.fetches.keys().copied().filter(|key| key.follower == BROKERS[1]).collect::<Vec<_>>() {
                self.happen(Event::Serve(key));
                self.happen(Event::Take(key));
            }
        }
        self.happen(Event::Lag(BROKERS[0]));
        for (id, life) in self.proposals.keys().copied().collect::<Vec<_>>() {
            self.happen(Event::Decide(id, life));
            self.happen(Event::Hear(id, life));
        }
        for id in BROKERS {
            self.happen(Event::ReadAll(id));
        }
        self
    }

    /// All that can happen next.
    pub fn events(&self, events: &mut Vec<Event>) {
        for (key, fetching) in &self.fetches {
            match &fetching.answer {
                Some(_) => events.push(Event::Take(*key)),
                None if self.at(key.leader).process.is_some() => events.push(Event::Serve(*key)),
                None => {}
            }
        }
        for ((id, life), proposing) in &self.proposals {
            match &proposing.answer {
                Some(_) => events.push(Event::Hear(*id, *life)),
                None => events.push(Event::Decide(*id, *life)),
            }
            if self.left.silences > 0 && self.at(*id).life == *life {
                events.push(Event::Silence(*id, *life));
            }
        }
        let newest = self.newest();
        for id in BROKERS {
            let broker = self.at(id);
            events.extend((self.left.fences > 0 && newest.is_active(id)).then_some(Event::Fence(id)));
            let Some(process) = &broker.process else {
                // While its predecessor's session goes on, it may not register.
                events.extend((!newest.is_active(id)).then_some(Event::Start(id)));
                continue;
            };
            let unread = self.views.len() - 1 - process.read;
            events.extend((unread > 0).then_some(Event::Read(id)));
            events.extend((unread > 1).then_some(Event::ReadAll(id)));
            events.extend((!newest.is_active(id)).then_some(Event::Heartbeat(id)));
            events.extend((self.left.deaths > 0).then_some(Event::Die(id)));
            events.extend((self.left.losses > 0).then_some(Event::LosePower(id)));
            if broker.leading().is_some() {
                events.extend((self.left.records > 0 && broker.takes_records()).then_some(Event::Produce(id)));
                events.extend((self.left.lags > 0).then_some(Event::Lag(id)));
            }
        }
        events.extend((self.left.preferences > 0).then_some(Event::Prefer));
    }

    pub fn happen(&mut self, event: Event) {
        match event {
            Event::Produce(id) => {
                let value = self.left.records;
                self.left.records -= 1;
                self.change(id).append(value);
            }
            Event::Serve(key) => self.serve(key),
            Event::Take(key) => self.take(key),
            Event::Lag(id) => {
                self.left.lags -= 1;
                self.change(id).look_for_laggards();
            }
            Event::Decide(id, life) => self.decide(id, life),
            Event::Hear(id, life) => {
                let proposing = self.proposals.remove(&(id, life)).expect("it is under way");
                let said = proposing.answer.as_ref().expect("it was decided");
                self.change(id).hear(&proposing.proposal, said);
            }
            Event::Silence(id, life) => {
                self.left.silences -= 1;
                let proposing = self.proposals.remove(&(id, life)).expect("it is under way");
                self.change(id).hear(&proposing.proposal, &Said::Nothing);
            }
            Event::Read(id) => self.read(id, self.process_read(id) + 1),
            Event::ReadAll(id) => self.read(id, self.views.len() - 1),
            Event::Fence(id) => {
                self.left.fences -= 1;
                self.ask(|desk| desk.fence(id));
            }
            Event::Heartbeat(id) => self.ask(|desk| desk.heartbeat(id)),
            Event::Die(id) => {
                self.left.deaths -= 1;
                self.die(id);
            }
            Event::LosePower(id) => {
                self.left.losses -= 1;
                self.die(id);
                let broker = self.change(id);
                broker.log = log::Log::default();
                broker.has_lost = true;
            }
            Event::Start(id) => {
                let life = self.at(id).life;
                let epoch = self.ask(|desk| desk.register(id, life));
                let (read, view) = (self.views.len() - 1, Arc::clone(self.newest()));
                self.change(id).start(epoch, read, &view);
            }
            Event::Prefer => {
                self.left.preferences -= 1;
                self.ask(Desk::prefer);
            }
        }
        self.settle();
    }

    fn at(&self, id: BrokerId) -> &Broker {
        &self.brokers[index(id)]
    }

    fn change(&mut self, id: BrokerId) -> &mut Broker {
        Arc::make_mut(&mut self.brokers[index(id)])
    }

    fn newest(&self) -> &Arc<View> {
        self.views.last().expect("there is always one")
    }

    fn process_read(&self, id: BrokerId) -> usize {
        self.at(id).process.as_ref().expect("a process reads").read
    }

    /// Has the controller do something, which may change the metadata.
    fn ask<T>(&mut self, question: impl FnOnce(&mut Desk) -> T) -> T {
        let desk = Arc::make_mut(&mut self.desk);
        let answer = question(desk);
        let view = desk.view();
        if view != **self.newest() {
            self.note_change(&view);
            self.views.push(Arc::new(view));
        }
        answer
    }

    fn read(&mut self, id: BrokerId, to: usize) {
        let view = Arc::clone(&self.views[to]);
        self.change(id).read(to, &view);
    }

    fn serve(&mut self, key: FetchKey) {
        let mut fetching = Arc::unwrap_or_clone(self.fetches.remove(&key).expect("it is under way"));
        let fetched = self.change(key.leader).serve(key.follower, fetching.broker_epoch, &fetching.position);
        let follower = self.at(key.follower);
        if follower.process.is_some() && follower.life == key.life {
            fetching.answer = Some(fetched);
            self.fetches.insert(key, Arc::new(fetching));
        }
    }

    fn take(&mut self, key: FetchKey) {
        let fetching = self.fetches.remove(&key).expect("it is under way");
        let fetched = fetching.answer.as_ref().expect("it was answered");
        let cut = self.change(key.follower).take(&fetching.position, fetched);
        self.past.seen.cut |= cut != Cut::Nothing;
        self.past.broken.committed_cut |= cut == Cut::Committed;
    }

    fn decide(&mut self, id: BrokerId, life: u8) {
        let mut proposing = Arc::unwrap_or_clone(self.proposals.remove(&(id, life)).expect("it is under way"));
        let said = self.ask(|desk| desk.alter(id, proposing.broker_epoch, &proposing.proposal));
        let broker = self.at(id);
        if broker.process.is_some() && broker.life == life {
            proposing.answer = Some(said);
            self.proposals.insert((id, life), Arc::new(proposing));
        }
    }

    /// The process dies. What it asked may still arrive; who asked it hears that the connection is gone.
    fn die(&mut self, id: BrokerId) {
        let broker = self.change(id);
        broker.process = None;
        broker.life += 1;
        self.fetches.retain(|key, fetching| {
            let is_for_it = if fetching.answer.is_some() { key.follower == id } else { key.leader == id };
            !is_for_it
        });
        self.proposals.retain(|(from, _), proposing| *from != id || proposing.answer.is_none());
    }

    /// Has everything happen that waits for nobody: followers fetch, leaders ask the controller, producers are answered.
    fn settle(&mut self) {
        for id in BROKERS {
            let Some(process) = &self.at(id).process else { continue };
            let (broker_epoch, life) = (process.epoch, self.at(id).life);
            if process.proposal.is_some() && !self.proposals.contains_key(&(id, life)) {
                let process = self.change(id).process.as_mut().expect("it runs");
                let proposal = process.proposal.take().expect("it wants something");
                self.proposals.insert((id, life), Arc::new(Proposing { broker_epoch, proposal, answer: None }));
            }
            if let Some((leader, position)) = self.at(id).next_fetch() {
                let key = FetchKey { follower: id, life, leader };
                if self.at(leader).process.is_some() && !self.fetches.contains_key(&key) {
                    self.fetches.insert(key, Arc::new(Fetching { broker_epoch, position, answer: None }));
                }
            }
        }
        for id in BROKERS {
            if self.at(id).has_waiting() {
                let acknowledged = self.change(id).take_acknowledged();
                self.note_acknowledged(&acknowledged);
            }
            self.look_at(id);
        }
        self.forget_views();
    }

    /// What every process has read is of no use any more.
    fn forget_views(&mut self) {
        let read = self.brokers.iter().filter_map(|broker| broker.process.as_ref()).map(|process| process.read);
        let all = read.min().unwrap_or(self.views.len() - 1);
        if all == 0 {
            return;
        }
        self.views.drain(..all);
        for broker in &mut self.brokers {
            if let Some(process) = &mut Arc::make_mut(broker).process {
                process.read -= all;
            }
        }
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        // What the controller decides by is in the newest view.
        self.views == other.views
            && self.brokers == other.brokers
            && self.fetches == other.fetches
            && self.proposals == other.proposals
            && self.left == other.left
            && self.past == other.past
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.views.hash(hasher);
        self.brokers.hash(hasher);
        self.fetches.hash(hasher);
        self.proposals.hash(hasher);
        self.left.hash(hasher);
        self.past.hash(hasher);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "\nmetadata: {:?}", self.newest())?;
        for broker in &self.brokers {
            writeln!(formatter, "{broker:?}")?;
        }
        writeln!(formatter, "fetches: {:?}", self.fetches)?;
        writeln!(formatter, "proposals: {:?}", self.proposals)?;
        write!(formatter, "{:?}, {:?}", self.past, self.left)
    }
}

fn index(id: BrokerId) -> usize {
    id.value() as usize - 1
}
