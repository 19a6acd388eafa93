//! How brokers are asked about topics, and about the quorum and the partitions of their cluster. The rest of the manager sees
//! only [`Admin`]; [`KafkaAdmin`] speaks Kafka's protocol through our own client.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use gregor_client::types::{BrokerId, ErrorCode, KString, Uuid};
use gregor_client::{
    Client, ClientError, ClientOptions, ConfigChange, ConfigResource, ConfigSource, NewTopic, NewVoter,
    QuorumDescription, QuorumReplica,
};
use gregor_operator_plan::certificates::Served;
use gregor_operator_plan::kafka::{KafkaSeen, PartitionSeen, QuorumSeen, ReplicaSeen};
use gregor_operator_plan::quorum::VoterChange;
use gregor_operator_plan::topic::{BrokerError, TopicSeen, TopicStep};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::certificates;

/// How long the brokers have for one question with all its tries.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Connections that are kept; beyond it all are closed and made again when needed.
const CLIENTS_MAX: usize = 256;
/// Questions that wait for the thread; beyond it whoever asks waits.
const QUESTIONS_MAX: usize = 64;

/// Asks brokers about topics and changes them.
pub trait TopicAdmin: Send + Sync {
    /// The topic as it is, or `None` where there is none.
    fn describe<'a>(
        &'a self,
        bootstrap: &'a str,
        topic: &'a str,
    ) -> BoxFuture<'a, Result<Option<TopicSeen>, BrokerError>>;

    /// Carries out one step on the brokers. Steps that concern only Kubernetes are none of theirs and succeed.
    fn carry_out<'a>(
        &'a self,
        bootstrap: &'a str,
        topic: &'a str,
        step: &'a TopicStep,
    ) -> BoxFuture<'a, Result<(), BrokerError>>;
}

/// Asks nodes about their cluster, and changes who votes in its quorum.
pub trait ClusterAdmin: Send + Sync {
    /// The quorum, and after it the partitions.
    fn describe_cluster<'a>(&'a self, bootstrap: &'a str) -> BoxFuture<'a, Result<KafkaSeen, BrokerError>>;

    /// What a node shows at a port where nodes talk with each other.
    fn shown<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, Result<Served, BrokerError>>;

    /// Changes one voter. Whether it happened all the same after an error, the next description tells.
    fn change_voters<'a>(
        &'a self,
        bootstrap: &'a str,
        change: &'a VoterChange,
    ) -> BoxFuture<'a, Result<(), BrokerError>>;
}

/// All that brokers are asked.
pub trait Admin: TopicAdmin + ClusterAdmin {}

impl<T: TopicAdmin + ClusterAdmin> Admin for T {}

/// The name of the listener over which controllers talk, as the plan writes it.
const CONTROLLER_LISTENER: &str = "CONTROLLER";

/// Real brokers. The client's futures stay on one thread, which is enough for administration and keeps its connections
/// together; questions reach it through a bounded queue.
pub struct KafkaAdmin {
    questions: mpsc::Sender<Question>,
}

struct Question {
    bootstrap: String,
    asked: Asked,
    answer: oneshot::Sender<Result<Answer, BrokerError>>,
}

/// What is asked.
enum Asked {
    /// A topic as it is.
    Topic(String),
    /// A step about a topic.
    Step(String, TopicStep),
    /// The cluster.
    Cluster,
    /// A change of the voters.
    Voters(VoterChange),
}

/// What came of it.
enum Answer {
    /// The topic, if there is one.
    Topic(Option<TopicSeen>),
    /// The cluster.
    Cluster(KafkaSeen),
    /// It is done.
    Done,
}

