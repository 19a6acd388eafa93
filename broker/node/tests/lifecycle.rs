//! A broker's life, told from its requests and their answers.

use std::collections::VecDeque;

use gregor_messages::{
    BrokerHeartbeatRequest, BrokerHeartbeatResponse, BrokerRegistrationRequest, BrokerRegistrationResponse,
};
use gregor_node::{
    BrokerLifecycle, BrokerPhase, LifecycleConfig, LifecycleEffect, LifecycleError, LifecycleInput, Nanos,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, Offset, Uuid};

const MILLISECOND: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MILLISECOND;

struct Rig {
    broker: BrokerLifecycle,
    now: Nanos,
    effects: VecDeque<LifecycleEffect>,
}

impl Rig {
    fn new() -> Self {
        let config = LifecycleConfig {
            id: BrokerId(1),
            cluster_id: "cluster".into(),
            incarnation: Uuid(77),
            listeners: vec![("PLAINTEXT".into(), "h".into(), 9092, 0)],
            rack: Some("r".into()),
            directories: vec![Uuid(502), Uuid(501)],
            directory_failure_timeout: 30 * SECOND,
            previous_epoch: BrokerEpoch(5),
            heartbeat_interval: 2 * SECOND,
            registration_timeout: 60 * SECOND,
            session_timeout: 9 * SECOND,
        };
        Self { broker: BrokerLifecycle::new(config), now: SECOND, effects: VecDeque::new() }
    }

    fn step(&mut self, input: LifecycleInput) {
        self.broker.step(input, self.now, &mut self.effects);
    }

    /// Lets time pass until the broker wants something.
    fn wait(&mut self) {
        self.now = self.now.max(self.broker.next_deadline().expect("a deadline"));
        self.step(LifecycleInput::Tick);
    }

    fn registration(&mut self) -> BrokerRegistrationRequest {
        match self.effects.pop_front() {
            Some(LifecycleEffect::Register(request)) => request,
            other => panic!("expected a registration, not {other:?}"),
        }
    }

    fn heartbeat(&mut self) -> BrokerHeartbeatRequest {
        match self.effects.pop_front() {
            Some(LifecycleEffect::Heartbeat(request)) => request,
            other => panic!("expected a heartbeat, not {other:?}"),
        }
    }

    fn phase(&mut self) -> BrokerPhase {
        match self.effects.pop_front() {
            Some(LifecycleEffect::Phase(phase)) => phase,
            other => panic!("expected a phase, not {other:?}"),
        }
    }

    fn registered(&mut self, epoch: i64) {
        let response = BrokerRegistrationResponse { broker_epoch: epoch, ..Default::default() };
        self.step(LifecycleInput::RegistrationAnswered(Some(response)));
    }

    fn answered(&mut self, is_caught_up: bool, is_fenced: bool, should_shut_down: bool) {
        let response = BrokerHeartbeatResponse { is_caught_up, is_fenced, should_shut_down, ..Default::default() };
        self.step(LifecycleInput::HeartbeatAnswered(Some(response)));
    }

    /// A broker that serves.
    fn running() -> Self {
        let mut rig = Self::new();
        rig.step(LifecycleInput::Start);
        rig.registration();
        rig.registered(10);
        assert_eq!(rig.phase(), BrokerPhase::CatchingUp);
        rig.heartbeat();
        rig.step(LifecycleInput::MetadataPublished(Offset(12)));
        rig.step(LifecycleInput::ReadyToServe);
        rig.answered(true, true, false);
        assert_eq!(rig.phase(), BrokerPhase::Recovering);
        let request = rig.heartbeat();
        assert!(!request.want_fence);
        rig.answered(true, false, false);
        assert_eq!(rig.phase(), BrokerPhase::Running);
        assert!(rig.effects.is_empty());
        rig
    }
}

#[test]
fn a_broker_registers_with_all_that_the_controller_must_know() {
    let mut rig = Rig::new();
    assert_eq!(rig.broker.next_deadline(), None, "nothing begins by itself");
    rig.step(LifecycleInput::Start);
    let request = rig.registration();
    assert_eq!((request.broker_id, request.incarnation_id, request.previous_broker_epoch), (1, Uuid(77), 5));
    assert_eq!(request.log_dirs, [Uuid(501), Uuid(502)], "sorted, as Apache sends them");
    let level = request.features.iter().find(|feature| feature.name == "metadata.version").unwrap();
    assert_eq!((level.min_supported_version, level.max_supported_version), (7, 33));
    assert_eq!((request.listeners[0].port, request.rack), (9092, Some("r".into())));
}

