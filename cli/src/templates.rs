//! The project templates and the SDK's sources, embedded in this binary: a new project gets the SDK of exactly this
//! version, although the SDK is on no registry.
//!
//! A template is a folder under `cli/templates/`. Its `template.toml` says what it is and is not copied; in the paths and
//! texts of all other files `{{name}}` becomes the function's name.

use anyhow::{Context, bail};
use fnctl_core::FunctionName;
use include_dir::{Dir, DirEntry, include_dir};
use serde::Deserialize;
use std::path::{Path, PathBuf};

static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/templates");
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../sdk");
static WIT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../wit");
/// Where the SDK's manifests inherit from.
static WORKSPACE: &str = include_str!("../../Cargo.toml");
/// The versions the SDK is tested with. Cargo drops what a project does not use and keeps the rest.
static LOCK: &str = include_str!("../../examples/Cargo.lock");

/// What tools write into source folders; never part of a project.
const LEFTOVERS: [&str; 4] = ["target", "node_modules", "__pycache__", ".venv"];
/// Crates of every Rust project, which its own crate cannot be called like, and names that Rust keeps for itself.
const TAKEN: [&str; 56] = [
    "abstract", "alloc", "as", "async", "await", "become", "box", "break", "const", "continue",
    "core", "crate", "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen",
    "if", "impl", "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv",
    "pub", "ref", "return", "self", "serde", "static", "std", "struct", "super", "test", "trait",
    "true", "try", "type", "typeof", "unsafe", "unsized", "use", "virtual", "where", "while",
    "yield",
];

/// One template.
#[derive(Debug)]
pub(crate) struct Template {
    folder: &'static Dir<'static>,
    pub(crate) about: About,
}

/// `template.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    /// One line.
    pub(crate) about: String,
    /// What runs the project's unit test on this machine.
    pub(crate) test: String,
    /// What must be run once before the project builds, if anything.
    pub(crate) setup: Option<String>,
    /// The folder under `sdk/` that goes into the project's `sdk/`; a Rust project needs none.
    pub(crate) sdk: Option<String>,
}

/// A file of a new project, with its path in it.
#[derive(Debug)]
pub(crate) struct NewFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

/// The names of the templates, for the command line.
pub(crate) fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = TEMPLATES
        .dirs()
        .filter_map(|folder| folder.path().file_name()?.to_str())
        .collect();
    names.sort_unstable();
    names
}

impl Template {
    /// A template by its name.
    pub(crate) fn find(name: &str) -> anyhow::Result<Self> {
        let Some(folder) = TEMPLATES.get_dir(name) else {
            bail!(
                "there is no template '{name}'; choose one of {}",
                names().join(", ")
            )
        };
        let about = folder
            .get_file(folder.path().join("template.toml"))
            .and_then(|file| file.contents_utf8())
            .with_context(|| format!("the template '{name}' has no template.toml"))?;
        let about = toml::from_str(about)
            .with_context(|| format!("template.toml of '{name}' is not right"))?;
        Ok(Self { folder, about })
    }

    fn is_rust(&self) -> bool {
        self.folder
            .get_file(self.folder.path().join("Cargo.toml"))
            .is_some()
    }

    /// Every file of a project called `name`.
    pub(crate) fn project(&self, name: &FunctionName) -> anyhow::Result<Vec<NewFile>> {
        let crate_name = name.as_str().replace('-', "_");
        if self.is_rust()
            && (TAKEN.contains(&crate_name.as_str()) || crate_name.starts_with("fnctl_sdk"))
        {
            bail!(
                "'{name}' cannot be the name of a Rust crate; choose another, such as '{name}-function'"
            );
        }
        let mut files = Vec::new();
        copy(self.folder, Path::new(""), &mut files)?;
        files.retain(|file| file.path != Path::new("template.toml"));
        for file in &mut files {
            render(file, name);
        }
        if self.is_rust() {
            rust_sdk(&mut files)?;
        } else if let Some(sdk) = &self.about.sdk {
            let folder = SDK
                .get_dir(sdk)
                .with_context(|| format!("this fnctl has no SDK '{sdk}'"))?;
            copy(folder, Path::new("sdk"), &mut files)?;
        }
        Ok(files)
    }
}

