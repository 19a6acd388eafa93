//! Who leads: when brokers come and go, when a user asks, and when the preferred leader is back.

use std::collections::BTreeMap;

use gregor_messages::{
    ElectLeadersRequest, ElectLeadersResponse,
    elect_leaders_response::{PartitionResult, ReplicaElectionResult},
};
use gregor_metadata::{Image, Partition};
use gregor_state_records::metadata::{MetadataRecord, PartitionChangeRecord};
use gregor_types::{BrokerId, ErrorCode, KString, PartitionIndex, TopicId, planted::planted};

use crate::{
    Refusal, configs, effective,
    partition_change::{Election, NO_LEADER_CHANGE, PartitionChange, Rules},
    plan::Plan,
    refusal::{code_of, text_of},
};

/// How many leaders change at once when nobody asked for it (`MAX_ELECTIONS_PER_IMBALANCE`).
const MAX_ELECTIONS_PER_CHECK: usize = 1_000;

/// Takes a broker out of the in-sync replicas of the partitions that `concerned` chooses, and away from leading them.
pub(crate) fn leave(
    plan: &mut Plan<'_>,
    broker: BrokerId,
    concerned: impl Fn(TopicId, PartitionIndex, &Partition) -> bool,
) {
    let partitions = collect(&plan.image, |topic, index, partition| {
        let involved = partition.leader == Some(broker) || partition.isr.contains(&broker);
        involved && concerned(topic, index, partition)
    });
    change_each(plan, &partitions, &Move { leaving: Some(broker), ..Move::default() });
}

/// The same for a broker that may have lost what it had: it is no eligible leader replica any more either (KIP-966).
pub(crate) fn lose(plan: &mut Plan<'_>, broker: BrokerId) {
    let partitions = collect(&plan.image, |_, _, partition| {
        partition.leader == Some(broker) || partition.isr.contains(&broker) || partition.elr.contains(&broker)
    });
    change_each(plan, &partitions, &Move { leaving: Some(broker), lost: Some(broker), ..Move::default() });
}

/// Lets a broker that has just been unfenced lead what has no leader.
pub(crate) fn join(plan: &mut Plan<'_>, broker: BrokerId) {
    let leaderless =
        collect(&plan.image, |_, _, partition| partition.leader.is_none() && partition.replicas.contains(&broker));
    change_each(plan, &leaderless, &Move { joining: Some(broker), ..Move::default() });
}

/// Has somebody lead those of these partitions that nobody leads, if anybody can.
pub(crate) fn lead(plan: &mut Plan<'_>, partitions: &[(TopicId, PartitionIndex)]) {
    let image = plan.image.clone();
    let is_leaderless = |(topic, index): &(TopicId, PartitionIndex)| {
        image.topics().partition(*topic, *index).is_some_and(|partition| partition.leader.is_none())
    };
    let leaderless: Vec<_> = partitions.iter().copied().filter(is_leaderless).collect();
    change_each(plan, &leaderless, &Move::default());
}

/// Takes back for partitions that nobody leads that their eligible leader replicas were cleared, those of one topic, or of all where the
/// name is empty: nothing is acknowledged meanwhile, so whoever had all still has, however many have to be in sync (KIP-966). Without
/// them nobody could lead ever again.
pub(crate) fn restore_eligible(plan: &mut Plan<'_>, before: &Image, name: &str) {
    let topics: Vec<_> = if name.is_empty() {
        before.topics().iter().collect()
    } else {
        before.topics().by_name(name).into_iter().collect()
    };
    let numbers = |brokers: &[BrokerId]| Some(brokers.iter().map(|broker| broker.value()).collect());
    for topic in topics {
        for (index, partition) in topic.partitions() {
            let is_cleared = !partition.elr.is_empty() || !partition.last_known_elr.is_empty();
            if partition.leader.is_none() && is_cleared {
                plan.push(MetadataRecord::PartitionChange(PartitionChangeRecord {
                    partition_id: index.value(),
                    topic_id: topic.id,
                    leader: NO_LEADER_CHANGE,
                    leader_recovery_state: -1,
                    eligible_leader_replicas: numbers(&partition.elr),
                    last_known_elr: numbers(&partition.last_known_elr),
                    ..Default::default()
                }));
            }
        }
    }
}

/// Has partitions that are led know of no eligible leader replicas, as nobody keeps those up to date any more (KIP-966). One that is
/// not led keeps them: any of them may lead next, and nothing is acknowledged until then.
pub(crate) fn forget_eligible(plan: &mut Plan<'_>) {
    let known = collect(&plan.image, |_, _, partition| partition.leader.is_some() && !partition.elr.is_empty());
    change_each(plan, &known, &Move::default());
}

/// Who may lead a partition: a broker that is up, and whose replica is not in a log directory that is offline (KIP-858).
pub(crate) fn acceptable<'a>(image: &'a Image, partition: &'a Partition) -> impl Fn(BrokerId) -> bool + 'a {
    |broker| image.cluster().is_active(broker) && is_directory_online(image, partition, broker)
}

