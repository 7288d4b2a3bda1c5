//! The ledger of deaths: who is put alone, who is quarantined, and how long anything is remembered.

use super::fading::HALF_LIFE;
use super::quarantine::{Evidence, Inhabitants, Ledger, Limits, Placement, Suspect};
use crate::sessions::SessionKey;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::Digest;
use std::time::Duration;
use tokio::time::Instant;

fn key(name: &str) -> SessionKey {
    SessionKey {
        digest: Digest::of(name.as_bytes()),
        owner: None,
        isolation: InferenceIsolation::Shared,
    }
}

fn owned(name: &str, function: &str) -> SessionKey {
    SessionKey {
        owner: Some(function.parse().unwrap()),
        ..key(name)
    }
}

fn ledger() -> Ledger {
    Ledger::new(Limits {
        deaths: 3,
        quarantine: Duration::from_secs(600),
    })
}

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn hours(count: u64) -> Duration {
    secs(count * 3600)
}

fn together(keys: &[&SessionKey]) -> Inhabitants {
    let mut inhabitants = Inhabitants::default();
    for key in keys {
        inhabitants.add(key);
    }
    inhabitants
}

/// A death of a host in which nobody but these ever was, all of them busy.
fn die(ledger: &mut Ledger, keys: &[&SessionKey], now: Instant) -> Vec<Suspect> {
    let suspects: Vec<_> = keys.iter().map(|key| (*key).clone()).collect();
    let inhabitants = together(keys);
    let evidence = Evidence {
        suspects: &suspects,
        inhabitants: &inhabitants,
    };
    ledger.death(evidence, now)
}

/// A death of the shared host.
fn die_in_company(ledger: &mut Ledger, keys: &[&SessionKey], now: Instant) -> Vec<Suspect> {
    let suspects: Vec<_> = keys.iter().map(|key| (*key).clone()).collect();
    let evidence = Evidence {
        suspects: &suspects,
        inhabitants: &Inhabitants::Many,
    };
    ledger.death(evidence, now)
}

fn is_alone(ledger: &Ledger, key: &SessionKey, now: Instant) -> bool {
    matches!(ledger.placement(key, now), Placement::Alone { .. })
}

fn quarantine_of(ledger: &Ledger, key: &SessionKey, now: Instant) -> Option<(Suspect, u64)> {
    match ledger.placement(key, now) {
        Placement::Quarantined { who, until, .. } => {
            Some((who, until.duration_since(now).as_secs()))
        }
        _ => None,
    }
}

#[test]
fn inhabitants_are_as_many_as_blame_needs() {
    let (a, b, other) = (owned("a", "f"), owned("b", "f"), owned("a", "g"));
    assert_eq!(together(&[&a, &a]), Inhabitants::Model(a.clone()));
    assert_eq!(
        together(&[&a, &b, &a]),
        Inhabitants::Function("f".parse().unwrap())
    );
    assert_eq!(together(&[&a, &b, &other]), Inhabitants::Many);
    assert_eq!(together(&[&key("a"), &key("b")]), Inhabitants::Many);
}

#[test]
fn three_proven_deaths_are_quarantine_and_it_ends_and_comes_back_longer() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let bad = key("bad");
    let who = Suspect::Model(bad.clone());
    assert_eq!(ledger.placement(&bad, now), Placement::Usual);
    for second in 0..2 {
        assert!(die(&mut ledger, &[&bad], now + secs(second)).is_empty());
        assert!(is_alone(&ledger, &bad, now + secs(second)));
    }
    assert_eq!(
        die(&mut ledger, &[&bad], now + secs(2)),
        std::slice::from_ref(&who)
    );
    let at = now + secs(2);
    assert_eq!(quarantine_of(&ledger, &bad, at), Some((who.clone(), 600)));
    assert_eq!(ledger.quarantined(at).count(), 1);
    let after = at + secs(600);
    assert!(is_alone(&ledger, &bad, after), "one more chance, alone");
    assert!(
        is_alone(&ledger, &bad, after + secs(61)),
        "not for a minute only"
    );
    // One death is enough the next time, and it stays away twice as long.
    assert_eq!(die(&mut ledger, &[&bad], after + secs(61)).len(), 1);
    assert_eq!(
        quarantine_of(&ledger, &bad, after + secs(61)),
        Some((who, 1200))
    );
    ledger.forgive(|who| *who == Suspect::Model(bad.clone()));
    assert_eq!(ledger.placement(&bad, after + secs(62)), Placement::Usual);
}

/// Alone for longer than ten minutes each time, as it would be after each death, it used to be quarantined never.
#[test]
fn a_slow_killer_is_remembered() {
    for every in [secs(61), secs(301), hours(1)] {
        let (mut ledger, mut now) = (ledger(), Instant::now());
        let bad = key("bad");
        let mut deaths = 0;
        while quarantine_of(&ledger, &bad, now).is_none() {
            now += every;
            die(&mut ledger, &[&bad], now);
            deaths += 1;
            assert!(deaths < 6, "one death each {every:?}");
        }
    }
    // One in half a day is another matter.
    let (mut ledger, mut now) = (ledger(), Instant::now());
    let rare = key("rare");
    for _ in 0..100 {
        now += hours(12);
        assert!(die(&mut ledger, &[&rare], now).is_empty());
    }
    assert!(!ledger.forget(now + hours(24)), "nothing is left");
}

