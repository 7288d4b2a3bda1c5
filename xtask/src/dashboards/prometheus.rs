//! A real Prometheus: where its programs come from, one that scrapes a platform, and its HTTP API.

use crate::bench::server::Server;
use crate::{process, setup};
use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The programs `prometheus` and `promtool`.
pub(crate) struct Programs {
    prometheus: PathBuf,
    pub(crate) promtool: PathBuf,
}

/// Finds them on the path or in the cache folder, where they are unpacked from Debian's package if apt is here.
pub(crate) fn programs() -> anyhow::Result<Programs> {
    let version = |program: &Path| process::succeeds(&program.to_string_lossy(), &["--version"]);
    let installed = Programs {
        prometheus: "prometheus".into(),
        promtool: "promtool".into(),
    };
    if version(&installed.prometheus) && version(&installed.promtool) {
        return Ok(installed);
    }
    let folder = setup::cache()?.join("prometheus");
    let unpacked = Programs {
        prometheus: folder.join("usr/bin/prometheus"),
        promtool: folder.join("usr/bin/promtool"),
    };
    if !version(&unpacked.promtool) && process::succeeds("apt-get", &["--version"]) {
        println!("unpacking Prometheus into {}", folder.display());
        std::fs::create_dir_all(&folder)?;
        for step in ["apt-get download prometheus", "dpkg-deb -x ./*.deb ."] {
            process::check(Command::new("sh").args(["-c", step]).current_dir(&folder))
                .context("Debian's package cannot be had; try `apt-get update` first")?;
        }
    }
    ensure!(
        version(&unpacked.prometheus) && version(&unpacked.promtool),
        "prometheus and promtool are missing; install them (Debian: apt-get install prometheus, then stop its service; \
         others: https://prometheus.io/download) and put them on the PATH"
    );
    Ok(unpacked)
}

/// A running Prometheus; it ends with this value.
pub(crate) struct Prometheus {
    server: Server,
    agent: ureq::Agent,
}

/// A series of a query's result: labels, and (seconds since 1970, value) pairs.
#[derive(Deserialize)]
pub(crate) struct Series {
    #[serde(rename = "metric")]
    pub(crate) labels: BTreeMap<String, String>,
    /// The values are text: JSON has no NaN.
    values: Vec<(f64, String)>,
}

impl Series {
    /// Milliseconds since 1970 and values. Times are whole, so that series can be compared point by point.
    pub(crate) fn points(&self) -> impl Iterator<Item = (u64, f64)> {
        self.values.iter().map(|(at, value)| {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a time in this century, in milliseconds"
            )]
            let at = (at * 1e3).round() as u64;
            (at, value.parse().unwrap_or(f64::NAN))
        })
    }
}

/// What is looked at: the last seconds until a moment.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    end: f64,
}

impl Window {
    /// How far it looks back.
    pub(crate) const LENGTH: Duration = Duration::from_secs(20);
    /// Seconds between two points.
    const STEP: f64 = 2.0;

    /// The window that ends now.
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            end: since.unwrap_or_default().as_secs_f64(),
        }
    }
}

/// An alert or recording rule, as Prometheus has loaded it.
#[derive(Deserialize)]
pub(crate) struct Rule {
    pub(crate) name: String,
    #[serde(rename = "query")]
    pub(crate) expr: String,
    health: String,
    #[serde(rename = "lastError", default)]
    last_error: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Rule {
    pub(crate) fn is_alert(&self) -> bool {
        self.kind == "alerting"
    }

    /// What Prometheus says if it cannot evaluate the rule.
    pub(crate) fn error(&self) -> Option<&str> {
        (self.health != "ok").then_some(&self.last_error)
    }
}

/// An alert that is pending or firing.
#[derive(Deserialize)]
pub(crate) struct Alert {
    labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    state: String,
}

impl Alert {
    /// Its name, if it fires.
    pub(crate) fn firing(&self) -> Option<&str> {
        (self.state == "firing")
            .then(|| self.labels.get("alertname").map(String::as_str))
            .flatten()
    }
}

impl Prometheus {
    /// Starts one that scrapes a platform once a second and evaluates the rules of a file as often.
    pub(crate) fn start(programs: &Programs, target: &str, rules: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("prometheus.yml");
        std::fs::write(
            &config,
            format!(
                "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s\n\
                 rule_files: [{rules:?}]\n\
                 scrape_configs:\n  - job_name: fnctl\n    static_configs:\n      - targets: [{target:?}]\n"
            ),
        )?;
        process::output(
            &programs.promtool.to_string_lossy(),
            &["check", "config", &config.to_string_lossy()],
        )?;
        let address = Server::free_address()?;
        let mut command = Command::new(&programs.prometheus);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn");
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build()
            .into();
        let server = Server::spawn(command, address, folder)?;
        Ok(Self { server, agent })
    }

    fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        let mut request = self.agent.get(self.server.url(path));
        for (name, value) in parameters {
            request = request.query(name, value);
        }
        let text = request.call()?.body_mut().read_to_string()?;
        let answer: serde_json::Value = serde_json::from_str(&text)
            .with_context(|| format!("{path} answered no JSON: {text}"))?;
        if answer.get("status").and_then(|status| status.as_str()) != Some("success") {
            let error = answer.get("error").and_then(|error| error.as_str());
            bail!("{}", error.unwrap_or(&text));
        }
        let data = answer.get("data").cloned().unwrap_or_default();
        Ok(serde_json::from_value(data)?)
    }

    /// What a panel would draw for an expression over a window.
    pub(crate) fn range(&self, expr: &str, window: Window) -> anyhow::Result<Vec<Series>> {
        #[derive(Deserialize)]
        struct Data {
            result: Vec<Series>,
        }
        let [start, end] =
            [window.end - Window::LENGTH.as_secs_f64(), window.end].map(|at| format!("{at:.3}"));
        let step = Window::STEP.to_string();
        let data: Data = self.get(
            "/api/v1/query_range",
            &[
                ("query", expr),
                ("start", &start),
                ("end", &end),
                ("step", &step),
            ],
        )?;
        Ok(data.result)
    }

    /// The values of a label of a metric, as Grafana asks for a variable's choices.
    pub(crate) fn label_values(&self, metric: &str, label: &str) -> anyhow::Result<Vec<String>> {
        self.get(
            &format!("/api/v1/label/{label}/values"),
            &[("match[]", metric)],
        )
    }

    /// Every rule.
    pub(crate) fn rules(&self) -> anyhow::Result<Vec<Rule>> {
        #[derive(Deserialize)]
        struct Data {
            groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            rules: Vec<Rule>,
        }
        let data: Data = self.get("/api/v1/rules", &[])?;
        Ok(data
            .groups
            .into_iter()
            .flat_map(|group| group.rules)
            .collect())
    }

    /// The alerts that are pending or firing.
    pub(crate) fn alerts(&self) -> anyhow::Result<Vec<Alert>> {
        #[derive(Deserialize)]
        struct Data {
            alerts: Vec<Alert>,
        }
        let data: Data = self.get("/api/v1/alerts", &[])?;
        Ok(data.alerts)
    }
}
