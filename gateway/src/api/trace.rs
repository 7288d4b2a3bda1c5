//! `GET trace`: the invocations that the scheduler remembers, as `timestamp,function,duration,start` in lines of text.
//! Seconds since 1970 and seconds, to the microsecond.

use fnctl_core::record::Recorder;
use std::fmt::Write;
use std::time::SystemTime;

/// The trace, sorted by time.
pub(crate) fn text(recorder: &Recorder) -> String {
    let all = recorder.all();
    let mut text = String::with_capacity(64 * (all.len() + 1));
    text.push_str("timestamp,function,duration,start\n");
    for recorded in all {
        let at = recorded
            .at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:.6},{},{:.6},{}",
            at.as_secs_f64(),
            recorded.function,
            recorded.duration.as_secs_f64(),
            recorded.start.as_str()
        );
    }
    text
}
