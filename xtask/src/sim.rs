//! `cargo xtask sim`: builds the simulator in release and plays worlds in it.

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
    /// Play worlds of several nodes, not of one.
    #[arg(long)]
    cluster: bool,
    /// Clusters of so many nodes, each broker and controller; else their seeds say.
    #[arg(long, value_name = "N", requires = "cluster")]
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
    sim.arg("--");
    if arguments.cluster {
        sim.arg("cluster");
    }
    match (arguments.seed, arguments.seeds) {
        (Some(seed), _) => sim.args(["--seed", &seed.to_string()]),
        (None, seeds) => {
            let (seeds, from) = (seeds.unwrap_or_default().to_string(), arguments.from.to_string());
            sim.args(["--seeds", &seeds, "--from", &from])
        }
    };
    for (name, number) in [("--nodes", arguments.nodes), ("--jobs", arguments.jobs)] {
        if let Some(number) = number {
            sim.args([name, &number.to_string()]);
        }
    }
    if !sim.status()?.success() {
        bail!("a world broke a promise, or the simulator could not be built");
    }
    Ok(())
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
    fn many_worlds_or_one_are_chosen_with_all_else() {
        let from = |line: &str| Line::try_parse_from(line.split(' ')).map(|line| line.arguments.from).ok();
        assert_eq!(from("sim --seeds 5 --from 3 --cluster --debug"), Some(3));
        assert_eq!(from("sim --seed 7 --cluster"), Some(0));
        for wrong in ["sim", "sim --seeds 5 --seed 7", "sim --seed 7 --from 3"] {
            assert_eq!(from(wrong), None, "{wrong}");
        }
    }
}
