//! `gregor broker`: a node as its server.properties says, until it is told to stop.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use gregor_config::{BrokerConfig, Properties};
use gregor_log::disk::RealDisk;
use gregor_server::{Node, NodeOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    output::{announce, key_value},
    start_pages::StartPages,
};

/// Which node to run.
#[derive(Args)]
pub struct Options {
    /// The node's server.properties, with Apache Kafka's keys.
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// A key that wins over the file. May be given several times.
    #[arg(long = "override", value_parser = key_value, value_name = "KEY=VALUE")]
    overrides: Vec<(String, String)>,
    /// Serve /metrics, /livez and /readyz here; nowhere when left out.
    #[arg(long, env = "GREGOR_HEALTH_LISTEN", value_name = "HOST:PORT")]
    health_listen: Option<String>,
}

/// Runs the node.
pub fn run(options: &Options) -> Result<()> {
    let config = load(&options.config, &options.overrides)?;
    serve(config, options.health_listen.clone(), |node| {
        let listeners: Vec<_> = node.addresses().iter().map(|(name, address)| format!("{name} on {address}")).collect();
        announce(&format!("Listening: {}", listeners.join(", ")));
    })
}

/// Reads a configuration, with warnings for what has no effect.
pub fn load(path: &Path, overrides: &[(String, String)]) -> Result<BrokerConfig> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut properties = Properties::parse(&text).with_context(|| format!("{}", path.display()))?;
    for (key, value) in overrides {
        properties.set(key, value);
    }
    let (config, warnings) =
        BrokerConfig::from_properties(&properties).with_context(|| format!("{}", path.display()))?;
    for warning in warnings {
        tracing::warn!("{}: {warning}", path.display());
    }
    Ok(config)
}

/// Threads for calls that block.
const BLOCKING_THREADS_MAX: usize = 4;
/// From the start of the node until it lets go of what only that needed: by then the first clients are served.
const AFTER_START: Duration = Duration::from_secs(1);

/// Runs a node until SIGTERM or SIGINT, then shuts it down cleanly; a second signal ends it at once.
pub fn serve(config: BrokerConfig, health_listen: Option<String>, started: impl FnOnce(&Node)) -> Result<()> {
    let start_pages = StartPages::note();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // What blocks (loading a group partition, closing logs) is short or rare: a thread for each would only cost memory.
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .context("starting threads")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut node = Node::begin(Arc::new(RealDisk), config, NodeOptions { health_listen }).await?;
        let mut failed = node.failures();
        let serves = async {
            node.let_clients_in().await?;
            started(&node);
            tokio::spawn(async move {
                tokio::time::sleep(AFTER_START).await;
                let bytes = start_pages.release();
                tracing::debug!(bytes, "let go of what the start had mapped of the program");
            });
            std::future::pending().await
        };
        // Also while it waits for a quorum, which may take for ever.
        let ended: Result<()> = tokio::select! {
            _ = terminate.recv() => { tracing::info!("told to stop"); Ok(()) }
            _ = interrupt.recv() => { tracing::info!("interrupted: stopping cleanly; once more to stop at once"); Ok(()) }
            failure = failed.recv() => Err(anyhow!("the node cannot go on: {failure}")),
            failure = serves => failure,
        };
        if ended.is_err() {
            node.shutdown().await.ok();
            return ended;
        }
        tokio::select! {
            outcome = node.shutdown() => outcome.context("stopping")?,
            _ = interrupt.recv() => anyhow::bail!("stopped without a clean shutdown; the next start checks the logs"),
        }
        tracing::info!("stopped cleanly");
        Ok(())
    })
}
