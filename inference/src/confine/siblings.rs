//! What the kernel keeps for each thread alone (capabilities, `no_new_privs`, and Landlock before Linux 7.0), given up by
//! the threads that ran before: ONNX Runtime's pool starts with its environment, and that must come first.
//!
//! Each of them is sent a signal whose handler makes the calls, as the C library does for `setuid`. Invariants: a thread is
//! asked once, the wait for it is bounded, and one that did not answer is counted, never assumed.

use rustix::thread::{CapabilitySet, CapabilitySets};
use std::collections::HashSet;
use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long one thread may take to answer. It only has to be scheduled; one that blocks every signal never does.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often new threads are looked for: those that a thread started before its turn came.
const ROUNDS: usize = 8;

const NONE: i32 = -1;
/// The Landlock rules to enforce, or `NONE`.
static RULESET: AtomicI32 = AtomicI32::new(NONE);
static ANSWERED: AtomicUsize = AtomicUsize::new(0);
static FAILED: AtomicUsize = AtomicUsize::new(0);

pub(super) const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// Runs on the thread that gives up its rights, whatever it was doing: nothing but system calls and atomics.
extern "C" fn on_signal(_signal: c_int) {
    let mut given_up = rustix::thread::set_no_new_privs(true).is_ok()
        && rustix::thread::set_capabilities(None, NO_CAPABILITIES).is_ok();
    let ruleset = RULESET.load(Ordering::Acquire);
    if ruleset != NONE {
        // SAFETY: the address of this thread's errno is valid while the thread lives; what it was interrupted in must find
        // it unchanged.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: as above; `landlock_restrict_self` takes two numbers and touches no memory.
        unsafe {
            let before = errno.read();
            given_up &= libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) == 0;
            errno.write(before);
        }
    }
    if !given_up {
        FAILED.fetch_add(1, Ordering::Relaxed);
    }
    // Last, and read by the one who waits.
    ANSWERED.fetch_add(1, Ordering::Release);
}

/// Sets what `signal` does to every thread of the process.
fn handle(signal: c_int, handler: libc::sighandler_t) -> bool {
    // SAFETY: all zeros is a valid `sigaction` (no flags, an empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: `action` is valid for the call, which copies it; nothing else here uses this signal.
    unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) == 0 }
}

fn threads() -> Option<HashSet<i32>> {
    let entries = std::fs::read_dir("/proc/self/task").ok()?;
    let thread =
        |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    Some(entries.filter_map(thread).collect())
}

/// Asks one thread and waits for its answer. Err: it did not answer, or could not do it.
fn ask(thread: i32, signal: c_int) -> Result<(), ()> {
    let (answered, failed) = (
        ANSWERED.load(Ordering::Acquire),
        FAILED.load(Ordering::Relaxed),
    );
    let process = std::process::id().cast_signed();
    // SAFETY: signals a thread of this process by its id; one that is gone, or an id used again by another process, is
    // refused by the kernel because the process does not match.
    if unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) } != 0 {
        return Ok(());
    }
    let until = Instant::now() + PATIENCE;
    while ANSWERED.load(Ordering::Acquire) == answered {
        if Instant::now() >= until {
            // It may have ended before it looked.
            let lives = threads().is_none_or(|threads| threads.contains(&thread));
            return if lives { Err(()) } else { Ok(()) };
        }
        std::thread::yield_now();
    }
    if FAILED.load(Ordering::Relaxed) == failed {
        Ok(())
    } else {
        Err(())
    }
}

/// Has every other thread give up its capabilities, and its access by the Landlock rules in `ruleset`. Returns how many did
/// not; None if it is not known which threads there are.
pub(super) fn give_up(ruleset: Option<BorrowedFd<'_>>) -> Option<usize> {
    let mut asked = HashSet::from([rustix::thread::gettid().as_raw_nonzero().get()]);
    let mut new: Vec<_> = threads()?.difference(&asked).copied().collect();
    if new.is_empty() {
        return Some(0);
    }
    let signal = libc::SIGRTMAX();
    RULESET.store(
        ruleset.map_or(NONE, |ruleset| ruleset.as_raw_fd()),
        Ordering::Release,
    );
    let handler: extern "C" fn(c_int) = on_signal;
    if !handle(signal, handler as libc::sighandler_t) {
        return Some(new.len());
    }
    let mut refused = 0;
    let mut left = None;
    for _ in 0..ROUNDS {
        for thread in std::mem::take(&mut new) {
            refused += usize::from(ask(thread, signal).is_err());
            asked.insert(thread);
        }
        left = threads().map(|threads| {
            new = threads.difference(&asked).copied().collect();
            new.len()
        });
        if matches!(left, Some(0) | None) {
            break;
        }
    }
    // Discards what a thread that blocks the signal has not seen; by default it would end the process one day.
    handle(signal, libc::SIG_IGN);
    RULESET.store(NONE, Ordering::Release);
    left.map(|left| left + refused)
}
