//! Guests in Python, JavaScript and C: their tools, pinned and kept in the cache folder; their builds, kept there by the
//! digest of what went into them; and the unit tests of their SDKs, which run on the host.

use crate::{process, setup};
use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

const COMPONENTIZE_PY: &str = "componentize-py==0.25.1";
const ZIGLANG: &str = "ziglang==0.17.1";
const COMPONENTIZE_JS: &str = "@bytecodealliance/componentize-js@0.23.0";
/// What componentize-js depends on is taken as it was on this day.
const NPM_BEFORE: &str = "2026-11-15";

const WARNINGS: [&str; 4] = ["-std=c11", "-Wall", "-Wextra", "-Werror"];

/// What `cargo xtask build-examples` builds.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Language {
    Rust,
    Python,
    Javascript,
    C,
    All,
}

/// An example in a language other than Rust.
struct Guest {
    name: &'static str,
    /// What its artifact depends on, under the repository's root.
    sources: [&'static str; 2],
    tool: &'static str,
    build: fn(&Path, &Path) -> anyhow::Result<()>,
}

const PYTHON: Guest = Guest {
    name: "python-iris",
    sources: ["sdk/python", "examples/python-iris/src"],
    tool: COMPONENTIZE_PY,
    build: build_python,
};
const JAVASCRIPT: Guest = Guest {
    name: "javascript-digits",
    sources: ["sdk/javascript", "examples/javascript-digits/app.js"],
    tool: COMPONENTIZE_JS,
    build: build_javascript,
};
const C: Guest = Guest {
    name: "c-fraud",
    sources: ["sdk/c", "examples/c-fraud/src"],
    tool: ZIGLANG,
    build: build_c,
};

/// Installs the compilers of all of these languages, which the tests of the templates use.
pub(crate) fn install_tools() -> anyhow::Result<()> {
    python_tool(COMPONENTIZE_PY)?;
    python_tool(ZIGLANG)?;
    npm_tool()?;
    Ok(())
}

/// Builds the examples of a language, or of all of these, and puts each artifact beside its function.toml.
pub(crate) fn build_examples(language: Language) -> anyhow::Result<()> {
    let guests: &[Guest] = match language {
        Language::Rust => &[],
        Language::Python => &[PYTHON],
        Language::Javascript => &[JAVASCRIPT],
        Language::C => &[C],
        Language::All => &[PYTHON, JAVASCRIPT, C],
    };
    // Each build keeps one core busy.
    std::thread::scope(|scope| {
        let builds: Vec<_> = guests
            .iter()
            .map(|guest| scope.spawn(|| guest.install()))
            .collect();
        builds.into_iter().try_for_each(|build| {
            build
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a build panicked"))
        })
    })
}

impl Guest {
    /// Builds the guest unless this very one was built before.
    fn install(&self) -> anyhow::Result<()> {
        let kept = setup::cache()?.join("guests");
        std::fs::create_dir_all(&kept)?;
        let artifact = kept.join(format!("{}-{}.wasm", self.name, self.digest()?));
        if !artifact.is_file() {
            println!("building the example '{}'", self.name);
            let new = tempfile::tempdir_in(&kept)?;
            let built = new.path().join("guest.wasm");
            (self.build)(&crate::root(), &built)
                .with_context(|| format!("the guest '{}' does not build", self.name))?;
            self.forget(&kept)?;
            // Compiled from what was built before.
            let _ = std::fs::remove_dir_all(kept.join("compiled"));
            std::fs::rename(&built, &artifact)?;
        }
        let example = crate::root().join("examples").join(self.name);
        process::install(&artifact, &example.join(format!("{}.wasm", self.name)))
    }

