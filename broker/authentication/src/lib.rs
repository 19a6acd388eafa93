//! Who is at the other end of a connection: TLS as Kafka's `ssl.*` keys describe it, and the principal that a certificate names.
//!
//! The server makes its listeners' TLS of it, the channel its own end. It reads the files that the keys name and nothing else;
//! it opens no socket and starts no thread.

mod client;
mod distinguished_name;
mod error;
mod parameters;
mod pem;
mod principal;
mod renewal;
mod server;

pub use client::{ClientSettings, client_config};
pub use error::TlsError;
pub use parameters::Parameters;
pub use pem::{KeyStore, Secret, StoreFiles, StoreSettings, TrustStore};
pub use principal::{Principal, PrincipalRules};
pub use renewal::Identity;
pub use server::ServerSettings;
