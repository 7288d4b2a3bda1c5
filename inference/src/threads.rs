//! The threads that compute. They start when there is work and end when there has been none for a while.

use fnctl_core::inference::{InferenceError, InferenceErrorKind};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// How long a thread without work stays.
const LINGER: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct ComputeThreads(Arc<Shared>);

struct Shared {
    max_threads: usize,
    max_queue: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl ComputeThreads {
    pub(crate) fn new(max_threads: usize, max_queue: usize) -> Self {
        Self(Arc::new(Shared {
            max_threads: max_threads.max(1),
            max_queue: max_queue.max(1),
            state: Mutex::default(),
            work: Condvar::new(),
        }))
    }

    /// Hands a job to a thread; never blocks.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), InferenceError> {
        let mut state = self.0.state.lock();
        if state.queue.len() >= self.0.max_queue {
            return Err(InferenceError::new(
                InferenceErrorKind::Runtime,
                "too many inferences are waiting; try again",
            ));
        }
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() {
            drop(state);
            self.0.work.notify_one();
        } else if state.threads < self.0.max_threads {
            state.threads += 1;
            drop(state);
            let shared = self.0.clone();
            let started = std::thread::Builder::new()
                .name("fnctl-compute".into())
                .spawn(move || shared.work());
            if let Err(error) = started {
                tracing::warn!(%error, "no new compute thread; the others go on");
                let mut state = self.0.state.lock();
                state.threads -= 1;
                if state.threads == 0 {
                    state.queue.clear();
                    return Err(InferenceError::new(
                        InferenceErrorKind::Runtime,
                        "the system refuses a thread to compute on",
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Drop for ComputeThreads {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.work.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                // A panic in one job must not take the thread's count with it; the job's oneshot tells its caller.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    tracing::error!("an inference panicked; please report this as a defect");
                }
                state = self.state.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let waited = self.work.wait_for(&mut state, LINGER);
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn jobs_run_side_by_side_up_to_the_limit_and_the_queue_is_bounded() {
        let threads = ComputeThreads::new(4, 2);
        let barrier = Arc::new(Barrier::new(5));
        for _ in 0..4 {
            let barrier = barrier.clone();
            // Each thread takes its job before the next is queued, or the queue of two would be full.
            while threads.0.state.lock().queue.len() > 1 {
                std::thread::yield_now();
            }
            threads
                .submit(move || {
                    barrier.wait();
                })
                .unwrap();
        }
        while !threads.0.state.lock().queue.is_empty() {
            std::thread::yield_now();
        }
        let (tx, rx) = sync_channel(2);
        for _ in 0..2 {
            let tx = tx.clone();
            threads.submit(move || tx.send(()).unwrap()).unwrap();
        }
        assert!(threads.submit(|| {}).is_err(), "the queue has a size");
        barrier.wait();
        rx.recv().unwrap();
        rx.recv().unwrap();
        assert_eq!(threads.0.state.lock().threads, 4);
    }

    #[test]
    fn a_panicking_job_leaves_its_thread_usable() {
        let threads = ComputeThreads::new(1, 4);
        threads.submit(|| panic!("on purpose")).unwrap();
        let (tx, rx) = sync_channel(1);
        threads.submit(move || tx.send(7).unwrap()).unwrap();
        assert_eq!(rx.recv().unwrap(), 7);
    }
}
