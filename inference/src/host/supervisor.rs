//! The platform's side of all inference hosts: finds each session its host, starts and restarts hosts, and does again
//! what a dead one left undone, so that callers see latency and no error.

use super::asked::Gone;
use super::backoff::Backoff;
use super::death::{Death, Reason};
use super::group::{Group, GroupKey};
use super::making_room::Taken;
use super::metrics::HostMetrics;
use super::metrics::resident_bytes;
use super::model::{Model, ModelFile, Wanted};
use super::placing::named;
use super::process::{HostProcess, Plan, StartFailure};
use super::quarantine::{Evidence, Inhabitants, Ledger, Limits};
use crate::config::Config;
use crate::inputs::{self, Resolved};
use crate::metrics::Metrics;
use crate::room::Rights;
use crate::sessions::{SessionKey, Sessions, Unclaimed};
use crate::timed_out;
use async_trait::async_trait;
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::{
    Compute, Computed, InferenceError, InferenceErrorKind, KeepWish, LoadModel, LoadedModel,
    ModelInfo, SessionId,
};
use fnctl_core::ladder::RungCost;
use fnctl_core::ports::InferenceHost;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

/// How often who waits for a place looks again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Starts in a row that may fail before the one who waits is told.
const START_ATTEMPTS: u32 = 3;

/// Inference hosts behind the `InferenceHost` port.
#[derive(Clone)]
pub(crate) struct SupervisedHost(pub(crate) Arc<Supervisor>);

pub(crate) struct Supervisor {
    pub(super) plan: Plan,
    pub(super) sessions: Sessions<Model>,
    pub(super) shared: Arc<Group>,
    pub(super) others: Mutex<HashMap<GroupKey, Arc<Group>>>,
    pub(super) ledger: Mutex<Ledger>,
    /// Which functions may have others' idle sessions unloaded.
    pub(super) rights: Mutex<Rights>,
    /// Whether anything is in the ledger; nothing nearly always.
    pub(super) suspicion: AtomicBool,
    pub(super) spare: Mutex<Option<Arc<HostProcess>>>,
    /// Spare hosts being started: at most one.
    spares_starting: AtomicUsize,
    spare_backoff: Mutex<Backoff>,
    /// Files of models that may be opened, and checked against their digests, at once.
    loads: Semaphore,
    pub(crate) metrics: Arc<Metrics>,
    pub(super) hosts: HostMetrics,
    pub(super) closing: AtomicBool,
}

impl SupervisedHost {
    pub(crate) fn new(
        config: Config,
        metrics: Arc<Metrics>,
        registry: &prometheus::Registry,
    ) -> Result<Self, prometheus::Error> {
        let limits = Limits {
            deaths: config.quarantine_after,
            quarantine: config.quarantine.duration(),
        };
        Ok(Self(Arc::new(Supervisor {
            sessions: Sessions::default(),
            shared: Group::new(GroupKey::Shared),
            others: Mutex::default(),
            ledger: Mutex::new(Ledger::new(limits)),
            rights: Mutex::default(),
            suspicion: AtomicBool::new(false),
            spare: Mutex::new(None),
            spares_starting: AtomicUsize::new(0),
            spare_backoff: Mutex::default(),
            loads: Semaphore::new(config.parallel_loads.max(1)),
            metrics,
            hosts: HostMetrics::register(registry)?,
            closing: AtomicBool::new(false),
            plan: Plan::new(config),
        })))
    }
}

pub(super) fn unavailable(message: String) -> InferenceError {
    InferenceError::new(InferenceErrorKind::Unavailable, message)
}

impl Supervisor {
    /// Opens a model where it may block.
    pub(crate) async fn open(&self, request: LoadModel) -> Result<ModelFile, InferenceError> {
        tokio::task::spawn_blocking(move || ModelFile::open(&request))
            .await
            .unwrap_or_else(|panic| {
                Err(InferenceError::new(
                    InferenceErrorKind::Runtime,
                    panic.to_string(),
                ))
            })
    }

