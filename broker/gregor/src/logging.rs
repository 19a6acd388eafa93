//! Logs of the program: text for people, JSON for collectors.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How to log. Logs go to standard error.
#[derive(Args)]
pub struct Options {
    /// How much to log: error, warn, info, debug or trace, or a filter such as `info,gregor_raft=debug`.
    #[arg(long, global = true, env = "GREGOR_LOG", value_name = "FILTER", help_heading = "Logging")]
    log: Option<String>,
    /// Lines for people, or JSON for collectors.
    #[arg(
        long,
        global = true,
        env = "GREGOR_LOG_FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Logging"
    )]
    log_format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Options {
    /// Starts logging: at info for a server, at warn for a tool, unless told otherwise.
    pub fn start(&self, serves: bool) {
        let default = if serves { "info" } else { "warn" };
        let filter = self.log.as_deref().unwrap_or(default);
        let (filter, bad) = match EnvFilter::try_new(filter) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(default), Some(error)),
        };
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
            Format::Json => builder.json().flatten_event(true).init(),
        }
        if let Some(error) = bad {
            tracing::warn!("--log={}: {error}; logging at {default}", self.log.as_deref().unwrap_or_default());
        }
    }
}
