//! Real hosts, and a plan of misfortunes drawn from a seed: killed and stopped hosts, a model's file that is deleted,
//! cancelled computes, expiries and replacements, while four functions load and compute, one of them with a model that
//! crashes. Whoever is innocent is answered rightly, nobody innocent is blamed, and nothing is left behind.
//!
//! The plan of a seed is always the same; what happens at which moment of it is the machine's.

use crate::onnx;
use crate::system::{children, memory_descriptors, signal};
use crate::talk::{Patience, brought, crash, divide, identity, inference, longs, only, request};
use fnctl_core::config::InferenceIsolation;
use fnctl_core::hosts::HostStatus;
use fnctl_core::ids::Digest;
use fnctl_core::inference::{InferenceErrorKind, LoadModel, LoadedModel, ModelSource};
use fnctl_core::ports::{InferenceControl, InferenceHost};
use fnctl_core::units::{ByteSize, Period};
use fnctl_inference::Inference;
use rustix::process::Signal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Seeds of one run.
const SEEDS: u64 = 24;
/// Seeds side by side: most of their time they wait.
const TOGETHER: u64 = 4;
/// What each innocent function does.
const STEPS: u64 = 12;

/// Numbers from a seed (splitmix64, Steele, Lea and Flood 2014).
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn micros(&mut self, end: u64) -> Duration {
        Duration::from_micros(self.below(end))
    }
}

/// What happens to the hosts.
#[derive(Debug, Clone, Copy)]
enum Misfortune {
    Kill,
    Stop,
    Delete,
    Restore,
    Expire,
    Replace,
}

impl Misfortune {
    fn draw(draw: &mut Draw) -> Self {
        match draw.below(20) {
            0..=4 => Self::Kill,
            5 => Self::Stop,
            6..=8 => Self::Delete,
            9..=11 => Self::Restore,
            12..=17 => Self::Expire,
            _ => Self::Replace,
        }
    }
}

pub(crate) async fn seeds() {
    let given = std::env::var("FNCTL_SEED").ok();
    let seeds: Vec<u64> = match given {
        Some(seed) => vec![seed.parse().expect("FNCTL_SEED is a number")],
        None => (1..=SEEDS).collect(),
    };
    for batch in seeds.chunks(usize::try_from(TOGETHER).unwrap()) {
        let runs: Vec<_> = batch
            .iter()
            .map(|seed| (*seed, tokio::spawn(run(*seed))))
            .collect();
        for (seed, run) in runs {
            if let Err(panic) = run.await {
                panic!("seed {seed} ({panic}); FNCTL_SEED={seed} repeats it");
            }
        }
        let mut patience = Patience::new();
        while !children().is_empty() || memory_descriptors() > 0 {
            let (processes, memory) = (children(), memory_descriptors());
            let what = format!("nothing is left of {batch:?}: {processes:?}, {memory} memfds");
            patience.wait(&what).await;
        }
    }
}

/// One function and its model.
#[derive(Clone)]
struct Function {
    name: &'static str,
    source: ModelSource,
    isolation: InferenceIsolation,
    divides: bool,
}

impl Function {
    fn request(&self) -> LoadModel {
        LoadModel {
            isolation: self.isolation,
            ..request(self.name, self.source.clone())
        }
    }
}

struct World {
    host: Inference,
    /// The model of the function that has it in a file.
    file: PathBuf,
    bytes: Vec<u8>,
    /// Whether the file may be gone at the moment.
    deleted: AtomicBool,
    over: AtomicBool,
}

async fn run(seed: u64) {
    let mut draw = Draw(seed);
    let folder = tempfile::tempdir().unwrap();
    let bytes = onnx::identity(onnx::element::I64);
    let world = Arc::new(World {
        host: inference(|config| {
            config.memory = ByteSize::mib(256);
            config.shared_memory = ByteSize::mib(4);
            config.heartbeat = Period(Duration::from_millis(50));
            config.hang_after = Period(Duration::from_millis(700));
            config.quarantine_after = 2 + u32::try_from(draw.below(2)).unwrap();
            config.spare_host = draw.below(4) == 0;
        }),
        file: folder.path().join("model.onnx"),
        deleted: AtomicBool::new(false),
        over: AtomicBool::new(false),
        bytes: bytes.clone(),
    });
    std::fs::write(&world.file, &bytes).unwrap();
    let in_file = ModelSource::Artifact {
        digest: Digest::of(&bytes),
        path: world.file.clone(),
    };
    let shared = InferenceIsolation::Shared;
    let function = |name, source, isolation, divides| Function {
        name,
        source,
        isolation,
        divides,
    };
    let innocent = [
        function("in-a-file", in_file, shared, false),
        function("brings", brought(onnx::division()), shared, true),
        function(
            "has-its-own",
            brought(onnx::identity(onnx::element::I64)),
            InferenceIsolation::Dedicated,
            false,
        ),
    ];
    let misfortunes = tokio::spawn(strike(world.clone(), Draw(draw.below(u64::MAX))));
    let guilty = tokio::spawn(kill_hosts(world.clone(), Draw(draw.below(u64::MAX))));
    let mut callers = Vec::new();
    for function in &innocent {
        // Two callers share each session.
        for _ in 0..2 {
            let draw = Draw(draw.below(u64::MAX));
            callers.push(tokio::spawn(call(world.clone(), function.clone(), draw)));
        }
    }
    for caller in callers {
        caller.await.unwrap();
    }
    world.over.store(true, Ordering::Relaxed);
    misfortunes.await.unwrap();
    guilty.await.unwrap();
    // Only the guilty is kept away.
    for one in world.host.quarantined(Instant::now()) {
        let function = one.function.as_ref().expect("nobody shares a model here");
        assert_eq!(function.as_str(), "guilty", "{one:?}");
    }
    // Nothing computes, and nothing lies in shared memory, a moment after the last caller has gone.
    let mut patience = Patience::new();
    let busy = |host: &HostStatus| host.in_flight > 0 || host.shared_bytes > 0;
    while world.host.host_status().iter().any(busy) {
        patience.wait("it comes to rest").await;
    }
    // Nobody has a use of anything: sessions go, and hosts with them.
    loop {
        world.host.reap(Instant::now()).await;
        let hosts = world.host.host_status();
        if world.host.resident().0 == 0 && hosts.iter().all(|host| host.kind == "spare") {
            break;
        }
        patience.wait("sessions and hosts go").await;
    }
    world.host.shut_down().await;
}

