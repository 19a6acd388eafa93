//! A metadata quorum of three nodes as a value: the production's state machines, their logs and disks, and what is under way between them.
//!
//! [`World::happen`] carries one event out, whole, and what the machines asked for by it. What is left to chance is which event comes next,
//! and each is bounded by how often it may come. Time is each node's own: it stands still but where a node's patience ends, which may be at
//! any moment, so every order of timeouts is tried.

mod checks;
mod log;
mod member;
pub mod model;
mod network;
mod voters;

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use gregor_raft::{
    Effect, Effects, Input, Nanos, Now, Origin, Outgoing, Reply, Request, RequestId, Rng, Role, RoleChange, Token,
};
use gregor_types::{BrokerId, Offset, Timestamp};

use checks::Past;
use member::{Member, Write, add_voter, index, others, quorum, remove_voter};
use network::{Content, FETCH_VERSION, Message, Route};

/// All nodes that there are.
pub const NODES: [BrokerId; 3] = [BrokerId(1), BrokerId(2), BrokerId(3)];

/// How long a node waits for anything at most.
const PATIENCE: Nanos = 1_000;
/// After so long everything is due that a node waits for.
const LONG: Nanos = 2_000;
/// The pause after a question that failed: over after a [`Event::Retry`].
const PAUSE: Nanos = 1;
/// An administrator's question, whose answer nobody looks at.
const ADMIN: RequestId = RequestId(0);

/// How often what goes wrong may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// A node's patience ends.
    pub timeouts: u8,
    /// A node loses its power, and starts again.
    pub crashes: u8,
    /// A node gives up a question that is still under way.
    pub losses: u8,
    /// A node's pause after a failure ends.
    pub retries: u8,
    /// A leader appends a record.
    pub appends: u8,
    /// An administrator asks a leader for another set of voters.
    pub changes: u8,
}

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A message arrives.
    Arrive(Route),
    /// The oldest write of a node is on its disk.
    Written(BrokerId),
    /// A node's patience ends. If it asks how an election would go, these hear it, and answer.
    Timeout(BrokerId, Reach),
    /// A pause of a node ends.
    Retry(BrokerId),
    /// A node gives its question up.
    GiveUp(Route),
    /// A leader appends a record.
    Append(BrokerId),
    /// An administrator asks a leader to make a node a voter.
    AddVoter { leader: BrokerId, node: BrokerId },
    /// An administrator asks a leader to make a node a voter no more.
    RemoveVoter { leader: BrokerId, node: BrokerId },
    /// A node loses its power, and starts again.
    Crash(BrokerId),
}

/// An event, and whether the node that it happens to loses its power before anything of it is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    pub event: Event,
    pub crashes: bool,
}

/// Who hears a node's question how an election would go. The question has no part in what is safe: it is asked and answered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Nobody,
    One(BrokerId),
    All,
}

/// See the module.
#[derive(Clone, PartialEq, Hash)]
pub struct World {
    members: [Arc<Member>; 3],
    network: BTreeMap<Route, Arc<Message>>,
    pub left: Budget,
    pub past: Past,
    /// How many of the nodes vote at first.
    first_voters: usize,
    /// Whether a write takes time, in which its node hears others; else it is done at once, unless the node loses its power first.
    slow_disks: bool,
}

/// Time is chosen by what happens, so there is nothing left to draw.
struct Lowest;

impl Rng for Lowest {
    fn next_u64(&mut self) -> u64 {
        0
    }
}

impl World {
    /// Nodes of which the first `first_voters` vote, that have just started and know nothing.
    pub fn new(first_voters: usize, slow_disks: bool) -> Self {
        let members = NODES.map(|id| Arc::new(Member::new(id, first_voters)));
        let mut world = Self {
            members,
            network: BTreeMap::new(),
            left: Budget::default(),
            past: Past::default(),
            first_voters,
            slow_disks,
        };
        for id in NODES {
            world.step(id, Input::Start);
        }
        world.settle(None);
        world.seal();
        world
    }

    /// The same, after node 1 was the first whose patience ended. As all are alike, nothing is lost by it.
    pub fn with_first_timeout(mut self, reach: Reach) -> Self {
        self.left.timeouts += 1;
        self.happen(Action { event: Event::Timeout(NODES[0], reach), crashes: false });
        self
    }

    /// The same, after all that is under way has arrived and is on the disks.
    pub fn settled(mut self) -> Self {
        loop {
            let writes = NODES.into_iter().find(|id| !self.at(*id).writes.is_empty()).map(Event::Written);
            let arrives = || self.network.keys().next().copied().map(Event::Arrive);
            let Some(event) = writes.or_else(arrives) else { return self };
            self.happen(Action { event, crashes: false });
        }
    }

