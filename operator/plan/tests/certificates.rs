//! The certificates of a cluster's nodes: made before the nodes, renewed without a restart, and moved to another authority so that no
//! two nodes that run ever distrust each other, whenever kubelets come to their Secrets.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod fleet;

use std::collections::{BTreeMap, BTreeSet};

use fleet::secrets::DAY;
use fleet::{COMBINED, Fleet, POOLS};
use gregor_operator_api::cluster::{Encryption, NodeConnections};
use gregor_operator_api::value::ConfigValue;
use gregor_operator_plan::certificates::CLOCK_SKEW_SECONDS;
use gregor_operator_plan::{Connections, Kind, Reason};
use proptest::prelude::*;
use serde_json::Value;

const ALL: [i32; 3] = [0, 1, 2];

fn ask(fleet: &mut Fleet, change: impl FnOnce(&mut NodeConnections)) {
    fleet.spec(|cluster| change(cluster.spec.node_connections.get_or_insert_default()));
}

fn running(fleet: &Fleet) -> Vec<i32> {
    fleet.pods.keys().copied().filter(|id| fleet.is_ready(*id)).collect()
}

fn uids(fleet: &Fleet) -> BTreeMap<i32, String> {
    fleet.pods.iter().map(|(id, pod)| (*id, pod.metadata.uid.clone().unwrap())).collect()
}

fn subjects(fleet: &Fleet, id: i32) -> Vec<&str> {
    fleet.secrets.node(id).trusted.iter().map(|trusted| trusted.subject.as_str()).collect()
}

/// Lets everybody work until nobody has anything to do, and holds each moment to the promise.
fn settle(fleet: &mut Fleet) {
    for _ in 0..1_000 {
        let worked = fleet.reconcile();
        assert_eq!(fleet.secrets.quarrel(&running(fleet)), None, "{:?}", fleet.secrets.writes);
        let ran = fleet.kubelet();
        assert_eq!(fleet.secrets.quarrel(&running(fleet)), None, "{:?}", fleet.secrets.writes);
        if !worked && !ran && !fleet.catch_up() {
            return;
        }
    }
    panic!("it never comes to rest: {:?}", fleet.last);
}

fn waits(fleet: &Fleet) -> String {
    fleet.last.as_ref().unwrap().renewal.clone().unwrap_or_default()
}

