//! Named platforms, kept in `$XDG_CONFIG_HOME/fnctl/contexts.toml` (or `~/.config`), which only its owner may read.
//!
//! The file is replaced as a whole, so that it is never half written.

use crate::exit::MissingError;
use crate::output::variable;
use crate::suggest;
use crate::target::Secret;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A platform by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// Its address.
    pub(crate) server: String,
    /// The token itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Secret>,
    /// A file that holds the token; read each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    /// PEM certificates to trust instead of the public ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
}

impl Context {
    /// The token, from the file if that is where it is.
    pub(crate) fn token(&self) -> anyhow::Result<Option<Secret>> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, Some(file)) => read_token(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Reads a token from a file.
pub(crate) fn read_token(file: &Path) -> anyhow::Result<Secret> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("the token file {} cannot be read", file.display()))?;
    text.parse().map_err(|problem| {
        anyhow::anyhow!(
            "the token file {} holds no token: {problem}",
            file.display()
        )
    })
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one that commands use unless they are told otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// All of them by name.
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// Where contexts are kept.
pub(crate) fn path() -> anyhow::Result<PathBuf> {
    let folder = match (variable("XDG_CONFIG_HOME"), variable("HOME")) {
        // A relative path is invalid there and to be ignored (XDG Base Directory Specification).
        (Some(folder), _) if folder.starts_with('/') => PathBuf::from(folder),
        (_, Some(home)) => Path::new(&home).join(".config"),
        _ => bail!("contexts have no place to be kept: neither HOME nor XDG_CONFIG_HOME is set"),
    };
    Ok(folder.join("fnctl").join("contexts.toml"))
}

impl Contexts {
    /// Reads the file; none is as good as an empty one.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            other => other.with_context(|| format!("{} cannot be read", path.display()))?,
        };
        // The parser's message quotes the line, which may hold a token.
        toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1);
            anyhow::anyhow!(
                "{} is damaged at line {line}: {}; correct it, or remove it and add the contexts again",
                path.display(),
                error.message()
            )
        })
    }

    /// Replaces the file.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = toml::to_string(self)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
            // Created with mode 0600 under a name of its own.
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            std::fs::File::open(folder)?.sync_all()
        };
        write().with_context(|| format!("{} cannot be written", path.display()))
    }

    /// A context, or an error that suggests one.
    pub(crate) fn get(&self, name: &str) -> anyhow::Result<&Context> {
        self.contexts.get(name).ok_or_else(|| {
            let names: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            let hint = match suggest::nearest(name, names.iter().copied()) {
                Some(near) => format!("did you mean '{near}'?"),
                None if names.is_empty() => "add it with `fnctl context add NAME URL`".to_owned(),
                None => format!("there are {}", names.join(", ")),
            };
            MissingError(format!("there is no context '{name}'; {hint}")).into()
        })
    }
}

/// Whether others than the owner may read a file.
pub(crate) fn is_readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_only_the_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/fnctl/contexts.toml");
        assert_eq!(Contexts::load(&path).unwrap(), Contexts::default());
        let mut contexts = Contexts {
            current: Some("prod".into()),
            ..Contexts::default()
        };
        contexts.contexts.insert(
            "prod".into(),
            Context {
                server: "https://prod".into(),
                token: Some("secret".parse().unwrap()),
                ..Context::default()
            },
        );
        contexts.save(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(is_readable_by_others(&path));
        contexts.save(&path).unwrap();
        assert!(
            !is_readable_by_others(&path),
            "saving makes it private again"
        );
        assert_eq!(Contexts::load(&path).unwrap(), contexts);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn a_damaged_file_is_told_with_its_line_and_without_its_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("contexts.toml");
        std::fs::write(
            &path,
            "[contexts.prod]\nserver = \"https://prod\"\ntoken = s3cret\n",
        )
        .unwrap();
        let error = format!("{:#}", Contexts::load(&path).unwrap_err());
        assert!(
            error.contains("line 3") && !error.contains("s3cret"),
            "{error}"
        );
    }

    #[test]
    fn a_token_file_is_read_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let context = Context {
            token_file: Some(file.clone()),
            ..Context::default()
        };
        assert!(
            context
                .token()
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
        for token in ["one", "two"] {
            std::fs::write(&file, format!("{token}\n")).unwrap();
            assert_eq!(context.token().unwrap().unwrap().reveal(), token);
        }
    }
}
