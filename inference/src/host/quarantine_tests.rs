//! The ledger of deaths: who is put alone, who is quarantined, and how long anything is remembered.

use super::fading::HALF_LIFE;
use super::quarantine::{Evidence, Inhabitants, Ledger, Limits, Placement, Suspect};
use crate::sessions::SessionKey;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::{Digest, FunctionName};
use std::time::Duration;
use tokio::time::Instant;

/// A declared model. Where nothing else is said, one function has it: [`user`].
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

fn function(name: &str) -> FunctionName {
    name.parse().unwrap()
}

fn user(key: &SessionKey) -> FunctionName {
    let named_after_it = || function(&format!("f-{}", &key.digest.to_string()[..12]));
    key.owner.clone().unwrap_or_else(named_after_it)
}

fn model(key: &SessionKey) -> Suspect {
    Suspect::computing(key, &user(key))
}

fn placement(ledger: &Ledger, key: &SessionKey, now: Instant) -> Placement {
    ledger.placement(key, &user(key), now)
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
        inhabitants.loads(key, &user(key));
        inhabitants.computes(&user(key));
    }
    inhabitants
}

fn die_among(
    ledger: &mut Ledger,
    suspects: &[Suspect],
    inhabitants: &Inhabitants,
    now: Instant,
) -> Vec<Suspect> {
    let evidence = Evidence {
        suspects,
        inhabitants,
    };
    ledger.death(evidence, now)
}

/// A death of a host in which nobody but these ever was, all of them busy.
fn die(ledger: &mut Ledger, keys: &[&SessionKey], now: Instant) -> Vec<Suspect> {
    let suspects: Vec<_> = keys.iter().map(|key| model(key)).collect();
    die_among(ledger, &suspects, &together(keys), now)
}

/// A death of the shared host.
fn die_in_company(ledger: &mut Ledger, keys: &[&SessionKey], now: Instant) -> Vec<Suspect> {
    let suspects: Vec<_> = keys.iter().map(|key| model(key)).collect();
    die_among(ledger, &suspects, &Inhabitants::many(), now)
}

fn is_alone(ledger: &Ledger, key: &SessionKey, now: Instant) -> bool {
    matches!(placement(ledger, key, now), Placement::Alone { .. })
}

fn quarantine_of(ledger: &Ledger, key: &SessionKey, now: Instant) -> Option<(Suspect, u64)> {
    match placement(ledger, key, now) {
        Placement::Quarantined { who, until, .. } => {
            Some((who, until.duration_since(now).as_secs()))
        }
        _ => None,
    }
}

/// Two functions declare one model, and one of them knows an input that kills.
#[test]
fn what_a_function_does_with_a_shared_model_is_held_against_nobody_else() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let shared = key("shared");
    let (bad, good) = (function("bad"), function("good"));
    let hands = |who: &FunctionName| Suspect::Model(shared.digest, who.clone());
    let place = |ledger: &Ledger, who| ledger.placement(&shared, who, now);
    // In company both are put apart, each by itself.
    let both = {
        let mut both = Inhabitants::default();
        both.loads(&shared, &good);
        both.computes(&good);
        both.computes(&bad);
        both
    };
    die_among(&mut ledger, &[hands(&bad), hands(&good)], &both, now);
    for who in [&bad, &good] {
        let Placement::Alone { who: suspect, .. } = place(&ledger, who) else {
            panic!("{who} is suspected")
        };
        assert_eq!(suspect, hands(who));
    }
    // Wherever the other one's load has been, the one that computed did it.
    let mut alone = Inhabitants::default();
    alone.loads(&shared, &good);
    alone.computes(&bad);
    for _ in 0..3 {
        die_among(&mut ledger, &[hands(&bad)], &alone, now);
    }
    assert!(matches!(
        place(&ledger, &bad),
        Placement::Quarantined { who, deaths: 3, .. } if who == hands(&bad)
    ));
    // The death they were in together is explained.
    assert_eq!(place(&ledger, &good), Placement::Usual);
    assert_eq!(ledger.quarantined(now).count(), 1);
}

#[test]
fn a_load_is_held_against_the_bytes_unless_somebody_computed_there() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let shared = key("shared");
    let (bad, good) = (function("bad"), function("good"));
    let loading = Suspect::Loading(shared.digest);
    // After a compute of somebody's the host's memory may be anything.
    let mut spoilt = Inhabitants::default();
    spoilt.loads(&shared, &good);
    spoilt.computes(&bad);
    for _ in 0..3 {
        die_among(&mut ledger, std::slice::from_ref(&loading), &spoilt, now);
    }
    assert_eq!(ledger.placement(&shared, &good, now), Placement::Usual);
    assert!(matches!(
        ledger.placement(&shared, &bad, now),
        Placement::Quarantined { .. }
    ));
    // Nobody computed: whoever has these bytes would see the same.
    let mut bare = Inhabitants::default();
    bare.loads(&shared, &good);
    for death in 1..=3 {
        let convicted = die_among(&mut ledger, std::slice::from_ref(&loading), &bare, now);
        assert_eq!(convicted.is_empty(), death < 3);
    }
    for who in [&good, &function("other")] {
        assert!(matches!(
            ledger.placement(&shared, who, now),
            Placement::Quarantined { who, .. } if who == loading
        ));
    }
    // Its function has others, which load.
    assert_eq!(
        ledger.placement(&key("another"), &good, now),
        Placement::Usual
    );
    // A function with a host of its own has that session for itself.
    let own = SessionKey {
        isolation: InferenceIsolation::Dedicated,
        ..owned("shared", "good")
    };
    assert_eq!(ledger.placement(&own, &good, now), Placement::Usual);
}

