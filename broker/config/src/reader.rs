//! Reads typed values out of the texts of `server.properties`, and what its listeners are by all keys that say so.
//!
//! `broker.rs` makes a node's configuration of it. It opens nothing and knows no key that is not in the table.

use std::collections::BTreeMap;

use crate::{
    broker::ProcessRoles,
    key::ConfigKey,
    listener::{Listener, SecurityProtocol, parse_endpoints, parse_protocol_map},
    tables::broker_key,
    value::{ConfigError, split_list},
};

/// The protocol of each listener's name.
pub(crate) type Protocols = BTreeMap<String, SecurityProtocol>;

/// Reads typed values, each with its table row's default.
pub(crate) struct Reader<'a> {
    pub(crate) values: &'a BTreeMap<String, String>,
}

impl<'a> Reader<'a> {
    pub(crate) fn set(&self, key: &str) -> Option<&'a str> {
        self.values.get(key).map(String::as_str)
    }

    pub(crate) fn text(&self, key: &'static str) -> &'a str {
        self.set(key).or_else(|| row(key).default).unwrap_or_default()
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, key: &'static str) -> Result<T, ConfigError> {
        parse_number(key, self.text(key))
    }

    pub(crate) fn boolean(&self, key: &'static str) -> bool {
        self.text(key).eq_ignore_ascii_case("true")
    }

    pub(crate) fn roles(&self) -> Result<ProcessRoles, ConfigError> {
        let text = self.text("process.roles");
        let has = |role: &str| split_list(text).any(|item| item == role);
        let roles = ProcessRoles { broker: has("broker"), controller: has("controller") };
        if roles.broker || roles.controller { Ok(roles) } else { Err(ConfigError::Missing("process.roles")) }
    }

    /// The protocol of each listener's name, here and on other nodes (`effectiveListenerSecurityProtocolMap`).
    pub(crate) fn protocols(&self, controller_names: &[String]) -> Result<Protocols, ConfigError> {
        let mut protocols = parse_protocol_map(self.text("listener.security.protocol.map"))?;
        let is_guarded =
            |name: &str| protocols.get(name).is_some_and(|protocol| *protocol != SecurityProtocol::Plaintext);
        let endpoints = parse_endpoints("listeners", self.text("listeners"))?;
        let guarded =
            endpoints.iter().map(|endpoint| &endpoint.name).chain(controller_names).any(|name| is_guarded(name));
        // Controller listeners default to PLAINTEXT when no map is given and nothing else is guarded, as in Apache Kafka.
        if self.set("listener.security.protocol.map").is_none() && !guarded {
            for name in controller_names {
                protocols.entry(name.clone()).or_insert(SecurityProtocol::Plaintext);
            }
        }
        Ok(protocols)
    }

    pub(crate) fn listeners(
        &self,
        roles: ProcessRoles,
        controller_names: &[String],
        protocols: &Protocols,
    ) -> Result<Vec<Listener>, ConfigError> {
        let endpoints = parse_endpoints("listeners", self.text("listeners"))?;
        let advertised = match self.set("advertised.listeners") {
            Some(text) => parse_endpoints("advertised.listeners", text)?,
            None => Vec::new(),
        };
        if let Some(unknown) = advertised.iter().find(|other| endpoints.iter().all(|one| one.name != other.name)) {
            return Err(ConfigError::Contradiction(format!(
                "advertised.listeners names {}, which is not among listeners",
                unknown.name
            )));
        }
        let mut listeners = Vec::with_capacity(endpoints.len());
        for bind in endpoints {
            let controller = controller_names.contains(&bind.name);
            if controller && !roles.controller {
                return Err(ConfigError::Contradiction(format!(
                    "listeners has {}, a controller listener, but process.roles has no controller",
                    bind.name
                )));
            }
            let protocol = *protocols.get(&bind.name).ok_or_else(|| no_protocol(&bind.name))?;
            let protocol = served(&bind.name, protocol)?;
            let advertised =
                advertised.iter().find(|other| other.name == bind.name).cloned().unwrap_or_else(|| bind.clone());
            listeners.push(Listener { bind, advertised, protocol, controller });
        }
        if roles.controller && !listeners.iter().any(|listener| listener.controller) {
            return Err(ConfigError::Contradiction(
                "process.roles has controller, but none of controller.listener.names is among listeners".to_owned(),
            ));
        }
        if roles.broker && listeners.iter().all(|listener| listener.controller) {
            return Err(ConfigError::Contradiction(
                "process.roles has broker, but listeners has no listener for clients".to_owned(),
            ));
        }
        Ok(listeners)
    }

    pub(crate) fn inter_broker_listener(
        &self,
        roles: ProcessRoles,
        listeners: &[Listener],
    ) -> Result<String, ConfigError> {
        let clients = || listeners.iter().filter(|listener| !listener.controller);
        if let Some(name) = self.set("inter.broker.listener.name").map(str::to_ascii_uppercase) {
            if self.set("security.inter.broker.protocol").is_some() {
                return Err(ConfigError::Contradiction(
                    "inter.broker.listener.name and security.inter.broker.protocol are both set; keep one".to_owned(),
                ));
            }
            if roles.broker && clients().all(|listener| listener.bind.name != name) {
                return Err(ConfigError::Contradiction(format!(
                    "inter.broker.listener.name={name} is not among the listeners for clients"
                )));
            }
            return Ok(name);
        }
        let protocol = self.text("security.inter.broker.protocol");
        let named = clients().find(|listener| listener.bind.name == protocol);
        // Whoever asks for TLS between brokers must not get another listener in its name.
        if named.is_none() && roles.broker && self.set("security.inter.broker.protocol").is_some() {
            return Err(ConfigError::Contradiction(format!(
                "security.inter.broker.protocol={protocol} asks for a listener of that name among the listeners for clients; set \
                 inter.broker.listener.name instead where it has another name"
            )));
        }
        let listener = named.or_else(|| clients().next());
        Ok(listener.map_or_else(|| protocol.to_owned(), |listener| listener.bind.name.clone()))
    }

    pub(crate) fn connection_overrides(&self) -> Result<BTreeMap<String, usize>, ConfigError> {
        let key = row("max.connections.per.ip.overrides");
        split_list(self.text("max.connections.per.ip.overrides"))
            .map(|item| {
                item.rsplit_once(':')
                    .and_then(|(address, number)| Some((address.to_owned(), number.parse().ok()?)))
                    .ok_or_else(|| key.invalid(item, "expected address:number, such as 10.0.0.7:200"))
            })
            .collect()
    }
}

