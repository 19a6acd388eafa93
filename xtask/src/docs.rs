//! `cargo xtask docs`: the pages of `docs/` that are made from the program.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::paths;

/// Arguments of `cargo xtask docs`.
#[derive(Args)]
pub struct Arguments {
    /// Fail when a page is not what it would be, and write nothing.
    #[arg(long)]
    check: bool,
}

/// Writes or checks `docs/configuration.md`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let path = paths::root().join("docs/configuration.md");
    let page = gregor_config::configuration_page();
    if !arguments.check {
        return fs::write(&path, page).with_context(|| format!("writing {}", path.display()));
    }
    if fs::read_to_string(&path).unwrap_or_default() != page {
        bail!("docs/configuration.md is not what the table of keys says: run `cargo xtask docs`");
    }
    Ok(())
}
