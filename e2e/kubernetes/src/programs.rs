//! The Go programs of the rig, built from their published modules and kept.
//!
//! Called by the providers, as every one of them uses the same kubectl and Helm. Each program is kept in a folder named
//! by a hash of all that goes into it, so it is built again only when a version, a source or the compiler changes.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{hash::short_hash, oci, process};

/// The version of Kubernetes in `rig/kubernetes/go.mod`; the daemons and Helm's version checks are told.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// A build that takes longer than this hangs; the longest takes minutes.
const BUILD_DEADLINE: Duration = Duration::from_mins(45);

/// One program of `rig/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// etcd, the Kubernetes daemons, kubectl and the provisioner as one file.
    Kubernetes,
    /// `CoreDNS` with a few plugins.
    CoreDns,
    /// `pause` and small helpers for the rig's own images.
    Toolbox,
    /// Helm 4.
    Helm4,
    /// Helm 3, which many people still have.
    Helm3,
}

impl Program {
    fn folder(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::CoreDns => "coredns",
            Self::Toolbox => "toolbox",
            Self::Helm4 => "helm4",
            Self::Helm3 => "helm3",
        }
    }

    /// The package to build, seen from the program's folder.
    fn package(self) -> &'static str {
        match self {
            Self::Kubernetes | Self::CoreDns | Self::Toolbox => ".",
            Self::Helm4 => "helm.sh/helm/v4/cmd/helm",
            Self::Helm3 => "helm.sh/helm/v3/cmd/helm",
        }
    }

    fn flags(self) -> Vec<String> {
        let mut flags: Vec<String> = ["-trimpath", "-buildvcs=false"].map(String::from).to_vec();
        let mut link = "-s -w".to_owned();
        match self {
            Self::Kubernetes => {
                let minor = KUBERNETES_VERSION.split('.').nth(1).expect("the version has three parts");
                for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
                    for (name, value) in [
                        ("gitVersion", KUBERNETES_VERSION),
                        ("gitMajor", "1"),
                        ("gitMinor", minor),
                        ("gitTreeState", "clean"),
                        ("gitCommit", "0000000"),
                        ("buildDate", "2026-01-01T00:00:00Z"),
                    ] {
                        link = format!("{link} -X {package}.{name}={value}");
                    }
                }
            }
            Self::CoreDns => flags.extend(["-tags", "grpcnotrace"].map(String::from)),
            Self::Toolbox | Self::Helm4 | Self::Helm3 => {}
        }
        flags.extend(["-ldflags".to_owned(), link]);
        flags
    }

    /// The program's file; it is built first when this machine has not got it.
    pub fn ensure(self, report: &dyn Fn(&str)) -> Result<PathBuf> {
        let name = self.folder();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("rig").join(name);
        let flags = self.flags();
        let key = key(&source, &flags)?;
        let folder = cache().join("programs").join(format!("{name}-{key}"));
        let file = folder.join(name);
        if file.exists() {
            return Ok(file);
        }
        let began = Instant::now();
        report(&format!("building {name} from its Go modules; the first time takes minutes"));
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        // Built under another name, so that nobody starts half a program.
        let unfinished = folder.join(format!("{name}.{}", std::process::id()));
        let log = folder.join("build.log");
        let mut command = Command::new("go");
        command.arg("build").arg("-C").arg(&source).args(&flags).arg("-o").arg(&unfinished).arg(self.package());
        command.env("CGO_ENABLED", "0").env("GOFLAGS", "");
        let status = process::run_logged(&mut command, &log, BUILD_DEADLINE, || ())?;
        if !status.success() {
            bail!("could not build {name} with Go:\n{}", process::tail_of_file(&log));
        }
        fs::rename(&unfinished, &file)?;
        report(&format!("built {name} in {} s", began.elapsed().as_secs()));
        Ok(file)
    }
}

/// The folder for what is dear to make again: `$XDG_CACHE_HOME/gregor`, or `~/.cache/gregor`.
pub fn cache() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    base.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache"))
        .join("gregor")
}

/// A tar of the image `rig.local/<name>:1` that runs the toolbox as `name`.
pub fn toolbox_image(name: &str, report: &dyn Fn(&str)) -> Result<PathBuf> {
    let toolbox = Program::Toolbox.ensure(report)?;
    let tar = toolbox.with_file_name(format!("{name}.tar"));
    if !tar.exists() {
        let mut image = oci::Image::new(&format!("rig.local/{name}:1"), &[&format!("/bin/{name}")]);
        image.program(&format!("/bin/{name}"), &fs::read(&toolbox)?);
        image.write(&tar)?;
    }
    Ok(tar)
}

/// A hash of the sources, the flags and the compiler.
fn key(source: &Path, flags: &[String]) -> Result<String> {
    let compiler = process::output(Command::new("go").args(["env", "GOVERSION", "GOARCH"]))
        .context("Go 1.26 or newer is needed to build a Kubernetes for the tests; https://go.dev/dl has it")?;
    let mut parts = vec![compiler.into_bytes(), flags.join(" ").into_bytes()];
    let mut files: Vec<PathBuf> = fs::read_dir(source)
        .with_context(|| format!("could not list {}", source.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    for file in files {
        parts.push(file.file_name().expect("a listed file has a name").as_encoded_bytes().to_vec());
        parts.push(fs::read(&file)?);
    }
    Ok(short_hash(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_that_the_daemons_are_told_is_the_one_in_go_mod() {
        let go_mod = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("rig/kubernetes/go.mod")).unwrap();
        assert!(go_mod.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}\n")));
    }

    #[test]
    fn a_changed_source_gives_another_key() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("main.go"), "package main").unwrap();
        let before = key(folder.path(), &[]).unwrap();
        assert_eq!(before, key(folder.path(), &[]).unwrap());
        fs::write(folder.path().join("main.go"), "package main ").unwrap();
        assert_ne!(before, key(folder.path(), &[]).unwrap());
    }
}
