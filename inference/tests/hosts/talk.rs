//! What the tests say to hosts, through the port.

use crate::onnx;
use bytes::Bytes;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::inference::{
    Compute, Computed, InferenceError, KeepWish, LoadModel, LoadedModel, ModelSource, SessionId,
    Tensor, TensorType,
};
use fnctl_core::ports::InferenceHost;
use fnctl_core::units::Period;
use fnctl_inference::{Config, Inference};
use std::time::Duration;
use tokio::time::Instant;

pub(crate) fn inference(change: impl FnOnce(&mut Config)) -> Inference {
    let mut config = Config {
        compute_threads: 2,
        intra_threads: 1,
        session_ttl: Period::secs(0),
        host_ttl: Period::secs(0),
        ..Config::default()
    };
    change(&mut config);
    Inference::new(config, &prometheus::Registry::new()).unwrap()
}

pub(crate) fn request(function: &str, source: ModelSource) -> LoadModel {
    LoadModel {
        source,
        function: function.parse().unwrap(),
        isolation: InferenceIsolation::Shared,
        deadline: Instant::now() + Duration::from_secs(30),
    }
}

pub(crate) fn brought(bytes: Vec<u8>) -> ModelSource {
    ModelSource::Bytes(bytes.into())
}

/// A declared model in a file, which any function may have.
pub(crate) struct Declared {
    _folder: tempfile::TempDir,
    source: ModelSource,
}

impl Declared {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, bytes).unwrap();
        let digest = Digest::of(bytes);
        Self {
            _folder: folder,
            source: ModelSource::Artifact { digest, path },
        }
    }

    /// The session, which is the same for everybody.
    pub(crate) async fn load(
        &self,
        host: &Inference,
        function: &str,
    ) -> Result<SessionId, InferenceError> {
        let loaded = host.load(request(function, self.source.clone())).await;
        loaded.map(|loaded| loaded.session)
    }
}

/// The same compute, of this function's.
pub(crate) fn by(function: &str, compute: Compute) -> Compute {
    Compute {
        function: function.parse().unwrap(),
        ..compute
    }
}

pub(crate) async fn load(
    host: &Inference,
    function: &str,
    model: Vec<u8>,
) -> Result<LoadedModel, InferenceError> {
    host.load(request(function, brought(model))).await
}

/// Who computes with a session that is one function's: it is known whose.
pub(crate) fn whoever() -> FunctionName {
    "whoever".parse().unwrap()
}

/// No wish how long a session is kept.
pub(crate) fn wish() -> KeepWish {
    KeepWish {
        function: whoever(),
        until: None,
    }
}

/// `y = x` of so many whole numbers.
pub(crate) fn identity(session: SessionId, numbers: &[i64]) -> Compute {
    Compute {
        session,
        function: whoever(),
        inputs: vec![("x".to_owned(), longs(numbers))],
        deadline: Instant::now() + Duration::from_secs(30),
    }
}

/// `z = x / y`.
pub(crate) fn divide(session: SessionId, x: [i64; 4], y: [i64; 4]) -> Compute {
    Compute {
        session,
        function: whoever(),
        inputs: vec![("x".to_owned(), longs(&x)), ("y".to_owned(), longs(&y))],
        deadline: Instant::now() + Duration::from_secs(30),
    }
}

/// Ends its host: see [`onnx::division`].
pub(crate) fn crash(session: SessionId, within: Duration) -> Compute {
    Compute {
        deadline: Instant::now() + within,
        ..divide(session, [i64::MIN; 4], [-1; 4])
    }
}

pub(crate) fn longs(numbers: &[i64]) -> Tensor {
    let data: Vec<u8> = numbers.iter().flat_map(|one| one.to_le_bytes()).collect();
    Tensor {
        dimensions: vec![u32::try_from(numbers.len()).unwrap()],
        ty: TensorType::I64,
        data: Bytes::from(data),
    }
}

pub(crate) fn only(computed: &Computed) -> &Tensor {
    assert_eq!(computed.len(), 1);
    &computed[0].1
}

/// The same model with other bytes: a documentation text is all that changes.
pub(crate) fn changed(mut model: Vec<u8>, number: u64) -> Vec<u8> {
    model.extend(onnx::field(6, number.to_string().as_bytes()));
    model
}

/// A model that holds so many MiB: `y = x * w`, with 1024 numbers for `x`, and zeros for `w` that ONNX Runtime makes while
/// it loads the model, and packs into its own order. Weights that are not packed are not in its allocator's account.
pub(crate) fn heavy(mib: i64, number: u64) -> Vec<u8> {
    let model = onnx::model(&[
        onnx::constant("shape", &[1024, mib * 256]),
        onnx::node("ConstantOfShape", &["shape"], "w"),
        onnx::node("MatMul", &["x", "w"], "y"),
        onnx::input(&onnx::open_value("x", onnx::element::F32)),
        onnx::output(&onnx::open_value("y", onnx::element::F32)),
    ]);
    changed(model, number)
}

/// Waits for what must be so soon.
pub(crate) struct Patience(Instant);

impl Patience {
    pub(crate) fn new() -> Self {
        Self(Instant::now() + Duration::from_secs(10))
    }

    pub(crate) async fn wait(&mut self, what: &str) {
        assert!(Instant::now() < self.0, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let mut patience = Patience::new();
    while !so() {
        patience.wait(what).await;
    }
}