    /// A new host that belongs to nobody yet.
    pub(crate) async fn fresh(self: &Arc<Self>) -> Result<Arc<HostProcess>, InferenceError> {
        let spare = self.spare.lock().take();
        self.clone().start_spare();
        if let Some(spare) = spare.filter(|spare| spare.is_alive()) {
            return Ok(spare);
        }
        let mut attempts = 0;
        loop {
            let since = Instant::now();
            match HostProcess::start(&self.plan).await {
                Ok(host) => {
                    let took = since.elapsed();
                    self.hosts.start_seconds.observe(took.as_secs_f64());
                    tracing::info!(
                        pid = host.pid,
                        ms = took.as_millis(),
                        confinement = host.confinement,
                        "inference host started"
                    );
                    return Ok(host);
                }
                Err(StartFailure::Told(error)) => return Err(error),
                Err(StartFailure::Died(why)) => {
                    attempts += 1;
                    tracing::warn!(attempts, "an inference host did not start: {why}");
                    if attempts >= START_ATTEMPTS {
                        return Err(unavailable(format!(
                            "the inference host does not start: {why}"
                        )));
                    }
                }
            }
        }
    }

    /// Has a spare host started, where the configuration wants one and there is none.
    pub(crate) fn start_spare(self: Arc<Self>) {
        let now = Instant::now();
        if !self.plan.config.spare_host
            || self.spare_backoff.lock().next(now) > now
            || self.closing.load(Ordering::Relaxed)
            || self
                .spare
                .lock()
                .as_ref()
                .is_some_and(|spare| spare.is_alive())
            || self.spares_starting.swap(1, Ordering::AcqRel) == 1
        {
            return;
        }
        tokio::spawn(async move {
            let started = HostProcess::start(&self.plan).await;
            match started {
                Ok(host) if self.closing.load(Ordering::Relaxed) => host.finish(Reason::Stopped),
                Ok(host) => {
                    self.spare_backoff.lock().worked();
                    // Whoever looked just before the last one was put there has started one more.
                    if let Some(surplus) = self.spare.lock().replace(host) {
                        surplus.finish(Reason::Stopped);
                    }
                    // Whoever ends all hosts may have looked before this one was there.
                    if self.closing.load(Ordering::SeqCst)
                        && let Some(host) = self.spare.lock().take()
                    {
                        host.finish(Reason::Stopped);
                    }
                }
                Err(failure) => {
                    self.spare_backoff.lock().died(false, Instant::now());
                    tracing::warn!(?failure, "no spare inference host");
                }
            }
            self.spares_starting.store(0, Ordering::Release);
        });
    }

    /// The living host of a group; started if there is none.
    pub(super) async fn host(
        self: &Arc<Self>,
        group: &Arc<Group>,
    ) -> Result<Arc<HostProcess>, InferenceError> {
        if let Some(host) = group.alive() {
            return Ok(host);
        }
        // In a task of its own: whoever stops waiting must not undo the start that others wait for.
        let (supervisor, group) = (self.clone(), group.clone());
        tokio::spawn(async move { supervisor.host_now(&group).await })
            .await
            .unwrap_or_else(|panic| {
                Err(InferenceError::new(
                    InferenceErrorKind::Runtime,
                    panic.to_string(),
                ))
            })
    }

    async fn host_now(
        self: &Arc<Self>,
        group: &Arc<Group>,
    ) -> Result<Arc<HostProcess>, InferenceError> {
        let asked = Instant::now();
        let _turn = group.starting.lock().await;
        loop {
            if let Some(host) = group.alive() {
                return Ok(host);
            }
            if let Some(error) = group.failure_since(asked) {
                return Err(error);
            }
            if self.closing.load(Ordering::SeqCst) {
                return Err(unavailable("the platform is shutting down".to_owned()));
            }
            let next = group.backoff.lock().next(Instant::now());
            tokio::time::sleep_until(next).await;
            let host = match self.fresh().await {
                Ok(host) => host,
                Err(error) => {
                    group.start_failed(error.clone(), Instant::now());
                    return Err(error);
                }
            };
            // Before its death can be told, so that a dead host is never left in its place.
            *group.live.write() = Some(host.clone());
            let adopted = self.adopt(group, &host);
            if self.closing.load(Ordering::SeqCst) {
                // Whoever ends all hosts may have looked before this one was there.
                group.take(&host);
                host.finish(Reason::Stopped);
                return Err(unavailable("the platform is shutting down".to_owned()));
            }
            if adopted {
                return Ok(host);
            }
            group.take(&host);
        }
    }

