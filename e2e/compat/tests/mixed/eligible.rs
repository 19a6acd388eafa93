//! One partition whose replicas leave one after another, cleanly and not, and come back in another order: both kinds of controllers
//! have the same replicas in sync, eligible and remembered at each step (KIP-966), and what was acknowledged is there at the end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gregor_apache::Jars;
use gregor_compat::Driver;

use crate::cluster::{Cluster, Kind, Plan, Quorum, Role};

/// How long a command of the driver may take; what it waits for has an earlier end of its own.
const COMMAND_LIMIT: Duration = Duration::from_mins(3);

/// What is done to a cluster whose controller is node 1, whose nodes 2 to 4 have the partition, and whose node 5 is only asked.
enum Step {
    Stop(u8),
    Kill(u8),
    Start(u8),
    /// The leader, who is in sync, who is eligible, and who led last.
    Until(&'static str),
    /// A record is acknowledged by all that are in sync.
    Write(&'static str),
    /// There are too few of them.
    Refused(&'static str),
}

/// Two replicas have to be in sync.
const STORY: [Step; 33] = {
    use Step::{Kill, Refused, Start, Stop, Until, Write};
    [
        Until("2 2,3,4 - -"),
        Write("a"),
        Stop(4),
        Until("2 2,3 - -"),
        Write("b"),
        Stop(3),
        Until("2 2 3 -"),
        Refused("x"),
        Stop(2),
        Until("- - 2,3 2"),
        // It was in sync while b was not there yet.
        Start(4),
        Until("- - 2,3 2"),
        Start(3),
        Until("3 3,4 - -"),
        Write("c"),
        Start(2),
        Until("3 2,3,4 - -"),
        Write("d"),
        // From here on whoever goes may have lost what it had.
        Kill(4),
        Until("3 2,3 - -"),
        Write("e"),
        Kill(2),
        Until("3 3 2 -"),
        Refused("y"),
        Kill(3),
        Until("- - 2,3 3"),
        Start(2),
        Until("- - 3 3"),
        Start(3),
        Until("3 2,3 - -"),
        Write("f"),
        Start(4),
        Until("3 2,3,4 - -"),
    ]
};

/// Plays it with a controller of a kind; the partition's replicas are of both kinds.
pub fn plays(controller: Kind, tools: &Jars, jars: Jars, release: &'static str) -> Result<()> {
    println!("{controller} is the controller, Apache {} on {release}", jars.release.version);
    let other = controller.other();
    let nodes = vec![
        (Role::Controller, controller),
        (Role::Broker, controller),
        (Role::Broker, other),
        (Role::Broker, controller),
        (Role::Broker, Kind::Gregor),
    ];
    let mut cluster = Cluster::new(Plan { nodes, quorum: Quorum::Static, jars, release })?;
    let played = play(&mut cluster, tools);
    played.map_err(|error| error.context(cluster.story()))
}

fn play(cluster: &mut Cluster, tools: &Jars) -> Result<()> {
    cluster.start(&cluster.ids())?;
    let bootstrap = cluster.bootstrap();
    let mut driver = Driver::start(tools, cluster.path(), "mixed/Eligible.java", &[&bootstrap], COMMAND_LIMIT)?;
    driver.run("create 2,3,4")?;
    let mut acknowledged = Vec::new();
    for (number, step) in STORY.iter().enumerate() {
        let outcome = match step {
            Step::Stop(id) => cluster.stop(*id),
            Step::Kill(id) => cluster.kill(*id),
            Step::Start(id) => cluster.start(&[*id]),
            Step::Until(state) => driver.run(&format!("until {state}")).map(drop),
            Step::Write(value) => driver.run(&format!("write {value}")).map(|_| acknowledged.push(*value)),
            Step::Refused(value) => driver.run(&format!("refused {value}")).map(drop),
        };
        outcome.with_context(|| format!("in step {number}"))?;
    }
    let read = driver.run("read")?;
    // What was refused may have been written all the same.
    let of_those: Vec<_> = read.iter().filter(|value| acknowledged.contains(&value.as_str())).collect();
    ensure!(
        of_those == acknowledged.iter().collect::<Vec<_>>(),
        "{acknowledged:?} was acknowledged, and {read:?} is read"
    );
    cluster.check_that_all_run()
}
