//! What the host keeps for one running guest, whichever kind it is.

use crate::cpu::CpuMeter;
use crate::failure::CpuExceeded;
use crate::guest_log::{GuestLog, Stream};
use crate::limits::SandboxLimits;
use crate::nn::NnContext;
use crate::outgoing::AllowedHosts;
use crate::sharing::{self, Sharing};
use fnctl_core::Invocation;
use fnctl_core::trace::Trace;
use fnctl_core::version::Version;
use std::time::Duration;
use wasmtime::component::ResourceTable;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// Limits, CPU accounting, inference and log of one guest.
pub(crate) struct GuestState {
    pub(crate) limits: SandboxLimits,
    pub(crate) nn: NnContext,
    pub(crate) log: GuestLog,
    /// Epoch ticks in which the guest was found running since the last [`begin_cpu`].
    ticks: u32,
    max_ticks: u32,
    /// Counts instead of the ticks while an async guest runs.
    pub(crate) meter: Option<CpuMeter>,
    /// The requests of a guest that serves several at once.
    pub(crate) sharing: Option<Sharing>,
}

impl GuestState {
    pub(crate) fn new(version: &Version, nn: NnContext, log: GuestLog, tick: Duration) -> Self {
        let ticks = version.config.cpu.duration().as_nanos() / tick.as_nanos().max(1);
        Self {
            limits: SandboxLimits::new(&version.config),
            nn,
            log,
            ticks: 0,
            max_ticks: u32::try_from(ticks).unwrap_or(u32::MAX).max(1),
            meter: None,
            sharing: None,
        }
    }

    /// From now on what the guest does belongs to this invocation.
    pub(crate) fn begin(&mut self, invocation: &Invocation) {
        self.log.begin(&invocation.request_id);
        self.nn.begin(invocation.deadline, invocation.trace.clone());
    }

    /// Whether a limit was met, so that a trap is its doing and the sandbox must not be used again.
    pub(crate) fn met_limit(&self) -> bool {
        self.limits.refused || self.nn.refused
    }

    fn tick(&mut self) -> wasmtime::Result<UpdateDeadline> {
        if let Some(meter) = &self.meter {
            return if meter.is_used_up() {
                Err(CpuExceeded.into())
            } else {
                Ok(UpdateDeadline::Yield(1))
            };
        }
        // Time inside a compute is the model's; the tick that notices it is forgiven.
        if std::mem::take(&mut self.nn.waited) {
            return Ok(UpdateDeadline::Yield(1));
        }
        self.ticks += 1;
        if self.ticks > self.max_ticks {
            return Err(CpuExceeded.into());
        }
        // Yielding lets everybody else on this thread go on, and is where a cancelled guest is dropped.
        Ok(UpdateDeadline::Yield(1))
    }
}

/// Access to the shared state from either kind of store.
pub(crate) trait Guest: 'static {
    fn guest(&mut self) -> &mut GuestState;
}

/// Starts a new CPU account: each invocation, and init, has the whole limit, and the time before it does not count.
pub(crate) fn begin_cpu<T: Guest + Send>(store: &mut Store<T>) {
    store.set_epoch_deadline(1);
    let guest = store.data_mut().guest();
    guest.ticks = 0;
    guest.meter = None;
}

/// Applies limits and epoch interruption to a new store. `memory` bounds what one call copies to the host, too.
pub(crate) fn arm<T: Guest + Send>(store: &mut Store<T>, memory: usize) {
    store.set_hostcall_fuel(memory.clamp(1 << 20, 128 << 20));
    store.limiter(|state| &mut state.guest().limits);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|mut store| {
        sharing::check_overdue(&mut store)?;
        store.data_mut().guest().tick()
    });
}

/// WASI as every guest has it: no files, no sockets, no arguments, its own environment, output to the log.
pub(crate) fn wasi(version: &Version, log: &GuestLog) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    for (name, value) in &version.config.env {
        builder.env(name, value);
    }
    builder
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    // Random bytes are made one at a time on an async thread.
    builder.max_random_size(256 << 10);
    builder.stderr(log.stream(Stream::Stderr));
    builder
}

/// The store's data of a `wasi:http` component.
pub(crate) struct ComponentState {
    pub(crate) guest: GuestState,
    pub(crate) table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: AllowedHosts,
}

impl ComponentState {
    pub(crate) fn new(version: &Version, nn: NnContext, log: GuestLog, tick: Duration) -> Self {
        let guest = GuestState::new(version, nn, log, tick);
        let wasi = wasi(version, &guest.log)
            .stdout(guest.log.stream(Stream::Stdout))
            .build();
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(64 << 10);
        let mut table = ResourceTable::new();
        // A guest that never drops its handles must run out of them before the host runs out of memory.
        table.set_max_capacity(4_096);
        Self {
            guest,
            table,
            wasi,
            http,
            outgoing: AllowedHosts::new(&version.config.allow_hosts),
        }
    }

    /// From now on what the guest does belongs to this invocation.
    pub(crate) fn begin(&mut self, invocation: &Invocation) {
        self.guest.begin(invocation);
        self.begin_outgoing(invocation.trace.clone());
    }

    /// From now on outgoing calls belong to this trace.
    pub(crate) fn begin_outgoing(&mut self, trace: Trace) {
        self.outgoing.begin(trace);
    }
}

impl Guest for ComponentState {
    fn guest(&mut self) -> &mut GuestState {
        &mut self.guest
    }
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outgoing,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}
