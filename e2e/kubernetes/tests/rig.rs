//! The rig itself: pods, volumes, names, services, node faults, and that nothing is left when it goes.
//!
//! Needs root and minutes, so it runs in `cargo xtask test e2e`, which sets `GREGOR_RIG_TESTS`, and is skipped elsewhere.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Result, ensure};
use gregor_kubernetes::{NodeFault, Rig, process};
use libtest_mimic::{Arguments, Failed, Trial};

const NAME: &str = "rig-tests";
const MINUTE: Duration = Duration::from_mins(1);

/// The machine's state that a rig may change and must put back.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    settings: BTreeMap<&'static str, String>,
    links: String,
    mounts: usize,
    cgroups: Vec<String>,
    folder: bool,
}

impl Traces {
    fn now() -> Result<Self> {
        let mut settings = BTreeMap::new();
        for name in ["fs/inotify/max_user_instances", "vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"] {
            settings.insert(name, fs::read_to_string(Path::new("/proc/sys").join(name))?);
        }
        let find = ["-c", "find /sys/fs/cgroup -type d -name 'gregor-rig-rig-tests' 2>/dev/null || true"];
        Ok(Self {
            settings,
            links: process::output(Command::new("ip").args(["-brief", "link"]))?,
            mounts: fs::read_to_string("/proc/self/mounts")?.lines().count(),
            cgroups: process::output(Command::new("sh").args(find))?.lines().map(String::from).collect(),
            folder: Rig::named(NAME).state().exists(),
        })
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They tell one story on one rig.
    arguments.test_threads = Some(1);
    let skipped = std::env::var_os("GREGOR_RIG_TESTS").is_none();
    if skipped && !arguments.list {
        eprintln!("skipped: the rig's tests need root and minutes; `cargo xtask test e2e` runs them");
    }
    let before = Traces::now();
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}")))).with_ignored_flag(skipped)
    };
    let trials = vec![
        trial("nodes_become_ready", nodes_become_ready),
        trial("a_restricted_pod_writes_to_its_volume_and_is_reached_by_name", a_pod_is_reached_by_name),
        trial("data_survives_the_pod", data_survives_the_pod),
        trial("a_killed_node_is_noticed_and_comes_back_with_its_data", a_killed_node_comes_back),
        trial("a_frozen_node_is_noticed_and_thaws", a_frozen_node_thaws),
        trial("what_is_cut_between_two_nodes_is_lost_until_it_is_mended", a_cut_loses_and_is_mended),
        trial("a_node_that_comes_late_knows_the_loaded_images", a_late_node_knows_the_images),
        Trial::test("down_leaves_nothing_behind", move || {
            let before = before.map_err(|error| Failed::from(format!("{error:#}")))?;
            down_leaves_nothing(&before).map_err(|error| Failed::from(format!("{error:#}")))
        })
        .with_ignored_flag(skipped),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !skipped {
        // A failed test may have left it running.
        let _ = rig().down(&|_| ());
    }
    conclusion.exit_code()
}

fn rig() -> Rig {
    Rig::named(NAME)
}

fn kubectl(arguments: &[&str]) -> Result<String> {
    process::output(rig().command("kubectl")?.args(arguments))
}

fn nodes_become_ready() -> Result<()> {
    rig().up(2, &|_| ())?;
    let nodes = kubectl(&["get", "nodes", "-o", "name"])?;
    ensure!(nodes == "node/n1\nnode/n2\n", "the nodes are {nodes:?}");
    Ok(())
}

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: story, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Service
metadata: {name: store, namespace: story}
spec: {selector: {app: store}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store, namespace: story}
spec:
  serviceName: store
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec:
      terminationGracePeriodSeconds: 2
      securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 2000, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: store
        image: rig.local/toolbox:1
        args: [serve, /data, ":8080"]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#;

fn a_pod_is_reached_by_name() -> Result<()> {
    process::output_with_input(rig().command("kubectl")?.args(["apply", "-f", "-"]), MANIFESTS.as_bytes())?;
    kubectl(&["-n", "story", "rollout", "status", "statefulset/store", "--timeout=90s"])?;
    // The kube-proxies learn of a ready pod a moment after kubectl does.
    process::wait_until("the service takes a file", MINUTE, || {
        toolbox(&["put", "http://store.story.svc.cluster.local/file", "kept"]).map(|_| true)
    })?;
    let inside = kubectl(&["-n", "story", "exec", "store-0", "--", "/bin/toolbox", "get", "http://store/file"])?;
    ensure!(inside == "kept", "a pod read {inside:?} through the service");
    Ok(())
}

