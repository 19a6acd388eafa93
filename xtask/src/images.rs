//! `cargo xtask images`: the two images, as archives in `target/images/`, without a container engine.
//!
//! Also called by `up`. It publishes nothing: `docker load`, `kind load`, `skopeo copy` and `cargo xtask rig load` take it
//! from there.

use std::{env, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;
use gregor_e2e::images::{self, Name};
use gregor_kubernetes::{
    packages::{self, Need},
    process::{self, output},
};

use crate::{paths, progress::Progress};

/// A release build of everything on two slow cores takes less.
const BUILD_LIMIT: Duration = Duration::from_hours(1);

const NEEDS: &[Need] = &[
    Need::new("musl-gcc", "musl-tools"),
    Need::new("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    Need::new("/usr/share/zoneinfo/UTC", "tzdata"),
];
const NEEDS_AARCH64: &[Need] = &[Need::new("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")];

/// The arguments of `cargo xtask images`.
#[derive(Args)]
pub struct Arguments {
    /// The images' tag; the version of the workspace when left out.
    #[arg(long)]
    tag: Option<String>,
    /// Build the image of clients that the tests use, too.
    #[arg(long)]
    clients: bool,
    /// Only let the compiler check everything that the images hold for aarch64.
    #[arg(long)]
    check_aarch64: bool,
}

/// Builds and packs, or checks.
pub fn run(arguments: &Arguments) -> Result<()> {
    let progress = Progress::new();
    if arguments.check_aarch64 {
        return check_aarch64(&progress);
    }
    if arguments.clients {
        build_clients(&progress)?;
    }
    build(&progress, arguments.tag.as_deref().unwrap_or(images::TAG))
}

/// Builds the programs and writes the archives of `gregor` and `gregor-operator`.
pub fn build(progress: &Progress, tag: &str) -> Result<()> {
    packages::ensure(NEEDS, &|text| progress.line(text))?;
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("images are built for x86_64 and aarch64; this machine is {other}"),
    };
    let triple = format!("{}-unknown-linux-musl", env::consts::ARCH);
    ensure_target(&triple, progress)?;

    let mut cargo = paths::cargo();
    cargo.args(["build", "--release", "--target", &triple]);
    cargo.args(["-p", "gregor", "-p", "gregor-operator", "--bin", "gregor", "--bin", "gregor-operator"]);
    set_reproducible(&mut cargo, &triple);
    run_cargo(cargo, "images-build.log", "building the static programs", progress)?;

    for name in [Name::Gregor, Name::Operator] {
        let program = paths::target().join(&triple).join("release").join(name.as_str());
        let archive = name.archive();
        let digest = images::pack_program(name, tag, architecture, &program, &archive)?;
        let kilobytes = std::fs::metadata(&archive)?.len() / 1000;
        progress.line(&format!(
            "{} ({kilobytes} kB, {}) in {}",
            name.reference_with(tag),
            &digest[..19],
            archive.display()
        ));
    }
    Ok(())
}

/// The image of unmodified clients, which the tests and `up` run in pods.
pub fn build_clients(progress: &Progress) -> Result<()> {
    packages::ensure(&[Need::new("kcat", "kcat"), Need::new("mvn", "maven")], &|text| progress.line(text))?;
    let mut cargo = paths::cargo();
    cargo.args(["build", "--release", "-p", "gregor-e2e", "--bin", "gregor-events"]);
    run_cargo(cargo, "clients-build.log", "building the generator of events", progress)?;
    progress.now("fetching Kafka's tools from Maven, packing the clients' image");
    images::pack_clients(&paths::target().join("release/gregor-events"), &|text| progress.line(text))?;
    Ok(())
}

/// Neither the checkout's place nor the registry's is in the programs, so that every checkout builds the same bytes.
fn set_reproducible(cargo: &mut Command, triple: &str) {
    let home = env::var("CARGO_HOME").unwrap_or_else(|_| format!("{}/.cargo", env::var("HOME").unwrap_or_default()));
    let root = paths::root();
    let variable = triple.replace('-', "_");
    cargo.env(
        format!("CARGO_TARGET_{}_RUSTFLAGS", variable.to_uppercase()),
        format!("--remap-path-prefix={}=/gregor --remap-path-prefix={home}=/cargo", root.display()),
    );
    cargo.env(format!("CFLAGS_{variable}"), format!("-ffile-prefix-map={home}=/cargo"));
    cargo.env("SOURCE_DATE_EPOCH", "0");
}

fn check_aarch64(progress: &Progress) -> Result<()> {
    const TRIPLE: &str = "aarch64-unknown-linux-musl";
    packages::ensure(NEEDS_AARCH64, &|text| progress.line(text))?;
    ensure_target(TRIPLE, progress)?;
    let mut cargo = paths::cargo();
    cargo.args(["check", "--target", TRIPLE, "-p", "gregor", "-p", "gregor-operator"]);
    // Nothing is linked, so the C parts may be compiled by a compiler for another C library of that architecture.
    cargo.env("CC_aarch64_unknown_linux_musl", "aarch64-linux-gnu-gcc");
    cargo.env("AR_aarch64_unknown_linux_musl", "aarch64-linux-gnu-ar");
    run_cargo(cargo, "check-aarch64.log", "checking for aarch64", progress)?;
    progress.line("the compiler is content on aarch64");
    Ok(())
}

/// The standard library for a target, installed by rustup where it is missing.
fn ensure_target(triple: &str, progress: &Progress) -> Result<()> {
    let installed = output(Command::new("rustup").args(["target", "list", "--installed"]))
        .with_context(|| format!("rustup is needed to install the Rust target {triple}; https://rustup.rs has it"))?;
    if !installed.lines().any(|line| line == triple) {
        progress.line(&format!("installing the Rust target {triple}"));
        output(Command::new("rustup").args(["target", "add", triple]))?;
    }
    Ok(())
}

fn run_cargo(mut cargo: Command, log: &str, what: &str, progress: &Progress) -> Result<()> {
    let log = paths::target().join(log);
    std::fs::create_dir_all(paths::target())?;
    let _ = std::fs::remove_file(&log);
    progress.line(what);
    let status = process::run_logged(&mut cargo, &log, BUILD_LIMIT, || {
        let tail = process::tail_of_file(&log);
        progress.now(&format!("{what}: {}", tail.lines().last().unwrap_or_default().trim()));
    })?;
    if !status.success() {
        bail!("{what} failed:\n{}\nThe whole output is in {}", process::tail_of_file(&log), log.display());
    }
    Ok(())
}