#[test]
fn nodes_talk_by_mutual_tls_and_each_pod_gets_its_own_key_and_no_other() {
    for (manifest, broker_only) in [(COMBINED, None), (POOLS, Some(10))] {
        let fleet = Fleet::settled(manifest);
        for id in fleet.identity().unwrap().nodes.keys() {
            let text = fleet.properties(*id);
            assert!(text.contains("REPLICATION:SSL,CONTROLLER:SSL"), "{text}");
            assert!(text.contains("\nlistener.name.controller.ssl.client.auth=required\n"), "{text}");
            let is_broker = !text.contains("process.roles=controller\n");
            assert_eq!(text.contains("\ninter.broker.listener.name=REPLICATION\n"), is_broker, "{text}");
            assert_eq!(text.contains("\nlistener.name.replication.ssl.client.auth=required\n"), is_broker, "{text}");
            let pod = serde_json::to_value(&fleet.pods[id]).unwrap();
            let volumes = pod["spec"]["volumes"].as_array().unwrap();
            let secrets: Vec<&Value> = volumes.iter().filter(|volume| volume["secret"].is_object()).collect();
            assert_eq!(secrets.len(), 1);
            assert_eq!(secrets[0]["secret"]["secretName"], format!("demo-{id}-tls"));
            let mount = |container: &Value| {
                let mounts = container["volumeMounts"].as_array().unwrap().clone();
                mounts.into_iter().find(|mount| mount["name"] == secrets[0]["name"])
            };
            let mounted = mount(&pod["spec"]["containers"][0]).unwrap();
            assert_eq!(mounted["readOnly"], true);
            assert!(mounted["subPath"].is_null(), "a single file would not change with its Secret");
            let location = format!("{}/keystore.pem", mounted["mountPath"].as_str().unwrap());
            assert!(text.contains(&format!("listener.name.controller.ssl.keystore.location={location}\n")), "{text}");
            assert_eq!(mount(&pod["spec"]["initContainers"][0]), None);
            let certificate = &fleet.secrets.node(*id).certificate;
            let host = format!("demo-{id}-0.demo-nodes.team.svc.cluster.local");
            assert_eq!(certificate.names, BTreeSet::from([host.clone()]), "the name by which others dial it");
            if is_broker {
                assert!(text.contains(&format!("REPLICATION://{host}:9091")), "{text}");
            }
        }
        if let Some(id) = broker_only {
            assert!(!fleet.properties(id).contains("CONTROLLER://"), "{}", fleet.properties(id));
        }
        assert_eq!(fleet.secrets.quarrel(&running(&fleet)), None);
        let ports = fleet.object(Kind::Service, "demo-nodes").unwrap()["spec"]["ports"].clone();
        assert!(ports.as_array().unwrap().iter().any(|port| port["port"] == 9091), "{ports}");
        let status = fleet.last.as_ref().unwrap().status.clone();
        let connections = status.node_connections.unwrap();
        assert_eq!(connections.encryption, Encryption::Tls);
        assert_eq!(connections.certificates_not_after.as_deref(), Some("2026-04-01T00:00:00Z"), "after ninety days");
        assert_eq!(connections.authority_not_after.as_deref(), Some("2030-12-31T00:00:00Z"), "after five years");
        assert!(status.nodes.iter().all(|node| node.certificate_not_after.is_some()));
    }
}

#[test]
fn a_cluster_of_an_older_release_goes_on_in_plaintext_and_says_so() {
    let mut fleet = Fleet::of_an_older_release(COMBINED);
    assert!(!fleet.identity().unwrap().text().contains("connections"), "an older operator could read it");
    assert!(fleet.properties(1).contains("listener.security.protocol.map=INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT\n"));
    assert!(!fleet.properties(1).contains("ssl."), "{}", fleet.properties(1));
    assert_eq!(fleet.secrets.writes, Vec::<String>::new());
    let status = |fleet: &Fleet| fleet.last.as_ref().unwrap().status.node_connections.clone().unwrap();
    assert_eq!(status(&fleet).encryption, Encryption::Plaintext);
    let before = uids(&fleet);
    ask(&mut fleet, |connections| connections.certificate_days = Some(30));
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::EncryptionChangeRefused));
    assert!(fleet.message().contains("take nodeConnections out"), "{}", fleet.message());
    fleet.spec(|cluster| cluster.spec.node_connections = None);
    fleet.settle();
    assert_eq!((fleet.reason(), uids(&fleet)), (Some(Reason::Ready), before), "nobody was restarted");
}

#[test]
fn how_nodes_talk_is_found_again_with_a_lost_identity() {
    for (mut fleet, connections) in
        [(Fleet::of_an_older_release(COMBINED), Connections::Plaintext), (Fleet::settled(COMBINED), Connections::Tls)]
    {
        let before = fleet.identity().unwrap();
        assert_eq!(before.connections, connections);
        fleet.identity = None;
        fleet.settle();
        assert_eq!(fleet.identity().unwrap(), before);
        assert_eq!(fleet.restarts, Vec::<i32>::new());
    }
}

