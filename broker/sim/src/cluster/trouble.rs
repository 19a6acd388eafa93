//! What goes wrong in a cluster, and how it is made well again.
//!
//! In some worlds machines lose power and disks fail: there every topic syncs before it acknowledges. In the others topics are as Kafka makes them, and
//! either only processes die, or so few machines at a time lose power that nothing is lost that was acknowledged (see [`Power`]).

use std::{io, os::unix::ffi::OsStrExt as _, path::Path};

use gregor_log::disk::{Crash, Operation};
use gregor_metadata::Image;
use gregor_node::Proposed;
use gregor_raft::Nanos;
use gregor_types::BrokerId;

use super::{
    machine::{Machine, Roles, Shape},
    world::{Event, World},
};
use crate::{
    Random,
    clock::{MILLISECOND, SECOND},
};

/// Every kind of thing that goes wrong or is changed, as [`Outcome::counts`](super::Outcome::counts) names it. Over many seeds each happens.
pub const FAULTS: [&str; 57] = [
    "message lost",
    "message doubled",
    "message late",
    "messages reordered",
    "message into a cut",
    "cut one way",
    "cut both ways",
    "node isolated",
    "wall clock jumped",
    "clock jumped",
    "killed",
    "power lost",
    "committed records lost by power",
    "write torn",
    "machine off at a write",
    "died at a vote",
    "died at metadata",
    "died at a snapshot",
    "died at records",
    "died at a checkpoint",
    "down as it was to join",
    "all nodes down",
    "power lost everywhere",
    "stopped cleanly",
    "disk error",
    "disk full",
    "disk replaced",
    "broker's disk replaced",
    "disk of a replica told",
    "quorum made dynamic",
    "voter added",
    "voter removed",
    "controller elected",
    "metadata truncation",
    "snapshot asked for",
    "snapshot transferred",
    "truncation",
    "in-sync replicas changed",
    "leader elected",
    "eligible leader elected",
    "unclean leader elected",
    "committed records truncated",
    "leaderless",
    "topic created",
    "topic deleted",
    "partitions added",
    "partition moved",
    "preferred leader elected",
    "setting changed",
    "metadata version raised",
    "metadata version lowered",
    "broker unregistered",
    "records deleted",
    "log started over",
    "quiet fetch",
    "fetch session lost",
    "registration",
];

impl World {
    /// Something goes wrong, and the next thing will.
    pub(super) fn trouble(&mut self) {
        if self.is_healing() {
            return;
        }
        let pause = self.random.between(SECOND / 2, 5 * SECOND);
        self.after(pause, Event::Trouble);
        let ids: Vec<BrokerId> = self.machines.keys().copied().collect();
        let id = *self.random.pick(&ids);
        let what = self.random.below(23);
        if self.spares_others() && matches!(what, 0..=6 | 8 | 17..22) {
            return;
        }
        match what {
            0 | 1 => self.stop_at_a_write(id),
            3 | 4 if self.power == Power::FailsInTurn => self.lose_power(id),
            2..5 => self.kill(id),
            5 => self.lose_power(id),
            6 => self.stop_cleanly(id),
            7 if self.power == Power::Fails => self.fail_disk(id),
            8 => self.fill_disk(id),
            9 => {
                let by_ms = self.random.below(7_200_000) as i64 - 3_600_000;
                self.trace.note(format_args!("the wall clock of {id} jumps by {by_ms} ms"));
                self.ledger.count("wall clock jumped");
                self.machines[&id].clock.jump_wall(by_ms);
            }
            10 => {
                let by = self.random.below(8 * SECOND);
                self.trace.note(format_args!("the clock of {id} jumps by {} ms", by / MILLISECOND));
                self.ledger.count("clock jumped");
                self.machine(id).jump(by);
                self.step_node(id);
            }
            11..15 => self.cut(id, &ids),
            15 | 16 => {
                let (loss, doubles) = (self.random.below(30), self.random.below(20));
                let latency_max = self.random.between(5 * MILLISECOND, 3 * SECOND);
                let late = latency_max / MILLISECOND;
                self.trace.note(format_args!(
                    "of 100 messages {loss} are lost, {doubles} come twice, all up to {late} ms late"
                ));
                self.wire.worsen(loss, doubles, latency_max);
                self.relieve_later(Relief::Network);
            }
            17 if self.random.chance(30) => {
                self.trace.note(format_args!("all nodes go down"));
                let is_power = self.power == Power::Fails;
                self.ledger.count(if is_power { "power lost everywhere" } else { "all nodes down" });
                for id in &ids {
                    if is_power {
                        self.lose_power(*id);
                    } else {
                        self.kill(*id);
                    }
                }
            }
            18 | 19 => self.die_at_a_token(id),
            20 if self.machines[&id].identity.roles == Roles::Broker => self.lose_disk(id),
            21 => self.strikes_who_joins = true,
            _ => {
                self.trace.note(format_args!("the network is well"));
                self.wire.heal();
            }
        }
    }

