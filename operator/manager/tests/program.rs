//! The program itself: its help, its definitions, two replicas of which one leads, and a Lease that is deleted.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod lab;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use gregor_operator_api::{KafkaCluster, condition};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use lab::{CLUSTER, Lab, wait_until};

const LEASE: &str = "gregor-operator";

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_gregor-operator"))
}

#[test]
fn help_and_definitions_need_no_kubernetes() {
    let help = program().args(["run", "--help"]).output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(
        help.status.success() && text.contains("--namespace") && text.contains("GREGOR_OPERATOR_NAMESPACES"),
        "{text}"
    );
    let crds = program().arg("crd").output().unwrap();
    let text = String::from_utf8(crds.stdout).unwrap();
    assert_eq!(text.matches("kind: CustomResourceDefinition").count(), 2);
}

/// A replica that is ended with this value.
struct Replica {
    child: Child,
    log: PathBuf,
    address: SocketAddr,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Replica {
    fn start(lab: &Lab, name: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}.log", lab.namespace));
        let child = program()
            .args(["run", "--namespace", &lab.namespace, "--lease-namespace", &lab.namespace])
            .args(["--identity", name, "--listen", &address.to_string()])
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log, address }
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn has_said(&self, words: &str) -> bool {
        std::fs::read_to_string(&self.log).is_ok_and(|log| log.contains(words))
    }

    fn leads(&self) -> bool {
        self.get("/metrics").is_some_and(|text| text.contains("gregor_operator_leader 1.0"))
    }

    fn is_ready(&self) -> bool {
        self.get("/readyz").is_some_and(|text| text.starts_with("HTTP/1.1 200"))
    }
}

#[tokio::test]
async fn one_replica_leads_and_the_other_takes_over() {
    let Some(lab) = Lab::start("replicas").await else { return };
    let mut replicas = vec![Replica::start(&lab, "one"), Replica::start(&lab, "two")];
    wait_until("both are ready and one leads", async || {
        let ready = replicas.iter().all(Replica::is_ready);
        let leaders = replicas.iter().filter(|replica| replica.leads()).count();
        assert!(leaders <= 1, "two replicas lead");
        (ready && leaders == 1).then_some(())
    })
    .await;
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;

    // The leader dies without a word, and the work goes on.
    let leader = replicas.iter().position(Replica::leads).unwrap();
    drop(replicas.remove(leader));
    wait_until("the other leads", async || replicas[0].leads().then_some(())).await;
    lab.patch::<KafkaCluster>("demo", serde_json::json!({"spec": {"restartedAt": "later"}})).await;
    let cluster = lab.cluster_says("demo", "Ready").await;
    let conditions = cluster.status.unwrap().conditions;
    assert_eq!(condition::find(&conditions, condition::READY).unwrap().observed_generation, 2);
}

#[tokio::test]
async fn without_a_lease_the_leader_begins_anew_and_makes_one() {
    let Some(lab) = Lab::start("no-lease").await else { return };
    let mut leader = Replica::start(&lab, "one");
    wait_until("it leads", async || leader.leads().then_some(())).await;
    lab.delete::<Lease>(LEASE).await;
    let ended = wait_until("it has ended", async || leader.child.try_wait().unwrap()).await;
    assert!(!ended.success(), "what restarts it has to see a failure");
    let next = Replica::start(&lab, "one");
    wait_until("it leads again", async || next.leads().then_some(())).await;
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
}

#[tokio::test]
async fn without_a_lease_who_waits_for_it_begins_anew_too() {
    let Some(lab) = Lab::start("no-leader").await else { return };
    lab.create::<Lease>(&format!(
        "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: {LEASE}}}, spec: {{holderIdentity: another, leaseDurationSeconds: 3600, renewTime: \"{:.6}\"}}}}",
        Timestamp::now()
    ))
    .await;
    let mut waiting = Replica::start(&lab, "one");
    wait_until("it waits", async || waiting.has_said("waiting for the Lease").then_some(())).await;
    assert!(!waiting.leads());
    lab.delete::<Lease>(LEASE).await;
    let ended = wait_until("it has ended", async || waiting.child.try_wait().unwrap()).await;
    assert!(!ended.success(), "what restarts it has to see a failure");
}
