//! Which transactions a cleaner passes through, and whether they were aborted (`CleanedTransactionMetadata`).
//!
//! It is told of every batch in the order of the log. A marker may only go once no batch of its transaction is left before it.

use std::collections::{HashMap, HashSet};

use gregor_types::{Offset, ProducerId};
use gregor_wire::batch::{BatchHeader, BatchView, ControlRecordType, Records};

use crate::AbortedTransaction;

#[derive(Debug)]
pub(super) struct CleanedTransactions {
    /// Aborted transactions that begin further on, the next one last.
    ahead: Vec<AbortedTransaction>,
    aborted: HashMap<ProducerId, Aborted>,
    committed: HashSet<ProducerId>,
}

#[derive(Debug)]
struct Aborted {
    transaction: AbortedTransaction,
    /// Whether a batch of it is still in the log.
    seen: bool,
}

/// What a control batch says of its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MarkerSeen {
    /// Nothing of the transaction is left: the marker may go once its delete horizon is over.
    pub(super) removable: bool,
    /// An aborted transaction of which something is left: readers must still be told.
    pub(super) aborted: Option<AbortedTransaction>,
}

impl CleanedTransactions {
    pub(super) fn new(mut aborted: Vec<AbortedTransaction>) -> Self {
        aborted.sort_by_key(|transaction| std::cmp::Reverse(transaction.first_offset));
        Self { ahead: aborted, aborted: HashMap::new(), committed: HashSet::new() }
    }

    /// Whether a batch of data was aborted: then none of its records stays.
    pub(super) fn on_data(&mut self, batch: &BatchHeader) -> bool {
        self.reach(batch.last_offset());
        if !batch.is_transactional() {
            return false;
        }
        if let Some(aborted) = self.aborted.get_mut(&batch.producer_id) {
            aborted.seen = true;
            return true;
        }
        self.committed.insert(batch.producer_id);
        false
    }

    pub(super) fn on_control(&mut self, batch: &BatchView<'_>, records: &Records<'_>) -> MarkerSeen {
        self.reach(batch.last_offset());
        let stays = MarkerSeen { removable: false, aborted: None };
        let removable = MarkerSeen { removable: true, aborted: None };
        let Some(Ok(record)) = records.iter().next() else {
            // A control batch without its record was cleaned before.
            return if batch.records_count == 0 { removable } else { stays };
        };
        match record.key.and_then(ControlRecordType::from_key) {
            Some(ControlRecordType::Abort) => match self.aborted.remove(&batch.producer_id) {
                Some(Aborted { transaction, seen: true }) => MarkerSeen { aborted: Some(transaction), ..stays },
                _ => removable,
            },
            Some(ControlRecordType::Commit) => {
                MarkerSeen { removable: !self.committed.remove(&batch.producer_id), aborted: None }
            }
            _ => stays,
        }
    }

    fn reach(&mut self, offset: Offset) {
        while self.ahead.last().is_some_and(|next| next.first_offset <= offset) {
            let transaction = self.ahead.pop().expect("it was just looked at");
            self.aborted.entry(transaction.producer_id).or_insert(Aborted { transaction, seen: false });
        }
    }
}
