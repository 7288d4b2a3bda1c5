//! Every setting of the platform in one table: its key, what it means, how to read and how to set it.
//!
//! The file `fnctl.toml`, then `FNCTL_*`, then flags. Unknown keys are errors, and every problem is reported at once.

mod table;

pub use table::SETTINGS;

use crate::Config;
use fnctl_inference::Process;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// One setting.
pub struct Setting {
    /// Section and name, as in the file: `gateway.listen`.
    pub key: &'static str,
    /// What it means.
    pub help: &'static str,
    /// Its present value as text.
    pub get: fn(&Config) -> String,
    /// Sets it from text.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.key)
    }
}

impl Setting {
    /// The environment variable: `FNCTL_GATEWAY_LISTEN`.
    pub fn variable(&self) -> String {
        format!("FNCTL_{}", self.key.to_ascii_uppercase().replace('.', "_"))
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A flag.
    Flag,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// A configuration with the origin of each value that is no default.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// By key.
    pub origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Where a setting's value came from.
    pub fn origin(&self, setting: &Setting) -> Origin {
        self.origins
            .get(setting.key)
            .cloned()
            .unwrap_or(Origin::Default)
    }
}

/// Reads the file (if there is one), the variables and the flags, in this order. Every problem is returned.
pub fn load(
    file: Option<&Path>,
    variables: impl Iterator<Item = (OsString, OsString)>,
    flags: &[(&str, String)],
) -> Result<Loaded, Vec<String>> {
    let mut loaded = Loaded::default();
    let mut problems = Vec::new();
    let mut apply = |key: &str, value: &str, origin: Origin, problems: &mut Vec<String>| {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            problems.push(format!(
                "{key} ({origin}): unknown setting{}; see `fnctl config show`",
                closest(key)
            ));
            return;
        };
        match (setting.set)(&mut loaded.config, value) {
            Ok(()) => {
                loaded.origins.insert(setting.key, origin);
            }
            Err(problem) => problems.push(format!("{key} ({origin}): {problem}")),
        }
    };
    if let Some(path) = file {
        match std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| flatten(&text))
        {
            Ok(values) => {
                for (key, value) in values {
                    apply(
                        &key,
                        &value,
                        Origin::File(path.to_path_buf()),
                        &mut problems,
                    );
                }
            }
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    for (name, value) in variables {
        // Whatever is not text is not ours.
        let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) else {
            continue;
        };
        let setting = SETTINGS.iter().find(|setting| setting.variable() == name);
        let key = match setting {
            Some(setting) => setting.key,
            None if name == "FNCTL_TOKEN" => "gateway.token",
            None if name == "FNCTL_TOKEN_FILE" => "gateway.token_file",
            None if name == "FNCTL_DATA" => "platform.data",
            None if [
                "FNCTL_PLATFORM_",
                "FNCTL_GATEWAY_",
                "FNCTL_SCHEDULER_",
                "FNCTL_WORKER_",
                "FNCTL_INFERENCE_",
                "FNCTL_STORE_",
                "FNCTL_LOGS_",
                "FNCTL_TRACES_",
            ]
            .iter()
            .any(|section| name.starts_with(section)) =>
            {
                problems.push(format!(
                    "{name}: no setting has this variable; see `fnctl config show`"
                ));
                continue;
            }
            None => continue,
        };
        apply(key, &value, Origin::Variable(name), &mut problems);
    }
    for (key, value) in flags {
        apply(key, value, Origin::Flag, &mut problems);
    }
    problems.extend(contradictions(&loaded.config));
    if problems.is_empty() {
        Ok(loaded)
    } else {
        Err(problems)
    }
}

/// Settings that are right each, and cannot be together.
fn contradictions(config: &Config) -> Vec<String> {
    let inference = &config.inference;
    let mut problems = Vec::new();
    if inference.process == Process::InProcess && inference.require_confinement {
        problems.push(
            "inference.require_confinement needs inference.process = host: the platform's own process cannot be confined"
                .to_owned(),
        );
    }
    problems
}

