//! What could not be read of a cluster that runs, and why: a status says that, instead of nothing or of what was read before. Filled in
//! by the manager, put into words for the cluster's plan.

use std::collections::BTreeMap;

/// What could not be read, with the reasons. None of them changes while nothing else does, or statuses would be written all the time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Why the brokers did not say how their cluster is.
    pub brokers: Option<String>,
    /// Why nodes whose process runs did not show their certificates, by their ids.
    pub nodes: BTreeMap<i32, String>,
}

impl Unseen {
    /// Whether everything could be read.
    pub fn is_empty(&self) -> bool {
        self.brokers.is_none() && self.nodes.is_empty()
    }

    /// A sentence about what the brokers were to say, with the reason why they did not.
    pub(crate) fn by_brokers(&self, sentence: &str) -> String {
        self.brokers.as_ref().map_or_else(|| sentence.to_owned(), |why| format!("{sentence} ({why})"))
    }

    /// A sentence, and after it which nodes showed no certificate and why.
    pub(crate) fn after(&self, sentence: &str) -> String {
        let nodes = self.nodes.iter().map(|(id, why)| format!("; node {id} shows no certificate: {why}"));
        std::iter::once(sentence.to_owned()).chain(nodes).collect()
    }
}
