//! `gregor storage`: formats log directories, as `kafka-storage` does, and says what is on them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use gregor_config::{BrokerConfig, Listener, Properties};
use gregor_log::disk::RealDisk;
use gregor_metadata::{
    ELIGIBLE_LEADER_REPLICAS_FEATURE, KRAFT_VERSION_FEATURE, METADATA_VERSION_FEATURE, MetadataVersion, ServedFeature,
};
use gregor_raft::{Endpoint, ReplicaKey, Voter};
use gregor_server::control::{FormatOptions, Formatted, InitialVoters, format_storage};
use gregor_types::{BrokerId, ClusterId, DirectoryId, KString, Timestamp, Uuid};

use crate::{broker::load, identity};

/// What to do with storage.
#[derive(Subcommand)]
pub enum Command {
    /// Format the log directories of a node.
    ///
    /// Options are those of kafka-storage. A node whose server.properties has no controller.quorum.voters is part of a dynamic
    /// quorum: say with --standalone, --initial-controllers or --no-initial-controllers how that begins.
    Format(FormatArguments),
    /// Say what is on the log directories of a node.
    Info {
        /// The node's server.properties.
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a new id, for a cluster or a directory.
    RandomUuid,
    /// Make sure of a node's storage before it starts, as the operator's pods do.
    ///
    /// A formatted directory is only compared. An empty one is formatted if that is granted; else this ends with code 3 and
    /// writes one line of JSON that says why. Code 4 stands for a node whose storage is good and that has to wait.
    Ensure(EnsureArguments),
}

/// `gregor storage format`.
#[derive(Args)]
pub struct FormatArguments {
    /// The node's server.properties.
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// The cluster's id; `gregor storage random-uuid` makes one.
    #[arg(long, short = 't', value_name = "ID")]
    cluster_id: String,
    /// This node alone is the first voter of a dynamic quorum.
    #[arg(long, short, group = "voters")]
    standalone: bool,
    /// The first voters of a dynamic quorum, as ID@HOST:PORT:DIRECTORY-ID with commas between; the same on each of them.
    #[arg(long, short = 'I', group = "voters", value_name = "VOTERS")]
    initial_controllers: Option<String>,
    /// The quorum exists already, or will: this node joins it.
    #[arg(long, short = 'N', group = "voters")]
    no_initial_controllers: bool,
    /// The release to format for, such as 4.3 or 4.3-IV0.
    #[arg(long, short, value_name = "RELEASE")]
    release_version: Option<String>,
    /// The level of a feature, such as eligible.leader.replicas.version=0. May be given several times.
    #[arg(long, short, value_parser = feature, value_name = "NAME=LEVEL")]
    feature: Vec<(String, i16)>,
    /// The id of the metadata directory; a random one when left out.
    #[arg(long, value_name = "ID")]
    directory_id: Option<Uuid>,
    /// Leave directories that are formatted already as they are, and succeed.
    #[arg(long, short = 'g')]
    ignore_formatted: bool,
}

/// `gregor storage ensure`.
#[derive(Args)]
pub struct EnsureArguments {
    /// The node's server.properties.
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// The cluster's id.
    #[arg(long, short = 't', value_name = "ID")]
    cluster_id: String,
    /// The id that the metadata directory has, or gets.
    #[arg(long, value_name = "ID")]
    directory_id: Uuid,
    /// What may be done to an empty directory.
    #[arg(long, value_enum)]
    grant: Grant,
    /// End with code 4 for as long as something is still granted: a node that runs only after the grant was withdrawn never
    /// runs on a disk that could be formatted a second time.
    #[arg(long)]
    until_recorded: bool,
    /// The rack that the node is told; code 4 while it is empty.
    #[arg(long, value_name = "RACK")]
    rack: Option<String>,
    /// Where to say why this ended with code 3 or 4.
    #[arg(long, value_name = "FILE")]
    termination_log: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Grant {
    /// Format it, and start a quorum of this node alone.
    Standalone,
    /// Format it as that of a node that joins a quorum which exists, or of a broker.
    Join,
    /// Nothing.
    None,
}

/// What `ensure` ends with when the storage is not what it should be; the operator reads it.
const REFUSED: u8 = 3;
/// What it ends with when the storage is good and the node has to wait all the same: asking again is all that is needed.
const WAIT: u8 = 4;

/// Runs one of them.
pub fn run(command: &Command) -> ExitCode {
    let outcome = match command {
        Command::Format(arguments) => format(arguments),
        Command::Info { config, json } => info(config, *json),
        Command::RandomUuid => {
            println!("{}", identity::uuid());
            Ok(())
        }
        Command::Ensure(arguments) => match ensure_storage(arguments) {
            Ok(None) => match wait(arguments) {
                None => Ok(()),
                Some(why) => return end(arguments, &why, WAIT),
            },
            Ok(Some(refusal)) => return end(arguments, &refusal, REFUSED),
            Err(error) => Err(error),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gregor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn format(arguments: &FormatArguments) -> Result<()> {
    let config = load(&arguments.config, &[])?;
    let initial =
        arguments.initial_controllers.as_deref().map(|text| initial_controllers(text, &config)).transpose()?;
    // Among the first voters this node finds the id that the others know its directory by.
    let known =
        initial.iter().flatten().find(|voter| voter.key.id == config.node_id).and_then(|voter| voter.key.directory);
    let directory_id = arguments.directory_id.or(known).unwrap_or_else(identity::uuid);
    let static_quorum = !config.controller_quorum_voters.is_empty();
    let chosen = arguments.standalone || arguments.no_initial_controllers || arguments.initial_controllers.is_some();
    ensure!(
        !(static_quorum && chosen),
        "{} has controller.quorum.voters, a static quorum: leave out --standalone, --initial-controllers and \
         --no-initial-controllers, or take controller.quorum.voters out",
        arguments.config.display()
    );
    ensure!(
        static_quorum || chosen || !config.process_roles.controller,
        "{} has no controller.quorum.voters, so the quorum is dynamic: say how it begins with --standalone (this node alone), \
         --initial-controllers, or --no-initial-controllers (it joins one that exists)",
        arguments.config.display()
    );
    let voters = match initial {
        Some(voters) => InitialVoters::Dynamic(voters),
        None if arguments.standalone => InitialVoters::Dynamic(vec![this_voter(&config, directory_id)?]),
        None => InitialVoters::None,
    };
    let mut options = format_options(&config, arguments.cluster_id.as_str().into(), directory_id, voters)?;
    options.ignore_formatted = arguments.ignore_formatted;
    if let Some(release) = &arguments.release_version {
        options.metadata_version = release_level(release)?;
    }
    for (name, level) in &arguments.feature {
        if name == METADATA_VERSION_FEATURE {
            options.metadata_version = *level;
        } else {
            options.features.push((name.clone(), *level));
        }
    }
    for done in format_storage(&RealDisk, &options)? {
        match done {
            Formatted::New(path) => println!(
                "Formatting {} with metadata.version {}.",
                path.display(),
                MetadataVersion::from_level(options.metadata_version).map_or("?", MetadataVersion::name)
            ),
            Formatted::Already(path) => println!("{} is formatted already.", path.display()),
        }
    }
    Ok(())
}

/// What formatting this node means, with the metadata directory's id given and random ids for the others.
pub fn format_options(
    config: &BrokerConfig,
    cluster_id: ClusterId,
    directory_id: DirectoryId,
    voters: InitialVoters,
) -> Result<FormatOptions> {
    let mut paths = config.log_dirs.clone();
    if !paths.contains(&config.metadata_log_dir) {
        paths.push(config.metadata_log_dir.clone());
    }
    let id_of = |path: &PathBuf| if *path == config.metadata_log_dir { directory_id } else { identity::uuid() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    Ok(FormatOptions {
        cluster_id,
        node_id: config.node_id,
        directories: paths.iter().map(|path| (path.clone(), id_of(path))).collect(),
        metadata_directory: config.metadata_log_dir.clone(),
        voters,
        metadata_version: MetadataVersion::DEFAULT.level(),
        features: Vec::new(),
        ignore_formatted: false,
        now: Timestamp(i64::try_from(now.as_millis())?),
    })
}

/// This node as the voter of a quorum of one.
pub fn this_voter(config: &BrokerConfig, directory_id: DirectoryId) -> Result<Voter> {
    let endpoints: Vec<Endpoint> = config.controller_listeners().map(endpoint).collect();
    ensure!(!endpoints.is_empty(), "this node is no controller: process.roles has none");
    Ok(voter(config.node_id, directory_id, endpoints))
}

fn endpoint(listener: &Listener) -> Endpoint {
    let advertised = &listener.advertised;
    let host = if advertised.host.is_empty() { "localhost" } else { &advertised.host };
    Endpoint { name: advertised.name.as_str().into(), host: host.into(), port: advertised.port }
}

fn voter(id: BrokerId, directory_id: DirectoryId, endpoints: Vec<Endpoint>) -> Voter {
    let kraft = ServedFeature::of(KRAFT_VERSION_FEATURE);
    Voter { key: ReplicaKey::new(id, directory_id), endpoints, kraft_versions: (kraft.min, kraft.max) }
}

fn initial_controllers(text: &str, config: &BrokerConfig) -> Result<Vec<Voter>> {
    let name = config.controller_listener_names.first().map_or("CONTROLLER", String::as_str);
    let parse = |item: &str| -> Option<Voter> {
        let (id, address) = item.trim().split_once('@')?;
        let (address, directory) = address.rsplit_once(':')?;
        let (host, port) = address.rsplit_once(':')?;
        let host = host.trim_matches(['[', ']']);
        let endpoint = Endpoint { name: name.into(), host: host.into(), port: port.parse().ok()? };
        Some(voter(BrokerId(id.parse().ok()?), directory.parse().ok()?, vec![endpoint]))
    };
    text.split(',')
        .map(|item| {
            parse(item).with_context(|| {
                format!("--initial-controllers: {item:?} is not ID@HOST:PORT:DIRECTORY-ID, such as 1@host:9093:uZ9tHTWSR9SSAv6t2EZdKw")
            })
        })
        .collect()
}

fn release_level(release: &str) -> Result<i16> {
    let Some(version) = MetadataVersion::from_name(release) else {
        let names: Vec<_> = MetadataVersion::all().map(MetadataVersion::name).collect();
        bail!("--release-version {release} is not served; known are {}", names.join(", "));
    };
    Ok(version.level())
}

fn feature(text: &str) -> Result<(String, i16), String> {
    let parsed = text.split_once('=').and_then(|(name, level)| Some((name.to_owned(), level.parse().ok()?)));
    parsed.ok_or_else(|| "expected NAME=LEVEL, such as kraft.version=1".to_owned())
}

/// What stands on one directory.
struct Found {
    path: PathBuf,
    state: State,
}

enum State {
    /// Nothing of Kafka's.
    Empty,
    /// Formatted.
    Formatted { cluster_id: KString, node_id: String, directory_id: String },
    /// Something that is not a formatted directory.
    Foreign(String),
}

fn look(path: &Path) -> Result<State> {
    let file = path.join("meta.properties");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return look_unformatted(path),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    let properties = match Properties::parse(&text) {
        Ok(properties) => properties,
        Err(error) => return Ok(State::Foreign(format!("{}: {error}", file.display()))),
    };
    let value = |key: &str| properties.value(key).unwrap_or_default().to_owned();
    let node_id = properties.value("node.id").or_else(|| properties.value("broker.id")).unwrap_or_default().to_owned();
    Ok(State::Formatted { cluster_id: value("cluster.id").into(), node_id, directory_id: value("directory.id") })
}

/// A disk that was just made may hold `lost+found`; anything that looks like a log means that its identity was lost.
fn look_unformatted(path: &Path) -> Result<State> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(State::Empty),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    // Formatting writes meta.properties last: what it wrote before may stand there from a start that was cut off.
    let from_formatting = ["lost+found", "bootstrap.checkpoint", "__cluster_metadata-0", ".lock"];
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_log = path.join(&name).is_dir() && !from_formatting.contains(&name.as_str());
        let metadata_log = name == "__cluster_metadata-0"
            && fs::read_dir(path.join(&name))?
                .flatten()
                .any(|file| Path::new(&file.file_name()).extension().is_some_and(|extension| extension == "log"));
        if is_log || metadata_log {
            return Ok(State::Foreign(format!("{} holds {name}, but no meta.properties", path.display())));
        }
    }
    Ok(State::Empty)
}

fn found(config: &BrokerConfig) -> Result<Vec<Found>> {
    let mut paths = config.log_dirs.clone();
    if !paths.contains(&config.metadata_log_dir) {
        paths.push(config.metadata_log_dir.clone());
    }
    paths.into_iter().map(|path| Ok(Found { state: look(&path)?, path })).collect()
}

fn info(config: &Path, json: bool) -> Result<()> {
    let config = load(config, &[])?;
    let found = found(&config)?;
    if json {
        let directories: Vec<_> = found
            .iter()
            .map(|Found { path, state }| match state {
                State::Empty => serde_json::json!({ "path": path, "state": "empty" }),
                State::Foreign(why) => serde_json::json!({ "path": path, "state": "foreign", "why": why }),
                State::Formatted { cluster_id, node_id, directory_id } => serde_json::json!({
                    "path": path, "state": "formatted", "clusterId": cluster_id.as_str(), "nodeId": node_id,
                    "directoryId": directory_id,
                }),
            })
            .collect();
        println!("{}", serde_json::json!({ "directories": directories }));
        return Ok(());
    }
    for Found { path, state } in &found {
        match state {
            State::Empty => println!("{}: empty", path.display()),
            State::Foreign(why) => println!("{}: not usable: {why}", path.display()),
            State::Formatted { cluster_id, node_id, directory_id } => println!(
                "{}: formatted for node {node_id} of cluster {cluster_id}, directory {directory_id}",
                path.display()
            ),
        }
    }
    Ok(())
}

/// Why a node must not start, or not yet.
struct Refusal {
    reason: &'static str,
    message: String,
}

fn ensure_storage(arguments: &EnsureArguments) -> Result<Option<Refusal>> {
    let config = load(&arguments.config, &[])?;
    let mut empty = Vec::new();
    for Found { path, state } in found(&config)? {
        match state {
            State::Empty => empty.push(path),
            State::Foreign(message) => return Ok(Some(Refusal { reason: "ForeignDisk", message })),
            State::Formatted { cluster_id, node_id, directory_id } => {
                let is_metadata = path == config.metadata_log_dir;
                let wanted = [
                    ("cluster.id", cluster_id.as_str(), arguments.cluster_id.clone()),
                    ("node.id", node_id.as_str(), config.node_id.to_string()),
                    ("directory.id", directory_id.as_str(), arguments.directory_id.to_string()),
                ];
                let differs = wanted.iter().take(if is_metadata { 3 } else { 2 }).find(|(_, is, wanted)| is != wanted);
                if let Some((key, is, wanted)) = differs {
                    let message = format!("{} has {key}={is}, and this node's is {wanted}", path.display());
                    return Ok(Some(Refusal { reason: "ForeignDisk", message }));
                }
            }
        }
    }
    if empty.is_empty() {
        return Ok(None);
    }
    if arguments.grant == Grant::None {
        let message = format!("{} is empty, and nothing was granted to format it", empty[0].display());
        return Ok(Some(Refusal { reason: "DiskLost", message }));
    }
    let voters = match arguments.grant {
        Grant::Standalone => InitialVoters::Dynamic(vec![this_voter(&config, arguments.directory_id)?]),
        Grant::Join | Grant::None => InitialVoters::None,
    };
    let mut options = format_options(&config, arguments.cluster_id.as_str().into(), arguments.directory_id, voters)?;
    options.ignore_formatted = true;
    // Who keeps them sets min.insync.replicas once, for all nodes. The operator has it in every node's server.properties, and
    // raises it there with the number of brokers.
    options.features.push((ELIGIBLE_LEADER_REPLICAS_FEATURE.to_owned(), 0));
    format_storage(&RealDisk, &options)?;
    Ok(None)
}

/// Why a node whose storage is good must not start yet.
fn wait(arguments: &EnsureArguments) -> Option<Refusal> {
    if arguments.until_recorded && arguments.grant != Grant::None {
        let message = "the storage is formatted, and the permission for that is not withdrawn yet".to_owned();
        return Some(Refusal { reason: "NotRecorded", message });
    }
    if arguments.rack.as_ref().is_some_and(String::is_empty) {
        return Some(Refusal {
            reason: "NoRack",
            message: "it is not known yet which rack this node is in".to_owned(),
        });
    }
    None
}

/// Says why the node does not start, to people and to the operator.
fn end(arguments: &EnsureArguments, refusal: &Refusal, code: u8) -> ExitCode {
    eprintln!("gregor: {}: {}", refusal.reason, refusal.message);
    if let Some(path) = &arguments.termination_log {
        let line = serde_json::json!({ "reason": refusal.reason, "message": refusal.message });
        let written =
            fs::OpenOptions::new().create(true).append(true).open(path).and_then(|mut file| writeln!(file, "{line}"));
        if let Err(error) = written {
            eprintln!("gregor: {}: {error}", path.display());
        }
    }
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voter_is_formatted_with_the_listener_first_by_which_others_reach_it() {
        let text = "node.id=1\nprocess.roles=controller\ncontroller.listener.names=CONTROLLER,INSIDE\n\
            listeners=INSIDE://:9094,CONTROLLER://:9093\ncontroller.quorum.bootstrap.servers=localhost:9093\n\
            listener.security.protocol.map=CONTROLLER:PLAINTEXT,INSIDE:PLAINTEXT\n";
        let (config, _) = BrokerConfig::from_properties(&Properties::parse(text).unwrap()).unwrap();
        let voter = this_voter(&config, Uuid(7)).unwrap();
        let endpoints = voter.endpoints.iter().map(|endpoint| (endpoint.name.as_str(), endpoint.port));
        assert_eq!(endpoints.collect::<Vec<_>>(), [("CONTROLLER", 9_093), ("INSIDE", 9_094)]);
    }
}
