//! Stores in PEM as users have them: in files and inline, encrypted and cut off, and what is said of those that cannot be used.

use std::{collections::BTreeMap, fs};

use gregor_authentication::{KeyStore, StoreSettings, TlsError, TrustStore};
use rcgen::{CertifiedKey, generate_simple_self_signed};

/// A key of the curve P-256 that guards nothing, as PKCS#8.
const PLAIN: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgYdlFhe83G2FQNHHU\n\
8f0TE8/qKh3O2SQSIYPwEPVXTAKhRANCAAS3iX/fwG4Ge2Zzv/hum7Db8rImyltz\n\
hKsFfnt1pJXmaA/CpywKXDOX5m5O3LL9PkVx05VUzsATpK2HhZ3OxXZ8\n\
-----END PRIVATE KEY-----\n\
";
/// The same under the password `correct-horse`: PBES2 with AES-256-CBC and HMAC-SHA256, as OpenSSL 3 writes it.
const WITH_AES: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----\n\
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAh7CI0Bg7A/HAICCAAw\n\
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEC/sEpJe12kgrOQUtUvC4g8EgZC7\n\
APKpKrcGcPpNT24rbRjudFd+FgYyUWnLevyvJR/S98P88gSvqyLkYz1QQ6Jks+zV\n\
fJ+ZG+FDvePIo8gI+WHTOnxqG1Tdin983+2Hn5jrzo5p4phvrpmsxo6dugk1FZKd\n\
2m6iqB4t4Hv4owG6FaRv3wBlwsJpP3bBydfEjS7eKhl0Mrr8N/pXMkmLVIyWcNE=\n\
-----END ENCRYPTED PRIVATE KEY-----\n\
";
/// The same with 3DES and HMAC-SHA1, as older programs write it.
const WITH_3DES: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----\n\
MIHVMEAGCSqGSIb3DQEFDTAzMBsGCSqGSIb3DQEFDDAOBAgG9rwXZaGGIwICCAAw\n\
FAYIKoZIhvcNAwcECLDFyN2mIB42BIGQ7YX0Lr3bDLv2qOwgiBzyYZyerjtep9/2\n\
qCh3777twMXZRFHCVnpBxlPUe8PwxQNUD+ZOXGRtJQMAwiE0nhgPc9da+UhgKKqm\n\
fJu6exhDV+M++0MC3bIynhsZh9gXUYh7fciCaBE9RW6bmX6PRsmNrP1p+6d+7Dta\n\
ipyGv7jbp84jpOJ/TFI/GidXlFCSWKwt\n\
-----END ENCRYPTED PRIVATE KEY-----\n\
";

/// Settings by key; the type is PEM where nothing else is said.
fn settings(keys: &[(&str, &str)]) -> Result<StoreSettings, TlsError> {
    let mut all = BTreeMap::from([("ssl.keystore.type", "PEM"), ("ssl.truststore.type", "PEM")]);
    all.extend(keys.iter().copied());
    StoreSettings::from_lookup(|key| all.get(key).copied())
}

fn key_store(keys: &[(&str, &str)]) -> Result<KeyStore, String> {
    let read = || {
        let settings = settings(keys)?;
        settings.key_store(&settings.read_files()?)
    };
    read().map(|store| store.expect("a key store is set")).map_err(|error| error.to_string())
}

fn trust_store(keys: &[(&str, &str)]) -> Result<TrustStore, String> {
    let read = || {
        let settings = settings(keys)?;
        settings.trust_store(&settings.read_files()?)
    };
    read().map(|store| store.expect("a trust store is set")).map_err(|error| error.to_string())
}

/// A certificate and its key.
fn certified() -> (String, String) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["broker".to_owned()]).expect("a name");
    (cert.pem(), signing_key.serialize_pem())
}

fn inline<'a>(chain: &'a str, key: &'a str) -> [(&'a str, &'a str); 2] {
    [("ssl.keystore.certificate.chain", chain), ("ssl.keystore.key", key)]
}

#[test]
fn a_file_holds_the_key_and_its_chain_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.pem");
    let ((own, key), (issuer, _)) = (certified(), certified());
    for text in [format!("{key}{own}{issuer}"), format!("Bag Attributes\n    friendlyName: x\n{own}{issuer}\n{key}")] {
        fs::write(&path, text).unwrap();
        let store = key_store(&[("ssl.keystore.location", path.to_str().unwrap())]).unwrap();
        assert_eq!(store.certificates.len(), 2);
        let (trusted, _) = certified();
        fs::write(&path, format!("{own}{trusted}{issuer}")).unwrap();
        assert_eq!(trust_store(&[("ssl.truststore.location", path.to_str().unwrap())]).unwrap().certificates.len(), 3);
    }
}

