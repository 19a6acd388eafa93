//! Clusters of Apache's nodes and ours: voters of both kinds, leaders of both kinds, held, stopped and killed back and forth under the
//! load of idempotent producers, and static quorums that become dynamic ones meanwhile; and an Apache cluster that becomes ours node by
//! node on the same directories, and goes back. What strangers say to a voter is answered alike by both.
//!
//! No acknowledged record is lost, doubled or out of order; replicas have the same bytes; all nodes have the same metadata, as Apache
//! reads it. `GREGOR_COMPAT=full` tries more clusters for longer, each time others; every run prints its seed, and
//! `GREGOR_COMPAT_SEED` repeats it, but for what the machine's own timing decides; `GREGOR_COMPAT_KEEP=1` leaves the folders where they
//! are.

mod cluster;
mod eligible;
mod images;
mod replicas;
mod strangers;
mod trial;

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use gregor_apache::{Jars, Release, jars};
use gregor_compat::Chance;

use crate::{
    cluster::{Kind, Plan, Quorum, Role},
    trial::{IN_FLIGHT, ONE_IN_FLIGHT, Trial},
};

/// The release that has tools, and what it is formatted for: metadata.version 30.
pub const OF_TOOLS: (&str, &str) = (Release::COMPLETE, "4.3-IV0");
/// The newest broker, and what it is formatted for: metadata.version 33.
const NEWEST: (&str, &str) = (Release::NEWEST, "4.4-IV2");

/// After each kind was made to lead the quorum, which takes three kills each.
const ROUNDS: u32 = 2;
const ROUNDS_IN_FULL: u32 = 24;

/// One cluster at a time: two of them would only starve each other.
static ALONE: Mutex<()> = Mutex::new(());

/// Nodes that have both roles.
fn combined(kinds: &[Kind]) -> Vec<(Role, Kind)> {
    kinds.iter().map(|kind| (Role::Both, *kind)).collect()
}

fn is_full() -> bool {
    std::env::var("GREGOR_COMPAT").is_ok_and(|kind| kind == "full")
}

