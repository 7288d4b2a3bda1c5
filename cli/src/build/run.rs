//! Running compilers: one at a time, in a process group that can be ended with everything it started.

use anyhow::{Context, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

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
        let status = child.wait();
        self.state.lock().running = None;
        Ok(status?)
    }

    /// Whether `stop` was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Ends what runs, and lets nothing start any more.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        if let Some(pid) = state.running.filter(|_| self.own_group) {
            // It may be over already.
            let _ = kill_process_group(pid, Signal::TERM);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

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
}
