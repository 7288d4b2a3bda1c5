//! A sandbox of a `wasi:http` component, 0.2 or 0.3: one store, one instance, one request after another.

use super::shared::SharedSandbox;
use super::{BodyFate, GuestBody, RunBounds, Stopped, bounded, p2, p3};
use crate::cpu::CpuMeter;
use crate::failure::{self, run_failure, start_failure};
use crate::guest_log::GuestLog;
use crate::nn::NnContext;
use crate::state::{self, ComponentState};
use crate::template::{ComponentTemplate, HandlerIndices, Template};
use crate::thread_time::metered;
use async_trait::async_trait;
use bytes::Bytes;
use fnctl_core::body::BodyError;
use fnctl_core::ports::Sandbox;
use fnctl_core::trace::Trace;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure, Invocation, ReplySender, RunEnd, RunReport};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;
use wasmtime::Store;
use wasmtime::component::Instance;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p3::bindings::Service;

/// The instance's handler, by its world.
enum Handler {
    P2(Proxy),
    P3(Service),
}

/// The one way of a handler to answer: bounds the body and ties it to the fate of its run.
#[derive(Clone)]
pub(super) struct Answer {
    reply: ReplySender,
    fate: BodyFate,
    /// Most bytes of the body.
    limit: u64,
    /// Why the guest answered with an error of its own instead of a response, if it did.
    refused: Arc<OnceLock<Failure>>,
}

impl Answer {
    pub(super) fn new(reply: &ReplySender, fate: &BodyFate, limit: u64) -> Self {
        Self {
            reply: reply.clone(),
            fate: fate.clone(),
            limit,
            refused: Arc::default(),
        }
    }

    /// Why the guest answered with an error of its own, if it did.
    pub(super) fn refused(&self) -> Option<Failure> {
        self.refused.get().cloned()
    }

    /// Answers. Dropping the body drops `gone`.
    pub(super) fn send<E: std::fmt::Debug>(
        &self,
        result: Result<http::Response<UnsyncBoxBody<Bytes, wasmtime_wasi_http::Error>>, E>,
        gone: Option<DropGuard>,
    ) {
        let head = match result {
            Ok(response) => Ok(response.map(|body| {
                GuestBody::new(body, self.limit, self.fate.clone(), gone).boxed_unsync()
            })),
            Err(code) => {
                let failure = Failure::new(
                    ErrorKind::BadResponse,
                    "the function answered with an error instead of a response",
                )
                .because(format!("{code:?}"));
                // A handler answers once.
                let _ = self.refused.set(failure.clone());
                Err(failure)
            }
        };
        self.reply.send(head);
    }

    pub(super) fn is_sent(&self) -> bool {
        self.reply.is_sent()
    }
}

pub(crate) struct ComponentSandbox {
    // Declared before the template: the store goes first.
    store: Store<ComponentState>,
    handler: Handler,
    instance: Instance,
    template: Arc<Template>,
    version: Arc<Version>,
    /// CPU time of the last run, if it was measured.
    cpu: Option<Duration>,
}

impl ComponentSandbox {
    pub(crate) async fn instantiate(
        component: &ComponentTemplate,
        template: Arc<Template>,
        version: Arc<Version>,
        nn: NnContext,
        log: GuestLog,
    ) -> Result<Self, Failure> {
        let state = ComponentState::new(&version, nn, log, template.engine.tick);
        let mut store = Store::new(&template.engine.engine, state);
        state::arm(&mut store, version.config.memory.as_usize());
        // A 0.2 handler may import what is of 0.3, too.
        p3::arm(&mut store);
        let running = template.engine.running();
        let instance = match component.pre.instantiate_async(&mut store).await {
            Ok(instance) => instance,
            Err(error) => return Err(start_failure(&error, Some(&store.data().guest))),
        };
        let handler = match &component.handler {
            HandlerIndices::P2(indices) => indices.load(&mut store, &instance).map(Handler::P2),
            HandlerIndices::P3(indices) => indices.load(&mut store, &instance).map(Handler::P3),
        }
        .map_err(|error| start_failure(&error, None))?;
        drop(running);
        Ok(Self {
            store,
            handler,
            instance,
            template,
            version,
            cpu: None,
        })
    }

