//! The `gregor` program: a broker, its tools, and a client for the command line.
//!
//! A table of commands: each is one module beside this file.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod broker;
mod command_config;
mod consume;
mod dev;
mod group;
mod identity;
mod log;
mod logging;
mod output;
mod produce;
mod start_pages;
mod storage;
mod topic;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Kafka without the JVM.
///
/// Try it: `gregor dev` starts a broker on 127.0.0.1:9092 with nothing to configure. In another terminal,
/// `echo hello | gregor produce greetings` and `gregor consume greetings --from-beginning`.
/// Every Kafka client and tool works against it too.
#[derive(Parser)]
#[command(name = "gregor", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logging: logging::Options,
}

#[derive(Subcommand)]
enum Command {
    /// Run a broker as a server.properties file says.
    Broker(broker::Options),
    /// Run a broker for development, with nothing to configure.
    Dev(dev::Options),
    /// Format log directories, or say what is on them.
    #[command(subcommand)]
    Storage(storage::Command),
    /// Look into log files.
    #[command(subcommand)]
    Log(log::Command),
    /// Create, list, describe, change and delete topics.
    #[command(subcommand)]
    Topic(topic::Command),
    /// Write lines to a topic.
    Produce(produce::Options),
    /// Read records from a topic.
    Consume(consume::Options),
    /// List, describe and delete consumer groups.
    #[command(subcommand)]
    Group(group::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let serves = matches!(arguments.command, Command::Broker(_) | Command::Dev(_));
    arguments.logging.start(serves);
    let outcome = match arguments.command {
        Command::Broker(options) => broker::run(&options),
        Command::Dev(options) => dev::run(&options),
        Command::Storage(command) => return storage::run(&command),
        Command::Log(command) => log::run(&command),
        Command::Topic(command) => topic::run(&command),
        Command::Produce(options) => produce::run(&options),
        Command::Consume(options) => consume::run(&options),
        Command::Group(command) => group::run(&command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gregor: {error:#}");
            ExitCode::FAILURE
        }
    }
}
