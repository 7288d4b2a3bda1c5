//! Who has to go when a model or an inference does not fit.

use crate::onnx;
use crate::talk::{Declared, by, heavy, identity, inference, load, only};
use fnctl_core::inference::{Compute, InferenceErrorKind, SessionId};
use fnctl_core::ports::InferenceHost;
use fnctl_core::units::{ByteSize, Period};
use fnctl_inference::Inference;

/// Of 100 MiB; each session of `heavy(16)` takes 16 of it.
fn host(shared_mib: u64) -> Inference {
    inference(|config| {
        config.memory = ByteSize::mib(100);
        config.shared_memory = ByteSize::mib(shared_mib);
        config.session_ttl = Period::secs(300);
        config.host_ttl = Period::secs(300);
    })
}

/// Loads a model and leaves it idle.
async fn leave(host: &Inference, function: &str, mib: i64) -> SessionId {
    let loaded = load(host, function, heavy(mib, 0)).await.unwrap();
    host.release(loaded.session, crate::talk::wish());
    loaded.session
}

/// Whether the session is still the one that was left.
async fn is_there(host: &Inference, function: &str, mib: i64, session: SessionId) -> bool {
    leave(host, function, mib).await == session
}

pub(crate) async fn in_vain() {
    let host = host(8);
    let a = leave(&host, "a", 16).await;
    let b = leave(&host, "b", 16).await;
    let used = host.resident().1;
    assert!(used >= 32 << 20, "{used} bytes");
    // More than there would be without anybody.
    for number in 0..3 {
        let error = load(&host, "hostile", heavy(120, number))
            .await
            .unwrap_err();
        assert_eq!(error.kind, InferenceErrorKind::TooLarge, "{error}");
    }
    assert!(is_there(&host, "a", 16, a).await);
    assert!(is_there(&host, "b", 16, b).await);
    // Tensors that the shared memory has no room for are no reason either.
    let session = load(&host, "hostile", onnx::identity(onnx::element::I64))
        .await
        .unwrap()
        .session;
    let numbers = vec![1; 2 << 20];
    let error = host
        .compute(crate::talk::identity(session, &numbers))
        .await
        .unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::TooLarge, "{error}");
    assert!(is_there(&host, "a", 16, a).await);
    assert!(is_there(&host, "b", 16, b).await);
    host.shut_down().await;
}

pub(crate) async fn own_first() {
    let host = host(8);
    let a = leave(&host, "a", 20).await;
    let b = leave(&host, "b", 20).await;
    // Used last, and yet the first to go: it is the function's own.
    let own = leave(&host, "own", 40).await;
    let busy = load(&host, "own", heavy(41, 1)).await.unwrap();
    assert!(is_there(&host, "a", 20, a).await);
    assert!(is_there(&host, "b", 20, b).await);
    host.release(busy.session, crate::talk::wish());
    assert!(!is_there(&host, "own", 40, own).await);
    // Other functions' go if there is nothing else: as few as may be, the longest idle first.
    load(&host, "last", heavy(30, 1)).await.unwrap();
    assert!(is_there(&host, "b", 20, b).await);
    assert!(!is_there(&host, "a", 20, a).await);
    host.shut_down().await;
}

/// `y = -(-x)`: two results as large as `x`, at the same time.
fn echo() -> Vec<u8> {
    onnx::model(&[
        onnx::node("Neg", &["x"], "n"),
        onnx::node("Neg", &["n"], "y"),
        onnx::input(&onnx::open_value("x", onnx::element::I64)),
        onnx::output(&onnx::open_value("y", onnx::element::I64)),
    ])
}

fn numbers(session: SessionId, mib: usize) -> Compute {
    identity(session, &vec![7; (mib << 20) / 8])
}

pub(crate) async fn for_an_inference() {
    let host = host(128);
    let echo = load(&host, "echo", echo()).await.unwrap().session;
    leave(&host, "a", 40).await;
    leave(&host, "b", 40).await;
    let computed = host.compute(numbers(echo, 30)).await.unwrap();
    assert_eq!(only(&computed).data.len(), 30 << 20);
    host.shut_down().await;
}

/// It is tried again when the room is there, and not before: then it would have the next one evicted as well.
pub(crate) async fn one_is_enough() {
    let host = host(8);
    // The sum of so many zeros: an order of a few bytes for much memory, which is there at once.
    let zeros = onnx::model(&[
        onnx::node("ConstantOfShape", &["x"], "c"),
        onnx::node("ReduceSum", &["c"], "y"),
        onnx::input(&onnx::open_value("x", onnx::element::I64)),
        onnx::output(&onnx::open_value("y", onnx::element::F32)),
    ]);
    let zeros = load(&host, "zeros", zeros).await.unwrap().session;
    let mut b = leave(&host, "b", 40).await;
    for _ in 0..10 {
        let a = leave(&host, "a", 40).await;
        // Used last, so that the other one goes.
        assert!(is_there(&host, "b", 40, b).await);
        host.compute(identity(zeros, &[30 << 18])).await.unwrap();
        assert!(is_there(&host, "b", 40, b).await);
        b = leave(&host, "b", 40).await;
        assert!(!is_there(&host, "a", 40, a).await);
    }
    host.shut_down().await;
}

/// Restraint is for who computes, not for who loaded the shared model first; and what others use is not one's own.
pub(crate) async fn who_pays() {
    let host = host(128);
    let shared = Declared::new(&echo());
    let session = shared.load(&host, "first").await.unwrap();
    assert_eq!(shared.load(&host, "second").await.unwrap(), session);
    leave(&host, "victim", 45).await;
    // It fits once the victim has gone, and then does not fit.
    let error = host
        .compute(by("second", numbers(session, 60)))
        .await
        .unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::TooLarge, "{error}");
    let both = Declared::new(&heavy(60, 1));
    for function in ["second", "first"] {
        let session = both.load(&host, function).await.unwrap();
        host.release(session, crate::talk::wish());
    }
    let large = |function| load(&host, function, heavy(50, 2));
    let error = large("second").await.unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::TooLarge, "{error}");
    large("first").await.unwrap();
    host.shut_down().await;
}
