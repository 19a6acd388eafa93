//! The contract between a coordinator and its shell.
//!
//! The shell gives a [`Shard`] requests, the time, and how far its partition is committed; it appends what the shard journals and
//! sends what it answers. An append happens within the step that asks for it, because whether it succeeded decides what the state
//! becomes: a step that cannot append changes nothing that would have to outlive it.

use std::collections::VecDeque;

use bytes::Bytes;
use gregor_types::{ErrorCode, Offset, ProducerId, Timestamp, planted::planted};

/// Milliseconds on a clock that never goes back: for timers. Wall-clock times, which records keep, are [`Timestamp`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment moved by a number of milliseconds.
    #[must_use]
    pub const fn plus_ms(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

/// A record of an internal topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// What it is about, as compaction sees it.
    pub key: Bytes,
    /// What is now so; none if it is no more.
    pub value: Option<Bytes>,
}

/// A record as it is read back from the partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LoggedRecord {
    /// Where it lies.
    pub offset: Offset,
    /// The producer whose transaction it is part of.
    pub transaction: Option<ProducerId>,
    /// What it says.
    pub record: Record,
}

/// The partition that a shard writes to.
pub trait Journal {
    /// Appends records as one batch and returns the offset behind the last. After an error, none of them is there.
    fn append(&mut self, records: &[Record], now: Timestamp) -> Result<Offset, ErrorCode>;
}

/// Names a request until it is answered; chosen by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A response that may leave.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<R> {
    /// To which request.
    pub token: Token,
    /// What to say.
    pub response: R,
}

/// What a step is given from outside.
pub struct Environment<'a> {
    /// The time for timers.
    pub now: Moment,
    /// The time for records.
    pub wall_clock: Timestamp,
    /// 128 random bits.
    pub random: &'a mut dyn FnMut() -> u128,
    /// Where records go.
    pub journal: &'a mut dyn Journal,
}

/// One step of a state machine: its surroundings, and the answers that it gives.
pub struct Scope<'a, R> {
    environment: Environment<'a>,
    end: Offset,
    answers: Vec<(Answer<R>, Offset)>,
}

