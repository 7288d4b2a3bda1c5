//! What is deployed in a plan: a configuration with some of everything that scheduling knows, always a valid one.

use super::plan::{Draws, Plan, What};
use crate::policy::Spec;
use fnctl_core::config::{FunctionConfig, KeepAlivePolicy};
use fnctl_core::scaling::Percent;
use fnctl_core::schedule::ScheduleWindow;
use fnctl_core::{ByteSize, Isolation, Period};
use std::num::NonZeroU32;
use std::time::Duration;

/// When windows open, UTC.
pub(super) const OPENS: Duration = Duration::from_secs(8 * 3600);

/// The policy of functions that do not name one.
pub(super) fn policy(draws: &mut Draws) -> Spec {
    let text = draws.pick(&[
        "fixed",
        "fixed",
        "fixed:2s",
        "histogram:range=8m",
        "histogram:range=20m,head=20,tail=90",
        "adaptive",
        "adaptive:2m",
        "greedy-dual",
    ]);
    text.parse().unwrap()
}

pub(super) fn deploy(draws: &mut Draws, plan: &Plan, function: usize) -> What {
    let mut ms = |of: &[u64]| Period(Duration::from_millis(draws.pick(of)));
    let mut config = FunctionConfig {
        timeout: ms(&[40, 300, 1_000, 1_000, 4_000, 4_000]),
        start_timeout: ms(&[200, 1_000, 3_000]),
        queue_timeout: ms(&[100, 500, 3_000]),
        keep_alive: ms(&[0, 200, 1_000, 10_000]),
        ..FunctionConfig::default()
    };
    let concurrency = draws.among(1, 6) as u32;
    config.concurrency = NonZeroU32::new(concurrency).unwrap();
    config.queue_size = draws.pick(&[0, 1, 4, 20]);
    if draws.percent(25) {
        config.max_instances = NonZeroU32::new(draws.among(1, 4) as u32);
    }
    let most = config.max_instances.map_or(u32::MAX, NonZeroU32::get);
    let most = u64::from(most.min(concurrency));
    if draws.percent(20) {
        config.reserved_concurrency = Some(draws.pick(&[0, 1, 2, 3, 5]));
    }
    if draws.percent(25) {
        config.min_instances = draws.among(1, 2).min(most) as u32;
    }
    if config.reserved_concurrency != Some(0) {
        if draws.percent(25) {
            config.provisioned = draws.among(1, 2).min(most) as u32;
        }
        if draws.percent(25) {
            config.schedule = (0..draws.among(1, 2))
                .map(|_| window(draws, most))
                .collect();
        }
    }
    if draws.percent(40) {
        config.keep_alive_policy = Some(draws.pick(&[
            KeepAlivePolicy::Fixed,
            KeepAlivePolicy::Histogram,
            KeepAlivePolicy::Adaptive,
        ]));
    }
    if draws.percent(15) {
        config.isolation = Isolation::Request;
    }
    if draws.percent(15) {
        config.max_uses = NonZeroU32::new(draws.among(1, 3) as u32);
    }
    if draws.percent(30) && config.isolation == Isolation::Instance {
        config.instance_concurrency = NonZeroU32::new(draws.pick(&[2, 3, 4, 16])).unwrap();
        // So that seats are what is short, not permits.
        config.concurrency = NonZeroU32::new(concurrency + draws.pick(&[0, 6, 12])).unwrap();
    }
    if draws.percent(25) {
        let seconds = |draws: &mut Draws, of: &[u64]| Period::secs(draws.pick(of));
        config.target_concurrency = Some(Percent(draws.pick(&[20, 50, 70, 100])));
        config.stable_window = seconds(draws, &[6, 6, 10, 30]);
        config.panic_window = seconds(draws, &[1, 2, 6]);
        config.panic_threshold = Percent(draws.pick(&[110, 200, 200, 1_000]));
        config.scale_down_delay = seconds(draws, &[0, 0, 2, 20]);
    }
    config.memory = ByteSize::mib(draws.pick(&[2, 4, 16, 128]));
    // The fake worker reads from here what a sandbox of this version takes: units of its room, and linear memory.
    let mut word = |key: &str, of: &[&str]| {
        config.env.insert(key.into(), draws.pick(of).into());
    };
    word("units", &["1", "1", "2", "3"]);
    word("mib", &["0", "1", "1", "3", "7"]);
    word("model", if plan.alike { &["yes"] } else { &["no", "yes"] });
    What::Deploy {
        function,
        config: Box::new(config),
    }
}

fn window(draws: &mut Draws, most: u64) -> ScheduleWindow {
    let ms = |ms: u64| Period(Duration::from_millis(ms));
    let count = draws.among(1, 3).min(most) as u32;
    let is_provisioned = draws.percent(60);
    ScheduleWindow {
        cron: "0 8 * * *".into(),
        time_zone: "UTC".into(),
        duration: ms(draws.pick(&[300, 2_000, 9_000])),
        provisioned: if is_provisioned { count } else { 0 },
        min_instances: if is_provisioned { 0 } else { count },
        ramp_down: ms(draws.pick(&[0, 1_000, 7_000])),
    }
}
