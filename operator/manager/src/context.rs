//! What every reconcile needs: clients, settings, and the little that is remembered between two of them, all of which may
//! be lost.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use gregor_operator_api::KafkaTopic;
use gregor_operator_plan::Environment;
use gregor_operator_plan::certificates::Served;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::Store;
use rustls::crypto::CryptoProvider;

use crate::admin::Admin;
use crate::error::Error;
use crate::fence::Fence;
use crate::gate::StatusGate;
use crate::metrics::Metrics;

/// The field manager of everything that is applied, except statuses.
pub const FIELD_MANAGER: &str = "gregor-operator";
/// The field manager of statuses.
pub const STATUS_MANAGER: &str = "gregor-operator-status";

/// Objects that are remembered as stored otherwise, and pods by what they show; forgetting one costs one write, or one look.
const SETTLED_MAX: usize = 10_000;

/// How long one reconcile may take. The connection that an answer should come by can be dead without a sign of it, and nobody else
/// works on the object meanwhile.
const PATIENCE: Duration = Duration::from_mins(2);

/// What every reconcile needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What the operator knows that no manifest says.
    pub environment: Environment,
    /// What says before each step whether this operator leads; none where it is the only one.
    pub fence: Option<Fence>,
    /// How brokers are asked.
    pub admin: Arc<dyn Admin>,
    /// Counters.
    pub metrics: Metrics,
    /// How events are told.
    pub recorder: Recorder,
    /// How often statuses may be written.
    pub gate: StatusGate,
    /// How long one reconcile may take.
    pub patience: Duration,
    /// Every KafkaTopic in sight, to find those that name the same topic.
    pub topics: RwLock<Vec<Store<KafkaTopic>>>,
    /// Objects that the API server stores otherwise than they were applied, by uid, with the hash of what was applied.
    settled: Mutex<HashMap<String, String>>,
    /// What pods show that have read their newest Secrets, by their uid: they need not be looked at again.
    shown: Mutex<HashMap<String, Served>>,
    /// How often in a row the work on an object has failed, by its uid.
    attempts: Mutex<HashMap<String, u32>>,
    chance: RandomState,
    provider: CryptoProvider,
}

impl Context {
    /// A context with nothing remembered.
    pub fn new(
        client: Client,
        environment: Environment,
        admin: Arc<dyn Admin>,
        identity: &str,
        metrics: Metrics,
    ) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            environment,
            fence: None,
            admin,
            metrics,
            gate: StatusGate::default(),
            patience: PATIENCE,
            topics: RwLock::default(),
            settled: Mutex::default(),
            shown: Mutex::default(),
            attempts: Mutex::default(),
            chance: RandomState::new(),
            provider: rustls::crypto::aws_lc_rs::default_provider(),
        }
    }

    /// The same for one of several operators.
    #[must_use]
    pub fn fenced(self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self }
    }

    /// Fails unless this operator leads.
    pub async fn leads(&self) -> Result<(), Error> {
        match &self.fence {
            Some(fence) => fence.check().await,
            None => Ok(()),
        }
    }

    /// What the work on an object comes to, if it ends in time.
    pub async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let late = |_| Err(Error::Late { seconds: self.patience.as_secs() });
        tokio::time::timeout(self.patience, work).await.unwrap_or_else(late)
    }

    /// Remembers that an object is stored otherwise than it was applied.
    pub fn settle(&self, uid: String, hash: String) {
        let mut settled = self.settled.lock().expect("nothing panics while it holds this lock");
        if settled.len() >= SETTLED_MAX {
            settled.clear();
        }
        settled.insert(uid, hash);
    }

    /// What is remembered of these objects.
    pub fn settled<'a>(&self, uids: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
        let settled = self.settled.lock().expect("nothing panics while it holds this lock");
        uids.filter_map(|uid| Some((uid.to_owned(), settled.get(uid)?.clone()))).collect()
    }

    /// Remembers what a pod shows.
    pub fn has_shown(&self, pod_uid: &str, shown: Served) {
        let mut remembered = self.shown.lock().expect("nothing panics while it holds this lock");
        if remembered.len() >= SETTLED_MAX {
            remembered.clear();
        }
        remembered.insert(pod_uid.to_owned(), shown);
    }

    /// What a pod was last seen to show.
    pub fn last_shown(&self, pod_uid: &str) -> Option<Served> {
        self.shown.lock().expect("nothing panics while it holds this lock").get(pod_uid).cloned()
    }

    /// Counts a failed attempt and says how many there were in a row.
    pub fn failed(&self, uid: &str) -> u32 {
        let mut attempts = self.attempts.lock().expect("nothing panics while it holds this lock");
        let count = attempts.entry(uid.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
        *count
    }

    /// How often in a row the work on an object has failed.
    pub fn failures(&self, uid: &str) -> u32 {
        self.attempts.lock().expect("nothing panics while it holds this lock").get(uid).copied().unwrap_or_default()
    }

    /// Forgets the failures of an object.
    pub fn succeeded(&self, uid: &str) {
        self.attempts.lock().expect("nothing panics while it holds this lock").remove(uid);
    }

    /// The time, as conditions carry it.
    pub fn now() -> String {
        let now = Timestamp::now();
        Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
    }

    /// Sixteen bytes from the source that TLS keys come from.
    pub fn random(&self) -> [u8; 16] {
        let mut bytes = [0_u8; 16];
        self.provider
            .secure_random
            .fill(&mut bytes)
            .expect("a process without random bytes cannot have made its TLS keys");
        bytes
    }

    /// A time near `base`, so that a thousand objects do not come back in the same second.
    pub fn around(&self, base: Duration) -> Duration {
        let share = u32::try_from(self.chance.hash_one(SystemTime::now()) % 1000).unwrap_or_default();
        base.mul_f64(0.9 + 0.2 * (f64::from(share) / 1000.0))
    }
}
