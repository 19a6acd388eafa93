//! Certificates of tests: an authority, what it signed, and clients that trust it.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use super::{Client, DEADLINE};

/// Who signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// A socket that sends few bytes at a time.
pub struct Chopped {
    pub stream: TcpStream,
    pub most: usize,
}

pub type TlsClient = Client<StreamOwned<ClientConnection, Chopped>>;

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this machine under that name.
    pub fn sign(&self, name: &str) -> Identity {
        self.sign_key(name, &KeyPair::generate().unwrap())
    }

    /// The same for other hosts, and for this machine.
    pub fn sign_for(&self, name: &str, mut hosts: Vec<String>) -> Identity {
        hosts.push("localhost".to_owned());
        self.sign_with(name, hosts, &KeyPair::generate().unwrap())
    }

    /// A certificate for this machine, with a key that there is.
    pub fn sign_key(&self, name: &str, key: &KeyPair) -> Identity {
        self.sign_with(name, vec!["localhost".to_owned(), "127.0.0.1".to_owned()], key)
    }

    fn sign_with(&self, name: &str, hosts: Vec<String>, key: &KeyPair) -> Identity {
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Gregor");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(key, &self.0).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// The configuration of a client that trusts this authority, and shows `identity` if there is any.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion], identity: Option<&Identity>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        }
    }
}

impl Identity {
    /// The key and the certificate, as `ssl.keystore.location` wants them.
    pub fn store(&self) -> String {
        format!("{}{}", self.key, self.certificate)
    }
}

/// A client under TLS, after its handshake.
pub fn connect(address: SocketAddr, config: ClientConfig) -> io::Result<TlsClient> {
    connect_chopped(address, config, usize::MAX)
}

/// The same; what it sends arrives in pieces of `most` bytes.
pub fn connect_chopped(address: SocketAddr, config: ClientConfig, most: usize) -> io::Result<TlsClient> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.set_nodelay(true)?;
    let session = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut stream = StreamOwned::new(session, Chopped { stream, most });
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Client::over(stream))
}

impl Read for Chopped {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.read(bytes)
    }
}

impl Write for Chopped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(&bytes[..bytes.len().min(self.most)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