    /// Runs the guest's `init`, if it has one.
    pub(crate) async fn init(
        &mut self,
        component: &ComponentTemplate,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let Some(index) = &component.init else {
            return Ok(());
        };
        state::begin_cpu(&mut self.store);
        self.store
            .data_mut()
            .guest
            .nn
            .begin(deadline, Trace::none());
        let failed = |cause: String| {
            Failure::new(
                ErrorKind::StartFailed,
                "the function's init failed; its log lines say more",
            )
            .because(cause)
        };
        let init = self
            .instance
            .get_typed_func::<(), (Result<(), String>,)>(&mut self.store, index)
            .map_err(|error| failed(format!("{error:#}")))?;
        let running = self.template.engine.running();
        let outcome = init.call_async(&mut self.store, ()).await;
        drop(running);
        self.store.data().guest.log.end();
        match outcome {
            Ok((Ok(()),)) => Ok(()),
            Ok((Err(text),)) => Err(failed(text)),
            Err(error) => {
                let cause = run_failure(&error, &self.store.data().guest);
                match cause.kind {
                    ErrorKind::Trap => Err(failed(cause.cause.unwrap_or_default())),
                    _ => Err(cause),
                }
            }
        }
    }

    /// The sandbox as its version asks for it: for one request at a time, or for several.
    pub(crate) fn into_sandbox(self) -> Box<dyn Sandbox> {
        let wanted = self.version.config.instance_concurrency.get();
        match self.handler {
            Handler::P3(service) if wanted > 1 => Box::new(SharedSandbox::new(
                self.store,
                service,
                self.template,
                self.version,
            )),
            _ => Box::new(self),
        }
    }

    async fn serve(
        &mut self,
        invocation: Invocation,
        reply: &ReplySender,
        fate: &BodyFate,
    ) -> Result<(), Failure> {
        let bounds = RunBounds::of(&invocation);
        state::begin_cpu(&mut self.store);
        self.store.data_mut().begin(&invocation);
        self.cpu = invocation.is_observed().then_some(Duration::ZERO);

        let config = &self.version.config;
        let answer = Answer::new(reply, fate, config.response_body.bytes());
        let (store, request, cpu) = (&mut self.store, invocation.request, self.cpu.as_mut());
        let running = self.template.engine.running();
        let outcome = match &self.handler {
            Handler::P2(proxy) => {
                let handle = pin!(p2::handle(store, proxy, request, &answer));
                bounded(metered(cpu, handle), bounds.deadline, &bounds.cancelled).await
            }
            Handler::P3(service) => {
                let meter = CpuMeter::new(config.cpu.duration());
                let handle = pin!(p3::handle(store, service, request, &answer, meter));
                bounded(metered(cpu, handle), bounds.deadline, &bounds.cancelled).await
            }
        };
        drop(running);
        match outcome {
            // It returned, but its caller got an error: that is a failure, to be counted and told in the log.
            Ok(Ok(())) => answer.refused().map_or(Ok(()), Err),
            Ok(failed) => failed,
            // Nobody reads on, because there was too much to read.
            Err(Stopped::Cancelled) if fate.was_too_large() => Err(failure::response_too_large()),
            Err(stopped) => Err(stopped.failure(config.timeout.duration())),
        }
    }
}

pub(super) fn body_error(error: BodyError) -> wasmtime_wasi_http::Error {
    match error {
        BodyError::TooLarge(limit) => wasmtime_wasi_http::Error::HttpRequestBodySize(Some(limit)),
        BodyError::TimedOut => wasmtime_wasi_http::Error::ConnectionReadTimeout,
        BodyError::Aborted(_) => wasmtime_wasi_http::Error::ConnectionTerminated,
    }
}

#[async_trait]
impl Sandbox for ComponentSandbox {
    async fn run(&mut self, invocation: Invocation, reply: ReplySender) -> RunReport {
        let fate = BodyFate::default();
        let outcome = self.serve(invocation, &reply, &fate).await;
        // Before the store goes, and with it the body's other end.
        fate.settle(&outcome, &reply);
        let guest = &mut self.store.data_mut().guest;
        guest.log.end();
        let memory = guest.limits.memory as u64;
        let end = match outcome {
            // A sandbox that met its limit may have lost the work of an allocator that gave up half-way.
            Ok(()) if guest.met_limit() => RunEnd::Failed(failure::over_limit()),
            Ok(()) => RunEnd::Completed,
            Err(failure) => RunEnd::Failed(failure),
        };
        RunReport {
            end,
            memory,
            cpu: self.cpu,
            inference: guest.nn.spent,
            computes: guest.nn.computes,
        }
    }
}
