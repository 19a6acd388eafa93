//! The images: what they are called, what is in them, where their archives are.
//!
//! Written by `cargo xtask images` and `cargo xtask up`, loaded into the cluster by the latter.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use gregor_apache::{Jars, Release};
use gregor_kubernetes::{
    hash,
    oci::Image,
    process::output,
    programs::{self, Program},
};

use crate::target;

/// The registry part of our references: container engines keep images that were built and never pushed under it.
pub const REGISTRY: &str = "localhost";
/// The tag of our images: the version of the workspace.
pub const TAG: &str = env!("CARGO_PKG_VERSION");

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const TIME_ZONES: &str = "/usr/share/zoneinfo";

/// One of the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// The broker.
    Gregor,
    /// The operator.
    Operator,
    /// kcat, a Java runtime with Kafka's console tools, and the generator of events: for tests only.
    Clients,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gregor, Self::Operator, Self::Clients];

    /// The image's name, which is its program's too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gregor => "gregor",
            Self::Operator => "gregor-operator",
            Self::Clients => "gregor-clients",
        }
    }

    /// Registry, name and tag.
    pub fn reference(self) -> String {
        self.reference_with(TAG)
    }

    /// The same with another tag.
    pub fn reference_with(self, tag: &str) -> String {
        format!("{REGISTRY}/{}:{tag}", self.as_str())
    }

    /// Where its archive is.
    pub fn archive(self) -> PathBuf {
        target().join("images").join(format!("{}.tar", self.as_str()))
    }
}

/// A static program on an empty root with CA certificates and time zones; `architecture` in OCI's words.
pub fn pack_program(name: Name, tag: &str, architecture: &str, program: &Path, archive: &Path) -> Result<String> {
    let path = format!("/bin/{}", name.as_str());
    let mut image = Image::new(&name.reference_with(tag), &[&path]);
    image
        .architecture(architecture)
        .environment(&format!("SSL_CERT_FILE={CERTIFICATES}"))
        .label("org.opencontainers.image.title", name.as_str())
        .label("org.opencontainers.image.version", TAG)
        .label("org.opencontainers.image.licenses", "Apache-2.0");
    image.program(&path, &fs::read(program).with_context(|| format!("could not read {}", program.display()))?);
    image.copy(Path::new(CERTIFICATES), CERTIFICATES)?;
    // Only the compiled zones: not the sources, the copies with leap seconds, the link to this machine's own zone.
    image.copy_folder(Path::new(TIME_ZONES), TIME_ZONES, &|path| {
        let first = path.iter().next().and_then(|part| part.to_str()).unwrap_or_default();
        !matches!(first, "right" | "posix" | "localtime" | "posixrules")
            && path.extension().is_none()
            && first != "leapseconds"
    })?;
    image.write(archive)
}