impl KafkaAdmin {
    /// Starts the thread, which ends with this value.
    pub fn start() -> std::io::Result<Self> {
        let (questions, mut asked) = mpsc::channel::<Question>(QUESTIONS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("brokers".to_owned()).spawn(move || {
            let brokers = Rc::new(Brokers::default());
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                while let Some(question) = asked.recv().await {
                    let brokers = Rc::clone(&brokers);
                    tokio::task::spawn_local(async move {
                        let outcome = brokers.answer(&question).await;
                        // Whoever asked may have stopped waiting.
                        let _ = question.answer.send(outcome);
                    });
                }
            });
        })?;
        Ok(Self { questions })
    }

    fn put(&self, bootstrap: &str, asked: Asked) -> BoxFuture<'static, Result<Answer, BrokerError>> {
        let (answer, answered) = oneshot::channel();
        let question = Question { bootstrap: bootstrap.to_owned(), asked, answer };
        let questions = self.questions.clone();
        async move {
            let gone = || BrokerError::Unavailable("the operator is ending".to_owned());
            questions.send(question).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        }
        .boxed()
    }
}

impl TopicAdmin for KafkaAdmin {
    fn describe<'a>(
        &'a self,
        bootstrap: &'a str,
        topic: &'a str,
    ) -> BoxFuture<'a, Result<Option<TopicSeen>, BrokerError>> {
        let answered = self.put(bootstrap, Asked::Topic(topic.to_owned()));
        let topic = |answer: Answer| if let Answer::Topic(topic) = answer { topic } else { None };
        answered.map(move |outcome| outcome.map(topic)).boxed()
    }

    fn carry_out<'a>(
        &'a self,
        bootstrap: &'a str,
        topic: &'a str,
        step: &'a TopicStep,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.put(bootstrap, Asked::Step(topic.to_owned(), step.clone())).map(|outcome| outcome.map(drop)).boxed()
    }
}

impl ClusterAdmin for KafkaAdmin {
    fn describe_cluster<'a>(&'a self, bootstrap: &'a str) -> BoxFuture<'a, Result<KafkaSeen, BrokerError>> {
        let cluster = |answer: Answer| if let Answer::Cluster(seen) = answer { seen } else { KafkaSeen::default() };
        self.put(bootstrap, Asked::Cluster).map(move |outcome| outcome.map(cluster)).boxed()
    }

    fn shown<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, Result<Served, BrokerError>> {
        certificates::look(host, port).map(|outcome| outcome.map_err(BrokerError::Unavailable)).boxed()
    }

    fn change_voters<'a>(
        &'a self,
        bootstrap: &'a str,
        change: &'a VoterChange,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.put(bootstrap, Asked::Voters(change.clone())).map(|outcome| outcome.map(drop)).boxed()
    }
}

/// The clients, on their thread.
#[derive(Default)]
struct Brokers {
    clients: RefCell<HashMap<String, Client>>,
}

impl Brokers {
    async fn answer(&self, question: &Question) -> Result<Answer, BrokerError> {
        let bootstrap = &question.bootstrap;
        let outcome = match &question.asked {
            Asked::Topic(topic) => self.ask(bootstrap, topic).await.map(Answer::Topic),
            Asked::Step(topic, step) => self.change(bootstrap, topic, step).await.map(|()| Answer::Done),
            Asked::Cluster => self.ask_cluster(bootstrap).await.map(Answer::Cluster),
            Asked::Voters(change) => self.change_voters(bootstrap, change).await.map(|()| Answer::Done),
        };
        if matches!(outcome, Err(BrokerError::Unavailable(_))) {
            // After a silence the address may lead elsewhere: the next question connects again.
            self.clients.borrow_mut().remove(bootstrap);
        }
        outcome
    }

    /// The quorum is asked first: what brokers know of partitions is then compared with how far they had read by then.
    async fn ask_cluster(&self, bootstrap: &str) -> Result<KafkaSeen, BrokerError> {
        let admin = self.client(bootstrap).await?.admin();
        let quorum = admin.describe_quorum().await.map_err(|error| judge(&error))?;
        let topics = admin.list_topics().await.map_err(|error| judge(&error))?;
        let ids = |brokers: &[BrokerId]| brokers.iter().map(|broker| broker.0).collect::<Vec<_>>();
        let mut under_replicated = Vec::new();
        for topic in &topics {
            for (index, partition) in &topic.partitions {
                if partition.replicas.iter().all(|replica| partition.isr.contains(replica)) {
                    continue;
                }
                under_replicated.push(PartitionSeen {
                    topic: topic.name.to_string(),
                    partition: index.0,
                    replicas: ids(&partition.replicas),
                    in_sync: ids(&partition.isr),
                });
            }
        }
        Ok(KafkaSeen { quorum: quorum_seen(&quorum), under_replicated })
    }

