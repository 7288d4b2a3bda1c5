//! Sessions that are given up, and hosts that end, while something else happens to them.

use crate::onnx;
use crate::system::{children, memory_descriptors, signal};
use crate::talk::{eventually, heavy, identity, inference, load};
use fnctl_core::inference::InferenceErrorKind;
use fnctl_core::ports::{InferenceControl, InferenceHost};
use fnctl_core::units::Period;
use fnctl_inference::{Config, Inference};
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::Instant;

/// Hosts stay although they are empty.
fn lasting(config: &mut Config) {
    config.host_ttl = Period::secs(300);
}

fn sessions(host: &Inference) -> usize {
    host.host_status().iter().map(|host| host.sessions).sum()
}

/// A compute loads its session again into a new host; meanwhile the last use is given back and the session goes.
pub(crate) async fn released_while_reloaded() {
    let host = inference(lasting);
    // Somebody else keeps the host.
    let other = load(&host, "other", onnx::identity(onnx::element::I64))
        .await
        .unwrap()
        .session;
    for _ in 0..3 {
        let session = load(&host, "test", onnx::identity(onnx::element::I64))
            .await
            .unwrap()
            .session;
        let [pid] = host.hosts()[..] else {
            panic!("one host")
        };
        signal(pid, Signal::KILL);
        eventually("the death is noticed", || host.hosts().is_empty()).await;
        let computing = tokio::spawn({
            let host = host.clone();
            async move { host.compute(identity(session, &[1])).await }
        });
        tokio::time::sleep(Duration::from_millis(2)).await;
        host.release(session, crate::talk::wish());
        assert_eq!(host.reap(Instant::now()).await.expired, 1);
        if let Err(error) = computing.await.unwrap() {
            assert_eq!(error.kind, InferenceErrorKind::NotFound, "{error}");
        }
        host.compute(identity(other, &[1])).await.unwrap();
        eventually("only the other is there", || sessions(&host) == 1).await;
    }
    host.shut_down().await;
}

/// The new host loads what the old one has, and a session goes before the new one is known to anybody.
pub(crate) async fn released_while_replaced() {
    let host = inference(lasting);
    load(&host, "other", onnx::identity(onnx::element::I64))
        .await
        .unwrap();
    let session = load(&host, "test", heavy(64, 0)).await.unwrap().session;
    assert_eq!(sessions(&host), 2);
    let replacing = tokio::spawn({
        let host = host.clone();
        async move { host.replace_hosts().await.unwrap() }
    });
    // The new host is there, and is not yet the one that counts.
    eventually("a new host", || children().len() == 2).await;
    host.release(session, crate::talk::wish());
    assert_eq!(host.reap(Instant::now()).await.expired, 1);
    assert_eq!(replacing.await.unwrap(), 1);
    eventually("only the other is there", || sessions(&host) == 1).await;
    eventually("its memory is free", || host.resident().1 < 1 << 20).await;
    host.shut_down().await;
}

pub(crate) async fn ended_while_replaced() {
    for pause in [0, 5, 20, 40] {
        let host = inference(lasting);
        load(&host, "test", heavy(16, 0)).await.unwrap();
        let replacing = tokio::spawn({
            let host = host.clone();
            async move { host.replace_hosts().await }
        });
        tokio::time::sleep(Duration::from_millis(pause)).await;
        host.shut_down().await;
        let _ = replacing.await.unwrap();
        drop(host);
        eventually("no process is left", || children().is_empty()).await;
        eventually("no memory is left", || memory_descriptors() == 0).await;
    }
}

/// While one host is replaced another dies and is followed by a new one: that one is replaced then, and not forgotten.
pub(crate) async fn died_while_another_is_replaced() {
    let host = inference(lasting);
    let heavy = load(&host, "slow", heavy(192, 0)).await.unwrap();
    let dedicated = || {
        host.load(fnctl_core::inference::LoadModel {
            isolation: fnctl_core::config::InferenceIsolation::Dedicated,
            ..crate::talk::request(
                "own",
                crate::talk::brought(onnx::identity(onnx::element::I64)),
            )
        })
    };
    let own = dedicated().await.unwrap().session;
    let of = |kind: &str| {
        let hosts = host.host_status();
        hosts.iter().find(|one| one.kind == kind).map(|one| one.pid)
    };
    let (shared, first) = (of("shared").unwrap(), of("dedicated").unwrap());
    let replacing = tokio::spawn({
        let host = host.clone();
        async move { host.replace_hosts().await.unwrap() }
    });
    // The shared one's successor loads the slow model; the other's turn comes after it.
    eventually("a new host", || children().len() == 3).await;
    signal(first, Signal::KILL);
    eventually("the death is noticed", || of("dedicated") != Some(first)).await;
    host.compute(identity(own, &[1])).await.unwrap();
    replacing.await.unwrap();
    assert_ne!(of("shared").unwrap(), shared);
    host.compute(identity(own, &[1])).await.unwrap();
    eventually("two hosts and no more", || children().len() == 2).await;
    host.release(heavy.session, crate::talk::wish());
    host.shut_down().await;
    eventually("no process is left", || children().is_empty()).await;
}
