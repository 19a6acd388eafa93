//! Programs that come from the distribution: installed by name where that is possible, else named.
//!
//! Called before anything that needs them, by this crate and by `xtask`. It installs nothing that is there already.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::process;

/// A program or file, and the Debian package that brings it.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// A program's name, or the absolute path of a file.
    pub what: &'static str,
    /// The Debian package.
    pub package: &'static str,
}

impl Need {
    /// A need, in a table of constants.
    pub const fn new(what: &'static str, package: &'static str) -> Self {
        Self { what, package }
    }

    fn met(&self) -> bool {
        if self.what.starts_with('/') { Path::new(self.what).exists() } else { process::installed(self.what) }
    }
}

/// Installs what is missing with `apt-get` when root runs on a Debian; else the error is the line to type.
pub fn ensure(needs: &[Need], report: &dyn Fn(&str)) -> Result<()> {
    let mut packages: Vec<&str> = needs.iter().filter(|need| !need.met()).map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !process::installed("apt-get") || !rustix::process::geteuid().is_root() {
        bail!(
            "this needs programs that are not installed: run `sudo apt-get install {list}` (Debian's names) and try again"
        );
    }
    report(&format!("installing Debian packages: {list}"));
    let install = || {
        process::output(
            Command::new("apt-get")
                .args(["install", "-y", "--no-install-recommends"])
                .args(&packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    // A machine that never asked knows no packages, one that asked long ago may know files that are gone.
    let knows_packages = fs::read_dir("/var/lib/apt/lists").is_ok_and(|lists| lists.count() > 3);
    if !knows_packages || install().is_err() {
        process::output(Command::new("apt-get").args(["update", "-q"]))?;
        install()?;
    }
    match needs.iter().find(|need| !need.met()) {
        Some(need) => bail!("package {} is installed, but `{}` is still not there", need.package, need.what),
        None => Ok(()),
    }
}
