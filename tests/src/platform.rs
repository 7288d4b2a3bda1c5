//! A platform in the test's process, on a free port, with a data folder of its own.

use crate::client::{Client, Reply};
use crate::log;
use fnctl_platform::{Config, Platform};
use http::Method;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A running platform.
pub struct TestPlatform {
    platform: Option<Platform>,
    /// Talks to it.
    pub client: Client,
    folder: TempDir,
    config: Config,
}

/// What a test deploys.
pub struct Deployment {
    name: String,
    artifact: Vec<u8>,
    models: Vec<(String, Vec<u8>)>,
    config: Value,
}

impl Deployment {
    /// A function of one artifact.
    pub fn new(name: &str, artifact: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            artifact,
            models: Vec::new(),
            config: json!({}),
        }
    }

    /// With a declared model.
    #[must_use]
    pub fn model(mut self, name: &str, bytes: Vec<u8>) -> Self {
        self.models.push((name.to_owned(), bytes));
        self
    }

    /// With a setting of its configuration.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self
    }
}

impl TestPlatform {
    /// A platform with the defaults.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A platform with some settings changed.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = Config::new(folder.path());
        config.gateway.listen = "127.0.0.1:0".to_owned();
        config.grace = fnctl_core::Period::secs(10);
        config.worker.max_instances = 300;
        // Compiled code is the same for every test; the cache checks it before use.
        config.worker.cache = shared_cache();
        config.inference.program = Some(crate::program());
        change(&mut config);
        Self::start_in(folder, config).await
    }

    async fn start_in(folder: TempDir, config: Config) -> Self {
        log::install();
        let platform = Platform::start(config.clone())
            .await
            .expect("the platform starts");
        let client = Client::new(platform.address());
        Self {
            platform: Some(platform),
            client,
            folder,
            config,
        }
    }

    /// Stops the platform and starts another on the same data.
    pub async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// Stops the platform and starts another on the same data, with some settings changed.
    pub async fn restart_with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        assert!(
            self.platform.take().expect("it runs").drain().await,
            "everything finished"
        );
        let folder = std::mem::replace(
            &mut self.folder,
            tempfile::tempdir().expect("a temporary folder"),
        );
        Self::start_in(folder, self.config.clone()).await
    }

    /// The platform itself.
    pub fn platform(&self) -> &Platform {
        self.platform.as_ref().expect("it runs")
    }

    /// Takes the platform out, to drain it.
    pub fn take(&mut self) -> Platform {
        self.platform.take().expect("it runs")
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    /// The guests' log lines so far.
    pub fn guest_lines(&self) -> Vec<String> {
        log::guest_lines()
    }

    async fn upload(&self, bytes: &[u8]) -> String {
        let uploaded = self
            .client
            .post("/api/v1/artifacts", bytes.to_vec())
            .await
            .ok()
            .json();
        uploaded["digest"].as_str().expect("a digest").to_owned()
    }

    /// Deploys, and returns the last event.
    pub async fn try_deploy(&self, deployment: &Deployment) -> Value {
        let artifact = self.upload(&deployment.artifact).await;
        let mut models = serde_json::Map::new();
        for (name, bytes) in &deployment.models {
            models.insert(name.clone(), self.upload(bytes).await.into());
        }
        let body = json!({ "artifact": artifact, "models": models, "config": deployment.config });
        let path = format!("/api/v1/functions/{}/versions", deployment.name);
        let reply = self
            .client
            .send(Method::POST, &path, &[], body.to_string())
            .await
            .ok();
        let events: Vec<Value> = reply
            .text()
            .lines()
            .map(|line| serde_json::from_str(line).expect("an event a line"))
            .collect();
        events.last().expect("a last event").clone()
    }

    /// Deploys, and returns the number of the new version.
    pub async fn deploy(&self, deployment: Deployment) -> u64 {
        let event = self.try_deploy(&deployment).await;
        assert_eq!(event["event"], "deployed", "{event}");
        event["version"].as_u64().expect("a number")
    }

    /// Deploys a folder of the repository as its function.toml says, with its models and all its settings.
    pub async fn deploy_folder(&self, folder: &str) -> u64 {
        let text = crate::file(&format!("{folder}/function.toml"));
        let text = String::from_utf8(text).expect("function.toml is text");
        let table: toml::Table = text.parse().expect("function.toml is TOML");
        let mut config = serde_json::to_value(table).expect("a table is an object");
        let keys = config.as_object_mut().expect("a table is an object");
        let mut take = |key: &str| keys.remove(key).unwrap_or_default();
        let name = take("name");
        let artifact = take("artifact");
        let models = take("models");
        let path = |file: &Value| format!("{folder}/{}", file.as_str().expect("a path"));
        let mut deployment = Deployment::new(
            name.as_str().expect("a name"),
            crate::file(&path(&artifact)),
        );
        for (model, file) in models.as_object().into_iter().flatten() {
            deployment = deployment.model(model, crate::file(&path(file)));
        }
        deployment.config = config;
        self.deploy(deployment).await
    }

    /// Deploys the artifact of an example with one of its models, and the defaults.
    pub async fn deploy_example(&self, name: &str, artifact: &str, model: Option<(&str, &str)>) {
        let mut deployment =
            Deployment::new(name, crate::file(&format!("examples/{name}/{artifact}")));
        if let Some((model, path)) = model {
            deployment = deployment.model(model, crate::file(&format!("examples/{name}/{path}")));
        }
        self.deploy(deployment).await;
    }

    /// The value of a metric's sample, 0 if there is none.
    pub async fn metric(&self, sample: &str) -> f64 {
        let text = self.client.get("/metrics").await.ok().text();
        let line = text.lines().find_map(|line| {
            line.strip_prefix(sample)?
                .strip_prefix(' ')
                .map(str::to_owned)
        });
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a metric's sample has this value, and fails after ten seconds.
    pub async fn metric_becomes(&self, sample: &str, value: f64) {
        let until = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let is = self.metric(sample).await;
            if (is - value).abs() < f64::EPSILON {
                return;
            }
            assert!(
                tokio::time::Instant::now() < until,
                "{sample} is {is}, not {value}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Invokes a function's path, and waits until its guest has returned.
    pub async fn call(&self, target: &str) -> Reply {
        let reply = self.client.get(&format!("/fn/{target}")).await;
        self.settle().await;
        reply
    }

    /// A guest may go on for a moment after its answer: that is waited for, shortly, so that the next call finds its
    /// instance free.
    pub async fn settle(&self) {
        for _ in 0..50 {
            if self.platform().in_flight() == 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

impl Drop for TestPlatform {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Some(platform) = &self.platform {
            assert_eq!(platform.panics(), 0, "no task panicked");
        }
        log::check();
    }
}

fn shared_cache() -> PathBuf {
    std::env::temp_dir().join("fnctl-test-compiled")
}