    pub fn with_budget(self, left: Budget) -> Self {
        Self { left, ..self }
    }

    /// All that can happen next.
    pub fn actions(&self, actions: &mut Vec<Action>) {
        let mut events: Vec<Event> = self.network.keys().copied().map(Event::Arrive).collect();
        for id in NODES {
            let member = self.at(id);
            if !member.writes.is_empty() {
                events.push(Event::Written(id));
            }
            if self.left.timeouts > 0 {
                let asks = !matches!(member.quorum.role(), Role::Leader(_) | Role::Resigned(_));
                let reaches = if asks { 1..4 } else { 0..1 };
                let [one, other] = others(id);
                let all = [Reach::Nobody, Reach::One(one), Reach::One(other), Reach::All];
                events.extend(reaches.map(|reach| Event::Timeout(id, all[reach])));
            }
            if self.left.retries > 0 {
                events.push(Event::Retry(id));
            }
            if self.left.losses > 0 {
                events.extend(member.asked.iter().map(|(asked, number)| {
                    Event::GiveUp(Route { asker: id, asked: *asked, number: *number, is_answer: false })
                }));
            }
            if matches!(member.quorum.role(), Role::Leader(_)) {
                events.extend((self.left.appends > 0).then_some(Event::Append(id)));
                let voters = member.quorum.history().voters();
                let change = |node| match voters.voter(node) {
                    Some(_) => Event::RemoveVoter { leader: id, node },
                    None => Event::AddVoter { leader: id, node },
                };
                events.extend(NODES.into_iter().filter(|_| self.left.changes > 0).map(change));
            }
        }
        actions.extend(events.iter().map(|event| Action { event: *event, crashes: false }));
        if self.left.crashes > 0 {
            actions.extend(NODES.map(|id| Action { event: Event::Crash(id), crashes: false }));
            if !self.slow_disks {
                actions.extend(events.into_iter().map(|event| Action { event, crashes: true }));
            }
        }
    }

    pub fn happen(&mut self, action: Action) {
        let Action { event, crashes } = action;
        let spared = crashes.then_some(event.subject());
        match event {
            Event::Arrive(route) => self.arrive(route),
            Event::Written(id) => self.complete_write(id),
            Event::Timeout(id, reach) => {
                self.left.timeouts -= 1;
                self.time_out(id, reach);
            }
            Event::Retry(id) => {
                self.left.retries -= 1;
                self.pass(id, PAUSE);
            }
            Event::GiveUp(route) => {
                self.left.losses -= 1;
                self.give_up(route);
            }
            Event::Append(id) => {
                self.left.appends -= 1;
                self.append(id);
            }
            Event::AddVoter { leader, node } => {
                self.left.changes -= 1;
                self.step(leader, Input::Request { id: ADMIN, origin: Origin::here(1), request: add_voter(node) });
            }
            Event::RemoveVoter { leader, node } => {
                self.left.changes -= 1;
                self.step(leader, Input::Request { id: ADMIN, origin: Origin::here(0), request: remove_voter(node) });
            }
            Event::Crash(id) => {
                self.left.crashes -= 1;
                self.crash(id);
            }
        }
        self.settle(spared);
        if let Some(id) = spared {
            self.left.crashes -= 1;
            self.crash(id);
            self.settle(None);
        }
        self.seal();
    }

    fn at(&self, id: BrokerId) -> &Member {
        &self.members[index(id)]
    }

    fn change(&mut self, id: BrokerId) -> &mut Member {
        let member = Arc::make_mut(&mut self.members[index(id)]);
        member.digest = 0;
        member
    }

    /// Has everything happen that takes no time. `spared` is whose disk does nothing any more.
    fn settle(&mut self, spared: Option<BrokerId>) {
        loop {
            let instant = self.network.iter().find(|(_, message)| message.is_instant).map(|(route, _)| *route);
            if let Some(route) = instant {
                self.arrive(route);
                continue;
            }
            let writes = |id: &BrokerId| Some(*id) != spared && !self.at(*id).writes.is_empty();
            match NODES.into_iter().find(writes).filter(|_| !self.slow_disks) {
                Some(id) => self.complete_write(id),
                None => return,
            }
        }
    }

    fn seal(&mut self) {
        for member in &mut self.members {
            if member.digest == 0 {
                Arc::make_mut(member).seal();
            }
        }
    }

    fn pass(&mut self, id: BrokerId, nanos: Nanos) {
        self.change(id).clock += nanos;
        self.step(id, Input::Tick);
    }

