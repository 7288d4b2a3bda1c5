//! Callers that do not wait for each other: each call has its time, whatever became of the ones before.

use super::scenario::Scenario;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Calls at one time, at most; more than any scenario has in flight.
const CALLERS: usize = 160;

/// How a call ended.
pub(crate) struct Answer {
    /// When it was made, in seconds since the scenario began.
    pub(crate) at: f64,
    /// Seconds until it was answered.
    pub(crate) took: f64,
    pub(crate) kind: Kind,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Warm,
    Prewarmed,
    Cold,
    /// 429 or 503: no place was free in time.
    Refused,
    Failed,
}

/// The threads that call.
pub(crate) struct Callers {
    threads: Vec<JoinHandle<()>>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

impl Callers {
    pub(crate) fn start(url: &str, scenario: &Scenario, began: Instant) -> Self {
        let calls = Arc::new(scenario.calls());
        let next = Arc::new(AtomicUsize::new(0));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let threads = (0..CALLERS.min(calls.len()))
            .map(|_| {
                let (calls, next, answers) = (calls.clone(), next.clone(), answers.clone());
                let url = url.to_owned();
                std::thread::spawn(move || {
                    let agent: ureq::Agent = ureq::Agent::config_builder()
                        .timeout_global(Some(Duration::from_secs(10)))
                        .http_status_as_error(false)
                        .build()
                        .into();
                    while let Some((at, takes)) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let due = began + Duration::from_secs_f64(*at);
                        while let Some(left) = due.checked_duration_since(Instant::now()) {
                            std::thread::park_timeout(left);
                        }
                        let answer = call(&agent, &format!("{url}/sleep?{takes}"), began);
                        if let Ok(mut answers) = answers.lock() {
                            answers.push(answer);
                        }
                    }
                })
            })
            .collect();
        Self { threads, answers }
    }

    /// Waits for the last answer; calls have a time limit.
    pub(crate) fn join(self) -> Vec<Answer> {
        for thread in self.threads {
            let _ = thread.join();
        }
        let mut answers = match Arc::try_unwrap(self.answers) {
            Ok(answers) => answers.into_inner().unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        answers.sort_by(|a, b| a.at.total_cmp(&b.at));
        answers
    }
}

fn call(agent: &ureq::Agent, url: &str, began: Instant) -> Answer {
    let made = Instant::now();
    let answer = agent.get(url).call();
    let kind = match answer {
        Ok(mut answer) => {
            let start = answer.headers().get("x-fnctl-start").cloned();
            let status = answer.status().as_u16();
            // Read, so that the connection is kept.
            let _ = answer.body_mut().read_to_vec();
            match (status, start.as_ref().and_then(|start| start.to_str().ok())) {
                (200, Some("cold")) => Kind::Cold,
                (200, Some("prewarmed")) => Kind::Prewarmed,
                (200, _) => Kind::Warm,
                (429 | 503, _) => Kind::Refused,
                _ => Kind::Failed,
            }
        }
        Err(_) => Kind::Failed,
    };
    Answer {
        at: made.duration_since(began).as_secs_f64(),
        took: made.elapsed().as_secs_f64(),
        kind,
    }
}
