//! What a pod shows whoever comes to one of its ports over TLS, and whether it answers somebody who shows no certificate.
//!
//! The test program runs itself again for that, where the cluster's network is, and reaches the pod by `kubectl port-forward`.

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gregor_kubernetes::{Cluster, process};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use serde_json::{Value, json};
use x509_cert::{Certificate, der::Decode as _, name::Name};

/// Namespace, pod and port, where the program is to look and not to test.
const LOOK: &str = "GREGOR_E2E_LOOK";
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a pod shows at a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The serial number of its certificate.
    pub serial: String,
    /// The authorities of which it takes certificates.
    pub authorities: BTreeSet<String>,
    /// Whether it answers although nobody has shown it a certificate.
    pub answers: bool,
}

/// Looks at a port of a pod.
pub fn look(cluster: &Cluster, namespace: &str, pod: &str, port: u16) -> Result<Shown> {
    let program = env::current_exe().context("this program has no path")?;
    let mut command = cluster.command(program)?;
    command.env(LOOK, format!("{namespace} {pod} {port}"));
    let said: Value = serde_json::from_str(&process::output(&mut command)?)?;
    let authorities = said["authorities"].as_array().into_iter().flatten();
    Ok(Shown {
        serial: said["serial"].as_str().unwrap_or_default().to_owned(),
        authorities: authorities.filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        answers: said["answers"] == true,
    })
}

/// The other side of [`look`]: `None` where the program is to test.
pub fn asked() -> Option<ExitCode> {
    let place = env::var(LOOK).ok()?;
    Some(match look_here(&place) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

/// A port of a pod at a port of this machine, as long as this lives.
struct Forward {
    kubectl: Child,
    /// Held, as kubectl ends where nobody could read what it says of each connection.
    said: BufReader<ChildStdout>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

fn look_here(place: &str) -> Result<Value> {
    let words: Vec<&str> = place.split(' ').collect();
    let [namespace, pod, port] = words[..] else { bail!("{LOOK} is {place:?}") };
    let mut command = Command::new("kubectl");
    command.args(["-n", namespace, "port-forward", &format!("pod/{pod}"), &format!(":{port}")]);
    let mut kubectl =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("kubectl cannot be started")?;
    let said = BufReader::new(kubectl.stdout.take().context("kubectl says nothing")?);
    let mut forward = Forward { kubectl, said };
    let mut line = String::new();
    forward.said.read_line(&mut line)?;
    // Forwarding from 127.0.0.1:40001 -> 9090
    let address = line.split(' ').find(|word| word.starts_with("127.0.0.1:")).context(line.clone())?;
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    let looker = Arc::new(Looker::default());
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&looker) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(Arc::clone(&looker) as Arc<dyn ResolvesClientCert>);
    let session = ClientConnection::new(Arc::new(config), ServerName::try_from("anybody")?)?;
    let mut stream = StreamOwned::new(session, socket);
    // ApiVersions, which whoever answers anybody answers.
    let request = [0, 0, 0, 14, 0, 18, 0, 0, 0, 0, 0, 7, 0, 4, b't', b'e', b's', b't'];
    let written = stream.write_all(&request).and_then(|()| stream.flush());
    let answers = written.is_ok() && stream.read(&mut [0; 4]).is_ok_and(|read| read > 0);
    let shown = looker.shown.lock().expect("nothing panics while it holds this lock");
    let Some(serial) = &shown.serial else { bail!("port {port} of {pod} shows no certificate") };
    Ok(json!({"serial": serial, "authorities": shown.authorities, "answers": answers}))
}

#[derive(Debug, Default)]
struct Seen {
    serial: Option<String>,
    authorities: BTreeSet<String>,
}

/// Looks at what is shown, believes all of it, and shows nothing.
#[derive(Debug, Default)]
struct Looker {
    shown: Mutex<Seen>,
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

impl ServerCertVerifier for Looker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = Certificate::from_der(end_entity).ok();
        let serial = certificate.map(|certificate| certificate.tbs_certificate().serial_number().to_string());
        self.shown.lock().expect("nothing panics while it holds this lock").serial = serial;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Looker {
    fn resolve(&self, authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let names = authorities.iter().filter_map(|der| Some(Name::from_der(der).ok()?.to_string()));
        self.shown.lock().expect("nothing panics while it holds this lock").authorities = names.collect();
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}
