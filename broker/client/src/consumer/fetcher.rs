//! Fetches: one on its way to each leader at most, and what came back until `poll` hands it out.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::pending,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use gregor_messages::{
    FetchRequest, FetchResponse,
    fetch_request::{FetchPartition, FetchTopic},
};
use gregor_types::{BrokerId, ErrorCode, KString, LeaderEpoch, Offset, TopicPartition};
use tokio::time::{Instant, sleep_until};

use super::position::Positions;
use crate::{
    BrokerError, Client, ClientError, ConsumerOptions,
    records::{self, FetchedRecord},
    route::Purpose,
};

/// The newest version of Fetch that names topics rather than giving their ids.
const FETCH_BY_NAME_MAX: i16 = 12;

type Asked = BTreeMap<TopicPartition, Offset>;
type Fetched = (BrokerId, Asked, Result<FetchResponse, ClientError>);

pub(super) struct Fetcher {
    client: Client,
    options: ConsumerOptions,
    number: u64,
    requests: FuturesUnordered<BoxFuture<'static, Fetched>>,
    busy: BTreeSet<BrokerId>,
    ready: VecDeque<Ready>,
    /// An error for `poll` to return, after the records before it.
    failed: Option<ClientError>,
    lost: Vec<(TopicPartition, Offset)>,
    stale: bool,
    not_before: Option<Instant>,
}

/// What a fetch brought for one partition.
struct Ready {
    partition: TopicPartition,
    /// Where the rest begins; if the position is elsewhere by now, it is of no use.
    from: Offset,
    records: VecDeque<FetchedRecord>,
    next: Offset,
}

