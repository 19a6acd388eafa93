//! The consumer: records out, offsets committed.
//!
//! Either it is told its partitions ([`Consumer::assign`]), or it shares those of some topics with the other members of its group
//! ([`Consumer::subscribe`]). Everything but heartbeats happens inside [`Consumer::poll`].

mod assignor;
mod fetcher;
mod membership;
mod position;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use gregor_types::{KString, LeaderEpoch, Offset, TopicPartition};
use tokio::time::{Instant, sleep_until};

pub use crate::records::FetchedRecord;
use crate::{Client, ClientError, ConsumerOptions};
use fetcher::Fetcher;
use membership::Membership;
use position::Positions;

/// The partitions that a consumer reads.
pub type Assignment = BTreeSet<TopicPartition>;

/// Where to start in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartOffset {
    /// Where the group committed last; without one, as `offset_reset` says.
    Committed,
    /// At the first record that is still there.
    Earliest,
    /// At the end, for what comes from now on.
    Latest,
    /// At this offset.
    At(Offset),
}

/// What to do where no offset is committed, or the offset is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetReset {
    /// Go to the first record that is still there.
    Earliest,
    /// Go to the end.
    Latest,
    /// Fail.
    Fail,
}

/// How far a group has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: Offset,
    /// The epoch of the last record read, if known.
    pub leader_epoch: LeaderEpoch,
    /// Words of the committer's own.
    pub metadata: KString,
}

impl CommittedOffset {
    /// An offset without more.
    pub fn new(offset: impl Into<Offset>) -> Self {
        Self { offset: offset.into(), leader_epoch: LeaderEpoch::NONE, metadata: KString::default() }
    }
}

/// A consumer. It is one reader: its methods take `&mut self`.
pub struct Consumer {
    client: Client,
    options: ConsumerOptions,
    membership: Option<Membership>,
    positions: Positions,
    fetcher: Fetcher,
    committed_at: Instant,
}

/// Gives each consumer connections of its own.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

impl Consumer {
    pub(crate) fn new(client: Client, options: ConsumerOptions) -> Self {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self {
            fetcher: Fetcher::new(client.clone(), options.clone(), number),
            positions: Positions::new(client.clone(), options.clone()),
            membership: None,
            committed_at: Instant::now(),
            client,
            options,
        }
    }

    /// Reads these partitions, and no others, without being a member of a group.
    pub async fn assign(
        &mut self,
        partitions: impl IntoIterator<Item = (TopicPartition, StartOffset)>,
    ) -> Result<(), ClientError> {
        self.leave().await;
        let partitions: BTreeMap<_, _> = partitions.into_iter().collect();
        for topic in partitions.keys().map(|partition| &partition.topic).collect::<BTreeSet<_>>() {
            self.client.topic(topic, false).await?;
        }
        self.fetcher.clear();
        self.positions.replace(partitions);
        Ok(())
    }

    /// Shares the partitions of these topics with the other members of the group.
    pub async fn subscribe(&mut self, topics: impl IntoIterator<Item = KString>) -> Result<(), ClientError> {
        let Some(group) = self.options.group_id.clone() else {
            return Err(ClientError::InvalidArgument("to subscribe, a consumer needs a group_id".to_owned()));
        };
        self.leave().await;
        self.fetcher.clear();
        self.positions.replace(BTreeMap::new());
        let topics = topics.into_iter().collect();
        let number = self.fetcher.number();
        self.membership = Some(Membership::new(self.client.clone(), self.options.clone(), group, topics, number));
        Ok(())
    }

    /// The partitions that are read at the moment.
    pub fn assignment(&self) -> Assignment {
        self.positions.partitions().cloned().collect()
    }

    /// The next offset of a partition, once it is known.
    pub fn position(&self, partition: &TopicPartition) -> Option<Offset> {
        self.positions.at(partition)
    }

    /// Goes on at another offset.
    pub fn seek(&mut self, partition: &TopicPartition, start: StartOffset) {
        self.fetcher.forget(partition);
        self.positions.seek(partition, start);
    }

    /// Waits for records for at most `timeout`. A rebalance of the group is taken part in here, and may take longer.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Vec<FetchedRecord>, ClientError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.follow_the_group().await?;
            self.commit_now_and_then().await?;
            self.positions.resolve().await?;
            let records = self.fetcher.take(&mut self.positions)?;
            if !records.is_empty() {
                return Ok(records);
            }
            self.fetcher.start(&self.positions).await;
            let commit_due = self.options.auto_commit.map_or(deadline, |every| self.committed_at + every);
            let rebalance = async {
                match &self.membership {
                    Some(membership) => membership.wait_for_rebalance().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.fetcher.wait() => {}
                () = rebalance => {}
                () = sleep_until(commit_due), if commit_due < deadline && commit_due > Instant::now() => {}
                () = sleep_until(deadline) => return Ok(Vec::new()),
            }
        }
    }

    /// Commits how far `poll` has returned records.
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        let offsets = self.positions.to_commit();
        self.commit_offsets(&offsets).await
    }

    /// Commits given offsets.
    pub async fn commit_offsets(
        &mut self,
        offsets: &BTreeMap<TopicPartition, CommittedOffset>,
    ) -> Result<(), ClientError> {
        let Some(group) = self.options.group_id.clone() else {
            return Err(ClientError::InvalidArgument("to commit, a consumer needs a group_id".to_owned()));
        };
        if offsets.is_empty() {
            return Ok(());
        }
        self.committed_at = Instant::now();
        if let Some(membership) = &self.membership {
            return membership.commit(offsets).await;
        }
        let outcomes = self.client.admin().alter_group_offsets(group, offsets).await?;
        outcomes.into_values().find_map(Result::err).map_or(Ok(()), |error| Err(error.into()))
    }

    /// Commits if that is automatic, and leaves the group.
    pub async fn close(mut self) -> Result<(), ClientError> {
        let committed = match (self.options.auto_commit, &self.options.group_id) {
            (Some(_), Some(_)) => self.commit().await,
            _ => Ok(()),
        };
        self.leave().await;
        committed
    }

    async fn follow_the_group(&mut self) -> Result<(), ClientError> {
        let Some(membership) = &mut self.membership else { return Ok(()) };
        membership.polled();
        if !membership.must_join() {
            return Ok(());
        }
        let offsets = self.positions.to_commit();
        if self.options.auto_commit.is_some()
            && !offsets.is_empty()
            && let Err(error) = membership.commit(&offsets).await
        {
            // Whoever gets the partitions next reads some records again, as after any rebalance that comes too late.
            tracing::warn!(%error, "offsets could not be committed before the rebalance");
        }
        let assigned = membership.join().await?;
        self.fetcher.clear();
        self.positions.replace(assigned.into_iter().map(|partition| (partition, StartOffset::Committed)).collect());
        Ok(())
    }

    async fn commit_now_and_then(&mut self) -> Result<(), ClientError> {
        let Some(every) = self.options.auto_commit else { return Ok(()) };
        if self.options.group_id.is_none() || self.committed_at.elapsed() < every {
            return Ok(());
        }
        self.committed_at = Instant::now();
        match self.commit().await {
            Err(error) if error.is_retriable() || self.membership.as_ref().is_some_and(Membership::must_join) => {
                tracing::debug!(%error, "automatic commit");
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn leave(&mut self) {
        if let Some(membership) = self.membership.take() {
            membership.leave().await;
        }
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Consumer")
            .field("client", &self.client)
            .field("positions", &self.positions)
            .finish_non_exhaustive()
    }
}
