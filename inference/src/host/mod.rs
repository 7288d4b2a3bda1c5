//! ONNX Runtime in processes of its own: supervised, restarted, replaced, and confined.
//!
//! `supervisor` implements the `InferenceHost` port on the platform's side and keeps everything that must outlive a host:
//! which sessions there are, who uses them, which models are suspects. `process` is one running host, `computes` what is
//! in it. `child` is the host itself. Invariant: nothing a host says or writes is believed without a check, and nothing
//! that a caller waits for depends on one host living.

mod arena;
mod backoff;
mod child;
mod child_compute;
mod computes;
mod death;
mod group;
mod logs;
mod metrics;
mod model;
mod process;
mod protocol;
mod quarantine;
mod rings;
mod shared;
mod socket;
mod spawn;
mod supervisor;
mod trial;

pub use child::{ServeError, serve};
pub use spawn::SUBCOMMAND;
pub(crate) use supervisor::SupervisedHost;
pub(crate) use trial::Trial;

use fnctl_core::inference::InferenceError;

/// Gives up everything a host does not need. Says what the system enforces.
fn confinement(_setup: &protocol::Setup) -> Result<String, InferenceError> {
    Ok("none".to_owned())
}