    /// The digest of the sources and of the tool.
    fn digest(&self) -> anyhow::Result<String> {
        let mut files = Vec::new();
        for source in self.sources {
            collect(&crate::root().join(source), &mut files)?;
        }
        files.sort();
        // How the tools are called is in this file.
        let mut digest = Sha256::new_with_prefix(include_bytes!("guest_languages.rs"));
        digest.update(self.tool);
        for file in files {
            let bytes = std::fs::read(&file)?;
            // Wherever the checkout is, the guest is the same.
            let name = file.strip_prefix(crate::root())?;
            digest.update(name.to_string_lossy().as_bytes());
            digest.update(bytes.len().to_le_bytes());
            digest.update(bytes);
        }
        let digest = digest.finalize();
        Ok(digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    /// Removes earlier builds of this guest.
    fn forget(&self, kept: &Path) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(kept)?.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(self.name) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// The files of a folder, or a file itself; what interpreters leave behind is no source.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("no {}", path.display()))?;
    for entry in entries.flatten() {
        if entry.file_name() != "__pycache__" && entry.file_name() != "node_modules" {
            collect(&entry.path(), files)?;
        }
    }
    Ok(())
}

fn build_python(root: &Path, to: &Path) -> anyhow::Result<()> {
    let tool = python_tool(COMPONENTIZE_PY)?;
    process::check(
        Command::new("python3")
            .arg(tool.join("bin/componentize-py"))
            .args([
                "--quiet",
                "--wit-path",
                "sdk/python/wit",
                "--world",
                "function",
            ])
            .args([
                "componentize",
                "app",
                "--python-path",
                "examples/python-iris/src",
            ])
            .args(["--python-path", "sdk/python", "--output"])
            .arg(to)
            .env("PYTHONPATH", &tool)
            // What is imported becomes part of the component: not what this shell happens to have active.
            .env_remove("VIRTUAL_ENV")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(root),
    )
}

fn build_javascript(root: &Path, to: &Path) -> anyhow::Result<()> {
    let tool = npm_tool()?;
    process::check(
        Command::new(tool.join("node_modules/.bin/componentize-js"))
            .args([
                "--wit",
                "sdk/javascript/wit",
                "--world-name",
                "function",
                "--out",
            ])
            .arg(to)
            // An absolute path: with it the tool shows the component the whole working folder, the SDK included.
            .arg(root.join("examples/javascript-digits/app.js"))
            .current_dir(root),
    )
}

fn build_c(root: &Path, to: &Path) -> anyhow::Result<()> {
    let tool = python_tool(ZIGLANG)?;
    process::check(
        Command::new("python3")
            .args(["-m", "ziglang", "cc", "--target=wasm32-wasi", "-Oz", "-s"])
            // Zig reserves 16 MiB of stack otherwise, which every instance would need as memory.
            .arg("-Wl,-z,stack-size=65536")
            .args(WARNINGS)
            .args(["-I", "sdk/c", "examples/c-fraud/src/main.c", "-o"])
            .arg(to)
            .env("PYTHONPATH", &tool)
            // Its builds of the C library.
            .env("ZIG_GLOBAL_CACHE_DIR", setup::cache()?.join("zig"))
            .current_dir(root),
    )
}

/// Installs a tool into a folder of its own name, at once or not at all.
fn installed(
    name: &str,
    install: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let tools = setup::cache()?.join("tools");
    let folder = tools.join(name);
    if !folder.is_dir() {
        println!("installing {name} into {}", tools.display());
        std::fs::create_dir_all(&tools)?;
        let new = tempfile::tempdir_in(&tools)?;
        install(new.path())?;
        // Another run may have been faster; then its folder is as good.
        let new = new.keep();
        if std::fs::rename(&new, &folder).is_err() {
            ensure!(folder.is_dir(), "{} cannot be written", folder.display());
            std::fs::remove_dir_all(new)?;
        }
    }
    Ok(folder)
}

/// A Python package without dependencies, in a folder that is PYTHONPATH to it.
fn python_tool(package: &str) -> anyhow::Result<PathBuf> {
    installed(&package.replace("==", "-"), |folder| {
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-compile",
        ];
        process::check(
            Command::new("python3")
                .args(pip)
                .arg("--target")
                .arg(folder)
                .arg(package),
        )
        .with_context(|| format!("{package} cannot be installed; python3 with pip is needed"))
    })
}

fn npm_tool() -> anyhow::Result<PathBuf> {
    let name = COMPONENTIZE_JS.trim_start_matches("@bytecodealliance/");
    installed(&name.replace('@', "-"), |folder| {
        process::check(
            Command::new("npm")
                .args(["install", "--silent", "--no-save", "--ignore-scripts"])
                .args([
                    "--no-audit",
                    "--no-fund",
                    "--before",
                    NPM_BEFORE,
                    "--prefix",
                ])
                .arg(folder)
                .arg(COMPONENTIZE_JS),
        )
        .with_context(|| {
            format!("{COMPONENTIZE_JS} cannot be installed; Node.js 20 or newer with npm is needed")
        })
    })
}

/// Runs the unit tests of the SDKs, the examples and the templates on the host.
pub(crate) fn test() -> anyhow::Result<()> {
    let root = crate::root();
    println!("\n== unit tests in Python, JavaScript and C");
    for (sources, tests) in [
        ("sdk/python", "sdk/python/tests"),
        (
            "sdk/python:examples/python-iris/src",
            "examples/python-iris/tests",
        ),
        (
            "sdk/python:cli/templates/python/src",
            "cli/templates/python/tests",
        ),
    ] {
        process::check(
            Command::new("python3")
                .args(["-m", "unittest", "discover", "--start-directory", tests])
                .env("PYTHONPATH", sources)
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .current_dir(&root),
        )?;
    }
    // The template finds its SDK beside it, where `fnctl new` puts it.
    let project = tempfile::tempdir()?;
    let project = project.path();
    copy(&root.join("cli/templates/javascript"), project)?;
    copy(&root.join("sdk/javascript"), &project.join("sdk"))?;
    process::check(
        Command::new("node")
            .args(["--test", "--test-reporter=dot"])
            .arg("sdk/javascript/test/sdk.test.js")
            .arg("examples/javascript-digits/test/app.test.js")
            .arg(project.join("test/app.test.js"))
            .current_dir(&root),
    )?;
    for (test, sources) in [
        ("sdk/c/test/test.c", "sdk/c"),
        ("examples/c-fraud/test/test.c", "examples/c-fraud/src"),
        ("cli/templates/c/test/test.c", "cli/templates/c/src"),
    ] {
        let program = tempfile::tempdir()?;
        let program = program.path().join("test");
        process::check(
            // Rust links with it, so it is there.
            Command::new("cc")
                .args(WARNINGS)
                .args(["-I", "sdk/c", "-I", sources, test, "-o"])
                .arg(&program)
                .current_dir(&root),
        )?;
        process::check(&mut Command::new(&program))?;
    }
    Ok(())
}

/// Copies a folder's files.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut files = Vec::new();
    collect(from, &mut files)?;
    for file in files {
        let place = to.join(file.strip_prefix(from)?);
        std::fs::create_dir_all(place.parent().context("a path without a folder")?)?;
        std::fs::copy(&file, place)?;
    }
    Ok(())
}
