//! What the StatefulSet controller and the kubelets make of the fleet's objects: pods, what their init containers do with the
//! disks, and when a node is ready.

use gregor_operator_api::names;
use gregor_operator_plan::Kind;
use serde_json::{Value, json};

use super::{Fleet, Formatted, Harm, Quorum};

impl Fleet {
    /// The StatefulSet controller and the kubelets, each node once. Returns whether anything changed.
    pub fn kubelet(&mut self) -> bool {
        let sets: Vec<(i32, Value)> = self
            .objects
            .iter()
            .filter(|((kind, _), _)| *kind == Kind::StatefulSet)
            .map(|(_, set)| {
                (set["metadata"]["labels"][names::NODE_ID_LABEL].as_str().unwrap().parse().unwrap(), set.clone())
            })
            .collect();
        let mut changed = self.secrets.refresh(self.pods.keys().copied());
        for (id, set) in sets {
            if !self.pods.contains_key(&id) {
                let mut pod = set["spec"]["template"].clone();
                pod["metadata"]["name"] = json!(format!("demo-{id}-0"));
                pod["metadata"]["uid"] = json!(self.uid());
                pod["spec"]["nodeName"] = json!("kube-1");
                if pod["spec"]["volumes"].as_array().unwrap().iter().any(|volume| volume["secret"].is_object())
                    && !self.secrets.mount(id)
                {
                    continue;
                }
                self.pods.insert(id, serde_json::from_value(pod).unwrap());
                // It starts with the next turn: a pod that does not run yet is a state that the plan meets.
                changed = true;
                continue;
            }
            if self.is_ready(id) {
                continue;
            }
            let before = self.pods[&id].status.clone();
            let status = self.run(id).map(|status| serde_json::from_value(status).unwrap());
            if let Some(pod) = self.pods.get_mut(&id).filter(|_| status.is_some()) {
                pod.status = status;
            }
            changed |= self.pods[&id].status != before;
        }
        changed
    }

    /// The init container, and the node after it.
    fn run(&mut self, id: i32) -> Option<Value> {
        let pod = serde_json::to_value(&self.pods[&id]).unwrap();
        let annotations = &pod["metadata"]["annotations"];
        let directory_id = annotations[names::DIRECTORY_ID].as_str().unwrap().to_owned();
        let cluster_id = annotations[names::CLUSTER_ID].as_str().unwrap().to_owned();
        let claim = self.object(Kind::PersistentVolumeClaim, &format!("demo-{id}-data"))?;
        let claim = claim["metadata"]["uid"].as_str().unwrap().to_owned();
        let grant =
            self.object(Kind::ConfigMap, &format!("demo-{id}-grant"))?["data"][&directory_id].as_str()?.to_owned();
        let arguments = pod["spec"]["initContainers"][0]["args"].as_array().unwrap().clone();
        let disk = self.disks.get_mut(&claim).unwrap();
        match disk {
            Some(found) if found.cluster_id == cluster_id && found.directory_id == directory_id => {}
            Some(_) => return Some(refused("ForeignDisk")),
            None if grant == "none" => return Some(refused("DiskLost")),
            None => {
                // A second start beside a quorum that has run already is another cluster.
                self.quorums += usize::from(grant == "standalone" && self.quorum.is_some());
                *disk = Some(Formatted {
                    cluster_id,
                    directory_id: directory_id.clone(),
                    standalone: grant == "standalone",
                });
            }
        }
        let standalone = disk.as_ref().is_some_and(|disk| disk.standalone);
        let rack = annotations[names::RACK].as_str().unwrap_or_default();
        let waits_for_rack = arguments.iter().any(|argument| argument == "--rack=$(GREGOR_RACK)") && rack.is_empty();
        if (arguments.iter().any(|argument| argument == "--until-recorded") && grant != "none") || waits_for_rack {
            return Some(ended(4, None));
        }
        if self.poison.as_ref().is_some_and(|poison| self.properties(id).contains(poison.as_str())) {
            let node = match self.harm {
                Harm::Ends => {
                    let mut crashed = container("gregor", 5, &json!({"waiting": {"reason": "CrashLoopBackOff"}}));
                    crashed["lastState"] = json!({"terminated": {"exitCode": 1}});
                    crashed
                }
                Harm::IsNotMade => {
                    container("gregor", 0, &json!({"waiting": {"reason": "CreateContainerConfigError"}}))
                }
                Harm::IsNotReady => container("gregor", 0, &json!({"running": {}})),
            };
            return Some(json!({
                "initContainerStatuses": [container("format", 0, &json!({"terminated": {"exitCode": 0}}))],
                "containerStatuses": [node],
                "conditions": [{"type": "Ready", "status": "False"}],
            }));
        }
        if standalone && self.quorum.is_none() {
            self.quorum = Some(Quorum { voters: vec![(id, directory_id.clone())] });
            self.quorums += 1;
        }
        // Nobody is ready without a quorum; a voter that comes back may be what it lacked.
        let quorum = self.quorum.clone()?;
        let up = quorum
            .voters
            .iter()
            .filter(|(voter, directory)| {
                self.follows(*voter, directory)
                    || self.runs(*voter, directory)
                    || (*voter == id && *directory == directory_id)
            })
            .count();
        let ready = up > quorum.voters.len() / 2;
        Some(json!({
            "initContainerStatuses": [container("format", 0, &json!({"terminated": {"exitCode": 0}}))],
            "containerStatuses": [container("gregor", 0, &json!({"running": {}}))],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        }))
    }

    /// Whether the process of a voter runs, ready or not.
    fn runs(&self, id: i32, directory: &str) -> bool {
        let running = self.pods.get(&id).and_then(|pod| {
            let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
            containers.first()?.state.as_ref()?.running.clone()
        });
        running.is_some() && self.directory(id).as_deref() == Some(directory)
    }
}

pub fn container(name: &str, restarts: i32, state: &Value) -> Value {
    json!({"name": name, "image": "gregor", "imageID": "", "ready": false, "restartCount": restarts, "state": state})
}

fn ended(code: i32, message: Option<&str>) -> Value {
    let state = json!({"terminated": {"exitCode": code, "message": message}});
    json!({"initContainerStatuses": [container("format", 0, &state)]})
}

fn refused(reason: &str) -> Value {
    ended(3, Some(&json!({"reason": reason, "message": "as found"}).to_string()))
}
