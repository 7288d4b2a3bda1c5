//! The policies: examples by hand, and properties that hold on any history.

use super::histogram::{Forecast, Histogram, Params};
use super::*;
use proptest::prelude::*;

fn minutes(count: f64) -> f64 {
    count * 60.0
}

/// Twenty idle times of 30 minutes: head 30 min less 10 %, tail 31 min and 10 % more, as section 4.2 of the paper says.
#[test]
fn a_regular_function_is_let_go_and_started_before_its_time() {
    let params = Params::default();
    let mut histogram = Histogram::default();
    for _ in 0..20 {
        histogram.record(minutes(30.5), &params);
    }
    let plan = histogram.plan(&params);
    let [window] = plan.windows() else {
        panic!("{plan:?}")
    };
    assert!(
        (f64::from(window.from) - minutes(27.0)).abs() < 0.1,
        "{window:?}"
    );
    assert!(
        (f64::from(window.to) - minutes(34.1)).abs() < 0.1,
        "{window:?}"
    );
    assert_eq!(plan.keep(), Duration::ZERO);
}

/// A head that rounds to zero means that it is not let go.
#[test]
fn a_function_called_within_a_minute_is_kept_until_its_tail() {
    let params = Params::default();
    let mut histogram = Histogram::default();
    for _ in 0..90 {
        histogram.record(20.0, &params);
    }
    for _ in 0..10 {
        histogram.record(minutes(7.5), &params);
    }
    assert_eq!(histogram.plan(&params), Plan::keep_for(528.0));
}

/// Two bins of 240 with the same count: the coefficient of variation is sqrt(240 * 2 / 4 - 1). All bins: zero.
#[test]
fn the_variation_of_the_bins_by_hand() {
    let params = Params::default();
    let mut histogram = Histogram::default();
    histogram.record(minutes(1.5), &params);
    histogram.record(minutes(2.5), &params);
    assert!((histogram.variation() - 119f64.sqrt()).abs() < 1e-9);
    let mut even = Histogram::default();
    for minute in 0..240 {
        even.record(minutes(f64::from(minute) + 0.5), &params);
    }
    assert_eq!(even.variation(), 0.0);
    // Nothing stands out: the standard keep-alive is the whole range.
    assert_eq!(even.plan(&params), Plan::keep_for(4.0 * 3600.0));
}

/// Most idle times are beyond four hours: warm from 15 % before to 15 % after the forecast.
#[test]
fn a_rare_function_is_forecast() {
    let params = Params::default();
    let mut histogram = Histogram::default();
    for _ in 0..8 {
        histogram.record(minutes(600.0), &params);
    }
    let plan = histogram.plan(&params);
    let [window] = plan.windows() else {
        panic!("{plan:?}")
    };
    assert!(
        (f64::from(window.from) - minutes(510.0)).abs() < 1.0,
        "{window:?}"
    );
    assert!(
        (f64::from(window.to) - minutes(690.0)).abs() < 1.0,
        "{window:?}"
    );
}

#[test]
fn a_forecast_follows_what_alternates() {
    let mut forecast = Forecast::default();
    for turn in 0..20 {
        forecast.record(if turn % 2 == 0 { 20_000.0 } else { 40_000.0 });
    }
    let next = forecast.next();
    assert!((19_000.0..23_000.0).contains(&next), "{next}");
}

#[test]
fn policies_are_read_and_written() {
    for text in [
        "fixed:10m",
        "histogram",
        "histogram:range=60m,tail=95",
        "histogram:range=20m,head=10,tail=90,margin=5,cv=3,standard=15m",
        "adaptive:40m",
        "adaptive:40m,cost=0.5,start=0.02,doubt=0.3,strength=0.4,shape=2,half-life=64",
        "adaptive:no-cost,no-periods,no-prior,no-shape,no-guard,rhythm",
        "greedy-dual",
        "fixed",
    ] {
        assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
    }
    for (text, part) in [
        ("fixed:soon", "duration"),
        ("histogram:tail=101", "tail must be a number from 0 to 100"),
        ("histogram:range=0m", "range must be from 1m to 24h"),
        ("adaptive:kindness=2", "no parameter 'kindness'"),
        ("lru", "fixed:10m, histogram, adaptive"),
    ] {
        let problem = text.parse::<Spec>().unwrap_err().to_string();
        assert!(problem.contains(part), "{problem}");
    }
}

fn lives(spec: &Spec, gaps: &[u64]) -> Vec<Plan> {
    let mut book = Book::new(0);
    let mut history = History::new(spec, Worth::UNKNOWN);
    let mut now = Moment(1_700_000_000_000_000);
    gaps.iter()
        .map(|gap| {
            now = Moment(now.0.saturating_add(*gap));
            if let Some(sample) = history.arrived(now, spec, &book) {
                book.learn(&sample);
                book.publish();
            }
            now = Moment(now.0.saturating_add(10_000));
            history.finished(now);
            history.plan(now, Duration::from_secs(60), spec, &book)
        })
        .collect()
}

/// A timer of 15 minutes: after a few firings nothing is kept, and one instance is started seconds before the next.
#[test]
fn the_adaptive_policy_prepares_for_a_timer() {
    let plans = lives(&"adaptive:20m".parse().unwrap(), &[900_000_000; 12]);
    let last = plans.last().unwrap();
    let window = last.ahead(0.0).expect("one is started ahead");
    assert!(last.keep() < Duration::from_secs(120), "{last:?}");
    assert!(
        window.from > 800.0 && window.from < 900.0 && window.to > 900.0,
        "{window:?}"
    );
    assert!(window.to - window.from < 250.0, "{window:?}");
}

