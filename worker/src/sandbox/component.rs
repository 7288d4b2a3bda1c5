//! A sandbox of a `wasi:http` component: one store, one instance, one request after another.

use super::{BodyFate, GuestBody, RunBounds, Stopped, bounded};
use crate::cpu::metered;
use crate::failure::{self, run_failure, start_failure};
use crate::guest_log::GuestLog;
use crate::nn::NnContext;
use crate::state::{self, ComponentState};
use crate::template::{ComponentTemplate, Template};
use async_trait::async_trait;
use fnctl_core::body::BodyError;
use fnctl_core::ports::Sandbox;
use fnctl_core::trace::Trace;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure, Invocation, ReplySender, RunEnd, RunReport};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wasmtime::Store;
use wasmtime::component::Instance;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

pub(crate) struct ComponentSandbox {
    // Declared before the template: the store goes first.
    store: Store<ComponentState>,
    proxy: Proxy,
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
        let running = template.engine.running();
        let instance = match component.pre.instantiate_async(&mut store).await {
            Ok(instance) => instance,
            Err(error) => return Err(start_failure(&error, Some(&store.data().guest))),
        };
        let proxy = component
            .proxy
            .load(&mut store, &instance)
            .map_err(|error| start_failure(&error, None))?;
        drop(running);
        Ok(Self {
            store,
            proxy,
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

        let response_limit = self.version.config.response_body.bytes();
        let (answer, body_fate) = (reply.clone(), fate.clone());
        let respond = move |result: Result<http::Response<HyperOutgoingBody>, ErrorCode>| {
            answer.send(match result {
                Ok(response) => Ok(response
                    .map(|body| GuestBody::new(body, response_limit, body_fate).boxed_unsync())),
                Err(code) => Err(Failure::new(
                    ErrorKind::BadResponse,
                    "the function answered with an error instead of a response",
                )
                .because(format!("{code:?}"))),
            });
        };
        let request = invocation.request.map(|body| body.map_err(body_error));
        let mut view = self.store.data_mut().http();
        let request = view
            .new_incoming_request(Scheme::Http, request)
            .map_err(|error| {
                Failure::new(ErrorKind::BadRequest, "the request has no usable host")
                    .because(format!("{error:#}"))
            })?;
        let response = view
            .new_response_outparam_from_callback(respond)
            .map_err(Failure::internal)?;

        let running = self.template.engine.running();
        let call =
            self.proxy
                .wasi_http_incoming_handler()
                .call_handle(&mut self.store, request, response);
        let call = metered(self.cpu.as_mut(), call);
        let outcome = bounded(call, bounds.deadline, &bounds.cancelled).await;
        drop(running);
        match outcome {
            Ok(Ok(())) if reply.is_sent() => Ok(()),
            Ok(Ok(())) => Err(Failure::new(
                ErrorKind::BadResponse,
                "the function returned without answering the request",
            )),
            Ok(Err(error)) => Err(run_failure(&error, &self.store.data().guest)),
            // Nobody reads on, because there was too much to read.
            Err(Stopped::Cancelled) if fate.was_too_large() => Err(failure::response_too_large()),
            Err(stopped) => Err(stopped.failure(self.version.config.timeout.duration())),
        }
    }
}

fn body_error(error: BodyError) -> wasmtime_wasi_http::Error {
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
        let end = match self.serve(invocation, &reply, &fate).await {
            Ok(()) => {
                fate.run_ended();
                RunEnd::Completed
            }
            Err(failure) => {
                // Before the store goes, and with it the body's other end.
                fate.run_failed();
                reply.send(Err(failure.clone()));
                RunEnd::Failed(failure)
            }
        };
        let guest = &mut self.store.data_mut().guest;
        guest.log.end();
        let memory = guest.limits.memory as u64;
        // A sandbox that met its limit may have lost the work of an allocator that gave up half-way.
        let end = match end {
            RunEnd::Completed if guest.met_limit() => RunEnd::Failed(failure::over_limit()),
            end => end,
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
