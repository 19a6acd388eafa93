//! `cargo xtask bench`: builds what is measured and what measures it in release and hands over to `e2e/bench`.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::paths;

/// Arguments of the bench itself; `cargo xtask bench -- --help` shows them.
#[derive(Args)]
pub struct Arguments {
    /// Workloads and options, handed on.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds and runs it from the workspace's root.
pub fn run(arguments: &Arguments) -> Result<()> {
    let root = paths::root();
    // What is measured without a broker needs none.
    let measured = if arguments.rest.iter().any(|argument| argument == "--sim") { "gregor-sim" } else { "gregor" };
    let build = ["build", "--release", "--package", measured, "--package", "gregor-bench"];
    let built = paths::cargo().args(build).status()?;
    if !built.success() {
        bail!("the release build failed");
    }
    let bench =
        Command::new(root.join("target/release/gregor-bench")).args(&arguments.rest).current_dir(&root).status()?;
    if !bench.success() {
        bail!("the bench failed");
    }
    Ok(())
}
