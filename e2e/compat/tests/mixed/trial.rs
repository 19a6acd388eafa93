//! One cluster under load, and what is done to it: nodes of either kind are killed and come back, lead the quorum and partitions,
//! become the other kind; then everything that was promised is looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gregor_apache::Jars;
use gregor_compat::{Chance, Driver};

use crate::{
    cluster::{Cluster, Kind, Plan, Quorum},
    images, replicas,
};

/// How long a command of the driver may take; what it waits for has an earlier end of its own.
const COMMAND_LIMIT: Duration = Duration::from_mins(6);
/// How many more records of each partition are acknowledged before the next blow.
const PROGRESS: u32 = 20;
/// How many requests a producer has out at a node: what it has by default.
pub const IN_FLIGHT: u32 = 5;
/// And where nodes are held. A producer that has one with batches of a partition out at a leader that says nothing more sends later batches
/// to the next leader all the same, unless it is to have one request out. Once the first one is given up, and was replicated before, it is a
/// duplicate from before the five batches that a broker remembers, of either kind, and refused for ever as out of order.
pub const ONE_IN_FLIGHT: u32 = 1;
/// How long it may take until one who has to win an election has won it.
const ELECTION_LIMIT: Duration = Duration::from_mins(2);

/// What is done to a node for a while.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Hold,
    Stop,
    Kill,
}

/// Each is dealt to both kinds before the next one.
const BLOWS: [Blow; 3] = [Blow::Hold, Blow::Stop, Blow::Kill];

/// The cluster, its load, and chance.
pub struct Trial {
    // Dropped first: its log lies in the cluster's folder.
    driver: Driver,
    cluster: Cluster,
    chance: Chance,
    jars: Jars,
    /// Where they know the cluster's metadata.version.
    tools: Option<Jars>,
}

impl Trial {
    /// A cluster that serves, and load on it. `tools` run the driver, and are witnesses where they know the release.
    pub fn begin(plan: Plan, in_flight: u32, tools: &Jars, chance: Chance) -> Result<Self> {
        println!("{:?}, {:?}, Apache {} on {}", plan.nodes, plan.quorum, plan.jars.release.version, plan.release);
        let (quorum, jars) = (plan.quorum, plan.jars.clone());
        let knows = plan.release == crate::OF_TOOLS.1;
        let mut cluster = Cluster::new(plan)?;
        let ids = cluster.ids();
        let started = match quorum {
            Quorum::Static | Quorum::Dynamic => cluster.start(&ids),
            // The others need somebody who lets them in.
            Quorum::Joined => cluster.start(&ids[..1]).and_then(|()| cluster.start(&ids[1..])),
        };
        started.map_err(|error| error.context(cluster.story()))?;
        let addresses = [cluster.bootstrap(), cluster.controllers()];
        let addresses = addresses.each_ref().map(String::as_str);
        let driver = Driver::start(tools, cluster.path(), "mixed/Mixed.java", &addresses, COMMAND_LIMIT)?;
        let mut trial = Self { driver, cluster, chance, jars, tools: knows.then(|| tools.clone()) };
        let brokers = list(&trial.cluster.brokers());
        trial.tell(&format!("in-flight {in_flight}"))?;
        trial.tell(&format!("brokers {brokers}"))?;
        trial.all_vote()?;
        trial.tell(&format!("create {brokers}"))?;
        trial.tell("load")?;
        trial.goes_on()?;
        Ok(trial)
    }

    /// Holds, stops and kills nodes of both kinds in turn, in these rounds, and has each come back.
    pub fn strike_back_and_forth(&mut self, rounds: Range<u32>) -> Result<()> {
        for round in rounds {
            let kind = if round % 2 == 0 { Kind::Apache } else { Kind::Gregor };
            let active = self.controller()?;
            // Every other time of a kind it is who leads the quorum, if it is of that kind.
            let victim = if round % 4 < 2 && self.cluster.kind(active) == kind {
                active
            } else {
                let of_kind: Vec<u8> =
                    self.cluster.ids().into_iter().filter(|id| self.cluster.kind(*id) == kind).collect();
                *self.chance.pick(&of_kind)
            };
            let blow = BLOWS[(round / 2) as usize % BLOWS.len()];
            println!("  round {round}: {blow:?} {} {victim}; {active} leads the quorum", self.cluster.kind(victim));
            let struck = match blow {
                Blow::Hold => self.cluster.hold(victim),
                Blow::Stop => self.cluster.stop(victim),
                Blow::Kill => self.cluster.kill(victim),
            };
            struck.map_err(|error| error.context(self.cluster.story()))?;
            self.goes_on()?;
            self.shorten()?;
            match blow {
                Blow::Hold => self.cluster.release(victim)?,
                Blow::Stop | Blow::Kill => self.start(victim)?,
            }
            self.is_whole()?;
            self.have_leaders_of_both_kinds()?;
        }
        Ok(())
    }

    /// Has the voters of a static quorum stand in the log from now on, whoever leads them.
    pub fn upgrade_quorum(&mut self) -> Result<()> {
        let leader = self.controller()?;
        println!("  the quorum becomes a dynamic one, {} {leader} leads it", self.cluster.kind(leader));
        self.tell("upgrade")?;
        self.goes_on()
    }

