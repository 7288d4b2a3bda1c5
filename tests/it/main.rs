//! The integration tests: one binary, so that Wasmtime is linked once.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail like tests"
)]

mod api;
mod architecture;
mod burst;
mod cli;
mod cli_contexts;
mod cli_output;
mod cold_start;
mod commands;
mod crash;
mod drain;
mod examples;
mod examples_media;
mod hostile;
mod http;
mod image;
mod inference;
mod inference_host;
mod inference_host_api;
mod languages;
mod limits;
mod local_dev;
mod logs;
mod metrics;
mod nn_lies;
mod policies;
mod readme;
mod scale_to_zero;
mod scaling;
mod shared_instances;
mod status;
mod templates;
mod top;
mod traces;
mod tutorials;
mod versions;
mod wasi3;