#[test]
fn certificates_are_renewed_one_node_after_the_other_when_two_thirds_of_their_time_are_over() {
    let mut fleet = Fleet::settled(COMBINED);
    let (before, pods) = (fleet.secrets.serials(), uids(&fleet));
    fleet.secrets.now += 59 * DAY;
    settle(&mut fleet);
    assert_eq!(fleet.secrets.serials(), before);
    fleet.secrets.now += DAY;
    fleet.secrets.slow = BTreeSet::from([1]);
    settle(&mut fleet);
    let now = fleet.secrets.serials();
    let renewed: Vec<bool> = ALL.iter().map(|id| now[id] != before[id]).collect();
    assert_eq!(renewed, [true, true, false], "node 1 does not show its own yet");
    assert!(waits(&fleet).contains("node 2") && waits(&fleet).contains("node 1"), "{}", waits(&fleet));
    assert_eq!(fleet.reason(), Some(Reason::Ready), "nobody has to know: {}", fleet.message());
    fleet.secrets.slow.clear();
    settle(&mut fleet);
    assert!(ALL.iter().all(|id| fleet.secrets.serials()[id] != before[id]));
    assert_eq!(waits(&fleet), "");
    assert_eq!(uids(&fleet), pods, "no pod was restarted");
    let writes = fleet.writes;
    assert!(!fleet.reconcile());
    assert_eq!(fleet.writes, writes, "at rest nothing is written");
}

#[test]
fn a_node_that_cannot_be_seen_holds_the_others_renewals_up_for_an_hour_only() {
    let mut fleet = Fleet::settled(COMBINED);
    let before = fleet.secrets.serials();
    fleet.secrets.unseen = BTreeSet::from(ALL);
    fleet.secrets.now += 60 * DAY;
    settle(&mut fleet);
    let renewed = |fleet: &Fleet| ALL.iter().filter(|id| fleet.secrets.serials()[id] != before[id]).count();
    assert_eq!(renewed(&fleet), 1);
    fleet.secrets.now += 3_599;
    settle(&mut fleet);
    assert_eq!(renewed(&fleet), 1);
    fleet.secrets.now += 1;
    settle(&mut fleet);
    assert_eq!(renewed(&fleet), 2);
}

#[test]
fn a_person_can_ask_for_new_certificates_once() {
    let mut fleet = Fleet::settled(COMBINED);
    let before = fleet.secrets.serials();
    ask(&mut fleet, |connections| connections.certificates_renewed_at = Some("today".to_owned()));
    settle(&mut fleet);
    let after = fleet.secrets.serials();
    assert!(ALL.iter().all(|id| after[id] != before[id]));
    assert_eq!(fleet.restarts, Vec::<i32>::new());
    ask(&mut fleet, |connections| connections.certificate_days = Some(10));
    settle(&mut fleet);
    ask(&mut fleet, |connections| connections.certificates_renewed_at = None);
    settle(&mut fleet);
    assert_eq!(fleet.secrets.serials(), after);
    fleet.secrets.now += 60 * DAY;
    settle(&mut fleet);
    let certificate = &fleet.secrets.node(0).certificate;
    assert_eq!(certificate.not_after - certificate.not_before, 10 * DAY + CLOCK_SKEW_SECONDS);
}

#[test]
fn a_new_authority_signs_when_every_node_is_seen_to_trust_it_and_the_old_one_is_forgotten_last() {
    let mut fleet = Fleet::settled(COMBINED);
    let (old, before, pods) =
        (fleet.secrets.authority().current.subject.clone(), fleet.secrets.serials(), uids(&fleet));
    ask(&mut fleet, |connections| connections.authority_renewed_at = Some("today".to_owned()));
    fleet.secrets.slow = BTreeSet::from([2]);
    settle(&mut fleet);
    let new = fleet.secrets.authority().next.as_ref().unwrap().subject.clone();
    assert_ne!(old, new);
    assert_eq!(fleet.secrets.authority().current.subject, old, "it signs until the other one is trusted");
    assert_eq!((fleet.secrets.serials(), subjects(&fleet, 2)), (before.clone(), vec![old.as_str(), new.as_str()]));
    assert!(waits(&fleet).contains("node 2"), "{}", waits(&fleet));

    fleet.secrets.slow = BTreeSet::from([0]);
    settle(&mut fleet);
    assert_eq!(fleet.secrets.authority().current.subject, new);
    assert_eq!(fleet.secrets.node(0).certificate.issuer, new, "the first is signed");
    assert_eq!(fleet.secrets.node(1).certificate.issuer, old, "and the others when it shows that");
    assert_eq!(subjects(&fleet, 1).len(), 2);

    fleet.secrets.slow.clear();
    settle(&mut fleet);
    for id in ALL {
        assert_eq!(fleet.secrets.node(id).certificate.issuer, new);
        assert_eq!(subjects(&fleet, id), [new.as_str()], "nobody trusts the old one any more");
    }
    assert_eq!((uids(&fleet), fleet.reason()), (pods, Some(Reason::Ready)), "without a restart");
    let writes = fleet.writes;
    assert!(!fleet.reconcile());
    assert_eq!(fleet.writes, writes);
}

