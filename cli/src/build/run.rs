//! Running compilers: one at a time, in a process group that can be ended with everything it started.

use anyhow::{Context, bail};
use parking_lot::Mutex;
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a build may take to end when it is asked to. Less than `fnctl dev` waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// The child that runs now, if any. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Children {
    state: Arc<Mutex<State>>,
    /// Children in a group of their own do not get the terminal's Ctrl-C: whoever sets this must call `stop`.
    own_group: bool,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    running: Option<Pid>,
}

impl Children {
    /// Children that only `stop` ends.
    pub(crate) fn in_own_group() -> Self {
        Self {
            own_group: true,
            ..Self::default()
        }
    }

    /// Runs a program to its end. Its output goes to stderr: stdout belongs to answers.
    pub(crate) fn run(&self, mut command: Command) -> anyhow::Result<ExitStatus> {
        let program = command.get_program().to_string_lossy().into_owned();
        let errors = crate::output::for_children()?;
        command.stdin(Stdio::null()).stdout(Stdio::from(errors));
        if self.own_group {
            command.process_group(0);
        }
        let mut child = {
            let mut state = self.state.lock();
            if state.stopped {
                bail!("stopped");
            }
            let child = command
                .spawn()
                .with_context(|| format!("{program} cannot be started"))?;
            state.running = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            child
        };
        // Its end is seen first and its number given back under the lock, so that no signal goes to another's.
        let id = Pid::from_child(&child);
        let seen = retry_on_intr(|| {
            waitid(
                WaitId::Pid(id),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            )
        });
        let mut state = self.state.lock();
        state.running = None;
        let status = child.wait();
        drop(state);
        seen?;
        Ok(status?)
    }

    /// Whether `stop` was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Ends what runs, and lets nothing start any more. What does not heed TERM is killed after `PATIENCE`.
    pub(crate) fn stop(&self) {
        let running = {
            let mut state = self.state.lock();
            state.stopped = true;
            state.running.filter(|_| self.own_group)
        };
        let Some(pid) = running else { return };
        // It may be over already.
        let _ = kill_process_group(pid, Signal::TERM);
        let state = self.state.clone();
        let kill = move || {
            let until = Instant::now() + PATIENCE;
            let runs = || state.lock().running == Some(pid);
            while runs() && Instant::now() < until {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            // Under the lock: a child that has not been waited for keeps its number.
            let state = state.lock();
            if state.running == Some(pid) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
        };
        // Without a thread there is no waiting.
        if let Err(error) = std::thread::Builder::new().name("stop".into()).spawn(kill) {
            tracing::debug!(%error, "no thread to wait for the build");
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopping_ends_the_child_with_what_it_started() {
        let children = Children::in_own_group();
        let worker = children.clone();
        let folder = tempfile::tempdir().unwrap();
        let marker = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", marker.display());
        let thread = std::thread::spawn(move || {
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            worker.run(command)
        });
        let until = Instant::now() + Duration::from_secs(10);
        let inner = loop {
            if let Ok(pid) = std::fs::read_to_string(&marker)
                && let Ok(pid) = pid.trim().parse::<u32>()
            {
                break pid;
            }
            assert!(Instant::now() < until);
            std::thread::yield_now();
        };
        children.stop();
        assert!(!thread.join().unwrap().unwrap().success());
        let state = || std::fs::read_to_string(format!("/proc/{inner}/stat")).unwrap_or_default();
        while cfg!(target_os = "linux") && !state().is_empty() && !state().contains(") Z ") {
            assert!(Instant::now() < until, "{}", state());
            std::thread::yield_now();
        }
        assert!(children.run(Command::new("true")).is_err());
    }

    #[test]
    fn a_child_that_does_not_heed_term_is_killed() {
        let children = Children::in_own_group();
        let worker = children.clone();
        let folder = tempfile::tempdir().unwrap();
        let marker = folder.path().join("deaf");
        let script = format!(
            "trap '' TERM; : > {}; while :; do sleep 1; done",
            marker.display()
        );
        let thread = std::thread::spawn(move || {
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            worker.run(command)
        });
        let until = Instant::now() + Duration::from_secs(10);
        while !marker.exists() {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
        let asked = Instant::now();
        children.stop();
        let status = thread.join().unwrap().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
        assert!(asked.elapsed() >= PATIENCE);
    }
}
