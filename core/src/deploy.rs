//! Deploy as one use case over the ports: validate, compile, load the models, warm up, commit, activate.
//!
//! The upload comes before it, and is idempotent by digest. Nothing is visible before the commit, and what was
//! acknowledged is durable. Every step reports its progress.

use crate::config::{FunctionConfig, ModelFile};
use crate::error::{ErrorKind, Failure};
use crate::ids::{AliasName, Digest, FunctionName, VersionNumber};
use crate::ports::{ArtifactCheck, ArtifactStore, FunctionStore, Invoker, SandboxFactory};
use crate::units::ByteSize;
use crate::version::{Alias, Function, Version, VersionKey};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A step of a deploy, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The artifacts arrive.
    Upload,
    /// The configuration is checked and the artifacts' digests are verified.
    Validate,
    /// The Wasm is compiled and linked.
    Compile,
    /// The models are loaded.
    LoadModel,
    /// A sandbox is started and its init run.
    WarmUp,
    /// The version is stored and becomes live.
    Activate,
}

impl Step {
    /// The word people read.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Validate => "validate",
            Self::Compile => "compile",
            Self::LoadModel => "load model",
            Self::WarmUp => "warm up",
            Self::Activate => "activate",
        }
    }
}

/// What a client asks to deploy; the artifacts are uploaded already.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The Wasm artifact.
    pub artifact: Digest,
    /// The declared models by name.
    #[serde(default)]
    pub models: BTreeMap<String, Digest>,
    /// The configuration.
    #[serde(default)]
    pub config: FunctionConfig,
}

/// A version without its number: the store gives it the next one.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The function.
    pub function: FunctionName,
    /// The Wasm artifact.
    pub artifact: Digest,
    /// The declared models.
    pub models: BTreeMap<String, ModelFile>,
    /// The configuration.
    pub config: FunctionConfig,
}

/// What a deploy tells while it works: one JSON object a line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    /// A step begins.
    Started {
        /// The step.
        step: Step,
    },
    /// A step is done.
    Finished {
        /// The step.
        step: Step,
        /// How long it took.
        ms: f64,
        /// What was found.
        detail: String,
    },
    /// The version is live. The last event of a success.
    Deployed {
        /// The function.
        function: FunctionName,
        /// Its new version.
        version: VersionNumber,
    },
    /// The deploy ended without any effect. The last event of a failure.
    Failed {
        /// The step that failed.
        step: Step,
        /// The kind of error.
        code: ErrorKind,
        /// What to do next.
        message: String,
    },
}

/// Most models of one version.
pub const MAX_MODELS: usize = 32;

/// The deploy use case.
#[derive(Clone)]
pub struct Deployer {
    /// Where versions are kept.
    pub functions: Arc<dyn FunctionStore>,
    /// Where artifacts are kept.
    pub artifacts: Arc<dyn ArtifactStore>,
    /// The checks of worker and inference, in the order of their steps.
    pub checks: Vec<Arc<dyn ArtifactCheck>>,
    /// Starts the sandbox of the warm-up.
    pub sandboxes: Arc<dyn SandboxFactory>,
    /// Learns of the new version.
    pub invoker: Arc<dyn Invoker>,
    /// Largest linear memory of a sandbox on this platform.
    pub max_memory: ByteSize,
    /// One lock per function whose live version is being changed.
    pub turns: Turns,
}

/// See [`Deployer::turns`].
pub type Turns = Arc<parking_lot::Mutex<HashMap<FunctionName, Arc<tokio::sync::Mutex<()>>>>>;

impl std::fmt::Debug for Deployer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deployer")
            .field("max_memory", &self.max_memory)
            .finish_non_exhaustive()
    }
}

impl Deployer {
    /// Deploys `request` as the next version of `function`. Events go to `progress`; one whose reader is gone is
    /// dropped, and the deploy goes on to its end, so that a broken connection leaves no half of it.
    pub async fn deploy(
        &self,
        function: FunctionName,
        request: DeployRequest,
        progress: mpsc::Sender<Progress>,
    ) {
        let mut reporter = Reporter {
            progress,
            step: Step::Validate,
            since: Instant::now(),
        };
        match self.run(function, request, &mut reporter).await {
            Ok(version) => {
                reporter
                    .emit(Progress::Deployed {
                        function: version.function.clone(),
                        version: version.number,
                    })
                    .await;
            }
            Err(failure) => {
                tracing::info!(
                    step = reporter.step.as_str(),
                    kind = failure.kind.code(),
                    cause = failure.cause,
                    "deploy refused: {}",
                    failure.message
                );
                let message = match failure.cause {
                    // Deploying needs the admin right, and whoever deploys needs the cause to repair it.
                    Some(cause) => format!("{}: {cause}", failure.message),
                    None => failure.message.into_owned(),
                };
                reporter
                    .emit(Progress::Failed {
                        step: reporter.step,
                        code: failure.kind,
                        message,
                    })
                    .await;
            }
        }
    }

