//! Whether this operator still leads, asked of the API server right before every step: a process that was held for longer than its
//! Lease lasts learns of that from nobody else in time. Called by whoever carries out steps; it never takes or renews the Lease.
//!
//! It also says when a process has to begin anew, as only then a Lease that was deleted is made again.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::api::Api;
use tokio::time::Instant;

use crate::error::Error;

/// How often the Lease is looked at beside the steps.
const LOOK: Duration = Duration::from_secs(5);

/// The Lease of the operator that leads, and who this one is.
#[derive(Clone)]
pub struct Fence {
    leases: Api<Lease>,
    name: String,
    identity: String,
}

impl Fence {
    /// For the operator that holds this Lease under this identity.
    pub fn new(client: &Client, namespace: &str, name: &str, identity: &str) -> Self {
        let leases = Api::namespaced(client.clone(), namespace);
        Self { leases, name: name.to_owned(), identity: identity.to_owned() }
    }

    /// Fails unless the Lease is this operator's now.
    pub async fn check(&self) -> Result<(), Error> {
        let lease =
            self.leases.get(&self.name).await.map_err(Error::kubernetes(format!("reading Lease {}", self.name)))?;
        held(&lease.spec.unwrap_or_default(), &self.identity, Timestamp::now())
            .map_err(|said| Error::NotLeading { lease: self.name.clone(), said })
    }

    /// Comes back when this operator could not be seen to lead for `limit`, with the last that stood in the way.
    pub async fn lost(&self, limit: Duration) -> Error {
        failing(limit, async || self.check().await).await
    }

    /// Comes back when for `limit` there was no Lease at all, whoever may hold it.
    pub async fn gone(&self, limit: Duration) -> Error {
        failing(limit, async || match self.leases.get_opt(&self.name).await {
            Ok(None) => Err(Error::NotLeading { lease: self.name.clone(), said: "there is none".to_owned() }),
            // Where nothing can be read nobody knows that it is gone, and this operator waits anyway.
            Ok(Some(_)) | Err(_) => Ok(()),
        })
        .await
    }
}

/// The last error of looks none of which was good for `limit`. A look of which no answer comes is not a good one.
async fn failing(limit: Duration, look: impl AsyncFn() -> Result<(), Error>) -> Error {
    let mut good = Instant::now();
    loop {
        let began = Instant::now();
        let late = |_| Err(Error::Late { seconds: LOOK.as_secs() });
        match tokio::time::timeout(LOOK, look()).await.unwrap_or_else(late) {
            Ok(()) => good = began,
            Err(error) if good.elapsed() >= limit => return error,
            Err(_) => {}
        }
        tokio::time::sleep_until(began + LOOK).await;
    }
}

fn held(lease: &LeaseSpec, identity: &str, now: Timestamp) -> Result<(), String> {
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    if holder != identity {
        return Err(format!("its holder is {holder:?}, and this is {identity:?}"));
    }
    let lasts = lease.lease_duration_seconds.map(|seconds| SignedDuration::from_secs(i64::from(seconds)));
    let end = lease.renew_time.as_ref().zip(lasts).and_then(|(renewed, lasts)| renewed.0.checked_add(lasts).ok());
    match end {
        Some(end) if now < end => Ok(()),
        Some(end) => Err(format!("it ended at {end}")),
        None => Err("it does not say how long it lasts".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    #[test]
    fn only_who_holds_a_lease_that_lasts_may_go_on() {
        let renewed = Timestamp::from_second(1_000).unwrap();
        let lease = LeaseSpec {
            holder_identity: Some("one".to_owned()),
            renew_time: Some(MicroTime(renewed)),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert_eq!(held(&lease, "one", at(1_014)), Ok(()));
        assert!(held(&lease, "one", at(1_015)).unwrap_err().contains("ended"));
        assert!(held(&lease, "two", at(1_001)).unwrap_err().contains("\"one\""));
        let timeless = LeaseSpec { renew_time: None, ..lease };
        assert!(held(&timeless, "one", at(1_001)).is_err());
        assert!(held(&LeaseSpec::default(), "one", at(1_001)).is_err());
    }
}
