//! Key stores and trust stores in PEM, read as Kafka reads them (KIP-651): from a file, or inline from the keys themselves.
//!
//! A text may have its line breaks or not, as it does where `server.properties` joins lines; what stands outside of a section
//! is not looked at. A private key is PKCS#8, encrypted with `ssl.key.password` or not. No secret is ever shown.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use pkcs8::EncryptedPrivateKeyInfoRef;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::TlsError;

/// A store is at most this long.
const STORE_BYTES_MAX: u64 = 4 << 20;
/// A text of ours has at most so many sections.
const SECTIONS_MAX: usize = 4096;

const CHAIN: &str = "ssl.keystore.certificate.chain";
const KEY: &str = "ssl.keystore.key";
const KEYSTORE: &str = "ssl.keystore.location";
const TRUSTED: &str = "ssl.truststore.certificates";
const TRUSTSTORE: &str = "ssl.truststore.location";

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// The keys that say where certificates and keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    key_password: Option<Secret>,
    key_store: Option<Source>,
    trust_store: Option<Source>,
}

/// Where the texts of a store are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    /// In the keys: a chain and its private key, or trusted certificates alone.
    Inline {
        certificates: Secret,
        key: Option<Secret>,
    },
}

/// What was in the files of a [`StoreSettings`] at one time; two that are equal make the same stores.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct StoreFiles {
    key_store: Option<Vec<u8>>,
    trust_store: Option<Vec<u8>>,
}

/// A private key and the certificates that vouch for it, the key's own first.
pub struct KeyStore {
    /// The certificates.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
}

