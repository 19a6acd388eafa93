//! `gregor dev`: a broker with nothing to configure, for development and tests.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use gregor_config::{BrokerConfig, Properties};
use gregor_log::disk::RealDisk;
use gregor_server::control::{InitialVoters, format_storage};
use gregor_types::KString;

use crate::{
    broker::serve,
    identity,
    output::announce,
    storage::{format_options, this_voter},
};

/// Where to listen and where to keep data.
#[derive(Args)]
pub struct Options {
    /// Where clients connect; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9092", value_name = "HOST:PORT")]
    listen: String,
    /// The folder for data; made if need be, kept between runs.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Serve /metrics, /livez and /readyz here; nowhere when left out.
    #[arg(long, env = "GREGOR_HEALTH_LISTEN", value_name = "HOST:PORT")]
    health_listen: Option<String>,
}

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    let folder = match &options.data_dir {
        Some(folder) => folder.clone(),
        None => default_folder()?,
    };
    let config = config(&options.listen, &folder)?;
    if !folder.join("meta.properties").exists() {
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let directory_id = identity::uuid();
        let voters = InitialVoters::Dynamic(vec![this_voter(&config, directory_id)?]);
        let cluster_id = KString::from(identity::uuid().to_string());
        format_storage(&RealDisk, &format_options(&config, cluster_id, directory_id, voters)?)?;
    }
    let shown = folder.display().to_string();
    serve(config, options.health_listen.clone(), move |node| {
        let client =
            node.addresses().iter().find(|(name, _)| name == "PLAINTEXT").map(|(_, address)| address.to_string());
        let address = client.unwrap_or_default();
        announce(&format!("Listening on {address} (data in {shown})"));
        let option = if address == "127.0.0.1:9092" { String::new() } else { format!(" -b {address}") };
        announce(&format!(
            "Try: echo hello | gregor produce{option} greetings && gregor consume{option} greetings --from-beginning --to-end"
        ));
    })
}

fn config(listen: &str, folder: &std::path::Path) -> Result<BrokerConfig> {
    let (host, port) = listen.rsplit_once(':').context("--listen: expected HOST:PORT, such as 127.0.0.1:9092")?;
    let mut properties = Properties::default();
    for (key, value) in [
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.listener.names", "CONTROLLER"),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("controller.quorum.bootstrap.servers", "127.0.0.1:9093"),
        ("offsets.topic.replication.factor", "1"),
        ("group.initial.rebalance.delay.ms", "0"),
    ] {
        properties.set(key, value);
    }
    properties.set("listeners", format!("PLAINTEXT://{host}:{port},CONTROLLER://127.0.0.1:0"));
    properties.set("log.dirs", folder.display().to_string());
    let (config, _) = BrokerConfig::from_properties(&properties).context("--listen")?;
    Ok(config)
}

/// `$XDG_DATA_HOME/gregor/dev`, else `~/.local/share/gregor/dev`.
fn default_folder() -> Result<PathBuf> {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let base = env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(home);
    Ok(base
        .context("neither XDG_DATA_HOME nor HOME is set: say where to keep data with --data-dir")?
        .join("gregor/dev"))
}
