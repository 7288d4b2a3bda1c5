//! A Wasmtime engine, and the thread that advances its epoch.

use crate::config::Config;
use fnctl_core::Failure;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;
use wasmtime::{Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Core instances that one component may consist of; components made from Python or JavaScript have dozens.
const CORE_INSTANCES_PER_COMPONENT: u32 = 64;
const MEMORIES_PER_COMPONENT: u32 = 8;
const TABLES_PER_COMPONENT: u32 = 32;
/// Largest Wasm table that a function may ask for (`table_elements`).
const MAX_TABLE_ELEMENTS: usize = 1_000_000;

/// Whether an engine can run what WASI 0.3 needs: tasks, streams and futures of the component model.
///
/// Every call in an engine that can pays for it: measured on `echo`, a component of 0.2, it is 3 to 10 us of CPU time, 11
/// to 37 % of a warm request. So components of 0.2, and commands, have an engine that cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concurrency {
    Without,
    With,
}

/// The engine with its ticker. Clones share both.
#[derive(Clone)]
pub(crate) struct GuestEngine {
    pub(crate) engine: Engine,
    ticker: Arc<Ticker>,
    /// The step of CPU accounting.
    pub(crate) tick: Duration,
}

/// While a value of this type lives, the epoch advances.
pub(crate) struct Running(Arc<Ticker>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl GuestEngine {
    pub(crate) fn new(config: &Config, concurrency: Concurrency) -> Result<Self, Failure> {
        let mut pool = PoolingAllocationConfig::default();
        let slots = config.max_instances;
        pool.total_component_instances(slots)
            .total_core_instances(slots.saturating_mul(8))
            .total_memories(slots.saturating_mul(2))
            .total_tables(slots.saturating_mul(8))
            .total_stacks(slots.saturating_mul(2))
            .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
            .max_memories_per_component(MEMORIES_PER_COMPONENT)
            .max_tables_per_component(TABLES_PER_COMPONENT)
            .max_memories_per_module(MEMORIES_PER_COMPONENT)
            .max_tables_per_module(TABLES_PER_COMPONENT)
            .max_memory_size(config.max_memory.as_usize())
            .table_elements(MAX_TABLE_ELEMENTS)
            .linear_memory_keep_resident(config.keep_resident.as_usize())
            .table_keep_resident(16 << 10)
            .async_stack_keep_resident(64 << 10)
            .max_unused_warm_slots(64);
        let mut wasm = wasmtime::Config::new();
        wasm.allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .memory_init_cow(true)
            .epoch_interruption(true)
            .wasm_component_model(true)
            .concurrency_support(concurrency == Concurrency::With)
            .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(20));
        let engine = Engine::new(&wasm).map_err(|error| {
            Failure::new(
                fnctl_core::ErrorKind::Unavailable,
                "the Wasm engine cannot reserve its address space; lower worker.max_instances or worker.max_memory",
            )
            .because(format!("{error:#}"))
        })?;
        let tick = config.epoch_tick.duration().max(Duration::from_millis(1));
        let ticker = Ticker::start(engine.weak(), tick).map_err(Failure::internal)?;
        Ok(Self {
            engine,
            ticker,
            tick,
        })
    }

    /// Marks a guest as running, so that the epoch advances.
    pub(crate) fn running(&self) -> Running {
        self.ticker.running.fetch_add(1, Ordering::SeqCst);
        // The flag is looked at after the count was raised, and the ticker looks at the count after it raised the
        // flag, so at least one of the two sees the other (both orderings are sequentially consistent).
        if self.ticker.parked.load(Ordering::SeqCst)
            && self.ticker.parked.swap(false, Ordering::SeqCst)
        {
            self.ticker.thread.unpark();
        }
        Running(self.ticker.clone())
    }
}

/// Advances the epoch while any guest runs, and sleeps when none does: an idle platform uses no CPU.
struct Ticker {
    running: AtomicUsize,
    parked: AtomicBool,
    thread: Thread,
}

impl Ticker {
    fn start(engine: EngineWeak, tick: Duration) -> std::io::Result<Arc<Self>> {
        let (tx, rx) = std::sync::mpsc::sync_channel::<std::sync::Weak<Self>>(1);
        let handle = std::thread::Builder::new()
            .name("fnctl-epoch".into())
            .spawn(move || {
                let Ok(this) = rx.recv() else { return };
                loop {
                    std::thread::park_timeout(tick);
                    let (Some(ticker), Some(engine)) = (this.upgrade(), engine.upgrade()) else {
                        return;
                    };
                    if ticker.running.load(Ordering::SeqCst) > 0 {
                        engine.increment_epoch();
                        continue;
                    }
                    ticker.parked.store(true, Ordering::SeqCst);
                    if ticker.running.load(Ordering::SeqCst) > 0 {
                        ticker.parked.store(false, Ordering::SeqCst);
                        continue;
                    }
                    drop((ticker, engine));
                    // Bounded, so that the thread notices the end of its engine.
                    std::thread::park_timeout(Duration::from_secs(5));
                }
            })?;
        let ticker = Arc::new(Self {
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            thread: handle.thread().clone(),
        });
        let _ = tx.send(Arc::downgrade(&ticker));
        Ok(ticker)
    }
}
