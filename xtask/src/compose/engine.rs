//! The Docker Engine, and one compose project on it: started, asked, removed.

use crate::process;
use anyhow::{Context, ensure};
use serde_json::Value;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

/// How many platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    One,
    /// Each with a data folder of its own.
    Two,
}

/// A project of its own: name, ports, image.
pub(super) struct Engine {
    project: String,
    image: String,
    standin: bool,
    /// Two neighbours, as --scale wants a range; the first is the one that a single platform gets.
    platform: [u16; 2],
    prometheus: u16,
    others: [u16; 2],
}

impl Engine {
    pub(super) fn new(image: &str, standin: bool) -> anyhow::Result<Self> {
        // All held until all are found, so that none is found twice.
        let (first, next) = (0..100)
            .find_map(|_| {
                let first = TcpListener::bind("127.0.0.1:0").ok()?;
                let port = first.local_addr().ok()?.port();
                Some((
                    first,
                    TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok()?,
                ))
            })
            .context("no two neighbouring ports are free")?;
        let mut listeners = vec![first, next];
        for _ in 0..3 {
            listeners.push(TcpListener::bind("127.0.0.1:0")?);
        }
        let ports: Vec<u16> = listeners
            .iter()
            .map(|listener| Ok(listener.local_addr()?.port()))
            .collect::<anyhow::Result<_>>()?;
        let [a, b, prometheus, alertmanager, grafana] = ports[..] else {
            anyhow::bail!("five ports were asked for");
        };
        Ok(Self {
            project: format!("fnctl-test-{}", std::process::id()),
            image: image.to_owned(),
            standin,
            platform: [a, b],
            prometheus,
            others: [alertmanager, grafana],
        })
    }

    fn compose_command(&self, scale: Scale, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("compose").args(arguments);
        self.point(&mut command, scale);
        command
    }

    /// Tells a command, by its environment, which project `docker compose` is to work on.
    fn point(&self, command: &mut Command, scale: Scale) {
        let mut files = vec!["compose.yaml"];
        if self.standin {
            files.push("xtask/compose-standin.yaml");
        }
        let [first, last] = self.platform;
        let range = match scale {
            Scale::One => first.to_string(),
            Scale::Two => {
                files.push("deploy/compose.scale.yaml");
                format!("{first}-{last}")
            }
        };
        // A developer's own settings must not decide what is tested.
        for name in [
            "FNCTL_BIND",
            "FNCTL_TOKEN",
            "FNCTL_MEMORY",
            "FNCTL_INFERENCE_MEMORY",
            "FNCTL_LOG",
            "GRAFANA_BIND",
        ] {
            command.env_remove(name);
        }
        command
            .env("COMPOSE_PROJECT_NAME", &self.project)
            .env("COMPOSE_FILE", files.join(":"))
            .env("COMPOSE_ENV_FILES", "/dev/null")
            .env("FNCTL_IMAGE", &self.image)
            .env("FNCTL_PORT", range)
            .env("PROMETHEUS_PORT", self.prometheus.to_string())
            .env("ALERTMANAGER_PORT", self.others[0].to_string())
            .env("GRAFANA_PORT", self.others[1].to_string())
            .current_dir(crate::root());
    }

    /// Runs a line of a document in a shell, against this project and its port; what it printed.
    pub(super) fn types(&self, line: &str) -> anyhow::Result<String> {
        println!("$ {line}");
        let own = format!("127.0.0.1:{}", self.platform[0]);
        let line = line
            .replace("localhost:8080", &own)
            .replace("curl ", "curl --fail --silent --show-error ");
        let mut command = Command::new("sh");
        command.args(["-c", &line]);
        self.point(&mut command, Scale::One);
        let output = command.stderr(Stdio::inherit()).output()?;
        let told = text(&output.stdout);
        println!("{told}");
        ensure!(output.status.success(), "{line}: {}", output.status);
        Ok(told)
    }

    /// Runs `docker compose` in the project.
    pub(super) fn compose(&self, arguments: &[&str]) -> anyhow::Result<()> {
        process::check(&mut self.compose_command(Scale::One, arguments))
    }

    /// Starts everything and waits until it is healthy. The image is there already.
    pub(super) fn up(&self, scale: Scale) -> anyhow::Result<()> {
        let mut arguments = vec![
            "up",
            "--detach",
            "--no-build",
            "--wait",
            "--wait-timeout",
            "120",
        ];
        if scale == Scale::Two {
            arguments.extend(["--scale", "fnctl=2"]);
        }
        process::check(&mut self.compose_command(scale, &arguments))
    }

    /// What docker prints, without the white space around it.
    pub(super) fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        Ok(process::output("docker", arguments)?.trim().to_owned())
    }

    /// The container of a service.
    pub(super) fn container(&self, service: &str) -> anyhow::Result<String> {
        let output = self
            .compose_command(Scale::One, &["ps", "--quiet", service])
            .output()?;
        let id = text(&output.stdout);
        ensure!(!id.is_empty(), "{service} has no container");
        Ok(id)
    }

    /// Runs a command in the platform's container, whatever comes of it; both outputs.
    pub(super) fn exec(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.in_platform(&[], arguments)?;
        Ok(text(&output.stdout) + &text(&output.stderr))
    }

    /// Runs fnctl in the platform's container.
    pub(super) fn fnctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.in_platform(&[], &[&["/usr/bin/fnctl"], arguments].concat())?;
        ensure!(
            output.status.success(),
            "fnctl {}: {}",
            arguments.join(" "),
            text(&output.stderr)
        );
        Ok(text(&output.stdout))
    }

    /// Runs a command in the platform's container that does not know where the token is.
    pub(super) fn stranger(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.in_platform(&["--env", "FNCTL_TOKEN_FILE="], arguments)
    }

    fn in_platform(&self, options: &[&str], arguments: &[&str]) -> anyhow::Result<Output> {
        let id = self.container("fnctl")?;
        let mut command = Command::new("docker");
        command.arg("exec").args(options).arg(&id).args(arguments);
        command.output().context("docker exec")
    }

    /// An answer of Prometheus' API.
    pub(super) fn prometheus(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(&[&format!(
            "http://127.0.0.1:{}/api/v1/{path}",
            self.prometheus
        )])
    }

    /// The values of an expression, now.
    pub(super) fn query(&self, expression: &str) -> anyhow::Result<Vec<f64>> {
        let url = format!("http://127.0.0.1:{}/api/v1/query", self.prometheus);
        let answer = self.ask(&["--data-urlencode", &format!("query={expression}"), &url])?;
        let results = answer
            .pointer("/data/result")
            .and_then(Value::as_array)
            .with_context(|| format!("Prometheus answers {answer}"))?;
        Ok(results
            .iter()
            .filter_map(|result| result.pointer("/value/1")?.as_str()?.parse().ok())
            .collect())
    }

    fn ask(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let bounded = ["--silent", "--show-error", "--max-time", "10"];
        let answer = process::output("curl", &[&bounded, arguments].concat())?;
        serde_json::from_str(&answer).with_context(|| format!("no JSON: {answer}"))
    }

    /// Shows what the services said, for when something failed.
    pub(super) fn tell_logs(&self) {
        let _ = self.compose(&["ps", "--all"]);
        let _ = self.compose(&["logs", "--tail", "30"]);
    }

    /// Removes the project with its volumes.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        println!("\n== removing the project {}", self.project);
        self.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "10"])
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}
