//! The simulator: hand-computed replays, both formats, line errors, determinism, pressure.

use super::generate::{Mix, Recipe};
use super::trace::Trace;
use super::{Outcome, Settings, Spread, simulate};
use std::time::Duration;

fn trace(text: &str) -> Trace {
    let mut trace = Trace::new(1);
    trace.read(text.as_bytes()).unwrap();
    trace
}

/// One second to start, 1 GiB, so that idle GiB-hours are idle hours.
fn plain(policy: &str) -> Settings {
    Settings {
        policy: policy.parse().unwrap(),
        cold: Spread { from: 1.0, to: 1.0 },
        bytes: Spread {
            from: f64::from(1 << 30),
            to: f64::from(1 << 30),
        },
        ..Settings::default()
    }
}

fn idle_seconds(outcome: &Outcome) -> f64 {
    outcome.all.idle_gb_hours() * 3600.0
}

/// Calls at 0, 30 and 200 s of 2 s each, kept for 60 s: cold (ready at 1 s, idle from 3), warm after 27 s (idle from 32,
/// goes at 92), cold again at 200, idle from 203 on. The trace ends with its last call.
#[test]
fn a_replay_by_hand() {
    let text = "timestamp,function,duration\n0,f,2\n30,f,2\n200,f,2\n";
    let outcome = simulate(&trace(text), &plain("fixed:60s"));
    assert_eq!((outcome.all.invocations, outcome.all.cold_starts), (3, 2));
    assert!(
        (idle_seconds(&outcome) - (27.0 + 60.0)).abs() < 1e-6,
        "{}",
        idle_seconds(&outcome)
    );
    assert!((outcome.all.added_seconds - 2.0).abs() < 1e-6);
    assert_eq!(outcome.all.expired, 1);
}

/// Two calls at once need two instances; the one that the stack hands out last goes first.
#[test]
fn callers_at_once_have_an_instance_each() {
    let text = "timestamp,function,duration\n0,f,10\n1,f,10\n15,f,1\n";
    let outcome = simulate(&trace(text), &plain("fixed:60s"));
    assert_eq!(outcome.all.cold_starts, 2);
}

#[test]
fn a_timer_is_met_by_a_start_ahead() {
    let mut text = "timestamp,function,duration\n".to_owned();
    for firing in 0..60 {
        text.push_str(&format!("{},f,1\n", 1000 + firing * 1200));
    }
    let trace = trace(&text);
    let fixed = simulate(&trace, &plain("fixed:10m"));
    assert_eq!(fixed.all.cold_starts, 60);
    for policy in ["histogram", "adaptive"] {
        let outcome = simulate(&trace, &plain(policy));
        assert!(outcome.all.cold_starts < 8, "{policy}: {:?}", outcome.all);
        assert!(
            outcome.all.prewarmed_starts > 45,
            "{policy}: {:?}",
            outcome.all
        );
    }
    let adaptive = simulate(&trace, &plain("adaptive:20m"));
    assert!(idle_seconds(&adaptive) < idle_seconds(&fixed) / 1.5);
}

#[test]
fn a_full_node_lets_the_least_worthy_go() {
    // Two functions that are called in turn, and room for one instance.
    let mut text = "timestamp,function,duration\n".to_owned();
    for turn in 0..20 {
        text.push_str(&format!(
            "{},{},0.1\n",
            turn * 10,
            if turn % 2 == 0 { "a" } else { "b" }
        ));
    }
    let settings = Settings {
        node_bytes: Some(1 << 30),
        ..plain("greedy-dual")
    };
    let outcome = simulate(&trace(&text), &settings);
    assert_eq!((outcome.all.cold_starts, outcome.all.evictions), (20, 19));
    assert_eq!(outcome.peak_bytes, 1 << 30);
    // No room at all: everybody is refused, and nobody waits for ever.
    let none = Settings {
        node_bytes: Some(1 << 20),
        ..settings
    };
    let outcome = simulate(&trace(&text), &none);
    assert_eq!((outcome.all.refused, outcome.all.cold_starts), (20, 0));
}

#[test]
fn the_same_seed_gives_the_same_trace_and_the_same_result() {
    let recipe = Recipe {
        seed: 7,
        functions: 60,
        hours: 12,
        invocations: 20_000,
        mix: Mix::Azure,
    };
    let text: String = recipe.lines().collect();
    assert_eq!(text, recipe.lines().collect::<String>());
    let other: String = Recipe { seed: 8, ..recipe }.lines().collect();
    assert_ne!(text, other);
    for policy in ["fixed:10m", "histogram", "adaptive", "greedy-dual"] {
        let first = simulate(&trace(&text), &plain(policy));
        let second = simulate(&trace(&text), &plain(policy));
        assert_eq!(first, second, "{policy}");
        assert!(first.all.invocations > 100 && first.all.cold_starts > 0);
    }
}

