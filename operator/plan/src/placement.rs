//! Which node is in which pool: the ids that the identity has recorded, matched with the pools of the manifest. Called by the
//! cluster's plan; it gives out new ids and never takes one back.
//!
//! A node keeps its id and its roles for ever. A pool that got another name is recognized by nodes that lost theirs.

use std::collections::{BTreeMap, BTreeSet};

use crate::identity::{Identity, NodeIdentity, Placement};
use crate::progress::Reason;
use crate::validate::{Invalid, Node, PoolNodes, ValidCluster, ValidPool, invalid, roles_text};

/// Every node that the manifest asks for.
#[derive(Debug, Clone)]
pub struct Layout {
    /// By id.
    pub nodes: BTreeMap<i32, Node>,
    /// Nodes that the identity does not know yet.
    pub new: BTreeMap<i32, Placement>,
    /// Nodes whose pool the identity knows by another name, or not at all.
    pub moved: BTreeMap<i32, Placement>,
}

impl Layout {
    /// Whether the cluster has one node, which is all of it.
    pub fn is_single(&self) -> bool {
        self.nodes.len() == 1
    }

    /// Those that vote.
    pub fn controllers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.is_controller())
    }

    /// Those that hold partitions.
    pub fn brokers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.is_broker())
    }
}

/// The node whose disk starts the quorum of a new cluster, and where it belongs.
pub fn first(cluster: &ValidCluster) -> Result<(i32, Option<Placement>), Invalid> {
    let layout = place(cluster, &BTreeMap::new())?;
    let Some(first) = layout.controllers().next() else {
        return Err(invalid(
            Reason::InvalidSpec,
            "no node would hold the metadata: write a pool with roles: [controller]",
        ));
    };
    let placement = (!layout.is_single()).then(|| Placement { pool: first.pool.clone(), roles: first.roles.clone() });
    Ok((first.id, placement))
}

/// The layout of a cluster that has an identity.
pub fn layout(cluster: &ValidCluster, identity: &Identity) -> Result<Layout, Invalid> {
    place(cluster, &identity.nodes)
}

fn place(cluster: &ValidCluster, recorded: &BTreeMap<i32, NodeIdentity>) -> Result<Layout, Invalid> {
    let mut assigned: BTreeMap<i32, &ValidPool> = BTreeMap::new();
    for pool in &cluster.pools {
        if let PoolNodes::Ids(ids) = &pool.nodes {
            assigned.extend(ids.iter().map(|id| (*id, pool)));
        }
    }
    let pool_of = |node: &NodeIdentity| node.placement.as_ref().map(|placement| placement.pool.clone());
    for pool in &cluster.pools {
        let PoolNodes::Count(count) = pool.nodes else { continue };
        let own: Vec<i32> = recorded
            .iter()
            .filter(|(id, node)| !assigned.contains_key(*id) && pool_of(node).as_deref() == Some(pool.name.as_str()))
            .map(|(id, _)| *id)
            .take(count)
            .collect();
        assigned.extend(own.into_iter().map(|id| (id, pool)));
    }
    // Nodes whose pool is gone by its name: another pool that wants nodes of their kind is the same pool.
    let lives = |name: &str| cluster.pools.iter().any(|pool| pool.name == name);
    for pool in &cluster.pools {
        let missing = missing(pool, &assigned);
        let orphans: Vec<i32> = recorded
            .iter()
            .filter(|(id, node)| {
                !assigned.contains_key(*id)
                    && node.roles() == pool.roles
                    && pool_of(node).is_none_or(|name| !lives(&name))
            })
            .map(|(id, _)| *id)
            .take(missing)
            .collect();
        assigned.extend(orphans.into_iter().map(|id| (id, pool)));
    }
    for pool in &cluster.pools {
        for _ in 0..missing(pool, &assigned) {
            let taken = |id: &i32| assigned.contains_key(id) || recorded.contains_key(id);
            let Some(id) = (0..i32::MAX).find(|id| !taken(id)) else { break };
            assigned.insert(id, pool);
        }
    }
    check(&assigned, recorded)?;
    build(cluster, &assigned, recorded)
}

/// How many nodes a pool lacks whose ids are left to the operator.
fn missing(pool: &ValidPool, assigned: &BTreeMap<i32, &ValidPool>) -> usize {
    match pool.nodes {
        PoolNodes::Ids(_) => 0,
        PoolNodes::Count(count) => {
            count.saturating_sub(assigned.values().filter(|owner| owner.name == pool.name).count())
        }
    }
}

/// What the manifest would take away.
fn check(assigned: &BTreeMap<i32, &ValidPool>, recorded: &BTreeMap<i32, NodeIdentity>) -> Result<(), Invalid> {
    let left: BTreeSet<i32> = recorded.keys().filter(|id| !assigned.contains_key(*id)).copied().collect();
    let ids = left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !left.is_empty() && recorded.len() == 1 && assigned.len() == 1 {
        let message = format!(
            "the cluster's node has id {ids} and cannot get another: write nodeIds: [\"{ids}\"] or replicas: 1"
        );
        return Err(invalid(Reason::NodeIdChanged, message));
    }
    if !left.is_empty() {
        let message = format!(
            "the manifest has no place for the nodes {ids}, which may hold data, and this release takes no node away: raise replicas, or write their ids in nodeIds, of a pool with their roles"
        );
        return Err(invalid(Reason::NodeRemovalRefused, message));
    }
    for (id, pool) in assigned {
        let Some(node) = recorded.get(id) else { continue };
        let roles = node.roles();
        if roles != pool.roles {
            let message = format!(
                "node {id} has the roles {}, and this release gives no node others: write roles: [{0}] in pool {}",
                roles_text(&roles),
                pool.name
            );
            return Err(invalid(Reason::RolesChangeRefused, message));
        }
    }
    Ok(())
}

fn build(
    cluster: &ValidCluster,
    assigned: &BTreeMap<i32, &ValidPool>,
    recorded: &BTreeMap<i32, NodeIdentity>,
) -> Result<Layout, Invalid> {
    let single = assigned.len() == 1;
    let mut layout = Layout { nodes: BTreeMap::new(), new: BTreeMap::new(), moved: BTreeMap::new() };
    for (id, pool) in assigned {
        layout.nodes.insert(*id, cluster.node(*id, pool)?);
        let placement = Placement { pool: pool.name.clone(), roles: pool.roles.clone() };
        match recorded.get(id) {
            None => drop(layout.new.insert(*id, placement)),
            // The only node of a cluster needs no note of where it belongs.
            Some(node) if !single && node.placement.as_ref() != Some(&placement) => {
                layout.moved.insert(*id, placement);
            }
            Some(_) => {}
        }
    }
    Ok(layout)
}