    fn time_out(&mut self, id: BrokerId, reach: Reach) {
        for other in others(id) {
            if let Some(number) = self.at(id).asked.get(&other).copied() {
                self.give_up(Route { asker: id, asked: other, number, is_answer: false });
            }
        }
        self.pass(id, LONG);
        self.network.retain(|route, message| {
            let is_heard = reach == Reach::All || reach == Reach::One(route.asked);
            route.asker != id || !message.is_pre_vote() || is_heard
        });
    }

    fn append(&mut self, id: BrokerId) {
        let quorum = &self.at(id).quorum;
        let (epoch, base) = (quorum.epoch(), quorum.next_offset().expect("a leader appends"));
        let records = vec![Bytes::from(vec![id.value() as u8, self.left.appends])];
        self.step(id, Input::Append { epoch, base, records });
    }

    fn arrive(&mut self, route: Route) {
        let message = self.network.remove(&route).expect("it is under way");
        match &message.content {
            Content::Request(request) => {
                let (id, ballot) = (route.request_id(), message.ballot());
                self.change(route.asked).pending.insert(id, (route, ballot));
                let version = if matches!(request, Request::Fetch(_)) { FETCH_VERSION } else { 2 };
                self.step(route.asked, Input::Request { id, origin: Origin::here(version), request: request.clone() });
            }
            Content::Versions => self.answer(route, Message::versions),
            Content::Response(response) => {
                self.change(route.asker).asked.remove(&route.asked);
                self.step(route.asker, Input::Response { from: route.asked, response: Some(response.clone()) });
            }
        }
    }

    /// Sends an answer, if anybody still waits for it.
    fn answer(&mut self, route: Route, message: impl FnOnce() -> Message) {
        if self.is_awaited(route) {
            self.network.insert(Route { is_answer: true, ..route }, Arc::new(message()));
        }
    }

    fn is_awaited(&self, route: Route) -> bool {
        self.at(route.asker).asked.get(&route.asked) == Some(&route.number)
    }

    /// Whether a question has not arrived, or is not answered.
    fn is_under_way(&self, route: Route) -> bool {
        let question = Route { is_answer: false, ..route };
        self.network.contains_key(&question) || self.at(route.asked).pending.contains_key(&route.request_id())
    }

    fn give_up(&mut self, route: Route) {
        let goes_on = self.is_under_way(route);
        let member = self.change(route.asker);
        member.asked.remove(&route.asked);
        member.numbers[index(route.asked)] += u8::from(goes_on);
        self.network.remove(&Route { is_answer: true, ..route });
        self.step(route.asker, Input::Response { from: route.asked, response: None });
    }

    /// The node loses what is not on its disk, and starts again. Its connections end: whoever waits for an answer that it has not sent
    /// hears of that.
    fn crash(&mut self, id: BrokerId) {
        let lost = self.network.keys().filter(|route| !route.is_answer && route.asked == id);
        let waiting: Vec<Route> = lost.copied().chain(self.at(id).pending.values().map(|(route, _)| *route)).collect();
        self.network.retain(|route, _| route.receiver() != id);
        let mut member = Member { digest: 0, ..self.at(id).clone() };
        for (asked, number) in std::mem::take(&mut member.asked) {
            let goes_on = self.is_under_way(Route { asker: id, asked, number, is_answer: false });
            member.numbers[index(asked)] += u8::from(goes_on);
        }
        member.pending.clear();
        member.writes.clear();
        member.held.clear();
        member.log.crash();
        member.quorum = quorum(id, self.first_voters, member.election, &member.log);
        self.members[index(id)] = Arc::new(member);
        self.step(id, Input::Start);
        for route in waiting {
            if self.is_awaited(route) && !self.network.contains_key(&Route { is_answer: true, ..route }) {
                self.give_up(route);
            }
        }
    }

    fn complete_write(&mut self, id: BrokerId) {
        let member = self.change(id);
        let (token, write) = member.writes.pop_front().expect("something is written");
        match write {
            Write::Election(state) => member.election = state,
            Write::Log(end) => member.log.durable = member.log.durable.max(end),
        }
        let (ready, held) = member.held.drain(..).partition(|(waited_for, ..)| *waited_for == token);
        member.held = held;
        let ready: Vec<(Token, RequestId, Reply)> = ready;
        for (_, to, reply) in ready {
            self.reply(id, to, reply);
        }
        self.step(id, Input::Durable(token));
    }

    fn step(&mut self, id: BrokerId, input: Input) {
        let mut effects = Effects::default();
        let member = self.change(id);
        let now = Now { monotonic: member.clock, wall: Timestamp(0) };
        let before = member.quorum.high_watermark();
        member.quorum.step(input, &member.log, now, &mut Lowest, &mut effects);
        let went_back = member.quorum.high_watermark() < before;
        self.past.broken.commit_went_back |= went_back;
        while let Some(effect) = effects.pop() {
            self.carry_out(id, effect);
        }
    }

