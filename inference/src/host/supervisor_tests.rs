//! Who gets a host of its own, and who waits how long for one.

use super::group::{Group, GroupKey};
use super::quarantine::{Evidence, Inhabitants, Suspect};
use super::supervisor::{SupervisedHost, Supervisor};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::sessions::SessionKey;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::inference::{InferenceError, InferenceErrorKind};
use futures::FutureExt;
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

/// One function with one model.
struct Hands {
    key: SessionKey,
    function: FunctionName,
}

impl Hands {
    /// A declared model that some function has.
    fn shared(number: usize) -> Self {
        Self {
            key: key(&number.to_string()),
            function: format!("f-{number}").parse().unwrap(),
        }
    }

    /// Bytes that a function brought.
    fn own(name: &str, function: &str) -> Self {
        let function: FunctionName = function.parse().unwrap();
        Self {
            key: SessionKey {
                owner: Some(function.clone()),
                ..key(name)
            },
            function,
        }
    }

    fn suspect(&self) -> Suspect {
        Suspect::computing(&self.key, &self.function)
    }

    async fn place(
        &self,
        supervisor: &Supervisor,
        deadline: Instant,
    ) -> Result<Arc<Group>, InferenceError> {
        supervisor.place(&self.key, &self.function, deadline).await
    }
}

/// A death in which all of these were, among others.
fn die_in_company(supervisor: &Supervisor, all: &[Hands]) {
    let suspects: Vec<_> = all.iter().map(Hands::suspect).collect();
    let evidence = Evidence {
        suspects: &suspects,
        inhabitants: &Inhabitants::many(),
    };
    supervisor.ledger.lock().death(evidence, Instant::now());
    supervisor.suspicion.store(true, Ordering::Relaxed);
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
    let all: Vec<_> = (0..5).map(Hands::shared).collect();
    let now = Instant::now();
    // As often as it takes to be kept from the others for good.
    for _ in 0..3 {
        die_in_company(&supervisor, &all);
    }
    let deadline = now + Duration::from_secs(20);
    let mut places = Vec::new();
    for hands in &all[..4] {
        places.push(hands.place(&supervisor, deadline).await.unwrap());
    }
    let soon = Instant::now() + Duration::from_millis(200);
    let error = all[4].place(&supervisor, soon).await.unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Timeout);
    assert!(error.message.contains("of its own"), "{error}");
    assert!(Instant::now() < soon + Duration::from_secs(5));
    // A place that nobody has in hand is given up for who waits.
    places.pop();
    let place = all[4].place(&supervisor, deadline).await.unwrap();
    assert_eq!(place.key, GroupKey::Alone(all[4].suspect()));
    places.push(place);
    // One of whom little is known waits for less, and is then with the others.
    let newcomer = [Hands::shared(5)];
    die_in_company(&supervisor, &newcomer);
    let since = Instant::now();
    let place = newcomer[0].place(&supervisor, deadline).await.unwrap();
    assert_eq!(place.key, GroupKey::Shared);
    assert!(since.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn one_function_takes_no_more_than_its_share_of_the_hosts_for_suspects() {
    let supervisor = platform().0;
    let all = [
        Hands::own("0", "hostile"),
        Hands::own("1", "hostile"),
        Hands::own("2", "hostile"),
        Hands::own("unlucky", "innocent"),
    ];
    for _ in 0..3 {
        die_in_company(&supervisor, &all);
    }
    let soon = || Instant::now() + Duration::from_millis(200);
    let _one = all[0].place(&supervisor, soon()).await.unwrap();
    let _two = all[1].place(&supervisor, soon()).await.unwrap();
    let error = all[2].place(&supervisor, soon()).await.unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Timeout);
    all[3].place(&supervisor, soon()).await.unwrap();
}