    async fn run(
        &self,
        function: FunctionName,
        request: DeployRequest,
        reporter: &mut Reporter,
    ) -> Result<Arc<Version>, Failure> {
        reporter.start(Step::Validate).await;
        let draft = self.validate(function, request).await?;
        let candidate = Arc::new(Version {
            function: draft.function.clone(),
            // The number is given at the commit; 0 marks a candidate in logs.
            number: VersionNumber(0),
            artifact: draft.artifact,
            models: draft.models.clone(),
            config: draft.config.clone(),
            created_ms: 0,
        });
        // Until the end: of two deploys at the same time the second is to see what the first will have.
        let _claim = self.invoker.claim(&candidate)?;
        reporter
            .finish(format!("{} artifact(s) verified", 1 + draft.models.len()))
            .await;

        for check in &self.checks {
            reporter.start(check.step()).await;
            let found = check.check(&candidate).await?;
            reporter.finish(found).await;
        }

        reporter.start(Step::WarmUp).await;
        let created = self.sandboxes.create(&candidate).await?;
        reporter
            .finish(format!(
                "a sandbox started in {:.1} ms",
                (created.phases.instantiate + created.phases.init).as_secs_f64() * 1e3
            ))
            .await;
        drop(created);

        reporter.start(Step::Activate).await;
        let turn = self.turn(&draft.function);
        let _turn = turn.lock().await;
        let before = self.function(&draft.function);
        let version = self.functions.commit(draft).await?;
        // From here on the version is live, whatever happens: a failure is told, and is no failure of the deploy.
        let forgotten = before.map_or_else(|_| Vec::new(), |before| self.forgotten(&before));
        let detail = match self.activate(&version, forgotten).await {
            Ok(()) => format!("version {} is live", version.number),
            Err(failure) => format!(
                "version {} is live, but: {}",
                version.number, failure.message
            ),
        };
        reporter.finish(detail).await;
        Ok(version)
    }

