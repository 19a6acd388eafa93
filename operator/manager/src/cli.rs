//! The command line. Every option has an environment variable, which is what the chart sets.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Keeps Gregor's Kafka clusters and topics as their manifests say.
///
/// It watches KafkaCluster and KafkaTopic objects and brings what belongs to them to what they describe, one step at a time.
/// It never deletes data unless a manifest says so. Logs go to standard error; RUST_LOG sets their level.
#[derive(Parser, Debug)]
#[command(name = "gregor-operator", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the operator until it is told to stop, or loses its Lease.
    Run(Box<Options>),
    /// Print the custom resource definitions as YAML: `gregor-operator crd | kubectl apply --server-side -f -`.
    Crd,
}

/// How the operator runs.
#[derive(Args, Debug, Clone)]
pub struct Options {
    /// A namespace to look after; may be given several times, or with commas. Without it: all of them.
    #[arg(long = "namespace", env = "GREGOR_OPERATOR_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// The nodes' image without its tag.
    #[arg(long, env = "GREGOR_OPERATOR_BROKER_IMAGE", default_value = "gregor")]
    pub broker_image: String,
    /// The image's tag for clusters that name no version.
    #[arg(long, env = "GREGOR_OPERATOR_BROKER_TAG", default_value = env!("CARGO_PKG_VERSION"))]
    pub broker_tag: String,
    /// When the nodes' image is pulled: Always, IfNotPresent or Never.
    #[arg(long, env = "GREGOR_OPERATOR_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub image_pull_policy: String,
    /// The name of a Secret to pull the nodes' image with; may be given several times, or with commas.
    #[arg(long = "image-pull-secret", env = "GREGOR_OPERATOR_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// The DNS domain of this Kubernetes.
    #[arg(long, env = "GREGOR_OPERATOR_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "GREGOR_OPERATOR_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// The namespace of the Lease by which one of several replicas leads.
    #[arg(long, env = "GREGOR_OPERATOR_LEASE_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// The name of that Lease.
    #[arg(long, env = "GREGOR_OPERATOR_LEASE_NAME", default_value = "gregor-operator")]
    pub lease_name: String,
    /// This replica's name in the Lease and in events: its pod's.
    #[arg(long, env = "GREGOR_OPERATOR_IDENTITY", default_value = "gregor-operator")]
    pub identity: String,
    /// Install or upgrade the custom resource definitions at the start, unless Helm or a newer release looks after them.
    #[arg(long, env = "GREGOR_OPERATOR_INSTALL_CRDS")]
    pub install_crds: bool,
    /// How many objects of each kind are worked on at the same time.
    #[arg(long, env = "GREGOR_OPERATOR_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// The form of the logs.
    #[arg(long, env = "GREGOR_OPERATOR_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// The form of the logs.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object in a line.
    Json,
}

impl Options {
    /// The namespaces to look after; `None` stands for all. An empty variable means all too.
    pub fn scopes(&self) -> Vec<Option<String>> {
        let named: Vec<Option<String>> =
            self.namespaces.iter().filter(|name| !name.is_empty()).cloned().map(Some).collect();
        if named.is_empty() { vec![None] } else { named }
    }
}