/// What is called every second is kept, whatever the price; what was called once is kept for the fixed time at least.
#[test]
fn the_adaptive_policy_keeps_what_is_busy_and_gives_the_new_a_chance() {
    let plans = lives(&"adaptive:20m".parse().unwrap(), &[1_000_000; 50]);
    assert!(plans[0].keep() >= Duration::from_secs(60), "{:?}", plans[0]);
    let last = plans.last().unwrap();
    assert!(last.covers(1.0) && last.covers(2.0), "{last:?}");
}

/// The dearer a second, the less is kept; the dearer a cold start, the more.
#[test]
fn the_adaptive_policy_weighs_cost_and_size() {
    let spec: Spec = "adaptive:20m,cost=1,no-guard".parse().unwrap();
    let kept = |worth: Worth| {
        let mut book = Book::new(0);
        let mut typical = History::new(&spec, Worth::UNKNOWN);
        let mut history = History::new(&spec, worth);
        let mut now = Moment(0);
        let mut plan = Plan::default();
        // Poisson arrivals would do; any spread of idle times around ten minutes shows it.
        for gap in [300u64, 900, 500, 1500, 600, 400, 1200, 700, 2000, 650].repeat(4) {
            now = now.after(Duration::from_secs(gap));
            for each in [&mut typical, &mut history] {
                if let Some(sample) = each.arrived(now, &spec, &book) {
                    book.learn(&sample);
                    book.publish();
                }
            }
            now = now.after(Duration::from_millis(1));
            typical.finished(now);
            history.finished(now);
            typical.plan(now, Duration::ZERO, &spec, &book);
            plan = history.plan(now, Duration::ZERO, &spec, &book);
        }
        plan.warm_until(3600.0)
    };
    let usual = kept(Worth::UNKNOWN);
    let times = |cold: f32, bytes: f32| {
        let mut worth = Worth::UNKNOWN;
        worth.sandbox.cold *= cold;
        worth.sandbox.bytes *= bytes;
        worth
    };
    let large = kept(times(1.0, 30.0));
    let slow = kept(times(30.0, 1.0));
    assert!(
        large <= usual && usual <= slow && large < slow,
        "{large} <= {usual} <= {slow}"
    );
}

/// 10,000 functions: what is kept of one, whatever it went through.
#[test]
fn a_history_is_small() {
    for spec in ["fixed", "histogram", "adaptive"] {
        let spec: Spec = spec.parse().unwrap();
        let book = Book::new(0);
        let mut history = History::new(&spec, Worth::UNKNOWN);
        let mut now = Moment(0);
        for round in 0..600u64 {
            for _ in 0..=round % 90 {
                now = now.after(Duration::from_millis(round * 977 % 7_000_000));
                history.arrived(now, &spec, &book);
            }
            for _ in 0..=round % 90 {
                now = now.after(Duration::from_millis(3));
                history.finished(now);
                history.plan(now, Duration::from_secs(60), &spec, &book);
            }
        }
        assert_eq!(history.in_flight(), 0);
        assert!(history.bytes() < 4096, "{spec}: {}", history.bytes());
    }
}

fn any_spec() -> impl Strategy<Value = Spec> {
    prop_oneof![
        Just("fixed:10m"),
        Just("histogram"),
        Just("histogram:range=5m,head=25,tail=75"),
        Just("adaptive"),
        Just("adaptive:1ms"),
        Just("adaptive:8000h,no-prior,rhythm"),
        Just("greedy-dual"),
    ]
    .prop_map(|text| text.parse().unwrap())
}

proptest! {
    /// No history makes a policy panic or keep for more than a year; windows are in order and apart; times that jump,
    /// even backwards, are taken.
    #[test]
    fn plans_are_sane_on_any_history(
        spec in any_spec(),
        steps in prop::collection::vec((0u8..4, prop_oneof![0u64..1000, 0u64..10_000_000_000, any::<u64>()], 0u64..u64::MAX), 1..120),
        cold in 0u64..100_000,
        bytes in any::<u64>(),
    ) {
        let mut book = Book::new(0);
        let mut history = History::new(&spec, Worth::of(Duration::from_millis(cold), bytes));
        let mut now = Moment(0);
        for (what, gap, jump) in steps {
            now = if what == 3 { Moment(jump) } else { Moment(now.0.saturating_add(gap)) };
            if what == 0 || history.in_flight() == 0 {
                if let Some(sample) = history.arrived(now, &spec, &book) {
                    book.learn(&sample);
                    book.publish();
                }
            } else {
                history.finished(now);
                let plan = history.plan(now, Duration::from_secs(60), &spec, &book);
                let mut end = -1.0f32;
                for window in plan.windows() {
                    prop_assert!(window.from > end && window.to > window.from && window.to <= LONGEST, "{plan:?}");
                    end = window.to;
                }
                prop_assert!(plan.keep() <= Duration::from_secs(367 * 86_400));
                if history.in_flight() > 0 {
                    prop_assert!(plan.ahead(0.0).is_none());
                }
            }
        }
        let stored = serde_json::to_string(&history).unwrap();
        let back: History = serde_json::from_str(&stored).unwrap();
        prop_assert_eq!(back.in_flight(), history.in_flight());
        prop_assert!(stored.len() < 64 << 10, "{}", stored.len());
    }
}