/// The certificates that are trusted to vouch for others.
#[derive(Debug, Clone)]
pub struct TrustStore {
    /// At least one.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl StoreSettings {
    /// Reads the keys, named without a listener's prefix, and refuses those that do not go together. Files are not looked at.
    pub fn from_lookup<'a>(lookup: impl Fn(&str) -> Option<&'a str>) -> Result<Self, TlsError> {
        let set = |key: &str| lookup(key).filter(|value| !value.trim().is_empty());
        let secret = |key: &str| set(key).map(|value| Secret(value.to_owned()));
        let key_store = match (set(KEYSTORE), secret(CHAIN), secret(KEY)) {
            (None, None, None) => None,
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                return Err(TlsError::Contradiction(
                    "ssl.keystore.location and ssl.keystore.key with ssl.keystore.certificate.chain are both set; keep one",
                ));
            }
            (Some(path), None, None) => Some(Source::File(PathBuf::from(path.trim()))),
            (None, Some(certificates), Some(key)) => Some(Source::Inline { certificates, key: Some(key) }),
            (None, Some(_), None) => {
                return Err(TlsError::Contradiction(
                    "ssl.keystore.certificate.chain is set, but ssl.keystore.key is not",
                ));
            }
            (None, None, Some(_)) => {
                return Err(TlsError::Contradiction(
                    "ssl.keystore.key is set, but ssl.keystore.certificate.chain is not",
                ));
            }
        };
        let trust_store = match (set(TRUSTSTORE), secret(TRUSTED)) {
            (None, None) => None,
            (Some(path), None) => Some(Source::File(PathBuf::from(path.trim()))),
            (None, Some(certificates)) => Some(Source::Inline { certificates, key: None }),
            (Some(_), Some(_)) => {
                return Err(TlsError::Contradiction(
                    "ssl.truststore.location and ssl.truststore.certificates are both set; keep one",
                ));
            }
        };
        if key_store.is_some() {
            check_type("ssl.keystore.type", set("ssl.keystore.type"), CONVERT_KEYSTORE)?;
            if set("ssl.keystore.password").is_some() {
                return Err(TlsError::Contradiction(
                    "ssl.keystore.password cannot be set with a PEM key store: remove it, and set ssl.key.password where \
                     the private key is encrypted",
                ));
            }
        }
        if trust_store.is_some() {
            check_type("ssl.truststore.type", set("ssl.truststore.type"), CONVERT_TRUSTSTORE)?;
            if set("ssl.truststore.password").is_some() {
                return Err(TlsError::Contradiction(
                    "ssl.truststore.password cannot be set with a PEM trust store: remove it",
                ));
            }
        }
        Ok(Self { key_password: secret("ssl.key.password"), key_store, trust_store })
    }

    /// Whether any key names a private key.
    pub fn has_key_store(&self) -> bool {
        self.key_store.is_some()
    }

    /// Whether any key names trusted certificates.
    pub fn has_trust_store(&self) -> bool {
        self.trust_store.is_some()
    }

    /// The files that the settings name, which may change while a program runs.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.key_store, &self.trust_store].into_iter().filter_map(|source| match source {
            Some(Source::File(path)) => Some(path.as_path()),
            _ => None,
        })
    }

    /// Reads the files. Symbolic links are followed each time, as Kubernetes swaps them.
    pub fn read_files(&self) -> Result<StoreFiles, TlsError> {
        let read = |key, source: &Option<Source>| match source {
            Some(Source::File(path)) => read_file(key, path).map(Some),
            _ => Ok(None),
        };
        Ok(StoreFiles {
            key_store: read(KEYSTORE, &self.key_store)?,
            trust_store: read(TRUSTSTORE, &self.trust_store)?,
        })
    }

    /// The private key with its certificates, if there is any.
    pub fn key_store(&self, files: &StoreFiles) -> Result<Option<KeyStore>, TlsError> {
        let store = match &self.key_store {
            None => return Ok(None),
            Some(Source::File(_)) => {
                let sections = sections(KEYSTORE, files.key_store.as_deref().unwrap_or_default())?;
                let certificates = certificates(KEYSTORE, &sections)?;
                KeyStore { certificates, key: private_key(KEYSTORE, &sections, self.key_password.as_ref())? }
            }
            Some(Source::Inline { certificates: chain, key }) => {
                let key = key.as_ref().map_or("", Secret::text);
                KeyStore {
                    certificates: certificates(CHAIN, &sections(CHAIN, chain.text().as_bytes())?)?,
                    key: private_key(KEY, &sections(KEY, key.as_bytes())?, self.key_password.as_ref())?,
                }
            }
        };
        Ok(Some(store))
    }

    /// The trusted certificates, if there are any.
    pub fn trust_store(&self, files: &StoreFiles) -> Result<Option<TrustStore>, TlsError> {
        let (key, text) = match &self.trust_store {
            None => return Ok(None),
            Some(Source::File(_)) => (TRUSTSTORE, files.trust_store.as_deref().unwrap_or_default()),
            Some(Source::Inline { certificates, .. }) => (TRUSTED, certificates.text().as_bytes()),
        };
        Ok(Some(TrustStore { certificates: certificates(key, &sections(key, text)?)? }))
    }
}

impl Secret {
    fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[hidden]")
    }
}

impl fmt::Debug for StoreFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StoreFiles([hidden])")
    }
}

impl fmt::Debug for KeyStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KeyStore")
            .field("certificates", &self.certificates.len())
            .field("key", &"[hidden]")
            .finish()
    }
}

const CONVERT_KEYSTORE: &str = "Make a PEM file of the store, by `keytool -importkeystore -srckeystore STORE -destkeystore \
    store.p12 -deststoretype PKCS12` where it is a JKS, then `openssl pkcs12 -in store.p12 -nodes -out store.pem`, and set \
    ssl.keystore.type=PEM and ssl.keystore.location=store.pem.";
const CONVERT_TRUSTSTORE: &str = "Write its certificates to a PEM file, by `keytool -exportcert -rfc -keystore STORE -alias \
    ALIAS >> trusted.pem` for each, and set ssl.truststore.type=PEM and ssl.truststore.location=trusted.pem.";

fn check_type(key: &'static str, kind: Option<&str>, convert: &'static str) -> Result<(), TlsError> {
    // Kafka's default is JKS.
    let kind = kind.map_or("JKS", str::trim);
    if kind.eq_ignore_ascii_case("PEM") {
        return Ok(());
    }
    Err(TlsError::StoreType { key, kind: kind.to_owned(), convert })
}

