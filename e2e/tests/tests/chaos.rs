//! Ten minutes of chaos on a real Kubernetes of three nodes, and more until all of it has happened: pods and nodes that are killed, nodes
//! that freeze, nodes and links that are cut, under one idempotent producer with acks=all and a consumer that checks every byte, and the
//! order in each partition. In the end all is read and checked once more.
//!
//! `cargo xtask test e2e --full` plays it; elsewhere it is skipped. It needs nodes whose links can be cut, and kcat beside it; where they
//! cannot be, it is skipped, too, unless `GREGOR_CHAOS_CUTS=required`, which makes it fail: the clients are in the cluster's network and on none of its nodes, so that whatever dies is a server. What happens to whom
//! is chosen by a seed, which is printed and which `GREGOR_CHAOS_SEED` repeats.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use gregor_e2e::{
    events,
    install::{self, Release},
    story::{self, Story},
    target,
};
use gregor_kubernetes::{Cluster, Helm, NodeFault, process};

const NAMESPACE: &str = "chaos";
const TOPIC: &str = "chaos";
const PARTITIONS: u32 = 3;
const LASTS: Duration = Duration::from_mins(10);
/// What all of the deck takes at most beyond that.
const DECK_MAX: Duration = Duration::from_mins(10);
const MINUTES: Duration = Duration::from_mins(5);
/// More than the slow producer writes in all this time; the rest comes at once in the end.
const EVENT_BYTES: u64 = 400_000_000;
/// What begins with the end of the chaos: the rest is written, sent and read.
const REST: Duration = Duration::from_mins(10);
const EVENTS: &str = env!("CARGO_BIN_EXE_gregor-events");

const MANIFESTS: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: chaos}
spec:
  nodePools: [{name: combined, nodeIds: ['0-2']}]
  storage: {volumes: [{name: data, size: 2Gi}]}
  config: {auto.create.topics.enable: false}
---
apiVersion: gregor.dev/v1beta1
kind: KafkaTopic
metadata: {name: chaos}
spec: {clusterRef: {name: chaos}, partitions: 3}
";

/// What happens to pods, nodes and links, until it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Disturbance {
    KillPod,
    KillNode,
    Freeze,
    Disconnect,
    /// Two nodes lose each other.
    CutPair,
    /// What one node sends to another is lost.
    CutOneWay,
}

/// Each is played once before any is played again.
const DECK: [Disturbance; 6] = [
    Disturbance::KillPod,
    Disturbance::KillNode,
    Disturbance::Freeze,
    Disturbance::Disconnect,
    Disturbance::CutPair,
    Disturbance::CutOneWay,
];

/// A sequence of numbers that a seed repeats (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// A pause for what was done to have its effects.
    fn pause(&mut self) {
        thread::sleep(Duration::from_millis(500 + self.below(15_000) as u64));
    }
}

/// A client that works in the background; it goes with the test.
struct Running {
    what: &'static str,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a script in the cluster's network.
    fn start(cluster: &Cluster, what: &'static str, folder: &Path, script: &str) -> Result<Self> {
        let log = folder.join(format!("{what}.log"));
        let mut command = cluster.command("sh")?;
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn().with_context(|| format!("could not start the {what}"))?;
        Ok(Self { what, child, log })
    }

    fn goes_on(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "the {} ended with {ended:?}: {}", self.what, process::tail_of_file(&self.log));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        process::wait_until(&format!("the {} has ended", self.what), REST, || Ok(self.child.try_wait()?.is_some()))
            .with_context(|| process::tail_of_file(&self.log))?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the {} ended with {status}: {}", self.what, process::tail_of_file(&self.log));
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            process::kill_tree(self.child.id());
            let _ = self.child.wait();
        }
    }
}

fn main() -> ExitCode {
    let mut story = Story::new(&[NAMESPACE, install::OPERATOR_NAMESPACE]);
    story.tell("what_was_acknowledged_is_kept_once_and_in_order_in_ten_minutes_of_chaos", ten_minutes_of_chaos);
    story.end(|cluster| {
        let _ = cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"]);
    })
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    cluster.kubectl(&[&["-n", NAMESPACE], arguments].concat())
}