/// All look for a place at the same moment.
#[tokio::test]
async fn there_are_never_more_hosts_for_suspects_than_there_may_be() {
    for _ in 0..200 {
        let supervisor = platform().0;
        let all: Vec<_> = (0..16).map(Hands::shared).collect();
        die_in_company(&supervisor, &all);
        let barrier = std::sync::Barrier::new(all.len());
        std::thread::scope(|scope| {
            for hands in &all {
                let (supervisor, barrier) = (&supervisor, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    // Kept in hand, so that nobody else is given it. Who finds none would wait.
                    let place = hands.place(supervisor, Instant::now()).now_or_never();
                    barrier.wait();
                    drop(place);
                });
            }
        });
        let others = supervisor.others.lock();
        assert!(others.len() <= 4, "{}", others.len());
    }
}

/// A session that several functions have is where each of them may be.
#[tokio::test]
async fn a_suspect_is_apart_and_who_shares_its_model_stays() {
    let supervisor = platform().0;
    let bad = Hands::shared(0);
    let good = Hands {
        key: bad.key.clone(),
        function: "good".parse().unwrap(),
    };
    let soon = || Instant::now() + Duration::from_millis(200);
    die_in_company(&supervisor, std::slice::from_ref(&bad));
    let place = bad.place(&supervisor, soon()).await.unwrap();
    assert_eq!(place.key, GroupKey::Alone(bad.suspect()));
    let place = good.place(&supervisor, soon()).await.unwrap();
    assert_eq!(place.key, GroupKey::Shared);
    assert!(supervisor.admit(&bad.key, &bad.function).is_ok());
    let mut alone = Inhabitants::default();
    alone.loads(&bad.key, &bad.function);
    alone.computes(&bad.function);
    for _ in 0..3 {
        let evidence = Evidence {
            suspects: &[],
            inhabitants: &alone,
        };
        supervisor.ledger.lock().death(evidence, Instant::now());
    }
    // Also where the session is there already.
    let error = supervisor.admit(&bad.key, &bad.function).unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Quarantined);
    assert!(error.message.contains("function f-0"), "{error}");
    assert!(supervisor.admit(&good.key, &good.function).is_ok());
    good.place(&supervisor, soon()).await.unwrap();
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

/// Otherwise others would wait for the place that it waits for, and believe what its host says of the model.
#[tokio::test]
async fn the_session_of_a_suspect_is_its_own() {
    let supervisor = platform().0;
    let model = key("shared");
    let (bad, good): (FunctionName, FunctionName) =
        ("bad".parse().unwrap(), "good".parse().unwrap());
    assert_eq!(supervisor.apart(model.clone(), &bad), model);
    let hands = Hands {
        key: model.clone(),
        function: bad.clone(),
    };
    die_in_company(&supervisor, &[hands]);
    let own = supervisor.apart(model.clone(), &bad);
    assert_eq!(own.owner.as_ref(), Some(&bad));
    assert_eq!(supervisor.apart(model.clone(), &good), model);
    // It is where the suspect is.
    let soon = Instant::now() + Duration::from_secs(5);
    let place = supervisor.place(&own, &bad, soon).await.unwrap();
    assert_eq!(place.key, GroupKey::Alone(Suspect::computing(&model, &bad)));
}

/// One function may declare many models, and nobody is named for what happens when they are loaded.
#[tokio::test]
async fn the_loading_of_models_takes_no_more_places_than_a_function() {
    let supervisor = platform().0;
    let all: Vec<_> = (0..3).map(Hands::shared).collect();
    for hands in &all {
        let suspects = [Suspect::Loading(hands.key.digest)];
        for _ in 0..3 {
            let evidence = Evidence {
                suspects: &suspects,
                inhabitants: &Inhabitants::many(),
            };
            supervisor.ledger.lock().death(evidence, Instant::now());
        }
    }
    supervisor.suspicion.store(true, Ordering::Relaxed);
    let soon = || Instant::now() + Duration::from_millis(200);
    let first = all[0].place(&supervisor, soon()).await.unwrap();
    let second = all[1].place(&supervisor, soon()).await.unwrap();
    let error = all[2]
        .place(&supervisor, soon())
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Timeout);
    drop((first, second));
    all[2].place(&supervisor, soon()).await.unwrap();
}
