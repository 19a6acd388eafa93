//! Where the configuration says that the quorum is: the addresses of voters and of bootstrap servers.
//!
//! Called when `server.properties` is read. Nothing here looks a name up.

use gregor_types::BrokerId;

use crate::{ConfigError, QuorumVoter, reader::row, value::split_list};

/// The voters of `controller.quorum.voters`.
pub(crate) fn voters(text: &str) -> Result<Vec<QuorumVoter>, ConfigError> {
    let key = row("controller.quorum.voters");
    split_list(text)
        .map(|item| {
            let parse = || {
                let (id, address) = item.split_once('@')?;
                let (host, port) = address.rsplit_once(':')?;
                Some(QuorumVoter {
                    id: BrokerId(id.parse().ok()?),
                    host: host.trim_matches(['[', ']']).to_owned(),
                    port: port.parse().ok()?,
                })
            };
            parse().ok_or_else(|| key.invalid(item, "expected id@host:port, such as 1@controller-1:9093"))
        })
        .collect()
}

/// The hosts and ports of `controller.quorum.bootstrap.servers`.
pub(crate) fn bootstrap_servers(text: &str) -> Result<Vec<(String, u16)>, ConfigError> {
    let key = row("controller.quorum.bootstrap.servers");
    split_list(text)
        .map(|item| {
            item.rsplit_once(':')
                .and_then(|(host, port)| Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?)))
                .ok_or_else(|| key.invalid(item, "expected host:port, such as controller-1:9093"))
        })
        .collect()
}
