//! Small worlds in which every order of events is tried, not only those that seeds lead to: a model checker drives the production's state
//! machines, and looks at each state that they can get into.
//!
//! `GREGOR_MODELS=1` tries as much as part `sim` of the tests does, `GREGOR_MODELS=full` more; both want a release build.

mod checking;
mod elections;
mod partition;
mod partitions;
#[cfg(gregor_planted)]
mod planted;
mod quorum;
mod voter_changes;
