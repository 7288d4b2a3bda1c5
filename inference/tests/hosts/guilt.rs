//! Who is blamed for the death of a host.

use crate::onnx;
use crate::system::signal;
use crate::talk::{Declared, by, changed, crash, divide, identity, inference, load, longs, only};
use fnctl_core::ids::Digest;
use fnctl_core::inference::InferenceErrorKind;
use fnctl_core::ports::InferenceHost;
use fnctl_core::units::Period;
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Each model kills once: the caller gives up before it is tried again, and brings other bytes the next time.
pub(crate) async fn changing_models() {
    let host = inference(|config| {
        config.quarantine_after = 2;
        config.session_ttl = Period::secs(300);
        config.host_ttl = Period::secs(300);
    });
    let good = load(&host, "innocent", onnx::identity(onnx::element::I64))
        .await
        .unwrap()
        .session;
    let stop = AtomicBool::new(false);
    let slowest = AtomicU32::new(0);
    let others = async {
        let mut answered = 0_u32;
        while !stop.load(Ordering::Relaxed) {
            let since = Instant::now();
            let computed = host.compute(identity(good, &[1, 2, 3])).await.unwrap();
            assert_eq!(*only(&computed), longs(&[1, 2, 3]));
            let took = u32::try_from(since.elapsed().as_millis()).unwrap();
            slowest.fetch_max(took, Ordering::Relaxed);
            answered += 1;
        }
        answered
    };
    let hostile = async {
        for number in 0.. {
            assert!(number < 30, "it goes on for ever");
            let model = changed(onnx::division(), number);
            let loaded = match load(&host, "hostile", model).await {
                Ok(loaded) => loaded,
                Err(error) => {
                    assert_eq!(error.kind, InferenceErrorKind::Quarantined, "{error}");
                    assert!(error.message.contains("function hostile"), "{error}");
                    break;
                }
            };
            let before = host.hosts();
            let _ = host
                .compute(crash(loaded.session, Duration::from_millis(40)))
                .await;
            host.release(loaded.session, crate::talk::wish());
            // The death is told before the next one comes.
            let limit = Instant::now() + Duration::from_millis(500);
            while host.hosts() == before && Instant::now() < limit {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (answered, ()) = tokio::join!(others, hostile);
    assert!(answered > 0);
    let quarantined = host.quarantined(Instant::now());
    assert!(
        quarantined
            .iter()
            .all(|one| one.function.as_ref().unwrap().as_str() == "hostile"),
        "{quarantined:?}"
    );
    let function = quarantined.iter().find(|one| one.model.is_none()).unwrap();
    assert!(function.deaths >= 4, "{function:?}");
    assert!(function.for_ms > 500_000);
    // Also with a model that would do no harm: nobody can know. Nobody else is kept away.
    let model = onnx::identity(onnx::element::I64);
    let error = load(&host, "hostile", model.clone()).await.unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Quarantined, "{error}");
    let other = load(&host, "other", onnx::division()).await.unwrap();
    let computed = host
        .compute(divide(other.session, [8; 4], [2; 4]))
        .await
        .unwrap();
    assert_eq!(*only(&computed), longs(&[4; 4]));
    host.shut_down().await;
}

/// Two functions declare one model, and one of them knows numbers that kill its host.
pub(crate) async fn shared_model() {
    let host = inference(|config| {
        config.quarantine_after = 2;
        config.session_ttl = Period::secs(300);
        config.host_ttl = Period::secs(300);
    });
    let model = Declared::new(&onnx::division());
    let session = model.load(&host, "bad").await.unwrap();
    assert_eq!(model.load(&host, "good").await.unwrap(), session);
    let stop = AtomicBool::new(false);
    let good = || by("good", divide(session, [8; 4], [2; 4]));
    let others = async {
        while !stop.load(Ordering::Relaxed) {
            let computed = host.compute(good()).await.unwrap();
            assert_eq!(*only(&computed), longs(&[4; 4]));
        }
    };
    let hostile = async {
        let crash = by("bad", crash(session, Duration::from_secs(20)));
        let error = host.compute(crash).await.unwrap_err();
        assert_eq!(error.kind, InferenceErrorKind::Quarantined, "{error}");
        assert!(error.message.contains("function bad"), "{error}");
        stop.store(true, Ordering::Relaxed);
    };
    let ((), ()) = tokio::join!(others, hostile);
    let kept_away = host.quarantined(Instant::now());
    let [bad] = &kept_away[..] else {
        panic!("one and no more: {kept_away:?}")
    };
    assert_eq!(bad.function.as_ref().unwrap().as_str(), "bad");
    assert_eq!(bad.model, Some(Digest::of(&onnx::division())));
    // Although the session is there, for the other one.
    let error = model.load(&host, "bad").await.unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Quarantined, "{error}");
    assert_eq!(model.load(&host, "good").await.unwrap(), session);
    assert_eq!(*only(&host.compute(good()).await.unwrap()), longs(&[4; 4]));
    host.shut_down().await;
}

/// A cancelled run cannot end in a process that does not run: that proves nothing.
pub(crate) async fn stopped_while_cancelled() {
    let host = inference(|config| {
        config.quarantine_after = 1;
        config.heartbeat = Period(Duration::from_millis(20));
        config.hang_after = Period(Duration::from_millis(200));
    });
    let model = onnx::identity(onnx::element::I64);
    let session = load(&host, "only", model).await.unwrap().session;
    host.compute(identity(session, &[1])).await.unwrap();
    let [pid] = host.hosts()[..] else {
        panic!("one host")
    };
    signal(pid, Signal::STOP);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let short = tokio::time::timeout(
        Duration::from_millis(1),
        host.compute(identity(session, &[2])),
    );
    let _ = short.await;
    let limit = Instant::now() + Duration::from_secs(10);
    while host.hosts() == [pid] {
        assert!(Instant::now() < limit, "nobody noticed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let computed = host.compute(identity(session, &[3])).await.unwrap();
    assert_eq!(*only(&computed), longs(&[3]));
    assert_eq!(host.quarantined(Instant::now()), []);
    host.shut_down().await;
}