#[test]
fn an_authority_that_ended_before_all_trusted_it_is_followed_by_another() {
    let mut fleet = Fleet::settled(COMBINED);
    let old = fleet.secrets.authority().current.subject.clone();
    ask(&mut fleet, |connections| {
        connections.authority_days = Some(1);
        connections.authority_renewed_at = Some("today".to_owned());
    });
    fleet.secrets.slow = BTreeSet::from([2]);
    settle(&mut fleet);
    let ended = fleet.secrets.authority().next.as_ref().unwrap().subject.clone();
    fleet.secrets.slow.clear();
    ask(&mut fleet, |connections| connections.authority_days = None);
    fleet.secrets.now += 2 * DAY;
    settle(&mut fleet);
    let new = fleet.secrets.authority().current.subject.clone();
    assert!(new != old && new != ended && fleet.secrets.authority().next.is_none(), "{:?}", fleet.secrets.writes);
    assert!(
        ALL.iter()
            .all(|id| subjects(&fleet, *id) == [new.as_str()] && fleet.secrets.node(*id).certificate.issuer == new)
    );
    assert_eq!((fleet.reason(), waits(&fleet)), (Some(Reason::Ready), String::new()));
}

#[test]
fn in_seven_years_nobody_notices_that_anything_was_renewed() {
    let mut fleet = Fleet::settled(COMBINED);
    let pods = uids(&fleet);
    let mut authorities = BTreeSet::new();
    let mut serials = BTreeSet::new();
    for _ in 0..7 * 365 / 5 {
        fleet.secrets.now += 5 * DAY;
        settle(&mut fleet);
        authorities.insert(fleet.secrets.authority().current.subject.clone());
        serials.extend(fleet.secrets.serials().into_values());
    }
    assert_eq!(authorities.len(), 3, "each serves two thirds of five years");
    assert!((100..200).contains(&serials.len()), "{} certificates for three nodes", serials.len());
    assert_eq!((uids(&fleet), fleet.reason()), (pods, Some(Reason::Ready)));
}

#[test]
fn what_has_ended_while_the_operator_was_away_is_made_anew_at_once() {
    for (days, authorities) in [(100, 1), (2_000, 2)] {
        let mut fleet = Fleet::settled(COMBINED);
        let (first, pods) = (fleet.secrets.authority().current.subject.clone(), uids(&fleet));
        let writes = fleet.secrets.writes.len();
        fleet.secrets.now += days * DAY;
        assert!(fleet.secrets.quarrel(&ALL).is_some());
        fleet.settle();
        assert_eq!(fleet.secrets.quarrel(&ALL), None, "{:?}", fleet.secrets.writes);
        assert!(fleet.secrets.writes.len() - writes <= 3, "all of them together: {:?}", fleet.secrets.writes);
        assert_eq!(fleet.secrets.authority().current.subject == first, authorities == 1);
        assert_eq!((uids(&fleet), fleet.reason()), (pods, Some(Reason::Ready)));
    }
}