#[test]
fn it_asks_to_stay_fenced_until_it_is_ready_and_then_serves() {
    let mut rig = Rig::new();
    rig.step(LifecycleInput::Start);
    rig.registration();
    rig.registered(10);
    assert_eq!((rig.phase(), rig.broker.epoch()), (BrokerPhase::CatchingUp, BrokerEpoch(10)));
    let request = rig.heartbeat();
    assert!(request.want_fence && request.broker_epoch == 10 && request.current_metadata_offset == -1);
    rig.answered(false, true, false);
    assert!(rig.effects.is_empty());
    rig.wait();
    rig.heartbeat();
    rig.answered(true, true, false);
    assert_eq!(rig.phase(), BrokerPhase::Recovering);
    rig.step(LifecycleInput::ReadyToServe);
    assert!(!rig.heartbeat().want_fence, "it does not wait for the interval");
    rig.answered(true, false, false);
    assert_eq!(rig.phase(), BrokerPhase::Running);
}

#[test]
fn heartbeats_come_at_their_interval_and_one_at_a_time() {
    let mut rig = Rig::running();
    assert_eq!(rig.broker.next_deadline(), Some(rig.now + 2 * SECOND));
    rig.wait();
    rig.heartbeat();
    assert_eq!(rig.broker.next_deadline(), None, "one is under way");
    rig.now += 60 * SECOND;
    rig.step(LifecycleInput::Tick);
    assert!(rig.effects.is_empty());
}

