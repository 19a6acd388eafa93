//! Has a model tried out, and says how much of it there was.

use std::{fmt::Debug, hash::Hash, time::Instant};

#[cfg(gregor_planted)]
use stateright::Expectation;
use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model};

/// A bug that `gregor_types::planted` lists, or none.
pub type Planted = Option<&'static str>;

/// Plants a bug for the thread that carries out an event; only a build with `--cfg gregor_planted` has any.
pub fn plant(bug: Planted) {
    #[cfg(gregor_planted)]
    gregor_types::planted::plant(bug);
    #[cfg(not(gregor_planted))]
    assert_eq!(bug, None, "nothing can be planted in this build");
}

/// How much is to be tried: `GREGOR_MODELS`, by default what an unoptimised build does in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    Little,
    Usual,
    Full,
}

impl Effort {
    pub fn wanted() -> Self {
        match std::env::var("GREGOR_MODELS").as_deref() {
            Err(_) => Self::Little,
            Ok("full") => Self::Full,
            Ok(_) => Self::Usual,
        }
    }

    /// What is meant for this effort.
    pub fn choose<T>(self, little: T, usual: T, full: T) -> T {
        match self {
            Self::Little => little,
            Self::Usual => usual,
            Self::Full => full,
        }
    }
}

/// A model, and how many events follow its beginning at most.
pub struct Trial<M> {
    pub steps: usize,
    pub model: M,
}

/// Tries every order of events, the shortest first. All that must hold has to, and all that may happen has to happen.
pub fn try_all<M>(name: &str, trial: Trial<M>)
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Send + Sync + Clone + PartialEq + 'static,
    M::Action: Debug + Clone + PartialEq,
{
    let Trial { steps, model } = trial;
    let began = Instant::now();
    let checker = bounded(steps, model).spawn_bfs().join();
    let (states, seconds) = (checker.unique_state_count(), began.elapsed().as_secs_f64());
    // The beginning counts as one, and what lies behind the bound is generated once, too.
    let longest = checker.max_depth() - 1;
    let bound =
        if longest > steps { format!("up to {steps} events") } else { format!("all, {longest} events at most") };
    println!("{name}: {states} states, {bound}, in {seconds:.1} s");
    checker.assert_properties();
}

/// Tries out a model with a bug in it: what of all that must hold does not.
#[cfg(gregor_planted)]
pub fn broken<M>(trial: Trial<M>) -> Vec<&'static str>
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Send + Sync + Clone + PartialEq + 'static,
    M::Action: Debug + Clone + PartialEq,
{
    let checker = bounded(trial.steps, trial.model).spawn_bfs().join();
    let found = checker.discoveries();
    let rules = checker.model().properties().into_iter();
    let always = rules.filter(|rule| rule.expectation == Expectation::Always).map(|rule| rule.name);
    always.filter(|name| found.contains_key(name)).collect()
}

fn bounded<M>(steps: usize, model: M) -> CheckerBuilder<M>
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Send + Sync,
{
    model.checker().finish_when(HasDiscoveries::AnyFailures).target_max_depth(steps + 2)
}
