//! The harness of the integration tests: a real platform on a free port, a client, and a log that fails a test on any
//! error line it did not declare.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "only tests use this crate"
)]

mod client;
pub mod document;
mod exchange;
mod log;
pub mod onnx;
mod platform;
mod reader;

pub use client::{Client, Reply};
pub use exchange::Exchange;
pub use log::expect_error;
pub use platform::{Deployment, TestPlatform};
pub use reader::Reader;

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the repository")
        .to_path_buf()
}

/// The built `fnctl`.
pub fn program() -> PathBuf {
    let mut path = std::env::current_exe().expect("a test has a path");
    // target/debug/deps/it-... -> target/debug/fnctl
    path.pop();
    path.pop();
    let program = path.join("fnctl");
    assert!(
        program.is_file(),
        "{} is missing; run `cargo xtask test`, or `cargo build -p fnctl-cli` first",
        program.display()
    );
    program
}

/// A file of the repository. Guests and fetched models must have been built: `cargo xtask test` does.
pub fn file(path: &str) -> Vec<u8> {
    let path = root().join(path);
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask test` once", path.display()))
}

/// The guest that does what its path says.
pub fn probe() -> Vec<u8> {
    file("tests/fixtures/guests/probe.wasm")
}

/// The same for WASI 0.3.
pub fn probe3() -> Vec<u8> {
    file("tests/fixtures/guests/probe3.wasm")
}

/// Waits until `done` says so, and fails after ten seconds.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !done() {
        assert!(
            tokio::time::Instant::now() < until,
            "waited ten seconds in vain: {what}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Resident memory of a process in bytes, as the kernel counts it.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("it has a resident size");
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .expect("a number")
        * 1024
}
