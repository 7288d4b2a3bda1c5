//! `function.toml`: a name, the artifact's path, the models' paths, and a `FunctionConfig`.

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
}

/// The keys of the file that are not part of the configuration.
#[derive(Deserialize)]
struct Paths {
    name: String,
    artifact: PathBuf,
    #[serde(default)]
    models: BTreeMap<String, PathBuf>,
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
        })
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
        for key in ["name", "artifact", "models"] {
            if let Some(value) = rest.remove(key) {
                own.insert(key.to_owned(), value);
            }
        }
        let Paths {
            name,
            artifact,
            models,
        } = own.try_into()?;
        let config: FunctionConfig = rest.try_into()?;
        Ok(Self {
            name: Some(name),
            artifact: folder.join(artifact),
            models: models
                .into_iter()
                .map(|(name, path)| (name, folder.join(path)))
                .collect(),
            config,
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
    }
}
