//! The world: time that jumps from event to event, nodes, clients, the way between them, and what goes wrong.
//!
//! One thread, one queue of events, one seed. Every event is a line of the trace; the same seed gives the same lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
};

use gregor_log::disk::{Crash, Operation};
use gregor_raft::Nanos;

use crate::{
    Random,
    audit::{audit, wrong_setting},
    clients::{Admin, Client, Committer, Consumer, Member, Producer, TransactionalProducer, View},
    clock::{Clock, MILLISECOND, SECOND},
    network::{CallId, ClientId, Request, Response},
    node::{Death, Node},
    promises::Promises,
    trace::Trace,
};

/// How long clients do what they do while things go wrong.
const TROUBLE: Nanos = 60 * SECOND;
/// How long they have then to come to an end on a node that is well.
const WINDING_DOWN: Nanos = 30 * SECOND;
/// How long a client waits for an answer before it takes it for lost.
const CALL_TIMEOUT: Nanos = 4 * SECOND;
/// How long a started node may take until it serves all that it has.
const START_TIMEOUT: Nanos = 20 * SECOND;

/// What is done to a world.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Whether each line of the trace is printed as it happens.
    pub told: bool,
    /// A bug of [`gregor_types::planted`], to see that it is found; only a build with `--cfg gregor_planted` has them.
    pub planted: Option<&'static str>,
    /// How many nodes a cluster has, each of them broker and controller; else the seed says.
    pub nodes: Option<u64>,
}

/// A world that came to its end with every promise kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The hash of all that happened.
    pub trace: u64,
    /// How many things happened.
    pub events: u64,
    /// How many records were acknowledged.
    pub acknowledged: u64,
    /// How often a process or the machine went down.
    pub crashes: u64,
    /// How many members of groups were given their partitions.
    pub assignments: u64,
    /// How long it lasted, in its own time.
    pub nanos: Nanos,
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The seed that shows it.
    pub seed: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "seed {}: {}", self.seed, self.what)
    }
}

#[derive(Debug)]
enum Event {
    /// A request reaches the node, by a connection to the process of that boot.
    ToNode(CallId, Request, u64),
    ToClient(CallId, Response),
    WakeClient(ClientId),
    StepNode,
    Start,
    /// A client has waited long enough.
    TimeOut(CallId),
    Trouble,
    /// The disk is well again.
    Relief,
    WindDown,
}