#[test]
fn a_controller_that_is_away_is_asked_again_after_growing_pauses() {
    let mut rig = Rig::running();
    let mut pauses = Vec::new();
    rig.wait();
    for _ in 0..7 {
        rig.heartbeat();
        rig.step(LifecycleInput::HeartbeatAnswered(None));
        pauses.push((rig.broker.next_deadline().unwrap() - rig.now) / MILLISECOND);
        rig.wait();
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
    rig.heartbeat();
    rig.answered(true, false, false);
    assert_eq!(rig.broker.next_deadline(), Some(rig.now + 2 * SECOND));
}

#[test]
fn a_fenced_broker_knows_it_and_serves_again_when_unfenced() {
    let mut rig = Rig::running();
    rig.wait();
    rig.heartbeat();
    rig.answered(true, true, false);
    assert_eq!(rig.phase(), BrokerPhase::Recovering);
    rig.wait();
    rig.heartbeat();
    rig.answered(true, false, false);
    assert_eq!(rig.phase(), BrokerPhase::Running);
}

#[test]
fn an_older_incarnation_is_waited_for_but_not_for_ever() {
    let mut rig = Rig::new();
    rig.step(LifecycleInput::Start);
    let duplicate = || BrokerRegistrationResponse {
        error_code: ErrorCode::DuplicateBrokerRegistration.code(),
        ..Default::default()
    };
    let failure = loop {
        match rig.effects.pop_front() {
            Some(LifecycleEffect::Register(_)) => rig.step(LifecycleInput::RegistrationAnswered(Some(duplicate()))),
            Some(LifecycleEffect::Failed(error)) => break error,
            Some(other) => panic!("{other:?}"),
            None => rig.wait(),
        }
    };
    assert_eq!(rig.now, 61 * SECOND);
    let last = Some(ErrorCode::DuplicateBrokerRegistration);
    assert_eq!(failure, LifecycleError::RegistrationTimedOut { timeout: 60 * SECOND, last });
    assert!(failure.to_string().contains("60000 ms (last answer: DUPLICATE_BROKER_REGISTRATION)"), "{failure}");
    assert_eq!((rig.phase(), rig.broker.next_deadline()), (BrokerPhase::Stopped, None));
}

#[test]
fn a_registration_that_can_never_succeed_ends_the_broker_at_once() {
    let mut rig = Rig::new();
    rig.step(LifecycleInput::Start);
    rig.registration();
    let code = ErrorCode::InconsistentClusterId;
    let response = BrokerRegistrationResponse { error_code: code.code(), ..Default::default() };
    rig.step(LifecycleInput::RegistrationAnswered(Some(response)));
    assert_eq!(rig.effects.pop_front(), Some(LifecycleEffect::Failed(LifecycleError::Refused(code))));
    assert_eq!(rig.phase(), BrokerPhase::Stopped);
}

#[test]
fn it_leaves_only_when_the_controller_says_so() {
    let mut rig = Rig::running();
    rig.step(LifecycleInput::BeginShutdown);
    assert_eq!(rig.phase(), BrokerPhase::ControlledShutdown);
    assert!(rig.heartbeat().want_shut_down);
    rig.answered(true, false, false);
    assert_eq!(rig.broker.next_deadline(), Some(rig.now + 50 * MILLISECOND), "it asks often on its way out");
    rig.wait();
    assert!(rig.heartbeat().want_shut_down);
    rig.answered(true, true, true);
    assert_eq!((rig.phase(), rig.broker.next_deadline()), (BrokerPhase::Stopped, None));
}

#[test]
fn it_leaves_by_itself_once_no_controller_has_answered_for_a_session() {
    let mut rig = Rig::running();
    let last = rig.now;
    rig.step(LifecycleInput::BeginShutdown);
    assert_eq!(rig.phase(), BrokerPhase::ControlledShutdown);
    while rig.broker.phase() == BrokerPhase::ControlledShutdown {
        match rig.effects.pop_front() {
            Some(LifecycleEffect::Heartbeat(_)) => rig.step(LifecycleInput::HeartbeatAnswered(None)),
            None => rig.wait(),
            other => panic!("expected a heartbeat, not {other:?}"),
        }
    }
    assert_eq!((rig.broker.phase(), rig.now), (BrokerPhase::Stopped, last + 9 * SECOND));
    // Nor does it wait for a heartbeat that is never answered at all.
    let mut rig = Rig::running();
    let last = rig.now;
    rig.step(LifecycleInput::BeginShutdown);
    assert_eq!(rig.phase(), BrokerPhase::ControlledShutdown);
    rig.heartbeat();
    rig.wait();
    assert_eq!((rig.phase(), rig.now), (BrokerPhase::Stopped, last + 9 * SECOND));
}

#[test]
fn a_broker_that_was_never_unfenced_leads_nothing_and_goes_at_once() {
    let mut rig = Rig::new();
    rig.step(LifecycleInput::Start);
    rig.registration();
    rig.registered(10);
    assert_eq!(rig.phase(), BrokerPhase::CatchingUp);
    rig.heartbeat();
    rig.step(LifecycleInput::BeginShutdown);
    assert_eq!(rig.phase(), BrokerPhase::Stopped);
}

#[test]
fn a_registration_that_lacks_what_a_newer_level_holds_is_made_once_more_by_the_same_incarnation() {
    let mut rig = Rig::running();
    rig.step(LifecycleInput::RegistrationOutdated);
    let again = rig.registration();
    assert_eq!((again.incarnation_id, again.log_dirs.len()), (Uuid(77), 2));
    // A controller that cannot be reached is asked again, and serving goes on.
    rig.step(LifecycleInput::RegistrationAnswered(None));
    assert_eq!(rig.broker.phase(), BrokerPhase::Running);
    rig.wait();
    rig.registration();
    rig.registered(10);
    rig.heartbeat();
    assert_eq!((rig.broker.phase(), rig.broker.epoch()), (BrokerPhase::Running, BrokerEpoch(10)));
    // One that refuses it is not asked again, and hears heartbeats.
    rig.answered(true, false, false);
    rig.step(LifecycleInput::RegistrationOutdated);
    rig.registration();
    let error_code = ErrorCode::InvalidRegistration.code();
    let refused = BrokerRegistrationResponse { error_code, ..Default::default() };
    rig.step(LifecycleInput::RegistrationAnswered(Some(refused)));
    assert_eq!(rig.broker.phase(), BrokerPhase::Running);
    rig.wait();
    rig.heartbeat();
}

#[test]
fn a_new_controller_is_told_at_once_however_often_nobody_answered() {
    let mut rig = Rig::running();
    for _ in 0..5 {
        rig.wait();
        rig.heartbeat();
        rig.step(LifecycleInput::HeartbeatAnswered(None));
    }
    assert!(rig.effects.is_empty());
    rig.step(LifecycleInput::ControllerChanged);
    rig.heartbeat();
    rig.answered(true, false, false);
    // One whose registration nobody has taken yet, too.
    let mut rig = Rig::new();
    rig.step(LifecycleInput::Start);
    rig.registration();
    rig.step(LifecycleInput::RegistrationAnswered(None));
    assert!(rig.effects.is_empty());
    rig.step(LifecycleInput::ControllerChanged);
    rig.registration();
}

#[test]
fn what_changes_while_a_heartbeat_is_under_way_is_told_right_after_it() {
    let mut rig = Rig::running();
    rig.wait();
    rig.heartbeat();
    rig.step(LifecycleInput::DirectoryFailed(Uuid(501)));
    assert!(rig.effects.is_empty());
    rig.answered(true, false, false);
    assert_eq!(rig.heartbeat().offline_log_dirs, [Uuid(501)]);
}

#[test]
fn a_broker_that_never_registered_may_go_at_once() {
    let mut rig = Rig::new();
    rig.step(LifecycleInput::Start);
    rig.registration();
    rig.step(LifecycleInput::BeginShutdown);
    assert_eq!(rig.phase(), BrokerPhase::Stopped);
    // An answer that comes too late brings nothing back.
    rig.registered(10);
    assert_eq!(rig.broker.phase(), BrokerPhase::Stopped);
}

#[test]
fn a_broker_that_cannot_tell_of_a_failed_directory_stops() {
    let mut rig = Rig::running();
    rig.step(LifecycleInput::DirectoryFailed(Uuid(502)));
    assert_eq!(rig.heartbeat().offline_log_dirs, [Uuid(502)]);
    rig.step(LifecycleInput::HeartbeatAnswered(None));
    while rig.now < 20 * SECOND {
        rig.wait();
        assert_eq!(rig.heartbeat().offline_log_dirs, [Uuid(502)]);
        rig.step(LifecycleInput::HeartbeatAnswered(None));
    }
    // Told in time, it goes on for ever.
    let mut told = rig.broker.clone();
    let mut effects = VecDeque::new();
    told.step(LifecycleInput::Tick, told.next_deadline().unwrap(), &mut effects);
    let answer = BrokerHeartbeatResponse { is_caught_up: true, ..Default::default() };
    told.step(LifecycleInput::HeartbeatAnswered(Some(answer)), rig.now, &mut effects);
    effects.clear();
    told.step(LifecycleInput::Tick, rig.now + 600 * SECOND, &mut effects);
    assert!(matches!(effects.front(), Some(LifecycleEffect::Heartbeat(_))), "{effects:?}");

    let error = loop {
        rig.wait();
        match rig.effects.pop_front() {
            Some(LifecycleEffect::Heartbeat(_)) => rig.step(LifecycleInput::HeartbeatAnswered(None)),
            Some(LifecycleEffect::Failed(error)) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error, LifecycleError::DirectoryFailureUntold { directory: Uuid(502), timeout: 30 * SECOND });
    assert_eq!(rig.phase(), BrokerPhase::Stopped);
}

#[test]
fn cordoned_directories_are_told_at_once_and_with_every_heartbeat() {
    let mut rig = Rig::running();
    rig.step(LifecycleInput::Cordoned(Some(vec![Uuid(501)])));
    assert_eq!(rig.heartbeat().cordoned_log_dirs, Some(vec![Uuid(501)]));
    rig.answered(true, false, false);
    rig.step(LifecycleInput::Cordoned(Some(vec![Uuid(501)])));
    assert!(rig.effects.is_empty(), "nothing is new");
    rig.wait();
    assert_eq!(rig.heartbeat().cordoned_log_dirs, Some(vec![Uuid(501)]));
    rig.answered(true, false, false);
    rig.step(LifecycleInput::Cordoned(None));
    assert_eq!(rig.heartbeat().cordoned_log_dirs, None, "a level that does not know of them");
}