/// The file's values by dotted key.
fn flatten(text: &str) -> Result<Vec<(String, String)>, String> {
    fn walk(prefix: &str, table: &toml::Table, out: &mut Vec<(String, String)>) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.clone()
            } else {
                format!("{prefix}.{name}")
            };
            match value {
                toml::Value::Table(inner) => walk(&key, inner, out),
                toml::Value::String(text) => out.push((key, text.clone())),
                other => out.push((key, other.to_string())),
            }
        }
    }
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| error.to_string())?;
    let mut out = Vec::new();
    walk("", &table, &mut out);
    Ok(out)
}

/// A hint for a misspelt key: one whose last part is the same, or that differs by few letters.
fn closest(key: &str) -> String {
    let distance = |other: &str| {
        let common = key
            .chars()
            .zip(other.chars())
            .take_while(|(a, b)| a == b)
            .count();
        let back = key
            .chars()
            .rev()
            .zip(other.chars().rev())
            .take_while(|(a, b)| a == b)
            .count();
        key.len().max(other.len()).saturating_sub(common + back)
    };
    SETTINGS
        .iter()
        .map(|setting| (distance(setting.key), setting.key))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, key)| format!(" (did you mean {key}?)"))
        .unwrap_or_default()
}

/// The table of docs/config.md, which a test compares with this.
pub fn documentation() -> String {
    let defaults = Config::default();
    let mut text = String::from("| setting | default | meaning |\n|---|---|---|\n");
    for setting in SETTINGS {
        let default = match setting.key {
            // These depend on the machine.
            "inference.compute_threads" => "cores, at least 8".to_owned(),
            "scheduler.max_running" => "2 per core, at least 4".to_owned(),
            _ => match (setting.get)(&defaults) {
                empty if empty.is_empty() => "(empty)".to_owned(),
                value => format!("`{value}`"),
            },
        };
        text.push_str(&format!(
            "| `{}` | {default} | {} |\n",
            setting.key, setting.help
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_variables_and_those_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fnctl.toml");
        std::fs::write(
            &file,
            "[gateway]\nlisten = \"1.1.1.1:1\"\nmax_connections = 7\n[platform]\ngrace = \"5s\"\n",
        )
        .unwrap();
        let variables = [
            ("FNCTL_GATEWAY_LISTEN".into(), "2.2.2.2:2".into()),
            ("PATH".into(), "/bin".into()),
        ];
        let flags = [("gateway.listen", "3.3.3.3:3".to_owned())];
        let loaded = load(Some(&file), variables.into_iter(), &flags).unwrap();
        assert_eq!(loaded.config.gateway.listen, "3.3.3.3:3");
        assert_eq!(loaded.config.gateway.max_connections, 7);
        assert_eq!(loaded.config.grace, fnctl_core::Period::secs(5));
        assert_eq!(loaded.origins["gateway.listen"], Origin::Flag);
        assert_eq!(loaded.origins["platform.grace"], Origin::File(file));
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fnctl.toml");
        std::fs::write(
            &file,
            "[gateway]\nlistn = \"x:1\"\nmax_connections = 0\n[worker]\nmax_memory = \"9GiB\"\n",
        )
        .unwrap();
        let variables = [("FNCTL_PLATFORM_GRACE".into(), "soon".into())];
        let problems = load(Some(&file), variables.into_iter(), &[]).unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(
            problems
                .iter()
                .any(|problem| problem.contains("did you mean gateway.listen?")),
            "{problems:?}"
        );
    }

    #[test]
    fn settings_that_contradict_each_other_are_told() {
        let load = |flags: &[(&str, &str)]| {
            let flags: Vec<_> = flags
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect();
            load(None, std::iter::empty(), &flags)
        };
        let required = ("inference.require_confinement", "true");
        let problems = load(&[required, ("inference.process", "in-process")]).unwrap_err();
        assert!(
            problems[0].contains("inference.process = host"),
            "{problems:?}"
        );
        assert!(load(&[required]).is_ok());
        assert!(load(&[("inference.process", "in-process")]).is_ok());
    }

    #[test]
    fn every_setting_reads_back_what_it_prints() {
        let defaults = Config::default();
        for setting in SETTINGS {
            let mut config = Config::default();
            let value = (setting.get)(&defaults);
            (setting.set)(&mut config, &value)
                .unwrap_or_else(|error| panic!("{}: {error}", setting.key));
            assert_eq!((setting.get)(&config), value, "{}", setting.key);
        }
    }
}