    fn kill(&mut self, id: BrokerId) {
        if self.machines[&id].process.is_some() {
            self.ledger.count("killed");
            self.go_down(id, Crash::KeepAll, "by a kill");
        }
    }

    fn lose_power(&mut self, id: BrokerId) {
        if self.machines[&id].process.is_some() && self.may_lose_power(id) {
            let crash = if self.random.chance(50) { Crash::LoseUnsynced } else { Crash::Tear(self.random.bits()) };
            self.go_down(id, crash, "by a loss of power");
        }
    }

    fn stop_at_a_write(&mut self, id: BrokerId) {
        let at = self.machines[&id].disk.mutations() + self.random.below(60);
        let machine = self.machine(id);
        machine.stops_at = Some("machine off at a write");
        machine.disk.stop_after(at);
        self.trace.note(format_args!("the machine of {id} will go off at change {at}"));
    }

    fn fail_disk(&mut self, id: BrokerId) {
        let in_hundred = self.random.between(1, 10);
        self.trace.note(format_args!("the disk of {id} fails {in_hundred} calls of a hundred"));
        self.ledger.count("disk error");
        let mut random: Random = self.random.fork();
        let machine = self.machine(id);
        (machine.is_failing, machine.is_let_down) = (true, true);
        machine.disk.set_fault(move |operation, _| {
            let hit = operation != Operation::List && random.chance(in_hundred);
            hit.then(|| io::Error::from_raw_os_error(5))
        });
        self.relieve_later(Relief::Disk(id));
    }

    /// A process dies at something that others are told of only once it is on the disk.
    fn die_at_a_token(&mut self, id: BrokerId) {
        let token = *self.random.pick(&Token::ALL);
        let mut left = self.random.below(10);
        self.trace.note(format_args!("the process of {id} will die at {token:?}, of which {left} changes go well"));
        let machine = self.machine(id);
        machine.stops_at = Some(token.name());
        machine.disk.stop_at(move |operation, path| {
            let is_at = token.is_at(operation, path);
            let is_reached = is_at && left == 0;
            left = left.saturating_sub(u64::from(is_at));
            is_reached
        });
    }

    /// Who is to join the in-sync replicas goes down as its leader asks for that, and comes back to where it does not reach that leader, perhaps
    /// before the controller is reached: the question is of its earlier life. How much longer that takes is returned.
    pub(super) fn strike_who_joins(&mut self, leader: BrokerId, asked: &[Proposed<()>]) -> Nanos {
        if !self.strikes_who_joins || self.is_healing() || self.spares_others() {
            return 0;
        }
        let Some(image) = self.ledger.newest_image() else { return 0 };
        let joins = |one: &Proposed<()>| {
            let partition = image.topics().partition(one.id.0, one.id.1)?;
            let mut members = one.proposal.isr.iter().map(|(member, _)| *member);
            members.find(|member| !partition.isr.contains(member) && self.machines[member].counts_in(&image))
        };
        let Some(id) = asked.iter().find_map(joins) else { return 0 };
        self.strikes_who_joins = false;
        self.trace.note(format_args!("{leader} asks for {id} to be in sync, which goes down, and is cut off from it"));
        self.ledger.count("down as it was to join");
        self.wire.cut(id, leader);
        self.wire.cut(leader, id);
        self.relieve_later(Relief::Network);
        let crash = if self.may_lose_power(id) { Crash::LoseUnsynced } else { Crash::KeepAll };
        self.go_down(id, crash, "as it was to join");
        let pause = self.random.below(SECOND / 2);
        self.after(pause, Event::Start(id));
        self.random.below(4 * SECOND)
    }