/// A killer that behaves until it is back among the others, once a minute.
#[test]
fn who_is_in_every_death_is_alone_longer_and_longer() {
    let (mut ledger, start) = (ledger(), Instant::now());
    let bad = key("bad");
    let (mut now, mut deaths) = (start, 0);
    while now < start + hours(6) {
        if ledger.placement(&bad, now) == Placement::Usual {
            die_in_company(&mut ledger, &[&bad, &key(&deaths.to_string())], now);
            deaths += 1;
        }
        for _ in 0..1000 {
            ledger.answered(&bad);
        }
        now += secs(30);
    }
    assert!(
        deaths <= 12,
        "{deaths} deaths of the shared host in six hours"
    );
}

#[test]
fn deaths_in_company_convict_nobody_and_the_innocent_are_back_soon() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let (bad, good) = (key("bad"), key("good"));
    die_in_company(&mut ledger, &[&bad, &good], now);
    assert!(matches!(
        ledger.placement(&good, now),
        Placement::Alone {
            may_return: true,
            ..
        }
    ));
    for _ in 1..50 {
        assert!(!ledger.answered(&good));
    }
    assert!(ledger.answered(&good));
    assert_eq!(ledger.placement(&good, now), Placement::Usual);
    assert_eq!(ledger.placement(&bad, now + secs(60)), Placement::Usual);
    for second in 0..100 {
        let at = now + secs(second);
        assert!(die_in_company(&mut ledger, &[&bad, &good], at).is_empty());
        // The only one in flight, but not the only one that was ever there.
        assert!(die_in_company(&mut ledger, &[&good], at).is_empty());
    }
    assert!(is_alone(&ledger, &good, now + secs(3000)));
}

#[test]
fn a_conviction_explains_the_deaths_it_was_in() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let (bad, good, unlucky) = (key("bad"), key("good"), key("unlucky"));
    for _ in 0..4 {
        die_in_company(&mut ledger, &[&bad, &good, &unlucky], now);
    }
    // One death that the killer was not in.
    die_in_company(&mut ledger, &[&unlucky, &key("other")], now);
    assert!(is_alone(&ledger, &good, now + secs(120)));
    for _ in 0..3 {
        die(&mut ledger, &[&bad], now);
    }
    assert_eq!(ledger.placement(&good, now), Placement::Usual);
    assert!(is_alone(&ledger, &unlucky, now));
    assert!(quarantine_of(&ledger, &bad, now).is_some());
}

/// The guest changes a byte for every load and lets no model kill twice.
#[test]
fn a_function_that_brings_killer_after_killer_is_put_alone_then_quarantined() {
    let (mut ledger, start) = (ledger(), Instant::now());
    let function = Suspect::Function("hostile".parse().unwrap());
    let innocent = owned("good", "innocent");
    let (mut now, mut shared) = (start, 0);
    for number in 0.. {
        assert!(number < 20, "never quarantined");
        now += secs(61);
        let model = owned(&number.to_string(), "hostile");
        match ledger.placement(&model, now) {
            Placement::Usual => {
                die_in_company(&mut ledger, &[&model, &innocent], now);
                shared += 1;
            }
            Placement::Alone { who, .. } => {
                assert_eq!(who, function);
                let before = owned(&(number - 1).to_string(), "hostile");
                die(&mut ledger, &[&before, &model], now);
            }
            Placement::Quarantined { who, .. } => {
                assert_eq!(who, function);
                break;
            }
        }
    }
    assert_eq!(shared, 3, "deaths that others noticed");
    assert_eq!(
        ledger.placement(&innocent, now + secs(600)),
        Placement::Usual
    );
    // A deploy of the function lifts it.
    ledger.forgive(|who| *who == function);
    assert_eq!(
        ledger.placement(&owned("new", "hostile"), now),
        Placement::Usual
    );
}

#[test]
fn one_bad_model_does_not_take_its_functions_others_along() {
    let (mut ledger, mut now) = (ledger(), Instant::now());
    let (bad, good) = (owned("bad", "f"), owned("good", "f"));
    for _ in 0..20 {
        now += secs(1);
        if let Some((_, left)) = quarantine_of(&ledger, &bad, now) {
            now += secs(left);
        }
        die(&mut ledger, &[&bad], now);
        assert!(quarantine_of(&ledger, &good, now).is_none());
    }
}

#[test]
fn a_host_that_dies_idle_is_held_against_the_only_one_in_it() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let (bad, other) = (owned("bad", "f"), owned("other", "f"));
    let alone = together(&[&bad]);
    let evidence = Evidence {
        suspects: &[],
        inhabitants: &alone,
    };
    ledger.death(evidence, now);
    assert!(is_alone(&ledger, &bad, now));
    assert_eq!(ledger.placement(&other, now), Placement::Usual);
    let many = Evidence {
        suspects: &[],
        inhabitants: &Inhabitants::Many,
    };
    assert!(ledger.death(many, now).is_empty());
}

#[test]
fn a_proven_death_is_not_made_up_for_by_answers() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let bad = key("bad");
    die(&mut ledger, &[&bad], now);
    for _ in 0..1000 {
        assert!(!ledger.answered(&bad));
    }
    assert!(is_alone(&ledger, &bad, now + secs(3600)));
    assert!(!is_alone(&ledger, &bad, now + HALF_LIFE));
}

/// Thousands of others do not make a quarantine forgotten.
#[test]
fn a_flood_of_suspects_forgets_the_lightest_first() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let bad = key("bad");
    for _ in 0..3 {
        die(&mut ledger, &[&bad], now);
    }
    for number in 0..30 {
        let many: Vec<_> = (0..500)
            .map(|one| key(&format!("{number} {one}")))
            .collect();
        die_in_company(&mut ledger, &many.iter().collect::<Vec<_>>(), now);
    }
    assert!(quarantine_of(&ledger, &bad, now).is_some());
}
