//! `gregor group`: list, describe and delete consumer groups.

use anyhow::{Result, bail};
use clap::Subcommand;
use gregor_client::{
    Client, OffsetSpec,
    types::{KString, TopicPartition},
};

use crate::output::{Cluster, table};

/// What to do with groups.
#[derive(Subcommand)]
pub enum Command {
    /// List groups.
    List {
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Show a group's members, committed offsets and lag.
    Describe {
        /// Its id.
        group: String,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Delete groups that have no members, with their offsets.
    Delete {
        /// Their ids.
        #[arg(required = true)]
        groups: Vec<String>,
        #[command(flatten)]
        cluster: Cluster,
    },
}

/// Runs one of them.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::List { cluster } => cluster.run(list),
        Command::Describe { group, cluster } => cluster.run(|client| describe(client, group)),
        Command::Delete { groups, cluster } => cluster.run(|client| delete(client, groups)),
    }
}

async fn list(client: Client) -> Result<()> {
    let groups = client.admin().list_groups().await?;
    let rows: Vec<_> = groups
        .iter()
        .map(|group| {
            [&group.group_id, &group.group_type, &group.protocol_type, &group.state].map(ToString::to_string).to_vec()
        })
        .collect();
    table(&["GROUP", "TYPE", "PROTOCOL", "STATE"], &rows);
    Ok(())
}

async fn describe(client: Client, group: &str) -> Result<()> {
    let admin = client.admin();
    let description = admin.describe_group(group).await?;
    println!("group: {group}\nstate: {}\n", description.state);
    if !description.members.is_empty() {
        let rows: Vec<_> = description
            .members
            .iter()
            .map(|member| [&member.member_id, &member.client_id, &member.client_host].map(ToString::to_string).to_vec())
            .collect();
        table(&["MEMBER", "CLIENT", "HOST"], &rows);
        println!();
    }
    let committed = admin.list_group_offsets(group).await?;
    let wanted: Vec<(TopicPartition, OffsetSpec)> =
        committed.keys().map(|partition| (partition.clone(), OffsetSpec::Latest)).collect();
    let ends = admin.list_offsets(&wanted, false).await?;
    let rows: Vec<_> = committed
        .iter()
        .map(|(partition, committed)| {
            let end = ends.get(partition).and_then(|end| end.as_ref().ok()).map(|end| end.offset.value());
            let lag = end.map(|end| (end - committed.offset.value()).max(0));
            let shown = |number: Option<i64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
            vec![
                partition.topic.to_string(),
                partition.partition.to_string(),
                committed.offset.to_string(),
                shown(end),
                shown(lag),
            ]
        })
        .collect();
    table(&["TOPIC", "PARTITION", "COMMITTED", "END OFFSET", "LAG"], &rows);
    Ok(())
}

async fn delete(client: Client, groups: &[String]) -> Result<()> {
    let groups: Vec<KString> = groups.iter().map(|group| KString::from(group.as_str())).collect();
    let mut failed = 0;
    for (group, outcome) in client.admin().delete_groups(&groups).await? {
        match outcome {
            Ok(()) => println!("deleted group {group}"),
            Err(error) => {
                eprintln!("gregor: {error}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} group(s) were not deleted");
    }
    Ok(())
}
