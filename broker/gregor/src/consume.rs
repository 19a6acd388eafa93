//! `gregor consume`: records to standard output, one a line.

use std::{
    io::{BufWriter, Write},
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use gregor_client::{
    Client, Consumer, ConsumerOptions, FetchedRecord, OffsetReset, StartOffset,
    types::{KString, TopicPartition},
};

use crate::output::Cluster;

/// What to read, and how.
#[derive(Args)]
pub struct Options {
    /// The topic.
    topic: String,
    /// Start at the first record that is still there, rather than at the end. With a group: where the group has no offset.
    #[arg(long)]
    from_beginning: bool,
    /// Read as a member of this group, and commit what was read.
    #[arg(long, short, value_name = "GROUP")]
    group: Option<String>,
    /// End after so many records.
    #[arg(long, short = 'n', value_name = "N")]
    max_records: Option<u64>,
    /// End when no record has come for so many seconds.
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
    /// End at the end of the topic as it is now.
    #[arg(long, conflicts_with = "group")]
    to_end: bool,
    /// Print the key before each value, with this text between them.
    #[arg(long, short = 'k', value_name = "TEXT", num_args = 0..=1, default_missing_value = "\t")]
    key_separator: Option<String>,
    /// Print partition, offset and timestamp (milliseconds) before each record.
    #[arg(long)]
    position: bool,
    #[command(flatten)]
    cluster: Cluster,
}

const POLL: Duration = Duration::from_millis(500);

/// Reads until it is told to end, by an option or by Ctrl-C.
pub fn run(options: &Options) -> Result<()> {
    options.cluster.run(|client| async move {
        let reset = if options.from_beginning { OffsetReset::Earliest } else { OffsetReset::Latest };
        let consumer = client.consumer(ConsumerOptions {
            group_id: options.group.as_deref().map(KString::from),
            offset_reset: reset,
            auto_commit: options.group.is_some().then_some(Duration::from_secs(5)),
            ..ConsumerOptions::default()
        });
        consume(&client, consumer, options).await
    })
}

async fn consume(client: &Client, mut consumer: Consumer, options: &Options) -> Result<()> {
    let ends = start(client, &mut consumer, options).await?;
    let mut output = BufWriter::new(std::io::stdout().lock());
    let (mut count, mut last) = (0_u64, Instant::now());
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    'read: loop {
        let at_end = |(partition, end): &(TopicPartition, i64)| {
            consumer.position(partition).is_some_and(|position| position.value() >= *end)
        };
        if ends.as_ref().is_some_and(|ends| ends.iter().all(at_end)) {
            break;
        }
        let records = tokio::select! {
            records = consumer.poll(POLL) => records?,
            _ = &mut interrupted => break,
        };
        if !records.is_empty() {
            last = Instant::now();
        }
        for record in &records {
            print(&mut output, record, options)?;
            count += 1;
            if options.max_records == Some(count) {
                consumer.seek(&record.partition, StartOffset::At(record.offset.plus(1)));
                break 'read;
            }
        }
        output.flush()?;
        if options.idle.is_some_and(|seconds| last.elapsed() >= Duration::from_secs(seconds)) {
            break;
        }
    }
    output.flush()?;
    if options.group.is_some() {
        consumer.commit().await?;
    }
    consumer.close().await?;
    Ok(())
}

/// Subscribes or assigns; returns the present ends if those are where to stop.
async fn start(
    client: &Client,
    consumer: &mut Consumer,
    options: &Options,
) -> Result<Option<Vec<(TopicPartition, i64)>>> {
    let topic = KString::from(options.topic.as_str());
    if options.group.is_some() {
        consumer.subscribe([topic]).await?;
        return Ok(None);
    }
    let admin = client.admin();
    let description = admin.describe_topic(topic.clone()).await?;
    let partitions: Vec<TopicPartition> =
        description.partitions.keys().map(|index| TopicPartition::new(topic.clone(), *index)).collect();
    let ends = if options.to_end {
        let wanted: Vec<_> = partitions.iter().map(|one| (one.clone(), gregor_client::OffsetSpec::Latest)).collect();
        let mut ends = Vec::with_capacity(wanted.len());
        for (partition, listed) in admin.list_offsets(&wanted, false).await? {
            ends.push((partition, listed?.offset.value()));
        }
        Some(ends)
    } else {
        None
    };
    let from = if options.from_beginning { StartOffset::Earliest } else { StartOffset::Latest };
    consumer.assign(partitions.into_iter().map(|partition| (partition, from))).await?;
    Ok(ends)
}

fn print(output: &mut impl Write, record: &FetchedRecord, options: &Options) -> Result<()> {
    if options.position {
        write!(output, "{}\t{}\t{}\t", record.partition.partition, record.offset, record.timestamp)?;
    }
    if let Some(separator) = &options.key_separator {
        output.write_all(record.key.as_deref().unwrap_or_default())?;
        output.write_all(separator.as_bytes())?;
    }
    output.write_all(record.value.as_deref().unwrap_or_default())?;
    output.write_all(b"\n")?;
    Ok(())
}