/// Collects the files of an embedded folder under another path.
fn copy(folder: &Dir<'_>, to: &Path, files: &mut Vec<NewFile>) -> anyhow::Result<()> {
    fn walk(
        root: &Path,
        folder: &Dir<'_>,
        to: &Path,
        files: &mut Vec<NewFile>,
    ) -> anyhow::Result<()> {
        for entry in folder.entries() {
            let is_leftover = entry
                .path()
                .file_name()
                .is_some_and(|name| LEFTOVERS.iter().any(|leftover| name == *leftover));
            match entry {
                DirEntry::Dir(inner) if !is_leftover => walk(root, inner, to, files)?,
                DirEntry::File(file) if !is_leftover => files.push(NewFile {
                    path: to.join(file.path().strip_prefix(root)?),
                    bytes: file.contents().to_vec(),
                }),
                _ => {}
            }
        }
        Ok(())
    }
    walk(folder.path(), folder, to, files)
}

/// Puts the function's name where the template names it. Files that are no text stay as they are.
fn render(file: &mut NewFile, name: &FunctionName) {
    if let Some(path) = file.path.to_str() {
        file.path = PathBuf::from(path.replace("{{name}}", name.as_str()));
    }
    if let Ok(text) = std::str::from_utf8(&file.bytes)
        && text.contains("{{name}}")
    {
        file.bytes = text.replace("{{name}}", name.as_str()).into_bytes();
    }
}

/// The SDK as path dependencies that stand alone, with the WIT files where it looks for them, and the tested versions.
fn rust_sdk(files: &mut Vec<NewFile>) -> anyhow::Result<()> {
    let vendor = Path::new("vendor");
    let sdk = |path: &str| {
        SDK.get_dir(path)
            .with_context(|| format!("this fnctl has no sdk/{path}"))
    };
    copy(sdk("src")?, &vendor.join("fnctl-sdk/src"), files)?;
    copy(
        sdk("macros/src")?,
        &vendor.join("fnctl-sdk-macros/src"),
        files,
    )?;
    copy(&WIT, &vendor.join("wit"), files)?;
    for (manifest, folder) in [
        ("Cargo.toml", "fnctl-sdk"),
        ("macros/Cargo.toml", "fnctl-sdk-macros"),
    ] {
        let text = SDK
            .get_file(manifest)
            .and_then(|file| file.contents_utf8())
            .with_context(|| format!("this fnctl has no sdk/{manifest}"))?;
        files.push(NewFile {
            path: vendor.join(folder).join("Cargo.toml"),
            bytes: stand_alone(text, WORKSPACE)?.into_bytes(),
        });
    }
    files.push(NewFile {
        path: PathBuf::from("Cargo.lock"),
        bytes: LOCK.as_bytes().to_vec(),
    });
    Ok(())
}