#[test]
fn texts_in_the_keys_may_have_lost_their_line_breaks() {
    let (own, key) = certified();
    let joined = |text: &str| text.replace("\r\n", "\n").replace('\n', " ");
    let whole = key_store(&inline(&own, &key)).unwrap();
    let store = key_store(&inline(&joined(&own), &joined(&key))).unwrap();
    assert_eq!((&store.certificates, &store.key), (&whole.certificates, &whole.key));
    let trusted = format!("{own}{own}");
    assert_eq!(trust_store(&[("ssl.truststore.certificates", &joined(&trusted))]).unwrap().certificates.len(), 2);
}

#[test]
fn an_encrypted_key_is_the_plain_one_with_its_password() {
    let (own, _) = certified();
    let plain = key_store(&inline(&own, PLAIN)).unwrap().key;
    for encrypted in [WITH_AES, WITH_3DES] {
        let [chain, key] = inline(&own, encrypted);
        let opened = key_store(&[chain, key, ("ssl.key.password", "correct-horse")]).unwrap();
        assert_eq!(opened.key, plain);
        let wrong = key_store(&[chain, key, ("ssl.key.password", "battery-staple")]).unwrap_err();
        assert!(wrong.contains("is ssl.key.password right?") && !wrong.contains("battery"), "{wrong}");
        assert!(key_store(&[chain, key]).unwrap_err().contains("ssl.key.password is not set"));
    }
}

#[test]
fn other_stores_are_refused_with_the_way_to_convert_them() {
    let error = |keys: &[(&str, &str)]| settings(keys).unwrap_err().to_string();
    let jks = error(&[("ssl.keystore.type", "JKS"), ("ssl.keystore.location", "/k.jks")]);
    assert!(jks.starts_with("ssl.keystore.type=JKS cannot be read") && jks.contains("openssl pkcs12"), "{jks}");
    let pkcs12 = error(&[("ssl.truststore.type", "PKCS12"), ("ssl.truststore.location", "/t.p12")]);
    assert!(pkcs12.contains("keytool -exportcert -rfc"), "{pkcs12}");
    assert!(error(&[("ssl.keystore.type", ""), ("ssl.keystore.location", "/k")]).contains("ssl.keystore.type=JKS"));
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    let error = |keys: &[(&str, &str)]| settings(keys).unwrap_err().to_string();
    assert!(error(&[("ssl.keystore.location", "/k"), ("ssl.keystore.key", "x")]).contains("both set"));
    assert!(error(&[("ssl.keystore.key", "x")]).contains("certificate.chain is not"));
    assert!(error(&[("ssl.keystore.certificate.chain", "x")]).contains("ssl.keystore.key is not"));
    assert!(error(&[("ssl.truststore.location", "/t"), ("ssl.truststore.certificates", "x")]).contains("both set"));
    assert!(error(&[("ssl.keystore.location", "/k"), ("ssl.keystore.password", "x")]).contains("ssl.key.password"));
    let trusted = error(&[("ssl.truststore.location", "/t"), ("ssl.truststore.password", "x")]);
    assert!(trusted.contains("remove it"), "{trusted}");
}

#[test]
fn what_is_wrong_with_a_text_is_said_with_its_key() {
    let (own, key) = certified();
    assert!(key_store(&inline(&own, &own)).unwrap_err().starts_with("ssl.keystore.key cannot be used: no -----BEGIN"));
    assert!(key_store(&inline("", &key)).unwrap_err().contains("ssl.keystore.certificate.chain is not"));
    assert!(key_store(&inline("x", &key)).unwrap_err().contains("no -----BEGIN CERTIFICATE-----"));
    assert!(key_store(&inline(&own[..own.len() - 40], &key)).unwrap_err().contains("is the file cut off?"));
    let old = "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----";
    assert!(key_store(&inline(&own, old)).unwrap_err().contains("openssl pkcs8 -topk8"));
    let two = format!("{key}{key}");
    assert!(key_store(&inline(&own, &two)).unwrap_err().contains("more than one private key"));
    let missing = key_store(&[("ssl.keystore.location", "/nowhere/store.pem")]).unwrap_err();
    assert!(missing.starts_with("ssl.keystore.location=/nowhere/store.pem cannot be read"), "{missing}");
}

#[test]
fn a_binary_store_under_the_name_of_pem_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.jks");
    fs::write(&path, [0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2]).unwrap();
    let error = key_store(&[("ssl.keystore.location", path.to_str().unwrap())]).unwrap_err();
    assert!(error.contains("it is not text"), "{error}");
}

#[test]
fn no_secret_is_in_what_debug_prints() {
    let (own, key) = certified();
    let [chain, inline_key] = inline(&own, &key);
    let settings = settings(&[chain, inline_key, ("ssl.key.password", "correct-horse")]).unwrap();
    let store = settings.key_store(&settings.read_files().unwrap()).unwrap();
    let shown = format!("{settings:?} {store:?}");
    let body = key.lines().nth(1).unwrap();
    assert!(!shown.contains("correct-horse") && !shown.contains(body), "{shown}");
}