pub(crate) fn parse_number<T: std::str::FromStr>(key: &'static str, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|_| row(key).invalid(text, "the number does not fit"))
}

pub(crate) fn row(key: &'static str) -> &'static ConfigKey {
    broker_key(key).unwrap_or_else(|| panic!("{key} is in the table"))
}

/// How controllers are reached: as the first of their listeners speaks, which a broker has a protocol for and no listener.
pub(crate) fn controller_protocol(
    controller_names: &[String],
    protocols: &Protocols,
) -> Result<SecurityProtocol, ConfigError> {
    let name = controller_names.first().map_or("", String::as_str);
    let protocol = *protocols.get(name).ok_or_else(|| no_protocol(name))?;
    served(name, protocol)
}

fn no_protocol(listener: &str) -> ConfigError {
    ConfigError::Contradiction(format!(
        "listener.security.protocol.map has no protocol for the listener {listener}; each controller listener needs one where the \
         map is set or any listener speaks something else than PLAINTEXT"
    ))
}

/// The protocol, if it is served.
fn served(listener: &str, protocol: SecurityProtocol) -> Result<SecurityProtocol, ConfigError> {
    match protocol.not_served() {
        None => Ok(protocol),
        Some(why) => Err(ConfigError::NotServed {
            key: "listener.security.protocol.map".to_owned(),
            value: format!("{listener}:{protocol:?}"),
            why,
            default: "PLAINTEXT",
        }),
    }
}
