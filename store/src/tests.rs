//! What was acknowledged is there after reopening; nothing else is.

use crate::{Config, Store};
use fnctl_core::config::{FunctionConfig, ModelFile};
use fnctl_core::deploy::Draft;
use fnctl_core::ports::{ArtifactStore, FunctionStore};
use fnctl_core::version::{Alias, Selector};
use fnctl_core::{Digest, ErrorKind, FunctionName, VersionNumber, full};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

fn open(folder: &Path) -> Store {
    Store::open(Config {
        artifact_grace: Duration::ZERO,
        keep_versions: 3,
        ..Config::new(folder)
    })
    .unwrap()
}

fn draft(name: &FunctionName, artifact: Digest) -> Draft {
    Draft {
        function: name.clone(),
        artifact,
        models: BTreeMap::new(),
        config: FunctionConfig::default(),
    }
}

fn name(text: &str) -> FunctionName {
    text.parse().unwrap()
}

#[tokio::test]
async fn versions_and_aliases_survive_and_numbers_are_never_given_twice() {
    let folder = tempfile::tempdir().unwrap();
    let a = name("a");
    {
        let store = open(folder.path());
        for number in 1..=2 {
            assert_eq!(
                store
                    .commit(draft(&a, Digest::of(b"x")))
                    .await
                    .unwrap()
                    .number,
                VersionNumber(number)
            );
        }
        store
            .set_alias(
                &a,
                &"stable".parse().unwrap(),
                Some(Alias::to(VersionNumber(1))),
            )
            .await
            .unwrap();
    }
    {
        let store = open(folder.path());
        assert_eq!(
            store.resolve(&a, &Selector::Live, 0).unwrap().number,
            VersionNumber(2)
        );
        assert_eq!(
            store
                .resolve(&a, &Selector::Alias("stable".parse().unwrap()), 0)
                .unwrap()
                .number,
            VersionNumber(1)
        );
        store.remove(&a).await.unwrap();
        assert!(store.resolve(&a, &Selector::Latest, 0).is_none());
    }
    let store = open(folder.path());
    assert!(store.functions(None).is_empty());
    assert_eq!(
        store
            .commit(draft(&a, Digest::of(b"x")))
            .await
            .unwrap()
            .number,
        VersionNumber(3)
    );
}

#[tokio::test]
async fn old_versions_that_nobody_names_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let a = name("a");
    store.commit(draft(&a, Digest::of(b"1"))).await.unwrap();
    store
        .set_alias(
            &a,
            &"stable".parse().unwrap(),
            Some(Alias::to(VersionNumber(1))),
        )
        .await
        .unwrap();
    for _ in 2..=6 {
        store.commit(draft(&a, Digest::of(b"n"))).await.unwrap();
    }
    let kept = |store: &Store| {
        store.functions(Some(&a))[0]
            .versions
            .keys()
            .map(|number| number.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(&store), [1, 5, 6]);
    drop(store);
    assert_eq!(kept(&open(folder.path())), [1, 5, 6]);
}

/// sled's own flush is not enough on Linux: every acknowledged change forces the database's file to disk itself.
#[tokio::test]
async fn every_acknowledgement_is_forced_to_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let a = name("a");
    let before = store.syncs();
    store.commit(draft(&a, Digest::of(b"x"))).await.unwrap();
    assert_eq!(store.syncs() - before, 1, "the database's file");
    store
        .set_alias(&a, &"b".parse().unwrap(), Some(Alias::to(VersionNumber(1))))
        .await
        .unwrap();
    store.remove(&a).await.unwrap();
    assert_eq!(store.syncs() - before, 3);
    store.put(full("artifact"), 100).await.unwrap();
    assert_eq!(
        store.syncs() - before,
        6,
        "the artifact, its folder, and the folder of all"
    );
}

#[tokio::test]
async fn artifacts_are_addressed_verified_and_collected() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (used, size) = store.put(full("used"), 100).await.unwrap();
    assert_eq!((used, size), (Digest::of(b"used"), 4));
    let (model, _) = store.put(full("model"), 100).await.unwrap();
    let (unused, _) = store.put(full("unused"), 100).await.unwrap();
    assert_eq!(
        store.put(full("too large"), 8).await.unwrap_err().kind,
        ErrorKind::PayloadTooLarge
    );
    assert_eq!(
        std::fs::read_dir(folder.path().join("incoming"))
            .unwrap()
            .count(),
        0
    );
    let mut draft = draft(&name("a"), used);
    draft.models.insert(
        "m".into(),
        ModelFile {
            digest: model,
            size: 5,
        },
    );
    store.commit(draft).await.unwrap();
    assert_eq!(store.collect().await.unwrap(), 1);
    assert!(
        store.locate(&used).is_some()
            && store.locate(&model).is_some()
            && store.locate(&unused).is_none()
    );
    assert_eq!(
        store.verify(&unused).await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    std::fs::write(store.locate(&used).unwrap().0, "evil").unwrap();
    assert_eq!(
        store.verify(&used).await.unwrap_err().kind,
        ErrorKind::Corrupt
    );
}

#[tokio::test]
async fn what_is_young_is_not_collected_and_asking_makes_it_young() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(folder.path())).unwrap();
    let (digest, _) = store.put(full("x"), 100).await.unwrap();
    assert_eq!(store.collect().await.unwrap(), 0);
    let old = std::time::SystemTime::now() - Duration::from_secs(7200);
    let age = || {
        std::fs::File::open(folder.path().join("artifacts").join(digest.to_string()))
            .unwrap()
            .set_modified(old)
            .unwrap()
    };
    age();
    store.verify(&digest).await.unwrap();
    assert_eq!(store.collect().await.unwrap(), 0);
    age();
    assert_eq!(store.collect().await.unwrap(), 1);
}

#[tokio::test]
async fn a_second_store_on_the_same_folder_is_refused_and_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    std::fs::write(folder.path().join("incoming/5.tmp"), b"being uploaded").unwrap();
    assert!(Store::open(Config::new(folder.path())).is_err());
    assert!(folder.path().join("incoming/5.tmp").exists());
    drop(store);
}
