//! Several brokers and a controller in one thread: messages that are lost, late, out of order and doubled, brokers that crash
//! with and without what they had not synced, and what must hold all the same, checked as it runs.

mod checks;
mod controller;
mod fetching;
mod log;
mod node;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use gregor_replication::{FetchPlan, FetcherId, IsrProposal, OffsetLookUp, ProposalAnswer, ProposalOutcome};
use gregor_types::{BrokerId, ErrorCode, Offset, Timestamp};

use controller::Controller;
use log::Record;
use node::{Asked, Fetched, Node, Role};

const SESSION_MS: u64 = 1_500;
const REQUEST_TIMEOUT_MS: u64 = 700;
const RETRY_MS: u64 = 100;
const TICK_MS: u64 = 20;
/// How long a fetch waits for records: the leader answers at once here, so its follower waits.
const IDLE_MS: u64 = 80;

/// A generator of numbers that a seed repeats.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A message or a timer, and to which life of its node.
#[derive(Debug, Clone)]
enum Event {
    Fetch { from: BrokerId, life: u64, epoch: i64, by: FetcherId, call: u64, plan: FetchPlan },
    Fetched { to: BrokerId, life: u64, by: FetcherId, call: u64, answer: Fetched },
    LookUp { from: BrokerId, life: u64, by: FetcherId, call: u64, asked: Vec<OffsetLookUp> },
    LookedUp { to: BrokerId, life: u64, by: FetcherId, call: u64, found: Vec<Result<Offset, ErrorCode>> },
    Propose { from: BrokerId, life: u64, index: usize, asked: IsrProposal },
    Answered { to: BrokerId, life: u64, index: usize, asked: IsrProposal, answer: ProposalAnswer },
    Tick(BrokerId),
}

/// What happened in a life of the world, so that a test can say that it was worth something.
#[derive(Debug, Clone, Copy, Default)]
pub struct Story {
    pub acknowledged: usize,
    pub elections: usize,
    pub records_cut: usize,
    pub records_lost_by_power: usize,
    pub joined: usize,
    pub dropped: usize,
    pub started_over: usize,
}

impl std::ops::AddAssign for Story {
    fn add_assign(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.elections += other.elections;
        self.records_cut += other.records_cut;
        self.records_lost_by_power += other.records_lost_by_power;
        self.joined += other.joined;
        self.dropped += other.dropped;
        self.started_over += other.started_over;
    }
}

#[derive(Debug)]
pub struct World {
    pub dice: Dice,
    now: u64,
    nodes: Vec<Node>,
    controller: Controller,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    payloads: BTreeMap<u64, Event>,
    sequence: u64,
    calls: u64,
    values: u64,
    pub loss_percent: u64,
    pub double_percent: u64,
    pub delay_ms: u64,
    cut_off: Vec<bool>,
    /// What each partition has committed, from its first record on, whoever leads.
    committed: Vec<Vec<Record>>,
    /// How much was committed when each leadership was given out.
    known_at: BTreeMap<(usize, i32), usize>,
    acknowledged: Vec<Vec<(i64, u64)>>,
    /// The high watermark of each leadership as its readers saw it last.
    shown: BTreeMap<(BrokerId, usize, i32), i64>,
    pub story: Story,
}

impl World {
    pub fn new(brokers: i32, partitions: usize, replicas: i32, min_isr: usize, seed: u64) -> Self {
        let mut world = Self {
            dice: Dice(seed),
            now: 1_000,
            nodes: (0..brokers).map(|id| Node::new(BrokerId(id))).collect(),
            controller: Controller::new(brokers, partitions, replicas, min_isr),
            events: BinaryHeap::new(),
            payloads: BTreeMap::new(),
            sequence: 0,
            calls: 0,
            values: 0,
            loss_percent: 0,
            double_percent: 0,
            delay_ms: 5,
            cut_off: vec![false; brokers as usize],
            committed: vec![Vec::new(); partitions],
            known_at: BTreeMap::new(),
            acknowledged: vec![Vec::new(); partitions],
            shown: BTreeMap::new(),
            story: Story::default(),
        };
        for id in 0..brokers {
            world.schedule(0, Event::Tick(BrokerId(id)));
            world.start(BrokerId(id));
        }
        world
    }

