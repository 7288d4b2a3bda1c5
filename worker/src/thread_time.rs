//! The CPU time of one run, by the clock of its thread, measured where somebody asked for it: two readings of the thread's clock for every
//! time the guest is polled.

use rustix::time::{ClockId, clock_gettime};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Duration;

/// Runs `future`, adding the CPU time of its polls to `spent`, if there is one to add to.
pub(crate) async fn metered<T>(spent: Option<&mut Duration>, future: impl Future<Output = T>) -> T {
    let Some(spent) = spent else {
        return future.await;
    };
    let mut future = pin!(future);
    poll_fn(|cx| {
        let before = thread_time();
        let polled = future.as_mut().poll(cx);
        *spent += thread_time().saturating_sub(before);
        polled
    })
    .await
}

/// CPU time of this thread so far.
fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_counts_and_waiting_does_not() {
        let mut spent = Duration::ZERO;
        metered(Some(&mut spent), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let since = thread_time();
            while thread_time() - since < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
        })
        .await;
        assert!(spent >= Duration::from_millis(20), "{spent:?}");
        assert!(spent < Duration::from_millis(50), "{spent:?}");
    }
}