#[test]
fn a_deleted_secret_is_made_again_and_nobody_loses_anybody() {
    let mut fleet = Fleet::settled(COMBINED);
    let pods = uids(&fleet);
    fleet.secrets.seen.nodes.remove(&1);
    settle(&mut fleet);
    assert_eq!(fleet.secrets.seen.nodes.len(), 3);
    let old = fleet.secrets.authority().current.subject.clone();
    fleet.secrets.seen.authority = None;
    fleet.secrets.slow = BTreeSet::from([1]);
    settle(&mut fleet);
    assert_eq!(subjects(&fleet, 0).len(), 2, "the lost authority goes on being trusted");
    assert!(
        ALL.iter().all(|id| fleet.secrets.node(*id).certificate.issuer == old),
        "node 1 does not trust another yet"
    );
    fleet.secrets.slow.clear();
    settle(&mut fleet);
    assert!(ALL.iter().all(|id| fleet.secrets.node(*id).certificate.issuer != old && subjects(&fleet, *id).len() == 1));
    assert_eq!((uids(&fleet), fleet.reason()), (pods, Some(Reason::Ready)));
}

#[test]
fn an_authority_that_cannot_be_read_is_never_replaced_without_a_person() {
    let mut fleet = Fleet::settled(COMBINED);
    let good = fleet.secrets.seen.authority.clone();
    fleet.secrets.seen.authority.as_mut().unwrap().content = Err("it has no key".to_owned());
    let bad = fleet.secrets.seen.authority.clone();
    fleet.secrets.now += 61 * DAY;
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::AuthorityUnusable));
    assert!(fleet.message().contains("demo-authority") && fleet.message().contains("delete it"), "{}", fleet.message());
    assert_eq!(fleet.secrets.seen.authority, bad);
    fleet.secrets.seen.authority = good;
    settle(&mut fleet);
    assert_eq!(fleet.reason(), Some(Reason::Ready));
}

#[test]
fn certificates_are_renewed_whatever_else_the_cluster_waits_for() {
    for reason in [Reason::InvalidConfig, Reason::DiskLost, Reason::NodeRemovalRefused] {
        let trouble = |fleet: &mut Fleet| match reason {
            Reason::InvalidConfig => {
                fleet.spec(|cluster| drop(cluster.spec.config.insert("node.id".to_owned(), ConfigValue::Integer(7))));
            }
            Reason::DiskLost => fleet.wipe(1),
            _ => fleet.spec(|cluster| cluster.spec.node_pools[0].replicas = Some(2)),
        };
        let mut fleet = Fleet::settled(COMBINED);
        trouble(&mut fleet);
        fleet.settle();
        assert_eq!(fleet.reason(), Some(reason));
        let before = fleet.secrets.serials();
        fleet.secrets.now += 60 * DAY;
        settle(&mut fleet);
        let renewed = ALL.iter().filter(|id| fleet.secrets.serials()[id] != before[id]).count();
        assert!(renewed >= 2, "{reason:?}: {:?}", fleet.secrets.writes);
        assert_eq!(fleet.reason(), Some(reason), "and what is the matter goes on being said");
    }
}

#[test]
fn certificates_are_renewed_although_kubernetes_refuses_the_step_that_comes_next() {
    for refused in [Kind::StatefulSet, Kind::Service] {
        let mut fleet = Fleet::settled(COMBINED);
        fleet.refuses = Some(refused);
        fleet.spec(|cluster| cluster.spec.restarted_at = Some("now".to_owned()));
        fleet.objects.get_mut(&(Kind::Service, "demo-nodes".to_owned())).unwrap()["spec"]["ports"] = Value::Null;
        settle(&mut fleet);
        assert!(fleet.last.as_ref().unwrap().step.is_some(), "it is tried again and again");
        let before = fleet.secrets.serials();
        fleet.secrets.now += 60 * DAY;
        settle(&mut fleet);
        let now = fleet.secrets.serials();
        assert!(ALL.iter().all(|id| now[id] != before[id]), "{refused:?}: {:?}", fleet.secrets.writes);
        // What nodes cannot start without is made again too.
        fleet.secrets.seen.nodes.remove(&1);
        settle(&mut fleet);
        assert!(fleet.secrets.seen.nodes.contains_key(&1), "{refused:?}");
        fleet.refuses = None;
        fleet.settle();
        assert_eq!((fleet.reason(), fleet.restarts.len()), (Some(Reason::Ready), 3));
    }
}

