//! What the brokers of a cluster say about its quorum and its partitions. The manager fills it in; the plan asks it before it
//! takes anything away from the cluster.

/// A replica of the metadata that was level with the quorum's leader so long ago is behind: Kafka's
/// `controller.quorum.fetch.timeout.ms`, after which a follower gives its leader up.
pub const BEHIND_MAX_MS: i64 = 2_000;

/// The zero directory id, of voters of a static quorum.
const NO_DIRECTORY: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// What the brokers say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KafkaSeen {
    /// The metadata quorum. It is asked before the partitions.
    pub quorum: QuorumSeen,
    /// Partitions with a replica that is not in sync.
    pub under_replicated: Vec<PartitionSeen>,
}

/// The metadata quorum, as its leader describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuorumSeen {
    /// Who leads.
    pub leader: Option<i32>,
    /// The offset up to which the metadata is committed.
    pub high_watermark: i64,
    /// Who votes.
    pub voters: Vec<ReplicaSeen>,
    /// Who only reads: brokers, and controllers that do not vote yet.
    pub observers: Vec<ReplicaSeen>,
}

/// A replica of the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaSeen {
    /// The node.
    pub id: i32,
    /// The directory that holds it.
    pub directory_id: String,
    /// The end of its log.
    pub end_offset: i64,
    /// How long ago, for the leader, it was level with it.
    pub behind_ms: i64,
}

impl ReplicaSeen {
    /// Whether it follows the leader closely.
    pub fn is_caught_up(&self) -> bool {
        (0..=BEHIND_MAX_MS).contains(&self.behind_ms)
    }

    /// Whether it is known by its directory at all.
    pub fn has_directory(&self) -> bool {
        self.directory_id != NO_DIRECTORY
    }
}

impl QuorumSeen {
    /// Whether a node has everything that was committed when the leader was asked: only then its answer about partitions is
    /// not older than that.
    pub fn has_read_all(&self, id: i32) -> bool {
        self.voters
            .iter()
            .chain(&self.observers)
            .any(|replica| replica.id == id && replica.end_offset >= self.high_watermark)
    }

    /// Voters that are behind.
    pub fn lagging(&self) -> Vec<i32> {
        let mut ids: Vec<i32> =
            self.voters.iter().filter(|voter| !voter.is_caught_up()).map(|voter| voter.id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionSeen {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The brokers that hold it.
    pub replicas: Vec<i32>,
    /// Those that have all of it.
    pub in_sync: Vec<i32>,
}

impl PartitionSeen {
    /// Whether it would miss a replica beside that of this broker, if that went away.
    pub fn needs(&self, broker: i32) -> bool {
        self.replicas.contains(&broker)
            && self.replicas.iter().any(|replica| *replica != broker && !self.in_sync.contains(replica))
    }
}
