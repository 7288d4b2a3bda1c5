//! Every setting of the platform in one table: its key, what it means, how to read and how to set it.
//!
//! The file `fnctl.toml`, then `FNCTL_*`, then flags. Unknown keys are errors, and every problem is reported at once.

use crate::Config;
use fnctl_core::units::{ByteSize, Period};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

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

fn parsed<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn positive<T: FromStr + PartialOrd + Default>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    let value: T = parsed(text)?;
    if value > T::default() {
        Ok(value)
    } else {
        Err("must be more than 0".to_owned())
    }
}

fn count(text: &str) -> Result<usize, String> {
    let count: usize = positive(text)?;
    if count <= 1_000_000 {
        Ok(count)
    } else {
        Err("at most 1000000".to_owned())
    }
}

fn period(text: &str) -> Result<Period, String> {
    let period: Period = parsed(text)?;
    if period > Period::secs(0) {
        Ok(period)
    } else {
        Err("must be more than 0s".to_owned())
    }
}

macro_rules! setting {
    ($key:literal, $help:literal, $($field:ident).+, $parse:expr) => {
        Setting {
            key: $key,
            help: $help,
            get: |config| config.$($field).+.to_string(),
            set: |config, text| {
                config.$($field).+ = $parse(text)?;
                Ok(())
            },
        }
    };
}

/// Every setting, in the order of the documentation.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "platform.data",
        help: "Folder of everything that is kept: versions, artifacts, compiled code.",
        get: |config| config.store.folder.display().to_string(),
        set: |config, text| {
            config.set_data(text);
            Ok(())
        },
    },
    setting!(
        "platform.grace",
        "How long running invocations have to finish when the platform stops.",
        grace,
        period
    ),
    setting!(
        "gateway.listen",
        "Address and port to listen on.",
        gateway.listen,
        |text: &str| {
            if text.contains(':') {
                Ok(text.to_owned())
            } else {
                Err("write it like 127.0.0.1:8080".to_owned())
            }
        }
    ),
    Setting {
        key: "gateway.token",
        help: "The admin API's token. Without one it answers on this machine only. FNCTL_TOKEN sets it too.",
        get: |config| {
            if config.gateway.token.is_some() {
                "(set)".to_owned()
            } else {
                String::new()
            }
        },
        set: |config, text| {
            config.gateway.token = (!text.is_empty()).then(|| text.to_owned());
            Ok(())
        },
    },
    Setting {
        key: "gateway.token_file",
        help: "Where the token is kept if gateway.token is empty; made with a random one if it is missing. FNCTL_TOKEN_FILE sets it too.",
        get: |config| {
            config
                .token_file
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        },
        set: |config, text| {
            config.token_file = (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(())
        },
    },
    setting!(
        "gateway.max_connections",
        "Most connections at once.",
        gateway.max_connections,
        count
    ),
    setting!(
        "gateway.header_timeout",
        "Most time for a request's head to arrive, and for a connection to be idle.",
        gateway.header_timeout,
        period
    ),
    setting!(
        "gateway.body_timeout",
        "Most time between two pieces of a request body.",
        gateway.body_timeout,
        period
    ),
    setting!(
        "gateway.write_timeout",
        "Most time that a client may not read its response.",
        gateway.write_timeout,
        period
    ),
    setting!(
        "gateway.max_header",
        "Most bytes of a request's head.",
        gateway.max_header,
        parsed::<ByteSize>
    ),
    setting!(
        "gateway.max_artifact",
        "Most bytes of an uploaded artifact.",
        gateway.max_artifact,
        parsed::<ByteSize>
    ),
    setting!(
        "scheduler.max_tracked_versions",
        "Most versions with metrics of their own.",
        scheduler.max_tracked_versions,
        positive
    ),
    Setting {
        key: "worker.max_instances",
        help: "Most instances at once, over all functions.",
        get: |config| config.worker.max_instances.to_string(),
        set: |config, text| {
            let count: u32 = positive(text)?;
            if count > 10_000 {
                return Err("at most 10000: each reserves 4 GiB of address space".to_owned());
            }
            config.worker.max_instances = count;
            config.scheduler.max_instances = count as usize;
            Ok(())
        },
    },
    setting!(
        "worker.max_memory",
        "Largest linear memory that a function may ask for.",
        worker.max_memory,
        |text: &str| {
            let size: ByteSize = parsed(text)?;
            if size <= ByteSize::mib(4096) && size >= ByteSize::kib(64) {
                Ok(size)
            } else {
                Err("must be 64KiB to 4GiB".to_owned())
            }
        }
    ),
    setting!(
        "worker.epoch_tick",
        "Step of CPU limits, and how long a guest runs before others on its thread get a turn.",
        worker.epoch_tick,
        period
    ),
    setting!(
        "worker.keep_resident",
        "Bytes of a free memory slot that stay resident for the next sandbox.",
        worker.keep_resident,
        parsed::<ByteSize>
    ),
    setting!(
        "worker.template_ttl",
        "How long unused compiled code stays in memory.",
        worker.template_ttl,
        period
    ),
    Setting {
        key: "inference.library",
        help: "The ONNX Runtime library; looked for when empty (ORT_DYLIB_PATH, beside fnctl, cache folder, system).",
        get: |config| {
            config
                .inference
                .library
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        },
        set: |config, text| {
            config.inference.library = (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(())
        },
    },
    setting!(
        "inference.memory",
        "Most bytes that ONNX Runtime may allocate for all models and their runs.",
        inference.memory,
        parsed::<ByteSize>
    ),
    setting!(
        "inference.constant_folding",
        "Whether constant parts of a graph are computed while it loads. This happens outside inference.memory: turn it off for models you do not trust.",
        inference.constant_folding,
        parsed::<bool>
    ),
    setting!(
        "inference.session_ttl",
        "How long an unused model stays loaded.",
        inference.session_ttl,
        parsed::<Period>
    ),
    setting!(
        "inference.compute_threads",
        "Most inferences at once.",
        inference.compute_threads,
        count
    ),
    setting!(
        "inference.compute_queue",
        "Most inferences waiting for a thread.",
        inference.compute_queue,
        count
    ),
    setting!(
        "inference.intra_threads",
        "Threads that split single operators; 0 = as many as cores.",
        inference.intra_threads,
        parsed::<usize>
    ),
    setting!(
        "inference.parallel_loads",
        "Most models loading at once.",
        inference.parallel_loads,
        count
    ),
    Setting {
        key: "store.artifact_grace",
        help: "How long an artifact that no version names is kept.",
        get: |config| Period(config.store.artifact_grace).to_string(),
        set: |config, text| {
            config.store.artifact_grace = period(text)?.duration();
            Ok(())
        },
    },
    setting!(
        "store.keep_versions",
        "Versions kept per function; older ones that no alias names are forgotten.",
        store.keep_versions,
        positive
    ),
];

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
    if problems.is_empty() {
        Ok(loaded)
    } else {
        Err(problems)
    }
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
        assert_eq!(loaded.config.grace, Period::secs(5));
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
