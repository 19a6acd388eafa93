//! The twin of `src/sync.rs` for the model checker: locks, atomics and threads of loom, and a time that the model moves.

use std::{
    cell::Cell,
    future::Future,
    ops::{Add, Deref, DerefMut},
    pin::pin,
    sync::{LockResult, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    thread::Builder,
};

thread_local! {
    /// All threads of a model are turns of one real thread, so this is the model's own.
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static TIME_PASSES: Cell<bool> = const { Cell::new(false) };
}

/// Begins a model: whether waits with a limit reach it, or time stands still.
pub(crate) fn begin(time_passes: bool) {
    NOW.set(Duration::from_secs(1));
    TIME_PASSES.set(time_passes);
}

/// Time moves for all.
pub(crate) fn advance(by: Duration) {
    NOW.set(NOW.get() + by);
}

/// All threads share one place: then less is watched, which no model here looks at.
pub(crate) fn thread_number() -> usize {
    0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    pub(crate) fn now() -> Self {
        Self(NOW.get())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        NOW.get().saturating_sub(self.0)
    }

    pub(crate) fn saturating_duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0 + after)
    }
}

/// A lock whose guard knows it, so that a wait can let go of it and take it again.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    guard: loom::sync::MutexGuard<'a, T>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(MutexGuard { mutex: self, guard })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let MutexGuard { mutex, guard } = guard;
        let guard = self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
        Ok(MutexGuard { mutex, guard })
    }

    /// Where time passes the limit is always reached; where it stands still only a notification ends the wait.
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        let mutex = guard.mutex;
        if !TIME_PASSES.get() {
            return self.wait(guard).map(|guard| (guard, false)).map_err(|_| unreachable!("loom poisons no lock"));
        }
        drop(guard);
        advance(limit);
        // Whoever waits again and again lets others go on.
        loom::thread::yield_now();
        mutex.lock().map(|guard| (guard, true)).map_err(|_| unreachable!("loom poisons no lock"))
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// As tokio's for one who waits: a notification that comes first is kept.
#[derive(Debug)]
pub(crate) struct Notify(Mutex<(bool, Option<Waker>)>);

impl Notify {
    pub(crate) fn new() -> Self {
        Self(Mutex::new((false, None)))
    }

    pub(crate) fn notify_one(&self) {
        let waker = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = true;
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) async fn notified(&self) {
        std::future::poll_fn(|context| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::take(&mut state.0) {
                return Poll::Ready(());
            }
            state.1 = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A deadline that has come ends the wait at its first turn, any other never.
pub(crate) async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, ()> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending if deadline <= Instant::now() => Poll::Ready(Err(())),
        Poll::Pending => Poll::Pending,
    })
    .await
}