/// Jars of a release: with its tools, where they were released.
fn release_of((version, release): (&str, &'static str)) -> Result<(Jars, &'static str)> {
    let wanted = if version == Release::COMPLETE { Release::complete(version) } else { Release::broker(version) };
    Ok((jars(&wanted)?, release))
}

/// Strikes nodes of such a cluster back and forth, with controllers of both kinds leading the quorum, and looks at what is left.
fn survives(nodes: Vec<(Role, Kind)>, quorum: Quorum, of: (&str, &'static str), rounds: u32) -> Result<()> {
    let tools = jars(&Release::complete(Release::COMPLETE))?;
    let (jars, release) = release_of(of)?;
    let chance = Chance::from_environment(is_full())?;
    let mut trial = Trial::begin(Plan { nodes, quorum, jars, release }, ONE_IN_FLIGHT, &tools, chance)?;
    trial.have_leaders_of_both_kinds()?;
    trial.have_lead(Kind::Gregor)?;
    trial.have_lead(Kind::Apache)?;
    trial.strike_back_and_forth(0..rounds / 2)?;
    if quorum == Quorum::Static {
        trial.upgrade_quorum()?;
    }
    trial.strike_back_and_forth(rounds / 2..rounds)?;
    trial.look()
}

/// Load on a cluster that such nodes are, with leaders of both kinds and nobody killed, and a look at what came of it.
fn serves(nodes: Vec<(Role, Kind)>, of: (&str, &'static str)) -> Result<()> {
    let tools = jars(&Release::complete(Release::COMPLETE))?;
    let (jars, release) = release_of(of)?;
    let chance = Chance::from_environment(is_full())?;
    let mut trial = Trial::begin(Plan { nodes, quorum: Quorum::Static, jars, release }, IN_FLIGHT, &tools, chance)?;
    trial.have_leaders_of_both_kinds()?;
    trial.goes_on()?;
    trial.look()
}

#[test]
fn brokers_of_both_kinds_have_replicas_of_each_others_partitions_whoever_is_the_controller() -> Result<()> {
    use Kind::{Apache, Gregor};
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let brokers = [(Role::Broker, Apache), (Role::Broker, Gregor)];
    for (controller, of) in [(Apache, OF_TOOLS), (Gregor, NEWEST)] {
        serves([&[(Role::Controller, controller)], &brokers[..]].concat(), of)?;
    }
    Ok(())
}

#[test]
fn strangers_are_answered_alike_and_change_the_same() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for of in if is_full() { &[OF_TOOLS, NEWEST][..] } else { &[OF_TOOLS] } {
        let (jars, release) = release_of(*of)?;
        strangers::are_answered_alike(&jars, release)?;
    }
    Ok(())
}

#[test]
fn who_may_lead_a_partition_next_is_the_same_whichever_kind_is_the_controller() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let tools = jars(&Release::complete(Release::COMPLETE))?;
    for (controller, of) in [(Kind::Apache, OF_TOOLS), (Kind::Gregor, NEWEST)] {
        let (jars, release) = release_of(of)?;
        eligible::plays(controller, &tools, jars, release)?;
    }
    Ok(())
}

#[test]
fn a_static_quorum_and_a_cluster_of_both_kinds_lose_nothing_whoever_is_killed() -> Result<()> {
    use Kind::{Apache, Gregor};
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rounds = if is_full() { ROUNDS_IN_FULL } else { ROUNDS };
    survives(combined(&[Apache, Apache, Gregor]), Quorum::Static, OF_TOOLS, rounds)?;
    if is_full() {
        survives(combined(&[Gregor, Gregor, Apache]), Quorum::Static, NEWEST, rounds)?;
        let apart = [Apache, Gregor, Apache].map(|kind| (Role::Controller, kind)).into_iter();
        let apart = apart.chain([Gregor, Apache, Gregor].map(|kind| (Role::Broker, kind))).collect();
        survives(apart, Quorum::Static, NEWEST, rounds)?;
    }
    Ok(())
}

#[test]
fn a_dynamic_quorum_that_both_kinds_have_joined_loses_nothing_whoever_is_killed() -> Result<()> {
    use Kind::{Apache, Gregor};
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rounds = if is_full() { ROUNDS_IN_FULL } else { ROUNDS };
    survives(combined(&[Gregor, Gregor, Apache]), Quorum::Joined, NEWEST, rounds)?;
    if is_full() {
        survives(combined(&[Apache, Apache, Gregor]), Quorum::Joined, OF_TOOLS, rounds)?;
        survives(combined(&[Apache, Gregor, Gregor]), Quorum::Dynamic, OF_TOOLS, rounds)?;
        let apart = [Gregor, Apache, Gregor].map(|kind| (Role::Controller, kind)).into_iter();
        let apart = apart.chain([Apache, Gregor, Apache].map(|kind| (Role::Broker, kind))).collect();
        survives(apart, Quorum::Dynamic, NEWEST, rounds)?;
    }
    Ok(())
}

#[test]
fn an_apache_cluster_becomes_ours_node_by_node_and_goes_back() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let order = [1, 2, 3];
    swap(&[Role::Both; 3], &order, Quorum::Static, OF_TOOLS)?;
    if is_full() {
        let roles = [[Role::Controller; 3], [Role::Broker; 3]].concat();
        // Brokers come first both times: so all brokers are ours in a quorum that is all Apache's, and the other way round.
        let order = [4, 5, 6, 1, 2, 3];
        swap(&roles, &order, Quorum::Static, OF_TOOLS)?;
        swap(&roles, &order, Quorum::Dynamic, NEWEST)?;
    }
    Ok(())
}

/// Nodes of Apache's become ours on the same directories under load, and go back.
fn swap(roles: &[Role], order: &[u8], quorum: Quorum, of: (&str, &'static str)) -> Result<()> {
    let tools = jars(&Release::complete(Release::COMPLETE))?;
    let (jars, release) = release_of(of)?;
    let nodes = roles.iter().map(|role| (*role, Kind::Apache)).collect();
    let chance = Chance::from_environment(is_full())?;
    let mut trial = Trial::begin(Plan { nodes, quorum, jars, release }, IN_FLIGHT, &tools, chance)?;
    for id in order {
        trial.turn(*id)?;
    }
    println!("  all of it is ours");
    trial.look()?;
    trial.go_on()?;
    for id in order {
        trial.turn(*id)?;
    }
    println!("  all of it is Apache's again");
    trial.look()
}