    /// Has a controller of a kind lead the quorum. With one voter away, what is committed is what the other two have; who was
    /// away then lacks it and cannot win when the leader dies.
    pub fn have_lead(&mut self, kind: Kind) -> Result<()> {
        let leader = self.controller()?;
        if self.cluster.kind(leader) == kind {
            println!("  {kind} {leader} leads the quorum");
            return Ok(());
        }
        let others: Vec<u8> = self.cluster.voters().into_iter().filter(|id| *id != leader).collect();
        let heir = others.iter().copied().find(|id| self.cluster.kind(*id) == kind).context("a voter of that kind")?;
        let third = others.iter().copied().find(|id| *id != heir).context("a third voter")?;
        self.cluster.kill(third)?;
        // Were there an election meanwhile, its winner would have what is committed now all the same.
        self.tell("change")?;
        self.cluster.kill(leader)?;
        self.start(third)?;
        let deadline = Instant::now() + ELECTION_LIMIT;
        while self.controller()? != heir {
            ensure!(Instant::now() < deadline, "{kind} {heir} does not lead the quorum:\n{}", self.cluster.story());
        }
        println!("  {kind} {heir} leads the quorum, after {} {leader}", self.cluster.kind(leader));
        self.tell("change")?;
        self.bring(leader)?;
        self.goes_on()
    }

    /// Ends a node, cleanly or not, and has it come back as the other kind on the same directory.
    pub fn turn(&mut self, id: u8) -> Result<()> {
        let (is_killed, kind) = (self.chance.one_in(3), self.cluster.kind(id));
        let how = if is_killed { "killed" } else { "stopped" };
        println!("  {kind} {id} is {how} and becomes {}", kind.other());
        let ended = if is_killed { self.cluster.kill(id) } else { self.cluster.stop(id) };
        ended.map_err(|error| error.context(self.cluster.story()))?;
        self.goes_on()?;
        self.cluster.turn(id);
        self.bring(id)?;
        self.goes_on()
    }

    /// Looks at everything that was promised. The load has ended then; [`Self::go_on`] has it go on.
    pub fn look(&mut self) -> Result<()> {
        self.have_leaders_of_both_kinds()?;
        self.shorten()?;
        // Segments end as long as there is load.
        let written = self.offsets("ends")?;
        replicas::are_cleaned(&self.cluster, &written).map_err(|error| error.context(self.cluster.story()))?;
        for line in self.tell("check")? {
            println!("  {line}");
        }
        self.tell("insync")?;
        let ends = self.offsets("ends")?;
        ensure!(ends.values().any(|end| *end > 0), "nothing was written: {ends:?}");
        let starts = self.offsets("starts")?;
        ensure!(!starts.is_empty(), "no records were deleted");
        replicas::begin_at(&self.cluster, &starts)?;
        replicas::are_the_same(&self.cluster, &ends)?;
        images::are_the_same(&self.cluster, &self.jars, self.tools.as_ref())?;
        self.cluster.check_that_all_run()
    }

    /// The same producers write on.
    pub fn go_on(&mut self) -> Result<()> {
        self.tell("load")?;
        self.goes_on()
    }

    /// Has the preferred leaders elected, so that each broker leads some partitions.
    pub fn have_leaders_of_both_kinds(&mut self) -> Result<()> {
        let all: BTreeSet<u8> = self.cluster.brokers().into_iter().collect();
        let deadline = Instant::now() + ELECTION_LIMIT;
        loop {
            self.tell("prefer")?;
            let said = self.tell("leaders")?;
            // Nobody is told as -1.
            let leaders = said.iter().filter_map(|line| line.split_once(' ')?.1.parse().ok());
            let leaders: BTreeSet<u8> = leaders.collect();
            if leaders == all {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{leaders:?} lead, and {all:?} are to: {said:?}");
        }
    }

    /// Records of every partition are acknowledged, whoever is there.
    pub fn goes_on(&mut self) -> Result<()> {
        self.tell(&format!("progress {PROGRESS}"))?;
        self.cluster.check_that_all_run()
    }

    /// Records are deleted of partitions that nodes of both kinds lead.
    fn shorten(&mut self) -> Result<()> {
        self.tell(&format!("shorten {PROGRESS}")).map(drop)
    }

    /// Offsets of partitions.
    fn offsets(&mut self, which: &str) -> Result<BTreeMap<String, i64>> {
        let offset = |line: String| -> Result<(String, i64)> {
            let (partition, offset) = line.split_once(' ').context("a partition and its offset")?;
            Ok((partition.to_owned(), offset.parse()?))
        };
        self.tell(which)?.into_iter().map(offset).collect()
    }

    /// Starts a node, and waits until it votes and its replicas are in sync.
    fn bring(&mut self, id: u8) -> Result<()> {
        self.start(id)?;
        self.is_whole()
    }

    /// Waits until all vote and all replicas are in sync.
    fn is_whole(&mut self) -> Result<()> {
        self.all_vote()?;
        self.tell("insync").map(drop)
    }

    fn start(&mut self, id: u8) -> Result<()> {
        let started = self.cluster.start(&[id]);
        started.map_err(|error| error.context(self.cluster.story()))
    }

    fn all_vote(&mut self) -> Result<()> {
        let voters = list(&self.cluster.voters());
        self.tell(&format!("voters {voters}")).map(drop)
    }

    fn controller(&mut self) -> Result<u8> {
        let said = self.tell("controller")?;
        Ok(said.last().context("a controller")?.parse()?)
    }

    fn tell(&mut self, command: &str) -> Result<Vec<String>> {
        let outcome = self.driver.run(command);
        outcome.map_err(|error| error.context(self.cluster.story()))
    }
}

fn list(ids: &[u8]) -> String {
    ids.iter().map(u8::to_string).collect::<Vec<_>>().join(",")
}
