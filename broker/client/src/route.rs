//! Which broker a request goes to: any, the controller's, a given one, a partition's leader.

use std::{collections::BTreeMap, future::Future, ops::RangeInclusive, time::Duration};

use gregor_channel::{Channel, ChannelError};
use gregor_messages::Request;
use gregor_types::{BrokerId, ErrorCode, KString, TopicPartition};

use crate::{BrokerError, Client, ClientError, retry::Pauses};

/// What a leader answered about one partition.
pub(crate) type LeaderRow<T> = (TopicPartition, Result<T, ErrorCode>);

/// Requests of different purposes go over different connections: a fetch that waits at the broker, or a member that waits for
/// others to join, holds up whatever follows on the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    General,
    Produce,
    /// One per consumer, by its number.
    Fetch(u64),
    Group(u64),
}

impl Purpose {
    pub(crate) const fn in_flight_max(self) -> usize {
        match self {
            Self::General => 100,
            Self::Produce => 5,
            Self::Fetch(_) | Self::Group(_) => 4,
        }
    }
}

impl Client {
    /// Sends a request that any broker can answer, at the newest version that both sides serve. Every broker that is known is
    /// tried once.
    pub async fn call<R: Request + Clone>(&self, request: &R) -> Result<R::Response, ClientError> {
        let (_, response) =
            self.call_any::<R>(R::VERSIONS, self.options().request_timeout, |_| request.clone()).await?;
        Ok(response)
    }

    /// Sends a request to one broker, at the newest version that both sides serve.
    pub async fn call_broker<R: Request + Clone>(
        &self,
        broker: BrokerId,
        request: &R,
    ) -> Result<R::Response, ClientError> {
        Ok(self.broker(broker, Purpose::General)?.call(request).await?)
    }

    pub(crate) async fn call_any<R: Request>(
        &self,
        versions: RangeInclusive<i16>,
        wait: Duration,
        build: impl Fn(i16) -> R,
    ) -> Result<(i16, R::Response), ClientError> {
        let addresses = self.addresses();
        let first = self.turn();
        let mut last: Option<ChannelError> = None;
        for turn in (0..addresses.len()).map(|step| first.wrapping_add(step)) {
            let channel = self.channel(addresses[turn % addresses.len()].clone(), Purpose::General);
            match channel.call_with(versions.clone(), wait, &build).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_retriable() => {
                    self.pass_on(turn);
                    last = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let last = last.map_or(ClientError::Closed("client"), ClientError::Channel);
        Err(ClientError::NoBroker { bootstrap: self.bootstrap().join(","), last: Box::new(last) })
    }

    /// Sends an administrative request where metadata says that the controller is reached, until a controller takes it.
    /// `build` is told the version agreed on; `error_of` tells whether the response as a whole was refused.
    pub(crate) async fn call_controller<R: Request>(
        &self,
        build: impl Fn(i16) -> R,
        error_of: impl Fn(&R::Response) -> ErrorCode,
    ) -> Result<R::Response, ClientError> {
        self.retry(|| async {
            let controller = self.cluster().controller;
            let channel = controller.and_then(|broker| self.broker(broker, Purpose::General).ok());
            let wait = self.options().request_timeout;
            let outcome = match channel {
                Some(channel) => channel.call_with(R::VERSIONS, wait, &build).await.map_err(ClientError::from),
                None => self.call_any(R::VERSIONS, wait, &build).await,
            };
            let outcome = outcome.and_then(|(_, response)| match error_of(&response) {
                code @ (ErrorCode::NotController | ErrorCode::CoordinatorLoadInProgress) => {
                    Err(BrokerError::new(R::NAME, code).into())
                }
                _ => Ok(response),
            });
            if outcome.as_ref().is_err_and(ClientError::is_retriable) {
                self.ask_another();
                // The controller may be elsewhere by now; the outcome's own error says more than this request's.
                let _ = self.refresh_topics(&[], false).await;
            }
            outcome
        })
        .await
    }

    /// The channel to a broker that metadata knows.
    pub(crate) fn broker(&self, broker: BrokerId, purpose: Purpose) -> Result<Channel, ClientError> {
        let cluster = self.cluster();
        let endpoint = cluster.brokers.get(&broker).ok_or(ClientError::NoSuchBroker(broker.0))?;
        Ok(self.channel(endpoint.address(), purpose))
    }

    /// Asks each partition's leader, again where leadership has moved, and returns what each partition's last answer was.
    pub(crate) async fn by_leader<T, F>(
        &self,
        partitions: Vec<TopicPartition>,
        call: impl Fn(BrokerId, Vec<TopicPartition>) -> F,
    ) -> Result<BTreeMap<TopicPartition, Result<T, BrokerError>>, ClientError>
    where
        F: Future<Output = Result<Vec<LeaderRow<T>>, ClientError>>,
    {
        let mut done = BTreeMap::new();
        let mut left = partitions;
        let mut pauses = Pauses::new(self);
        loop {
            let mut again: Vec<(TopicPartition, ClientError)> = Vec::new();
            let mut groups: BTreeMap<BrokerId, Vec<TopicPartition>> = BTreeMap::new();
            for partition in left.drain(..) {
                match self.leader(&partition) {
                    Ok((leader, _)) => groups.entry(leader).or_default().push(partition),
                    Err(error) => again.push((partition, error)),
                }
            }
            for (leader, group) in groups {
                match call(leader, group.clone()).await {
                    Ok(rows) => {
                        for (partition, outcome) in rows {
                            let named = |code| BrokerError::new(format!("partition {partition}"), code);
                            match outcome.map_err(named) {
                                Err(error) if error.code.is_retriable() => again.push((partition, error.into())),
                                outcome => drop(done.insert(partition, outcome)),
                            }
                        }
                    }
                    Err(error) if error.is_retriable() => {
                        let reason = error.to_string();
                        let failed = |partition| {
                            let lost = BrokerError::new(format!("partition {partition}"), ErrorCode::NetworkException);
                            (partition, lost.with_message(Some(&reason)).into())
                        };
                        again.extend(group.into_iter().map(failed));
                    }
                    Err(error) => return Err(error),
                }
            }
            let Some((_, first)) = again.first() else { return Ok(done) };
            let as_broker_error = |partition: &TopicPartition, error: &ClientError| match error {
                ClientError::Broker(error) => error.clone(),
                other => BrokerError::new(format!("partition {partition}"), ErrorCode::LeaderNotAvailable)
                    .with_message(Some(other.to_string())),
            };
            let first = as_broker_error(&again[0].0, first);
            if pauses.wait_or(first.into()).await.is_err() {
                for (partition, error) in again {
                    let error = as_broker_error(&partition, &error);
                    done.insert(partition, Err(error));
                }
                return Ok(done);
            }
            let mut topics: Vec<KString> = again.iter().map(|(partition, _)| partition.topic.clone()).collect();
            topics.dedup();
            self.ask_another();
            // If no broker answers, the next round finds the leaders still unknown and pauses again.
            let _ = self.refresh_topics(&topics, false).await;
            left = again.into_iter().map(|(partition, _)| partition).collect();
            debug_assert!(pauses.left() > Duration::ZERO || !left.is_empty());
        }
    }
}
