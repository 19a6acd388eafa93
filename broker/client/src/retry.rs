//! Trying again: until it works, until the error says that it never will, or until time is up.

use std::{future::Future, time::Duration};

use gregor_channel::Backoff;
use tokio::time::{Instant, sleep};

use crate::{Client, ClientError};

impl Client {
    /// Calls `attempt` until it succeeds, fails for good, or the time for a call is up; then its last error is returned.
    pub(crate) async fn retry<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut pauses = Pauses::new(self);
        loop {
            match attempt().await {
                Err(error) if error.is_retriable() => {
                    pauses.wait_or(error).await?;
                    self.ask_another();
                }
                outcome => return outcome,
            }
        }
    }
}

/// The pauses of one call, and when it gives up.
pub(crate) struct Pauses {
    backoff: Backoff,
    deadline: Instant,
}

impl Pauses {
    pub(crate) fn new(client: &Client) -> Self {
        let options = client.options();
        Self {
            backoff: Backoff::new(options.retry_backoff, options.retry_backoff_max),
            deadline: Instant::now() + options.api_timeout,
        }
    }

    /// Pauses before the next try, or gives `error` back where none is left.
    pub(crate) async fn wait_or(&mut self, error: ClientError) -> Result<(), ClientError> {
        let pause = self.backoff.next_pause();
        if Instant::now() + pause >= self.deadline {
            return Err(error);
        }
        tracing::debug!(%error, ?pause, "trying again");
        sleep(pause).await;
        Ok(())
    }

    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}