    async fn change_voters(&self, bootstrap: &str, change: &VoterChange) -> Result<(), BrokerError> {
        let admin = self.client(bootstrap).await?.admin();
        let directory = |text: &str| {
            text.parse::<Uuid>().map_err(|error| BrokerError::Refused(format!("directory id {text}: {error}")))
        };
        let outcome = match change {
            VoterChange::Add { id, directory_id, host, port } => {
                let voter = NewVoter {
                    id: BrokerId(*id),
                    directory: directory(directory_id)?,
                    listeners: vec![(CONTROLLER_LISTENER.into(), host.as_str().into(), *port)],
                };
                admin.add_voter(&voter).await
            }
            VoterChange::Remove { id, directory_id } => {
                admin.remove_voter(BrokerId(*id), directory(directory_id)?).await
            }
        };
        match outcome {
            // An earlier attempt whose answer was lost: the next look tells.
            Err(ClientError::Broker(error))
                if matches!(error.code, ErrorCode::DuplicateVoter | ErrorCode::VoterNotFound) =>
            {
                Ok(())
            }
            // Who votes is never a matter of the manifest alone: every refusal may be another later.
            outcome => outcome.map_err(|error| BrokerError::Unavailable(error.to_string())),
        }
    }

    async fn client(&self, bootstrap: &str) -> Result<Client, BrokerError> {
        let known = self.clients.borrow().get(bootstrap).cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let options = ClientOptions::default().with_client_id("gregor-operator").with_timeout(TIMEOUT);
        let client = Client::connect(bootstrap, options).await.map_err(|error| judge(&error))?;
        let mut clients = self.clients.borrow_mut();
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(bootstrap.to_owned(), client.clone());
        Ok(client)
    }

    async fn ask(&self, bootstrap: &str, topic: &str) -> Result<Option<TopicSeen>, BrokerError> {
        let admin = self.client(bootstrap).await?.admin();
        let description = match admin.describe_topic(topic).await {
            Ok(description) => description,
            Err(ClientError::Broker(error)) if error.code == ErrorCode::UnknownTopicOrPartition => return Ok(None),
            Err(error) => return Err(judge(&error)),
        };
        let resource = ConfigResource::topic(topic);
        let mut configs =
            admin.describe_configs(std::slice::from_ref(&resource)).await.map_err(|error| judge(&error))?;
        let entries = match configs.remove(&resource) {
            Some(Ok(entries)) => entries,
            Some(Err(error)) => return Err(judge(&error.into())),
            None => {
                return Err(BrokerError::Unavailable(format!(
                    "the brokers said nothing about {topic}'s configuration"
                )));
            }
        };
        let overrides = entries
            .into_iter()
            .filter(|(_, entry)| entry.source == ConfigSource::Topic)
            .filter_map(|(key, entry)| Some((key.to_string(), entry.value?.to_string())))
            .collect();
        let replicas = description.partitions.values().next().map_or(0, |partition| partition.replicas.len());
        Ok(Some(TopicSeen {
            id: description.id.to_string(),
            partitions: i32::try_from(description.partitions.len()).unwrap_or(i32::MAX),
            replicas: i32::try_from(replicas).unwrap_or(i32::MAX),
            overrides,
        }))
    }

