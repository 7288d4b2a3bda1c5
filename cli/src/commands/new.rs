//! `fnctl new`.

use crate::app::App;
use crate::output::Tone;
use crate::templates::{self, NewFile, Template};
use anyhow::Context;
use clap::Args;
use clap::builder::PossibleValuesParser;
use fnctl_core::FunctionName;
use std::io::ErrorKind;
use std::path::Path;

#[derive(Args, Debug)]
#[command(
    after_help = "The project builds, has a passing unit test and deploys as it is. A Rust project carries the SDK of this fnctl in vendor/.\n\nExamples:\n  fnctl new iris --template rust-inference\n  fnctl new greeter -t rust-http\n  fnctl new iris --template python"
)]
pub(crate) struct NewArgs {
    /// The function's name, and the folder that is made.
    pub(crate) name: FunctionName,
    /// What it starts from.
    #[arg(short, long, default_value = "rust-inference", value_parser = PossibleValuesParser::new(templates::names()))]
    pub(crate) template: String,
}

pub(crate) fn run(app: &App, args: &NewArgs) -> anyhow::Result<()> {
    let template = Template::find(&args.template)?;
    let files = template.project(&args.name)?;
    let name = args.name.as_str();
    write(Path::new(name), &files)?;
    let about = &template.about;
    let cd = format!("cd {name}");
    let mut next = vec![(cd.as_str(), "")];
    next.extend(
        about
            .setup
            .as_deref()
            .map(|setup| (setup, "once: what it is built with")),
    );
    next.push((&about.test, "the unit test, on this machine"));
    next.push(("fnctl dev", "build, serve, redeploy at every save"));
    let commands: Vec<_> = next.iter().map(|(command, _)| *command).collect();
    let made = serde_json::json!({ "folder": name, "template": args.template, "next": commands });
    app.out.show(&made, |page| {
        page.done(format!("made {name}/ ({}); next:", about.about));
        for (command, what) in next {
            if what.is_empty() {
                page.pieces([(format!("  {command}"), Tone::Strong)]);
            } else {
                page.pieces([
                    (format!("  {command:<11}"), Tone::Strong),
                    (format!("  # {what}"), Tone::Dim),
                ]);
            }
        }
    })
}

/// Writes a project into a folder that must not exist, or nothing.
fn write(folder: &Path, files: &[NewFile]) -> anyhow::Result<()> {
    std::fs::create_dir(folder).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => anyhow::anyhow!(
            "{} exists already and is left as it is; choose another name, or move it away",
            folder.display()
        ),
        _ => anyhow::Error::new(error).context(format!("{} cannot be made", folder.display())),
    })?;
    let written = files.iter().try_for_each(|file| {
        let path = folder.join(&file.path);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, &file.bytes))
            .with_context(|| format!("{} cannot be written", path.display()))
    });
    if written.is_err() {
        // The folder is ours: half a project helps nobody.
        let _ = std::fs::remove_dir_all(folder);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_folder_that_exists_is_never_touched_and_a_failure_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("x");
        std::fs::create_dir(&folder).unwrap();
        let file = |path: &str| NewFile {
            path: PathBuf::from(path),
            bytes: b"new".to_vec(),
        };
        let error = write(&folder, &[file("a")]).unwrap_err();
        assert!(error.to_string().contains("exists already"), "{error}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        // The second file needs a folder where the first one is.
        let other = home.path().join("y");
        assert!(write(&other, &[file("a"), file("a/b")]).is_err());
        assert!(!other.exists());
    }
}
