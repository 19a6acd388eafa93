//! Certificates for one test: an authority, a broker's and a client's, as PEM files, and a broker that asks for the latter.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::{Gregor, program};

/// A folder of PEM files, and of whatever a broker with them needs.
pub struct TlsStores {
    folder: TempDir,
}

impl TlsStores {
    /// A new authority, and what it signed: a broker that is reached as localhost or 127.0.0.1, and a client.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("gregor-tls-").tempdir()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "compat authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let signed = |common_name: &str, names: &[&str]| -> Result<String> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
            params.distinguished_name.push(DnType::CommonName, common_name);
            Ok(key.serialize_pem() + &params.signed_by(&key, &authority)?.pem())
        };
        let stores = Self { folder };
        fs::write(stores.trusted(), authority.pem())?;
        fs::write(stores.path("broker.pem"), signed("broker", &["localhost", "127.0.0.1"])?)?;
        fs::write(stores.identity(), signed("client", &[])?)?;
        let trust = format!(
            "security.protocol=SSL\nssl.truststore.type=PEM\nssl.truststore.location={}\n",
            stores.trusted().display()
        );
        fs::write(stores.stranger_properties(), &trust)?;
        let identity = format!("ssl.keystore.type=PEM\nssl.keystore.location={}\n", stores.identity().display());
        fs::write(stores.client_properties(), trust + &identity)?;
        Ok(stores)
    }

    /// The authority's certificate.
    pub fn trusted(&self) -> PathBuf {
        self.path("trusted.pem")
    }

    /// A client's key and certificate.
    pub fn identity(&self) -> PathBuf {
        self.path("client.pem")
    }

    /// What Kafka's tools take as `--command-config`.
    pub fn client_properties(&self) -> PathBuf {
        self.path("client.properties")
    }

    /// The same for a client that trusts the broker and has no certificate to show.
    pub fn stranger_properties(&self) -> PathBuf {
        self.path("stranger.properties")
    }

    /// A broker with a listener SSL that lets in only who shows a certificate of the authority. It lives as long as this folder.
    pub fn start_broker(&self) -> Result<Gregor> {
        self.start_with_controller("PLAINTEXT")
    }

    /// The same with a controller listener of this protocol.
    pub fn start_with_controller(&self, protocol: &str) -> Result<Gregor> {
        let controller = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:0,SSL://127.0.0.1:0,CONTROLLER://{controller}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SSL:SSL,CONTROLLER:{protocol}\n\
             controller.quorum.voters=1@{controller}\nlog.dirs={}\noffsets.topic.replication.factor=1\n\
             group.initial.rebalance.delay.ms=0\n\
             ssl.client.auth=required\nssl.keystore.type=PEM\nssl.keystore.location={}\n\
             ssl.truststore.type=PEM\nssl.truststore.location={}\n",
            self.path("data").display(),
            self.path("broker.pem").display(),
            self.trusted().display()
        );
        let file = self.path("server.properties");
        fs::write(&file, properties)?;
        let mut format = Command::new(program()?);
        format.args(["storage", "format", "--cluster-id", "4L6g3nShT-eMCtK--X86sw", "--config"]).arg(&file);
        let output = format.output()?;
        ensure!(output.status.success(), "formatting failed: {}", String::from_utf8_lossy(&output.stderr));
        Gregor::start_with(&file, &self.path("node"))
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.folder.path()).join(name)
    }
}
