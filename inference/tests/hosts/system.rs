//! What the system knows of this program: its children, and the memory it shares with them.

use rustix::process::{Pid, Signal};

pub(crate) fn signal(pid: u32, signal: Signal) {
    // It may be gone by now.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Processes that this one started and has not buried.
pub(crate) fn children() -> Vec<u32> {
    let mine = std::process::id();
    let stat = |entry: std::fs::DirEntry| -> Option<u32> {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        (rest.split(' ').nth(1)?.parse::<u32>().ok()? == mine).then_some(pid)
    };
    let processes = std::fs::read_dir("/proc").unwrap();
    processes.flatten().filter_map(stat).collect()
}

/// Descriptors of memory: what is shared with hosts, and models that guests brought.
pub(crate) fn memory_descriptors() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|link| link.to_string_lossy().contains("memfd:fnctl-"))
        .count()
}
