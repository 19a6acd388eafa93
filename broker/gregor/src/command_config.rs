//! `--command-config`: a file of client properties, as Kafka's own tools take it.
//!
//! Called by every command that talks to a cluster. It takes what a command line needs and names what it ignores, without
//! values, as some of them are secrets.

use std::path::Path;

use anyhow::{Context, Result};
use gregor_authentication::client_config;
use gregor_client::{ClientOptions, Security};
use gregor_config::Properties;

/// Every key that decides something here.
const USED: [&str; 16] = [
    "client.id",
    "security.protocol",
    "ssl.cipher.suites",
    "ssl.enabled.protocols",
    "ssl.endpoint.identification.algorithm",
    "ssl.engine.factory.class",
    "ssl.key.password",
    "ssl.keystore.certificate.chain",
    "ssl.keystore.key",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.keystore.type",
    "ssl.truststore.certificates",
    "ssl.truststore.location",
    "ssl.truststore.password",
    "ssl.truststore.type",
];

/// What the file says, on top of `options`. Keys that are not used are told on standard error.
pub fn read(file: &Path, options: ClientOptions) -> Result<ClientOptions> {
    let shown = || format!("--command-config {}", file.display());
    let text = std::fs::read_to_string(file).with_context(shown)?;
    let properties = Properties::parse(&text).with_context(shown)?;
    let ignored = ignored(&properties);
    if !ignored.is_empty() {
        eprintln!("gregor: {}: not used by this command: {}", shown(), ignored.join(", "));
    }
    apply(&properties, options).with_context(shown)
}

fn ignored(properties: &Properties) -> Vec<&str> {
    // ssl.protocol only says what ssl.enabled.protocols says better.
    let is_used = |key: &str| USED.contains(&key) || key == "ssl.protocol";
    properties.iter().map(|(key, _)| key).filter(|key| !is_used(key)).collect()
}

fn apply(properties: &Properties, mut options: ClientOptions) -> Result<ClientOptions> {
    if let Some(config) = client_config(|key| properties.value(key))? {
        options = options.with_security(Security::Tls(config));
    }
    match properties.value("client.id") {
        Some(name) if !name.is_empty() => Ok(options.with_client_id(name)),
        _ => Ok(options),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails where it stands")]
mod tests {
    use super::*;

    fn applied(text: &str) -> Result<ClientOptions> {
        apply(&Properties::parse(text).unwrap(), ClientOptions::default())
    }

    #[test]
    fn a_file_of_kafkas_tools_is_taken_and_what_is_not_used_is_named_without_its_value() {
        let text = "client.id=nightly\nsecurity.protocol=PLAINTEXT\nsasl.jaas.config=secret\nacks=all\n";
        assert_eq!(applied(text).unwrap().client_id, "nightly");
        let properties = Properties::parse(text).unwrap();
        let mut ignored = ignored(&properties);
        ignored.sort_unstable();
        assert_eq!(ignored, ["acks", "sasl.jaas.config"]);
    }

    #[test]
    fn a_protocol_that_is_not_spoken_is_refused_with_those_that_are() {
        let refused = applied("security.protocol=SASL_SSL\n").unwrap_err().to_string();
        assert!(refused.contains("SASL_SSL") && refused.contains("PLAINTEXT, SSL"), "{refused}");
    }

    #[test]
    fn without_security_protocol_the_ssl_keys_change_nothing() {
        let options = applied("ssl.truststore.location=/nowhere.pem\n").unwrap();
        assert!(matches!(options.security, Security::Plaintext));
    }
}
