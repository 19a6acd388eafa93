//! The TLS of this node where it dials others: controllers as the first controller listener speaks, brokers as the listener among brokers
//! does, by the keys of that listener. So a node shows others the certificate that it shows whoever comes to it.
//!
//! `node.rs` makes it; `tls_listener.rs` has it look every few seconds at files and keys, as they are for listeners. New connections get
//! what is newest; those that are there keep what they began with. What cannot be used is said once and changes nothing.

use std::sync::{Arc, Mutex, PoisonError};

use gregor_authentication::{ClientSettings, StoreFiles, TlsError};
use gregor_channel::Security;
use gregor_config::{BrokerConfig, SecurityProtocol};
use rustls::ClientConfig;
use tokio::sync::watch;

use crate::{
    node::StartError,
    tls_listener::{Texts, texts},
};

/// How this node reaches the listeners of one name.
pub(crate) struct Dialing {
    listener: String,
    newest: watch::Sender<Arc<ClientConfig>>,
    source: Mutex<Source>,
}

/// What the newest configuration was made of.
struct Source {
    texts: Texts,
    files: StoreFiles,
    /// The last failure, until something is right again.
    failure: Option<String>,
}

/// How this node reaches others; none where it does so in plaintext.
pub(crate) struct Outwards {
    controllers: Option<Arc<Dialing>>,
    brokers: Option<Arc<Dialing>>,
}

impl Outwards {
    /// Reads the keys and the files.
    pub(crate) fn new(config: &BrokerConfig) -> Result<Self, StartError> {
        let controllers = config.controller_listener_names.first().map_or("", String::as_str);
        let brokers = config.inter_broker_listener_name.as_str();
        // A node that is no broker dials none.
        let among_brokers = config.listener(brokers).map_or(SecurityProtocol::Plaintext, |listener| listener.protocol);
        Ok(Self {
            controllers: Dialing::of(controllers, config.controller_listener_protocol, config)?,
            brokers: Dialing::of(brokers, among_brokers, config)?,
        })
    }

    /// What a connection to a controller speaks.
    pub(crate) fn to_controllers(&self) -> Security {
        security(self.controllers.as_deref())
    }

    /// What a connection to a broker speaks.
    pub(crate) fn to_brokers(&self) -> Security {
        security(self.brokers.as_deref())
    }

    /// Takes over what has changed. Reads files, so it is not called where connections are served.
    pub(crate) fn look(&self, config: &BrokerConfig) {
        self.each().for_each(|dialing| dialing.look(config));
    }

    /// What stands in the way of taking over what a change of the node's keys would make. Reads files.
    pub(crate) fn check(&self, before: &BrokerConfig, after: &BrokerConfig) -> Result<(), String> {
        self.each().try_for_each(|dialing| dialing.check(before, after))
    }

    /// Whether there is nothing to look after.
    pub(crate) fn is_plaintext(&self) -> bool {
        self.each().next().is_none()
    }

    fn each(&self) -> impl Iterator<Item = &Arc<Dialing>> {
        self.controllers.iter().chain(&self.brokers)
    }
}

fn security(dialing: Option<&Dialing>) -> Security {
    dialing.map_or(Security::Plaintext, |dialing| Security::Renewed(dialing.newest.subscribe()))
}

impl Dialing {
    fn of(listener: &str, protocol: SecurityProtocol, config: &BrokerConfig) -> Result<Option<Arc<Self>>, StartError> {
        // What is neither is refused by the configuration.
        if protocol != SecurityProtocol::Ssl {
            return Ok(None);
        }
        let named = |source| StartError::Tls { listener: listener.to_owned(), source };
        let texts = texts(listener, config);
        let (config, files) = read(&texts).map_err(named)?;
        let source = Mutex::new(Source { texts, files, failure: None });
        let newest = watch::Sender::new(config);
        Ok(Some(Arc::new(Self { listener: listener.to_owned(), newest, source })))
    }

    fn look(&self, config: &BrokerConfig) {
        let texts = texts(&self.listener, config);
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        match read_anew(&texts, &source) {
            Ok(None) => source.failure = None,
            Ok(Some((config, files))) => {
                self.newest.send_replace(config);
                *source = Source { texts, files, failure: None };
                tracing::info!(listener = %self.listener, "new connections to other nodes use the new TLS stores");
            }
            Err(error) => {
                let failure = error.to_string();
                if source.failure.as_ref() != Some(&failure) {
                    tracing::error!(
                        listener = %self.listener, "the new TLS settings cannot be used to dial other nodes: {failure}. The old \
                         ones stay until that is put right"
                    );
                    source.failure = Some(failure);
                }
            }
        }
    }

    fn check(&self, before: &BrokerConfig, after: &BrokerConfig) -> Result<(), String> {
        let texts_after = texts(&self.listener, after);
        if texts_after == texts(&self.listener, before) {
            return Ok(());
        }
        let failed = |error| format!("other nodes cannot be dialed at their listener {}: {error}", self.listener);
        read(&texts_after).map(drop).map_err(failed)
    }
}

fn read(texts: &Texts) -> Result<(Arc<ClientConfig>, StoreFiles), TlsError> {
    let settings = ClientSettings::from_lookup(|key| texts.get(key).map(String::as_str))?;
    let files = settings.stores().read_files()?;
    Ok((settings.config(&files)?, files))
}

/// The same, where it is not what is in use.
fn read_anew(texts: &Texts, in_use: &Source) -> Result<Option<(Arc<ClientConfig>, StoreFiles)>, TlsError> {
    let settings = ClientSettings::from_lookup(|key| texts.get(key).map(String::as_str))?;
    let files = settings.stores().read_files()?;
    if in_use.texts == *texts && in_use.files == files {
        return Ok(None);
    }
    Ok(Some((settings.config(&files)?, files)))
}
