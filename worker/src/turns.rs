//! How the system is to treat the threads that answer requests and run guests. Nothing here is needed for anything to work.

/// For how long such a thread computes, in nanoseconds, before another gets a turn: the least that Linux allows.
#[cfg(target_os = "linux")]
const SLICE: u64 = 100_000;

/// `struct sched_attr` of Linux in its first version, which every later kernel takes.
#[cfg(target_os = "linux")]
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks that this thread gets its turn at once when it is woken, for short turns. It takes no larger share of a processor
/// for that: a thread that computes for milliseconds is interrupted by it, as a request needs microseconds. Linux does that
/// from 6.12 on; before, or where it is forbidden, everything is as without.
pub fn answer_promptly() {
    #[cfg(target_os = "linux")]
    if let Some(mut attributes) = attributes() {
        // Only the usual kind of thread: an operator who chose another knows why.
        if attributes.policy == libc::SCHED_OTHER.cast_unsigned() {
            attributes.runtime = SLICE;
            // SAFETY: the kernel reads as many bytes as the structure says it has; 0 is the calling thread.
            unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        }
    }
}

/// Those of this thread.
#[cfg(target_os = "linux")]
fn attributes() -> Option<Attributes> {
    let mut attributes = Attributes::default();
    let size = u32::try_from(size_of::<Attributes>()).ok()?;
    // SAFETY: the kernel writes at most `size` bytes; 0 is the calling thread.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    (got == 0).then_some(attributes)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_short_turns_and_its_own_niceness() {
        let thread = std::thread::spawn(|| {
            rustix::process::nice(3).unwrap();
            let before = attributes().unwrap();
            answer_promptly();
            (before, attributes().unwrap())
        });
        let (before, after) = thread.join().unwrap();
        assert_eq!(
            (after.policy, after.nice),
            (before.policy, before.nice),
            "{after:?}"
        );
        // A kernel that does not tell the slice has none to set.
        assert!(
            after.runtime == SLICE || (before.runtime, after.runtime) == (0, 0),
            "{before:?} {after:?}"
        );
    }
}
