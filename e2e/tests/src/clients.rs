//! Unmodified clients in pods: kcat and the console tools of the real Apache Kafka, reached through `kubectl exec`.
//!
//! Called by `cargo xtask up` and by the tests. Nothing of ours is between the client and the broker; the generator of
//! events is only at the other end of the client's pipe.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gregor_kubernetes::{Cluster, process};
use serde_json::json;

use crate::{events, images::Name, install::registry, target};

/// Whoever moves a gigabyte through a broker on two slow cores needs less.
const TRANSFER_LIMIT: Duration = Duration::from_mins(15);

/// Pods with clients, in one namespace, that know one cluster.
#[derive(Debug, Clone)]
pub struct Clients {
    cluster: Cluster,
    namespace: String,
    bootstrap: String,
}

impl Clients {
    /// Starts the pods, if they do not run yet, and waits until they do.
    pub fn start(cluster: &Cluster, namespace: &str, bootstrap: &str, pods: &[&str]) -> Result<Self> {
        let reference = Name::Clients.reference();
        let image = format!("{}/{}", registry(), reference.rsplit('/').next().unwrap_or(&reference));
        let items: Vec<_> = pods.iter().map(|pod| pod_manifest(namespace, pod, &image)).collect();
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        for pod in pods {
            cluster.kubectl(&[
                "-n",
                namespace,
                "wait",
                "--for=condition=Ready",
                "--timeout=120s",
                &format!("pod/{pod}"),
            ])?;
        }
        Ok(Self { cluster: cluster.clone(), namespace: namespace.to_owned(), bootstrap: bootstrap.to_owned() })
    }

    /// A shell command in a pod; `$BOOTSTRAP` is set.
    pub fn shell(&self, pod: &str, script: &str) -> Result<Command> {
        let mut command = self.cluster.kubectl_command()?;
        command.args(["-n", &self.namespace, "exec", "-i", pod, "--", "/bin/sh", "-c"]);
        command.arg(format!("BOOTSTRAP={}\n{script}", self.bootstrap));
        Ok(command)
    }

    /// One of Kafka's own tools in a pod, by its class below `org.apache.kafka.tools`, with the bootstrap servers given.
    pub fn java_tool(&self, pod: &str, class: &str, arguments: &str) -> Result<Command> {
        self.shell(pod, &format!("exec {} --bootstrap-server \"$BOOTSTRAP\" {arguments}", java(class)))
    }

    /// Runs a command to its end and returns what it printed.
    pub fn output(&self, pod: &str, script: &str) -> Result<String> {
        process::output(&mut self.shell(pod, script)?)
    }

    /// Generates events in a pod and produces them with kcat.
    pub fn produce_events(&self, pod: &str, topic: &str, bytes: u64, progress: &mut dyn FnMut(&str)) -> Result<()> {
        self.transfer(
            pod,
            &kcat_producer(topic, &bytes.to_string()),
            "produce-events",
            Stdio::null(),
            Stdio::null(),
            progress,
        )
    }

    /// The same in the background: a child to wait for, and the log of what it says.
    pub fn start_producing_events(&self, pod: &str, topic: &str, bytes: u64) -> Result<(std::process::Child, PathBuf)> {
        self.begin(pod, &kcat_producer(topic, &bytes.to_string()), "produce-in-background")
    }

    /// The same, slowly until [`hurry`](Self::hurry) is called.
    pub fn start_producing_slowly(&self, pod: &str, topic: &str, bytes: u64) -> Result<(std::process::Child, PathBuf)> {
        let file = hurry_file(topic);
        let producer = kcat_producer(topic, &format!("{bytes} {file}"));
        self.begin(pod, &format!("rm -f {file}\n{producer}"), "produce-slowly")
    }

    /// Has the slow producer of a topic write the rest at once.
    pub fn hurry(&self, pod: &str, topic: &str) -> Result<()> {
        self.output(pod, &format!(": > {}", hurry_file(topic))).map(drop)
    }

    /// Reads events as they come with kcat in a pod, until there are as many as there shall be, and checks each byte there.
    pub fn start_checking_events(&self, pod: &str, topic: &str, bytes: u64) -> Result<(std::process::Child, PathBuf)> {
        let count = events::generate(bytes, &mut std::io::sink(), &mut |_| ())?;
        let script = format!(
            "kcat -C -E -b \"$BOOTSTRAP\" -t {topic} -o beginning -c {count} -q -X check.crcs=true | gregor-events check {bytes}"
        );
        self.begin(pod, &script, "check-in-background")
    }

    fn begin(&self, pod: &str, script: &str, name: &str) -> Result<(std::process::Child, PathBuf)> {
        let log = log_file(name)?;
        let mut command = self.shell(pod, script)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
        Ok((child, log))
    }

