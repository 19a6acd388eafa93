//! The certificates of TLS listeners: read at the start, and read again while the node runs, with those that the node shows where it dials.
//!
//! Files are looked at every few seconds, as Kubernetes swaps the secrets that it mounts; keys of a listener may change by
//! AlterConfigs. New connections get what is newest; those that are there keep what they began with. What cannot be used
//! is said once and changes nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use gregor_authentication::{Identity, Principal, PrincipalRules, ServerSettings, StoreFiles, TlsError};
use gregor_config::{BROKER_KEYS, BrokerConfig};
use gregor_metadata::MetadataImage;
use rustls::ServerConfig;
use tokio::{net::TcpStream, sync::watch};

use crate::{api::Broker, close::Close, metrics::Metrics, tls::TlsStream};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// What the connections of a TLS listener begin with.
pub(crate) struct TlsListener {
    name: String,
    active: ArcSwap<Active>,
    source: Mutex<Source>,
}

struct Active {
    config: Arc<ServerConfig>,
    rules: PrincipalRules,
}

/// What the active configuration was made of.
struct Source {
    texts: Texts,
    files: StoreFiles,
    /// Whom the certificate is for.
    identity: Identity,
    /// The last failure, until something is right again.
    failure: Option<String>,
}

/// The values of a listener's `ssl.*` keys that are set. They hold secrets: never shown.
pub(crate) type Texts = BTreeMap<&'static str, String>;

impl TlsListener {
    /// Reads the keys and the files of a listener.
    pub(crate) fn new(name: &str, config: &BrokerConfig) -> Result<Self, TlsError> {
        let texts = texts(name, config);
        let (active, source) = load(texts, None)?.ok_or(TlsError::Contradiction("the stores were not read"))?;
        let source = Mutex::new(source);
        Ok(Self { name: name.to_owned(), active: ArcSwap::from_pointee(active), source })
    }

    /// Shakes hands with a new peer, and says who it is.
    pub(crate) async fn accept(&self, socket: TcpStream) -> Result<(TlsStream, Principal), Close> {
        let active = self.active.load_full();
        let stream = TlsStream::accept(socket, Arc::clone(&active.config)).await?;
        let principal = active.rules.principal(stream.peer_certificates()).ok_or(Close::NoPrincipal)?;
        Ok((stream, principal))
    }

    /// What stands in the way of taking over what a change of the node's keys would make of this listener's. Reads files,
    /// where it is not called either.
    pub(crate) fn check(&self, before: &BrokerConfig, after: &BrokerConfig) -> Result<(), String> {
        let texts_after = texts(&self.name, after);
        if texts_after == texts(&self.name, before) {
            return Ok(());
        }
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        load(texts_after, Some(&source))
            .map(drop)
            .map_err(|error| format!("the listener {} cannot do TLS: {error}", self.name))
    }

    /// Takes over what has changed. Reads files, so it is not called where connections are served.
    fn look(&self, config: &BrokerConfig, metrics: &Metrics) {
        let count = |outcome: &str| {
            let labels = [("listener", self.name.as_str()), ("outcome", outcome)];
            let labels: Vec<_> = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into();
            metrics.tls_reloads.get_or_create(&labels).inc();
        };
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        match load(texts(&self.name, config), Some(&source)) {
            Ok(None) => source.failure = None,
            Ok(Some((active, newer))) => {
                self.active.store(Arc::new(active));
                *source = newer;
                count("taken");
                tracing::info!(listener = %self.name, "new connections get the new TLS stores");
            }
            Err(error) => {
                let failure = error.to_string();
                if source.failure.as_ref() != Some(&failure) {
                    count("refused");
                    tracing::error!(
                        listener = %self.name, "the new TLS settings cannot be used: {failure}. The old ones stay until that \
                         is put right"
                    );
                    source.failure = Some(failure);
                }
            }
        }
    }
}

/// Takes over what was changed at run time, and returns what looks for more until the node stops.
pub(crate) async fn look_after(broker: Arc<Broker>) -> impl Future<Output = ()> {
    let mut images = broker.control.image_updates();
    let mut config = effective(&broker, &mut images);
    look_at(&broker, &config).await;
    async move {
        while !(broker.tls_listeners.is_empty() && broker.outwards.is_plaintext()) {
            tokio::select! {
                biased;
                () = broker.drained() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            // An error means that the node is going, which ends the wait above.
            if images.has_changed().unwrap_or(false) {
                config = effective(&broker, &mut images);
            }
            look_at(&broker, &config).await;
        }
    }
}

fn effective(broker: &Broker, images: &mut watch::Receiver<Arc<MetadataImage>>) -> Arc<BrokerConfig> {
    let image = Arc::clone(&images.borrow_and_update());
    broker.partitions.effective_config(&image)
}

/// Looks at all listeners, where a file that is slow to read holds up nobody.
async fn look_at(broker: &Arc<Broker>, config: &Arc<BrokerConfig>) {
    let (broker, config) = (Arc::clone(broker), Arc::clone(config));
    let look = move || {
        broker.tls_listeners.iter().for_each(|listener| listener.look(&config, &broker.metrics));
        broker.outwards.look(&config);
    };
    if tokio::task::spawn_blocking(look).await.is_err() {
        tracing::error!("looking at the TLS stores had panicked");
    }
}

/// What the `ssl.*` keys of a listener's name say.
pub(crate) fn texts(listener: &str, config: &BrokerConfig) -> Texts {
    let keys = BROKER_KEYS.iter().map(|key| key.name).filter(|name| name.starts_with("ssl."));
    keys.filter_map(|key| Some((key, config.listener_value(listener, key)?.to_owned()))).collect()
}

/// Makes what the texts and their files say, unless all are still those in use. A certificate takes only the place of one
/// that is for the same.
fn load(texts: Texts, in_use: Option<&Source>) -> Result<Option<(Active, Source)>, TlsError> {
    let settings = ServerSettings::from_lookup(|key| texts.get(key).map(String::as_str))?;
    let files = settings.stores().read_files()?;
    if in_use.is_some_and(|source| source.texts == texts && source.files == files) {
        return Ok(None);
    }
    let config = settings.config(&files)?;
    let identity = settings.identity(&files)?;
    if let Some(source) = in_use {
        settings.check_renewal(&source.identity, &identity)?;
    }
    let active = Active { config, rules: settings.rules().clone() };
    Ok(Some((active, Source { texts, files, identity, failure: None })))
}