/// The clients' image, from this machine's own kcat and Java, and Kafka's released jars.
pub fn pack_clients(events: &Path, report: &dyn Fn(&str)) -> Result<String> {
    let jars = gregor_apache::jars(&Release::complete(Release::COMPLETE))?;
    let toolbox = Program::Toolbox.ensure(report)?;
    let mut image = Image::new(&Name::Clients.reference(), &["/bin/pause"]);
    image.environment("HOME=/tmp").environment(&format!("KAFKA_RELEASE={}", Release::COMPLETE));
    image.copy(&toolbox, "/bin/pause")?;
    image.copy(events, "/bin/gregor-events")?;

    let mut libraries = BTreeSet::new();
    for (program, path) in [
        ("kcat", "/bin/kcat"),
        ("dash", "/bin/sh"),
        ("cat", "/bin/cat"),
        ("rm", "/bin/rm"),
        ("sha256sum", "/bin/sha256sum"),
        ("wc", "/bin/wc"),
        ("timeout", "/bin/timeout"),
    ] {
        let file = find_program(program)?;
        libraries.extend(shared_libraries(&file, "")?);
        image.copy(&file, path)?;
    }
    let runtime = java_runtime(report)?;
    image.copy_folder(&runtime, "/opt/java", &|_| true)?;
    // The runtime's own libraries find each other because the launcher has loaded them.
    let own = format!("{0}/lib:{0}/lib/server", runtime.display());
    libraries.extend(shared_libraries(&runtime.join("bin/java"), &own)?);
    for folder in ["lib", "lib/server"] {
        for library in fs::read_dir(runtime.join(folder))? {
            let library = library?.path();
            let name = library.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // What draws windows is never loaded; log4j needs only the beans of java.desktop.
            let draws = ["libawt", "libjawt", "libfontmanager", "libsplashscreen"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if library.extension().is_some_and(|extension| extension == "so") && !draws {
                libraries.extend(shared_libraries(&library, &own)?);
            }
        }
    }
    for library in libraries.iter().filter(|library| !library.starts_with(&runtime)) {
        image.copy(library, library.to_str().context("a library's name is not UTF-8")?)?;
    }
    add_tools(&mut image, &jars)?;
    image.write(&Name::Clients.archive())
}

fn add_tools(image: &mut Image, jars: &Jars) -> Result<()> {
    // The console tools need none of these, and they are most of the bytes.
    const NOT_NEEDED: [&str; 6] = ["rocksdbjni", "kafka-streams", "connect-", "trogdor", "jetty-", "jersey-"];
    for jar in fs::read_dir(&jars.folder).with_context(|| format!("could not list {}", jars.folder.display()))? {
        let jar = jar?.path();
        let name = jar.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !NOT_NEEDED.iter().any(|prefix| name.starts_with(prefix)) {
            image.copy(&jar, &format!("/opt/kafka/libs/{name}"))?;
        }
    }
    image.copy(&jars.log_configuration()?, "/opt/kafka/log4j2.properties")?;
    Ok(())
}

/// A Java runtime with only the modules that Kafka's tools use, made from the JDK of this machine and kept.
fn java_runtime(report: &dyn Fn(&str)) -> Result<PathBuf> {
    const MODULES: &str = "java.base,java.desktop,java.logging,java.management,java.naming,java.net.http,java.security.jgss,\
                           java.security.sasl,java.sql,java.xml,jdk.unsupported,jdk.management,jdk.crypto.ec";
    let java = fs::canonicalize(find_program("java")?)?;
    let home = java.ancestors().nth(2).context("java is in a folder bin/")?;
    let version = fs::read(home.join("release")).with_context(|| format!("{} is no JDK", home.display()))?;
    let folder =
        programs::cache().join("programs").join(format!("java-{}", hash::short_hash(&[&version, MODULES.as_bytes()])));
    if !folder.join("bin/java").exists() {
        report("making a small Java runtime for the clients' image");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(folder.parent().expect("the folder is in another one"))?;
        let mut command = Command::new(home.join("bin/jlink"));
        command.args(["--strip-debug", "--no-header-files", "--no-man-pages", "--add-modules", MODULES, "--output"]);
        output(command.arg(&folder)).context("a JDK 17 or newer with jlink is needed")?;
    }
    Ok(folder)
}

fn find_program(name: &str) -> Result<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("{name} is not installed"))
}

/// The libraries that a program or library needs, the loader included; `folders` are searched beside the usual ones.
fn shared_libraries(file: &Path, folders: &str) -> Result<Vec<PathBuf>> {
    let text = match output(Command::new("ldd").arg(file).env("LD_LIBRARY_PATH", folders)) {
        Ok(text) => text,
        // What needs no library is no dynamic executable to ldd, and an error.
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut libraries = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{} needs a library that is not there: {}", file.display(), line.trim());
        }
        libraries.extend(line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from));
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_packs_to_the_same_bytes() {
        if !Path::new(CERTIFICATES).exists() || !Path::new(TIME_ZONES).exists() {
            eprintln!("skipped: this machine has no {CERTIFICATES} or no {TIME_ZONES}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("gregor");
        fs::write(&program, "a program").unwrap();
        let pack = |name: &str| {
            let archive = folder.path().join(name);
            let digest = pack_program(Name::Gregor, TAG, "amd64", &program, &archive).unwrap();
            (digest, fs::read(archive).unwrap())
        };
        let (first, second) = (pack("first.tar"), pack("second.tar"));
        assert!(first == second);
    }
}