fn is_directory_online(image: &Image, partition: &Partition, broker: BrokerId) -> bool {
    let registered = image.cluster().broker(broker).zip(partition.directory_of(broker));
    registered.is_some_and(|(broker, directory)| broker.has_online_directory(directory))
}

/// Whether the broker leads anything.
pub(crate) fn leads_any(image: &Image, broker: BrokerId) -> bool {
    image.topics().iter().any(|topic| topic.partitions().any(|(_, partition)| partition.leader == Some(broker)))
}

/// Gives leadership back to preferred leaders that are in sync again. Returns whether there may be more to do than one batch takes.
pub(crate) fn prefer(plan: &mut Plan<'_>) -> bool {
    let imbalanced = collect(&plan.image, |_, _, partition| {
        partition.leader.is_some() && partition.leader != partition.preferred_leader()
    });
    elect_some(plan, &imbalanced, Election::Preferred)
}

/// Elects a leader for what has none, also from replicas that were not in sync where the configuration allows it. Returns whether
/// there may be more to do than one batch takes.
pub(crate) fn rescue(plan: &mut Plan<'_>) -> bool {
    let leaderless = collect(&plan.image, |_, _, partition| partition.leader.is_none());
    elect_some(plan, &leaderless, Election::Online)
}

fn elect_some(plan: &mut Plan<'_>, partitions: &[(TopicId, PartitionIndex)], election: Election) -> bool {
    let image = plan.image.clone();
    let mut elected = 0;
    let mut known = RulesOfTopics::default();
    for &(topic, index) in partitions {
        let Some(partition) = image.topics().partition(topic, index) else { continue };
        let rules = known.of(plan, topic);
        let election = if rules.unclean && election == Election::Online { Election::Unclean } else { election };
        let may_lead = acceptable(&image, partition);
        let mut change = PartitionChange::new(partition, &may_lead, rules);
        change.election = election;
        if let Some(record) = change.build(topic, index, image.cluster()) {
            plan.push(MetadataRecord::PartitionChange(record));
            elected += 1;
        }
        if elected == MAX_ELECTIONS_PER_CHECK {
            return true;
        }
    }
    false
}

/// Elects leaders as a user asked (`ReplicationControlManager.electLeaders`).
pub(crate) fn elect(plan: &mut Plan<'_>, request: &ElectLeadersRequest, version: i16) -> ElectLeadersResponse {
    let election = match request.election_type {
        _ if version == 0 => Election::Preferred,
        0 => Election::Preferred,
        1 => Election::Unclean,
        other => {
            let refusal = Refusal::new(ErrorCode::InvalidRequest, format!("Unknown election type {other}"));
            return refused(request, &refusal);
        }
    };
    let mut results: BTreeMap<KString, Vec<PartitionResult>> = BTreeMap::new();
    let mut add = |topic: &KString, partition_id: i32, result: &Result<(), Refusal>| {
        results.entry(topic.clone()).or_default().push(PartitionResult {
            partition_id,
            error_code: code_of(result),
            error_message: text_of(result),
            ..Default::default()
        });
    };
    if let Some(topics) = &request.topic_partitions {
        for topic in topics {
            for partition in &topic.partitions {
                let result = elect_one(plan, &topic.topic, PartitionIndex(*partition), election);
                add(&topic.topic, *partition, &result);
            }
        }
    } else {
        let image = plan.image.clone();
        for topic in image.topics().iter() {
            for (index, _) in topic.partitions() {
                let result = elect_one(plan, &topic.name, index, election);
                // Asked about everything, the answer names only what there was to do.
                if code_of(&result) != ErrorCode::ElectionNotNeeded as i16 {
                    add(&topic.name, index.value(), &result);
                }
            }
        }
    }
    let results = results.into_iter().map(|(topic, partition_result)| ReplicaElectionResult {
        topic,
        partition_result,
        ..Default::default()
    });
    ElectLeadersResponse { replica_election_results: results.collect(), ..Default::default() }
}

/// Refuses all that was asked for one reason. Each partition says so too, as version 0 has no other place for an error
/// (`ElectLeadersRequest.getErrorResponse`).
pub(crate) fn refused(request: &ElectLeadersRequest, refusal: &Refusal) -> ElectLeadersResponse {
    let error_code = refusal.number();
    let refuse = |partition_id: &i32| PartitionResult {
        partition_id: *partition_id,
        error_code,
        error_message: refusal.text(),
        ..Default::default()
    };
    let topics = request.topic_partitions.iter().flatten().map(|topic| ReplicaElectionResult {
        topic: topic.topic.clone(),
        partition_result: topic.partitions.iter().map(refuse).collect(),
        ..Default::default()
    });
    ElectLeadersResponse { error_code, replica_election_results: topics.collect(), ..Default::default() }
}