    async fn validate(
        &self,
        function: FunctionName,
        request: DeployRequest,
    ) -> Result<Draft, Failure> {
        let mut problems = request.config.problems(self.max_memory);
        if request.models.len() > MAX_MODELS {
            problems.push(format!("models: at most {MAX_MODELS}"));
        }
        for name in request.models.keys() {
            if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
                problems.push(format!(
                    "models: '{}' is no usable name; use 1 to 128 printable characters",
                    name.escape_debug()
                ));
            }
        }
        if !problems.is_empty() {
            return Err(Failure::new(ErrorKind::InvalidConfig, problems.join("; ")));
        }
        self.artifacts.verify(&request.artifact).await?;
        let mut models = BTreeMap::new();
        for (name, digest) in request.models {
            self.artifacts.verify(&digest).await?;
            let (_, size) = self.artifacts.locate(&digest).ok_or_else(|| {
                Failure::new(
                    ErrorKind::Corrupt,
                    "an uploaded artifact has vanished; upload it again",
                )
            })?;
            models.insert(name, ModelFile { digest, size });
        }
        Ok(Draft {
            function,
            artifact: request.artifact,
            models,
            config: request.config,
        })
    }

    /// Points `live` back at the version before the live one, or at `to`.
    pub async fn rollback(
        &self,
        name: &FunctionName,
        to: Option<VersionNumber>,
    ) -> Result<Arc<Version>, Failure> {
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let function = self.function(name)?;
        let live = function.live().map(|alias| alias.version);
        let target = match to {
            Some(number) => number,
            None => {
                *function
                    .versions
                    .range(..live.unwrap_or(VersionNumber(0)))
                    .next_back()
                    .ok_or_else(|| {
                        Failure::new(
                            ErrorKind::Conflict,
                            "there is no version before the live one to roll back to",
                        )
                    })?
                    .0
            }
        };
        let version = function.versions.get(&target).cloned().ok_or_else(|| {
            Failure::new(
                ErrorKind::NotFound,
                format!("'{name}' has no version {target}; see `fnctl versions {name}`"),
            )
        })?;
        let _claim = self.invoker.claim(&version)?;
        self.functions
            .set_alias(name, &live_alias()?, Some(Alias::to(target)))
            .await?;
        self.switched(&version).await;
        Ok(version)
    }

    /// Tells the invoker that another version is live, which it is by now: a failure is the log's.
    async fn switched(&self, version: &Arc<Version>) {
        if let Err(failure) = self.activate(version, Vec::new()).await {
            tracing::warn!(version = %version.key(), cause = failure.cause, "live, but: {}", failure.message);
        }
    }

    /// Tells the invoker what is live, as after a start of the platform. In its turn: what was live when the platform
    /// started may not be any more.
    pub async fn restore(&self, name: &FunctionName) {
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let Ok(function) = self.function(name) else {
            return;
        };
        let live = function.live().map(|alias| alias.version);
        if let Some(version) = live.and_then(|number| function.versions.get(&number)) {
            self.switched(version).await;
        }
    }

    /// Tells the invoker which version is live. A removal waits for nobody's turn, so it may have told the invoker
    /// before: then what was just activated is let go again. `retired` are versions that the store no longer knows.
    async fn activate(
        &self,
        version: &Arc<Version>,
        mut retired: Vec<VersionKey>,
    ) -> Result<(), Failure> {
        retired.extend(self.others(version));
        let activated = self.invoker.activate(version.clone(), retired).await;
        let exists = self
            .function(&version.function)
            .is_ok_and(|function| function.versions.contains_key(&version.number));
        if !exists {
            self.invoker.retire(&[version.key()]);
        }
        activated
    }

    /// Points an alias at one or two versions, or removes it.
    pub async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &AliasName,
        to: Option<Alias>,
    ) -> Result<(), Failure> {
        let function = self.function(name)?;
        if let Some(to) = &to {
            if to
                .split
                .is_some_and(|split| !(1..=99).contains(&split.percent))
            {
                return Err(Failure::new(
                    ErrorKind::BadRequest,
                    "the percentage of a split must be 1 to 99",
                ));
            }
            for number in [Some(to.version), to.split.map(|split| split.version)]
                .into_iter()
                .flatten()
            {
                if !function.versions.contains_key(&number) {
                    return Err(Failure::new(
                        ErrorKind::NotFound,
                        format!("'{name}' has no version {number}; see `fnctl versions {name}`"),
                    ));
                }
            }
        }
        if alias.as_str() == crate::version::LATEST {
            return Err(Failure::new(
                ErrorKind::BadRequest,
                "'latest' always means the newest version; choose another name",
            ));
        }
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let wanted = to
            .filter(|_| alias.as_str() == crate::version::LIVE)
            .and_then(|to| function.versions.get(&to.version));
        let _claim = wanted
            .map(|version| self.invoker.claim(version))
            .transpose()?;
        self.functions.set_alias(name, alias, to).await?;
        // Another alias that moves leaves a version that nobody is sent to any more, and that may be provisioned.
        let live = self.function(name)?.live().map(|alias| alias.version);
        if let Some(version) = live.and_then(|number| function.versions.get(&number)) {
            self.switched(version).await;
        }
        Ok(())
    }

    /// Removes a function; invocations that run finish.
    pub async fn remove(&self, name: &FunctionName) -> Result<(), Failure> {
        let function = self.functions.remove(name).await?;
        self.invoker.retire(&keys(&function));
        Ok(())
    }

    /// The lock that lets one change of a function's live version happen at a time.
    fn turn(&self, name: &FunctionName) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock();
        // Nobody waits for those that only the map holds.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(name.clone()).or_default().clone()
    }

    /// The other versions of the same function that no alias names: nobody is sent to them any more.
    fn others(&self, version: &Version) -> Vec<VersionKey> {
        let Some(function) = self
            .functions
            .functions(Some(&version.function))
            .into_iter()
            .next()
        else {
            return Vec::new();
        };
        let named = |number: VersionNumber| {
            let names = |alias: &Alias| {
                alias.version == number || alias.split.is_some_and(|split| split.version == number)
            };
            number == version.number || function.aliases.values().any(names)
        };
        keys(&function)
            .into_iter()
            .filter(|key| !named(key.number))
            .collect()
    }

    /// The versions that the store has forgotten since: the live one may be among them, after a rollback to the oldest.
    fn forgotten(&self, before: &Function) -> Vec<VersionKey> {
        let mut keys = keys(before);
        if let Ok(now) = self.function(&before.name) {
            keys.retain(|key| !now.versions.contains_key(&key.number));
        }
        keys
    }

    fn function(&self, name: &FunctionName) -> Result<Arc<Function>, Failure> {
        self.functions
            .functions(Some(name))
            .into_iter()
            .next()
            .ok_or_else(|| {
                Failure::new(
                    ErrorKind::NotFound,
                    format!("there is no function '{name}'; see `fnctl ls`"),
                )
            })
    }
}

/// The alias `live` as a checked name.
pub fn live_alias() -> Result<AliasName, Failure> {
    crate::version::LIVE.parse().map_err(Failure::internal)
}

fn keys(function: &Function) -> Vec<VersionKey> {
    function
        .versions
        .values()
        .map(|version| version.key())
        .collect()
}

struct Reporter {
    progress: mpsc::Sender<Progress>,
    step: Step,
    since: Instant,
}

impl Reporter {
    async fn emit(&self, event: Progress) {
        // The reader may be gone; the deploy goes on.
        let _ = self.progress.send(event).await;
    }

    async fn start(&mut self, step: Step) {
        self.step = step;
        self.since = Instant::now();
        self.emit(Progress::Started { step }).await;
    }

    async fn finish(&self, detail: String) {
        let ms = self.since.elapsed().as_secs_f64() * 1e3;
        self.emit(Progress::Finished {
            step: self.step,
            ms,
            detail,
        })
        .await;
    }
}