/// Declared models are uploaded under any digest: a function that kills with one after another is known by itself.
#[test]
fn a_function_that_kills_with_one_declared_model_after_another_is_quarantined() {
    let (mut ledger, start) = (ledger(), Instant::now());
    let (hostile, mut now) = (function("hostile"), start);
    let mut in_company = 0;
    for number in 0.. {
        assert!(number < 20, "never quarantined");
        now += secs(61);
        let model = key(&number.to_string());
        let who = [Suspect::computing(&model, &hostile)];
        match ledger.placement(&model, &hostile, now) {
            Placement::Usual => {
                die_among(&mut ledger, &who, &Inhabitants::many(), now);
                in_company += 1;
            }
            Placement::Alone { .. } => {
                let mut there = Inhabitants::default();
                there.loads(&key("earlier"), &hostile);
                there.loads(&model, &hostile);
                there.computes(&hostile);
                die_among(&mut ledger, &who, &there, now);
            }
            Placement::Quarantined { who, .. } => {
                assert_eq!(who, Suspect::Function(hostile));
                break;
            }
        }
    }
    assert_eq!(in_company, 3, "deaths that others noticed");
    let innocent = key("innocent");
    assert_eq!(placement(&ledger, &innocent, now), Placement::Usual);
}

#[test]
fn three_proven_deaths_are_quarantine_and_it_ends_and_comes_back_longer() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let bad = key("bad");
    let who = model(&bad);
    assert_eq!(placement(&ledger, &bad, now), Placement::Usual);
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
    ledger.forgive(|who| who.function() == Some(&user(&bad)));
    // A deploy lifts that, and makes nothing undone: alone, and the next death is one too many again.
    for round in 0..3 {
        let now = after + secs(62 + round);
        assert!(is_alone(&ledger, &bad, now), "one more chance, alone");
        assert_eq!(die(&mut ledger, &[&bad], now).len(), 1);
        assert!(quarantine_of(&ledger, &bad, now).is_some());
        ledger.forgive(|who| who.function() == Some(&user(&bad)));
    }
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
        if placement(&ledger, &bad, now) == Placement::Usual {
            die_in_company(&mut ledger, &[&bad, &key(&deaths.to_string())], now);
            deaths += 1;
        }
        for _ in 0..1000 {
            ledger.answered(&model(&bad));
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
        placement(&ledger, &good, now),
        Placement::Alone {
            may_return: true,
            ..
        }
    ));
    for _ in 1..50 {
        assert!(!ledger.answered(&model(&good)));
    }
    assert!(ledger.answered(&model(&good)));
    assert_eq!(placement(&ledger, &good, now), Placement::Usual);
    assert_eq!(placement(&ledger, &bad, now + secs(60)), Placement::Usual);
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
    assert_eq!(placement(&ledger, &good, now), Placement::Usual);
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
        match placement(&ledger, &model, now) {
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
        placement(&ledger, &innocent, now + secs(600)),
        Placement::Usual
    );
    // A deploy of the function lifts it.
    ledger.forgive(|who| *who == function);
    assert!(is_alone(&ledger, &owned("new", "hostile"), now));
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
    assert_eq!(placement(&ledger, &other, now), Placement::Usual);
    let many = Evidence {
        suspects: &[],
        inhabitants: &Inhabitants::many(),
    };
    assert!(ledger.death(many, now).is_empty());
}

#[test]
fn a_proven_death_is_not_made_up_for_by_answers() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let bad = key("bad");
    die(&mut ledger, &[&bad], now);
    for _ in 0..1000 {
        assert!(!ledger.answered(&model(&bad)));
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

/// Deaths that the killer was not in count as before; those that it was in, as if they had never been.
#[test]
fn a_stay_alone_is_as_long_as_the_deaths_that_are_left_explain() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let (bad, unlucky) = (key("bad"), key("unlucky"));
    for _ in 0..5 {
        die_in_company(&mut ledger, &[&bad, &unlucky], now);
    }
    die_in_company(&mut ledger, &[&unlucky, &key("other")], now);
    assert!(is_alone(&ledger, &unlucky, now + secs(1900)));
    for _ in 0..3 {
        die(&mut ledger, &[&bad], now);
    }
    assert!(is_alone(&ledger, &unlucky, now + secs(59)), "one is left");
    assert_eq!(
        placement(&ledger, &unlucky, now + secs(60)),
        Placement::Usual
    );
}
