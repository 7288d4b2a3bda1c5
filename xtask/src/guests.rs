//! Building guests for wasm32-wasip1: components through `wasm-component-ld`, commands with the plain linker.

use crate::{process, setup};
use anyhow::Context;
use std::path::Path;
use std::process::Command;

/// Whether a guest is a component or a core module.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Component,
    Command,
}

fn cargo(folder: &Path, package: &str, kind: Kind) -> anyhow::Result<()> {
    let toolchain = setup::wasm_toolchain()?;
    let mut command = Command::new("cargo");
    command
        .args([
            "build",
            "--quiet",
            "--release",
            "--target",
            "wasm32-wasip1",
            "--package",
            package,
        ])
        .current_dir(folder);
    // What cargo was told for this build is not meant for guests.
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(variable);
    }
    if let Some(rustc) = &toolchain.rustc {
        command.env("RUSTC", rustc);
    }
    let mut paths = vec![toolchain.linkers.join("gcc-ld"), toolchain.linkers.clone()];
    paths.extend(
        std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths),
    );
    command.env("PATH", std::env::join_paths(paths)?);
    if kind == Kind::Component {
        // The reactor adapter brings what a library needs, environment variables among it; the smaller proxy adapter has none.
        command.env(
            "CARGO_TARGET_WASM32_WASIP1_LINKER",
            toolchain.linkers.join("wasm-component-ld"),
        );
        command.env(
            "CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS",
            "-Clink-arg=--wasi-adapter=reactor",
        );
    }
    process::check(&mut command).with_context(|| format!("the guest '{package}' does not build"))
}

fn place(folder: &Path, file: &str, to: &Path) -> anyhow::Result<()> {
    process::install(&folder.join("target/wasm32-wasip1/release").join(file), to)
}

/// Builds the examples and puts each artifact beside its function.toml.
pub(crate) fn build_examples() -> anyhow::Result<()> {
    let folder = crate::root().join("examples");
    for (package, file) in [
        ("echo", "echo.wasm"),
        ("counter", "counter.wasm"),
        ("fraud", "fraud.wasm"),
        ("fraud-stream", "fraud_stream.wasm"),
        ("file-type", "file_type.wasm"),
        ("embeddings", "embeddings.wasm"),
        ("sentiment", "sentiment.wasm"),
        ("image-orientation", "image_orientation.wasm"),
        ("speech", "speech.wasm"),
    ] {
        println!("building the example '{package}'");
        cargo(&folder, package, Kind::Component)?;
        place(&folder, file, &folder.join(package).join(file))?;
    }
    Ok(())
}

/// Builds the guests of the tests.
pub(crate) fn build_fixtures() -> anyhow::Result<()> {
    let folder = crate::root().join("tests/fixtures/guests");
    for (package, file, kind) in [
        ("probe", "probe.wasm", Kind::Component),
        ("probe3", "probe3.wasm", Kind::Component),
        ("nn-command", "nn-command.wasm", Kind::Command),
    ] {
        println!("building the test guest '{package}'");
        cargo(&folder, package, kind)?;
        place(&folder, file, &folder.join(file))?;
    }
    Ok(())
}
