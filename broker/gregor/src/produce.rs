//! `gregor produce`: each line of standard input becomes a record.

use std::{collections::VecDeque, io::IsTerminal};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use gregor_client::{Acks, Client, Compression, CompressionType, Delivery, ProducerOptions, ProducerRecord};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::output::Cluster;

/// What to write, and how.
#[derive(Args)]
pub struct Options {
    /// The topic; created on first use if the broker allows it.
    topic: String,
    /// Lines are key and value with this text between them.
    #[arg(long, short = 'k', value_name = "TEXT")]
    key_separator: Option<String>,
    /// The partition; the key or chance decides when left out.
    #[arg(long, short, value_name = "N")]
    partition: Option<i32>,
    /// When a record counts as written.
    #[arg(long, value_enum, default_value = "all")]
    acks: AcksArgument,
    /// How batches are compressed.
    #[arg(long, short = 'z', value_enum, default_value = "none")]
    compression: CompressionArgument,
    #[command(flatten)]
    cluster: Cluster,
}

#[derive(Clone, Copy, ValueEnum)]
enum AcksArgument {
    /// Never: sent and forgotten.
    #[value(name = "0", alias = "none")]
    None,
    /// Once the leader has it.
    #[value(name = "1", alias = "leader")]
    Leader,
    /// Once every in-sync replica has it.
    #[value(name = "all", alias = "-1")]
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum CompressionArgument {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// Records that wait for their acknowledgement before the next line is read.
const UNACKNOWLEDGED_MAX: usize = 10_000;

/// Reads lines until the end of standard input, and ends when all are acknowledged.
pub fn run(options: &Options) -> Result<()> {
    if std::io::stdin().is_terminal() {
        eprintln!("Each line becomes a record; end with Ctrl-D.");
    }
    options.cluster.run(|client| produce(client, options))
}

async fn produce(client: Client, options: &Options) -> Result<()> {
    let acks = match options.acks {
        AcksArgument::None => Acks::None,
        AcksArgument::Leader => Acks::Leader,
        AcksArgument::All => Acks::All,
    };
    let kind = match options.compression {
        CompressionArgument::None => CompressionType::None,
        CompressionArgument::Gzip => CompressionType::Gzip,
        CompressionArgument::Snappy => CompressionType::Snappy,
        CompressionArgument::Lz4 => CompressionType::Lz4,
        CompressionArgument::Zstd => CompressionType::Zstd,
    };
    let producer = client.producer(ProducerOptions {
        acks,
        idempotent: acks == Acks::All,
        compression: Compression { kind, level: None },
        ..ProducerOptions::default()
    })?;
    let mut input = BufReader::new(tokio::io::stdin());
    let mut waiting: VecDeque<Delivery> = VecDeque::new();
    let mut written = 0_u64;
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).await.context("reading standard input")? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        waiting.push_back(producer.send(record(options, &line)).await?);
        if waiting.len() > UNACKNOWLEDGED_MAX
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.await?;
            written += 1;
        }
    }
    producer.flush().await;
    for delivery in waiting {
        delivery.await?;
        written += 1;
    }
    producer.close().await;
    eprintln!("wrote {written} record(s) to {}", options.topic);
    Ok(())
}

fn record(options: &Options, line: &[u8]) -> ProducerRecord {
    let separator = options.key_separator.as_deref().map(str::as_bytes).filter(|separator| !separator.is_empty());
    let split = separator.and_then(|separator| {
        let at = line.windows(separator.len()).position(|window| window == separator)?;
        Some((&line[..at], &line[at + separator.len()..]))
    });
    let mut record = match split {
        Some((key, value)) => ProducerRecord::new(options.topic.as_str(), value.to_vec()).key(key.to_vec()),
        None => ProducerRecord::new(options.topic.as_str(), line.to_vec()),
    };
    record.partition = options.partition.map(Into::into);
    record
}