    async fn change(&self, bootstrap: &str, topic: &str, step: &TopicStep) -> Result<(), BrokerError> {
        let admin = self.client(bootstrap).await?.admin();
        match step {
            TopicStep::Create { partitions, replicas, config } => {
                let mut new = NewTopic::new(topic);
                new.partitions = *partitions;
                new.replication_factor = replicas.and_then(|replicas| i16::try_from(replicas).ok());
                new.configs = config.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
                match admin.create_topic(new).await {
                    // An earlier attempt whose answer was lost, or somebody else: the next look adopts it.
                    Err(ClientError::Broker(error)) if error.code == ErrorCode::TopicAlreadyExists => Ok(()),
                    outcome => outcome.map(drop).map_err(|error| judge(&error)),
                }
            }
            TopicStep::Grow { partitions } => {
                let name = KString::from(topic);
                let outcomes = admin
                    .create_partitions(&[(name, *partitions, None)], false)
                    .await
                    .map_err(|error| judge(&error))?;
                outcomes.into_values().try_for_each(|outcome| outcome.map_err(|error| judge(&error.into())))
            }
            TopicStep::Configure { set, reset } => {
                let mut changes: Vec<ConfigChange> =
                    set.iter().map(|(key, value)| ConfigChange::set(key.as_str(), value.as_str())).collect();
                changes.extend(reset.iter().map(|key| ConfigChange::delete(key.as_str())));
                let outcomes = admin
                    .incremental_alter_configs(&[(ConfigResource::topic(topic), changes)], false)
                    .await
                    .map_err(|error| judge(&error))?;
                outcomes.into_values().try_for_each(|outcome| outcome.map_err(|error| judge(&error.into())))
            }
            TopicStep::Delete => match admin.delete_topic(topic).await {
                Err(ClientError::Broker(error)) if error.code == ErrorCode::UnknownTopicOrPartition => Ok(()),
                outcome => outcome.map_err(|error| judge(&error)),
            },
            TopicStep::AddFinalizer | TopicStep::RemoveFinalizer | TopicStep::RecordOwned(_) => Ok(()),
        }
    }
}

/// The quorum in the plan's words: how far behind the leader each replica is, by the leader's own clock.
fn quorum_seen(described: &QuorumDescription) -> QuorumSeen {
    let of = |id: BrokerId| described.voters.iter().find(move |voter| voter.id == id);
    let now = described.leader.and_then(of).map(|leader| leader.last_caught_up_ms);
    let replica = |replica: &QuorumReplica| {
        let level_at = Some(replica.last_caught_up_ms).filter(|at| *at >= 0);
        let behind_ms = now.zip(level_at).map_or(i64::MAX, |(now, at)| now.saturating_sub(at).max(0));
        ReplicaSeen {
            id: replica.id.0,
            directory_id: replica.directory.to_string(),
            end_offset: replica.log_end_offset,
            behind_ms,
        }
    };
    QuorumSeen {
        leader: described.leader.map(|leader| leader.0),
        high_watermark: described.high_watermark,
        voters: described.voters.iter().map(replica).collect(),
        observers: described.observers.iter().map(replica).collect(),
    }
}

/// Whether the same question may be answered otherwise later.
fn judge(error: &ClientError) -> BrokerError {
    match error {
        ClientError::Broker(said) if !said.code.is_retriable() => BrokerError::Refused(said.to_string()),
        ClientError::InvalidArgument(said) => BrokerError::Refused(said.clone()),
        other => BrokerError::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking
mod tests {
    use super::*;
    use gregor_client::types::LeaderEpoch;

    fn replica(id: i32, last_caught_up_ms: i64) -> QuorumReplica {
        let directory = Uuid(u128::try_from(id).unwrap());
        QuorumReplica {
            id: BrokerId(id),
            directory,
            log_end_offset: 7,
            last_fetch_ms: last_caught_up_ms,
            last_caught_up_ms,
        }
    }

    #[test]
    fn how_far_a_replica_is_behind_is_told_by_the_leaders_clock_alone() {
        let described = QuorumDescription {
            leader: Some(BrokerId(1)),
            leader_epoch: LeaderEpoch(3),
            high_watermark: 7,
            voters: vec![replica(1, 100_000), replica(2, 99_500), replica(3, -1)],
            observers: vec![replica(4, 90_000)],
        };
        let seen = quorum_seen(&described);
        let behind: Vec<i64> = seen.voters.iter().chain(&seen.observers).map(|replica| replica.behind_ms).collect();
        assert_eq!(behind, [0, 500, i64::MAX, 10_000]);
        assert_eq!(seen.lagging(), [3]);
        let leaderless = quorum_seen(&QuorumDescription { leader: None, ..described });
        assert!(
            leaderless.voters.iter().all(|voter| !voter.is_caught_up()),
            "without a leader nobody is level with it"
        );
    }
}
