//! One instance of a WASI 0.3 component that serves several requests at once.
//!
//! The store is run by whichever of the requests in flight is polled: one of them leads, and its task drives the event
//! loop for all; when it is done, the next leads. So nothing runs while nobody waits for an answer, and the time that the
//! guest computes is time of an invocation, which the scheduler sees. Deadlines and callers that leave are watched by each
//! request's own handle, outside of the event loop, which Wasmtime does not promise to poll.
//!
//! A request that is given up closes the instance for new ones: the guest cannot be made to forget it. Those in flight
//! may finish. A trap ends them all. In both cases those that the guest has not seen are handed back.

use super::crew::{Crew, Job};
use super::{BodyFate, RunBounds, Stopped, bounded, p3};
use crate::cpu::CpuMeter;
use crate::failure::{self, run_failure};
use crate::guest_log::GuestLog;
use crate::sharing::{Call, Sharing};
use crate::state::{self, ComponentState};
use crate::template::Template;
use async_trait::async_trait;
use fnctl_core::activity::{Computes, Led};
use fnctl_core::ports::Sandbox;
use fnctl_core::version::Version;
use fnctl_core::{Failure, Invocation, ReplySender, RunEnd, RunReport};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wasmtime::component::Accessor;
use wasmtime::{AsContextMut, Store};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p3::bindings::Service;

/// How long a guest has to end by itself when its reader leaves in the middle of a body, which it is told by the body's
/// stream. If it does, nothing is wrong with the instance.
const FAREWELL: Duration = Duration::from_millis(100);

/// A handle of the instance; each runs one invocation at a time.
pub(crate) struct SharedSandbox(Arc<Shared>);