fn status(cluster: &Cluster, field: &str) -> Result<String> {
    kubectl(cluster, &["get", "gk", "chaos", "-o", &format!("jsonpath={{.status.{field}}}")])
}

/// Every replica in sync, every voter level: nothing of what was done before is in the way.
fn whole(cluster: &Cluster) -> Result<()> {
    story::wait_until_ready(cluster, NAMESPACE, "gk/chaos")?;
    process::wait_until("all replicas are in sync and all voters level", MINUTES, || {
        Ok(status(cluster, "underReplicatedPartitions")? == "0" && status(cluster, "laggingVoters")?.is_empty())
    })
}

/// How many records the partitions have together.
fn records(cluster: &Cluster, bootstrap: &str) -> Result<u64> {
    let mut command = cluster.command("kcat")?;
    command.args(["-Q", "-b", bootstrap]);
    for partition in 0..PARTITIONS {
        command.args(["-t", &format!("{TOPIC}:{partition}:-1")]);
    }
    // chaos [0] offset 42
    let ends = process::output(&mut command)?;
    Ok(ends.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// Waits until every partition has what it needs to take records, and has taken some.
fn progress(cluster: &Cluster, bootstrap: &str, after: &str) -> Result<u64> {
    let mut before = None;
    let mut now = 0;
    process::wait_until(&format!("records are taken after {after}"), MINUTES, || {
        now = records(cluster, bootstrap)?;
        Ok(now > *before.get_or_insert(now))
    })?;
    Ok(now)
}

/// Does what is to be done, and undoes it after a while.
fn disturb(cluster: &Cluster, disturbance: Disturbance, chance: &mut Chance) -> Result<()> {
    let mut nodes = ["n1", "n2", "n3"];
    chance.shuffle(&mut nodes);
    let [one, other, _] = nodes;
    match disturbance {
        Disturbance::KillPod => {
            let pod = format!("chaos-{}-0", chance.below(3));
            kubectl(cluster, &["delete", "pod", &pod, "--grace-period=0", "--force"])?;
        }
        Disturbance::KillNode => {
            cluster.fault(one, NodeFault::Kill)?;
            chance.pause();
            cluster.fault(one, NodeFault::Restart)?;
        }
        Disturbance::Freeze => {
            cluster.fault(one, NodeFault::Freeze)?;
            chance.pause();
            cluster.fault(one, NodeFault::Thaw)?;
        }
        Disturbance::Disconnect => {
            cluster.fault(one, NodeFault::Disconnect)?;
            chance.pause();
            cluster.fault(one, NodeFault::Reconnect)?;
        }
        Disturbance::CutPair => {
            cluster.cut(one, other)?;
            cluster.cut(other, one)?;
            chance.pause();
            cluster.mend(one, other)?;
            cluster.mend(other, one)?;
        }
        Disturbance::CutOneWay => {
            cluster.cut(one, other)?;
            chance.pause();
            cluster.mend(one, other)?;
        }
    }
    Ok(())
}

fn become_one_cluster(cluster: &Cluster) -> Result<()> {
    // What an earlier run left.
    kubectl(cluster, &["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"])?;
    Release::crds().apply(cluster, Helm::V4)?;
    Release::operator().apply(cluster, Helm::V4)?;
    install::create_namespace(cluster, NAMESPACE)?;
    process::output_with_input(
        cluster.kubectl_command()?.args(["-n", NAMESPACE, "apply", "-f", "-"]),
        MANIFESTS.as_bytes(),
    )?;
    for object in ["gk/chaos", "gkt/chaos"] {
        story::wait_until_ready(cluster, NAMESPACE, object)?;
    }
    whole(cluster)
}

fn ten_minutes_of_chaos(cluster: &Cluster) -> Result<()> {
    if env::var("GREGOR_E2E").is_ok_and(|value| value != "full") {
        eprintln!("skipped: it takes a quarter of an hour; `cargo xtask test e2e --full` plays it");
        return Ok(());
    }
    let capabilities = cluster.capabilities()?;
    if !capabilities.cuts || capabilities.nodes != 3 {
        let why = format!("{} has no three nodes whose links can be cut from here", cluster.provider().name());
        ensure!(!cuts_are_required()?, "GREGOR_CHAOS_CUTS=required, and {why}");
        eprintln!("skipped: {why}");
        return Ok(());
    }
    become_one_cluster(cluster)?;
    let given = env::var("GREGOR_CHAOS_SEED").ok().map(|seed| seed.parse()).transpose().context("GREGOR_CHAOS_SEED")?;
    let seed: u64 = given.unwrap_or(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    eprintln!("GREGOR_CHAOS_SEED={seed}");
    let mut chance = Chance(seed);

    let folder = target().join("test/chaos");
    fs::create_dir_all(&folder)?;
    let hurry = folder.join("hurry");
    let _ = fs::remove_file(&hurry);
    let bootstrap = status(cluster, "bootstrapServers")?;
    ensure!(!bootstrap.is_empty(), "the status names no bootstrap servers");
    let count = events::generate(EVENT_BYTES, &mut std::io::sink(), &mut |_| ())?;
    let produce = format!(
        "{{ {EVENTS} generate {EVENT_BYTES} {} || echo broken >&2; }} | kcat -P -E -b {bootstrap} -t {TOPIC} \
         -X enable.idempotence=true -X queue.buffering.max.ms=20 -X message.timeout.ms=900000",
        hurry.display()
    );
    let check = |until: &str| {
        format!(
            "kcat -C -E -b {bootstrap} -t {TOPIC} -o beginning {until} -q -f '%p %s\\n' -X check.crcs=true | \
             {EVENTS} check-in-order {EVENT_BYTES}"
        )
    };
    let mut producer = Running::start(cluster, "producer", &folder, &produce)?;
    let mut consumer = Running::start(cluster, "consumer", &folder, &check(&format!("-c {count}")))?;
    progress(cluster, &bootstrap, "the start")?;

    let began = Instant::now();
    let mut deck = Vec::new();
    let mut played = BTreeMap::<Disturbance, usize>::new();
    let missing = |played: &BTreeMap<Disturbance, usize>| -> Vec<Disturbance> {
        DECK.into_iter().filter(|disturbance| !played.contains_key(disturbance)).collect()
    };
    while began.elapsed() < LASTS || !missing(&played).is_empty() && began.elapsed() < LASTS + DECK_MAX {
        if deck.is_empty() {
            deck.extend(DECK);
            chance.shuffle(&mut deck);
        }
        let disturbance = deck.pop().context("a deck was just shuffled")?;
        disturb(cluster, disturbance, &mut chance)?;
        whole(cluster).with_context(|| format!("after {disturbance:?}"))?;
        let taken = progress(cluster, &bootstrap, &format!("{disturbance:?}"))?;
        eprintln!("{:>4} s: {disturbance:?}, {taken} records", began.elapsed().as_secs());
        producer.goes_on()?;
        consumer.goes_on()?;
        *played.entry(disturbance).or_default() += 1;
    }
    eprintln!("this happened: {played:?}");
    let missing = missing(&played);
    ensure!(missing.is_empty(), "there was no time for {missing:?}");
    File::create(&hurry)?;
    producer.end()?;
    consumer.end()?;
    // What was lost or changed after it was read shows only now; so does what is there twice.
    whole(cluster)?;
    Running::start(cluster, "second-consumer", &folder, &check("-e"))?.end()
}

/// Whether it is a failure that nothing can be cut here.
fn cuts_are_required() -> Result<bool> {
    match env::var("GREGOR_CHAOS_CUTS").as_deref() {
        Err(_) => Ok(false),
        Ok("required") => Ok(true),
        Ok(other) => bail!("GREGOR_CHAOS_CUTS={other}: say `required`, or leave it out"),
    }
}
