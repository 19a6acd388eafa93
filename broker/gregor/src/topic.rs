//! `gregor topic`: create, list, describe, change, grow and delete topics.

use anyhow::{Result, bail};
use clap::Subcommand;
use gregor_client::{
    Client, ConfigChange, ConfigResource, ConfigSource, NewTopic, OffsetSpec,
    types::{KString, TopicPartition},
};

use crate::output::{Cluster, key_value, table};

/// What to do with topics.
#[derive(Subcommand)]
pub enum Command {
    /// Create a topic.
    Create {
        /// Its name: letters, digits, '.', '_' and '-'.
        name: String,
        /// How many partitions; the broker's num.partitions when left out.
        #[arg(long, short, value_name = "N")]
        partitions: Option<i32>,
        /// How many replicas of each; the broker's default.replication.factor when left out.
        #[arg(long, short, value_name = "N")]
        replication_factor: Option<i16>,
        /// Configuration, such as retention.ms=86400000. May be given several times.
        #[arg(long, short, value_parser = key_value, value_name = "KEY=VALUE")]
        config: Vec<(String, String)>,
        /// Succeed if the topic is there already, and leave it as it is.
        #[arg(long)]
        if_not_exists: bool,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// List topics.
    List {
        /// Internal topics too.
        #[arg(long)]
        internal: bool,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Show a topic's partitions, offsets and configuration.
    Describe {
        /// Its name.
        name: String,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Change a topic's configuration.
    Alter {
        /// Its name.
        name: String,
        /// Set a key. May be given several times.
        #[arg(long, short, value_parser = key_value, value_name = "KEY=VALUE")]
        config: Vec<(String, String)>,
        /// Put a key back to its default. May be given several times.
        #[arg(long, value_name = "KEY")]
        delete_config: Vec<String>,
        /// Grow to so many partitions. Keys may then belong to other partitions than before.
        #[arg(long, short, value_name = "N")]
        partitions: Option<i32>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Delete topics with all their records.
    Delete {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        cluster: Cluster,
    },
}

/// Runs one of them.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Create { name, partitions, replication_factor, config, if_not_exists, cluster } => {
            let mut topic = NewTopic {
                partitions: *partitions,
                replication_factor: *replication_factor,
                ..NewTopic::new(name.as_str())
            };
            for (key, value) in config {
                topic = topic.config(key.as_str(), value.as_str());
            }
            cluster.run(|client| create(client, topic, *if_not_exists))
        }
        Command::List { internal, cluster } => cluster.run(|client| list(client, *internal)),
        Command::Describe { name, cluster } => cluster.run(|client| describe(client, name)),
        Command::Alter { name, config, delete_config, partitions, cluster } => {
            let set = config.iter().map(|(key, value)| ConfigChange::set(key.as_str(), value.as_str()));
            let changes: Vec<_> =
                set.chain(delete_config.iter().map(|key| ConfigChange::delete(key.as_str()))).collect();
            if changes.is_empty() && partitions.is_none() {
                bail!("nothing to change: give --config, --delete-config or --partitions");
            }
            cluster.run(|client| alter(client, name, changes, *partitions))
        }
        Command::Delete { names, cluster } => cluster.run(|client| delete(client, names)),
    }
}

async fn create(client: Client, topic: NewTopic, if_not_exists: bool) -> Result<()> {
    let name = topic.name.clone();
    let admin = client.admin();
    if if_not_exists && admin.describe_topics(std::slice::from_ref(&name)).await?.values().all(Result::is_ok) {
        println!("topic {name} is there already");
        return Ok(());
    }
    let created = admin.create_topic(topic).await?;
    println!(
        "created topic {name} with {} partition(s) and replication factor {}",
        created.partitions, created.replication_factor
    );
    Ok(())
}

async fn list(client: Client, internal: bool) -> Result<()> {
    let topics = client.admin().list_topics().await?;
    let rows: Vec<_> = topics
        .iter()
        .filter(|topic| internal || !topic.internal)
        .map(|topic| {
            let replicas = topic.partitions.values().map(|partition| partition.replicas.len()).max().unwrap_or(0);
            vec![topic.name.to_string(), topic.partitions.len().to_string(), replicas.to_string(), topic.id.to_string()]
        })
        .collect();
    table(&["NAME", "PARTITIONS", "REPLICAS", "ID"], &rows);
    Ok(())
}

async fn describe(client: Client, name: &str) -> Result<()> {
    let admin = client.admin();
    let topic = admin.describe_topic(name).await?;
    let ends =
        |spec| topic.partitions.keys().map(move |index| (TopicPartition::new(name, *index), spec)).collect::<Vec<_>>();
    let earliest = admin.list_offsets(&ends(OffsetSpec::Earliest), false).await?;
    let latest = admin.list_offsets(&ends(OffsetSpec::Latest), false).await?;
    println!("name: {name}\nid:   {}\n", topic.id);
    let ids = |brokers: &[gregor_client::types::BrokerId]| {
        brokers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let rows: Vec<_> = topic
        .partitions
        .iter()
        .map(|(index, partition)| {
            let key = TopicPartition::new(name, *index);
            let offset = |listed: &gregor_client::Outcomes<TopicPartition, gregor_client::ListedOffset>| match listed
                .get(&key)
            {
                Some(Ok(listed)) => listed.offset.to_string(),
                _ => "?".to_owned(),
            };
            vec![
                index.to_string(),
                partition.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
                ids(&partition.replicas),
                ids(&partition.isr),
                offset(&earliest),
                offset(&latest),
            ]
        })
        .collect();
    table(&["PARTITION", "LEADER", "REPLICAS", "IN SYNC", "FIRST OFFSET", "END OFFSET"], &rows);
    let resource = ConfigResource::topic(name);
    if let Some(Ok(entries)) = admin.describe_configs(std::slice::from_ref(&resource)).await?.get(&resource) {
        let rows: Vec<_> = entries
            .iter()
            .filter(|(_, entry)| entry.source == ConfigSource::Topic)
            .map(|(key, entry)| vec![key.to_string(), entry.value.as_deref().unwrap_or("[hidden]").to_owned()])
            .collect();
        if !rows.is_empty() {
            println!();
            table(&["CONFIGURATION", "VALUE"], &rows);
        }
    }
    Ok(())
}

async fn alter(client: Client, name: &str, changes: Vec<ConfigChange>, partitions: Option<i32>) -> Result<()> {
    let admin = client.admin();
    if !changes.is_empty() {
        let resource = ConfigResource::topic(name);
        for outcome in admin.incremental_alter_configs(&[(resource, changes)], false).await?.into_values() {
            outcome?;
        }
        println!("changed the configuration of topic {name}");
    }
    if let Some(count) = partitions {
        for outcome in admin.create_partitions(&[(KString::from(name), count, None)], false).await?.into_values() {
            outcome?;
        }
        println!("topic {name} has {count} partitions");
    }
    Ok(())
}

async fn delete(client: Client, names: &[String]) -> Result<()> {
    let names: Vec<KString> = names.iter().map(|name| KString::from(name.as_str())).collect();
    let mut failed = 0;
    for (name, outcome) in client.admin().delete_topics(&names).await? {
        match outcome {
            Ok(()) => println!("deleted topic {name}"),
            Err(error) => {
                eprintln!("gregor: {error}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} topic(s) were not deleted");
    }
    Ok(())
}
