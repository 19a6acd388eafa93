//! What commands share: where the cluster is, a runtime to ask it with, tables, and lines that nobody has to read.

use std::{future::Future, io::Write, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Args;
use gregor_client::{Client, ClientError, ClientOptions};

use crate::command_config;

/// Where the cluster is.
#[derive(Args)]
pub struct Cluster {
    /// A broker of the cluster, or several with commas between, as host:port.
    #[arg(
        long,
        short = 'b',
        env = "GREGOR_BOOTSTRAP_SERVER",
        default_value = "localhost:9092",
        value_name = "HOST:PORT"
    )]
    bootstrap_server: String,
    /// A file of client properties, as Kafka's tools take it, where the cluster wants TLS.
    ///
    /// What counts in it: security.protocol (PLAINTEXT or SSL), client.id, and of the ssl. keys those of the trust store,
    /// ssl.truststore.type=PEM with ssl.truststore.location; of the key store for a client certificate, ssl.keystore.type=PEM
    /// with ssl.keystore.location and ssl.key.password; ssl.endpoint.identification.algorithm, ssl.enabled.protocols and
    /// ssl.cipher.suites. Without a trust store the authorities of this system are trusted. Other keys are named and ignored.
    #[arg(long, env = "GREGOR_COMMAND_CONFIG", value_name = "FILE")]
    command_config: Option<PathBuf>,
    /// Give up after so many seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    timeout: u64,
}

impl Cluster {
    /// Runs a command that talks to the cluster.
    pub fn run<F: Future<Output = Result<()>>>(&self, command: impl FnOnce(Client) -> F) -> Result<()> {
        let options = ClientOptions::default()
            .with_client_id("gregor-cli")
            .with_timeout(Duration::from_secs(self.timeout.max(1)));
        let options = match &self.command_config {
            Some(file) => command_config::read(file, options)?,
            None => options,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = Client::connect(&self.bootstrap_server, options).await.map_err(|error| {
                let unreachable = matches!(error, ClientError::NoBroker { .. });
                let error = anyhow::Error::new(error);
                if unreachable { error.context(self.advice()) } else { error }
            })?;
            command(client).await
        })
    }

    fn advice(&self) -> String {
        format!(
            "no broker answers at {}; is it running, and is this its address? (--bootstrap-server)",
            self.bootstrap_server
        )
    }
}

/// Prints a line of a program that serves: it goes on, whether anybody reads what it says or not.
pub fn announce(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints rows in columns under a header, as kubectl does.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
        cells.max().unwrap_or(0).max(header[column].len())
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", padded.join("   ").trim_end());
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// `key=value` of a command line.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as retention.ms=86400000".to_owned()),
    }
}
