//! The followers' side of the world: the tasks that drive fetchers.

use gregor_replication::{FetcherId, NextRequest, OffsetLookUp, StepFailure};
use gregor_types::{BrokerId, ErrorCode, Offset, Timestamp};

use super::{
    Event, IDLE_MS, REQUEST_TIMEOUT_MS, World,
    log::Log,
    node::{Asked, Fetched, index_of, place},
};

impl World {
    pub(super) fn pump_fetchers(&mut self, id: BrokerId) {
        let now = self.now;
        let at = Timestamp(now as i64);
        let node = &mut self.nodes[id.value() as usize];
        let (life, epoch) = (node.life, node.epoch.unwrap_or(-1));
        let mut sent = Vec::new();
        for (by, task) in &mut node.fetchers {
            if let Some((_, deadline, asked)) = &task.under_way {
                if *deadline > now {
                    continue;
                }
                match asked.clone() {
                    Asked::Fetch(number) => task.fetcher.on_request_failed(number, at),
                    Asked::LookUp(asked) => {
                        for asked in asked {
                            let failed = Err(ErrorCode::NetworkException);
                            task.fetcher.on_looked_up(&asked, failed, &Log::default(), at);
                        }
                    }
                }
                task.under_way = None;
            }
            if task.wakes_at > now {
                continue;
            }
            self.calls += 1;
            let (by, call) = (*by, self.calls);
            let asked = match task.fetcher.next(None, at) {
                NextRequest::Wait(_) => continue,
                NextRequest::Fetch(plan) => {
                    let asked = Asked::Fetch(plan.number);
                    sent.push((by.leader, Event::Fetch { from: id, life, epoch, by, call, plan }));
                    asked
                }
                NextRequest::LookUp(asked) => {
                    let event = Event::LookUp { from: id, life, by, call, asked: asked.clone() };
                    sent.push((by.leader, event));
                    Asked::LookUp(asked)
                }
            };
            task.under_way = Some((call, now + REQUEST_TIMEOUT_MS, asked));
        }
        for (to, event) in sent {
            self.send(id, to, &event);
        }
    }

    pub(super) fn take_call(&mut self, to: BrokerId, life: u64, by: FetcherId, call: u64) -> Option<Asked> {
        if !self.is_alive(to, life) {
            return None;
        }
        let task = self.nodes[to.value() as usize].fetchers.get_mut(&by)?;
        let (_, _, asked) = task.under_way.take_if(|(under_way, _, _)| *under_way == call)?;
        task.wakes_at = self.now;
        Some(asked)
    }

    pub(super) fn fetched(
        &mut self,
        to: BrokerId,
        life: u64,
        by: FetcherId,
        call: u64,
        (error, session, answers): Fetched,
    ) {
        let Some(Asked::Fetch(number)) = self.take_call(to, life, by, call) else { return };
        let now = self.now;
        let at = Timestamp(now as i64);
        let names = answers.iter().map(|(partition, _, _)| *partition);
        let task = self.nodes[to.value() as usize].fetchers.get_mut(&by).expect("it has a call");
        if answers.iter().all(|(_, answer, records)| records.is_empty() && answer.diverging.is_none()) {
            task.wakes_at = now + IDLE_MS;
        }
        if !task.fetcher.on_fetched(number, error, session, names, at) {
            return;
        }
        for (partition, answer, records) in answers {
            let node = &mut self.nodes[to.value() as usize];
            let Some(replica) = node.replicas.get(&index_of(partition)) else { continue };
            let task = node.fetchers.get_mut(&by).expect("it has a call");
            let before = replica.log.end();
            let step = task.fetcher.on_answer(partition, &answer, &replica.log, at);
            // The metadata may move on between a decision and its step, and a step may fail.
            if self.dice.percent(2) && self.controller.version() > self.nodes[to.value() as usize].version {
                self.apply(to, self.controller.version());
            }
            let node = &mut self.nodes[to.value() as usize];
            if self.dice.percent(1) {
                let task = node.fetchers.get_mut(&by).expect("it has a call");
                task.fetcher.on_step_failed(partition, StepFailure::Transient, at);
                continue;
            }
            node.take_step(by, partition, step, &records, now);
            self.after_step(to, index_of(partition), before);
        }
    }

    pub(super) fn looked_up(
        &mut self,
        to: BrokerId,
        by: FetcherId,
        asked: &[OffsetLookUp],
        found: &[Result<Offset, ErrorCode>],
    ) {
        let at = Timestamp(self.now as i64);
        for (asked, found) in asked.iter().zip(found) {
            let index = index_of(asked.partition);
            let node = &mut self.nodes[to.value() as usize];
            let (Some(replica), Some(task)) = (node.replicas.get(&index), node.fetchers.get_mut(&by)) else { continue };
            let before = replica.log.end();
            let start = replica.log.start;
            let step = task.fetcher.on_looked_up(asked, *found, &replica.log, at);
            node.take_step(by, place(index), step, &[], self.now);
            let moved = node.replicas[&index].log.start > start;
            self.story.started_over += usize::from(moved);
            self.after_step(to, index, before);
        }
    }

    fn after_step(&mut self, id: BrokerId, index: usize, end_before: i64) {
        if let Some(replica) = self.nodes[id.value() as usize].replicas.get(&index) {
            self.story.records_cut += (end_before - replica.log.end()).max(0) as usize;
        }
        self.look_at(id, index);
    }
}
