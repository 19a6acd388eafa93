//! Every interleaving of the threads that meet in waiters and fetch sessions, in the switch of the append mode and in its watch.
//!
//! The files under test are compiled here anew, with locks and atomics of a model checker (`sync.rs`). A wake-up that is lost
//! in any order of steps is a deadlock, which it reports; so is an order that the memory model allows and this processor never
//! shows. Models are small: two or three threads, one thing that can go wrong.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(
    clippy::unnecessary_wraps,
    clippy::ignored_unit_patterns,
    clippy::needless_for_each,
    reason = "the twins have the signatures of what they stand for"
)]

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

#[allow(dead_code, unused_imports, reason = "the models use a part of it")]
#[path = "../../src/append_mode.rs"]
mod append_mode;
mod appends;
#[allow(dead_code, unused_imports, reason = "the models use a part of it")]
#[path = "../../src/histogram.rs"]
mod histogram;
#[allow(dead_code, reason = "the models use a part of it")]
#[path = "../../src/pulse.rs"]
mod pulse;
#[allow(dead_code, unused_imports, reason = "the models use a part of it")]
#[path = "../../src/fetch_sessions/session.rs"]
mod session;
mod sessions;
mod sync;
#[allow(dead_code, unused_imports, reason = "the models use a part of it")]
#[path = "../../src/waiters.rs"]
mod waiters;
mod waiting;

/// Times that a thread may be interrupted where it would not wait: more find nothing that two or three do not, and take long.
const PREEMPTIONS: usize = 3;

/// Tries all interleavings of a model.
fn check(time_passes: bool, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(move || {
        sync::begin(time_passes);
        model();
    });
}

fn main() -> ExitCode {
    let models: Vec<(&'static str, fn())> = [appends::MODELS, waiting::MODELS, sessions::MODELS].concat();
    let trials = models.into_iter().map(|(name, model)| {
        Trial::test(name, move || {
            model();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
