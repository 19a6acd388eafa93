//! `gregor-operator`: runs the manager, or prints the custom resource definitions.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use gregor_operator::cli::{Arguments, Command, LogFormat};
use gregor_operator::run;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Crd => print_definitions(),
        Command::Run(options) => {
            start_logging(options.log_format);
            let outcome = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .map_err(anyhow::Error::from)
                .and_then(|runtime| runtime.block_on(run::run(&options)));
            match outcome {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{error:#}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn print_definitions() -> ExitCode {
    match gregor_operator_api::yaml::crd_files() {
        Ok(files) => {
            let texts: Vec<String> = files.into_iter().map(|(_, text)| text).collect();
            print!("{}", texts.join("---\n"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the definitions cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=warn"));
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
