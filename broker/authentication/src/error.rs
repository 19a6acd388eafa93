//! What can be wrong with the settings of TLS. Each error names the key and says what to do; none shows a secret.

use std::io;

/// Settings that no TLS can be made of.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{key}={path} cannot be read: {source}")]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// A store in Java's own formats.
    #[error("{key}={kind} cannot be read: only PEM is. {convert}")]
    StoreType {
        /// The key of the type.
        key: &'static str,
        /// Its value.
        kind: String,
        /// How to make a PEM file of it.
        convert: &'static str,
    },
    /// Two keys that do not go together, or one that needs another.
    #[error("{0}")]
    Contradiction(&'static str),
    /// A PEM text that does not hold what it has to.
    #[error("{key} cannot be used: {what}")]
    Pem {
        /// The key that holds the text, or names its file.
        key: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A value that is not among the allowed.
    #[error("{key} has {value}, which is not served; allowed are {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// The wrong part of its value.
        value: String,
        /// All that would be right.
        allowed: String,
    },
    /// A certificate is to take another one's place, and is for somebody else.
    #[error(
        "the new certificate of the key store is for {new}, the old one is for {old}. Put a certificate of the same name \
         there, or set ssl.allow.dn.changes=true and start the broker again"
    )]
    OtherSubject {
        /// The name in use.
        old: String,
        /// The name in the new certificate.
        new: String,
    },
    /// What the TLS library says to the whole.
    #[error("{what}: {source}")]
    Tls {
        /// What was tried.
        what: &'static str,
        /// Why it cannot be.
        source: rustls::Error,
    },
}
