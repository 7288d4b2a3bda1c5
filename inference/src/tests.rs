//! With the real library and real models; `cargo xtask setup` installs the library.

use crate::Config;
use crate::in_process::OnnxHost;
use crate::metrics::Metrics;
use crate::tensors::Input;
use bytes::Bytes;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::inference::{
    Compute, InferenceErrorKind, KeepWish, LoadModel, LoadedModel, ModelSource, SessionId, Tensor,
    TensorType,
};
use fnctl_core::ports::InferenceHost;
use fnctl_core::{Digest, FunctionName};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// One process has one ONNX Runtime: who counts or times what all of it does, is alone with it.
static TURN: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

/// A turn beside others.
pub(crate) async fn turn() -> tokio::sync::RwLockReadGuard<'static, ()> {
    TURN.read().await
}

/// A turn without others.
pub(crate) async fn turn_alone() -> tokio::sync::RwLockWriteGuard<'static, ()> {
    TURN.write().await
}

fn host() -> OnnxHost {
    let config = Config {
        session_ttl: fnctl_core::Period::secs(0),
        compute_threads: 8,
        ..Config::default()
    };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    OnnxHost::new(config, std::sync::Arc::new(metrics))
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

async fn load(host: &OnnxHost, name: &str) -> LoadedModel {
    let path = path(name);
    let digest = Digest::of(&std::fs::read(&path).unwrap());
    let function: FunctionName = "test".parse().unwrap();
    let source = ModelSource::Artifact { digest, path };
    host.load(LoadModel {
        source,
        function,
        isolation: InferenceIsolation::Shared,
        deadline: Instant::now() + Duration::from_secs(60),
    })
    .await
    .unwrap()
}

/// No wish how long a session is kept.
fn wish() -> KeepWish {
    KeepWish {
        function: "test".parse().unwrap(),
        until: None,
    }
}

fn brought(function: &str, bytes: Vec<u8>) -> LoadModel {
    LoadModel {
        source: ModelSource::Bytes(bytes.into()),
        function: function.parse().unwrap(),
        isolation: InferenceIsolation::Shared,
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

fn compute(session: SessionId, name: &str, dimensions: &[u32], data: Vec<u8>) -> Compute {
    let tensor = Tensor {
        dimensions: dimensions.to_vec(),
        ty: TensorType::Fp32,
        data: Bytes::from(data),
    };
    Compute {
        function: "test".parse().unwrap(),
        session,
        inputs: vec![(name.to_owned(), tensor)],
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

const SQUEEZENET: &str = "tests/fixtures/models/light_squeezenet.onnx";
const FRAUD: &str = "examples/fraud/models/fraud_mlp16.onnx";

#[tokio::test(flavor = "multi_thread")]
async fn eight_inferences_on_one_session_really_overlap() {
    let _turn = turn_alone().await;
    let host = host();
    let loaded = load(&host, SQUEEZENET).await;
    let run = || {
        host.compute(compute(
            loaded.session,
            "data_0",
            &[1, 3, 224, 224],
            vec![0; 3 * 224 * 224 * 4],
        ))
    };
    // More than there are threads, so that the first is not done before the last thread has started.
    for outputs in futures::future::join_all((0..40).map(|_| run())).await {
        assert_eq!(outputs.unwrap()[0].1.dimensions, [1, 1000, 1, 1]);
    }
    let session = host.0.sessions.get(loaded.session).unwrap();
    assert_eq!(
        session.peak_runs(),
        8,
        "all eight were inside ONNX Runtime at one time"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_loads_at_once_are_one_session_and_the_last_release_lets_it_go() {
    let _turn = turn().await;
    let host = host();
    let loads: Vec<_> = (0..100)
        .map(|_| {
            let host = host.clone();
            tokio::spawn(async move { load(&host, FRAUD).await.session })
        })
        .collect();
    let mut sessions = Vec::new();
    for load in loads {
        sessions.push(load.await.unwrap());
    }
    assert!(sessions.iter().all(|session| *session == sessions[0]));
    for session in &sessions[1..] {
        host.release(*session, wish());
    }
    assert_eq!(
        host.reap(Instant::now()).await.expired,
        0,
        "one use is left"
    );
    host.release(sessions[0], wish());
    assert_eq!(host.reap(Instant::now()).await.expired, 1);
    assert_eq!(host.resident().0, 0);
    let gone = host
        .compute(compute(sessions[0], "features", &[1, 16], vec![0; 64]))
        .await
        .unwrap_err();
    assert_eq!(gone.kind, InferenceErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_gives_up_leaves_no_use_behind() {
    let _turn = turn().await;
    let host = host();
    for _ in 0..20 {
        // On a quick machine it is there in time, and then it is the caller's to release.
        if let Ok(loaded) =
            tokio::time::timeout(Duration::from_micros(200), load(&host, FRAUD)).await
        {
            host.release(loaded.session, wish());
        }
    }
    // The loads go on without their callers: all of them share the one that this waits for.
    host.release(load(&host, FRAUD).await.session, wish());
    let until = Instant::now() + Duration::from_secs(10);
    while host.resident().0 > 0 {
        host.reap(Instant::now()).await;
        assert!(Instant::now() < until, "a use was never given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_compute_stops_it() {
    let _turn = turn_alone().await;
    let host = host();
    let loaded = load(&host, "tests/fixtures/models/light_vgg19.onnx").await;
    let run = || {
        host.compute(compute(
            loaded.session,
            "data_0",
            &[1, 3, 224, 224],
            vec![0; 3 * 224 * 224 * 4],
        ))
    };
    let since = Instant::now();
    run().await.unwrap();
    let whole = since.elapsed();
    let since = Instant::now();
    assert!(tokio::time::timeout(whole / 20, run()).await.is_err());
    let session = host.0.sessions.get(loaded.session).unwrap();
    while session.running() > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(
        since.elapsed() < whole * 3 / 4,
        "stopped after {:?} of {whole:?}",
        since.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_model_are_an_error() {
    let _turn = turn().await;
    let host = host();
    let fraud = std::fs::read(path(FRAUD)).unwrap();
    for bytes in [
        Vec::new(),
        b"hello".to_vec(),
        fraud[..fraud.len() / 2].to_vec(),
        vec![0xff; 4096],
    ] {
        let error = host.load(brought("test", bytes)).await.unwrap_err();
        assert_eq!(error.kind, InferenceErrorKind::InvalidEncoding, "{error}");
    }
    assert_eq!(host.resident().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_brings_is_shared_within_its_function_only() {
    let _turn = turn().await;
    let host = host();
    let fraud = std::fs::read(path(FRAUD)).unwrap();
    let a = host
        .load(brought("a", fraud.clone()))
        .await
        .unwrap()
        .session;
    assert_eq!(
        host.load(brought("a", fraud.clone()))
            .await
            .unwrap()
            .session,
        a
    );
    assert_ne!(host.load(brought("b", fraud)).await.unwrap().session, a);
}

/// Protocol buffers by hand: a field of bytes, and of a number.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    out.extend_from_slice(bytes);
    out
}

fn number(field: u8, value: u8) -> Vec<u8> {
    vec![field << 3, value]
}

/// Four floats of this name.
fn value_info(name: &str) -> Vec<u8> {
    typed_info(name, 1)
}

/// Four elements of an ONNX element type.
fn typed_info(name: &str, element: u8) -> Vec<u8> {
    let shape = field(1, &number(1, 4));
    let tensor = [number(1, element), field(2, &shape)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

/// A model of opset 13 with these graph fields.
fn model(graph: &[Vec<u8>]) -> Vec<u8> {
    let opset = [field(1, b""), number(2, 13)].concat();
    [number(1, 8), field(8, &opset), field(7, &graph.concat())].concat()
}

/// ONNX Runtime hands an input's own memory back for such a graph; it must not be read after the input is gone.
#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_an_input_is_a_copy() {
    let _turn = turn().await;
    let node = [field(1, b"x"), field(2, b"y"), field(4, b"Neg")].concat();
    let graph = [
        field(1, &node),
        field(2, b"g"),
        field(11, &value_info("x")),
        field(12, &value_info("y")),
        field(12, &value_info("x")),
    ];
    let host = host();
    let loaded = host.load(brought("test", model(&graph))).await.unwrap();
    let data: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let input = Bytes::from(data.clone());
    let range = input.as_ptr_range();
    let tensor = Tensor {
        dimensions: vec![4],
        ty: TensorType::Fp32,
        data: input,
    };
    let request = Compute {
        function: "test".parse().unwrap(),
        session: loaded.session,
        inputs: vec![("x".to_owned(), tensor)],
        deadline: Instant::now() + Duration::from_secs(10),
    };
    let outputs = host.compute(request).await.unwrap();
    assert_eq!(outputs[1].1.data, data);
    assert!(
        !range.contains(&outputs[1].1.data.as_ptr()),
        "the bytes are the output's own"
    );
}

/// Adds to its input what lies in the file `Cargo.toml` beside it (external data, onnx.proto's TensorProto).
pub(crate) fn model_with_external_data() -> Vec<u8> {
    let entry = |key: &str, value: &str| {
        field(
            13,
            &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat(),
        )
    };
    // The working folder of a test is its crate's.
    let initializer = [
        number(1, 4),
        number(2, 1),
        field(8, b"w"),
        entry("location", "Cargo.toml"),
        number(14, 1),
    ]
    .concat();
    let node = [
        field(1, b"x"),
        field(1, b"w"),
        field(2, b"y"),
        field(4, b"Add"),
    ]
    .concat();
    model(&[
        field(1, &node),
        field(2, b"g"),
        field(5, &initializer),
        field(11, &value_info("x")),
        field(12, &value_info("y")),
    ])
}

/// External data of a model without a folder would be looked for in the process's working folder.
#[tokio::test(flavor = "multi_thread")]
async fn a_brought_model_reads_no_file_of_the_platform() {
    let _turn = turn().await;
    assert!(Path::new("Cargo.toml").exists());
    let error = host()
        .load(brought("test", model_with_external_data()))
        .await
        .unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::InvalidEncoding, "{error}");
}

#[test]
fn inputs_know_their_own_bytes() {
    let _library = crate::find_library(&Config::default()).unwrap();
    let runtime = crate::runtime::Runtime::load(&Config::default()).unwrap();
    let tensor = Tensor {
        dimensions: vec![2],
        ty: TensorType::Fp32,
        data: Bytes::from(vec![0; 8]),
    };
    assert!(!Input::new(tensor, &[2]).unwrap().as_ptr().is_null());
    drop(runtime);
}

/// The numbers are those of `TensorProto.DataType` in onnx.proto.
#[tokio::test(flavor = "multi_thread")]
async fn every_element_type_of_wasi_nn_goes_through_a_model_and_back() {
    let _turn = turn().await;
    let host = host();
    for (ty, element) in [
        (TensorType::Fp32, 1),
        (TensorType::U8, 2),
        (TensorType::I32, 6),
        (TensorType::I64, 7),
        (TensorType::Fp16, 10),
        (TensorType::Fp64, 11),
        (TensorType::Bf16, 16),
    ] {
        let node = [field(1, b"x"), field(2, b"y"), field(4, b"Identity")].concat();
        let graph = [
            field(1, &node),
            field(2, b"g"),
            field(11, &typed_info("x", element)),
            field(12, &typed_info("y", element)),
        ];
        let loaded = host.load(brought("test", model(&graph))).await.unwrap();
        assert_eq!(
            (loaded.info.inputs[0].ty, loaded.info.outputs[0].ty),
            (ty, ty)
        );
        let data: Vec<u8> = (0..4 * ty.size())
            .map(|byte| u8::try_from(byte).unwrap() ^ 0x35)
            .collect();
        let tensor = Tensor {
            dimensions: vec![4],
            ty,
            data: data.clone().into(),
        };
        let request = Compute {
            function: "test".parse().unwrap(),
            session: loaded.session,
            inputs: vec![("x".to_owned(), tensor)],
            deadline: Instant::now() + Duration::from_secs(10),
        };
        let outputs = host.compute(request).await.unwrap();
        assert_eq!(
            (outputs[0].1.ty, outputs[0].1.data.as_ref()),
            (ty, data.as_slice())
        );
    }
}

/// Bool, string and the other integers have no word in wasi-nn: such an input cannot be given.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_without_a_word_in_wasi_nn_is_refused_at_load() {
    let _turn = turn().await;
    let node = [field(1, b"x"), field(2, b"y"), field(4, b"Identity")].concat();
    let graph = [
        field(1, &node),
        field(2, b"g"),
        field(11, &typed_info("x", 9)),
        field(12, &typed_info("y", 9)),
    ];
    let error = host()
        .load(brought("test", model(&graph)))
        .await
        .unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Unsupported, "{error}");
}
