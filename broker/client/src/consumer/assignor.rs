//! The range assignor: each topic's partitions in a row, split among those who want the topic.
//!
//! Run by the member that the coordinator made leader of its group. Pure; the same as Kafka's `RangeAssignor` without racks.

use std::collections::{BTreeMap, BTreeSet};

use gregor_types::{KString, PartitionIndex, TopicPartition};

/// A member as the assignor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: KString,
    /// Static members are ordered by this, so that a restart changes nothing.
    pub(super) instance: Option<KString>,
    pub(super) topics: BTreeSet<KString>,
}

/// The partitions of each member.
pub(super) fn assign(
    members: &[Member],
    topics: &BTreeMap<KString, Vec<PartitionIndex>>,
) -> BTreeMap<KString, Vec<TopicPartition>> {
    let mut assignment: BTreeMap<KString, Vec<TopicPartition>> =
        members.iter().map(|member| (member.id.clone(), Vec::new())).collect();
    let mut ordered: Vec<&Member> = members.iter().collect();
    // Static members first by their names, then the others by their ids.
    ordered.sort_by_key(|member| (member.instance.is_none(), member.instance.clone(), member.id.clone()));
    for (topic, partitions) in topics {
        let takers: Vec<&&Member> = ordered.iter().filter(|member| member.topics.contains(topic)).collect();
        if takers.is_empty() {
            continue;
        }
        let each = partitions.len() / takers.len();
        let more = partitions.len() % takers.len();
        let mut rest = partitions.iter();
        for (at, member) in takers.into_iter().enumerate() {
            let count = each + usize::from(at < more);
            let taken = rest.by_ref().take(count).map(|index| TopicPartition::new(topic.clone(), *index));
            assignment.entry(member.id.clone()).or_default().extend(taken);
        }
    }
    assignment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, instance: Option<&str>, topics: &[&str]) -> Member {
        Member {
            id: id.into(),
            instance: instance.map(KString::from),
            topics: topics.iter().map(|topic| KString::from(*topic)).collect(),
        }
    }

    fn topics(counts: &[(&str, i32)]) -> BTreeMap<KString, Vec<PartitionIndex>> {
        counts.iter().map(|(name, count)| ((*name).into(), (0..*count).map(PartitionIndex).collect())).collect()
    }

    fn text(assignment: &BTreeMap<KString, Vec<TopicPartition>>) -> Vec<String> {
        let line = |(id, partitions): (&KString, &Vec<TopicPartition>)| {
            let partitions: Vec<_> = partitions.iter().map(ToString::to_string).collect();
            format!("{id}: {}", partitions.join(" "))
        };
        assignment.iter().map(line).collect()
    }

    #[test]
    fn the_first_members_get_one_partition_more() {
        let members = [member("b", None, &["t"]), member("a", None, &["t", "u"])];
        let assignment = assign(&members, &topics(&[("t", 3), ("u", 1), ("nobody", 9)]));
        assert_eq!(text(&assignment), ["a: t-0 t-1 u-0", "b: t-2"]);
    }

    #[test]
    fn static_members_come_first_and_keep_their_order() {
        let members = [member("a", None, &["t"]), member("z", Some("one"), &["t"]), member("y", Some("two"), &["t"])];
        assert_eq!(text(&assign(&members, &topics(&[("t", 4)]))), ["a: t-3", "y: t-2", "z: t-0 t-1"]);
    }
}