impl Fetcher {
    pub(super) fn new(client: Client, options: ConsumerOptions, number: u64) -> Self {
        Self {
            client,
            options,
            number,
            requests: FuturesUnordered::new(),
            busy: BTreeSet::new(),
            ready: VecDeque::new(),
            failed: None,
            lost: Vec::new(),
            stale: false,
            not_before: None,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Throws away what was fetched; what is still on its way is thrown away when it comes.
    pub(super) fn clear(&mut self) {
        self.ready.clear();
        self.lost.clear();
    }

    pub(super) fn forget(&mut self, partition: &TopicPartition) {
        self.ready.retain(|ready| ready.partition != *partition);
    }

    /// Hands out records that are there, and moves the positions behind them.
    pub(super) fn take(&mut self, positions: &mut Positions) -> Result<Vec<FetchedRecord>, ClientError> {
        for (partition, offset) in self.lost.drain(..) {
            if positions.at(&partition) == Some(offset) {
                positions.lost(&partition);
            }
        }
        let mut taken = Vec::new();
        while taken.len() < self.options.poll_records_max
            && let Some(mut ready) = self.ready.pop_front()
        {
            if positions.at(&ready.partition) != Some(ready.from) {
                continue;
            }
            let count = ready.records.len().min(self.options.poll_records_max - taken.len());
            taken.extend(ready.records.drain(..count));
            let epoch = taken.last().filter(|_| count > 0).map(|record: &FetchedRecord| record.leader_epoch);
            let next = match (ready.records.is_empty(), taken.last()) {
                (false, Some(last)) => last.offset.plus(1),
                _ => ready.next,
            };
            positions.advance(&ready.partition, next, epoch);
            if !ready.records.is_empty() {
                ready.from = next;
                self.ready.push_front(ready);
            }
        }
        match self.failed.take() {
            Some(error) if taken.is_empty() => Err(error),
            error => {
                self.failed = error;
                Ok(taken)
            }
        }
    }

    /// Sends a fetch to each leader that has none on its way.
    pub(super) async fn start(&mut self, positions: &Positions) {
        if self.not_before.is_some_and(|until| until > Instant::now()) {
            return;
        }
        self.not_before = None;
        // A leader that is cut off from the others answers and says nothing of its successor.
        if self.stale || self.client.outdated(positions.partitions().map(|partition| &partition.topic)) {
            let topics: BTreeSet<KString> = positions.partitions().map(|partition| partition.topic.clone()).collect();
            let topics: Vec<_> = topics.into_iter().collect();
            self.client.ask_another();
            if self.client.refresh_topics(&topics, false).await.is_err() {
                self.pause();
                return;
            }
            self.stale = false;
        }
        let mut wanted: BTreeMap<BrokerId, BTreeMap<TopicPartition, (Offset, LeaderEpoch)>> = BTreeMap::new();
        let mut leaderless = false;
        for partition in positions.partitions() {
            let Some(offset) = positions.at(partition) else { continue };
            if self.ready.iter().any(|ready| ready.partition == *partition) {
                continue;
            }
            match self.client.leader(partition) {
                Ok((leader, epoch)) if !self.busy.contains(&leader) => {
                    wanted.entry(leader).or_default().insert(partition.clone(), (offset, epoch));
                }
                Ok(_) => {}
                Err(_) => leaderless = true,
            }
        }
        for (leader, partitions) in wanted {
            self.busy.insert(leader);
            let asked: Asked = partitions.iter().map(|(partition, (offset, _))| (partition.clone(), *offset)).collect();
            let request = self.request(&partitions);
            let client = self.client.clone();
            let purpose = Purpose::Fetch(self.number);
            let wait = client.options().request_timeout + self.options.fetch_max_wait;
            self.requests.push(Box::pin(async move {
                let outcome = async {
                    let channel = client.broker(leader, purpose)?;
                    let (_, response) = channel.call_with(4..=FETCH_BY_NAME_MAX, wait, |_| request).await?;
                    Ok(response)
                };
                (leader, asked, outcome.await)
            }));
        }
        if leaderless {
            self.stale = true;
            self.pause();
        }
    }

    /// Waits until something came back, or until a pause after an error is over. Safe to drop half-way.
    pub(super) async fn wait(&mut self) {
        let not_before = self.not_before;
        let pause = async move {
            match not_before {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            }
        };
        let next = async {
            match self.requests.next().await {
                Some(fetched) => fetched,
                None => pending().await,
            }
        };
        tokio::select! {
            fetched = next => self.came_back(fetched),
            () = pause => {}
        }
    }

    fn request(&self, partitions: &BTreeMap<TopicPartition, (Offset, LeaderEpoch)>) -> FetchRequest {
        let mut topics: BTreeMap<KString, Vec<FetchPartition>> = BTreeMap::new();
        for (partition, (offset, epoch)) in partitions {
            topics.entry(partition.topic.clone()).or_default().push(FetchPartition {
                partition: partition.partition.0,
                current_leader_epoch: epoch.0,
                fetch_offset: offset.0,
                partition_max_bytes: self.options.partition_max_bytes,
                ..Default::default()
            });
        }
        FetchRequest {
            replica_id: -1,
            max_wait_ms: i32::try_from(self.options.fetch_max_wait.as_millis()).unwrap_or(i32::MAX),
            min_bytes: self.options.fetch_min_bytes,
            max_bytes: self.options.fetch_max_bytes,
            isolation_level: i8::from(self.options.read_committed),
            topics: topics
                .into_iter()
                .map(|(topic, partitions)| FetchTopic { topic, partitions, ..Default::default() })
                .collect(),
            ..Default::default()
        }
    }

    fn came_back(&mut self, (leader, asked, outcome): Fetched) {
        self.busy.remove(&leader);
        let response = match outcome {
            Ok(response) => response,
            Err(error) if error.is_retriable() => {
                tracing::debug!(%error, "fetch");
                self.stale = true;
                self.pause();
                return;
            }
            Err(error) => {
                self.failed = Some(error);
                return;
            }
        };
        if let Err(code) = ErrorCode::from(response.error_code).ok() {
            self.failed = Some(BrokerError::new(format!("fetch from broker {leader}"), code).into());
            return;
        }
        for topic in response.responses {
            for row in topic.partitions {
                let partition = TopicPartition::new(topic.topic.compact(), row.partition_index);
                let Some(from) = asked.get(&partition).copied() else { continue };
                match ErrorCode::from(row.error_code) {
                    ErrorCode::None => {}
                    ErrorCode::OffsetOutOfRange => {
                        self.lost.push((partition, from));
                        continue;
                    }
                    code if code.is_retriable() => {
                        tracing::debug!(%partition, %code, "fetch");
                        self.stale = true;
                        self.pause();
                        continue;
                    }
                    code => {
                        self.failed = Some(BrokerError::new(format!("partition {partition}"), code).into());
                        continue;
                    }
                }
                let bytes = row.records.unwrap_or_default();
                let aborted = self.options.read_committed.then(|| row.aborted_transactions.unwrap_or_default());
                match records::decode(&partition, from, &bytes, aborted) {
                    Ok(decoded) => {
                        if let Some(next) = decoded.next.filter(|next| *next > from) {
                            self.ready.push_back(Ready { partition, from, records: decoded.records.into(), next });
                        }
                    }
                    Err(error) => self.failed = Some(error),
                }
            }
        }
    }

    fn pause(&mut self) {
        self.not_before = Some(Instant::now() + self.client.options().retry_backoff);
    }
}