struct Shared {
    crew: Arc<Crew>,
    /// What the guest has computed, whichever request it is for.
    computes: Computes,
    /// The store's event loop; nothing while it is polled, and once the instance has died.
    driver: Mutex<Option<Driver>>,
    /// Wakes whoever leads.
    waker: Waker,
    template: Arc<Template>,
    version: Arc<Version>,
    log: GuestLog,
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

impl SharedSandbox {
    /// Takes over a store with a started and initialised instance.
    pub(crate) fn new(
        mut store: Store<ComponentState>,
        service: Service,
        template: Arc<Template>,
        version: Arc<Version>,
    ) -> Self {
        let meter = CpuMeter::shared(version.config.cpu.duration());
        state::begin_cpu(&mut store);
        let guest = &mut store.data_mut().guest;
        guest.meter = Some(meter.clone());
        guest.sharing = Some(Sharing::default());
        let log = guest.log.clone();
        let crew = Arc::new(Crew::new(meter.clone(), guest.limits.memory as u64));
        let computes = Computes::default();
        let guest = (service, computes.clone());
        let driver = drive(store, guest, crew.clone(), template.clone());
        Self(Arc::new(Shared {
            waker: Waker::from(crew.clone()),
            crew,
            computes,
            driver: Mutex::new(Some(Box::pin(async move { meter.measure(driver).await }))),
            template,
            version,
            log,
        }))
    }
}

/// Runs the event loop until the guest fails, and tells everybody.
async fn drive(
    store: Store<ComponentState>,
    (service, computes): (Service, Computes),
    crew: Arc<Crew>,
    template: Arc<Template>,
) {
    // The store goes before the template.
    let _template = template;
    let mut store = store;
    let ended = store
        .run_concurrent(async |accessor| serve_all(accessor, &service, &computes, &crew).await)
        .await;
    let error = match ended {
        Ok(error) | Err(error) => error,
    };
    let guest = &store.data().guest;
    // Before the store goes, and with it the bodies' other ends.
    let memory = guest.limits.memory as u64;
    crew.die(&run_failure(&error, guest), Some(memory));
}

/// Serves whoever comes; returns why it cannot go on.
async fn serve_all(
    accessor: &Accessor<ComponentState>,
    service: &Service,
    computes: &Computes,
    crew: &Crew,
) -> wasmtime::Error {
    let mut calls = FuturesUnordered::new();
    poll_fn(|ctx| {
        accessor.with(|mut store| {
            if let Some(sharing) = &mut store.data_mut().guest.sharing {
                sharing.goes_round();
            }
        });
        loop {
            match calls.poll_next_unpin(ctx) {
                Poll::Ready(Some(Err(error))) => return Poll::Ready(error),
                Poll::Ready(Some(Ok(()))) => continue,
                Poll::Ready(None) | Poll::Pending => {}
            }
            // While it waits for its inference the guest sees nobody: who comes may still be served by another.
            if computes.any() {
                break;
            }
            match crew.next_job() {
                Some(job) => calls.push(Box::pin(serve(accessor, service, crew, job))),
                None => break,
            }
        }
        if crew.may_be_quiet() && accessor.poll_no_interesting_tasks(ctx).is_ready() {
            crew.is_quiet();
        }
        Poll::Pending
    })
    .await
}

/// Calls the handler, and returns when its answer is read or given up. An error is the end of the instance.
async fn serve(
    accessor: &Accessor<ComponentState>,
    service: &Service,
    crew: &Crew,
    job: Job,
) -> wasmtime::Result<()> {
    let Job {
        call,
        invocation,
        answer,
    } = job;
    let key = call.key;
    let handler = service.wasi_http_handler();
    let begun = accessor.with(|mut store| {
        let request = match p3::incoming(store.data_mut(), invocation.request) {
            Ok(request) => request,
            Err(failure) => return wasmtime::error::Ok(Err(failure)),
        };
        let request = store.data_mut().http().table.push(request)?;
        let begun = handler
            .func_handle()
            .start_call_concurrent(store.as_context_mut(), (request,))?;
        store.data_mut().enter_call(begun.task(), call.clone());
        Ok(Ok(begun))
    })?;
    let begun = match begun {
        Ok(begun) => begun,
        Err(failure) => {
            crew.refused(key, failure);
            return Ok(());
        }
    };
    let task = begun.task();
    let (answered,) = handler
        .func_handle()
        .finish_call_concurrent(accessor, begun)
        .await?;
    let gone = CancellationToken::new();
    let result = match answered {
        Ok(response) => {
            // What the guest may wait for: that its body was taken.
            let taken = gone.clone();
            let taken = async move {
                taken.cancelled().await;
                Ok(())
            };
            accessor.with(|mut store| {
                let response = store.data_mut().http().table.delete(response)?;
                let converted = response.into_http(store, taken);
                wasmtime::error::Ok(converted.map_err(|error| format!("{error:#}")))
            })?
        }
        Err(code) => Err(format!("{code:?}")),
    };
    answer.send(result, Some(gone.clone().drop_guard()));
    gone.cancelled().await;
    let (memory, met_limit) = accessor.with(|mut store| {
        let state = store.data_mut();
        state.leave_call(task, &call);
        (state.guest.limits.memory as u64, state.guest.met_limit())
    });
    let outcome = match (answer.refused(), met_limit) {
        (Some(refused), _) => Err(refused),
        // It may have lost the work of an allocator that gave up half-way.
        (None, true) => Err(failure::over_limit()),
        (None, false) => Ok(()),
    };
    crew.finished(key, outcome, memory);
    Ok(())
}

/// The place of a request in flight; left when dropped.
struct Seat {
    shared: Arc<Shared>,
    call: Arc<Call>,
    led: Mutex<Led>,
}

impl Shared {
    /// Lets a request in, or gives it back if nobody may come any more.
    fn begin(
        self: &Arc<Self>,
        invocation: Invocation,
        reply: &ReplySender,
        fate: &BodyFate,
    ) -> Result<Seat, Box<Invocation>> {
        let limit = self.version.config.response_body.bytes();
        let call = self.crew.enter(invocation, reply, fate, limit)?;
        let shared = self.clone();
        Ok(Seat {
            shared,
            call,
            led: Mutex::default(),
        })
    }