    fn fill_disk(&mut self, id: BrokerId) {
        let room = self.random.below(4_000);
        self.trace.note(format_args!("the disk of {id} has room for {room} bytes"));
        self.ledger.count("disk full");
        let machine = self.machine(id);
        (machine.is_full, machine.is_let_down) = (true, true);
        machine.disk.set_capacity(Some(machine.disk.used() + room));
        self.relieve_later(Relief::Disk(id));
    }

    fn cut(&mut self, id: BrokerId, ids: &[BrokerId]) {
        let other = *self.random.pick(ids);
        match self.random.below(4) {
            0 if other != id => {
                self.trace.note(format_args!("nothing comes from {id} to {other}"));
                self.ledger.count("cut one way");
                self.wire.cut(id, other);
            }
            1 if other != id => {
                self.trace.note(format_args!("nothing comes through between {id} and {other}"));
                self.ledger.count("cut both ways");
                self.wire.cut(id, other);
                self.wire.cut(other, id);
            }
            2 => {
                let hears = self.random.chance(30);
                self.trace.note(format_args!("nothing comes from {id}, it hears the others: {hears}"));
                self.ledger.count("node isolated");
                for other in ids.iter().filter(|other| **other != id) {
                    self.wire.cut(id, *other);
                    if !hears {
                        self.wire.cut(*other, id);
                    }
                }
            }
            _ => {
                let (some, rest) = ids.split_at(self.random.between(1, ids.len() as u64) as usize);
                self.trace.note(format_args!("{some:?} and {rest:?} are parted"));
                self.ledger.count("cut both ways");
                for one in some {
                    for another in rest {
                        self.wire.cut(*one, *another);
                        self.wire.cut(*another, *one);
                    }
                }
            }
        }
        self.relieve_later(Relief::Network);
    }

    fn relieve_later(&mut self, relief: Relief) {
        let pause = self.random.between(SECOND / 2, 12 * SECOND);
        self.after(pause, Event::Relief(relief));
    }

    /// Something is well again.
    pub(super) fn relieve(&mut self, relief: Relief) {
        match relief {
            Relief::Network => {
                self.trace.note(format_args!("the network is well"));
                self.wire.heal();
            }
            Relief::Disk(id) => {
                self.trace.note(format_args!("the disk of {id} is well"));
                self.machine(id).heal_disk();
            }
        }
    }

    /// What a machine's process dies of decides what is left of what it wrote.
    pub(super) fn crash_of(&mut self, id: BrokerId) -> Crash {
        let disk = &self.machines[&id].disk;
        if !self.may_lose_power(id) {
            return Crash::KeepAll;
        }
        // What a sync that failed was to write is in memory only: whoever starts again there builds on sand.
        match self.random.below(3) {
            0 if !disk.has_lost_writes() => Crash::KeepAll,
            1 => Crash::LoseUnsynced,
            _ => Crash::Tear(self.random.bits()),
        }
    }

    /// A node's disk is lost, if what is promised does not rest on it.
    pub(super) fn lose_disk(&mut self, id: BrokerId) {
        let is_broker = self.machines[&id].identity.roles.is_broker();
        let is_spare = self.power == Power::FailsInTurn && !self.spares_others() && self.may_lose_power(id);
        if !is_broker || is_spare {
            self.replace_disk(id);
        }
    }