#[test]
fn secrets_of_a_deleted_kafkacluster_are_waited_for_and_not_taken() {
    let mut fleet = Fleet::settled(COMBINED);
    fleet.cluster.metadata.uid = Some("another".to_owned());
    let before = fleet.secrets.seen.clone();
    fleet.settle();
    assert_eq!((fleet.reason(), &fleet.secrets.seen), (Some(Reason::Terminating), &before), "{}", fleet.message());
}

/// What can happen to certificates.
#[derive(Debug, Clone, Copy)]
enum Event {
    Reconcile,
    /// The kubelets of these nodes come to their Secrets.
    Kubelets(u8),
    AskCertificates(u8),
    AskAuthority(u8),
    KillPod(i32),
    /// Somebody deletes a node's Secret, unless another one is missing: what nobody has any more nobody can trust.
    DeleteNodeSecret(i32),
    DeleteAuthoritySecret,
    Restart(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Reconcile),
        8 => any::<u8>().prop_map(Event::Kubelets),
        1 => any::<u8>().prop_map(Event::AskCertificates),
        1 => any::<u8>().prop_map(Event::AskAuthority),
        1 => (0..3_i32).prop_map(Event::KillPod),
        1 => (0..3_i32).prop_map(Event::DeleteNodeSecret),
        1 => Just(Event::DeleteAuthoritySecret),
        1 => any::<u8>().prop_map(Event::Restart),
    ]
}

fn happen(fleet: &mut Fleet, event: Event) {
    match event {
        Event::Reconcile => drop(fleet.reconcile()),
        Event::Kubelets(mask) => {
            fleet.secrets.slow = ALL.into_iter().filter(|id| mask & (1_u8 << id) == 0).collect();
            fleet.kubelet();
            fleet.catch_up();
        }
        Event::AskCertificates(nonce) => {
            ask(fleet, |connections| connections.certificates_renewed_at = Some(nonce.to_string()));
        }
        Event::AskAuthority(nonce) => {
            ask(fleet, |connections| connections.authority_renewed_at = Some(nonce.to_string()));
        }
        Event::KillPod(id) => fleet.kill(id),
        Event::DeleteNodeSecret(id) => {
            if fleet.secrets.seen.nodes.len() == ALL.len() {
                fleet.secrets.seen.nodes.remove(&id);
            }
        }
        Event::DeleteAuthoritySecret => fleet.secrets.seen.authority = None,
        Event::Restart(nonce) => fleet.spec(|cluster| cluster.spec.restarted_at = Some(nonce.to_string())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_two_nodes_that_run_distrust_each_other_and_all_comes_to_rest(
        events in prop::collection::vec(event(), 1..150)
    ) {
        let mut fleet = Fleet::settled(COMBINED);
        for event in events {
            happen(&mut fleet, event);
            prop_assert_eq!(fleet.secrets.quarrel(&running(&fleet)), None, "{:?}", fleet.secrets.writes);
        }
        fleet.secrets.slow.clear();
        settle(&mut fleet);
        prop_assert_eq!(fleet.reason(), Some(Reason::Ready), "{:?}", fleet.last);
        prop_assert_eq!(fleet.last.as_ref().unwrap().renewal.clone(), None);
        prop_assert!(fleet.secrets.authority().next.is_none());
        let settled = ALL.iter().all(|id| subjects(&fleet, *id) == [fleet.secrets.authority().current.subject.as_str()]);
        prop_assert!(settled, "{:?}", fleet.secrets.seen);
    }
}
