//! Inference hosts through the port alone: what they compute is what ONNX Runtime computes in this process, and a death is
//! nothing but time.

use bytes::Bytes;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::inference::{
    Compute, Computed, InferenceErrorKind, LoadModel, LoadedModel, ModelSource, SessionId, Tensor,
    TensorType,
};
use fnctl_core::ports::InferenceHost;
use fnctl_core::{ByteSize, Period};
use fnctl_platform::inference::{Config, Inference, Process};
use fnctl_tests::{onnx, program};
use std::time::Duration;
use tokio::time::Instant;

fn inference(change: impl FnOnce(&mut Config)) -> Inference {
    let mut config = Config {
        program: Some(program()),
        ..Config::default()
    };
    change(&mut config);
    Inference::new(config, &prometheus::Registry::new()).unwrap()
}

fn request(bytes: Vec<u8>, function: &str, isolation: InferenceIsolation) -> LoadModel {
    LoadModel {
        source: ModelSource::Bytes(bytes.into()),
        function: function.parse().unwrap(),
        isolation,
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

async fn load(inference: &Inference, bytes: Vec<u8>) -> LoadedModel {
    inference
        .load(request(bytes, "test", InferenceIsolation::Shared))
        .await
        .unwrap()
}

fn compute(session: SessionId, inputs: &[(&str, TensorType, &[u32], Bytes)]) -> Compute {
    let inputs = inputs
        .iter()
        .map(|(name, ty, dimensions, data)| {
            let tensor = Tensor {
                dimensions: dimensions.to_vec(),
                ty: *ty,
                data: data.clone(),
            };
            ((*name).to_owned(), tensor)
        })
        .collect();
    Compute {
        function: "test".parse().unwrap(),
        session,
        inputs,
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

fn bytes(count: usize) -> Bytes {
    let byte = |index: usize| u8::try_from((index * 7 + index / 251) % 251).unwrap() & 0x3f;
    (0..count).map(byte).collect::<Vec<_>>().into()
}

fn longs(values: [i64; 4]) -> Bytes {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    bytes.into()
}

fn signal(pid: u32, name: &str) {
    let status = std::process::Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "{name} to {pid}");
}

/// One after another in one test: ONNX Runtime in this process is one for all tests.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_answers_what_this_process_answers() {
    let ours = inference(|config| config.process = Process::InProcess);
    let host = inference(|_| {});
    let agree = async |model: Vec<u8>, inputs: &[(&str, TensorType, &[u32], Bytes)]| -> Computed {
        let (a, b) = (load(&ours, model.clone()).await, load(&host, model).await);
        assert_eq!(a.info, b.info);
        let a = ours.compute(compute(a.session, inputs)).await.unwrap();
        let b = host.compute(compute(b.session, inputs)).await.unwrap();
        assert_eq!(a, b);
        b
    };
    for (ty, element) in [
        (TensorType::Fp32, 1),
        (TensorType::U8, 2),
        (TensorType::I32, 6),
        (TensorType::I64, 7),
        (TensorType::Fp16, 10),
        (TensorType::Fp64, 11),
        (TensorType::Bf16, 16),
    ] {
        // None, one, what fits a slot, what does not, and more than all the slots together.
        for count in [0_u32, 1, 4_000, 100_000, 4_000_000] {
            let data = bytes(count as usize * ty.size());
            let outputs = agree(
                onnx::identity(element),
                &[("x", ty, &[count], data.clone())],
            )
            .await;
            assert_eq!(outputs[0].1.data, data, "{ty:?} {count}");
        }
    }
    let image = (0..3 * 224 * 224)
        .flat_map(|index| ((index % 255) as f32 / 255.0).to_le_bytes())
        .collect::<Vec<_>>()
        .into();
    let squeezenet = fnctl_tests::file("tests/fixtures/models/light_squeezenet.onnx");
    let outputs = agree(
        squeezenet,
        &[("data_0", TensorType::Fp32, &[1, 3, 224, 224], image)],
    )
    .await;
    assert_eq!(outputs[0].1.dimensions, [1, 1000, 1, 1]);
    let vad = fnctl_tests::file("tests/fixtures/models/silero_vad_16k_op15.onnx");
    let rate = Bytes::copy_from_slice(&16_000_i64.to_le_bytes());
    agree(
        vad,
        &[
            ("input", TensorType::Fp32, &[1, 576], bytes(576 * 4)),
            ("state", TensorType::Fp32, &[2, 1, 128], bytes(1024)),
            ("sr", TensorType::I64, &[], rate),
        ],
    )
    .await;
    // What a guest gets wrong is the same mistake in both.
    let wrong = [("x", TensorType::Fp32, &[3][..], bytes(11))];
    for inference in [&ours, &host] {
        let session = load(inference, onnx::identity(1)).await.session;
        let error = inference
            .compute(compute(session, &wrong))
            .await
            .unwrap_err();
        assert_eq!(error.kind, InferenceErrorKind::InvalidArgument, "{error}");
        let error = inference
            .load(request(
                b"nothing".to_vec(),
                "test",
                InferenceIsolation::Shared,
            ))
            .await
            .unwrap_err();
        assert_eq!(error.kind, InferenceErrorKind::InvalidEncoding, "{error}");
    }
    host.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_wait_for_room_and_more_than_there_is_is_refused() {
    let host = inference(|config| config.shared_memory = ByteSize::mib(8));
    let session = load(&host, onnx::identity(1)).await.session;
    // Each takes 2 MB and as much again for its output: two at a time, the others wait for room.
    let run = |floats: u32| {
        host.compute(compute(
            session,
            &[("x", TensorType::Fp32, &[floats], bytes(floats as usize * 4))],
        ))
    };
    for computed in futures::future::join_all((0..30).map(|_| run(500_000))).await {
        assert_eq!(computed.unwrap()[0].1.data, bytes(2_000_000));
    }
    let error = run(3_000_000).await.unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::TooLarge);
    assert!(error.message.contains("inference.shared_memory"), "{error}");
    host.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_host_and_a_run_that_does_not_end_are_killed_and_done_again() {
    let host = inference(|config| {
        config.heartbeat = Period(Duration::from_millis(50));
        config.hang_after = Period(Duration::from_millis(400));
    });
    let session = load(&host, onnx::identity(1)).await.session;
    let run = || {
        host.compute(compute(
            session,
            &[("x", TensorType::Fp32, &[4], bytes(16))],
        ))
    };
    run().await.unwrap();
    let before = host.hosts();
    signal(before[0], "STOP");
    // It takes a moment: until then one of its threads may still answer.
    let stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", before[0])).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    let limit = Instant::now() + Duration::from_secs(5);
    while !stopped() {
        assert!(Instant::now() < limit, "the host does not stop");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let since = Instant::now();
    assert_eq!(run().await.unwrap()[0].1.data, bytes(16));
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
    assert_ne!(host.hosts(), before);
    assert!(!std::path::Path::new(&format!("/proc/{}", before[0])).exists());
    host.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_run_and_the_host_lives_on() {
    let host = inference(|_| {});
    let vgg = fnctl_tests::file("tests/fixtures/models/light_vgg19.onnx");
    let session = load(&host, vgg).await.session;
    let pids = host.hosts();
    let request = || {
        compute(
            session,
            &[(
                "data_0",
                TensorType::Fp32,
                &[1, 3, 224, 224],
                bytes(3 * 224 * 224 * 4),
            )],
        )
    };
    let since = Instant::now();
    host.compute(request()).await.unwrap();
    let whole = since.elapsed();
    let short = Compute {
        deadline: Instant::now() + whole / 20,
        ..request()
    };
    let error = host.compute(short).await.unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Timeout);
    host.compute(request()).await.unwrap();
    assert_eq!(host.hosts(), pids, "the same host");
    host.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_kills_hosts_is_quarantined_and_innocent_ones_never_are() {
    let host = inference(|config| config.quarantine_after = 2);
    let good = load(&host, onnx::identity(1)).await.session;
    let bad = load(&host, onnx::division()).await.session;
    let divide = |by| {
        host.compute(compute(
            bad,
            &[
                ("x", TensorType::I64, &[4], longs([8, 6, 4, i64::MIN])),
                ("y", TensorType::I64, &[4], longs(by)),
            ],
        ))
    };
    assert_eq!(
        divide([1, 2, 4, 1]).await.unwrap()[0].1.data,
        longs([8, 3, 1, i64::MIN])
    );
    let stop = std::sync::atomic::AtomicBool::new(false);
    let others = async {
        let mut count = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let done = host
                .compute(compute(good, &[("x", TensorType::Fp32, &[4], bytes(16))]))
                .await;
            assert_eq!(done.unwrap()[0].1.data, bytes(16));
            count += 1;
        }
        count
    };
    let crash = async {
        let error = divide([1, 1, 1, -1]).await.unwrap_err();
        assert_eq!(error.kind, InferenceErrorKind::Quarantined, "{error}");
        assert!(error.message.contains("2 times"), "{error}");
        // Also with inputs that would do no harm: nobody can know.
        let error = divide([1, 1, 1, 1]).await.unwrap_err();
        assert_eq!(error.kind, InferenceErrorKind::Quarantined, "{error}");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (count, ()) = tokio::join!(others, crash);
    assert!(count > 0);
    host.compute(compute(good, &[("x", TensorType::Fp32, &[4], bytes(16))]))
        .await
        .unwrap();
    host.shut_down().await;
    assert_eq!(host.hosts(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dedicated_function_has_a_host_of_its_own_and_there_are_so_many() {
    let host = inference(|config| config.max_hosts = 1);
    let dedicated = |function: &str| {
        host.load(request(
            onnx::identity(1),
            function,
            InferenceIsolation::Dedicated,
        ))
    };
    load(&host, onnx::identity(1)).await;
    assert_eq!(host.hosts().len(), 1);
    dedicated("own").await.unwrap();
    assert_eq!(host.hosts().len(), 2);
    assert_eq!(host.resident().0, 2, "not the session of the others");
    dedicated("own").await.unwrap();
    assert_eq!(host.hosts().len(), 2);
    let error = dedicated("other").await.unwrap_err();
    assert!(error.message.contains("inference.max_hosts"), "{error}");
    host.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_no_host_is_an_error_that_says_so() {
    for program in ["/bin/true", "/nowhere/fnctl"] {
        let host = inference(|config| config.program = Some(program.into()));
        let error = host
            .load(request(
                onnx::identity(1),
                "test",
                InferenceIsolation::Shared,
            ))
            .await
            .unwrap_err();
        assert_eq!(error.kind, InferenceErrorKind::Unavailable, "{error}");
        assert!(error.message.contains("does not start"), "{error}");
    }
}