    /// Reads a topic to its end with kcat in a pod and checks each byte of the events there.
    pub fn check_events(&self, pod: &str, topic: &str, bytes: u64, progress: &mut dyn FnMut(&str)) -> Result<()> {
        let script = format!(
            "kcat -C -b \"$BOOTSTRAP\" -t {topic} -o beginning -e -q -X check.crcs=true | gregor-events check {bytes}"
        );
        self.transfer(pod, &script, "check-events", Stdio::null(), Stdio::null(), progress)
    }

    /// Produces the lines of a file with the Java console producer in a pod.
    pub fn produce_file(&self, pod: &str, topic: &str, file: &Path, progress: &mut dyn FnMut(&str)) -> Result<()> {
        let script = format!("exec {} --bootstrap-server \"$BOOTSTRAP\" --topic {topic}", java("ConsoleProducer"));
        let input = File::open(file).with_context(|| format!("could not read {}", file.display()))?;
        self.transfer(pod, &script, "produce-file", input.into(), Stdio::null(), progress)
    }

    /// Reads a topic of one partition to its end with kcat in a pod into a file here, a line per record.
    pub fn read_file(&self, pod: &str, topic: &str, file: &Path, progress: &mut dyn FnMut(&str)) -> Result<()> {
        let script = format!("exec kcat -C -b \"$BOOTSTRAP\" -t {topic} -p 0 -o beginning -e -q");
        let output = File::create(file).with_context(|| format!("could not write {}", file.display()))?;
        self.transfer(pod, &script, "read-file", Stdio::null(), output.into(), progress)
    }

    /// The number of records in a topic's partitions, by kcat's queries for their ends.
    pub fn end_offsets(&self, pod: &str, topic: &str, partitions: u32) -> Result<u64> {
        let queries: Vec<String> = (0..partitions).map(|partition| format!("-t {topic}:{partition}:-1")).collect();
        let text = self.output(pod, &format!("exec kcat -Q -b \"$BOOTSTRAP\" {}", queries.join(" ")))?;
        // events [0] offset 42
        let offsets = text.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        Ok(offsets.sum())
    }

    /// The rack of each broker by its id, as Kafka's own tool lists them.
    pub fn racks(&self, pod: &str) -> Result<BTreeMap<String, String>> {
        let script = format!("exec {} list-endpoints --bootstrap-server \"$BOOTSTRAP\"", java("ClusterTool"));
        let text = self.output(pod, &script)?;
        // ID HOST PORT RACK STATE ENDPOINT_TYPE
        let rack = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some(((*words.first()?).to_owned(), (*words.get(3)?).to_owned()))
        };
        Ok(text
            .lines()
            .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()))
            .filter_map(rack)
            .collect())
    }

    fn transfer(
        &self,
        pod: &str,
        script: &str,
        name: &str,
        input: Stdio,
        output: Stdio,
        progress: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let log = log_file(name)?;
        let mut command = self.shell(pod, script)?;
        let status = process::run_piped(&mut command, input, output, &log, TRANSFER_LIMIT, || {
            let said = process::tail_of_file(&log);
            progress(said.lines().last().unwrap_or_default());
        })?;
        if !status.success() {
            bail!("{name} in pod {}/{pod} failed: {}", self.namespace, process::tail_of_file(&log));
        }
        Ok(())
    }
}

/// A pipe that fails when either side does, as POSIX shells do not. `-E`: without it kcat gives up as soon as no broker is there,
/// and a cluster of one node has none while its pod is replaced.
fn kcat_producer(topic: &str, events: &str) -> String {
    format!(
        "{{ gregor-events generate {events} || echo broken >&2; }} | \
         kcat -P -E -b \"$BOOTSTRAP\" -t {topic} -X enable.idempotence=true -X queue.buffering.max.ms=20"
    )
}

/// The file whose being there tells the slow producer of a topic to hurry.
fn hurry_file(topic: &str) -> String {
    format!("/tmp/{topic}.hurry")
}

fn java(class: &str) -> String {
    format!(
        "/opt/java/bin/java -Xmx256M -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
         -Dlog4j2.configurationFile=/opt/kafka/log4j2.properties -cp '/opt/kafka/libs/*' org.apache.kafka.tools.{class}"
    )
}

fn log_file(name: &str) -> Result<PathBuf> {
    let folder = target().join("test/clients");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{name}.log"));
    let _ = std::fs::remove_file(&file);
    Ok(file)
}

fn pod_manifest(namespace: &str, name: &str, image: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "gregor-clients"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "clients",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    })
}
