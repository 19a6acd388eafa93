//! `cargo xtask crds [--check]`: writes the custom resource definitions into `crds/` and the chart `gregor-crds`, or says
//! which file is stale. The definitions themselves are operator/api's; nothing here knows their content.

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::paths;

/// Write the custom resource definitions from operator/api.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Write nothing; fail if a file differs.
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut command = paths::cargo();
    command.args(["run", "--quiet", "--package", "gregor-operator-api", "--example", "crds", "--", "."]);
    if arguments.check {
        command.arg("--check");
    }
    let status = command.status().context("cargo could not be started")?;
    ensure!(status.success(), "the custom resource definitions could not be written or differ, see above");
    Ok(())
}