/// A manifest with everything it inherits from its workspace written out. Crates of the workspace become neighbours.
fn stand_alone(manifest: &str, workspace: &str) -> anyhow::Result<String> {
    let mut manifest: toml::Table = manifest.parse()?;
    let root: toml::Table = workspace.parse()?;
    let inherited =
        |section: &str, key: &str| root.get("workspace")?.get(section)?.get(key).cloned();
    // Lints are the workspace's wish to itself; they may not fail somebody else's build.
    manifest.remove("lints");
    fn inherits(value: &toml::Value) -> bool {
        value.get("workspace").and_then(toml::Value::as_bool) == Some(true)
    }
    fn resolve(
        table: &mut toml::Table,
        inherited: &dyn Fn(&str) -> Option<toml::Value>,
    ) -> anyhow::Result<()> {
        for (key, value) in table.iter_mut().filter(|(_, value)| inherits(value)) {
            *value = inherited(key).with_context(|| format!("the workspace has no '{key}'"))?;
            if let Some(path) = value.get_mut("path") {
                *path = toml::Value::String(format!("../{key}"));
            }
        }
        Ok(())
    }
    let dependency = |key: &str| inherited("dependencies", key);
    if let Some(package) = manifest
        .get_mut("package")
        .and_then(toml::Value::as_table_mut)
    {
        resolve(package, &|key| inherited("package", key))?;
    }
    if let Some(dependencies) = manifest
        .get_mut("dependencies")
        .and_then(toml::Value::as_table_mut)
    {
        resolve(dependencies, &dependency)?;
    }
    if let Some(targets) = manifest
        .get_mut("target")
        .and_then(toml::Value::as_table_mut)
    {
        for (_, target) in targets.iter_mut() {
            if let Some(dependencies) = target
                .get_mut("dependencies")
                .and_then(toml::Value::as_table_mut)
            {
                resolve(dependencies, &dependency)?;
            }
        }
    }
    Ok(toml::to_string(&manifest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_makes_a_project_without_placeholders_or_leftovers() {
        assert!(names().contains(&"rust-http") && names().contains(&"rust-inference"));
        for template in names() {
            let files = Template::find(template)
                .unwrap()
                .project(&"my-fn".parse().unwrap())
                .unwrap();
            let total: usize = files.iter().map(|file| file.bytes.len()).sum();
            assert!(total < 4 << 20, "{template} is {total} bytes");
            assert!(
                files
                    .iter()
                    .any(|file| file.path == Path::new("function.toml"))
            );
            for file in files {
                let text = String::from_utf8_lossy(&file.bytes);
                let path = file.path.display();
                assert!(!text.contains("{{name}}"), "{template}: {path}");
                assert!(
                    file.path.is_relative() && !path.to_string().contains(".."),
                    "{path}"
                );
                assert!(
                    !LEFTOVERS
                        .iter()
                        .any(|leftover| file.path.iter().any(|part| part == *leftover)),
                    "{path}"
                );
            }
        }
    }

    #[test]
    fn the_vendored_manifests_inherit_nothing() {
        let files = Template::find("rust-http")
            .unwrap()
            .project(&"a".parse().unwrap())
            .unwrap();
        let manifest = |path: &str| -> toml::Table {
            let file = files
                .iter()
                .find(|file| file.path == Path::new(path))
                .unwrap();
            let text = std::str::from_utf8(&file.bytes).unwrap();
            assert!(!text.contains("workspace"), "{text}");
            text.parse().unwrap()
        };
        let sdk = manifest("vendor/fnctl-sdk/Cargo.toml");
        assert_eq!(
            sdk["package"]["version"].as_str(),
            Some(env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(
            sdk["dependencies"]["fnctl-sdk-macros"]["path"].as_str(),
            Some("../fnctl-sdk-macros")
        );
        assert!(sdk["dependencies"]["serde"]["version"].is_str());
        manifest("vendor/fnctl-sdk-macros/Cargo.toml");
        // Where the SDK's `generate!` looks for them.
        for path in [
            "vendor/wit/nn/wasi-nn.wit",
            "vendor/wit/guest/lifecycle.wit",
        ] {
            assert!(
                files.iter().any(|file| file.path == Path::new(path)),
                "{path}"
            );
        }
    }

    #[test]
    fn names_that_rust_keeps_are_refused() {
        let rust = Template::find("rust-http").unwrap();
        for taken in ["match", "std", "serde", "fnctl-sdk-macros"] {
            assert!(rust.project(&taken.parse().unwrap()).is_err(), "{taken}");
        }
        assert!(TAKEN.is_sorted());
    }
}
