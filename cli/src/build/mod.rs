//! Building a project: what builds it, whether that is installed, running it, and putting the artifact in its place.
//!
//! A `[build]` command wins; otherwise the project's files say what it is. Planning asks the tool chain a few questions
//! and is done once; running a plan is all that `fnctl dev` does at a save.

mod cargo;
mod command;
mod run;

pub(crate) use cargo::{RustFacts, rust_advice};
pub(crate) use command::tool_advice;
pub(crate) use run::Children;

use crate::function_file::{BuildTable, Deployment};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Something that is not installed, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) what: String,
    pub(crate) fix: String,
}

/// How much the compiler optimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For deploying: as the project's release profile says.
    Release,
    /// For trying: compiled in as little time as possible.
    Quick,
}

/// A folder with a function.toml.
#[derive(Debug)]
pub(crate) struct Project {
    /// Absolute.
    pub(crate) folder: PathBuf,
    pub(crate) deployment: Deployment,
}

/// How a project is built; good until its manifests change.
#[derive(Debug)]
pub(crate) struct Plan {
    folder: PathBuf,
    how: How,
    /// What the build writes.
    output: PathBuf,
    /// Where the artifact is deployed from.
    artifact: PathBuf,
}

#[derive(Debug)]
enum How {
    Command(String),
    Cargo(cargo::CargoBuild),
}

/// What a build came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Built {
    /// Of the artifact, in bytes.
    pub(crate) size: u64,
    /// What the compiler took.
    pub(crate) took: Duration,
}

impl Project {
    /// Reads the project in a folder.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let folder = std::fs::canonicalize(folder)
            .with_context(|| format!("there is no folder {}", folder.display()))?;
        if !folder.join("function.toml").is_file() {
            bail!(
                "{} has no function.toml, so it is no project; make one with `fnctl new NAME`",
                folder.display()
            );
        }
        let deployment = Deployment::read(&folder)?;
        Ok(Self { folder, deployment })
    }

    /// Finds out how the project is built. An error names everything that is missing.
    pub(crate) fn plan(&self, profile: Profile) -> anyhow::Result<Plan> {
        let build = &self.deployment.build;
        let artifact = self.deployment.artifact.clone();
        let own_output = build.output.as_ref().map(|output| self.folder.join(output));
        let (how, output) = match &build.command {
            Some(command) => {
                check(&command::missing(command, &self.folder))?;
                let output = own_output.unwrap_or_else(|| artifact.clone());
                (How::Command(command.clone()), output)
            }
            None if self.folder.join("Cargo.toml").is_file() => {
                let planned = cargo::CargoBuild::plan(&self.folder, profile)?;
                let output = own_output.unwrap_or_else(|| planned.output());
                (How::Cargo(planned), output)
            }
            None => bail!("{}", undetected(&self.folder, build)),
        };
        Ok(Plan {
            folder: self.folder.clone(),
            how,
            output,
            artifact,
        })
    }
}

impl Plan {
    /// Folders outside the project whose files the build reads.
    pub(crate) fn neighbours(&self) -> &[PathBuf] {
        match &self.how {
            How::Command(_) => &[],
            How::Cargo(cargo) => cargo.neighbours(),
        }
    }

    /// Files and folders that the build writes.
    pub(crate) fn written(&self) -> Vec<PathBuf> {
        let mut written = vec![self.output.clone(), self.artifact.clone()];
        if let How::Cargo(cargo) = &self.how {
            written.push(cargo.target_folder().to_path_buf());
        }
        written
    }

    /// What will be run, for people.
    pub(crate) fn describe(&self) -> String {
        match &self.how {
            How::Command(command) => command.clone(),
            How::Cargo(cargo) => cargo.describe(),
        }
    }