    pub fn brokers(&self) -> Vec<BrokerId> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    pub fn partitions(&self) -> usize {
        self.committed.len()
    }

    pub fn run(&mut self, milliseconds: u64) {
        let until = self.now + milliseconds;
        while let Some(Reverse((at, number))) = self.events.peek().copied().filter(|Reverse((at, _))| *at <= until) {
            self.events.pop();
            self.now = self.now.max(at);
            let event = self.payloads.remove(&number).expect("each event has a payload");
            self.handle(event);
        }
        self.now = until;
    }

    /// A broker's process ends; what it wrote stays.
    pub fn kill(&mut self, id: BrokerId) {
        self.nodes[id.value() as usize].stop();
    }

    /// A machine loses its power, if what is promised allows for that: fewer machines than `min.insync.replicas` asks for
    /// are without at once, and of those who have all that is committed another is left that has lost nothing.
    pub fn cut_power(&mut self, id: BrokerId) {
        let nodes = &self.nodes;
        let holds_all = |partition: &controller::Partition| {
            let mut members = partition.isr.iter().chain(&partition.elr);
            let is_intact = |member: &&BrokerId| **member != id && !nodes[member.value() as usize].lost_power;
            !partition.isr.contains(&id) && !partition.elr.contains(&id) || members.any(|member| is_intact(&member))
        };
        let without_power = nodes.iter().filter(|node| node.lost_power || node.id == id).count();
        if without_power >= self.controller.image.min_isr || !self.controller.image.partitions.iter().all(holds_all) {
            return;
        }
        let node = &mut self.nodes[id.value() as usize];
        node.stop();
        node.lost_power = true;
        for (log, checkpoint) in node.disk.values_mut() {
            let dice = self.dice.below(u64::MAX);
            self.story.records_lost_by_power += log.lose(|choices| dice % choices) as usize;
            *checkpoint = (*checkpoint).min(log.end());
        }
    }

    pub fn start(&mut self, id: BrokerId) {
        let now = self.now;
        let node = &mut self.nodes[id.value() as usize];
        if node.up || self.cut_off[id.value() as usize] {
            return;
        }
        node.up = true;
        // It takes no role before it has the metadata of its own registration.
        let epoch = self.controller.register(id, std::mem::take(&mut node.lost_power), now);
        node.epoch = Some(epoch);
        self.note_leaderships();
        self.apply(id, self.controller.version());
    }

    pub fn cut_off(&mut self, id: BrokerId) {
        self.cut_off[id.value() as usize] = true;
    }

    pub fn heal(&mut self) {
        self.cut_off.fill(false);
        (self.loss_percent, self.double_percent, self.delay_ms) = (0, 0, 5);
    }

    pub fn prefer(&mut self, index: usize) {
        self.controller.prefer(index);
        self.note_leaderships();
    }

    /// Leadership goes to some replica that is in sync, as if the leader stopped for maintenance.
    pub fn hand_over(&mut self, index: usize) {
        let to = self.dice.below(8) as usize;
        self.controller.hand_over(index, to);
        self.note_leaderships();
    }

    pub fn reassign(&mut self, index: usize, which: usize) {
        self.controller.reassign(index, which);
    }

    /// An administrator asks for another number of replicas in sync, though not while a machine that others count on may have lost
    /// something that they do not know of.
    pub fn set_min_isr(&mut self, min_isr: usize) {
        if !self.nodes.iter().any(|node| node.lost_power) {
            self.controller.set_min_isr(min_isr);
            self.note_leaderships();
        }
    }

