//! Node ports that change places. Kubernetes gives a port to one Service at a time: whoever wants what another of the same cluster still
//! has is applied after it, and those that want each other's let go of theirs first. Called where objects are written.

use serde_json::{Value, json};

use crate::cluster::ClusterObserved;
use crate::compare::stamp;
use crate::{Kind, Wanted};

/// Those of these objects that can be applied now, some of them on the way to what they should be.
pub(crate) fn in_turn(observed: &ClusterObserved, differing: Vec<Wanted>) -> Vec<Wanted> {
    let has = |wanted: &Wanted| observed.object(wanted.kind, &wanted.name).and_then(port);
    let gives = |wanted: &Wanted| has(wanted).filter(|port_now| Some(*port_now) != port(&wanted.body));
    let services = || differing.iter().filter(|wanted| wanted.kind == Kind::Service);
    let wants = |wanted: &&Wanted, from: &[&Wanted]| {
        let new = port(&wanted.body).filter(|new| has(wanted) != Some(*new));
        new.is_some_and(|new| from.iter().any(|other| gives(other) == Some(new)))
    };
    let all: Vec<&Wanted> = services().collect();
    let waiting: Vec<&Wanted> = services().filter(|wanted| wants(wanted, &all)).collect();
    // Whoever wants a port of one that waits itself, and so on in a ring: nobody in it can be first.
    let mut ring = waiting.clone();
    loop {
        let smaller: Vec<&Wanted> = ring.iter().copied().filter(|wanted| wants(wanted, &ring)).collect();
        if smaller.len() == ring.len() {
            break;
        }
        ring = smaller;
    }
    let names = |some: &[&Wanted]| some.iter().map(|wanted| wanted.name.clone()).collect::<Vec<_>>();
    let (waiting, ring) = (names(&waiting), names(&ring));
    let is_in = |names: &[String], wanted: &Wanted| wanted.kind == Kind::Service && names.contains(&wanted.name);
    let now = differing.into_iter().filter(|wanted| !is_in(&waiting, wanted) || is_in(&ring, wanted));
    now.map(|wanted| if is_in(&ring, &wanted) { without_port(wanted) } else { wanted }).collect()
}

/// The node port of a Service, which has one at most.
fn port(service: &Value) -> Option<i64> {
    service["spec"]["ports"][0]["nodePort"].as_i64()
}

/// The same Service for those inside only, until the next look.
fn without_port(mut wanted: Wanted) -> Wanted {
    wanted.body["spec"]["type"] = json!("ClusterIP");
    if let Some(port) = wanted.body["spec"]["ports"][0].as_object_mut() {
        port.remove("nodePort");
    }
    Wanted { body: stamp(wanted.body), ..wanted }
}
