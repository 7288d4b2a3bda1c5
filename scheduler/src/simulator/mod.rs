//! The simulator: replays a trace of invocations through the scheduler's own decisions on a simulated clock.
//!
//! Admission ([`crate::limit::LimitState`]), warm pools ([`crate::pool::PoolState`]) and keep-alive policies
//! ([`crate::policy`]) are the very code that the live scheduler runs; only what they decide about is made up: an instance
//! is a number, a start takes the function's cold cost, a run its duration. Nothing here reads a clock or a file, and the
//! same trace, settings and seed give the same result to the last bit.

mod below;
mod engine;
mod function;
pub mod generate;
mod outcome;
mod random;
mod settings;
pub mod sweep;
#[cfg(test)]
mod tests;
pub mod trace;

pub use below::RungSettings;
pub use engine::simulate;
pub use outcome::{Band, Counts, Outcome};
pub use settings::{Settings, Spread};