    /// Whether a machine may be without power now, with what is promised (see [`Power`]).
    fn may_lose_power(&self, id: BrokerId) -> bool {
        match self.power {
            Power::Lasts => false,
            Power::Fails => true,
            Power::FailsInTurn => self.ledger.newest_image().is_none_or(|image| {
                let stays = |machine: &Machine| machine.process.as_ref().is_some_and(|process| !process.is_stopping());
                let counts = |member: &BrokerId| {
                    let machine = &self.machines[member];
                    stays(machine) && machine.counts_in(&image)
                };
                let mut partitions = image.topics().iter().flat_map(|topic| topic.partitions());
                partitions.all(|(_, partition)| {
                    let mut others = partition.isr.iter().chain(&partition.elr).filter(|member| **member != id);
                    !partition.replicas.contains(&id) || (others.clone().count() > 0 && others.all(counts))
                })
            }),
        }
    }

    /// Whether nothing else may end, as a machine without power is counted on yet.
    pub(super) fn spares_others(&self) -> bool {
        let lacks = |image: &Image| self.machines.values().any(|machine| machine.may_lack(image));
        self.power == Power::FailsInTurn && self.ledger.newest_image().is_some_and(|image| lacks(&image))
    }

    /// What was to end processes does so no more.
    pub(super) fn spare_all(&mut self) {
        for machine in self.machines.values_mut() {
            machine.heal_disk();
            machine.go_on();
        }
    }

    /// How long a node is down.
    pub(super) fn downtime(&mut self) -> Nanos {
        if self.is_healing() {
            return self.random.between(MILLISECOND, SECOND);
        }
        // Longer than a session now and then, so that the others go on without it.
        let longest = if self.random.chance(30) { 15 * SECOND } else { 2 * SECOND };
        self.random.between(MILLISECOND, longest)
    }
}

/// How machines of a world lose power, and with it what was written and not synced; or brokers their disks, with all that is on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    /// They do not.
    Lasts,
    /// Any of them at any time: every topic syncs before it acknowledges.
    Fails,
    /// One after the other, where the others go on: of those that a partition counts on, where two have to be in sync, one at most may lack
    /// something at a time, and no process of the others ends, or begins to, until that one has registered again, and so is not counted on any more. Topics
    /// are as Kafka makes them, with eligible leader replicas (KIP-966). A broker may lose its disk, too. A controller cannot tell a process
    /// that was killed from a machine that lost power: who is killed while another has lost something is taken for one that has, too.
    FailsInTurn,
}

impl Power {
    pub(super) fn of(shape: &Shape, random: &mut Random) -> Self {
        let brokers = shape.roles.iter().filter(|roles| roles.is_broker()).count();
        match random.below(10) {
            0..4 => Self::Fails,
            4..8 if shape.keeps_eligible && brokers > 2 => Self::FailsInTurn,
            _ => Self::Lasts,
        }
    }
}

/// What becomes well again.
#[derive(Debug, Clone, Copy)]
pub(super) enum Relief {
    Network,
    Disk(BrokerId),
}

/// What is on the disk before others hear of it, or before something else rests on it.
#[derive(Debug, Clone, Copy)]
enum Token {
    Vote,
    Metadata,
    Snapshot,
    Records,
    Checkpoint,
}

impl Token {
    const ALL: [Self; 5] = [Self::Vote, Self::Metadata, Self::Snapshot, Self::Records, Self::Checkpoint];

    /// As [`FAULTS`] has it.
    const fn name(self) -> &'static str {
        match self {
            Self::Vote => "died at a vote",
            Self::Metadata => "died at metadata",
            Self::Snapshot => "died at a snapshot",
            Self::Records => "died at records",
            Self::Checkpoint => "died at a checkpoint",
        }
    }

    /// Whether a call of the disk is one of those by which this comes to be on it.
    fn is_at(self, operation: Operation, path: &Path) -> bool {
        if matches!(operation, Operation::Open | Operation::Read | Operation::List) {
            return false;
        }
        // A process asks this of each call: bytes are compared sooner than the parts of a path.
        let path = path.as_os_str().as_bytes();
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let is_metadata = || contains(path, b"/__cluster_metadata-0/");
        match self {
            Self::Vote => name.starts_with(b"quorum-state"),
            Self::Metadata => name.ends_with(b".log") && is_metadata(),
            Self::Snapshot => contains(name, b".checkpoint"),
            Self::Records => name.ends_with(b".log") && !is_metadata(),
            Self::Checkpoint => contains(name, b"-checkpoint"),
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
