//! The memory that requests may take while they arrive.
//!
//! A connection asks for a little more whenever bytes have really arrived, never for what a peer's length field claims.
//! Where the pool is empty it waits, which mutes the peer. One connection at a time may go on beyond the pool, up to one
//! whole request, so that many half-read requests can never wait for each other for ever.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that all connections of a kind share.
#[derive(Debug, Clone)]
pub(crate) struct MemoryPool {
    bytes: Arc<Semaphore>,
    capacity: usize,
    overdraft: Arc<Semaphore>,
}

/// What one connection holds of the pool; given back when dropped.
#[derive(Debug)]
pub(crate) struct MemoryGrant {
    pool: MemoryPool,
    /// Bytes taken from the pool.
    pooled: usize,
    /// Bytes beyond the pool, only ever with the permit.
    overdrawn: usize,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl MemoryPool {
    /// A pool of that many bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { bytes: Arc::new(Semaphore::new(capacity)), capacity, overdraft: Arc::new(Semaphore::new(1)) }
    }

    /// A quarter of what this process may use: of its cgroup's limit, else of the machine's memory.
    pub(crate) fn default_capacity() -> usize {
        const FALLBACK: usize = 256 << 20;
        let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
        let machine = || {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib << 10)
        };
        let limit =
            number("/sys/fs/cgroup/memory.max").or_else(|| number("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
        match (limit, machine()) {
            (Some(limit), Some(machine)) => limit.min(machine) / 4,
            (Some(bytes), None) | (None, Some(bytes)) => bytes / 4,
            (None, None) => FALLBACK,
        }
    }

    /// Bytes handed out now.
    pub(crate) fn used(&self) -> usize {
        self.capacity - self.bytes.available_permits()
    }

    /// A grant of nothing yet.
    pub(crate) fn grant(&self) -> MemoryGrant {
        MemoryGrant { pool: self.clone(), pooled: 0, overdrawn: 0, overdraft: None }
    }
}

impl MemoryGrant {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.pooled + self.overdrawn
    }

    /// Whether others need the memory more than an idle buffer does: the pool is nearly empty, or this is beyond it.
    pub(crate) fn is_scarce(&self) -> bool {
        self.overdraft.is_some() || self.pool.bytes.available_permits() < self.pool.capacity / 8
    }

    /// Grows to `target` bytes, waiting where the pool is empty. Dropped while it waits, it has changed nothing.
    pub(crate) async fn grow_to(&mut self, target: usize) {
        let Some(more) = target.checked_sub(self.bytes()).filter(|more| *more > 0) else { return };
        if self.overdraft.is_some() {
            self.overdrawn += more;
            return;
        }
        let wanted = u32::try_from(more).unwrap_or(u32::MAX);
        if let Ok(permit) = self.pool.bytes.try_acquire_many(wanted) {
            permit.forget();
            self.pooled += more;
            return;
        }
        tokio::select! {
            biased;
            permit = self.pool.bytes.acquire_many(wanted) => {
                permit.expect("the pool is never closed").forget();
                self.pooled += more;
            }
            permit = Arc::clone(&self.pool.overdraft).acquire_owned() => {
                self.overdraft = Some(permit.expect("the pool is never closed"));
                self.overdrawn += more;
            }
        }
    }

    /// Gives back all but `target` bytes, what is beyond the pool first.
    pub(crate) fn shrink_to(&mut self, target: usize) {
        let mut surplus = self.bytes().saturating_sub(target);
        let from_overdraft = surplus.min(self.overdrawn);
        self.overdrawn -= from_overdraft;
        surplus -= from_overdraft;
        if self.overdrawn == 0 {
            self.overdraft = None;
        }
        self.pooled -= surplus;
        self.pool.bytes.add_permits(surplus);
    }
}

impl Drop for MemoryGrant {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_is_granted_comes_back() {
        let pool = MemoryPool::new(1000);
        let mut grant = pool.grant();
        grant.grow_to(600).await;
        grant.grow_to(900).await;
        assert_eq!((pool.used(), grant.bytes()), (900, 900));
        grant.shrink_to(100);
        assert_eq!(pool.used(), 100);
        drop(grant);
        assert_eq!(pool.used(), 0);
    }

    #[tokio::test]
    async fn one_grant_may_go_beyond_an_empty_pool_and_the_next_waits() {
        let pool = MemoryPool::new(1000);
        let (mut first, mut second, mut third) = (pool.grant(), pool.grant(), pool.grant());
        first.grow_to(1000).await;
        second.grow_to(500).await;
        assert_eq!(second.bytes(), 500);
        assert!(third.grow_to(1).now_or_never().is_none(), "the overdraft is taken");
        drop(second);
        third.grow_to(1).await;
        assert_eq!(third.bytes(), 1);
        drop((first, third));
        assert_eq!(pool.used(), 0);
    }
}