fn elect_one(plan: &mut Plan<'_>, topic: &str, index: PartitionIndex, election: Election) -> Result<(), Refusal> {
    let image = plan.image.clone();
    let unknown = |what: String| Refusal::new(ErrorCode::UnknownTopicOrPartition, what);
    let topic = image.topics().by_name(topic).ok_or_else(|| unknown(format!("No such topic as {topic}")))?;
    let partition =
        topic.partition(index).ok_or_else(|| unknown(format!("No such partition as {}-{index}", topic.name)))?;
    let needless = match election {
        Election::Preferred => partition.leader == partition.preferred_leader(),
        _ => partition.leader.is_some(),
    };
    if needless {
        return Err(Refusal::new(ErrorCode::ElectionNotNeeded, "Leader election not needed for topic partition."));
    }
    let may_lead = acceptable(&image, partition);
    let mut change = PartitionChange::new(partition, &may_lead, rules_of(plan, topic.id));
    change.election = election;
    let record = change.build(topic.id, index, image.cluster()).filter(|record| record.leader >= 0);
    match record {
        Some(record)
            if election != Election::Preferred || Some(BrokerId(record.leader)) == partition.preferred_leader() =>
        {
            let mark = plan.mark();
            plan.push(MetadataRecord::PartitionChange(record));
            plan.keep(mark, Ok(()))
        }
        _ if election == Election::Preferred => {
            Err(Refusal::new(ErrorCode::PreferredLeaderNotAvailable, "The preferred leader was not available."))
        }
        _ => Err(Refusal::new(
            ErrorCode::EligibleLeadersNotAvailable,
            "Eligible topic partition leaders are not available.",
        )),
    }
}

/// What happens to brokers while partitions change.
#[derive(Debug, Clone, Copy, Default)]
struct Move {
    /// Leaves the in-sync replicas, and leads nothing.
    leaving: Option<BrokerId>,
    /// May lead, though the image does not say so yet.
    joining: Option<BrokerId>,
    /// May have lost what it had.
    lost: Option<BrokerId>,
}

fn change_each(plan: &mut Plan<'_>, partitions: &[(TopicId, PartitionIndex)], brokers: &Move) {
    let Move { leaving, joining, lost } = *brokers;
    let image = plan.image.clone();
    let mut known = RulesOfTopics::default();
    for &(topic, index) in partitions {
        let Some(partition) = image.topics().partition(topic, index) else { continue };
        let may_lead = |broker| {
            let is_up = joining == Some(broker) || image.cluster().is_active(broker) || planted("fenced-elected");
            is_up && leaving != Some(broker) && is_directory_online(&image, partition, broker)
        };
        let mut change = PartitionChange::new(partition, &may_lead, known.of(plan, topic));
        change.isr.retain(|replica| Some(*replica) != leaving);
        change.lost = lost;
        if change.allows_unclean() || planted("unclean-election") {
            change.election = Election::Unclean;
        }
        if let Some(record) = change.build(topic, index, image.cluster()) {
            plan.push(MetadataRecord::PartitionChange(record));
        }
    }
}

/// What the configuration says about changes of a topic's partitions.
pub(crate) fn rules_of(plan: &Plan<'_>, topic: TopicId) -> Rules {
    let version = plan.version();
    let Some(topic) = plan.image.topics().by_id(topic) else { return Rules { version, unclean: false, min_isr: None } };
    let value = |key| {
        let config = effective::topic_config(&plan.image, &plan.config.broker, &topic.name, key);
        config.and_then(|config| config.value)
    };
    let unclean = value(configs::UNCLEAN_ELECTION).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let min_isr = plan.image.features().has_eligible_leader_replicas().then(|| {
        let replicas = topic.partition(PartitionIndex(0)).map_or(1, |partition| partition.replicas.len());
        let wanted = value("min.insync.replicas").and_then(|value| value.trim().parse::<usize>().ok()).unwrap_or(1);
        wanted.min(replicas)
    });
    Rules { version, unclean, min_isr }
}

/// The rules of the topic that was asked for last: partitions come topic by topic.
#[derive(Debug, Default)]
struct RulesOfTopics(Option<(TopicId, Rules)>);

impl RulesOfTopics {
    fn of(&mut self, plan: &Plan<'_>, topic: TopicId) -> Rules {
        match self.0 {
            Some((known, rules)) if known == topic => rules,
            _ => self.0.insert((topic, rules_of(plan, topic))).1,
        }
    }
}

fn collect(
    image: &Image,
    concerned: impl Fn(TopicId, PartitionIndex, &Partition) -> bool,
) -> Vec<(TopicId, PartitionIndex)> {
    let all = image
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions().map(move |(index, partition)| (topic.id, index, partition)));
    all.filter(|(topic, index, partition)| concerned(*topic, *index, partition))
        .map(|(topic, index, _)| (topic, index))
        .collect()
}
