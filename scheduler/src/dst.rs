//! Deterministic simulation of the scheduler: the real code on a virtual clock, under a plan made from a seed.
//!
//! A seed decides everything: who calls when, what is deployed in between, what fails, hangs, panics, dies, leaves or
//! jumps. The same seed gives the same run, event for event. A seed that breaks a rule is printed with a command that
//! runs it again and with the smallest plan that still breaks it; docs/testing.md says how to read that.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of a plan are small"
)]

mod callers;
mod checks;
mod contest;
mod deploys;
mod drive;
mod host;
mod kept;
mod notices;
mod plan;
mod quiet;
mod sandboxes;
mod scaling;
mod seats;
mod seeds;
mod shares;
mod shrink;
mod store;
mod watched;
mod world;
