//! seccomp: the system calls that computing with ONNX Runtime needs, and no other. For every thread of the process.
//!
//! A call that is not listed fails with `EPERM` and does not kill: ONNX Runtime, the C library and Rust's probe for
//! things (CPU topology, `/proc`, newer calls) that they can do without, and a dead host costs its callers a retry.
//! `clone3` fails with `ENOSYS`: a filter cannot look behind the pointer it takes, and the C library then starts its
//! threads with `clone`, whose flags are looked at.

use super::{ConfineError, Measure};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::ffi::c_long;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Calls that are harmless whatever their arguments, given what the others leave to pass to them.
const ALLOWED: &[c_long] = &[
    // Descriptors that are there.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_dup,
    // The control socket. `sendmsg` could name a receiver, which stream and sequenced-packet sockets do not heed.
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    // An event loop.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    // Memory; mapping and protecting it are below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads; starting them is below.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals to oneself, as an abort or a stack overflow makes them.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time, randomness, one's own use of the machine.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    // Answered by the filter of `without_clone3`, which is stricter.
    libc::SYS_clone3,
];

/// What the C library calls on this architecture only.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// What making shared memory needs.
const SHARED_MEMORY: &[c_long] = &[
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
];

/// A new thread of this process, and nothing that has a name space or memory of its own.
const THREAD: i32 = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;
const NO_THREAD: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PTRACE
    | libc::CLONE_VFORK;

/// `prctl` with which newer C libraries name memory for `/proc/PID/maps`.
const PR_SET_VMA: i32 = 0x5356_4d41;
/// The part of a socket's type that is not a flag.
const SOCKET_TYPE: u64 = 0xf;

fn is(argument: u8, value: u64) -> Result<SeccompCondition, Error> {
    compare(argument, SeccompCmpOp::Eq, value)
}

/// The bits of `mask` in an argument are exactly those of `value`.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, Error> {
    compare(argument, SeccompCmpOp::MaskedEq(mask), value)
}

/// Compares 64 bits. The kernel looks at 32 of most numbers: what differs in the others only is refused, which is safe.
fn compare(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Qword,
        operator,
        value,
    )?)
}

/// Compares the lower 32 bits, for arguments that the kernel takes as an `int` and callers may extend by sign.
fn is_int(argument: u8, value: i32) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        u64::from(value.cast_unsigned()),
    )?)
}

/// One rule: all conditions hold.
fn all(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(conditions)?)
}

/// One rule for each value an `int` argument may have.
fn one_of(argument: u8, values: &[i32]) -> Result<Vec<SeccompRule>, Error> {
    values
        .iter()
        .map(|value| all(vec![is_int(argument, *value)?]))
        .collect()
}

fn bits(flags: i32) -> u64 {
    u64::from(flags.cast_unsigned())
}