    /// Polls the guest for everybody.
    fn drive(&self, ctx: &Context<'_>) {
        let Some(mut slot) = self.driver.try_lock() else {
            // The one who led before is just leaving.
            ctx.waker().wake_by_ref();
            return;
        };
        let Some(mut driver) = slot.take() else {
            return;
        };
        let guard = DiesOnPanic(&self.crew);
        let mut ctx = Context::from_waker(&self.waker);
        let polled = self.computes.within(|| driver.as_mut().poll(&mut ctx));
        std::mem::forget(guard);
        if polled.is_pending() {
            *slot = Some(driver);
        }
    }
}

/// A host function panicked: nobody shall wait for what it left.
struct DiesOnPanic<'a>(&'a Crew);

impl Drop for DiesOnPanic<'_> {
    fn drop(&mut self) {
        self.0.die(
            &Failure::internal("the run of a shared instance panicked"),
            None,
        );
    }
}

impl Seat {
    fn poll(&self, ctx: &Context<'_>) -> Poll<Result<(), Failure>> {
        let (crew, key) = (&self.shared.crew, self.call.key);
        if crew.leads(key, ctx) {
            self.shared.drive(ctx);
            self.led.lock().ran(&self.shared.computes);
            crew.has_led(key, ctx);
        }
        crew.outcome(key)
    }

    fn give_up(&self) {
        self.call.give_up();
        self.shared.crew.give_up(self.call.key);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.crew.leave(&self.call);
    }
}

/// The report of a request that is handed back.
fn unbegun(invocation: Box<Invocation>) -> RunReport {
    RunReport {
        end: RunEnd::Unbegun(invocation),
        memory: 0,
        cpu: None,
        inference: Duration::ZERO,
        computes: 0,
    }
}

#[async_trait]
impl Sandbox for SharedSandbox {
    async fn run(&mut self, invocation: Invocation, reply: ReplySender) -> RunReport {
        let shared = &self.0;
        let fate = BodyFate::default();
        let bounds = RunBounds::of(&invocation);
        let seat = match shared.begin(invocation, &reply, &fate) {
            Ok(seat) => seat,
            Err(invocation) => {
                return unbegun(invocation);
            }
        };
        let running = shared.template.engine.running();
        let mut done = poll_fn(|ctx| seat.poll(ctx));
        let mut outcome = bounded(&mut done, bounds.deadline, &bounds.cancelled).await;
        if matches!(outcome, Err(Stopped::Cancelled)) && reply.is_sent() {
            let until = bounds.deadline.min(Instant::now() + FAREWELL);
            let ended = tokio::time::timeout_at(until, done).await;
            outcome = ended.map_err(|_| Stopped::Cancelled);
        }
        let outcome = match outcome {
            // Nobody reads on, because there was too much to read.
            Ok(Ok(())) | Err(Stopped::Cancelled) if fate.was_too_large() => {
                seat.give_up();
                Err(failure::response_too_large())
            }
            Ok(done) => done,
            Err(stopped) => {
                seat.give_up();
                Err(stopped.failure(shared.version.config.timeout.duration()))
            }
        };
        drop(running);
        let (crew, key) = (&shared.crew, seat.call.key);
        if let Some(invocation) = crew.unbegun(key) {
            return unbegun(invocation);
        }
        fate.settle(&outcome, &reply);
        let end = match outcome {
            Ok(()) => RunEnd::Completed,
            Err(failure) if crew.is_unseen(key) => RunEnd::Unseen(failure),
            Err(failure) => RunEnd::Failed(failure),
        };
        shared.log.flush(key);
        let (inference, computes) = seat.call.inference();
        RunReport {
            end,
            memory: crew.memory(),
            // The guest's time is not known by request.
            cpu: None,
            inference,
            computes,
        }
    }

    fn share(&self) -> Option<Box<dyn Sandbox>> {
        Some(Box::new(Self(self.0.clone())))
    }
}
