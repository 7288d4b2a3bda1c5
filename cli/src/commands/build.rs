//! `fnctl build`.

use crate::build::{Children, Profile, Project};
use crate::deploying::size;
use crate::output;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
#[command(
    after_help = "A [build] command in function.toml wins; otherwise a Cargo.toml is built for a Wasm target that is installed.\nThe compiler's words go to stderr. The artifact is put where function.toml says.\n\nExamples:\n  fnctl build\n  fnctl build examples/fraud && fnctl deploy examples/fraud"
)]
pub(crate) struct BuildArgs {
    /// The project: a folder with function.toml.
    #[arg(default_value = ".", value_name = "DIR")]
    pub(crate) folder: PathBuf,
}

pub(crate) fn run(args: &BuildArgs) -> anyhow::Result<()> {
    let project = Project::open(&args.folder)?;
    let plan = project.plan(Profile::Release)?;
    output::note(format!("building with {}", plan.describe()));
    let built = plan.run(&Children::default())?;
    output::line(format!(
        "built {} ({}) in {:.1} s; next: fnctl deploy{}",
        project.deployment.artifact.display(),
        size(built.size),
        built.took.as_secs_f64(),
        if args.folder.as_os_str() == "." {
            String::new()
        } else {
            format!(" {}", args.folder.display())
        }
    ))
}