/// The generated functions follow the published shares: figures 2 and 5 of the paper.
#[test]
fn generated_traces_have_the_published_shape() {
    let recipe = Recipe {
        seed: 3,
        functions: 2000,
        hours: 24,
        invocations: 2_000_000,
        mix: Mix::Azure,
    };
    let text: String = recipe.lines().collect();
    let trace = trace(&text);
    let of = |wanted: &str| {
        trace
            .functions()
            .iter()
            .filter(|function| function.trigger.as_str() == wanted)
            .count() as f64
            / 2000.0
    };
    assert!((of("http") - 0.55).abs() < 0.04, "{}", of("http"));
    assert!((of("timer") - 0.156).abs() < 0.03, "{}", of("timer"));
    let others: Vec<u64> = trace
        .functions()
        .iter()
        .filter(|function| function.trigger.as_str() != "timer")
        .map(|function| function.calls)
        .collect();
    let part = |most: u64| {
        others.iter().filter(|calls| **calls <= most).count() as f64 / others.len() as f64
    };
    assert!((part(24) - 0.45).abs() < 0.08, "{}", part(24));
    assert!((part(1440) - 0.81).abs() < 0.08, "{}", part(1440));
}

#[test]
fn counts_of_several_days_follow_each_other() {
    let day = |count: u32| {
        format!(
            "HashOwner,HashApp,HashFunction,Trigger,1,2,3\no,a,f,timer,{count},0,1\no,a,g,http,0,0,0\n"
        )
    };
    let mut trace = Trace::new(1);
    trace.read(day(2).as_bytes()).unwrap();
    trace.read(day(0).as_bytes()).unwrap();
    assert_eq!((trace.functions().len(), trace.invocations()), (2, 4));
    assert_eq!(trace.seconds(), 360.0);
    let minutes: Vec<u64> = trace.calls().map(|call| call.at.0 / 60_000_000).collect();
    assert_eq!(minutes, [0, 0, 2, 5]);
}

/// Day files as they are published: their exact heading, hashes for names, every trigger, functions that are not in every
/// file.
#[test]
fn day_files_of_the_public_data_set_are_read() {
    let mut heading = "HashOwner,HashApp,HashFunction,Trigger".to_owned();
    for minute in 1..=1440 {
        heading.push_str(&format!(",{minute}"));
    }
    let line = |function: u32, trigger: &str, at: usize, count: u32| {
        let counts: Vec<String> = (1..=1440)
            .map(|minute| if minute == at { count } else { 0 }.to_string())
            .collect();
        format!(
            "{:064x},{:064x},{function:064x},{trigger},{}\r\n",
            1,
            2,
            counts.join(",")
        )
    };
    let words = [
        "http",
        "timer",
        "queue",
        "event",
        "storage",
        "orchestration",
        "others",
    ];
    let mut trace = Trace::new(1);
    for day in 0..3 {
        let mut text = format!("{heading}\r\n");
        for (function, word) in (0u32..).zip(words) {
            // The last one is called on the third day only, and not listed before.
            if day == 2 || word != "others" {
                text.push_str(&line(function, word, 1440, 2));
            }
        }
        trace.read(text.as_bytes()).unwrap();
    }
    assert_eq!((trace.functions().len(), trace.invocations()), (7, 38));
    assert_eq!(trace.seconds(), 3.0 * 86_400.0);
    let read: Vec<_> = trace
        .functions()
        .iter()
        .map(|function| function.trigger.as_str())
        .collect();
    assert_eq!(read, words);
    let mut minutes: Vec<u64> = trace.calls().map(|call| call.at.0 / 60_000_000).collect();
    minutes.dedup();
    assert_eq!(minutes, [1439, 2879, 4319]);
}

#[test]
fn a_bad_line_is_named() {
    let head = "HashOwner,HashApp,HashFunction,Trigger,1,2\n";
    for (text, line, problem) in [
        (String::new(), 1, "empty"),
        ("a,b\n".to_owned(), 1, "the first line must be"),
        (format!("{head}o,a,f,http,1\n"), 2, "1 counts instead of 2"),
        (format!("{head}o,a,f,http,1,2,3\n"), 2, "more than 2 counts"),
        (
            format!("{head}o,a,f,http,1,2\no,a,f,http,1,x\n"),
            3,
            "'x' is no count",
        ),
        (format!("{head}o,a,f,http,1,-2\n"), 2, "no count"),
        (format!("{head}o,a\n"), 2, "are missing"),
        (
            "timestamp,function,duration\n5,f,1\n4,f,1\n".to_owned(),
            3,
            "sort the file",
        ),
        (
            "timestamp,function,duration\nnan,f,1\n".to_owned(),
            2,
            "no timestamp",
        ),
        (
            "timestamp,function,duration\n1,f,-1\n".to_owned(),
            2,
            "no duration",
        ),
        (
            "timestamp,function,duration\n1,f\n".to_owned(),
            2,
            "it is not timestamp",
        ),
    ] {
        let error = Trace::new(1).read(text.as_bytes()).unwrap_err();
        assert_eq!(error.line, line, "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
    let endless = vec![b'x'; 3 << 20];
    assert!(Trace::new(1).read(endless.as_slice()).is_err());
}

/// The exported form, with its fourth column; hours of the day stay what they are.
#[test]
fn an_exported_trace_is_read() {
    let text = "timestamp,function,duration,start\n1700000000.5,echo,0.002,cold\n1700000001.0,echo,0.001,warm\n";
    let trace = trace(text);
    let first = trace.calls().next().unwrap();
    assert_eq!(first.micros, Some(2000));
    assert_eq!(first.at.0 / 1_000_000, 1_700_000_000 % 86_400);
    let outcome = simulate(
        &trace,
        &Settings {
            keep_alive: Duration::from_secs(60),
            ..Settings::default()
        },
    );
    assert_eq!(outcome.all.invocations, 2);
}
