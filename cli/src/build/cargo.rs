//! Rust projects: which Wasm target this machine can compile for, and cargo's command line.
//!
//! A component is built for wasm32-wasip2 where rustup's target is installed; otherwise for wasm32-wasip1 with
//! `wasm-component-ld` as its linker, which comes with every rustup tool chain, and the adapter inside it. The second way
//! also works with a sysroot made from packages, for machines that cannot reach rustup's server.

use super::{Missing, Profile, lacking, on_path};
use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a crate becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A library with crate type cdylib: a `wasi:http` component.
    Component,
    /// A program: a WASI p1 command.
    Program,
}

/// What is known about the Rust of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RustFacts {
    pub(crate) has_cargo: bool,
    pub(crate) has_rustup: bool,
    /// `rustc --print sysroot`, if it runs.
    pub(crate) sysroot: Option<PathBuf>,
    pub(crate) has_wasip1: bool,
    pub(crate) has_wasip2: bool,
    /// The folder of `wasm-component-ld`, if it is there.
    pub(crate) linkers: Option<PathBuf>,
    /// The rustc of a sysroot made from packages, if there is one.
    pub(crate) own_rustc: Option<PathBuf>,
}

/// The target to compile for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Wasip2,
    Wasip1 {
        /// Instead of the installed one, which has no std for the target.
        rustc: Option<PathBuf>,
        linkers: PathBuf,
    },
}

impl RustFacts {
    /// Asks the tool chain that is in force in a folder.
    pub(crate) fn gather(folder: &Path) -> Self {
        let ask = |arguments: &[&str]| -> Option<String> {
            let output = Command::new("rustc")
                .args(arguments)
                .current_dir(folder)
                .stdin(Stdio::null())
                .output()
                .ok()?;
            output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let sysroot = ask(&["--print", "sysroot"]).map(PathBuf::from);
        let library = sysroot.as_ref().map(|sysroot| sysroot.join("lib/rustlib"));
        let has = |target: &str| {
            library
                .as_ref()
                .is_some_and(|library| library.join(target).join("lib").is_dir())
        };
        let linkers = ask(&["--version", "--verbose"])
            .and_then(|text| {
                Some(
                    text.lines()
                        .find_map(|line| line.strip_prefix("host: "))?
                        .to_owned(),
                )
            })
            .and_then(|host| Some(library.as_ref()?.join(host).join("bin")))
            .filter(|linkers| linkers.join("wasm-component-ld").is_file());
        Self {
            has_cargo: on_path("cargo").is_some(),
            has_rustup: on_path("rustup").is_some(),
            has_wasip1: has("wasm32-wasip1"),
            has_wasip2: has("wasm32-wasip2"),
            linkers,
            own_rustc: own_sysroot()
                .map(|folder| folder.join("bin/rustc"))
                .filter(|rustc| rustc.is_file()),
            sysroot,
        }
    }

    /// A target for components.
    pub(crate) fn component_target(&self) -> Result<Target, Missing> {
        self.check()?;
        if self.has_wasip2 {
            return Ok(Target::Wasip2);
        }
        self.wasip1().ok_or_else(|| self.missing("wasm32-wasip2"))
    }

    /// A target for WASI p1 commands.
    fn program_target(&self) -> Result<Target, Missing> {
        self.check()?;
        self.wasip1().ok_or_else(|| self.missing("wasm32-wasip1"))
    }

    fn check(&self) -> Result<(), Missing> {
        if self.has_cargo && self.sysroot.is_some() {
            return Ok(());
        }
        Err(Missing {
            what: "Rust (cargo and rustc)".to_owned(),
            fix: "install it from https://rustup.rs, then `rustup target add wasm32-wasip2`"
                .to_owned(),
        })
    }

    fn wasip1(&self) -> Option<Target> {
        let linkers = self.linkers.clone()?;
        let rustc = match (self.has_wasip1, &self.own_rustc) {
            (true, _) => None,
            (false, Some(rustc)) => Some(rustc.clone()),
            (false, None) => return None,
        };
        Some(Target::Wasip1 { rustc, linkers })
    }

    fn missing(&self, target: &str) -> Missing {
        let fix = if self.has_rustup {
            format!(
                "run `rustup target add {target}` (where rustup's server cannot be reached: `cargo xtask setup` in fnctl's source makes a sysroot from packages)"
            )
        } else {
            format!(
                "this Rust is not rustup's; install your system's package of std for {target}, or Rust from https://rustup.rs"
            )
        };
        Missing {
            what: format!("Rust's target {target}"),
            fix,
        }
    }
}

/// What a machine needs for Rust functions, if it needs something: for `fnctl doctor`.
pub(crate) fn rust_advice(facts: &RustFacts) -> Result<String, Missing> {
    facts.component_target().map(|target| match target {
        Target::Wasip2 => "wasm32-wasip2".to_owned(),
        Target::Wasip1 { rustc: None, .. } => "wasm32-wasip1 with wasm-component-ld".to_owned(),
        Target::Wasip1 {
            rustc: Some(rustc), ..
        } => format!("wasm32-wasip1 with {}", rustc.display()),
    })
}

/// The profile of `fnctl dev`, in its own folder of `target/`, so that it does not undo `fnctl build`'s work.
const QUICK: &str = "fnctl-dev";
/// What makes it quick: the compiler's work is kept and split, and there is no debug information for the platform to
/// read. Not unoptimised: that code is many times larger, and the platform has to compile all of it.
const QUICK_SETTINGS: [&str; 8] = [
    "inherits=\"dev\"",
    "opt-level=1",
    "debug=false",
    "strip=\"debuginfo\"",
    "incremental=true",
    "lto=\"off\"",
    "codegen-units=16",
    "panic=\"abort\"",
];

/// Where `cargo xtask setup` puts its sysroot, unless `FNCTL_WASM_SYSROOT` names another.
fn own_sysroot() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("FNCTL_WASM_SYSROOT") {
        return Some(PathBuf::from(folder));
    }
    fnctl_platform::cache_folder().map(|cache| cache.join("wasm-sysroot"))
}

