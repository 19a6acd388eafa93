//! The world of a cluster: time that jumps from event to event, machines, the network between them, clients, and what they are held to.
//!
//! `world/lives.rs` has how nodes start and end, `world/queue.rs` what happens next, `world/healing.rs` how all ends well. One thread, one
//! queue of events, one seed. Every event is a line of the trace; the same seed gives the same lines.

mod healing;
mod lives;
mod queue;

use std::collections::BTreeMap;

use gregor_raft::Nanos;
use gregor_server::control::InitialVoters;
use gregor_types::{BrokerId, LeaderEpoch};

use self::queue::{Call, Calls, Queue};
use super::{
    audit::{Machines, audit_in_sync, audit_metadata, audit_moved},
    clients::{Admin, Client, Deleter, Producer, Reader, View, VoterAdmin},
    durability::{audit_answer, audit_question},
    ledger::Ledger,
    letters::{Answer, CallId, Party, Purpose, Question, Return, partition_of},
    machine::{Identity, Machine, Shape},
    process::Process,
    progress::Progress,
    replicas::Sent,
    trouble::{Power, Relief},
    wire::Wire,
};
use crate::{
    Finding, Options, Random,
    clock::{MILLISECOND, SECOND},
    network::ClientId,
    node::Death,
    trace::Trace,
};

/// How long things go wrong, or longer where hardly anything could be written meanwhile.
const TROUBLE: Nanos = 120 * SECOND;
/// Before anything goes wrong.
const CALM: Nanos = 5 * SECOND;
/// How long a client waits for an answer.
const CLIENT_PATIENCE: Nanos = 6 * SECOND;
/// No message is longer on its way.
const ON_THE_WAY: Nanos = 4 * SECOND;
/// How soon who asks a node that is down, or goes down, hears of it.
const REFUSED: Nanos = 2 * MILLISECOND;
/// How often it is looked whether the cluster is at rest, and whether who counts as in sync is.
const LOOK_EVERY: Nanos = 200 * MILLISECOND;
const AUDIT_EVERY: Nanos = SECOND;
/// So many of these looks, and the files of the metadata log are read again.
const AUDITS_PER_READ: u64 = 10;
/// One question of so many is held to what is on the disk of who asks it: a look takes its time.
const QUESTIONS_PER_AUDIT: u64 = 8;
/// How long two nodes may each take themselves for the active controller: the one of the earlier epoch gives up once it has not heard of a majority for
/// one and a half times `controller.quorum.fetch.timeout.ms`.
const TWO_CONTROLLERS_MAX: Nanos = 4 * SECOND;

/// A world that came to its end, with everything as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The hash of all that happened.
    pub trace: u64,
    /// How many things happened.
    pub events: u64,
    /// How many records were acknowledged.
    pub acknowledged: u64,
    /// How long it lasted, in its own time.
    pub nanos: Nanos,
    /// How many nodes there were.
    pub nodes: u64,
    /// How long it took to come to rest once nothing went wrong any more.
    pub healing: Nanos,
    /// How often each thing has happened, of [`FAULTS`](super::FAULTS).
    pub counts: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
pub(super) enum Event {
    Start(BrokerId),
    Step(BrokerId),
    /// A question reaches a node, from a life of another or from a client.
    Question {
        back: Return,
        boot: u64,
        to: BrokerId,
        question: Question,
    },
    /// An answer reaches who asked.
    Answer {
        back: Return,
        from: BrokerId,
        answer: Answer,
    },
    /// Nobody answers any more.
    NoAnswer(CallId),
    Wake(ClientId),
    Trouble,
    Relief(Relief),
    Audit,
    Heal,
    Look,
}