/// See the module's documentation.
#[derive(Debug)]
struct World {
    clock: Clock,
    random: Random,
    queue: BTreeMap<(Nanos, u64), Event>,
    next_event: u64,
    node: Node,
    /// Counts the node's processes; a connection belongs to one of them.
    boot: u64,
    step_at: Nanos,
    clients: Vec<Box<dyn Client>>,
    next_call: u64,
    /// Requests that were neither answered nor given up.
    open_calls: BTreeSet<CallId>,
    /// When the last message of each client reached, or will reach, the node: a connection keeps its order.
    last_arrival: BTreeMap<ClientId, Nanos>,
    promises: Promises,
    trace: Trace,
    crashes: u64,
    /// Whether power was lost since the last audit.
    lost_power: bool,
    /// Since when the node has to be audited.
    audit_since: Option<Nanos>,
    winding_down: bool,
    high_watermarks: BTreeMap<(crate::network::Place, i32), i64>,
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
        acknowledged: world.promises.acknowledged_count,
        crashes: world.crashes,
        assignments: world.promises.assignments_count,
        nanos: world.clock.nanos(),
    })
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed);
        let clock = Clock::default();
        let node = Node::new(clock.clone(), random.fork());
        let clients: Vec<Box<dyn Client>> = vec![
            Box::new(Admin::default()),
            Box::new(Producer::default()),
            Box::new(Producer::default()),
            Box::new(TransactionalProducer::default()),
            Box::new(Consumer::new(false)),
            Box::new(Consumer::new(true)),
            Box::new(Committer::new("one")),
            Box::new(Committer::new("another")),
            Box::new(Member::default()),
            Box::new(Member::default()),
            Box::new(Member::default()),
        ];
        let mut world = Self {
            clock,
            random,
            queue: BTreeMap::new(),
            next_event: 0,
            node,
            boot: 0,
            step_at: Nanos::MAX,
            clients,
            next_call: 0,
            open_calls: BTreeSet::new(),
            last_arrival: BTreeMap::new(),
            promises: Promises::default(),
            trace: Trace::new(options.told),
            crashes: 0,
            lost_power: false,
            audit_since: None,
            winding_down: false,
            high_watermarks: BTreeMap::new(),
        };
        world.after(0, Event::Start);
        for client in 0..world.clients.len() {
            world.after(SECOND, Event::WakeClient(client));
        }
        world.after(3 * SECOND, Event::Trouble);
        world.after(TROUBLE, Event::WindDown);
        world
    }

    fn live(&mut self) -> Result<(), String> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > TROUBLE + WINDING_DOWN {
                break;
            }
            self.clock.set(at);
            self.trace.at(at);
            self.happen(event);
            if let Some(violation) = self.promises.violation() {
                self.trace.note(format_args!("BROKEN: {violation}"));
                return Err(violation.to_owned());
            }
        }
        let Some(process) = &self.node.process else { return Err("the node does not come back".to_owned()) };
        audit(&self.node, process, &mut self.promises, self.lost_power);
        self.promises.violation().map_or(Ok(()), |violation| Err(violation.to_owned()))
    }

    fn after(&mut self, nanos: Nanos, event: Event) {
        self.next_event += 1;
        self.queue.insert((self.clock.nanos() + nanos, self.next_event), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToNode(call, request, boot) => self.reach_node(call, request, boot),
            Event::ToClient(call, response) => {
                if self.open_calls.remove(&call) {
                    self.trace.note(format_args!("client {} hears {response:?}", call.client));
                    self.with_client(call.client, |client, view| client.hear(call.number, response, view));
                }
            }
            Event::TimeOut(call) => {
                if self.open_calls.remove(&call) {
                    self.trace.note(format_args!("client {} waits no longer", call.client));
                    self.with_client(call.client, |client, view| {
                        client.hear(call.number, Response::Disconnected, view);
                    });
                }
            }
            Event::WakeClient(client) => self.with_client(client, |client, view| client.wake(view)),
            Event::StepNode => {
                if self.clock.nanos() >= self.step_at {
                    self.step_node();
                }
            }
            Event::Start => self.start_node(),
            Event::Trouble => self.trouble(),
            Event::Relief => self.relieve(),
            Event::WindDown => {
                self.trace.note(format_args!("all goes well from now on"));
                self.check_settings();
                self.winding_down = true;
                self.relieve();
                if self.node.process.is_some() {
                    self.go_down(Crash::KeepAll, "for the last time");
                }
            }
        }
    }

    fn with_client(&mut self, index: ClientId, act: impl FnOnce(&mut dyn Client, &mut View<'_>)) {
        let mut view = View {
            me: index,
            now: self.clock.nanos(),
            winding_down: self.winding_down,
            random: &mut self.random,
            promises: &mut self.promises,
            next_call: &mut self.next_call,
            outbox: Vec::new(),
            wake_at: None,
        };
        act(&mut *self.clients[index], &mut view);
        let (outbox, wake_at) = (view.outbox, view.wake_at);
        if let Some(at) = wake_at {
            self.after(at - self.clock.nanos(), Event::WakeClient(index));
        }
        for (number, request) in outbox {
            let call = CallId { client: index, number };
            self.open_calls.insert(call);
            let delay = self.random.between(MILLISECOND / 10, 3 * MILLISECOND);
            let arrival = self.last_arrival.entry(index).or_default();
            *arrival = (self.clock.nanos() + delay).max(*arrival + 1);
            let delay = *arrival - self.clock.nanos();
            self.after(delay, Event::ToNode(call, request, self.boot));
            self.after(CALL_TIMEOUT, Event::TimeOut(call));
        }
    }

    fn answer(&mut self, call: CallId, response: Response) {
        let delay = self.random.between(MILLISECOND / 10, 3 * MILLISECOND);
        self.after(delay, Event::ToClient(call, response));
    }

    fn reach_node(&mut self, call: CallId, request: Request, boot: u64) {
        let Some(process) = self.node.process.as_mut().filter(|_| boot == self.boot) else {
            return self.answer(call, Response::Disconnected);
        };
        self.trace.note(format_args!("client {} asks {request:?}", call.client));
        match process.receive(call, request) {
            Ok(()) => self.step_node(),
            Err(death) => self.died(&death),
        }
    }

    /// Steps the node; what it answers leaves, unless the machine went off meanwhile.
    fn step_node(&mut self) {
        let Some(process) = &mut self.node.process else { return };
        let next = match process.step() {
            Ok(next) if !self.node.disk.is_off() => next,
            Ok(_) => return self.died(&Death("the machine went off".to_owned())),
            Err(death) => return self.died(&death),
        };
        for (call, response) in process.take_answers() {
            self.answer(call, response);
        }
        self.check_partitions();
        let now = self.clock.nanos();
        // A deadline that cannot be met yet does not stop time.
        self.step_at = next.max(now + MILLISECOND / 10);
        self.after(self.step_at - now, Event::StepNode);
        self.audit_if_due();
    }

    fn check_partitions(&mut self) {
        let Some(process) = &self.node.process else { return };
        for (place, partition) in process.broker().partitions() {
            if let Some(wrong) = &partition.wrong {
                return self.promises.violated(format!("{place}: {wrong}"));
            }
            let Some(leader) = &partition.leader else { continue };
            let (epoch, now) = (leader.leader_epoch().value(), leader.high_watermark().value());
            let known = self.high_watermarks.entry((place.clone(), epoch)).or_insert(now);
            if now < *known {
                let what = format!("{place}: the high watermark went from {known} back to {now} in epoch {epoch}");
                return self.promises.violated(what);
            }
            *known = now;
        }
    }

    /// A start takes what the metadata says: what was changed since is looked at before the node may go down.
    fn check_settings(&mut self) {
        if let (Some(process), None) = (&self.node.process, self.audit_since)
            && let Some(wrong) = wrong_setting(process, &self.promises)
        {
            self.promises.violated(wrong);
        }
    }

    fn start_node(&mut self) {
        if self.node.process.is_some() {
            return;
        }
        self.boot += 1;
        self.high_watermarks.clear();
        self.trace.note(format_args!("the node starts, boot {}", self.boot));
        match self.node.start() {
            Ok(()) => {
                self.audit_since = Some(self.clock.nanos());
                self.step_node();
            }
            Err(death) => self.died(&death),
        }
    }

    /// The node's process has ended by itself: by a disk that failed or went off.
    fn died(&mut self, death: &Death) {
        self.trace.note(format_args!("the process ends: {death}"));
        if self.winding_down && !self.node.disk.is_off() {
            return self.promises.violated(format!("the node ends on a disk that is well: {death}"));
        }
        // What a sync that failed was to write is in memory only: whoever starts again there builds on sand.
        let crash = match self.random.below(3) {
            0 if !self.node.disk.has_lost_writes() => Crash::KeepAll,
            1 => Crash::LoseUnsynced,
            _ => Crash::Tear(self.random.bits()),
        };
        self.go_down(crash, "by itself");
    }

    fn go_down(&mut self, crash: Crash, how: &str) {
        self.trace.note(format_args!("down {how}: {crash:?}"));
        self.crashes += 1;
        if crash != Crash::KeepAll {
            self.lost_power = true;
            self.promises.power_losses += 1;
        }
        self.node.crash(crash);
        if !self.winding_down && self.random.chance(8) {
            self.rot();
        }
        self.audit_since = None;
        for call in self.open_calls.clone() {
            self.answer(call, Response::Disconnected);
        }
        let pause = self.random.between(MILLISECOND, SECOND);
        self.after(pause, Event::Start);
    }

    fn trouble(&mut self) {
        if self.winding_down {
            return;
        }
        let pause = self.random.between(SECOND / 2, 6 * SECOND);
        self.after(pause, Event::Trouble);
        self.check_settings();
        let in_so_many = self.node.disk.mutations() + self.random.below(60);
        match self.random.below(12) {
            0..3 => {
                self.trace.note(format_args!("the machine will go off at change {in_so_many}"));
                self.node.disk.stop_after(in_so_many);
            }
            3..5 if self.node.process.is_some() => self.go_down(Crash::KeepAll, "by a kill"),
            5 if self.node.process.is_some() => {
                let crash = if self.random.chance(50) { Crash::LoseUnsynced } else { Crash::Tear(self.random.bits()) };
                self.go_down(crash, "by a loss of power");
            }
            6 => self.stop_cleanly(),
            7 => {
                let in_hundred = self.random.between(1, 10);
                self.trace.note(format_args!("the disk fails {in_hundred} calls of a hundred"));
                let mut random = self.random.fork();
                self.node.disk.set_fault(move |operation, _| {
                    let hit = operation != Operation::List && random.chance(in_hundred);
                    hit.then(|| io::Error::from_raw_os_error(5))
                });
                self.after_some_time(Event::Relief);
            }
            8..10 => {
                let room = self.random.below(2_000);
                self.trace.note(format_args!("the disk has room for {room} bytes"));
                self.node.disk.set_capacity(Some(self.node.disk.used() + room));
                self.after_some_time(Event::Relief);
            }
            _ => {
                let by_ms = self.random.below(7_200_000) as i64 - 3_600_000;
                self.trace.note(format_args!("the wall clock jumps by {by_ms} ms"));
                self.clock.jump_wall(by_ms);
            }
        }
    }

    fn after_some_time(&mut self, event: Event) {
        let pause = self.random.between(SECOND / 10, 4 * SECOND);
        self.after(pause, event);
    }

    fn relieve(&mut self) {
        self.trace.note(format_args!("the disk is well"));
        self.node.disk.clear_fault();
        self.node.disk.set_capacity(None);
    }

    /// The disk loses a bit of a batch while nothing runs on the node; whoever reads it next must notice.
    fn rot(&mut self) {
        let places = self.promises.places_for_data(false);
        if places.is_empty() {
            return;
        }
        let place = self.random.pick(&places).clone();
        if let Some((path, base)) = self.node.rot(&place, &mut self.random) {
            self.trace.note(format_args!("{path} loses a bit of the batch at {base}"));
            self.promises.rots(&place, base);
        }
    }

    fn stop_cleanly(&mut self) {
        let Some(process) = self.node.process.take() else { return };
        let starts = process.broker().partitions().iter().map(|(place, held)| (place.clone(), held.log.start_offset()));
        let starts: Vec<_> = starts.collect();
        match process.stop() {
            Ok(()) if !self.node.disk.is_off() => {
                for (place, start) in starts {
                    self.promises.stopped_with_start(&place, start.value());
                }
                self.promises.clean_stops += 1;
                self.go_down(Crash::KeepAll, "by a clean stop");
            }
            Ok(()) => self.died(&Death("the machine went off".to_owned())),
            Err(death) => self.died(&death),
        }
    }

    /// Holds a node that was started to what was promised, as soon as it serves everything.
    fn audit_if_due(&mut self) {
        let (Some(since), Some(process)) = (self.audit_since, &self.node.process) else { return };
        let served = |place: &_| process.broker().partitions().get(place).is_some_and(|held| held.leader.is_some());
        if !self.promises.places().iter().all(served) {
            if self.winding_down && self.clock.nanos() > since + START_TIMEOUT {
                self.promises.violated("the node does not come to serve what it has".to_owned());
            }
            return;
        }
        self.audit_since = None;
        audit(&self.node, process, &mut self.promises, self.lost_power);
        self.lost_power = false;
    }
}