/// The whole list. `process`: this process's id.
fn rules(process: u32, makes_shared_memory: bool) -> Result<Rules, Error> {
    let shared = if makes_shared_memory {
        SHARED_MEMORY
    } else {
        &[]
    };
    let mut rules: Rules = [ALLOWED, ALLOWED_HERE, shared]
        .concat()
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    // No new machine code: neither mapped nor made of data.
    let data_only = |argument| all(vec![masked(argument, bits(libc::PROT_EXEC), 0)?]);
    rules.insert(libc::SYS_mmap, vec![data_only(2)?]);
    rules.insert(libc::SYS_mprotect, vec![data_only(2)?]);
    rules.insert(
        libc::SYS_clone,
        vec![all(vec![masked(
            0,
            bits(THREAD | NO_THREAD),
            bits(THREAD),
        )?])?],
    );
    // An abort signals itself; nobody else, and by nothing that would look like a kill from outside.
    rules.insert(
        libc::SYS_tgkill,
        vec![all(vec![
            is_int(0, process.cast_signed())?,
            is_int(2, libc::SIGABRT)?,
        ])?],
    );
    // To the peer of the socket, no receiver named.
    rules.insert(libc::SYS_sendto, vec![all(vec![is(4, 0)?])?]);
    // tokio's runtime makes a pair for its signals. Only streams: a datagram socket can write to any other by its path.
    rules.insert(
        libc::SYS_socketpair,
        vec![all(vec![
            is_int(0, libc::AF_UNIX)?,
            masked(1, SOCKET_TYPE, bits(libc::SOCK_STREAM))?,
        ])?],
    );
    // Not those that have a signal sent to others (F_SETOWN), nor leases and notifications.
    rules.insert(
        libc::SYS_fcntl,
        one_of(
            1,
            &[
                libc::F_DUPFD_CLOEXEC,
                libc::F_GETFD,
                libc::F_SETFD,
                libc::F_GETFL,
                libc::F_SETFL,
                libc::F_ADD_SEALS,
                libc::F_GET_SEALS,
            ],
        )?,
    );
    // Not a terminal's, which could type for its owner.
    let blocking = i32::try_from(libc::FIONBIO).unwrap_or_default();
    let close_on_exec = i32::try_from(libc::FIOCLEX).unwrap_or_default();
    rules.insert(libc::SYS_ioctl, one_of(1, &[blocking, close_on_exec])?);
    // Names of threads and of memory.
    rules.insert(
        libc::SYS_prctl,
        one_of(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, PR_SET_VMA])?,
    );
    // Its own limits, to be read.
    rules.insert(
        libc::SYS_prlimit64,
        vec![all(vec![is_int(0, 0)?, is(2, 0)?])?],
    );
    Ok(rules)
}

fn compile(rules: Rules, listed: SeccompAction, other: SeccompAction) -> Result<BpfProgram, Error> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, other, listed, architecture)?.try_into()?)
}

/// `clone3` does not exist; of two filters' answers the kernel takes the stricter.
fn without_clone3() -> Result<BpfProgram, Error> {
    compile(
        Rules::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        SeccompAction::Allow,
    )
}

fn only_listed(makes_shared_memory: bool) -> Result<BpfProgram, Error> {
    compile(
        rules(std::process::id(), makes_shared_memory)?,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
    )
}

/// Gives up every call that is not listed, for all threads.
pub(super) fn enforce(makes_shared_memory: bool) -> Result<Measure, ConfineError> {
    let failed = |error: Error| ConfineError::Seccomp(error.to_string());
    if TargetArch::try_from(std::env::consts::ARCH).is_err() {
        return Ok(Measure::Absent(format!(
            "there is no list of calls for {}",
            std::env::consts::ARCH
        )));
    }
    // Both are ready before the first is in force.
    let (first, second) = (
        without_clone3().map_err(failed)?,
        only_listed(makes_shared_memory).map_err(failed)?,
    );
    match seccompiler::apply_filter_all_threads(&first) {
        Err(Error::Seccomp(error))
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)
            ) =>
        {
            return Ok(Measure::Absent(format!(
                "the kernel, or the container it runs in, has no filters of system calls for it: {error}"
            )));
        }
        applied => applied.map_err(failed)?,
    }
    seccompiler::apply_filter_all_threads(&second).map_err(failed)?;
    Ok(Measure::Enforced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_compiles_for_both_architectures_and_stays_small() {
        for architecture in [TargetArch::x86_64, TargetArch::aarch64] {
            let filter = SeccompFilter::new(
                rules(1, true).unwrap(),
                SeccompAction::Errno(1),
                SeccompAction::Allow,
                architecture,
            )
            .unwrap();
            let program: BpfProgram = filter.try_into().unwrap();
            assert!(program.len() < 600, "{} instructions", program.len());
        }
    }

    #[test]
    fn what_reaches_beyond_the_process_is_not_listed() {
        let rules = rules(1, true).unwrap();
        for call in [
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_newfstatat,
            libc::SYS_statx,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_sendmmsg,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_send_signal,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_pkey_mprotect,
            libc::SYS_personality,
            libc::SYS_seccomp,
            libc::SYS_keyctl,
            libc::SYS_shmat,
        ] {
            assert!(!rules.contains_key(&call), "system call {call}");
        }
    }
}