    /// A record with acks=all at whoever takes itself for the leader.
    pub fn produce(&mut self, index: usize) {
        for id in self.brokers() {
            if self.dice.percent(80) {
                self.produce_at(id, index);
            }
        }
    }

    fn produce_at(&mut self, id: BrokerId, index: usize) {
        let Some(replica) = self.nodes[id.value() as usize].replicas.get_mut(&index) else { return };
        let Role::Leader(leader) = &mut replica.role else { return };
        if leader.check_min_isr().is_err() {
            return;
        }
        self.values += 1;
        let epoch = leader.leader_epoch().value();
        replica.log.append(Record { epoch, value: self.values });
        let end = replica.log.end();
        replica.waiting.push((end, epoch, self.values));
        leader.on_append(Offset(end), Timestamp(self.now as i64));
        self.look_at(id, index);
    }

    /// Old records are deleted at a leader, as retention does.
    pub fn delete_old(&mut self, index: usize) {
        for id in self.brokers() {
            let Some(replica) = self.nodes[id.value() as usize].replicas.get_mut(&index) else { continue };
            if let Role::Leader(leader) = &mut replica.role {
                let before = leader.high_watermark().value().min(replica.log.start + 20);
                replica.log.advance_start(before);
                leader.on_log_start(Offset(replica.log.start));
            }
            self.look_at(id, index);
        }
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + delay, self.sequence)));
        self.payloads.insert(self.sequence, event);
    }

    /// Sends a message over a network that keeps no order.
    fn send(&mut self, from: BrokerId, to: BrokerId, event: &Event) {
        if self.cut_off[from.value() as usize] || self.cut_off[to.value() as usize] {
            return;
        }
        let times = if self.dice.percent(self.double_percent) { 2 } else { 1 };
        for _ in 0..times {
            if !self.dice.percent(self.loss_percent) {
                let delay = 1 + self.dice.below(self.delay_ms);
                self.schedule(delay, event.clone());
            }
        }
    }

    fn is_alive(&self, id: BrokerId, life: u64) -> bool {
        let node = &self.nodes[id.value() as usize];
        node.up && node.life == life
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick(id) => self.tick(id),
            Event::Fetch { from, life, epoch, by, call, plan } => {
                let room = 1 + self.dice.below(8) as usize;
                let gives_sessions = self.dice.percent(90);
                let now = self.now;
                let node = &mut self.nodes[by.leader.value() as usize];
                if !node.up {
                    return;
                }
                let answer = node.serve(from, epoch, &plan, (room, gives_sessions), now);
                self.look_at_all(by.leader);
                self.send(by.leader, from, &Event::Fetched { to: from, life, by, call, answer });
            }
            Event::Fetched { to, life, by, call, answer } => self.fetched(to, life, by, call, answer),
            Event::LookUp { from, life, by, call, asked } => {
                let node = &self.nodes[by.leader.value() as usize];
                if node.up {
                    let found = asked.iter().map(|asked| node.look_up(asked)).collect();
                    self.send(by.leader, from, &Event::LookedUp { to: from, life, by, call, found });
                }
            }
            Event::LookedUp { to, life, by, call, found } => {
                if let Some(Asked::LookUp(asked)) = self.take_call(to, life, by, call) {
                    self.looked_up(to, by, &asked, &found);
                }
            }
            Event::Propose { from, life, index, asked } => {
                // The controller cannot tell a request that was sent by a life that is over; its broker epoch does.
                let node = &self.nodes[from.value() as usize];
                let epoch = if node.life == life { node.epoch.unwrap_or(-2) } else { -2 };
                let before = self.controller.image.partitions[index].isr.len();
                let answer = self.controller.alter_partition(from, epoch, index, &asked);
                if let ProposalAnswer::Accepted { isr, .. } = &answer {
                    self.story.joined += usize::from(isr.len() > before);
                    self.story.dropped += usize::from(isr.len() < before);
                    self.check_in_sync(index);
                }
                self.note_leaderships();
                if !self.cut_off[from.value() as usize] && !self.dice.percent(self.loss_percent) {
                    self.schedule(3, Event::Answered { to: from, life, index, asked, answer });
                }
            }
            Event::Answered { to, life, index, asked, answer } => self.answered(to, life, index, &asked, &answer),
        }
    }

    fn answered(&mut self, to: BrokerId, life: u64, index: usize, asked: &IsrProposal, answer: &ProposalAnswer) {
        if !self.is_alive(to, life) {
            return;
        }
        let now = Timestamp(self.now as i64);
        let Some(replica) = self.nodes[to.value() as usize].replicas.get_mut(&index) else { return };
        if let Role::Leader(leader) = &mut replica.role {
            match leader.on_proposal_answered(asked, answer, now) {
                ProposalOutcome::Retry => {}
                _ => replica.proposal = replica.proposal.take_if(|under_way| under_way != asked),
            }
        }
        self.look_at(to, index);
    }

    /// A broker's own time: heartbeats, news of the metadata, lags, fetchers, syncs.
    fn tick(&mut self, id: BrokerId) {
        self.schedule(TICK_MS, Event::Tick(id));
        let now = self.now;
        self.controller.fence_the_silent(SESSION_MS, now);
        self.note_leaderships();
        let node = &self.nodes[id.value() as usize];
        let (Some(epoch), true) = (node.epoch, node.up) else { return };
        if !self.cut_off[id.value() as usize] {
            self.controller.heard(id, epoch, now);
            self.note_leaderships();
            let behind = self.controller.version() - self.nodes[id.value() as usize].version;
            if behind > 0 && self.dice.percent(60) {
                let version = self.nodes[id.value() as usize].version + 1 + self.dice.below(behind as u64) as usize;
                self.apply(id, version);
            }
        }
        if self.dice.percent(20) {
            let end = self.dice.below(200) as i64;
            let node = &mut self.nodes[id.value() as usize];
            node.replicas.values_mut().for_each(|replica| replica.log.sync(end + replica.log.start));
            node.checkpoint();
        }
        for replica in self.nodes[id.value() as usize].replicas.values_mut() {
            if let Role::Leader(leader) = &mut replica.role
                && let Some(proposal) = leader.on_tick(Timestamp(now as i64))
            {
                replica.proposal = Some(proposal);
            }
        }
        self.send_proposals(id);
        self.pump_fetchers(id);
    }

    fn apply(&mut self, id: BrokerId, version: usize) {
        let image = self.controller.versions[version].clone();
        let leads = self.nodes[id.value() as usize].apply(&image, version, self.now);
        for index in leads {
            let log = &self.nodes[id.value() as usize].replicas[&index].log;
            let epoch = image.partitions[index].leader_epoch;
            let known = self.known_at.get(&(index, epoch)).copied().unwrap_or(0);
            for offset in log.start..known as i64 {
                let committed = self.committed[index][offset as usize];
                assert_eq!(
                    log.get(offset),
                    Some(committed),
                    "broker {id} leads {index} from epoch {epoch} on without what was committed at {offset}"
                );
            }
        }
        self.look_at_all(id);
    }

    /// Proposals go over one connection that keeps their order; one without an answer is sent again.
    fn send_proposals(&mut self, id: BrokerId) {
        let node = &self.nodes[id.value() as usize];
        let life = node.life;
        let pending: Vec<_> =
            node.replicas.iter().filter_map(|(index, replica)| Some((*index, replica.proposal.clone()?))).collect();
        for (index, asked) in pending {
            let is_due = self.dice.below(RETRY_MS / TICK_MS) == 0;
            if is_due && !self.cut_off[id.value() as usize] && !self.dice.percent(self.loss_percent) {
                self.schedule(3, Event::Propose { from: id, life, index, asked });
            }
        }
    }
}