    /// Builds, and puts the artifact where it is deployed from. The compiler's words go to stderr.
    pub(crate) fn run(&self, children: &Children) -> anyhow::Result<Built> {
        let command = match &self.how {
            How::Command(command) => command::shell(command, &self.folder),
            How::Cargo(cargo) => cargo.command()?,
        };
        let since = Instant::now();
        let status = children.run(command)?;
        let took = since.elapsed();
        if !status.success() {
            bail!("the build failed ({status}); its messages are above");
        }
        if !self.output.is_file() {
            bail!(
                "the build succeeded but did not write {}; correct [build] output or artifact in function.toml",
                self.output.display()
            );
        }
        if self.output != self.artifact {
            place(&self.output, &self.artifact)?;
        }
        let size = self.artifact.metadata()?.len();
        Ok(Built { size, took })
    }
}

/// An error if something is missing.
fn check(missing: &[Missing]) -> anyhow::Result<()> {
    if missing.is_empty() {
        Ok(())
    } else {
        Err(lacking(missing))
    }
}

fn lacking(missing: &[Missing]) -> anyhow::Error {
    let lines: Vec<_> = missing
        .iter()
        .map(|missing| format!("\n  {} is missing: {}", missing.what, missing.fix))
        .collect();
    anyhow::anyhow!("this project cannot be built here yet:{}", lines.concat())
}

/// What to say of a folder that nobody knows how to build.
fn undetected(folder: &Path, build: &BuildTable) -> String {
    let known = [
        ("pyproject.toml", "componentize-py"),
        ("requirements.txt", "componentize-py"),
        ("package.json", "npm run build"),
        ("Makefile", "make"),
    ];
    let hint = known
        .iter()
        .find(|(file, _)| folder.join(file).is_file())
        .map_or("make", |(_, command)| *command);
    let output = build
        .output
        .as_ref()
        .map(|_| String::new())
        .unwrap_or_else(|| " and the file it writes as `output`".to_owned());
    format!(
        "{} has no Cargo.toml and no build command; say how it is built in function.toml: [build] command = \"{hint}\"{output}",
        folder.display()
    )
}

/// Copies a file over one that may be in use.
fn place(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    let temporary = to.with_extension("part");
    std::fs::copy(from, &temporary)
        .and_then(|_| std::fs::rename(&temporary, to))
        .with_context(|| format!("{} cannot be written", to.display()))
}

/// Where a program is on the path.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .map(|folder| folder.join(program))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(function: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Project) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("function.toml"), function).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let project = Project::open(folder.path()).unwrap();
        (folder, project)
    }

    #[test]
    fn a_command_builds_and_its_output_becomes_the_artifact() {
        let function = "name = 'a'\nartifact = 'deploy/a.wasm'\n[build]\ncommand = 'mkdir -p out && printf wasm > out/x.wasm'\noutput = 'out/x.wasm'\n";
        let (folder, project) = project(function, &[]);
        let plan = project.plan(Profile::Release).unwrap();
        let built = plan.run(&Children::default()).unwrap();
        assert_eq!(built.size, 4);
        let artifact = folder.path().join("deploy/a.wasm");
        assert_eq!(std::fs::read(artifact).unwrap(), b"wasm");
    }

    #[test]
    fn a_build_that_fails_or_writes_nothing_is_an_error() {
        for (command, expected) in [("exit 3", "exit status: 3"), ("true", "did not write")] {
            let function =
                format!("name = 'a'\nartifact = 'a.wasm'\n[build]\ncommand = '{command}'\n");
            let (_folder, project) = project(&function, &[]);
            let plan = project.plan(Profile::Release).unwrap();
            let error = plan.run(&Children::default()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_built_says_what_to_write_or_install() {
        let (_folder, unknown) = project(
            "name = 'a'\nartifact = 'a.wasm'\n",
            &[("package.json", "{}")],
        );
        let error = unknown.plan(Profile::Release).unwrap_err().to_string();
        assert!(error.contains("command = \"npm run build\""), "{error}");
        let function = "name = 'a'\nartifact = 'a.wasm'\n[build]\ncommand = 'no-such-compiler x'\n";
        let (_folder, missing) = project(function, &[]);
        let error = missing.plan(Profile::Release).unwrap_err().to_string();
        assert!(error.contains("no-such-compiler is missing"), "{error}");
        assert!(
            Project::open(Path::new("/"))
                .unwrap_err()
                .to_string()
                .contains("fnctl new")
        );
    }
}
