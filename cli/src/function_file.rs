//! `function.toml`: a name, the artifact's path, the models' paths, how the artifact is built, and a `FunctionConfig`.

use anyhow::{Context, bail};
use fnctl_core::config::FunctionConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is to be deployed, with paths that exist.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) name: Option<String>,
    pub(crate) artifact: PathBuf,
    pub(crate) models: BTreeMap<String, PathBuf>,
    pub(crate) config: FunctionConfig,
    pub(crate) build: BuildTable,
}

/// The `[build]` table: how `fnctl build` makes the artifact. It stays on this machine.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BuildTable {
    /// Run by `sh -c` in the project's folder; without it the tool chain is detected.
    pub(crate) command: Option<String>,
    /// The file that the command writes; the artifact itself if not given.
    pub(crate) output: Option<PathBuf>,
    /// Which files `fnctl dev` watches, as globs relative to the folder; all of them if empty.
    #[serde(default)]
    pub(crate) watch: Vec<String>,
}

/// The keys of the file that are not part of the configuration.
#[derive(Deserialize)]
struct Paths {
    name: String,
    artifact: Option<PathBuf>,
    #[serde(default)]
    models: BTreeMap<String, PathBuf>,
    #[serde(default)]
    build: BuildTable,
}

impl Deployment {
    /// A folder with function.toml, or a bare artifact.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let file = if path.is_dir() {
            path.join("function.toml")
        } else {
            path.to_path_buf()
        };
        if file
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            return Self::from_file(&file);
        }
        if !file.is_file() {
            bail!(
                "{} does not exist; name a .wasm file, or a folder with function.toml",
                file.display()
            );
        }
        Ok(Self {
            name: None,
            artifact: file,
            models: BTreeMap::new(),
            config: FunctionConfig::default(),
            build: BuildTable::default(),
        })
    }

    /// Says what to do if the artifact has not been built.
    pub(crate) fn check_built(&self) -> anyhow::Result<()> {
        if !self.artifact.is_file() {
            bail!(
                "{} is not there; run `fnctl build` first, or correct the path",
                self.artifact.display()
            );
        }
        Ok(())
    }

    fn from_file(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| {
            format!("{} cannot be read; a folder to deploy needs a function.toml with at least name and artifact", file.display())
        })?;
        Self::parse(&text, file.parent().unwrap_or(Path::new(".")))
            .with_context(|| format!("{} is not right", file.display()))
    }

    fn parse(text: &str, folder: &Path) -> anyhow::Result<Self> {
        let mut rest: toml::Table = text.parse()?;
        let mut own = toml::Table::new();
        for key in ["name", "artifact", "models", "build"] {
            if let Some(value) = rest.remove(key) {
                own.insert(key.to_owned(), value);
            }
        }
        let Paths {
            name,
            artifact,
            models,
            build,
        } = own.try_into()?;
        let Some(artifact) = artifact.or_else(|| build.output.clone()) else {
            bail!("missing field `artifact`: name the .wasm file to deploy, relative to this file")
        };
        let config: FunctionConfig = rest.try_into()?;
        Ok(Self {
            name: Some(name),
            artifact: folder.join(artifact),
            models: models
                .into_iter()
                .map(|(name, path)| (name, folder.join(path)))
                .collect(),
            config,
            build,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_core::ByteSize;

    #[test]
    fn paths_are_relative_to_the_file_and_the_rest_is_configuration() {
        let text = "name = 'fraud'\nartifact = 'fraud.wasm'\nmemory = '64MiB'\n[models]\nfraud = 'm/fraud.onnx'\n[env]\nA = 'b'\n";
        let deployment = Deployment::parse(text, Path::new("/x")).unwrap();
        assert_eq!(deployment.artifact, Path::new("/x/fraud.wasm"));
        assert_eq!(deployment.models["fraud"], Path::new("/x/m/fraud.onnx"));
        assert_eq!(deployment.config.memory, ByteSize::mib(64));
        assert_eq!(deployment.config.env["A"], "b");
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_it() {
        let error = Deployment::parse(
            "name = 'a'\nartifact = 'a.wasm'\nmemroy = '1MiB'\n",
            Path::new("."),
        )
        .unwrap_err();
        assert!(format!("{error:#}").contains("memroy"), "{error:#}");
        assert!(Deployment::parse("artifact = 'a.wasm'\n", Path::new(".")).is_err());
        let error = Deployment::parse("name = 'a'\n", Path::new(".")).unwrap_err();
        assert!(error.to_string().contains("artifact"), "{error}");
        let misspelt = "name = 'a'\nartifact = 'a.wasm'\n[build]\ncomand = 'make'\n";
        let error = Deployment::parse(misspelt, Path::new(".")).unwrap_err();
        assert!(format!("{error:#}").contains("comand"), "{error:#}");
    }

    #[test]
    fn the_build_table_stays_here_and_its_output_can_stand_for_the_artifact() {
        let text =
            "name = 'a'\n[build]\ncommand = 'make'\noutput = 'out/a.wasm'\nwatch = ['src/**']\n";
        let deployment = Deployment::parse(text, Path::new("/x")).unwrap();
        assert_eq!(deployment.artifact, Path::new("/x/out/a.wasm"));
        assert_eq!(deployment.build.command.as_deref(), Some("make"));
        assert_eq!(deployment.build.watch, ["src/**"]);
        let error = deployment.check_built().unwrap_err().to_string();
        assert!(error.contains("fnctl build"), "{error}");
        let sent = serde_json::to_string(&deployment.config).unwrap();
        assert!(!sent.contains("make"), "{sent}");
    }
}
