//! `fixed`: every idle instance is kept for the same time.

use super::Plan;
use std::time::Duration;

/// The plan of a fixed keep-alive.
pub(crate) fn plan(keep: Duration) -> Plan {
    Plan::keep_for(keep.as_secs_f32())
}
