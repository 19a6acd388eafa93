//! `cargo xtask sim`: builds the simulator in release and plays worlds in it, of clusters unless those of one node are asked for.

use anyhow::{Result, bail};
use clap::Args;

use crate::paths;

/// Which worlds.
#[derive(Args)]
pub struct Arguments {
    /// Play so many worlds, on all cores.
    #[arg(long, value_name = "N", required_unless_present = "seed", conflicts_with = "seed")]
    seeds: Option<u64>,
    /// The first seed of those.
    #[arg(long, value_name = "S", default_value_t = 0, conflicts_with = "seed")]
    from: u64,
    /// Play one world and print its story.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Play worlds of one node, whose disk and clients are what is harmed, not of clusters.
    #[arg(long)]
    one_node: bool,
    /// Clusters of so many nodes, each broker and controller; else their seeds say.
    #[arg(long, value_name = "N", conflicts_with = "one_node")]
    nodes: Option<u64>,
    /// Play so many worlds at a time, not one for each core.
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    jobs: Option<u64>,
    /// Build without optimization: sooner ready, and slower.
    #[arg(long)]
    debug: bool,
}

/// Fails if a world breaks a promise.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut sim = paths::cargo();
    sim.args(["run", "--quiet", "--package", "gregor-sim"]);
    if !arguments.debug {
        sim.arg("--release");
    }
    sim.arg("--").args(arguments.of_program());
    if !sim.status()?.success() {
        bail!("a world broke a promise, or the simulator could not be built");
    }
    Ok(())
}

impl Arguments {
    /// What the program `gregor-sim` is started with.
    fn of_program(&self) -> Vec<String> {
        let mut program = Vec::new();
        if !self.one_node {
            program.push("cluster".to_owned());
        }
        let from = self.seeds.map(|_| self.from);
        let numbers = [
            ("--seed", self.seed),
            ("--seeds", self.seeds),
            ("--from", from),
            ("--nodes", self.nodes),
            ("--jobs", self.jobs),
        ];
        for (name, number) in numbers {
            program.extend(number.into_iter().flat_map(|number| [name.to_owned(), number.to_string()]));
        }
        program
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn clusters_are_played_unless_worlds_of_one_node_are_asked_for() {
        let program =
            |line: &str| Line::try_parse_from(line.split(' ')).map(|line| line.arguments.of_program().join(" ")).ok();
        for (line, wanted) in [
            ("sim --seeds 5", "cluster --seeds 5 --from 0"),
            ("sim --seeds 5 --from 3 --nodes 5 --jobs 1 --debug", "cluster --seeds 5 --from 3 --nodes 5 --jobs 1"),
            ("sim --seed 7", "cluster --seed 7"),
            ("sim --seed 7 --one-node", "--seed 7"),
            ("sim --one-node --seeds 5 --from 3", "--seeds 5 --from 3"),
        ] {
            assert_eq!(program(line).as_deref(), Some(wanted), "{line}");
        }
        for wrong in ["sim", "sim --seeds 5 --seed 7", "sim --seed 7 --from 3", "sim --seed 7 --one-node --nodes 3"] {
            assert_eq!(program(wrong), None, "{wrong}");
        }
    }
}
