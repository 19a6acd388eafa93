//! A cluster keeps the DNS domain that it was made in: it is in the names by which its nodes know each other.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod fleet;

use fleet::secrets::DAY;
use fleet::{COMBINED, Fleet};
use gregor_operator_api::names;
use gregor_operator_plan::{Progress, Reason};
use serde_json::json;

fn move_to(fleet: &mut Fleet, domain: &str) {
    domain.clone_into(&mut fleet.environment.cluster_domain);
}

/// Takes out what a release wrote nothing of that did not record the domain.
fn forget_domain(fleet: &mut Fleet) {
    let mut identity = fleet.identity().unwrap();
    identity.cluster_domain = None;
    fleet.identity.as_mut().unwrap()["data"]["identity.json"] = json!(identity.text());
    for object in fleet.objects.values_mut() {
        if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
            annotations.remove(names::CLUSTER_DOMAIN);
        }
    }
}

#[test]
fn another_domain_is_refused_and_certificates_go_on_with_the_old_one() {
    let mut fleet = Fleet::settled(COMBINED);
    let (writes, properties) = (fleet.writes, fleet.properties(1));
    move_to(&mut fleet, "example.com");
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DomainChangeRefused));
    assert!(matches!(fleet.last.as_ref().unwrap().progress, Progress::Stalled { .. }));
    let message = fleet.message();
    assert!(message.contains("clusterDomain to cluster.local") && message.contains("example.com"), "{message}");
    assert_eq!((fleet.writes, fleet.restarts.len()), (writes, 0));
    let status = fleet.last.as_ref().unwrap().status.clone();
    assert_eq!(status.bootstrap_servers.as_deref(), Some("demo-bootstrap.team.svc.cluster.local:9092"));

    let serial = fleet.secrets.node(1).certificate.serial.clone();
    fleet.secrets.now += 70 * DAY;
    fleet.settle();
    let certificate = &fleet.secrets.node(1).certificate;
    assert_ne!(certificate.serial, serial, "it would end");
    assert!(certificate.names.contains("demo-1-0.demo-nodes.team.svc.cluster.local"), "{:?}", certificate.names);

    move_to(&mut fleet, "cluster.local");
    fleet.settle();
    assert_eq!((fleet.reason(), fleet.properties(1)), (Some(Reason::Ready), properties));
    assert_eq!(fleet.restarts.len(), 0);
}

#[test]
fn a_cluster_that_an_earlier_release_made_gets_its_domain_recorded_and_nobody_is_restarted() {
    let mut fleet = Fleet::settled(COMBINED);
    let before = fleet.identity().unwrap();
    assert_eq!(before.cluster_domain.as_deref(), Some("cluster.local"));
    forget_domain(&mut fleet);
    fleet.settle();
    assert_eq!((fleet.reason(), fleet.identity().unwrap()), (Some(Reason::Ready), before.clone()));
    assert_eq!(fleet.restarts.len(), 0);

    // Where the release and the domain change together, the certificates tell which it was.
    forget_domain(&mut fleet);
    move_to(&mut fleet, "example.com");
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DomainChangeRefused), "{}", fleet.message());
    assert_eq!(fleet.restarts.len(), 0);
}

#[test]
fn claims_of_two_domains_make_no_identity() {
    let mut fleet = Fleet::settled(COMBINED);
    let claim = fleet.objects.iter_mut().find(|((_, name), _)| name == "demo-2-data").unwrap().1;
    claim["metadata"]["annotations"][names::CLUSTER_DOMAIN] = json!("example.com");
    fleet.identity = None;
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::ForeignVolume), "{}", fleet.message());
    assert!(fleet.message().contains("demo-2-data"), "{}", fleet.message());
}
