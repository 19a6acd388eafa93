//! What a failed test leaves for whoever looks into it: objects, events, logs and audit lines in one folder.
//!
//! Called by the tests' own `main` after a failure, and by `cargo xtask up`. It never fails: what cannot be had is named in
//! the folder instead.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    time::Duration,
};

use gregor_kubernetes::{Cluster, process};

/// Our kinds and those that they are made of.
const KINDS: &str = "kafkaclusters,kafkatopics,statefulsets,deployments,pods,services,configmaps,persistentvolumeclaims,\
                     poddisruptionbudgets,endpointslices,leases";
const AUDIT_LINES_MAX: usize = 20_000;

/// Collects into `folder`, from the namespaces given and all events.
pub fn collect(cluster: &Cluster, namespaces: &[&str], folder: &Path) {
    if let Err(error) = fs::create_dir_all(folder) {
        eprintln!("no evidence in {}: {error}", folder.display());
        return;
    }
    save(cluster, folder, "nodes.yaml", &["get", "nodes,persistentvolumes,customresourcedefinitions", "-o", "yaml"]);
    save(cluster, folder, "events.txt", &["get", "events", "-A", "--sort-by=.lastTimestamp"]);
    save(cluster, folder, "pods.txt", &["get", "pods", "-A", "-o", "wide"]);
    for namespace in namespaces {
        save(cluster, folder, &format!("{namespace}-objects.yaml"), &["-n", namespace, "get", KINDS, "-o", "yaml"]);
        let pods = cluster.kubectl(&["-n", namespace, "get", "pods", "-o", "name"]).unwrap_or_default();
        for pod in pods.lines() {
            let name = pod.trim_start_matches("pod/");
            let logs = ["-n", namespace, "logs", pod, "--all-containers", "--prefix", "--tail=5000"];
            save(cluster, folder, &format!("{namespace}-{name}.log"), &logs);
            let mut previous = logs.to_vec();
            previous.push("--previous");
            save(cluster, folder, &format!("{namespace}-{name}-previous.log"), &previous);
        }
    }
    if let Some(audit_log) = cluster.audit_log() {
        save_audit_lines(&audit_log, &folder.join("audit.jsonl"));
    }
    println!("evidence of the failure is in {}", folder.display());
}

fn save(cluster: &Cluster, folder: &Path, file: &str, arguments: &[&str]) {
    let path = folder.join(file);
    let result = cluster.kubectl_command().and_then(|mut command| {
        let output = fs::File::create(&path)?;
        process::run_piped(
            command.args(arguments),
            Stdio::null(),
            output.into(),
            &folder.join("errors.txt"),
            Duration::from_secs(30),
            || (),
        )
    });
    match result {
        Err(error) => drop(fs::write(&path, format!("could not be had: {error:#}\n"))),
        // A pod without an earlier container, a namespace without objects: nothing to look at.
        Ok(_) if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == 0) => drop(fs::remove_file(&path)),
        Ok(_) => {}
    }
}

/// The requests of our operator and about our kinds.
fn save_audit_lines(from: &Path, to: &Path) {
    let Ok(file) = fs::File::open(from) else { return };
    let ours = BufReader::new(file).lines().map_while(Result::ok).filter(|line| line.contains("gregor"));
    let lines: Vec<String> = ours.take(AUDIT_LINES_MAX).collect();
    let _ = fs::write(to, lines.join("\n"));
}