/// The cluster is at rest.
#[derive(Debug, Clone, Copy)]
struct Rest {
    since: Nanos,
    /// Who leads the quorum.
    leader: BrokerId,
    epoch: LeaderEpoch,
    /// How many voters were taken out before.
    removals: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct World {
    now: Nanos,
    pub(super) random: Random,
    queue: Queue,
    pub(super) machines: Machines,
    pub(super) wire: Wire,
    calls: Calls,
    next_call: CallId,
    clients: Vec<Box<dyn Client>>,
    pub(super) ledger: Ledger,
    pub(super) trace: Trace,
    /// How machines lose power here.
    pub(super) power: Power,
    /// Whether who joins in-sync replicas next goes down at that.
    pub(super) strikes_who_joins: bool,
    healing_since: Option<Nanos>,
    rested: Option<Rest>,
    /// Whether all is over.
    is_over: bool,
    /// The active controller of the newest epoch that has one, and since when it is.
    controller: Option<(BrokerId, LeaderEpoch, Nanos)>,
    progress: Progress,
}

/// Runs one world from its seed to its end.
pub fn run(seed: u64, options: Options) -> Result<Outcome, Finding> {
    #[cfg(gregor_planted)]
    gregor_types::planted::plant(options.planted);
    #[cfg(not(gregor_planted))]
    assert!(options.planted.is_none(), "this build has no planted bugs: see CONTRIBUTING.md");
    let mut world = World::new(seed, options);
    world.live().map_err(|what| Finding { seed, what })?;
    Ok(Outcome {
        trace: world.trace.hash(),
        events: world.trace.lines(),
        acknowledged: world.ledger.acknowledged,
        nanos: world.now,
        nodes: world.machines.len() as u64,
        healing: world.rested.map_or(0, |rest| rest.since - world.healing_since.unwrap_or(rest.since)),
        counts: world.ledger.counts,
    })
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed);
        let shape = Shape::of(options.nodes, &mut random);
        let identities: Vec<Identity> = shape.ids().map(|id| Identity::new(id, &shape)).collect();
        let voters: Vec<_> = identities[..shape.voters].iter().map(Identity::voter).collect();
        let first_voters = identities[..shape.voters].iter().map(|identity| identity.id).collect();
        let mut machines = Machines::new();
        for (index, identity) in identities.into_iter().enumerate() {
            let is_first = index < shape.voters && !shape.is_static;
            let initial = if is_first { InitialVoters::Dynamic(voters.clone()) } else { InitialVoters::None };
            machines.insert(identity.id, Machine::new(identity, initial, random.fork()));
        }
        let mut clients: Vec<Box<dyn Client>> = vec![
            Box::new(Admin::default()),
            Box::new(Producer::default()),
            Box::new(Producer::default()),
            Box::new(Producer::default()),
            Box::new(Reader::default()),
            Box::new(Reader::default()),
            Box::new(Deleter::default()),
        ];
        if !shape.is_static || random.chance(50) {
            clients.push(Box::new(VoterAdmin::new(first_voters, shape.is_static)));
        }
        let power = Power::of(&shape, &mut random);
        let mut world = Self {
            now: 0,
            random,
            queue: Queue::default(),
            machines,
            wire: Wire::new(),
            calls: Calls::default(),
            next_call: 0,
            clients,
            ledger: Ledger::new(options.told),
            trace: Trace::new(options.told),
            power,
            strikes_who_joins: false,
            healing_since: None,
            rested: None,
            is_over: false,
            controller: None,
            progress: Progress::default(),
        };
        let Shape { roles, is_static, keeps_eligible, .. } = &shape;
        world.trace.note(format_args!(
            "nodes {roles:?}, static: {is_static}, eligible leader replicas: {keeps_eligible}, power: {power:?}"
        ));
        for id in shape.ids() {
            let pause = world.random.below(SECOND);
            world.after(pause, Event::Start(id));
        }
        for client in 0..world.clients.len() {
            world.after(2 * SECOND, Event::Wake(client));
        }
        world.after(CALM, Event::Trouble);
        world.after(AUDIT_EVERY, Event::Audit);
        world.after(CALM + TROUBLE, Event::Heal);
        world
    }

    fn live(&mut self) -> Result<(), String> {
        while let Some((at, event)) = self.queue.pop(&self.calls) {
            self.now = at;
            self.trace.at(at);
            self.happen(event);
            if let Some(violation) = self.ledger.violation() {
                let violation = violation.to_owned();
                self.trace.note(format_args!("BROKEN: {violation}"));
                return Err(violation);
            }
            if self.is_over {
                return Ok(());
            }
        }
        Err("nothing happens any more".to_owned())
    }

    pub(super) fn after(&mut self, nanos: Nanos, event: Event) {
        self.queue.push(self.now + nanos, event);
    }

    /// Somebody gives up a question after so long, if it is not answered before.
    fn give_up_after(&mut self, nanos: Nanos, call: CallId) {
        self.queue.wait(self.now, nanos, call);
    }

    /// Whether nothing goes wrong any more.
    pub(super) fn is_healing(&self) -> bool {
        self.healing_since.is_some()
    }

    pub(super) fn machine(&mut self, id: BrokerId) -> &mut Machine {
        self.machines.get_mut(&id).expect("every node has its machine")
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start(id) => self.start_node(id),
            Event::Step(id) => {
                let now = self.now;
                let machine = self.machine(id);
                // It was woken earlier than this was meant to: else each such one would come again for ever.
                if machine.woken_at != now {
                    return;
                }
                machine.woken_at = Nanos::MAX;
                if now >= machine.step_at {
                    self.step_node(id);
                } else {
                    self.wake_node(id);
                }
            }
            Event::Question { back, boot, to, question } => self.reach_node(back, boot, to, question),
            Event::Answer { back, from, answer } => {
                if self.wire.is_cut(Party::Node(from), back.to) {
                    self.ledger.count("message into a cut");
                } else {
                    self.hear(back.call, Some(answer));
                }
            }
            Event::NoAnswer(call) => self.hear(call, None),
            Event::Wake(client) => self.with_client(client, |client, view| client.wake(view)),
            Event::Trouble => self.trouble(),
            Event::Relief(relief) => {
                if !self.is_healing() {
                    self.relieve(relief);
                }
            }
            Event::Audit => {
                self.after(AUDIT_EVERY, Event::Audit);
                self.audit_controllers();
                let Self { progress, machines, wire, ledger, now, .. } = self;
                if let Some(wrong) = progress.look(*now, machines, wire, ledger.newest_shown()) {
                    ledger.violated(wrong);
                }
                audit_in_sync(&self.machines, &mut self.ledger);
                if (self.now / AUDIT_EVERY).is_multiple_of(AUDITS_PER_READ) {
                    for machine in self.machines.values() {
                        audit_metadata(machine, &mut self.ledger);
                    }
                }
            }
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    /// Steps a node; what it sends and answers leaves, unless its machine went off meanwhile.
    pub(super) fn step_node(&mut self, id: BrokerId) {
        let now = self.now;
        let machine = self.machine(id);
        machine.follow_time(now);
        let Some(process) = &mut machine.process else { return };
        let stepped = process.step().and_then(|next| Ok((next, process.is_stopped()?)));
        let boot = machine.boot;
        let (next, is_stopped) = match stepped {
            Ok(stepped) if !machine.disk.is_off() => stepped,
            Ok(_) => return self.died(id, &Death("the machine went off".to_owned())),
            Err(death) => {
                process.leave();
                let left = (process.take_sent(), process.take_answers());
                self.transmit(id, boot, left);
                // What it had shown before is known, too.
                self.look_at(id);
                return self.died(id, &death);
            }
        };
        let left = (process.take_sent(), process.take_answers());
        // A deadline that cannot be met yet does not stop time.
        machine.step_at = machine.world_time(next, now).max(now + MILLISECOND / 10);
        self.wake_node(id);
        self.transmit(id, boot, left);
        self.look_at(id);
        if is_stopped {
            self.close(id);
        }
    }

    /// Has a node stepped when it wants to be, unless it is to be woken before that anyway.
    fn wake_node(&mut self, id: BrokerId) {
        let now = self.now;
        let machine = self.machine(id);
        if machine.step_at < machine.woken_at {
            machine.woken_at = machine.step_at;
            let pause = machine.step_at - now;
            self.after(pause, Event::Step(id));
        }
    }

    /// Sends what a life of a node asks and answers.
    fn transmit(&mut self, id: BrokerId, boot: u64, (sent, answers): (Vec<Sent>, Vec<(Return, Answer)>)) {
        for sent in sent {
            let mut later = 0;
            if let Purpose::Isr(proposed) = &sent.purpose {
                for one in proposed {
                    self.ledger.proposes(partition_of(one), &one.proposal);
                }
                later = self.strike_who_joins(id, proposed);
            }
            self.next_call += 1;
            let back = Return { call: self.next_call, to: Party::Node(id) };
            let call = Call { from: back.to, boot, to: sent.to, purpose: Some(sent.purpose) };
            self.calls.insert(back.call, call);
            self.give_up_after(sent.patience, back.call);
            if self.next_call.is_multiple_of(QUESTIONS_PER_AUDIT) || sent.question.is_vote() {
                audit_question(&self.machines[&id], &sent.question, &mut self.ledger);
            }
            self.carry((back, boot), sent.to, sent.question, later);
        }
        for (back, answer) in answers {
            answer.count(&mut self.ledger);
            if let Some(asked) = self.calls.get(back.call).and_then(|call| call.purpose.as_ref()) {
                audit_answer(&self.machines[&id], asked, &answer, &mut self.ledger);
            }
            let way = (Party::Node(id), back.to);
            let (arrival, _) = self.wire.arrivals(way, false, self.now, &mut self.random, &mut self.ledger);
            if let Some(delay) = arrival {
                self.after(delay, Event::Answer { back, from: id, answer });
            }
        }
    }

    fn carry(&mut self, (back, boot): (Return, u64), to: BrokerId, question: Question, later: Nanos) {
        let way = (back.to, Party::Node(to));
        let doubles = question.may_be_doubled();
        let (arrival, copy) = self.wire.arrivals(way, doubles, self.now, &mut self.random, &mut self.ledger);
        if let Some(delay) = copy {
            self.after(delay, Event::Question { back, boot, to, question: question.clone() });
        }
        if let Some(delay) = arrival {
            self.after(delay + later, Event::Question { back, boot, to, question });
        }
    }

    fn reach_node(&mut self, back: Return, boot: u64, to: BrokerId, question: Question) {
        if self.wire.is_cut(back.to, Party::Node(to)) {
            return self.ledger.count("message into a cut");
        }
        // What a process says of itself goes down with its connection; other things may come from one that is gone.
        if let Party::Node(from) = back.to {
            let asker = &self.machines[&from];
            if (asker.boot != boot || asker.process.is_none()) && !question.may_be_doubled() {
                return;
            }
        }
        let is_open = match &self.machines[&to].process {
            Some(process) => process.is_open() || !question.is_for_brokers(),
            None => false,
        };
        if !is_open {
            if !self.wire.is_cut(Party::Node(to), back.to) {
                self.give_up_after(REFUSED, back.call);
            }
            return;
        }
        let (asker, name) = (back.to, question.name());
        let numbers = [asker.number(), back.call, to.value() as u64];
        self.trace.note_often(name, numbers, format_args!("{asker:?} asks {to}: {name} (call {})", back.call));
        question.count(&mut self.ledger);
        let now = self.now;
        let machine = self.machine(to);
        machine.follow_time(now);
        let Some(process) = &mut machine.process else { return };
        match process.receive(back, question) {
            Ok(()) => self.step_node(to),
            Err(death) => self.died(to, &death),
        }
    }

    fn hear(&mut self, number: CallId, answer: Option<Answer>) {
        let Some(call) = self.calls.remove(number) else { return };
        let (asker, asked) = (call.from, call.to);
        let numbers = [asker.number(), number, asked.value() as u64];
        match &answer {
            Some(Answer::Refused(error)) => {
                self.trace.note(format_args!("{asker:?} is refused by {asked}: {error} (call {number})"));
            }
            Some(_) => {
                self.trace.note_often("hears", numbers, format_args!("{asker:?} hears of {asked} (call {number})"));
            }
            None => {
                let what = format_args!("{asker:?} does not hear of {asked} (call {number})");
                self.trace.note_often("does not hear", numbers, what);
            }
        }
        let (id, purpose) = match (call.from, call.purpose) {
            (Party::Client(client), _) => {
                return self.with_client(client, |client, view| client.hear(number, answer, view));
            }
            (Party::Node(id), Some(purpose)) => (id, purpose),
            (Party::Node(_), None) => return,
        };
        let now = self.now;
        let machine = self.machine(id);
        if machine.boot != call.boot {
            return;
        }
        machine.follow_time(now);
        let Some(process) = &mut machine.process else { return };
        match process.hear(purpose, answer) {
            Ok(()) => self.step_node(id),
            Err(death) => self.died(id, &death),
        }
    }

    fn with_client(&mut self, index: ClientId, act: impl FnOnce(&mut dyn Client, &mut View<'_>)) {
        let running: Vec<BrokerId> =
            self.machines.iter().filter(|(_, machine)| machine.process.is_some()).map(|(id, _)| *id).collect();
        let (mut image, mut controller) = (None, None);
        if !running.is_empty() {
            let asked = *self.random.pick(&running);
            if let Some(process) = &self.machines[&asked].process {
                (image, controller) = (Some(process.image()), process.leader().leader);
            }
        }
        let mut view = View {
            me: index,
            now: self.now,
            healing: self.healing_since.is_some(),
            machines: &self.machines,
            random: &mut self.random,
            ledger: &mut self.ledger,
            image,
            controller,
            power: self.power,
            next_call: &mut self.next_call,
            outbox: Vec::new(),
            wake_at: None,
            replaces: None,
            keeps_down: None,
        };
        act(&mut *self.clients[index], &mut view);
        let View { outbox, wake_at, replaces, keeps_down, .. } = view;
        if let Some(at) = wake_at {
            self.after(at - self.now, Event::Wake(index));
        }
        for (number, to, question) in outbox {
            let back = Return { call: number, to: Party::Client(index) };
            self.calls.insert(number, Call { from: back.to, boot: 0, to, purpose: None });
            self.give_up_after(CLIENT_PATIENCE, number);
            self.carry((back, 0), to, question, 0);
        }
        if let Some(id) = keeps_down {
            self.machine(id).down_until = self.now + ON_THE_WAY;
        }
        if let Some(id) = replaces {
            self.lose_disk(id);
        }
    }

    /// Holds a node to what must be true.
    fn look_at(&mut self, id: BrokerId) {
        let Self { machines, ledger, trace, controller, now, .. } = self;
        let Some(machine) = machines.get_mut(&id) else { return };
        let (boot, directory) = (machine.boot, machine.identity.directory);
        let Some(process) = &mut machine.process else { return };
        if process.take_control_news() {
            ledger.look_at_control(id, directory, boot, process);
            for change in ledger.changes.iter_mut().flat_map(std::mem::take) {
                trace.explain(&change);
            }
        }
        if let Some(epoch) = process.leads_in()
            && controller.is_none_or(|(_, newest, _)| newest < epoch)
        {
            trace.note(format_args!("node {id} is the active controller of epoch {epoch}"));
            ledger.count("controller elected");
            *controller = Some((id, epoch, *now));
        }
        if let Some(replicas) = &mut process.replicas {
            replicas.happened.drain(..).for_each(|what| ledger.count(what));
            replicas.held.show(|replica| ledger.look_at_replica(id, replica));
        }
        audit_moved(machines, ledger);
    }

    /// Nobody takes itself for the active controller for long once somebody else is.
    fn audit_controllers(&mut self) {
        let Some((newest, epoch, since)) = self.controller else { return };
        if self.now < since + TWO_CONTROLLERS_MAX {
            return;
        }
        for (id, machine) in &self.machines {
            let process = machine.process.as_ref().filter(|process| !process.is_stalled());
            if let Some(earlier) = process.and_then(Process::leads_in).filter(|earlier| *earlier < epoch) {
                let what = format!("node {id} leads epoch {earlier}, and {newest} leads {epoch} since {since} ns");
                self.ledger.violated(what);
            }
        }
    }
}