/// Why a shard's partition cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// A record of a known type that makes no sense.
    #[error("a record of {what} cannot be read: {reason}")]
    Malformed {
        /// What kind of record.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a coordinator decides. The shard around it does the rest.
pub trait StateMachine {
    /// What it is asked.
    type Request;
    /// What it answers.
    type Response;

    /// Decides about a request: answers it now, or remembers `token` and answers it in a later step.
    fn handle(&mut self, request: Self::Request, token: Token, scope: &mut Scope<'_, Self::Response>);

    /// Does what is due by now.
    fn on_time(&mut self, scope: &mut Scope<'_, Self::Response>);

    /// When something will be due.
    fn next_time(&self) -> Option<Moment>;

    /// Takes in a record of the log, while loading.
    fn replay(&mut self, record: LoggedRecord) -> Result<(), ReplayError>;

    /// Takes in the marker that ends a producer's transaction, while loading.
    fn replay_end(&mut self, producer: ProducerId, committed: bool);

    /// Every record is replayed: timers may start.
    fn loaded(&mut self, scope: &mut Scope<'_, Self::Response>);
}

/// A state machine over one partition of an internal topic.
#[derive(Debug)]
pub struct Shard<S: StateMachine> {
    machine: S,
    active: bool,
    /// Behind the last record that was appended or replayed.
    end: Offset,
    committed: Offset,
    /// Answers whose records are not committed yet, in the order of their offsets.
    held: VecDeque<(Answer<S::Response>, Offset)>,
}

impl<S: StateMachine> Shard<S> {
    /// A shard that is to be loaded.
    pub fn new(machine: S) -> Self {
        Self { machine, active: false, end: Offset::ZERO, committed: Offset::ZERO, held: VecDeque::new() }
    }

    /// The state machine, to look at.
    pub fn machine(&self) -> &S {
        &self.machine
    }

    /// Takes in a record, while loading.
    pub fn replay(&mut self, record: LoggedRecord) -> Result<(), ReplayError> {
        debug_assert!(!self.active, "records are replayed before a shard is activated");
        self.machine.replay(record)
    }

    /// Takes in the marker that ends a producer's transaction, while loading.
    pub fn replay_end(&mut self, producer: ProducerId, committed: bool) {
        debug_assert!(!self.active, "markers are replayed before a shard is activated");
        self.machine.replay_end(producer, committed);
    }

    /// Loading is over: `end` is behind the last record, `committed` is the high watermark.
    pub fn activate(
        &mut self,
        end: Offset,
        committed: Offset,
        environment: Environment<'_>,
    ) -> Vec<Answer<S::Response>> {
        self.end = end;
        self.committed = committed;
        self.active = true;
        self.step(environment, S::loaded)
    }

    /// Decides about a request. A shard that is still loading takes none.
    pub fn handle(
        &mut self,
        request: S::Request,
        token: Token,
        environment: Environment<'_>,
    ) -> Result<Vec<Answer<S::Response>>, ErrorCode> {
        if !self.active {
            return Err(ErrorCode::CoordinatorLoadInProgress);
        }
        Ok(self.step(environment, |machine, scope| machine.handle(request, token, scope)))
    }

    /// Does what is due by now.
    pub fn on_time(&mut self, environment: Environment<'_>) -> Vec<Answer<S::Response>> {
        if !self.active {
            return Vec::new();
        }
        self.step(environment, S::on_time)
    }

    /// When [`on_time`](Self::on_time) is wanted.
    pub fn next_time(&self) -> Option<Moment> {
        self.machine.next_time().filter(|_| self.active)
    }

    /// Everything before this offset is committed: the answers that waited for it may leave.
    pub fn committed(&mut self, high_watermark: Offset) -> Vec<Answer<S::Response>> {
        self.committed = self.committed.max(high_watermark);
        let ready = self.held.partition_point(|(_, after)| *after <= self.committed);
        self.held.drain(..ready).map(|(answer, _)| answer).collect()
    }

    /// The offset that the first answer held back waits for.
    pub fn waits_for(&self) -> Option<Offset> {
        self.held.front().map(|(_, after)| *after)
    }

    fn step(
        &mut self,
        environment: Environment<'_>,
        decide: impl FnOnce(&mut S, &mut Scope<'_, S::Response>),
    ) -> Vec<Answer<S::Response>> {
        let mut scope = Scope { environment, end: self.end, answers: Vec::new() };
        decide(&mut self.machine, &mut scope);
        self.end = scope.end;
        let mut ready = Vec::new();
        for (answer, after) in scope.answers {
            if after <= self.committed || planted("commit-answered-early") {
                ready.push(answer);
            } else {
                debug_assert!(self.held.back().is_none_or(|(_, last)| *last <= after), "offsets only grow");
                self.held.push_back((answer, after));
            }
        }
        ready
    }
}

impl<R> Scope<'_, R> {
    /// The time for timers.
    pub fn now(&self) -> Moment {
        self.environment.now
    }

    /// The time for records.
    pub fn wall_clock(&self) -> Timestamp {
        self.environment.wall_clock
    }

    /// 128 random bits.
    pub fn random(&mut self) -> u128 {
        (self.environment.random)()
    }

    /// Appends records, all or none.
    pub fn append(&mut self, records: &[Record]) -> Result<(), ErrorCode> {
        if records.is_empty() {
            return Ok(());
        }
        let end = self.environment.journal.append(records, self.environment.wall_clock)?;
        debug_assert!(end >= self.end, "offsets only grow");
        self.end = end;
        Ok(())
    }

    /// The offset of the last record that was appended.
    pub fn last_offset(&self) -> Offset {
        self.end.plus(-1)
    }

    /// Answers once everything that was appended so far is committed: what the answer says then holds whoever leads next.
    pub fn answer(&mut self, token: Token, response: R) {
        self.answers.push((Answer { token, response }, self.end));
    }

    /// Answers at once: for what no record backs, such as an error or a heartbeat.
    pub fn answer_now(&mut self, token: Token, response: R) {
        self.answers.push((Answer { token, response }, Offset::ZERO));
    }
}
