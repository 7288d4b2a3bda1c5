//! The vocabulary of fnctl: ids, configuration, versions, invocations, outcomes, error kinds, and the ports
//! through which the other crates meet.
//!
//! Owns the words of `docs/glossary.md` and nothing that touches a socket, a file or a native library.
//! Every other crate depends on this one and on no sibling.

pub mod activity;
pub mod body;
pub mod config;
pub mod deploy;
pub mod error;
pub mod hosts;
pub mod ids;
pub mod inference;
pub mod invocation;
pub mod ladder;
pub mod log;
pub mod ports;
pub mod record;
pub mod scaling;
pub mod schedule;
pub mod task;
pub mod trace;
pub mod units;
pub mod version;

pub use body::{Body, BodyError, empty, full};
pub use config::{FunctionConfig, Isolation, ModelFile};
pub use error::{ErrorKind, Failure, Fault};
pub use ids::{AliasName, Digest, FunctionName, InstanceId, RequestId, VersionNumber};
pub use invocation::{
    ColdStart, Invocation, Phase, Reply, ReplySender, RunEnd, RunReport, StartKind,
};
pub use units::{ByteSize, Period};
pub use version::{Alias, Function, Selector, Version};