/// A cargo build of one package.
#[derive(Debug)]
pub(super) struct CargoBuild {
    folder: PathBuf,
    target: Target,
    kind: Kind,
    profile: Profile,
    package: String,
    /// Of the crate: what the file is called.
    name: String,
    target_folder: PathBuf,
    neighbours: Vec<PathBuf>,
}

/// What `cargo metadata` says, as far as it matters here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<CrateTarget>,
    dependencies: Vec<Dependency>,
    default_run: Option<String>,
}

#[derive(Deserialize)]
struct CrateTarget {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Dependency {
    path: Option<PathBuf>,
}

impl CargoBuild {
    pub(super) fn plan(folder: &Path, profile: Profile) -> anyhow::Result<Self> {
        let facts = RustFacts::gather(folder);
        facts.check().map_err(|missing| lacking(&[missing]))?;
        let metadata = metadata(folder)?;
        let manifest = folder.join("Cargo.toml");
        let package = metadata
            .packages
            .into_iter()
            .find(|package| same_file(&package.manifest_path, &manifest))
            .with_context(|| format!("{} is a workspace without a package of its own; put function.toml beside the package's Cargo.toml", manifest.display()))?;
        let (kind, name) = what_it_is(&package)?;
        let target = match kind {
            Kind::Component => facts.component_target(),
            Kind::Program => facts.program_target(),
        };
        let target = target.map_err(|missing| lacking(&[missing]))?;
        let neighbours = package
            .dependencies
            .into_iter()
            .filter_map(|dependency| dependency.path)
            .filter(|path| !path.starts_with(folder))
            .collect();
        Ok(Self {
            folder: folder.to_path_buf(),
            target,
            kind,
            profile,
            package: package.name,
            name,
            target_folder: metadata.target_directory,
            neighbours,
        })
    }

    pub(super) fn neighbours(&self) -> &[PathBuf] {
        &self.neighbours
    }

    pub(super) fn target_folder(&self) -> &Path {
        &self.target_folder
    }

    fn triple(&self) -> &'static str {
        match self.target {
            Target::Wasip2 => "wasm32-wasip2",
            Target::Wasip1 { .. } => "wasm32-wasip1",
        }
    }

    /// The file that cargo writes.
    pub(super) fn output(&self) -> PathBuf {
        let profile = match self.profile {
            Profile::Release => "release",
            Profile::Quick => QUICK,
        };
        self.target_folder
            .join(self.triple())
            .join(profile)
            .join(format!("{}.wasm", self.name))
    }

