//! What must hold: looked at whenever a replica has changed, and when all faults have ended.

use gregor_types::BrokerId;

use super::{World, controller, node::Role};

impl World {
    /// Whether every broker is there, in sync, and has the same committed log to its end.
    pub fn has_converged(&self) -> bool {
        let is_whole = |(index, partition): (usize, &controller::Partition)| {
            let ends = partition.replicas.iter().map(|id| {
                let replica = self.nodes[id.value() as usize].replicas.get(&index)?;
                (replica.high_watermark() == replica.log.end()).then(|| replica.log.end())
            });
            let ends: Vec<Option<i64>> = ends.collect();
            ends.iter().all(|end| end.is_some() && *end == ends[0])
                && partition.isr.len() == partition.replicas.len()
                && partition.adding.is_empty()
                && ends[0] == Some(self.committed[index].len() as i64)
        };
        self.controller.image.partitions.iter().enumerate().all(is_whole)
    }

    pub fn run_until_converged(&mut self, longest_ms: u64) {
        let until = self.now + longest_ms;
        while !self.has_converged() {
            assert!(self.now < until, "the replicas do not converge: {}", self.picture());
            self.run(100);
        }
        for (index, acknowledged) in self.acknowledged.iter().enumerate() {
            for (offset, value) in acknowledged {
                assert_eq!(self.committed[index][*offset as usize].value, *value, "what was acknowledged is there");
            }
        }
        self.story.elections = self.controller.elections;
    }

    fn picture(&self) -> String {
        let mut lines = Vec::new();
        for (index, partition) in self.controller.image.partitions.iter().enumerate() {
            lines.push(format!("{index}: {partition:?}, {} committed", self.committed[index].len()));
            for node in &self.nodes {
                if let Some(replica) = node.replicas.get(&index) {
                    let (log, role, known) = (&replica.log, &replica.role, node.version);
                    let (start, end, newest) = (log.start, log.end(), self.controller.version());
                    lines.push(format!("  {} at version {known} of {newest}: {start}..{end} {role:?}", node.id));
                }
            }
        }
        lines.join("\n")
    }

    /// Every replica that the controller takes to be in sync has all that is committed, but for one that has lost its power and
    /// has not been back to say so.
    pub(super) fn check_in_sync(&self, index: usize) {
        let committed = &self.committed[index];
        let Some(last) = committed.last() else { return };
        let end = committed.len() as i64;
        for id in &self.controller.image.partitions[index].isr {
            let node = &self.nodes[id.value() as usize];
            let live = node.replicas.get(&index).map(|replica| &replica.log);
            let log = live.or_else(|| node.disk.get(&index).map(|(log, _)| log));
            if let (Some(log), false) = (log, node.lost_power) {
                let has_it = log.start >= end || log.get(end - 1) == Some(*last);
                assert!(has_it, "{id} counts as in sync for {index} without what was committed at {}", end - 1);
            }
        }
    }

    /// What is committed when a leadership is given out has to be in its leader's log.
    pub(super) fn note_leaderships(&mut self) {
        for (index, partition) in self.controller.image.partitions.iter().enumerate() {
            let committed = self.committed[index].len();
            self.known_at.entry((index, partition.leader_epoch)).or_insert(committed);
        }
    }

    pub(super) fn look_at_all(&mut self, id: BrokerId) {
        for index in 0..self.partitions() {
            self.look_at(id, index);
        }
    }

    /// What must hold of one replica whenever something has changed there.
    pub(super) fn look_at(&mut self, id: BrokerId, index: usize) {
        let Some(replica) = self.nodes[id.value() as usize].replicas.get_mut(&index) else { return };
        let high_watermark = replica.high_watermark();
        let log = &replica.log;
        assert!(high_watermark >= log.start && high_watermark <= log.end(), "a high watermark lies in its log");
        let committed = &mut self.committed[index];
        let mut grows = false;
        if let Role::Leader(leader) = &replica.role {
            let epoch = leader.leader_epoch().value();
            let shown = self.shown.entry((id, index, epoch)).or_insert(high_watermark);
            assert!(*shown <= high_watermark, "readers of {id} see {index} go back from {shown} to {high_watermark}");
            *shown = high_watermark;
            let is_led_here = self.controller.image.partitions[index].leader_epoch == epoch;
            grows = is_led_here && (committed.len() as i64) < high_watermark;
            while (committed.len() as i64) < high_watermark {
                let offset = committed.len() as i64;
                committed.push(log.get(offset).expect("nothing is deleted before it was seen as committed"));
            }
            let (reached, waits): (Vec<_>, Vec<_>) =
                replica.waiting.iter().copied().partition(|(end, _, _)| *end <= high_watermark);
            replica.waiting = waits;
            if leader.check_min_isr().is_ok() {
                self.story.acknowledged += reached.len();
                self.acknowledged[index].extend(reached.iter().map(|(end, _, value)| (end - 1, *value)));
            }
        }
        assert!(high_watermark <= committed.len() as i64, "{id} shows {index} up to {high_watermark}, never committed");
        for offset in log.start.max(high_watermark - 40)..high_watermark {
            assert_eq!(
                log.get(offset),
                Some(committed[offset as usize]),
                "{id} differs at offset {offset} of {index} below its high watermark"
            );
        }
        if grows {
            self.check_in_sync(index);
        }
    }
}
