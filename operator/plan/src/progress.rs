//! How far a reconcile is, in words, and the conditions made from it. Called by both plans.

use gregor_operator_api::condition::{self, Condition, ConditionStatus};

/// Why an object is as it is: the one word of a condition, an event or a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each name is its own explanation, and the message beside it is the sentence
pub enum Reason {
    Ready,
    // What passes by itself.
    Creating,
    Restarting,
    Starting,
    Recovering,
    Terminating,
    WaitingForPod,
    WaitingForClaim,
    Unschedulable,
    ImagePullFailed,
    NodeCrashing,
    FormatFailed,
    AddingNodes,
    ChangingVoters,
    WaitingForNodes,
    WaitingForReplicas,
    WaitingForQuorum,
    RackUnknown,
    ClusterNotFound,
    ClusterNotReady,
    ClusterUnreachable,
    TopicUpdating,
    TopicDeleting,
    Retrying,
    // What needs a person.
    InvalidSpec,
    InvalidConfig,
    InvalidPodTemplate,
    IdentityUnreadable,
    AuthorityUnusable,
    EncryptionChangeRefused,
    DomainChangeRefused,
    ForeignVolume,
    NodeIdChanged,
    NodeRemovalRefused,
    RolesChangeRefused,
    DiskLost,
    ForeignDisk,
    NameTaken,
    Rejected,
    NamespaceNotAllowed,
    TopicConflict,
    PartitionsDecreaseRefused,
    ReplicasChangeRefused,
}

impl Reason {
    /// The word as it stands in conditions.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Creating => "Creating",
            Self::Restarting => "Restarting",
            Self::Starting => "Starting",
            Self::Recovering => "Recovering",
            Self::Terminating => "Terminating",
            Self::WaitingForPod => "WaitingForPod",
            Self::WaitingForClaim => "WaitingForClaim",
            Self::Unschedulable => "Unschedulable",
            Self::ImagePullFailed => "ImagePullFailed",
            Self::NodeCrashing => "NodeCrashing",
            Self::FormatFailed => "FormatFailed",
            Self::AddingNodes => "AddingNodes",
            Self::ChangingVoters => "ChangingVoters",
            Self::WaitingForNodes => "WaitingForNodes",
            Self::WaitingForReplicas => "WaitingForReplicas",
            Self::WaitingForQuorum => "WaitingForQuorum",
            Self::RackUnknown => "RackUnknown",
            Self::ClusterNotFound => "ClusterNotFound",
            Self::ClusterNotReady => "ClusterNotReady",
            Self::ClusterUnreachable => "ClusterUnreachable",
            Self::TopicUpdating => "TopicUpdating",
            Self::TopicDeleting => "TopicDeleting",
            Self::Retrying => "Retrying",
            Self::InvalidSpec => "InvalidSpec",
            Self::InvalidConfig => "InvalidConfig",
            Self::InvalidPodTemplate => "InvalidPodTemplate",
            Self::IdentityUnreadable => "IdentityUnreadable",
            Self::AuthorityUnusable => "AuthorityUnusable",
            Self::EncryptionChangeRefused => "EncryptionChangeRefused",
            Self::DomainChangeRefused => "DomainChangeRefused",
            Self::ForeignVolume => "ForeignVolume",
            Self::NodeIdChanged => "NodeIdChanged",
            Self::NodeRemovalRefused => "NodeRemovalRefused",
            Self::RolesChangeRefused => "RolesChangeRefused",
            Self::DiskLost => "DiskLost",
            Self::ForeignDisk => "ForeignDisk",
            Self::NameTaken => "NameTaken",
            Self::Rejected => "Rejected",
            Self::NamespaceNotAllowed => "NamespaceNotAllowed",
            Self::TopicConflict => "TopicConflict",
            Self::PartitionsDecreaseRefused => "PartitionsDecreaseRefused",
            Self::ReplicasChangeRefused => "ReplicasChangeRefused",
        }
    }
}

/// How far an object is from what its manifest wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// There.
    Ready {
        /// A sentence.
        message: String,
    },
    /// On the way, or waiting for what comes by itself.
    Working {
        /// The word.
        reason: Reason,
        /// The sentence.
        message: String,
    },
    /// Standing still until a person changes something.
    Stalled {
        /// The word.
        reason: Reason,
        /// The sentence, which says what to do.
        message: String,
    },
}

impl Progress {
    /// Ready, with a sentence.
    pub fn ready(message: impl Into<String>) -> Self {
        Self::Ready { message: message.into() }
    }

    /// Working, with a word and a sentence.
    pub fn working(reason: Reason, message: impl Into<String>) -> Self {
        Self::Working { reason, message: message.into() }
    }

    /// Stalled, with a word and a sentence.
    pub fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self::Stalled { reason, message: message.into() }
    }

    /// The word.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Ready { .. } => Reason::Ready,
            Self::Working { reason, .. } | Self::Stalled { reason, .. } => *reason,
        }
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        match self {
            Self::Ready { message } | Self::Working { message, .. } | Self::Stalled { message, .. } => message,
        }
    }

    /// The three conditions. A condition that says the same as before keeps its time.
    pub fn conditions(&self, before: &[Condition], generation: i64, now: &str) -> Vec<Condition> {
        let (ready, reconciling, stalled) = match self {
            Self::Ready { .. } => (ConditionStatus::True, ConditionStatus::False, ConditionStatus::False),
            Self::Working { .. } => (ConditionStatus::False, ConditionStatus::True, ConditionStatus::False),
            Self::Stalled { .. } => (ConditionStatus::False, ConditionStatus::False, ConditionStatus::True),
        };
        [(condition::READY, ready), (condition::RECONCILING, reconciling), (condition::STALLED, stalled)]
            .into_iter()
            .map(|(type_, status)| Condition {
                type_: type_.to_owned(),
                status,
                reason: self.reason().as_str().to_owned(),
                message: truncate(self.message(), 2000),
                observed_generation: generation,
                last_transition_time: condition::find(before, type_)
                    .filter(|before| before.status == status)
                    .map_or_else(|| now.to_owned(), |before| before.last_transition_time.clone()),
            })
            .collect()
    }
}

/// The text, cut at a character so that it has at most so many bytes.
pub fn truncate(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = (0..=bytes_max - 3).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{}...", &text[..end])
}
