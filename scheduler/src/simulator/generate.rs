//! Seeded traces of the published shape, as counts per minute in the format of the Azure Functions 2019 data set.
//!
//! From "Serverless in the Wild" (Shahrad et al., USENIX ATC 2020), section 3: the share of functions by trigger (figure
//! 2); how often they are called, over eight orders of magnitude, 45 % at most once an hour and 81 % at most once a minute
//! on average (figure 5); half of what is called all day is a constant base, the rest follows day and week (figure 4);
//! the variation of the time between calls (figure 6): timers near 0, except where a function has several; without
//! timers a tenth near 0, some near 1 like Poisson arrivals, most above 1. What the figures do not say (the lengths of
//! bursts, the periods of timers beside their rates) is made up here and named in docs/policies.md. The busiest functions
//! are cut to the number of invocations that was asked for: they are warm under any policy.

use super::random::Random;
use super::trace::Trigger;
use std::fmt::Write;

/// Which functions there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mix {
    /// As in the paper.
    #[default]
    Azure,
    /// Timers only, as the paper has them.
    Timers,
    /// Half timers, half as in the paper.
    Half,
    /// Nothing on a schedule.
    NoTimers,
}

impl Mix {
    /// Every mix.
    pub const ALL: [Self; 4] = [Self::Azure, Self::Half, Self::Timers, Self::NoTimers];

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Azure => "azure",
            Self::Timers => "timers",
            Self::Half => "half-timers",
            Self::NoTimers => "no-timers",
        }
    }
}

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Decides everything.
    pub seed: u64,
    /// Functions.
    pub functions: u32,
    /// Hours.
    pub hours: u32,
    /// About how many invocations at most.
    pub invocations: u64,
    /// Which functions.
    pub mix: Mix,
}

/// Functions by trigger, in percent (figure 2 of the paper).
const SHARES: [(Trigger, f64); 7] = [
    (Trigger::Http, 55.0),
    (Trigger::Queue, 15.2),
    (Trigger::Timer, 15.6),
    (Trigger::Orchestration, 6.9),
    (Trigger::Storage, 2.8),
    (Trigger::Event, 2.2),
    (Trigger::Other, 2.2),
];

/// Calls a day that this part of the functions does not exceed (figure 5a of the paper): straight lines between them, on a
/// logarithmic scale.
const RATES: [(f64, f64); 6] = [
    (0.0, 0.3),
    (0.20, 3.0),
    (0.45, 24.0),
    (0.81, 1440.0),
    (0.96, 86_400.0),
    (1.0, 100_000_000.0),
];

/// Periods of timers in minutes, and how usual they are: what people write into schedules.
const PERIODS: [(u32, f64); 14] = [
    (1, 12.0),
    (2, 4.0),
    (5, 20.0),
    (10, 9.0),
    (15, 11.0),
    (20, 2.0),
    (30, 9.0),
    (60, 14.0),
    (120, 3.0),
    (180, 2.0),
    (240, 2.0),
    (360, 3.0),
    (720, 3.0),
    (1440, 6.0),
];

impl Recipe {
    /// Minutes of the trace.
    pub fn minutes(&self) -> u32 {
        self.hours.saturating_mul(60)
    }

    /// The lines of the trace, the heading first. Each has its line end.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let minutes = self.minutes();
        let cap = self.cap();
        let mut heading = "HashOwner,HashApp,HashFunction,Trigger".to_owned();
        for minute in 1..=minutes {
            // Writing to a string does not fail.
            let _ = write!(heading, ",{minute}");
        }
        heading.push('\n');
        let recipe = *self;
        std::iter::once(heading).chain((0..self.functions).map(move |function| {
            let (trigger, counts) = recipe.function(function, cap);
            let mut line = format!(
                "o{:04},a{function:05},f{function:05},{}",
                function / 3,
                trigger.as_str()
            );
            for count in counts {
                let _ = write!(line, ",{count}");
            }
            line.push('\n');
            line
        }))
    }

    fn trigger(&self, random: &mut Random) -> Trigger {
        let weights: Vec<f64> = SHARES
            .iter()
            .map(|(trigger, share)| match (self.mix, trigger) {
                (Mix::Timers, Trigger::Timer) => 1.0,
                (Mix::Timers, _) => 0.0,
                (Mix::NoTimers, Trigger::Timer) => 0.0,
                // As many timers as of all others together.
                (Mix::Half, Trigger::Timer) => 84.4,
                _ => *share,
            })
            .collect();
        SHARES
            .get(random.choose(&weights))
            .map_or(Trigger::Http, |(trigger, _)| *trigger)
    }

    fn stream(&self, function: u32) -> Random {
        Random::of(
            self.seed.wrapping_mul(0x2545_F491_4F6C_DD1D),
            u64::from(function) + 1,
        )
    }

    /// Calls a day of a function without a schedule.
    fn rate(random: &mut Random) -> f64 {
        let part = random.unit();
        for ends in RATES.windows(2) {
            if let [(from, low), (to, high)] = ends
                && part <= *to
            {
                return low * (high / low).powf((part - from) / (to - from));
            }
        }
        1.0
    }

    /// The most calls a day of a function, so that all together stay within what was asked for.
    fn cap(&self) -> f64 {
        let days = f64::from(self.hours) / 24.0;
        let rates: Vec<f64> = (0..self.functions)
            .map(|function| {
                let mut random = self.stream(function);
                match self.trigger(&mut random) {
                    Trigger::Timer => 0.0,
                    _ => Self::rate(&mut random),
                }
            })
            .collect();
        let (mut low, mut high) = (1.0f64, 86_400.0 * 1000.0);
        for _ in 0..60 {
            let cap = (low * high).sqrt();
            let sum: f64 = rates.iter().map(|rate| rate.min(cap) * days).sum();
            if sum > self.invocations as f64 {
                high = cap;
            } else {
                low = cap;
            }
        }
        low
    }

    /// One function: its trigger and its calls in each minute.
    fn function(&self, function: u32, cap: f64) -> (Trigger, Vec<u32>) {
        let mut random = self.stream(function);
        let trigger = self.trigger(&mut random);
        let mut counts = vec![0u32; self.minutes() as usize];
        if trigger == Trigger::Timer {
            timers(&mut random, &mut counts);
        } else {
            let rate = Self::rate(&mut random).min(cap);
            let rhythm = Rhythm::of(&mut random, trigger);
            match random.choose(&[10.0, 25.0, 65.0]) {
                0 => sensor(&mut random, rate, &mut counts),
                1 => poisson(&mut random, rate, &rhythm, &mut counts),
                _ => bursts(&mut random, rate, &rhythm, &mut counts),
            }
        }
        (trigger, counts)
    }
}