    /// Makes a host this group's. Says no if it is dead already.
    pub(super) fn adopt(self: &Arc<Self>, group: &Arc<Group>, host: &Arc<HostProcess>) -> bool {
        let supervisor = Arc::downgrade(self);
        let (group, weak) = (group.clone(), Arc::downgrade(host));
        host.on_death(Box::new(move |death| {
            if let (Some(supervisor), Some(host)) = (supervisor.upgrade(), weak.upgrade()) {
                supervisor.mourn(&group, &host, death);
            }
        }))
    }

    fn mourn(&self, group: &Group, host: &HostProcess, death: &Death) {
        let now = Instant::now();
        group.take(host);
        if death.reason == Reason::Stopped {
            return;
        }
        self.hosts
            .restarts
            .with_label_values(&[death.reason.label()])
            .inc();
        group.backoff.lock().died(death.answered > 0, now);
        tracing::warn!(
            pid = host.pid,
            kind = group.key.label(),
            in_flight = death.suspects.len(),
            answered = death.answered,
            "an inference host died: {}; what it left undone is done again",
            death.reason
        );
        if !death.reason.blames_a_model() {
            return;
        }
        // The kernel chooses a host before others, whoever took the memory: a reason to be careful, and no proof.
        let many = Inhabitants::many();
        let inhabitants = if death.reason == Reason::OutOfMemory {
            &many
        } else {
            &death.inhabitants
        };
        let evidence = Evidence {
            suspects: &death.suspects,
            inhabitants,
        };
        let mut ledger = self.ledger.lock();
        for who in ledger.death(evidence, now) {
            tracing::warn!(
                "{} killed too many inference hosts and is quarantined",
                named(&who)
            );
        }
        self.suspicion.store(true, Ordering::Relaxed);
    }

    async fn load_model(
        self: Arc<Self>,
        id: SessionId,
        key: SessionKey,
        request: LoadModel,
    ) -> Result<Model, InferenceError> {
        let (function, deadline) = (request.function.clone(), request.deadline);
        let file = {
            // Never closed. Only for the file: each host counts its loads itself.
            let turn = tokio::time::timeout_at(deadline, self.loads.acquire()).await;
            let _permit = turn.map_err(|_elapsed| {
                timed_out("the model was not loaded in time; raise start_timeout")
            })?;
            self.open(request).await?
        };
        let since = Instant::now();
        let wanted = Wanted::new(id, key, function, file);
        let (info, cost) = self
            .load_somewhere(&wanted, &wanted.function, deadline)
            .await?;
        self.metrics.loaded(since.elapsed());
        tracing::info!(function = %wanted.function, "model loaded");
        Ok(Model {
            wanted,
            info: Arc::new(info),
            cost,
            room: AtomicUsize::new(0),
            users: Mutex::default(),
        })
    }

    /// Loads a session where it belongs. Says also what that takes, once a host is there.
    async fn load_somewhere(
        self: &Arc<Self>,
        wanted: &Arc<Wanted>,
        function: &FunctionName,
        deadline: Instant,
    ) -> Result<(ModelInfo, RungCost), InferenceError> {
        let mut round = 0;
        let mut taken = Taken::nothing(&self.rights, function);
        loop {
            let group = self.place(&wanted.key, function, deadline).await?;
            let host = self.host(&group).await?;
            let since = Instant::now();
            match host.load(wanted, function, deadline).await {
                Ok(Ok(info)) => {
                    let mut bytes = host.bytes_of(wanted.id).unwrap_or(0);
                    if matches!(group.key, GroupKey::Dedicated(_)) {
                        // The process is there for this function alone, and goes with its last session.
                        bytes = bytes.max(resident_bytes(host.pid));
                    }
                    taken.used();
                    let took = since.elapsed();
                    return Ok((info, RungCost { took, bytes }));
                }
                Ok(Err(refusal)) => {
                    round += 1;
                    let room = self.make_room(&host, &mut taken, &refusal, round, deadline);
                    if !room.await {
                        return Err(refusal.error);
                    }
                }
                Err(Gone) if Instant::now() >= deadline => {
                    return Err(timed_out(
                        "the model was not loaded in time: its inference host died",
                    ));
                }
                Err(Gone) => self.again(&host).await,
            }
        }
    }

    /// A host was lost before it answered, and another one is to do it.
    async fn again(&self, host: &HostProcess) {
        self.hosts.reruns.inc();
        // Nearly always its death is known by now. If not, whoever asks again at once would ask the same one.
        host.ended(Instant::now() + LOOK_AGAIN).await;
    }

