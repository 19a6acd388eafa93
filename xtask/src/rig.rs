//! `cargo xtask rig`: the rig of namespaces by itself, for whoever develops the operator or looks into a failed test.

use std::{os::unix::process::CommandExt, path::PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use gregor_kubernetes::{NodeFault, Rig};

use crate::progress::Progress;

/// The arguments of `cargo xtask rig`.
#[derive(Args)]
pub struct Arguments {
    /// Which rig; several can run at once.
    #[arg(long, default_value = "default", global = true)]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a control plane and this many nodes; 0 is an API server without nodes, ready in seconds.
    Up {
        #[arg(default_value_t = 3)]
        nodes: u32,
    },
    /// End the rig and remove all of it.
    Down,
    /// Run a command inside the rig's network with KUBECONFIG set, for example `-- kubectl get nodes`.
    Exec {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Make image archives known to every node.
    Load { archives: Vec<PathBuf> },
    /// Harm a node, or end the harm.
    Fault { node: u32, fault: Fault },
    /// Have all that a node sends to another be lost, one way, until mend.
    Cut { from: u32, to: u32 },
    /// Have what a node sends to another arrive again.
    Mend { from: u32, to: u32 },
    /// Say where the rig's files, logs and kubeconfig are.
    Info,
}

#[derive(Clone, Copy, ValueEnum)]
enum Fault {
    Kill,
    Restart,
    Freeze,
    Thaw,
    Disconnect,
    Reconnect,
}

/// Does what was asked.
pub fn run(arguments: &Arguments) -> Result<()> {
    let rig = Rig::named(&arguments.name);
    let progress = Progress::new();
    let report = |text: &str| progress.line(text);
    match &arguments.verb {
        Verb::Up { nodes } => {
            rig.up(*nodes, &report)?;
            progress.line(&format!("rig {:?} is up; try `cargo xtask rig exec kubectl get nodes`", arguments.name));
        }
        Verb::Down => rig.down(&report)?,
        Verb::Exec { command } => {
            drop(progress);
            let error = rig.command(&command[0])?.args(&command[1..]).exec();
            bail!("could not start {}: {error}", command[0]);
        }
        Verb::Load { archives } => {
            for archive in archives {
                rig.load_image(archive)?;
                progress.line(&format!("{} is on every node", archive.display()));
            }
        }
        Verb::Fault { node, fault } => {
            let fault = match fault {
                Fault::Kill => NodeFault::Kill,
                Fault::Restart => NodeFault::Restart,
                Fault::Freeze => NodeFault::Freeze,
                Fault::Thaw => NodeFault::Thaw,
                Fault::Disconnect => NodeFault::Disconnect,
                Fault::Reconnect => NodeFault::Reconnect,
            };
            rig.fault(*node, fault)?;
        }
        Verb::Cut { from, to } => rig.cut(*from, *to)?,
        Verb::Mend { from, to } => rig.mend(*from, *to)?,
        Verb::Info => {
            println!("{}: {}", arguments.name, if rig.is_up() { "up" } else { "down" });
            println!("nodes: {:?}", rig.nodes());
            println!("files and logs: {}", rig.state().display());
            println!("kubeconfig (works inside `cargo xtask rig exec`): {}", rig.kubeconfig().display());
        }
    }
    Ok(())
}
