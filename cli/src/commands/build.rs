//! `fnctl build`.

use crate::app::App;
use crate::build::{Children, Profile, Project};
use crate::deploying::size;
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

pub(crate) fn run(app: &App, args: &BuildArgs) -> anyhow::Result<()> {
    let project = Project::open(&args.folder)?;
    let plan = project.plan(Profile::Release)?;
    app.out.note(format!("building with {}", plan.describe()));
    let built = plan.run(&Children::default())?;
    let artifact = project.deployment.artifact.display().to_string();
    let seconds = built.took.as_secs_f64();
    let value = serde_json::json!({ "artifact": artifact, "size": built.size, "seconds": seconds });
    app.out.show(&value, |page| {
        let next = match args.folder.as_os_str() {
            here if here == "." => "fnctl deploy".to_owned(),
            _ => format!("fnctl deploy {}", args.folder.display()),
        };
        page.done(format!(
            "built {artifact} ({}) in {seconds:.1} s; next: {next}",
            size(built.size)
        ));
    })
}
