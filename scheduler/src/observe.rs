//! What the scheduler tells of an invocation besides its metrics: lines of the function's log, and spans.

use fnctl_core::invocation::{ColdStart, Phase};
use fnctl_core::log::{InvocationReport, LogLevel, LogLine, LogSource, now_ms};
use fnctl_core::trace::{Step, Trace};
use fnctl_core::version::VersionKey;
use fnctl_core::{Failure, Fault, RequestId, RunEnd, RunReport};
use std::time::Duration;
use tokio::time::Instant;

/// A line of the platform's in a function's log.
pub(crate) fn line(
    key: &VersionKey,
    request_id: Option<&RequestId>,
    level: LogLevel,
    text: String,
) -> LogLine {
    LogLine {
        time_ms: now_ms(),
        level,
        source: LogSource::Platform,
        function: key.function.clone(),
        version: key.number,
        request_id: request_id.cloned(),
        context: String::new(),
        text,
        report: None,
    }
}

/// The line of a failure: what the caller was told, and the cause that only the log tells.
pub(crate) fn failure_line(
    key: &VersionKey,
    request_id: Option<&RequestId>,
    failure: &Failure,
) -> LogLine {
    let level = match failure.kind.fault() {
        Fault::Guest => LogLevel::Error,
        Fault::Platform if !failure.kind.retryable() => LogLevel::Error,
        Fault::Platform | Fault::Caller => LogLevel::Warn,
    };
    let cause = failure
        .cause
        .as_ref()
        .map_or_else(String::new, |cause| format!("; cause: {cause}"));
    let text = format!("{}: {}{cause}", failure.kind.code(), failure.message);
    line(key, request_id, level, text)
}

/// The line of a cold start: which phase took how long.
pub(crate) fn cold_start_line(
    key: &VersionKey,
    request_id: &RequestId,
    phases: &ColdStart,
) -> LogLine {
    let parts: Vec<_> = Phase::ALL
        .iter()
        .filter(|phase| !phases.get(**phase).is_zero())
        .map(|phase| format!("{} {:.3} ms", phase.as_str(), millis(phases.get(*phase))))
        .collect();
    let text = format!("cold start: {}", parts.join(", "));
    line(key, Some(request_id), LogLevel::Info, text)
}

/// The line that reports what one invocation took.
pub(crate) fn report_line(
    key: &VersionKey,
    request_id: &RequestId,
    took: Duration,
    report: &RunReport,
) -> LogLine {
    let outcome = match &report.end {
        RunEnd::Failed(failure) | RunEnd::Unseen(failure) => failure.kind.code(),
        RunEnd::Completed | RunEnd::Unbegun(_) => "ok",
    };
    let numbers = InvocationReport {
        run_ms: millis(took),
        cpu_ms: report.cpu.map(millis),
        inference_ms: millis(report.inference),
        computes: report.computes,
        memory_bytes: report.memory,
        outcome: outcome.to_owned(),
    };
    let text = format!(
        "report: {outcome}, run {:.3} ms, inference {:.3} ms in {} compute call(s), memory {} bytes",
        numbers.run_ms, numbers.inference_ms, numbers.computes, numbers.memory_bytes
    );
    LogLine {
        report: Some(numbers),
        ..line(key, Some(request_id), LogLevel::Info, text)
    }
}

/// Records the phases of a start as spans.
pub(crate) fn record_phases(trace: &Trace, began: Instant, phases: &ColdStart) {
    if !trace.is_sampled() {
        return;
    }
    for (phase, from, to) in timeline(began, phases) {
        trace.record(phase.as_str(), from, to);
    }
}

/// When each phase of a start ran, if it did. Models load while the code is read and compiled; the sandbox waits for both.
fn timeline(began: Instant, phases: &ColdStart) -> Vec<(Phase, Instant, Instant)> {
    let compile = began + phases.artifact;
    let instantiate = (compile + phases.compile).max(began + phases.model);
    let init = instantiate + phases.instantiate;
    [
        (Phase::Artifact, began),
        (Phase::Compile, compile),
        (Phase::Model, began),
        (Phase::Instantiate, instantiate),
        (Phase::Init, init),
    ]
    .into_iter()
    .filter(|(phase, _)| !phases.get(*phase).is_zero())
    .map(|(phase, from)| (phase, from, from + phases.get(phase)))
    .collect()
}

/// Ends a step of an invocation, which failed if there is a failure.
pub(crate) fn note_outcome(step: Step, failure: Option<&Failure>) {
    if let Some(failure) = failure {
        step.fail(|| failure.kind.code().to_owned());
    }
}

/// Puts what a run took on its span, and ends it.
pub(crate) fn note_run(step: Step, report: &RunReport) {
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    step.set("fnctl.memory.bytes", || {
        i64::try_from(report.memory).unwrap_or(i64::MAX)
    });
    step.set("fnctl.inference.us", || micros(report.inference));
    step.set("fnctl.computes", || i64::from(report.computes));
    if let Some(cpu) = report.cpu {
        step.set("fnctl.cpu.us", || micros(cpu));
    }
    if let RunEnd::Failed(failure) | RunEnd::Unseen(failure) = &report.end {
        step.fail(|| failure.kind.code().to_owned());
    }
}

/// Tells the platform's own log of a failure.
pub(crate) fn log_failure(key: &VersionKey, request_id: Option<&RequestId>, failure: &Failure) {
    let request_id = request_id.map(RequestId::as_str);
    let (function, version, kind) = (key.function.as_str(), key.number.0, failure.kind.code());
    match failure.kind.fault() {
        Fault::Platform if !failure.kind.retryable() => {
            tracing::error!(
                function,
                version,
                request_id,
                kind,
                cause = failure.cause,
                "{}",
                failure.message
            );
        }
        _ => tracing::warn!(
            function,
            version,
            request_id,
            kind,
            cause = failure.cause,
            "{}",
            failure.message
        ),
    }
}

/// Milliseconds, to the microsecond: more digits would be noise.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_load_beside_the_code_and_the_sandbox_waits_for_both() {
        let began = Instant::now();
        let ms = Duration::from_millis;
        let phases = ColdStart {
            artifact: ms(1),
            compile: ms(2),
            model: ms(10),
            instantiate: ms(1),
            init: ms(3),
            queue: ms(99),
        };
        let spans: Vec<_> = timeline(began, &phases)
            .into_iter()
            .map(|(phase, from, to)| (phase.as_str(), from - began, to - began))
            .collect();
        assert_eq!(
            spans,
            [
                ("artifact", ms(0), ms(1)),
                ("compile", ms(1), ms(3)),
                ("model", ms(0), ms(10)),
                ("instantiate", ms(10), ms(11)),
                ("init", ms(11), ms(14)),
            ]
        );
    }
}