fn read_file(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(STORE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > STORE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {STORE_BYTES_MAX} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|source| TlsError::File { key, path: path.display().to_string(), source })
}

/// One `-----BEGIN LABEL-----` to its end.
struct Section {
    label: String,
    bytes: Vec<u8>,
}

fn sections(key: &'static str, text: &[u8]) -> Result<Vec<Section>, TlsError> {
    let wrong = |what: String| TlsError::Pem { key, what };
    let text = std::str::from_utf8(text).map_err(|_| {
        wrong(
            "it is not text; a PEM file begins with -----BEGIN (a JKS or PKCS12 store has to be converted)".to_owned(),
        )
    })?;
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        if found.len() == SECTIONS_MAX {
            return Err(wrong(format!("it has more than {SECTIONS_MAX} sections")));
        }
        let (label, after) = after.split_once("-----").ok_or_else(|| wrong("a BEGIN line is not whole".to_owned()))?;
        let (body, after) = after
            .split_once(&format!("-----END {label}-----"))
            .ok_or_else(|| wrong(format!("the section {label} has no end; is the file cut off?")))?;
        if body.contains(':') {
            return Err(wrong(format!("{label} is in an old encrypted form; {TO_PKCS8}")));
        }
        let body: String = body.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(&body).map_err(|_| wrong(format!("the section {label} is not base64")))?;
        found.push(Section { label: label.to_owned(), bytes });
        rest = after;
    }
    Ok(found)
}

fn certificates(key: &'static str, sections: &[Section]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let is_certificate = |section: &&Section| matches!(section.label.as_str(), "CERTIFICATE" | "X509 CERTIFICATE");
    let found: Vec<_> =
        sections.iter().filter(is_certificate).map(|section| CertificateDer::from(section.bytes.clone())).collect();
    if found.is_empty() {
        return Err(TlsError::Pem { key, what: "no -----BEGIN CERTIFICATE----- is in it".to_owned() });
    }
    Ok(found)
}

const TO_PKCS8: &str =
    "write it as PKCS#8, by `openssl pkcs8 -topk8 -in key.pem -out pkcs8.pem` (with -nocrypt for no password)";

fn private_key(
    key: &'static str,
    sections: &[Section],
    password: Option<&Secret>,
) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wrong = |what: String| TlsError::Pem { key, what };
    let mut keys = sections.iter().filter(|section| section.label.ends_with("PRIVATE KEY"));
    let section = keys.next().ok_or_else(|| wrong("no -----BEGIN PRIVATE KEY----- is in it".to_owned()))?;
    if keys.next().is_some() {
        return Err(wrong("more than one private key is in it; keep one".to_owned()));
    }
    let plain = match section.label.as_str() {
        "PRIVATE KEY" => section.bytes.clone(),
        "ENCRYPTED PRIVATE KEY" => decrypt(&section.bytes, password).map_err(wrong)?,
        label => return Err(wrong(format!("its private key is a {label}; {TO_PKCS8}"))),
    };
    Ok(PrivatePkcs8KeyDer::from(plain).into())
}

fn decrypt(encrypted: &[u8], password: Option<&Secret>) -> Result<Vec<u8>, String> {
    let password =
        password.ok_or_else(|| "its private key is encrypted, and ssl.key.password is not set".to_owned())?;
    let info = EncryptedPrivateKeyInfoRef::try_from(encrypted).map_err(|_| {
        "its private key is encrypted in a way that is not served (PBES2 with AES or 3DES is); encrypt it anew, by `openssl \
         pkcs8 -topk8 -v2 aes-256-cbc -in key.pem -out pkcs8.pem`"
            .to_owned()
    })?;
    let plain = info
        .decrypt(password.text())
        .map_err(|_| "its private key cannot be decrypted; is ssl.key.password right?".to_owned())?;
    Ok(plain.as_bytes().to_vec())
}
