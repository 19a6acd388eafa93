//! The charts with Helm 3 and 4: lint, install, a second release, a re-install under another name, what uninstalling keeps.
//!
//! Needs a Kubernetes with our images; `cargo xtask test e2e` prepares it and sets `GREGOR_E2E`; elsewhere it is skipped.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use gregor_e2e::{
    install::{self, Release},
    root,
    story::Story,
};
use gregor_kubernetes::{Cluster, Helm};

const FIRST_NAMESPACE: &str = "first-team";
const SECOND_NAMESPACE: &str = "second-team";
const CRDS: [&str; 2] = ["kafkaclusters.gregor.dev", "kafkatopics.gregor.dev"];
const TOPIC: &str = r#"{"apiVersion": "gregor.dev/v1beta1", "kind": "KafkaTopic",
    "metadata": {"name": "kept", "namespace": "second-team"},
    "spec": {"clusterRef": {"name": "nowhere"}, "partitions": 1}}"#;

fn main() -> ExitCode {
    let mut story = Story::new(&[install::OPERATOR_NAMESPACE, SECOND_NAMESPACE]);
    story.tell("charts_pass_the_strict_lint_of_helm_4", |cluster| lint(cluster, Helm::V4));
    story.tell("charts_pass_the_strict_lint_of_helm_3", |cluster| lint(cluster, Helm::V3));
    story.tell("every_rendered_object_is_valid_with_helm_4", |cluster| rendered_is_valid(cluster, Helm::V4));
    story.tell("every_rendered_object_is_valid_with_helm_3", |cluster| rendered_is_valid(cluster, Helm::V3));
    story.tell("releases_come_and_go_with_helm_4_and_crds_stay", |cluster| releases_come_and_go(cluster, Helm::V4));
    story.tell("releases_come_and_go_with_helm_3_and_crds_stay", |cluster| releases_come_and_go(cluster, Helm::V3));
    story.tell("every_example_is_accepted", every_example_is_accepted);
    story.end(|cluster| {
        let namespaces =
            ["delete", "namespace", FIRST_NAMESPACE, SECOND_NAMESPACE, "--ignore-not-found", "--timeout=60s"];
        let _ = cluster.kubectl(&namespaces);
    })
}

fn lint(cluster: &Cluster, helm: Helm) -> Result<()> {
    for chart in ["gregor-crds", "gregor-operator"] {
        cluster.helm(helm, &["lint", "--strict", &root().join("helm").join(chart).display().to_string()])?;
    }
    Ok(())
}

/// The API server itself reads what the charts render, as strictly as it can.
fn rendered_is_valid(cluster: &Cluster, helm: Helm) -> Result<()> {
    install::create_namespace(cluster, SECOND_NAMESPACE)?;
    for chart in ["gregor-crds", "gregor-operator"] {
        let path = root().join("helm").join(chart).display().to_string();
        // Without a cluster to ask, Helm takes the Kubernetes version that it was built with, which may be none.
        let version = gregor_kubernetes::programs::KUBERNETES_VERSION;
        let arguments = ["template", "check", &path, "--namespace", SECOND_NAMESPACE, "--kube-version", version];
        let rendered = cluster.helm(helm, &arguments)?;
        let mut command = cluster.kubectl_command()?;
        command.args(["apply", "--dry-run=server", "--validate=strict", "--server-side", "--field-manager=check"]);
        command.args(["--force-conflicts", "-f", "-"]);
        gregor_kubernetes::process::output_with_input(&mut command, rendered.as_bytes())?;
    }
    Ok(())
}

fn releases_come_and_go(cluster: &Cluster, helm: Helm) -> Result<()> {
    for namespace in [FIRST_NAMESPACE, SECOND_NAMESPACE] {
        install::create_namespace(cluster, namespace)?;
    }
    Release::crds().apply(cluster, helm)?;
    Release::operator().value(&format!("watchNamespaces={{{FIRST_NAMESPACE}}}")).apply(cluster, helm)?;
    // Another team's release beside it, which looks after another namespace.
    let watched = format!("watchNamespaces={{{SECOND_NAMESPACE}}}");
    let second = Release::operator().named("second").in_namespace(SECOND_NAMESPACE).value(&watched);
    let second = second.value(&format!("watchNamespaces={{{SECOND_NAMESPACE}}}"));
    second.apply(cluster, helm)?;
    cluster.apply(TOPIC)?;

    second.remove(cluster, helm)?;
    Release::operator().remove(cluster, helm)?;
    Release::crds().remove(cluster, helm)?;
    let kept = cluster.kubectl(&["get", "crds", "-o", "jsonpath={.items[*].metadata.name}"])?;
    ensure!(CRDS.iter().all(|name| kept.contains(name)), "after `helm uninstall` there are only {kept:?}");
    let topic = cluster.kubectl(&["-n", SECOND_NAMESPACE, "get", "gkt", "kept", "-o", "name"])?;
    ensure!(topic.contains("kept"), "uninstalling the charts removed a KafkaTopic");

    let renamed = (Release::crds().named("definitions"), Release::operator().named("another-name"));
    renamed.0.apply(cluster, helm)?;
    renamed.1.apply(cluster, helm)?;
    renamed.1.remove(cluster, helm)?;
    renamed.0.remove(cluster, helm)?;
    cluster.kubectl(&["-n", SECOND_NAMESPACE, "delete", "gkt", "kept", "--timeout=60s"])?;
    Ok(())
}

fn every_example_is_accepted(cluster: &Cluster) -> Result<()> {
    Release::crds().apply(cluster, Helm::V4)?;
    let examples = root().join("crds/examples").display().to_string();
    cluster.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", &examples])?;
    Release::crds().remove(cluster, Helm::V4)?;
    Ok(())
}
