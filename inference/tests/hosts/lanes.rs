//! Who waits for whom inside a host.

use crate::onnx;
use crate::talk::{Declared, identity, inference, only};
use fnctl_core::inference::Compute;
use fnctl_core::ports::InferenceHost;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Computes of the fast model by which it gets known as one.
const ACQUAINTANCE: usize = 40;
/// Computes of the slow one: twice as many as the threads for it.
const SLOW: usize = 4;

/// Sixteen million zeros, negated forty times over: hundreds of milliseconds for an order of a few bytes.
fn slow() -> Vec<u8> {
    let names: Vec<_> = (0..=40).map(|number| format!("n{number}")).collect();
    let mut parts = vec![onnx::node("ConstantOfShape", &["x"], &names[0])];
    for pair in names.windows(2) {
        parts.push(onnx::node("Neg", &[pair[0].as_str()], &pair[1]));
    }
    parts.extend([
        onnx::node("ReduceSum", &[names[40].as_str()], "y"),
        onnx::input(&onnx::open_value("x", onnx::element::I64)),
        onnx::output(&onnx::open_value("y", onnx::element::F32)),
    ]);
    onnx::model(&parts)
}

/// A model that is known to take microseconds waits for none of those that take long and came before it.
pub(crate) async fn fast_ahead() {
    let host = Arc::new(inference(|_| {}));
    let heavy = Declared::new(&slow());
    let fast = Declared::new(&onnx::identity(onnx::element::I64));
    let heavy = heavy.load(&host, "heavy").await.unwrap();
    let zeros = move || Compute {
        deadline: Instant::now() + Duration::from_secs(120),
        ..identity(heavy, &[16 << 20])
    };
    let fast = fast.load(&host, "fast").await.unwrap();
    for _ in 0..ACQUAINTANCE {
        host.compute(identity(fast, &[1, 2, 3])).await.unwrap();
    }
    let done = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..SLOW)
        .map(|_| {
            let (host, done) = (host.clone(), done.clone());
            tokio::spawn(async move {
                host.compute(zeros()).await.unwrap();
                done.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    // They are in the host: one after the other they would be answered from now on.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = done.load(Ordering::SeqCst);
    for number in 0..10 {
        let computed = host.compute(identity(fast, &[number])).await.unwrap();
        assert_eq!(only(&computed).data.as_ref(), number.to_le_bytes());
    }
    let meanwhile = done.load(Ordering::SeqCst) - before;
    for task in tasks {
        task.await.unwrap();
    }
    // In their turn they would have come after all but one of the slow ones.
    assert!(
        before + meanwhile < SLOW - 1,
        "{meanwhile} of the slow computes ended before the fast ones did, {before} before those began"
    );
    host.shut_down().await;
}