    pub(super) fn describe(&self) -> String {
        format!("cargo, {}", self.triple())
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "rustc",
            "--target",
            self.triple(),
            "--package",
            &self.package,
        ]
        .map(str::to_owned)
        .to_vec();
        if self.output().is_file() {
            // The first build takes a while and says how far it is; later ones only say what is wrong.
            arguments.push("--quiet".into());
        }
        match self.profile {
            Profile::Release => arguments.push("--release".into()),
            Profile::Quick => {
                arguments.extend(["--profile".into(), QUICK.into()]);
                for setting in QUICK_SETTINGS {
                    arguments.extend(["--config".into(), format!("profile.{QUICK}.{setting}")]);
                }
            }
        }
        match self.kind {
            Kind::Component => arguments.push("--lib".into()),
            Kind::Program => arguments.extend(["--bin".into(), self.name.clone()]),
        }
        if self.kind == Kind::Component && matches!(self.target, Target::Wasip1 { .. }) {
            // The reactor adapter brings what a library needs, environment variables among it; the smaller proxy adapter
            // has none. An argument of this crate alone, so that RUSTFLAGS of the user's stay what they are.
            arguments.extend(["--".into(), "-Clink-arg=--wasi-adapter=reactor".into()]);
        }
        arguments
    }

    pub(super) fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new("cargo");
        command.args(self.arguments()).current_dir(&self.folder);
        if let Target::Wasip1 { rustc, linkers } = &self.target {
            if let Some(rustc) = rustc {
                command.env("RUSTC", rustc);
            }
            let mut paths = vec![linkers.join("gcc-ld"), linkers.clone()];
            paths.extend(
                std::env::var_os("PATH")
                    .iter()
                    .flat_map(std::env::split_paths),
            );
            command.env("PATH", std::env::join_paths(paths)?);
            if self.kind == Kind::Component {
                command.env(
                    "CARGO_TARGET_WASM32_WASIP1_LINKER",
                    linkers.join("wasm-component-ld"),
                );
            }
        }
        Ok(command)
    }
}

