//! Measures what it saves that ONNX Runtime writes outputs into the shared memory itself: computes with outputs of several
//! sizes in a real inference host, where their places are known beforehand and where they never are, in turn.
//!
//! `cargo run --release -p fnctl-inference --example outputs [model.onnx]`; a model is called as `fraud` is, with 16 numbers.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for whoever measures"
)]

#[allow(
    dead_code,
    clippy::expect_used,
    unreachable_pub,
    reason = "it belongs to the tests of the whole platform, which use more of it"
)]
#[path = "../../tests/src/onnx.rs"]
mod onnx;

use fnctl_core::config::InferenceIsolation;
use fnctl_core::inference::{Compute, LoadModel, ModelSource, SessionId, Tensor, TensorType};
use fnctl_core::ports::InferenceHost;
use fnctl_inference::{Config, Inference};
use std::time::{Duration, Instant};

/// Turns of each kind.
const ROUNDS: usize = 15;
/// How long one turn lasts.
const TURN: Duration = Duration::from_millis(150);
/// More shapes of inputs than a host remembers.
const SHAPES: usize = 8;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(fnctl_inference::SUBCOMMAND) {
        fnctl_inference::serve().unwrap();
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let host = Inference::new(Config::default(), &prometheus::Registry::new()).unwrap();
    if let Some(path) = std::env::args().nth(1) {
        let session = load(&host, std::fs::read(path).unwrap()).await;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            times.push(turn(&host, session, &[vec![1, 16]]).await);
        }
        println!("{:.2} us", median(&mut times));
        host.shut_down().await;
        return;
    }
    println!("bytes      free us  bound us  ratio");
    for bytes in [
        4 << 10,
        16 << 10,
        64 << 10,
        256 << 10,
        1 << 20,
        4 << 20,
        16 << 20,
    ] {
        let session = load(&host, wide(bytes)).await;
        let known = [vec![1]];
        let unknown: Vec<_> = (1..).take(SHAPES).map(|size| vec![size]).collect();
        let (mut free, mut bound) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bound.push(turn(&host, session, &known).await);
            free.push(turn(&host, session, &unknown).await);
        }
        let (free, bound) = (median(&mut free), median(&mut bound));
        println!("{bytes:8} {free:9.1} {bound:9.1}  {:5.2}", bound / free);
    }
    host.shut_down().await;
}

/// As many bytes as this from a few: the sum of the inputs, again and again.
fn wide(bytes: usize) -> Vec<u8> {
    onnx::model(&[
        onnx::constant("shape", &[i64::try_from(bytes / 4).unwrap()]),
        onnx::node("ReduceSum", &["x"], "s"),
        onnx::node("Expand", &["s", "shape"], "y"),
        onnx::input(&onnx::open_value("x", onnx::element::F32)),
        onnx::output(&onnx::open_value("y", onnx::element::F32)),
    ])
}

async fn load(host: &Inference, model: Vec<u8>) -> SessionId {
    let request = LoadModel {
        source: ModelSource::Bytes(model.into()),
        function: "measure".parse().unwrap(),
        isolation: InferenceIsolation::Shared,
        deadline: tokio::time::Instant::now() + Duration::from_secs(60),
    };
    host.load(request).await.unwrap().session
}

/// One computes after another, with inputs of these shapes in turn. Returns the microseconds of one.
async fn turn(host: &Inference, session: SessionId, shapes: &[Vec<u32>]) -> f64 {
    let since = Instant::now();
    let mut count = 0_u32;
    let name = if shapes.concat().len() > shapes.len() {
        "features"
    } else {
        "x"
    };
    while since.elapsed() < TURN {
        for shape in shapes {
            let numbers: u32 = shape.iter().product();
            let tensor = Tensor {
                dimensions: shape.clone(),
                ty: TensorType::Fp32,
                data: vec![0; numbers as usize * 4].into(),
            };
            let request = Compute {
                session,
                function: "measure".parse().unwrap(),
                inputs: vec![(name.to_owned(), tensor)],
                deadline: tokio::time::Instant::now() + Duration::from_secs(60),
            };
            host.compute(request).await.unwrap();
            count += 1;
        }
    }
    since.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}
