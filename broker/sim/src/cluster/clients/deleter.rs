//! Deletes records now and then, from the start of a partition on (`DeleteRecords`): its log begins later from then on, wherever it is.

use super::{Client, View};
use crate::cluster::letters::{Answer, CallId, Question};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Deleter {
    asking: Option<CallId>,
}

impl Client for Deleter {
    fn wake(&mut self, view: &mut View<'_>) {
        view.wake_in(4_000);
        let places = view.ledger.places();
        let Some(image) = view.image.clone().filter(|_| self.asking.is_none() && !view.healing && !places.is_empty())
        else {
            return;
        };
        let place = *view.random.pick(&places);
        let leader = image.topics().partition(place.topic_id, place.partition).and_then(|partition| partition.leader);
        let committed = view.ledger.committed_end(place).value().max(1) as u64;
        if let Some(leader) = leader {
            let until = gregor_types::Offset(view.random.between(1, committed + 1) as i64);
            view.ledger.deletes(place, until);
            self.asking = Some(view.ask(leader, Question::Delete(place, until)));
        }
    }

    fn hear(&mut self, call: CallId, answer: Option<Answer>, view: &mut View<'_>) {
        if self.asking.take_if(|asking| *asking == call).is_some() && matches!(answer, Some(Answer::Deleted)) {
            view.ledger.count("records deleted");
        }
    }
}