/// Counts a call at a minute, if the trace lasts that long.
fn call(counts: &mut [u32], minute: f64) {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a saturating conversion is meant"
    )]
    let at = minute.max(0.0) as usize;
    if let Some(count) = counts.get_mut(at) {
        *count = count.saturating_add(1);
    }
}

/// One schedule for half the functions, two or three for others, and some whose jobs are late or left out at times.
fn timers(random: &mut Random, counts: &mut [u32]) {
    let kind = random.choose(&[50.0, 30.0, 20.0]);
    let schedules = match kind {
        1 => 2 + random.choose(&[2.0, 1.0]),
        _ => 1,
    };
    for _ in 0..schedules {
        let weights: Vec<f64> = PERIODS.iter().map(|(_, weight)| *weight).collect();
        let period = PERIODS
            .get(random.choose(&weights))
            .map_or(60, |(period, _)| *period);
        let mut at = (random.unit() * f64::from(period)).floor();
        while at < counts.len() as f64 {
            let irregular = kind == 2;
            if !(irregular && random.unit() < 0.1) {
                let late = if irregular {
                    (random.unit() * 0.03 * f64::from(period)).floor()
                } else {
                    0.0
                };
                call(counts, at + late);
            }
            at += f64::from(period);
        }
    }
}

/// A device that reports at nearly equal distances.
fn sensor(random: &mut Random, rate: f64, counts: &mut [u32]) {
    let period = 1440.0 / rate;
    let mut at = random.unit() * period;
    while at < counts.len() as f64 {
        call(counts, at);
        at += period * (1.0 + 0.02 * random.normal()).clamp(0.5, 1.5);
    }
}

/// Day and week of a function.
struct Rhythm {
    depth: f64,
    peak: f64,
    weekend: f64,
}

impl Rhythm {
    fn of(random: &mut Random, trigger: Trigger) -> Self {
        let human = match trigger {
            Trigger::Http => 0.75,
            Trigger::Queue | Trigger::Storage | Trigger::Other => 0.5,
            _ => 0.25,
        };
        if random.unit() < human {
            Self {
                depth: 0.3 + 0.65 * random.unit(),
                peak: 11.0 + 5.0 * random.unit(),
                weekend: 0.3 + 0.6 * random.unit(),
            }
        } else {
            Self {
                depth: 0.0,
                peak: 0.0,
                weekend: 1.0,
            }
        }
    }

    /// How much of its highest rate a function has at a minute.
    fn at(&self, minute: f64) -> f64 {
        let hour = minute / 60.0 % 24.0;
        let day = (minute / 1440.0).floor() % 7.0;
        let wave = (std::f64::consts::TAU * (hour - self.peak) / 24.0).cos();
        let week = if day >= 5.0 { self.weekend } else { 1.0 };
        (1.0 - self.depth * (1.0 - wave) / 2.0) * week
    }

    /// The mean of it over a week.
    fn mean(&self) -> f64 {
        (1.0 - self.depth / 2.0) * (5.0 + 2.0 * self.weekend) / 7.0
    }
}

/// Independent calls, thinned by the rhythm.
fn poisson(random: &mut Random, rate: f64, rhythm: &Rhythm, counts: &mut [u32]) {
    let mean = 1440.0 / rate * rhythm.mean();
    let mut at = random.exponential(mean);
    while at < counts.len() as f64 {
        if random.unit() < rhythm.at(at) {
            call(counts, at);
        }
        at += random.exponential(mean);
    }
}

/// Sessions that come like Poisson arrivals, each with several calls some seconds to minutes apart.
fn bursts(random: &mut Random, rate: f64, rhythm: &Rhythm, counts: &mut [u32]) {
    let length = random.log_uniform(2.0, 40.0);
    let pause = random.log_uniform(0.05, 8.0);
    let mean = 1440.0 * length / rate * rhythm.mean();
    let mut session = random.exponential(mean);
    while session < counts.len() as f64 {
        if random.unit() < rhythm.at(session) {
            let mut at = session;
            loop {
                call(counts, at);
                if random.unit() < 1.0 / length {
                    break;
                }
                at += pause * (0.8 * random.normal()).exp();
            }
        }
        session += random.exponential(mean);
    }
}
