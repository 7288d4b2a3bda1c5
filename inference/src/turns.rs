//! How the system is to treat the threads that answer requests and run guests, and those that compute. Nothing here is
//! needed for anything to work: what is forbidden, or unknown to the kernel, is left out.
//!
//! Linux, from 6.12 on, lets a thread say for how long it wants to compute in a row. It gets no larger share of a processor
//! for that, it gets its share in smaller or larger pieces: who asks for less gets its turn at once when it is woken, and
//! interrupts who asked for more. A request needs microseconds and a model milliseconds, so nobody loses by it.

/// A thread that answers requests or runs guests, in nanoseconds: the least that Linux allows.
#[cfg(target_os = "linux")]
const PROMPT: u64 = 100_000;
/// A thread that computes a model of microseconds: short enough to interrupt a thread that asks for nothing (1.4 ms on two
/// processors), and as long as such a compute takes after others have had the caches (up to half a millisecond). One that
/// is not done by then may have to wait for the next tick of the kernel's clock, 4 ms.
#[cfg(target_os = "linux")]
const BRIEF: u64 = 700_000;
/// A thread that computes for milliseconds.
#[cfg(target_os = "linux")]
const PATIENT: u64 = 20_000_000;
/// How much a thread that computes for milliseconds gives way: a third of the processor time of those that do not, where
/// both want it.
#[cfg(target_os = "linux")]
const NICE: i32 = 5;

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

/// Asks that this thread gets its turn at once when it is woken, for short turns: it answers requests.
pub fn answer_promptly() {
    #[cfg(target_os = "linux")]
    ask(PROMPT);
}

/// Asks the same for a thread that computes models of microseconds, and those that it starts.
#[cfg(target_os = "linux")]
pub(crate) fn compute_briefly() {
    ask(BRIEF);
}

/// This thread, and those that it starts, give way to all that answer requests: a model that computes for milliseconds is
/// not slower for that, and a request that needs some microseconds does not wait behind it.
#[cfg(target_os = "linux")]
pub(crate) fn compute_patiently() {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "models are computed at the platform's own priority");
    }
    ask(PATIENT);
}

/// Asks for turns of so many nanoseconds.
#[cfg(target_os = "linux")]
fn ask(turn: u64) {
    if let Some(mut attributes) = attributes() {
        // Only the usual kind of thread: an operator who chose another knows why.
        if attributes.policy == libc::SCHED_OTHER.cast_unsigned() {
            attributes.runtime = turn;
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

    /// What a thread has before and after, and one that it starts.
    fn around(change: fn()) -> Option<[Attributes; 3]> {
        let thread = std::thread::spawn(move || {
            rustix::process::nice(3).ok()?;
            let before = attributes()?;
            change();
            let child = std::thread::spawn(attributes);
            Some([before, attributes()?, child.join().ok()??])
        });
        thread.join().ok()?
    }

    /// A kernel that does not tell a turn has none to set.
    fn is_turn(attributes: &Attributes, turn: u64) -> bool {
        attributes.runtime == turn || attributes.runtime == 0
    }

    #[test]
    fn a_thread_has_short_turns_and_its_own_niceness() {
        for (change, turn) in [
            (answer_promptly as fn(), PROMPT),
            (compute_briefly as fn(), BRIEF),
        ] {
            let [before, after, child] = around(change).unwrap();
            for thread in [after, child] {
                assert_eq!(
                    (thread.policy, thread.nice),
                    (before.policy, before.nice),
                    "{thread:?}"
                );
                assert!(is_turn(&thread, turn), "{before:?} {thread:?}");
            }
        }
    }

    #[test]
    fn who_computes_gives_way_and_so_does_whom_it_starts() {
        let [before, after, child] = around(compute_patiently).unwrap();
        for thread in [after, child] {
            assert_eq!(
                (thread.policy, thread.nice),
                (before.policy, before.nice + NICE)
            );
            assert!(is_turn(&thread, PATIENT), "{before:?} {thread:?}");
        }
    }
}
