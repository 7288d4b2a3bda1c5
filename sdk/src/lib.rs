//! What the author of a function imports.
//!
//! ```no_run
//! use fnctl_sdk::{Error, Model, Tensor};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! struct Input { features: Vec<f32> }
//!
//! #[derive(Serialize)]
//! struct Output { probability: f32 }
//!
//! struct App { model: Model }
//!
//! // Once per instance, before its first request.
//! #[fnctl_sdk::init]
//! fn init() -> Result<App, Error> {
//!     Ok(App { model: Model::load("fraud")? })
//! }
//!
//! // Once per request. JSON in, JSON out.
//! #[fnctl_sdk::handler]
//! fn handle(app: &App, input: Input) -> Result<Output, Error> {
//!     let features = Tensor::new([1, input.features.len()], input.features)?;
//!     let outputs = app.model.run([("features", features)])?;
//!     Ok(Output { probability: outputs.first::<f32>()?[0] })
//! }
//! # fn main() {}
//! ```
//!
//! A handler that takes a [`Request`] and returns a [`Response`] works on raw bodies; [`Request::require_body`]
//! refuses an empty one and one of another media type. A handler without state takes its input alone. On the host,
//! `cargo test` runs handlers against models that the test supplies: see [`testing`].
//!
//! The SDK shares only the WIT files with the platform; a function built with it is an ordinary `wasi:http` component.

mod error;
mod http;
pub mod logging;
mod model;
mod state;
mod tensor;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
#[cfg(target_family = "wasm")]
mod wasm;

pub use error::Error;
/// Makes a function answer the requests of its component: `fn(Input) -> Result<Output, Error>` or
/// `fn(&State, Input) -> Result<Output, Error>`.
///
/// `Input` is a type that serde can deserialise (the body is JSON) or [`Request`]; `Output` is a type that serde can
/// serialise or [`Response`].
pub use fnctl_sdk_macros::handler;
/// Makes a function the initialisation of its component: `fn() -> Result<State, Error>`. The platform calls it once per
/// instance, before the first request and, for provisioned instances, ahead of it.
pub use fnctl_sdk_macros::init;
pub use http::{Request, Response};
pub use model::{Model, Outputs};
pub use state::{State, state};
pub use tensor::{Element, Tensor, TensorType};

/// What the macros expand to; no part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::http::serve;

    /// A component's handler.
    pub trait Handle {
        /// Answers one request.
        fn handle(request: crate::Request) -> crate::Response;
    }

    /// A component's init.
    pub trait Init {
        /// Runs it.
        fn init() -> Result<(), crate::Error>;
    }

    #[cfg(target_family = "wasm")]
    pub use crate::wasm::{HttpExport, LifecycleExport, bindings, wasip2};
}