fn metadata(folder: &Path) -> anyhow::Result<Metadata> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .context("cargo cannot be started")?;
    ensure!(
        output.status.success(),
        "cargo does not understand this project: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("`cargo metadata` cannot be read")
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// A library that becomes a component, or else a program that becomes a command, with its name as a file.
fn what_it_is(package: &Package) -> anyhow::Result<(Kind, String)> {
    let of_kind = |kind: &str| {
        package
            .targets
            .iter()
            .filter(|target| target.kind.iter().any(|one| one == kind))
            .map(|target| target.name.as_str())
            .collect::<Vec<_>>()
    };
    if let [library] = of_kind("cdylib").as_slice() {
        return Ok((Kind::Component, library.replace('-', "_")));
    }
    let programs = of_kind("bin");
    let chosen = match (package.default_run.as_deref(), programs.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, []) => bail!(
            "the crate '{}' is neither a component nor a program; add to its Cargo.toml: [lib] crate-type = [\"cdylib\"]",
            package.name
        ),
        (None, many) => bail!(
            "the crate '{}' has {} programs; choose one with default-run in its Cargo.toml",
            package.name,
            many.len()
        ),
    };
    Ok((Kind::Program, chosen.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> RustFacts {
        RustFacts {
            has_cargo: true,
            has_rustup: true,
            sysroot: Some("/rust".into()),
            linkers: Some("/rust/bin".into()),
            ..RustFacts::default()
        }
    }

    #[test]
    fn the_best_target_is_chosen_and_a_missing_one_told() {
        let wasip1 = |rustc: Option<&str>| Target::Wasip1 {
            rustc: rustc.map(PathBuf::from),
            linkers: "/rust/bin".into(),
        };
        let both = RustFacts {
            has_wasip1: true,
            has_wasip2: true,
            ..facts()
        };
        assert_eq!(both.component_target(), Ok(Target::Wasip2));
        assert_eq!(both.program_target(), Ok(wasip1(None)));
        let own = RustFacts {
            own_rustc: Some("/own/rustc".into()),
            ..facts()
        };
        assert_eq!(own.component_target(), Ok(wasip1(Some("/own/rustc"))));
        let first = RustFacts {
            has_wasip1: true,
            ..own.clone()
        };
        assert_eq!(first.component_target(), Ok(wasip1(None)));
        for (facts, fix) in [
            (facts(), "rustup target add wasm32-wasip2"),
            (
                RustFacts {
                    has_rustup: false,
                    ..facts()
                },
                "rustup.rs",
            ),
            (RustFacts::default(), "https://rustup.rs"),
            // Without the linker a sysroot alone makes no component.
            (
                RustFacts {
                    linkers: None,
                    ..own
                },
                "rustup target add wasm32-wasip2",
            ),
        ] {
            let missing = facts.component_target().unwrap_err();
            assert!(missing.fix.contains(fix), "{missing:?}");
        }
        let missing = facts().program_target().unwrap_err();
        assert!(missing.fix.contains("wasm32-wasip1"), "{missing:?}");
    }

    fn build(kind: Kind, target: Target, profile: Profile) -> CargoBuild {
        CargoBuild {
            folder: "/p".into(),
            target,
            kind,
            profile,
            package: "my-fn".into(),
            name: "my_fn".into(),
            target_folder: "/p/target".into(),
            neighbours: Vec::new(),
        }
    }

    #[test]
    fn cargo_is_told_what_to_write_and_where() {
        let own = Target::Wasip1 {
            rustc: Some("/own/rustc".into()),
            linkers: "/rust/bin".into(),
        };
        let release = build(Kind::Component, Target::Wasip2, Profile::Release);
        assert_eq!(
            release.arguments().join(" "),
            "rustc --target wasm32-wasip2 --package my-fn --release --lib"
        );
        assert_eq!(
            release.output(),
            Path::new("/p/target/wasm32-wasip2/release/my_fn.wasm")
        );
        let quick = build(Kind::Component, own.clone(), Profile::Quick);
        assert!(
            quick
                .arguments()
                .join(" ")
                .contains("--profile fnctl-dev --config profile.fnctl-dev.inherits")
        );
        assert!(quick.arguments().ends_with(&[
            "--".to_owned(),
            "-Clink-arg=--wasi-adapter=reactor".to_owned()
        ]));
        assert_eq!(
            quick.output(),
            Path::new("/p/target/wasm32-wasip1/fnctl-dev/my_fn.wasm")
        );
        let command = quick.command().unwrap();
        let variables: Vec<_> = command
            .get_envs()
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            variables,
            ["CARGO_TARGET_WASM32_WASIP1_LINKER", "PATH", "RUSTC"]
        );
        let program = build(Kind::Program, own, Profile::Release);
        assert!(
            program
                .arguments()
                .ends_with(&["--bin".to_owned(), "my_fn".to_owned()])
        );
        assert!(
            !program
                .command()
                .unwrap()
                .get_envs()
                .any(|(name, _)| name.to_string_lossy().ends_with("LINKER"))
        );
    }

    #[test]
    fn a_crate_is_a_component_or_a_program() {
        let package = |targets: &[(&str, &str)], default_run: Option<&str>| Package {
            name: "x".into(),
            manifest_path: "/x/Cargo.toml".into(),
            targets: targets
                .iter()
                .map(|(name, kind)| CrateTarget {
                    name: (*name).into(),
                    kind: vec![(*kind).into()],
                })
                .collect(),
            dependencies: Vec::new(),
            default_run: default_run.map(str::to_owned),
        };
        let component = what_it_is(&package(&[("my-fn", "cdylib"), ("t", "bin")], None)).unwrap();
        assert_eq!(component, (Kind::Component, "my_fn".to_owned()));
        let program = what_it_is(&package(&[("my-fn", "bin")], None)).unwrap();
        assert_eq!(program, (Kind::Program, "my-fn".to_owned()));
        let error = what_it_is(&package(&[("l", "lib")], None))
            .unwrap_err()
            .to_string();
        assert!(error.contains("cdylib"), "{error}");
        let two = [("a", "bin"), ("b", "bin")];
        assert!(
            what_it_is(&package(&two, None))
                .unwrap_err()
                .to_string()
                .contains("default-run")
        );
        assert_eq!(what_it_is(&package(&two, Some("b"))).unwrap().1, "b");
    }
}