    fn carry_out(&mut self, id: BrokerId, effect: Effect) {
        let member = self.change(id);
        match effect {
            Effect::Persist { token, state } => member.writes.push_back((token, Write::Election(state))),
            Effect::Flush { token, .. } => {
                let end = member.log.end_offset();
                member.writes.push_back((token, Write::Log(end)));
            }
            Effect::Append { token, base, epoch, timestamp, batch } => {
                member.log.append(base, &batch.encode(base, epoch, timestamp));
                self.step(id, Input::Appended(token));
            }
            Effect::AppendFetched { base, records } => member.log.append(base, &records),
            Effect::Truncate { end } => self.truncate(id, end),
            Effect::Reply { after, to, reply, read } => {
                let reply = match (reply, read) {
                    (Reply::Fetch(mut response), Some(read)) => {
                        let records = member.log.read(read.from, read.max_bytes);
                        response.responses[0].partitions[0].records = Some(records);
                        Reply::Fetch(response)
                    }
                    (reply, _) => reply,
                };
                match after.filter(|token| member.writes.iter().any(|(write, _)| write == token)) {
                    Some(token) => member.held.push((token, to, reply)),
                    None => self.reply(id, to, reply),
                }
            }
            Effect::Send { to, request } => self.send(id, to, request),
            Effect::HighWatermark(end) => self.commit(id, end),
            Effect::Role(RoleChange::Leader { epoch, .. }) => self.crown(id, epoch),
            Effect::Role(RoleChange::NotLeader { .. }) | Effect::Timer { .. } => {}
            Effect::SnapshotPiece { .. }
            | Effect::CompleteSnapshot { .. }
            | Effect::InstallSnapshot { .. }
            | Effect::Upgraded { .. }
            | Effect::Refused { .. } => unreachable!("nothing in a model asks for it"),
        }
    }

    /// A sync under way says nothing of what was cut off since.
    fn truncate(&mut self, id: BrokerId, end: Offset) {
        self.note_cut(id, end);
        let member = self.change(id);
        member.log.truncate(end);
        for (_, write) in &mut member.writes {
            if let Write::Log(synced) = write {
                *synced = end.value().min(*synced);
            }
        }
    }

    fn send(&mut self, asker: BrokerId, asked: BrokerId, outgoing: Outgoing) {
        let member = self.change(asker);
        let number = member.numbers[index(asked)];
        assert!(member.asked.insert(asked, number).is_none(), "one question at a time to each node");
        let message = Message::question(outgoing);
        if let Some(ballot) = message.ballot() {
            // It votes for itself.
            self.past.vote(asker, ballot);
        }
        let route = Route { asker, asked, number, is_answer: false };
        assert!(self.network.insert(route, Arc::new(message)).is_none(), "a question has a name of its own");
    }

    fn reply(&mut self, from: BrokerId, to: RequestId, reply: Reply) {
        // An administrator's question came from nowhere.
        let Some((route, ballot)) = self.change(from).pending.remove(&to) else { return };
        if let (Reply::Vote(response), Some(ballot)) = (&reply, ballot)
            && response.topics[0].partitions[0].vote_granted
        {
            self.past.vote(from, ballot);
        }
        self.answer(route, || Message::answer(reply, ballot.is_some()));
    }
}

impl Event {
    /// The node that it happens to.
    fn subject(&self) -> BrokerId {
        match self {
            Self::Arrive(route) => route.receiver(),
            Self::GiveUp(route) => route.asker,
            Self::AddVoter { leader, .. } | Self::RemoveVoter { leader, .. } => *leader,
            Self::Written(id) | Self::Timeout(id, _) | Self::Retry(id) | Self::Append(id) | Self::Crash(id) => *id,
        }
    }
}

impl fmt::Debug for World {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter)?;
        for (id, member) in NODES.iter().zip(&self.members) {
            let Member { quorum, log, election, .. } = &**member;
            let batches: Vec<_> = log.batches.iter().map(|batch| (batch.base, batch.epoch, &batch.voters)).collect();
            writeln!(formatter, "{id}: {:?}, high watermark {:?}", quorum.role(), quorum.high_watermark())?;
            writeln!(formatter, "   log {batches:?} to {}, on the disk {}", log.end_offset(), log.durable)?;
            writeln!(formatter, "   its disk remembers {election:?}; being written {:?}", member.writes)?;
        }
        writeln!(formatter, "under way: {:?}", self.network.keys())?;
        write!(formatter, "{:?}, {:?}", self.past, self.left)
    }
}