/// An innocent function's caller.
async fn call(world: Arc<World>, function: Function, mut draw: Draw) {
    let mut held: Option<LoadedModel> = None;
    for _ in 0..STEPS {
        let loaded = match held.take() {
            Some(loaded) => loaded,
            None => match world.host.load(function.request()).await {
                Ok(loaded) => loaded,
                Err(error) => {
                    let file_is_gone = error.kind == InferenceErrorKind::NotFound
                        && function.name == "in-a-file"
                        && world.deleted.load(Ordering::SeqCst);
                    assert!(file_is_gone, "{}: {error:?}", function.name);
                    tokio::time::sleep(draw.micros(10_000)).await;
                    continue;
                }
            },
        };
        // Some fit their slot, some need the shared heap.
        let most = if draw.below(3) == 0 { 60_000 } else { 100 };
        let count = 1 + draw.below(most);
        let first = i64::try_from(draw.below(1000)).unwrap();
        let numbers: Vec<i64> = (first..).take(usize::try_from(count).unwrap()).collect();
        let (compute, expected) = if function.divides {
            let x = [first, 8, 6, i64::MIN];
            let by = [1, 2, 3, 1];
            (
                divide(loaded.session, x, by),
                longs(&[first, 4, 2, i64::MIN]),
            )
        } else {
            (identity(loaded.session, &numbers), longs(&numbers))
        };
        let computing = world.host.compute(compute);
        if draw.below(4) == 0 {
            let given_up = tokio::time::timeout(draw.micros(3_000), computing).await;
            if let Ok(computed) = given_up {
                assert_eq!(*only(&computed.unwrap()), expected, "{}", function.name);
            }
        } else {
            let computed = computing.await;
            let computed = computed.unwrap_or_else(|error| panic!("{}: {error:?}", function.name));
            assert_eq!(*only(&computed), expected, "{}", function.name);
        }
        if draw.below(3) == 0 {
            held = Some(loaded);
        } else {
            world.host.release(loaded.session, crate::talk::wish());
        }
        tokio::time::sleep(draw.micros(8_000)).await;
    }
    if let Some(loaded) = held {
        world.host.release(loaded.session, crate::talk::wish());
    }
}

/// The guilty function: its model kills every host it is in, from time to time.
async fn kill_hosts(world: Arc<World>, mut draw: Draw) {
    let guilty = request("guilty", brought(onnx::division()));
    for _ in 0..draw.below(3) {
        tokio::time::sleep(draw.micros(60_000)).await;
        let Ok(loaded) = world.host.load(guilty.clone()).await else {
            return;
        };
        let within = Duration::from_millis(20) + draw.micros(400_000);
        let computed = world.host.compute(crash(loaded.session, within)).await;
        world.host.release(loaded.session, crate::talk::wish());
        let error = computed.expect_err("the quotient does not exist");
        assert!(
            matches!(
                error.kind,
                InferenceErrorKind::Quarantined | InferenceErrorKind::Timeout
            ),
            "{error:?}"
        );
    }
}

async fn strike(world: Arc<World>, mut draw: Draw) {
    let mut stops = 0;
    while !world.over.load(Ordering::Relaxed) {
        tokio::time::sleep(draw.micros(25_000)).await;
        let which = draw.below(64);
        let victim = || {
            let hosts = world.host.hosts();
            let index = usize::try_from(which).unwrap() % hosts.len().max(1);
            hosts.get(index).copied()
        };
        match Misfortune::draw(&mut draw) {
            Misfortune::Kill => {
                if let Some(pid) = victim() {
                    signal(pid, Signal::KILL);
                }
            }
            Misfortune::Stop => {
                // Each is found out by a timer only.
                if let Some(pid) = victim().filter(|_| stops < 1) {
                    signal(pid, Signal::STOP);
                    stops += 1;
                }
            }
            Misfortune::Delete => {
                world.deleted.store(true, Ordering::SeqCst);
                let _ = std::fs::remove_file(&world.file);
            }
            Misfortune::Restore => restore(&world),
            Misfortune::Expire => {
                world.host.reap(Instant::now()).await;
            }
            Misfortune::Replace => {
                // It may meet a host that was killed.
                let _ = world.host.replace_hosts().await;
            }
        }
    }
    restore(&world);
}

/// Puts the file back, whole from its first moment.
fn restore(world: &World) {
    let beside = world.file.with_extension("new");
    std::fs::write(&beside, &world.bytes).unwrap();
    std::fs::rename(&beside, &world.file).unwrap();
}
