//! How brokers are asked about topics. The rest of the manager sees only [`TopicAdmin`]; [`KafkaAdmin`] speaks Kafka's
//! protocol through our own client.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use gregor_client::types::{ErrorCode, KString};
use gregor_client::{Client, ClientError, ClientOptions, ConfigChange, ConfigResource, ConfigSource, NewTopic};
use gregor_operator_plan::topic::{BrokerError, TopicSeen, TopicStep};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

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

/// Real brokers. The client's futures stay on one thread, which is enough for administration and keeps its connections
/// together; questions reach it through a bounded queue.
pub struct KafkaAdmin {
    questions: mpsc::Sender<Question>,
}

struct Question {
    bootstrap: String,
    topic: String,
    /// The step to carry out; without one the topic is described.
    step: Option<TopicStep>,
    answer: oneshot::Sender<Result<Option<TopicSeen>, BrokerError>>,
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

    fn put(
        &self,
        bootstrap: &str,
        topic: &str,
        step: Option<TopicStep>,
    ) -> BoxFuture<'static, Result<Option<TopicSeen>, BrokerError>> {
        let (answer, answered) = oneshot::channel();
        let question = Question { bootstrap: bootstrap.to_owned(), topic: topic.to_owned(), step, answer };
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
        self.put(bootstrap, topic, None)
    }

    fn carry_out<'a>(
        &'a self,
        bootstrap: &'a str,
        topic: &'a str,
        step: &'a TopicStep,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.put(bootstrap, topic, Some(step.clone())).map(|outcome| outcome.map(drop)).boxed()
    }
}

/// The clients, on their thread.
#[derive(Default)]
struct Brokers {
    clients: RefCell<HashMap<String, Client>>,
}

impl Brokers {
    async fn answer(&self, question: &Question) -> Result<Option<TopicSeen>, BrokerError> {
        let outcome = match &question.step {
            None => self.ask(&question.bootstrap, &question.topic).await,
            Some(step) => self.change(&question.bootstrap, &question.topic, step).await.map(|()| None),
        };
        if matches!(outcome, Err(BrokerError::Unavailable(_))) {
            // After a silence the address may lead elsewhere: the next question connects again.
            self.clients.borrow_mut().remove(&question.bootstrap);
        }
        outcome
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

/// Whether the same question may be answered otherwise later.
fn judge(error: &ClientError) -> BrokerError {
    match error {
        ClientError::Broker(said) if !said.code.is_retriable() => BrokerError::Refused(said.to_string()),
        ClientError::InvalidArgument(said) => BrokerError::Refused(said.clone()),
        other => BrokerError::Unavailable(other.to_string()),
    }
}