fn data_survives_the_pod() -> Result<()> {
    kubectl(&["-n", "story", "delete", "pod", "store-0"])?;
    kubectl(&["-n", "story", "rollout", "status", "statefulset/store", "--timeout=90s"])?;
    reads_what_was_written()
}

fn a_killed_node_comes_back() -> Result<()> {
    let name = kubectl(&["-n", "story", "get", "pod", "store-0", "-o", "jsonpath={.spec.nodeName}"])?;
    let node = name[1..].parse()?;
    rig().fault(node, NodeFault::Kill)?;
    wait_for_node(&name, "Unknown")?;
    rig().fault(node, NodeFault::Restart)?;
    wait_for_node(&name, "True")?;
    reads_what_was_written()
}

fn a_frozen_node_thaws() -> Result<()> {
    rig().fault(2, NodeFault::Freeze)?;
    wait_for_node("n2", "Unknown")?;
    rig().fault(2, NodeFault::Thaw)?;
    wait_for_node("n2", "True")
}

/// The kubelet of each node listens on the fabric.
fn reaches(from: u32, to: u32) -> Result<bool> {
    let init = fs::read_to_string(rig().state().join(format!("n{from}/pid")))?;
    let dial = format!("exec 3<>/dev/tcp/10.198.0.1{to}/10250");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{init}/ns/net")).args(["--", "timeout", "3", "bash", "-c", &dial]);
    Ok(command.status()?.success())
}

fn a_cut_loses_and_is_mended() -> Result<()> {
    ensure!(reaches(1, 2)?, "node 1 does not reach node 2 to begin with");
    rig().cut(1, 2)?;
    ensure!(!reaches(1, 2)?, "node 1 reaches node 2 though it is cut from it");
    // The answer would be what is cut.
    ensure!(!reaches(2, 1)?, "node 1 answers node 2 though it is cut from it");
    rig().mend(1, 2)?;
    process::wait_until("node 1 reaches node 2 again", MINUTE, || reaches(1, 2))?;
    // Nothing was cut here.
    rig().mend(2, 1)?;
    ensure!(reaches(2, 1)?, "node 2 does not reach node 1");
    ensure!(rig().cut(1, 1).is_err() && rig().cut(1, 9).is_err(), "nobody is there to be cut from");
    Ok(())
}

fn a_late_node_knows_the_images() -> Result<()> {
    let mut image = gregor_kubernetes::oci::Image::new("localhost/late:1", &["/bin/late"]);
    image.program("/bin/late", b"never run");
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("late.tar");
    image.write(&archive)?;
    rig().load_image(&archive)?;
    rig().up(3, &|_| ())?;
    process::wait_until("every node lists the image", MINUTE, || {
        let images =
            kubectl(&["get", "nodes", "-o", "jsonpath={range .items[*]}{.status.images[*].names}{'\\n'}{end}"])?;
        Ok(images.lines().filter(|line| line.contains("localhost/late:1")).count() == 3)
    })
}

fn down_leaves_nothing(before: &Traces) -> Result<()> {
    let audit_log = rig().audit_log();
    ensure!(fs::metadata(&audit_log)?.len() > 0, "the API server wrote no audit log");
    rig().down(&|_| ())?;
    let after = Traces::now()?;
    ensure!(after == *before, "before: {before:?}\nafter: {after:?}");
    let cluster_programs =
        process::output(Command::new("sh").args(["-c", "ps -eo args | grep -c '[r]ig/rig-tests/' || true"]))?;
    ensure!(cluster_programs.trim() == "0", "{cluster_programs} processes of the rig still run");
    Ok(())
}

fn wait_for_node(name: &str, status: &str) -> Result<()> {
    process::wait_until(&format!("node {name} is {status}"), MINUTE, || {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        Ok(kubectl(&["get", "node", name, "-o", path])? == status)
    })
}

fn reads_what_was_written() -> Result<()> {
    process::wait_until("the service answers with what was written", MINUTE, || {
        Ok(toolbox(&["get", "http://store.story.svc.cluster.local/file"])? == "kept")
    })
}

/// The toolbox inside the rig's network.
fn toolbox(arguments: &[&str]) -> Result<String> {
    process::output(rig().command("toolbox")?.args(arguments))
}
