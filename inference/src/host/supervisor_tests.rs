//! Who gets a host of its own, and who waits how long for one.

use super::group::GroupKey;
use super::quarantine::{Evidence, Inhabitants, Suspect};
use super::supervisor::SupervisedHost;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::sessions::SessionKey;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::Digest;
use fnctl_core::inference::InferenceErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

fn key(name: &str) -> SessionKey {
    SessionKey {
        digest: Digest::of(name.as_bytes()),
        owner: None,
        isolation: InferenceIsolation::Shared,
    }
}

fn platform() -> SupervisedHost {
    let registry = prometheus::Registry::new();
    let metrics = Arc::new(Metrics::register(&registry).unwrap());
    let config = Config {
        // No host ever starts.
        program: Some(PathBuf::from("/nowhere/fnctl")),
        ..Config::default()
    };
    SupervisedHost::new(config, metrics, &registry).unwrap()
}

#[tokio::test]
async fn suspects_wait_no_longer_than_the_deadline_for_a_host_of_their_own() {
    let supervisor = platform().0;
    let keys: Vec<_> = (0..5).map(|index| key(&index.to_string())).collect();
    let now = Instant::now();
    let evidence = Evidence {
        suspects: &keys,
        inhabitants: &Inhabitants::Many,
    };
    // As often as it takes to be kept from the others for good.
    for _ in 0..3 {
        supervisor.ledger.lock().death(evidence, now);
    }
    supervisor.suspicion.store(true, Ordering::Relaxed);
    let deadline = now + Duration::from_secs(20);
    let mut places = Vec::new();
    for key in &keys[..4] {
        places.push(supervisor.place(key, deadline).await.unwrap());
    }
    let soon = Instant::now() + Duration::from_millis(200);
    let error = supervisor.place(&keys[4], soon).await.unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Timeout);
    assert!(error.message.contains("of its own"), "{error}");
    assert!(Instant::now() < soon + Duration::from_secs(5));
    // A place that nobody has in hand is given up for who waits.
    places.pop();
    let place = supervisor.place(&keys[4], deadline).await.unwrap();
    let alone = |key: &SessionKey| GroupKey::Alone(Suspect::Model(key.clone()));
    assert_eq!(place.key, alone(&keys[4]));
    places.push(place);
    // One of whom little is known waits for less, and is then with the others.
    let newcomer = [key("newcomer")];
    let evidence = Evidence {
        suspects: &newcomer,
        inhabitants: &Inhabitants::Many,
    };
    supervisor.ledger.lock().death(evidence, now);
    let since = Instant::now();
    let place = supervisor.place(&newcomer[0], deadline).await.unwrap();
    assert_eq!(place.key, GroupKey::Shared);
    assert!(since.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn one_function_takes_no_more_than_its_share_of_the_hosts_for_suspects() {
    let supervisor = platform().0;
    let now = Instant::now();
    let own = |name: &str, function: &str| SessionKey {
        owner: Some(function.parse().unwrap()),
        ..key(name)
    };
    let mut suspects: Vec<_> = (0..3)
        .map(|index| own(&index.to_string(), "hostile"))
        .collect();
    suspects.push(own("unlucky", "innocent"));
    let evidence = Evidence {
        suspects: &suspects,
        inhabitants: &Inhabitants::Many,
    };
    for _ in 0..3 {
        supervisor.ledger.lock().death(evidence, now);
    }
    supervisor.suspicion.store(true, Ordering::Relaxed);
    let soon = || Instant::now() + Duration::from_millis(200);
    let _one = supervisor.place(&suspects[0], soon()).await.unwrap();
    let _two = supervisor.place(&suspects[1], soon()).await.unwrap();
    let error = supervisor.place(&suspects[2], soon()).await.unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Timeout);
    supervisor.place(&suspects[3], soon()).await.unwrap();
}

#[tokio::test]
async fn everybody_who_waited_for_a_failed_start_hears_of_it_and_the_next_waits() {
    let supervisor = platform().0;
    let group = supervisor.shared.clone();
    let all = (0..20).map(|_| supervisor.host(&group));
    for started in futures::future::join_all(all).await {
        assert!(started.is_err());
    }
    let now = Instant::now();
    assert_eq!(
        group.backoff.lock().next(now),
        now,
        "one start for all of them, and the first restart is at once"
    );
    assert!(supervisor.host(&group).await.is_err());
    assert!(group.backoff.lock().next(Instant::now()) > now);
}