    async fn compute_somewhere(
        self: &Arc<Self>,
        model: &Model,
        function: &FunctionName,
        inputs: &[Resolved],
        deadline: Instant,
    ) -> Result<Computed, InferenceError> {
        let wanted = &model.wanted;
        let mut round = 0;
        let mut taken = Taken::nothing(&self.rights, function);
        loop {
            let group = self.place(&wanted.key, function, deadline).await?;
            let host = match group.alive() {
                Some(host) => host,
                None => self.host(&group).await?,
            };
            let Some(resident) = host.resident(wanted.id) else {
                let (info, _) = self.load_somewhere(wanted, function, deadline).await?;
                if info != *model.info {
                    return Err(InferenceError::new(
                        InferenceErrorKind::Runtime,
                        "the model has other inputs or outputs than when it was first loaded",
                    ));
                }
                // The host may be another one by now.
                continue;
            };
            let done = host.compute(&resident, function, &model.info, &model.room, inputs);
            match done.await {
                Ok(Ok(computed)) => {
                    // Errors clear nobody: the cheapest need no model at all.
                    if let GroupKey::Alone(who) = &group.key
                        && self.ledger.lock().answered(who)
                    {
                        tracing::info!("{} is cleared of suspicion", named(who));
                    }
                    taken.used();
                    return Ok(computed);
                }
                Ok(Err(refusal)) => {
                    round += 1;
                    let room = self.make_room(&host, &mut taken, &refusal, round, deadline);
                    if !room.await {
                        return Err(refusal.error);
                    }
                }
                Err(Gone) => self.again(&host).await,
            }
        }
    }
}

#[async_trait]
impl InferenceHost for SupervisedHost {
    async fn load(&self, request: LoadModel) -> Result<LoadedModel, InferenceError> {
        let deadline = request.deadline;
        let supervisor = self.0.clone();
        let (tx, rx) = oneshot::channel();
        // In a task of its own: a caller that gives up must not undo the load that the next one waits for.
        tokio::spawn(async move {
            let function = request.function.clone();
            let key = supervisor.apart(SessionKey::of(&request), &function);
            let load = |id| supervisor.clone().load_model(id, key.clone(), request);
            let acquired = match supervisor.admit(&key, &function) {
                Ok(()) => supervisor.sessions.acquire(key.clone(), load).await,
                Err(quarantined) => Err(quarantined),
            };
            let model = acquired.as_ref().ok();
            if let Some(model) = model.and_then(|one| supervisor.sessions.get(one.session)) {
                model.users.lock().add(&function);
            }
            supervisor.observe(Instant::now());
            // Whoever drops it, sent or not, gives the use back.
            let _ = tx.send(acquired.map(|loaded| {
                Unclaimed::new(loaded, move |session| {
                    let wish = KeepWish::none(function);
                    supervisor.sessions.release(session, wish, Instant::now());
                })
            }));
        });
        match tokio::time::timeout_at(deadline, rx).await {
            Ok(Ok(acquired)) => acquired.and_then(Unclaimed::claim),
            Ok(Err(_gone)) => Err(InferenceError::new(
                InferenceErrorKind::Runtime,
                "the load was given up",
            )),
            Err(_elapsed) => Err(timed_out(
                "the model was not loaded in time; raise start_timeout",
            )),
        }
    }

    async fn compute(&self, request: Compute) -> Result<Computed, InferenceError> {
        let supervisor = &self.0;
        let model = supervisor.sessions.get(request.session).ok_or_else(|| {
            InferenceError::new(
                InferenceErrorKind::NotFound,
                "this session is not loaded any more",
            )
        })?;
        let inputs = inputs::resolve(&model.info, request.inputs)?;
        let timer = supervisor.metrics.compute_seconds.start_timer();
        // A session that is one function's is used by no other.
        let owner = model.wanted.key.owner.as_ref();
        let function = owner.unwrap_or(&request.function);
        let compute = supervisor.compute_somewhere(&model, function, &inputs, request.deadline);
        let computed = tokio::time::timeout_at(request.deadline, compute).await;
        timer.observe_duration();
        match computed {
            Ok(computed) => computed,
            Err(_elapsed) => Err(timed_out(
                "the inference did not end before the request's deadline",
            )),
        }
    }

    fn release(&self, session: SessionId, wish: KeepWish) {
        self.0.sessions.release(session, wish, Instant::now());
    }

    fn forget(&self, function: &FunctionName) {
        self.0.sessions.forget(function, Instant::now());
    }
}
